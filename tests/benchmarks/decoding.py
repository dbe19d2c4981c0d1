"""``python -m tests.benchmarks.decoding [FOLDER] [--out FILE]``: how fast stage prepare reads JPEG files.

Processor milliseconds for an image of 224 x 224 pixels, of the reader of stage prepare and of other ways, in turn; then
images per second of all threads of the reader. Without a folder, the files are made up (photographs of 640 x 480).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageFilter
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms.v2.functional import resize

from datasets.readers.images import ImageReader
from utils.errors import UserError

SIDE = 224
REPEATS = 3  # the fastest counts


def with_torchvision(path: Path) -> np.ndarray:
    image = decode_image(read_file(str(path)), ImageReadMode.RGB)
    return resize(image, [SIDE, SIDE], antialias=True).numpy()


def with_pillow(path: Path, is_reduced: bool = False) -> np.ndarray:
    """``is_reduced``: by libjpeg itself, which gives other pixels, as fast as is possible."""
    with Image.open(path) as image:
        if is_reduced:
            image.draft("RGB", (SIDE, SIDE))
        return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def decoded(path: Path) -> np.ndarray:
    """All pixels, which no way that looks at them can do without."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


WAYS: dict[str, Callable[[Path], np.ndarray]] = {
    "stage prepare": ImageReader(SIDE),
    "torchvision.io": with_torchvision,
    "Pillow, RGB at once": with_pillow,
    "Pillow, decoding alone": decoded,
    "Pillow, libjpeg's reduction": partial(with_pillow, is_reduced=True),
}


def make_photographs(folder: Path, number: int) -> None:
    """Smooth noise, which JPEG stores in as many bytes as photographs."""
    rng = np.random.default_rng(0)
    for k in range(number):
        noise = Image.fromarray(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8))
        noise.filter(ImageFilter.GaussianBlur(2)).save(folder / f"{k}.jpg", quality=90)


def measure(paths: Sequence[Path]) -> pd.DataFrame:
    """Columns: way, milliseconds of processor time per image, ratio to stage prepare; images per second and threads."""
    seconds = dict.fromkeys(WAYS, float("inf"))
    for _ in range(REPEATS):
        for name, read in WAYS.items():
            start = time.process_time()
            for path in paths:
                read(path)
            seconds[name] = min(seconds[name], time.process_time() - start)
    rows = [
        {"way": name, "threads": 1, "cpu_ms": 1000 * value / len(paths), "ratio": value / seconds["stage prepare"]}
        for name, value in seconds.items()
    ]
    for threads in dict.fromkeys((1, os.cpu_count() or 1)):
        with ThreadPoolExecutor(threads) as pool:
            start = time.perf_counter()
            list(pool.map(WAYS["stage prepare"], paths))
            per_second = len(paths) / (time.perf_counter() - start)
        rows.append({"way": "stage prepare", "threads": threads, "images_per_second": per_second})
    return pd.DataFrame(rows)


def page_table(table: pd.DataFrame) -> str:
    """The table of docs/performance.md."""
    lines = ["| way | processor ms an image | ratio |", "|:--|--:|--:|"]
    for line in table.dropna(subset=["cpu_ms"]).itertuples():
        lines.append(f"| {line.way} | {line.cpu_ms:.2f} | {line.ratio:.2f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    parser = argparse.ArgumentParser("python -m tests.benchmarks.decoding", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="JPEG files")
    parser.add_argument("--number", type=int, default=200, help="of images at most")
    parser.add_argument("--out", type=Path, help="CSV file of the table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "The image decoding", DeprecationWarning)  # of torchvision.io, which is compared
    with tempfile.TemporaryDirectory(prefix="decoding-") as made:
        if options.folder is None:
            make_photographs(Path(made), options.number)
        paths = sorted((options.folder or Path(made)).rglob("*.jpg"))[: options.number]
        if not paths:
            raise UserError(f"{options.folder} has no .jpg files: name a folder with some")
        table = measure(paths).round(3)
    if options.out:
        table.to_csv(options.out, index=False)
    print(table.to_string(index=False))
    return table


if __name__ == "__main__":
    main()
