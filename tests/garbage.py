"""Collect no garbage while tests are imported, which takes a fifth of that time, and seldom while they run, where it
takes a tenth."""

from __future__ import annotations

import atexit
import gc

gc.disable()
# Objects that are made before a collection: Python's 700 suit programs with much garbage in cycles. A million are some
# 200 MB.
MANY = 1_000_000


def collect_from_now_on() -> None:
    """Collect garbage again, and look through what is imported no more."""
    gc.freeze()
    gc.set_threshold(MANY, 5, 5)
    gc.callbacks.append(_look_once)
    gc.enable()
    atexit.register(gc.unfreeze)  # extensions report what is not freed at the end


def _look_once(phase: str, info: dict[str, int]) -> None:
    """Look through what survives a full collection no more, either: libraries ask for full collections, and each takes
    more than a second in a process that has run many tests."""
    if phase == "stop" and info["generation"] == 2:
        gc.freeze()
