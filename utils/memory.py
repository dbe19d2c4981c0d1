"""Memory that the process keeps from the operating system, and objects that it keeps from the garbage collector."""

from __future__ import annotations

import atexit
import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Parameters of glibc's malloc.h, and the largest values that all its versions accept.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
VALUES = {MMAP_THRESHOLD: 32 * 2**20, TRIM_THRESHOLD: 2**31 - 1}


def keep_freed_memory() -> bool:
    """Keep the memory of freed tensors in the process, for the next step.

    glibc returns large blocks to the system at once, which then provides them again page by page and zeroed: a quarter
    to a third of a training step of a small network on the CPU (docs/performance.md). The process stays at its peak
    memory. Overrides environment variables such as ``MALLOC_TRIM_THRESHOLD_``; no effect with other C libraries.

    Returns:
        Whether the library accepted both values.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and all([mallopt(number, value) for number, value in VALUES.items()])


@contextmanager
def keep_imported(module: str) -> Iterator[None]:
    """Import a module without collecting garbage, and exclude what is imported from later collections.

    PyTorch and what it brings along are half a million objects. Looking through them takes a fifth of the time of
    their import, and 0.3 s of each complete collection during training. No effect if the module is imported already.
    """
    if module in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # extensions report what is not freed at the end
