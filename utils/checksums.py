"""Checksums of the files that stages write: a file that was damaged or edited since is refused where it is read.

The marker of a finished stage (``stages/<stage>.json``) and the ``meta.json`` of a packed store hold one per file.
PyTorch and safetensors do not verify what they read: a flipped bit in a checkpoint is a changed weight.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from utils.errors import UserError

log = logging.getLogger(__name__)

BLOCK = 4 * 2**20
# Larger files are compared by size alone: reading them once more would take minutes from a network disk.
LARGEST = 16 * 2**30
_verified: set[tuple[str, int, int, str]] = set()  # path, size, time of change, checksum


def checksum(path: Path) -> str:
    """``<size in bytes>-<XXH3 of 128 bits>`` of a file."""
    digest = xxhash.xxh3_128()
    size = path.stat().st_size
    if size <= LARGEST:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return f"{size}-{digest.hexdigest()}"


def checksum_of(content: bytes | memoryview) -> str:
    """:func:`checksum` of a file with this content, of at most LARGEST bytes."""
    return f"{len(content)}-{xxhash.xxh3_128(content).hexdigest()}"


def checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Checksums of files and of all files in folders, by path below ``folder``; absent names are left out."""
    files: list[Path] = []
    for name in names:
        path = folder / name
        files += sorted(path.rglob("*")) if path.is_dir() else [path]
    return {file.relative_to(folder).as_posix(): checksum(file) for file in files if file.is_file()}


def sealed(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Plain values with their checksum, under ``name`` among the checksums of ``files``; unchanged without these."""
    if not content.get("files"):
        return dict(content)
    return {**content, "files": {**content["files"], name: digest(content)}}


def open_seal(content: dict[str, Any], name: str) -> dict[str, Any]:
    """What :func:`sealed` was given; content of older versions has no seal.

    Raises:
        ValueError: the values are not those that were sealed.
    """
    files = content.get("files")
    if isinstance(files, dict) and files.pop(name, None) not in (None, digest(content)):
        raise ValueError("its checksum differs")
    return content


def digest(content: Mapping[str, Any]) -> str:
    """XXH3 of 128 bits of plain values, the same before they are written as JSON and after they are read."""
    plain = json.loads(json.dumps(content))  # as a file gives it back: keys are texts, tuples are lists
    return xxhash.xxh3_128(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def verify(path: Path, expected: str, fix: str) -> None:
    """Compare a file with its checksum, once per process.

    Args:
        expected: see :func:`checksum`.
        fix: what to do about a difference, for the message.

    Raises:
        UserError: it is absent, cannot be read, or differs.
    """
    try:
        status = path.stat()
        key = (str(path), status.st_size, status.st_mtime_ns, expected)
        if key in _verified:
            return
        actual = checksum(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {fix}") from None
    if actual != expected:
        sizes = [int(text.partition("-")[0]) for text in (expected, actual)]
        what = "checksum" if sizes[0] == sizes[1] else f"{sizes[1]} bytes instead of {sizes[0]}"
        raise UserError(f"{path} was damaged or changed after it was written ({what}): {fix}")
    if status.st_size > LARGEST:
        log.info("%s: compared by its size alone (over %d GiB)", path, LARGEST // 2**30)
    _verified.add(key)


def is_listed(folder: Path, name: str) -> bool:
    """Whether a marker of a run directory holds the checksum of a file."""
    return any(name in _files(marker) for marker in folder.glob("stages/*.json"))


def verify_artefact(path: Path) -> None:
    """Verify a file of a run directory against the marker of the stage that wrote it.

    Files elsewhere, files of unfinished stages and those of runs without checksums are not verified.

    Raises:
        UserError: it differs; names the stage.
    """
    path = Path(path)
    for folder in list(path.parents)[:4]:  # predictions/<comparator>/<scenario>.npz
        for marker in sorted(folder.glob("stages/*.json")):
            expected = _files(marker).get(path.relative_to(folder).as_posix())
            if expected is not None:
                verify(
                    path, expected, f"restore it from a copy, or delete {marker}, and stage '{marker.stem}' runs again"
                )
                return


def _files(marker: Path) -> Mapping[str, str]:
    try:
        files = json.loads(marker.read_text()).get("files")
    except (OSError, ValueError, AttributeError):  # RunDirectory names a damaged marker
        return {}
    return files if isinstance(files, dict) else {}
