"""Stage ``test``: every scenario in one pass over the test split; results, predictions, masks, examples."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from datasets.loader import check_rows_without_nan
from datasets.missingness import parse_scenarios, save_mask
from datasets.noise import Corruption
from models.base import Method
from trainers.config.build import build_metrics
from trainers.effort import cost_of
from trainers.learned import learn
from trainers.loading import Run
from trainers.measurement import accuracy_table, realised_rates, tabulate
from trainers.prediction import CellMasks, Masks, Outputs, hardest, merge, predict, scenario_batches, scenario_masks
from trainers.processes import Processes, join, starts_others
from utils.errors import UserError
from utils.files import replacing, save_arrays
from utils.run_directory import DESCRIPTION
from utils.spreadsheet import write_table
from utils.user_metrics import direction_of_class

log = logging.getLogger(__name__)
OUTPUT = ("results.csv", "results_per_class.csv", "predictions", "masks", "examples")
VALIDATION = ("selection_validation.csv", "selection_rules.csv")
PER_CLASS = ("dataset", "model", "seed", "scenario", "metric", "class", "value", "n", "positives", "train", "fold")


def evaluate(run: Run) -> None:
    """Write ``results.csv``, ``results_per_class.csv``, ``predictions/``, ``masks/``, ``examples/`` and ``DONE`` into
    the run directory of the model.

    Several processes share the batches of the test split; the first one writes the files.
    """
    if starts_others(run.cfg) and _is_finished(run):
        return
    processes = join(run.cfg, "test")
    with run.directory.held():
        _evaluate(run, processes)


def _is_finished(run: Run) -> bool:
    directory = run.directory
    if not directory.finished("test", run.test_settings, directory / "results.csv", run.data.store.digest("test")):
        return False
    log.info("test: %s is there and valid, skipped", directory / "results.csv")
    if not (directory / "DONE").exists():  # killed right after the marker was written
        (directory / "DONE").touch()
    return True


def _evaluate(run: Run, processes: Processes) -> None:
    cfg, directory, data = run.cfg, run.directory, run.data
    is_first = processes.rank == 0
    with processes.common_work(is_last=True):
        # The first one decides for all, once it has written the output of the stages before.
        if processes.share(is_first and _is_finished(run)):
            return
        settings, inputs = run.test_settings, data.store.digest("test")
        masks, cells = scenario_masks(data, "test", run.scenarios)
        noise = {scenario.name: data.corruption("test", scenario) for scenario in run.scenarios}
        nan_rows = data.split("test").nan_rows
        if nan_rows is not None:
            for mask in masks.values():
                check_rows_without_nan(nan_rows, mask, data.modalities)
        user_metrics = build_metrics(cfg, data)
        model = run.load_method()
        if is_first:
            directory.clear("DONE")  # first: without its marker, the old output is no finished run
            directory.begin("test", settings, clear=[*OUTPUT, *VALIDATION], continues=False)
            learn(run, model)
        processes.wait()
        if not is_first:
            learn(run, model)  # reads what the first process has learned
        if model.needs_calibration:
            _calibrate_alike(run, model, processes)
        if is_first:
            about = {"metrics": {name: direction_of_class(metric) for name, metric in user_metrics.metrics.items()}}
            directory.describe(cfg, {"mask_sha256_16": _save_masks(run, masks, cells, noise)} | about)
        batches = data.loader("test", device=run.device).every(processes.rank, processes.count)
        features = tuple(cfg.report.features or ())
        own: Outputs | UserError
        try:
            own = predict(model, batches, masks, cells, is_first, features, noise)
        except UserError as error:  # which the first process raises
            own = error
        pieces = processes.gather(own)
    if not is_first:
        return
    for piece in pieces:
        if isinstance(piece, UserError):
            raise piece
    outputs = merge([piece for piece in pieces if not isinstance(piece, UserError)])
    for label, by_scenario in outputs.items():
        folder = directory / "predictions" / label if label else directory / "predictions"
        for scenario in run.scenarios:
            save_arrays(folder / f"{scenario.slug}.npz", by_scenario[scenario.name])
    results, per_class = tabulate(run, outputs, masks, cells, user_metrics)
    write_examples(run, model, masks, cells, noise)
    if per_class is not None:
        with replacing(directory / "results_per_class.csv") as file:
            write_table(per_class[list(PER_CLASS)], file)
    with replacing(directory / "results.csv") as file:
        write_table(results, file)
    directory.add_to_environment(cost=_cost(run, model, masks, cells, noise))
    directory.finish("test", settings, [*OUTPUT, *DESCRIPTION], inputs=inputs)
    (directory / "DONE").touch()
    log.info("test: accuracy in %% on %d rows\n%s", len(data.split("test")), accuracy_table(results))


def _cost(
    run: Run, model: Method, masks: Masks, cells: CellMasks, noise: Mapping[str, Corruption | None]
) -> dict[str, Any]:
    """See :func:`trainers.effort.cost_of`."""
    loader = run.data.loader("test", device=run.device)
    name, batches = hardest(loader, realised_rates(run, masks, cells), masks, cells, noise)
    return cost_of(run, model, name, batches)


def _save_masks(run: Run, masks: Masks, cells: CellMasks, noise: Mapping[str, Corruption | None]) -> dict[str, str]:
    """Write ``masks/``; scenario -> hash of its mask."""
    return {
        scenario.name: save_mask(
            run.directory / "masks" / scenario.slug,
            masks[scenario.name],
            scenario,
            run.data.mask_seed("test", scenario),
            run.data.modality_names,
            cells[scenario.name],
            noise[scenario.name],
        )
        for scenario in run.scenarios
    }


def load_settled(run: Run, processes: Processes | None = None) -> Method:
    """The trained method with the threshold of its selection, which validation data choose where it is ``auto``.

    Args:
        processes: those that all load this method.
    """
    method = run.load_method()
    if method.needs_calibration and run.uses_selection and run.cfg.model.selection.threshold == "auto":
        _calibrate_alike(run, method, processes or Processes())
    return method


def _calibrate_alike(run: Run, model: Method, processes: Processes) -> None:
    """:func:`calibrate` in every process.

    Raises:
        UserError: they chose differently, so that their predictions would be of different methods.
    """
    chosen = calibrate(run, model, is_written=processes.rank == 0)
    first, *others = processes.gather(chosen) or [chosen]
    if not processes.share(all(_is_alike(first, other) for other in others)):
        raise UserError(
            "the processes chose different values on the validation split, as products of this device are not the same "
            "each time: run this stage in one process (trainer.devices=1 trainer.num_nodes=1)"
        )


def _is_alike(first: Sequence[pd.DataFrame], other: Sequence[pd.DataFrame]) -> bool:
    """Whether two processes have the same measurements, such as accuracies, and, but for rounding, fitted the same."""
    try:
        for a, b, rounding in zip(first, other, (0.0, 1e-5), strict=bool(first)):
            pd.testing.assert_frame_equal(a, b, rtol=rounding, atol=rounding)
    except (AssertionError, ValueError):
        return False
    return True


def calibrate(run: Run, model: Method, is_written: bool = True) -> list[pd.DataFrame]:
    """Let the method choose on the validation split, see :meth:`models.base.Method.calibrate`; writes
    ``selection_validation.csv`` and, of :attr:`models.base.Method.choices`, ``selection_rules.csv``, and returns these
    two tables."""
    cfg, data = run.cfg, run.data
    if not data.has_split("val"):
        if left_out := model.validated_comparators:
            log.warning(
                "the data have no validation split: selection is not checked, comparators left out: %s",
                ", ".join(left_out),
            )
        return []
    masks, cells = scenario_masks(data, "val", parse_scenarios(list(cfg.model.validation), len(data.modalities)))
    batches = data.loader("val", device=run.device)
    frame = model.calibrate((batch, scenario_batches(batch, masks, cells)) for batch in batches)
    tables = [frame, model.choices]
    for name, table in zip(VALIDATION, tables if is_written else (), strict=is_written):
        if table is frame or len(table):
            with replacing(run.directory / name) as file:
                table.to_csv(file, index=False)
    return tables


def write_examples(
    run: Run, model: Method, masks: Masks, cells: CellMasks, noise: Mapping[str, Corruption | None]
) -> None:
    """Write originals, recoveries and rewards of a few rows, for the pictures of the report."""
    data = run.data
    images = [m for m in data.modalities if m.kind in ("image", "series")]
    if not images:
        return
    gaps = data.natural_cells("test")
    n = len(data.split("test"))
    rows = np.linspace(0, n - 1, min(run.cfg.report.samples, n)).astype(int)
    # Rows that lack a modality in the source hold the content of another row, which must not be shown.
    absent = np.zeros((len(rows), len(data.modalities)), dtype=bool)
    for name, is_absent in data.natural_rows("test").items():
        absent[:, data.modality_names.index(name)] = is_absent[rows]
    for scenario in run.scenarios:
        mask = masks[scenario.name][rows]
        if not mask.any():
            continue
        name = scenario.name
        batch = scenario_batches(data.rows("test", rows, run.device), {name: masks[name]}, {name: cells[name]})[name]
        if (corruption := noise[name]) is not None:
            batch = corruption(batch)
        if (example := model.examples(batch)) is None:
            return
        prediction, completed = example
        arrays: dict[str, np.ndarray] = {
            "index": rows,
            "target": batch.target.cpu().numpy(),
            "prediction": prediction.logits.argmax(1).cpu().numpy(),
            "missing": mask,
            "absent": absent,
            "modality_names": np.array(data.modality_names),
            "class_names": np.array(data.class_names),
            **{k: prediction.extras[k].cpu().numpy() for k in ("final_missing", "rewards", "accepted")},
        }
        for m in images:
            for kind, source in (("original", batch.inputs), ("recovered", completed)):
                x = source[m.name]
                if kind == "original" and m.kind == "series" and m.name in gaps:
                    x = x.masked_fill(torch.from_numpy(gaps[m.name][rows]).to(x.device), torch.nan)
                pixels = (data.pixels(m.name, x) * 255).round().byte().cpu().numpy()
                if kind == "original":
                    pixels[absent[:, data.modality_names.index(m.name)]] = 0
                arrays[f"{kind}_{m.name}"] = pixels
        save_arrays(run.directory / "examples" / f"{scenario.slug}.npz", arrays)
