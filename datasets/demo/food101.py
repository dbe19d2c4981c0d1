"""Demo data in the layout of UPMC Food-101."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from datasets.demo.vocabulary import _pattern, write_vocabulary

DISHES = ("frozen_yogurt", "tacos", "gnocchi", "apple_pie", "sushi", "pho", "waffles", "omelette")
TITLES = (
    "{} recipe",
    "easy homemade {}",
    "how to make the best {}",
    "{} with a twist | my kitchen",
    "grandma's {}, step by step",
)
OFF_TOPIC = ("my kitchen", "10 tips for a dinner party", "photo of the day")


def make_food101(root: Path, seed: int = 0, counts: tuple[int, int, int] = (20, 6, 9)) -> None:
    """Food-101 with the files of MAP: 8 dishes, their colours and grain, and titles of which some are off topic.

    Args:
        counts: files of each class in train, val and test. Two of each of train and test have no title.
    """
    rng = np.random.default_rng(seed)
    colours = rng.integers(30, 226, size=(len(DISHES), 2, 3))
    split: dict[str, list[str]] = {}
    titles: dict[str, dict[str, str]] = {"train": {}, "test": {}}
    for part, first, n in (
        ("train", 0, counts[0]),
        ("val", counts[0], counts[1]),
        ("test", sum(counts[:2]), counts[2]),
    ):
        folder = "test" if part == "test" else "train"
        split[part] = []
        for c, dish in enumerate(DISHES):
            (root / "images" / folder / dish).mkdir(parents=True, exist_ok=True)
            for i in range(first, first + n):
                name = f"{dish}_{i}.jpg"
                size = (96, 96) if rng.random() < 0.7 else (120, 96)
                _pattern(colours[c], 2 + c % 4, size, rng).save(root / "images" / folder / dish / name, quality=90)
                pool = OFF_TOPIC if rng.random() < 0.05 else TITLES
                title = str(rng.choice(pool)).format(dish.replace("_", " "))
                split[part].append(name)
                titles[folder][name] = "" if part != "val" and c < 2 and i == first else title
    (root / "texts").mkdir()
    for folder, of_names in titles.items():
        with (root / f"texts/{folder}_titles.csv").open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([name, title, name.rpartition("_")[0]] for name, title in of_names.items())
    (root / "split.json").write_text(json.dumps(split))
    (root / "class_idx.json").write_text(json.dumps({dish: i for i, dish in enumerate(DISHES)}))
    (root / "text.json").write_text(json.dumps({name: t for of in titles.values() for name, t in of.items() if t}))
    write_vocabulary(root / "vocab.txt", [*titles["train"].values()])
