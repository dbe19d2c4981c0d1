"""Shared fixtures: tiny data in the real layout, tiny runs."""

from __future__ import annotations

from tests import garbage  # before all that takes time

# isort: split
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig

from datasets.readers.images import ImageReader
from tests.configs_once import read_once
from tests.makers import make_polymnist_folder
from trainers.config.compose import compose_config, register
from utils.memory import keep_freed_memory

# DYMO_TEST_THREADS sets the number of threads of PyTorch. One by default: threads of several test processes that share
# the cores wait for each other.
torch.set_num_threads(int(os.environ.get("DYMO_TEST_THREADS", "1")))
# Tracing a program asks thousands of times for a GPU, and each time a driver is searched for unless none may be used.
if not torch.cuda.is_available():
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
# No test loses power, and waiting until a disk has thousands of checkpoints takes longer than writing them.
os.fsync = lambda file: None
# As run.py does: otherwise every step of a training asks the system for its memory anew.
keep_freed_memory()
register()
read_once()

Composer = Callable[..., DictConfig]
# Files of few tests that take ten seconds or more.
LONG_FILES = (
    "benchmarks/test_benchmarks.py",
    "contracts/test_bundles.py",
    "contracts/test_extending.py",
    "contracts/test_kinds.py",
    "contracts/test_programs.py",
    "gaussian_parameter_generation/test_notebooks.py",
    "models/cmpt/test_cmpt_selection.py",
    "models/dymo/test_fixed_selection.py",
    "models/dymo/test_partial_tables.py",
    "models/imputers/test_chain.py",
    "test_cli.py",
    "test_cluster.py",
    "test_predictions_page.py",
    "trainers/test_estimator.py",
    "trainers/test_fit.py",
    "trainers/test_forecast.py",
    "trainers/test_grid.py",
    "trainers/test_original_checkpoints.py",
    "trainers/test_quiet.py",
    "trainers/test_sweep.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order files as ``run_tests.sh`` hands them out: those of few long tests first, then those of most tests, so that
    no process has a long file left when the others are done."""
    folder, counts = Path(__file__).parent, Counter(item.path for item in items)
    long_files = {folder / name for name in LONG_FILES}
    items.sort(key=lambda item: (item.path not in long_files, -counts[item.path]))


def pytest_collection_finish() -> None:
    """All tests are imported. A process of pytest-xdist calls this hook too, but not ``pytest_runtestloop``."""
    garbage.collect_from_now_on(int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


@pytest.fixture
def float64() -> Iterator[None]:
    """Networks and random numbers in float64: the bounds of `assert_close` (1e-7) are then 10^8 times the rounding, so
    that two orders of summation agree on every processor and a wrong formula does not."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@contextmanager
def empty_pictures() -> Iterator[None]:
    """Make figures, but write empty files: to draw them takes most of the time of a small report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda self, path, **_: Path(path).touch())
        yield


@pytest.fixture
def undrawn() -> Iterator[None]:
    """Leave out the pictures of a report that a test does not look at, see :func:`empty_pictures`."""
    with empty_pictures():
        yield


class Reads:
    """Which image files are read, as ``seen``; at one named ``stop_at`` the process is interrupted."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.stop_at: str | None = None

    def all(self) -> list[str]:
        """What was seen since the last call, sorted."""
        seen, self.seen = sorted(self.seen), []
        return seen


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    read, reads = ImageReader.__call__, Reads()

    def counted(reader: ImageReader, path: Path) -> np.ndarray:
        if path.stem == reads.stop_at:
            raise KeyboardInterrupt
        reads.seen.append(path.stem)
        return read(reader, path)

    monkeypatch.setattr(ImageReader, "__call__", counted)
    return reads


@pytest.fixture(scope="session")
def polymnist_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PolyMNIST folder in the official layout: 6 / 3 / 3 tuples per class."""
    root = tmp_path_factory.mktemp("PolyMNIST")
    make_polymnist_folder(root, per_class=6)
    return root


@pytest.fixture
def composed(tmp_path: Path, polymnist_root: Path) -> Composer:
    """Compose the shipped configuration on the tiny PolyMNIST, with tiny training."""

    def build(*overrides: str, tiny: bool = True) -> DictConfig:
        small = [
            "dataset=PolyMNIST",
            f"dataset.root={polymnist_root}",
            f"paths.cache={polymnist_root.parent / 'cache'}",
            f"paths.output={tmp_path / 'out'}",
            "trainer.enable_progress_bar=false",
            "trainer.accelerator=cpu",
            "imputer.quality.judge_epochs=1",
        ]
        return compose_config(*(small if tiny else []), *overrides)

    return build
