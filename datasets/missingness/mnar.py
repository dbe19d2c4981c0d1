"""Modalities missing not at random (MNAR): the chance depends on the content that goes missing, or on the class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.missingness.base import Rows, ScenarioWithRate, modality_name
from datasets.missingness.chances import (
    SLOPE,
    draw,
    logistic_chances,
    logistic_log_chances,
    slope_caption,
    to_slope,
    with_slope,
)
from datasets.missingness.mar import split_dependence, to_modality, with_column
from datasets.missingness.random import check_rate
from utils.errors import UserError

CLASS, CONTENT = "class", "content"


@dataclass(frozen=True)
class Mnar(ScenarioWithRate):
    """Modalities are missing with chance σ(a + slope score), where the score is their own or that of the class.

    With ``depends_on=class`` and ``depends_on=content``, all modalities may be missing: each is drawn independently
    given its score, and a row that would lose everything is drawn again. The intercept a is such that the mean chance
    after that, over the (row, modality) pairs that the source has, is the rate. With a number, only that modality is
    missing, in a fraction of the rows that is the rate; rows whose source has nothing else keep it.

    Scores are those of :mod:`datasets.missingness.content`. The class enters by its number, or by the number of
    positive labels if there are several.

    Attributes:
        depends_on: ``class``, ``content`` (of each modality itself), or the number of the modality that is missing.
        column: of that modality, if it is a table; None = its complete content.
        slope: change of the log odds per unit of the score.
    """

    depends_on: str
    column: str | None = None
    slope: float = SLOPE
    kind = "mnar"
    examples = {
        "mnar_0_0.4": "modality 0 in 40 % of the rows, more often where its own values are high; `mnar_1-age_0.4` "
        "hides table 1, depending on its column `age`",
        "mnar_content_0.4": "40 % of the modalities, each more often where its own values are high",
        "mnar_class_0.4": "40 % of the modalities, more often in rows of classes with high numbers; "
        "`mnar_class_slope-4_0.4`: of classes with low numbers, with a stronger dependence",
    }
    keys = ("depends_on", "column", "slope", "rate")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.column is not None and self.modality is None:
            raise UserError(f"a column is of a modality, not of '{self.depends_on}': write for example mnar_1-age_0.4")

    @classmethod
    def parse(cls, text: str) -> Mnar | None:
        parts = split_dependence(text, cls.kind)
        return None if parts is None else cls.from_mapping({"depends_on": parts.pop("on"), **parts})

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Mnar:
        on, column = str(values.get("depends_on")), values.get("column")
        if on not in (CLASS, CONTENT):
            if not on.isdecimal():
                raise UserError(f"'{on}' is neither class, content nor the number of a modality (mnar_class_0.4)")
            on = str(to_modality(on, "mnar_0_0.4"))
        column = None if column is None else str(column)
        return cls(cls.to_rate(values.get("rate")), on, column, to_slope(values.get("slope", SLOPE)))

    @property
    def modality(self) -> int | None:
        """Number of the only modality that is missing, None = all may be."""
        return None if self.depends_on in (CLASS, CONTENT) else int(self.depends_on)

    @property
    def pattern_name(self) -> str:
        on = self.depends_on if self.modality is None else with_column(self.modality, self.column)
        return f"mnar_{with_slope(on, self.slope)}_{self.rate_text}"

    @property
    def named_modalities(self) -> tuple[int, ...]:
        return () if self.modality is None else (self.modality,)

    @property
    def protocol(self) -> str:
        return f"logistic, slope {self.slope:g}"

    def family(self, modalities: Sequence[str] = ()) -> str:
        if self.modality is None:
            dependence = {CLASS: "the class", CONTENT: "own content"}[self.depends_on]
            return f"missing depending on {dependence}{slope_caption(self.slope)}"
        name = modality_name(self.modality, modalities)
        return f"{name} missing depending on its {self.column or 'content'}{slope_caption(self.slope)}"

    def pattern_caption(self, modalities: Sequence[str] = ()) -> str:
        return f"{self.percent} {self.family(modalities)}"

    def realised_rate(
        self, mask: np.ndarray, cells: Mapping[str, np.ndarray] | None = None, kinds: Sequence[str] | None = None
    ) -> float:
        """The fraction of (row, modality) pairs, or of the rows without the modality if one is named."""
        return float((mask if self.modality is None else mask[:, self.modality]).mean())

    def check(self, m: int, names: Sequence[str] | None = None) -> None:
        super().check(m, names)
        if m == 1:
            raise UserError(f"missing scenario '{self.name}': the data set has one modality, which must stay")
        if self.modality is None:
            check_rate(self.rate, m, f"missing scenario '{self.name}'")

    def generate(self, rows: Rows) -> np.ndarray:
        self.check(rows.columns)
        rng = np.random.default_rng(rows.seed)
        mask = np.zeros((rows.n, rows.columns), dtype=bool)
        with rows.content_of(self) as content:
            if self.modality is not None:
                scores = content.scores(self.modality, self.column)
            elif self.depends_on == CLASS:
                scores = np.repeat(content.class_scores[:, None], rows.columns, axis=1)
            else:
                scores = np.stack([content.scores(j) for j in range(rows.columns)], axis=1)
        if self.modality is not None:
            mask[:, self.modality] = rng.random(rows.n) < logistic_chances(scores, self.slope, self.rate)
            return mask
        if self.rate == 0:
            return mask
        return draw(logistic_log_chances(scores, self.slope, self.rate, rows.observable), rng) & rows.observable
