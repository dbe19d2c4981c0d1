"""MM-IMDb: a film's poster and plot; 23 genres, of which a film has any number.

Arevalo et al., "Gated multimodal units for information fusion", ICLR workshop 2017 (archive.org/details/mmimdb); used
by MAP (Lee et al., CVPR 2023) and CMPT, TMLR. Files that are read:

- ``<root>/split.json`` {train, dev, test: ids}; 15,552 / 2,608 / 7,799 films;
- ``<root>/labels/<id>.json`` with ``plot`` (a list, of which the first is used) and ``genres``, and
  ``<root>/images/<id>.jpeg``; or both in ``<root>/dataset``, as the archive unpacks.

Differences from MAP: one item per film, where MAP has one per plot although its missing table has one entry per film;
images become squares of one size. Genres outside the 23 (News, Adult, Talk-Show, Reality-TV) are counted and left out.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np

from datasets.content import Content
from datasets.published_image_text import Items, PublishedImageText
from datasets.readers.json_files import read_json, read_split
from datasets.source import Source, file_digest, file_stats
from utils.errors import UserError
from utils.progress import Progress

log = logging.getLogger(__name__)

RECIPE_VERSION = 1
PARTS = {"train": "train", "val": "dev", "test": "test"}
# fmt: off
GENRES = (
    "Drama", "Comedy", "Romance", "Thriller", "Crime", "Action", "Adventure", "Horror", "Documentary", "Mystery",
    "Sci-Fi", "Fantasy", "Family", "Biography", "War", "History", "Music", "Animation", "Musical", "Western", "Sport",
    "Short", "Film-Noir",
)
# fmt: on


class MMIMDb(PublishedImageText):
    """MM-IMDb; arguments as of :class:`PublishedImageText`."""

    name = "MMIMDb"
    task = "multilabel"
    published = {"train": 15_552, "val": 2_608, "test": 7_799}

    def find_source(self) -> Source:
        root = self.root
        if root is None or not (root / "split.json").is_file():
            raise UserError(
                f"no MM-IMDb in {root}: looked for split.json, beside labels and images, or dataset "
                "(https://archive.org/details/mmimdb): set dataset.root, or dataset.demo=true for small demo data"
            )
        labels, images = (root / "labels", root / "images") if (root / "labels").is_dir() else (root / "dataset",) * 2
        rows = read_split(root / "split.json", PARTS)
        ids = [name for names in rows.values() for name in names]
        absent = [name for name in ids if not (labels / f"{name}.json").is_file()]
        if absent:
            raise UserError(
                f"{len(absent)} of {len(ids)} films have no file in {labels}, the first is {absent[0]}.json: unpack "
                "the archive completely"
            )
        stats = file_stats({name: labels / f"{name}.json" for name in ids})
        settings = [file_digest(root / "split.json"), stats, str(images.resolve()), RECIPE_VERSION]
        settings += [] if self.validation is None else [self.validation]
        return self.content_source(
            "demo" if self.demo else "files", settings, lambda: self._load(root, labels, images, rows)
        )

    def _load(self, root: Path, labels: Path, images: Path, rows: dict[str, list[str]]) -> Content:
        column = {genre: j for j, genre in enumerate(GENRES)}
        outside: Counter[str] = Counter()
        splits, without_genre = {}, 0
        for split, names in rows.items():
            target = np.zeros((len(names), len(GENRES)), dtype=np.float32)
            plots = []
            for row, name in enumerate(
                Progress(names, desc=f"reading plots of split '{split}'", unit="film", leave=False)
            ):
                plot, genres = read_film(labels / f"{name}.json")
                plots.append(plot)
                outside.update(genre for genre in genres if genre not in column)
                target[row, [column[genre] for genre in genres if genre in column]] = 1
            without_genre += int((target == 0).all(1).sum())
            splits[split] = Items([images / f"{name}.jpeg" for name in names], plots, target, names)
        if outside:
            counts = ", ".join(f"{genre} ({n})" for genre, n in outside.most_common())
            log.warning("%s: genres outside the %d are left out: %s", self.name, len(GENRES), counts)
        if without_genre:
            log.warning("%s: %d films have none of the %d genres", self.name, without_genre, len(GENRES))
        if self.validation == "test":
            splits = self.validated_on_test(splits, has_drawn_validation=False)
        about = {"root": str(root), "genres_left_out": dict(outside), "films_without_genre": without_genre}
        return self.content_of_items(list(GENRES), splits, about)


def read_film(path: Path) -> tuple[str, list[str]]:
    """First plot ('' without a plot) and genres of a film.

    Raises:
        UserError: the file is unreadable, or has no genres.
    """
    film = read_json(path, "film")
    plots, genres = film.get("plot") or [], film.get("genres")
    if not isinstance(genres, list):
        raise UserError(f"{path} has no list of genres: restore it")
    plots = [plots] if isinstance(plots, str) else plots
    return (str(plots[0]).strip() if plots else ""), [str(genre) for genre in genres]
