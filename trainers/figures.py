"""Pictures of trained models, for single figures of papers (curves and bars over all runs are drawn by stage report).

``python -m trainers.figures per_class OUT.png RUN_DIRECTORY... --scenario whole_1``   of CMPT Figures 4, 8 and 9
``python -m trainers.figures features OUT.png RUN_DIRECTORY --classes 10``             Figures 5 and 10
``python -m trainers.figures attention OUT.png dataset=Food101 model=CMPT name=complete``   Figures 6 and 11
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from sklearn.manifold import TSNE

from trainers.context import Context, open_run
from trainers.report import Run, gather, load_arrays
from utils import plotting
from utils.build import build_data
from utils.errors import UserError

log = logging.getLogger(__name__)


def class_names(run: Run) -> list[str]:
    """Of the data set, as the run's own configuration has it."""
    return list(build_data(OmegaConf.create(run.text("config.yaml"))).class_names)  # type: ignore[arg-type]


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


def per_class(directories: Sequence[Path], scenario: str) -> Figure:
    """Every class under a scenario; seeds of a model are averaged.

    Raises:
        UserError: runs of several data sets, or without predictions of that scenario.
    """
    runs, _ = gather(directories)
    if len({run.dataset for run in runs}) > 1:
        raise UserError("per_class compares runs of one data set: give runs of one")
    scores: dict[str, list[np.ndarray]] = {}
    several = False
    for run in runs:
        data = load_arrays(_predictions(run, scenario), "logits", "target")
        several = data["target"].ndim == 2
        scores.setdefault(run.model, []).append(score_by_class(data["logits"], data["target"]))
    values = pd.DataFrame({model: np.mean(found, axis=0) * 100 for model, found in scores.items()})
    values.index = pd.Index(class_names(runs[0]))
    return plotting.per_class(
        values,
        "F1 (%)" if several else "right (%)",
        plotting.model_styles(list(values)),
        f"{runs[0].dataset}, {scenario}",
    )


def _predictions(run: Run, scenario: str) -> Path:
    file = run.predictions(run.model, scenario)
    if not file.is_file():
        found = sorted(f.stem for f in (run.path / "predictions").glob("*.npz"))
        raise UserError(f"{run.path} has no predictions of '{scenario}' (it has {', '.join(found)})")
    return file


def features(directory: Path, classes: int, rows: int, seed: int = 0) -> Figure:
    """t-SNE of the fused features, all scenarios for which they were saved in one map, a panel each.

    Args:
        classes: the first so many are drawn. rows: at most so many are embedded of each scenario, the same ones.

    Raises:
        UserError: a run without features, or of several labels.
    """
    (run,), _ = gather([directory])
    saved = {}
    for scenario in run.frame["scenario"].unique():
        data = load_arrays(_predictions(run, scenario), "features", "target")
        if "features" in data:
            saved[scenario] = data
    if not saved:
        raise UserError(f"{directory} has no features: run stage test with report.features=[none] and overwrite=true")
    target = next(iter(saved.values()))["target"]
    if target.ndim > 1:
        raise UserError(f"{run.dataset} has several labels, and a point has one colour: choose another data set")
    candidates = np.flatnonzero(target < classes)
    picked = np.sort(np.random.default_rng(seed).permutation(candidates)[:rows])
    stacked = np.concatenate([data["features"][picked] for data in saved.values()])
    perplexity = min(30.0, (len(stacked) - 1) / 3)
    places = TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(stacked.astype(np.float64))
    panels = {scenario: (xy, target[picked]) for scenario, xy in zip(saved, np.split(places, len(saved)))}
    named = dict(enumerate(class_names(run)[:classes]))
    return plotting.embedding(panels, named, f"{run.dataset}, {run.model}, seed {run.seed}")


def attention(context: Context, count: int) -> Figure:
    """What class token and proxies of CMPT look at, in the modality that has patches (the first of an image, the
    frames, a spectrogram).

    Raises:
        UserError: another model, only texts, or no test row with that modality.
    """
    from models.cmpt.cmpt import CMPT  # its import takes seconds

    data = context.data
    drawn = [i for i, m in enumerate(data.modalities) if m.kind in ("image", "video")]
    drawn += [i for i, m in enumerate(data.modalities) if m.kind == "audio"]
    model = context.load_model()
    if not isinstance(model, CMPT) or not drawn:
        raise UserError(f"attention maps are of CMPT on images or sound, not of {context.label}: give model=CMPT")
    i, n = drawn[0], len(data.split("test"))
    name, names = data.modalities[i].name, data.modality_names
    # A row without this modality in the source has some other row's content in its place.
    rows = np.flatnonzero(~data.natural_rows("test").get(name, np.zeros(n, dtype=bool)))
    if not len(rows):
        raise UserError(f"no test row of {context.cfg.dataset.name} has '{name}', whose attention is to be drawn")
    batch = data.rows("test", rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)], context.device)
    x = batch.inputs[name]
    x = x[:, x.shape[1] // 2] if x.ndim == 5 else x  # the middle frame
    maps = model.attention(i, x).cpu().numpy()
    kinds = [f"proxy of {other}" for other in names if other != name and model.proxy is not None]
    kinds += ["class token"] * (maps.shape[1] > len(kinds))
    pictures = _pictures(data, name, x)
    shown = []
    for row in range(len(x)):
        target = batch.target[row]
        labels = target.nonzero()[:, 0].tolist() if target.ndim else [int(target)]
        label = ", ".join(data.class_names[c] for c in labels[:2])
        shown.append((pictures[row], dict(zip(kinds, maps[row])), label))
    return plotting.attention_maps(shown, f"{context.cfg.dataset.name}, {context.label}: attention to '{name}'")


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
    parser.add_argument("kind", choices=("per_class", "features", "attention"))
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="+", help="run directories; for attention the overrides of run.py")
    parser.add_argument("--scenario", default="none", help="of per_class")
    parser.add_argument("--classes", type=int, default=10, help="of features")
    parser.add_argument("--rows", type=int, default=None, help="of features (1000 a scenario) and attention (6)")
    options = parser.parse_args(arguments)
    directories = [Path(run) for run in options.runs]
    if options.kind == "per_class":
        figure = per_class(directories, options.scenario)
    elif options.kind == "features":
        if len(directories) != 1:
            raise UserError("features are those of one run: give one run directory")
        figure = features(directories[0], options.classes, options.rows or 1000)
    else:
        figure = attention(open_run(*options.runs), options.rows or 6)
    plotting.save(figure, options.out)
    print(options.out)


if __name__ == "__main__":
    try:
        main()
    except UserError as problem:
        raise SystemExit(f"error: {problem}") from None
