"""What passes between the parts: `Modality`, `Batch`, and the data module that makes batches.

Tensor legend used everywhere: ``B`` batch, ``M`` modalities, ``N`` tokens of one modality, ``P`` tokens of all,
``D`` width, ``C`` classes, ``S`` subsets. A mask is boolean and **True = missing**.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from datasets.batch import Batch, Modality
from datasets.loader import Choose, Corrupt, PackedLoader, Transform
from datasets.missingness import Complete, Rows, Scenario
from datasets.missingness.table import forest_ranking
from datasets.noise import Corruption, TrainingNoise
from datasets.storage import PackedSplit, PackedStore
from utils.errors import UserError
from utils.files import replacing

log = logging.getLogger(__name__)
SPLITS = ("train", "val", "test")


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


class MultimodalDataModule(pl.LightningDataModule):
    """Base of every data set: packed arrays, the masks of each split, loaders.

    Subclasses set ``name``, ``modalities``, ``class_names`` and ``task``, and implement :meth:`prepare`.

    Args:
        store: folder of the packed store (made by stage ``prepare``).
        batch_size, test_batch_size: rows per training / evaluation batch.
        missing_train, missing_val: scenario of these splits (one each).
        missing_seed: seed of the masks; each split adds its own offset.
        train_fraction: fraction of the training rows to keep (a seeded shuffle before the cut), 1 = all.
        residence: auto | device | host | mmap, see :class:`PackedLoader`.
        reshuffle_pairs, jitter: training augmentation, see :class:`PackedLoader`.
        seed: of the order of the training rows.

    Attributes:
        training_noise: what the training batches of a fit get, None = nothing; stage fit sets it.
        paths: constructor arguments that say where files are. The signature of the packed store says what is in them,
            so that folders may move and paths may be relative or absolute.
        paths_or_names: those of ``paths`` that may also be the name of something that is not a file.
        folders: those of ``paths`` that must be existing folders where they are given.
        read_time: constructor arguments that act when batches are read, and leave the packed store as it is.
        resources: constructor arguments that results do not depend on, such as where arrays reside.

    These tuples of argument names are declared by every class for its own arguments; a class also has those of its
    base classes.
    """

    paths: ClassVar[tuple[str, ...]] = ()
    paths_or_names: ClassVar[tuple[str, ...]] = ()
    folders: ClassVar[tuple[str, ...]] = ()
    read_time: ClassVar[tuple[str, ...]] = (
        "test_batch_size",
        "train_fraction",
        "residence",
        "reshuffle_pairs",
        "jitter",
    )
    resources: ClassVar[tuple[str, ...]] = ("test_batch_size", "residence")

    name: str
    modalities: list[Modality]
    class_names: list[str]
    task: Literal["multiclass", "binary", "multilabel"] = "multiclass"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for declared in ("paths", "paths_or_names", "folders", "read_time", "resources"):
            merged = [name for base in reversed(cls.__mro__) for name in vars(base).get(declared, ())]
            setattr(cls, declared, tuple(dict.fromkeys(merged)))

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
        if scenario.hides_cells:
            column, table = self._the_table(scenario)
            importance = self.column_ranking(table) if scenario.needs_ranking else None
            chosen_cells[table.name] = scenario.generate(Rows(n, table.shape[0], seed, ranking=importance))
            chosen[:, column] = chosen_cells[table.name].any(1)
        else:
            never = absent.copy()
            for name, gaps in natural_cells.items():
                never[:, self.modality_names.index(name)] |= gaps.all(1)
            kinds = [m.kind for m in self.modalities]
            before = SPLITS[: SPLITS.index(split)] if scenario.continues_splits else ()
            earlier = [len(self.split(s)) for s in before if self.has_split(s)]
            chosen = scenario.generate(Rows(n, len(kinds), seed, kinds, never, earlier))

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
            assert corrupt is None, (
                "noise of a scenario and of the training: trainers.config.validate refuses both at once"
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
