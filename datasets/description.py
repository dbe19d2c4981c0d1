"""Description of what classes and inputs mean, which every trained file carries; :mod:`utils.inputs` compares two."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from datasets.batch import Modality


def describe_inputs(
    task: str,
    class_names: Sequence[str],
    modalities: Sequence[Modality],
    *,
    levels: Mapping[str, Sequence[str]],
    scaling: Mapping[str, Sequence[float]],
    settings: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Describe classes and inputs in plain values.

    Args:
        levels: categorical column -> names of its levels, as far as the source has names.
        scaling: continuous column -> zero and unit, as far as the data set standardised it itself.
        settings: modality name -> further plain values, see :meth:`datasets.base.MultimodalDataModule.input_settings`.

    Returns:
        ``version``; ``task``; ``classes``, their names in order; ``modalities``, one mapping per modality in the order
        of the columns of a mask: ``name``, ``kind``, ``shape``; of a table ``columns``, each with ``name`` and, where
        known, ``levels`` (names in the order of their codes, or their number) or ``scaling`` (zero and unit, in units
        of the source: value = (source - zero) / unit); of pictures, sound and clips ``normalisation``; and its
        ``settings``.
    """
    described = []
    for m in modalities:
        about: dict[str, Any] = {"name": m.name, "kind": m.kind, "shape": list(m.shape)}
        if m.kind == "table":
            about["columns"] = _describe_columns(m, levels, scaling)
        elif m.kind != "text":
            about["normalisation"] = {"mean": list(m.scale.mean), "deviation": list(m.scale.deviation)}
        if m.vocabulary:
            about["vocabulary"] = m.vocabulary
        described.append(about | dict(settings.get(m.name, {})))
    plain = {"version": 1, "task": task, "classes": list(class_names), "modalities": described}
    # As JSON returns it, so that a stored and a new description compare equal.
    return dict(json.loads(json.dumps(plain)))


def _describe_columns(
    table: Modality, levels: Mapping[str, Sequence[str]], scaling: Mapping[str, Sequence[float]]
) -> list[dict[str, Any]]:
    names = table.columns or tuple(str(i) for i in range(table.shape[0]))
    columns: list[dict[str, Any]] = []
    for i, name in enumerate(names):
        column: dict[str, Any] = {"name": name}
        if i < len(table.cardinalities):
            column["levels"] = list(levels[name]) if name in levels else table.cardinalities[i]
        elif name in scaling:
            column["scaling"] = [float(value) for value in scaling[name]]
        columns.append(column)
    return columns


def readable_cells(content: np.ndarray, table: Modality, meta: Mapping[str, Any]) -> pd.DataFrame:
    """Table rows as a reader writes them: names of levels, numbers in the units of the source.

    Args:
        content: (N, F) as a model takes it.
        meta: ``meta.json`` of the packed store.
    """
    source = meta.get("source") or {}
    levels, scaling = source.get("levels") or {}, source.get("scaling") or {}
    columns: dict[str, Any] = {}
    for j, name in enumerate(table.columns or tuple(map(str, range(table.shape[0])))):
        if j < len(table.cardinalities):
            codes = content[:, j].round().astype(int).clip(0, table.cardinalities[j] - 1)
            columns[name] = [levels[name][code] for code in codes] if name in levels else codes
        else:
            start, width = scaling.get(name, (0.0, 1.0))
            columns[name] = content[:, j].astype(np.float64) * width + start
    return pd.DataFrame(columns)
