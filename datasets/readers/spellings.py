"""Cell values that stand for a class or a level: how a configuration lists them and how cells spell them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.errors import UserError


def as_texts(value: Any) -> list[str]:
    """One value or a list of values as text, stripped as cells are."""
    return [str(v).strip() for v in ([value] if isinstance(value, str | int | float) else value)]


def spellings(given: Sequence[Any] | Mapping[Any, Any], key: str, noun: str) -> dict[str, list[str]]:
    """Name -> the cell values that stand for it, in the given order.

    Args:
        given: names, each standing for itself, or a mapping name -> one value or a list of values.
        key: of the configuration, below ``dataset``, for messages.
        noun: what a name denotes, for messages: ``class`` or ``level``.

    Raises:
        UserError: a repeated name or value.
    """
    pairs = list(given.items()) if isinstance(given, Mapping) else [(name, name) for name in given]
    names = [str(name).strip() for name, _ in pairs]
    if repeated := [name for name, n in Counter(names).items() if n > 1]:
        raise UserError(f"dataset.{key} lists '{repeated[0]}' twice: every {noun} once")
    values = {name: as_texts(value) for name, (_, value) in zip(names, pairs)}
    counts = Counter(value for cells in values.values() for value in dict.fromkeys(cells))
    if ambiguous := [value for value, n in counts.items() if n > 1]:
        singular, plural = ("label", "classes") if noun == "class" else ("value", f"{noun}s")
        raise UserError(f"dataset.{key}: the {singular} '{ambiguous[0]}' stands in two {plural}, it belongs to one")
    return values


def unquoted(given: Sequence[Any] | Mapping[Any, Any] | None) -> list[Any]:
    """Values that YAML did not read as text: booleans and decimal numbers."""
    values = list(given.values()) if isinstance(given, Mapping) else list(given or ())
    flat = [v for value in values for v in (value if isinstance(value, Sequence) and value != str(value) else [value])]
    return [value for value in flat if isinstance(value, bool | float)]


def check_quoted(values: Sequence[Any], column: pd.Series, key: str, path: Path) -> None:
    """Check that YAML left the values of a configuration as the cells have them.

    Args:
        values: of :func:`unquoted`.
        column: the cells, as text.
        key: of the configuration that holds the values.
        path: of the table, for the message.

    Raises:
        UserError: no cell has this value: YAML changed it.
    """
    if absent := [value for value in values if str(value) not in set(column)]:
        cells = ", ".join(f'"{cell}"' for cell in list(dict.fromkeys(column))[:3])
        raise UserError(
            f"{key} holds {absent[0]}, which no cell of column '{column.name}' in {path} is: YAML reads unquoted yes, "
            f"no, on, off and decimal numbers as something else than text, write the values in quotes ({cells})"
        )


def similar_spellings(values: Sequence[str] | np.ndarray) -> list[str]:
    """Values that differ only in case or blanks, with their counts: one line such as ``'F' (12), 'f' (3)`` per set."""
    groups: dict[str, Counter[str]] = {}
    for value, n in Counter(map(str, values)).items():
        groups.setdefault("".join(value.casefold().split()), Counter())[value] = n
    return [
        ", ".join(f"'{value}' ({n})" for value, n in group.most_common()) for group in groups.values() if len(group) > 1
    ]


def most_common(values: pd.Series | Sequence[str] | np.ndarray) -> str:
    """The three most common values with their counts, for a message."""
    return ", ".join(f"'{v}' ({n})" for v, n in Counter(values).most_common(3))
