"""Actions in forked processes that meet an accident: PyTorch and Lightning are imported already, so that a try costs a
fraction of a second."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils.errors import user_error

KILLED, FAILED, REFUSED = 77, 78, 2  # exit status of a process
SECONDS = 600  # a longer process is a loss; shared cores may be slow
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Accident:
    """What happens at a file event: a file below the watched folder is opened for writing, renamed, removed or made.

    Attributes:
        at: number of the event, from 1; 0 = never.
        error: of the system, raised instead of the event; None ends the process, as if it was killed.
        is_lasting: all later events fail too.
    """

    at: int = 0
    error: int | None = None
    is_lasting: bool = False

    def strike(self, number: int, path: str) -> None:
        if not self.at or number < self.at or (number > self.at and not self.is_lasting):
            return
        if self.error is None:
            os._exit(KILLED)
        raise OSError(self.error, os.strerror(self.error), path)


class Child:
    """A forked process that runs ``action``.

    Args:
        action: its errors of the user end it with status REFUSED, others with FAILED.
        root: folder whose file events are counted.
        accident: at one of them.
    """

    def __init__(self, action: Callable[[], object], root: Path, accident: Accident = Accident()) -> None:
        read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(read)
            signal.alarm(SECONDS)
            _run(action, str(root), accident, write)
        os.close(write)
        self._pipe = read

    def wait(self) -> tuple[int, int, str]:
        """Exit status (negative: number of a signal), number of events, and the error, if there was one."""
        with os.fdopen(self._pipe) as pipe:
            number, _, text = pipe.read().partition("\n")
        _, code = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(code), int(number or 0), text

    def kill_after(self, seconds: float) -> tuple[int, int, str]:
        """Send SIGKILL after some seconds, unless it has ended by then; see :meth:`wait`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.002)
        else:
            os.kill(self.pid, signal.SIGKILL)
        return self.wait()


def _run(action: Callable[[], object], root: str, accident: Accident, report: int) -> None:
    status, count, text, is_over = FAILED, 0, "", False

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            is_change = isinstance(arguments[2], int) and bool(arguments[2] & WRITING)
        else:
            is_change = event in CHANGES
        # Functions that remove whole folders name the entries relative to an open folder.
        if is_change and not is_over and isinstance(arguments[0], str | Path):
            name = str(arguments[0])
            if name.startswith(root) or (event != "open" and not name.startswith("/")):
                count += 1
                accident.strike(count, name)

    try:
        torch.set_num_threads(1)  # makes a new pool of threads before several threads ask for it at once
        sys.addaudithook(watch)
        action()
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException as error:
        problem = user_error(error)
        status, text = (FAILED, traceback.format_exc(limit=-4)) if problem is None else (REFUSED, str(problem))
    finally:
        is_over = True
        os.write(report, f"{count}\n{text}"[:60_000].encode())
        os._exit(status)


def in_child(action: Callable[[], object], root: Path, accident: Accident = Accident()) -> tuple[int, int, str]:
    """Run ``action`` in a forked process; see :meth:`Child.wait`."""
    return Child(action, root, accident).wait()
