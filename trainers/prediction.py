"""Masks of scenarios, and the predictions of a method under each of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.base import MultimodalDataModule
from datasets.batch import Batch
from datasets.missingness import Scenario
from datasets.noise import Corruption
from models.base import Method
from utils.errors import UserError
from utils.progress import Progress
from utils.transfer import on_host, to_device, to_host

# Scenario -> (N, M) bool; scenario -> table -> (N, F) bool; label -> scenario -> arrays.
Masks = Mapping[str, np.ndarray]
CellMasks = Mapping[str, Mapping[str, np.ndarray]]
Outputs = dict[str, dict[str, dict[str, np.ndarray]]]


def scenario_masks(
    data: MultimodalDataModule, split: str, scenarios: Sequence[Scenario]
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """Masks of a split under each scenario: scenario -> (N, M) bool, and scenario -> table -> (N, F) bool."""
    masks, cells = {}, {}
    for scenario in scenarios:
        masks[scenario.name], cells[scenario.name] = data.masks(split, scenario)
    return masks, cells


@torch.inference_mode()
def predict(
    model: Method,
    batches: Any,
    masks: Masks,
    cells: CellMasks | None = None,
    progress: bool = True,
    features: Sequence[str] = (),
    noise: Mapping[str, Corruption | None] | None = None,
) -> Outputs:
    """Predict under every scenario, in one pass.

    Args:
        batches: iterable of :class:`Batch` of the split.
        masks: scenario -> (N, M) bool.
        cells: scenario -> table name -> (N, F) bool, missing cells of tables that the mask marks.
        features: scenarios whose fused features are kept, if the method returns them.
        noise: scenario -> corruption of the content; content is encoded once for all scenarios with the same one.

    Returns:
        label -> scenario -> arrays index, logits, target, missing, the method's extras and ``features`` (N, D), in the
        order of the batches.

    Raises:
        UserError: logits that are not finite.
    """
    pieces: dict[str, dict[str, dict[str, list[Tensor]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    by_corruption: dict[Corruption | None, list[str]] = defaultdict(list)
    for scenario in masks:
        by_corruption[(noise or {}).get(scenario)].append(scenario)
    for batch in Progress(batches, "test", unit="batch", disable=not progress):
        fetched: list[tuple[list[Tensor], Tensor]] = []  # where each value goes
        for corruption, names in by_corruption.items():
            seen = batch if corruption is None else corruption(batch)
            masked = scenario_batches(seen, {name: masks[name] for name in names}, cells or {})
            for label, predictions in model.predict_scenarios(seen, masked).items():
                for scenario, prediction in predictions.items():
                    values = {
                        "index": batch.index,
                        "logits": prediction.logits,
                        "target": batch.target,
                        "missing": masked[scenario].missing,
                        **prediction.extras,
                    }
                    if scenario in features and prediction.features is not None:
                        values["features"] = prediction.features
                    for key, value in values.items():
                        fetched.append((pieces[label][scenario][key], value))
        for (place, _), value in zip(fetched, to_host([value for _, value in fetched]), strict=True):
            place.append(value)
    outputs = {
        label: {name: {key: _join(values) for key, values in parts.items()} for name, parts in by_scenario.items()}
        for label, by_scenario in pieces.items()
    }
    for arrays_by_scenario in outputs.values():
        for scenario, arrays in arrays_by_scenario.items():
            _check_finite(scenario, arrays)
    return outputs


def merge(parts: Sequence[Outputs]) -> Outputs:
    """The outputs of processes that shared the batches of a split (:meth:`datasets.loader.PackedLoader.every`), in the
    order of its rows."""
    parts = [part for part in parts if part]  # a process without a batch has none
    if len(parts) <= 1:
        return parts[0] if parts else {}

    def arrays(label: str, scenario: str) -> dict[str, np.ndarray]:
        pieces = [part[label][scenario] for part in parts]
        order = np.argsort(np.concatenate([piece["index"] for piece in pieces]), kind="stable")
        return {key: _join([torch.from_numpy(p[key]) for p in pieces])[order] for key in pieces[0]}

    return {label: {name: arrays(label, name) for name in by_scenario} for label, by_scenario in parts[0].items()}


def scenario_batches(batch: Batch, masks: Masks, cells: CellMasks) -> dict[str, Batch]:
    """Scenario -> the batch under its masks, which are those of all rows of the split (see :func:`predict`)."""
    rows, device = on_host(batch.index), batch.index.device

    def rows_of(mask: np.ndarray) -> Tensor:
        return to_device(torch.from_numpy(mask)[rows], device, is_remembered=True)

    return {
        scenario: batch.replace(
            missing=rows_of(mask),
            feature_missing={table: rows_of(hidden) for table, hidden in cells.get(scenario, {}).items()},
        )
        for scenario, mask in masks.items()
    }


def hardest(
    batches: Iterable[Batch],
    rates: Mapping[str, float],
    masks: Masks,
    cells: CellMasks,
    noise: Mapping[str, Corruption | None],
) -> tuple[str, Iterator[Batch]]:
    """The scenario in which most is missing, and the batches under it.

    Args:
        rates: scenario -> missing rate; the first of equals counts.
    """
    name = max(rates, key=rates.__getitem__)

    def hidden() -> Iterator[Batch]:
        for batch in batches:
            corruption = noise[name]
            seen = batch if corruption is None else corruption(batch)
            yield scenario_batches(seen, {name: masks[name]}, cells)[name]

    return name, hidden()


def _check_finite(scenario: str, arrays: Mapping[str, np.ndarray]) -> None:
    is_broken = ~np.isfinite(arrays["logits"]).all(1)
    if is_broken.any():
        raise UserError(
            f"scenario '{scenario}': the logits of {int(is_broken.sum())} of {len(is_broken)} rows are not finite "
            f"(the first is row {arrays['index'][is_broken.argmax()]}): training diverged (lower the learning "
            "rate), or the table holds a code that training does not have"
        )


def _join(pieces: list[Tensor]) -> np.ndarray:
    """Concatenate batches; rewards of a batch with fewer rounds are padded with NaN."""
    if pieces[0].ndim == 3:
        rounds = max(p.shape[1] for p in pieces)
        pieces = [torch.nn.functional.pad(p, (0, 0, 0, rounds - p.shape[1]), value=float("nan")) for p in pieces]
    return torch.cat(pieces).numpy()
