"""Errors of the machine and what a user can do about them."""

from __future__ import annotations

import errno

import pytest
import torch
from safetensors import SafetensorError

from utils.errors import UserError, first_line, user_error


def caused_by(error: BaseException) -> BaseException:
    try:
        raise RuntimeError("writing failed") from error
    except RuntimeError as raised:
        return raised


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "full", "a/b.npy"), "a/b.npy: No space left on device: make room, and run the same"),
        (caused_by(OSError(errno.EDQUOT, "full")), "a file: Disk quota exceeded: make room"),
        (OSError("4096 requested and 17 written"), "a file: No space left on device"),
        (PermissionError(errno.EACCES, "denied", "out"), "out: Permission denied: correct the permissions"),
        (
            OSError(errno.EROFS, "read-only", "out"),
            "out: Read-only file system: correct the permissions",
        ),
        (SafetensorError("I/O error: File too large (os error 27)"), "a file: File too large: make room"),
        (
            MemoryError("Unable to allocate 9 GiB\nmore"),
            "out of memory (Unable to allocate 9 GiB): use smaller",
        ),
        (torch.OutOfMemoryError("CUDA out of memory."), "out of memory (CUDA out of memory.): use smaller batches"),
        (caused_by(UserError("no CSV: name it")), "no CSV: name it"),
    ],
)
def test_an_error_of_the_machine_names_the_fix(error: BaseException, message: str) -> None:
    problem = user_error(error)
    assert isinstance(problem, UserError) and str(problem).startswith(message) and len(str(problem).splitlines()) == 1


@pytest.mark.parametrize(
    "error",
    [ValueError("3"), OSError("no number"), FileNotFoundError(errno.ENOENT, "absent", "x"), caused_by(KeyError("a"))],
)
def test_an_error_of_the_program_keeps_its_traceback(error: BaseException) -> None:
    assert user_error(error) is None


def test_the_first_line_of_an_error_is_never_empty() -> None:
    assert first_line(ValueError("\n two\nlines")) == "two"
    assert first_line(EOFError()) == first_line(EOFError(" \n")) == "EOFError"
