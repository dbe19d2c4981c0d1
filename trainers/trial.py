"""Run a few batches of every stage with untrained parts, and measure what they take; nothing of it stays."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from datasets.missingness import parse_scenario, parse_scenarios, save_mask
from gaussian_parameter_generation.estimate import collect
from models.base import IncompleteClassifier, Method
from models.completed import Completed
from models.dymo.gaussian import GaussianParameters
from models.imputers.base import FittedImputer, Imputer
from models.imputers.chain import Chain
from models.imputers.quality import Judge, recovery_quality
from trainers.config.build import (
    build_encoders,
    build_model,
    build_modulation,
    build_noise,
    build_selector,
    build_trainer,
)
from trainers.config.checks.machine import number_of_processes
from trainers.config.imputers import build_imputer
from trainers.evaluate import predict, scenario_batches, scenario_masks
from trainers.impute import augmented
from trainers.loading import Run
from trainers.quiet import quiet_lightning
from utils.files import save_arrays
from utils.subsets import enumerate_subsets

BATCHES = 3  # of which the first warms up
ENOUGH = 10.0  # seconds after which no further batch is predicted
Clock = Callable[[], float]


def device_clock() -> float:
    """Seconds, once the GPU has done what it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Training(NamedTuple):
    """Seconds of all epochs, and bytes of the checkpoints."""

    seconds: float
    bytes: float


@dataclass
class Cost:
    """What one part of a run takes.

    Attributes:
        seconds: of stage -> seconds.
        bytes: of file or kind of file -> bytes in run directories.
        parameters: of network -> number of all and of trained parameters.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add_seconds(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


class BatchTimes(pl.Callback):
    """Seconds between the ends of successive training and of successive validation batches."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.ends: dict[str, list[float]] = {"train": [], "val": []}

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends["train"].append(self.clock())

    def on_validation_epoch_start(self, *_: Any) -> None:
        self.ends["val"].append(self.clock())

    def on_validation_batch_end(self, *_: Any) -> None:
        self.ends["val"].append(self.clock())

    def on_train_epoch_start(self, *_: Any) -> None:
        self.ends["train"].append(self.clock())

    def per_batch(self, split: str) -> float:
        """Median without the first batch, where there are several; 0 without any batch."""
        return typical(self.ends[split])


def typical(ends: list[float]) -> float:
    """Median of the intervals between times, without the first interval where there are several."""
    intervals = [b - a for a, b in pairwise(ends)]
    return median(intervals[1:] or intervals or [0.0])


def limited(batches: int, limit: Any) -> int:
    """Number of batches under ``trainer.limit_..._batches``: a number, a share, or None."""
    if limit is None:
        return batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def count(module: Any) -> tuple[int, int]:
    """Number of all and of trained parameters; (0, 0) of what is no network."""
    parameters = list(module.parameters()) if isinstance(module, nn.Module) else []
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


class Trial:
    """The stages of a run on a few batches.

    Args:
        run: whose data are packed, completely or as a sample.
        rows: split -> number of rows of the complete data.
        clock: seconds.
    """

    def __init__(self, run: Run, rows: Mapping[str, int], clock: Clock = device_clock) -> None:
        self.run, self.cfg, self.data, self.rows, self.clock = run, run.cfg, run.data, rows, clock
        self.cost = Cost()
        self.imputer: Imputer | None = None

    def batches_of(self, split: str, size: int, *, drop_last: bool = False) -> int:
        """Number of batches of a split of the complete data, for one process."""
        processes = number_of_processes(self.cfg)
        n = -(-self.rows.get(split, 0) // (processes if isinstance(processes, int) and processes > 0 else 1))
        return n // size if drop_last else -(-n // size)

    def timed(self, batches: Iterable[Any], times: list[float]) -> Iterator[Any]:
        """At most BATCHES batches; ``times`` gets the time before the first and after each."""
        times.append(self.clock())
        for batch in islice(batches, BATCHES):
            yield batch
            times.append(self.clock())
            if times[-1] - times[0] > ENOUGH:
                return

    # ---- training ----------------------------------------------------------------------------------------------------

    def training(self, module: pl.LightningModule, node: DictConfig, model: DictConfig | None = None) -> Training:
        """Train for a few batches, and tell what all epochs take.

        Args:
            node: max_epochs, batch_size and the like.
            model: node with noise and modulation.
        """
        data, cfg = self.data, self.cfg
        data.batch_size, data.seed = node.batch_size, cfg.seed
        data.training_noise = None if model is None else build_noise(model)
        if isinstance(module, IncompleteClassifier):
            module.stream_seed = cfg.seed
        times = BatchTimes(self.clock)
        modulation = None if model is None else build_modulation(model)
        options = {key: node[key] for key in ("accumulate_grad_batches", "gradient_clip_val") if node.get(key)}
        with tempfile.TemporaryDirectory(prefix="plan-") as folder, quiet_lightning():
            trainer = build_trainer(
                cfg, **options, max_epochs=1, limit_train_batches=BATCHES, limit_val_batches=BATCHES, devices=1,
                strategy="auto", logger=False, enable_checkpointing=False, enable_model_summary=False,
                enable_progress_bar=False, num_sanity_val_steps=0, default_root_dir=folder,
                callbacks=[times, *([modulation] if modulation else [])],
            )  # fmt: skip
            trainer.fit(module, datamodule=data)
            start, file = self.clock(), Path(folder) / "weights.ckpt"
            trainer.save_checkpoint(file)
            saving, size = self.clock() - start, file.stat().st_size
        limits = cfg.trainer.limit_train_batches, cfg.trainer.limit_val_batches
        steps = limited(self.batches_of("train", node.batch_size, drop_last=data.drop_last), limits[0])
        checks = limited(self.batches_of("val", data.test_batch_size), limits[1])
        # best.ckpt and last.ckpt are written after an epoch.
        epoch = steps * times.per_batch("train") + checks * times.per_batch("val") + 2 * saving
        return Training(node.max_epochs * epoch, 2 * size)

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
        for part in run.prerequisites.values():
            self.models(part)
        model, name = self.build(run), str(run.trainable.name)
        if run.trainable.get("recovery_aware"):
            model.attach_imputer(self.untrained_imputer())
        if not run.checkpoint_path:
            self._add("fit", name, self.training(model, run.trainable.training, run.trainable))
        self.cost.parameters[name] = count(model)
        return model

    def _add(self, stage: str, name: str, training: Training) -> None:
        self.cost.add_seconds(stage, training.seconds)
        self.cost.bytes[f"checkpoints of {name}"] = training.bytes

    # ---- recovery ----------------------------------------------------------------------------------------------------

    def untrained_imputer(self) -> Imputer:
        """The imputer as the trial of stage impute leaves it."""
        if self.imputer is None:
            self.imputer = build_imputer(self.cfg, self.data, pretrained=False)
            seconds, size = dict(self.cost.seconds), dict(self.cost.bytes)
            self.imputer.learn(self)
            if self.cfg.imputer.checkpoint:  # it is given, and costs nothing
                self.cost.seconds, self.cost.bytes = seconds, size
            self.imputer.move_to(self.run.device)
        return self.imputer

    def train(self, imputer: pl.LightningModule) -> None:
        node, name = self.cfg.imputer, f"imputer {self.cfg.imputer.name}"
        with augmented(self.data, node.get("augmentation")):
            self._add("impute", name, self.training(imputer, node.training))
        self.cost.parameters[name] = count(imputer)

    def fit(self, imputer: FittedImputer) -> None:
        times: list[float] = []
        imputer.fit(list(self.timed(self.data.loader("train", parse_scenario("none")), times)))
        seconds = (self.clock() - times[0]) / max(1, len(times) - 1)
        self.cost.add_seconds("impute", seconds * self.batches_of("train", self.data.test_batch_size))
        self._add_file(imputer.state_dict())

    def _add_file(self, state: Mapping[str, Any]) -> None:
        with tempfile.TemporaryFile() as stream:
            torch.save(state, stream)
            self.cost.bytes[f"imputer {self.cfg.imputer.name}"] = stream.tell()

    def assemble(self, imputer: Chain) -> None:
        for label, part in self.run.imputer_parts.items():
            trial = Trial(part, self.rows, self.clock)
            trial.cost = self.cost
            imputer.replace_part(label, trial.untrained_imputer())
        self._add_file(imputer.state_dict())

    def skip(self) -> None:
        self.cost.add_seconds("impute", 0.0)

    def quality(self) -> None:
        """The measurement of recoveries in stage impute."""
        if not (self.rows.get("val") and self.rows.get("train")):
            return
        cfg, data = self.cfg, self.data
        times: list[float] = []
        judge = Judge(data.modalities, data.num_classes, build_encoders(cfg, data, pretrained=False))
        epochs, size = cfg.imputer.quality.judge_epochs, cfg.imputer.training.batch_size
        training = self.training(judge, OmegaConf.create({"max_epochs": epochs, "batch_size": size}))
        self.cost.add_seconds("impute", training.seconds)
        judge.to(self.run.device)
        batches = data.loader("val", parse_scenario("none"), device=self.run.device)
        recovery_quality(self.untrained_imputer(), judge, self.timed(batches, times), seed=cfg.missing.seed)
        self.cost.add_seconds("impute", typical(times) * self.batches_of("val", data.test_batch_size))

    # ---- selection and test ------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def gaussian(self, backbone: Any) -> GaussianParameters:
        """Stage gaussian; a class without spread in the few batches gets a spread of 1."""
        gaussian = self.cfg.gaussian
        times: list[float] = []
        loader = self.data.loader(
            gaussian.split, parse_scenario("none"), batch_size=gaussian.batch_size, device=self.run.device
        )
        statistics = collect(backbone.eval(), self.timed(loader, times), progress=False)
        statistics.count.clamp_(min=1)
        parameters = statistics.finish(backbone.distance_metric, enumerate_subsets(len(backbone.modalities)), {})
        parameters.sigma[parameters.sigma == 0] = 1.0
        self.cost.add_seconds("gaussian", typical(times) * self.batches_of(gaussian.split, gaussian.batch_size))
        with tempfile.TemporaryDirectory(prefix="plan-") as folder:
            file = Path(folder) / "parameters"
            parameters.save(file)
            self.cost.bytes["Gaussian parameters"] = file.stat().st_size
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
        run, data = self.run, self.data
        times: list[float] = []
        scenarios = run.scenarios
        masks, cells = scenario_masks(data, "test", scenarios)
        noise = {scenario.name: data.corruption("test", scenario) for scenario in scenarios}
        loader = self.timed(data.loader("test", device=run.device), times)
        outputs = predict(method, loader, masks, cells, progress=False, noise=noise)
        self.cost.add_seconds("test", typical(times) * self.batches_of("test", data.test_batch_size))
        rows = min((len(times) - 1) * data.test_batch_size, len(data.split("test")))
        with tempfile.TemporaryDirectory(prefix="plan-") as name:
            folder = Path(name)
            for scenario in scenarios:
                path = folder / "masks" / scenario.slug
                seed = data.mask_seed("test", scenario)
                corruption = noise[scenario.name]
                save_mask(
                    path, masks[scenario.name], scenario, seed, data.modality_names, cells[scenario.name], corruption
                )
            for label, by_scenario in outputs.items():
                for scenario in scenarios:
                    save_arrays(folder / "predictions" / label / f"{scenario.slug}.npz", by_scenario[scenario.name])
            for part, n in (("masks", len(data.split("test"))), ("predictions", rows)):
                size = sum(f.stat().st_size for f in (folder / part).rglob("*") if f.is_file())
                self.cost.bytes[part] = size * self.rows["test"] / n
        if method.needs_calibration and data.has_split("val"):
            self._calibrate(method)

    def _calibrate(self, method: Method) -> None:
        data = self.data
        times: list[float] = []
        scenarios = parse_scenarios(list(self.cfg.model.validation), len(data.modalities))
        masks, cells = scenario_masks(data, "val", scenarios)
        loader = self.timed(data.loader("val", device=self.run.device), times)
        method.calibrate((batch, scenario_batches(batch, masks, cells)) for batch in loader)
        self.cost.add_seconds("test", typical(times) * self.batches_of("val", data.test_batch_size))
