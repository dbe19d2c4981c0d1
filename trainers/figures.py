"""Figures of single trained models (curves and bars over all runs are drawn by stage report).

``python -m trainers.figures selection OUT.png RUN_DIRECTORY --scenario random_0.8``   which recoveries DyMo accepts

For CMPT:

``python -m trainers.figures per_class OUT.png RUN_DIRECTORY... --scenario whole_1``        Figures 4, 8 and 9
``python -m trainers.figures one_model OUT.png RUN_DIRECTORY...``                           Figures 12 and 13
``python -m trainers.figures features OUT.png WITH_RUN WITHOUT_RUN --order gain``           Figure 5
``python -m trainers.figures features OUT.png WITH_RUN WITHOUT_RUN --order no_gain``        Figure 10
``python -m trainers.figures attention OUT.png OVERRIDE... --without WITHOUT_RUN``          Figures 6 and 11

"With" is a run of CMPT, "without" a run of the same data set and seed that has no proxies (``CMPT_without_proxies``).
The gain of a class is its score with proxies minus that without them, under the same scenario.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from sklearn.manifold import TSNE

from datasets.missingness import parse_scenario
from datasets.missingness.base import slug
from trainers.config.build import build_data
from trainers.loading import Run as TrainedRun
from trainers.loading import open_run
from trainers.report import distributions, pictures
from trainers.report.runs import Run, gather, load_arrays
from trainers.report.statistics import is_right
from trainers.report.style import model_styles, save
from utils.errors import UserError
from utils.run_directory import current_names

log = logging.getLogger(__name__)
# Figures 6 and 11: name of an outcome -> is right without proxies, is right with them.
OUTCOMES = {
    "wrong without proxies, right with": (False, True),
    "right with and without proxies": (True, True),
    "right without proxies, wrong with": (True, False),
    "wrong with and without proxies": (False, False),
}
# What the paper says of Food-101 with the text missing, in percent, rounded as there.
PUBLISHED_SHARES = dict(zip(OUTCOMES, (15, 60, 3)))
ORDERS = ("gain", "no_gain")


def data_module(run: Run) -> Any:
    """The data set as the run's own configuration has it."""
    return build_data(OmegaConf.create(current_names(run.text("config.yaml"))))  # type: ignore[arg-type]


def class_names(run: Run) -> list[str]:
    """Names of the classes of the data set of a run."""
    return list(data_module(run).class_names)


def score_by_class(logits: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(C,): of classes the share of their rows that is right, of several labels (targets (N, C), < 0 = not labelled)
    each one's F1; NaN where a class has no rows."""
    classes = logits.shape[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        if target.ndim == 1:
            right = np.bincount(target[logits.argmax(1) == target], minlength=classes)
            return right / np.bincount(target, minlength=classes)
        said, true = (logits > 0) & (target >= 0), target > 0
        score = 2 * (said & true).sum(0) / (said.sum(0) + true.sum(0))
        return np.where(true.any(0), score, np.nan)


def score_label(target: np.ndarray) -> str:
    """What :func:`score_by_class` returns for such targets, as the label of an axis."""
    return "F1 (%)" if target.ndim == 2 else "right (%)"


def per_class(directories: Sequence[Path], scenario: str) -> Figure:
    """Scores of the classes under one scenario, one mark per model; seeds of a model are averaged.

    With two models and more, classes are sorted by the gain of the first model over the second, largest first, and the
    gain is printed beside them; with one, by its score.

    Raises:
        UserError: runs of several data sets, or without predictions of that scenario.
    """
    runs, _ = gather(directories)
    check_one_data_set(runs, "per_class")
    scores: dict[str, list[np.ndarray]] = {}
    for run in runs:
        data = sorted_predictions(run, scenario, "logits", "target")
        scores.setdefault(run.model, []).append(score_by_class(data["logits"], data["target"]))
    values = pd.DataFrame({model: np.mean(seeds, axis=0) * 100 for model, seeds in scores.items()})
    values.index = pd.Index(class_names(runs[0]))
    models = list(values)
    gain = values[models[0]] - values[models[1]] if len(models) > 1 else None
    return distributions.per_class(
        values.loc[sort_order(values[models[0]] if gain is None else gain)],
        score_label(data["target"]),
        model_styles(models),
        f"{runs[0].dataset}, {scenario_title(runs[0], scenario)}"
        + (f"\ngain: {models[0]} minus {models[1]}, percentage points" if gain is not None else ""),
        gain,
    )


def selection(directory: Path, scenario: str, rows: int) -> Figure:
    """Views, recoveries, rewards and decisions of DyMo in some rows of the stored examples.

    Rows with both accepted and rejected recoveries and a correct prediction come first, and among them those with the
    most missing modalities, then those with the highest reward.

    Raises:
        UserError: a run without stored examples of the scenario.
    """
    (run,), _ = gather([directory])
    file = run.path / "examples" / f"{slug(scenario)}.npz"
    if not file.is_file():
        stored = ", ".join(sorted(f.stem for f in file.parent.glob("*.npz"))) or "none"
        raise UserError(
            f"{run.path} has no examples of '{scenario}' (it has {stored}): give --scenario one of them, or run stage "
            "test of model=DyMo with this scenario and overwrite=true"
        )
    data = load_arrays(file)
    missing, n_accepted = data["missing"].sum(1), (data["accepted"] >= 0).sum(1)
    is_mixed = (n_accepted > 0) & (n_accepted < missing)
    is_correct = data["prediction"] == data["target"]
    highest = np.nan_to_num(data["rewards"], nan=-np.inf).max((1, 2))
    order = np.lexsort((-highest, -missing, ~is_correct, ~is_mixed))[:rows]
    shared = ("modality_names", "class_names")
    chosen = {key: values if key in shared else values[order] for key, values in data.items()}
    return pictures.samples(chosen, f"{run.dataset}, {run.model}, {scenario}, {run.repeat}", limit=rows)


def one_model(directories: Sequence[Path], scenarios: Sequence[str]) -> Figure:
    """Scores of the classes of one model under several scenarios (complete, text only, image only), one mark per
    scenario; seeds are averaged. Classes are sorted by their score under the first scenario, highest first.

    Raises:
        UserError: runs of several data sets or models, or without predictions of a scenario.
    """
    runs, _ = gather(directories)
    check_one_data_set(runs, "one_model")
    if len(models := sorted({run.model for run in runs})) > 1:
        raise UserError(f"one_model draws one model, not {', '.join(models)}: give run directories of one of them")
    columns = {}
    for scenario in scenarios:
        data = [sorted_predictions(run, scenario, "logits", "target") for run in runs]
        seeds = [score_by_class(d["logits"], d["target"]) for d in data]
        columns[observed_title(runs[0], scenario)] = np.mean(seeds, axis=0) * 100
    values = pd.DataFrame(columns, index=pd.Index(class_names(runs[0])))
    return distributions.per_class(
        values.loc[sort_order(values.iloc[:, 0])],
        score_label(data[0]["target"]),
        model_styles(list(values)),
        f"{runs[0].dataset}, {models[0]}",
    )


def check_one_data_set(runs: Sequence[Run], kind: str) -> None:
    """
    Raises:
        UserError: the runs are of several data sets.
    """
    if len(names := sorted({run.dataset for run in runs})) > 1:
        raise UserError(f"{kind} draws one data set, not {', '.join(names)}: give runs of one")


def sort_order(values: pd.Series) -> list[str]:
    """Labels of the largest value first, equal ones in their order, NaN last."""
    return list(values.sort_values(ascending=False, kind="stable", na_position="last").index)


def scenario_title(run: Run, scenario: str) -> str:
    """Caption and name of a scenario: "text missing (whole_1)"."""
    caption = parse_scenario(scenario).caption(data_module(run).modality_names)
    return caption if scenario == "none" else f"{caption} ({scenario})"


def observed_title(run: Run, scenario: str) -> str:
    """What the model sees: "complete", of two modalities "image only", of more "without image"; else the caption."""
    names = data_module(run).modality_names
    if not (hidden := hidden_modalities(run, scenario)):
        return parse_scenario(scenario).caption(names)
    observed = [name for name in names if name not in hidden]
    return f"{observed[0]} only" if len(observed) == 1 else f"without {' and '.join(hidden)}"


def hidden_modalities(run: Run, scenario: str) -> list[str]:
    """Names of the modalities that a scenario hides in all rows; empty for scenarios that hide others in other rows."""
    names = data_module(run).modality_names
    return [names[i] for i in parse_scenario(scenario).always_missing]


def sorted_predictions(run: Run, scenario: str, *keys: str) -> dict[str, np.ndarray]:
    """The named arrays of a run's predictions as far as they were saved, rows in the order of the test split.

    Raises:
        UserError: no predictions of that scenario.
    """
    file = run.predictions(run.model, scenario)
    if not file.is_file():
        saved = sorted(f.stem for f in (run.path / "predictions").glob("*.npz"))
        raise UserError(f"{run.path} has no predictions of '{scenario}' (it has {', '.join(saved)})")
    data = load_arrays(file, "index", *keys)
    order = np.argsort(data["index"], kind="stable")
    return {key: values[order] for key, values in data.items()}


def load_pair(with_proxies: Path, without: Path, scenario: str, *keys: str) -> tuple[Run, list[dict[str, np.ndarray]]]:
    """Predictions of two runs on the same rows under the same scenario.

    Returns:
        The run with proxies; its arrays and those of the run without.

    Raises:
        UserError: a run is not finished, or the two have other test rows, targets or masks.
    """
    runs = [gather([directory])[0][0] for directory in (with_proxies, without)]
    data = [sorted_predictions(run, scenario, "logits", "target", "missing", *keys) for run in runs]
    for key in ("index", "target", "missing"):
        if not np.array_equal(data[0][key], data[1][key]):
            raise UserError(
                f"{runs[0].path} and {runs[1].path} differ in the {key} of the test rows of '{scenario}': "
                "give two runs of one data set with the same missing.seed"
            )
    return runs[0], data


def choose_classes(gain: np.ndarray, order: str, count: int) -> np.ndarray:
    """Numbers of ``count`` classes: with order ``gain`` those that gain most, with ``no_gain`` those that gain least
    (or lose most), the extreme first. ``gain`` is (C,); NaN (a class without rows) is never chosen."""
    known = np.flatnonzero(~np.isnan(gain))
    ranked = known[np.argsort(-gain[known] if order == "gain" else gain[known], kind="stable")]
    return ranked[:count]


def features(
    with_proxies: Path, without: Path, scenario: str, order: str, classes: int, rows: int, seed: int = 0
) -> Figure:
    """One t-SNE map of the fused features with three point sets: complete data (of the run with proxies), the scenario
    without proxies, and the scenario with them.

    Args:
        order: of :func:`choose_classes`, by the gain of the classes under the scenario. classes: how many are drawn.
        rows: at most so many rows of the chosen classes are embedded, the same ones of each point set.

    Raises:
        UserError: runs without features, with features of other widths, of several labels, or on other rows.
    """
    run, (data, data_without) = load_pair(with_proxies, without, scenario, "features")
    target = data["target"]
    if target.ndim > 1:
        raise UserError(f"{run.dataset} has several labels, and a point has one colour: choose another data set")
    sets = {
        "complete": sorted_predictions(run, "none", "features"),
        "missing, without proxies": data_without,
        "missing, with proxies": data,
    }
    for directory, name in ((with_proxies, "complete"), (without, "missing, without proxies")):
        if "features" not in sets[name]:
            raise UserError(
                f"{directory} has no features: run stage test with report.features=[none,{scenario}] and overwrite=true"
            )
    if "features" not in data:
        raise UserError(
            f"{with_proxies} has no features of '{scenario}': run stage test with report.features=[none,{scenario}] "
            "and overwrite=true"
        )
    if len(widths := {d["features"].shape[1] for d in sets.values()}) > 1:
        raise UserError(f"features of widths {sorted(widths)} have no common map: give two runs with the same encoders")
    gain = score_by_class(data["logits"], target) - score_by_class(data_without["logits"], target)
    chosen = choose_classes(gain, order, classes)
    candidates = np.flatnonzero(np.isin(target, chosen))
    picked = np.sort(np.random.default_rng(seed).permutation(candidates)[:rows])
    stacked = np.concatenate([d["features"][picked] for d in sets.values()])
    perplexity = min(30.0, (len(stacked) - 1) / 3)
    places = TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(stacked.astype(np.float64))
    points = dict(zip(sets, np.split(places, len(sets))))
    names = class_names(run)
    labels = {int(c): f"{names[c]} ({100 * gain[c]:+.1f})" for c in chosen}
    words = "largest" if order == "gain" else "smallest"
    title = f"{run.dataset}, {scenario_title(run, scenario)}, {run.repeat}"
    subtitle = f"the {len(chosen)} classes with the {words} gain (percentage points in brackets)"
    return distributions.embedding(points, target[picked], labels, title, subtitle)


def rows_by_outcome(with_proxies: np.ndarray, without: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of every outcome of :data:`OUTCOMES`.

    Args:
        with_proxies, without: (N,) bool, whether the row is right.
    """
    return {
        name: np.flatnonzero((without == right_without) & (with_proxies == right_with))
        for name, (right_without, right_with) in OUTCOMES.items()
    }


def describe_shares(groups: Mapping[str, np.ndarray], published: Mapping[str, float]) -> str:
    """One line per outcome: share of the rows in percent, and number of rows; beside the paper's where it has one."""
    total = sum(map(len, groups.values()))
    lines = []
    for name, rows in groups.items():
        paper = f" (paper: about {published[name]:g} %)" if name in published else ""
        lines.append(f"{name:<36} {100 * len(rows) / total:6.2f} % of {total:,} rows ({len(rows):,}){paper}")
    return "\n".join(lines)


def attention(trained: TrainedRun, without: Path, scenario: str, count: int, seed: int = 0) -> tuple[Figure, str]:
    """What class token and proxies of CMPT attend to, in the modality that has patches (the first image, the frames, a
    spectrogram), for samples chosen by their outcome with and without proxies.

    Args:
        trained: the finished run with proxies.
        without: run directory of the model without proxies.
        scenario: under which both are right or wrong.
        count: samples drawn per outcome (``wrong with and without proxies`` is counted, not drawn).

    Returns:
        The figure, and the shares of the outcomes as text.

    Raises:
        UserError: another model, only texts, or predictions that are absent or of other rows.
    """
    data = trained.data
    drawn = [i for i, m in enumerate(data.modalities) if m.kind in ("image", "video")]
    drawn += [i for i, m in enumerate(data.modalities) if m.kind == "audio"]
    model = trained.load_model()
    if not model.has_attention_maps or not drawn:
        raise UserError(f"attention maps are of CMPT on images or sound, not of {trained.label}: give model=CMPT")
    run, arrays = load_pair(trained.directory.path, without, scenario)
    target = arrays[0]["target"]
    groups = rows_by_outcome(*(is_right(a["logits"], target) for a in arrays))
    is_published = run.dataset == "Food101" and hidden_modalities(run, scenario) == ["text"]
    published = PUBLISHED_SHARES if is_published and not trained.cfg.dataset.get("demo") else {}
    shares = describe_shares(groups, published)
    if target.ndim == 2:
        shares = f"A row is right where every label is.\n{shares}"
    i, rng = drawn[0], np.random.default_rng(seed)
    name = data.modalities[i].name
    shown: dict[str, list[tuple[np.ndarray, dict[str, np.ndarray], str]]] = {}
    for outcome, rows in list(groups.items())[:3]:
        # Absent content has no picture: choose among the rows whose image is in the data.
        candidates = rows[~sorted_predictions(run, "none", "missing")["missing"][rows, i]]
        picked = np.sort(rng.permutation(candidates)[:count])
        title = f"{outcome}: {100 * len(rows) / len(target):.1f} % of {len(target):,} rows"
        shown[title] = []
        if len(picked) == 0:
            continue
        x = data.rows("test", arrays[0]["index"][picked], trained.device).inputs[name]
        x = x[:, x.shape[1] // 2] if x.ndim == 5 else x  # the middle frame
        maps = {token: values.cpu().numpy() for token, values in model.attention_maps(i, x).items()}
        for k, (picture, row) in enumerate(zip(_pictures(data, name, x), picked)):
            said = [_classes(data.class_names, a["logits"][row], target.ndim) for a in (arrays[1], arrays[0])]
            true = _classes(data.class_names, target[row], target.ndim)
            label = f"true: {true}\nwithout: {said[0]}\nwith: {said[1]}"
            shown[title].append((picture, {token: values[k] for token, values in maps.items()}, label))
    title = (
        f"{run.dataset}, {trained.label}, {scenario_title(run, scenario)}: attention to '{name}', "
        "bright where it is high, each map scaled by its maximum"
    )
    return pictures.attention_maps(shown, title), shares


def _classes(names: Sequence[str], values: np.ndarray, labels: int) -> str:
    """The class of a target or of logits in words; of several labels at most two and the number of the others."""
    if labels == 1:
        return names[int(values.argmax() if values.ndim else values)]
    positive = [names[c] for c in np.flatnonzero(values > 0).tolist()]
    return ", ".join(positive[:2]) + (f" + {len(positive) - 2}" if len(positive) > 2 else "") or "none"


def _pictures(data: Any, name: str, x: torch.Tensor) -> np.ndarray:
    """(B, H, W, 3) or (B, H, W) in [0, 1]; a spectrogram with time to the right."""
    if x.ndim == 3:
        low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
        return ((x - low) / (high - low).clamp(min=1e-6)).transpose(1, 2).cpu().numpy()
    images = data.pixels(name, x).cpu().numpy().transpose(0, 2, 3, 1)
    return images[..., 0] if images.shape[-1] == 1 else images


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Raises:
        UserError: what cannot be drawn.
    """
    parser = argparse.ArgumentParser("python -m trainers.figures", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", choices=("selection", "per_class", "one_model", "features", "attention"))
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="+", help="run directories; for attention the overrides of run.py")
    parser.add_argument("--scenario", default="whole_1", help="of all but one_model")
    parser.add_argument("--scenarios", nargs="+", default=["none", "whole_0", "whole_1"], help="of one_model")
    parser.add_argument("--order", choices=ORDERS, default="gain", help="of features: which classes are drawn")
    parser.add_argument("--classes", type=int, default=10, help="of features: how many classes are drawn")
    parser.add_argument("--rows", type=int, help="of selection (2), features (1000 per set), attention (2 per outcome)")
    parser.add_argument("--without", type=Path, help="of attention: run directory of the model without proxies")
    options = parser.parse_intermixed_args(arguments)
    directories = [Path(run) for run in options.runs]
    if options.kind == "selection":
        if len(directories) != 1:
            raise UserError("selection draws one run: give one run directory")
        figure = selection(directories[0], options.scenario, options.rows or 2)
    elif options.kind == "per_class":
        figure = per_class(directories, options.scenario)
    elif options.kind == "one_model":
        figure = one_model(directories, options.scenarios)
    elif options.kind == "features":
        if len(directories) != 2:
            raise UserError("features compares two runs: give the run directory with proxies, then the one without")
        figure = features(
            directories[0], directories[1], options.scenario, options.order, options.classes, options.rows or 1000
        )
    else:
        if options.without is None:
            raise UserError(
                "attention chooses samples by outcome: give --without RUN_DIRECTORY of CMPT_without_proxies"
            )
        figure, shares = attention(open_run(*options.runs), options.without, options.scenario, options.rows or 2)
        print(shares)
    save(figure, options.out)
    print(options.out)


if __name__ == "__main__":
    try:
        main()
    except UserError as problem:
        raise SystemExit(f"error: {problem}") from None
