"""Base of all missing-data scenarios. Masks are boolean, **True = missing**."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datasets.batch import Modality
from datasets.missingness.content import SplitContent
from datasets.noise import Noise
from utils.errors import UserError

# A realised rate that is further from the rate in the scenario's name is reported.
RATE_TOLERANCE = 0.01
# With the default missing.seed, the masks of published protocols are those of the original code.
DEFAULT_SEED = 2025

# Axes of figures, and the position on them where nothing is missing or noisy.
MISSING_RATE, NOISE_LEVEL = "missing rate", "noise level"
AXIS_START = {MISSING_RATE: 0.0, NOISE_LEVEL: 1.0}


@dataclass(frozen=True)
class Place:
    """Place of a scenario in figures of a score against its missing rate or noise level.

    Attributes:
        axis: :data:`MISSING_RATE` | :data:`NOISE_LEVEL`.
        family: what its curve has in common, as a title.
        x: position on the axis.
        start: name of the scenario where the curve starts, at :data:`AXIS_START`.
    """

    axis: str
    family: str
    x: float
    start: str


@dataclass(frozen=True)
class Rows:
    """The rows for which a mask is generated.

    Attributes:
        n: number of rows.
        columns: M modalities, or the F columns of the table if the scenario hides cells.
        seed: from :meth:`Scenario.seed`; seed of random masks.
        kinds: kinds of the M modalities, for scenarios that distinguish image from text.
        absent: (n, M) bool, what the source never had; ``nested`` counts it towards its rate. None = nothing.
        earlier: numbers of rows of the splits before this one, for scenarios that continue their random numbers.
        ranking: columns of the table, most important first, for scenarios that need it.
        content: content and labels of the rows, for scenarios that depend on them.
        modality: whose cells the scenario hides.
    """

    n: int
    columns: int
    seed: int = 0
    kinds: Sequence[str] = ()
    absent: np.ndarray | None = None
    earlier: Sequence[int] = ()
    ranking: Sequence[int] | None = None
    content: SplitContent | None = None
    modality: Modality | None = None

    @property
    def observable(self) -> np.ndarray:
        """(n, M) bool, modalities that the source has."""
        shape = (self.n, self.columns)
        return np.ones(shape, dtype=bool) if self.absent is None else ~self.absent

    @contextmanager
    def content_of(self, scenario: Scenario) -> Iterator[SplitContent]:
        """The content for a scenario that depends on it; errors name the scenario."""
        assert self.content is not None, "the data module passes the content of the rows"
        try:
            yield self.content
        except UserError as error:
            raise UserError(f"missing scenario '{scenario.name}': {error}") from None


@dataclass(frozen=True)
class Scenario(ABC):
    """A pattern of missing data, with or without noise on what remains.

    A kind of scenario is a subclass in a file of its own, listed in :data:`datasets.missingness.parse.SCENARIOS`. The
    subclass defines its names and mappings (:meth:`parse`, :meth:`from_mapping`), its masks (:meth:`generate`), and
    overrides what else differs.

    Attributes:
        noise: noise on the observed content.
        kind: first word of the name, and ``kind`` of a mapping.
        examples: names -> what is missing, in Markdown. The documentation and the error messages list them.
        keys: other keys of a mapping.
        hides: whether anything is missing.
        cell_kinds: kinds of modality whose cells it can hide.
    """

    noise: Noise | None = field(default=None, kw_only=True)
    kind: ClassVar[str]
    examples: ClassVar[Mapping[str, str]]
    keys: ClassVar[tuple[str, ...]] = ()
    hides: ClassVar[bool] = True
    cell_kinds: ClassVar[tuple[str, ...]] = ("table",)

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> Scenario | None:
        """The scenario of a name; None for names of other kinds.

        Raises:
            UserError: an impossible value.
        """

    @classmethod
    @abstractmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Scenario:
        """The scenario of a mapping with keys among :attr:`keys`.

        Raises:
            UserError: an impossible value.
        """

    @property
    @abstractmethod
    def pattern_name(self) -> str:
        """Name of the pattern, without noise."""

    @abstractmethod
    def pattern_caption(self, modalities: Sequence[str] = ()) -> str:
        """The pattern in words, without noise; see :meth:`caption`."""

    @abstractmethod
    def generate(self, rows: Rows) -> np.ndarray:
        """(n, columns) bool mask, True = missing. Masks of modalities keep at least one modality per row; masks of
        table cells (:attr:`hides_cells`) may leave a row empty.

        Raises:
            UserError: the scenario does not fit the data.
        """

    @property
    def name(self) -> str:
        """Name for tables, files and the command line."""
        if self.noise is None:
            return self.pattern_name
        return f"{self.noise.name}+{self.pattern_name}" if self.hides else self.noise.name

    def caption(self, modalities: Sequence[str] = ()) -> str:
        """The scenario in words, for tables and figures: "table missing", "30 % of table cells".

        Args:
            modalities: their names; without them, captions have column numbers.
        """
        pattern = self.pattern_caption(modalities)
        if self.noise is None:
            return pattern
        return f"{pattern}, {self.noise.caption}" if self.hides else self.noise.caption

    def place(self, modalities: Sequence[str] = ()) -> Place | None:
        """Place of the scenario in a figure; None without a rate or noise level in the name."""
        if self.noise is not None:
            pattern = f", {self.pattern_caption(modalities)}" if self.hides else ""
            return Place(NOISE_LEVEL, self.noise.family + pattern, self.noise.level, self.pattern_name)
        if self.named_rate is None:
            return None
        return Place(MISSING_RATE, self.family(modalities), self.named_rate, "none")

    def family(self, modalities: Sequence[str] = ()) -> str:
        """What scenarios with other rates have in common with this one, as a title."""
        return self.kind

    @property
    def slug(self) -> str:
        """The name as a file stem."""
        return slug(self.name)

    @property
    def hides_cells(self) -> bool:
        """Whether it hides cells of a modality (the one it names, or the only table), not complete modalities."""
        return False

    @property
    def needs_ranking(self) -> bool:
        """Whether it needs the columns of the table ranked by importance."""
        return False

    @property
    def continues_splits(self) -> bool:
        """Whether a split continues the random numbers of the splits before it."""
        return False

    @property
    def named_modalities(self) -> tuple[int, ...]:
        """Columns of the modalities in the name."""
        return ()

    @property
    def always_missing(self) -> tuple[int, ...]:
        """Columns of the modalities that are missing in every row."""
        return ()

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that the mask is read from."""
        return ()

    @property
    def protocol(self) -> str:
        """How the mask was made, for the JSON file beside it."""
        return self.kind

    @property
    def dymo_name(self) -> str:
        """Name in the mask files of the original DyMo repository (``whole_1_2``, ``random_0.8``).

        Raises:
            UserError: it has no such name.
        """
        raise UserError(
            f"missing scenario '{self.name}' has no name in the original layout: give none, whole or random"
        )

    @property
    def named_rate(self) -> float | None:
        """The missing rate in the name, None if it has none."""
        return None

    def seed(self, base: int, split: int) -> int:
        """The seed of a split (0 train, 1 val, 2 test), from ``missing.seed``."""
        return base + split

    def expected_rate(self, m: int) -> float | None:
        """The missing rate to expect with m modalities, None if unknown."""
        return self.named_rate

    def realised_rate(
        self, mask: np.ndarray, cells: Mapping[str, np.ndarray] | None = None, kinds: Sequence[str] | None = None
    ) -> float:
        """The fraction that is missing, of what the scenario is about: (row, modality) pairs unless a kind says
        otherwise; of scenarios that hide cells, the cells of the table.

        Args:
            mask: (N, M) bool, True = nothing of the modality is observed, as of :func:`unobserved`.
            cells: table name -> (N, F) bool, missing cells.
            kinds: kinds of the M modalities.
        """
        if self.hides_cells and cells:
            return float(np.concatenate([table.ravel() for table in cells.values()]).mean())
        return float(mask.mean())

    def counted_cells(self, cells: Mapping[str, np.ndarray], modalities: Sequence[str]) -> dict[str, np.ndarray]:
        """The missing cells that :meth:`realised_rate` counts: those of the modalities in the name, if there are any.

        Args:
            cells: modality name -> (N, ...) bool.
            modalities: the M names, in the order of the columns.
        """
        named = [modalities[column] for column in self.named_modalities] if self.hides_cells else []
        return {name: hidden for name, hidden in cells.items() if not named or name in named}

    def remark(self, m: int, realised: float | None = None) -> str | None:
        """A warning if the missing rate differs from the name by more than :data:`RATE_TOLERANCE`.

        Args:
            m: number of modalities.
            realised: :meth:`realised_rate` of the mask; None = :meth:`expected_rate`.
        """
        rate = self.expected_rate(m) if realised is None else realised
        if rate is None or self.named_rate is None or abs(rate - self.named_rate) <= RATE_TOLERANCE + 1e-9:
            return None
        return f"scenario '{self.name}' has a rate of {rate:.3g}, {self.rate_reason(m, rate)}"

    def rate_reason(self, m: int, rate: float) -> str:
        """The end of :meth:`remark`: why the realised ``rate`` differs, or what to do about it."""
        return f"not {self.named_rate:g}: tables and curves show that"

    def is_same(self, other: Scenario) -> bool:
        """Whether the other scenario makes the same masks."""
        return self == other

    def check(self, m: int, names: Sequence[str] | None = None) -> None:
        """Check that the scenario fits a data set.

        Args:
            m: number of modalities.
            names: of the modalities, if known.

        Raises:
            UserError: it does not fit.
        """
        if self.noise is not None and names is not None:
            self.noise.columns(names)
        for column in self.named_modalities:
            if not 0 <= column < m:
                raise UserError(
                    f"missing scenario '{self.name}': there is no modality {column}, the data set has 0 to {m - 1}"
                )


@dataclass(frozen=True)
class ScenarioWithRate(Scenario):
    """A scenario with a missing rate in its name."""

    rate: float
    highest_rate: ClassVar[float] = 1.0  # inclusive

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= self.highest_rate:
            raise UserError(f"the rate {self.rate:g} is outside [0, 1]")

    @property
    def named_rate(self) -> float:
        return self.rate

    @property
    def rate_text(self) -> str:
        """The rate as in the name."""
        return number_text(self.rate)

    @property
    def percent(self) -> str:
        """The rate in captions."""
        return f"{100 * self.rate:g} %"

    @classmethod
    def to_rate(cls, text: object) -> float:
        """
        Raises:
            UserError: the text is not a number.
        """
        return to_number(text, "rate", next(iter(cls.examples)))


def to_number(value: object, what: str, example: str) -> float:
    """
    Raises:
        UserError: the value is not a number.
    """
    try:
        return float(str(value))
    except ValueError:
        raise UserError(f"'{value}' is not a {what}; write for example {example}") from None


def number_text(number: float) -> str:
    """A number as in a name."""
    text = f"{number:g}"
    return text if float(text) == number else repr(number)


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
        mask[:, list(modalities).index(name)] &= missing_cells.reshape(len(mask), -1).all(1)
    return mask


def modality_name(column: int, modalities: Sequence[str]) -> str:
    """The name of a modality, its number if the names are unknown."""
    return modalities[column] if column < len(modalities) else f"modality {column}"


def slug(name: str) -> str:
    """A name as a file stem."""
    stem = re.sub(r"[^A-Za-z0-9_.\-]+", "_", name.replace("file:", "file_"))
    return stem.removesuffix(".csv").removesuffix(".npy").removesuffix(".pt")
