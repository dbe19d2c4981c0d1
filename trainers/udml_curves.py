"""Curves of fusion weights and predicted levels over test noise: python -m trainers.udml_curves OUT RUN [RUN ...]

Reads the predictions of finished runs, of any number of seeds, under ``none`` and under the scenarios in which one
modality has the noise of the training (``model.noise``), and writes ``OUT/curves.csv``, ``OUT/curves.png`` and, for
tables of ``docs/results``, ``OUT/weights.csv``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from trainers.report.plots import noise_curves
from trainers.report.runs import load_arrays
from trainers.report.style import save
from utils.checksums import verify_artefact
from utils.errors import UserError
from utils.files import replacing

COLUMNS = ("modality", "level", "seed", "weight", "predicted", "rank_correlation", "n")


def read_curves(runs: Sequence[Path]) -> pd.DataFrame:
    """Means over the rows of each test.

    Returns:
        Columns modality, level (of its noise; the others are clean), seed, weight, predicted (NaN without an
        estimator), rank_correlation: Spearman's, of predicted and true level over the rows of all levels of the
        modality in that run; n rows.

    Raises:
        UserError: a folder is no finished run, or its method has no fusion weights.
    """
    rows = []
    for run in runs:
        if not (run / "DONE").exists():
            raise UserError(f"{run} is no finished run: give run directories with DONE, see paths.output")
        verify_artefact(run / "config.yaml")
        cfg = OmegaConf.load(run / "config.yaml")
        names = list(cfg.dataset.modalities)
        operator = (cfg.model.get("noise") or {}).get("operator", "gaussian")
        by_modality: dict[int, dict[int, tuple[np.ndarray, np.ndarray]]] = {m: {} for m in range(len(names))}
        for file in sorted((run / "predictions").glob("*.npz")):
            if file.stem.startswith("noise_") and not file.stem.startswith(f"noise_{operator}_"):
                continue
            predictions, masks = load_arrays(file), load_arrays(run / "masks" / file.name)
            if "fusion_weights" not in predictions:
                raise UserError(f"{run}: {cfg.model.name} has no fusion weights, choose runs of another model")
            weights = predictions["fusion_weights"]
            predicted = predictions.get("predicted_level", np.full_like(weights, np.nan))
            levels = masks["noise_level"][0] if "noise_level" in masks else np.ones(len(names), dtype=int)
            if masks["missing"].any() or (levels > 1).sum() > 1:
                continue
            noisy = [m for m, level in enumerate(levels) if level > 1]
            for m in noisy or range(len(names)):
                by_modality[m][int(levels[m])] = (weights[:, m], predicted[:, m])
        for m, by_level in by_modality.items():
            true = np.concatenate([np.full(len(w), level) for level, (w, _) in by_level.items()])
            all_predicted = np.concatenate([p for _, p in by_level.values()])
            rank = float(pd.Series(true).corr(pd.Series(all_predicted), method="spearman"))
            for level, (weight, predicted) in sorted(by_level.items()):
                means = float(weight.mean()), float(predicted.mean())
                rows.append((names[m], level, int(cfg.seed), *means, rank, len(weight)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def as_results(curves: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """The curves in the form of results.csv: the noisy modality is the model, its level the scenario."""
    long = curves.rename(columns={"modality": "model", "level": "scenario", "predicted": "predicted_level"})
    long = long.melt(["model", "scenario", "seed", "n"], ["weight", "predicted_level", "rank_correlation"], "metric")
    return long.assign(dataset=dataset)[["dataset", "model", "seed", "scenario", "metric", "value", "n"]]


def main(arguments: Sequence[str]) -> None:
    if len(arguments) < 2:
        raise UserError("usage: python -m trainers.udml_curves OUT RUN [RUN ...]")
    out, *runs = map(Path, arguments)
    curves = read_curves(runs)
    if curves["level"].max() <= 1:
        raise UserError("the runs have no test with noise on one modality: add noise_gaussian_6_0 to missing.test")
    with replacing(out / "curves.csv") as file:
        curves.to_csv(file, index=False)
    with replacing(out / "weights.csv") as file:
        as_results(curves, runs[0].resolve().parents[2].name).to_csv(file, index=False)
    save(noise_curves(curves, f"{len(runs)} run{'s' * (len(runs) > 1)}"), out / "curves.png")
    columns = ["weight", "predicted", "rank_correlation"]
    print(curves.groupby(["modality", "level"], sort=False)[columns].mean().round(2).to_string())


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
