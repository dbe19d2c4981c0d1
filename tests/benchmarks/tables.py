"""``python -m tests.benchmarks.tables FILE``: table masks and IMI on the whole DVM-CAR table, time and memory.

FILE is the one-hot encoded table of the adverts (CSV, or parquet where pyarrow is installed): numbers, and Boolean
columns ``<column>_<level>`` with the first level left out. They become codes again, as the DVM data set has them.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from datasets.batch import Batch, Modality
from datasets.missingness.table import forest_ranking, table_mask
from models.imputers.iterative import IMI

CATEGORICAL = ("Color", "Bodytype", "Gearbox", "Fuel_type")


def read(path: Path) -> tuple[np.ndarray, tuple[int, ...], np.ndarray]:
    """Table (N, F) float32 with codes first and numbers standardised, levels of the codes, class of each row."""
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    columns, cardinalities = [], []
    for name in CATEGORICAL:
        levels = frame.filter(regex=f"^{name}_").to_numpy(bool)
        columns.append(np.where(levels.any(1), levels.argmax(1) + 1, 0))
        cardinalities.append(levels.shape[1] + 1)
    label = frame.columns[0]
    numbers = frame.drop(columns=[label, *(c for c in frame if str(c).startswith(CATEGORICAL))]).astype(float)
    columns += list(((numbers - numbers.mean()) / numbers.std(ddof=0)).to_numpy().T)
    return np.stack(columns, 1).astype(np.float32), tuple(cardinalities), pd.factorize(frame[label])[0]


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Print a line for each step."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks.tables", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--trees", type=int, default=100)
    options = parser.parse_args(arguments)
    x, cardinalities, target = read(options.file)
    n, features = x.shape
    train, test = np.arange(n) % 10 != 0, np.arange(n) % 10 == 0
    rows = []
    clock = time.perf_counter()

    def note(what: str, detail: str = "") -> None:
        nonlocal clock
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows.append((what, round(time.perf_counter() - clock, 2), round(peak), detail))
        clock = time.perf_counter()

    note("start", f"{n} rows, {features} columns, levels {cardinalities}")
    ranking = forest_ranking(x[train], target[train])
    note("importance of the columns (random forest)")
    for strategy in ("value", "feature", "MI", "LI"):
        hidden = table_mask(n, features, strategy, 0.5, 2025, ranking)
        note(f"mask {strategy} at 0.5", f"{hidden.mean():.4f} hidden")
    table = Modality("table", "table", (features,), cardinalities)

    def batch(part: np.ndarray) -> Batch:
        inputs, m = torch.from_numpy(x[part]), int(part.sum())
        nothing = torch.zeros(m, 1, dtype=torch.bool)
        return Batch({"table": inputs}, nothing, torch.zeros(m, dtype=torch.long), torch.arange(m), {}, None, True)

    imputer = IMI([table], trees=options.trees)
    imputer.fit([batch(train)])
    note(f"IMI fitted, {options.trees} trees", f"{int(train.sum())} rows")
    held = batch(test)
    for rate in (0.1, 0.5, 0.9):
        hidden = torch.from_numpy(table_mask(int(test.sum()), features, "value", rate, 2025))
        filled = imputer.impute(held.inputs, ~held.missing, feature_missing={"table": hidden})["table"]
        codes = slice(0, len(cardinalities))
        right = (filled[:, codes] == held.inputs["table"][:, codes])[hidden[:, codes]].float().mean()
        error = (filled - held.inputs["table"])[:, len(cardinalities) :][hidden[:, len(cardinalities) :]]
        note(f"IMI at {rate}", f"{len(hidden)} rows, codes right {right:.3f}, RMSE {error.square().mean().sqrt():.3f}")
    frame = pd.DataFrame(rows, columns=["what", "seconds", "peak_mib", "detail"])
    print(frame.to_markdown(index=False))
    return frame


if __name__ == "__main__":
    main()
