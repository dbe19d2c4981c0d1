"""Demo data in TIP's layout of UK Biobank tables and images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from datasets.missingness.table import Table, table_mask
from datasets.ukbb import CATEGORICAL, COLUMNS, CONTINUOUS, IMAGE_FOLDER, LENGTHS, file_names
from utils.progress import Progress


def make_ukbb(root: Path, seed: int = 0, n: tuple[int, int, int] = (1500, 120, 240), side: int = 64) -> None:
    """TIP's files of CAD and Infarction in ``root``, and ``subjects/<eid>/sa_es_ed_mm.npy``.

    A ring of muscle at end-systole, in between and end-diastole (the real arrays have side 210). A latent risk thickens
    the ring, weakens its contraction and moves the table; about 6 % of the people are ill. Balanced training files, and
    masks of the test tables.

    Args:
        root: existing folder.
        n: people in train (before balancing), val and test.
    """
    _write_ukbb(root, seed, n, side)


def _write_ukbb(temporary: Path, seed: int, n: tuple[int, int, int], side: int) -> None:
    rng = np.random.default_rng(seed)
    total = sum(n)
    risk = rng.normal(size=total)
    codes = []
    for j, levels in enumerate(CATEGORICAL.values()):
        score = (0.9 if j % 3 == 0 else 0.2) * risk + rng.normal(size=total)
        edges = np.quantile(score, np.arange(1, levels) / levels)
        codes.append(np.searchsorted(edges, score))
    slopes = np.where(np.arange(len(CONTINUOUS)) % 4 == 0, 0.7, 0.1)
    numbers = slopes * risk[:, None] + rng.normal(size=(total, len(CONTINUOUS)))
    numbers = (numbers - numbers.mean(0)) / numbers.std(0, ddof=1)
    table = np.concatenate([np.stack(codes, 1), numbers], axis=1)
    labels = {
        target: (risk + 0.5 * rng.normal(size=total) > shift).astype(np.int64)
        for target, shift in (("CAD", 1.7), ("Infarction", 1.8))
    }
    ids = [str(1_000_000 + i) for i in range(total)]
    # As on another machine: what holds everywhere begins at 'subjects'.
    paths = [f"/data/{IMAGE_FOLDER}/{eid}/sa_es_ed_mm.npy" for eid in ids]
    torch.save([*CATEGORICAL.values(), *([1] * len(CONTINUOUS))], temporary / LENGTHS)
    starts = np.cumsum([0, *n])
    used: set[int] = set()
    for split, start, stop in zip(("train", "val", "test"), starts, starts[1:]):
        for target in labels:
            rows = np.arange(start, stop)
            if split == "train":
                ill, well = (rows[labels[target][rows] == value] for value in (1, 0))
                rows = np.sort(np.concatenate([ill, rng.choice(well, len(ill), replace=False)]))
            used.update(rows.tolist())
            table_file, label_file, path_file = file_names(target, split, balanced=True)
            pd.DataFrame(table[rows]).to_csv(temporary / table_file, header=False, index=False)
            torch.save(labels[target][rows].tolist(), temporary / label_file)
            torch.save([paths[i] for i in rows], temporary / path_file)
    (temporary / "missing_mask").mkdir()
    stem = Path(file_names("CAD", "test", True)[0]).stem
    for rate in (0.1, 0.3, 0.5, 0.7, 0.9):
        mask = table_mask(n[2], len(COLUMNS), "value", rate, seed=2023)
        for target in labels:
            np.save(temporary / "missing_mask" / Table(rate).file_name(stem, target), mask)
    for i in Progress(sorted(used), "drawing hearts", unit="image", leave=False):
        folder = temporary / IMAGE_FOLDER / ids[i]
        folder.mkdir(parents=True)
        np.save(folder / "sa_es_ed_mm.npy", draw_heart(float(risk[i]), side, rng))


def draw_heart(risk: float, side: int, rng: np.random.Generator) -> np.ndarray:
    """(side, side, 3) float32, end-systole, mid, end-diastole; each channel divided by its maximum."""
    y, x = (np.mgrid[:side, :side] - side / 2) / (side / 2)
    cy, cx = rng.normal(0, 0.08, 2)
    radius = np.hypot(y - cy, x - cx)
    diastole = 0.38 + 0.02 * rng.normal()
    contraction = np.clip(0.45 - 0.07 * risk + 0.05 * rng.normal(), 0.05, 0.8)
    wall = np.clip(0.14 + 0.025 * risk + 0.02 * rng.normal(), 0.04, 0.3)
    channels = []
    for phase in (1.0, 0.5, 0.0):
        inner = diastole * (1 - contraction * phase)
        image = 0.25 + 0.05 * rng.normal(size=(side, side))
        image = np.where(radius < inner + wall, 0.45, image)
        image = np.where(radius < inner, 0.9, image) + 0.03 * rng.normal(size=(side, side))
        channels.append(np.clip(image, 0, None) / image.max())
    return np.stack(channels, axis=2).astype(np.float32)
