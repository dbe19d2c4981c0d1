"""Stored evidence of a study: ``docs/results/<study>/`` with the results of its runs, and their predicted classes.

Of each run, ``<data set>/<model>/<name>/seed<k>/`` holds ``results.csv``, ``environment.json``, ``config.yaml`` and
``outcomes.npz``; ``manifest.json`` has the SHA-256 of every file. Probabilities are not stored, so that a study stays
small: what :data:`METRICS_OF_CLASSES` cannot be computed from the predicted classes is only in ``results.csv``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from trainers.report.runs import FinishedRun, gather, load_arrays, read_results
from utils.errors import UserError
from utils.files import natural_key

MANIFEST = "manifest.json"
FILES = ("results.csv", "environment.json", "config.yaml", "outcomes.npz")
# Metrics of one label that depend on the predicted classes only.
METRICS_OF_CLASSES = ("accuracy", "f1_macro", "recall_macro", "mcc", "gmean")
AGAIN = "restore it with git, or store the run again: python -m trainers.report.store"


def checksums(study: Path) -> dict[str, dict[str, str]]:
    """Run -> file -> SHA-256 of what is in the folder of a study."""
    sums: dict[str, dict[str, str]] = {}
    for file in sorted(study.rglob("*"), key=natural_key):
        if file.is_file() and file != study / MANIFEST:
            run = sums.setdefault(str(file.parent.relative_to(study)), {})
            run[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return sums


def read_manifest(study: Path) -> dict[str, dict[str, str]]:
    """Run -> file -> SHA-256 of what should be in the folder of a study; empty without a manifest."""
    file = study / MANIFEST
    return json.loads(file.read_text())["runs"] if file.is_file() else {}


def write_manifest(study: Path) -> None:
    """Write the checksums of all files of a study."""
    content = {"study": study.name, "runs": checksums(study)}
    (study / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")


def check_files(study: Path) -> None:
    """
    Raises:
        UserError: a file is absent, changed or unknown, with its name.
    """
    expected, present = read_manifest(study), checksums(study)
    if not expected:
        raise UserError(f"{study} has no {MANIFEST}: store runs with python -m trainers.report.store {study.name}")
    for run, files in expected.items():
        if run not in present:
            raise UserError(f"{study}: the stored run {run} is absent: {AGAIN} {study.name}")
        for name, digest in files.items():
            if name not in present[run]:
                raise UserError(f"{study / run / name} is absent: {AGAIN} {study.name}")
            if present[run][name] != digest:
                raise UserError(f"{study / run / name} differs from {MANIFEST}: {AGAIN} {study.name}")
    for run, files in present.items():
        if unknown := sorted(files.keys() - expected.get(run, {}).keys()):
            raise UserError(f"{study / run / unknown[0]} is not in {MANIFEST}: delete it, or store its run")


def outcomes_of(run: FinishedRun) -> dict[str, np.ndarray]:
    """Content of ``outcomes.npz``.

    Returns:
        ``index`` (N,), ``target`` (N,) or (N, C), and per file of predictions ``<file>`` ``predicted/<file>`` (N,)
        classes, or (N, C) labels, and ``missing/<file>`` (N, M).

    Raises:
        UserError: predictions of a scenario are absent, or of other rows.
    """
    arrays: dict[str, np.ndarray] = {}
    for member, scenario in run.frame[["model", "scenario"]].drop_duplicates().itertuples(index=False):
        file = run.predictions(str(member), str(scenario))
        if not file.is_file():
            raise UserError(f"{file} is absent: run stages=[test] of this run again")
        saved = load_arrays(file, "index", "logits", "target", "missing")
        order = np.argsort(saved["index"], kind="stable")
        index, target, logits = (saved[key][order] for key in ("index", "target", "logits"))
        if not all(np.array_equal(arrays.setdefault(k, v), v) for k, v in (("index", index), ("target", target))):
            raise UserError(f"{file} has other test rows than the first scenario: run stages=[test] of this run again")
        key = str(file.relative_to(run.path / "predictions").with_suffix(""))
        predicted = logits > 0 if target.ndim == 2 else logits.argmax(1)
        arrays[f"predicted/{key}"] = predicted.astype(np.min_scalar_type(max(logits.shape[1] - 1, 1)))
        arrays[f"missing/{key}"] = saved["missing"][order].astype(bool)
    for key in ("index", "target"):
        values = arrays[key]
        low, high = (np.min_scalar_type(value) for value in (values.min(initial=0), values.max(initial=0)))
        arrays[key] = values.astype(np.promote_types(low, high))
    return arrays


@contextmanager
def stored_runs(study: Path) -> Iterator[list[FinishedRun]]:
    """The runs of a study as the report reads them; predictions are one-hot logits of the predicted classes.

    Raises:
        UserError: a file is absent or changed, or the outcomes of a run do not give its accuracy.
    """
    check_files(study)
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / run for run in read_manifest(study)]
        for path, run in zip(paths, read_manifest(study), strict=True):
            shutil.copytree(study / run, path)
            (path / "DONE").touch()
            columns = (path / "results.csv").read_text().partition("\n")[0]
            if "missing_rate" not in columns:  # an older run: gather takes it from the masks
                older = _StoredRun(path, read_results(path / "results.csv"))
                for model, scenario in older.frame[["model", "scenario"]].drop_duplicates().itertuples(index=False):
                    older.predictions(str(model), str(scenario))
        gathered, _ = gather(paths)
        stored = []
        for finished in gathered:
            each = _StoredRun(finished.path, finished.frame)
            each.config = finished.config  # parsed already
            stored.append(each)
            _check_accuracy(each, study)
        yield list(stored)


class _StoredRun(FinishedRun):
    """A run whose predictions are written when they are asked for: a page needs few of them."""

    @cached_property
    def outcomes(self) -> dict[str, np.ndarray]:
        return dict(load_arrays(self.path / "outcomes.npz"))

    @cached_property
    def classes(self) -> int:
        labels = [values for key, values in self.outcomes.items() if key == "target" or key.startswith("predicted/")]
        return 1 + max(int(values.max(initial=0)) for values in labels)

    def name(self, model: str, scenario: str) -> str:
        """Under which outcomes.npz has the predictions of a file."""
        file = super().predictions(model, scenario)
        return file.relative_to(self.path / "predictions").as_posix().removesuffix(".npz")

    def predictions(self, model: str, scenario: str) -> Path:
        file, name = super().predictions(model, scenario), self.name(model, scenario)
        predicted = self.outcomes.get(f"predicted/{name}")
        if predicted is not None and not file.exists():
            target = self.outcomes["target"].astype(np.int64)
            logits = 2.0 * predicted - 1 if target.ndim == 2 else np.eye(self.classes)[predicted]
            file.parent.mkdir(parents=True, exist_ok=True)
            missing = self.outcomes[f"missing/{name}"]
            np.savez(file, index=self.outcomes["index"], target=target, missing=missing, logits=logits)
        return file


def _check_accuracy(run: _StoredRun, study: Path) -> None:
    rows = run.frame[run.frame["metric"] == "accuracy"]
    for model, scenario, value in rows[["model", "scenario", "value"]].itertuples(index=False):
        predicted, target = run.outcomes.get(f"predicted/{run.name(str(model), str(scenario))}"), run.outcomes["target"]
        if predicted is None:
            raise UserError(f"{study}: outcomes.npz of {model}, {run.repeat}, lacks {scenario}: {AGAIN} {study.name}")
        if target.ndim == 1:
            accuracy = float((predicted == target).mean())
            if abs(accuracy - value) > 1e-6:
                raise UserError(
                    f"{study}: results.csv of {model}, {run.repeat}, has accuracy {value:.4f} under {scenario}, and "
                    f"its outcomes give {accuracy:.4f}: {AGAIN} {study.name}"
                )


def studies(results: Path) -> Sequence[str]:
    """Names of the studies with stored runs."""
    return sorted(file.parent.name for file in results.glob(f"*/{MANIFEST}"))
