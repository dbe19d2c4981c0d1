"""Small seeded demo data of the audio and video sets in the real file layouts, for ``dataset.demo=true`` and tests.

A class is a pitch with a beat to the ear and a coloured shape that moves to the eye. Some classes sound alike in half
of their clips, others look alike in half of theirs: both modalities together know more than each.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image, ImageDraw

SIDE = (64, 48)
VIDEO_RATE = 10
_HUES = ((210, 60, 50), (60, 180, 70), (60, 90, 210), (220, 200, 60), (180, 70, 190), (60, 190, 200))


def made_sound(label: int, seconds: float, rate: int, rng: np.random.Generator) -> np.ndarray:
    """(n,) float32: a tone of the class with overtones and a beat, in noise; classes 0 and 1 share theirs at times."""
    if label == 1 and rng.random() < 0.5:
        label = 0
    t = np.arange(round(seconds * rate)) / rate
    pitch = 180 * 2 ** (label / 2.5) * rng.uniform(0.98, 1.02)
    tone = sum(np.sin(2 * np.pi * pitch * k * t + rng.uniform(0, 6)) / k for k in (1, 2, 3))
    beat = 0.6 + 0.4 * np.sin(2 * np.pi * (2 + label) * t)
    return (0.2 * beat * tone + rng.normal(0, 0.03, len(t))).astype(np.float32)


def made_frames(label: int, n: int, rng: np.random.Generator) -> list[Image.Image]:
    """n pictures of 64 x 48: a shape in the colour of the class crosses a grey ground; 2 and 3 look alike at times."""
    if label == 3 and rng.random() < 0.5:
        label = 2
    ground, x, y, dx = int(rng.integers(60, 150)), *rng.uniform(8, 30, 2), rng.uniform(-4, 4)
    colour = tuple(int(v) for v in np.clip(np.array(_HUES[label % 6]) + rng.normal(0, 15, 3), 0, 255))
    pictures = []
    for i in range(n):
        picture = Image.new("RGB", SIDE, (ground,) * 3)
        left = (x + i * dx) % 40
        draw = ImageDraw.Draw(picture)
        (draw.ellipse if label % 2 else draw.rectangle)((left, y, left + 18, y + 14), fill=colour)
        pixels = np.asarray(picture) + rng.normal(0, 8, (SIDE[1], SIDE[0], 3))
        pictures.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    return pictures


def write_video(
    path: Path, pictures: Sequence[Image.Image], codec: str = "mpeg4", sound: tuple[np.ndarray, int] | None = None
) -> Path:
    """A video of ten frames a second, with a sound track (AAC) where there is ``sound`` (waveform, rate)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=VIDEO_RATE, options={"threads": "1"})
        assert isinstance(video, av.VideoStream)
        video.width, video.height = pictures[0].size
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=sound[1], layout="mono") if sound else None
        assert audio is None or isinstance(audio, av.AudioStream)
        for picture in pictures:
            container.mux(video.encode(av.VideoFrame.from_image(picture)))
        container.mux(video.encode())
        if sound and audio:
            samples = av.AudioFrame.from_ndarray(sound[0][None], format="fltp", layout="mono")
            samples.sample_rate = sound[1]
            container.mux([*audio.encode(samples), *audio.encode()])
    return path


def write_wav(path: Path, waveform: np.ndarray, rate: int) -> Path:
    """A wav file of 16 bit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform.clip(-1, 1), rate, subtype="PCM_16")
    return path


def write_frames(folder: Path, pictures: Sequence[Image.Image]) -> Path:
    """00001.jpg and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures, 1):
        picture.save(folder / f"{i:05d}.jpg", quality=92)
    return folder
