"""Programs in a bundle: the trained method as one file that runs without this project (``export.format``)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from datasets.base import MultimodalDataModule
from datasets.batch import Batch, missing_content, unobserved
from datasets.missingness import Complete
from models.base import Method, Prediction
from models.program import Program
from trainers.loading import Run
from trainers.onnx_parts import write_parts
from trainers.onnx_program import run_onnx, save_onnx
from trainers.tracing import arguments, blank, rounding_bound, trace
from utils.errors import UserError
from utils.subsets import enumerate_subsets

log = logging.getLogger(__name__)
FILES = {"torch": "model.pt2", "onnx": "model.onnx"}
# Rows of the validation split on which a program is compared with the method.
ROWS = 64


def formats(cfg: DictConfig) -> list[str]:
    """``export.format`` as a list."""
    given = cfg.export.format
    return [given] if isinstance(given, str) else [str(name) for name in given or []]


def method_to_export(run: Run, threshold: float | None) -> Method:
    """The trained method on the CPU, where programs are traced.

    Args:
        threshold: of DyMo's selection.

    Raises:
        UserError: it cannot be exported, with the reason.
    """
    cfg = run.cfg.copy()
    cfg.trainer.accelerator = "cpu"
    method: Any = Run(cfg).load_method()
    if threshold is not None:
        method.rule.threshold = threshold
    if reason := method.why_not_exported():
        wanted = ",".join(name for name in formats(run.cfg) if name != "bundle")
        raise UserError(f"export.format={wanted}: {run.label} cannot be exported, {reason}: leave that out")
    return method


def write_programs(run: Run, method: Method, folder: Path) -> dict[str, Any]:
    """Write the programs that ``export.format`` asks for.

    Args:
        method: see :func:`method_to_export`.
        folder: made if needed.

    Returns:
        For the manifest: format -> file, and the largest difference from the method on rows of the validation split
        with its tolerance; ``inputs``, see ``MultimodalDataModule.describe_inputs``; ``outputs``, name -> shape; with
        ``export.parts`` the ``parts``, see :func:`trainers.onnx_parts.write_parts`.

    Raises:
        UserError: the method cannot be traced, or a program does not predict as it does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    batch, wanted = rows_to_compare(run.data), formats(run.cfg)
    example = blank(arguments(batch))
    about: dict[str, Any] = {"inputs": run.inputs}
    with torch.no_grad():
        expected = method(batch)
        program = trace(Program(method).eval(), example, run.label)
        names = ["logits", *method.program_outputs]
        for kind in (kind for kind in FILES if kind in wanted):
            file = folder / FILES[kind]
            if kind == "torch":
                torch.export.save(program, file)
                outputs = torch.export.load(file).module()(*arguments(batch))
            else:
                save_onnx(program, example, names, file)
                outputs = run_onnx(file, arguments(batch))
            about[kind] = {"file": file.name, **compare(kind, run.label, method, outputs, expected)}
    about["outputs"] = {name: list(outputs[name].shape[1:]) for name in names}
    if run.cfg.export.parts:
        classifier = getattr(method, "backbone", getattr(method, "method", method))
        imputer = run.load_imputer() if run.predicts_with_imputer else None
        about["parts"] = write_parts(classifier, imputer and imputer.move_to(torch.device("cpu")), batch, folder)
        for name, part in about["parts"].items():
            log.info("export: part %s: %s", name, part.get("left_out") or part["file"])
    return about


def compare(
    kind: str, name: str, method: Method, outputs: Mapping[str, Tensor], expected: Prediction
) -> dict[str, float]:
    """Compare the outputs of a program with the prediction of the method.

    Args:
        kind: format of the program, for messages.
        name: of the method, for messages.

    Returns:
        ``largest_difference`` of the logits of rows with the same decisions, and its ``tolerance``.

    Raises:
        UserError: they differ by more than rounding, or by a decision that was not a close call.
    """
    tolerance = rounding_bound(method, expected.logits)
    is_same = torch.ones(len(expected.logits), dtype=torch.bool)
    for key in method.program_outputs:
        if not outputs[key].is_floating_point():
            is_same &= (outputs[key] == expected.extras[key]).flatten(1).all(1)
    wrong = ~is_same & ~method.undecided(expected, tolerance)
    if wrong.any():
        raise UserError(
            f"export.format={kind}: the program decides otherwise than {name} in {int(wrong.sum())} of {len(wrong)} "
            f"validation rows: leave {kind} out"
        )
    difference = float(torch.where(is_same[:, None], outputs["logits"] - expected.logits, 0).abs().max())
    log.info("export: the %s program differs from %s by %.2g (tolerance %.2g)", kind, name, difference, tolerance)
    if not difference <= tolerance:
        raise UserError(
            f"export.format={kind}: the logits of the program differ from those of {name} by {difference:.2g} on "
            f"validation data, more than rounding explains ({tolerance:.2g}): leave {kind} out"
        )
    return {"largest_difference": difference, "tolerance": tolerance}


def rows_to_compare(data: MultimodalDataModule) -> Batch:
    """Rows of the validation split, else of another one, under every pattern of missing modalities, as far as there are
    enough rows. Of each table, every other row that lacks it keeps half of its cells. Missing content is NaN."""
    split = next(name for name in ("val", "train", "test") if data.has_split(name))
    n, m = min(ROWS, len(data.split(split))), len(data.modalities)
    batch = data.rows(split, np.arange(n))
    absent, hidden = data.masks(split, Complete())
    natural = torch.from_numpy(absent[:n])
    subsets = enumerate_subsets(m)
    order = np.arange(n) % len(subsets) if len(subsets) <= n else np.arange(n) * len(subsets) // n
    pattern = subsets[torch.from_numpy(order)]
    natural_cells, cells = {}, {}
    for i, table in enumerate(data.modalities):
        if table.kind != "table":
            continue
        given = hidden.get(table.name)
        known = natural[:, i, None].expand(n, *table.shape) if given is None else torch.from_numpy(given[:n])
        keeps_half = (torch.arange(n)[:, None] % 2 == 1) & (torch.arange(table.shape[0]) % 2 == 1)
        natural_cells[table.name] = known & natural[:, i, None]
        cells[table.name] = natural_cells[table.name] | (pattern[:, i, None] & ~keeps_half)
    masked = batch.replace(missing=natural | pattern, feature_missing=cells)
    has_nothing = unobserved(masked, data.modality_names).all(1)
    missing = torch.where(has_nothing[:, None], natural, masked.missing)
    cells = {name: torch.where(has_nothing[:, None], natural_cells[name], mask) for name, mask in cells.items()}
    inputs = {}
    for i, (name, x) in enumerate(batch.inputs.items()):
        is_missing = missing_content(x, name, missing[:, i], cells)
        inputs[name] = torch.where(is_missing, torch.nan, x) if x.is_floating_point() else x
    return batch.replace(inputs=inputs, missing=missing, feature_missing=cells)
