"""Small seeded stand-ins for the audio and video sets, in the real file layouts, for ``dataset.demo=true`` and tests.

A class is a pitch with a beat to the ear and a coloured shape that moves to the eye. Some classes sound alike in half
of their clips, others look alike in half of theirs: both modalities together know more than each.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image, ImageDraw
from tqdm import tqdm

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
        for label, emotion in tqdm(
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
        for label, name in tqdm(list(enumerate(classes)) * n, desc=f"making {sound} clips", unit="clip", leave=False):
            clip, seconds = f"{rng.integers(2**40):011x}_000010_000020", int(rng.integers(3, 6))
            folder = name.replace(" ", "_")
            write_frames(root / f"visual/{image}/Image-01-FPS/{folder}/{clip}", made_frames(label, seconds, rng))
            write_wav(root / f"audio/{sound}/{folder}/{clip}.wav", made_sound(label, seconds, 16_000, rng), 16_000)


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
        for label, name in tqdm(list(enumerate(classes)) * n, desc=f"making {split} clips", unit="clip", leave=False):
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


def make_spoken_digits(root: Path, seed: int = 0, takes: int = 3, speakers: int = 6) -> None:
    """``mnist/`` with the four idx files and ``recordings/<digit>_<speaker>_<take>.wav``, 8 kHz, both made up.

    Args:
        takes: recordings of each digit by each speaker.
    """
    from datasets.digits import load_digit_images
    from datasets.polymnist import stratified_split

    rng = np.random.default_rng(seed)
    images, labels = load_digit_images()
    (root / "mnist").mkdir(parents=True)
    parts = stratified_split(labels, (len(labels) - 400, 400), seed)
    for prefix, rows in zip(("train", "t10k"), parts):
        for kind, array in (("images-idx3", images[rows]), ("labels-idx1", labels[rows].astype(np.uint8))):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
            content = gzip.compress(head + array.tobytes(), mtime=0)
            (root / f"mnist/{prefix}-{kind}-ubyte.gz").write_bytes(content)
    for speaker in range(speakers):
        for digit in range(10):
            for take in range(takes):
                sound = made_sound(digit, rng.uniform(0.25, 0.7), 8_000, rng)
                write_wav(root / f"recordings/{digit}_speaker{speaker}_{take}.wav", sound, 8_000)
