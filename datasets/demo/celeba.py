"""Demo data in the layout of CelebA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from utils.progress import Progress

# fmt: off
CELEBA_ATTRIBUTES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses",
    "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache",
    "Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks",
    "Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick",
    "Wearing_Necklace", "Wearing_Necktie", "Young",
)


# --------------------------------------------------------------------------------------------------------------- CelebA


def make_celeba(root: Path, seed: int = 0, counts: tuple[int, int, int] = (420, 80, 100)) -> None:
    """CelebA's aligned JPGs and two tables in their CSV form, with cartoon faces of 178 x 218 pixels.

    Args:
        counts: faces of the training, validation and test partition.
    """
    rng = np.random.default_rng(seed)
    n = sum(counts)
    present = _attributes(n, rng)
    stems = [f"{i:06d}.jpg" for i in range(1, n + 1)]
    folder = root / "img_align_celeba"
    folder.mkdir(parents=True)
    for stem, row in zip(Progress(stems, desc="drawing faces", unit="face", leave=False), present):
        _face(dict(zip(CELEBA_ATTRIBUTES, row)), rng).save(folder / stem, quality=90)
    lines = [",".join(["image_id", *CELEBA_ATTRIBUTES])]
    lines += [",".join([stem, *("1" if value else "-1" for value in row)]) for stem, row in zip(stems, present)]
    (root / "list_attr_celeba.csv").write_text("\n".join(lines) + "\n")
    partition = np.repeat([0, 1, 2], counts)
    lines = ["image_id,partition", *(f"{stem},{part}" for stem, part in zip(stems, partition))]
    (root / "list_eval_partition.csv").write_text("\n".join(lines) + "\n")


def _attributes(n: int, rng: np.random.Generator) -> np.ndarray:
    """(n, 40) bool: sex, age and hair colour, and the rest with a rate that depends on them."""
    has = {name: rng.random(n) < 0.2 for name in CELEBA_ATTRIBUTES}

    def chance(name: str, rate: np.ndarray | float) -> np.ndarray:
        has[name] = rng.random(n) < rate
        return has[name]

    blond = chance("Blond_Hair", 0.25)
    male = chance("Male", np.where(blond, 0.1, 0.5))
    young = chance("Young", 0.75)
    others = rng.choice(["Black_Hair", "Brown_Hair", "Gray_Hair"], size=n, p=[0.45, 0.4, 0.15])
    for colour in ("Black_Hair", "Brown_Hair", "Gray_Hair"):
        has[colour] = ~blond & (others == colour)
    chance("Wearing_Hat", np.where(male, 0.1, 0.05))
    chance("Bald", np.where(male & ~young & ~blond, 0.15, 0.0))
    chance("Eyeglasses", 0.1)
    chance("Smiling", 0.5)
    chance("Pale_Skin", np.where(blond, 0.2, 0.05))
    chance("Heavy_Makeup", np.where(male, 0.0, np.where(blond, 0.7, 0.4)))
    has["Wearing_Lipstick"] = has["Heavy_Makeup"] | (~male & (rng.random(n) < 0.2))
    beard = male & (rng.random(n) < 0.3)
    has["No_Beard"] = ~beard
    for name in ("5_o_Clock_Shadow", "Goatee", "Mustache", "Sideburns"):
        has[name] = beard & (rng.random(n) < 0.4)
    return np.stack([has[name] for name in CELEBA_ATTRIBUTES], axis=1)


_HAIR = {
    "Blond_Hair": (214, 184, 112),
    "Black_Hair": (32, 28, 26),
    "Brown_Hair": (112, 78, 48),
    "Gray_Hair": (160, 160, 158),
}


def _face(has: dict[str, bool], rng: np.random.Generator) -> Image.Image:
    """A cartoon of the attributes that can be seen, under a light of random strength and tint."""
    picture = Image.new("RGB", (178, 218), tuple(rng.integers(40, 216, size=3).tolist()))
    draw = ImageDraw.Draw(picture)
    x, y = 89 + int(rng.integers(-4, 5)), 118 + int(rng.integers(-4, 5))
    skin = np.array([236, 200, 180] if has["Pale_Skin"] else [224, 176, 140]) - rng.integers(0, 50)
    tone = tuple(skin.tolist())
    hair = next((colour for name, colour in _HAIR.items() if has[name]), _HAIR["Brown_Hair"])
    hair = tuple((np.array(hair) + rng.normal(0, 18, size=3)).clip(0, 255).astype(int).tolist())
    if not has["Bald"]:
        draw.ellipse((x - 56, y - 86, x + 56, y + (20 if has["Male"] else 76)), fill=hair)
    draw.ellipse((x - 42, y - 62, x + 42, y + 62), fill=tone)
    if has["Bangs"] and not has["Bald"]:
        draw.chord((x - 40, y - 64, x + 40, y - 20), 180, 360, fill=hair)
    if has["Wearing_Hat"]:
        draw.rectangle((x - 60, y - 100, x + 60, y - 36), fill=tuple(rng.integers(0, 256, size=3).tolist()))
        draw.rectangle((x - 74, y - 40, x + 74, y - 32), fill=(30, 30, 30))
    for side in (-18, 18):
        draw.ellipse((x + side - 6, y - 16, x + side + 6, y - 8), fill=(250, 250, 250))
        draw.ellipse((x + side - 3, y - 15, x + side + 3, y - 9), fill=(40, 30, 20))
        if has["Eyeglasses"]:
            draw.ellipse((x + side - 13, y - 24, x + side + 13, y), outline=(20, 20, 20), width=3)
    if not has["No_Beard"]:
        draw.chord((x - 34, y + 14, x + 34, y + 64), 0, 180, fill=hair)
    lips = (190, 40, 60) if has["Wearing_Lipstick"] else (150, 80, 80)
    low, high = (20, 44) if has["Smiling"] else (30, 36)
    draw.arc((x - 18, y + low, x + 18, y + high), 0, 180, fill=lips, width=5)
    light = rng.uniform(0.55, 1.1) * (1 + rng.normal(0, 0.08, size=3))
    pixels = np.asarray(picture) * light + rng.normal(0, 6, size=(218, 178, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
