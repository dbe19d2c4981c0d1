"""A run of every stage on a table with pictures: some seconds, three megabytes. Copies of it meet the accidents."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, open_dict
from safetensors.torch import load_file

from tests.contracts.test_bundles import DYMO, IMAGE, parts_config
from tests.makers import make_image_table
from trainers import run as pipeline
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
# In the order of a run; report last, since it reads everything.
ORDER = ("prepare", "impute", "fit", "gaussian", "test", "export", "predict", "report")
COMPARED = (".npz", ".npy", ".csv", ".safetensors", ".ckpt")
NOT_COMPARED = (
    "costs.csv",  # times
    "previous.ckpt",  # no stage has a use for it once training is finished
    # A process that ends between the checkpoint of an epoch and its line in the curves leaves that line without the
    # values of the training split: docs/reliability.md says so.
    "metrics.csv",
    "imputer.safetensors",  # of a bundle: holds random weights of parts of TIP that only its training uses
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
        for stage in ORDER[:-1]:
            self.before[stage] = shutil.copytree(self.whole, folder / "before" / stage)
            self.run(self.whole, stage)
        self.before[ORDER[-1]] = self.whole

    def config(self, place: Path, stages: Sequence[str]) -> DictConfig:
        cfg = self.cfg.copy()
        cfg.paths.output, cfg.paths.cache = str(place / "out"), str(place / "cache")
        cfg.stages = list(stages)
        if "predict" in stages:
            cfg.predict.input, cfg.predict.images = str(self.csv), str(self.csv.parent / "photos")
            cfg.predict.output = str(place / "out" / "predictions.csv")
        return cfg

    def run(self, place: Path, *stages: str) -> None:
        pipeline.run(self.config(place, stages))

    def copy(self, place: Path, source: Path | None = None) -> Path:
        """A fresh copy of the finished run, or of another folder."""
        shutil.rmtree(place, ignore_errors=True)
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
    """The numbers of a file, comparable with ``==``; zip archives hold times, so their bytes are not compared."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {key: arrays[key].tobytes() for key in arrays.files}
    if path.suffix == ".ckpt":
        return plain(read_tensors(path)["state_dict"])
    if path.suffix == ".safetensors":  # in any order
        return plain(load_file(path))
    return path.read_bytes()


def plain(state: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    """Tensors, comparable with ``==``."""
    return {key: value.detach().numpy().tobytes() for key, value in state.items()}


def differences(place: Path, expected: dict[str, object]) -> list[str]:
    """Names of the files whose content differs from ``expected``, or that only one of the two has."""
    actual = contents(place)
    return [name for name in sorted(actual.keys() | expected) if actual.get(name) != expected.get(name)]
