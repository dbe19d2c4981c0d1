"""Demo data in the layout of MM-IMDb."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from datasets.demo.vocabulary import _pattern, write_vocabulary

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
