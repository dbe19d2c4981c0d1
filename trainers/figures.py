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
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from datasets.missingness import parse_scenario
from datasets.missingness.base import slug
from trainers.attention import attention
from trainers.loading import open_run
from trainers.report import distributions, pictures
from trainers.report.outcomes import score_by_class
from trainers.report.run_data import (
    check_one_data_set,
    class_names,
    load_pair,
    observed_title,
    scenario_title,
    sorted_predictions,
)
from trainers.report.runs import gather, load_arrays
from trainers.report.style import model_styles, save
from utils.errors import UserError

ORDERS = ("gain", "no_gain")


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
    caption = parse_scenario(scenario).caption([str(name) for name in data["modality_names"]])
    return pictures.samples(chosen, f"{run.dataset}, {run.model}, {caption}, {run.repeat}", limit=rows)


def per_class(directories: Sequence[Path], scenario: str) -> Figure:
    """Scores of the classes under one scenario, one mark per model; seeds are averaged.

    Classes are sorted by score, highest first; with two or more models by the gain of the first model over the second,
    which is printed beside them.

    Raises:
        UserError: runs of several data sets, or without predictions of the scenario.
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


def one_model(directories: Sequence[Path], scenarios: Sequence[str]) -> Figure:
    """Scores of the classes of one model, one mark per scenario (complete, text only, image only); seeds are averaged.

    Classes are sorted by their score under the first scenario, highest first.

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


def score_label(target: np.ndarray) -> str:
    """Axis label of :func:`score_by_class`."""
    return "F1 (%)" if target.ndim == 2 else "right (%)"


def sort_order(values: pd.Series) -> list[str]:
    """Index labels by decreasing value; ties in their order, NaN last."""
    return list(values.sort_values(ascending=False, kind="stable", na_position="last").index)


def choose_classes(gain: np.ndarray, order: str, count: int) -> np.ndarray:
    """Numbers of the ``count`` classes with the largest (order ``gain``) or smallest (``no_gain``) gain, in this order.

    Args:
        gain: (C,), NaN for classes without rows, which are never chosen.
    """
    known = np.flatnonzero(~np.isnan(gain))
    ranked = known[np.argsort(-gain[known] if order == "gain" else gain[known], kind="stable")]
    return ranked[:count]


def features(
    with_proxies: Path, without: Path, scenario: str, order: str, classes: int, rows: int, seed: int = 0
) -> Figure:
    """One t-SNE map of the fused features of complete data (run with proxies), and of the scenario without and with
    proxies.

    Args:
        order: see :func:`choose_classes`; the gain of a class is its score with proxies minus that without them.
        classes: number of classes drawn.
        rows: maximum number of rows of these classes, the same rows in every set.
        seed: of the choice of rows, and of t-SNE.

    Raises:
        UserError: no features, features of different widths, several labels, or different rows.
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
    positions = TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(stacked.astype(np.float64))
    points = dict(zip(sets, np.split(positions, len(sets))))
    names = class_names(run)
    labels = {int(c): f"{names[c]} ({100 * gain[c]:+.1f})" for c in chosen}
    words = "largest" if order == "gain" else "smallest"
    title = f"{run.dataset}, {scenario_title(run, scenario)}, {run.repeat}"
    subtitle = f"the {len(chosen)} classes with the {words} gain (percentage points in brackets)"
    return distributions.embedding(points, target[picked], labels, title, subtitle)


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Raises:
        UserError: the figure cannot be drawn.
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
