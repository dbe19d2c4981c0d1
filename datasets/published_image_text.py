"""Base of the image + text data sets that are downloaded, with published numbers of rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datasets.base import SPLITS
from datasets.image_text_module import ImageTextModule, Items
from datasets.readers.tokens import VOCABULARY
from utils.errors import UserError

log = logging.getLogger(__name__)


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
        super().__init__(store, **kwargs)
        self.validation = validation
        if validation not in (None, "test"):
            raise UserError(f"dataset.validation={validation}: must be test, or null for the rows of {self.name}")
        self.root, self.demo, self.statistics = None if root is None else Path(root), demo, statistics
        if statistics not in ("refuse", "warn"):
            raise UserError(f"dataset.statistics={statistics}: must be refuse or warn")

    def find_tokenizer(self) -> str:
        return str(self.root / VOCABULARY) if self.demo and self.root else super().find_tokenizer()

    def expected_counts(self) -> dict[str, int]:
        """Published numbers of rows per split, with the chosen validation rows."""
        return self.published | ({"val": self.published["test"]} if self.validation == "test" else {})

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
