"""Spoken digits as a series and a table: the maker, and the configuration on ``FromCSV``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from datasets.demo.media import made_sound, write_wav
from datasets.readers.audio import LogMel
from datasets.spoken_digit_series import main, make_series, measures
from trainers.config.compose import compose_config
from trainers.loading import Run
from utils.errors import UserError


def make_recordings(folder: Path, takes: int = 12) -> Path:
    rng = np.random.default_rng(0)
    for digit in range(10):
        for take in range(takes):
            write_wav(folder / f"{digit}_ann_{take}.wav", made_sound(digit, rng.uniform(0.25, 0.7), 8_000, rng), 8_000)
    return folder


def test_recordings_become_series_and_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recordings = make_recordings(tmp_path / "recordings")
    main([str(recordings), str(tmp_path / "spoken_digit_series")])
    csv = tmp_path / "spoken_digit_series" / "recordings.csv"
    assert capsys.readouterr().out.strip() == str(csv)
    run = Run(compose_config("dataset=SpokenDigitSeries", f"paths.data={tmp_path}", f"paths.cache={tmp_path}"))
    run.data.prepare()
    assert {split: len(run.data.split(split)) for split in ("train", "val", "test")} == {
        **{"train": 20, "val": 50, "test": 50},
    }
    assert run.data.kinds == {"frames": "series", "measures": "table"}
    frame = pd.read_csv(csv).set_index("recording")
    for i, name in enumerate(run.data.split("train").names()):
        waveform, _ = soundfile.read(recordings / f"{name}.wav", dtype="float32")
        steps = 1 + (len(waveform) - 200) // 80  # windows of 25 ms every 10 ms
        energies = LogMel(steps, 20, mean=0.0, deviation=0.5, rate=8_000).prepare(waveform)
        stored = run.data.split("train").read("frames")[i].numpy()
        used = min(steps, 64)
        np.testing.assert_allclose(stored[:used], energies[:used], atol=1e-4)
        assert np.array_equal(run.data.natural_cells("train")["frames"][i].all(1), np.arange(64) >= used)
        assert frame.loc[name, "seconds"] == pytest.approx(len(waveform) / 8_000, abs=1e-3)
        assert str(frame.loc[name, "digit"]) == name[0] == str(int(run.data.split("train").read("target")[i]))


def test_measures_of_a_tone() -> None:
    time = np.arange(8_000) / 8_000
    actual = measures(0.5 * np.sin(2 * np.pi * 440 * time + 0.1))
    assert actual == pytest.approx(
        {"seconds": 1.0, "loudness": 10 * np.log10(0.125), "crossings": 880, "centroid": 440}, rel=2e-3
    )


def test_a_recording_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    recordings = make_recordings(tmp_path / "recordings", takes=1)
    (recordings / "3_ann_0.wav").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"3_ann_0.wav cannot be used"):
        make_series(recordings, tmp_path / "out")
