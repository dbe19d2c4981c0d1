"""Base of the data sets that are composed of parts, one per modality: packing, meaning of the inputs, and batches.

:mod:`datasets.modality_parts` has one part per kind of modality. A subclass loads a :class:`datasets.content.Content`
with the loaded form of each part; whatever follows is the same for every mix of modalities.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from datasets.batch import Modality
from datasets.coded_table import check_classes_of_rows
from datasets.content import Content, Texts, taken
from datasets.loader import Choose, Transform
from datasets.modality_parts.base import Packed, Part
from datasets.modality_parts.files import FilePart
from datasets.modality_parts.image import ImagePart
from datasets.modality_parts.table import CodedPart
from datasets.modality_parts.text import TextPart
from datasets.readers.tokens import save_tokenizer
from datasets.source import Source, SourcedDataModule, sample_rows
from datasets.storage import link_file
from datasets.transforms import ColumnPool, ImageTransform, JointAugmentation
from utils.errors import UserError

log = logging.getLogger(__name__)


class ComposedDataModule(SourcedDataModule):
    """Data set of parts; a subclass sets :attr:`parts` before it calls this constructor, and loads a :class:`Content`.

    Attributes:
        parts: of the modalities, in the order of the columns of a mask.
        augmentation: of training rows, whose images and tables are augmented together; None = every part has its own.
        knows_first_rules: whether there are stores that READING_RULES 1 packed.
        drops_empty_rows: whether rows without any content are left out; else no scenario can be applied to them.
    """

    parts: Sequence[Part]
    augmentation: JointAugmentation | None = None
    knows_first_rules: ClassVar[bool] = False
    drops_empty_rows: ClassVar[bool] = False

    def __init__(self, store: str, **kwargs: Any) -> None:
        super().__init__(store, **kwargs)
        self._pools: dict[str, ColumnPool] | None = None

    def part(self, name: str) -> Part:
        return next(part for part in self.parts if part.name == name)

    # ---- packing -----------------------------------------------------------------------------------------------------

    def shorten(self, content: Content, rows: int) -> tuple[Content, dict[str, int]]:
        for part in self.parts:
            if isinstance(part, TextPart) and part.empty == "leave_out":
                texts: Texts = content.inputs[part.name]
                content = content.without(np.array([not text.strip() for text in texts.strings], dtype=bool))
        counts = {split: len(numbers) for split, numbers in content.splits.items()}
        chosen = {split: part[sample_rows(content.target[part], rows)] for split, part in content.splits.items()}
        return content.sample(chosen), counts

    def pack(self, source: Source) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        content: Content = source.load()
        packed: dict[str, Packed] = {}
        self._pools = None
        files = [part for part in self.parts if isinstance(part, FilePart)]
        self._check_training_rows(content)
        for part in (part for part in self.parts if part not in files):
            packed[part.name] = part.pack(content, self.scratch, self.shared_files)
            if (left_out := packed[part.name].left_out) is not None:
                content = content.without(left_out)
        self._check_training_rows(content)
        self.check_targets(content)  # before files are decoded, which takes longest
        for part in files:
            packed[part.name] = part.pack(content, self.scratch, self.shared_files)
        if self.drops_empty_rows and (fewer := self._with_content(content, packed)) is not content:
            content = fewer
            self._check_training_rows(content)
            self.check_targets(content)
        splits: dict[str, dict[str, Any]] = {}
        for split, rows in content.splits.items():
            splits[split] = {"target": content.target[rows], "name": np.array(taken(content.names, rows), dtype=str)}
            for part in self.parts:
                splits[split] |= self._arrays(part.name, packed[part.name], split, rows)
        for file in [file for part in packed.values() for file in part.temporary]:
            file.unlink()
        return splits, self._meta(source, content, {part.name: packed[part.name] for part in self.parts})

    def _meta(self, source: Source, content: Content, packed: Mapping[str, Packed]) -> dict[str, Any]:
        about = {name: part.about for name, part in packed.items()}
        changes = [change for part in packed.values() for change in part.changes]
        return {
            "class_names": content.class_names,
            "parts": about,
            "part_counts": {name: part.counts for name, part in packed.items()},
            **({"reading_changes": changes} if self.knows_first_rules else {}),
            "source": {
                "kind": source.kind,
                **content.about,
                "levels": {k: v for part in about.values() for k, v in part.get("levels", {}).items()},
                "scaling": {k: v for part in about.values() for k, v in part.get("scaling", {}).items()},
            },
        }

    @property
    def shared_files(self) -> Path | None:
        """Beginning of the path of folders for decoded files that stores of other folds use, too; None = no folds."""
        return None

    def check_targets(self, content: Content) -> None:
        """Check the targets of the rows that are packed.

        Raises:
            UserError: a class without a training row.
        """
        if content.target.ndim == 1:
            for split, rows in content.splits.items():
                check_classes_of_rows(split, content.target[rows], content.class_names)

    def _check_training_rows(self, content: Content) -> None:
        if "train" not in content.splits:
            raise UserError(
                f"{self.name}: there is no training row with content (splits: {', '.join(content.splits) or 'none'}): "
                "correct the splits, and the columns of the modalities"
            )

    def _with_content(self, content: Content, packed: Mapping[str, Packed]) -> Content:
        """The rows that have at least some content; the others are counted in ``left_out``."""
        empty = np.ones(len(content.target), dtype=bool)
        for part in packed.values():
            lacks = part.absent.copy()
            if "_missing" in part.arrays:  # natural_missing=fill applies when rows are read, not here
                lacks |= part.arrays["_missing"].reshape(len(lacks), -1).all(1)
            empty &= lacks
        used = np.zeros_like(empty)
        for rows in content.splits.values():
            used[rows] = True
        if not (empty := empty & used).any():
            return content
        content.about["left_out"]["no content"] = int(empty.sum())
        log.warning(
            "%s: %d of %d rows left out: they have no content in any modality (the first is %s)",
            self.name,
            empty.sum(),
            used.sum(),
            content.names[int(empty.argmax())],
        )
        return content.without(empty)

    def _arrays(self, name: str, packed: Packed, split: str, rows: np.ndarray) -> dict[str, Any]:
        """Arrays of one modality in a split.

        Args:
            rows: (R,) rows of the split.
        """
        arrays: dict[str, Any] = {f"{name}{suffix}": array[rows] for suffix, array in packed.arrays.items()}
        if name in arrays and packed.arrays[""].flags.fnc:  # so that a store that is packed again has the same bytes
            arrays[name] = np.asfortranarray(arrays[name])
        if (gaps := arrays.get(f"{name}_missing")) is not None and not gaps.any():
            del arrays[f"{name}_missing"]
        if (absent := packed.absent[rows]).any():
            arrays[f"{name}_absent"] = absent
        if packed.of_splits:
            arrays[name] = packed.of_splits[split]
        for suffix, file in packed.files.items():
            assert packed.items is not None
            arrays[f"{name}{suffix}"] = link_file(file, self.scratch / f"{split}-{name}{suffix}.npy")
            arrays[f"{name}{suffix}.rows"] = packed.items[rows]
        return arrays

    # ---- what the packed content means -------------------------------------------------------------------------------

    def about(self, part: Part) -> dict[str, Any]:
        """Values that a part fitted when it packed the rows.

        Raises:
            UserError: the data are not packed.
        """
        meta = self.packed_meta()
        # Stores of the data sets that had no parts state the values of their table or text at the top.
        return dict(meta["parts"][part.name] if "parts" in meta else {**meta["source"], **meta})

    @property
    def modalities(self) -> list[Modality]:  # type: ignore[override]
        """What the parts make; fitted values are known once the data are packed."""
        return [part.modality(self.about(part)) for part in self.parts]

    @property
    def modality_names(self) -> list[str]:
        return [part.name for part in self.parts]

    @property
    def kinds(self) -> dict[str, str]:
        return {part.name: part.modality_kind for part in self.parts}

    @property
    def tables(self) -> list[str]:
        """See the base class; vectors are meant only where there is no table of columns."""
        return [part.name for part in self.parts if isinstance(part, CodedPart)] or super().tables

    @property
    def class_names(self) -> list[str]:  # type: ignore[override]
        return list(self.packed_meta()["class_names"])

    def input_settings(self) -> dict[str, dict[str, Any]]:
        settings = {part.name: part.input_settings(self.about(part)) for part in self.parts}
        return {name: values for name, values in settings.items() if values}

    def save_tokenizer(self, folder: Path) -> None:
        for part in self.parts:
            if isinstance(part, TextPart):  # all texts have the same
                return save_tokenizer(part.tokenizer, folder)
        return None

    # ---- batches -----------------------------------------------------------------------------------------------------

    @property
    def _filled(self) -> set[str]:
        """Modalities whose missing cells count as observed."""
        return {part.name for part in self.parts if getattr(part, "natural_missing", "keep") == "fill"}

    def natural_cells(self, split: str) -> dict[str, np.ndarray]:
        return {name: cells for name, cells in super().natural_cells(split).items() if name not in self._filled}

    def transform(self, train: bool) -> Transform | None:
        together = self._joint_transform() if train and self.augmentation is not None else None
        joint = set() if together is None else {*together.images, *together.pools}
        transforms = [part.transform(self.about(part), train) for part in self.parts if part.name not in joint]
        used = [transform for transform in (together, *transforms) if transform is not None]

        def apply(inputs: dict[str, Tensor], generator: torch.Generator | None) -> dict[str, Tensor]:
            for transform in used:
                inputs = transform(inputs, generator)
            return inputs

        return apply if used else None

    def _joint_transform(self) -> ImageTransform:
        """Augmentation of the images and tables of a row together."""
        forms = {part.name: part.image_form(self.about(part)) for part in self.parts if isinstance(part, ImagePart)}
        if self._pools is None:
            packed, self._pools = self.split("train"), {}
            for name in (part.name for part in self.parts if isinstance(part, CodedPart)):
                gaps = packed.read(f"{name}_missing") if packed.has(f"{name}_missing") else None
                self._pools[name] = ColumnPool(packed.read(name), gaps)
        return ImageTransform(forms, self.augmentation, self._pools)

    def choose(self) -> Mapping[str, Choose]:
        return {part.name: choose for part in self.parts if (choose := part.choose()) is not None}

    def pixels(self, name: str, images: Tensor) -> Tensor:
        part = self.part(name)
        return part.pixels(images, self.about(part))

    def strings(self, name: str, content: Tensor) -> list[str]:
        part = self.part(name)
        return part.strings(content) if isinstance(part, TextPart) else super().strings(name, content)
