"""Missing images and texts, as in MAP (Lee et al., CVPR 2023) and CMPT (docs/reference/datasets.md §12.4.1)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.missingness.base import DEFAULT_SEED, Rows, ScenarioWithRate
from utils.errors import UserError

# Strategy -> title of its curves, and what is missing.
CAPTIONS = {
    "text": ("text or sound missing", "text"),
    "image": ("image or video missing", "image"),
    "both": ("either missing", "text or image"),
}
ORDERS = ("exact", "running")
SEED = 0  # of all splits
TEXT_CODE, IMAGE_CODE = 1, 2  # in MAP's missing tables
# Kinds of modality that count as text and as image.
TEXT_KINDS, IMAGE_KINDS = ("text", "audio"), ("image", "video")


@dataclass(frozen=True)
class ImageText(ScenarioWithRate):
    """The text or the image is missing in a fraction of the rows.

    Attributes:
        strategy: text | image | both (half of the incomplete rows miss the text, the others the image).
        order: ``exact``: every split starts from the seed. ``running``: train, val and test are drawn one after the
            other from one generator, as in MAP.
    """

    strategy: str = "both"
    order: str = "exact"
    kind = "image_text"
    examples = {
        "image_text_both_0.7": "of an image and a text: 35 % of the rows lack the text, and another 35 % the image",
        "image_text_text_0.7": "of an image and a text: 70 % of the rows lack the text",
        "image_text_image_0.7": "of an image and a text: 70 % of the rows lack the image",
        "image_text_running_both_0.7": "as `image_text_both_0.7`, but training, validation and test masks are drawn "
        "one after the other from one generator; also `image_text_running_text_0.7` and `image_text_running_image_0.7`",
    }
    keys = ("strategy", "rate", "order")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strategy not in CAPTIONS:
            raise UserError(
                f"'{self.strategy}' cannot be missing, known are {', '.join(CAPTIONS)} (image_text_both_0.7)"
            )
        if self.order not in ORDERS:
            raise UserError(f"unknown order '{self.order}', leave it out or write running")

    @classmethod
    def parse(cls, text: str) -> ImageText | None:
        if not text.startswith("image_text_"):
            return None
        strategy, _, rate = text.removeprefix("image_text_").rpartition("_")
        order = "running" if strategy.startswith("running_") else "exact"
        return cls(cls.to_rate(rate), strategy.removeprefix("running_"), order)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> ImageText:
        strategy, order = str(values.get("strategy", "both")), str(values.get("order", "exact"))
        return cls(cls.to_rate(values.get("rate")), strategy, order)

    @property
    def pattern_name(self) -> str:
        infix = "running_" if self.continues_splits else ""
        return f"image_text_{infix}{self.strategy}_{self.rate_text}"

    @property
    def continues_splits(self) -> bool:
        return self.order == "running"

    @property
    def protocol(self) -> str:
        return f"MAP {self.strategy}"

    def family(self, modalities: Sequence[str] = ()) -> str:
        return CAPTIONS[self.strategy][0] + (" (running)" if self.continues_splits else "")

    def pattern_caption(self, modalities: Sequence[str] = ()) -> str:
        suffix = " (running)" if self.continues_splits else ""
        return f"{CAPTIONS[self.strategy][1]} missing in {self.percent}{suffix}"

    def seed(self, base: int, split: int) -> int:
        return (SEED + base - DEFAULT_SEED) % 2**32

    def realised_rate(
        self, mask: np.ndarray, cells: Mapping[str, np.ndarray] | None = None, kinds: Sequence[str] | None = None
    ) -> float:
        """The fraction of the rows without the text, the image, or (``both``) either of them.

        Without ``kinds``, the modality that is missing most often counts as the one that the scenario hides.
        """
        if self.strategy == "both":
            return float(mask.any(1).mean())
        hidden_kinds = TEXT_KINDS if self.strategy == "text" else IMAGE_KINDS
        columns = [i for i, kind in enumerate(kinds or ()) if kind in hidden_kinds] or [int(mask.mean(0).argmax())]
        return float(mask[:, columns].mean())

    def check(self, m: int, names: Sequence[str] | None = None) -> None:
        super().check(m, names)
        if m != 2:
            raise UserError(
                f"missing scenario '{self.name}' is for an image and a text, the data set has {m} modalities: write "
                "for example random_0.4"
            )

    def generate(self, rows: Rows) -> np.ndarray:
        self.check(rows.columns)
        rng = random.Random(rows.seed)
        for n in rows.earlier if self.continues_splits else ():
            map_codes(n, self.strategy, self.rate, rng)
        return mask_of_codes(map_codes(rows.n, self.strategy, self.rate, rng), rows.kinds, self.name)


def map_codes(n: int, strategy: str, rate: float, seed: int | random.Random) -> np.ndarray:
    """A missing table of MAP: int(n rate) rows are incomplete, drawn by Python's generator.

    Args:
        strategy: text | image | both; with ``both``, int(half) of the incomplete rows miss the image.
        seed: or the generator to continue with.

    Returns:
        (n,) int64: 0 complete, 1 text missing, 2 image missing.
    """
    rng = seed if isinstance(seed, random.Random) else random.Random(seed)
    k = int(n * rate)
    codes = np.zeros(n, dtype=np.int64)
    picked = rng.sample(range(n), k)
    codes[picked] = IMAGE_CODE if strategy == "image" else TEXT_CODE
    if strategy == "both":
        codes[rng.sample(picked, int(k * 0.5))] = IMAGE_CODE
    return codes


def mask_of_codes(codes: np.ndarray, kinds: Sequence[str], name: str) -> np.ndarray:
    """MAP's codes (n,) as a mask (n, 2) bool, True = missing.

    Args:
        kinds: of the two modalities: image or video, and text or audio, in any order.
        name: of the scenario, for the message.

    Raises:
        UserError: other modalities.
    """
    text, image = ([i for i, kind in enumerate(kinds) if kind in group] for group in (TEXT_KINDS, IMAGE_KINDS))
    if len(kinds) != 2 or len(text) != 1 or len(image) != 1:
        raise UserError(
            f"missing scenario '{name}' is for an image (or video) and a text (or audio), the data set has "
            f"{', '.join(kinds)}: use whole modalities, such as whole_1, or random_0.4"
        )
    mask = np.zeros((len(codes), 2), dtype=bool)
    mask[:, text[0]], mask[:, image[0]] = codes == TEXT_CODE, codes == IMAGE_CODE
    return mask
