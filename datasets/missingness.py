"""Every missingness protocol. One convention: a boolean matrix (N, M), **True = missing**.

A scenario has a name that can stand in a table, a file name and a command line:

=====================  ==========================================================================================
``none``               nothing is missing
``whole_12``           modalities 1 and 2 are missing in every row (``whole_1_2`` reads the same)
``random_0.8``         rate 0.8, each row misses exactly round(0.8 M) modalities (generator ``exact``)
``random_global_0.8``  the matrix mean is 0.8 within 0.005, at least one modality a row is kept
``random_bernoulli_0.8``  each cell independently; rows left empty are redrawn, so the realised rate is lower
``table_value_0.7``    70 % of the cells of the table, drawn at random (TIP's generator, bit for bit)
``table_feature_0.7``  the same random 70 % of its columns in every row
``table_MI_0.7``       the most important 70 % of its columns by a random forest (``table_most_important_0.7`` reads the
                       same); ``table_LI_0.7`` the least important
``image_text_both_0.7``  35 % of the rows lack the text, 35 % the image (MAP's generator, bit for bit)
``image_text_text_0.7``  70 % lack the text; ``image_text_image_0.7`` the image. Audio and video count as these
                       two. Every split starts from the seed; ``image_text_running_both_0.7`` draws train, val and
                       test one after the other from one generator, as MAP does
``nested_0_0.25``      modality 0 is missing in exactly floor(0.25 N) rows, those that never had it among them (stress
                       tests of Resilient-VT, bit for bit); rows missing at a lower rate are so at a higher one
``file:masks.csv``     a mask file of the original DyMo repository: no header, one row a sample, True / False
``file:masks.npy``     a mask of table cells of TIP or DyMo: bool (N, F), True = missing
``file:table.pt``      a missing table of MAP: (N,) 0 complete, 1 text missing, 2 image missing
``noise_gaussian_4_m0``  nothing is missing, but the content of ``m0`` has gaussian noise of level 4 of 11
                       (:mod:`datasets.noise`); in place of ``m0`` a column, several (``m0-m3``, ``03``), or ``all``.
                       ``noise_gaussian_4_all+random_0.4``: what is left of the pattern after the plus is noisy
``subsets``            stands for all 2^M - 1 patterns at once, each as ``whole_...``
=====================  ==========================================================================================
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from datasets.noise import Corruption, Noise, parse_noise
from utils.errors import UserError
from utils.files import save_arrays

KINDS = ("none", "whole", "random", "table", "image_text", "nested", "file", "noise", "subsets")
GENERATORS = ("exact", "global", "bernoulli")
# How cells of a table are chosen, under the names that the mask files of TIP carry.
STRATEGIES = {
    "value": "value",
    "feature": "feature",
    "MI": "MI",
    "LI": "LI",
    "most_important": "MI",
    "least_important": "LI",
}
# What the rows of scenario image_text lack. The codes are those of MAP's missing tables.
SIDES = ("text", "image", "both")
# With this generator, val and test go on with the random numbers of the splits before them.
RUNNING = "running"
TEXT_CODE, IMAGE_CODE = 1, 2
# Kinds of modality that stand for the one and the other.
TEXT_KINDS, IMAGE_KINDS = ("text", "audio"), ("image", "video")
# A scenario whose realised rate is further from its name is pointed out.
RATE_TOLERANCE = 0.01
# With the default missing.seed, table masks take the seeds of TIP; another one shifts them.
DEFAULT_SEED = 2025
TIP_VALUE_SEED = 2021  # of train; val and test add 1 and 2
TIP_FEATURE_SEED = 2022  # of all splits
TIP_FOREST_SEED = 2022
MAP_SEED = 0  # of all splits
NESTED_SEED = 42  # of all splits


@dataclass(frozen=True)
class Scenario:
    """One way of being missing.

    Attributes:
        name: as it stands in tables and file names.
        kind: none | whole | random | table | image_text | nested | file.
        modalities: for ``whole``, the columns that are missing; for ``nested``, the one.
        rate: for ``random``, ``table``, ``image_text`` and ``nested``.
        generator: for ``random``.
        strategy: for ``table``, value | feature | MI | LI; for ``image_text``, text | image | both.
        path: for ``file``.
        noise: what is done to the content that is there; of any kind (``none``: nothing is missing).
    """

    name: str
    kind: str
    modalities: tuple[int, ...] = ()
    rate: float = 0.0
    generator: str = "exact"
    path: str = ""
    strategy: str = ""
    noise: Noise | None = None

    @property
    def of_cells(self) -> bool:
        """Whether it hides cells of a table, not whole modalities."""
        return self.kind == "table" or (self.kind == "file" and self.path.endswith(".npy"))

    @property
    def needs_ranking(self) -> bool:
        """Whether it needs the columns of the table in the order of their importance."""
        return self.strategy in ("MI", "LI")

    def seed(self, base: int, split: int) -> int:
        """The seed on a split (0 train, 1 val, 2 test), from ``missing.seed``.

        ``base + split``; for tables TIP's (docs/reference/datasets.md §12.3), for image and text MAP's (§12.4.1), for
        ``nested`` Resilient-VT's (§12.6.1), shifted where ``base`` is not the default.
        """
        if self.kind in ("image_text", "nested"):
            return ((MAP_SEED if self.kind == "image_text" else NESTED_SEED) + base - DEFAULT_SEED) % 2**32
        if self.kind != "table":
            return base + split
        tip = TIP_VALUE_SEED + split if self.strategy == "value" else TIP_FEATURE_SEED
        return (tip + base - DEFAULT_SEED) % 2**32

    @property
    def named_rate(self) -> float | None:
        """The missing rate of which the name speaks, None where it speaks of none."""
        return self.rate if self.kind in ("random", "table", "image_text", "nested") else None

    def expected_rate(self, m: int) -> float | None:
        """The missing rate that a ``random`` scenario has with m modalities, of which one stays in every row; of other
        kinds :attr:`named_rate`."""
        if self.kind != "random":
            return self.named_rate
        if self.generator == "exact":
            return round(self.rate * m) / m
        if self.generator == "global":
            return min(self.rate, (m - 1) / m)
        full = self.rate**m  # the share of rows that would be left empty, and are drawn again
        return (self.rate - full) / (1 - full)

    def realised_rate(
        self, mask: np.ndarray, cells: Mapping[str, np.ndarray] | None = None, kinds: Sequence[str] | None = None
    ) -> float:
        """The share that is missing of what the scenario is about.

        ``table_*`` and files of cells: of all cells of the table. ``nested``: of the rows, those without the modality.
        ``image_text_text_*`` and ``image_text_image_*``: of the rows, those without the text or the image; ``both``:
        those without either. All others: of the (row, modality) pairs.

        Args:
            mask: (N, M) bool, True = nothing of the modality is observed, as of :func:`unobserved`.
            cells: table name -> (N, F) bool, missing cells.
            kinds: of the M modalities; without them the modality of ``image_text`` is the one that is missing most.
        """
        if self.of_cells and cells:
            return float(np.concatenate([table.ravel() for table in cells.values()]).mean())
        if self.kind == "nested":
            return float(mask[:, self.modalities[0]].mean())
        if self.kind == "image_text" and self.strategy == "both":
            return float(mask.any(1).mean())
        if self.kind == "image_text":
            side = TEXT_KINDS if self.strategy == "text" else IMAGE_KINDS
            columns = [i for i, kind in enumerate(kinds or ()) if kind in side] or [int(mask.mean(0).argmax())]
            return float(mask[:, columns].mean())
        return float(mask.mean())

    def remark(self, m: int, realised: float | None = None) -> str | None:
        """What a reader of the name would not expect: a rate that is not within :data:`RATE_TOLERANCE` of it.

        Args:
            m: number of modalities.
            realised: :meth:`realised_rate` of the mask; None = :meth:`expected_rate`.
        """
        rate, named = self.expected_rate(m) if realised is None else realised, self.named_rate
        if rate is None or named is None or abs(rate - named) <= RATE_TOLERANCE + 1e-9:
            return None
        text = f"scenario '{self.name}' has a rate of {rate:.3g}"
        if self.kind != "random":
            return f"{text}, not {named:g}: tables and curves show that"
        if self.generator == "exact" and named <= (m - 1) / m:
            return f"{text}, {round(rate * m)} of {m} modalities; random_global_{named:g} comes nearer"
        return f"{text}, as every row keeps one of {m} modalities; tables and curves show that"

    def same(self, other: Scenario) -> bool:
        """Whether both make the same masks; files by their place, however the path is spelled."""
        if self.kind == other.kind == "file":
            return Path(self.path).resolve() == Path(other.path).resolve() and self.noise == other.noise
        return self == other

    @property
    def slug(self) -> str:
        """The name as a file stem."""
        stem = re.sub(r"[^A-Za-z0-9_.\-]+", "_", self.name.replace("file:", "file_"))
        return stem.removesuffix(".csv").removesuffix(".npy").removesuffix(".pt")

    def generate(
        self,
        n: int,
        modality_names: Sequence[str],
        seed: int,
        kinds: Sequence[str] | None = None,
        absent: np.ndarray | None = None,
        earlier: Sequence[int] = (),
    ) -> np.ndarray:
        """The mask.

        Args:
            n: rows.
            modality_names: M names; only their number and, in messages, their spelling matter.
            seed: of the random kinds.
            kinds: of the M modalities, for those scenarios that tell image from text.
            absent: (n, M) bool, what the source never had; ``nested`` counts it towards its rate. None = nothing.
            earlier: rows of the splits before this one (train, val, test), from whose draws ``image_text_running_*``
                goes on.

        Returns:
            (n, M) bool, True = missing, at least one False a row.

        Raises:
            UserError: the scenario does not fit the data.
        """
        assert not self.of_cells, "see generate_cells"
        m = len(modality_names)
        mask = np.zeros((n, m), dtype=bool)
        if self.kind == "whole":
            self.check(m)
            mask[:, list(self.modalities)] = True
        elif self.kind == "random":
            mask = random_mask(n, m, self.rate, self.generator, seed)
        elif self.kind == "image_text":
            self.check(m)
            rng = random.Random(seed)
            if self.generator == RUNNING:
                for rows in earlier:
                    map_codes(rows, self.strategy, self.rate, rng)
            mask = mask_of_codes(map_codes(n, self.strategy, self.rate, rng), kinds or (), self.name)
        elif self.kind == "nested":
            self.check(m)
            column = self.modalities[0]
            mask[nested_rows(mask if absent is None else absent, column, self.rate, seed), column] = True
        elif self.kind == "file" and self.path.endswith(".pt"):
            mask = mask_of_codes(read_map_pt(Path(self.path), n), kinds or (), self.name)
        elif self.kind == "file":
            mask = read_dymo_csv(Path(self.path), n, m)
        return mask

    def generate_cells(self, n: int, features: int, seed: int, ranking: Sequence[int] | None = None) -> np.ndarray:
        """The mask of table cells.

        Args:
            n: rows.
            features: columns F of the table.
            seed: of strategies ``value`` and ``feature``.
            ranking: all columns, the most important first; for ``MI`` and ``LI``.

        Returns:
            (n, F) bool, True = missing. A row may have nothing left.

        Raises:
            UserError: a file that does not fit.
        """
        if self.kind == "file":
            return read_tip_npy(Path(self.path), n, features)
        return table_mask(n, features, self.strategy, self.rate, seed, ranking)

    def check(self, m: int, names: Sequence[str] | None = None) -> None:
        """
        Args:
            m: number of modalities.
            names: of them, where they are known.

        Raises:
            UserError: a ``whole`` or ``nested`` scenario names an unknown modality, or all of them; ``image_text`` is
                asked for other than two modalities; the noise is for an unknown one.
        """
        if self.noise is not None and names is not None:
            self.noise.columns(names)
        outside = [i for i in self.modalities if not 0 <= i < m]
        if outside:
            raise UserError(
                f"missing scenario '{self.name}': there is no modality {outside[0]}, the data set has 0 to {m - 1}"
            )
        if self.kind == "whole" and len(set(self.modalities)) == m:
            raise UserError(f"missing scenario '{self.name}' leaves nothing present: drop at least one digit")
        if self.kind == "nested" and m == 1:
            raise UserError(f"missing scenario '{self.name}': the data set has one modality, which must stay")
        if self.kind == "image_text" and m != 2:
            raise UserError(
                f"missing scenario '{self.name}' is for an image and a text, the data set has {m} modalities: write "
                "for example random_0.4"
            )
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


def _rate(text: str, spec: object, cells: bool = False, example: str = "") -> float:
    try:
        rate = float(text)
    except ValueError:
        example = example or ("table_value_0.4" if cells else "random_0.4")
        raise UserError(f"missing scenario '{spec}': '{text}' is not a rate; write for example {example}") from None
    if not 0 <= rate < 1 and not (cells and rate == 1):
        span = "[0, 1]" if cells else "[0, 1), one modality must stay"
        raise UserError(f"missing scenario '{spec}': the rate {text} is outside {span}")
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
    if text.startswith("noise_"):
        noise, _, pattern = text.partition("+")
        return with_noise(parse_noise(noise), parse_scenario(pattern or "none"))
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
    if text.startswith("table_"):
        strategy, _, rate = text.removeprefix("table_").rpartition("_")
        return _table(_rate(rate, text, cells=True), strategy, text)
    if text.startswith("image_text_"):
        side, _, rate = text.removeprefix("image_text_").rpartition("_")
        order = RUNNING if side.startswith(f"{RUNNING}_") else "exact"
        side = side.removeprefix(f"{RUNNING}_")
        return _image_text(_rate(rate, text, cells=True, example="image_text_both_0.7"), side, text, order)
    if text.startswith("nested_"):
        column, _, rate = text.removeprefix("nested_").partition("_")
        return _nested(_rate(rate, text, cells=True, example="nested_0_0.25"), column, text)
    guess = difflib.get_close_matches(re.split(r"[_:]", text)[0], KINDS, 1)
    hint = f"did you mean '{guess[0]}'? " if guess else ""
    raise UserError(
        f"unknown missing scenario '{text}': {hint}known are none, whole_12, random_0.8, random_global_0.8, "
        "random_bernoulli_0.8, table_value_0.8, table_feature_0.8, table_MI_0.8, table_LI_0.8, "
        "image_text_both_0.7, image_text_text_0.7, image_text_image_0.7, image_text_running_both_0.7, nested_0_0.25, "
        "file:masks.csv, file:masks.npy, file:table.pt, noise_gaussian_4_all, noise_gaussian_4_all+random_0.4 and "
        "subsets"
    )


def with_noise(noise: Noise, pattern: Scenario) -> Scenario:
    """The pattern of missingness, with noise on what is left.

    Raises:
        UserError: it has noise already.
    """
    if pattern.noise is not None:
        raise UserError(f"missing scenario '{noise.name}+{pattern.name}': one noise at a time, remove the other")
    name = noise.name if pattern.kind == "none" else f"{noise.name}+{pattern.name}"
    return replace(pattern, name=name, noise=noise)


def _random(rate: float, generator: str, spec: object) -> Scenario:
    if generator not in GENERATORS:
        raise UserError(
            f"missing scenario '{spec}': unknown generator '{generator}', known are {', '.join(GENERATORS)}"
        )
    infix = "" if generator == "exact" else f"{generator}_"
    return Scenario(f"random_{infix}{_short(rate)}", "random", rate=rate, generator=generator)


def _table(rate: float, strategy: str, spec: object) -> Scenario:
    if strategy not in STRATEGIES:
        raise UserError(
            f"missing scenario '{spec}': unknown strategy '{strategy}', known are {', '.join(STRATEGIES)} "
            "(table_value_0.7)"
        )
    short = STRATEGIES[strategy]
    return Scenario(f"table_{short}_{_short(rate)}", "table", rate=rate, strategy=short)


def _image_text(rate: float, side: str, spec: object, order: str = "exact") -> Scenario:
    if side not in SIDES:
        raise UserError(
            f"missing scenario '{spec}': '{side}' cannot be missing, known are {', '.join(SIDES)} (image_text_both_0.7)"
        )
    if order not in ("exact", RUNNING):
        raise UserError(f"missing scenario '{spec}': unknown order '{order}', leave it out or write {RUNNING}")
    infix = f"{RUNNING}_" if order == RUNNING else ""
    name = f"image_text_{infix}{side}_{_short(rate)}"
    return Scenario(name, "image_text", rate=rate, strategy=side, generator=order)


def _nested(rate: float, column: str, spec: object) -> Scenario:
    if not column.isdecimal():
        raise UserError(f"missing scenario '{spec}': '{column}' is no column number, write for example nested_0_0.25")
    return Scenario(f"nested_{int(column)}_{_short(rate)}", "nested", (int(column),), rate)


def _short(rate: float) -> str:
    short = f"{rate:g}"
    return short if float(short) == rate else repr(rate)


def _from_mapping(spec: Mapping[str, Any]) -> Scenario:
    values = dict(spec)
    kind = values.pop("kind", None)
    allowed = {
        "none": set(),
        "whole": {"modalities"},
        "random": {"rate", "generator"},
        "table": {"strategy", "rate"},
        "image_text": {"strategy", "rate", "order"},
        "nested": {"modality", "rate"},
        "file": {"path"},
        "noise": {"operator", "level", "modalities", "missing"},
    }.get(str(kind))
    if allowed is None:
        raise UserError(
            f"missing scenario {dict(spec)}: kind must be one of none, whole, random, table, image_text, nested, file, "
            "noise"
        )
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
    if kind == "table":
        rate = _rate(str(values.get("rate")), dict(spec), cells=True)
        return _table(rate, str(values.get("strategy", "value")), dict(spec))
    if kind == "image_text":
        rate = _rate(str(values.get("rate")), dict(spec), cells=True, example="0.7")
        return _image_text(rate, str(values.get("strategy", "both")), dict(spec), str(values.get("order", "exact")))
    if kind == "noise":
        where = values.get("modalities", "all")
        where = where if isinstance(where, str | int) else "-".join(map(str, where))
        noise = parse_noise(f"noise_{values.get('operator', 'gaussian')}_{values.get('level')}_{where}")
        return with_noise(noise, parse_scenario(values.get("missing", "none")))
    if kind == "nested":
        rate = _rate(str(values.get("rate")), dict(spec), cells=True, example="0.25")
        return _nested(rate, str(values.get("modality")), dict(spec))
    return parse_scenario("none" if kind == "none" else f"file:{values.get('path', '')}")


def whole(columns: Sequence[int]) -> Scenario:
    """The scenario in which ``columns`` are missing in every row."""
    if not columns:
        return Scenario("none", "none")
    joint = "" if max(columns) < 10 else "_"
    name = joint.join(map(str, columns))
    return Scenario(f"whole_{name}" + ("_" if joint and len(columns) == 1 else ""), "whole", tuple(columns))


def parse_scenarios(
    specs: Sequence[str | Mapping[str, Any]], n_modalities: int, names: Sequence[str] | None = None
) -> list[Scenario]:
    """All scenarios of a list, in its order, duplicates dropped; ``subsets`` is expanded, each is checked against M.

    Args:
        names: of the modalities, where they are known.

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
                scenario.check(n_modalities, names)
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
    """(n, m) bool mask at a rate; True = missing, at least one False a row (docs/reference/datasets.md §12.2.2).

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


def table_mask(
    n: int, features: int, strategy: str, rate: float, seed: int, ranking: Sequence[int] | None = None
) -> np.ndarray:
    """(n, features) bool mask of table cells, True = missing, as TIP's notebook makes it
    (docs/reference/datasets.md §12.3).

    ``value``: int(n features rate) cells, drawn without replacement by NumPy's legacy generator. ``feature``: so
    int(features rate) columns. ``MI``, ``LI``: the first that many columns of ``ranking``, or of its reverse.
    """
    mask = np.zeros((n, features), dtype=bool)
    legacy = np.random.RandomState(seed)  # legacy: the published masks come from it
    if strategy == "value":
        mask.reshape(-1)[legacy.choice(n * features, int(n * features * rate), replace=False)] = True
        return mask
    k = int(features * rate)
    if strategy == "feature":
        columns = legacy.choice(features, k, replace=False)
    else:
        assert ranking is not None, f"strategy {strategy} needs a ranking of the columns"
        columns = np.array(ranking if strategy == "MI" else list(ranking)[::-1], dtype=np.int64)[:k]
    mask[:, columns] = True
    return mask


def nested_rows(absent: np.ndarray, column: int, rate: float, seed: int) -> np.ndarray:
    """Rows that lose one modality, so that floor(rate N) are without it in all (docs/reference/datasets.md §12.6.1).

    k ones before N - k zeros are shuffled by NumPy's legacy generator, as Resilient-VT does; whatever k is, the shuffle
    sends the same places to the same places, which nests the rates. A row that never had the modality counts towards
    the rate, and one that has nothing else keeps it: the next rows of that order go in their place.

    Args:
        absent: (N, M) bool, what the source never had.
        column: of the modality.

    Returns:
        Row numbers, in the order in which rising rates take them.
    """
    n = len(absent)
    wanted = math.floor(rate * n + 1e-9)  # 0.29 * 100 is a little less than 29
    origin = np.arange(n)
    np.random.RandomState(seed).shuffle(origin)  # legacy: the published masks come from it
    order = np.argsort(origin)
    gone = absent[:, column]
    free = ~gone & ~np.delete(absent, column, axis=1).all(axis=1)
    return order[free[order]][: max(wanted - int(gone.sum()), 0)]


def map_codes(n: int, side: str, rate: float, seed: int | random.Random) -> np.ndarray:
    """A missing table of MAP (Lee et al., CVPR 2023, whose protocol CMPT follows; docs/reference/datasets.md §12.4.1).

    int(n rate) rows lack something, drawn by Python's generator; with ``both`` one of the two, int(half) the image.

    Args:
        seed: or the generator to go on with: MAP seeds it once and draws the tables of all splits one after the other.

    Returns:
        (n,) int64: 0 complete, 1 text missing, 2 image missing; never both.
    """
    rng = seed if isinstance(seed, random.Random) else random.Random(seed)
    k = int(n * rate)
    codes = np.zeros(n, dtype=np.int64)
    picked = rng.sample(range(n), k)
    codes[picked] = IMAGE_CODE if side == "image" else TEXT_CODE
    if side == "both":
        codes[rng.sample(picked, int(k * 0.5))] = IMAGE_CODE
    return codes


def mask_of_codes(codes: np.ndarray, kinds: Sequence[str], name: str) -> np.ndarray:
    """Codes (n,) of MAP -> (n, 2) bool, True = missing.

    Args:
        kinds: of the two modalities: image or video, and text or audio, in any order.
        name: of the scenario, for the message.

    Raises:
        UserError: other modalities.
    """
    columns = [[i for i, kind in enumerate(kinds) if kind in side] for side in (TEXT_KINDS, IMAGE_KINDS)]
    if len(kinds) != 2 or any(len(found) != 1 for found in columns):
        raise UserError(
            f"missing scenario '{name}' is for an image (or video) and a text (or audio), the data set has "
            f"{', '.join(kinds)}: use whole modalities, such as whole_1, or random_0.4"
        )
    mask = np.zeros((len(codes), 2), dtype=bool)
    mask[:, columns[0][0]], mask[:, columns[1][0]] = codes == TEXT_CODE, codes == IMAGE_CODE
    return mask


def read_map_pt(path: Path, n: int) -> np.ndarray:
    """A missing table of MAP, read without executing anything in it: (n,) int64 with 0, 1 and 2.

    Raises:
        UserError: absent file, something else in it, or another number of rows.
    """
    import torch

    if not path.is_file():
        raise UserError(f"mask file {path} does not exist: give an existing file after file:")
    try:
        table = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file can be broken in any way
        raise UserError(
            f"mask file {path} cannot be read ({type(error).__name__}): give a missing table of MAP"
        ) from None
    if not isinstance(table, torch.Tensor) or table.ndim != 1 or not ((table == 0) | (table == 1) | (table == 2)).all():
        raise UserError(
            f"mask file {path} holds no missing table of MAP: a tensor of 0 (complete), 1 (text missing) and 2 (image "
            "missing), one a row"
        )
    if len(table) != n:
        raise UserError(f"mask file {path} has {len(table)} rows but the split has {n}: use the table of this split")
    return table.numpy().astype(np.int64)


def map_table_name(stem: str, scenario: Scenario) -> str:
    """The file name of a missing table in the original layout: ``{arrow stem}_missing_{text|image|both}_{07}.pt``.

    Raises:
        UserError: the scenario is none of image and text.
    """
    if scenario.kind != "image_text":
        raise UserError(f"missing scenario '{scenario.name}' is no missing table of MAP: give image_text_both_0.7")
    return f"{stem}_missing_{scenario.strategy}_{str(scenario.rate).replace('.', '')}.pt"


def forest_ranking(values: np.ndarray, target: np.ndarray) -> list[int]:
    """Columns of a table by impurity importance of a random forest, the most important first (ties in their order).

    Args:
        values: (N, F), codes of categories and standardised numbers.
        target: (N,) classes or (N, C) labels; unlabelled cells (< 0) count as negative.
    """
    from sklearn.ensemble import RandomForestClassifier

    target = target if target.ndim == 1 else (target > 0).astype(np.int64)
    forest = RandomForestClassifier(1, random_state=TIP_FOREST_SEED, warm_start=True)
    trees = RandomForestClassifier().n_estimators
    total = np.zeros(values.shape[1])
    for grown in range(trees):
        # A tree of many classes is large (DVM: 0.2 GB), so only its importance is kept. What is there counts as grown:
        # this tree gets the seed that it has in the whole forest.
        forest.set_params(n_estimators=grown + 1)
        forest.fit(values, target)
        total += forest.estimators_[-1].feature_importances_
        forest.estimators_[-1] = None
    return [int(i) for i in np.argsort(-total, kind="stable")]


def read_tip_npy(path: Path, n: int, features: int) -> np.ndarray:
    """A mask file of TIP or DyMo: bool (n, features), True = missing.

    Raises:
        UserError: absent file, another type, or another shape.
    """
    if not path.is_file():
        raise UserError(f"mask file {path} does not exist: give an existing file after file:")
    try:
        mask = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise UserError(f"mask file {path} is no NumPy array: give a .npy file of booleans") from None
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or not np.isin(mask, (0, 1)).all():
        raise UserError(
            f"mask file {path} holds no matrix of booleans: True = missing, a row a sample, a column a cell"
        )
    if mask.shape != (n, features):
        raise UserError(
            f"mask file {path} has {mask.shape[0]} rows and {mask.shape[1]} columns, the split has {n} and the table "
            f"{features}: use the mask of this split and table"
        )
    return mask.astype(bool)


def tip_mask_name(stem: str, target: str, scenario: Scenario) -> str:
    """The file name of a table mask in the original layout: ``{csv stem}_{dvm|CAD|Infarction}_{strategy}_{rate}.npy``.

    Raises:
        UserError: the scenario is not one of a table.
    """
    if scenario.kind != "table":
        raise UserError(f"missing scenario '{scenario.name}' has no name among the table masks: give table_value_0.7")
    return f"{stem}_{target}_{scenario.strategy}_{scenario.rate:g}.npy"


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


def unobserved(mask: np.ndarray, cells: Mapping[str, np.ndarray], modalities: Sequence[str]) -> np.ndarray:
    """Mask (N, M) of the modalities of which nothing is observed.

    Masks of scenarios also mark tables of which only some cells are missing. Such a table is not a missing modality, so
    its rows do not count in a missing rate over modalities.

    Args:
        mask: (N, M) bool, True = missing or partly missing.
        cells: table name -> (N, F) bool, missing cells.
        modalities: the M names, in the order of the columns.
    """
    mask = mask.copy()
    for name, missing_cells in cells.items():
        mask[:, list(modalities).index(name)] &= missing_cells.all(1)
    return mask


def save_mask(
    path: Path,
    mask: np.ndarray,
    scenario: Scenario,
    seed: int,
    modalities: Sequence[str],
    cells: Mapping[str, np.ndarray] | None = None,
    corruption: Corruption | None = None,
) -> str:
    """Write ``<path>.npz`` with a JSON side-car that says how it was made; returns the hash.

    Args:
        mask: (N, M) bool, stored as ``missing``.
        modalities: their names, in the order of the columns.
        cells: table name -> (N, F) bool, stored as ``cells_<table>``; they count in the hash.
        corruption: the scenario's noise; its levels (N, M) are stored as ``noise_level``, and count in the hash.
    """
    cells = cells or {}
    levels = {} if corruption is None else {"noise_level": corruption.of_rows(len(mask))}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_arrays(
        path.with_suffix(path.suffix + ".npz"),
        {"missing": mask, **{f"cells_{name}": gone for name, gone in cells.items()}, **levels},
    )
    digest = mask_hash(mask)
    if cells:
        digest = hashlib.sha256("".join([digest, *map(mask_hash, cells.values())]).encode()).hexdigest()[:16]
    if corruption is not None:
        noise = f"{corruption.operator} {corruption.levels} {corruption.seed}"
        digest = hashlib.sha256(f"{digest} {noise}".encode()).hexdigest()[:16]
    about = {
        "scenario": scenario.name,
        "generator": {
            "random": scenario.generator,
            "table": f"TIP {scenario.strategy}",
            "image_text": f"MAP {scenario.strategy}",
            "nested": "Resilient-VT",
        }.get(scenario.kind, scenario.kind),
        "seed": seed,
        "shape": list(mask.shape),
        "modalities": list(modalities),
        "realised_rate": float(unobserved(mask, cells, modalities).mean()),
        "sha256_16": digest,
    }
    if corruption is not None:
        named = {m.name: level for m, level in zip(corruption.modalities, corruption.levels)}
        about["noise"] = {"operator": corruption.operator, "levels": named, "seed": corruption.seed}
    if cells:
        about["cells"] = {
            name: {
                "shape": list(gone.shape),
                "realised_rate": float(gone.mean()),
                "rows_without_a_cell": int(gone.all(1).sum()),
                "sha256_16": mask_hash(gone),
            }
            for name, gone in cells.items()
        }
    path.with_suffix(path.suffix + ".json").write_text(json.dumps(about, indent=2) + "\n")
    return digest
