"""What passes between the parts: `Modality`, `Batch`, and the data module that makes batches.

Tensor legend used everywhere: ``B`` batch, ``M`` modalities, ``N`` tokens of one modality, ``P`` tokens of all,
``D`` width, ``C`` classes, ``S`` subsets. A mask is boolean and **True = missing**.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from datasets.missingness import RUNNING, Scenario, forest_ranking
from datasets.noise import AS_IT_IS, Corruption, Scale, TrainingNoise
from datasets.storage import PackedSplit, PackedStore
from datasets.text import one_hot
from utils.errors import UserError
from utils.files import replacing
from utils.noise import hash_seed

log = logging.getLogger(__name__)

Kind = Literal["image", "text", "table", "audio", "video"]
SPLITS = ("train", "val", "test")
Transform = Callable[[dict[str, Tensor], torch.Generator | None], dict[str, Tensor]]
Choose = Callable[[Tensor, torch.Generator | None], Tensor]
Corrupt = Callable[["Batch", int], "Batch"]  # batch and epoch -> the batch with noise


@dataclass(frozen=True)
class Modality:
    """One input of a data set. Its position in the data set's list is its column in ``missing``.

    A text of characters has the shape (L, symbols): stored as uint8 codes (N, L), one-hot rows in a batch. A text of
    tokens has the shape (L,): stored as int32 ids (N, L), int64 in a batch, padding and nothing else is 0
    (``datasets/tokens.py``).

    Attributes:
        cardinalities: levels of the leading, categorical columns of a table; the rest is continuous.
        columns: names of the columns of a table.
        vocabulary: number of ids of a text of tokens.
        scale: what the values mean, for noise.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    cardinalities: tuple[int, ...] = ()
    columns: tuple[str, ...] = ()
    vocabulary: int | None = None
    scale: Scale = AS_IT_IS


@dataclass
class Batch:
    """A mini-batch.

    Attributes:
        inputs: name -> float tensor (B, *modality.shape), int64 of a text of tokens. The content of a missing modality
            is arbitrary.
        missing: (B, M) bool, True = missing. A table is also marked where only some of its cells are missing, so that a
            row with all modalities marked may still have cells.
        target: (B,) int64, or (B, C) float for multi-label tasks.
        index: (B,) int64, the row in the split's sorted order.
        feature_missing: table modality -> (B, F) bool, True = this cell is missing. Counts where the modality is
            masked in ``missing``; without an entry, a masked table hides all its cells.
        noise_level: (B, M) float, 1 = clean to 11 = destroyed (:mod:`datasets.noise`); None = all clean.
        complete: the loader knows, on the host, that nothing is missing (spares a device synchronisation).
        sources: (B, M) int64, the row that each modality's content was taken from, where pairs are drawn anew; None =
            ``index`` for all of them.
    """

    inputs: dict[str, Tensor]
    missing: Tensor
    target: Tensor
    index: Tensor
    feature_missing: dict[str, Tensor] = field(default_factory=dict)
    noise_level: Tensor | None = None
    complete: bool = False
    sources: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return Batch(
            {k: move(v) for k, v in self.inputs.items()},
            move(self.missing),
            move(self.target),
            move(self.index),
            {k: move(v) for k, v in self.feature_missing.items()},
            None if self.noise_level is None else move(self.noise_level),
            self.complete,
            None if self.sources is None else move(self.sources),
        )

    def replace(self, **changes: Any) -> Batch:
        """A shallow copy with some fields replaced; of other masks nothing is known that ``complete`` does not say."""
        if "missing" in changes or "feature_missing" in changes:
            changes.setdefault("complete", False)
        return replace(self, **changes)

    def observed(self) -> dict[str, Tensor]:
        """Inputs with every missing modality and cell overwritten by zeros (never multiplied: NaN * 0 is NaN)."""
        return hide(self.inputs, self.missing, self.feature_missing)


def hide(
    inputs: Mapping[str, Tensor], missing: Tensor, feature_missing: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Overwrite missing content by zeros.

    Args:
        inputs: name -> (B, ...), in the column order of ``missing``.
        missing: (B, M) bool, True = missing.
        feature_missing: table name -> (B, F) bool, see :class:`Batch`.
    """
    hidden = {}
    for column, (name, x) in enumerate(inputs.items()):
        zero = torch.zeros((), dtype=x.dtype, device=x.device)
        hidden[name] = torch.where(missing_content(x, name, missing[:, column], feature_missing), zero, x)
    return hidden


def missing_content(
    x: Tensor, name: str, missing: Tensor, feature_missing: Mapping[str, Tensor] | None = None
) -> Tensor:
    """What of one modality is missing, as a mask that broadcasts against its content.

    Args:
        x: (B, ...) of the modality ``name``.
        missing: (B,) bool, its column of the mask.
        feature_missing: table name -> (B, F) bool, see :class:`Batch`.

    Returns:
        (B, 1, ...) bool, or (B, F) for a table whose cells have a mask of their own.
    """
    gone = missing.reshape(-1, *[1] * (x.ndim - 1))
    if feature_missing and name in feature_missing:
        gone = gone & feature_missing[name]
    return gone


def _residence(wanted: str, split: PackedSplit, device: torch.device) -> str:
    """Where the arrays of a split live: on the ``device``, in ``host`` memory, or on disk (``mmap``)."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return "device" if split.nbytes < 0.5 * free else "mmap"
    return "host" if split.nbytes < 4 * 2**30 else "mmap"


class PackedLoader:
    """Batches of a packed split by index look-up; the stored dtype is converted after the gather, on the device.

    No worker processes: a batch is one ``index_select`` per modality. Arrays that do not fit the device stay
    memory-mapped; their batches go through pinned memory and are copied asynchronously.

    Args:
        split: the packed arrays.
        missing: (N, M) bool mask of the split; None = nothing is missing, and NaN are the caller's to hide.
        batch_size: rows per batch; the last one may be smaller unless ``drop_last``.
        shuffle: reshuffle each epoch, from ``seed`` and the epoch set by :meth:`set_epoch` alone (so that a resumed
            run sees the order that it would have seen).
        reshuffle_pairs: draw, for each modality and epoch, another item of the same class; a list of names does so for
            these modalities. Only for data whose modalities share nothing but the label (PolyMNIST, MST): it multiplies
            the training tuples.
        jitter: shift each image by up to this many pixels (replicated edges), drawn per row and modality.
        cells: table name -> (N, F) bool, the missing cells of rows whose table is marked in ``missing``.
        choose: modality whose items have parts (frames of a clip) -> function of how many parts each row has (R,) and a
            generator, None in evaluation, which gives the places (R, T) of those to take: the input is (R, T, ...).
        transform: (inputs, generator) -> inputs, applied to gathered batches; the generator is None in evaluation.
        corrupt: (batch, epoch) -> batch with noise, applied last.
        rank, world_size: under DDP each rank sees every ``world_size``-th row.
        pad: repeat rows so that all ranks have as many; without it every row is seen once.
    """

    def __init__(
        self,
        split: PackedSplit,
        modalities: Sequence[Modality],
        missing: np.ndarray | None,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        residence: str = "auto",
        reshuffle_pairs: bool | Sequence[str] = False,
        jitter: int = 0,
        cells: Mapping[str, np.ndarray] | None = None,
        choose: Mapping[str, Choose] | None = None,
        transform: Transform | None = None,
        corrupt: Corrupt | None = None,
        rank: int = 0,
        world_size: int = 1,
        pad: bool = True,
    ) -> None:
        self.split, self.modalities, self.batch_size = split, list(modalities), batch_size
        self.shuffle, self.drop_last, self.seed = shuffle, drop_last, seed
        self.reshuffle_pairs, self.jitter, self.pad = reshuffle_pairs, jitter, pad
        self.rank, self.world_size = rank, world_size
        self.device = torch.device(device)
        self.residence = _residence(residence, split, self.device)
        self.epoch = 0
        store_device = self.device if self.residence == "device" else torch.device("cpu")
        self.arrays: dict[str, Tensor] = {}
        self.pointers: dict[str, Tensor] = {}  # which item each row shows, where rows share items
        self.counts: dict[str, Tensor] = {}  # how many parts each row has, where items have parts ...
        self.parts: dict[str, int] = {}  # ... and how many there is room for
        self.choose = dict(choose or {})
        for m in self.modalities:
            items, pointers = split.pool(m.name, in_memory=self.residence != "mmap")
            if (counts := split.counts(m.name)) is not None:
                self.counts[m.name], self.parts[m.name] = counts.to(store_device), items.shape[1]
                items = items.flatten(0, 1)
            self.arrays[m.name] = items.to(store_device)
            if pointers is not None:
                self.pointers[m.name] = pointers.to(store_device)
        self.target = split.read("target").to(store_device)
        if missing is None:
            missing = np.zeros((len(split), len(self.modalities)), dtype=bool)
        elif split.nan_rows is not None:
            check_rows_without_nan(split.nan_rows, missing, self.modalities)
        self.complete = not missing.any()
        self.missing = torch.from_numpy(np.ascontiguousarray(missing)).to(store_device)
        self.cells = {name: torch.from_numpy(mask).to(store_device) for name, mask in (cells or {}).items()}
        self.transform, self.corrupt = transform, corrupt
        if len(self.missing) != len(split):
            raise ValueError(f"mask has {len(self.missing)} rows, split has {len(split)}")

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order the next iteration takes."""
        self.epoch = epoch

    @property
    def n_rows(self) -> int:
        """Rows this rank sees in one epoch."""
        if self.pad:
            return -(-len(self.split) // self.world_size)
        return len(range(self.rank, len(self.split), self.world_size))

    def __len__(self) -> int:
        return self.n_rows // self.batch_size if self.drop_last else -(-self.n_rows // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(hash_seed(self.seed, self.epoch))
        n = len(self.split)
        order = torch.randperm(n, generator=generator) if self.shuffle else torch.arange(n)
        if self.world_size > 1:
            extra = self.n_rows * self.world_size - n if self.pad else 0
            order = torch.cat([order, order[:extra]])[self.rank :: self.world_size]
        partners = self._same_class_partners(generator) if self.reshuffle_pairs else None
        order = order.to(self.target.device)
        # A stream of its own: what is drawn for augmentation never changes the order, and differs between ranks.
        augmenting = torch.Generator().manual_seed(hash_seed(self.seed, self.epoch, 3, self.rank))
        for step in range(len(self)):
            rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield self.gather(rows, partners, generator, augmenting if self.shuffle else None)

    def gather(
        self,
        rows: Tensor,
        partners: dict[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
        augmenting: torch.Generator | None = None,
    ) -> Batch:
        """The batch of some rows (R,); with a generator, images are jittered, and ``augmenting`` goes to the
        transform."""
        inputs = {}
        for m in self.modalities:
            source = partners[m.name][rows] if partners and m.name in partners else rows
            counts = self.counts[m.name][source] if m.name in self.counts else None
            if m.name in self.pointers:
                source = self.pointers[m.name][source]
            if counts is not None:
                source = source[:, None] * self.parts[m.name] + self.choose[m.name](counts, augmenting).to(
                    source.device
                )
            x = self._to_device(self.arrays[m.name].index_select(0, source.flatten()))
            x = x.unflatten(0, source.shape)
            if m.kind == "text" and x.dtype == torch.uint8:
                x = one_hot(x, m.shape[-1])
            elif m.kind == "text" and not x.is_floating_point():
                x = x.long()
            x = x.float().div_(255) if x.dtype == torch.uint8 else x
            if m.kind == "image" and self.device.type == "cpu":
                x = x.contiguous(memory_format=torch.channels_last)  # convolutions on the CPU are faster so
            if self.jitter and m.kind == "image" and generator is not None:
                x = self._shift(x, generator)
            inputs[m.name] = x
        if self.transform is not None:
            inputs = self.transform(inputs, augmenting)
        batch = Batch(
            inputs,
            self._to_device(self.missing.index_select(0, rows)),
            self._to_device(self.target.index_select(0, rows)),
            self._to_device(rows),
            {name: self._to_device(mask.index_select(0, rows)) for name, mask in self.cells.items()},
            complete=self.complete,
            sources=self._to_device(self._sources(rows, partners)) if partners else None,
        )
        return batch if self.corrupt is None else self.corrupt(batch, self.epoch)

    def _sources(self, rows: Tensor, partners: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([partners[m.name][rows] if m.name in partners else rows for m in self.modalities], dim=1)

    def _to_device(self, x: Tensor) -> Tensor:
        if x.device == self.device:
            return x
        return (x.pin_memory() if self.device.type == "cuda" else x).to(self.device, non_blocking=True)

    def _same_class_partners(self, generator: torch.Generator) -> dict[str, Tensor]:
        target = self.target.cpu()
        by_class = [torch.nonzero(target == c).flatten() for c in range(int(target.max()) + 1)]
        partners = {}
        for m in self.modalities:
            if not isinstance(self.reshuffle_pairs, bool) and m.name not in self.reshuffle_pairs:
                continue
            partner = torch.empty(len(target), dtype=torch.long)
            for rows in by_class:
                partner[rows] = rows[torch.randperm(len(rows), generator=generator)]
            partners[m.name] = partner.to(self.target.device)
        return partners

    def _shift(self, x: Tensor, generator: torch.Generator) -> Tensor:
        b, _, h, w = x.shape
        dy, dx = torch.randint(-self.jitter, self.jitter + 1, (2, b), generator=generator).to(x.device)
        rows = (torch.arange(h, device=x.device) + dy[:, None]).clamp_(0, h - 1)
        columns = (torch.arange(w, device=x.device) + dx[:, None]).clamp_(0, w - 1)
        b_index = torch.arange(b, device=x.device)
        return x[b_index[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _describe_columns(
    table: Modality, levels: Mapping[str, Sequence[str]], scaling: Mapping[str, Sequence[float]]
) -> list[dict[str, Any]]:
    """Columns of a table for :meth:`MultimodalDataModule.describe_inputs`.

    Args:
        levels: categorical column -> names of its levels, as far as the source has names.
        scaling: continuous column -> zero and unit, as far as the data set standardised it itself.
    """
    names = table.columns or tuple(str(i) for i in range(table.shape[0]))
    columns: list[dict[str, Any]] = []
    for name, count in zip(names, (*table.cardinalities, *[None] * (len(names) - len(table.cardinalities)))):
        column: dict[str, Any] = {"name": name}
        if count is not None:
            column["levels"] = list(levels[name]) if name in levels else count
        elif name in scaling:
            column["scaling"] = [float(value) for value in scaling[name]]
        columns.append(column)
    return columns


def check_rows_without_nan(nan_rows: np.ndarray, missing: np.ndarray, modalities: Sequence[Modality]) -> None:
    """Refuse NaN in content that is observed.

    Args:
        nan_rows: (N, M) bool, True where the stored content holds a NaN.
        missing: (N, M) bool.

    Raises:
        UserError: names the first row and modality.
    """
    bad = np.argwhere(nan_rows & ~missing)
    if len(bad):
        row, column = bad[0]
        raise UserError(
            f"row {row} of modality '{modalities[column].name}' holds NaN but is marked as observed "
            f"({len(bad)} such cells): mark it missing in the mask, or mend the source file and prepare again"
        )


class MultimodalDataModule(pl.LightningDataModule):
    """Base of every data set: packed arrays, the masks of each split, loaders.

    Subclasses set ``name``, ``modalities``, ``class_names`` and ``task``, and implement :meth:`prepare`.

    Args:
        store: folder of the packed store (made by stage ``prepare``).
        batch_size, test_batch_size: rows per training / evaluation batch.
        missing_train, missing_val: scenario of these splits (one each).
        missing_seed: seed of the masks; each split adds its own offset.
        low: share of the training rows to keep (a seeded shuffle before the cut), 1 = all.
        residence: auto | device | host | mmap, see :class:`PackedLoader`.
        reshuffle_pairs, jitter: training augmentation, see :class:`PackedLoader`.
        seed: of the order of the training rows.

    Attributes:
        training_noise: what the training batches of a fit get, None = nothing; stage fit sets it.
    """

    name: str
    modalities: list[Modality]
    class_names: list[str]
    task: Literal["multiclass", "binary", "multilabel"] = "multiclass"

    def __init__(
        self,
        store: str,
        *,
        batch_size: int = 256,
        test_batch_size: int = 512,
        missing_train: Scenario | None = None,
        missing_val: Scenario | None = None,
        missing_seed: int = 2025,
        low: float = 1.0,
        residence: str = "auto",
        reshuffle_pairs: bool | Sequence[str] = False,
        jitter: int = 0,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if isinstance(reshuffle_pairs, str):
            reshuffle_pairs = [reshuffle_pairs]
        if not isinstance(reshuffle_pairs, bool) and (unknown := set(reshuffle_pairs) - set(self.modality_names)):
            raise UserError(
                f"dataset.reshuffle_pairs names '{min(unknown)}', {self.name} has {', '.join(self.modality_names)}"
            )
        self.store = PackedStore(Path(store))
        self.batch_size, self.test_batch_size = batch_size, test_batch_size
        self.missing_train = missing_train or Scenario("none", "none")
        self.missing_val = missing_val or Scenario("none", "none")
        self.missing_seed, self.low, self.residence = missing_seed, low, residence
        self.reshuffle_pairs, self.jitter, self.drop_last, self.seed = reshuffle_pairs, jitter, drop_last, seed
        self.training_noise: TrainingNoise | None = None
        self._splits: dict[str, PackedSplit] = {}

    def prepare(self) -> None:
        """Raw files -> packed store, unless a valid one is there. Idempotent."""
        raise AssertionError("a data set implements prepare()")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def modality_names(self) -> list[str]:
        return [m.name for m in self.modalities]

    @property
    def kinds(self) -> dict[str, str]:
        """Modality name -> kind; known before the data are packed."""
        return {m.name: m.kind for m in self.modalities}

    def split(self, name: str) -> PackedSplit:
        """The packed arrays of one split.

        Raises:
            UserError: the store or the split is absent.
        """
        if name not in self._splits:
            split = self.store.split(name)
            if name == "train" and self.low < 1:
                split = split.head(self.low, seed=2025)
            self._splits[name] = split
        return self._splits[name]

    def has_split(self, name: str) -> bool:
        return self.store.has_split(name)

    def input_settings(self) -> dict[str, dict[str, Any]]:
        """Settings beyond kind, shape and columns that give the values of a modality their meaning.

        Returns:
            Modality name -> plain values, such as the front end of a sound or the tokenizer of a text; modalities
            without such settings are left out.
        """
        return {}

    def describe_inputs(self) -> dict[str, Any]:
        """Describe what classes and inputs mean, in plain values that every trained file carries.

        Returns:
            ``version``; ``task``; ``classes``, the names in their order; ``modalities``, one mapping each in the order
            of the columns of a mask: ``name``, ``kind``, ``shape``; of a table ``columns``, each with ``name``, and
            where they are known ``levels`` (names in the order of their codes, or their number) or ``scaling``
            (zero and unit, in units of the source: value = (source - zero) / unit); of pictures, sound and clips
            ``normalisation``; and what :meth:`input_settings` adds. :mod:`utils.inputs` compares two of them.

        Raises:
            UserError: the data must be packed to know it, and are not.
        """
        source = (self.store.meta() or {}).get("source") or {}
        settings = self.input_settings()
        described = []
        for m in self.modalities:
            about: dict[str, Any] = {"name": m.name, "kind": m.kind, "shape": list(m.shape)}
            if m.kind == "table":
                about["columns"] = _describe_columns(m, source.get("levels") or {}, source.get("scaling") or {})
            elif m.kind != "text":
                about["normalisation"] = {"mean": list(m.scale.mean), "deviation": list(m.scale.deviation)}
            if m.vocabulary:
                about["vocabulary"] = m.vocabulary
            described.append(about | settings.get(m.name, {}))
        plain = {"version": 1, "task": self.task, "classes": list(self.class_names), "modalities": described}
        # As JSON gives it back, so that a stored and a new description compare equal.
        return dict(json.loads(json.dumps(plain)))

    def mask_seed(self, split: str, scenario: Scenario) -> int:
        """The seed that a scenario takes on a split."""
        return scenario.seed(self.missing_seed, SPLITS.index(split))

    def mask(self, split: str, scenario: Scenario) -> np.ndarray:
        """(N, M) bool mask of a scenario on a split; True = missing. See :meth:`masks`."""
        return self.masks(split, scenario)[0]

    def masks(self, split: str, scenario: Scenario) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The mask of a scenario on a split, and the missing cells of its tables.

        Cells and rows that the source never had (:meth:`natural_cells`, :meth:`natural_rows`) are missing under every
        scenario. A row whose source lacks a modality keeps what else it has where the scenario would leave it nothing:
        the scenario is not applied to it.

        Returns:
            (N, M) bool, True = missing, of a table also where only some cells are; table name -> (N, F) bool, which has
            a True exactly in rows whose table is marked (no entry: marked rows miss all cells). All modalities of a row
            may be marked, but then a table of it has some of its cells.

        Raises:
            UserError: the scenario does not fit the data, or leaves a row with nothing.
        """
        n, seed = len(self.split(split)), self.mask_seed(split, scenario)
        absent = np.zeros((n, len(self.modalities)), dtype=bool)
        for name, rows in self.natural_rows(split).items():
            absent[:, self.modality_names.index(name)] = rows
        natural_cells = self.natural_cells(split)
        chosen = np.zeros((n, len(self.modalities)), dtype=bool)
        chosen_cells: dict[str, np.ndarray] = {}
        if scenario.of_cells:
            column, table = self._the_table(scenario)
            importance = self.column_ranking(table) if scenario.needs_ranking else None
            chosen_cells[table.name] = scenario.generate_cells(n, table.shape[0], seed, importance)
            chosen[:, column] = chosen_cells[table.name].any(1)
        else:
            never = absent.copy()
            for name, gaps in natural_cells.items():
                never[:, self.modality_names.index(name)] |= gaps.all(1)
            kinds = [m.kind for m in self.modalities]
            before = SPLITS[: SPLITS.index(split)] if scenario.generator == RUNNING else ()
            earlier = [len(self.split(s)) for s in before if self.has_split(s)]
            chosen = scenario.generate(n, self.modality_names, seed=seed, kinds=kinds, absent=never, earlier=earlier)

        def with_natural() -> tuple[np.ndarray, dict[str, np.ndarray]]:
            missing, cells = chosen | absent, {}
            for name in natural_cells | chosen_cells:
                column = self.modality_names.index(name)
                hidden = chosen_cells[name] if name in chosen_cells else chosen[:, column, None]
                cells[name] = hidden | absent[:, column, None] | natural_cells.get(name, False)
                missing[:, column] = cells[name].any(1)
            return missing, cells

        missing, cells = with_natural()
        alone = self._empty(missing, cells) & absent.any(1) & ~self._empty(chosen, chosen_cells)
        if alone.any():
            log.info(
                "%s, split %s: %d rows keep the only modality that they have", scenario.name, split, int(alone.sum())
            )
            others = ~alone[:, None]
            chosen, chosen_cells = chosen & others, {name: gone & others for name, gone in chosen_cells.items()}
            missing, cells = with_natural()
        if (empty := self._empty(missing, cells)).any():
            raise UserError(
                f"missing scenario '{scenario.name}' leaves nothing in {int(empty.sum())} rows of split '{split}' (the "
                f"first is {int(empty.argmax())}): their table has no value at all; leave the scenario out, remove "
                "these rows from the source, or set dataset.natural_missing=fill"
            )
        return missing, cells

    def _empty(self, missing: np.ndarray, cells: Mapping[str, np.ndarray]) -> np.ndarray:
        """(N,) bool: rows of which a mask (N, M) and its cells leave nothing."""
        gone = missing.copy()
        for name, mask in cells.items():
            gone[:, self.modality_names.index(name)] &= mask.all(1)
        return np.asarray(gone.all(1))

    def corruption(self, split: str, scenario: Scenario) -> Corruption | None:
        """The noise of a scenario on a split, None = none. The same row gets the same noise, whatever else the
        scenario hides, and at a higher level the same pattern louder.

        Raises:
            UserError: the noise does not fit the data.
        """
        if scenario.noise is None:
            return None
        levels = scenario.noise.levels(self.kinds)
        return Corruption(
            tuple(self.modalities), scenario.noise.operator, levels, self.missing_seed + SPLITS.index(split)
        )

    def _the_table(self, scenario: Scenario) -> tuple[int, Modality]:
        tables = [(i, m) for i, m in enumerate(self.modalities) if m.kind == "table"]
        if len(tables) != 1:
            raise UserError(
                f"missing scenario '{scenario.name}' hides cells of a table, but {self.name} has "
                f"{len(tables) or 'no'} table{'s' if tables else ''}: use whole modalities, such as whole_1"
            )
        return tables[0]

    def natural_cells(self, split: str) -> dict[str, np.ndarray]:
        """Cells that the source never had: table name -> (N, F) bool; only tables that have such cells."""
        packed = self.split(split)
        found = {}
        for m in self.modalities:
            if m.kind == "table" and packed.has(f"{m.name}_missing"):
                found[m.name] = packed.read(f"{m.name}_missing").numpy()
        return found

    def natural_rows(self, split: str) -> dict[str, np.ndarray]:
        """Rows for which the source has no content: modality name -> (N,) bool; only modalities with such rows."""
        packed = self.split(split)
        names = [m.name for m in self.modalities if packed.has(f"{m.name}_absent")]
        return {name: packed.read(f"{name}_absent").numpy() for name in names}

    def pixels(self, name: str, images: Tensor) -> Tensor:
        """Images (B, C, H, W) of a batch as they can be shown, in [0, 1]."""
        return images.clamp(0, 1)

    def column_ranking(self, table: Modality) -> list[int]:
        """Columns of a table by impurity importance of a forest on all training rows, the most important first.

        Computed once and kept in the store (``train/<table>_ranking.json``).

        Raises:
            UserError: the store has no training split.
        """
        whole = self.store.split("train")
        file = whole.folder / f"{table.name}_ranking.json"
        if not file.exists():
            log.info("ranking the columns of '%s' with a forest on %d training rows", table.name, len(whole))
            ranking = forest_ranking(whole.read(table.name).numpy(), whole.read("target").numpy())
            with replacing(file) as temporary:
                temporary.write_text(json.dumps(ranking) + "\n")
        return [int(column) for column in json.loads(file.read_text())]

    def choose(self) -> Mapping[str, Choose]:
        """Which parts of an item to take where it has several, see :class:`PackedLoader`."""
        return {}

    def transform(self, train: bool) -> Transform | None:
        """What is done to gathered batches, see :class:`PackedLoader`; None = nothing."""
        return None

    def loader(
        self,
        split: str,
        scenario: Scenario | None = None,
        *,
        train: bool = False,
        batch_size: int | None = None,
        device: torch.device | str = "cpu",
        noise: TrainingNoise | None = None,
        rank: int = 0,
        world_size: int = 1,
        pad: bool = True,
    ) -> PackedLoader:
        """Batches of one split under one scenario; None = complete, see :class:`PackedLoader`.

        Args:
            train: shuffle and augment.
            noise: besides what the scenario says, which then must be without.
        """
        corrupt: Corrupt | None = None if scenario is None else self.corruption(split, scenario)
        if noise is not None:
            assert corrupt is None, "noise of a scenario and of the training: utils.validate refuses both at once"
            corrupt = noise.bind(self.modalities, len(self.split(split)), self.seed)
        missing, cells = (None, None) if scenario is None else self.masks(split, scenario)
        return PackedLoader(
            self.split(split),
            self.modalities,
            missing,
            batch_size or (self.batch_size if train else self.test_batch_size),
            shuffle=train,
            drop_last=train and self.drop_last,
            seed=self.seed,
            device=device,
            residence=self.residence,
            reshuffle_pairs=self.reshuffle_pairs if train else False,
            jitter=self.jitter if train else 0,
            cells=cells,
            choose=self.choose(),
            transform=self.transform(train),
            corrupt=corrupt,
            rank=rank,
            world_size=world_size,
            pad=pad,
        )

    def rows(self, split: str, rows: np.ndarray, device: torch.device | str = "cpu") -> Batch:
        """Some rows of a split as one complete batch, in the given order."""
        loader = PackedLoader(
            self.split(split),
            self.modalities,
            None,
            len(rows),
            device=device,
            residence="mmap",
            choose=self.choose(),
            transform=self.transform(False),
        )
        return loader.gather(torch.from_numpy(np.asarray(rows, dtype=np.int64)))

    def _trainer_loader(self, split: str, scenario: Scenario, train: bool) -> PackedLoader:
        strategy = self.trainer.strategy if self.trainer else None
        device = strategy.root_device if strategy else torch.device("cpu")
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        noise = self.training_noise if train else None
        return self.loader(split, scenario, train=train, device=device, noise=noise, rank=rank, world_size=world)

    def train_dataloader(self) -> PackedLoader:
        return self._trainer_loader("train", self.missing_train, train=True)

    def val_dataloader(self) -> PackedLoader:
        return self._trainer_loader("val", self.missing_val, train=False)
