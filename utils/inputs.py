"""Comparison of the meaning of the inputs of a checkpoint with those of a run.

``MultimodalDataModule.describe_inputs`` returns a description in plain values, which every trained file carries under
the key ``inputs``: class names, and per modality its name, kind and shape, columns with levels and scaling of a table,
normalisation, front end, tokenizer. Weights fit any meaning of the same shape, so that only this description shows
that, for example, column 3 is now another column.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

KEY = "inputs"
VERSION = 1
# Scaling fitted on the same rows differs between machines only by rounding.
SCALING_TOLERANCE = 1e-6
SHOWN = 8


def from_architecture(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Partial description of checkpoints without one: name, kind and shape of the modalities."""
    known = [
        {"name": m[0], "kind": m[1], "shape": list(m[2])} for m in architecture.get("modalities", []) if len(m) == 3
    ]
    return {"modalities": known} if known else {}


def input_differences(
    stored: Mapping[str, Any],
    current: Mapping[str, Any],
    *,
    classes: bool = True,
    kinds: Sequence[str] | None = None,
) -> list[str]:
    """Describe in words the differences between two descriptions of inputs.

    Entries that only one of them has are not compared.

    Args:
        stored: description in a file, see ``MultimodalDataModule.describe_inputs``.
        current: description of the run.
        classes: whether to compare class names.
        kinds: kinds of modality to compare; None = all.

    Returns:
        Sentences "<what> <stored value>, this run has <current value>: <fix>"; none if the two agree.
    """
    problems = []
    if classes and stored.get("classes") and stored["classes"] != current["classes"]:
        problems.append(
            _lists("classes", stored["classes"], current["classes"])
            + ": set dataset.classes (multi-label: dataset.label) as the file has them, or train again"
        )
    if not (stored.get("modalities") and current.get("modalities")):
        return problems

    def relevant(description: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        return {m["name"]: m for m in description["modalities"] if kinds is None or m["kind"] in kinds}

    old, new = relevant(stored), relevant(current)
    if list(old) != list(new):
        problems.append(_lists("modalities", list(old), list(new)) + ": give a file that was made with these data")
        return problems
    for name, modality in old.items():
        if problem := _modality_difference(name, modality, new[name]):
            problems.append(problem)
    return problems


def _modality_difference(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    if old["kind"] != new["kind"]:
        return f"'{name}' as {old['kind']}, this run has {new['kind']}: give a file that was made with these data"
    are_tables = "columns" in old and "columns" in new
    if are_tables and (problem := _table_difference(name, old["columns"], new["columns"])):
        return problem
    for key in (k for k in old if k in new and k not in ("name", "kind", "columns")):
        if not _same(old[key], new[key]):
            where, a, b = _first_difference(old[key], new[key], key)
            return (
                f"{where} {_shown(a)} of '{name}', this run has {_shown(b)}: use the dataset settings that the file "
                "was made with, or train again"
            )
    return None


def _table_difference(name: str, old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> str | None:
    names = [c["name"] for c in old], [c["name"] for c in new]
    if names[0] != names[1]:
        return (
            _lists(f"columns of '{name}'", *names)
            + ": list them as the file has them (dataset.categorical, dataset.continuous), or train again"
        )
    for a, b in zip(old, new):
        column = f"column '{a['name']}' of '{name}'"
        levels: tuple[Any, Any] = a.get("levels"), b.get("levels")
        if all(isinstance(value, list) for value in levels) and levels[0] != levels[1]:
            return (
                _lists(f"levels of {column}", levels[0], levels[1])
                + f": list them as the file has them (dataset.categorical.{a['name']}), or train again"
            )
        counts = [len(value) if isinstance(value, list) else value for value in levels]
        if counts[0] != counts[1] and ("levels" in a or "levels" in b):
            shown = ["numbers" if value is None else f"{value} levels" for value in counts]
            return f"{column} of {shown[0]}, this run has {shown[1]}: give a file that was made with these data"
        scaling: tuple[Any, Any] = a.get("scaling"), b.get("scaling")
        if None not in scaling and not _same(scaling[0], scaling[1]):
            shown = ["zero {:.6g} and unit {:.6g}".format(*value) for value in scaling]
            return (
                f"{column} scaled with {shown[0]}, this run has {shown[1]}: use the training rows and dataset.scaling "
                "that the file was made with, or train again"
            )
    return None


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, float) or isinstance(b, float):
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (a, b))
        return numbers and math.isclose(a, b, rel_tol=SCALING_TOLERANCE, abs_tol=1e-12)
    return bool(a == b)


def _first_difference(a: Any, b: Any, key: str) -> tuple[str, Any, Any]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for name in sorted(a.keys() | b.keys()):
            if name not in a or name not in b or not _same(a[name], b[name]):
                return _first_difference(a.get(name), b.get(name), f"{key}.{name}")
    return key, a, b


def _lists(what: str, old: Sequence[str], new: Sequence[str]) -> str:
    order = " (the same in another order)" if sorted(old) == sorted(new) else ""
    if max(len(old), len(new)) <= SHOWN:
        return f"{what} {_shown(old)}, this run has {_shown(new)}{order}"
    if len(old) != len(new):
        return f"{len(old)} {what}, this run has {len(new)}"
    first = next(i for i, (a, b) in enumerate(zip(old, new)) if a != b)
    return f"{what} whose number {first} is '{old[first]}', this run has '{new[first]}'{order}"


def _shown(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)
