"""A system that refuses, a clock that jumps and sources that change: one line, and the same command goes on."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.campaign.children import REFUSED, Accident, in_child
from tests.campaign.mutations import flip, truncate
from tests.campaign.tally import MINUTES, SEED, Tally, tries
from tests.campaign.tiny import ORDER, SAMPLED, TinyRun, contents, problem
from utils.errors import UserError
from utils.run_directory import RunDirectory

pytestmark = pytest.mark.campaign
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


def outcome(status: int, text: str) -> tuple[str, str | None]:
    """``refused`` in one line, ``unchanged``, or ``losses`` with the reason."""
    if status == REFUSED and text and len(text.splitlines()) == 1:
        return "refused", None
    return ("unchanged", None) if status == 0 else ("losses", f"ended with {status}: {text}")


def stages(rng: random.Random) -> str:
    return rng.choice(ORDER if MINUTES else SAMPLED)


def test_an_error_of_the_system_at_any_file_event_is_one_line(tiny: TinyRun, tally: Tally, tmp_path: Path) -> None:
    """A full disk, a quota, missing permissions, a broken disk: for one event or from then on."""
    rng, losses = random.Random(SEED), []
    for _ in tries(2, hour=60):
        stage = stages(rng)
        accident = Accident(rng.randint(1, tiny.events(stage)), rng.choice(REFUSALS), rng.random() < 0.5)
        place = tiny.copy(tmp_path / "refused", tiny.before[stage])
        result, wrong = outcome(*in_child(lambda: tiny.run(place, stage), place, accident)[::2])  # noqa: B023
        wrong = wrong or problem(tiny, place, stage)
        what = f"{accident}: {wrong}"
        tally.add("error of the system at a file event", f"stage {stage}", "losses" if wrong else result, what)
        losses += [f"stage {stage}, {accident}: {wrong}"] * bool(wrong)
    assert not losses, "\n".join(losses)


def test_a_directory_that_cannot_be_written_is_one_line(tiny: TinyRun, tally: Tally, tmp_path: Path) -> None:
    """Finished stages are skipped there, others refused."""
    losses = []
    for number in tries(2, hour=12):
        stage = SAMPLED[(number + 1) % len(SAMPLED)]
        is_finished = number % 2 == 0 and stage in ("prepare", "impute", "fit", "gaussian", "test")
        place = tiny.copy(tmp_path / "read", tiny.whole if is_finished else tiny.before[stage])
        accident = Accident(1, errno.EROFS, is_lasting=True)
        status, events, text = in_child(lambda: tiny.run(place, stage), place, accident)  # noqa: B023
        result, wrong = outcome(status, text)
        if wrong is None and result != ("unchanged" if is_finished else "refused"):
            wrong = f"{result} ({text}), {events} events"
        kind = f"read-only directory, {'finished' if is_finished else 'unfinished'} stage"
        tally.add(kind, f"stage {stage}", "losses" if wrong else result, wrong or "")
        losses += [f"stage {stage}: {wrong}"] * bool(wrong)
    assert not losses, "\n".join(losses)


def limited(action: Callable[[], object], size: int) -> Callable[[], object]:
    """``action`` in a process whose files may have at most ``size`` bytes."""

    def run() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        action()

    return run


def test_a_file_larger_than_the_limit_of_the_system_is_one_line(tiny: TinyRun, tally: Tally, tmp_path: Path) -> None:
    rng, losses = random.Random(SEED), []
    for _ in tries(1, hour=30):
        stage, size = stages(rng), int(10 ** rng.uniform(0, 6))
        place = tiny.copy(tmp_path / "small", tiny.before[stage])
        action = limited(lambda: tiny.run(place, stage), size)  # noqa: B023
        result, wrong = outcome(*in_child(action, place)[::2])
        wrong = wrong or problem(tiny, place, stage)
        what = f"{size} bytes: {wrong}"
        tally.add("limit of the size of a file", f"stage {stage}", "losses" if wrong else result, what)
        losses += [f"stage {stage}, {size} bytes: {wrong}"] * bool(wrong)
    assert not losses, "\n".join(losses)


def test_a_full_file_system_is_one_line(tiny: TinyRun, tally: Tally, tmp_path: Path) -> None:
    """A small file system in memory, where this process may mount one."""
    rng, losses, place = random.Random(SEED), [], tmp_path / "mounted"
    place.mkdir()

    def mount(*options: str) -> bool:
        command = ["mount", "-t", "tmpfs", *options, "tmpfs", str(place)]
        return bool(shutil.which("mount")) and not subprocess.run(command, capture_output=True, check=False).returncode

    if not mount("-o", "size=64m"):
        pytest.skip("full file system: mounting is not allowed here")
    try:
        for _ in tries(1, hour=30):
            stage = stages(rng)
            run = tiny.copy(place / "run", tiny.before[stage])
            used = sum(file.stat().st_blocks * 512 for file in run.rglob("*")) // 1024
            mount("-o", f"remount,size={used + rng.choice([0, 4, 16, 64, 256, 1024])}k")
            result, wrong = outcome(*in_child(lambda: tiny.run(run, stage), run)[::2])  # noqa: B023
            mount("-o", "remount,size=64m")
            wrong = wrong or problem(tiny, run, stage)
            tally.add("full file system", f"stage {stage}", "losses" if wrong else result, wrong or "")
            losses += [f"stage {stage}: {wrong}"] * bool(wrong)
    finally:
        # -l: an array of the run may still be mapped, and a file system that stays mounted can never be removed.
        unmounted = subprocess.run(["umount", "-l", str(place)], check=False)
    assert not losses, "\n".join(losses)
    assert unmounted.returncode == 0


def with_clock(action: Callable[[], object], rng: random.Random, most: int) -> Callable[[], object]:
    """``action`` in a process whose clock jumps, mostly back, whenever it is read.

    Args:
        most: stages that it may begin.
    """

    def run() -> None:
        real, real_ns = time.time, time.time_ns
        shift = [0.0]

        def jump() -> float:
            shift[0] += rng.choice([0, 0, 0, -3600, -1e7, 1e6])
            return shift[0]

        time.time = lambda: real() + jump()
        time.time_ns = lambda: real_ns() + int(jump() * 1e9)
        before = RunDirectory.begun
        action()
        if RunDirectory.begun > before + most:
            raise AssertionError("a finished stage ran again")

    return run


def test_a_clock_that_jumps_changes_nothing(tiny: TinyRun, tally: Tally, tmp_path: Path) -> None:
    """Files of the next century and of 1971, and a clock that goes back while a stage runs."""
    rng, losses = random.Random(SEED), []
    for _ in tries(1, hour=24):
        stage = rng.choice(SAMPLED)
        place = tiny.copy(tmp_path / "clock", tiny.before[stage])
        for file in place.rglob("*"):
            os.utime(file, (when := rng.choice([4.1e9, 4.2e7, time.time()]), when))
        earlier = SAMPLED[: SAMPLED.index(stage)]
        begins = 2 if stage == "impute" else 1  # the imputer, and the quality of its recoveries
        action = with_clock(lambda: tiny.run(place, *earlier, stage), random.Random(rng.random()), begins)  # noqa: B023
        status, _, text = in_child(action, place)
        wrong = f"ended with {status}: {text}" if status else problem(tiny, place, stage)
        tally.add("clock that jumps", f"stage {stage}", "losses" if wrong else "unchanged", wrong or "")
        losses += [f"stage {stage}: {wrong}"] * bool(wrong)
    assert not losses, "\n".join(losses)


def changed_cell(csv: Path, photos: list[Path], rng: random.Random) -> None:
    lines = csv.read_text().splitlines()
    number = rng.randrange(1, len(lines))
    cells = lines[number].split(",")
    cells[rng.randrange(len(cells))] = rng.choice(["", "x", "-1e9", "nan", "brass", "0"])
    csv.write_text("\n".join([*lines[:number], ",".join(cells), *lines[number + 1 :]]) + "\n")


def changed_rows(csv: Path, photos: list[Path], rng: random.Random) -> None:
    head, *lines = csv.read_text().splitlines()
    rng.shuffle(lines)
    lines = rng.choice([lines, lines[1:], [*lines, lines[0]], lines[: len(lines) // 2], []])
    csv.write_text("\n".join([head, *lines]) + "\n")


def changed_bytes(csv: Path, photos: list[Path], rng: random.Random) -> None:
    csv.write_bytes(rng.choice([flip, truncate])(csv.read_bytes(), rng))


def changed_times(csv: Path, photos: list[Path], rng: random.Random) -> None:
    for file in (csv, *photos):
        os.utime(file, (4e9, 4e9))


def changed_picture(csv: Path, photos: list[Path], rng: random.Random) -> None:
    file, other = rng.sample(photos, 2)
    match rng.randrange(4):
        case 0:
            file.unlink()
        case 1:
            shutil.copy(other, file)
        case _:
            file.write_bytes(rng.choice([flip, truncate])(file.read_bytes(), rng))


CHANGES = (changed_cell, changed_rows, changed_bytes, changed_times, changed_picture)


def test_changed_sources_never_pass_for_those_of_a_finished_run(tiny: TinyRun, tally: Tally, tmp_path: Path) -> None:
    """The finished stages are refused by name, or their results are those of before."""
    rng, losses, source = random.Random(SEED), [], tiny.csv.parent
    backup, expected = shutil.copytree(source, tmp_path / "backup"), contents(tiny.whole / "out")
    try:
        for number in tries(2, hour=40):
            place, change = tiny.copy(tmp_path / "run"), CHANGES[number % len(CHANGES)]
            change(tiny.csv, sorted((source / "photos").iterdir()), rng)
            action = lambda: tiny.run(place, "prepare", "impute", "fit", "gaussian", "test")  # noqa: E731, B023
            status, _, text = in_child(action, place)
            # A table with problems has one line for each.
            result, wrong = ("refused", None) if status == REFUSED else outcome(status, text)
            if wrong is None and contents(place / "out") != expected:
                wrong = "results changed"
            kind, where = "changed sources of a finished run", change.__name__.replace("_", " ")
            tally.add(kind, where, "losses" if wrong else result, wrong or "")
            losses += [f"{change.__name__}: {wrong}"] * bool(wrong)
            shutil.rmtree(source)
            shutil.copytree(backup, source)
    finally:
        shutil.rmtree(source)
        shutil.copytree(backup, source)
    assert not losses, "\n".join(losses)


@pytest.mark.skipif(not MINUTES, reason="stage report draws for seconds")
def test_every_combination_of_scenarios_is_reported(tiny: TinyRun, tally: Tally, tmp_path: Path) -> None:
    # None hides the image, which the imputer cannot recover.
    names = ("none", "whole_1", "table_value_0.2", "table_value_0.5", "table_feature_0.5", "noise_gaussian_3_all")
    rng, losses = random.Random(SEED), []
    for _ in tries(1, hour=6):
        place = tiny.copy(tmp_path / "run", tiny.before["test"])
        chosen = rng.sample(names, rng.randint(1, len(names)))

        def run() -> None:
            for stage in ("test", "report"):
                cfg = tiny.config(place, [stage])  # noqa: B023
                cfg.missing.test = chosen  # noqa: B023
                tiny.start(cfg)
            if not list(place.rglob("report.html")):  # noqa: B023
                raise UserError("no report")

        status, _, text = in_child(run, place)
        wrong = f"ended with {status}: {text}" if status else None
        kind = "report of a combination of scenarios"
        tally.add(kind, "stage report", "losses" if wrong else "unchanged", f"{chosen}: {wrong}")
        losses += [f"{chosen}: {wrong}"] * bool(wrong)
    assert not losses, "\n".join(losses)
