"""A process that ends at any file event of any stage, or at any time, loses nothing: the same command finishes with the
same numbers."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.campaign.children import KILLED, Accident, Child, in_child
from tests.campaign.tally import MINUTES, SEED, Tally, tries
from tests.campaign.tiny import ORDER, SAMPLED, TinyRun, problem

pytestmark = pytest.mark.campaign


def points(tiny: TinyRun) -> Iterator[tuple[str, int]]:
    """All pairs of stage and event, in a random order; in a sample one of each stage but report."""
    rng = random.Random(SEED)
    if not MINUTES:
        yield from ((stage, rng.randint(1, tiny.events(stage))) for stage in SAMPLED)
        return
    pairs = [(stage, number) for stage in ORDER for number in range(1, tiny.events(stage) + 1)]
    rng.shuffle(pairs)
    yield from pairs


def test_a_run_killed_at_any_file_event_goes_on(tiny: TinyRun, tally: Tally, tmp_path: Path) -> None:
    """In every second try the run directory is moved before it goes on."""
    losses = []
    pairs = list(points(tiny))
    for (stage, number), tried in zip(pairs, tries(len(SAMPLED), hour=len(pairs))):
        place = tiny.copy(tmp_path / "killed", tiny.before[stage])
        status, _, text = in_child(lambda: tiny.run(place, stage), place, Accident(number))  # noqa: B023
        if is_moved := bool(tried % 2):
            place = place.rename(tmp_path / f"moved{tried}")
        wrong = f"ended with {status} ({text})" if status != KILLED else problem(tiny, place, stage)
        what = f"event {number} of {tiny.events(stage)}{', moved' * is_moved}: {wrong}"
        kind = "process ended before a file event" + ", its directory moved" * is_moved
        tally.add(kind, f"stage {stage}", "losses" if wrong else "unchanged", what)
        losses += [f"stage {stage}, {what}"] * bool(wrong)
        tiny.remove(place)
    assert not losses, "\n".join(losses)


def test_a_run_killed_again_and_again_at_any_time_goes_on(tiny: TinyRun, tally: Tally, tmp_path: Path) -> None:
    """SIGKILL, also while the C++ code of a library writes or computes; up to three times before the run may finish."""
    rng, losses = random.Random(SEED + 1), []
    for _ in tries(2, hour=100):
        stage = rng.choice(SAMPLED)
        place, kills = tiny.copy(tmp_path / "killed", tiny.before[stage]), 0
        for _ in range(rng.randint(1, 3)):
            child = Child(lambda: tiny.run(place, stage), place)  # noqa: B023
            status, _, text = child.kill_after(rng.uniform(0, 1.2 * tiny.seconds[stage]))
            assert status in (0, -signal.SIGKILL), text
            kills += status != 0
        wrong = problem(tiny, place, stage)
        for _ in range(kills):
            tally.add("SIGKILL at a random time", f"stage {stage}", "losses" if wrong else "unchanged", wrong or "")
        losses += [f"stage {stage}: {wrong}"] * bool(wrong)
    assert not losses, "\n".join(losses)


def test_two_runs_at_once_give_what_one_gives(tiny: TinyRun, tally: Tally, tmp_path: Path) -> None:
    """In every second try, one of the two is killed at a file event."""
    rng, losses = random.Random(SEED + 2), []
    for number in tries(2, hour=40):
        stage = rng.choice(ORDER if MINUTES else SAMPLED)
        place = tiny.copy(tmp_path / "shared", tiny.before[stage])
        at = rng.randint(1, tiny.events(stage)) if number % 2 else 0
        children = [Child(lambda: tiny.run(place, stage), place, Accident(k)) for k in (at, 0)]  # noqa: B023
        ends = [child.wait() for child in children]
        wrong = next((text or str(status) for status, _, text in ends if status not in (0, KILLED)), None)
        wrong = wrong or problem(tiny, place, stage)
        kind = f"two processes at once in a directory{', one of them killed' * bool(at)}"
        tally.add(kind, f"stage {stage}", "losses" if wrong else "unchanged", f"event {at}: {wrong}")
        losses += [f"stage {stage}, event {at}: {wrong}"] * bool(wrong)
    assert not losses, "\n".join(losses)
