"""Small seeded demo data of MIMIC in the layout of the published tables, for the real reader.

Synthetic: nothing is learned from it about lungs. Every finding shows in the film and in the table, in neither
perfectly.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

RACES = ("ASIAN", "BLACK/AFRICAN AMERICAN", "OTHER", "WHITE")
# Findings that a common cause makes likelier: column of FINDINGS -> weight of the cause.
FAILING = {1: 1.2, 3: 1.4, 4: 0.8, 9: 1.2, 0: 0.6}  # heart
INFECTED = {2: 1.2, 7: 1.4, 11: 1.4, 0: 0.6}


def make_mimic(root: Path, seed: int = 0, n: int = 400, side: int = 64) -> None:
    """The two tables of MIMIC and ``n`` grey films.

    14 findings of two common causes, 'No Finding' where there is none of the others; 30 % of the labels are empty and
    5 % are -1. Each finding is a spot of its own place in the film; seven numbers (some empty), sex, race and six flags
    follow the findings.

    Args:
        root: existing folder.
    """
    _write(root, seed, n, side)


def _write(root: Path, seed: int, n: int, side: int) -> None:
    from datasets.mimic import CLINICAL, FOLDERS, IMAGES
    from datasets.mimic_linkage import FINDINGS, VITALS

    rng = np.random.default_rng(seed)
    causes = {"heart": rng.normal(size=n), "infection": rng.normal(size=n)}
    score = rng.normal(-0.9, 1, size=(n, len(FINDINGS)))
    for weights, cause in ((FAILING, causes["heart"]), (INFECTED, causes["infection"])):
        for column, weight in weights.items():
            score[:, column] += weight * cause
    present = score > 0
    nothing = FINDINGS.index("No Finding")
    present[:, nothing] = False
    present[:, nothing] = ~present.any(1)

    labels = present.astype(object)
    labels[:] = np.where(present, "1.0", "0.0")
    draw = rng.random(labels.shape)
    labels[draw < 0.3] = ""
    labels[(draw >= 0.3) & (draw < 0.35)] = "-1.0"

    table: dict[str, np.ndarray] = {"ID": 50_000_000 + np.arange(n)}
    table["gender"] = rng.choice(["F", "M"], n)
    table["anchor_age"] = np.clip(60 + 12 * causes["heart"] + rng.normal(0, 10, n), 18, 91).round()
    table["race"] = rng.choice(RACES, n, p=[0.1, 0.2, 0.15, 0.55])
    slopes = rng.normal(0, 1, size=(len(FINDINGS), len(VITALS))) * (rng.random((len(FINDINGS), len(VITALS))) < 0.4)
    vitals = present @ slopes + rng.normal(0, 0.8, size=(n, len(VITALS)))
    scales = ((98.0, 1.0), (88.0, 15.0), (19.0, 3.0), (96.0, 2.0), (135.0, 20.0), (75.0, 12.0))
    for j, (name, (mean, deviation)) in enumerate(zip(VITALS, scales)):
        table[name] = np.array([f"{v:.1f}" for v in mean + deviation * vitals[:, j]])
    without = rng.random(n) < 0.1  # no triage
    for name in VITALS:
        table[name] = np.where(without | (rng.random(n) < 0.03), "", table[name])
    for j in range(6):
        flagged = np.where(rng.random(n) < 0.85, present[:, 2 * j], rng.random(n) < 0.3)
        table[f"DRG {FINDINGS[2 * j].upper()}, EXAMPLE"] = flagged.astype(int)
    clinical = pd.concat([pd.DataFrame(table), pd.DataFrame(labels, columns=list(FINDINGS))], axis=1)
    images = pd.DataFrame({"ID": table["ID"], "folder": [f"p{i % 10}" for i in range(n)], "img": ""})
    images["img"] = [f"{i}.jpg" for i in clinical["ID"]]
    images = pd.concat([images, clinical[list(FINDINGS)]], axis=1)
    for name, frame in ((CLINICAL, clinical), (IMAGES, images)):
        (root / FOLDERS[name]).mkdir(parents=True)
        frame.to_csv(root / FOLDERS[name] / name, index=False)

    y, x = np.mgrid[:side, :side] / side
    spots = [
        np.exp(-((y - (c // 4 + 0.5) / 4) ** 2 + (x - (c % 4 + 0.5) / 4) ** 2) / 0.004) for c in range(len(FINDINGS))
    ]
    visible = present & (rng.random(present.shape) < 0.9)
    for row, (folder, name) in enumerate(zip(images["folder"], images["img"])):
        film = 90 + rng.normal(0, 25, (side, side)) + 110 * sum(spots[c] for c in np.flatnonzero(visible[row]))
        file = root / FOLDERS[IMAGES] / folder / name
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(np.clip(film, 0, 255).astype(np.uint8)).save(file, quality=90)
