"""Figures of distributions: rewards, distances to prototypes, scores of classes, maps of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import patheffects, rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trainers.report.style import COLOURS, GREEN, RC, VERMILLION, grid, legend

CLASSES_PER_PANEL = 36


def last_rewards(rewards: np.ndarray, accepted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Last reward of each recovery, and whether it was accepted.

    Args:
        rewards: (N, T, M) of each selection step, NaN where not evaluated.
        accepted: (N, M) modalities in the order of their acceptance, padded with -1.

    Returns:
        (N, M) reward at the last step that evaluated the modality, NaN if none did; (N, M) bool, accepted.
    """
    n, steps, m = rewards.shape
    last = np.full((n, m), np.nan)
    for t in range(steps):
        last = np.where(np.isnan(rewards[:, t]), last, rewards[:, t])
    return last, (accepted[:, :, None] == np.arange(m)).any(axis=1)


@rc_context(RC)
def reward_histograms(panels: Mapping[str, Sequence[np.ndarray]], title: str) -> Figure:
    """Rewards of accepted and rejected recoveries, one row per scenario; left for right predictions, right for wrong.

    Args:
        panels: caption -> last rewards (N, M), accepted (N, M), prediction right (N,).
    """
    figure, axes = grid(len(panels), 2, 8, 2.4 * len(panels) + 0.5, sharex="row")
    figure.suptitle(title, fontsize=11)
    for row, (caption, (reward, accepted, right)) in zip(axes, panels.items()):
        judged = np.isfinite(reward)
        low, high = min(reward[judged].min(), 0), max(reward[judged].max(), 0)
        width = (high - low or 1) / 30
        bins = np.arange(np.floor(low / width), np.ceil(high / width) + 1) * width  # 0 is between two bins
        for ax, outcome in zip(row, ("right", "wrong")):
            rows = judged & (right == (outcome == "right"))[:, None]
            parts = {"accepted": reward[rows & accepted], "rejected": reward[rows & ~accepted]}
            for (verdict, values), colour, hatch in zip(parts.items(), (GREEN, VERMILLION), ("", "////")):
                look = {"facecolor": (colour, 0.35), "edgecolor": colour, "hatch": hatch, "linewidth": 1.4}
                ax.hist(values, bins, histtype="stepfilled", label=verdict, **look)
            ax.axvline(0, color="#333333", linewidth=0.8, linestyle=":")
            counts = ", ".join(f"{len(values)} {verdict}" for verdict, values in parts.items())
            ax.set_title(f"{caption}, prediction {outcome}\n{counts}", fontsize=9.5)
            ax.set_xlabel("reward")
            ax.yaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        row[0].set_ylabel("recoveries")
    legend(figure, axes[0], 2)
    return figure


@rc_context(RC)
def distance_histograms(
    values: np.ndarray, target: np.ndarray, sigma: np.ndarray, titles: Mapping[int, str], classes: Sequence[int]
) -> Figure:
    """Distances to the prototype of the true class, with the half-normal density that the ICS score assumes.

    Args:
        values: (S, N) distances, NaN in rows that lack a modality of the subset; they are not drawn.
        target: (N,) classes.
        sigma: (S, C) parameter of the half-normal distribution.
        titles: subset id -> title of its row of panels.
        classes: one column per class.
    """
    figure, axes = grid(len(titles), len(classes), 2.6 * len(classes), 2.1 * len(titles))
    for row, (s, title) in zip(axes, titles.items()):
        for ax, c in zip(row, classes):
            d, scale = values[s, target == c], float(sigma[s, c])
            d = d[~np.isnan(d)]
            x = np.linspace(0, max(d.max(initial=0), 3 * scale), 200)
            if len(d):
                ax.hist(d, bins=40, density=True, color="#0072B2", alpha=0.6)
            ax.plot(x, np.sqrt(2 / np.pi) / scale * np.exp(-0.5 * (x / scale) ** 2), color="#D55E00", linewidth=1.5)
            ax.set_title(f"{title}, class {c}", fontsize=8)
            ax.set_yticks([])
        row[0].set_ylabel("density")
    for ax in axes[-1]:
        ax.set_xlabel("distance")
    figure.tight_layout()
    return figure


@rc_context(RC)
def per_class(
    values: pd.DataFrame,
    xlabel: str,
    styles: Mapping[str, Mapping[str, Any]],
    title: str,
    gain: pd.Series | None = None,
) -> Figure:
    """Scores of the classes: a line per class in the order of the index, a mark per column, several panels if needed.

    Args:
        values: index class names, columns models (or scenarios); NaN for classes without rows.
        gain: class name -> number printed beside its line, in percentage points.
    """
    panels = -(-len(values) // CLASSES_PER_PANEL)
    rows = -(-len(values) // panels)
    figure, axes = grid(1, panels, 6.4 if panels == 1 else 5.0 * panels, 0.22 * rows + 1.4, sharex=True)
    for k, ax in enumerate(axes[0]):
        part = values.iloc[k * rows : (k + 1) * rows]
        places = np.arange(len(part))
        ax.hlines(places, part.min(axis=1), part.max(axis=1), color="#bbbbbb", linewidth=1, zorder=0)
        for i, (model, style) in enumerate((m, style) for m, style in styles.items() if m in part):
            # Decreasing sizes, so that marks of equal scores stay visible.
            look = {"color": style["color"], "marker": style["marker"], "s": max(60 - 18 * i, 12)}
            ax.scatter(part[model], places, label=model, zorder=2 + i, **look)
        ax.set_yticks(places, part.index, fontsize=8)
        ax.set_ylim(rows - 0.4, -0.6)
        ax.set_xlabel(xlabel)
        ax.grid(axis="x", alpha=0.3)
        if gain is not None:
            texts = [
                "–" if np.isnan(gain[name]) else f"{round(gain[name], 1) + 0:+.1f}".replace("-", "−")
                for name in part.index
            ]
            right = ax.secondary_yaxis("right")
            right.set_yticks(places, texts, fontsize=8)
            right.tick_params(length=0)
            right.spines["right"].set_visible(False)
            ax.text(1.02, 1.0, "gain", fontsize=8, va="bottom", transform=ax.transAxes)
    figure.suptitle(title, fontsize=10)
    legend(figure, [axes[0, 0]], 3)
    return figure


@rc_context(RC)
def embedding(
    points: Mapping[str, np.ndarray],
    target: np.ndarray,
    classes: Mapping[int, str],
    title: str,
    subtitle: str = "",
    unit: str = "t-SNE",
) -> Figure:
    """Sets of points in one map; colour and number show the class, the marker shows the set.

    The number of a class is at the median of its points in the first set.

    Args:
        points: name of the set -> positions (N, 2), the same rows in every set.
        target: (N,) classes of the rows; rows of classes that are not among ``classes`` are not drawn.
        classes: number of the class -> name.
    """
    figure, axes = grid(1, 1, 8.0, 6.2)
    ax = axes[0, 0]
    markers = dict(zip(points, ("o", "x", "^", "s", "D")))
    colours = (*COLOURS, "#999999", "#882255", "#B8A400")
    for name, marker in markers.items():
        ax.scatter([], [], s=30, color="#444444", marker=marker, label=name)
    for i, (c, label) in enumerate(classes.items()):
        colour = colours[i % len(colours)]
        for name, xy in points.items():
            ax.scatter(*xy[target == c].T, s=16, alpha=0.6, linewidths=0.8, color=colour, marker=markers[name])
        ax.scatter([], [], s=40, color=colour, marker="s", label=f"{i + 1}  {label}")
        first = next(iter(points.values()))[target == c]
        if len(first):
            edge = [patheffects.withStroke(linewidth=3, foreground="white")]
            look: dict[str, Any] = {"color": colour, "weight": "bold", "path_effects": edge, "zorder": 5}
            ax.text(*np.median(first, axis=0), str(i + 1), fontsize=12, ha="center", va="center", **look)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_xlabel(f"{unit} 1")
    ax.set_ylabel(f"{unit} 2")
    ax.set_title(subtitle, fontsize=10)
    figure.suptitle(title, fontsize=11)
    legend(figure, [ax], 3)
    return figure
