"""Look of the report's figures: colours, styles of models, grids of panels, files.

Colours are those of Okabe and Ito, which are distinct with every common colour blindness; a second cue (marker, line
style, hatch, frame, word) always repeats the information of a colour.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h")
LINES = ("-", "--", "-.", (0, (3, 1, 1, 1, 1, 1)))
HATCHES = ("", "///", "...", "xxx")
BLUE, VERMILLION, GREEN = COLOURS[:3]
DARK_GREEN, BROWN, GREY = "#00694d", "#a84700", "#777777"  # of text
ORACLE_NOTE = "uses labels: an upper bound, never marked"
RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def is_oracle(model: str) -> bool:
    """Whether a row of a table uses labels at test time."""
    return "oracle" in model.lower()


def with_dagger(model: str) -> str:
    """The name, marked if the model uses labels at test time."""
    return model + "†" * is_oracle(model)


def model_styles(models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker, line style and hatch of each model, the same in all figures; oracles are grey and dotted."""
    styles: dict[str, dict[str, Any]] = {}
    plain = [m for m in models if not is_oracle(m)]
    for i, model in enumerate(sorted(plain, key=lambda m: "/" in m)):  # comparators take the remaining colours
        turn = i // len(COLOURS) % len(LINES)
        styles[model] = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": LINES[turn],
            "hatch": HATCHES[turn],
        }
    grey = {"color": GREY, "linestyle": ":", "hatch": "\\\\\\"}
    return styles | {m: grey | {"marker": "x+12"[i % 4]} for i, m in enumerate(m for m in models if is_oracle(m))}


def save(figure: Figure, path: Path, pdf: bool = False) -> None:
    """Write ``path`` (.png), and on request the same figure as .pdf."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    if pdf:
        figure.set_layout_engine("none")  # everything has its place
        figure.savefig(path.with_suffix(".pdf"))


def data_uri(path: Path) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def grid(rows: int, columns: int, width: float, height: float, **kwargs: Any) -> tuple[Figure, np.ndarray]:
    """A figure of ``width`` x ``height`` inches, and its axes (rows, columns)."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def legend(figure: Figure, axes: Sequence[Axes], columns: int) -> None:
    """Add one legend for all panels below them, at most ``columns`` wide; the figure grows by its height."""
    shown = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels())}
    # Approximate widths in inches: 0.09 per letter, 0.7 for line and gaps of an entry.
    widest = 0.09 * max(map(len, shown), default=0) + 0.7
    columns = max(min(columns, int(figure.get_figwidth() / widest)), 1)
    look: dict[str, Any] = {"ncols": columns, "frameon": False, "handlelength": 3}
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", **look)
    figure.set_figheight(figure.get_figheight() + 0.21 * -(-len(shown) // columns))
