"""Files of a finished run with a flipped bit or cut off: refused by name, or without influence."""

from __future__ import annotations

import random
import re
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.campaign.entries import ARTEFACTS, UNREAD, Artefact
from tests.campaign.mutations import DAMAGE
from tests.campaign.tally import MINUTES, SEED, Tally, tries
from tests.campaign.tiny import TinyRun
from utils.errors import UserError

pytestmark = pytest.mark.campaign


def outcome(read: Callable[[], object], expected: object, path: Path) -> tuple[str, str]:
    """``refused`` by a line that names the file, ``unchanged``, or ``losses`` with the reason."""
    try:
        value = read()
    except UserError as error:
        message = str(error)
        # Of a changed setting in a marker the line names the run directory.
        if "\n" in message or not {path.name, path.stem, "manifest"} & set(re.split(r"[/ :'\"()]", message)):
            return "losses", f"does not name {path.name} in one line: {message}"
        return "refused", ""
    except Exception:
        return "losses", traceback.format_exc(limit=-3)
    return ("unchanged", "") if value == expected else ("losses", "used in silence")


def files_of(place: Path, artefact: Artefact) -> list[Path]:
    files = [path for path in sorted(place.rglob("*")) if path.is_file() and path.stat().st_size]
    return [path for path in files if re.fullmatch(artefact.pattern, path.relative_to(place).as_posix())]


def test_every_file_of_a_run_has_an_entry(tiny: TinyRun) -> None:
    patterns = [*(artefact.pattern for artefact in ARTEFACTS), *UNREAD]
    names = [path.relative_to(tiny.whole).as_posix() for path in tiny.whole.rglob("*") if path.is_file()]
    assert not [name for name in names if sum(bool(re.fullmatch(p, name)) for p in patterns) != 1]
    assert all(any(re.fullmatch(p, name) for name in names) for p in patterns)


@pytest.mark.parametrize("artefact", ARTEFACTS, ids=lambda a: a.kind)
def test_damage_is_refused_or_without_influence(
    artefact: Artefact, tiny: TinyRun, tally: Tally, tmp_path: Path
) -> None:
    rng, place = random.Random(f"{SEED}{artefact.kind}"), tiny.copy(tmp_path / "damaged")
    expected = artefact.read(tiny, place)
    losses = []
    for number in tries(4, hour=150):
        path = rng.choice(files_of(place, artefact))
        content = path.read_bytes()
        damage = DAMAGE[number % 4 == 3]
        path.write_bytes(damage(content, rng))
        result, description = outcome(lambda: artefact.read(tiny, place), expected, path)
        text = f"{damage.__name__} of {path.relative_to(place)}: {description}"
        kind = f"damage of a file: {damage.__name__}"
        tally.add(kind, artefact.kind, result, text)
        losses += [text] * (result == "losses")
        if artefact.writes:
            tiny.copy(place)
        else:
            path.write_bytes(content)
    assert not losses, "\n".join(losses) if not MINUTES else losses[:20]
