"""Files that are either complete or absent."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import platform
import re
import shutil
import tokenize
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np

from utils.errors import UserError, first_line

log = logging.getLogger(__name__)
MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"
# .<machine>-<process>-<random>[-old].<name>
TEMPORARY = re.compile(r"\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}(-old)?\.(.+)")


def temporary_beside(path: Path, *, is_old: bool = False) -> Path:
    """A new name in the same folder, which tells the process that uses it.

    Args:
        is_old: for content that is moved away until its replacement is in its place.
    """
    old = "-old" if is_old else ""
    return path.with_name(f".{MACHINE}-{os.getpid()}-{uuid.uuid4().hex[:8]}{old}.{path.name}")


def remove_leftovers(folder: Path, *, recursive: bool = False) -> list[Path]:
    """Remove what processes of this machine that were killed left under names of :func:`temporary_beside`.

    Content that was moved away for a replacement that never came goes back to its place.

    Returns:
        The removed files and folders.
    """
    removed = []
    try:
        entries = sorted(folder.rglob(".*-*.*") if recursive else folder.glob(".*-*.*"))
    except OSError:  # no such folder, or one that cannot be read
        return []
    for entry in entries:
        match = TEMPORARY.fullmatch(entry.name)
        if match is None or match[1] != MACHINE or _is_running(int(match[2])):
            continue
        original = entry.with_name(match[4])
        with suppress(OSError):  # another process was faster, or the folder can only be read
            if match[3] and not original.exists():
                entry.rename(original)
                log.warning("%s is back in its place: the process that replaced it was killed", original)
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
            removed.append(entry)
    return removed


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``, renamed to ``path`` when the block ends without an error.

    Raises:
        UserError: the file cannot be written.
    """
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def replace_folder(new: Path, target: Path) -> None:
    """Rename the folder ``new`` to ``target``, in place of older content.

    Where the process is killed before ``new`` is in its place, :func:`remove_leftovers` puts the older content back.
    """
    old = temporary_beside(target, is_old=True)
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def reserve(path: Path) -> None:
    """Take the disk space of a file that is written through memory: on a full disk, such a write would end the process
    by a signal instead of an error.

    Raises:
        UserError: there is no room.
    """
    status = path.stat()
    if not hasattr(os, "posix_fallocate") or status.st_blocks * 512 >= status.st_size:  # macOS; it has its space
        return
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, status.st_size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):  # else it cannot be done there
            raise unwritable(path, error) from None


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other process works on ``path``; the system frees the lock of a process that dies.

    Raises:
        UserError: the lock, a file beside ``path``, cannot be written.
    """
    lock = path.with_name(f"{path.name}.lock")
    with _locked(lock, path):
        try:
            yield
        finally:
            with suppress(OSError):
                lock.unlink(missing_ok=True)


def _locked(lock: Path, path: Path) -> IO[str]:
    """The open file ``lock``, once no other process has a lock on it; see :func:`wait_for_lock`."""
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = lock.open("w")
        except OSError as error:
            raise unwritable(lock.parent, error) from None
        wait_for_lock(file, path)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                return file
        file.close()  # the process that had the lock removed the file


def wait_for_lock(file: IO[str], path: Path) -> None:
    """Lock an open file; where another process has the lock, log that it works in ``path``, and wait."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("waiting for another process that works in %s", path)
        fcntl.flock(file, fcntl.LOCK_EX)


def unwritable(path: Path, error: BaseException) -> UserError:
    """Error for a ``path`` that cannot be written."""
    reason = getattr(error, "strerror", None) or first_line(error)
    return UserError(
        f"{path} cannot be written ({reason}): make room or correct the permissions, and run the same command again"
    )


def natural_key(name: str | Path) -> tuple[str, str]:
    """Sorting key that compares numbers in a name by value (2 before 10) and other text as usual."""
    text = str(name)
    return re.sub(r"\d+", lambda digits: digits[0].zfill(32), text), text


# What a damaged array or archive raises besides OSError and ValueError; a header that claims too much is a MemoryError,
# and zipfile raises NotImplementedError for a method of compression or a version that it does not know.
BROKEN = (
    *(EOFError, MemoryError, NotImplementedError, RuntimeError, SyntaxError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


def load_arrays(path: Path, keys: Sequence[str] = ()) -> np.ndarray | dict[str, np.ndarray]:
    """The array of a ``.npy`` file, or the arrays of an ``.npz`` file by name; reads no pickles.

    Args:
        keys: of an ``.npz`` file, as far as it has them; none = all.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is damaged, or holds something else.
    """
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            arrays = {key: content[key] for key in keys or content.files if key in content.files}
    except BROKEN as error:
        raise ValueError(str(error).partition("\n")[0] or "it is cut off") from error
    if other := [key for key, value in arrays.items() if not isinstance(value, np.ndarray)]:
        raise ValueError(f"'{other[0]}' in it is no array")
    return arrays


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a compressed ``.npz`` that is complete or absent."""
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)
