"""Stage ``test``: every scenario in one pass over the test split; results, predictions, masks, examples."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from datasets.base import MultimodalDataModule
from datasets.batch import Batch
from datasets.loader import check_rows_without_nan
from datasets.missingness import Scenario, parse_scenarios, save_mask
from datasets.noise import Corruption
from models.base import Method
from trainers.config.build import build_metrics
from trainers.effort import cost_of
from trainers.learned import learn
from trainers.loading import Run
from trainers.report.style import ORACLE_NOTE, is_oracle, with_dagger
from utils.errors import UserError
from utils.files import replacing, save_arrays
from utils.metrics import METRICS, LabelMetrics, class_measures, classification_metrics, metric_names
from utils.progress import Progress
from utils.spreadsheet import write_table
from utils.user_metrics import UserMetrics, direction_of_class

log = logging.getLogger(__name__)
# Scenario -> (N, M) bool; scenario -> table -> (N, F) bool; label -> scenario -> arrays.
Masks = Mapping[str, np.ndarray]
CellMasks = Mapping[str, Mapping[str, np.ndarray]]
Outputs = dict[str, dict[str, dict[str, np.ndarray]]]
OUTPUT = ("results.csv", "results_per_class.csv", "predictions", "masks", "examples")
VALIDATION = ("selection_validation.csv", "selection_rules.csv")
PER_CLASS = ("dataset", "model", "seed", "scenario", "metric", "class", "value", "n", "positives", "train", "fold")


def evaluate(run: Run) -> None:
    """Write ``results.csv``, ``results_per_class.csv``, ``predictions/``, ``masks/``, ``examples/`` and ``DONE`` into
    the run directory of the model."""
    cfg, directory, data = run.cfg, run.directory, run.data
    settings = run.test_settings
    inputs = data.store.digest("test")
    if directory.finished("test", settings, directory / "results.csv", inputs):
        log.info("test: %s is there and valid, skipped", directory / "results.csv")
        if not (directory / "DONE").exists():  # killed right after the marker was written
            (directory / "DONE").touch()
        return
    masks, cells = scenario_masks(data, "test", run.scenarios)
    noise = {scenario.name: data.corruption("test", scenario) for scenario in run.scenarios}
    nan_rows = data.split("test").nan_rows
    if nan_rows is not None:
        for mask in masks.values():
            check_rows_without_nan(nan_rows, mask, data.modalities)
    user_metrics = build_metrics(cfg, data)
    model = run.load_method()
    directory.clear("DONE")  # first: without its marker, the old output is no finished run
    directory.begin("test", settings, clear=[*OUTPUT, *VALIDATION], continues=False)
    learn(run, model)
    if model.needs_calibration:
        calibrate(run, model)
    about = {"metrics": {name: direction_of_class(metric) for name, metric in user_metrics.metrics.items()}}
    directory.describe(cfg, {"mask_sha256_16": _save_masks(run, masks, cells, noise)} | about)
    batches = data.loader("test", device=run.device)
    outputs = predict(model, batches, masks, cells, features=tuple(cfg.report.features or ()), noise=noise)
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
    directory.finish("test", settings, OUTPUT, inputs=inputs)
    (directory / "DONE").touch()
    log.info("test: accuracy in %% on %d rows\n%s", len(data.split("test")), accuracy_table(results))


def _cost(
    run: Run, model: Method, masks: Masks, cells: CellMasks, noise: Mapping[str, Corruption | None]
) -> dict[str, Any]:
    """See :func:`trainers.effort.cost_of`."""
    name, batches = hardest(run.data.loader("test", device=run.device), masks, cells, noise)
    return cost_of(run, model, name, batches)


def hardest(
    batches: Iterable[Batch], masks: Masks, cells: CellMasks, noise: Mapping[str, Corruption | None]
) -> tuple[str, Iterator[Batch]]:
    """The scenario in which most is missing, and the batches under it."""
    name = max(masks, key=lambda scenario: masks[scenario].mean())

    def hidden() -> Iterator[Batch]:
        for batch in batches:
            corruption = noise[name]
            seen = batch if corruption is None else corruption(batch)
            yield scenario_batches(seen, {name: masks[name]}, cells)[name]

    return name, hidden()


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


def tabulate(
    run: Run, outputs: Outputs, masks: Masks, cells: CellMasks, user_metrics: UserMetrics
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Rows of ``results.csv`` by the outputs of :func:`predict`, and those of ``results_per_class.csv``; logs metrics
    that could not be computed."""
    cfg, data = run.cfg, run.data
    rows, per_class = [], []
    for label, by_scenario in outputs.items():
        name = f"{run.label}/{label}" if label else run.label
        for scenario in run.scenarios:
            arrays = by_scenario[scenario.name]
            values, failures = measure(arrays, data.task, data.num_classes, user_metrics)
            for metric, value in values.items():
                rows.append((cfg.dataset.name, name, cfg.seed, scenario.name, metric, value, len(arrays["target"])))
            for metric, reason in failures.items():
                log.error(
                    "test: metric '%s' of %s under scenario '%s' failed (%s): it is empty in results.csv; "
                    "the predictions are stored",
                    metric,
                    name,
                    scenario.name,
                    reason,
                )
            if not failures:
                per_class.append(measure_classes(arrays, data.class_names).assign(model=name, scenario=scenario.name))
    trained_on = {"train": str(run.training_scenario.name), "fold": run.fold}
    rates = {s.name: data.realised_rate(s, masks[s.name], cells[s.name]) for s in run.scenarios}
    frame = pd.DataFrame(rows, columns=["dataset", "model", "seed", "scenario", "metric", "value", "n"])
    frame = frame.assign(**trained_on, missing_rate=frame["scenario"].map(rates))
    if not per_class:
        return frame, None
    return frame, pd.concat(per_class).assign(dataset=cfg.dataset.name, seed=cfg.seed, **trained_on)


def load_settled(run: Run) -> Method:
    """The trained method with the threshold of its selection, which validation data choose where it is ``auto``."""
    method = run.load_method()
    if method.needs_calibration and run.uses_selection and run.cfg.model.selection.threshold == "auto":
        calibrate(run, method)
    return method


def calibrate(run: Run, model: Method) -> None:
    """Let the method choose on the validation split, see :meth:`models.base.Method.calibrate`; writes
    ``selection_validation.csv`` and, of :attr:`models.base.Method.choices`, ``selection_rules.csv``."""
    cfg, data = run.cfg, run.data
    if not data.has_split("val"):
        if left_out := model.validated_comparators:
            log.warning(
                "the data have no validation split: selection is not checked, comparators left out: %s",
                ", ".join(left_out),
            )
        return
    masks, cells = scenario_masks(data, "val", parse_scenarios(list(cfg.model.validation), len(data.modalities)))
    batches = data.loader("val", device=run.device)
    frame = model.calibrate((batch, scenario_batches(batch, masks, cells)) for batch in batches)
    for name, table in zip(VALIDATION, (frame, model.choices), strict=True):
        if table is frame or len(table):
            with replacing(run.directory / name) as file:
                table.to_csv(file, index=False)


def scenario_masks(
    data: MultimodalDataModule, split: str, scenarios: Sequence[Scenario]
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """Masks of a split under each scenario: scenario -> (N, M) bool, and scenario -> table -> (N, F) bool."""
    masks, cells = {}, {}
    for scenario in scenarios:
        masks[scenario.name], cells[scenario.name] = data.masks(split, scenario)
    return masks, cells


@torch.inference_mode()
def predict(
    model: Method,
    batches: Any,
    masks: Masks,
    cells: CellMasks | None = None,
    progress: bool = True,
    features: Sequence[str] = (),
    noise: Mapping[str, Corruption | None] | None = None,
) -> Outputs:
    """Predict under every scenario, in one pass.

    Args:
        batches: iterable of :class:`Batch` of the split.
        masks: scenario -> (N, M) bool.
        cells: scenario -> table name -> (N, F) bool, missing cells of tables that the mask marks.
        features: scenarios whose fused features are kept, if the method returns them.
        noise: scenario -> corruption of the content; content is encoded once for all scenarios with the same one.

    Returns:
        label -> scenario -> arrays index, logits, target, missing, the method's extras and ``features`` (N, D), sorted
        by index.

    Raises:
        UserError: logits that are not finite.
    """
    pieces: dict[str, dict[str, dict[str, list[Tensor]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    by_corruption: dict[Corruption | None, list[str]] = defaultdict(list)
    for scenario in masks:
        by_corruption[(noise or {}).get(scenario)].append(scenario)
    for batch in Progress(batches, "test", unit="batch", disable=not progress):
        for corruption, names in by_corruption.items():
            seen = batch if corruption is None else corruption(batch)
            masked = scenario_batches(seen, {name: masks[name] for name in names}, cells or {})
            for label, predictions in model.predict_scenarios(seen, masked).items():
                for scenario, prediction in predictions.items():
                    values = {
                        "index": batch.index,
                        "logits": prediction.logits,
                        "target": batch.target,
                        "missing": masked[scenario].missing,
                        **prediction.extras,
                    }
                    if scenario in features and prediction.features is not None:
                        values["features"] = prediction.features
                    for key, value in values.items():
                        pieces[label][scenario][key].append(value.cpu())
    outputs = {
        label: {name: {key: _join(values) for key, values in parts.items()} for name, parts in by_scenario.items()}
        for label, by_scenario in pieces.items()
    }
    for arrays_by_scenario in outputs.values():
        for scenario, arrays in arrays_by_scenario.items():
            _check_finite(scenario, arrays)
    return outputs


def _check_finite(scenario: str, arrays: Mapping[str, np.ndarray]) -> None:
    is_broken = ~np.isfinite(arrays["logits"]).all(1)
    if is_broken.any():
        raise UserError(
            f"scenario '{scenario}': the logits of {int(is_broken.sum())} of {len(is_broken)} rows are not finite "
            f"(the first is row {arrays['index'][is_broken.argmax()]}): training diverged (lower the learning "
            "rate), or the table holds a code that training does not have"
        )


def scenario_batches(batch: Batch, masks: Masks, cells: CellMasks) -> dict[str, Batch]:
    """Scenario -> the batch under its masks, which are those of all rows of the split (see :func:`predict`)."""
    rows, device = batch.index.cpu(), batch.index.device

    def rows_of(mask: np.ndarray) -> Tensor:
        return torch.from_numpy(mask)[rows].to(device)

    return {
        scenario: batch.replace(
            missing=rows_of(mask),
            feature_missing={table: rows_of(hidden) for table, hidden in cells.get(scenario, {}).items()},
        )
        for scenario, mask in masks.items()
    }


def _join(pieces: list[Tensor]) -> np.ndarray:
    """Concatenate batches; rewards of a batch with fewer rounds are padded with NaN."""
    if pieces[0].ndim == 3:
        rounds = max(p.shape[1] for p in pieces)
        pieces = [torch.nn.functional.pad(p, (0, 0, 0, rounds - p.shape[1]), value=float("nan")) for p in pieces]
    return torch.cat(pieces).numpy()


def measure(
    arrays: Mapping[str, np.ndarray], task: str, num_classes: int, user_metrics: UserMetrics
) -> tuple[dict[str, float], dict[str, str]]:
    """Classification metrics of one scenario, for a selection the share of accepted recoveries and the rounds per
    sample, and the metrics of the user.

    Returns:
        metric -> value, NaN where it could not be computed, and metric -> reason for these.
    """
    logits, target = torch.from_numpy(arrays["logits"]), torch.from_numpy(arrays["target"])
    failures: dict[str, str] = {}

    def compute(*names: str) -> dict[str, float]:
        metrics = classification_metrics(task, num_classes, names)
        metrics.update(logits, target)
        return {k: float(v) for k, v in metrics.compute().items()}

    try:
        values = compute(*METRICS)
    except Exception:  # whatever one metric raises, the others are written
        values = {}
        for name in metric_names(task):
            try:
                values |= compute(name)
            except Exception as error:
                values[name] = math.nan
                failures[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    if "final_missing" in arrays:
        unrecoverable = arrays.get("unrecoverable", np.zeros_like(arrays["missing"]))
        recovered = (arrays["missing"] & ~unrecoverable).sum()
        accepted = (arrays["missing"] & ~arrays["final_missing"]).sum()
        values["accepted_share"] = float(accepted / recovered) if recovered else 0.0
        values["iterations"] = float(arrays["iterations"].mean())
    for name in user_metrics.metrics:
        try:
            values[name] = user_metrics.compute(name, logits, target)
        except UserError as error:  # the others are written
            values[name], failures[name] = math.nan, str(error)
    return values, failures


def measure_classes(arrays: Mapping[str, np.ndarray], class_names: Sequence[str]) -> pd.DataFrame:
    """Metrics of each class or label in one scenario: one row per metric and class, NaN for a class without rows and a
    label with one class only.

    Returns:
        columns metric, class, value, n (rows, or labelled rows), positives.
    """
    logits, target = torch.from_numpy(arrays["logits"]), torch.from_numpy(arrays["target"])
    if target.ndim == 2:
        metrics = LabelMetrics(len(class_names), METRICS)
        metrics.update(logits, target)
        values = metrics.per_label()
    else:
        values = class_measures(logits, target)
    counts = {key: values.pop(key).numpy().astype(int) for key in ("n", "positives")}
    parts = [pd.DataFrame({"metric": k, "class": class_names, "value": v, **counts}) for k, v in values.items()]
    return pd.concat(parts)


def accuracy_table(frame: pd.DataFrame) -> str:
    """Accuracy in percent of models (rows) under scenarios (columns), with missing rates, for the terminal; a dagger
    marks models that use labels."""
    accuracy = frame[frame.metric == "accuracy"]
    table = accuracy.pivot(index="model", columns="scenario", values="value") * 100
    order = list(dict.fromkeys(accuracy.scenario))
    table = table.loc[list(dict.fromkeys(accuracy.model)), order].map("{:.2f}".format).replace("nan", "–")
    has_oracle = any(map(is_oracle, table.index))
    table.index = pd.Index([with_dagger(model) for model in table.index], name="model")
    rates = accuracy.groupby("scenario")["missing_rate"].first()[order]
    table.loc["missing rate"] = [f"{rate:.3g}" for rate in rates]
    return table.to_string() + f"\n† {ORACLE_NOTE}" * has_oracle


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
