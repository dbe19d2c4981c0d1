"""Modalities missing at random (MAR): the chance depends on a modality, or column of a table, that stays observed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.missingness.base import Rows, ScenarioWithRate, modality_name
from datasets.missingness.chances import SLOPE, logistic_chances, slope_caption, split_slope, to_slope, with_slope
from utils.errors import UserError


@dataclass(frozen=True)
class Mar(ScenarioWithRate):
    """Every modality but one, the driver, is missing with chance σ(a + slope score of the driver).

    Modalities of a row are drawn independently, given the score (:mod:`datasets.missingness.content`); the intercept a
    is such that the mean chance over the rows of the split is the rate. The rate is the fraction of (row, modality)
    pairs without the driver, which is always observed; rows whose source lacks the driver have the score 0, and keep
    the only modality that they have. Masks of higher rates contain those of lower rates.

    Attributes:
        driver: number of the modality that the chance depends on.
        column: of the driver, if it is a table; None = the complete modality.
        slope: change of the log odds per unit of the score.
    """

    driver: int
    column: str | None = None
    slope: float = SLOPE
    kind = "mar"
    examples = {
        "mar_0_0.4": "40 % of all modalities except 0, more often in rows where modality 0 has "
        "[high values](#mechanisms)",
        "mar_1-age_0.4": "40 % of all modalities except 1, more often in rows where column `age` of table 1 is high; "
        "`mar_1-age_slope-4_0.4`: where it is low, with a stronger dependence",
    }
    keys = ("modality", "column", "slope", "rate")

    @classmethod
    def parse(cls, text: str) -> Mar | None:
        parts = split_dependence(text, cls.kind)
        return None if parts is None else cls.from_mapping({"modality": parts.pop("on"), **parts})

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Mar:
        column = values.get("column")
        return cls(
            cls.to_rate(values.get("rate")),
            to_modality(values.get("modality"), "mar_0_0.4"),
            None if column is None else str(column),
            to_slope(values.get("slope", SLOPE)),
        )

    @property
    def pattern_name(self) -> str:
        return f"mar_{with_slope(with_column(self.driver, self.column), self.slope)}_{self.rate_text}"

    @property
    def named_modalities(self) -> tuple[int, ...]:
        return (self.driver,)

    @property
    def protocol(self) -> str:
        return f"logistic, slope {self.slope:g}"

    def family(self, modalities: Sequence[str] = ()) -> str:
        driver = self.column or modality_name(self.driver, modalities)
        return f"missing depending on {driver}{slope_caption(self.slope)}"

    def pattern_caption(self, modalities: Sequence[str] = ()) -> str:
        return f"{self.percent} {self.family(modalities)}"

    def realised_rate(
        self, mask: np.ndarray, cells: Mapping[str, np.ndarray] | None = None, kinds: Sequence[str] | None = None
    ) -> float:
        """The fraction of (row, modality) pairs, without the driver."""
        return float(np.delete(mask, self.driver, axis=1).mean())

    def check(self, m: int, names: Sequence[str] | None = None) -> None:
        super().check(m, names)
        if m == 1:
            raise UserError(f"missing scenario '{self.name}': the data set has one modality, which must stay")

    def generate(self, rows: Rows) -> np.ndarray:
        self.check(rows.columns)
        with rows.content_of(self) as content:
            scores = content.scores(self.driver, self.column)
        chances = logistic_chances(scores, self.slope, self.rate)
        mask = np.random.default_rng(rows.seed).random((rows.n, rows.columns)) < chances[:, None]
        mask[:, self.driver] = False
        return mask


def split_dependence(text: str, kind: str) -> dict[str, Any] | None:
    """Parts of a name, None if it is not of this kind: ``mar_1-age_slope3_0.4`` -> on ``1``, column ``age`` (or None),
    slope 3, rate ``0.4``.

    Raises:
        UserError: an impossible slope.
    """
    if not text.startswith(f"{kind}_"):
        return None
    on, _, rate = text.removeprefix(f"{kind}_").rpartition("_")
    on, slope = split_slope(on)
    on, dash, column = on.partition("-")
    return {"on": on, "column": column if dash else None, "slope": slope, "rate": rate}


def with_column(modality: int, column: str | None) -> str:
    """``1``, ``age`` -> ``1-age``, as :func:`split_dependence` reads it."""
    return str(modality) if column is None else f"{modality}-{column}"


def to_modality(value: object, example: str) -> int:
    """
    Raises:
        UserError: the value is no column number.
    """
    if not re.fullmatch(r"[0-9]+", str(value)):
        raise UserError(f"'{value}' is no number of a modality, write for example {example}")
    return int(str(value))
