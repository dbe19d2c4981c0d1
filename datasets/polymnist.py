"""PolyMNIST: five RGB views (3, 28, 28) of a digit; the views of a tuple share nothing but the label.

Sutter, Daunhawer, Vogt, "Generalized Multimodal ELBO", ICLR 2021 (https://github.com/thomassutter/MoPoE); used by DyMo,
ICLR 2026. Two sources are read:

- the official folders, ``<root>/{train,val,test}/m{0..4}/{i}.{digit}.png``, i = running number inside the class;
- MNIST and five photographs, from which the tuples are built here by the published recipe. The original generator
  ignores its seed and its photographs come only with the archive, so its files cannot be had again bit for bit; ours
  is seeded and the seed is recorded.

What differs from the original loader: rows are sorted by (digit, i) and whole names are compared, where it takes the
order of the file system and compares the last seven characters.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from tqdm import tqdm

from datasets.base import SPLITS
from datasets.batch import Modality
from datasets.missingness import Scenario, mask_hash
from datasets.missingness.mask_files import write_dymo_csv
from datasets.readers.mnist import CLASSES, SIDE, _download_mnist, mnist_files, read_mnist
from datasets.readers.pictures import open_picture, upright
from datasets.source import Arrays, Source, SourcedDataModule, check_classes, sha256
from datasets.splits import stratified_split
from utils.errors import UserError
from utils.files import natural_key

VIEWS = tuple(f"m{i}" for i in range(5))
VAL_SHARE = 0.3
RECIPE_VERSION = 1

Listing = dict[str, dict[str, dict[str, tuple[int, int]]]]

_FILE_NAME = re.compile(r"(\d+)\.(\d)\.png")
_BACKGROUND_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def build_tuples(
    images: np.ndarray,
    labels: np.ndarray,
    backgrounds: Sequence[np.ndarray],
    rng: np.random.Generator,
    *,
    pairings: int = 1,
) -> tuple[Arrays, np.ndarray, np.ndarray]:
    """The generation recipe: each digit inverts a random crop of the photograph of its view.

    For each class and view a fresh permutation of the images of the class; for each image a corner drawn uniformly
    from [0, W - 28) x [0, H - 28); where the image is above 128 all three channels of the crop become 255 - value.
    The draws come in this order: class, view, (permutation, corners as x, y pairs).

    Args:
        images: (N, 28, 28) uint8.
        labels: (N,) integers 0 to 9.
        backgrounds: five (H, W, 3) uint8 with H, W > 28; the i-th belongs to view ``m{i}``.
        rng: takes all the draws.
        pairings: permutations of each class, one after the other; the running numbers go on.

    Returns:
        Views ``m0`` to ``m4``, each (pairings N, 3, 28, 28) uint8; target, (pairings N,) int64; names ``{i}.{digit}``.
        Rows are sorted by (digit, i).
    """
    sources: dict[str, list[np.ndarray]] = {view: [] for view in VIEWS}
    corners: dict[str, list[np.ndarray]] = {view: [] for view in VIEWS}
    names: list[str] = []
    target: list[np.ndarray] = []
    for digit in range(CLASSES):
        members = np.flatnonzero(labels == digit)
        n = pairings * len(members)
        names.extend(f"{i}.{digit}" for i in range(n))
        target.append(np.full(n, digit, dtype=np.int64))
        for view, background in zip(VIEWS, backgrounds):
            height, width, _ = background.shape
            for _ in range(pairings):
                sources[view].append(rng.permutation(members))
                corners[view].append(rng.integers(0, [width - SIDE, height - SIDE], size=(len(members), 2)))
    inverting = np.where(images > 128, 255, 0).astype(np.uint8)
    arrays = {}
    for view, background in zip(tqdm(VIEWS, desc="building tuples", unit="view", leave=False), backgrounds):
        channels_first = np.ascontiguousarray(background.transpose(2, 0, 1))
        crops = np.moveaxis(sliding_window_view(channels_first, (SIDE, SIDE), axis=(1, 2)), 0, 2)
        x, y = np.concatenate(corners[view]).T
        patches = crops[y, x]
        patches ^= inverting[np.concatenate(sources[view])][:, None]  # p ^ 255 = 255 - p
        arrays[view] = patches
    return arrays, np.concatenate(target), np.array(names)


def load_backgrounds(folder: str | Path | None) -> dict[str, np.ndarray]:
    """Five photographs, name -> (H, W, 3) uint8, in the order of the views.

    Args:
        folder: the first five image files by name (2 before 10); None = photographs that scikit-image and scikit-learn
            bring along (chosen so that the views differ in how well a digit can be read).

    Raises:
        UserError: no folder, fewer than five images, an unreadable one, or one not larger than 28 x 28.
    """
    if folder is None:
        from skimage import data
        from sklearn.datasets import load_sample_image

        return {
            "retina": data.retina(),
            "coffee": data.coffee(),
            "flower": load_sample_image("flower.jpg"),
            "china": load_sample_image("china.jpg"),
            "immunohistochemistry": data.immunohistochemistry(),
        }
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"background folder {folder} does not exist: name an existing one, or null for bundled pictures"
        )
    files = [f for f in folder.iterdir() if f.suffix.lower() in _BACKGROUND_SUFFIXES and not f.name.startswith(".")]
    files.sort(key=lambda file: natural_key(file.name))
    if len(files) < len(VIEWS):
        raise UserError(
            f"background folder {folder} holds {len(files)} images, {len(VIEWS)} are needed (one for each view): "
            "add some, or set dataset.backgrounds=null for bundled pictures"
        )
    pictures = {}
    for file in files[: len(VIEWS)]:
        try:
            picture = np.asarray(open_picture(file, 3))
        except _UNREADABLE as error:
            raise UserError(f"background {file} cannot be read ({error}): restore or remove it") from None
        if min(picture.shape[:2]) <= SIDE:
            raise UserError(
                f"background {file} is {picture.shape[1]}x{picture.shape[0]} pixels: width and height must be above "
                f"{SIDE}, replace it by a larger picture"
            )
        pictures[file.name] = picture
    return pictures


def scan_layout(root: Path) -> Listing:
    """The PNG files under ``root`` in the official layout, split -> view -> file name -> (bytes, mtime in ns).

    Empty where there is no ``<split>/<view>`` folder at all. Hidden files are ignored.

    Raises:
        UserError: a split has some view folders but not all.
    """
    listing: Listing = {}
    for split in SPLITS:
        there = [view for view in VIEWS if (root / split / view).is_dir()]
        if not there:
            continue
        if absent := [view for view in VIEWS if view not in there]:
            raise UserError(
                f"{root / split} has {', '.join(there)} but no folder {absent[0]}: PolyMNIST needs m0 to m4, restore "
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
        UserError: no file, a name that is not ``{i}.{digit}.png``, or a tuple that one of the folders lacks.
    """
    every = set().union(*views.values())
    if not every:
        raise UserError(f"{folder}/m0 to m4 hold no PNG file: unpack the archive there, or remove the folder")
    for view, files in views.items():
        if lacking := sorted(every - files.keys()):
            owner = next(v for v in views if lacking[0] in views[v])
            raise UserError(
                f"{folder / view} lacks {lacking[0]}, which {folder / owner} has ({len(lacking)} such files): restore "
                "it from the archive, or remove that name from all five folders"
            )
    rows = []
    for name in every:
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
        UserError: damaged, or of another size or mode.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.size != (SIDE, SIDE) or image.mode != "RGB":
                raise UserError(
                    f"{path} is a {image.size[0]}x{image.size[1]} {image.mode} image, expected 28x28 RGB: restore it "
                    "from the archive"
                )
            return np.asarray(upright(image)).transpose(2, 0, 1)
    except _UNREADABLE as error:
        raise UserError(f"{path} cannot be read ({error}): restore it from the archive, or download it again") from None


class PolyMNIST(SourcedDataModule):
    """PolyMNIST from the official folders or built from MNIST.

    Args:
        store: folder of the packed store; not the folder of the raw files.
        root: folder with ``{train,val,test}/m{0..4}/{i}.{digit}.png``; any of the splits may be absent.
        mnist: folder with the four idx files (plain or .gz), used where ``root`` has no such layout.
        download: without ``mnist``, fetch MNIST into ``root`` with torchvision.
        backgrounds: folder with five or more pictures for the build, None = bundled ones.
        build_seed: of permutations and crops.
        split_seed: of the division of the 10,000 MNIST test tuples into 3,000 val and 7,000 test.
        **kwargs: see :class:`MultimodalDataModule`.
    """

    paths = ("root", "mnist", "backgrounds")
    folders = ("mnist", "backgrounds")
    resources = ("download",)
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
        build_seed: int = 42,
        split_seed: int = 2025,
        **kwargs: Any,
    ) -> None:
        super().__init__(store, **kwargs)
        self.root = None if root is None else Path(root)
        self.mnist = None if mnist is None else Path(mnist)
        self.download, self.backgrounds = download, backgrounds
        self.build_seed, self.split_seed = build_seed, split_seed

    def find_source(self) -> Source:
        """The raw data to pack: the official folders where there are any, else MNIST.

        Raises:
            UserError: neither is there; names what was looked for.
        """
        listing = scan_layout(self.root) if self.root else {}
        if self.root and listing:
            files = [
                [split, view, file, *stat]
                for split, views in listing.items()
                for view, names in views.items()
                for file, stat in sorted(names.items())
            ]
            root = self.root
            about = {"root": str(root), "splits": list(listing)}
            return Source("folder", sha256(files), about, lambda: self._read_folder(root, listing))
        if self.mnist:
            return self._mnist_source(self.mnist)
        if self.download and self.root:
            return self._mnist_source(_download_mnist(self.root))
        place = self.root or "dataset.root (null)"
        raise UserError(
            f"no PolyMNIST: looked for {place}/{{train,val,test}}/m0 to m4 and for MNIST (dataset.mnist is null, "
            f"dataset.download is {str(self.download).lower()}): unpack PolyMNIST.zip into dataset.root, or set "
            "dataset.mnist to a folder with the four MNIST files, or set dataset.download=true and dataset.root"
        )

    def _read_folder(self, root: Path, listing: Listing) -> dict[str, Arrays]:
        rows = {split: sorted_names(root / split, views) for split, views in listing.items()}
        targets = {split: np.array([digit for digit, _, _ in names]) for split, names in rows.items()}
        for split, target in targets.items():
            check_classes(split, target, CLASSES, root / split)
        splits = {}
        with tqdm(total=len(VIEWS) * sum(map(len, rows.values())), desc="reading PNG", unit="file") as progress:
            for split, names in rows.items():
                arrays = {view: np.empty((len(names), 3, SIDE, SIDE), dtype=np.uint8) for view in VIEWS}
                for view, array in arrays.items():
                    for row, (_, _, stem) in enumerate(names):
                        array[row] = read_png(root / split / view / f"{stem}.png")
                        progress.update()
                splits[split] = {**arrays, "target": targets[split], "name": np.array([stem for _, _, stem in names])}
        return splits

    def _mnist_source(self, folder: Path) -> Source:
        files = mnist_files(folder)
        sizes = {path.name: path.stat().st_size for path in files.values()}
        return self._built_source("mnist", {"mnist": sizes}, lambda pictures: self._build(files, pictures))

    def _built_source(
        self,
        kind: str,
        about: Mapping[str, Any],
        build: Callable[[list[np.ndarray]], dict[str, Arrays]],
    ) -> Source:
        """A source made by :func:`build_tuples`; ``build`` takes the photographs of the five views."""
        pictures = load_backgrounds(self.backgrounds)
        settings = {
            **about,
            "build_seed": self.build_seed,
            "split_seed": self.split_seed,
            "recipe_version": RECIPE_VERSION,
            "backgrounds": {name: sha256(picture) for name, picture in pictures.items()},
        }
        signature = sha256([kind, settings, list(pictures)])
        return Source(kind, signature, settings, lambda: build(list(pictures.values())))

    def _build(self, files: Mapping[str, Path], pictures: list[np.ndarray]) -> dict[str, Arrays]:
        built = {}
        for part, stream in zip(("train", "test"), np.random.SeedSequence(self.build_seed).spawn(2)):
            images, labels = read_mnist(files, part)
            check_classes(part, labels, CLASSES, files[f"{part} labels"])
            built[part] = pack(*build_tuples(images, labels, pictures, np.random.default_rng(stream)))
        target = built["test"]["target"]
        n_val = round(VAL_SHARE * len(target))
        parts = stratified_split(target, (n_val, len(target) - n_val), self.split_seed)
        val, test = ({key: array[rows] for key, array in built["test"].items()} for rows in parts)
        return {"train": built["train"], "val": val, "test": test}

    def write_official_layout(self, folder: str | Path, scenarios: Sequence[Scenario] = ()) -> None:
        """Write the packed splits as the folders that the original code reads.

        Args:
            folder: new or empty.
            scenarios: masks to write beside them, see :meth:`write_masks`.

        Raises:
            UserError: no packed store, or a folder with content.
        """
        folder = Path(folder).resolve()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} is not empty: name a new folder, nothing is overwritten")
        splits = {name: self.split(name) for name in SPLITS if self.has_split(name)}
        if not splits:
            raise UserError(f"no packed data in {self.store.folder}: run the stage 'prepare' first (stages=[prepare])")
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            with tqdm(total=len(VIEWS) * sum(map(len, splits.values())), desc="writing PNG", unit="file") as progress:
                for name, split in splits.items():
                    stems = split.names()
                    for view in VIEWS:
                        (temporary / name / view).mkdir(parents=True)
                        pixels = split.memory_map(view).permute(0, 2, 3, 1).numpy()
                        for stem, image in zip(stems, pixels):
                            Image.fromarray(image).save(temporary / name / view / f"{stem}.png", compress_level=1)
                            progress.update()
            self.write_masks(temporary, scenarios)
            if folder.exists():
                folder.rmdir()
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def write_masks(self, folder: str | Path, scenarios: Sequence[Scenario]) -> None:
        """Write masks as ``<folder>/missing_modality/missing_<split>_<scenario>.csv``, for every packed split.

        Rows are in the order of the packed store (digit, i). The names are those of the original repository, which
        have no room for the generator: that is in a JSON file beside each.

        Raises:
            UserError: a scenario without such a name, or another mask is there already.
        """
        for split in SPLITS if scenarios else ():
            if not self.has_split(split):
                continue
            for scenario in scenarios:
                mask = self.mask(split, scenario)
                about = {
                    "scenario": scenario.name,
                    "generator": scenario.protocol,
                    "missing_seed": self.missing_seed,
                    "shape": list(mask.shape),
                    "sha256_16": mask_hash(mask),
                }
                path = Path(folder) / "missing_modality" / f"missing_{split}_{scenario.dymo_name}.csv"
                side_car = path.with_suffix(path.suffix + ".json")
                if path.exists() and (not side_car.exists() or json.loads(side_car.read_text()) != about):
                    raise UserError(f"{path} holds another mask: remove it, or write to another folder")
                path.parent.mkdir(parents=True, exist_ok=True)
                write_dymo_csv(path, mask)
                side_car.write_text(json.dumps(about, indent=2) + "\n")


def pack(views: Arrays, target: np.ndarray, names: np.ndarray) -> Arrays:
    """The result of :func:`build_tuples` under the names of the packed store."""
    return {**views, "target": target, "name": names}
