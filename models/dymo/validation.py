"""Validation of DyMo's selection: accuracy at several thresholds, and what the rules fit on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from datasets.batch import Batch
from models.dymo.evidence import candidates_of
from models.dymo.lattice import exhaustive
from models.dymo.selection import THRESHOLDS, select


@torch.inference_mode()
def validate_selection(
    dymo: Any,
    batches: Iterable[tuple[Batch, Mapping[str, Batch]]],
    thresholds: Sequence[float] = THRESHOLDS,
) -> tuple[dict[str, dict[float, float]], dict[str, float], float]:
    """Accuracy of the selection at several thresholds on validation data with simulated missingness.

    Args:
        dymo: :class:`models.dymo.method.DyMo`; its rules observe the batches.
        batches: (batch, scenario -> the batch under its masks) of the validation split, on the model's device.

    Returns:
        scenario -> threshold -> accuracy; scenario -> accuracy of discarding; and the threshold with the best mean
        accuracy among those that are nowhere worse than discarding (inf, which accepts nothing, if there is none; the
        higher one of equals).
    """
    right: dict[str, dict[float, int]] = {}
    baseline: dict[str, int] = {}
    rows = 0
    for batch, scenarios in batches:
        rows += len(batch)
        observed = dymo.backbone.encode(batch.inputs)
        for scenario, masked in scenarios.items():
            missing = masked.missing
            tokens, _ = dymo.complete(masked, observed)
            partial, unrecoverable = dymo.partial(masked), dymo.unrecoverable(masked)
            discard = dymo.backbone.fuse(dymo.backbone.encode_again(observed, masked), masked).logits.argmax(1)
            baseline[scenario] = baseline.get(scenario, 0) + int((discard == batch.target).sum())
            counts = right.setdefault(scenario, dict.fromkeys(thresholds, 0))
            # One selection gives the decisions under every threshold.
            lowest = dymo.scorer(min(thresholds))
            selection = select(lowest, tokens, missing, partial, unrecoverable, is_path_kept=True)
            for threshold in thresholds:
                counts[threshold] += int((selection.at(threshold).logits.argmax(1) == batch.target).sum())
            if dymo.rules:
                lattices = exhaustive(dymo.scorer(), tokens, missing, partial, unrecoverable)
                dymo.rules.observe(candidates_of(dymo, masked, observed, lattices), batch.target)
    feasible = [t for t in thresholds if all(right[s][t] >= baseline[s] for s in right)]
    best = max(feasible, key=lambda t: (sum(c[t] for c in right.values()), t), default=float("inf"))
    if best != float("inf") and sum(c[best] for c in right.values()) <= sum(baseline.values()):
        best = float("inf")
    accuracy = {s: {t: n / rows for t, n in counts.items()} for s, counts in right.items()}
    return accuracy, {s: n / rows for s, n in baseline.items()}, best
