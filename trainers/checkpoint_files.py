"""Checkpoint files of a training: written beside their place and renamed, the previous one kept to fall back on."""

from __future__ import annotations

import io
import logging
import os
import pickle
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from utils.checksums import checksum, checksum_of
from utils.errors import UserError
from utils.files import replacing
from utils.safe_pickle import check_pickles

log = logging.getLogger(__name__)
LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
# Keys needed only to resume, which is done from last.ckpt: Adam's moments alone are twice as large as the weights.
RESUMING = ("callbacks", "loops", "lr_schedulers", "optimizer_states")
_written: dict[str, str] = {}  # real path -> checksum of what this process wrote there last


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's writer of checkpoints, with a temporary file in the same folder.

    Lightning's own is in the system's temporary folder and, on another file system, copied over the old checkpoint: a
    process that is killed meanwhile leaves a part of it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint; ``last.ckpt`` becomes ``previous.ckpt`` when the new one is on disk.

        ``best.ckpt`` has no state of the training.

        Raises:
            UserError: it cannot be written.
        """
        target, content = Path(path), io.BytesIO()
        if target.name == BEST:
            checkpoint = {key: value for key, value in checkpoint.items() if key not in RESUMING}
        torch.save(checkpoint, content)
        _written[os.path.realpath(target)] = checksum_of(content.getbuffer())
        with replacing(target) as temporary:
            with temporary.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            if target.name == LAST and target.exists():
                os.replace(target, target.with_name(PREVIOUS))


def is_as_written(file: Path) -> bool:
    """Whether a checkpoint has the bytes that this process wrote."""
    with suppress(OSError):
        return checksum(file) == _written.get(os.path.realpath(file))
    return False


def resume_point(folder: Path) -> Path | None:
    """The checkpoint that a training goes on from: ``last.ckpt``, or the one before if that is damaged.

    Raises:
        UserError: no file can be read whole, or one holds more than tensors and plain values.
    """
    problems = []
    for file in (folder / LAST, folder / PREVIOUS):
        if not file.exists():
            continue
        try:
            _check(file)
        except Exception as error:  # a file can be broken in any way
            problems.append((file, error))
            continue
        if problems:
            log.warning(
                "%s %s: training goes on from %s, one epoch earlier", problems[0][0], _problem(problems[0][1]), file
            )
        return file
    if problems:
        raise UserError(
            f"{problems[0][0]} cannot be continued from: it {_problem(problems[0][1])}; delete {folder}, and the "
            "training starts again"
        ) from problems[0][1]
    return None


def _problem(error: Exception) -> str:
    """What is wrong with a file, by the error of :func:`_check`, which compares its checksums first."""
    if isinstance(error, pickle.UnpicklingError):
        return "holds more than tensors and plain values, which could be a program and is never loaded"
    return "is damaged"


def _check(file: Path) -> None:
    """Read a checkpoint whole; PyTorch does not compare the checksums that its zip format holds."""
    with zipfile.ZipFile(file) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"{damaged} is damaged")
    check_pickles(file)
    torch.load(file, map_location="cpu", weights_only=True, mmap=True)
