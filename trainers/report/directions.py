"""Whether a higher or a lower value of a metric is better."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from utils.errors import UserError
from utils.metrics import METRICS, direction_of
from utils.user_metrics import direction_of_class

HIGHER, LOWER = "higher", "lower"


def directions(metrics: Iterable[str], environment: str, config: Mapping[str, Any]) -> dict[str, str]:
    """``higher``, ``lower`` or ``""`` (neither, or not known) of metrics of a run.

    Args:
        environment: content of ``environment.json``, with the directions of the user's metrics; older runs have none.
        config: content of ``config.yaml``, whose metrics of torchmetrics say it too.
    """
    about: Mapping[str, Any] = json.loads(environment or "{}")
    stored = about.get("metrics") or {}
    nodes = config.get("metrics") or {}
    return {
        name: direction_of(name) if name in METRICS else stored.get(name, _of_torchmetrics(nodes.get(name)))
        for name in metrics
    }


def _of_torchmetrics(node: Any) -> str:
    """Direction of a class of torchmetrics in a configuration; other classes are not imported for a report."""
    import torchmetrics.classification  # slow to import

    module, _, name = str((node or {}).get("_target_", "")).rpartition(".")
    if not module.startswith("torchmetrics"):
        return ""
    return direction_of_class(getattr(torchmetrics, name, None) or getattr(torchmetrics.classification, name, None))


def direction(rows: pd.DataFrame, metric: str) -> str:
    """``higher``, ``lower`` or ``""`` of a metric of results or a summary; of :data:`METRICS` also without the column
    ``direction``.

    Raises:
        UserError: higher is better in some runs, and lower in others.
    """
    if "direction" not in rows:
        return direction_of(metric)
    known = set(rows.loc[rows["metric"] == metric, "direction"]) - {""}  # older runs do not say it
    if len(known) > 1:
        raise UserError(
            f"metric '{metric}' is better higher in some runs, and lower in others: report them apart "
            "(report.include), or give one another name"
        )
    return known.pop() if known else ""


def check_primary(frame: pd.DataFrame, primary: str) -> None:
    """
    Raises:
        UserError: no value of the metric is better than another, so that no model is best.
    """
    if direction(frame, primary) not in (HIGHER, LOWER):
        raise UserError(
            f"report.primary={primary}: the runs do not say whether higher or lower is better: choose another metric, "
            "or set higher_is_better in the class of the metric and run stages=[test] again with overwrite=true"
        )
