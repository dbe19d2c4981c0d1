"""Stage ``export``: calibrate on validation data, score there, and write the bundle with its model card."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from datasets.base import MultimodalDataModule
from datasets.batch import Batch
from datasets.missingness import Complete, Scenario, unobserved
from datasets.missingness.whole import Whole
from trainers.bundle import write_bundle
from trainers.evaluate import load_settled
from trainers.loading import Run
from trainers.measurement import measure
from trainers.prediction import predict
from trainers.programs import FILES, formats, method_to_export, write_programs
from utils.calibration import Temperatures, pattern_of
from utils.errors import UserError
from utils.subsets import enumerate_subsets
from utils.user_metrics import UserMetrics

log = logging.getLogger(__name__)
# Every pattern of missing modalities is calibrated for as long as there are no more than these.
MAX_PATTERNS = 63


def export(run: Run) -> None:
    """A bundle in ``export.folder``, by default ``bundle`` in the model's run directory, and its ``.zip``."""
    with run.directory.held():
        _export(run, Path(run.cfg.export.folder or run.directory / "bundle"))


def _export(run: Run, folder: Path) -> None:
    run.data.prepare()
    method: Any = load_settled(run)
    threshold = float(method.rule.threshold) if run.uses_selection else None
    programs = None
    if set(formats(run.cfg)) - {"bundle"}:
        programs = partial(write_programs, run, method_to_export(run, threshold))
    if run.data.has_split("val"):
        temperatures, validation = on_validation(run, method)
    else:
        temperatures, validation = None, []
        log.warning("export: the data have no validation split: the bundle's confidence is not calibrated")
    card = model_card(run, temperatures, validation, folder.name)
    write_bundle(run, folder, temperatures, validation, card, threshold, programs)
    log.info("export: %s and %s.zip", folder, folder)


def on_validation(
    run: Run, method: Any, batches: Iterable[Batch] | None = None
) -> tuple[Temperatures, list[dict[str, Any]]]:
    """Temperatures per pattern of missing modalities, and scores under the scenarios of ``missing.test``.

    Args:
        batches: of the validation split; None = all.

    Returns:
        The temperatures; rows of scenario, missing_rate, metric, value and n.
    """
    data = run.data
    patterns: list[Scenario] = [Complete()]
    subsets = enumerate_subsets(len(data.modalities)).numpy()
    if len(subsets) <= MAX_PATTERNS:
        patterns += [Whole(tuple(int(i) for i in np.flatnonzero(subset))) for subset in subsets if subset.any()]
    masks, cells, scored = {}, {}, []
    for pattern in patterns:
        masks[pattern.name], cells[pattern.name] = data.masks("val", pattern, spare=True)
    for scenario in run.scenarios:
        try:
            masks[scenario.name], cells[scenario.name] = data.masks("val", scenario)
            scored.append(scenario)
        except UserError as error:
            log.info("export: not scored: %s", error)
    noise = {s.name: data.corruption("val", s) for s in (*patterns, *scored)}
    progress = bool(run.cfg.trainer.enable_progress_bar)
    batches = data.loader("val", device=run.device) if batches is None else batches
    outputs = predict(method, batches, masks, cells, progress, noise=noise)[""]
    temperatures = calibrated(data, [outputs[p.name] for p in patterns], [cells[p.name] for p in patterns])
    rows_of_scores = []
    for scenario in scored:
        arrays = outputs[scenario.name]
        rate = data.realised_rate(scenario, masks[scenario.name], cells[scenario.name])
        values, _ = measure(arrays, data.task, data.num_classes, UserMetrics({}, data.task, data.num_classes))
        row = {"scenario": scenario.name, "missing_rate": rate, "n": len(arrays["index"])}
        rows_of_scores += [row | {"metric": metric, "value": value} for metric, value in values.items()]
    return temperatures, rows_of_scores


def calibrated(
    data: MultimodalDataModule, outputs: Sequence[Mapping[str, np.ndarray]], cells: Sequence[Mapping[str, np.ndarray]]
) -> Temperatures:
    """Fit temperatures per pattern of missing modalities.

    A row to which a pattern is not applied, since it would have nothing left, still has the pattern of its source. It
    counts once per pattern that it has.

    Args:
        outputs: arrays index, missing, logits and target under every pattern.
        cells: table -> (N, F) bool, missing cells under every pattern.
    """
    logits: dict[str, list[np.ndarray]] = {}
    target: dict[str, list[np.ndarray]] = {}
    counted: dict[str, set[int]] = {}
    for arrays, hidden_cells in zip(outputs, cells, strict=True):
        index = arrays["index"]
        rows_of_cells = {table: mask[index] for table, mask in hidden_cells.items()}
        nothing_seen = unobserved(arrays["missing"], rows_of_cells, data.modality_names)
        for pattern in np.unique(nothing_seen, axis=0):
            name = pattern_of(pattern)
            is_new = ~np.isin(index, list(counted.setdefault(name, set())))
            rows = (nothing_seen == pattern).all(1) & is_new
            counted[name] |= set(index[rows].tolist())
            logits.setdefault(name, []).append(arrays["logits"][rows])
            target.setdefault(name, []).append(arrays["target"][rows])
    return Temperatures.fit(
        {name: np.concatenate(parts) for name, parts in logits.items()},
        {name: np.concatenate(parts) for name, parts in target.items()},
    )


def model_card(run: Run, temperatures: Temperatures | None, validation: list[dict[str, Any]], name: str) -> str:
    """``README.md`` of a bundle, with the header that a model hub reads."""
    data, cfg = run.data, run.cfg
    lines = [
        "---",
        "library_name: pytorch",
        "tags: [multimodal, missing-modalities, classification]",
        "---",
        f"# {run.label} on {cfg.dataset.name}",
        "",
        f"{run.label}, trained with seed {cfg.seed}; it classifies rows of which any modalities may be missing.",
        "",
        f"- **Task:** {data.task}, {data.num_classes} classes: {', '.join(data.class_names[:20])}"
        + (", ..." if data.num_classes > 20 else ""),
        f"- **Modalities:** {', '.join(f'{m.name} ({m.kind}, shape {list(m.shape)})' for m in data.modalities)}",
    ]
    for m in data.modalities:
        if m.columns:
            lines.append(f"- **Columns of {m.name}:** {', '.join(m.columns)}")
    if run.uses_recoveries:
        parts = ", ".join(f"{name} by {node.name}" for name, node in (cfg.imputer.get("parts") or {}).items())
        lines.append(f"- **Missing modalities** are recovered{f': {parts}' if parts else f' by {cfg.imputer.name}'}.")
    lines += [
        "",
        "## Use",
        "",
        "```bash",
        f"python run.py stages=[predict] predict.bundle={name} predict.input=new.csv predict.output=predictions.csv",
        "```",
        "",
        "```python",
        "from trainers.predictor import load",
        f'load("{name}").predict("new.csv")',
        "```",
        "",
        *(f"Without this project: `programs/{FILES[kind]}`." for kind in formats(cfg) if kind in FILES),
        *([""] if set(formats(cfg)) & set(FILES) else []),
        "## Validation scores",
        "",
    ]
    if validation:
        frame = pd.DataFrame(validation)
        metrics = [metric for metric in ("accuracy", "auroc", "f1_macro") if metric in set(frame["metric"])]
        wide = frame[frame["metric"].isin(metrics)].pivot(
            index=["scenario", "missing_rate", "n"], columns="metric", values="value"
        )
        lines += [
            "The checkpoint and the temperatures were chosen on these rows, so that unseen rows score lower.",
            "",
            f"| scenario | missing rate | rows | {' | '.join(metrics)} |",
            f"|:--|--:|--:|{'--:|' * len(metrics)}",
        ]
        for (scenario, rate, n), row in wide.sort_index(level=1).iterrows():
            values = " | ".join(f"{row[metric]:.3f}" for metric in metrics)
            lines.append(f"| {scenario} | {rate:.3g} | {n} | {values} |")
    else:
        lines.append("None: the data had no validation split.")
    if temperatures is not None:
        lines += ["", f"Temperature of all validation rows: {temperatures.overall:.3g}."]
    lines += ["", "Not for decisions about people without a study of its errors on the population concerned.", ""]
    return "\n".join(lines)
