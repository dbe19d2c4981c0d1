"""Attention maps of CMPT for samples that are right or wrong with and without proxies (Figures 6 and 11)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from trainers.loading import Run
from trainers.report import pictures
from trainers.report.run_data import hidden_modalities, load_pair, scenario_title, sorted_predictions
from trainers.report.statistics import is_right
from utils.errors import UserError

# Name of an outcome -> is right without proxies, is right with them.
OUTCOMES = {
    "wrong without proxies, right with": (False, True),
    "right with and without proxies": (True, True),
    "right without proxies, wrong with": (True, False),
    "wrong with and without proxies": (False, False),
}
# Shares of the paper for Food-101 with missing text, in percent, rounded as there.
PUBLISHED_SHARES = dict(zip(OUTCOMES, (15, 60, 3)))


def attention(trained: Run, without: Path, scenario: str, count: int, seed: int = 0) -> tuple[Figure, str]:
    """Attention of CMPT's class token and proxies to the patches of one modality: an image, frames or a spectrogram.

    Args:
        trained: the finished run with proxies.
        without: run directory of the model without proxies.
        scenario: scenario of the predictions that define the outcomes.
        count: samples drawn per outcome (``wrong with and without proxies`` is counted, not drawn).
        seed: of the choice of samples.

    Returns:
        The figure, and the shares of the outcomes as text.

    Raises:
        UserError: not a CMPT model, no modality with patches, or no matching predictions.
    """
    data = trained.data
    with_patches = [i for i, m in enumerate(data.modalities) if m.kind in ("image", "video")]
    with_patches += [i for i, m in enumerate(data.modalities) if m.kind == "audio"]
    model = trained.load_model()
    if not model.has_attention_maps or not with_patches:
        raise UserError(f"attention maps are of CMPT on images or sound, not of {trained.label}: give model=CMPT")
    run, arrays = load_pair(trained.directory.path, without, scenario)
    target = arrays[0]["target"]
    groups = rows_by_outcome(*(is_right(a["logits"], target) for a in arrays))
    is_published = run.dataset == "Food101" and hidden_modalities(run, scenario) == ["text"]
    published = PUBLISHED_SHARES if is_published and not trained.cfg.dataset.get("demo") else {}
    shares = describe_shares(groups, published)
    if target.ndim == 2:
        shares = f"A row is right if all its labels are right.\n{shares}"
    column, rng = with_patches[0], np.random.default_rng(seed)
    name = data.modalities[column].name
    shown: dict[str, list[tuple[np.ndarray, dict[str, np.ndarray], str]]] = {}
    for outcome, rows in list(groups.items())[:3]:
        # Choose among the rows whose image is in the data.
        candidates = rows[~sorted_predictions(run, "none", "missing")["missing"][rows, column]]
        picked = np.sort(rng.permutation(candidates)[:count])
        title = f"{outcome}: {100 * len(rows) / len(target):.1f} % of {len(target):,} rows"
        shown[title] = []
        if len(picked) == 0:
            continue
        x = data.rows("test", arrays[0]["index"][picked], trained.device).inputs[name]
        x = x[:, x.shape[1] // 2] if x.ndim == 5 else x  # the middle frame
        maps = {token: values.cpu().numpy() for token, values in model.attention_maps(column, x).items()}
        for k, (picture, row) in enumerate(zip(_pictures(data, name, x), picked)):
            values = {"true": target[row], "without": arrays[1]["logits"][row], "with": arrays[0]["logits"][row]}
            lines = [f"{key}: {_classes(data.class_names, value, target.ndim)}" for key, value in values.items()]
            shown[title].append((picture, {token: values[k] for token, values in maps.items()}, "\n".join(lines)))
    title = (
        f"{run.dataset}, {trained.label}, {scenario_title(run, scenario)}: attention to '{name}', "
        "bright is high, each map scaled by its maximum"
    )
    return pictures.attention_maps(shown, title), shares


def rows_by_outcome(with_proxies: np.ndarray, without: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of each of the :data:`OUTCOMES`.

    Args:
        with_proxies, without: (N,) bool, whether the row is right.
    """
    return {
        name: np.flatnonzero((without == right_without) & (with_proxies == right_with))
        for name, (right_without, right_with) in OUTCOMES.items()
    }


def describe_shares(groups: Mapping[str, np.ndarray], published: Mapping[str, float]) -> str:
    """One line per outcome: percentage and number of rows, and the paper's percentage where it is published."""
    total = sum(map(len, groups.values()))
    lines = []
    for name, rows in groups.items():
        paper = f" (paper: about {published[name]:g} %)" if name in published else ""
        lines.append(f"{name:<36} {100 * len(rows) / total:6.2f} % of {total:,} rows ({len(rows):,}){paper}")
    return "\n".join(lines)


def _classes(names: Sequence[str], values: np.ndarray, labels: int) -> str:
    """Name of the class of a target or of logits; of several labels, two names and the number of the others."""
    if labels == 1:
        return names[int(values.argmax() if values.ndim else values)]
    positive = [names[c] for c in np.flatnonzero(values > 0).tolist()]
    return ", ".join(positive[:2]) + (f" + {len(positive) - 2}" if len(positive) > 2 else "") or "none"


def _pictures(data: Any, name: str, x: torch.Tensor) -> np.ndarray:
    """Pictures (B, H, W, 3) or (B, H, W) in [0, 1]; spectrograms with time to the right."""
    if x.ndim == 3:
        low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
        return ((x - low) / (high - low).clamp(min=1e-6)).transpose(1, 2).cpu().numpy()
    images = data.pixels(name, x).cpu().numpy().transpose(0, 2, 3, 1)
    return images[..., 0] if images.shape[-1] == 1 else images
