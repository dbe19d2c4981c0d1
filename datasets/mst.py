"""MST, MNIST-SVHN-Text: a grey digit (1, 28, 28), a house number in colour (3, 32, 32) and the digit's name (8, 71).

Sutter, Daunhawer, Vogt, "Generalized Multimodal ELBO", ICLR 2021 (https://github.com/thomassutter/MoPoE); used by DyMo,
ICLR 2026. The modalities share only the label: images are paired at random inside a class, twenty times, which gives
1,121,360 training pairs and 200,000 pairs of test images, 60,000 of them for validation. The store holds every image
once. Sources, in the order in which they are looked for:

- the prepared folders of the original, ``<root>/MNIST/processed/{training,val,test}.pt``,
  ``<root>/SVHN/{train,val,test}_32x32.mat`` and, where they exist, the pairs in
  ``<root>/MNIST_SVHN/processed/{train,val,test}-ms-{mnist,svhn}-idx.pt``;
- the downloads: the four MNIST files, and a folder with ``train_32x32.mat`` and ``test_32x32.mat`` of SVHN (cropped
  digits), or with RGB photographs of digits in class folders, ``{0..9}/*.jpg``, a fifth of them for the test (a
  photographed object or person may be in both parts).

Differences from the original: the sort before pairing is stable; the rule that divides the test pairs into validation
and test was not published, ours is by class and seeded; the start column of a word is drawn once per row for validation
and test, and anew in every epoch for training (``reshuffle_pairs``), where the original draws at every access, test
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
from datasets.readers.mst_files import (
    SVHN_SIDE,
    Items,
    download_mnist_and_svhn,
    photo_files,
    read_mat,
    read_mnist_pt,
    read_pairs,
)
from datasets.readers.text import WIDTH, check_alphabet, place_digit_words
from datasets.source import Arrays, Source, SourcedDataModule, check_classes, file_stats, sha256
from datasets.splits import stratified_split
from utils.errors import UserError

RECIPE_VERSION = 1
TEXT_LENGTH = 8
PHOTO_TEST_SHARE = 0.2
MNIST_PT = {"train": "training.pt", "val": "val.pt", "test": "test.pt"}


def pair_by_class(
    labels_a: np.ndarray, labels_b: np.ndarray, *, pairings: int = 20, max_per_class: int = 10_000, seed: int = 2025
) -> tuple[np.ndarray, np.ndarray]:
    """Draw random pairs of items of the same class.

    Of each class, the first n items of both sides are used, where n is the number of the rarer side, at most
    ``max_per_class``; they are permuted ``pairings`` times, first the items of a, then those of b.

    Args:
        labels_a, labels_b: (N,) and (N',), 0 to 9.
        seed: of the permutations (drawn with torch, as in the original).

    Returns:
        Row numbers in a and in b, (pairs,) each, class by class.
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
        disjoint_instances: divide the test images before they are paired, so that no image is in both validation and
            test, as images of the published pairs are.
        demo: ``root`` holds demo data, whose counts differ from the published ones.
        **kwargs: see :class:`datasets.base.MultimodalDataModule`.
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
        """The prepared folders where any exist, else the downloads.

        Raises:
            UserError: neither exists; names what was looked for.
        """
        if self.demo:
            assert self.root is not None, "build_data passes the folder of the demo data as root"
            return self._folder_source(self.root)
        if self.root and any((self.root / part).is_dir() for part in ("MNIST/processed", "SVHN", "MNIST_SVHN")):
            return self._folder_source(self.root)
        mnist, svhn = self.mnist, self.svhn
        if self.download and self.root:
            mnist, svhn = download_mnist_and_svhn(self.root / "raw", mnist, svhn)
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

    def _folder_source(self, root: Path) -> Source:
        items = {}
        for split in SPLITS:
            pair = {"mnist": root / "MNIST/processed" / MNIST_PT[split], "svhn": root / f"SVHN/{split}_32x32.mat"}
            existing = {side: file for side, file in pair.items() if file.is_file()}
            if len(existing) == 1:
                ((side, file),) = existing.items()
                absent = next(f for s, f in pair.items() if s != side)
                raise UserError(f"{file} exists but {absent} does not: restore it, or remove {file}")
            if existing:
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
                raise UserError(f"{absent} does not exist, its partner does: restore it, or remove both to pair anew")
        if "test" in items and bool(pairs["val"]) != bool(pairs["test"]):
            present, absent_split = ("val", "test") if pairs["val"] else ("test", "val")
            raise UserError(
                f"{root}/MNIST_SVHN/processed has {present}-ms-mnist-idx.pt but no {absent_split}-ms-mnist-idx.pt: "
                "restore it, or remove the files of both splits to divide anew"
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
            mnist, svhn = read_mnist_pt(pair["mnist"]), read_mat(pair["svhn"])
            if pairs[split]:
                splits[split] = self._pack(split, mnist, svhn, read_pairs(pairs[split], mnist, svhn))
            elif split == "train" or "test" not in files:
                splits[split] = self._pack(split, mnist, svhn, self._pair(mnist, svhn))
            else:  # val and test are parts of the pairs of the test images
                splits |= self._divide(read_mnist_pt(files["test"]["mnist"]), read_mat(files["test"]["svhn"]))
        return {split: splits[split] for split in SPLITS if split in splits}

    def _raw_source(self, mnist: Path, svhn: Path) -> Source:
        files = mnist_files(mnist)
        mats = {part: svhn / f"{part}_32x32.mat" for part in ("train", "test")}
        existing = [part for part, file in mats.items() if file.is_file()]
        if len(existing) == 1:
            absent = mats["test" if existing == ["train"] else "train"]
            raise UserError(f"{absent} does not exist: download both files of SVHN's cropped digits")
        if existing:
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

    def _pair(self, mnist: Items, svhn: Items) -> tuple[np.ndarray, np.ndarray]:
        return pair_by_class(
            mnist[1], svhn[1], pairings=self.pairings, max_per_class=self.max_per_class, seed=self.pair_seed
        )

    def _divide(self, mnist: Items, svhn: Items) -> dict[str, Arrays]:
        """Pair the test images and divide them into validation (30 %) and test (70 %)."""
        if self.disjoint_instances:
            parts_a, parts_b = (
                [(images[rows], labels[rows]) for rows in self._stratified(labels)] for images, labels in (mnist, svhn)
            )
            return {
                split: self._pack(split, a, b, self._pair(a, b))
                for split, a, b in zip(("val", "test"), parts_a, parts_b)
            }
        rows_a, rows_b = self._pair(mnist, svhn)
        parts = self._stratified(mnist[1][rows_a])
        return {
            split: self._pack(split, mnist, svhn, (rows_a[part], rows_b[part]))
            for split, part in zip(("val", "test"), parts)
        }

    def _stratified(self, labels: np.ndarray) -> list[np.ndarray]:
        n_val = round(VAL_SHARE * len(labels))
        return stratified_split(labels, (n_val, len(labels) - n_val), self.split_seed)

    def _pack(self, split: str, mnist: Items, svhn: Items, pairs: tuple[np.ndarray, np.ndarray]) -> Arrays:
        """Arrays of a split: every used image once, and the number of the image that each row shows."""
        target = mnist[1][pairs[0]]
        check_classes(split, target, CLASSES, "pairs of MNIST and SVHN")
        arrays: Arrays = {"target": target}
        for side, (images, _), rows in (("mnist", mnist, pairs[0]), ("svhn", svhn, pairs[1])):
            used, pointers = np.unique(rows, return_inverse=True)
            arrays[side], arrays[f"{side}.rows"] = images[used], pointers.astype(np.int32)
        rng = np.random.default_rng([self.text_seed, SPLITS.index(split)])
        arrays["text"] = place_digit_words(target, TEXT_LENGTH, rng)
        return arrays
