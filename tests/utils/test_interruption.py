"""Ctrl-C and SIGTERM as exceptions, and the end of child processes."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time

import psutil
import pytest
from pytorch_lightning.utilities.exceptions import SIGTERMException

from utils.interruption import Interruption, end_children, interruption, stopped_by_sigterm, undisturbed


def after(first: BaseException, error: BaseException) -> BaseException:
    """The error as it is raised while the first one is handled."""
    try:
        try:
            raise first
        except BaseException:
            raise error  # noqa: B904
    except BaseException as raised:
        return raised


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), 130),
        (Interruption(signal.SIGTERM), 143),
        (after(KeyboardInterrupt(), SystemExit(1)), 130),
        (after(Interruption(signal.SIGTERM), SystemExit(1)), 143),
        (SIGTERMException(), 143),
        (after(ValueError(), SystemExit(2)), None),
        (SystemExit(0), None),
        (ValueError(), None),
    ],
)
def test_status_is_that_of_the_signal(error: BaseException, status: int | None) -> None:
    stop = interruption(error)
    assert (stop and stop.status) == status
    if stop is not None:  # workers send it to the process of the sweep
        assert (other := pickle.loads(pickle.dumps(stop))).status == status and other.message == stop.message


def test_sigterm_is_an_exception_inside_only() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interruption) as caught, stopped_by_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert caught.value.status == 143 and signal.getsignal(signal.SIGTERM) == before
    with undisturbed():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_children_end_also_where_they_ignore_sigterm() -> None:
    """A child that ignores SIGTERM, as tasks of submitit do, and its own child."""
    program = "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    program += "print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    grandchild = int(child.stdout.readline())
    assert end_children(grace=0.2) >= 2
    assert not psutil.pid_exists(child.pid)
    assert not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == psutil.STATUS_ZOMBIE
