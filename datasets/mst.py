"""MST, MNIST-SVHN-Text: a grey digit (1, 28, 28), a house number in colour (3, 32, 32) and the digit's name (8, 71).

Sutter, Daunhawer, Vogt, "Generalized Multimodal ELBO", ICLR 2021 (https://github.com/thomassutter/MoPoE); used by DyMo,
ICLR 2026. The modalities share nothing but the label: images are paired at random inside a class, twenty times over,
which makes 1,121,360 training pairs and 200,000 of the test images, 60,000 of them for validation. The store holds
every image once. Sources, in the order in which they are looked for:

- the prepared folders of the original, ``<root>/MNIST/processed/{training,val,test}.pt``,
  ``<root>/SVHN/{train,val,test}_32x32.mat`` and, where there are any, the pairs in
  ``<root>/MNIST_SVHN/processed/{train,val,test}-ms-{mnist,svhn}-idx.pt``;
- the downloads: the four MNIST files, and a folder with ``train_32x32.mat`` and ``test_32x32.mat`` of SVHN (cropped
  digits), or with RGB photographs of digits in class folders, ``{0..9}/*.jpg``, a fifth of them for the test (a
  photographed object or person may be in both parts).

What differs from the original: the sort before pairing is stable; the rule that parts the test pairs into validation
and test was not published, ours is by class and seeded; the start column of a word is drawn once for validation and
test, by the row, and anew each epoch for training (``reshuffle_pairs``), where the original draws at every access, test
included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from datasets.base import SPLITS
from datasets.batch import Modality
from datasets.polymnist import VAL_SHARE
from datasets.readers.images import ImageReader, load_images
from datasets.readers.mnist import CLASSES, mnist_files, read_mnist
from datasets.readers.text import WIDTH, check_alphabet, place_digit_words
from datasets.source import Arrays, Source, SourcedDataModule, check_classes, file_stats, sha256
from datasets.splits import stratified_split
from utils.errors import UserError
from utils.files import natural_key

RECIPE_VERSION = 1
TEXT_LENGTH = 8
SVHN_SIDE = 32
PHOTO_TEST_SHARE = 0.2
MNIST_PT = {"train": "training.pt", "val": "val.pt", "test": "test.pt"}
_PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png"}

Items = tuple[np.ndarray, np.ndarray]  # images (N, C, H, W) uint8, labels (N,) int64


def pair_by_class(
    labels_a: np.ndarray, labels_b: np.ndarray, *, pairings: int = 20, max_per_class: int = 10_000, seed: int = 2025
) -> tuple[np.ndarray, np.ndarray]:
    """Random pairs of items of the same class.

    Of each class the first n items of both sides take part, n the number of the rarer side and at most
    ``max_per_class``; they are permuted ``pairings`` times, first those of a, then those of b.

    Args:
        labels_a, labels_b: (N,) and (N',), 0 to 9.
        seed: of the permutations (drawn by torch, as in the original).

    Returns:
        Row numbers in a and in b, (pairs,) each, class after class.
    """
    generator = torch.Generator().manual_seed(seed)
    rows_a, rows_b = [], []
    for digit in range(CLASSES):
        a, b = np.flatnonzero(labels_a == digit), np.flatnonzero(labels_b == digit)
        n = min(len(a), len(b), max_per_class)
        for _ in range(pairings):
            rows_a.append(a[torch.randperm(n, generator=generator).numpy()])
            rows_b.append(b[torch.randperm(n, generator=generator).numpy()])
    return np.concatenate(rows_a), np.concatenate(rows_b)


def read_mat(path: Path) -> Items:
    """A file of SVHN's second format: images (N, 3, 32, 32) uint8, labels (N,) int64, with 0 where the file says 10.

    Raises:
        UserError: unreadable, other shapes, unequal counts, or a label outside 1 to 10.
    """
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=("X", "y"))
        x, y = content["X"], content["y"].reshape(-1)
    except KeyError as error:
        raise UserError(f"{path} has no variable {error}: take the cropped digits of SVHN (format 2)") from None
    except Exception as error:  # a file can be broken in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read as a MATLAB file ({reason}): download it again") from None
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[:3] != (SVHN_SIDE, SVHN_SIDE, 3):
        raise UserError(
            f"{path} holds X {x.shape} {x.dtype}, expected (32, 32, 3, N) uint8: take the cropped digits of SVHN "
            "(format 2)"
        )
    if len(y) != x.shape[3]:
        raise UserError(f"{path} holds {x.shape[3]} images but {len(y)} labels: download it again")
    bad = np.flatnonzero((y < 1) | (y > 10))
    if len(bad):
        raise UserError(
            f"{path} holds the label {y[bad[0]]} in row {bad[0] + 1}, expected 1 to 10 (10 stands for zero): download "
            "it again"
        )
    return np.ascontiguousarray(x.transpose(3, 2, 0, 1)), y.astype(np.int64) % 10


def _read_pt(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file can be broken in any way
        raise UserError(f"{path} cannot be read ({type(error).__name__}): restore or remove it") from None


def read_mnist_pt(path: Path) -> Items:
    """MNIST as torchvision once stored it, a pair of tensors: images (N, 1, 28, 28) uint8, labels (N,) int64.

    Raises:
        UserError: unreadable, other shapes, unequal counts, or a label outside 0 to 9.
    """
    content = _read_pt(path)
    pair = content if isinstance(content, tuple | list) else ()
    if len(pair) != 2 or not all(isinstance(part, torch.Tensor) for part in pair):
        raise UserError(f"{path} holds no pair of tensors (images, labels): restore it")
    images, labels = pair[0].numpy(), pair[1].numpy()
    if images.dtype != np.uint8 or images.shape[1:] != (28, 28) or labels.shape != (len(images),):
        raise UserError(
            f"{path} holds {images.shape} {images.dtype} and labels {labels.shape}, expected (N, 28, 28) uint8 and "
            "(N,): restore it"
        )
    bad = np.flatnonzero((labels < 0) | (labels >= CLASSES))
    if len(bad):
        raise UserError(f"{path} holds the label {labels[bad[0]]} in row {bad[0] + 1}, expected 0 to 9: restore it")
    return images[:, None], labels.astype(np.int64)


def photo_files(folder: Path) -> list[tuple[int, Path]]:
    """(digit, file) of the photographs in ``<folder>/{0..9}/``, sorted by digit and by name (2 before 10).

    Raises:
        UserError: a class folder is absent or holds no photograph.
    """
    found: list[tuple[int, Path]] = []
    for digit in range(CLASSES):
        place = folder / str(digit)
        names = place.iterdir() if place.is_dir() else ()
        files = [f for f in names if f.suffix.lower() in _PHOTO_SUFFIXES and not f.name.startswith(".")]
        files.sort(key=lambda file: natural_key(file.name))
        if not files:
            raise UserError(
                f"{place} holds no photograph (.jpg or .png) of the digit {digit}: put some there; each of 0 to 9 "
                "needs a folder"
            )
        found.extend((digit, f) for f in files)
    return found


class MST(SourcedDataModule):
    """MNIST-SVHN-Text.

    Args:
        store: folder of the packed store; not the folder of the raw files.
        root: the prepared folders of the original.
        mnist: folder with the four idx files (plain or .gz), used where ``root`` has no such folders.
        svhn: folder with ``train_32x32.mat`` and ``test_32x32.mat``, or with photographs in ``{0..9}/``.
        download: without ``mnist`` or ``svhn``, fetch them into ``root`` with torchvision.
        pairings, max_per_class, pair_seed: see :func:`pair_by_class`.
        split_seed: of the division of the test pairs into validation (30 %) and test, and of photographs.
        text_seed: of the start columns of the words.
        disjoint_instances: divide the test images before they are paired, so that no image is both in validation and
            test (in the published pairs it is).
        demo: ``root`` holds demo data, whose counts are not those of the real ones.
        **kwargs: see :class:`MultimodalDataModule`.
    """

    paths = ("root", "mnist", "svhn")
    folders = ("mnist", "svhn")
    resources = ("download",)
    name = "MST"
    modalities = [
        Modality("mnist", "image", (1, 28, 28)),
        Modality("svhn", "image", (3, SVHN_SIDE, SVHN_SIDE)),
        Modality("text", "text", (TEXT_LENGTH, WIDTH)),
    ]
    class_names = [str(digit) for digit in range(CLASSES)]
    task = "multiclass"

    def __init__(
        self,
        *,
        store: str,
        root: str | None = None,
        mnist: str | None = None,
        svhn: str | None = None,
        download: bool = False,
        pairings: int = 20,
        max_per_class: int = 10_000,
        pair_seed: int = 2025,
        split_seed: int = 2025,
        text_seed: int = 2025,
        disjoint_instances: bool = False,
        demo: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(store, **kwargs)
        for key, value in (("pairings", pairings), ("max_per_class", max_per_class)):
            if value < 1:
                raise UserError(f"dataset.{key}={value}: it must be 1 or more")
        self.root = None if root is None else Path(root)
        self.mnist = None if mnist is None else Path(mnist)
        self.svhn = None if svhn is None else Path(svhn)
        self.download, self.demo = download, demo
        self.pairings, self.max_per_class, self.disjoint_instances = pairings, max_per_class, disjoint_instances
        self.pair_seed, self.split_seed, self.text_seed = pair_seed, split_seed, text_seed

    def find_source(self) -> Source:
        """The raw data to pack: the prepared folders where there are any, else the downloads.

        Raises:
            UserError: neither is there; names what was looked for.
        """
        if self.demo:
            assert self.root is not None, "the folder of the demo data is handed over as root"
            return self._folder_source(self.root)
        if self.root and any((self.root / part).is_dir() for part in ("MNIST/processed", "SVHN", "MNIST_SVHN")):
            return self._folder_source(self.root)
        mnist, svhn = self.mnist, self.svhn
        if self.download and self.root:
            mnist, svhn = _download(self.root / "raw", mnist, svhn)
        if mnist and svhn:
            return self._raw_source(mnist, svhn)
        raise UserError(
            f"no MST: looked for {self.root or 'dataset.root (null)'}/MNIST/processed and SVHN, and for downloads "
            f"(dataset.mnist is {mnist or 'null'}, dataset.svhn is {svhn or 'null'}, dataset.download is "
            f"{str(self.download).lower()}): set dataset.mnist to a folder with the four MNIST files and dataset.svhn "
            "to one with train_32x32.mat and test_32x32.mat, or set dataset.download=true, or (to try it) "
            "dataset.demo=true"
        )

    def _source(self, kind: str, files: Mapping[str, Path], load: Any) -> Source:
        settings = {
            "pairings": self.pairings,
            "max_per_class": self.max_per_class,
            "pair_seed": self.pair_seed,
            "split_seed": self.split_seed,
            "text_seed": self.text_seed,
            "disjoint_instances": self.disjoint_instances,
            "recipe_version": RECIPE_VERSION,
        }
        return Source(kind, sha256([kind, settings, file_stats(files)]), settings, load)

    # ---- the prepared folders ----------------------------------------------------------------------------------------

    def _folder_source(self, root: Path) -> Source:
        items = {}
        for split in SPLITS:
            pair = {"mnist": root / "MNIST/processed" / MNIST_PT[split], "svhn": root / f"SVHN/{split}_32x32.mat"}
            there = {side: file for side, file in pair.items() if file.is_file()}
            if len(there) == 1:
                ((side, file),) = there.items()
                absent = next(f for s, f in pair.items() if s != side)
                raise UserError(f"{file} is there but {absent} is not: restore it, or remove {file}")
            if there:
                items[split] = pair
        if "val" not in items and "test" in items:
            items["val"] = items["test"]  # the published ones are copies
        if not items:
            raise UserError(
                f"{root} has no MNIST/processed/{{training,val,test}}.pt with SVHN/{{train,val,test}}_32x32.mat: "
                "restore them, or name a dataset.root without these folders to build from the downloads"
            )
        pairs: dict[str, dict[str, Path]] = {}
        for split in items:
            wanted = {s: root / f"MNIST_SVHN/processed/{split}-ms-{s}-idx.pt" for s in ("mnist", "svhn")}
            pairs[split] = {side: file for side, file in wanted.items() if file.is_file()}
            if len(pairs[split]) == 1:
                absent = next(f for s, f in wanted.items() if s not in pairs[split])
                raise UserError(f"{absent} is not there, its partner is: restore it, or remove both to pair anew")
        if "test" in items and bool(pairs["val"]) != bool(pairs["test"]):
            one, other = ("val", "test") if pairs["val"] else ("test", "val")
            raise UserError(
                f"{root}/MNIST_SVHN/processed has {one}-ms-mnist-idx.pt but no {other}-ms-mnist-idx.pt: restore it, or "
                "remove those of both to divide anew"
            )
        files = {f"{split} {side}": f for split, pair in items.items() for side, f in pair.items()}
        files |= {f"{split} {side} pairs": f for split, pair in pairs.items() for side, f in pair.items()}
        if (root / "alphabet.json").is_file():
            files["alphabet"] = root / "alphabet.json"
        return self._source("folder", files, lambda: self._read_folder(items, pairs, files.get("alphabet")))

    def _read_folder(
        self,
        files: Mapping[str, Mapping[str, Path]],
        pairs: Mapping[str, Mapping[str, Path]],
        alphabet: Path | None,
    ) -> dict[str, Arrays]:
        if alphabet:
            check_alphabet(alphabet)
        splits: dict[str, Arrays] = {}
        for split, pair in files.items():
            if split in splits:
                continue
            items = (read_mnist_pt(pair["mnist"]), read_mat(pair["svhn"]))
            if pairs[split]:
                splits[split] = self._pack(split, *items, self._read_pairs(pairs[split], *items))
            elif split == "train" or "test" not in files:
                splits[split] = self._pack(split, *items, self._pair(*items))
            else:  # val and test are parts of the pairs of the test images
                items = (read_mnist_pt(files["test"]["mnist"]), read_mat(files["test"]["svhn"]))
                splits |= self._divide(*items)
        return {split: splits[split] for split in SPLITS if split in splits}

    @staticmethod
    def _read_pairs(files: Mapping[str, Path], mnist: Items, svhn: Items) -> tuple[np.ndarray, np.ndarray]:
        rows = {}
        for (side, file), (_, labels) in zip(files.items(), (mnist, svhn)):
            index = _read_pt(file)
            if not isinstance(index, torch.Tensor) or index.ndim != 1 or index.is_floating_point() or not len(index):
                raise UserError(f"{file} holds no vector of row numbers: restore it, or remove both files to pair anew")
            rows[side] = index.numpy().astype(np.int64)
            bad = np.flatnonzero((rows[side] < 0) | (rows[side] >= len(labels)))
            if len(bad):
                raise UserError(
                    f"{file} names the item {rows[side][bad[0]]} in row {bad[0] + 1}, there are {len(labels)}: it was "
                    "made for other data, remove both files to pair anew"
                )
        (file_a, a), (file_b, b) = ((files[side], rows[side]) for side in ("mnist", "svhn"))
        if len(a) != len(b):
            raise UserError(
                f"{file_a} has {len(a)} rows but {file_b} {len(b)}: restore them, or remove both to pair anew"
            )
        bad = np.flatnonzero(mnist[1][a] != svhn[1][b])
        if len(bad):
            raise UserError(
                f"{file_a} pairs digits of unlike classes ({mnist[1][a[bad[0]]]} with {svhn[1][b[bad[0]]]} in row "
                f"{bad[0] + 1}, {len(bad)} such rows): it was made for other data, remove both files to pair anew"
            )
        return a, b

    # ---- the downloads -----------------------------------------------------------------------------------------------

    def _raw_source(self, mnist: Path, svhn: Path) -> Source:
        files = mnist_files(mnist)
        mats = {part: svhn / f"{part}_32x32.mat" for part in ("train", "test")}
        there = [part for part, file in mats.items() if file.is_file()]
        if len(there) == 1:
            absent = mats["test" if there == ["train"] else "train"]
            raise UserError(f"{absent} is not there: download both files of SVHN's cropped digits")
        if there:
            named = {**files, **{f"svhn {part}": file for part, file in mats.items()}}
            return self._source("mnist+svhn", named, lambda: self._build(files, mats))
        if not any((svhn / str(digit)).is_dir() for digit in range(CLASSES)):
            raise UserError(
                f"dataset.svhn={svhn} holds neither train_32x32.mat and test_32x32.mat nor photographs in folders 0 to "
                "9: put one of these there"
            )
        photos = photo_files(svhn)
        named = {**files, **{f"{digit}/{file.name}": file for digit, file in photos}}
        source = self._source("mnist+photographs", named, lambda: self._build(files, photos))
        return replace(source, pictures=lambda: [svhn / str(digit) for digit in range(CLASSES)])

    def _build(self, files: Mapping[str, Path], svhn: Mapping[str, Path] | list[tuple[int, Path]]) -> dict[str, Arrays]:
        mnist = {}
        for part in ("train", "test"):
            images, labels = read_mnist(files, part)
            mnist[part] = images[:, None], labels.astype(np.int64)
        if isinstance(svhn, Mapping):
            coloured = {part: read_mat(file) for part, file in svhn.items()}
        else:
            coloured = self._photographs(svhn)
        train = self._pair(mnist["train"], coloured["train"])
        packed = self._pack("train", mnist["train"], coloured["train"], train)
        return {"train": packed, **self._divide(mnist["test"], coloured["test"])}

    def _photographs(self, photos: list[tuple[int, Path]]) -> dict[str, Items]:
        labels = np.array([digit for digit, _ in photos])
        read = ImageReader(SVHN_SIDE, resample=Image.Resampling.BICUBIC)
        images = load_images([file for _, file in photos], read, "photographs")
        n_test = round(PHOTO_TEST_SHARE * len(labels))
        parts = stratified_split(labels, (len(labels) - n_test, n_test), self.split_seed)
        return {part: (images[rows], labels[rows]) for part, rows in zip(("train", "test"), parts)}

    # ---- pairs -------------------------------------------------------------------------------------------------------

    def _pair(self, mnist: Items, svhn: Items) -> tuple[np.ndarray, np.ndarray]:
        return pair_by_class(
            mnist[1], svhn[1], pairings=self.pairings, max_per_class=self.max_per_class, seed=self.pair_seed
        )

    def _divide(self, mnist: Items, svhn: Items) -> dict[str, Arrays]:
        """The test images as pairs for validation and test, 30 % and 70 %."""
        if self.disjoint_instances:
            halves = []
            for images, labels in (mnist, svhn):
                rows = self._stratified(labels)
                halves.append([(images[part], labels[part]) for part in rows])
            return {split: self._pack(split, a, b, self._pair(a, b)) for split, a, b in zip(("val", "test"), *halves)}
        a, b = self._pair(mnist, svhn)
        parts = self._stratified(mnist[1][a])
        return {
            split: self._pack(split, mnist, svhn, (a[rows], b[rows])) for split, rows in zip(("val", "test"), parts)
        }

    def _stratified(self, labels: np.ndarray) -> list[np.ndarray]:
        n_val = round(VAL_SHARE * len(labels))
        return stratified_split(labels, (n_val, len(labels) - n_val), self.split_seed)

    def _pack(self, split: str, mnist: Items, svhn: Items, pairs: tuple[np.ndarray, np.ndarray]) -> Arrays:
        """The arrays of a split: each image that occurs once, and which of them a row shows."""
        target = mnist[1][pairs[0]]
        check_classes(split, target, CLASSES, "pairs of MNIST and SVHN")
        arrays: Arrays = {"target": target}
        for side, (images, _), rows in (("mnist", mnist, pairs[0]), ("svhn", svhn, pairs[1])):
            used, pointers = np.unique(rows, return_inverse=True)
            arrays[side], arrays[f"{side}.rows"] = images[used], pointers.astype(np.int32)
        rng = np.random.default_rng([self.text_seed, SPLITS.index(split)])
        arrays["text"] = place_digit_words(target, TEXT_LENGTH, rng)
        return arrays


def _download(folder: Path, mnist: Path | None, svhn: Path | None) -> tuple[Path, Path]:
    """Fetch what is not given into ``folder``; returns the folders of both."""
    import torchvision

    try:
        if mnist is None:
            torchvision.datasets.MNIST(str(folder), train=True, download=True)
        if svhn is None:
            for part in ("train", "test"):
                torchvision.datasets.SVHN(str(folder / "SVHN"), split=part, download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"MNIST and SVHN could not be downloaded into {folder} ({error}): fetch them by other means and set "
            "dataset.mnist and dataset.svhn to their folders"
        ) from None
    return mnist or folder / "MNIST" / "raw", svhn or folder / "SVHN"
