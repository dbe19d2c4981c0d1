"""A run says nothing but what this project logs: no bars in files, no remarks of Lightning."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from trainers.callbacks import TimeLeft
from trainers.quiet import quiet_lightning

ROOT = Path(__file__).parents[2]
OURS = ("datasets", "models", "gaussian_parameter_generation", "trainers", "utils")
FORMAT = "[%(levelname).1s] %(name)s %(message)s"


def test_every_line_of_a_run_is_ours(tmp_path: Path, polymnist_root: Path) -> None:
    """A logging handler of the test records what loggers say: stderr holds exactly that, and stdout nothing."""
    record = tmp_path / "record.log"
    command = [
        *("run.py", "stages=[prepare,impute,fit,gaussian,test,report]"),
        *("dataset=PolyMNIST", f"dataset.root={polymnist_root}"),
        *(f"paths.output={tmp_path / 'out'}", f"paths.cache={tmp_path / 'cache'}"),
        *("trainer=cpu", "trainer.limit_train_batches=2", "imputer.quality.judge_epochs=1", "imputer.latent=16"),
        *("model.backbone.training.max_epochs=1", "imputer.training.max_epochs=1", "missing.test=[none,whole_12]"),
        *(f"hydra.job_logging.formatters.simple.format='{FORMAT}'", "report.samples=2"),
        f"+hydra.job_logging.handlers.record={{class: logging.FileHandler, formatter: simple, filename: {record}}}",
        "hydra.job_logging.root.handlers=[console,record]",
    ]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    run = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
    assert run.stderr == record.read_text()
    names = re.findall(r"^\[[A-Z]\] (\S+) ", run.stderr, re.MULTILINE)
    assert len(names) > 20 and {name.split(".")[0] for name in names} <= set(OURS)
    assert "\r" not in run.stderr and "[6/6] stage report: " in run.stderr


def test_other_warnings_pass_and_levels_come_back(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with quiet_lightning():
            rank_zero_info("advertisement")
            warnings.warn_explicit("of Lightning", UserWarning, "loop.py", 1, module="pytorch_lightning.loops")
            warnings.warn_explicit("of PyTorch", UserWarning, "adam.py", 1, module="torch.optim")
        rank_zero_warn("outside", category=UserWarning)
    assert [str(w.message) for w in seen] == ["of PyTorch", "outside"]
    assert "advertisement" not in caplog.text


def test_epochs_say_what_is_left(caplog: pytest.LogCaptureFixture) -> None:
    """From the first epoch of this process on: one of 40 s that is resumed after 3 of 10 leaves 6, 240 s."""
    caplog.set_level("INFO")
    now = [0.0]
    callback = TimeLeft("fit", lambda: now[0])
    trainer = pl.Trainer(max_epochs=10, logger=False, accelerator="cpu", enable_checkpointing=False, barebones=False)
    caplog.clear()
    trainer.fit_loop.epoch_progress.current.completed = trainer.fit_loop.epoch_progress.current.processed = 3
    callback.on_train_epoch_start(trainer, pl.LightningModule())
    now[0] = 40.0
    callback.on_train_epoch_end(trainer, pl.LightningModule())
    assert caplog.messages == ["fit: 4 of 10 epochs, about 4 min left"]
