"""Figures of single samples: originals, recoveries and rewards; maps of attention."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from trainers.report.cells import Cell, Picture
from trainers.report.style import BROWN, DARK_GREEN, GREEN, RC, VERMILLION


@dataclass(frozen=True)
class Block:
    """One sample of a picture.

    Attributes:
        verdict: the prediction, as a heading in ``colour``.
        headings: of the M modalities.
        content: M cells, the line named ``first_line``.
        is_missing: (M,) bool, for the frames.
        is_dim: (M,) bool, content that the model did not see.
        recovered: modality number -> cell.
        unrecoverable: numbers of the modalities whose cell in ``recovered`` says that there is no recovery.
        accepted: numbers of the accepted recoveries, in their order.
        rewards: (T, M), NaN where a recovery was not tried in that step.
        without_selection: heading of recoveries that are not selected.
        probabilities: cell at the right end of the first line, None = none.
    """

    verdict: str
    colour: str
    headings: Sequence[str]
    content: Sequence[Cell]
    is_missing: Sequence[bool]
    is_dim: Sequence[bool]
    recovered: Mapping[int, Cell]
    accepted: Sequence[int]
    rewards: np.ndarray
    first_line: str = "original"
    without_selection: str = "recovered"
    probabilities: Cell | None = None
    unrecoverable: Collection[int] = ()

    @property
    def steps(self) -> list[int]:
        """Steps of the selection in which a recovery was tried."""
        return [t for t in range(len(self.rewards)) if np.isfinite(self.rewards[t]).any()]

    def width(self, m: int) -> float:
        """Of the column of a modality."""
        return max(cell.size[0] for cell in (self.content[m], self.recovered.get(m, self.content[m])))

    @property
    def cell_height(self) -> float:
        """Of the first line."""
        cells = [*self.content, *([self.probabilities] if self.probabilities else [])]
        return max(cell.size[1] for cell in cells)

    @property
    def recovered_height(self) -> float:
        """Of the line of recoveries, 0 without any."""
        return max((cell.size[1] for cell in self.recovered.values()), default=0.0)


GAP, LEFT, STEP = 0.12, 1.05, 0.18  # inches between cells, left of the first cell, per line of rewards


class _Canvas:
    """A figure in inches from its upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height))

    def write(self, x: float, y: float, text: str, size: float = 8.5, **kwargs: Any) -> None:
        self.figure.text(x / self.width, 1 - y / self.height, text, fontsize=size, va="center", **kwargs)

    def draw(self, cell: Cell, x: float, y: float, room: tuple[float, float], frame: dict[str, Any], dim: bool) -> None:
        """Draw a framed cell in the middle of a rectangle with its upper left corner at (x, y)."""
        width, height = (room[0] if cell.is_empty else cell.size[0]), cell.size[1]
        left, upper = x + (room[0] - width) / 2, y + (room[1] - height) / 2
        place = (left / self.width, 1 - (upper + height) / self.height, width / self.width, height / self.height)
        ax = self.figure.add_axes(place)
        cell.draw(ax, dim)
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set(visible=True, **frame)


@rc_context(RC)
def draw_blocks(blocks: Sequence[Block], title: str) -> Figure:
    """One block per sample: its content, recoveries, and the rewards of the selection steps."""
    modalities = range(len(blocks[0].headings))
    widths = [max(block.width(m) for block in blocks) for m in modalities]
    lefts = LEFT + np.cumsum([0, *(w + GAP for w in widths)])
    heights = [
        0.62 + b.cell_height + bool(b.recovered) * (b.recovered_height + GAP + 0.2) + STEP * len(b.steps) + 0.18
        for b in blocks
    ]
    right = max((b.probabilities.size[0] + GAP for b in blocks if b.probabilities), default=0.0)
    canvas = _Canvas(max(lefts[-1] + right + 0.1, 5.2), 0.4 + sum(heights))
    canvas.write(0.1, 0.2, title, 11 * min(1, 10 * canvas.width / max(len(title), 1)), weight="bold")
    for block, top in zip(blocks, 0.4 + np.cumsum([0, *heights[:-1]])):
        _draw_block(canvas, block, float(top), lefts.tolist(), widths)
    return canvas.figure


def _draw_block(canvas: _Canvas, block: Block, top: float, lefts: Sequence[float], widths: Sequence[float]) -> None:
    """
    Args:
        lefts, widths: of the columns; the last of ``lefts`` is the right end.
    """
    canvas.write(0.1, top + 0.18, block.verdict, 10, weight="bold", color=block.colour)
    y, height = top + 0.54, block.cell_height
    canvas.write(0.1, y + height / 2, block.first_line)
    for m, heading in enumerate(block.headings):
        canvas.write(lefts[m] + widths[m] / 2, y - 0.12, heading, _fitting(heading, widths[m]), ha="center")
        frame = _frame(VERMILLION if block.is_missing[m] else "#999999", False, block.is_dim[m])
        canvas.draw(block.content[m], lefts[m], y, (widths[m], height), frame, block.is_dim[m])
    if (scores := block.probabilities) is not None:
        canvas.write(lefts[-1] + scores.size[0] / 2, y - 0.12, "probabilities", 8, ha="center")
        canvas.draw(scores, lefts[-1], y, (scores.size[0], height), _frame("#999999", False, False), False)
    if not block.recovered:
        return
    y += height + GAP + 0.16
    height = block.recovered_height
    canvas.write(0.1, y + height / 2, "recovered")
    for m, cell in block.recovered.items():
        chosen = m in block.accepted
        verdict = "" if m in block.unrecoverable else "rejected" if block.steps else block.without_selection
        if chosen:
            verdict = f"accepted ({block.accepted.index(m) + 1})"
        look = {"color": DARK_GREEN, "weight": "bold"} if chosen else {"color": "#333333", "weight": "normal"}
        canvas.write(lefts[m] + widths[m] / 2, y - 0.11, verdict, _fitting(verdict, widths[m]), ha="center", **look)
        frame = _frame(GREEN if chosen else "#999999", chosen, False)
        canvas.draw(cell, lefts[m], y, (widths[m], height), frame, False)
    y += height + 0.16
    for t in block.steps:
        canvas.write(0.1, y, f"reward, step {t + 1}", 8)
        for m in np.flatnonzero(np.isfinite(block.rewards[t])).tolist():
            chosen = t < len(block.accepted) and block.accepted[t] == m
            look = {"weight": "bold", "color": DARK_GREEN} if chosen else {"color": "#333333"}
            canvas.write(lefts[m] + widths[m] / 2, y, _reward(float(block.rewards[t, m])), 8.5, ha="center", **look)
        y += STEP


def _frame(colour: str, heavy: bool, dim: bool) -> dict[str, Any]:
    return {"color": colour, "linewidth": 3 if heavy else 1.2, "linestyle": "--" if dim else "-"}


def _reward(value: float) -> str:
    """Three decimals, or one digit of a small number, whose sign decides."""
    return f"{value:+.3f}" if value == 0 or abs(value) >= 0.0005 else f"{value:+.0e}"


def _fitting(text: str, width: float) -> float:
    """Size of a heading above a cell of ``width`` inches."""
    return 8 * min(1, 15.6 * width / max(len(text), 1))


def samples(data: Mapping[str, np.ndarray], title: str, limit: int = 6) -> Figure:
    """One block per sample: originals (missing ones dimmed), recoveries, and the rewards of the selection steps.

    Args:
        data: arrays of ``examples/<scenario>.npz``; modalities that the source lacks (``absent``, (R, M) bool) have no
            original.
        limit: number of samples shown.
    """
    names, classes = [str(n) for n in data["modality_names"]], [str(c) for c in data["class_names"]]
    missing = data["missing"].astype(bool)
    absent = data.get("absent", np.zeros_like(missing)).astype(bool)

    def picture(kind: str, k: int, name: str) -> Cell:
        images = data.get(f"{kind}_{name}")
        return Cell("no picture") if images is None else Picture("", images[k])

    blocks = []
    for k in range(min(len(data["index"]), limit)):
        label = [classes[c] if 0 <= c < len(classes) else str(c) for c in (data["target"][k], data["prediction"][k])]
        right = data["target"][k] == data["prediction"][k]
        lacks = [" – absent" if absent[k, m] else " – missing" * bool(missing[k, m]) for m in range(len(names))]
        blocks.append(
            Block(
                f"true: {label[0]}    predicted: {label[1]} ({'right' if right else 'wrong'})",
                DARK_GREEN if right else BROWN,
                [name + lack for name, lack in zip(names, lacks)],
                [Cell("not in the data") if absent[k, m] else picture("original", k, n) for m, n in enumerate(names)],
                missing[k].tolist(),
                missing[k].tolist(),
                {m: picture("recovered", k, names[m]) for m in np.flatnonzero(missing[k]).tolist()},
                [int(m) for m in data["accepted"][k] if m >= 0],
                data["rewards"][k],
            )
        )
    return draw_blocks(blocks, title)


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
