"""Base of the data modules: from the packed store to batches with masks and noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytorch_lightning as pl
import torch

from datasets.batch import Batch, Modality
from datasets.declared import DeclaredArguments, Names
from datasets.description import describe_inputs
from datasets.loader import Choose, Corrupt, PackedLoader, Transform
from datasets.missingness import Complete, Rows, Scenario, unobserved
from datasets.missingness.content import SplitContent
from datasets.missingness.table import stored_ranking
from datasets.new_row_hooks import TakesNewRows
from datasets.noise import Corruption, TrainingNoise
from datasets.split_masks import SourceGaps, SplitMask
from datasets.storage import PackedSplit, PackedStore
from utils.errors import UserError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class PackedSample:
    """What packing all rows takes, from a sample of them.

    Attributes:
        counts: split -> number of its rows.
        seconds, nbytes: of all rows, packed.
    """

    counts: dict[str, int]
    seconds: float
    nbytes: float


class MultimodalDataModule(TakesNewRows, DeclaredArguments, pl.LightningDataModule):
    """Base of every data set: packed arrays, masks of the splits, loaders.

    Subclasses set ``name``, ``modalities``, ``class_names`` and ``task``, and implement :meth:`prepare`.
    They declare their arguments, see :class:`DeclaredArguments`.

    Args:
        store: folder of the packed store (made by stage ``prepare``).
        batch_size, test_batch_size: rows per training / evaluation batch.
        missing_train, missing_val: scenario of the split, None = complete.
        missing_seed: of the masks; every split adds its own offset.
        train_fraction: fraction of the training rows to keep (a seeded shuffle before the cut), 1 = all.
        residence: auto | device | host | mmap, see :class:`PackedLoader`.
        channels_last: see :class:`PackedLoader`.
        reshuffle_pairs, jitter: training augmentation, see :class:`PackedLoader`.
        seed: of the order of the training rows.

    Attributes:
        training_noise: noise on training batches, None = none; stage fit sets it.
    """

    resources: ClassVar[Names] = ("test_batch_size", "residence", "channels_last")
    read_time: ClassVar[Names] = (*resources, "train_fraction", "reshuffle_pairs", "jitter")

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
        train_fraction: float = 1.0,
        residence: str = "auto",
        channels_last: bool | None = None,
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
        self.missing_train = missing_train or Complete()
        self.missing_val = missing_val or Complete()
        self.missing_seed, self.train_fraction, self.residence = missing_seed, train_fraction, residence
        self.channels_last = channels_last
        self.reshuffle_pairs, self.jitter, self.drop_last, self.seed = reshuffle_pairs, jitter, drop_last, seed
        self.training_noise: TrainingNoise | None = None
        self._splits: dict[str, PackedSplit] = {}
        self._contents: dict[str, SplitContent] = {}

    def prepare(self) -> None:
        """Pack the raw files, unless a valid packed store exists. Idempotent."""
        raise AssertionError("a data set implements prepare()")

    def is_packed(self) -> bool:
        """Whether :meth:`prepare` would have nothing to do.

        Raises:
            UserError: no source, or a bad file in it.
        """
        return self.store.meta() is not None

    def pack_sample(self, rows: int) -> PackedSample | None:
        """Pack at most ``rows`` rows of each split, for an estimate of what packing all of them takes.

        Returns:
            None for a data set that cannot pack a part.
        """
        return None

    def repeat_rows(self, counts: Mapping[str, int]) -> None:
        """Let the packed rows of splits repeat until there are as many as given (split -> number)."""
        for name, n in counts.items():
            split = self.store.split(name)
            self._splits[name] = PackedSplit(split.folder, np.arange(n) % len(split))

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

    @property
    def tables(self) -> list[str]:
        """Modalities whose cells are meant by scenarios that name no modality, such as ``table_value_0.3``."""
        return [name for name, kind in self.kinds.items() if kind == "table"]

    def split(self, name: str) -> PackedSplit:
        """Packed arrays of one split.

        Raises:
            UserError: the store or the split does not exist.
        """
        if name not in self._splits:
            split = self.store.split(name)
            if name == "train" and self.train_fraction < 1:
                split = split.head(self.train_fraction, seed=2025)
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
        """Describe what classes and inputs mean, see :func:`datasets.description.describe_inputs`.

        Raises:
            UserError: the data must be packed first.
        """
        source = (self.store.meta() or {}).get("source") or {}
        return describe_inputs(
            self.task,
            self.class_names,
            self.modalities,
            levels=source.get("levels") or {},
            scaling=source.get("scaling") or {},
            settings=self.input_settings(),
        )

    def meta_without_rows(self) -> dict[str, Any]:
        """``meta.json`` of a store without rows, which is all that a trained model needs of its data.

        Raises:
            UserError: the data are not packed.
        """
        meta = self.store.meta()
        if meta is None:
            raise UserError(f"no packed data in {self.store.folder}: run the stage 'prepare' first (stages=[prepare])")
        of_rows = {"counts", "class_counts", "part_counts", "reading_changes"}
        of_rows |= {"missing_cells", "texts_cut", "without_text"}  # of older stores
        source = {k: v for k, v in (meta.get("source") or {}).items() if k not in ("csv", "left_out", "masked")}
        return {k: v for k, v in meta.items() if k not in of_rows} | {"counts": {}, "source": source}

    def save_tokenizer(self, folder: Path) -> None:
        """Write the files of the tokenizer that new texts need; nothing where there are no texts."""

    def mask_seed(self, split: str, scenario: Scenario) -> int:
        """Seed of a scenario on a split."""
        return scenario.seed(self.missing_seed, SPLITS.index(split))

    def mask(self, split: str, scenario: Scenario) -> np.ndarray:
        """Mask of a scenario on a split, (N, M) bool, True = missing; see :meth:`masks`."""
        return self.masks(split, scenario)[0]

    def masks(self, split: str, scenario: Scenario, spare: bool = False) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Mask of a scenario on a split, and the missing cells of its tables.

        Content that the source lacks (:meth:`source_gaps`) is missing under every scenario. All modalities of a row may
        be marked, but then a table of the row has some of its cells.

        Args:
            spare: see :meth:`datasets.split_masks.SourceGaps.combine`.

        Returns:
            (N, M) bool, True = missing, and table name -> (N, F) bool: see :class:`datasets.split_masks.SplitMask`.

        Raises:
            UserError: the scenario does not fit the data, or leaves a row with nothing.
        """
        gaps = self.source_gaps(split)
        n, seed = len(self.split(split)), self.mask_seed(split, scenario)
        if scenario.hides_cells:
            column, table = self._with_cells(scenario)
            ranking = self.column_ranking(table) if scenario.needs_ranking else None
            cells = scenario.generate(Rows(n, table.shape[0], seed, ranking=ranking, modality=table))
            missing = np.zeros((n, len(self.modalities)), dtype=bool)
            missing[:, column] = cells.reshape(n, -1).any(1)
            hidden = SplitMask(self.modality_names, missing, {table.name: cells})
        else:
            kinds = [m.kind for m in self.modalities]
            previous = SPLITS[: SPLITS.index(split)] if scenario.continues_splits else ()
            earlier = [len(self.split(name)) for name in previous if self.has_split(name)]
            absent, content = gaps.unobservable(), self._content(split, gaps)
            missing = scenario.generate(Rows(n, len(kinds), seed, kinds, absent, earlier, content=content))
            hidden = SplitMask(self.modality_names, missing)
        mask = gaps.combine(hidden, scenario.name, split, spare)
        return mask.missing, dict(mask.cells)

    def realised_rate(self, scenario: Scenario, missing: np.ndarray, cells: Mapping[str, np.ndarray]) -> float:
        """Missing rate of a scenario under the masks of :meth:`masks`."""
        hidden = unobserved(missing, cells, self.modality_names)
        cells = scenario.counted_cells(cells, self.modality_names)
        if scenario.hides_cells and not scenario.named_modalities:
            cells = {name: mask for name, mask in cells.items() if name in self.tables}
        return float(scenario.realised_rate(hidden, cells, [m.kind for m in self.modalities]))

    def _content(self, split: str, gaps: SourceGaps) -> SplitContent:
        """Content and labels of a split, for scenarios that depend on them."""
        packed, content = self.split(split), self._contents.get(split)
        if content is None or content.split is not packed:
            content = SplitContent(packed, self.modalities, gaps, lambda: self.source_gaps("train"))
            self._contents[split] = content
        return content

    def source_gaps(self, split: str) -> SourceGaps:
        """Content that the source of a split lacks."""
        absent = np.zeros((len(self.split(split)), len(self.modalities)), dtype=bool)
        for name, rows in self.natural_rows(split).items():
            absent[:, self.modality_names.index(name)] = rows
        return SourceGaps(self.modality_names, absent, self.natural_cells(split))

    def corruption(self, split: str, scenario: Scenario) -> Corruption | None:
        """Noise of a scenario on a split, None = none.

        A row gets the same noise whatever the scenario hides, and at a higher level the same pattern, louder.

        Raises:
            UserError: the noise does not fit the data.
        """
        if scenario.noise is None:
            return None
        seed = self.missing_seed + SPLITS.index(split)
        levels = scenario.noise.levels(self.kinds)
        return Corruption(tuple(self.modalities), scenario.noise.operator, levels, seed)

    def _with_cells(self, scenario: Scenario) -> tuple[int, Modality]:
        """Number and modality of which a scenario hides cells."""
        for number in scenario.named_modalities:
            modality = self.modalities[number]
            if modality.kind not in scenario.cell_kinds:
                *kinds, last = scenario.cell_kinds
                reason = f"only {', '.join(kinds)} and {last} can be partly missing"
                if modality.kind == "text":
                    reason = (
                        "texts differ in their number of tokens, and the positions after the last one are padding, so "
                        "that a share of all positions is no share of the text"
                    )
                raise UserError(
                    f"missing scenario '{scenario.name}' hides parts of '{modality.name}', of kind {modality.kind}: "
                    f"{reason}; use nested_{number}_0.25 or noise"
                )
            return number, modality
        tables = self.tables
        if len(tables) != 1:
            raise UserError(
                f"missing scenario '{scenario.name}' hides cells of a table, but {self.name} has "
                f"{len(tables) or 'no'} table{'s' if tables else ''}: use whole modalities, such as whole_1"
            )
        number = self.modality_names.index(tables[0])
        return number, self.modalities[number]

    def natural_cells(self, split: str) -> dict[str, np.ndarray]:
        """Cells without a value in the source: table -> (N, F) bool, series -> (N, T, channels) bool; only of those
        that have such cells."""
        packed = self.split(split)
        names = [m.name for m in self.modalities if packed.has(f"{m.name}_missing")]
        return {name: packed.read(f"{name}_missing").numpy() for name in names}

    def natural_rows(self, split: str) -> dict[str, np.ndarray]:
        """Rows without content in the source: modality name -> (N,) bool, only of modalities with such rows."""
        packed = self.split(split)
        names = [m.name for m in self.modalities if packed.has(f"{m.name}_absent")]
        return {name: packed.read(f"{name}_absent").numpy() for name in names}

    def column_ranking(self, table: Modality) -> list[int]:
        """Rank the columns of a table by the impurity importance of a forest on all training rows, descending.

        Raises:
            UserError: the store has no training split.
        """
        return stored_ranking(self.store.split("train"), table.name)

    def choose(self) -> Mapping[str, Choose]:
        """Modality -> function that chooses the frames of multi-frame items, see :class:`PackedLoader`."""
        return {}

    def transform(self, train: bool) -> Transform | None:
        """Transform of gathered batches, see :class:`PackedLoader`; None = none."""
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
    ) -> PackedLoader:
        """Batches of one split under one scenario, None = complete; see :class:`PackedLoader`.

        Args:
            train: shuffle and augment.
            noise: of training batches; the scenario must then be without noise.
        """
        corrupt: Corrupt | None = None if scenario is None else self.corruption(split, scenario)
        if noise is not None:
            assert corrupt is None, (
                "noise of the scenario and of training: trainers.config.validate refuses the combination"
            )
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
            channels_last=self.channels_last,
            reshuffle_pairs=self.reshuffle_pairs if train else False,
            jitter=self.jitter if train else 0,
            cells=cells,
            choose=self.choose(),
            transform=self.transform(train),
            corrupt=corrupt,
            rank=rank,
            world_size=world_size,
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
            channels_last=self.channels_last,
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
