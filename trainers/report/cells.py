"""Cells of a picture of samples: an image, a text, a table, a curve, or the reason why there is nothing."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from trainers.report.style import BLUE, DARK_GREEN, GREEN, GREY, VERMILLION

SIDE = 1.15  # inches, of a picture
WIDE = 2.3  # of texts, tables and curves
LINE = 0.16  # height of a line of text
MAX_LINES = 14  # of texts and tables
OBSERVED, MISSING, RECOVERED = range(3)  # states of the values of a table
LOOKS: dict[int, dict[str, Any]] = {
    OBSERVED: {"color": "#333333"},
    MISSING: {"color": VERMILLION},
    RECOVERED: {"color": DARK_GREEN},
}


@dataclass(frozen=True)
class Cell:
    """A grey cell with a text; base of the others.

    Attributes:
        text: why there is nothing.
    """

    text: str

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in inches."""
        return SIDE, SIDE

    @property
    def is_empty(self) -> bool:
        """Whether it has no content, so that it may have any width."""
        return type(self) is Cell

    def draw(self, ax: Axes, dim: bool) -> None:
        """Draw the content, faint with ``dim``."""
        ax.set_facecolor("#eeeeee")
        ax.text(0.5, 0.5, self.text, ha="center", va="center", fontsize=7.5, color="#555555", transform=ax.transAxes)


@dataclass(frozen=True)
class Picture(Cell):
    """An image (C, H, W) or (H, W): uint8, or floats, which are scaled to their range."""

    image: np.ndarray

    def draw(self, ax: Axes, dim: bool) -> None:
        image = self.image
        limits: dict[str, Any] = {"vmin": 0, "vmax": 255} if image.dtype == np.uint8 else {}
        if image.ndim == 3:
            image = image.transpose(1, 2, 0)
            image = image[..., :3] if image.shape[-1] >= 3 else image[..., 0]
        ax.imshow(image, cmap="gray", interpolation="nearest", alpha=0.3 if dim else 1, aspect="auto", **limits)


@dataclass(frozen=True)
class Spectrogram(Picture):
    """A sound (frequencies, times), lowest frequency first."""

    @property
    def size(self) -> tuple[float, float]:
        return WIDE, SIDE

    def draw(self, ax: Axes, dim: bool) -> None:
        ax.imshow(self.image, cmap="magma", origin="lower", alpha=0.3 if dim else 1, aspect="auto")
        note: dict[str, Any] = {"fontsize": 6.5, "color": "white", "transform": ax.transAxes}
        ax.text(0.985, 0.03, "time →", ha="right", va="bottom", **note)
        ax.text(0.015, 0.97, "frequency ↑", ha="left", va="top", **note)


@dataclass(frozen=True)
class Frames(Cell):
    """Frames (T, C, H, W) uint8 of a clip, side by side."""

    frames: np.ndarray

    @property
    def size(self) -> tuple[float, float]:
        return len(self.frames) * SIDE, SIDE

    def draw(self, ax: Axes, dim: bool) -> None:
        gap = np.full((*self.frames.shape[1:3], max(1, self.frames.shape[3] // 32)), 255, dtype=np.uint8)
        pieces = [piece for frame in self.frames for piece in (gap, frame)][1:]
        Picture("", np.concatenate(pieces, axis=2)).draw(ax, dim)


@dataclass(frozen=True)
class Words(Cell):
    """The words of ``text``."""

    @property
    def lines(self) -> list[str]:
        lines = textwrap.wrap(self.text, 34) or ["(empty)"]
        return lines if len(lines) <= MAX_LINES else [*lines[: MAX_LINES - 1], "..."]

    @property
    def size(self) -> tuple[float, float]:
        return WIDE, max(SIDE, LINE * (len(self.lines) + 1))

    def draw(self, ax: Axes, dim: bool) -> None:
        text = "\n".join(self.lines)
        ax.text(0.04, 0.95, text, va="top", fontsize=8, color="#333333", linespacing=1.3, transform=ax.transAxes)


@dataclass(frozen=True)
class TableCells(Cell):
    """Names and values of the columns of a table row; missing and recovered ones come first where lines are short.

    Attributes:
        names, values: (F,) texts.
        states: (F,) :data:`OBSERVED`, :data:`MISSING` or :data:`RECOVERED`.
    """

    names: Sequence[str]
    values: Sequence[str]
    states: np.ndarray

    @property
    def shown(self) -> np.ndarray:
        """Numbers of the columns that have a line, in the order of the table."""
        if len(self.names) <= MAX_LINES:
            return np.arange(len(self.names))
        order = np.argsort(self.states == OBSERVED, kind="stable")
        return np.sort(order[: MAX_LINES - 1])

    @property
    def size(self) -> tuple[float, float]:
        return WIDE, max(SIDE, LINE * (min(len(self.names), MAX_LINES) + 0.6))

    def draw(self, ax: Axes, dim: bool) -> None:
        step = LINE / self.size[1]
        place: dict[str, Any] = {"va": "center", "fontsize": 8, "transform": ax.transAxes}
        for line, j in enumerate(self.shown):
            y = 1 - step * (line + 0.8)
            look = LOOKS[int(self.states[j])]
            weight = "bold" if self.states[j] == RECOVERED else "normal"
            ax.text(0.04, y, _short(self.names[j]), color="#333333", **place)
            ax.text(0.96, y, _short(self.values[j]), ha="right", weight=weight, **look, **place)
        if len(self.shown) < len(self.names):
            hidden = len(self.names) - len(self.shown)
            y = 1 - step * (len(self.shown) + 0.8)
            ax.text(0.04, y, f"and {hidden} more columns", color=GREY, style="italic", **place)


@dataclass(frozen=True)
class Curve(Cell):
    """Values of a row with too many columns for a list.

    Attributes:
        values: (F,) numbers.
        states: see :class:`TableCells`.
    """

    values: np.ndarray
    states: np.ndarray

    @property
    def size(self) -> tuple[float, float]:
        return WIDE, SIDE

    def draw(self, ax: Axes, dim: bool) -> None:
        columns = np.arange(len(self.values))
        ax.axhline(0, color="#dddddd", linewidth=0.6)
        ax.plot(columns, np.where(self.states == OBSERVED, self.values, np.nan), color=BLUE, linewidth=0.8)
        recovered = np.where(self.states == RECOVERED, self.values, np.nan)
        ax.plot(columns, recovered, color=GREEN, linewidth=0.8, marker=".", markersize=2.5)
        for j in np.flatnonzero(self.states == MISSING):
            ax.axvspan(j - 0.5, j + 0.5, color=VERMILLION, alpha=0.25, linewidth=0)
        ax.set_xlim(-1, len(self.values))


@dataclass(frozen=True)
class Bars(Cell):
    """Probabilities of classes, highest first.

    Attributes:
        probabilities: class -> probability.
    """

    probabilities: dict[str, float]

    @property
    def size(self) -> tuple[float, float]:
        return WIDE, max(SIDE, 0.22 * len(self.probabilities) + 0.1)

    def draw(self, ax: Axes, dim: bool) -> None:
        values = np.array(list(self.probabilities.values()))
        lines = -np.arange(len(values), dtype=float)
        ax.barh(lines, values, height=0.75, color="#b9d4e8")
        for y, (name, value) in zip(lines, self.probabilities.items(), strict=True):
            ax.text(0.02, y, _short(name), va="center", fontsize=8, color="#222222")
            ax.text(0.99, y, f"{value:.3f}", va="center", ha="right", fontsize=8, color="#222222")
        ax.set_xlim(0, 1)
        ax.set_ylim(-len(values) + 0.4, 0.6)


def _short(text: str, limit: int = 20) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
