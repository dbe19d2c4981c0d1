"""Progress of long loops: what a log says of the time left, and that no bar is drawn where it cannot be redrawn."""

from __future__ import annotations

import io
import logging
import sys
from functools import partial
from types import SimpleNamespace

import pytest

from utils.progress import Pace, Progress, duration, is_interactive


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.04, "0.0 s"), (9.9, "9.9 s"), (12, "12 s"), (99, "99 s"), (100, "2 min"), (5940, "99 min")),
        *((6000, "1.7 h"), (172_000, "47.8 h"), (200_000, "2.3 days")),
    ],
)
def test_durations_are_written_in_the_largest_unit_that_suits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_time_left_is_that_of_equal_units() -> None:
    """2 of 12 units done before, 12 s for each: after 3 there are 9 left, 108 s."""
    clock = Clock()
    pace = Pace("fit", "epoch", 12, 2, clock)
    assert pace.line(2) is None
    clock.now += 12
    assert pace.line(3) == "fit: 3 of 12 epochs, about 2 min left"


def test_pauses_between_lines_double_up_to_ten_minutes() -> None:
    clock, lines = Clock(), []
    pace = Pace("test", "batch", 10_000, clock=clock)
    for done in range(1, 5001):
        clock.now += 1
        if pace.line(done):
            lines.append(done)
    # After 1 s: 30 s of pause, then as long as has passed, then 600 s.
    assert lines == [1, 31, 62, 124, 248, 496, 992, 1592, 2192, 2792, 3392, 3992, 4592]


def test_units_have_their_plural() -> None:
    clock = Clock()
    pace = Pace("test", "batch", 100, clock=clock)
    clock.now += 1
    assert pace.line(2) == "test: 2 of 100 batches, about 49 s left"


def test_a_short_loop_has_no_line() -> None:
    clock = Clock()
    pace = Pace("test", "batch", 10, clock=clock)
    for done in range(1, 11):
        clock.now += 1
        assert pace.line(done) is None  # at most 9 s are left
    unknown = Pace("predict", "row", None, clock=clock)
    assert unknown.line(5) is None
    clock.now += 20
    assert unknown.line(2000) == "predict: 2000 rows in 20 s"


def test_no_bar_is_written_into_a_file(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    times = iter(float(second) for second in range(10_000))
    monkeypatch.setattr("tqdm.std.time", lambda: next(times))
    monkeypatch.setattr("utils.progress.Pace", partial(Pace, clock=lambda: next(times)))
    assert list(Progress(range(100), "decoding", unit="image")) == list(range(100))
    with Progress(total=3, desc="reading", unit="file", leave=False) as bar:
        bar.update(3)
    assert stream.getvalue() == ""
    assert caplog.messages and all(m.startswith("decoding: ") and m.endswith(" left") for m in caplog.messages)


def test_a_bar_is_drawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(Progress(range(3), "decoding", unit="image", mininterval=0)) == [0, 1, 2]
    assert "decoding: 100%" in stream.getvalue() and caplog.messages == []
    before = stream.getvalue()
    assert list(Progress(range(3), disable=True)) == [0, 1, 2] and stream.getvalue() == before


@pytest.mark.parametrize("is_running", [False, True])
def test_a_notebook_has_bars_and_a_program_that_imports_its_kernel_has_not(
    is_running: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = SimpleNamespace(IPKernelApp=SimpleNamespace(initialized=lambda: is_running))
    monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", kernel)
    assert is_interactive(io.StringIO()) == is_running
