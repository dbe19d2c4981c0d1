"""Imbalanced missingness: a rate per modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.missingness.base import Rows, Scenario, modality_name, number_text, to_number
from datasets.missingness.chances import draw, independent_log_chances
from utils.errors import UserError


@dataclass(frozen=True)
class Rates(Scenario):
    """Each modality is missing at its own rate, the fraction of the rows without it.

    Modalities of a row are drawn independently, and a row that would lose everything is drawn again; the chances are
    such that the rates hold after that, which is possible if more than one modality is observed per row on average.
    Rows whose source lacks a modality keep another one.

    Attributes:
        rates: one per modality.
    """

    rates: tuple[float, ...]
    kind = "rates"
    examples = {"rates_0.1_0.5_0.9": "modality 0 in 10 % of the rows, modality 1 in 50 %, modality 2 in 90 %"}
    keys = ("rates",)

    @classmethod
    def parse(cls, text: str) -> Rates | None:
        return cls.from_mapping({"rates": text.split("_")[1:]}) if text.startswith("rates_") else None

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Rates:
        rates = values.get("rates")
        if not isinstance(rates, Sequence) or isinstance(rates, str) or not rates:
            raise UserError("rates is a list with one rate per modality, for example [0.1, 0.5, 0.9]")
        return cls(tuple(to_number(rate, "rate", next(iter(cls.examples))) for rate in rates))

    def __post_init__(self) -> None:
        for rate in self.rates:
            if not 0 <= rate <= 1:
                raise UserError(f"the rate {rate:g} is outside [0, 1]")

    @property
    def pattern_name(self) -> str:
        return "_".join(["rates", *map(number_text, self.rates)])

    @property
    def protocol(self) -> str:
        return "independent"

    def pattern_caption(self, modalities: Sequence[str] = ()) -> str:
        parts = [f"{modality_name(j, modalities)} {100 * rate:g} %" for j, rate in enumerate(self.rates)]
        return f"{', '.join(parts)} missing"

    def expected_rate(self, m: int) -> float:
        return float(np.mean(self.rates))

    def check(self, m: int, names: Sequence[str] | None = None) -> None:
        super().check(m, names)
        if len(self.rates) != m:
            raise UserError(f"missing scenario '{self.name}' has {len(self.rates)} rates, the data set {m} modalities")
        if sum(self.rates) > m - 1 + 1e-9:
            raise UserError(
                f"missing scenario '{self.name}' would leave no modality of {m} in some rows: the rates may add up to "
                f"{m - 1} at most, not {sum(self.rates):g}"
            )

    def generate(self, rows: Rows) -> np.ndarray:
        self.check(rows.columns)
        log_p = np.where(rows.observable, independent_log_chances(np.array(self.rates)), 0.0)
        return draw(log_p, np.random.default_rng(rows.seed)) & rows.observable
