"""UPMC Food-101: a photograph of a dish and the title of its web page; 101 dishes.

Wang et al., "Recipe recognition with large multimodal food dataset", ICMEW 2015; split and missing tables as in Lee et
al., "Multimodal Prompting with Missing Modalities" (MAP), CVPR 2023; used by CMPT, TMLR. Files that are read:

- ``<root>/images/{train,test}/<class>/<class>_<n>.jpg``;
- ``<root>/texts/{train,test}_titles.csv`` (file name, title, class; no header), or ``<root>/text.json``
  {file name: title};
- ``<root>/split.json`` {train, val, test: file names} of MAP; without it, the rows of the title files in their order,
  with 6,846 of 67,988 training rows for validation, by class and seeded;
- optionally ``<root>/class_idx.json`` {class: number}; without it, classes are numbered alphabetically.

Files without a title are left out, as published, which leaves 61,142 / 6,846 / 22,716. Difference from MAP: images
become squares of one size, not multiples of 32 pixels with their aspect ratio.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from datasets.base import SPLITS
from datasets.content import Content
from datasets.published_image_text import Items, PublishedImageText
from datasets.readers.json_files import read_json, read_split
from datasets.source import Source, file_digest
from datasets.splits import draw_split
from utils.errors import UserError

RECIPE_VERSION = 1
TITLES = {"train": "texts/train_titles.csv", "test": "texts/test_titles.csv"}
PUBLISHED = {"train": 61_142, "val": 6_846, "test": 22_716}
VAL_SHARE = PUBLISHED["val"] / (PUBLISHED["train"] + PUBLISHED["val"])
CLASSES = 101


def read_titles(path: Path) -> dict[str, str]:
    """File name -> title, in the order of the file.

    Commas in a title need no quotes: the first field is the file name, the last one the class.

    Raises:
        UserError: the file is unreadable, has rows with fewer than three fields, or repeats a file name.
    """
    titles: dict[str, str] = {}
    short, repeated = [], []
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            for number, row in enumerate(csv.reader(stream), 1):
                if len(row) < 3:
                    short.append(number)
                elif row[0] in titles:
                    repeated.append(row[0])
                else:
                    titles[row[0]] = ",".join(row[1:-1]).strip()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV ({error}): download it again") from None
    if short:
        raise UserError(
            f"{path}: {len(short)} rows have fewer than three fields (file name, title, class), the first is row "
            f"{short[0]}: correct them, or download the file again"
        )
    if repeated:
        raise UserError(f"{path} lists {repeated[0]} twice ({len(repeated)} such rows): remove one of the rows")
    return titles


class Food101(PublishedImageText):
    """UPMC Food-101.

    Args:
        split_seed: of the validation rows, without ``split.json``.
        **kwargs: see :class:`PublishedImageText`.
    """

    name = "Food101"
    published = PUBLISHED

    def __init__(self, *, split_seed: int = 2025, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.split_seed = split_seed

    def find_source(self) -> Source:
        root = self.root
        known = ["split.json", "text.json", "class_idx.json", *TITLES.values()]
        existing = [] if root is None else [name for name in known if (root / name).is_file()]
        has_title_files = set(TITLES.values()) <= set(existing)
        if root is None or (not has_title_files and not {"text.json", "split.json"} <= set(existing)):
            raise UserError(
                f"no Food-101 in {root}: looked for {', '.join(TITLES.values())}, or text.json and split.json, beside "
                "images/train and images/test (UPMC Food-101, https://visiir.isir.upmc.fr/explore): set dataset.root, "
                "or dataset.demo=true for small demo data"
            )
        digests = {name: file_digest(root / name) for name in existing}
        settings = [digests, str(root.resolve()), self.split_seed, RECIPE_VERSION]
        settings += [] if self.validation is None else [self.validation]
        return self.content_source("demo" if self.demo else "files", settings, lambda: self._load(root))

    def expected_counts(self) -> dict[str, int]:
        counts = super().expected_counts()
        return counts | ({"train": PUBLISHED["train"] + PUBLISHED["val"]} if self.validation == "test" else {})

    def _load(self, root: Path) -> Content:
        listed = {part: read_titles(root / file) for part, file in TITLES.items() if (root / file).is_file()}
        titles = {name: title for part in listed.values() for name, title in part.items()}
        if not titles:
            texts = read_json(root / "text.json", "titles by file name")
            titles = {name: " ".join(text) if isinstance(text, list) else str(text) for name, text in texts.items()}
        if (root / "split.json").is_file():
            rows = read_split(root / "split.json", {split: split for split in SPLITS})
        else:
            rows = {part: list(names) for part, names in listed.items()}
        classes = self._classes(root, [name for names in rows.values() for name in names])
        if "val" not in rows:
            rows = self._draw(listed, classes)
        splits = {}
        for split, names in rows.items():
            folder = root / "images" / ("test" if split == "test" else "train")
            target = np.array([classes[_class(name)] for name in names], dtype=np.int64)
            files = [folder / _class(name) / name for name in names]
            splits[split] = Items(files, [titles.get(name, "") for name in names], target, names)
        if self.validation == "test":
            splits = self.validated_on_test(splits, has_drawn_validation=True)
        about = {"root": str(root), "split.json": (root / "split.json").is_file()}
        return self.content_of_items(list(classes), splits, about)

    def _draw(self, listed: dict[str, dict[str, str]], classes: dict[str, int]) -> dict[str, list[str]]:
        """Draw validation rows from the training rows with a title, which the published number counts."""
        names = [name for name, title in listed["train"].items() if title]
        labels = np.array([classes[_class(name)] for name in names])
        parts = draw_split(len(names), labels, None, (1 - VAL_SHARE, VAL_SHARE), self.split_seed, list(classes))
        chosen = {names[i] for i in parts[1]}
        train, val = ([name for name in listed["train"] if (name in chosen) == part] for part in (False, True))
        return {"train": train, "val": val, "test": list(listed["test"])}

    def _classes(self, root: Path, names: list[str]) -> dict[str, int]:
        """Class -> number, in numerical order.

        Raises:
            UserError: rows of classes that ``class_idx.json`` does not number, or numbers that are not 0, 1, ...
        """
        listed = sorted({_class(name) for name in names})
        path = root / "class_idx.json"
        if not path.is_file():
            if not self.demo and len(listed) != CLASSES:
                raise UserError(
                    f"{root} names files of {len(listed)} classes, Food-101 has {CLASSES}: complete the download"
                )
            return {name: i for i, name in enumerate(listed)}
        classes = dict(sorted(read_json(path, "numbers of classes").items(), key=lambda item: item[1]))
        if list(classes.values()) != list(range(len(classes))):
            raise UserError(f"{path} does not number its {len(classes)} classes from 0 on: restore it")
        if unknown := [name for name in names if _class(name) not in classes]:
            raise UserError(
                f"{path} lacks the class of {len(unknown)} rows, the first is {unknown[0]}: restore it, or remove it "
                "to number the classes by the alphabet"
            )
        return classes


def _class(name: str) -> str:
    """The class of a file name, ``apple_pie_12.jpg``."""
    return name.rpartition("_")[0]
