"""Spoken digits as a series and a table, from the Free Spoken Digit Dataset, for ``dataset=SpokenDigitSeries``:
``python -m datasets.spoken_digit_series RECORDINGS FOLDER``.

A recording becomes a series of log-mel energies, one time step per 10 ms and as many as it lasts, and a row of measures
of the waveform. Takes 0 to 4 of every speaker and digit are the test split of the authors, 5 to 9 the validation split.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from datasets.readers.audio import LogMel, read_audio, resample
from datasets.spoken_digits import OFFICIAL_TEST, OFFICIAL_VAL, find_recordings
from utils.errors import UserError
from utils.progress import Progress

RATE, MEL_BINS = 8_000, 20
LONGEST = 300  # frames of 10 ms; the longest recording has 2.3 s


def measures(waveform: np.ndarray) -> dict[str, float]:
    """Duration (s), loudness (dB of full scale), zero crossings per second, and spectral centroid (Hz)."""
    centred = waveform.astype(np.float64) - waveform.mean()
    power = np.abs(np.fft.rfft(centred)) ** 2
    seconds = len(centred) / RATE
    frequencies = np.fft.rfftfreq(len(centred), 1 / RATE)
    return {
        "seconds": seconds,
        "loudness": float(10 * np.log10((centred**2).mean() + 1e-12)),
        "crossings": float((np.signbit(centred[1:]) != np.signbit(centred[:-1])).sum() / seconds),
        "centroid": float((frequencies * power).sum() / (power.sum() + 1e-12)),
    }


def make_series(recordings: Path, folder: Path) -> Path:
    """Write ``recordings.csv`` and ``frames/<recording>.npy``, arrays (time steps, 20).

    Args:
        recordings: folder with ``{digit}_{speaker}_{take}.wav``.

    Returns:
        The CSV file.

    Raises:
        UserError: no recordings, or a file that cannot be read.
    """
    (folder / "frames").mkdir(parents=True, exist_ok=True)
    front, rows = LogMel(LONGEST, MEL_BINS, mean=0.0, deviation=0.5, rate=RATE), []
    files = find_recordings(recordings)
    for recording in Progress(files, "spoken digits", len(files), unit="recording"):
        try:
            waveform = resample(*read_audio(recording.path), RATE)
            energies = front.prepare(waveform)
        except ValueError as error:
            raise UserError(f"{recording.path} cannot be used: {error}: restore or remove it") from None
        steps = min(LONGEST, 1 + (len(waveform) - RATE // 40) // (RATE // 100))
        stem, take = recording.path.stem, recording.take
        np.save(folder / "frames" / f"{stem}.npy", energies[:steps].astype(np.float32))
        split = "test" if take < OFFICIAL_TEST else "val" if take < OFFICIAL_VAL else "train"
        rows.append(
            {"recording": stem, "digit": recording.digit, "speaker": recording.speaker, "split": split}
            | {name: f"{value:.4f}" for name, value in measures(waveform).items()}
        )
    csv = folder / "recordings.csv"
    pd.DataFrame(rows).to_csv(csv, index=False)
    return csv


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m datasets.spoken_digit_series", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("recordings", type=Path, help="folder with {digit}_{speaker}_{take}.wav")
    parser.add_argument("folder", type=Path, help="to write to: data/spoken_digit_series")
    given = parser.parse_args(arguments)
    print(make_series(given.recordings, given.folder))


if __name__ == "__main__":
    main()
