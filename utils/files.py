"""Files that are either whole or absent."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from utils.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that takes its place when the block ends without an error.

    Raises:
        UserError: the system refuses to write it.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def unwritable(path: Path, error: BaseException) -> UserError:
    """The message that ``path`` could not be written."""
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return UserError(
        f"{path} cannot be written ({reason}): make room or correct the permissions, and run the same command again"
    )


def natural_key(name: str | Path) -> tuple[str, str]:
    """Sorting key that compares the numbers in a name by value: 2 before 10; otherwise as the text itself."""
    text = str(name)
    return re.sub(r"\d+", lambda digits: digits[0].zfill(32), text), text


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """A compressed ``.npz`` that is whole or absent."""
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)
