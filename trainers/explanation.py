"""Picture of one prediction: what is observed, what was recovered and accepted, and the probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from datasets.base import MultimodalDataModule
from datasets.batch import Batch, Modality
from datasets.description import readable_cells
from datasets.new_rows import NewRows
from models.imputers.base import recover_possible
from trainers.loading import Run
from trainers.report.cells import (
    MISSING,
    OBSERVED,
    RECOVERED,
    Bars,
    Cell,
    Curve,
    Frames,
    Picture,
    Spectrogram,
    TableCells,
    Words,
)
from trainers.report.pictures import Block, draw_blocks
from trainers.report.style import BROWN, DARK_GREEN

MAX_COLUMNS = 24  # tables of more columns, all of them numbers, are drawn as a curve
MAX_CLASSES = 5
MAX_FRAMES = 3  # of a clip: first, last and those between at equal steps
NEUTRAL = "#222222"


def explain_row(
    run: Run,
    row: NewRows,
    batch: Batch,
    output: Mapping[str, np.ndarray],
    scores: Mapping[str, Any],
    is_calibrated: bool,
) -> Figure:
    """Draw the prediction for one row, of which something is observed.

    Args:
        row, batch: the row, and the batch of it alone.
        output: logits (C,) and, with selection, accepted (M,) and rewards (T, M).
        scores: columns of the table of predictions, one value per column.
        is_calibrated: whether the confidence is.
    """
    data = run.data
    missing = ~row.observed(data.modalities)[0]  # (M,)
    gaps = {m.name: row.arrays[f"{m.name}_missing"][0] for m in data.modalities if f"{m.name}_missing" in row.arrays}
    headings: list[str] = []
    content: list[Cell] = []
    has_gaps = missing.copy()
    for i, m in enumerate(data.modalities):
        cells = gaps.get(m.name, np.zeros(m.shape[0], dtype=bool)) if m.kind == "table" else None
        lacks = " – missing" if missing[i] else ""
        if cells is not None and cells.any() and not missing[i]:
            has_gaps[i] = True
            lacks = f" – {int(cells.sum())} of {len(cells)} missing"
        states = None if cells is None else np.where(cells, MISSING, OBSERVED)
        headings.append(m.name + lacks)
        content.append(Cell("missing") if missing[i] else cell_of(data, m, batch.inputs[m.name], states))
    verdict, colour = _verdict(data, row, scores, is_calibrated)
    uses_selection = run.uses_selection
    unrecoverable = np.zeros_like(missing)
    recoveries: dict[int, Cell] = {}
    if run.predicts_with_imputer:
        recoveries, unrecoverable = _recoveries(run, batch, has_gaps, gaps)
    elif uses_selection:
        recoveries = {int(i): Cell("recovered\nas features") for i in np.flatnonzero(has_gaps)}
    block = Block(
        verdict,
        colour,
        headings,
        content,
        has_gaps.tolist(),
        missing.tolist(),
        recoveries,
        [int(m) for m in output["accepted"] if m >= 0] if uses_selection else [],
        output["rewards"] if uses_selection else np.zeros((0, len(missing))),
        first_line="observed",
        without_selection="recovered" if uses_selection else "recovered, used",
        probabilities=_probabilities(data, scores),
        unrecoverable=np.flatnonzero(unrecoverable).tolist(),
    )
    return draw_blocks([block], f"{run.label} on {run.cfg.dataset.name}: row {row.names[0]}")


def cell_of(data: MultimodalDataModule, modality: Modality, content: Tensor, states: np.ndarray | None) -> Cell:
    """The content of a modality in one row, ready to be drawn.

    Args:
        content: (1, ...) as the model takes it.
        states: of the cells of a table, see :class:`trainers.report.cells.TableCells`.
    """
    if modality.kind == "text":
        return Words(data.strings(modality.name, content.cpu())[0].strip("* "))
    array = content[0].float().cpu()
    if modality.kind in ("image", "series", "video"):
        pictures = array if modality.kind == "video" else array[None]
        pixels = (data.pixels(modality.name, pictures) * 255).round().byte().numpy()
        if len(pixels) == 1:
            return Picture("", pixels[0])
        return Frames("", pixels[np.linspace(0, len(pixels) - 1, min(MAX_FRAMES, len(pixels))).round().astype(int)])
    if states is None:  # a sound: a waveform, or a spectrogram whose lowest frequency comes first
        values = array.squeeze().numpy()
        return Curve("", values, np.full(len(values), OBSERVED)) if values.ndim == 1 else Spectrogram("", values)
    if len(states) > MAX_COLUMNS and not modality.cardinalities:
        return Curve("", array.numpy(), states)
    values = readable_cells(array[None].numpy(), modality, data.store.meta() or {}).iloc[0]
    texts = ["–" if state == MISSING else _text(value) for value, state in zip(values, states)]
    return TableCells("", [str(name) for name in values.index], texts, states)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _recoveries(
    run: Run, batch: Batch, has_gaps: np.ndarray, gaps: Mapping[str, np.ndarray]
) -> tuple[dict[int, Cell], np.ndarray]:
    """Modality number -> what the imputer makes of it; and the modalities (M,) that it cannot recover."""
    data = run.data
    with torch.inference_mode():
        filled, unrecoverable = recover_possible(run.load_imputer(), data.modalities, batch)
    stays = np.zeros_like(has_gaps) if unrecoverable is None else unrecoverable[0].cpu().numpy()
    cells: dict[int, Cell] = {}
    for i in np.flatnonzero(has_gaps).tolist():
        m = data.modalities[i]
        if stays[i]:
            cells[i] = Cell("cannot be\nrecovered")
            continue
        states = None
        if m.kind == "table":
            states = np.where(gaps.get(m.name, np.ones(m.shape[0], dtype=bool)), RECOVERED, OBSERVED)
        cells[i] = cell_of(data, m, filled[m.name], states)
    return cells, stays


def _verdict(
    data: MultimodalDataModule, row: NewRows, scores: Mapping[str, Any], is_calibrated: bool
) -> tuple[str, str]:
    """Heading with the prediction (and the label, where the row has one), and its colour."""
    names = data.class_names
    if data.task == "multilabel":
        chosen = [name for name in names if scores[f"prediction_{name}"][0]]
        return f"predicted: {', '.join(chosen) or 'no label'}", NEUTRAL
    predicted = str(scores["prediction"][0])
    verdict = f"predicted: {predicted}"
    if is_calibrated:
        verdict += f"    calibrated confidence: {float(scores['confidence'][0]):.3f}"
    label = -1 if row.target is None else int(row.target[0])
    if label < 0:
        return verdict, NEUTRAL
    return f"true: {names[label]}    {verdict}", DARK_GREEN if names[label] == predicted else BROWN


def _probabilities(data: MultimodalDataModule, scores: Mapping[str, Any]) -> Cell:
    """The classes, or labels, of highest probability."""
    probabilities = {name: float(scores[f"probability_{name}"][0]) for name in data.class_names}
    ranked = sorted(probabilities.items(), key=lambda item: -item[1])[:MAX_CLASSES]
    return Bars("", dict(ranked))
