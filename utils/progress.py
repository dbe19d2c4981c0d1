"""Progress of long loops: a bar on a terminal, a few plain lines with the time left in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from tqdm import tqdm

log = logging.getLogger(__name__)
# In seconds: loops with less than SHORT ahead get no line; the pauses between lines double.
SHORT, SHORTEST_PAUSE, LONGEST_PAUSE = 10.0, 30.0, 600.0


def is_interactive(stream: TextIO | None = None) -> bool:
    """Whether a bar can be redrawn on the stream (default stderr): a terminal or a notebook, not a file or a pipe."""
    is_terminal: Callable[[], bool] = getattr(stream or sys.stderr, "isatty", bool)
    kernel = sys.modules.get("ipykernel.kernelapp")  # a program may import it without being a notebook
    return (kernel is not None and kernel.IPKernelApp.initialized()) or is_terminal()


def duration(seconds: float) -> str:
    """Time as a reader says it: ``0.4 s``, ``35 s``, ``12 min``, ``3.4 h``, ``2.1 days``."""
    for limit, length, unit in ((9.95, 1, "s"), (99.5, 1, "s"), (5970, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / length:.{int(limit < 10 or unit == 'h')}f} {unit}"
    return f"{seconds / 86_400:.1f} days"


class Pace:
    """When to write a line on the progress of a loop, and what it says.

    Args:
        what: name of the loop.
        unit: of what is counted, in the singular.
        total: how many; None = not known.
        done: how many were done before the loop starts.
        clock: seconds.
    """

    def __init__(
        self, what: str, unit: str, total: float | None, done: float = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.what, self.total, self.first, self.clock = what, total, done, clock
        self.units = unit + ("es" if unit.endswith("tch") else "s")
        self.start, self.next_line = clock(), 0.0

    def line(self, done: float) -> str | None:
        """The line after ``done`` units, None where none is due."""
        elapsed = self.clock() - self.start
        if done <= self.first or elapsed < self.next_line:
            return None
        left = None if self.total is None else elapsed / (done - self.first) * (self.total - done)
        if self.next_line == 0 and (elapsed if left is None else left) < SHORT:
            return None
        self.next_line = elapsed + min(max(elapsed, SHORTEST_PAUSE), LONGEST_PAUSE)
        if left is None:
            return f"{self.what}: {done:g} {self.units} in {duration(elapsed)}"
        return f"{self.what}: {done:g} of {self.total:g} {self.units}, about {duration(left)} left"


class Progress(tqdm):
    """``tqdm`` that draws its bar only where it can be redrawn, and otherwise logs the lines of :class:`Pace`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.pace: Pace | None = None
        is_plain = not is_interactive()
        if is_plain:
            options |= {"gui": True, "mininterval": 1, "miniters": 1}  # with gui, tqdm counts and writes nothing
        super().__init__(*args, **options)
        if is_plain and not self.disable:
            self.pace = Pace(self.desc, self.unit, self.total, self.initial)

    def display(self, *args: Any, **options: Any) -> Any:
        if not self.gui:
            return super().display(*args, **options)
        if self.pace is not None and (line := self.pace.line(self.n)):
            log.info("%s", line)
        return True
