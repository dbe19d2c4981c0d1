"""Memory that the process keeps from the operating system."""

from __future__ import annotations

import ctypes
import sys

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
