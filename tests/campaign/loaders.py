"""Every function that opens files of users, with a valid file for it and the errors that its docstring names.

``covers`` names the functions in which a library decodes the file. ``test_entries`` searches the sources for such
functions, and fails by name where one has no entry.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import soundfile
import torch
from PIL import Image
from scipy.io import savemat

from datasets.celeba import read_table, read_texts
from datasets.demo.media import made_frames, made_sound, write_video
from datasets.demo.vocabulary import write_vocabulary
from datasets.food101 import read_titles
from datasets.mimic_linkage import read_raw
from datasets.missingness.mask_files import read_dymo_csv, read_map_pt, read_tip_npy
from datasets.mmimdb import read_film
from datasets.modality_parts.arrays import read_numbers
from datasets.multi_feature_digits import read_view
from datasets.new_rows import read_arrays
from datasets.polymnist import read_png
from datasets.readers.audio import ClipProblem, read_audio
from datasets.readers.csv_files import read_chunks, read_csv
from datasets.readers.images import ImageReader
from datasets.readers.json_files import read_json, read_split
from datasets.readers.mnist import read_idx
from datasets.readers.mst_files import read_mat, read_mnist_pt
from datasets.readers.pictures import UNREADABLE, open_picture
from datasets.readers.text import ALPHABET, check_alphabet
from datasets.readers.tip_files import read_list, read_prepared
from datasets.readers.tokens import load_tokenizer
from datasets.readers.video import ClipReader
from datasets.storage import PackedSplit
from models.dymo.gaussian import GaussianParameters
from tests.makers import random_original_state
from trainers.bundle import open_bundle
from trainers.checkpoint_files import resume_point
from trainers.published import COLUMNS, read_published
from trainers.report.runs import load_arrays, read_results
from utils.safe_pickle import read_tensors
from utils.subsets import enumerate_subsets

RNG = np.random.default_rng(0)


@dataclass(frozen=True)
class Loader:
    """A reader of files.

    Attributes:
        suffixes: of the file names, each with its own valid file.
        make: writes a valid file.
        read: the function.
        covers: ``module.function`` that decode it.
        errors: further errors that the function documents, which its callers turn into one line.
    """

    suffixes: tuple[str, ...]
    make: Callable[[Path], object]
    read: Callable[[Path], object]
    covers: tuple[str, ...] = ()
    errors: tuple[type[Exception], ...] = ()


def picture(path: Path) -> None:
    Image.fromarray(RNG.integers(0, 256, (28, 28, 3), dtype=np.uint8)).save(path)


def sound(path: Path) -> None:
    soundfile.write(path, RNG.uniform(-0.5, 0.5, 2000), 8000)


def video(path: Path) -> None:
    rng = np.random.default_rng(0)
    write_video(path, made_frames(1, 12, rng), sound=(made_sound(1, 1.0, 16000, rng).astype(np.float32), 16000))


def saved(content: object, is_zip: bool = True) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path, _use_new_zipfile_serialization=is_zip)


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


def arrays(path: Path) -> None:
    content = RNG.normal(size=(4, 3))
    if path.suffix == ".csv":
        np.savetxt(path, content, delimiter=",", header="a,b,c", comments="")
    elif path.suffix == ".npz":
        np.savez_compressed(path, a=content)
    else:
        np.save(path, content)


def idx(path: Path) -> None:
    content = bytes([0, 0, 8, 3]) + np.array([5, 28, 28], dtype=">u4").tobytes() + bytes(5 * 28 * 28)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def prepared(path: Path) -> object:
    """The table of TIP's layout beside its lists."""
    for name in ("labels", "images"):
        saved([0, 1] if name == "labels" else ["a.jpg", "b.jpg"])(path.with_name(f"{name}.pt"))
    lists = [path.with_name(f"{name}.pt") for name in ("labels", "images")]
    return read_prepared(path, *lists, ["a", "b"], "images", path.parent)


def gaussian(path: Path) -> None:
    shape = {"prototypes": (3, 2, 4), "sigma": (3, 2), "overall": (2, 4)}
    tensors: dict[str, Any] = {name: torch.rand(size) + 1 for name, size in shape.items()}
    GaussianParameters(subsets=enumerate_subsets(2), metric="squared_euclidean", about={}, **tensors).save(path)


def in_folder(name: str, read: Callable[[Path], object]) -> Callable[[Path], object]:
    """Read a folder whose file ``name`` is the one to try."""

    def read_folder(path: Path) -> object:
        folder = path.parent / "folder"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copy(path, folder / name)
        return read(folder)

    return read_folder


def tokenizer(path: Path) -> None:
    vocabulary = write_vocabulary(path.with_name("vocab.txt"), ["one two three"])
    if path.suffix == ".json":
        load_tokenizer(str(vocabulary)).save_pretrained(path.parent / "saved")
        shutil.copy(path.parent / "saved" / "tokenizer.json", path)


def tokenizer_folder(folder: Path) -> object:
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "pad_token": "[PAD]"}')
    return load_tokenizer(str(folder))


RESULTS = "dataset,model,seed,scenario,metric,value,n,train,fold,missing_rate\nA,B,0,none,accuracy,0.5,4,none,,0.0\n"
TABLE = "photo,kind,weight\n" + "".join(f"p{i},nut,{i}.5\n" for i in range(6))
PUBLISHED = ",".join(COLUMNS) + "\n" + ",".join(["a"] * 6 + ["1", "2"]) + "\n"
READERS = "datasets.readers"
LOADERS = {
    "pictures": Loader(
        (".png", ".jpg", ".tif", ".gif", ".bmp", ".webp", ".ppm", ".jp2", ".tga", ".ico"), picture,
        lambda path: np.asarray(open_picture(path, 3)), (f"{READERS}.pictures.open_image",), UNREADABLE,
    ),
    "image arrays": Loader(
        (".npy",), lambda path: np.save(path, RNG.integers(0, 256, (28, 28, 3), dtype=np.uint8)), ImageReader(28),
        ("utils.files.load_arrays",), UNREADABLE,
    ),
    "PolyMNIST": Loader((".png",), picture, read_png, ("datasets.polymnist.read_png",)),
    "sound": Loader(
        (".wav", ".flac", ".ogg", ".mp4"), lambda path: (video if path.suffix == ".mp4" else sound)(path), read_audio,
        (f"{READERS}.audio.read_audio", f"{READERS}.audio._read_track"), (ClipProblem,),
    ),
    "video": Loader(
        (".mp4", ".mkv", ".avi"), video, ClipReader(28, 4), (f"{READERS}.video.extract_frames",), (ClipProblem,)
    ),
    "tables": Loader(
        (".csv",), text(TABLE), read_csv, (f"{READERS}.csv_files.read_csv", f"{READERS}.csv_files.count_rows")
    ),
    "new rows": Loader(
        (".csv",), text(TABLE), lambda path: list(read_chunks(path)), (f"{READERS}.csv_files.read_chunks",)
    ),
    "arrays of new rows": Loader((".npz",), arrays, read_arrays, ()),
    "series and vectors": Loader(
        (".npy", ".npz", ".csv"), arrays, read_numbers, ("datasets.modality_parts.arrays.read_numbers",), UNREADABLE
    ),
    "lists of TIP": Loader((".pt",), saved([1, 2, 3]), read_list, (f"{READERS}.tip_files.read_list",)),
    "tables of TIP": Loader((".csv",), text("1,2\n3,4\n"), prepared, (f"{READERS}.tip_files.read_prepared",)),
    "SVHN": Loader(
        (".mat",), lambda path: savemat(path, {"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.arange(1, 5)[:, None]}),
        read_mat, (f"{READERS}.mat_files._unpacked",),
    ),
    "MNIST tensors": Loader(
        (".pt",), saved((torch.zeros(4, 28, 28, dtype=torch.uint8), torch.arange(4))), read_mnist_pt,
        (f"{READERS}.mst_files._read_pt",),
    ),
    "MNIST": Loader((".idx", ".gz"), idx, lambda path: read_idx(path, 3), (f"{READERS}.mnist.read_idx",)),
    "JSON": Loader(
        (".json",), text('{"a": ["b"]}'), lambda path: read_json(path, "x"), (f"{READERS}.json_files.read_json",)
    ),
    "published splits": Loader((".json",), text('{"train": ["1"]}'), lambda path: read_split(path, {"train": "train"})),
    "films": Loader((".json",), text('{"plot": ["a"], "genres": ["Drama"]}'), read_film),
    "alphabet": Loader(
        (".json",), text(json.dumps(list(ALPHABET))), check_alphabet, (f"{READERS}.text.check_alphabet",)
    ),
    "vocabulary": Loader(
        (".txt",), lambda path: write_vocabulary(path, ["one two"]), lambda path: load_tokenizer(str(path)),
        (f"{READERS}.tokens.load_tokenizer",),
    ),
    "tokenizer": Loader((".json",), tokenizer, in_folder("tokenizer.json", tokenizer_folder)),
    "masks of DyMo": Loader((".csv",), text("True,False\nFalse,False\n"), lambda path: read_dymo_csv(path, 2, 2)),
    "masks of TIP": Loader(
        (".npy",), lambda path: np.save(path, np.zeros((4, 3), dtype=bool)), lambda path: read_tip_npy(path, 4, 3),
        (),
    ),
    "masks of MAP": Loader(
        (".pt",), saved(torch.tensor([0, 1, 2])), lambda path: read_map_pt(path, 3),
        ("datasets.missingness.mask_files.read_map_pt",),
    ),
    "CelebA": Loader(
        (".csv", ".txt"),
        lambda path: path.write_text("image_id,a\nx.jpg,1\n" if path.suffix == ".csv" else "1\na\nx 1\n"),
        lambda path: read_table(path, header=True), ("datasets.celeba.read_table",),
    ),
    "texts of CelebA": Loader(
        (".csv",), text("image_id,text\nx.jpg,abc\n"), read_texts, ("datasets.celeba.read_texts",)
    ),
    "titles of Food101": Loader((".csv",), text("a.jpg,title,class\n"), read_titles, ("datasets.food101.read_titles",)),
    "digits of several features": Loader(
        (".csv", ".txt"), lambda path: np.savetxt(
            path, np.arange(40.0).reshape(10, 4) % 10, delimiter="," if path.suffix == ".csv" else " ",
            header="a,b,c,d" if path.suffix == ".csv" else "", comments="",
        ),
        lambda path: read_view(path, 3 if path.suffix == ".csv" else 4), ("datasets.multi_feature_digits.read_view",),
    ),
    "MIMIC": Loader(
        (".csv", ".gz"),
        lambda path: path.write_bytes(gzip.compress(TABLE.encode()) if path.suffix == ".gz" else TABLE.encode()),
        lambda path: read_raw(path, ["photo", "weight"]), ("datasets.mimic_linkage.read_raw",),
    ),
    "packed arrays": Loader(
        (".npy",), lambda path: np.save(path, np.arange(4)), in_folder("target.npy", PackedSplit),
        ("datasets.storage._load",),
    ),
    "checkpoints": Loader(
        (".ckpt", ".pth"),
        lambda path: saved({"state_dict": {"a": torch.rand(3, 4)}}, is_zip=path.suffix == ".ckpt")(path), read_tensors,
        ("utils.safe_pickle._read", "utils.safe_pickle._check_pickles", "utils.safe_pickle._read_zip"),
    ),
    "original checkpoints": Loader((".pt",), saved({"state_dict": random_original_state(width=16)}), read_tensors),
    "safetensors": Loader(
        (".safetensors",), lambda path: safetensors.torch.save_file({"a": torch.rand(3)}, path), read_tensors
    ),
    "Gaussian parameters": Loader(
        (".safetensors",), gaussian, GaussianParameters.load, ("models.dymo.gaussian.load",)
    ),
    "interrupted training": Loader(
        (".ckpt",), saved({"state_dict": {"a": torch.rand(3)}, "epoch": 1}), in_folder("last.ckpt", resume_point),
        ("trainers.checkpoint_files._check",),
    ),
    "bundles": Loader(
        (".zip",), lambda path: shutil.make_archive(str(path.with_suffix("")), "zip", path.parent), open_bundle,
        ("trainers.bundle.unpack", "trainers.bundle.open_bundle"),
    ),
    "manifests of bundles": Loader(
        (".json",), text('{"format": 1, "files": {}}'), in_folder("bundle.json", open_bundle)
    ),
    "predictions": Loader((".npz",), arrays, load_arrays),
    "results": Loader((".csv",), text(RESULTS), read_results, ("trainers.report.runs.read_results",)),
    "published results": Loader((".csv",), text(PUBLISHED), read_published, ("trainers.published.read_published",)),
}  # fmt: skip
