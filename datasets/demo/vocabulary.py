"""Small seeded demo data of Food-101 and MM-IMDb in the real file layouts, with a vocabulary for each.

As in ``datasets/demo/folders.py``: they show that everything runs; no number of theirs says anything about the real
sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_vocabulary(path: Path, texts: Sequence[str]) -> Path:
    """A WordPiece vocabulary of all words of some texts, and of single characters for all others."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = sorted(
        {word for text in texts for word in "".join(c if c.isalnum() else " " for c in text.lower()).split()}
    )
    tokens = [*SPECIAL, *letters, *(f"##{c}" for c in letters), *"!,.:;'|-?", *words]
    path.write_text("\n".join(dict.fromkeys(tokens)) + "\n", encoding="utf-8")
    return path


def _pattern(colours: np.ndarray, stripes: float, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Stripes of two colours across a picture of (width, height), at an angle and with noise that differ each time."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    wave = np.sin(2 * np.pi * stripes * (x * np.cos(angle) + y * np.sin(angle)) / min(size) + phase)
    share = (wave[..., None] + 1) / 2
    picture = (
        share * colours[0] + (1 - share) * colours[1] + rng.normal(0, 40, size=3) + rng.normal(0, 25, (*x.shape, 3))
    )
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))
