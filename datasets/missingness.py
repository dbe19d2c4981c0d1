"""Every missingness protocol. One convention: a boolean matrix (N, M), **True = missing**.

A scenario has a name that can stand in a table, a file name and a command line:

=====================  ==========================================================================================
``none``               nothing is missing
``whole_12``           modalities 1 and 2 are missing in every row (``whole_1_2`` reads the same)
``random_0.8``         rate 0.8, each row misses exactly round(0.8 M) modalities (generator ``exact``)
``random_global_0.8``  the matrix mean is 0.8 within 0.005, at least one modality a row is kept
``random_bernoulli_0.8``  each cell independently; rows left empty are redrawn, so the realised rate is lower
``file:masks.csv``     a mask file of the original DyMo repository: no header, one row a sample, True / False
``subsets``            stands for all 2^M - 1 patterns at once, each as ``whole_...``
=====================  ==========================================================================================
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError

KINDS = ("none", "whole", "random", "file", "subsets")
GENERATORS = ("exact", "global", "bernoulli")


@dataclass(frozen=True)
class Scenario:
    """One way of being missing.

    Attributes:
        name: as it stands in tables and file names.
        kind: none | whole | random | file.
        modalities: for ``whole``, the columns that are missing.
        rate, generator: for ``random``.
        path: for ``file``.
    """

    name: str
    kind: str
    modalities: tuple[int, ...] = ()
    rate: float = 0.0
    generator: str = "exact"
    path: str = ""

    def same(self, other: Scenario) -> bool:
        """Whether both make the same masks; files by their place, however the path is spelled."""
        if self.kind == other.kind == "file":
            return Path(self.path).resolve() == Path(other.path).resolve()
        return self == other

    @property
    def slug(self) -> str:
        """The name as a file stem."""
        return re.sub(r"[^A-Za-z0-9_.\-]+", "_", self.name.replace("file:", "file_")).removesuffix(".csv")

    def generate(self, n: int, modality_names: Sequence[str], seed: int) -> np.ndarray:
        """The mask.

        Args:
            n: rows.
            modality_names: M names; only their number and, in messages, their spelling matter.
            seed: of the random kinds.

        Returns:
            (n, M) bool, True = missing, at least one False a row.

        Raises:
            UserError: the scenario does not fit the data.
        """
        m = len(modality_names)
        mask = np.zeros((n, m), dtype=bool)
        if self.kind == "whole":
            self.check(m)
            mask[:, list(self.modalities)] = True
        elif self.kind == "random":
            mask = random_mask(n, m, self.rate, self.generator, seed)
        elif self.kind == "file":
            mask = read_dymo_csv(Path(self.path), n, m)
        return mask

    def check(self, m: int) -> None:
        """
        Raises:
            UserError: a ``whole`` scenario names an unknown modality, or all of them.
        """
        outside = [i for i in self.modalities if not 0 <= i < m]
        if outside:
            raise UserError(
                f"missing scenario '{self.name}': there is no modality {outside[0]}, the data set has 0 to {m - 1}"
            )
        if self.kind == "whole" and len(set(self.modalities)) == m:
            raise UserError(f"missing scenario '{self.name}' leaves nothing present: drop at least one digit")
        if self.kind == "random" and self.generator == "exact":
            check_rate(self.rate, m, f"missing scenario '{self.name}'")


def check_rate(rate: float, m: int, what: str) -> None:
    """
    Raises:
        UserError: a share ``rate`` of m modalities is more than all but one, so no row could miss exactly that.
    """
    if rate * m > m - 1 + 1e-9:
        highest = f"{(m - 1) / m:.4g}"
        raise UserError(f"{what} would leave no modality of {m} in some rows: the highest rate is {highest}")


def _rate(text: str, spec: object) -> float:
    try:
        rate = float(text)
    except ValueError:
        raise UserError(f"missing scenario '{spec}': '{text}' is not a rate; write for example random_0.4") from None
    if not 0 <= rate < 1:
        raise UserError(f"missing scenario '{spec}': the rate {text} is outside [0, 1), one modality must stay")
    return rate


def parse_scenario(spec: str | Mapping[str, Any]) -> Scenario:
    """One scenario from its name or from a mapping (``{kind: random, rate: 0.4, generator: global}``).

    Raises:
        UserError: unknown kind or impossible value; names the nearest known one.
    """
    if isinstance(spec, Mapping):
        return _from_mapping(spec)
    text = str(spec).strip()
    if text == "none":
        return Scenario("none", "none")
    if text.startswith("file:"):
        path = text.removeprefix("file:")
        if not path:
            raise UserError("missing scenario 'file:' names no file: write file:masks.csv")
        return Scenario(f"file:{Path(path).name}", "file", path=path)
    if match := re.fullmatch(r"(?:whole_)?(\d+(?:_\d+)*_?)", text):
        digits = match[1]
        columns = {int(p) for p in digits.split("_") if p} if "_" in digits else {int(d) for d in digits}
        return whole(sorted(columns))
    if text == "whole_none":
        return Scenario("none", "none")
    if text == "subsets":
        raise UserError("missing scenario 'subsets' stands for many patterns: it can be named in missing.test alone")
    if text.startswith("random_"):
        generator, _, rate = text.removeprefix("random_").rpartition("_")
        return _random(_rate(rate, text), generator or "exact", text)
    guess = difflib.get_close_matches(re.split(r"[_:]", text)[0], KINDS, 1)
    hint = f"did you mean '{guess[0]}'? " if guess else ""
    raise UserError(
        f"unknown missing scenario '{text}': {hint}known are none, whole_12, random_0.8, random_global_0.8, "
        "random_bernoulli_0.8, file:masks.csv and subsets"
    )


def _random(rate: float, generator: str, spec: object) -> Scenario:
    if generator not in GENERATORS:
        raise UserError(
            f"missing scenario '{spec}': unknown generator '{generator}', known are {', '.join(GENERATORS)}"
        )
    infix = "" if generator == "exact" else f"{generator}_"
    short = f"{rate:g}"
    name = f"random_{infix}{short if float(short) == rate else repr(rate)}"
    return Scenario(name, "random", rate=rate, generator=generator)


def _from_mapping(spec: Mapping[str, Any]) -> Scenario:
    values = dict(spec)
    kind = values.pop("kind", None)
    allowed = {
        "none": set(),
        "whole": {"modalities"},
        "random": {"rate", "generator"},
        "file": {"path"},
    }.get(str(kind))
    if allowed is None:
        raise UserError(f"missing scenario {dict(spec)}: kind must be one of none, whole, random, file")
    if unknown := set(values) - allowed:
        raise UserError(f"missing scenario {dict(spec)}: unknown key '{min(unknown)}' for kind {kind}")
    if kind == "whole":
        columns = values.get("modalities")
        columns = [columns] if isinstance(columns, int) else columns
        if not isinstance(columns, Sequence) or not all(str(i).isdecimal() for i in columns):
            raise UserError(
                f"missing scenario {dict(spec)}: modalities is a list of column numbers, for example [0, 2]"
            )
        return whole(sorted({int(i) for i in columns}))
    if kind == "random":
        return _random(_rate(str(values.get("rate")), dict(spec)), str(values.get("generator", "exact")), dict(spec))
    return parse_scenario("none" if kind == "none" else f"file:{values.get('path', '')}")


def whole(columns: Sequence[int]) -> Scenario:
    """The scenario in which ``columns`` are missing in every row."""
    if not columns:
        return Scenario("none", "none")
    joint = "" if max(columns) < 10 else "_"
    name = joint.join(map(str, columns))
    return Scenario(f"whole_{name}" + ("_" if joint and len(columns) == 1 else ""), "whole", tuple(columns))


def parse_scenarios(specs: Sequence[str | Mapping[str, Any]], n_modalities: int) -> list[Scenario]:
    """All scenarios of a list, in its order, duplicates dropped; ``subsets`` is expanded, each is checked against M.

    Raises:
        UserError: one line per bad entry, and for each two that would be written under one name.
    """
    scenarios: dict[str, Scenario] = {}  # by slug: what their files are called
    problems = []
    for spec in specs:
        try:
            if spec == "subsets":
                found = [
                    whole([i for i in range(n_modalities) if i not in present])
                    for size in range(n_modalities, 0, -1)
                    for present in combinations(range(n_modalities), size)
                ]
            else:
                found = [parse_scenario(spec)]
            for scenario in found:
                scenario.check(n_modalities)
                first = scenarios.setdefault(scenario.slug, scenario)
                if not first.same(scenario):
                    raise UserError(
                        f"missing scenarios '{first.path or first.name}' and '{scenario.path or scenario.name}' would "
                        f"both be called '{scenario.slug}': rename one of the files"
                    )
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return list(scenarios.values())


def random_mask(n: int, m: int, rate: float, generator: str, seed: int) -> np.ndarray:
    """(n, m) bool mask at a rate; True = missing, at least one False a row (datasets spec 12.2.2).

    ``exact``: k = round(rate m) of each row, ranks of uniform draws, so masks of rising rates are nested.
    ``global``: one guaranteed modality a row plus Bernoulli extras, redrawn until the mean is within 0.005
    (within one cell for small n). ``bernoulli``: independent cells, empty rows redrawn.

    Raises:
        UserError: the rate cannot be had with m modalities.
    """
    rng = np.random.default_rng(seed)
    if generator == "exact":
        check_rate(rate, m, f"rate {rate:g}")
        k = round(rate * m)
        draws = rng.random((n, m))
        return np.argsort(np.argsort(draws, axis=1, kind="stable"), axis=1, kind="stable") < k
    if generator == "global":
        if rate == 0:
            return np.zeros((n, m), dtype=bool)
        keep = 1 - rate
        extra = max(keep - 1 / m, 0.0) / (1 - 1 / m) if m > 1 else 0.0
        tolerance = max(0.005, 1 / (n * m))
        for _ in range(10_000):
            present = rng.random((n, m)) < extra
            present[np.arange(n), rng.integers(m, size=n)] = True
            # At or above (m-1)/m every row keeps exactly one modality: the nearest that can be had.
            if extra == 0 or abs(present.mean() - keep) <= tolerance:
                return ~present
        raise UserError(f"no mask of {n} rows comes within {tolerance:.3g} of rate {rate:g}: use random_{rate:g}")
    mask = rng.random((n, m)) < rate
    while (empty := mask.all(axis=1)).any():
        mask[empty] = rng.random((int(empty.sum()), m)) < rate
    return mask


_BOOLEANS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def read_dymo_csv(path: Path, n: int, m: int) -> np.ndarray:
    """A mask file of the original DyMo repository: no header, ``n`` rows of ``m`` booleans, True = missing.

    Raises:
        UserError: absent file, wrong shape, another word than a boolean, or a row with nothing present.
    """
    if not path.is_file():
        raise UserError(f"mask file {path} does not exist: give an existing file after file:")
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise UserError(f"mask file {path} is no text: give a CSV file of True and False") from None
    if len(lines) != n:
        raise UserError(f"mask file {path} has {len(lines)} rows but the split has {n}: use the mask of this split")
    mask = np.zeros((n, m), dtype=bool)
    for row, line in enumerate(lines):
        cells = [cell.strip().lower() for cell in line.split(",")]
        if len(cells) != m:
            raise UserError(f"mask file {path}, row {row + 1}: {len(cells)} columns, the data set has {m} modalities")
        try:
            mask[row] = [_BOOLEANS[cell] for cell in cells]
        except KeyError as error:
            raise UserError(f"mask file {path}, row {row + 1}: {error} is not True or False (no header)") from None
    if (empty := mask.all(axis=1)).any():
        raise UserError(
            f"mask file {path}, row {int(empty.argmax()) + 1}: every modality is missing "
            f"({int(empty.sum())} such rows); at least one must be False"
        )
    return mask


def write_dymo_csv(path: Path, mask: np.ndarray) -> None:
    """Write a mask as the original repository stores it."""
    path.write_text("".join(",".join(str(bool(v)) for v in row) + "\n" for row in mask))


def mask_hash(mask: np.ndarray) -> str:
    """First 16 hex digits of the SHA-256 of shape and content."""
    return hashlib.sha256(repr(mask.shape).encode() + np.packbits(mask).tobytes()).hexdigest()[:16]


def save_mask(path: Path, mask: np.ndarray, scenario: Scenario, seed: int) -> str:
    """Write ``<path>.npz`` with a JSON side-car that says how it was made; returns the hash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path.with_suffix(path.suffix + ".npz"), missing=mask)
    digest = mask_hash(mask)
    about = {
        "scenario": scenario.name,
        "generator": scenario.generator if scenario.kind == "random" else scenario.kind,
        "seed": seed,
        "shape": list(mask.shape),
        "realised_rate": float(mask.mean()),
        "sha256_16": digest,
    }
    path.with_suffix(path.suffix + ".json").write_text(json.dumps(about, indent=2) + "\n")
    return digest
