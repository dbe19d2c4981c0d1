"""A small data set with every kind of modality, some rows of which the source lacks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from datasets.base import MultimodalDataModule
from datasets.batch import Modality

LEVEL = 1e-6  # of each bound: about a hundred of them fail by chance once in 10^4 runs


class AllKinds(MultimodalDataModule):
    name = "AllKinds"
    modalities = [
        Modality("photo", "image", (1, 2, 2)),
        Modality("lab", "table", (4,), (3,), ("site", "age", "dose", "flag")),
        Modality("word", "text", (6, 71)),
        Modality("note", "text", (5,), vocabulary=30),
        Modality("sound", "audio", (1, 3, 4)),
        Modality("clip", "video", (2, 3, 2, 2)),
    ]
    class_names = ["a", "b", "c"]

    def fill(self, n: int = 400, changes: Mapping[str, np.ndarray] | None = None) -> AllKinds:
        """Write all splits; ``changes`` replace arrays of the test split."""
        splits = {}
        for number, split in enumerate(("train", "val", "test")):
            rng = np.random.default_rng([7, number])
            table = rng.normal(size=(n, 4)).astype(np.float32)
            table[:, 0] = rng.integers(0, 3, n)
            table[:, 3] = rng.random(n) < 0.3
            tokens = rng.integers(1, 30, (n, 5)) * (np.arange(5) < rng.integers(1, 6, n)[:, None])
            splits[split] = {
                "photo": rng.integers(0, 256, (n, 1, 2, 2)).astype(np.uint8),
                "lab": table,
                "word": np.where(np.arange(6) < rng.integers(1, 7, n)[:, None], 3, 69).astype(np.uint8),
                "note": tokens.astype(np.int32),
                "sound": rng.normal(size=(n, 1, 3, 4)).astype(np.float32),
                "clip": rng.integers(0, 256, (n, 4, 3, 2, 2)).astype(np.uint8),
                "clip.counts": rng.integers(2, 5, n),
                "target": rng.integers(0, 3, n),
            }
        splits["test"] |= dict(changes or {})
        self.store.write(splits, {})
        return self

    def choose(self):
        return {"clip": lambda counts, generator: torch.arange(2) + 0 * counts[:, None]}


def all_kinds(folder: Path, n: int = 400, changes: Mapping[str, np.ndarray] | None = None) -> AllKinds:
    return AllKinds(str(folder)).fill(n, changes)


def is_binomial(count: int, n: int, p: float) -> bool:
    """Whether a count is within the central interval of Binomial(n, p) that misses it with chance :data:`LEVEL`.

    It holds for a sum of independent draws with mean chance p too, which varies less (Hoeffding, 1956).
    """
    low, high = stats.binom.interval(1 - LEVEL, n, p)
    return bool(low <= count <= high)
