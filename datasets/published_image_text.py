"""Base of the image + text data sets that are downloaded, with published numbers of rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datasets.base import SPLITS
from datasets.content import Content, Texts, rows_of_splits
from datasets.image_text_module import ImageTextModule
from datasets.readers.tokens import VOCABULARY
from utils.errors import UserError

log = logging.getLogger(__name__)


@dataclass
class Items:
    """One split.

    Attributes:
        images: N files.
        texts: N texts to tokenise, '' for a row without one.
        target: (N,) int64, or (N, C) float32 with -1 for 'no label'.
        names: of the rows in the source.
    """

    images: list[Path]
    texts: list[str]
    target: np.ndarray
    names: list[str]


class PublishedImageText(ImageTextModule):
    """Data set with published numbers of rows.

    Args:
        store: folder of the packed store; not the folder of the raw files.
        root: folder with the raw files.
        demo: ``root`` holds demo data with their own vocabulary, whose counts differ from the published ones.
        statistics: ``refuse`` or ``warn`` where the numbers of rows are not the published ones.
        validation: ``test`` = the published split without validation rows (CMPT): all training rows train, and the
            test rows are also the validation split, on which the original works choose their checkpoint; with
            ``dataset.monitor=null`` the last epoch counts instead. None = the validation rows of the data set.
        **kwargs: see :class:`ImageTextModule`.

    Attributes:
        published: split -> number of rows.
    """

    paths = ("root",)
    later = ("validation",)
    published: ClassVar[dict[str, int]]

    def __init__(
        self,
        *,
        store: str,
        root: str | None,
        demo: bool = False,
        statistics: str = "refuse",
        validation: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.root, self.demo, self.statistics = None if root is None else Path(root), demo, statistics
        super().__init__(store, **kwargs)
        self.validation = validation
        if validation not in (None, "test"):
            raise UserError(f"dataset.validation={validation}: must be test, or null for the rows of {self.name}")
        if statistics not in ("refuse", "warn"):
            raise UserError(f"dataset.statistics={statistics}: must be refuse or warn")

    def find_tokenizer(self) -> str:
        return str(self.root / VOCABULARY) if self.demo and self.root else super().find_tokenizer()

    def expected_counts(self) -> dict[str, int]:
        """Published numbers of rows per split, with the chosen validation rows."""
        return self.published | ({"val": self.published["test"]} if self.validation == "test" else {})

    def content_of_items(self, class_names: list[str], splits: Mapping[str, Items], about: dict[str, Any]) -> Content:
        """Content from its splits."""
        parts = [items for items in splits.values() if items.names]
        return Content(
            class_names=class_names,
            target=np.concatenate([items.target for items in parts]),
            names=[name for items in parts for name in items.names],
            splits=rows_of_splits({split: len(items.names) for split, items in splits.items() if items.names}),
            inputs={
                self.image_name: [image for items in parts for image in items.images],
                self.text_name: Texts([text for items in parts for text in items.texts]),
            },
            about=about,
        )

    def check_targets(self, content: Content) -> None:
        """
        Raises:
            UserError: a class, or a label of a multi-label task, without a training row; or the numbers of rows are not
                the published ones.
        """
        if not content.is_sample:
            self.check_counts({split: len(rows) for split, rows in content.splits.items()})
        super().check_targets(content)
        if content.target.ndim == 1 or content.is_sample:
            return
        for split, rows in content.splits.items():
            has_rows = (content.target[rows] == 1).any(0)
            absent = ", ".join(name for name, has in zip(content.class_names, has_rows) if not has)
            if absent and split == "train":
                raise UserError(
                    f"{self.name}: no training row has the label {absent}: it cannot be learned, restore the rows that "
                    "have it"
                )
            if absent:
                log.warning("%s: no row of split '%s' has the label %s", self.name, split, absent)

    def validated_on_test(self, splits: dict[str, Items], has_drawn_validation: bool) -> dict[str, Items]:
        """The splits of ``validation=test``.

        Args:
            has_drawn_validation: whether the validation rows were drawn from the training rows, to which they return.
        """
        log.warning(
            "%s: validation=test uses the test rows as validation rows, as the original works do: a checkpoint that is "
            "chosen on them has no score for unseen rows (dataset.monitor=null keeps the last epoch)",
            self.name,
        )
        train, val, test = (splits[split] for split in SPLITS)
        if has_drawn_validation:
            target = np.concatenate([train.target, val.target])
            train = Items(train.images + val.images, train.texts + val.texts, target, train.names + val.names)
        return {"train": train, "val": test, "test": test}

    def check_counts(self, counts: Mapping[str, int]) -> None:
        """
        Raises:
            UserError: the numbers differ from the published ones and ``statistics`` is ``refuse``.
        """
        differences = [
            f"{split} has {counts.get(split, 0):,} rows, {n:,} were published"
            for split, n in self.expected_counts().items()
            if counts.get(split, 0) != n
        ]
        if not differences or self.demo:
            return
        if self.statistics == "refuse":
            raise UserError(
                f"{self.name}: {'; '.join(differences)}: complete the download, or set dataset.statistics=warn to "
                "continue with these rows"
            )
        log.warning("%s: %s", self.name, "; ".join(differences))
