"""IMI: iterative imputation of tables (scikit-learn's IterativeImputer), as a recovery method
(docs/reference/dymo.md §5.4).

Every column is predicted from the others of its block: categorical ones by a random forest from the categorical ones,
continuous ones by Bayesian ridge regression from the continuous ones. Missing cells start as the most frequent level or
the mean, then all columns are predicted in turn, over and over. The image is not used.

What we do differently: the models are fitted on the complete training table alone; the original fits them anew on
training and test tables together, for every mask. What was fitted is kept as arrays, not as objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.experimental import enable_iterative_imputer  # noqa: F401 (makes the next import possible)
from sklearn.impute import IterativeImputer
from torch import Tensor

from datasets.batch import Batch, Modality, missing_content
from models.imputers.base import FittedImputer
from utils.errors import UserError

FOREST = ("left", "right", "feature", "threshold", "level", "root")


class Forest:
    """A random forest as arrays; predicts the level with the highest mean probability (the lowest one of equals).

    Args:
        arrays: of all trees one after the other: ``left`` and ``right`` child of a node, in the l-th leaf -1 - l;
            ``feature`` that is compared with ``threshold``; ``level`` (leaves, K) probabilities; ``root`` of each tree.
        classes: (K,) codes that occur.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], classes: np.ndarray) -> None:
        self.arrays, self.classes = dict(arrays), classes

    @classmethod
    def of(cls, fitted: RandomForestClassifier) -> Forest:
        trees = [e.tree_ for e in fitted.estimators_]
        roots = np.cumsum([0, *(t.node_count for t in trees)])[:-1]
        leaf = np.concatenate([t.children_left < 0 for t in trees])
        end = -np.cumsum(leaf)
        children = {
            "left": np.concatenate([t.children_left + r for t, r in zip(trees, roots)]),
            "right": np.concatenate([t.children_right + r for t, r in zip(trees, roots)]),
        }
        level = np.concatenate([t.value[:, 0] for t in trees])[leaf]
        arrays = {key: np.where(leaf, end, child).astype(np.int32) for key, child in children.items()} | {
            "feature": np.concatenate([t.feature for t in trees]).clip(min=0).astype(np.int16),
            "threshold": np.concatenate([t.threshold for t in trees]),
            "level": level / level.sum(1, keepdims=True),
            "root": roots.astype(np.int32),
        }
        return cls(arrays, fitted.classes_)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """(R, features) -> (R,)."""
        # Rows of levels repeat: walk the trees once per distinct row, in float32 as scikit-learn compares.
        x, inverse = np.unique(x.astype(np.float32), axis=0, return_inverse=True)
        a = self.arrays
        node = np.repeat(a["root"][:, None], len(x), axis=1)
        row = np.arange(len(x))
        while (inner := node >= 0).any():
            low = x[row, a["feature"][node]] <= a["threshold"][node]
            node = np.where(inner, np.where(low, a["left"][node], a["right"][node]), node)
        return self.classes[a["level"][-1 - node].mean(0).argmax(1)][inverse.reshape(-1)]


class Line:
    """A linear regression: coefficients (features,) and intercept."""

    def __init__(self, coefficients: np.ndarray, intercept: float) -> None:
        self.coefficients, self.intercept = coefficients, intercept

    def predict(self, x: np.ndarray) -> np.ndarray:
        """(R, features) -> (R,)."""
        return x @ self.coefficients + self.intercept


class IMI(FittedImputer):
    """
    Args:
        modalities: of the data set; tables are filled in, all others must be observed.
        max_iter: rounds over the columns.
        trees: of each forest.
        seed: of the forests.
        max_rows: training rows to fit on, a random choice of them; None = all.
    """

    recovers = ("table",)

    @classmethod
    def fits(cls, kinds: Sequence[str]) -> bool:
        return "table" in kinds

    def __init__(
        self,
        modalities: Sequence[Modality],
        max_iter: int = 10,
        trees: int = 100,
        seed: int = 42,
        max_rows: int | None = None,
    ) -> None:
        self.tables = [m for m in modalities if m.kind == "table"]
        if not self.tables:
            raise UserError(
                "IMI fills tables and the data set has none: choose another imputer that fits, for example "
                "imputer=Mean or imputer=Zero"
            )
        self.max_iter, self.trees, self.seed, self.max_rows = max_iter, trees, seed, max_rows
        self.start: dict[str, np.ndarray] = {}
        self.models: dict[str, list[Forest | Line]] = {}

    def fit(self, batches: Iterable[Batch]) -> None:
        """One pass over complete training batches."""
        columns: dict[str, list[Tensor]] = {m.name: [] for m in self.tables}
        for batch in batches:
            for name, parts in columns.items():
                parts.append(batch.inputs[name].cpu())
        for table in self.tables:
            x = torch.cat(columns[table.name]).double().numpy()
            bad = np.argwhere(~np.isfinite(x))
            if len(bad):
                raise UserError(
                    f"row {bad[0][0]}, column {bad[0][1]} of '{table.name}' is not finite in the training split "
                    f"({len(bad)} such cells): IMI learns from complete tables"
                )
            if self.max_rows and len(x) > self.max_rows:
                x = x[np.random.default_rng(self.seed).permutation(len(x))[: self.max_rows]]
            n = len(table.cardinalities)
            start, models = [], []
            for block, forest in ((x[:, :n], True), (x[:, n:], False)):
                fitted = self._fit(block, forest)
                start.append(fitted[0])
                models += fitted[1]
            self.start[table.name], self.models[table.name] = np.concatenate(start), models

    def _fit(self, block: np.ndarray, forest: bool) -> tuple[np.ndarray, list[Forest | Line]]:
        """Start values and a model of each column of one block."""
        if block.shape[1] < 2:  # nothing to predict from
            values = [_most_frequent(c) if forest else c.mean() for c in block.T]
            return np.array(values), [Line(np.zeros(0), v) for v in values]
        imputer = IterativeImputer(
            estimator=RandomForestClassifier(self.trees, random_state=self.seed) if forest else None,
            # On complete data every round fits the same models.
            max_iter=1,
            random_state=self.seed,
            initial_strategy="most_frequent" if forest else "mean",
            skip_complete=False,
        ).fit(block)
        order = sorted(imputer.imputation_sequence_, key=lambda step: step.feat_idx)
        models: list[Forest | Line] = [
            Forest.of(step.estimator) if forest else Line(step.estimator.coef_, step.estimator.intercept_)
            for step in order
        ]
        return imputer.initial_imputer_.statistics_, models

    def state_dict(self) -> dict[str, Tensor]:
        state = {}
        for name, start in self.start.items():
            state[f"{name}.start"] = torch.from_numpy(start)
            for j, model in enumerate(self.models[name]):
                if isinstance(model, Forest):
                    parts = {**model.arrays, "classes": model.classes}
                else:
                    parts = {"coefficients": model.coefficients, "intercept": np.array(model.intercept)}
                state |= {f"{name}.{j}.{key}": torch.from_numpy(np.asarray(value)) for key, value in parts.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        wanted = {m.name: m.shape[0] for m in self.tables}
        stored = {n: len(state[f"{n}.start"]) if f"{n}.start" in state else 0 for n in wanted}
        if stored != wanted:
            raise ValueError(f"does not hold an iterative imputer of {wanted} columns but of {stored}")
        self.start, self.models = {}, {}
        for name, n in wanted.items():
            self.start[name] = state[f"{name}.start"].numpy()
            self.models[name] = [self._restore(state, f"{name}.{j}.") for j in range(n)]

    @staticmethod
    def _restore(state: Mapping[str, Tensor], prefix: str) -> Forest | Line:
        part = {k.removeprefix(prefix): v.numpy() for k, v in state.items() if k.startswith(prefix)}
        if "coefficients" in part:
            return Line(part["coefficients"], float(part["intercept"]))
        if set(part) != {*FOREST, "classes"}:
            raise ValueError(f"holds no complete model in {prefix.rstrip('.')}")
        return Forest({key: part[key] for key in FOREST}, part["classes"])

    def why_not_exported(self) -> str | None:
        return "imputer IMI walks its random forests in NumPy, and iterates"

    def impute(
        self,
        inputs: Mapping[str, Tensor],
        missing: Tensor,
        index: Tensor | None = None,
        feature_missing: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        completed = dict(inputs)
        tables = {m.name: len(m.cardinalities) for m in self.tables}
        for i, (name, x) in enumerate(inputs.items()):
            if name not in tables:
                if missing[:, i].any():
                    raise UserError(
                        f"IMI cannot recover '{name}', which is missing in {int(missing[:, i].sum())} rows: "
                        "name scenarios in missing.test that leave it there, or choose an imputer that recovers every "
                        "modality, for example imputer=Mean or imputer=Zero"
                    )
                continue
            is_missing = missing_content(x, name, missing[:, i], feature_missing).expand_as(x)
            if is_missing.any():
                content = torch.where(is_missing, 0, x).double().cpu().numpy()
                filled = self._fill(name, content, is_missing.cpu().numpy(), tables[name])
                completed[name] = torch.where(is_missing, torch.from_numpy(filled).to(x), x)
        return completed

    def _fill(self, name: str, x: np.ndarray, is_missing: np.ndarray, n_cat: int) -> np.ndarray:
        """Rows (R, n) with the cells of ``is_missing`` filled."""
        x = np.where(is_missing, self.start[name], x)
        for first, last in ((0, n_cat), (n_cat, x.shape[1])):
            block, empty, models = x[:, first:last], is_missing[:, first:last], self.models[name][first:last]
            others = [np.delete(np.arange(last - first), j) for j in range(last - first)]
            moving = empty.any(1)  # rows that the last round changed
            for _ in range(self.max_iter):
                before = block.copy()
                for j, model in enumerate(models):
                    rows = np.flatnonzero(empty[:, j] & moving)
                    if len(rows):
                        block[rows, j] = model.predict(block[rows][:, others[j]])
                moving = (block != before).any(1)
                if not moving.any():
                    break
        return x


def _most_frequent(column: np.ndarray) -> float:
    values, counts = np.unique(column, return_counts=True)
    return float(values[counts.argmax()])
