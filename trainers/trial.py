"""Run a few batches of every stage with untrained parts, and measure what they take; nothing of it stays.

A stage takes the time of its trial (building networks, masks, files), with the time of all its batches in place of the
few that the trial runs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import CSVLogger

from datasets.missingness import parse_scenario, parse_scenarios, save_mask
from datasets.source import file_digest
from gaussian_parameter_generation.estimate import add_squares, collect, needs_squares
from models.base import IncompleteClassifier, Method
from models.completed import Completed
from models.dymo.gaussian import GaussianParameters
from models.imputers.base import Assembled, FittedImputer, Imputer
from models.imputers.quality import Judge, recovery_quality
from trainers.bundle import archive, save_weights
from trainers.callbacks import EpochOrder, Provenance
from trainers.checkpoint_files import PREVIOUS, CheckpointFiles
from trainers.config.build import (
    build_encoders,
    build_metrics,
    build_model,
    build_modulation,
    build_noise,
    build_selector,
    build_trainer,
)
from trainers.config.checks.machine import number_of_processes
from trainers.config.imputers import build_imputer
from trainers.cost import Cost, count, limited, repeated
from trainers.effort import ROWS, prediction_seconds
from trainers.evaluate import write_examples
from trainers.export import on_validation
from trainers.fit import check_checkpoint, checkpoint_callbacks
from trainers.impute import augmented
from trainers.loading import Run
from trainers.measurement import realised_rates, tabulate
from trainers.prediction import Outputs, hardest, predict, scenario_batches, scenario_masks
from trainers.programs import formats, write_programs
from trainers.quiet import quiet_lightning
from trainers.report.page import write_report
from trainers.report.runs import finished_directories, report_patterns
from trainers.timing import BATCHES, EPOCHS, Clock, EpochTimes, device_clock, timed, typical
from utils.errors import UserError
from utils.files import save_arrays
from utils.run_directory import RunDirectory
from utils.subsets import enumerate_subsets


class Trial:
    """The stages of a run on a few batches.

    Args:
        run: whose data are packed, completely or as a sample.
        rows: split -> number of rows of the complete data.
        stages: that are to run; ``impute`` is the training of the imputer, ``quality`` the measurement of its
            recoveries.
        folder: for temporary files.
        clock: seconds.
    """

    def __init__(
        self, run: Run, rows: Mapping[str, int], stages: Collection[str], folder: Path, clock: Clock = device_clock
    ) -> None:
        self.run, self.cfg, self.data, self.rows, self.clock = run, run.cfg, run.data, rows, clock
        self.stages, self.folder = set(stages), folder
        # A run directory like that of stage test, which stage report reads.
        self.tested = RunDirectory(folder.joinpath(*run.directory.path.parts[-4:]))
        self.cost = Cost()
        self.imputer: Imputer | None = None
        self.build_seconds = 0.0  # of model and imputer, which stages gaussian, test and export build again

    def batches_of(self, split: str, size: int, *, drop_last: bool = False) -> int:
        """Number of batches of a split of the complete data, for one process."""
        n = -(-self.rows.get(split, 0) // number_of_processes(self.cfg))
        return n // size if drop_last else -(-n // size)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that passes inside to a stage."""
        start = self.clock()
        yield
        self.cost.add_seconds(name, self.clock() - start)

    @contextmanager
    def batches(self, stage: str, split: str, loader: Any, rows: int | None = None) -> Iterator[Iterator[Any]]:
        """The first batches of a loader, and in place of their time that of all batches of the split.

        Args:
            rows: with which the stage ends; None = all.
        """
        times: list[float] = []
        yield timed(loader, times, self.clock)
        n = self.batches_of(split, loader.batch_size)
        n = n if rows is None else min(n, -(-rows // loader.batch_size))
        spent = times[-1] - times[0] if times else 0.0
        self.cost.add_seconds(stage, n * typical(times) - spent)
        self.cost.add_work(stage, batches=n)

    # ---- training ----------------------------------------------------------------------------------------------------

    def training(
        self,
        stage: str,
        module: pl.LightningModule,
        node: DictConfig,
        model: DictConfig | None = None,
        loader: Any = None,
    ) -> float:
        """Train for a few batches, and add what all epochs take to a stage.

        Args:
            node: max_epochs, batch_size and the like.
            model: node with noise and modulation.
            loader: training batches of a training that is neither validated nor saved.

        Returns:
            Bytes of the checkpoints.
        """
        data, cfg = self.data, self.cfg
        data.batch_size, data.seed = node.batch_size, cfg.seed
        data.training_noise = None if model is None else build_noise(model)
        if isinstance(module, IncompleteClassifier):
            module.stream_seed = cfg.seed
        times = EpochTimes(self.clock)
        callbacks: list[pl.Callback] = [times, EpochOrder(cfg.seed)]
        if model is not None and (modulation := build_modulation(model)):
            callbacks.append(modulation)
        options = {key: node[key] for key in ("accumulate_grad_batches", "gradient_clip_val") if node.get(key)}
        limits = cfg.trainer.limit_train_batches, cfg.trainer.limit_val_batches
        with tempfile.TemporaryDirectory(prefix="plan-") as name, quiet_lightning():
            folder = Path(name)
            if loader is None:
                callbacks += [Provenance(cfg.dataset.name, data.describe_inputs())]
                callbacks += checkpoint_callbacks(node, folder, None, None)
            trainer = build_trainer(
                cfg, **options, max_epochs=EPOCHS, limit_train_batches=BATCHES, limit_val_batches=BATCHES, devices=1,
                strategy="auto", logger=CSVLogger(folder) if loader is None else False,
                enable_checkpointing=loader is None, enable_model_summary=False, enable_progress_bar=False,
                num_sanity_val_steps=0, default_root_dir=folder, log_every_n_steps=10**9, callbacks=callbacks,
                plugins=[CheckpointFiles()],
            )  # fmt: skip
            trainer.fit(module, loader, datamodule=data if loader is None else None)
            # While a training runs, its previous checkpoint is there, too.
            files = [file for file in folder.glob("*.ckpt") if file.name != PREVIOUS]
            for file in files:
                check_checkpoint(file)
            size = sum(file.stat().st_size for file in files)
        steps = limited(self.batches_of("train", node.batch_size, drop_last=data.drop_last), limits[0])
        checks = limited(self.batches_of("val", data.test_batch_size), limits[1]) if loader is None else 0
        epochs = node.max_epochs
        self.cost.add_seconds(stage, times.complete(epochs, steps, checks) - times.seconds)
        self.cost.add_work(stage, training_batches=epochs * steps, validation_batches=epochs * checks)
        self.cost.add_work(stage, checkpoints=epochs * len(files))
        if loader is None and node.get("patience"):
            self.cost.may_stop_early.add(stage)
        return size

    def build(self, run: Run) -> IncompleteClassifier:
        """An untrained model on its untrained prerequisites."""
        parts: dict[str, Any] = {}
        if run.prerequisites:
            parts["prerequisites"] = {label: self.build(part) for label, part in run.prerequisites.items()}
        if run.is_built_on_imputer:
            parts["imputer"] = self.untrained_imputer()
        return build_model(run.cfg, run.trainable, run.data, False, **parts)

    def models(self, run: Run | None = None) -> IncompleteClassifier:
        """Stage fit of the model and, before it, of its prerequisites; the model as the few batches leave it."""
        run = self.run if run is None else run
        is_trained_here = "fit" in self.stages and not run.checkpoint_path
        if is_trained_here and run.part_of and (self.data.store.meta() or {}).get("signature"):  # not of a sample
            is_trained_here = not run.fit_directory.finished("fit", run.fit_settings, run.checkpoint)
        if is_trained_here:
            for part in run.prerequisites.values():
                self.models(part)
        if run.is_built_on_imputer or run.trains_on_recoveries:
            self.untrained_imputer()  # before the clock of stage fit runs
        start, name = self.clock(), str(run.trainable.name)
        model = self.build(run)
        self.build_seconds = self.clock() - start
        if run.trains_on_recoveries:
            model.attach_imputer(self.untrained_imputer())
        if is_trained_here:
            self.cost.add_seconds("fit", self.build_seconds)
            with self.stage("fit"):
                self.cost.bytes[f"checkpoints of {name}"] = self.training(
                    "fit", model, run.trainable.training, run.trainable
                )
        self.cost.parameters[name] = count(model)
        return model

    # ---- recovery ----------------------------------------------------------------------------------------------------

    def untrained_imputer(self) -> Imputer:
        """The imputer as the trial of stage impute leaves it."""
        if self.imputer is None:
            before = dict(self.cost.seconds), dict(self.cost.bytes)
            with self.stage("impute"):
                self.imputer = build_imputer(self.cfg, self.data, pretrained=False)
                self.imputer.learn(self)
            if self.cfg.imputer.checkpoint:  # it is given, and costs nothing
                self.cost.seconds, self.cost.bytes = before
                self.cost.work.pop("impute", None)
            self.imputer.move_to(self.run.device)
        return self.imputer

    def train(self, imputer: pl.LightningModule) -> None:
        node, name = self.cfg.imputer, f"imputer {self.cfg.imputer.name}"
        if "impute" in self.stages:
            with augmented(self.data, node.get("augmentation")):
                self.cost.bytes[f"checkpoints of {name}"] = self.training("impute", imputer, node.training)
        self.cost.parameters[name] = count(imputer)

    def fit(self, imputer: FittedImputer) -> None:
        loader = self.data.loader("train", parse_scenario("none"))
        with self.batches("impute", "train", loader) as batches:
            imputer.fit(list(batches))
        self._add_file(imputer.state_dict())

    def _add_file(self, state: Mapping[str, Any]) -> None:
        with tempfile.TemporaryFile() as stream:
            torch.save(state, stream)
            self.cost.bytes[f"imputer {self.cfg.imputer.name}"] = stream.tell()

    def assemble(self, imputer: Assembled) -> None:
        for label, part in self.run.imputer_parts.items():
            trial = Trial(part, self.rows, self.stages, self.folder, self.clock)
            trial.cost = self.cost
            imputer.replace_part(label, trial.untrained_imputer())
        self._add_file(imputer.state_dict())

    def skip(self) -> None:
        self.cost.add_seconds("impute", 0.0)

    def quality(self) -> None:
        """The measurement of recoveries in stage impute."""
        cfg, data = self.cfg, self.data
        if cfg.imputer.quality is None or not (self.rows.get("val") and self.rows.get("train")):
            return
        imputer = self.untrained_imputer()
        with self.stage("impute"):
            judge = Judge(data.modalities, data.num_classes, build_encoders(cfg, data, pretrained=False))
            epochs, size = cfg.imputer.quality.judge_epochs, cfg.imputer.training.batch_size
            data.batch_size = size
            loader = data.loader("train", train=True, device=self.run.device)
            self.training("impute", judge, OmegaConf.create({"max_epochs": epochs, "batch_size": size}), loader=loader)
            judge.to(self.run.device)
            loader = data.loader("val", parse_scenario("none"), device=self.run.device)
            with self.batches("impute", "val", loader) as batches:
                recovery_quality(imputer, judge, batches, seed=cfg.missing.seed)

    # ---- selection and test ------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def gaussian(self, backbone: Any) -> GaussianParameters:
        """Stage gaussian; a class without spread in the few batches gets a spread of 1."""
        gaussian = self.cfg.gaussian
        with self.stage("gaussian"), tempfile.TemporaryDirectory(prefix="plan-") as folder:
            loader = self.data.loader(
                gaussian.split, parse_scenario("none"), batch_size=gaussian.batch_size, device=self.run.device
            )
            with self.batches("gaussian", gaussian.split, loader) as batches:
                statistics = collect(backbone.eval(), batches, progress=False)
            if needs_squares(backbone):
                with self.batches("gaussian", gaussian.split, loader) as batches:
                    add_squares(backbone, batches, statistics, progress=False)
            statistics.count.clamp_(min=1)
            parameters = statistics.finish(backbone.distance_metric, enumerate_subsets(len(backbone.modalities)), {})
            parameters.sigma[parameters.sigma == 0] = 1.0
            file = Path(folder) / "parameters"
            parameters.save(file)
            self.cost.bytes["Gaussian parameters"] = file.stat().st_size
        self.cost.add_seconds("gaussian", self.build_seconds)
        return parameters.to(self.run.device)

    def method(self, model: IncompleteClassifier) -> Method:
        """The untrained method as stage test evaluates it, see :meth:`trainers.loading.Run.load_method`."""
        run = self.run
        model = model.eval().to(run.device)
        model.before_prediction()
        if run.fills_missing:
            return Completed(model, self.untrained_imputer())
        if not run.uses_selection:
            return model
        backbone = model.as_backbone(str(run.distance_metric))
        imputer = self.untrained_imputer() if run.uses_recoveries else None
        return build_selector(self.cfg, backbone, imputer, self.gaussian(backbone), "robust")

    def test(self, method: Method) -> None:
        """Stage test with the calibration on validation data."""
        self.cost.add_seconds("test", self.build_seconds)
        with self.stage("test"):
            self.run.directory = self.tested
            self.tested.describe(self.cfg)
            if (learner := method.learner) is not None:
                loader = self.data.loader(
                    "train", parse_scenario("none"), batch_size=self.cfg.gaussian.batch_size, device=self.run.device
                )
                with self.batches("test", "train", loader) as batches:
                    learner.learn(batches)
            if method.needs_calibration and self.data.has_split("val"):
                self._calibrate("test", method)
            self._predict(method)

    def _predict(self, method: Method) -> None:
        """The predictions of stage test, and everything that it writes."""
        run, data, scenarios, folder = self.run, self.data, self.run.scenarios, self.tested.path
        masks, cells = scenario_masks(data, "test", scenarios)
        noise = {scenario.name: data.corruption("test", scenario) for scenario in scenarios}
        with self.batches("test", "test", data.loader("test", device=run.device)) as batches:
            outputs: Outputs = predict(method, batches, masks, cells, progress=False, noise=noise)
        for scenario in scenarios:
            path = folder / "masks" / scenario.slug
            seed, corruption = data.mask_seed("test", scenario), noise[scenario.name]
            save_mask(path, masks[scenario.name], scenario, seed, data.modality_names, cells[scenario.name], corruption)
        loader = data.loader("test", device=run.device)
        with self.batches("test", "test", loader, ROWS) as batches:
            rates = realised_rates(run, masks, cells)
            prediction_seconds(method, hardest(batches, rates, masks, cells, noise)[1])
        self._save(outputs)
        write_examples(run, method, masks, cells, noise)
        rows, n = len(next(iter(outputs[""].values()))["index"]), self.rows["test"]
        for part, written in (("masks", len(data.split("test"))), ("predictions", rows), ("examples", n)):
            size = sum(f.stat().st_size for f in (folder / part).rglob("*") if f.is_file())
            self.cost.bytes[part] = size * n / written
        outputs = repeated(outputs, n)
        results, _ = tabulate(run, outputs, masks, cells, build_metrics(self.cfg, data))
        results.to_csv(folder / "results.csv", index=False)
        if "report" in self.stages:
            self._save(outputs)
        (folder / "DONE").touch()

    def _save(self, outputs: Outputs) -> None:
        for label, by_scenario in outputs.items():
            for scenario in self.run.scenarios:
                file = self.tested.path / "predictions" / label / f"{scenario.slug}.npz"
                save_arrays(file, by_scenario[scenario.name])

    def _calibrate(self, stage: str, method: Method) -> None:
        data = self.data
        scenarios = parse_scenarios(list(self.cfg.model.validation), len(data.modalities))
        masks, cells = scenario_masks(data, "val", scenarios)
        with self.batches(stage, "val", data.loader("val", device=self.run.device)) as batches:
            method.calibrate((batch, scenario_batches(batch, masks, cells)) for batch in batches)

    # ---- export and report ------------------------------------------------------------------------------------------

    def export(self, method: Any, model: IncompleteClassifier) -> None:
        """Stage export: predictions on validation data, the files of the bundle, and its programs."""
        run, data = self.run, self.data
        self.cost.add_seconds("export", 2 * self.build_seconds)
        with self.stage("export"):
            folder = self.folder / "bundle"
            (folder / "weights").mkdir(parents=True)
            if data.has_split("val"):
                if method.needs_calibration and OmegaConf.select(self.cfg, "model.selection.threshold") == "auto":
                    self._calibrate("export", method)
                with self.batches("export", "val", data.loader("val", device=run.device)) as batches:
                    on_validation(run, method, batches)
            modules: dict[str, Any] = {"model": model}
            if run.predicts_with_imputer and run.needs_imputer_weights:
                modules["imputer"] = self.untrained_imputer()
            for part, module in modules.items():
                save_weights(folder / "weights" / part, module.state_dict(), {})
            if set(formats(self.cfg)) - {"bundle"} and run.device.type == "cpu" and not method.why_not_exported():
                with suppress(UserError):  # the stage names the reason, with the trained method
                    write_programs(run, method, folder / "programs")
            files = [path for path in folder.rglob("*") if path.is_file()]
            for path in files:
                file_digest(path)
            archive(folder)
            self.cost.bytes["bundle, and its .zip"] = 2 * sum(path.stat().st_size for path in files)

    def report(self) -> None:
        """Stage report on the finished runs, and on the run directory that the trial of stage test leaves."""
        cfg = self.cfg
        directories = finished_directories(report_patterns(cfg))
        if (self.tested / "DONE").is_file():
            replaced = self.tested.path.parts[-4:]
            directories = [path for path in directories if path.parts[-4:] != replaced] + [self.tested.path]
        metrics = None if cfg.report.metrics is None else list(cfg.report.metrics)
        start = self.clock()
        try:
            write_report(
                directories, self.folder / "report", title="plan", metrics=metrics, primary=str(cfg.report.primary)
            )
        except UserError:  # no run to report, or runs that do not fit together: the stage names the reason
            return
        self.cost.add_seconds("report", self.clock() - start)
        self.cost.add_work("report", runs=len(directories))
        self.cost.bytes["report"] = sum(f.stat().st_size for f in (self.folder / "report").rglob("*") if f.is_file())
