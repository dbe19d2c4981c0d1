"""Time of a stage, added up over the processes that continue it."""

from __future__ import annotations

import time

KEYS = ("seconds", "processor_seconds")


class Stopwatch:
    """Wall and processor seconds since it was made. The processor seconds are those of all threads of this process.

    Args:
        seconds, processor_seconds: of earlier processes, which count too.
    """

    def __init__(self, seconds: float = 0.0, processor_seconds: float = 0.0) -> None:
        self.start = time.perf_counter() - seconds, time.process_time() - processor_seconds

    def read(self) -> dict[str, float]:
        now = time.perf_counter(), time.process_time()
        return {key: round(end - start, 3) for key, start, end in zip(KEYS, self.start, now)}
