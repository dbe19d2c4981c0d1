"""Tiny files of every kind of modality beside one CSV file, whose content follows the label, with gaps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.demo.vocabulary import write_vocabulary

CLASSES = ["ill", "well"]
NOTES = {"ill": "fever and cough for {} days", "well": "routine check after {} days"}
# Modality -> the rows without it: an empty cell (tables: all their cells).
LACKING = {"film": [4], "lateral": [5, 9], "labs": [7], "note": [9, 12]}


def make_mixed(folder: Path, n: int = 60, seed: int = 0) -> Path:
    """``<folder>/patients.csv``, ``images/``, ``vocab.txt``.

    Columns: id, film and lateral (images), age and crp (numbers, some empty), sex (categorical), note (text), state
    (label), patient (group: two rows each).

    Returns:
        The CSV file.
    """
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    lines = ["id,film,lateral,age,crp,sex,note,state,patient"]
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
}


def arguments(csv: Path, *names: str, **changes: Any) -> dict[str, Any]:
    """Arguments of :class:`datasets.from_csv.FromCSV` for some of :data:`MODALITIES`, all without names."""
    given = {
        **{"name": "Mixed", "csv": str(csv), "label": "state", "classes": CLASSES, "group": "patient", "id": "id"},
        **{"fractions": [0.5, 0.2, 0.3], "tokenizer": str(csv.parent / "vocab.txt")},
        "modalities": {name: MODALITIES[name] for name in names or MODALITIES},
    }
    return given | changes
