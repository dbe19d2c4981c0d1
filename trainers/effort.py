"""What a finished run took: parameters, seconds of its training, and seconds of its predictions.

``environment.json`` of a tested run has it as ``cost``, see :func:`cost_of`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from datasets.batch import Batch
from models.base import Method
from trainers.loading import Run
from trainers.timing import ENOUGH, device_clock
from utils.run_directory import RunDirectory
from utils.stopwatch import KEYS

ROWS = 1000  # after which no further batch is predicted


def cost_of(run: Run, method: Method, scenario: str, batches: Iterable[Batch]) -> dict[str, Any]:
    """
    Args:
        method: trained, as stage test evaluates it.
        scenario: name of the scenario of the batches.
        batches: of the test split, with what is missing.

    Returns:
        ``parameters`` and ``trainable_parameters`` of the networks that a prediction needs; ``fit_seconds`` and
        ``fit_processor_seconds`` of everything that was trained or estimated for it, ``fit_parts`` with the seconds of
        each; ``test_seconds_per_1000_rows`` and ``test_processor_seconds_per_1000_rows`` of predictions under
        ``test_scenario``, without comparators and without reading the data. None: not known, such as of a checkpoint
        that is given.
    """
    parameters = {id(p): p for network in method.networks() for p in network.parameters()}.values()
    parts = unique_parts(run)
    fit = {
        f"fit_{key}": None if None in parts.values() else round(sum(part[key] for part in parts.values() if part), 3)
        for key in KEYS
    }
    return {
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        **fit,
        "fit_parts": {name: part and part["seconds"] for name, part in parts.items()},
        **prediction_seconds(method, batches),
        "test_scenario": scenario,
    }


def unique_parts(run: Run) -> dict[str, Mapping[str, float] | None]:
    """Name -> effort of :func:`fit_parts`; each training once, different ones of a name with a number."""
    parts: dict[str, Mapping[str, float] | None] = {}
    seen = set()
    for name, directory, effort in fit_parts(run):
        if (name, directory) in seen:
            continue
        seen.add((name, directory))
        number = sum(other == name for other, _ in seen)
        parts[name if number == 1 else f"{name} ({number})"] = effort
    return parts


Part = tuple[str, str, Mapping[str, float] | None]  # name, directory, seconds


def fit_parts(run: Run) -> Iterator[Part]:
    """Every training and estimate that the predictions of a run depend on; one that several parts need occurs again."""
    name, is_given = str(run.trainable.name), bool(run.checkpoint_path)
    fit_directory = str(run.fit_directory.path)
    yield f"fit {name}", fit_directory, None if is_given else _effort(run.fit_directory, "fit")
    if not is_given:
        for part in run.prerequisites.values():
            yield from fit_parts(part)
    if run.uses_selection:
        is_given = bool(run.trainable.get("gaussian"))
        yield "gaussian", fit_directory, None if is_given else _effort(run.fit_directory, "gaussian")
    if run.predicts_with_imputer or run.trains_on_recoveries:
        yield from _imputer_parts(run)


def _imputer_parts(run: Run) -> Iterator[Part]:
    for part in run.imputer_parts.values():
        yield from _imputer_parts(part)
    if run.needs_imputer_weights and not run.imputer_parts:
        is_given = bool(run.cfg.imputer.checkpoint)
        directory = run.imputer_directory
        effort = None if is_given else _effort(directory, "impute")
        yield f"impute {run.cfg.imputer.name}", str(directory.path), effort


def _effort(directory: RunDirectory, stage: str) -> Mapping[str, float] | None:
    """Seconds in the marker of a stage; None in those of older runs."""
    return directory.result(stage).get("effort") if directory.marker(stage).is_file() else None


@torch.inference_mode()
def prediction_seconds(method: Method, batches: Iterable[Batch]) -> dict[str, float]:
    """Seconds per 1000 rows, of the first batches with :data:`ROWS` rows, or of ENOUGH seconds."""
    rows, wall, processor = 0, 0.0, 0.0
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices):  # a method that draws leaves the numbers of what follows as they are
        for batch in batches:
            start, processor_start = device_clock(), time.process_time()
            method(batch)
            wall, processor = wall + device_clock() - start, processor + time.process_time() - processor_start
            rows += len(batch.target)
            if rows >= ROWS or wall > ENOUGH:
                break
    values = (wall, processor)
    return {f"test_{key}_per_1000_rows": round(1000 * value / rows, 6) for key, value in zip(KEYS, values)}
