"""Small seeded stand-ins of DVM and UK Biobank, in the layouts of the real files, so that the real readers read them.

Synthetic: nothing is learned from them about cars or hearts. Every class can be told from the image and from the table,
neither perfectly.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw
from tqdm import tqdm

from datasets.missingness import parse_scenario, table_mask, tip_mask_name
from datasets.ukbb import CATEGORICAL, COLUMNS, CONTINUOUS, IMAGE_FOLDER, LENGTHS, file_names
from utils.errors import UserError

log = logging.getLogger(__name__)

VERSION = 1
COLOURS = {
    "Beige": (222, 206, 170),
    "Black": (25, 25, 28),
    "Blue": (30, 70, 170),
    "Bronze": (140, 100, 50),
    "Brown": (95, 60, 35),
    "Burgundy": (100, 15, 35),
    "Gold": (205, 170, 60),
    "Green": (30, 110, 55),
    "Grey": (115, 118, 122),
    "Indigo": (60, 30, 120),
    "Magenta": (190, 30, 130),
    "Maroon": (110, 25, 25),
    "Multicolour": (150, 90, 150),
    "Navy": (20, 30, 80),
    "Orange": (230, 120, 30),
    "Pink": (235, 150, 180),
    "Purple": (110, 40, 140),
    "Red": (190, 25, 30),
    "Silver": (190, 192, 196),
    "Turquoise": (40, 175, 175),
    "White": (240, 240, 240),
    "Yellow": (235, 210, 40),
}
BODIES = (
    "Camper",
    "Car Derived Van",
    "Combi Van",
    "Convertible",
    "Coupe",
    "Estate",
    "Hatchback",
    "Limousine",
    "MPV",
    "Minibus",
    "Pickup",
    "SUV",
    "Saloon",
)
GEARBOXES = ("Automatic", "Manual", "Semi-Automatic")
FUELS = (
    "Bi Fuel",
    "Diesel",
    "Electric",
    "Hybrid  Diesel/Electric",
    "Hybrid  Diesel/Electric Plug-in",
    "Hybrid  Petrol/Electric",
    "Hybrid  Petrol/Electric Plug-in",
    "Petrol",
    "Petrol Ethanol",
    "Petrol Hybrid",
    "Petrol Plug-in Hybrid",
    "Bi Fuel Gas",
)
# Outlines of four bodies on a grid of 100 x 50, y downwards; the roof is what tells them apart.
OUTLINES = {
    "Convertible": [(2, 42), (4, 28), (30, 25), (60, 26), (92, 28), (98, 42)],
    "Hatchback": [(2, 42), (4, 28), (25, 24), (40, 10), (82, 10), (95, 28), (97, 42)],
    "SUV": [(2, 42), (3, 22), (22, 20), (32, 4), (94, 4), (97, 22), (98, 42)],
    "Saloon": [(2, 42), (4, 28), (24, 24), (38, 11), (66, 11), (80, 24), (97, 27), (98, 42)],
}
LENGTHS_OF_CARS = (3900, 4500, 5100)
SIDE = 96


def made(root: Path, about: dict[str, Any], write: Callable[[Path], None]) -> Path:
    """``root``, filled by ``write(folder)`` unless it is there; replaced where it was made with other arguments.

    Raises:
        UserError: the folder holds something else.
    """
    file, text = root / "meta.json", json.dumps(about, indent=2) + "\n"

    def there() -> bool:
        return file.is_file() and file.read_text() == text

    if there():
        return root
    if root.exists() and not (file.is_file() and f'"{about["dataset"]}"' in file.read_text()):
        raise UserError(f"{root} is no stand-in made by dataset.demo=true: move it away, or change dataset.root")
    log.info("making a %s in %s", about["dataset"], root)
    temporary = root.with_name(f".{root.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        (temporary / file.name).write_text(text)
        if not there():  # another process may have been faster
            shutil.rmtree(root, ignore_errors=True)
            temporary.rename(root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return root


def make_dvm(root: str | Path, seed: int = 0, n: int = 104) -> Path:
    """``<root>/tables_V2.0/*.csv`` and ``<root>/resized_DVM/...``: 12 car models, and 30 too rare to be kept.

    Body and length of a model show in the image, prices and engine in the table; the true numbers of levels (22, 13, 3,
    12) occur. Some adverts lack a price or an image.

    Args:
        root: replaced where it was made with other arguments.
        n: adverts of each of the 12 models; the recipe wants 100.

    Returns:
        ``root``.

    Raises:
        UserError: ``root`` holds something else.
    """
    about = {"dataset": "DVM stand-in", "version": VERSION, "seed": seed, "n": n}
    return made(Path(root), about, lambda folder: _write_dvm(folder, seed, n))


def _write_dvm(temporary: Path, seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    models = [(f"{10 + i}_{1 + i}", body, length) for i, (body, length) in enumerate(_bodies())]
    adverts, extras, images, prices = [], [], [], []
    rare = [(f"90_{i}", list(OUTLINES)[i % 4], 4500) for i in range(30)]
    kept = {model for model, _, _ in models}
    rows = [(m, k) for m in models for k in range(n + 4)] + [(m, k) for m in rare for k in range(2)]
    for number, ((model, body, length), k) in enumerate(tqdm(rows, "drawing cars", unit="image", leave=False)):
        i = int(model.split("_")[0])
        year = int(rng.integers(2008, 2019))
        colour = str(rng.choice(list(COLOURS)))
        said = body if rng.random() < 0.85 else str(rng.choice(list(OUTLINES)))
        real = length + int(rng.normal(0, 250))
        size = {
            "Wheelbase": round(0.59 * real),
            "Height": {"Convertible": 1420, "Hatchback": 1480, "SUV": 1560, "Saloon": 1440}[body],
            "Width": 1760 + (real - 4500) // 12,
            "Length": real,
        }
        entry = 12_000 + 1_500 * (i % 4) + 150 * (year - 2008)
        advert = {
            "Maker": "Make",
            "Genmodel": f"Model {model}",
            "Genmodel_ID": model,
            "Adv_ID": f"{model}$${k}",
            "Adv_year": int(rng.choice([2018, 2019])),
            "Adv_month": int(rng.integers(1, 13)),
            "Color": colour,
            "Reg_year": year,
            "Bodytype": said,
            "Runned_Miles": int(max(0, rng.normal(9_000 * (2019 - year), 8_000))),
            "Engin_size": f"{1.0 + 0.2 * (i % 3) + rng.choice([0.0, 0.2, 0.4]):.1f}L",
            "Gearbox": str(rng.choice(GEARBOXES, p=[0.3, 0.65, 0.05])),
            "Fuel_type": str(rng.choice(["Petrol", "Diesel"], p=[0.6, 0.4])),
            "Price": max(500, round(entry * 0.85 ** (2019 - year) + rng.normal(0, 900))),
            "Seat_num": int(rng.choice([2, 4, 5])),
            "Door_num": int(rng.choice([2, 3, 5])),
        }
        if model not in kept:  # every level occurs
            advert |= {
                "Color": list(COLOURS)[number % 22],
                "Bodytype": BODIES[number % 13],
                "Gearbox": GEARBOXES[number % 3],
                "Fuel_type": FUELS[number % 12],
            }
        if model in kept and k == n:
            advert["Price"] = "Uknown"
        elif model in kept and k == n + 1:
            advert["Gearbox"] = ""
        adverts.append(advert)
        extras.append(
            {**{key: advert[key] for key in ("Genmodel_ID", "Adv_ID")}, **(size if k else dict.fromkeys(size, 0))}
        )
        prices.append(
            {"Maker": "Make", "Genmodel": f"Model {model}", "Genmodel_ID": model, "Year": year, "Entry_price": entry}
        )
        if model in kept and k == n + 2:
            continue  # without an image
        for shot in range(2 if k < 3 else 1):
            folder = Path("Make") / f"Model {model}" / str(year) / colour
            name = "$$".join(["Make", f"Model {model}", str(year), colour, model, str(k), f"image_{shot}.jpg"])
            images.append({"Genmodel_ID": model, "Image_ID": f"{model}$${k}$${shot}", "Image_name": name})
            if shot == 0:
                (temporary / "resized_DVM" / folder).mkdir(parents=True, exist_ok=True)
                draw_car(body, length, COLOURS[colour], rng).save(temporary / "resized_DVM" / folder / name, quality=85)
    tables = temporary / "tables_V2.0"
    tables.mkdir()
    # The real headers carry leading blanks.
    for name, content in (("Ad_table", adverts), ("Ad_table (extra)", extras), ("Image_table", images)):
        frame = pd.DataFrame(content)
        frame.columns = [frame.columns[0], *(f" {c}" for c in frame.columns[1:])]
        frame.to_csv(tables / f"{name}.csv", index=False)
    pd.DataFrame(prices).drop_duplicates(["Genmodel_ID", "Year"]).to_csv(tables / "Price_table.csv", index=False)


def _bodies() -> list[tuple[str, int]]:
    return [(body, length) for length in LENGTHS_OF_CARS for body in OUTLINES]


def draw_car(body: str, length: int, colour: tuple[int, int, int], rng: np.random.Generator) -> Image.Image:
    """A side view on a noisy ground, (96, 96) RGB; the length shows in its width."""
    ground = np.clip(rng.normal(150, 25) + rng.normal(0, 12, (SIDE, SIDE, 1)) * np.ones(3), 0, 255).astype(np.uint8)
    image = Image.fromarray(ground)
    draw = ImageDraw.Draw(image)
    width = 0.82 * SIDE * length / max(LENGTHS_OF_CARS) * rng.uniform(0.97, 1.03)
    left, top = (SIDE - width) / 2 + rng.uniform(-4, 4), SIDE * 0.35 + rng.uniform(-5, 5)
    scale_y = 0.82 * SIDE / 100

    def at(x: float, y: float) -> tuple[float, float]:
        return left + x / 100 * width, top + y * scale_y

    draw.polygon([at(x, y) for x, y in OUTLINES[body]], fill=colour, outline=(10, 10, 10))
    for x in (20, 78):
        cx, cy = at(x, 42)
        draw.ellipse([cx - 7, cy - 7, cx + 7, cy + 7], fill=(20, 20, 20), outline=(120, 120, 120))
    return image if rng.random() < 0.5 else image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def make_ukbb(root: str | Path, seed: int = 0, n: tuple[int, int, int] = (1500, 120, 240), side: int = 64) -> Path:
    """TIP's files of CAD and Infarction in ``root``, and ``subjects/<eid>/sa_es_ed_mm.npy``.

    A ring of muscle at end-systole, in between and end-diastole (the real arrays have side 210). A latent risk thickens
    the ring, weakens its contraction and moves the table; about 6 % of the people are ill. Balanced training files, and
    masks of the test tables.

    Args:
        root: replaced where it was made with other arguments.
        n: people in train (before balancing), val and test.

    Returns:
        ``root``.

    Raises:
        UserError: ``root`` holds something else.
    """
    about = {"dataset": "UK Biobank stand-in", "version": VERSION, "seed": seed, "n": list(n), "side": side}
    return made(Path(root), about, lambda folder: _write_ukbb(folder, seed, n, side))


def _write_ukbb(temporary: Path, seed: int, n: tuple[int, int, int], side: int) -> None:
    rng = np.random.default_rng(seed)
    total = sum(n)
    risk = rng.normal(size=total)
    codes = []
    for j, levels in enumerate(CATEGORICAL.values()):
        score = (0.9 if j % 3 == 0 else 0.2) * risk + rng.normal(size=total)
        edges = np.quantile(score, np.arange(1, levels) / levels)
        codes.append(np.searchsorted(edges, score))
    slopes = np.where(np.arange(len(CONTINUOUS)) % 4 == 0, 0.7, 0.1)
    numbers = slopes * risk[:, None] + rng.normal(size=(total, len(CONTINUOUS)))
    numbers = (numbers - numbers.mean(0)) / numbers.std(0, ddof=1)
    table = np.concatenate([np.stack(codes, 1), numbers], axis=1)
    labels = {
        target: (risk + 0.5 * rng.normal(size=total) > shift).astype(np.int64)
        for target, shift in (("CAD", 1.7), ("Infarction", 1.8))
    }
    ids = [str(1_000_000 + i) for i in range(total)]
    # As on another machine: what holds everywhere begins at 'subjects'.
    paths = [f"/data/{IMAGE_FOLDER}/{eid}/sa_es_ed_mm.npy" for eid in ids]
    torch.save([*CATEGORICAL.values(), *([1] * len(CONTINUOUS))], temporary / LENGTHS)
    starts = np.cumsum([0, *n])
    used: set[int] = set()
    for split, start, stop in zip(("train", "val", "test"), starts, starts[1:]):
        for target in labels:
            rows = np.arange(start, stop)
            if split == "train":
                ill, well = (rows[labels[target][rows] == value] for value in (1, 0))
                rows = np.sort(np.concatenate([ill, rng.choice(well, len(ill), replace=False)]))
            used.update(rows.tolist())
            table_file, label_file, path_file = file_names(target, split, balanced=True)
            pd.DataFrame(table[rows]).to_csv(temporary / table_file, header=False, index=False)
            torch.save(labels[target][rows].tolist(), temporary / label_file)
            torch.save([paths[i] for i in rows], temporary / path_file)
    (temporary / "missing_mask").mkdir()
    stem = Path(file_names("CAD", "test", True)[0]).stem
    for rate in (0.1, 0.3, 0.5, 0.7, 0.9):
        scenario = parse_scenario(f"table_value_{rate}")
        mask = table_mask(n[2], len(COLUMNS), "value", rate, seed=2023)
        for target in labels:
            np.save(temporary / "missing_mask" / tip_mask_name(stem, target, scenario), mask)
    for i in tqdm(sorted(used), "drawing hearts", unit="image", leave=False):
        folder = temporary / IMAGE_FOLDER / ids[i]
        folder.mkdir(parents=True)
        np.save(folder / "sa_es_ed_mm.npy", draw_heart(float(risk[i]), side, rng))


def draw_heart(risk: float, side: int, rng: np.random.Generator) -> np.ndarray:
    """(side, side, 3) float32, end-systole, mid, end-diastole; each channel divided by its maximum."""
    y, x = (np.mgrid[:side, :side] - side / 2) / (side / 2)
    cy, cx = rng.normal(0, 0.08, 2)
    radius = np.hypot(y - cy, x - cx)
    diastole = 0.38 + 0.02 * rng.normal()
    contraction = np.clip(0.45 - 0.07 * risk + 0.05 * rng.normal(), 0.05, 0.8)
    wall = np.clip(0.14 + 0.025 * risk + 0.02 * rng.normal(), 0.04, 0.3)
    channels = []
    for phase in (1.0, 0.5, 0.0):
        inner = diastole * (1 - contraction * phase)
        image = 0.25 + 0.05 * rng.normal(size=(side, side))
        image = np.where(radius < inner + wall, 0.45, image)
        image = np.where(radius < inner, 0.9, image) + 0.03 * rng.normal(size=(side, side))
        channels.append(np.clip(image, 0, None) / image.max())
    return np.stack(channels, axis=2).astype(np.float32)
