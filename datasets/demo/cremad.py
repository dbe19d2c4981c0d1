"""Demo data in the layout of CREMA-D."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datasets.demo.media import VIDEO_RATE, made_frames, made_sound, write_frames, write_video, write_wav
from utils.progress import Progress


def make_cremad(root: Path, seed: int = 0, per_class: tuple[int, int] = (12, 4), frames: bool = False) -> None:
    """The release of CREMA-D with the lists of OGM-GE (with their byte order mark).

    Args:
        per_class: training and test clips of each emotion.
        frames: folders of frames, as prepared, instead of videos.
    """
    from datasets.cremad import EMOTIONS

    rng = np.random.default_rng(seed)
    number = 1001
    for split, n in zip(("train", "test"), per_class):
        lines = []
        for label, emotion in Progress(
            list(enumerate(EMOTIONS)) * n, desc=f"making {split} clips", unit="clip", leave=False
        ):
            clip, seconds = f"{number}_IEO_{emotion}_XX", rng.uniform(1.6, 3.2)
            number += 1
            lines.append(f"{clip},{emotion}")
            write_wav(root / f"AudioWAV/{clip}.wav", made_sound(label, seconds, 16_000, rng), 16_000)
            if frames:
                write_frames(root / f"Image-01-FPS/{clip}", made_frames(label, round(seconds), rng))
            else:
                pictures = made_frames(label, round(seconds * VIDEO_RATE), rng)
                write_video(root / f"VideoFlash/{clip}.flv", pictures, "flv")
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
