"""Train-by-test matrices: methods trained under several scenarios and tested under several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from datasets.missingness.base import slug
from trainers.report.html_tables import score_table
from trainers.report.runs import KEY, REPEAT
from trainers.report.style import RC, grid, save
from trainers.report.tables import captions_of, label, markdown_block, rows_of_metric, summarise

LARGEST = 16  # scenarios on a side of a heat map whose cells have numbers


def train_test_matrices(frame: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """(data set, method) -> summary of :func:`summarise` in which ``model`` is the scenario of the training data.

    Only of methods that were trained under two scenarios or more, each once per seed and fold, and tested under two or
    more; the comparators of a selection are left out.

    Args:
        frame: results with the columns ``method`` and ``train``.
    """
    matrices = {}
    for (dataset, method), rows in frame.groupby(["dataset", "method"], sort=False):
        rows = rows.assign(model=rows["train"])
        is_grid = rows["train"].nunique() > 1 and rows["scenario"].nunique() > 1 and "/" not in method
        if is_grid and not rows.duplicated([*KEY, *REPEAT]).any():
            order = {name: i for i, name in enumerate(dict.fromkeys(["none", *rows["scenario"]]))}
            rows = rows.sort_values("model", key=lambda names: names.map(order).fillna(len(order)), kind="stable")
            matrices[str(dataset), str(method)] = summarise(rows)
    return matrices


@rc_context(RC)
def heat_map(matrix: pd.DataFrame, metric: str, title: str, modalities: Sequence[str] = ()) -> Figure:
    """Mean score by scenario of the training data (rows) and of the test data (columns).

    Args:
        matrix: of :func:`train_test_matrices`.
        modalities: their names, for the captions of the scenarios.
    """
    rows = rows_of_metric(matrix, metric)
    cells = rows.pivot(index="model", columns="scenario", values="mean")
    cells = cells.reindex(index=rows["model"].unique(), columns=rows["scenario"].unique())
    captions = captions_of(matrix.assign(scenario=matrix["model"]), modalities) | captions_of(matrix, modalities)
    height, width = cells.shape
    figure, axes = grid(1, 1, max(1.1 * width + 3, 5), max(0.55 * height + 1.8, 3))
    ax = axes[0, 0]
    image = ax.imshow(cells.to_numpy(dtype=float), cmap="viridis", aspect="auto")
    ax.set_xticks(range(width), [captions[name] for name in cells.columns], rotation=30, ha="right", fontsize=8)
    ax.set_yticks(range(height), [captions[name] for name in cells.index], fontsize=8)
    ax.set_xlabel("missing from the test data")
    ax.set_ylabel("missing from the training data")
    ax.set_title(title, fontsize=10)
    ax.spines[:].set_visible(False)
    figure.colorbar(image, ax=ax, label=label(metric))
    low, high = np.nanmin(cells), np.nanmax(cells)
    for i, j in np.ndindex(*cells.shape) if max(cells.shape) <= LARGEST else ():
        value = cells.iloc[i, j]
        if np.isfinite(value):
            colour = "black" if value > (low + high) / 2 else "white"
            ax.text(j, i, f"{value:.3g}", ha="center", va="center", fontsize=8, color=colour)
    return figure


def draw_heat_maps(
    matrices: Mapping[tuple[str, str], pd.DataFrame],
    metric: str,
    folder: Path,
    modalities: Mapping[str, Sequence[str]],
) -> list[Path]:
    """Files of :func:`heat_map` for each matrix."""
    files = []
    for (dataset, method), matrix in matrices.items():
        file = folder / f"grid_{slug(dataset)}_{slug(method)}.png"
        title = f"{dataset}, {method}, {label(metric)}"
        save(heat_map(matrix, metric, title, modalities.get(dataset, ())), file, pdf=True)
        files.append(file)
    return files


def matrix_html(matrix: pd.DataFrame, metric: str, modalities: Sequence[str] = ()) -> Markup:
    """The matrix as a table for the page: mean ± SD, rows are scenarios of the training data."""
    names = captions_of(matrix.assign(scenario=matrix["model"]), modalities)
    named = matrix.assign(model=matrix["model"].map(names))
    return score_table(named, metric, captions_of(matrix, modalities), "Scores by training and test", "training")


def matrix_markdown(matrix: pd.DataFrame, metric: str, method: str) -> str:
    """The matrix as Markdown with heading."""
    return markdown_block(matrix.assign(dataset=matrix["dataset"] + f", {method}, rows: training"), metric)


def as_csv(matrices: dict[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """All matrices as one table with the columns method and train."""
    parts = [part.rename(columns={"model": "train"}).assign(method=method) for (_, method), part in matrices.items()]
    return pd.concat(parts, ignore_index=True)
