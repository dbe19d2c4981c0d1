"""Random, damaged and hostile files in every reader: a message, in bounded time, and nothing is executed."""

from __future__ import annotations

import random
import signal
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.campaign.loaders import LOADERS, Loader
from tests.campaign.mutations import HOSTILE, payloads
from tests.campaign.tally import MINUTES, SEED, Tally, tries
from utils.errors import UserError

pytestmark = pytest.mark.campaign
SECONDS = 20
WAITING = 600  # a reader that waits, such as for a network, uses no processor time


class TooLong(BaseException):
    """No reader catches it."""


@contextmanager
def bounded() -> Iterator[None]:
    """End what takes longer than SECONDS of processor time, whatever else the cores do, and what waits for WAITING."""

    def stop(*_: object) -> None:
        raise TooLong(f"took longer than {SECONDS} s of processor time, or {WAITING} s")

    before = [signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(WAITING)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)


def problem(loader: Loader, path: Path) -> tuple[str, str]:
    """Outcome of reading a file, and what is wrong."""
    try:
        with bounded(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loader.read(path)
    except TooLong as error:
        return "losses", str(error)
    except (UserError, *loader.errors):
        return "refused", ""
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "losses", traceback.format_exc(limit=-2)
    return "unchanged", ""


@pytest.mark.parametrize("name", LOADERS)
def test_hostile_files_are_refused_in_one_line(name: str, tally: Tally, tmp_path: Path) -> None:
    loader, rng, losses = LOADERS[name], random.Random(f"{SEED}{name}"), []
    sentinel = tmp_path / "executed"
    attacks, valid = payloads(sentinel), {}
    for suffix in loader.suffixes:
        loader.make(tmp_path / f"valid{suffix}")
        valid[suffix] = (tmp_path / f"valid{suffix}").read_bytes()
        assert problem(loader, tmp_path / f"valid{suffix}")[0] in ("unchanged", "refused")
    for number in tries(len(HOSTILE) + len(attacks), hour=10_000):
        suffix = loader.suffixes[number % len(loader.suffixes)]
        path = tmp_path / f"hostile{suffix}"
        if number < len(attacks):
            path.write_bytes(attacks[number])
        else:
            path.write_bytes(HOSTILE[number % len(HOSTILE)](valid[suffix], rng))
        result, wrong = problem(loader, path)
        if sentinel.exists():
            sentinel.unlink()
            result, wrong = "losses", "it was executed"
        tally.add("hostile file, in a reader", name, result, wrong)
        if result == "losses":
            losses.append(wrong)
            path.rename(tmp_path / f"loss{len(losses)}{suffix}")
    assert not losses, "\n".join(losses) if not MINUTES else losses[:20]
