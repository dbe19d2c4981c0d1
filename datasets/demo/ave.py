"""Demo data in the layout of AVE."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.demo.media import VIDEO_RATE, made_frames, made_sound, write_video
from utils.progress import Progress


def make_ave(
    root: Path,
    seed: int = 0,
    per_class: tuple[int, int, int] = (12, 3, 4),
    classes: Sequence[str] = ("Violin, fiddle", "Bark", "Church bell", "Helicopter", "Male speech"),
) -> None:
    """The release of AVE: videos with a sound track and the three lists; one video is listed twice.

    Args:
        per_class: training, validation and test clips of each category.
    """
    rng = np.random.default_rng(seed)
    for split, n in zip(("train", "val", "test"), per_class):
        lines = []
        for label, name in Progress(
            list(enumerate(classes)) * n, desc=f"making {split} clips", unit="clip", leave=False
        ):
            video = f"{rng.integers(2**40):011x}"
            start, end = sorted(rng.choice(5, 2, replace=False).tolist())
            # Outside the annotated part there is something else.
            n_frames, rate = 5 * VIDEO_RATE, 16_000
            other = int(rng.integers(len(classes)))
            pictures, sound = made_frames(other, n_frames, rng), made_sound(other, 5, rate, rng)
            part = slice(start * VIDEO_RATE, end * VIDEO_RATE)
            pictures[part] = made_frames(label, (end - start) * VIDEO_RATE, rng)
            sound[start * rate : end * rate] = made_sound(label, end - start, rate, rng)
            write_video(root / f"AVE/{video}.mp4", pictures, sound=(sound, rate))
            lines.append(f"{name}&{video}&good&{start}&{end}")
        if split == "train":
            lines.append(lines[0])
        (root / f"{split}Set.txt").write_text("\n".join(lines) + "\n")
