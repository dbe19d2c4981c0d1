"""Figures of single samples: originals, recoveries and rewards; maps of attention."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainers.report.style import GREEN, RC, VERMILLION


def _picture(
    ax: Axes, images: np.ndarray | None, k: int, colour: str, heavy: bool, dim: bool, empty: str = "no picture"
) -> None:
    """One framed picture; a grey cell with the text ``empty`` if there is none."""
    if images is None:
        ax.set_facecolor("#eeeeee")
        ax.text(0.5, 0.5, empty, ha="center", va="center", fontsize=7.5, color="#555555", transform=ax.transAxes)
    else:
        image = images[k].transpose(1, 2, 0)
        image = image[..., :3] if image.shape[-1] >= 3 else image[..., 0]
        ax.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", alpha=0.3 if dim else 1, aspect="auto")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set(visible=True, color=colour, linewidth=3 if heavy else 1.2, linestyle="--" if dim else "-")


@rc_context(RC)
def samples(data: Mapping[str, np.ndarray], title: str, limit: int = 6) -> Figure:
    """One block per sample: originals (missing ones dimmed), recoveries, and the rewards of the selection steps.

    Args:
        data: arrays of ``examples/<scenario>.npz``; modalities that the source lacks (``absent``, (R, M) bool) have no
            original.
        limit: number of samples shown.
    """
    names, classes = [str(n) for n in data["modality_names"]], [str(c) for c in data["class_names"]]
    shown = range(min(len(data["index"]), limit))
    missing, accepted, rewards = data["missing"].astype(bool), data["accepted"], data["rewards"]
    absent = data.get("absent", np.zeros_like(missing)).astype(bool)
    tried = [[t for t in range(rewards.shape[1]) if np.isfinite(rewards[k, t]).any()] for k in shown]
    cell, gap, left, line = 1.15, 0.12, 1.05, 0.18
    heights = [0.62 + cell + missing[k].any() * (cell + gap + 0.2) + line * len(tried[k]) + 0.18 for k in shown]
    width, height = left + len(names) * (cell + gap) + 0.1, 0.4 + sum(heights)
    figure = Figure(figsize=(max(width, 5.2), height))

    def write(x: float, y: float, text: str, size: float = 8.5, **kwargs: Any) -> None:
        figure.text(x / figure.get_figwidth(), 1 - y / height, text, fontsize=size, va="center", **kwargs)

    def axes(column: int, y: float) -> Axes:
        x = left + column * (cell + gap)
        total = figure.get_figwidth()
        return figure.add_axes((x / total, 1 - (y + cell) / height, cell / total, cell / height))

    write(0.1, 0.2, title, 11 * min(1, 10 * figure.get_figwidth() / len(title)), weight="bold")
    for k, top in zip(shown, 0.4 + np.cumsum([0, *heights[:-1]])):
        label = [classes[c] if 0 <= c < len(classes) else str(c) for c in (data["target"][k], data["prediction"][k])]
        right = data["target"][k] == data["prediction"][k]
        verdict = f"true: {label[0]}    predicted: {label[1]} ({'right' if right else 'wrong'})"
        write(0.1, top + 0.18, verdict, 10, weight="bold", color="#00694d" if right else "#a84700")
        order = [int(m) for m in accepted[k] if m >= 0]
        y = top + 0.54
        write(0.1, y + cell / 2, "original")
        for m, name in enumerate(names):
            centre = left + m * (cell + gap) + cell / 2
            is_missing = bool(missing[k, m])
            heading = name + (" – absent" if absent[k, m] else " – missing" * is_missing)
            write(centre, y - 0.12, heading, 8 * min(1, 18 / len(heading)), ha="center")
            original = None if absent[k, m] else data.get(f"original_{name}")
            empty = "not in the data" if absent[k, m] else "no picture"
            _picture(axes(m, y), original, k, VERMILLION if is_missing else "#999999", False, is_missing, empty)
        if not missing[k].any():
            continue
        y += cell + gap + 0.16
        write(0.1, y + cell / 2, "recovered")
        for m in np.flatnonzero(missing[k]).tolist():
            chosen, centre = m in order, left + m * (cell + gap) + cell / 2
            verdict = f"accepted ({order.index(m) + 1})" if chosen else "rejected" if tried[k] else "recovered"
            colour = "#00694d" if chosen else "#333333"
            write(centre, y - 0.11, verdict, 8, ha="center", color=colour, weight="bold" if chosen else "normal")
            _picture(axes(m, y), data.get(f"recovered_{names[m]}"), k, GREEN if chosen else "#999999", chosen, False)
        y += cell + 0.16
        for t in tried[k]:
            write(0.1, y, f"reward, step {t + 1}", 8)
            for m in np.flatnonzero(np.isfinite(rewards[k, t])).tolist():
                chosen = t < len(order) and order[t] == m
                look = {"weight": "bold", "color": "#00694d"} if chosen else {"color": "#333333"}
                write(left + m * (cell + gap) + cell / 2, y, f"{rewards[k, t, m]:+.3f}", 8.5, ha="center", **look)
            y += line
    return figure


@rc_context(RC)
def attention_maps(
    groups: Mapping[str, Sequence[tuple[np.ndarray, Mapping[str, np.ndarray], str]]], title: str
) -> Figure:
    """A block per group of samples, a line per sample: its label, the image, and the maps over it, each scaled by its
    own maximum.

    Args:
        groups: heading -> samples: image (H, W, 3) or (H, W) in [0, 1]; name -> map (rows, columns) of attention to the
            patches; label, with line feeds.
    """
    names = next((list(sample[1]) for samples in groups.values() for sample in samples), [])
    lines = [max(len(samples), 1) for samples in groups.values()]
    heights = [0.35 + (1.8 * len(samples) or 0.4) for samples in groups.values()]
    width = max(1.8 + 1.9 * (1 + len(names)), 7.0)
    figure = Figure(figsize=(width, sum(heights) + 0.6), layout="constrained")
    figure.suptitle("\n".join(textwrap.wrap(title, int(11 * width))), fontsize=11)
    parts = figure.subfigures(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    widths = [0.9] + [1] * (1 + len(names))
    for part, (heading, samples), count in zip(parts, groups.items(), lines):
        part.suptitle(heading, fontsize=10, weight="bold", ha="left", x=0.02)
        axes = part.subplots(count, 2 + len(names), squeeze=False, width_ratios=widths)
        for ax in axes.flat:
            ax.set_axis_off()
        if not samples:
            axes[0, 0].text(0, 0.5, "no such row", fontsize=8, va="center")
        for line, (image, maps, label) in zip(axes, samples):
            wrapped = "\n".join(textwrap.fill(text, 22, subsequent_indent="   ") for text in label.split("\n"))
            line[0].text(0, 0.5, wrapped, fontsize=8, va="center", transform=line[0].transAxes)
            # Grey below a map, so that only the attention has colours.
            grey = image.mean(-1) if image.ndim == 3 else image
            place: dict[str, Any] = {"extent": (0, image.shape[1], image.shape[0], 0), "aspect": "auto"}
            for ax, name in zip(line[1:], ("input", *names)):
                ax.imshow(image if name == "input" else grey, cmap="gray", vmin=0, vmax=1, **place)
                if name != "input":
                    ax.imshow(maps[name], cmap="inferno", alpha=0.55, vmin=0, interpolation="bilinear", **place)
        for ax, name in zip(axes[0, 1:] if samples else (), ("input", *names)):
            ax.set_title(name, fontsize=9)
    return figure
