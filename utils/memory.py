"""How the process asks the operating system for memory."""

from __future__ import annotations

import ctypes
import sys

# Numbers of glibc's malloc.h, and the largest values that all its versions take.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
VALUES = {MMAP_THRESHOLD: 32 * 2**20, TRIM_THRESHOLD: 2**31 - 1}


def keep_freed_memory() -> bool:
    """Let freed tensors stay with the process, to be used again in the next step.

    glibc returns large blocks to the system at once, which then hands them out page by page and zeroed, step after
    step: a quarter to a third of a training step of a small network on the CPU (docs/performance.md). Costs that the
    process stays at its peak. Variables of the user (``MALLOC_TRIM_THRESHOLD_`` and its like) are overruled; other C
    libraries are left as they are.

    Returns:
        Whether the library took both values.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and all([mallopt(number, value) for number, value in VALUES.items()])
