"""A data set of one small image and one small table, packed and configured, for tests of whole stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from datasets.base import MultimodalDataModule
from datasets.batch import Modality
from tests.networks import CELLS, LEVELS
from trainers.config.compose import compose_config

SIDE = 28
SIZES = {"train": 96, "val": 24, "test": 24}


class TinyTables(MultimodalDataModule):
    """The class shows as the brightness of a quarter of the image, in every level and in every value."""

    name = "TinyTables"
    modalities = [Modality("img", "image", (3, SIDE, SIDE)), Modality("tabular", "table", (CELLS,), LEVELS)]
    class_names = ["a", "b", "c", "d"]

    def prepare(self) -> None:
        if self.store.meta() is None:
            splits = {split: content(n, seed) for seed, (split, n) in enumerate(SIZES.items())}
            self.store.write(splits, {"signature": "tiny"})


def content(n: int, seed: int) -> dict[str, np.ndarray]:
    """img (n, 3, 28, 28) uint8, tabular (n, 6) float32, target (n,) int64."""
    rng = np.random.default_rng(seed)
    target = np.arange(n) % 4
    images = rng.integers(0, 60, size=(n, 3, SIDE, SIDE))
    for row, label in enumerate(target):
        top, left = 14 * (label // 2), 14 * (label % 2)
        images[row, :, top : top + 14, left : left + 14] += 180
    codes = np.stack([(target + rng.integers(0, 2, n) * (rng.random(n) < 0.2)) % k for k in LEVELS], 1)
    values = (target[:, None] - 1.5) * np.array([1.0, -1.0, 0.5]) + 0.2 * rng.standard_normal((n, 3))
    table = np.concatenate([codes, values], axis=1).astype(np.float32)
    return {"img": images.astype(np.uint8), "tabular": table, "target": target.astype(np.int64)}


def tiny_config(folder: Path, *overrides: str) -> DictConfig:
    """The shipped configuration with this data set, small encoders and short training; ``overrides`` as on the command
    line, those of ``dataset`` excepted."""
    small = [
        f"paths.cache={folder / 'cache'}",
        f"paths.output={folder / 'out'}",
        "trainer=cpu",
        "trainer.enable_progress_bar=false",
        "model.backbone.module.width=16",
        "model.backbone.module.heads=2",
        "model.backbone.module.projection=8",
        "model.backbone.module.subsets_per_step=2",
        "model.backbone.training.batch_size=32",
        "imputer.quality.judge_epochs=1",
    ]
    cfg = compose_config(*small, *overrides)
    image = {"_target_": "models.encoders.convolutional.PolyMNISTEncoder"}
    encoders: dict[str, Any] = {
        "img": image,
        "tabular": {"_target_": "models.encoders.table.TableEncoder", "width": 16, "blocks": 1, "heads": 2},
    }
    dataset = {
        "name": "TinyTables",
        "modalities": ["img", "tabular"],
        "num_classes": 4,
        "scenarios": ["none", "whole_1"],
        "validation_scenarios": ["whole_1"],
        "monitor": "val_accuracy",
        "training_defaults": {"schedule": None, "max_epochs": 100, "batch_size": 256, "patience": 20},
        "test_batch_size": 512,
        "train_fraction": 1.0,
        "residence": "auto",
        "store": None,
        "mnist": None,
        "backgrounds": None,
        "module": {"_target_": "tests.tiny_tables.TinyTables", "test_batch_size": 512, "train_fraction": 1.0},
        "encoders": encoders,
    }
    OmegaConf.set_struct(cfg, False)
    cfg.dataset = dataset
    if "image_encoder" in cfg.imputer:
        cfg.imputer.image_encoder = image
    OmegaConf.set_struct(cfg, True)
    return cfg
