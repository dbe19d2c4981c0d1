"""CelebA: a face (3, 64, 64) and its attributes as text (256, 71); the class is one attribute, blond hair.

Liu et al., "Deep Learning Face Attributes in the Wild", ICCV 2015 (https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html);
image and text as in Sutter, Daunhawer, Vogt, "Generalized Multimodal ELBO", ICLR 2021; used by DyMo, ICLR 2026. Files
that are read:

- ``<root>/img_align_celeba/{000001..202599}.jpg`` (or one folder deeper, as some archives unpack);
- ``<root>/list_attr_celeba.csv`` or ``.txt`` (first the count, then the names), values -1 and 1;
- ``<root>/list_eval_partition.csv`` or ``.txt``, 0 train, 1 validation, 2 test;
- optionally ``<root>/list_attr_text_256_False_True_celeba.csv``, the texts of the original; without it, texts are made
  by the same rule, seeded.

Differences from the original: files are joined by image name, not by row. The original's README gives 19,962 validation
and 19,867 test images, the official partition has these numbers exchanged, and its "balanced" partition was not
published: ``partition`` selects one. The text names the class ("blond hair"), as published; ``drop_target_attribute``
leaves that attribute out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from datasets.base import SPLITS
from datasets.batch import Modality
from datasets.readers.images import ImageReader, decode_images
from datasets.readers.text import WIDTH, attribute_texts, check_alphabet, encode_all
from datasets.source import Source, SourcedDataModule, check_classes, file_stats, sample_rows, sha256
from utils.errors import UserError, first_line

SIDE = 64
TEXT_LENGTH = 256
PARTITIONS = ("official", "official_swapped", "balanced")
RECIPE_VERSION = 1
# Left, upper, right, lower: 147 pixels from the corner of a centred crop of 148 on 178 x 218 (MoPoE uses 148).
BOX = (15, 35, 162, 182)
TEXT_FILE = f"list_attr_text_{TEXT_LENGTH:03d}_False_True_celeba.csv"

read_face = ImageReader(SIDE, box=BOX, resample=Image.Resampling.BICUBIC)


def read_table(path: Path, header: bool) -> pd.DataFrame:
    """A table of CelebA, image name -> whole numbers, from its CSV form or its original text form.

    Args:
        header: the text form begins with the number of rows and the names of the columns.

    Raises:
        UserError: the file is unreadable, lists an image twice, has a cell that is no whole number, or another number
            of rows than the text form announces.
    """
    announced = None
    try:
        if path.suffix == ".csv":
            frame = pd.read_csv(path, dtype=str, index_col=0, keep_default_na=False)
        elif header:
            with path.open() as lines:
                announced = int(lines.readline())
            # The header has one name fewer than there are columns: the first column becomes the index.
            frame = pd.read_csv(path, sep=r"\s+", skiprows=1, dtype=str)
        else:
            frame = pd.read_csv(path, sep=r"\s+", header=None, dtype=str, index_col=0, names=["image_id", "partition"])
    except (OSError, ValueError, pd.errors.ParserError) as error:
        reason = first_line(error)
        raise UserError(f"{path} cannot be read as a table ({reason}): download it again") from None
    if announced is not None and announced != len(frame):
        raise UserError(f"{path} announces {announced} rows and holds {len(frame)}: download it again")
    repeated = frame.index[frame.index.duplicated()]
    if len(repeated):
        raise UserError(f"{path} lists {repeated[0]} twice: remove one of the rows")
    values = frame.apply(pd.to_numeric, errors="coerce")
    bad = np.argwhere((values.isna() | (values % 1 != 0)).to_numpy())
    if len(bad):
        row, column = bad[0]
        raise UserError(
            f"{path}: row {row + 1} ({frame.index[row]}) holds {frame.iat[row, column]!r} in column "
            f"'{frame.columns[column]}', expected a whole number: correct that row, or download the file again"
        )
    return values.astype(np.int64)


def read_texts(path: Path) -> pd.Series:
    """The texts of the original, image name -> text.

    Raises:
        UserError: the file is unreadable, lacks a column, lists an image twice, or has a text of another length.
    """
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{path} cannot be read as a table ({first_line(error)}): restore or remove it") from None
    for column in ("image_id", "text"):
        if column not in frame.columns:
            raise UserError(f"{path} has no column '{column}' (only {', '.join(frame.columns)}): restore or remove it")
    texts = frame.set_index("image_id")["text"]
    repeated = texts.index[texts.index.duplicated()]
    if len(repeated):
        raise UserError(f"{path} lists {repeated[0]} twice: remove one of the rows")
    lengths = texts.str.len().to_numpy()
    bad = np.flatnonzero(lengths != TEXT_LENGTH)
    if len(bad):
        raise UserError(
            f"{path}: the text of {texts.index[bad[0]]} has {lengths[bad[0]]} characters, expected {TEXT_LENGTH} "
            f"({len(bad)} such rows): restore or remove it"
        )
    return texts


@dataclass(frozen=True)
class Faces:
    """One split, ready to be packed: N image files, codes of their texts (N, 256), target (N,)."""

    files: list[Path]
    text: np.ndarray
    target: np.ndarray

    def keep(self, rows: np.ndarray) -> Faces:
        """Only the given rows (sorted)."""
        return Faces([self.files[i] for i in rows], self.text[rows], self.target[rows])


class CelebA(SourcedDataModule):
    """CelebA as image and attribute text, with one attribute as the class.

    Args:
        store: folder of the packed store; not the folder of the raw files.
        root: folder with the images and tables.
        target: the attribute to classify.
        drop_target_attribute: leave that attribute out of the text.
        partition: ``official``; ``official_swapped``, with validation and test exchanged; ``balanced``, the official
            partition with the same number of rows of both classes in every split.
        partition_file: another table image name -> 0, 1, 2 in place of ``list_eval_partition``.
        balance_seed: of the rows that ``balanced`` selects.
        text_seed: of the start columns of the texts, where no file of texts exists.
        demo: ``root`` holds demo data, whose counts differ from the published ones.
        **kwargs: see :class:`datasets.base.MultimodalDataModule`.
    """

    paths = ("root", "partition_file")
    name = "CelebA"
    modalities = [Modality("img", "image", (3, SIDE, SIDE)), Modality("text", "text", (TEXT_LENGTH, WIDTH))]
    task = "binary"

    def __init__(
        self,
        *,
        store: str,
        root: str | None = None,
        target: str = "Blond_Hair",
        drop_target_attribute: bool = False,
        partition: str = "official",
        partition_file: str | None = None,
        balance_seed: int = 2025,
        text_seed: int = 2025,
        demo: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(store, **kwargs)
        if partition not in PARTITIONS:
            raise UserError(f"dataset.partition={partition}: must be one of {', '.join(PARTITIONS)}")
        self.root = None if root is None else Path(root)
        self.partition_file = None if partition_file is None else Path(partition_file)
        self.target, self.drop_target_attribute, self.partition = target, drop_target_attribute, partition
        self.balance_seed, self.text_seed, self.demo = balance_seed, text_seed, demo
        readable = target.replace("_", " ").lower()
        self.class_names = [f"not {readable}", readable]

    def input_settings(self) -> dict[str, dict[str, Any]]:
        return {"text": {"names_the_target": not self.drop_target_attribute}}

    def find_source(self) -> Source:
        """
        Raises:
            UserError: the folder with the images, or a table, does not exist.
        """
        root = self.root
        folder = root and root / "img_align_celeba"
        if not (root and folder and folder.is_dir()):
            raise UserError(
                f"no CelebA: looked for {root or 'dataset.root (null)'}/img_align_celeba: unpack the aligned and "
                "cropped images with list_attr_celeba and list_eval_partition (.csv or .txt) into dataset.root, or set "
                "dataset.demo=true to try it"
            )
        if (folder / folder.name).is_dir():
            folder = folder / folder.name
        tables = {"attributes": _csv_or_txt(root, "list_attr_celeba")}
        tables["partition"] = self.partition_file or _csv_or_txt(root, "list_eval_partition")
        if not tables["partition"].is_file():
            raise UserError(f"dataset.partition_file: there is no file {tables['partition']}")
        if (root / TEXT_FILE).is_file() and not self.drop_target_attribute:
            tables["texts"] = root / TEXT_FILE
        if (root / "alphabet.json").is_file():
            tables["alphabet"] = root / "alphabet.json"
        with os.scandir(folder) as entries:
            images = {e.name: [e.stat().st_size, e.stat().st_mtime_ns] for e in entries if e.name.endswith(".jpg")}
        settings = {
            "target": self.target,
            "drop_target_attribute": self.drop_target_attribute,
            "partition": self.partition,
            "balance_seed": self.balance_seed,
            "text_seed": self.text_seed,
            "recipe_version": RECIPE_VERSION,
        }
        signature = sha256([settings, file_stats(tables), sorted(images.items())])
        about = settings | {"texts": "read" if "texts" in tables else "written by the published rule"}
        pictures = [folder / name for name in images]
        return Source("folder", signature, about, lambda: self._load(folder, tables, set(images)), lambda: pictures)

    def _load(self, folder: Path, tables: Mapping[str, Path], images: set[str]) -> dict[str, Faces]:
        if "alphabet" in tables:
            check_alphabet(tables["alphabet"])
        present = self._attributes(tables["attributes"])
        names = present.index
        partition = self._partition(tables["partition"], tables["attributes"], names)
        absent = [name for name in names if name not in images]
        if absent:
            raise UserError(
                f"{folder} lacks {absent[0]}, which {tables['attributes'].name} lists ({len(absent)} such images): "
                "restore them from the archive"
            )
        label = present[self.target].to_numpy()
        rows = {split: chosen for split, chosen in self._rows(partition, label).items() if len(chosen)}
        if "train" not in rows:
            raise UserError(f"{tables['partition']} has no row of partition 0 (train): restore it")
        target = label.astype(np.int64)
        for split, chosen in rows.items():
            check_classes(split, target[chosen], 2, tables["attributes"])
        codes = self._texts(tables.get("texts"), present)
        return {
            split: Faces([folder / name for name in names[chosen]], codes[chosen], target[chosen])
            for split, chosen in rows.items()
        }

    def pack(self, source: Source) -> tuple[Mapping[str, Mapping[str, Any]], dict[str, Any]]:
        content: dict[str, Faces] = source.load()
        pixels = decode_images({split: faces.files for split, faces in content.items()}, self.scratch, read_face)
        splits = {
            split: {
                "img": pixels[split],
                "text": faces.text,
                "target": faces.target,
                "name": np.array([file.stem for file in faces.files]),
            }
            for split, faces in content.items()
        }
        return super().pack(replace(source, load=lambda: splits))

    def shorten(self, content: dict[str, Faces], rows: int) -> tuple[dict[str, Faces], dict[str, int]]:
        splits = {split: faces.keep(sample_rows(faces.target, rows)) for split, faces in content.items()}
        return splits, {split: len(faces.files) for split, faces in content.items()}

    def _attributes(self, path: Path) -> pd.DataFrame:
        """Attributes (image name x attribute), bool."""
        values = read_table(path, header=True)
        if self.target not in values.columns:
            raise UserError(
                f"{path} has no column '{self.target}' (it has {', '.join(map(str, values.columns))}): download it "
                "again, or change dataset.target"
            )
        bad = np.argwhere(~values.isin([-1, 1]).to_numpy())
        if len(bad):
            row, column = bad[0]
            raise UserError(
                f"{path}: row {row + 1} ({values.index[row]}) holds {values.iat[row, column]} in column "
                f"'{values.columns[column]}', expected -1 or 1 ({len(bad)} such cells): correct or download it again"
            )
        return values == 1

    def _partition(self, path: Path, attributes: Path, names: pd.Index) -> np.ndarray:
        """Partition 0 to 2 of the images ``names``, (N,)."""
        table = read_table(path, header=False)
        if table.shape[1] != 1:
            raise UserError(
                f"{path} has {table.shape[1]} columns besides the image name, expected 1: download it again"
            )
        values = table.iloc[:, 0]
        files = ((path, values.index), (attributes, names))
        for (file, listed), (other, others) in (files, files[::-1]):
            lacking = others.difference(listed)
            if len(lacking):
                raise UserError(
                    f"{file} lacks {lacking[0]}, which {other.name} lists ({len(lacking)} such images, "
                    f"{len(listed)} rows and {len(others)}): take both from one source"
                )
        bad = np.flatnonzero(~values.isin([0, 1, 2]))
        if len(bad):
            raise UserError(
                f"{path}: row {bad[0] + 1} ({values.index[bad[0]]}) holds {values.iloc[bad[0]]}, expected 0 (train), 1 "
                f"(validation) or 2 (test) ({len(bad)} such rows): correct it, or download it again"
            )
        return values.reindex(names).to_numpy()

    def _rows(self, partition: np.ndarray, label: np.ndarray) -> dict[str, np.ndarray]:
        """Split -> its sorted rows."""
        order = (0, 2, 1) if self.partition == "official_swapped" else (0, 1, 2)
        rows = {split: np.flatnonzero(partition == part) for split, part in zip(SPLITS, order)}
        if self.partition == "balanced":
            rng = np.random.default_rng(self.balance_seed)
            for split, numbers in rows.items():
                classes = [numbers[label[numbers] == c] for c in (False, True)]
                n = min(map(len, classes))
                rows[split] = np.sort(np.concatenate([rng.permutation(c)[:n] for c in classes]))
        return rows

    def _texts(self, file: Path | None, present: pd.DataFrame) -> np.ndarray:
        """Codes of the texts, (N, 256) uint8."""
        if file:
            texts = read_texts(file)
            lacking = present.index.difference(texts.index)
            if len(lacking):
                raise UserError(f"{file} lacks {lacking[0]} ({len(lacking)} such images): restore or remove it")
            return encode_all(texts.reindex(present.index).tolist(), TEXT_LENGTH, file)
        named = present.drop(columns=self.target) if self.drop_target_attribute else present
        rng = np.random.default_rng(self.text_seed)
        written = attribute_texts(list(named.columns), named.to_numpy(), TEXT_LENGTH, rng)
        return encode_all(written, TEXT_LENGTH, "the attribute names")


def _csv_or_txt(root: Path, stem: str) -> Path:
    existing = [file for suffix in (".csv", ".txt") if (file := root / f"{stem}{suffix}").is_file()]
    if not existing:
        raise UserError(f"no {stem}.csv or {stem}.txt in {root}: download it beside the images")
    return existing[0]
