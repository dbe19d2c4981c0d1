"""A process that ends at any file event of any stage loses nothing: the same command finishes with the same numbers."""

from __future__ import annotations

import os
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.campaign.tally import MINUTES, SEED, Tally, tries
from tests.campaign.tiny import ORDER, TinyRun, contents, differences
from utils.files import TEMPORARY

pytestmark = pytest.mark.campaign
KILLED, FAILED = 77, 78
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Runs in every test: cheap stages, each with other transitions. Stage report takes seconds of drawing.
SAMPLED = ("prepare", "impute", "fit", "gaussian", "test", "export", "predict")


def in_child(action: Callable[[], None], root: Path, at: int = 0) -> tuple[int, int]:
    """Run ``action`` in a forked process that ends, as if killed, before its event number ``at`` (from 1; 0 = never).

    An event opens a file below ``root`` for writing, or renames, removes or makes something there.

    Returns:
        Exit status, and the number of events.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status, count, prefix = FAILED, 0, str(root)

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if event == "open":
                is_change = isinstance(arguments[2], int) and bool(arguments[2] & WRITING)
            else:
                is_change = event in CHANGES
            # Functions that remove whole folders name the entries relative to an open folder.
            if is_change and isinstance(arguments[0], str | Path):
                name = str(arguments[0])
                if name.startswith(prefix) or (event != "open" and not name.startswith("/")):
                    count += 1
                    if count == at:
                        os._exit(KILLED)

        try:
            sys.addaudithook(watch)
            action()
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os.write(write, str(count).encode())
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    _, code = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(code), int(text or at)


def problem(tiny: TinyRun, place: Path, stage: str, expected: dict[str, object]) -> str | None:
    """What is wrong after the same command was repeated, None = nothing."""
    try:
        tiny.run(place, stage)
    except Exception as error:
        return f"the same command fails ({type(error).__name__}: {error})"
    if changed := differences(place, expected):
        return f"{', '.join(changed)} differ"
    if left := [path.name for path in place.rglob(".*") if TEMPORARY.fullmatch(path.name)]:
        return f"{', '.join(left)} is left"
    return None


def points(events: dict[str, int]) -> Iterator[tuple[str, int]]:
    """All pairs of stage and event, in a random order; in a sample one of each stage but report."""
    rng = random.Random(SEED)
    if not MINUTES:
        yield from ((stage, rng.randint(1, events[stage])) for stage in events)
        return
    pairs = [(stage, number) for stage, count in events.items() for number in range(1, count + 1)]
    rng.shuffle(pairs)
    yield from pairs


def test_a_run_killed_at_any_file_event_goes_on(tiny: TinyRun, tally: Tally, tmp_path: Path) -> None:
    place, events, expected = tmp_path / "killed", {}, {}
    losses = []
    for stage in ORDER if MINUTES else SAMPLED:
        tiny.copy(place, tiny.before[stage])
        status, events[stage] = in_child(lambda stage=stage: tiny.run(place, stage), place)  # type: ignore[misc]
        assert status == 0 and events[stage] > 1, stage
        expected[stage] = contents(place)
    budget = tries(len(SAMPLED), minutes=0.5)
    for (stage, number), _ in zip(points(events), budget):
        tiny.copy(place, tiny.before[stage])
        status, _ = in_child(lambda: tiny.run(place, stage), place, number)  # noqa: B023
        wrong = f"ended with {status}" if status != KILLED else problem(tiny, place, stage, expected[stage])
        what = f"event {number} of {events[stage]}: {wrong}"
        tally.add(f"kill: stage {stage}, {events[stage]} file events", "losses" if wrong else "unchanged", what)
        losses += [f"stage {stage}, {what}"] * bool(wrong)
    assert not losses, "\n".join(losses)
