"""Errors that a user can fix."""

from __future__ import annotations

import errno
import os
import re

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
BROKEN = (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE)


class UserError(Exception):
    """Bad input. The message is one line (or one line per problem) that names the fix.

    ``run.py`` prints the message without a traceback and exits with status 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of the message, or the name of the type of an error without message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def user_error(error: BaseException) -> UserError | None:
    """What a user can do about an error that the machine causes: a full disk, denied access, too little memory.

    Returns:
        The error itself or one of its causes, if that is a :class:`UserError` or such an error of the machine; None for
        errors of the program, whose traceback is needed.
    """
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, UserError):
            return current
        if message := _message(current):
            return UserError(message)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return None


def _message(error: BaseException) -> str | None:
    name = type(error).__name__
    if isinstance(error, MemoryError) or name == "OutOfMemoryError":
        return (
            f"out of memory ({first_line(error)}): use smaller batches (dataset.training_defaults.batch_size, "
            "dataset.test_batch_size), or a machine with more, and run the same command again"
        )
    number, where = (error.errno, error.filename) if isinstance(error, OSError) else (_rust_number(error), None)
    if isinstance(error, OSError) and re.search(r"\d+ requested and \d+ written", str(error)):
        number = errno.ENOSPC  # NumPy, which does not pass the reason on
    fixes = {
        **dict.fromkeys(FULL, "make room"),
        **dict.fromkeys(DENIED, "correct the permissions, or name another folder"),
        **dict.fromkeys(BROKEN, "check the disk and the limits of the system"),
    }
    if number not in fixes:
        return None
    return f"{where or 'a file'}: {os.strerror(number)}: {fixes[number]}, and run the same command again"


def _rust_number(error: BaseException) -> int | None:
    """Number of the system error in a message of safetensors or tokenizers, which are written in Rust."""
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else None
