"""Demo data in the layout of Kinetics-Sound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.demo.media import made_frames, made_sound, write_frames, write_wav
from utils.progress import Progress


def make_kinetics_sound(
    root: Path,
    seed: int = 0,
    per_class: tuple[int, int] = (12, 4),
    classes: Sequence[str] = ("playing drums", "playing violin", "tap dancing", "chopping wood"),
) -> None:
    """UDML's folders of Kinetics-Sound, with a ``class.txt``.

    Args:
        per_class: training and test clips of each class.
    """
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    (root / "class.txt").write_text(",".join(classes))
    for image, sound, n in (("train_img", "train", per_class[0]), ("val_img", "test", per_class[1])):
        for label, name in Progress(
            list(enumerate(classes)) * n, desc=f"making {sound} clips", unit="clip", leave=False
        ):
            clip, seconds = f"{rng.integers(2**40):011x}_000010_000020", int(rng.integers(3, 6))
            folder = name.replace(" ", "_")
            write_frames(root / f"visual/{image}/Image-01-FPS/{folder}/{clip}", made_frames(label, seconds, rng))
            write_wav(root / f"audio/{sound}/{folder}/{clip}.wav", made_sound(label, seconds, 16_000, rng), 16_000)
