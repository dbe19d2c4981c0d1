"""Small seeded demo data of DVM and UK Biobank in the layouts of the real files, for the real readers.

Synthetic: nothing is learned from them about cars or hearts. Every class can be told from the image and from the table,
neither perfectly.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from utils.progress import Progress

log = logging.getLogger(__name__)

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


def make_dvm(root: Path, seed: int = 0, n: int = 104) -> None:
    """``<root>/tables_V2.0/*.csv`` and ``<root>/resized_DVM/...``: 12 car models, and 30 too rare to be kept.

    Body and length of a model show in the image, prices and engine in the table; the true numbers of levels (22, 13, 3,
    12) occur. Some adverts lack a price or an image.

    Args:
        root: existing folder.
        n: adverts of each of the 12 models; the recipe wants 100.
    """
    rng = np.random.default_rng(seed)
    models = [(f"{10 + i}_{1 + i}", body, length) for i, (body, length) in enumerate(_bodies())]
    rare = [(f"90_{i}", list(OUTLINES)[i % 4], 4500) for i in range(30)]
    adverts, extras, images, prices = [], [], [], []
    rows = [(m, k) for m in models for k in range(n + 4)] + [(m, k) for m in rare for k in range(2)]
    for number, ((model, body, length), k) in enumerate(Progress(rows, "drawing cars", unit="image", leave=False)):
        is_rare = model.startswith("90_")
        year, colour = int(rng.integers(2008, 2019)), str(rng.choice(list(COLOURS)))
        listed_body = body if rng.random() < 0.85 else str(rng.choice(list(OUTLINES)))
        size = _size(body, length + int(rng.normal(0, 250)))
        entry = 12_000 + 1_500 * (int(model.split("_")[0]) % 4) + 150 * (year - 2008)
        advert = _advert(rng, model, k, year, entry) | {"Color": colour, "Bodytype": listed_body}
        if is_rare:  # every level occurs
            advert |= {
                "Color": list(COLOURS)[number % 22],
                "Bodytype": BODIES[number % 13],
                "Gearbox": GEARBOXES[number % 3],
                "Fuel_type": FUELS[number % 12],
            }
        elif k == n:
            advert["Price"] = "Uknown"
        elif k == n + 1:
            advert["Gearbox"] = ""
        adverts.append(advert)
        identity = {key: advert[key] for key in ("Genmodel_ID", "Adv_ID")}
        extras.append(identity | (size if k else dict.fromkeys(size, 0)))
        price = {key: advert[key] for key in ("Maker", "Genmodel", "Genmodel_ID")}
        prices.append(price | {"Year": year, "Entry_price": entry})
        if not is_rare and k == n + 2:
            continue  # without an image
        for shot in range(2 if k < 3 else 1):
            folder = Path("Make") / f"Model {model}" / str(year) / colour
            name = "$$".join(["Make", f"Model {model}", str(year), colour, model, str(k), f"image_{shot}.jpg"])
            images.append({"Genmodel_ID": model, "Image_ID": f"{model}$${k}$${shot}", "Image_name": name})
            if shot == 0:
                (root / "resized_DVM" / folder).mkdir(parents=True, exist_ok=True)
                draw_car(body, length, COLOURS[colour], rng).save(root / "resized_DVM" / folder / name, quality=85)
    tables = root / "tables_V2.0"
    tables.mkdir()
    # The real headers carry leading blanks.
    for name, content in (("Ad_table", adverts), ("Ad_table (extra)", extras), ("Image_table", images)):
        frame = pd.DataFrame(content)
        frame.columns = [frame.columns[0], *(f" {c}" for c in frame.columns[1:])]
        frame.to_csv(tables / f"{name}.csv", index=False)
    pd.DataFrame(prices).drop_duplicates(["Genmodel_ID", "Year"]).to_csv(tables / "Price_table.csv", index=False)


def _size(body: str, length: int) -> dict[str, int]:
    """Millimetres, in the columns of the extra table."""
    return {
        "Wheelbase": round(0.59 * length),
        "Height": {"Convertible": 1420, "Hatchback": 1480, "SUV": 1560, "Saloon": 1440}[body],
        "Width": 1760 + (length - 4500) // 12,
        "Length": length,
    }


def _advert(rng: np.random.Generator, model: str, k: int, year: int, entry_price: int) -> dict[str, Any]:
    """A row of the advert table; colour and body are the caller's."""
    number = int(model.split("_")[0])
    return {
        "Maker": "Make",
        "Genmodel": f"Model {model}",
        "Genmodel_ID": model,
        "Adv_ID": f"{model}$${k}",
        "Adv_year": int(rng.choice([2018, 2019])),
        "Adv_month": int(rng.integers(1, 13)),
        "Color": "",
        "Reg_year": year,
        "Bodytype": "",
        "Runned_Miles": int(max(0, rng.normal(9_000 * (2019 - year), 8_000))),
        "Engin_size": f"{1.0 + 0.2 * (number % 3) + rng.choice([0.0, 0.2, 0.4]):.1f}L",
        "Gearbox": str(rng.choice(GEARBOXES, p=[0.3, 0.65, 0.05])),
        "Fuel_type": str(rng.choice(["Petrol", "Diesel"], p=[0.6, 0.4])),
        "Price": max(500, round(entry_price * 0.85 ** (2019 - year) + rng.normal(0, 900))),
        "Seat_num": int(rng.choice([2, 4, 5])),
        "Door_num": int(rng.choice([2, 3, 5])),
    }


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
