"""Small seeded stand-ins for Food-101 and MM-IMDb, in the real file layouts, each with a vocabulary of its own.

As in ``datasets/demo_text_image.py``: they show that everything runs; no number of theirs says anything about the real
sets.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
DISHES = ("frozen_yogurt", "tacos", "gnocchi", "apple_pie", "sushi", "pho", "waffles", "omelette")
TITLES = (
    "{} recipe",
    "easy homemade {}",
    "how to make the best {}",
    "{} with a twist | my kitchen",
    "grandma's {}, step by step",
)
OFF_TOPIC = ("my kitchen", "10 tips for a dinner party", "photo of the day")
# What films of a genre are said to be about.
PLOTS = {
    "Drama": "family secret",
    "Comedy": "funny mistake",
    "Romance": "love letter",
    "Thriller": "hidden killer",
    "Crime": "bank robbery",
    "Action": "car chase",
    "Adventure": "lost treasure",
    "Horror": "haunted house",
    "Documentary": "true interview",
    "Mystery": "strange clue",
    "Sci-Fi": "space robot",
    "Fantasy": "magic dragon",
    "Family": "clever dog",
    "Biography": "famous life",
    "War": "brave soldier",
    "History": "ancient king",
    "Music": "young singer",
    "Animation": "talking toy",
    "Musical": "dance stage",
    "Western": "dusty sheriff",
    "Sport": "final match",
    "Short": "brief moment",
    "Film-Noir": "dark alley",
}


def write_vocabulary(path: Path, texts: Sequence[str]) -> Path:
    """A WordPiece vocabulary of all words of some texts, and of single characters for all others."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = sorted(
        {word for text in texts for word in "".join(c if c.isalnum() else " " for c in text.lower()).split()}
    )
    tokens = [*SPECIAL, *letters, *(f"##{c}" for c in letters), *"!,.:;'|-?", *words]
    path.write_text("\n".join(dict.fromkeys(tokens)) + "\n", encoding="utf-8")
    return path


def _pattern(colours: np.ndarray, stripes: float, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Stripes of two colours across a picture of (width, height), at an angle and with noise that differ each time."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    wave = np.sin(2 * np.pi * stripes * (x * np.cos(angle) + y * np.sin(angle)) / min(size) + phase)
    share = (wave[..., None] + 1) / 2
    picture = (
        share * colours[0] + (1 - share) * colours[1] + rng.normal(0, 40, size=3) + rng.normal(0, 25, (*x.shape, 3))
    )
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


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


def make_mmimdb(root: Path, seed: int = 0, counts: tuple[int, int, int] = (200, 40, 60)) -> None:
    """MM-IMDb: films of one to three genres, whose plots have words and whose posters have colours of each.

    Args:
        counts: films in train, dev and test; every genre is the first of some of each 23.
    """
    rng = np.random.default_rng(seed)
    genres = list(PLOTS)
    colours = rng.integers(20, 236, size=(len(genres), 3))
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    split: dict[str, list[str]] = {}
    plots = []
    number = 0
    for part, n in zip(("train", "dev", "test"), counts):
        split[part] = []
        for i in range(n):
            number += 1
            name = f"{number:07d}"
            others = rng.permutation(len(genres))[: rng.integers(3)]
            chosen = list(dict.fromkeys([i % len(genres), *others.tolist()]))
            told = [word for j in chosen for word in PLOTS[genres[j]].split() if rng.random() < 0.8]
            plots.append(f"A film about the {' and the '.join(told or ['day'])}.")
            film = {
                "title": f"Film {number}",
                "plot": [plots[-1], "Another plot of the same film."] if i % 9 == 4 else [plots[-1]],
                "genres": [*(genres[j] for j in chosen), *(["News"] if i % 20 == 7 else [])],
            }
            (root / f"labels/{name}.json").write_text(json.dumps(film))
            two = colours[[chosen[0], chosen[-1]]]
            _pattern(two, 3, (64, 96), rng).save(root / f"images/{name}.jpeg", quality=90)
            split[part].append(name)
    (root / "split.json").write_text(json.dumps(split))
    write_vocabulary(root / "vocab.txt", plots)
