"""PolyMNIST: five RGB views (3, 28, 28) of a digit; the views of a tuple share only the label.

Sutter, Daunhawer, Vogt, "Generalized Multimodal ELBO", ICLR 2021 (https://github.com/thomassutter/MoPoE); used by DyMo,
ICLR 2026. Two sources are read:

- the official folders, ``<root>/{train,val,test}/m{0..4}/{i}.{digit}.png``, i = running number inside the class;
- MNIST and five photographs, from which the tuples are built by the published recipe
  (:mod:`datasets.polymnist_build`). The original generator ignores its seed and its photographs come only with the
  archive, so that its files cannot be reproduced bit for bit; ours is seeded and the seed is recorded.

Differences from the original loader: rows are sorted by (digit, i) and complete names are compared; the original uses
the order of the file system and compares the last seven characters.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.base import SPLITS
from datasets.batch import Modality
from datasets.polymnist_build import PHOTOGRAPHS, VIEWS, build_split, load_backgrounds, load_photographs
from datasets.readers.mnist import CLASSES, SIDE, download_mnist, mnist_files, read_mnist
from datasets.readers.pictures import UNREADABLE, upright
from datasets.source import Arrays, Source, SourcedDataModule, check_classes, sample_rows, sha256
from datasets.splits import stratified_split
from utils.errors import UserError
from utils.progress import Progress

VAL_SHARE = 0.3
RECIPE_VERSION = 1

Listing = dict[str, dict[str, dict[str, tuple[int, int]]]]

_FILE_NAME = re.compile(r"(\d+)\.(\d)\.png")


def scan_layout(root: Path) -> Listing:
    """The PNG files under ``root`` in the official layout, split -> view -> file name -> (bytes, mtime in ns).

    Empty without any ``<split>/<view>`` folder. Hidden files are ignored.

    Raises:
        UserError: a split has only some of the view folders.
    """
    listing: Listing = {}
    for split in SPLITS:
        present = [view for view in VIEWS if (root / split / view).is_dir()]
        if not present:
            continue
        if absent := [view for view in VIEWS if view not in present]:
            raise UserError(
                f"{root / split} has {', '.join(present)} but no folder {absent[0]}: PolyMNIST needs m0 to m4, restore "
                f"{root / split / absent[0]}"
            )
        listing[split] = {view: _scan(root / split / view) for view in VIEWS}
    return listing


def _scan(folder: Path) -> dict[str, tuple[int, int]]:
    with os.scandir(folder) as entries:
        return {
            e.name: (e.stat().st_size, e.stat().st_mtime_ns)
            for e in entries
            if e.name.endswith(".png") and not e.name.startswith(".")
        }


def sorted_names(folder: Path, views: Mapping[str, Mapping[str, Any]]) -> list[tuple[int, int, str]]:
    """(digit, i, stem) of every tuple of a split, sorted.

    Args:
        folder: of the split, for messages.
        views: view -> file names.

    Raises:
        UserError: no file, a name that is not ``{i}.{digit}.png``, or a file that a folder lacks.
    """
    names = set().union(*views.values())
    if not names:
        raise UserError(f"{folder}/m0 to m4 hold no PNG file: unpack the archive there, or remove the folder")
    for view, files in views.items():
        if lacking := sorted(names - files.keys()):
            owner = next(v for v in views if lacking[0] in views[v])
            raise UserError(
                f"{folder / view} lacks {lacking[0]}, which {folder / owner} has ({len(lacking)} such files): restore "
                "it from the archive, or remove that name from all five folders"
            )
    rows = []
    for name in names:
        match = _FILE_NAME.fullmatch(name)
        if not match:
            raise UserError(
                f"{folder / VIEWS[0] / name} is not named {{i}}.{{digit}}.png: rename it, or remove it from all folders"
            )
        rows.append((int(match[2]), int(match[1]), name.removesuffix(".png")))
    return sorted(rows)


def read_png(path: Path) -> np.ndarray:
    """A 28x28 RGB PNG as (3, 28, 28) uint8.

    Raises:
        UserError: the file is damaged, or has another size or mode.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.size != (SIDE, SIDE) or image.mode != "RGB":
                raise UserError(
                    f"{path} is a {image.size[0]}x{image.size[1]} {image.mode} image, expected 28x28 RGB: restore it "
                    "from the archive"
                )
            return np.asarray(upright(image)).transpose(2, 0, 1)
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read ({error}): restore it from the archive, or download it again") from None


@dataclass(frozen=True)
class Tuples:
    """Tuples in the official folders.

    Attributes:
        rows: split -> (digit, i, stem) of its tuples.
    """

    root: Path
    rows: dict[str, list[tuple[int, int, str]]]

    def target(self, split: str) -> np.ndarray:
        return np.array([digit for digit, _, _ in self.rows[split]])

    def read(self) -> dict[str, Arrays]:
        """The arrays of the packed store."""
        splits = {}
        total = len(VIEWS) * sum(map(len, self.rows.values()))
        with Progress(total=total, desc="reading PNG", unit="file") as progress:
            for split, names in self.rows.items():
                arrays = {view: np.empty((len(names), 3, SIDE, SIDE), dtype=np.uint8) for view in VIEWS}
                for view, array in arrays.items():
                    for row, (_, _, stem) in enumerate(names):
                        array[row] = read_png(self.root / split / view / f"{stem}.png")
                        progress.update()
                stems = np.array([stem for _, _, stem in names])
                splits[split] = {**arrays, "target": self.target(split), "name": stems}
        return splits


def _of_views(key: str, values: Any, low: float, high: float) -> list[float] | None:
    """
    Raises:
        UserError: the values of a key are not one number per view in the range.
    """
    if values is None:
        return None
    numbers = [v for v in values if isinstance(v, (int, float))] if isinstance(values, Sequence) else []
    if len(numbers) != len(VIEWS) or len(values) != len(VIEWS) or not all(low <= v <= high for v in numbers):
        raise UserError(f"dataset.{key}={values}: give {len(VIEWS)} numbers from {low:g} to {high:g}, one per view")
    return [float(v) for v in numbers]


class PolyMNIST(SourcedDataModule):
    """PolyMNIST from the official folders or built from MNIST.

    Args:
        store: folder of the packed store; not the folder of the raw files.
        root: folder with ``{train,val,test}/m{0..4}/{i}.{digit}.png``; any of the splits may be absent.
        mnist: folder with the four idx files (plain or .gz), used where ``root`` has no such layout.
        download: without ``mnist``, fetch MNIST into ``root`` with torchvision.
        backgrounds: folder with five or more pictures for the build, None = ``photographs``.
        photographs: names of bundled pictures, one per view (:func:`datasets.polymnist_build.load_photographs`); None =
            five on which digits are harder to read in some views than in others.
        contrast: of the digit in each view, 0.01 to 1; None = 1, as published.
        deformation: of the digit in each view, in pixels; None = 0, as published.
        build_seed: of permutations, crops and deformations.
        split_seed: of the division of the 10,000 MNIST test tuples into 3,000 val and 7,000 test.
        **kwargs: see :class:`datasets.base.MultimodalDataModule`.

    Raises:
        UserError: ``contrast`` or ``deformation`` is not a number per view in its range, or both ``photographs`` and
            ``backgrounds`` are given.
    """

    paths = ("root", "mnist", "backgrounds")
    folders = ("mnist", "backgrounds")
    resources = ("download",)
    later = ("photographs", "contrast", "deformation")
    name = "PolyMNIST"
    modalities = [Modality(view, "image", (3, SIDE, SIDE)) for view in VIEWS]
    class_names = [str(digit) for digit in range(CLASSES)]
    task = "multiclass"

    def __init__(
        self,
        *,
        store: str,
        root: str | None = None,
        mnist: str | None = None,
        download: bool = False,
        backgrounds: str | None = None,
        photographs: Sequence[str] | None = None,
        contrast: Sequence[float] | None = None,
        deformation: Sequence[float] | None = None,
        build_seed: int = 42,
        split_seed: int = 2025,
        **kwargs: Any,
    ) -> None:
        super().__init__(store, **kwargs)
        self.root = None if root is None else Path(root)
        self.mnist = None if mnist is None else Path(mnist)
        self.download, self.backgrounds = download, backgrounds
        if photographs is not None and backgrounds:
            raise UserError("dataset.photographs and dataset.backgrounds are both given: set one of them to null")
        if isinstance(photographs, str) or not isinstance(photographs, Sequence | None):
            raise UserError(f"dataset.photographs={photographs}: give a list of {len(VIEWS)} names, one per view")
        self.photographs = PHOTOGRAPHS if photographs is None else tuple(photographs)
        self.contrast = _of_views("contrast", contrast, 0.01, 1.0)
        self.deformation = _of_views("deformation", deformation, 0.0, SIDE / 4)
        self.is_changed = photographs is not None or bool(self.contrast or self.deformation)  # the published recipe
        self.build_seed, self.split_seed = build_seed, split_seed

    def find_source(self) -> Source:
        """The official folders where any exist, else MNIST.

        Raises:
            UserError: neither exists; names what was looked for. Or the folders exist, and settings of the build are
                given.
        """
        listing = scan_layout(self.root) if self.root else {}
        if self.root and listing:
            if self.is_changed:
                raise UserError(
                    "dataset.photographs, contrast and deformation apply to tuples that are built from MNIST, but "
                    f"{self.root} has the official files: set dataset.root=null and dataset.mnist, or leave them out"
                )
            files = [
                [split, view, file, *stat]
                for split, views in listing.items()
                for view, names in views.items()
                for file, stat in sorted(names.items())
            ]
            root = self.root
            about = {"root": str(root), "splits": list(listing)}
            return Source("folder", sha256(files), about, lambda: self._list_folder(root, listing))
        if self.mnist:
            return self._mnist_source(self.mnist)
        if self.download and self.root:
            return self._mnist_source(download_mnist(self.root))
        if self.is_changed:
            raise UserError(
                f"{self.name} with photographs, contrast or deformation is built from MNIST: set dataset.mnist to a "
                "folder with the four MNIST files, or set dataset.download=true and dataset.root"
            )
        place = self.root or "dataset.root (null)"
        raise UserError(
            f"no PolyMNIST: looked for {place}/{{train,val,test}}/m0 to m4 and for MNIST (dataset.mnist is null, "
            f"dataset.download is {str(self.download).lower()}): unpack PolyMNIST.zip into dataset.root, or set "
            "dataset.mnist to a folder with the four MNIST files, or set dataset.download=true and dataset.root"
        )

    def _list_folder(self, root: Path, listing: Listing) -> Tuples:
        rows = {split: sorted_names(root / split, views) for split, views in listing.items()}
        tuples = Tuples(root, rows)
        for split in rows:
            check_classes(split, tuples.target(split), CLASSES, root / split)
        return tuples

    def pack(self, source: Source) -> tuple[Mapping[str, Mapping[str, Any]], dict[str, Any]]:
        content = source.load()
        load = content.read if isinstance(content, Tuples) else lambda: content
        return super().pack(replace(source, load=load))

    def shorten(self, content: Any, rows: int) -> tuple[Any, dict[str, int]] | None:
        if not isinstance(content, Tuples):
            return super().shorten(content, rows)
        chosen = {
            split: [names[i] for i in sample_rows(content.target(split), rows)] for split, names in content.rows.items()
        }
        return replace(content, rows=chosen), {split: len(names) for split, names in content.rows.items()}

    def _mnist_source(self, folder: Path) -> Source:
        files = mnist_files(folder)
        sizes = {path.name: path.stat().st_size for path in files.values()}
        return self.built_source("mnist", {"mnist": sizes}, lambda pictures: self._build(files, pictures))

    def built_source(
        self,
        kind: str,
        about: Mapping[str, Any],
        build: Callable[[list[np.ndarray]], dict[str, Arrays]],
    ) -> Source:
        """A source of tuples that ``build`` makes from the photographs of the five views."""
        pictures = load_backgrounds(self.backgrounds) if self.backgrounds else load_photographs(self.photographs)
        harder = {"contrast": self.contrast, "deformation": self.deformation}
        settings = {
            **about,
            **{key: values for key, values in harder.items() if values},  # older stores have no such keys
            "build_seed": self.build_seed,
            "split_seed": self.split_seed,
            "recipe_version": RECIPE_VERSION,
            "backgrounds": {name: sha256(picture) for name, picture in pictures.items()},
        }
        signature = sha256([kind, settings, list(pictures)])
        return Source(kind, signature, settings, lambda: build(list(pictures.values())))

    def build(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        pictures: list[np.ndarray],
        stream: np.random.SeedSequence,
        pairings: int = 1,
    ) -> Arrays:
        """One split, see :func:`datasets.polymnist_build.build_tuples`."""
        return build_split(
            images,
            labels,
            pictures,
            np.random.default_rng(stream),
            pairings=pairings,
            contrast=self.contrast,
            deformation=self.deformation,
        )

    def _build(self, files: Mapping[str, Path], pictures: list[np.ndarray]) -> dict[str, Arrays]:
        built = {}
        for part, stream in zip(("train", "test"), np.random.SeedSequence(self.build_seed).spawn(2)):
            images, labels = read_mnist(files, part)
            check_classes(part, labels, CLASSES, files[f"{part} labels"])
            built[part] = self.build(images, labels, pictures, stream)
        target = built["test"]["target"]
        n_val = round(VAL_SHARE * len(target))
        parts = stratified_split(target, (n_val, len(target) - n_val), self.split_seed)
        val, test = ({key: array[rows] for key, array in built["test"].items()} for rows in parts)
        return {"train": built["train"], "val": val, "test": test}
