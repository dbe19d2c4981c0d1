"""Training: order of events, resume, early problems."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from datasets.batch import Batch
from models.base import IncompleteClassifier, Method, Prediction
from trainers import callbacks, checks
from trainers import fit as fit_module
from trainers import run as pipeline
from trainers.checkpoint_files import RESUMING, CheckpointFiles
from trainers.loading import Run
from trainers.measurement import accuracy_table
from trainers.prediction import predict
from trainers.report.page import write_report
from utils.errors import UserError
from utils.interruption import Interruption
from utils.ranking import AUROC
from utils.safe_pickle import read_tensors

TINY = ["model=DynamicTransformer", "model.training.batch_size=16", "stages=[fit]", "model.module.prototype_start=1"]
FOUR_EPOCHS = [*TINY, "model.training.max_epochs=4"]
BY_LOSS = "dataset.monitor=val_loss"
RUN = Path("PolyMNIST", "DynamicTransformer", "default", "seed0")


@pytest.mark.parametrize(("start", "rate", "warned"), [(2, 0.1, True), (1, 0.1, False), (2, 0, False)])
def test_a_training_too_short_for_its_prototype_loss_says_so(
    composed, tmp_path: Path, caplog: pytest.LogCaptureFixture, start: int, rate: float, warned: bool
) -> None:
    settings = [f"model.module.prototype_start={start}", f"model.module.prototype_rate={rate}"]
    with caplog.at_level("WARNING"):
        pipeline.run(composed(*TINY, "model.training.max_epochs=2", *settings, f"paths.output={tmp_path}"))
    assert any("prototype loss sets in at epoch 2" in record.message for record in caplog.records) is warned


class Stop(pl.Callback):
    """Interrupts in the middle of an epoch, as a user's Ctrl-C does."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        if trainer.current_epoch == self.epoch and batch_idx == 1:
            raise KeyboardInterrupt


class Fits:
    """Fits of four epochs, each of which is trained once for all tests."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self.factory = factory
        self.folders: dict[tuple[int | None, tuple[str, ...]], Path] = {}

    def __call__(self, composed, epoch: int | None, *settings: str) -> Path:  # type: ignore[no-untyped-def]
        """Output folder of a fit that was interrupted in an epoch (None: trained to its end); not to be changed."""
        key = (epoch, settings)
        if key not in self.folders:
            self.folders[key] = self.factory.mktemp("fit")
            cfg = composed(*FOUR_EPOCHS, *settings, f"paths.output={self.folders[key]}")
            if epoch is None:
                pipeline.run(cfg)
            else:
                self.interrupt(cfg, epoch)
        return self.folders[key]

    def interrupt(self, cfg: DictConfig, epoch: int) -> None:
        original = fit_module.build_trainer

        def interrupting(cfg, **arguments):  # type: ignore[no-untyped-def]
            return original(cfg, **{**arguments, "callbacks": [*arguments["callbacks"], Stop(epoch)]})

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fit_module, "build_trainer", interrupting)
            with pytest.raises(Interruption, match=r"interrupted in epoch \d: run the same command"):
                pipeline.run(cfg)


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> Fits:
    return Fits(tmp_path_factory)


@pytest.mark.parametrize("epoch", [1, 2])
def test_interrupted_fit_continues_to_the_same_weights(composed, fits: Fits, tmp_path: Path, epoch: int) -> None:
    shutil.copytree(fits(composed, epoch), tmp_path / "cut")
    cut = [*FOUR_EPOCHS, f"paths.output={tmp_path / 'cut'}"]
    folder = tmp_path / "cut" / RUN
    assert not (folder / "stages" / "fit.json").exists() and (folder / "checkpoints" / "last.ckpt").exists()
    if epoch == 2:
        shutil.rmtree(folder / "logs")  # the checkpoint has the curves of its epochs, too
    pipeline.run(composed(*cut))
    other = fits(composed, None) / RUN
    a, b = (read_tensors(f / "checkpoints" / "last.ckpt")["state_dict"] for f in (folder, other))
    for key in a:
        assert torch.equal(a[key], b[key]), key
    best = folder / "checkpoints" / "best.ckpt"
    assert not set(RESUMING) & set(read_tensors(best)) and {"state_dict", "dataset"} <= set(read_tensors(best))
    assert best.stat().st_size < 0.5 * best.with_name("last.ckpt").stat().st_size  # without Adam's two moments
    a, b = (pd.read_csv(f / "metrics.csv") for f in (folder, other))
    pd.testing.assert_frame_equal(a, b)
    results = [json.loads((f / "stages" / "fit.json").read_text())["best"] for f in (folder, other)]
    assert results[0] == results[1]


def test_curves_of_all_attempts_are_merged(tmp_path: Path) -> None:
    """The last attempt at an epoch counts, rows of the checkpoint before all; broken logs add nothing."""
    logs = ["epoch,step,val_loss\n0,9,0.9\n1,19,0.8\n2,29,0.7\n", "epoch,step,val_loss\n1,19,0.6\n", "", "epo"]
    for number, text in enumerate(logs):
        (folder := tmp_path / "logs" / f"version_{number}").mkdir(parents=True)
        (folder / "metrics.csv").write_text(text)
    fit_module.merge_metrics(tmp_path / "logs", tmp_path / "metrics.csv", [{"epoch": 0, "step": 9, "val_loss": 0.5}])
    expected = "epoch,step,val_loss\n0,9,0.5\n1,19,0.6\n2,29,0.7\n"
    assert (tmp_path / "metrics.csv").read_text() == expected


class LogsOnce(pl.LightningModule):
    """Logs a value in its first epoch alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: torch.Tensor, batch_index: int) -> torch.Tensor:
        if self.current_epoch == 0:
            self.log("first", 1.0, on_step=False, on_epoch=True)
        self.log("always", float(self.current_epoch), on_step=False, on_epoch=True)
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_curves_hold_what_an_epoch_logs(tmp_path: Path) -> None:
    curves = callbacks.Curves()
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    saving = callbacks.RunCheckpoint(tmp_path, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    trainer = pl.Trainer(max_epochs=2, callbacks=[curves, saving], **options)  # type: ignore[arg-type]
    trainer.fit(LogsOnce(), torch.utils.data.DataLoader([0, 1], batch_size=1))  # type: ignore[arg-type]
    assert curves.rows == [
        {"epoch": 0, "step": 1, "first": 1.0, "always": 0.0},
        {"epoch": 1, "step": 3, "always": 1.0},
    ]
    assert read_tensors(tmp_path / "last.ckpt")["curves"] == curves.rows


class Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("kind", ["code", "cut", "empty"])
def test_a_checkpoint_that_is_damaged_or_executes_something_is_not_continued_from(
    composed, fits: Fits, tmp_path: Path, kind: str
) -> None:
    cut, folder = interrupted(composed, fits, tmp_path, 1)  # one checkpoint, none before it
    last = folder / "checkpoints" / "last.ckpt"
    if kind == "code":
        content = torch.load(last, weights_only=True)
        torch.save(content | {"callbacks": {"Attack": Attack(tmp_path / "executed")}}, last)
    else:
        last.write_bytes(last.read_bytes()[: 1000 if kind == "cut" else 0])
    problem = "holds more than tensors and plain values" if kind == "code" else "is damaged;"
    message = rf"last\.ckpt cannot be continued from: it {problem}.*delete .*checkpoints, and the"
    with pytest.raises(UserError, match=message):
        pipeline.run(composed(*cut))
    assert not (tmp_path / "executed").exists()
    last.unlink()
    pipeline.run(composed(*cut))  # from the start
    assert (folder / "stages" / "fit.json").is_file()


@pytest.mark.parametrize("damage", ["flip", "cut", "absent"])
def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(
    composed, fits: Fits, tmp_path: Path, caplog, damage: str
) -> None:
    """The weights at the end are those of a training without interruption."""
    cut, folder = interrupted(composed, fits, tmp_path, 3)
    last = folder / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    assert [read_tensors(last.with_name(name))["epoch"] for name in ("previous.ckpt", "last.ckpt")] == [1, 2]
    if damage == "absent":
        last.unlink()
    elif damage == "cut":
        last.write_bytes(content[:1000])
    else:
        weights = next(iter(read_tensors(last)["state_dict"].values())).numpy().tobytes()
        content[content.index(weights) + 2] ^= 1
        last.write_bytes(content)
        torch.load(last, weights_only=True)  # reads it without a word
    pipeline.run(composed(*cut))
    assert (f"{last} is damaged: training goes on from" in caplog.text) == (damage != "absent")
    assert not last.with_name("previous.ckpt").exists()
    other = fits(composed, None, BY_LOSS) / RUN / "checkpoints" / "last.ckpt"
    a, b = (read_tensors(file)["state_dict"] for file in (last, other))
    assert all(torch.equal(a[key], b[key]) for key in b)


def test_a_checkpoint_is_written_beside_its_place(tmp_path: Path, monkeypatch) -> None:
    """Whatever the system's temporary folder is; a process that stops meanwhile leaves the old file."""
    writer, file = CheckpointFiles(), tmp_path / "last.ckpt"
    monkeypatch.setattr(tempfile, "mkstemp", None)
    for epoch in range(3):
        writer.save_checkpoint({"epoch": epoch}, file)
    assert [torch.load(tmp_path / name, weights_only=True)["epoch"] for name in ("previous.ckpt", "last.ckpt")] == [
        1,
        2,
    ]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        writer.save_checkpoint({"epoch": 3}, file)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_model_that_diverged_from_the_start_has_no_best(composed, tmp_path: Path) -> None:
    diverging = [*TINY, "model.training.max_epochs=2", "model.module.optimizer.lr=1e30", f"paths.output={tmp_path}"]
    with pytest.raises(UserError, match=r"val_loss is not finite in any epoch .*lower the learning rate"):
        pipeline.run(composed(*diverging, "dataset.monitor=val_loss"))
    folder = tmp_path / "PolyMNIST" / "DynamicTransformer" / "default" / "seed0"
    assert (folder / "metrics.csv").is_file() and (folder / "checkpoints" / "last.ckpt").is_file()
    assert not (folder / "stages" / "fit.json").exists()


class OneClass:
    """Data whose validation split has rows of one class."""

    task, target = "multiclass", torch.ones(8, dtype=torch.int64)

    def has_split(self, name: str) -> bool:
        return True

    def split(self, name: str) -> OneClass:
        return self

    def read(self, name: str) -> torch.Tensor:
        return self.target


def test_a_monitor_without_a_value_is_refused_before_training() -> None:
    data: Any = OneClass()
    with pytest.raises(UserError, match=r"^val_auroc has no value .*all of one class.*set dataset.monitor=val_loss"):
        fit_module.check_monitor("val_auroc", data, "fit")
    for monitor in ("val_loss", "val_accuracy", None):
        fit_module.check_monitor(monitor, data, "fit")


def test_fit_looks_at_the_monitor_before_it_writes_anything(composed, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(fit_module, "undefined_monitor", lambda *_: "its rows are all of one class")
    with pytest.raises(UserError, match="has no value on the validation split"):
        pipeline.run(composed(*TINY, "model.training.max_epochs=1", f"paths.output={tmp_path}"))
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.usefixtures("undrawn")
def test_a_run_killed_before_its_last_file_is_reported_after_the_same_command(composed, tmp_path: Path) -> None:
    """Killed between the marker of stage test and DONE; and a changed array makes the results stale by name."""
    settings = [s for s in TINY if not s.startswith("stages")]
    settings += ["stages=[fit,test]", "missing.test=[none]", "model.training.max_epochs=1", f"paths.output={tmp_path}"]
    pipeline.run(composed(*settings))
    folder = next(tmp_path.rglob("results.csv")).parent
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    (folder / "DONE").unlink()
    pipeline.run(composed(*settings))
    assert files.keys() == {path for path in folder.rglob("*") if path.is_file()}
    assert all(
        path.stat().st_mtime_ns == time for path, time in files.items() if path.name in ("results.csv", "none.npz")
    )
    write_report([folder], tmp_path / "report", title="t")
    content = (folder / "results.csv").read_text()
    (folder / "results.csv").write_text(content.replace("0.", "0.9", 1))
    with pytest.raises(UserError, match=r"results\.csv was damaged or changed.*stage 'test' runs again"):
        write_report([folder], tmp_path / "report", title="t")


@pytest.mark.usefixtures("undrawn")
def test_results_are_written_though_one_metric_fails(composed, tmp_path: Path, monkeypatch, caplog) -> None:
    def fail(self: AUROC) -> torch.Tensor:
        raise MemoryError("57.7 GB\nof log-odds")

    settings = [s for s in TINY if not s.startswith("stages")]
    settings += ["stages=[fit,test]", "missing.test=[none,random_0.5]", "dataset.monitor=val_loss"]
    settings += ["model.training.max_epochs=1", f"paths.output={tmp_path}"]
    with monkeypatch.context() as patched:
        patched.setattr(IncompleteClassifier, "on_validation_epoch_end", lambda self: None)
        patched.setattr(AUROC, "compute", fail)
        pipeline.run(composed(*settings))
    folder = next(tmp_path.rglob("results.csv")).parent
    assert (folder / "DONE").is_file() and (folder / "predictions" / "none.npz").is_file()
    frame = pd.read_csv(folder / "results.csv", keep_default_na=False)
    empty = frame[frame["value"] == ""]
    assert set(empty["metric"]) == {"auroc", "average_precision"} and len(empty) == 2 * frame["scenario"].nunique() == 4
    assert "metric 'auroc'" in caplog.text and "failed (MemoryError: 57.7 GB)" in caplog.text
    # Every scenario's realised rate, from its mask; the one that cannot have its rate was pointed out.
    rates = frame.groupby("scenario")["missing_rate"].first().astype(float)
    mask = np.load(folder / "masks" / "random_0.5.npz")["missing"]
    assert rates["none"] == 0 and rates["random_0.5"] == pytest.approx(mask.mean())
    has_remark = "'random_0.5' has a rate of" in caplog.text
    assert has_remark == (abs(mask.mean() - 0.5) > 0.01)
    # A metric that fails is shown as an en dash.
    page = write_report([folder], tmp_path / "report", title="t")
    cells = page.tables[next(key for key in page.tables if key[1] == "auroc")].iloc[0]
    assert [cell.strip() for cell in cells] == ["–", "–"]


def test_the_terminal_table_has_rates_and_daggers() -> None:
    rows = [("none", "A", 0.5, 0.0), ("none", "A/oracle_subset", 1.0, 0.0), ("random_0.2", "A", 0.25, 1 / 6)]
    rows.append(("random_0.2", "A/oracle_subset", np.nan, 1 / 6))
    frame = pd.DataFrame(rows, columns=["scenario", "model", "value", "missing_rate"]).assign(metric="accuracy")
    lines = [line.split() for line in accuracy_table(frame).splitlines()]
    assert ["A", "50.00", "25.00"] in lines and ["A/oracle_subset†", "100.00", "–"] in lines
    assert ["missing", "rate", "0", "0.167"] in lines and lines[-1][:2] == ["†", "uses"]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_no_result(value: float) -> None:
    class Broken(Method):
        def forward(self, batch: Batch) -> Prediction:
            hit = batch.missing[:, 1] & (batch.index > 3)
            return Prediction(
                torch.where(hit[:, None] & torch.tensor([True, False]), value, torch.zeros(len(batch), 2))
            )

    index = torch.arange(8)
    none = torch.zeros(4, 2, dtype=torch.bool)
    batches = [Batch({"x": torch.zeros(4, 1), "y": torch.zeros(4, 1)}, none, i % 2, i) for i in (index[:4], index[4:])]
    masks = {"none": np.zeros((8, 2), dtype=bool), "whole_1": np.tile([False, True], (8, 1))}
    message = r"scenario 'whole_1': the logits of 4 of 8 rows are not finite \(the first is row 4\): .*learning rate"
    with pytest.raises(UserError, match=message):
        predict(Broken(), batches, masks, progress=False)  # type: ignore[arg-type]
    actual = predict(Broken(), batches, {"none": masks["none"]}, progress=False)  # type: ignore[arg-type]
    assert actual[""]["none"]["logits"].shape == (8, 2)


def test_each_epoch_has_its_own_order(composed, monkeypatch) -> None:
    from datasets.loader import PackedLoader

    seen: dict[int, list[int]] = {}
    original = PackedLoader.gather

    def recording(self, rows, *arguments):  # type: ignore[no-untyped-def]
        if self.shuffle:
            seen.setdefault(self.epoch, []).extend(rows.tolist())
        return original(self, rows, *arguments)

    monkeypatch.setattr(PackedLoader, "gather", recording)
    pipeline.run(composed(*TINY, "model.training.max_epochs=3"))
    assert sorted(seen) == [0, 1, 2]
    assert all(sorted(rows) == list(range(60)) for rows in seen.values())
    assert seen[0] != seen[1] != seen[2]


def test_prototypes_are_means_of_the_epoch_that_ends(composed, monkeypatch) -> None:
    """Against a loop written from docs/reference/dymo.md §2: class means of the train-mode features of all K subsets of
    an epoch, set before that epoch's validation."""
    from models.dymo.dynamic_transformer import DynamicTransformer
    from models.dymo.prototypes import RunningPrototypes

    collected: list[tuple[torch.Tensor, torch.Tensor]] = []
    used: list[torch.Tensor] = []
    update = RunningPrototypes.update

    def recording(self, features, target):  # type: ignore[no-untyped-def]
        collected.append((features.detach().clone(), target.clone()))
        update(self, features, target)

    monkeypatch.setattr(RunningPrototypes, "update", recording)
    epoch_end = DynamicTransformer.on_validation_epoch_end

    def at_validation(self) -> None:  # type: ignore[no-untyped-def]
        expected = torch.zeros(10, 64, dtype=torch.float64)
        for c in range(10):
            members = torch.cat([f[:, t == c].flatten(0, 1) for f, t in collected])
            expected[c] = members.double().mean(0)
        torch.testing.assert_close(self.prototypes.double(), expected, atol=1e-6, rtol=1e-5)
        used.append(self.prototypes.clone())
        collected.clear()
        epoch_end(self)

    monkeypatch.setattr(DynamicTransformer, "on_validation_epoch_end", at_validation)
    pipeline.run(composed(*TINY, "model.training.max_epochs=2"))
    assert len(used) == 2 and not torch.equal(used[0], used[1])


class Losses(pl.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        self.values.append(float(outputs["loss"]))


# aot_eager splits and traces a step as inductor does, without minutes of C++ compilation.
@pytest.mark.parametrize(
    ("option", "tolerance"), [("trainer.compile=aot_eager", 1e-4), ("trainer.precision=bf16-mixed", 0.03)]
)
def test_speed_options_keep_the_loss_of_20_steps(
    composed, tmp_path: Path, monkeypatch, option: str, tolerance: float
) -> None:
    """Five epochs of four steps; the prototype loss sets in with the second."""
    original, curves, states = fit_module.build_trainer, [], []
    for number, options in enumerate(([], [option])):
        watch = Losses()

        def watched(cfg, watch=watch, **arguments):  # type: ignore[no-untyped-def]
            return original(cfg, **{**arguments, "callbacks": [*arguments["callbacks"], watch]})

        monkeypatch.setattr(fit_module, "build_trainer", watched)
        folder = tmp_path / str(number)
        pipeline.run(composed(*TINY, *options, "model.training.max_epochs=5", f"paths.output={folder}"))
        curves.append(torch.tensor(watch.values))
        last = next(folder.rglob("last.ckpt"))
        states.append(read_tensors(last)["state_dict"])
    assert len(curves[0]) == 20 and curves[0][0] < 3 < curves[0][4]
    torch.testing.assert_close(curves[1], curves[0], atol=tolerance, rtol=tolerance)
    assert not torch.equal(curves[1], curves[0]) or "aot_eager" in option, "the option did nothing"
    assert list(states[0]) == list(states[1]), "names of the weights stay"
    assert {v.dtype for v in states[1].values()} == {v.dtype for v in states[0].values()}


def test_a_checkpoint_is_read_unless_its_bytes_are_those_that_were_written(tmp_path: Path, monkeypatch) -> None:
    file, read = tmp_path / "last.ckpt", []
    monkeypatch.setattr(fit_module, "read_tensors", lambda path: (read.append(path), read_tensors(path)))
    CheckpointFiles().save_checkpoint({"state_dict": {"w": torch.ones(1000)}}, str(file))
    fit_module.check_checkpoint(file)
    assert read == []
    content = file.read_bytes()
    torch.save({"state_dict": {}}, file)  # by another process
    fit_module.check_checkpoint(file)
    assert read == [file]
    file.write_bytes(content[:-100])
    with pytest.raises(UserError, match=r"the stage is not finished, its checkpoint was not written \(.*cut off"):
        fit_module.check_checkpoint(file)
    # Bytes that no reader accepts are no success either.
    monkeypatch.setattr("utils.pickle_size.LARGEST", 3)
    CheckpointFiles().save_checkpoint({"state_dict": {"w": torch.ones(10)}}, str(file))
    with pytest.raises(UserError, match="the stage is not finished"):
        fit_module.check_checkpoint(file)


# ------------------------------------------------------------------------------------- run directories that move


def interrupted(composed, fits: Fits, tmp_path: Path, epoch: int) -> tuple[list[str], Path]:
    """Overrides of a fit of four epochs that was interrupted in ``epoch``, and its run directory."""
    shutil.copytree(fits(composed, epoch, BY_LOSS), tmp_path / "cut")
    return [*FOUR_EPOCHS, BY_LOSS, f"paths.output={tmp_path / 'cut'}"], tmp_path / "cut" / RUN


def test_a_run_directory_that_moved_keeps_its_best_epoch(composed, fits: Fits, tmp_path: Path) -> None:
    """No epoch after the move reaches the score that last.ckpt remembers, so that best.ckpt has to stay as it is."""
    cut, folder = interrupted(composed, fits, tmp_path, 2)
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    (state,) = (s for key, s in last["callbacks"].items() if "ModelCheckpoint" in key and "val_loss" in key)
    score = torch.tensor(1e-3)
    for key in ("best_model_score", "kth_value", "current_score"):
        state[key] = score
    state["best_k_models"] = dict.fromkeys(state["best_k_models"], score)
    last["callbacks"]["Effort"] = {"seconds": 1000.0, "processor_seconds": 5000.0}
    torch.save(last, folder / "checkpoints" / "last.ckpt")
    before = (folder / "checkpoints" / "best.ckpt").read_bytes()
    moved = tmp_path / "elsewhere" / "runs"
    moved.parent.mkdir()
    (tmp_path / "cut").rename(moved)
    assert pipeline.run(composed(*cut, f"paths.output={moved}")) == pytest.approx(1e-3)  # for sweepers that search
    folder = moved / folder.relative_to(tmp_path / "cut")
    assert read_tensors(folder / "checkpoints" / "last.ckpt")["epoch"] == 3
    assert (folder / "checkpoints" / "best.ckpt").read_bytes() == before
    marker = json.loads((folder / "stages" / "fit.json").read_text())
    assert marker["best"] == pytest.approx(1e-3)
    assert 1000 < marker["effort"]["seconds"] < 1060 and 5000 < marker["effort"]["processor_seconds"] < 5060


def test_a_copy_without_its_best_epoch_is_not_continued(composed, fits: Fits, tmp_path: Path) -> None:
    cut, folder = interrupted(composed, fits, tmp_path, 1)
    best = folder / "checkpoints" / "best.ckpt"
    best.write_bytes(best.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"cannot go on from last\.ckpt without the best epoch .*cut off or damaged"):
        pipeline.run(composed(*cut))
    best.unlink()
    with pytest.raises(UserError, match=r"there is no checkpoint .*copy best\.ckpt into"):
        pipeline.run(composed(*cut))


def test_runs_begun_with_the_checkpoints_of_lightning_can_be_continued(tmp_path: Path) -> None:
    theirs = pl.callbacks.ModelCheckpoint(tmp_path, "best", monitor="val_loss", mode="min")
    ours = callbacks.RunCheckpoint(tmp_path / "moved", "best", monitor="val_loss", mode="min")
    assert ours.state_key == theirs.state_key
    # Without a best epoch so far, as during a warm-up, there is no file to look for.
    ours.load_state_dict(theirs.state_dict())
    assert ours.best_model_path == "" and ours.best_model_score is None


# ------------------------------------------------------------------------------------------- what is not on disk


def refusing(error: OSError | None):  # type: ignore[no-untyped-def]
    """``os.replace``, which puts a complete file in its place: it fails for best.ckpt, or does nothing."""
    replace = os.replace

    def replace_or_not(source: Path, target: Path) -> None:
        if not str(target).endswith("best.ckpt"):
            replace(source, target)
        elif error is not None:
            raise error

    return os, "replace", replace_or_not


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (None, "the system refused it"),  # reported by nobody
    ],
)
def test_a_checkpoint_that_cannot_be_written_ends_the_run(
    composed, tmp_path: Path, monkeypatch, error: OSError | None, reason: str
) -> None:
    monkeypatch.setattr(*refusing(error))
    with pytest.raises(UserError, match=rf"best\.ckpt cannot be written \({reason}\): make room or correct the perm"):
        pipeline.run(composed(*TINY, "model.training.max_epochs=2", f"paths.output={tmp_path}"))
    folder = tmp_path / "PolyMNIST" / "DynamicTransformer" / "default" / "seed0"
    assert not (folder / "stages" / "fit.json").exists()
    assert not (folder / "checkpoints" / "best.ckpt").exists()


def test_a_later_epoch_that_cannot_be_written_is_no_success_of_the_earlier_one(tmp_path: Path, monkeypatch) -> None:
    """An older best.ckpt stays on disk where the new one is refused."""
    (tmp_path / "best.ckpt").write_bytes(b"the file of an earlier epoch")
    checkpoint = callbacks.RunCheckpoint(tmp_path, "best")
    trainer = pl.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, barebones=False)
    monkeypatch.setattr(trainer, "save_checkpoint", lambda *arguments: None)
    with pytest.raises(UserError, match="cannot be written"):
        checkpoint._save_checkpoint(trainer, str(tmp_path / "best.ckpt"))


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_a_checkpoint_that_cannot_be_read_does_not_finish_its_stage(
    composed, tmp_path: Path, monkeypatch, name: str
) -> None:
    save = pl.Trainer.save_checkpoint

    def truncating(self, filepath, *arguments):  # type: ignore[no-untyped-def]
        save(self, filepath, *arguments)
        if str(filepath).endswith(name):
            Path(filepath).write_bytes(Path(filepath).read_bytes()[:2000])

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", truncating)
    with pytest.raises(UserError, match=rf"the stage is not finished, .*{name} is cut off or damaged"):
        pipeline.run(composed(*TINY, "model.training.max_epochs=1", f"paths.output={tmp_path}"))
    folder = tmp_path / "PolyMNIST" / "DynamicTransformer" / "default" / "seed0"
    assert not (folder / "stages" / "fit.json").exists()


def test_an_imputer_whose_weights_are_lost_is_made_again(composed, tmp_path: Path) -> None:
    mean = ["imputer=Mean", "stages=[prepare,impute]", f"paths.output={tmp_path}", "imputer.quality.judge_epochs=1"]
    pipeline.run(composed(*mean))
    weights = tmp_path / "PolyMNIST" / "imputer_Mean" / "default" / "seed0" / "checkpoints" / "best.ckpt"
    before = read_tensors(weights)["state_dict"]
    weights.unlink()
    pipeline.run(composed(*mean))
    after = read_tensors(weights)["state_dict"]
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_a_copied_imputer_is_not_judged_again(composed, tmp_path: Path, monkeypatch) -> None:
    mean = ["imputer=Mean", "stages=[prepare,impute]", "imputer.quality.judge_epochs=1"]
    pipeline.run(composed(*mean, f"paths.output={tmp_path / 'a'}"))
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)  # with another time of change
    monkeypatch.setattr("trainers.impute.Judge", None)
    pipeline.run(composed(*mean, f"paths.output={tmp_path / 'b'}"))


@pytest.mark.parametrize("limit", ["trainer.limit_train_batches=0.2", "trainer.limit_val_batches=0.5"])
def test_a_share_of_less_than_one_batch_is_refused_before_training(composed, tmp_path: Path, limit: str) -> None:
    """60 training rows in batches of 16 are 4 batches, 30 validation rows one."""
    key, _, value = limit.partition("=")
    message = rf"{key}={value}: is less than one of (4|1) batches of split '(train|val)'; set it to (0\.25|1) or more"
    with pytest.raises(UserError, match=message):
        pipeline.run(composed(*TINY, "model.training.max_epochs=1", limit, f"paths.output={tmp_path / 'out'}"))
    assert not (tmp_path / "out").exists()
    enough = composed(*TINY, f"{key}={'0.25' if 'limit_train' in key else '1.0'}")
    assert not checks.empty_limits(Run(enough), ["fit"])
