"""Files that are either complete or absent."""

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
    """Yield a temporary name beside ``path``, renamed to ``path`` when the block ends without an error.

    Raises:
        UserError: the file cannot be written.
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
    """Error for a ``path`` that cannot be written."""
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return UserError(
        f"{path} cannot be written ({reason}): make room or correct the permissions, and run the same command again"
    )


def natural_key(name: str | Path) -> tuple[str, str]:
    """Sorting key that compares numbers in a name by value (2 before 10) and other text as usual."""
    text = str(name)
    return re.sub(r"\d+", lambda digits: digits[0].zfill(32), text), text


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a compressed ``.npz`` that is complete or absent."""
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)
