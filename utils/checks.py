"""Checks of single configuration values; each yields one message per problem: the key, what is wrong, and the fix."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf


def check_choice(cfg: DictConfig, key: str, known: Sequence[Any]) -> Iterator[str]:
    """The value at ``key`` is one of ``known``."""
    value = OmegaConf.select(cfg, key)
    if value not in known:
        yield f"{key}={value}: must be one of {', '.join(map(str, known))}"


def check_number(
    cfg: DictConfig, key: str, low: float, high: float = math.inf, *, whole: bool = False
) -> Iterator[str]:
    """The value at ``key`` is null or a (whole) number from ``low`` to ``high``."""
    value = OmegaConf.select(cfg, key)
    kind = int if whole else int | float
    if value is not None and (isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high):
        bound = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        yield f"{key}={value}: must be a {'whole ' if whole else ''}number {bound}"


def nearest(word: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown ``word``: the closest spelling, or all that is known."""
    close = difflib.get_close_matches(word, known, 1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known are {', '.join(map(str, known))}" if known else ""
