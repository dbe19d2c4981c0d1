"""A run of every stage on a table with pictures: some seconds, three megabytes. Copies of it meet the accidents."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, open_dict

from tests.campaign.children import in_child
from tests.contracts.test_bundles import DYMO, IMAGE, parts_config
from tests.makers import make_image_table
from trainers import run as pipeline
from utils.files import TEMPORARY
from utils.safe_pickle import read_tensors

SETTINGS = [
    "model.comparators=[]",
    "model.backbone.training.max_epochs=2",
    "imputer.module.blocks=1",
    "imputer.module.heads=2",
    "imputer.module.projection=8",
    *(f"imputer.table_encoder.{key}" for key in ("width=16", "blocks=1", "heads=2")),
    "report.metrics=[accuracy]",
]
# Cheap stages: stage report takes seconds of drawing.
SAMPLED = ("prepare", "impute", "fit", "gaussian", "test", "export", "predict")
# In the order of a run; report last, since it reads everything.
ORDER = ("prepare", "impute", "fit", "gaussian", "test", "export", "predict", "report")
COMPARED = (".npz", ".npy", ".csv", ".safetensors", ".ckpt", ".zip")
NOT_COMPARED = (
    "costs.csv",  # times
    "previous.ckpt",  # no stage has a use for it once training is finished
)


class TinyRun:
    """The finished run in ``whole``, and ``before[stage]``, copies of what the stages before each stage left.

    Args:
        folder: for the data and all copies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.csv = folder, make_image_table(folder / "parts", per_class=12)
        self.cfg = parts_config(folder, *DYMO, *SETTINGS)
        with open_dict(self.cfg):
            self.cfg.imputer.image_encoder = IMAGE
        self.whole, self.before = folder / "whole", {}
        self.whole.mkdir()
        self.seconds: dict[str, float] = {}
        for stage in ORDER[:-1]:
            self.before[stage] = shutil.copytree(self.whole, folder / "before" / stage)
            start = time.monotonic()
            self.run(self.whole, stage)
            self.seconds[stage] = time.monotonic() - start
        self.before[ORDER[-1]] = self.whole
        self._events: dict[str, int] = {}
        self._after: dict[str, dict[str, object]] = {}

    def after(self, stage: str) -> dict[str, object]:
        """What the run holds once a stage is finished, see :func:`contents`."""
        if stage not in self._after:
            following = ORDER[(ORDER.index(stage) + 1) % len(ORDER)]
            if stage == ORDER[-1]:
                self.run(place := self.copy(self.folder / "reported"), stage)
            else:
                place = self.before[following]
            self._after[stage] = contents(place)
        return self._after[stage]

    def events(self, stage: str) -> int:
        """Number of file events of a stage, see :class:`tests.campaign.children.Accident`."""
        if stage not in self._events:
            place = self.copy(self.folder / "counted", self.before[stage])
            status, self._events[stage], text = in_child(lambda: self.run(place, stage), place)
            assert status == 0 and self._events[stage] > 1, (stage, text)
        return self._events[stage]

    def config(self, place: Path, stages: Sequence[str]) -> DictConfig:
        cfg = self.cfg.copy()
        cfg.paths.output, cfg.paths.cache = str(place / "out"), str(place / "cache")
        cfg.stages = list(stages)
        if "predict" in stages:
            cfg.predict.input, cfg.predict.images = str(self.csv), str(self.csv.parent / "photos")
            cfg.predict.output = str(place / "out" / "predictions.csv")
        return cfg

    def run(self, place: Path, *stages: str) -> None:
        self.start(self.config(place, stages))

    @staticmethod
    def start(cfg: DictConfig) -> None:
        pipeline.run(cfg)

    @staticmethod
    def remove(place: Path) -> None:
        shutil.rmtree(place, ignore_errors=True)

    def copy(self, place: Path, source: Path | None = None) -> Path:
        """A fresh copy of the finished run, or of another folder."""
        self.remove(place)
        return shutil.copytree(source or self.whole, place)


def contents(place: Path) -> dict[str, object]:
    """What a run computed, by relative path: arrays, weights and tables."""
    files = [path for path in sorted(place.rglob("*")) if path.is_file() and path.suffix in COMPARED]
    return {
        path.relative_to(place).as_posix(): content(path)
        for path in files
        if path.name not in NOT_COMPARED and "logs" not in path.parts
    }


def content(path: Path) -> object:
    """The numbers of a file, comparable with ``==``; archives of NumPy and PyTorch hold times."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {key: arrays[key].tobytes() for key in arrays.files}
    if path.suffix == ".ckpt":
        return plain(read_tensors(path)["state_dict"])
    return path.read_bytes()


def plain(state: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    """Tensors, comparable with ``==``."""
    return {key: value.detach().numpy().tobytes() for key, value in state.items()}


def problem(tiny: TinyRun, place: Path, *stages: str) -> str | None:
    """What is wrong after the same command was repeated, None = nothing."""
    try:
        tiny.run(place, *stages)
    except Exception as error:
        return f"the same command fails ({type(error).__name__}: {error})"
    if changed := differences(place, tiny.after(stages[-1])):
        return f"{', '.join(changed)} differ"
    if left := [path.name for path in place.rglob(".*") if TEMPORARY.fullmatch(path.name)]:
        return f"{', '.join(left)} is left"
    return None


def differences(place: Path, expected: dict[str, object]) -> list[str]:
    """Names of the files whose content differs from ``expected``, or that only one of the two has."""
    actual = contents(place)
    return [name for name in sorted(actual.keys() | expected) if actual.get(name) != expected.get(name)]
