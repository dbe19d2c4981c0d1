"""Cells of the pictures of samples."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from trainers.report.cells import (
    MAX_LINES,
    MISSING,
    OBSERVED,
    RECOVERED,
    SIDE,
    Bars,
    Cell,
    Curve,
    Frames,
    Picture,
    Spectrogram,
    TableCells,
    Words,
)
from trainers.report.pictures import Block, draw_blocks


def axes_of(cell: Cell):
    ax = Figure().add_subplot()
    cell.draw(ax, dim=False)
    return ax


def texts_of(cell: Cell) -> list[str]:
    return [text.get_text() for text in axes_of(cell).texts]


def test_a_long_table_shows_what_is_missing_and_what_was_recovered() -> None:
    names = [f"column {j}" for j in range(40)]
    states = np.full(40, OBSERVED)
    states[[30, 35]] = MISSING, RECOVERED
    lines = texts_of(TableCells("", names, [str(j) for j in range(40)], states))
    shown = [name for name in lines if name.startswith("column")]
    assert shown == [f"column {j}" for j in (*range(MAX_LINES - 3), 30, 35)]
    assert lines[-1] == f"and {40 - MAX_LINES + 1} more columns"
    assert texts_of(TableCells("", ["a" * 30], ["1"], np.array([OBSERVED]))) == ["a" * 19 + "…", "1"]


def test_long_texts_are_cut_and_empty_ones_say_so() -> None:
    cell = Words("word " * 500)
    assert len(cell.lines) == MAX_LINES and cell.lines[-1] == "..." and cell.size[1] > SIDE
    assert texts_of(Words("")) == ["(empty)"]


def test_a_curve_leaves_gaps_where_values_are_missing() -> None:
    states = np.array([OBSERVED, OBSERVED, MISSING, RECOVERED])
    ax = axes_of(Curve("", np.array([1.0, 2.0, 3.0, 4.0]), states))
    _, observed, recovered = (line.get_ydata() for line in ax.lines)
    np.testing.assert_array_equal(observed, [1, 2, np.nan, np.nan])
    np.testing.assert_array_equal(recovered, [np.nan, np.nan, np.nan, 4])
    (gap,) = ax.patches
    np.testing.assert_allclose(gap.get_extents().transformed(ax.transData.inverted()).intervalx, [1.5, 2.5])


def test_bars_have_the_length_of_the_probabilities() -> None:
    ax = axes_of(Bars("", {"a": 0.75, "b": 0.25}))
    assert [bar.get_width() for bar in ax.patches] == [0.75, 0.25] and ax.get_xlim() == (0, 1)


def test_bytes_are_shown_as_they_are_and_other_numbers_on_their_range() -> None:
    (image,) = axes_of(Picture("", np.full((1, 4, 4), 100, dtype=np.uint8))).images
    assert image.get_clim() == (0, 255)
    (image,) = axes_of(Picture("", np.linspace(-2, 2, 16).reshape(4, 4))).images
    assert image.get_clim() == (-2, 2)


def test_a_spectrogram_rises_from_the_lowest_frequency() -> None:
    sound = np.arange(12.0).reshape(3, 4)
    (image,) = axes_of(Spectrogram("", sound)).images
    np.testing.assert_array_equal(image.get_array(), sound)
    assert image.origin == "lower" and image.get_cmap().name == "magma"


def test_frames_stand_side_by_side_with_a_gap() -> None:
    frames = np.stack([np.full((3, 4, 64), 10 * i, dtype=np.uint8) for i in range(3)])
    cell = Frames("", frames)
    (image,) = axes_of(cell).images
    row = image.get_array()[0, :, 0]
    assert cell.size == (3 * SIDE, SIDE) and image.get_array().shape == (4, 3 * 64 + 2 * 2, 3)
    assert [set(part) for part in np.split(row, [64, 66, 130, 132])] == [{0}, {255}, {10}, {255}, {20}]


def test_rewards_that_would_be_rounded_to_zero_keep_their_sign() -> None:
    rewards = np.array([[0.25, -2e-7], [np.nan, 0.0]])
    cells = [Cell("missing")] * 2
    block = Block("", "black", ["a", "b"], cells, [True] * 2, [True] * 2, dict(enumerate(cells)), [0], rewards)
    texts = [text.get_text() for text in draw_blocks([block], "title").texts]
    assert [text for text in texts if text[:1] in "+-" and text] == ["+0.250", "-2e-07", "+0.000"]
    assert "accepted (1)" in texts and "rejected" in texts
