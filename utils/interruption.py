"""Ctrl-C and SIGTERM: one exception for both, and the end of the processes that were started."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

CONTINUE = "run the same command to go on"
GRACE = 3.0  # seconds in which a process may end by itself


class Interruption(KeyboardInterrupt):
    """The user or the system asks the program to end. No stage and no sweep goes on after it.

    Args:
        number: of the signal.
        message: what was interrupted, and how to go on.
    """

    def __init__(self, number: int = signal.SIGINT, message: str = f"interrupted: {CONTINUE}") -> None:
        super().__init__(number, message)
        self.number, self.message = int(number), message

    @property
    def status(self) -> int:
        """Exit status, as of a shell: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.number


def interruption(error: BaseException) -> Interruption | None:
    """The interruption behind an error; None of other errors.

    Lightning answers Ctrl-C with ``SystemExit``, and SIGTERM with ``SIGTERMException`` where it has the only handler.
    """
    if isinstance(error, SystemExit):
        if type(error).__name__ == "SIGTERMException":
            return Interruption(signal.SIGTERM)
        error = error.__context__ or error
    if isinstance(error, Interruption):
        return error
    return Interruption() if isinstance(error, KeyboardInterrupt) else None


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise :class:`Interruption` meanwhile, in the main thread."""

    def stop(number: int, frame: object) -> None:
        raise Interruption(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM meanwhile, in the main thread."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_children(grace: float = GRACE) -> int:
    """End all processes that this one has started, and theirs: by SIGTERM, and after ``grace`` seconds by SIGKILL.

    The tracker of shared memory ends with this process and cleans up, so that it is left alone.

    Returns:
        How many ended.
    """
    import psutil

    children = [child for child in psutil.Process(os.getpid()).children(recursive=True) if not _is_tracker(child)]
    for send in (psutil.Process.terminate, psutil.Process.kill):
        _, alive = psutil.wait_procs(children, 0)
        for child in alive:
            try:
                send(child)
            except psutil.NoSuchProcess:
                continue
        if not psutil.wait_procs(alive, grace)[1]:
            break
    return len(children)


def _is_tracker(process: object) -> bool:
    import psutil

    assert isinstance(process, psutil.Process)
    try:
        return any("resource_tracker" in part for part in process.cmdline())
    except psutil.Error:
        return True
