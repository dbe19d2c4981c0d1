"""Batches of a packed split by index look-up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from datasets.batch import Batch, Modality
from datasets.readers.text import one_hot
from datasets.storage import PackedSplit
from utils.errors import UserError
from utils.noise import hash_seed
from utils.transfer import to_device

Transform = Callable[[dict[str, Tensor], torch.Generator | None], dict[str, Tensor]]
Choose = Callable[[Tensor, torch.Generator | None], Tensor]
Corrupt = Callable[["Batch", int], "Batch"]  # batch, epoch -> batch with noise


def _residence(option: str, split: PackedSplit, device: torch.device) -> str:
    """Where the arrays of a split reside: on the ``device``, in ``host`` memory, or on disk (``mmap``)."""
    if option != "auto":
        return option
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
        missing: (N, M) bool mask of the split; None = nothing is missing, and the caller hides NaN.
        batch_size: rows per batch; the last batch may be smaller unless ``drop_last``.
        channels_last: memory layout of images, with which convolutions are faster on a CPU, and may be on a GPU in
            mixed precision (``tests/benchmarks/gpu.py`` measures it); None = on the CPU.
        shuffle: reshuffle in every epoch. The order depends only on ``seed`` and the epoch of :meth:`set_epoch`, so
            that a resumed run sees the same order. Steps are divided among the ranks as a training needs it, see below.
        reshuffle_pairs: draw another item of the same class for every modality and epoch; a list of names restricts it
            to these modalities. Only for data whose modalities share only the label (PolyMNIST, MST): it multiplies
            the training tuples.
        jitter: shift images by up to this many pixels (replicated edges), drawn per row and modality.
        cells: table name -> (N, F) bool, the missing cells of rows whose table is marked in ``missing``.
        choose: modality whose items have parts (frames of a clip) -> function of the number of parts per row (R,) and a
            generator, None in evaluation, that returns the positions (R, T) of the parts to use: the input is
            (R, T, ...).
        transform: (inputs, generator) -> inputs, applied to gathered batches; the generator is None in evaluation.
        corrupt: (batch, epoch) -> batch with noise, applied last.
        rank, world_size: under DDP each rank has every ``world_size``-th row, and every row counts once. With
            ``shuffle``, all ranks together have the batches that one process has with the batch size
            ``batch_size * world_size``; a rank without a row in the last of them has a row that does not count
            (:attr:`Batch.is_filler`). Without ``shuffle``, each rank divides its rows evenly into as many batches as
            the others, since forward passes of DDP wait for each other.
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
        channels_last: bool | None = None,
        reshuffle_pairs: bool | Sequence[str] = False,
        jitter: int = 0,
        cells: Mapping[str, np.ndarray] | None = None,
        choose: Mapping[str, Choose] | None = None,
        transform: Transform | None = None,
        corrupt: Corrupt | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.split, self.modalities, self.batch_size = split, list(modalities), batch_size
        self.shuffle, self.drop_last, self.seed = shuffle, drop_last, seed
        self.reshuffle_pairs, self.jitter = reshuffle_pairs, jitter
        self.rank, self.world_size = rank, world_size
        self.device = torch.device(device)
        self.residence = _residence(residence, split, self.device)
        self.channels_last = self.device.type == "cpu" if channels_last is None else channels_last
        self.epoch = 0
        store_device = self.device if self.residence == "device" else torch.device("cpu")
        self.arrays: dict[str, Tensor] = {}
        self.pointers: dict[str, Tensor] = {}  # number of the item of each row, where rows share items
        self.counts: dict[str, Tensor] = {}  # number of parts per row, where items have parts
        self.parts: dict[str, int] = {}  # maximum number of parts of an item
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
        """Set the epoch whose order the next iteration uses."""
        self.epoch = epoch

    def __len__(self) -> int:
        n, ranks = len(self.split), self.world_size
        if not self.shuffle:
            n, ranks = n // ranks or len(range(self.rank, n, ranks)), 1
        step = self.batch_size * ranks
        return n // step if self.drop_last else -(-n // step)

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(hash_seed(self.seed, self.epoch))
        n = len(self.split)
        order = torch.randperm(n, generator=generator) if self.shuffle else torch.arange(n)
        partners = self._same_class_partners(generator) if self.reshuffle_pairs else None
        # A separate stream: draws for augmentation never change the order, and differ between ranks.
        augmenting = torch.Generator().manual_seed(hash_seed(self.seed, self.epoch, 3, self.rank))
        for rows, is_filler in self._steps(order):
            batch = self.gather(rows, partners, generator, augmenting if self.shuffle else None)
            yield batch.replace(is_filler=True) if is_filler else batch

    def _steps(self, order: Tensor) -> Iterator[tuple[Tensor, bool]]:
        """The rows of each batch of this rank, and whether they do not count."""
        rows = order[self.rank :: self.world_size]
        if self.shuffle or self.world_size == 1:
            for step in range(len(self)):
                part = rows[step * self.batch_size : (step + 1) * self.batch_size]
                yield (part, False) if len(part) else (order[:1], True)
        elif len(rows):
            yield from ((part, False) for part in rows.tensor_split(len(self)))

    def every(self, rank: int, world_size: int) -> PackedLoader | EveryNth:
        """Batches ``rank``, ``rank + world_size``, ... of one process, for evaluations that processes share: a row is
        in the same batch whatever their number."""
        return self if world_size == 1 else EveryNth(self, rank, world_size)

    def gather(
        self,
        rows: Tensor,
        partners: dict[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
        augmenting: torch.Generator | None = None,
    ) -> Batch:
        """Gather the batch of some rows (R,).

        Args:
            rows: on the CPU, or where the arrays are.
            generator: of the jitter, None = no jitter.
            augmenting: passed to ``choose`` and ``transform``.
        """
        inputs, index = {}, to_device(rows, self.device, is_remembered=True)
        rows = index if self.residence == "device" else rows
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
            if m.kind == "image" and self.channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            if self.jitter and m.kind == "image" and generator is not None:
                x = self._shift(x, generator)
            inputs[m.name] = x
        if self.transform is not None:
            inputs = self.transform(inputs, augmenting)
        batch = Batch(
            inputs,
            self._to_device(self.missing.index_select(0, rows)),
            self._to_device(self.target.index_select(0, rows)),
            index,
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
        dy, dx = to_device(torch.randint(-self.jitter, self.jitter + 1, (2, b), generator=generator), x.device)
        rows = (torch.arange(h, device=x.device) + dy[:, None]).clamp_(0, h - 1)
        columns = (torch.arange(w, device=x.device) + dx[:, None]).clamp_(0, w - 1)
        b_index = torch.arange(b, device=x.device)
        return x[b_index[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


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
            f"({len(bad)} such cells): mark it missing in the mask, or correct the source file and prepare again"
        )


class EveryNth:
    """See :meth:`PackedLoader.every`."""

    def __init__(self, loader: PackedLoader, first: int, step: int) -> None:
        if loader.shuffle or loader.world_size > 1:
            raise ValueError("the rows are shuffled or divided already")
        self.loader, self.numbers = loader, range(first, len(loader), step)

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Batch]:
        size = self.loader.batch_size
        for number in self.numbers:
            yield self.loader.gather(torch.arange(number * size, min((number + 1) * size, len(self.loader.split))))
