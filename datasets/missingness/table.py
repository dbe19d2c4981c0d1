"""Missing cells of a table, as in TIP and DyMo (docs/reference/datasets.md §12.3)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.missingness.base import DEFAULT_SEED, Rows, ScenarioWithRate
from datasets.storage import PackedSplit
from utils.errors import UserError
from utils.files import replacing

log = logging.getLogger(__name__)

# Strategy -> its name in the mask files of TIP.
STRATEGIES = {
    "value": "value",
    "feature": "feature",
    "MI": "MI",
    "LI": "LI",
    "most_important": "MI",
    "least_important": "LI",
}
# Strategy -> what is missing, in figure titles, and after a percentage.
CAPTIONS = {
    "value": ("cells of the table", "of table cells"),
    "feature": ("columns of the table", "of table columns"),
    "MI": ("most important columns", "most important columns"),
    "LI": ("least important columns", "least important columns"),
}
VALUE_SEED = 2021  # of train; val and test add 1 and 2
FEATURE_SEED = 2022  # of all splits
FOREST_SEED = 2022


@dataclass(frozen=True)
class Table(ScenarioWithRate):
    """Cells of the table are missing.

    Attributes:
        strategy: value | feature | MI | LI, see :func:`table_mask`.
    """

    strategy: str = "value"
    kind = "table"
    examples = {
        "table_value_0.7": "70 % of the cells of the table, drawn at random",
        "table_feature_0.7": "70 % of the columns of the table, drawn at random, the same in all rows",
        "table_MI_0.7": "the 70 % most important columns, as ranked by a random forest on the training data "
        "(`table_most_important_0.7` means the same)",
        "table_LI_0.7": "the 70 % least important columns (`table_least_important_0.7` means the same)",
    }
    keys = ("strategy", "rate")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strategy not in STRATEGIES:
            raise UserError(f"unknown strategy '{self.strategy}', known are {', '.join(STRATEGIES)} (table_value_0.7)")
        object.__setattr__(self, "strategy", STRATEGIES[self.strategy])

    @classmethod
    def parse(cls, text: str) -> Table | None:
        if not text.startswith("table_"):
            return None
        strategy, _, rate = text.removeprefix("table_").rpartition("_")
        return cls(cls.to_rate(rate), strategy)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Table:
        return cls(cls.to_rate(values.get("rate")), str(values.get("strategy", "value")))

    @property
    def pattern_name(self) -> str:
        return f"table_{self.strategy}_{self.rate_text}"

    @property
    def hides_cells(self) -> bool:
        return True

    @property
    def needs_ranking(self) -> bool:
        return self.strategy in ("MI", "LI")

    @property
    def protocol(self) -> str:
        return f"TIP {self.strategy}"

    def family(self, modalities: Sequence[str] = ()) -> str:
        return f"{CAPTIONS[self.strategy][0]} missing"

    def pattern_caption(self, modalities: Sequence[str] = ()) -> str:
        return f"{self.percent} {CAPTIONS[self.strategy][1]}"

    def file_name(self, stem: str, target: str) -> str:
        """File name of the mask in the original layout: ``{csv stem}_{dvm|CAD|Infarction}_{strategy}_{rate}.npy``."""
        return f"{stem}_{target}_{self.strategy}_{self.rate:g}.npy"

    def seed(self, base: int, split: int) -> int:
        seed = VALUE_SEED + split if self.strategy == "value" else FEATURE_SEED
        return (seed + base - DEFAULT_SEED) % 2**32

    def generate(self, rows: Rows) -> np.ndarray:
        return table_mask(rows.n, rows.columns, self.strategy, self.rate, rows.seed, rows.ranking)


def table_mask(
    n: int, features: int, strategy: str, rate: float, seed: int, ranking: Sequence[int] | None = None
) -> np.ndarray:
    """(n, features) bool mask of table cells, True = missing, as in TIP's notebook.

    ``value``: int(n features rate) cells, drawn without replacement by NumPy's legacy generator. ``feature``:
    int(features rate) columns, drawn alike. ``MI``, ``LI``: the first that many columns of ``ranking``, or of its
    reverse.
    """
    mask = np.zeros((n, features), dtype=bool)
    legacy = np.random.RandomState(seed)  # legacy: the published masks come from it
    if strategy == "value":
        mask.reshape(-1)[legacy.choice(n * features, int(n * features * rate), replace=False)] = True
        return mask
    k = int(features * rate)
    if strategy == "feature":
        columns = legacy.choice(features, k, replace=False)
    else:
        assert ranking is not None, f"strategy {strategy} needs a ranking of the columns"
        columns = np.array(ranking if strategy == "MI" else list(ranking)[::-1], dtype=np.int64)[:k]
    mask[:, columns] = True
    return mask


def forest_ranking(values: np.ndarray, target: np.ndarray) -> list[int]:
    """Columns of a table by impurity importance in a random forest, most important first; ties in column order.

    Args:
        values: (N, F), codes of categories and standardised numbers.
        target: (N,) classes or (N, C) labels; unlabelled cells (< 0) count as negative.
    """
    from sklearn.ensemble import RandomForestClassifier

    target = target if target.ndim == 1 else (target > 0).astype(np.int64)
    forest = RandomForestClassifier(1, random_state=FOREST_SEED, warm_start=True)
    trees = RandomForestClassifier().n_estimators
    total = np.zeros(values.shape[1])
    for tree in range(trees):
        # A tree of many classes is large (DVM: 0.2 GB), so only its importances stay in memory. With warm_start, each
        # tree gets the seed that it has in the complete forest.
        forest.set_params(n_estimators=tree + 1)
        forest.fit(values, target)
        total += forest.estimators_[-1].feature_importances_
        forest.estimators_[-1] = None
    return [int(i) for i in np.argsort(-total, kind="stable")]


def stored_ranking(train: PackedSplit, table: str) -> list[int]:
    """:func:`forest_ranking` on the training rows, computed once and kept in the store."""
    file = train.folder / f"{table}_ranking.json"
    if not file.exists():
        log.info("ranking the columns of '%s' with a forest on %d training rows", table, len(train))
        ranking = forest_ranking(train.read(table).numpy(), train.read("target").numpy())
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(ranking) + "\n")
    return [int(column) for column in json.loads(file.read_text())]
