"""Run directories: named files, one marker per finished stage, no silent overwriting."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar

import torch
from omegaconf import OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from utils.checksums import checksums, is_listed, open_seal, sealed, verify_artefact
from utils.errors import UserError
from utils.files import replacing, wait_for_lock

log = logging.getLogger(__name__)

# Regular expressions of renamed classes and keys in the settings of older runs -> present names.
RENAMED = {
    r"\bdatasets\.(audio\.Log|video\.Frames)": r"datasets.readers.\1",
    r"\bmodels\.baselines\.base\.TrainingMasks": "models.baselines.masks.TrainingMasks",
    r"\bmodels\.encoders\.pretrained\.Adapter\b": "models.encoders.adapters.Adapter",
    r'(?m)^(\s*"?)low("?: )': r"\1train_fraction\2",
    r'(?m)^(\s*"?)baselines("?:)': r"\1training_defaults\2",
}
DESCRIPTION = ("config.yaml", "environment.json")
SOURCE_ROOT = Path(__file__).resolve().parent.parent
# Keys of a model that its training does not depend on (a modality is part of its module).
NOT_OF_FIT = (
    "transformer_checkpoint", "checkpoint", "gaussian", "use_imputer", "modality", "prerequisites",
    "select", "selector", "selection", "comparators", "validation", "rules",
)  # fmt: skip


def current_names(text: str) -> str:
    """Settings (JSON) or configuration (YAML) of an older run with the present names of classes and keys."""
    for old, new in RENAMED.items():
        text = re.sub(old, new, text)
    return text


class RunDirectory:
    """``<output>/<dataset>/<model>/<name>/seed<k>``.

    Args:
        path: the folder; the first stage that writes makes it.
        overwrite: a stage may replace finished output that was made with another configuration.
        data_paths: settings of the data that older markers hold beside the signature of the packed store; they are not
            compared.
    """

    begun: ClassVar[int] = 0  # stages that this process has begun
    _held: ClassVar[set[tuple[Path, int]]] = set()  # folders whose lock a thread of this process has

    def __init__(self, path: Path, overwrite: bool = False, data_paths: Collection[str] = ()) -> None:
        self.path, self.overwrite, self.data_paths = path, overwrite, data_paths

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def marker(self, stage: str) -> Path:
        return self.path / "stages" / f"{stage}.json"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let one process at a time run a stage here, so that the jobs of a sweep make what they share once.

        Other processes wait, and find the stage finished. The system frees the lock of a process that dies. Of a
        distributed training, rank 0 holds it for all. A thread that holds it already does not wait for itself.
        """
        holder = (self.path, threading.get_ident())
        if getattr(rank_zero_only, "rank", 0) or holder in self._held:
            yield
            return
        lock = self.path / "stages" / ".lock"
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            stream: IO[str] | None = lock.open("a")  # leaves the time of an existing file
        except OSError:  # a folder that can only be read: a finished stage is skipped, others name the problem
            stream = None
        if stream is None:
            yield
            return
        with stream as file:
            wait_for_lock(file, self.path)
            self._held.add(holder)
            try:
                yield
            finally:
                self._held.discard(holder)

    def finished(
        self,
        stage: str,
        settings: Mapping[str, Any],
        output: Path | None = None,
        inputs: Mapping[str, str] | None = None,
    ) -> bool:
        """Whether the output of a stage exists and was made with these settings.

        Args:
            output: a file that must exist for the stage to be finished, whatever its marker says.
            inputs: checksums of what the stage reads, compared to those that its marker holds (none in older runs).

        Raises:
            UserError: the stage was run, or begun, with other settings or inputs and ``overwrite`` is off; names the
                first difference.
        """
        for marker in (self.marker(stage), self.marker(f"{stage}.begun")):
            if not marker.exists():
                continue
            content = self._read(marker)
            difference = first_difference(*map(self._without_paths, (content["settings"], _plain(settings))))
            if difference is None and inputs and content.get("inputs"):
                difference = first_difference(content["inputs"], dict(inputs))
            if difference is None:
                if marker == self.marker(stage):
                    return output is None or output.is_file()
                continue
            if not self.overwrite:
                state = "finished" if marker == self.marker(stage) else "unfinished"
                raise UserError(
                    f"{self.path} holds a {state} stage '{stage}' with other settings ({difference}): "
                    "choose another name=..., or overwrite=true to replace it"
                )
            return False
        return False

    def difference(self, marker: str, settings: Any, key: str) -> str | None:
        """Compare a part of the settings that a marker holds.

        Args:
            marker: name of a stage, or ``<stage>.begun``.
            settings: of the part.
            key: of the part in the settings.

        Returns:
            ``key: old -> new`` of the first leaf that differs; None if all agree, or without such a marker.
        """
        file = self.marker(marker)
        return first_difference(self._read(file)["settings"].get(key), _plain(settings)) if file.exists() else None

    def begin(
        self, stage: str, settings: Mapping[str, Any], clear: Collection[str] = (), continues: bool = True
    ) -> bool:
        """Mark a stage as begun with these settings.

        Args:
            clear: output of the stage, removed unless the stage may be continued. Meanwhile the stage is neither
                finished nor begun: a process that is killed here leaves nothing that passes for output of the new
                settings.
            continues: the stage can be continued at all; False always clears.

        Returns:
            Whether the stage was begun before with the same settings and may be continued.
        """
        RunDirectory.begun += 1
        begun = self.marker(f"{stage}.begun")
        can_continue = continues and begun.exists()
        if can_continue:
            old = self._read(begun)["settings"]
            can_continue = first_difference(*map(self._without_paths, (old, _plain(settings)))) is None
        self.marker(stage).unlink(missing_ok=True)
        if not can_continue:
            begun.unlink(missing_ok=True)
            self.clear(*clear)
        write_json(begun, {"settings": _plain(settings)})
        return can_continue

    def finish(self, stage: str, settings: Mapping[str, Any], files: Collection[str] = (), **results: Any) -> None:
        """Mark a stage as finished.

        Args:
            files: names of its files and folders, whose checksums the marker holds, see :mod:`utils.checksums`.
            results: plain values that the marker holds too.
        """
        content = {"settings": _plain(settings), **results}
        if files:
            content["files"] = checksums(self.path, files)
        marker = self.marker(stage)
        write_json(marker, sealed(content, marker.name))
        self.marker(f"{stage}.begun").unlink(missing_ok=True)

    def result(self, stage: str) -> dict[str, Any]:
        return self._read(self.marker(stage))

    def _read(self, marker: Path) -> dict[str, Any]:
        try:
            text = marker.read_text()
            open_seal(json.loads(text), marker.name)
            content = json.loads(current_names(text))
            (content.get("files") or {}).pop(marker.name, None)
            content["settings"]
            return content
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{marker} is damaged ({error}): delete it, and its stage runs again") from None

    def _without_paths(self, settings: Any) -> Any:
        """Settings without ``data_paths`` beside the signature of a packed store."""
        if isinstance(settings, dict):
            left_out = self.data_paths if "signature" in settings else ()
            return {key: self._without_paths(value) for key, value in settings.items() if key not in left_out}
        return [self._without_paths(value) for value in settings] if isinstance(settings, list) else settings

    def clear(self, *names: str) -> None:
        for name in names:
            target = self.path / name
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)

    def describe(self, config: Any, extra: Mapping[str, Any] | None = None) -> None:
        """Write ``config.yaml`` and ``environment.json``.

        Nothing is written where a marker holds their checksums: they describe finished output, and another stage that
        runs again does not change what that came from.
        """
        if is_listed(self.path, DESCRIPTION[0]):
            return
        with replacing(self / "config.yaml") as file:
            file.write_text(OmegaConf.to_yaml(config, resolve=True))
        write_json(self / "environment.json", environment() | dict(extra or {}))

    def add_to_environment(self, **entries: Any) -> None:
        """Add entries to ``environment.json``."""
        file = self / "environment.json"
        write_json(file, json.loads(file.read_text()) | entries)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    with replacing(path) as file:
        file.write_text(json.dumps(content, indent=2) + "\n")


def _plain(settings: Any) -> Any:
    """Settings as JSON returns them, so that stored and current settings compare equal."""
    if OmegaConf.is_config(settings):
        settings = OmegaConf.to_container(settings, resolve=True)
    return json.loads(json.dumps(settings, default=str))


def first_difference(old: Any, new: Any, key: str = "") -> str | None:
    """``key: old -> new`` of the first leaf that differs, or None."""
    if isinstance(old, dict) and isinstance(new, dict):
        for k in sorted(old.keys() | new.keys()):
            difference = first_difference(old.get(k), new.get(k), f"{key}.{k}" if key else k)
            if difference:
                return difference
        return None
    return None if old == new else f"{key}: {old} -> {new}"


def file_hash(path: Path) -> str:
    """First 16 hex digits of the SHA-256 of a file.

    Raises:
        UserError: the file is not as its stage wrote it.
    """
    verify_artefact(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def environment() -> dict[str, Any]:
    """Versions, device and commit."""
    from importlib.metadata import version

    packages = ("torch", "pytorch-lightning", "torchvision", "torchmetrics", "hydra-core", "numpy", "scikit-learn")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
    return {
        "python": sys.version.split()[0],
        "packages": {name: version(name) for name in packages},
        "device": device,
        "git_commit": git_commit(),
    }


def git_commit() -> str:
    """Commit of the checkout; of a copy without one, such as an image, the variable GIT_COMMIT."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = ""
    if shutil.which("git"):
        commit = subprocess.run(command, cwd=SOURCE_ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return commit or os.environ.get("GIT_COMMIT") or "not a git checkout"
