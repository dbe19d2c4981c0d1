"""Whether a ranking of models under one scenario holds under others."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from trainers.report.bootstrap import resampled
from trainers.report.inference import holm, over_paired_runs_and_rows, over_runs_and_rows
from trainers.report.runs import REPEAT, FinishedRun, load_sorted
from utils.errors import UserError

SEED = 0


@dataclass(frozen=True)
class Scores:
    """A metric, of which higher is better, of several models under several scenarios on the same test rows.

    Attributes:
        models, scenarios: their names.
        values: (model, scenario) -> (S,) of each training run.
        draws: (model, scenario) -> (S, R) of each run on R resamples of the test rows.
        directories: model -> directories of its runs; models with equal directories share their trained networks.
    """

    models: Sequence[str]
    scenarios: Sequence[str]
    values: Mapping[tuple[str, str], np.ndarray]
    draws: Mapping[tuple[str, str], np.ndarray]
    directories: Mapping[str, Sequence[Path]]

    @classmethod
    def of_runs(
        cls,
        runs: Sequence[FinishedRun],
        frame: pd.DataFrame,
        metric: str,
        models: Sequence[str],
        scenarios: Sequence[str],
    ) -> Scores:
        """
        Args:
            frame: results of the runs.

        Raises:
            UserError: the results are of several data sets, a model has fewer than two runs or other runs under another
                scenario, or its predictions are of other rows.
        """
        if len(names := frame["dataset"].unique()) > 1:
            raise UserError(f"the results are of {', '.join(names)}: a ranking is of one data set")
        owner = {(model, run.seed, run.fold): run for run in runs for model in run.frame["model"].unique()}
        scores = frame[frame["metric"] == metric].set_index(["model", "scenario", *REPEAT])["value"].sort_index()
        values, draws, directories, index = {}, {}, {}, None
        repeats: dict[str, list[tuple[int, int]]] = {}
        for model, scenario in itertools.product(models, scenarios):
            levels = scores.index.get_level_values("model"), scores.index.get_level_values("scenario")
            of_runs = scores[(levels[0] == model) & (levels[1] == scenario)]
            if len(of_runs) < 2:
                raise UserError(f"{model} has {len(of_runs)} run under {scenario}: a ranking needs two or more")
            of_model = [(int(seed), int(fold)) for *_, seed, fold in of_runs.index]
            if repeats.setdefault(model, of_model) != of_model:
                raise UserError(f"{model} has other runs under {scenario} than under {scenarios[0]}: test all of them")
            members = [owner[model, *repeat] for repeat in of_model]
            contents = [load_sorted(run.predictions(model, scenario), "logits", "target") for run in members]
            index = contents[0]["index"] if index is None else index
            if any(not np.array_equal(index, content["index"]) for content in contents):
                raise UserError(f"{model} was tested on other rows under {scenario}: test all models on the same split")
            values[model, scenario] = of_runs.to_numpy()
            draws[model, scenario] = np.stack([_resampled(content, metric) for content in contents])
            directories[model] = [run.path for run in members]
        return cls(models, scenarios, values, draws, directories)

    def means(self, scenario: str) -> np.ndarray:
        """(models,) means over the runs, without differences due to rounding."""
        return np.array([self.values[model, scenario].mean() for model in self.models]).round(9)


def _resampled(content: Mapping[str, np.ndarray], metric: str) -> np.ndarray:
    draws = resampled(content, metric)
    if draws is None:
        raise UserError(f"{metric} is not resampled: rank by accuracy")
    return draws


def ranks(scores: Scores) -> pd.DataFrame:
    """Rank of each model (rows) by its mean under each scenario (columns); 1 = best, ties share the mean rank."""
    columns = {scenario: stats.rankdata(-scores.means(scenario)) for scenario in scores.scenarios}
    return pd.DataFrame(columns, index=pd.Index(scores.models, name="model"))


def agreement(scores: Scores) -> pd.DataFrame:
    """Kendall's tau-b between the rankings under the first scenario and each other one.

    The interval holds the middle 95 % of tau over resamples of the test rows and, within each model, of its training
    runs. Every resample adds noise to a ranking: the interval lies below a tau of 1 even where the rankings are equal.

    Returns:
        A row per scenario but the first, with ``tau``, ``low`` and ``high``.
    """
    reference, *others = scores.scenarios
    rng = np.random.default_rng(SEED)
    number = scores.draws[scores.models[0], reference].shape[1]
    drawn: dict[str, list[np.ndarray]] = {scenario: [] for scenario in scores.scenarios}
    choices: dict[tuple[Path, ...], np.ndarray] = {}
    for model in scores.models:
        runs, networks = len(scores.values[model, reference]), tuple(scores.directories[model])
        # The same runs under all scenarios, and of models that share their networks.
        chosen = choices.setdefault(networks, rng.integers(runs, size=(runs, number)))
        for scenario in scores.scenarios:
            drawn[scenario].append(np.take_along_axis(scores.draws[model, scenario], chosen, axis=0).mean(0))
    resamples = {scenario: np.stack(values, axis=1) for scenario, values in drawn.items()}  # (R, models)
    entries = {}
    for scenario in others:
        pairs = zip(resamples[reference], resamples[scenario], strict=True)
        low, high = np.nanquantile([_tau(first, second) for first, second in pairs], (0.025, 0.975))
        entries[scenario] = {"tau": _tau(scores.means(reference), scores.means(scenario)), "low": low, "high": high}
    return pd.DataFrame.from_dict(entries, orient="index", columns=["tau", "low", "high"])


def _tau(first: np.ndarray, second: np.ndarray) -> float:
    return float(stats.kendalltau(first.round(9), second.round(9)).statistic)


def order_changes(scores: Scores) -> pd.DataFrame:
    """For each pair of models, how their difference under a scenario differs from that under the first scenario.

    A run's change is its score under the scenario minus that under the first one. The changes of two models are
    compared as scores are, with runs and test rows random (:mod:`trainers.report.inference`); p-values are adjusted for
    all pairs and scenarios.

    Returns:
        A row per scenario and pair, with ``model`` (ahead under the first scenario), ``other``, the differences
        ``reference`` and ``difference`` (model minus other), ``change`` with ``low`` and ``high``, ``p``, ``p_holm``.
    """
    reference, *others = scores.scenarios
    ranked = [scores.models[i] for i in np.argsort(-scores.means(reference), kind="stable")]
    means = {scenario: dict(zip(scores.models, scores.means(scenario), strict=True)) for scenario in scores.scenarios}
    entries = []
    for scenario, (model, other) in itertools.product(others, itertools.combinations(ranked, 2)):
        (a, draws_a), (b, draws_b) = (
            tuple(part[m, scenario] - part[m, reference] for part in (scores.values, scores.draws))
            for m in (model, other)
        )
        if scores.directories[model] == scores.directories[other]:
            difference = over_paired_runs_and_rows(a - b, draws_a - draws_b)
        else:
            difference = over_runs_and_rows(a, b, draws_a, draws_b)
        low, high = difference.interval()
        entry: Mapping[str, object] = {
            "scenario": scenario,
            "model": model,
            "other": other,
            "reference": means[reference][model] - means[reference][other],
            "difference": means[scenario][model] - means[scenario][other],
            "change": difference.value,
            "low": low,
            "high": high,
            "p": difference.p,
        }
        entries.append(entry)
    changes = pd.DataFrame(entries)
    return changes.assign(p_holm=holm(changes["p"].tolist()))
