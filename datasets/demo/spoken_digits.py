"""Demo data in the layout of the Free Spoken Digit Dataset and MNIST."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from datasets.demo.media import made_sound, write_wav


def make_spoken_digits(root: Path, seed: int = 0, takes: int = 3, speakers: int = 6) -> None:
    """``mnist/`` with the four idx files and ``recordings/<digit>_<speaker>_<take>.wav``, 8 kHz, both made up.

    Args:
        takes: recordings of each digit by each speaker.
    """
    from datasets.digits import load_digit_images
    from datasets.splits import stratified_split

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
