"""Copy the evidence of finished runs into the repository.

``python -m trainers.report.store STUDY RUN_DIRECTORY...`` writes ``docs/results/STUDY/``, see
:mod:`trainers.report.evidence`; a stored run is replaced. Folders of this machine are cut from the configurations.
"""

from __future__ import annotations

import argparse
import getpass
import io
import json
import logging
import platform
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from trainers.report.evidence import FILES, outcomes_of, write_manifest
from trainers.report.runs import FinishedRun, gather
from trainers.report.verification import verify_results
from utils.errors import UserError
from utils.files import replacing

log = logging.getLogger(__name__)
RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
LIMIT_MB = 20
# Where paths.* lead in a checkout without options.
FOLDERS = {"cache": "data/packed", "data": "data", "output": "outputs"}
ABSOLUTE = re.compile(r"(?<![\w/.])/[\w.@+-]+/[\w.@+-]+|(?<!\w)[A-Za-z]:\\+\w")
# Words that say nothing about a person or a machine.
GENERIC = ("root", "user", "runner", "ubuntu", "localhost")


def store(study: Path, run_dirs: Sequence[Path]) -> None:
    """Store finished runs in the folder of a study.

    Raises:
        UserError: a run is not finished, has no committed code, or names this machine; the study is too large.
    """
    prepared: dict[Path, dict[str, bytes]] = {}
    for directory in run_dirs:
        (run,), _ = gather([directory])
        verify_results([run])
        prepared[study.joinpath(*run.path.parts[-4:])] = evidence_of(run)
    for folder, files in prepared.items():
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with replacing(folder / name) as temporary:
                temporary.write_bytes(content)
    write_manifest(study)
    size = sum(file.stat().st_size for file in study.rglob("*") if file.is_file()) / 2**20
    if size > LIMIT_MB:
        raise UserError(f"{study} has {size:.1f} MB, more than {LIMIT_MB}: split the study")
    log.info("%s: %d runs stored, %.1f MB in all", study, len(prepared), size)


def evidence_of(run: FinishedRun) -> dict[str, bytes]:
    """Name -> content of the stored files of a run.

    Raises:
        UserError: see :func:`store`.
    """
    about = json.loads(run.text("environment.json") or "{}")
    commit = str(about.get("git_commit", ""))
    if not re.fullmatch(r"[0-9a-f]{7,40}", commit):
        raise UserError(f"{run.path}: its code is '{commit or 'unknown'}', no commit: commit the code and run it again")
    config: Any = OmegaConf.to_container(OmegaConf.create(run.text("config.yaml")))
    folders = {str(config["paths"][key]): name for key, name in FOLDERS.items() if key in (config.get("paths") or {})}
    texts = {
        "results.csv": run.text("results.csv"),
        "environment.json": json.dumps(scrubbed(about, folders), indent=1, sort_keys=True) + "\n",
        "config.yaml": OmegaConf.to_yaml(OmegaConf.create(scrubbed(config, folders)), sort_keys=True),
    }
    for name, text in texts.items():
        if word := next(local_names(text), None):
            raise UserError(f"{run.path / name} names this machine or a user of it ({word}): use relative paths")
    files = {name: text.encode() for name, text in texts.items()} | {"outcomes.npz": npz(outcomes_of(run))}
    assert set(files) == set(FILES)
    return files


def scrubbed(value: Any, folders: Mapping[str, str]) -> Any:
    """The value with paths below ``folders`` (folder -> its name in a checkout) made relative, and of other absolute
    paths the last part only."""
    if isinstance(value, Mapping):
        return {key: scrubbed(item, folders) for key, item in value.items()}
    if isinstance(value, list):
        return [scrubbed(item, folders) for item in value]
    if not isinstance(value, str) or not (PurePosixPath(value).is_absolute() or PureWindowsPath(value).drive):
        return value
    path = PureWindowsPath(value) if PureWindowsPath(value).drive else PurePosixPath(value)
    for folder, name in sorted(folders.items(), key=lambda item: -len(item[0])):
        if path.is_relative_to(folder):
            return str(PurePosixPath(name, path.relative_to(folder).as_posix()))
    return path.name


def local_names(text: str) -> Iterator[str]:
    """Absolute paths in a text, and the names of this machine and its user."""
    yield from (match[0] for match in ABSOLUTE.finditer(text))
    for name in (platform.node(), getpass.getuser()):
        if len(name) > 2 and name.lower() not in GENERIC:
            yield from re.findall(rf"(?<![\w.]){re.escape(name)}(?![\w.])", text, flags=re.IGNORECASE)


def npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Compressed ``.npz`` whose bytes depend on the arrays only: sorted names, no times."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(arrays):
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(arrays[name]), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue(), zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m trainers.report.store", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("study", help="name of the folder in docs/results")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIRECTORY")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the studies")
    options = parser.parse_args(arguments)
    store(options.results / options.study, options.runs)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main()
    except UserError as problem:
        raise SystemExit(f"error: {problem}") from None
