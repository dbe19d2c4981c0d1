"""Quality of recoveries: reconstruction error, and coherence (whether a classifier predicts their true class)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.batch import Batch, Modality, rows_like, unobserved
from datasets.missingness.random import random_mask
from models.base import IncompleteClassifier, Prediction
from models.imputers.base import Imputer, recover_possible


class Judge(IncompleteClassifier):
    """One classifier per modality (encoder, mean token, linear head), trained on true content only.

    Args:
        encoders: modality name -> module whose output is (B, N, D).
    """

    def __init__(self, modalities: list[Modality], num_classes: int, encoders: Mapping[str, nn.Module]) -> None:
        super().__init__(modalities, num_classes, "multiclass", lambda p: torch.optim.Adam(p, lr=1e-3))
        self.encoders = nn.ModuleDict(dict(encoders))
        self.heads = nn.ModuleDict({m.name: nn.LazyLinear(num_classes) for m in modalities})
        with torch.no_grad():
            ids = {m.name: torch.long if m.vocabulary else torch.float for m in modalities}
            self.eval().read({m.name: torch.zeros(1, *m.shape, dtype=ids[m.name]) for m in modalities})
        self.train()

    def read(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """name -> logits (B, C) of each modality alone."""
        return {name: self.heads[name](self.encoders[name](x).mean(1)) for name, x in inputs.items()}

    def forward(self, batch: Batch) -> Prediction:
        logits = self.read(batch.observed())
        return Prediction(torch.stack(list(logits.values())).mean(0), extras=logits)

    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        return {"loss": sum((F.cross_entropy(x, batch.target) for x in prediction.extras.values()), torch.zeros(()))}


def _errors(
    modality: Modality, recovered: Tensor, truth: Tensor, cells: Tensor | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Name and values of each error measure: one value per row, or per cell if ``cells`` (R, ...) are given."""
    if modality.vocabulary:  # ids have no distances
        yield "token_accuracy", (recovered == truth).float().mean(1)
        return
    if modality.kind == "text":  # the most probable symbol of every position that has one
        is_same = recovered.argmax(2) == truth.argmax(2)
        yield "symbol_accuracy", is_same[truth.sum(2) > 0].float()
    if cells is None and not modality.cardinalities:
        error = (recovered - truth).flatten(1)
        yield "mse", error.square().mean(1)
        yield "mae", error.abs().mean(1)
        return
    n = len(modality.cardinalities)
    cells = torch.ones_like(truth, dtype=torch.bool) if cells is None else cells
    error = (recovered - truth)[:, n:][cells[:, n:]]
    yield "mse", error.square()
    yield "mae", error.abs()
    if n:
        yield "level_accuracy", (recovered == truth)[:, :n][cells[:, :n]].float()


def _errors_of_columns(modality: Modality, recovered: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Name -> (..., F) of each error measure of the columns of a table, or the channels of a series; NaN in columns to
    which it does not apply."""
    if modality.vocabulary or modality.kind not in ("table", "series"):
        return {}
    is_level = torch.arange(truth.shape[-1], device=truth.device) < len(modality.cardinalities)
    error = recovered - truth
    measures = {"accuracy": error == 0, "mse": error.square(), "mae": error.abs()}
    return {k: torch.where(is_level == (k == "accuracy"), v.float(), torch.nan) for k, v in measures.items()}


class Quality(NamedTuple):
    """Measured recoveries.

    Attributes:
        modalities: columns modality, observed, metric, value, n.
        columns: of the columns of tables with names and of the channels of series; columns modality, column, observed,
            metric, value, n. Metrics: ``accuracy`` of categorical columns, ``mse`` and ``mae`` of continuous ones
            (z-scores) and of channels; those that end in ``_cells`` as in ``modalities``.
    """

    modalities: pd.DataFrame
    columns: pd.DataFrame


class _Sums:
    """Sums and counts of measurements: (modality, number of observed modalities, metric) -> [sum, count], and of each
    column -> (F, 2)."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, int, str], list[float]] = {}
        self.columns: dict[tuple[str, int, str], Tensor] = {}

    def add(self, name: str, observed: int, metric: str, values: Tensor) -> None:
        cell = self.values.setdefault((name, observed, metric), [0.0, 0])
        cell[0] += float(values.double().sum())
        cell[1] += len(values)

    def measure(
        self, m: Modality, observed: int, recovered: Tensor, truth: Tensor, cells: Tensor | None, suffix: str = ""
    ) -> None:
        """Add the errors of recoveries (R, ...) of a modality in all cells, or in ``cells`` (R, ...) only."""
        for metric, values in _errors(m, recovered, truth, cells):
            self.add(m.name, observed, f"{metric}{suffix}", values)
        for metric, values in _errors_of_columns(m, recovered, truth).items():
            values = (values if cells is None else torch.where(cells, values, torch.nan)).flatten(0, -2).double()
            cell = torch.stack([values.nansum(0), (~values.isnan()).sum(0)], 1).cpu()
            key = (m.name, observed, f"{metric}{suffix}")
            self.columns[key] = self.columns.get(key, torch.zeros_like(cell)) + cell

    def frames(self, modalities: Iterable[Modality]) -> Quality:
        names = {m.name: m.columns if m.kind == "table" else range(m.shape[-1]) for m in modalities}
        rows = [
            (name, str(column), observed, metric, total / n, int(n))
            for (name, observed, metric), cells in self.columns.items()
            for column, (total, n) in zip(names[name], cells.tolist())
            if n
        ]
        columns = pd.DataFrame(rows, columns=["modality", "column", "observed", "metric", "value", "n"])
        return Quality(self.frame(), columns.sort_values(["metric", "modality", "observed"], ignore_index=True))

    def frame(self) -> pd.DataFrame:
        rows = [(*key, total / n, n) for key, (total, n) in self.values.items() if n]
        frame = pd.DataFrame(rows, columns=["modality", "observed", "metric", "value", "n"])
        return frame.sort_values(["metric", "modality", "observed"], ignore_index=True)


@torch.inference_mode()
def recovery_quality(imputer: Imputer, judge: Judge, batches: Iterable[Batch], seed: int = 2025) -> Quality:
    """Quality of recoveries of each modality, by the number of observed modalities.

    Each row of each batch gets, for every number of missing modalities from 1 to M-1, one random pattern among those
    that the method can recover, and for each table and series one in which half of the cells are missing. Modalities
    and cells that the data lack (``missing`` and ``feature_missing`` of the batch) stay missing and are in no error;
    neither are modalities that the method cannot recover in a row because of them.

    Metrics: ``mse`` and ``mae`` of the content, for tables of the continuous columns (z-scores), and ``level_accuracy``
    of the categorical ones; ``token_accuracy`` and ``symbol_accuracy``, share of the right ids or symbols of a text;
    ``coherence``, share of recoveries that the judge classifies right; ``judge_accuracy`` (observed = M), the same on
    true content. Those that end in ``_cells`` are of tables and series with half of the cells missing, over the missing
    cells.
    """
    m = len(judge.modalities)
    names = judge.modality_names
    columns = [names.index(name) for name in imputer.recoverable(judge.modalities)]
    tables = [
        x
        for x in (judge.modalities[i] for i in columns)
        if x.kind == "series" or (x.kind == "table" and len(x.shape) == 1)
    ]
    sums = _Sums()
    judge.eval()
    for batch in batches:
        lacks = unobserved(batch, names)
        for i, (name, logits) in enumerate(judge.read(batch.observed()).items()):
            sums.add(name, m, "judge_accuracy", (logits.argmax(1) == batch.target)[~lacks[:, i]].float())
        lacking = {
            name: gaps & rows_like(batch.missing[:, names.index(name)], gaps)
            for name, gaps in batch.feature_missing.items()
        }
        for k in range(1, min(m, len(columns) + 1)):
            _add_patterns(sums, imputer, judge, batch, lacks, lacking, columns, k, seed)
        for table in tables if m > 1 else []:
            _add_cells(sums, imputer, judge, batch, lacks, lacking, table, seed)
    return sums.frames(judge.modalities)


def _add_patterns(
    sums: _Sums,
    imputer: Imputer,
    judge: Judge,
    batch: Batch,
    lacks: Tensor,
    lacking: Mapping[str, Tensor],
    columns: list[int],
    k: int,
    seed: int,
) -> None:
    """Measure recoveries of ``k`` missing modalities, drawn per row among the recoverable ``columns``.

    Args:
        lacks: (B, M) bool, modalities that the data lack; lacking: table or series -> (B, ...) bool, cells.
    """
    m = lacks.shape[1]
    drawn = random_mask(len(batch), m, k / m, "exact", seed + k + int(batch.index[0]))
    if len(columns) < m:
        # The first k of the recoverable ones, in random order.
        ranks = np.random.default_rng(seed + k + int(batch.index[0])).random((len(batch), len(columns)))
        drawn = np.zeros_like(drawn)
        drawn[:, columns] = ranks.argsort(1).argsort(1) < k
    missing = torch.from_numpy(drawn).to(batch.missing.device)
    hidden = missing | lacks
    hidden = torch.where(hidden.all(1, keepdim=True), lacks, hidden)  # a row keeps its only modality
    completed, unrecoverable = recover_possible(
        imputer, judge.modalities, batch.replace(missing=hidden, feature_missing={}, complete=False)
    )
    recovered = hidden & ~lacks if unrecoverable is None else hidden & ~lacks & ~unrecoverable
    for i, (name, logits) in enumerate(judge.read(completed).items()):
        rows = recovered[:, i]
        known = ~lacking[name][rows] if name in lacking else None
        sums.measure(judge.modalities[i], m - k, completed[name][rows], batch.inputs[name][rows], known)
        sums.add(name, m - k, "coherence", (logits.argmax(1) == batch.target)[rows].float())


def _add_cells(
    sums: _Sums,
    imputer: Imputer,
    judge: Judge,
    batch: Batch,
    lacks: Tensor,
    lacking: Mapping[str, Tensor],
    table: Modality,
    seed: int,
) -> None:
    """Measure recoveries of a table or series of which half of the cells are missing; arguments as in
    :func:`_add_patterns`."""
    half = np.random.default_rng(seed + int(batch.index[0])).random((len(batch), *table.shape)) < 0.5
    cells = torch.from_numpy(half).to(batch.missing.device)
    gaps = lacking.get(table.name, torch.zeros_like(cells))
    column = judge.modality_names.index(table.name)
    missing = torch.zeros_like(batch.missing)
    missing[:, column] = True
    masked = batch.replace(missing=missing | lacks, feature_missing={table.name: cells | gaps}, complete=False)
    completed, unrecoverable = recover_possible(imputer, judge.modalities, masked)
    known = cells & ~gaps & ~rows_like(lacks[:, column], cells)
    if unrecoverable is not None:
        known = known & ~rows_like(unrecoverable[:, column], cells)
    observed = lacks.shape[1] - 1
    sums.measure(table, observed, completed[table.name], batch.inputs[table.name], known, "_cells")
