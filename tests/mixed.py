"""Tiny files of every kind of modality beside one CSV file, whose content follows the label, with gaps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from datasets.demo.vocabulary import write_vocabulary

CLASSES = ["ill", "well"]
NOTES = {"ill": "fever and cough for {} days", "well": "routine check after {} days"}
# Modality -> the rows without it: an empty cell (tables: all their cells).
LACKING = {
    "film": [4],
    "lateral": [5, 9],
    "labs": [7],
    "note": [9, 12],
    "heart": [3],
    "ecg": [5],
    "genes": [6],
    "clip": [8],
}


def make_mixed(folder: Path, n: int = 60, seed: int = 0) -> Path:
    """``<folder>/patients.csv``, ``images/``, ``arrays/``, ``sounds/``, ``clips/``, ``vocab.txt``.

    Columns: id, film and lateral (images), age and crp (numbers, some empty), sex (categorical), note (text), heart
    (sound), ecg (series of 20 to 30 time steps of 2 channels, some NaN), genes (vectors of 5, some NaN), clip (folders
    of frames), state (label), patient (group: two rows each).

    Returns:
        The CSV file.
    """
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    for name in ("arrays", "sounds", "clips"):
        (folder / name).mkdir()
    lines = ["id,film,lateral,age,crp,sex,note,heart,ecg,genes,clip,state,patient"]
    for i in range(n):
        c = (i // 2) % 2
        cells: dict[str, str] = {"id": f"r{i}"}
        for name, channels in (("film", 3), ("lateral", 1)):
            pixels = (60 + 90 * c + rng.integers(-30, 30, (24, 20 + i % 5, channels))).astype(np.uint8)
            Image.fromarray(pixels.squeeze()).save(folder / "images" / f"{name}{i}.png")
            cells[name] = f"{name}{i}" if i not in LACKING[name] else ""
        has_labs = i not in LACKING["labs"]
        cells["age"] = f"{50 + 8 * c + 4 * rng.normal():.1f}" if has_labs and i % 7 else ""
        cells["crp"] = f"{np.exp(rng.normal() + c):.3f}" if has_labs else ""
        cells["sex"] = "fm"[int(rng.random() < 0.5)] if has_labs and i % 5 else ""
        cells["note"] = NOTES[CLASSES[c]].format(int(rng.integers(2, 9))) if i not in LACKING["note"] else ""
        cells |= {name: f"{name}{i}" if i not in LACKING[name] else "" for name in ("heart", "ecg", "genes", "clip")}
        time = np.arange(4000) / 8000
        wave = 0.4 * np.sin(2 * np.pi * (300 + 500 * c) * time) + 0.05 * rng.normal(size=4000)
        soundfile.write(folder / "sounds" / f"heart{i}.wav", wave, 8000)
        ecg = rng.normal(size=(20 + i % 11, 2)) + np.array([3 * c, 10])
        ecg[rng.random(ecg.shape) < 0.1] = np.nan
        np.save(folder / "arrays" / f"ecg{i}.npy", ecg)
        genes = rng.normal(size=5) * [1, 2, 3, 4, 0] + c * np.array([1, 1, 1, 1, 0]) + np.arange(5)
        genes[int(rng.integers(10)) :][:1] = np.nan
        np.savez(folder / "arrays" / f"genes{i}.npz", genes)
        (folder / "clips" / f"clip{i}").mkdir()
        for frame in range(1 + i % 3):
            pixels = (50 + 100 * c + rng.integers(-30, 30, (18, 18, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "clips" / f"clip{i}" / f"{frame}.png")
        cells |= {"state": CLASSES[c], "patient": f"p{i // 2}"}
        lines.append(",".join(cells.values()))
    words = " ".join(NOTES.values()).replace("{}", "2 3 4 5 6 7 8").split()
    write_vocabulary(folder / "vocab.txt", words)
    (folder / "patients.csv").write_text("\n".join(lines) + "\n")
    return folder / "patients.csv"


MODALITIES: dict[str, dict[str, Any]] = {
    "film": {"kind": "image", "column": "film", "folder": "images", "suffix": ".png", "side": 16, "stored_side": 20},
    "lateral": {
        **{"kind": "image", "column": "lateral", "folder": "images", "suffix": ".png", "side": 16, "channels": 1},
    },
    "labs": {"kind": "table", "categorical": {"sex": None}, "continuous": ["age", "crp"]},
    "note": {"kind": "text", "columns": ["note"], "length": 10},
    "heart": {
        **{"kind": "audio", "column": "heart", "folder": "sounds", "suffix": ".wav", "rate": 8000},
        **{"seconds": 0.32, "mel_bins": 16},
    },
    "ecg": {"kind": "series", "column": "ecg", "folder": "arrays", "suffix": ".npy", "channels": 2, "length": 24},
    "genes": {"kind": "vector", "column": "genes", "folder": "arrays", "suffix": ".npz", "features": 5},
    "clip": {"kind": "video", "column": "clip", "folder": "clips", "frames": 2, "side": 16, "stored_frames": 3},
}


def arguments(csv: Path, *names: str, **changes: Any) -> dict[str, Any]:
    """Arguments of :class:`datasets.from_csv.FromCSV` for some of :data:`MODALITIES`, all without names."""
    given = {
        **{"name": "Mixed", "csv": str(csv), "label": "state", "classes": CLASSES, "group": "patient", "id": "id"},
        **{"fractions": [0.5, 0.2, 0.3], "tokenizer": str(csv.parent / "vocab.txt")},
        "modalities": {name: MODALITIES[name] for name in names or MODALITIES},
    }
    return given | changes


def as_override(value: Any) -> str:
    """A plain value as Hydra's command line takes it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{as_override(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(as_override, value)) + "]"
    return "null" if value is None else str(value)
