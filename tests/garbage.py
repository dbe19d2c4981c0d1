"""Collect no garbage while tests are imported, which takes a fifth of that time, and seldom while they run, where it
takes a tenth."""

from __future__ import annotations

import atexit
import gc

import psutil

gc.disable()
# Objects that are made before a collection: Python's 700 suit programs with much garbage in cycles. A million are some
# 200 MB, and hold tensors: with four million, a process came to eight gigabytes.
MANY = 1_000_000
ROOM = 4 * 2**30  # bytes of memory for a million objects of every test process


def collect_from_now_on(processes: int) -> None:
    """Collect garbage again, the less often the more memory there is, and look through what is imported no more.

    Args:
        processes: that run tests at once.
    """
    gc.freeze()
    millions = psutil.virtual_memory().available // (ROOM * processes)
    gc.set_threshold(MANY * min(max(millions, 1), 2), 5, 100)  # of all objects: where libraries ask for it
    gc.callbacks.append(_look_once)
    gc.enable()
    atexit.register(gc.unfreeze)  # extensions report what is not freed at the end


def _look_once(phase: str, info: dict[str, int]) -> None:
    """Look through what survives a full collection no more, either: libraries ask for full collections, and each takes
    more than a second in a process that has run many tests."""
    if phase == "stop" and info["generation"] == 2:
        gc.freeze()
