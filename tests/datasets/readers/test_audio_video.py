"""Sound and video: decoding, front ends, frames, resuming (docs/reference/datasets.md §6.4, §6.5, §7.2, §14.5)."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from transformers import ASTFeatureExtractor

from datasets.demo.media import made_frames, made_sound, write_frames, write_video, write_wav
from datasets.readers.audio import ClipProblem, LogMel, LogSTFT, hear, read_audio, resample
from datasets.readers.pictures import frame_files
from datasets.readers.video import ClipReader, Frames, extract_frames, spread

CREMAD = LogSTFT(22_050, 3.0, 512, 353, repeat=3)
KINETICS = LogSTFT(16_000, 5.0, 256, 128, longer=10.0)
RNG = np.random.default_rng(0)


def tone(pitch: float, seconds: float, rate: int) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------- decoding


def test_a_wav_is_read_as_the_mean_of_its_channels(tmp_path: Path) -> None:
    left, right = tone(200, 0.5, 8000), tone(300, 0.5, 8000)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 8000, subtype="FLOAT")
    waveform, rate = read_audio(tmp_path / "a.wav")
    assert rate == 8000 and waveform.dtype == np.float32
    np.testing.assert_allclose(waveform, (left + right) / 2, atol=1e-7)
    part, _ = read_audio(tmp_path / "a.wav", 0.125, 0.25)
    assert np.array_equal(part, waveform[1000:2000])


def test_the_sound_track_of_a_video_is_what_was_put_in(tmp_path: Path) -> None:
    """AAC loses a little and begins with some silence of its own: the loudest pitch tells."""
    path = write_video(tmp_path / "v.mp4", made_frames(0, 20, RNG), sound=(tone(440, 2, 16_000), 16_000))
    waveform, rate = read_audio(path)
    assert rate == 16_000 and abs(len(waveform) - 32_000) < 3000
    spectrum = np.abs(np.fft.rfft(waveform[8000:24_000]))
    assert np.argmax(spectrum) == 440
    assert np.abs(waveform[8000:24_000]).max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("rate", "target"), [(8000, 16_000), (16_000, 22_050), (48_000, 16_000)])
def test_resampling_keeps_pitch_and_length(rate: int, target: int) -> None:
    resampled = resample(tone(440, 1, rate), rate, target)
    assert resampled.dtype == np.float32 and len(resampled) == target
    middle = slice(target // 10, -target // 10)
    np.testing.assert_allclose(resampled[middle], tone(440, 1, target)[middle], atol=2e-3)
    assert np.array_equal(resample(resampled, target, target), resampled)


def write_bad(folder: Path) -> dict[str, tuple[Path, str]]:
    """A file of each kind that cannot be heard, with the kind of its problem."""
    sound, pictures = made_sound(0, 1, 16_000, RNG), made_frames(0, 10, RNG)
    files = {
        "broken": (folder / "broken.wav", "unreadable"),
        "cut": (folder / "cut.mp4", "unreadable"),
        "empty": (write_wav(folder / "empty.wav", sound[:0], 16_000), "no_audio"),
        "mute": (write_video(folder / "mute.mp4", pictures), "no_audio"),
        "silent": (write_wav(folder / "silent.wav", 0 * sound, 16_000), "silent"),
        "short": (write_wav(folder / "short.wav", sound[:300], 16_000), "short"),
        "nan": (folder / "nan.wav", "unreadable"),
    }
    files["broken"][0].write_bytes(b"RIFF, but nothing of the sort")
    files["cut"][0].write_bytes(write_video(folder / "whole.mp4", pictures, sound=(sound, 16_000)).read_bytes()[:200])
    soundfile.write(files["nan"][0], np.where(np.arange(16_000) == 7, np.nan, 0.1), 16_000, subtype="FLOAT")
    return files


def test_what_cannot_be_heard_says_why(tmp_path: Path) -> None:
    for path, kind in write_bad(tmp_path).values():
        with pytest.raises(ClipProblem) as caught:
            hear(LogMel(32, 16), path, None, None, keeps_silent=False)
        assert caught.value.kind == kind, path
    silent = hear(LogMel(32, 16), tmp_path / "silent.wav", None, None, keeps_silent=True)
    assert silent.shape == (32, 16) and np.isfinite(silent).all()
    with pytest.raises(ClipProblem, match="3 times which are less than 3 s"):
        CREMAD.prepare(np.ones(22_049, dtype=np.float32))
    CREMAD.prepare(np.ones(22_050, dtype=np.float32))


# ----------------------------------------------------------------------------------------------------------- front ends


def slow_filter_bank(waveform: np.ndarray, mel_bins: int, rate: int = 16_000) -> np.ndarray:
    """Kaldi's filter bank in double precision, frame by frame and filter by filter: Hanning windows of 25 ms every 10
    ms without padding, the mean of the window taken off, pre-emphasis 0.97, power of the next power of two
    bins, triangles in mel from 20 Hz to half the rate, natural logarithm over 2^-23."""

    def mel(f: float) -> float:
        return 1127 * math.log(1 + f / 700)

    step = (mel(rate / 2) - mel(20)) / (mel_bins + 1)
    n = rate // 40
    fft = 2 ** math.ceil(math.log2(n))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / (n - 1))
    frames = []
    for start in range(0, len(waveform) - n + 1, rate // 100):
        x = waveform[start : start + n].astype(np.float64)
        x = x - x.mean()
        x = np.concatenate([[x[0] * (1 - 0.97)], x[1:] - 0.97 * x[:-1]]) * window
        power = np.abs(np.fft.rfft(x, fft)) ** 2
        row = []
        for b in range(mel_bins):
            low, peak, high = (mel(20) + (b + k) * step for k in (0, 1, 2))
            energy = 0.0
            for k in range(fft // 2):
                m = mel(k * rate / fft)
                if low < m < high:
                    energy += power[k] * ((m - low) / step if m <= peak else (high - m) / step)
            row.append(math.log(max(energy, 2.0**-23)))
        frames.append(row)
    return np.array(frames)


@pytest.mark.parametrize(("seconds", "frames", "rate"), [(0.5, 64, 16_000), (1.0, 32, 16_000), (0.5, 64, 8_000)])
def test_log_mel_equals_the_filter_bank_written_out(seconds: float, frames: int, rate: int) -> None:
    waveform = made_sound(2, seconds, rate, np.random.default_rng(1)) + 0.1
    front = LogMel(frames, 24, rate=rate)
    ours = front.prepare(waveform)
    assert ours.shape == front.shape == (frames, 24) and ours.dtype == np.float32
    bank = slow_filter_bank(waveform - waveform.mean(), 24, rate)
    expected = np.zeros((frames, 24))
    n = min(frames, len(bank))
    assert len(bank) == 1 + (round(seconds * rate) - rate // 40) // (rate // 100)
    expected[:n] = bank[:n]
    np.testing.assert_allclose(ours, (expected + 4.2677393) / (2 * 4.5689974), atol=2e-3)


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
def test_log_mel_of_the_published_size() -> None:
    waveform = made_sound(0, 11, 16_000, RNG)
    ours = LogMel().prepare(waveform)
    if find_spec("torchaudio") is None:  # with which transformers computes another way
        needed = waveform[: 400 + 1023 * 160] - waveform.mean()
        published = ASTFeatureExtractor()(needed, sampling_rate=16_000, return_tensors="np")["input_values"][0]
        assert np.array_equal(ours, published)
    assert ours.shape == LogMel().shape == (1024, 128)
    assert np.isfinite(ours).all() and (ours[-1] != ours[-1, 0]).any(), "11 s fill all frames"
    padded = LogMel().prepare(made_sound(0, 1, 16_000, RNG))[98:]
    np.testing.assert_allclose(padded, 4.2677393 / (2 * 4.5689974), rtol=1e-6)


def slow_stft(waveform: np.ndarray, n_fft: int, hop: int) -> np.ndarray:
    """log(|S| + 1e-7) window by window, with the ends mirrored."""
    padded = np.pad(waveform.astype(np.float64), n_fft // 2, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    starts = range(0, len(waveform) + 1, hop)
    return np.log(np.abs(np.stack([np.fft.rfft(padded[s : s + n_fft] * window) for s in starts], 1)) + 1e-7)


@pytest.mark.parametrize("seconds", [1.3, 2.0, 4.0])
def test_the_spectrum_of_crema_d(seconds: float) -> None:
    """Three times end to end, the first 3 s, limited to [-1, 1] (docs/reference/datasets.md §6.4)."""
    waveform = 4 * made_sound(1, seconds, 22_050, np.random.default_rng(2))
    ours = CREMAD.prepare(waveform)
    assert ours.shape == CREMAD.shape == (257, 188) and ours.dtype == np.float32 and np.abs(waveform).max() > 1
    tiled = np.concatenate([waveform] * 3)[:66_150].clip(-1, 1)
    np.testing.assert_allclose(ours, slow_stft(tiled, 512, 353), atol=5e-3)
    assert CREMAD.finish(torch.from_numpy(ours), None) is not None


def test_the_window_of_kinetics_sound() -> None:
    """Repeated up to 10 s, of which 5 s are heard: random ones in training, the middle ones otherwise
    (docs/reference/datasets.md §7.2).
    """
    assert KINETICS.shape == (129, 626) and KINETICS.stored == ((160_000,), np.int16)
    waveform = np.round(made_sound(2, 4, 16_000, np.random.default_rng(3)) * 2**15).clip(-(2**15), 2**15 - 1) / 2**15
    stored = KINETICS.prepare(waveform.astype(np.float32))
    assert np.array_equal(stored / 2**15, np.concatenate([waveform] * 3)[:160_000]), "16-bit files lose nothing"
    batch = torch.from_numpy(np.stack([stored, stored[::-1].copy()]))
    ours = KINETICS.finish(batch, None)
    assert ours.shape == (2, 129, 626)
    for row in (0, 1):
        np.testing.assert_allclose(
            ours[row], slow_stft(batch[row, 40_000:120_000].numpy() / 2**15, 256, 128), atol=5e-3
        )
    drawn = KINETICS.finish(batch, torch.Generator().manual_seed(1))
    starts = torch.randint(80_001, (2,), generator=torch.Generator().manual_seed(1)).tolist()
    assert starts[0] != starts[1]
    for row, start in enumerate(starts):
        np.testing.assert_allclose(
            drawn[row], slow_stft(batch[row, start : start + 80_000].numpy() / 2**15, 256, 128), atol=5e-3
        )


def test_front_ends_refuse_what_does_not_go_together() -> None:
    with pytest.raises(ValueError, match="longer=4 must be at least"):
        LogSTFT(16_000, 5.0, 256, 128, longer=4)
    with pytest.raises(ValueError, match="no more than half a window"):
        LogSTFT(16_000, 0.01, 512, 128)


# ---------------------------------------------------------------------------------------------------------------- video


def write_counting(path: Path, n: int) -> Path:
    """A video without losses, ten frames a second, whose grey tells their number."""
    return write_video(path, [Image.new("RGB", (64, 48), (5 * i,) * 3) for i in range(n)], "ffv1")


def numbers(pictures: list[Image.Image]) -> list[int]:
    return [round(float(np.asarray(p).mean()) / 5) for p in pictures]


def fps_filter(times: list[float], end: float, fps: float) -> list[int]:
    """Which frames ffmpeg's fps filter takes: each belongs to the nearest output time (halves up), and at each output
    time before the end, itself rounded, the last one is shown that has come by then."""
    slots = [math.floor(t * fps + 0.5) for t in times]
    return [max(i for i, slot in enumerate(slots) if slot <= k) for k in range(math.floor(end * fps + 0.5))]


@pytest.mark.parametrize(("n", "fps"), [(34, 1), (36, 1), (45, 1), (20, 2), (22, 2), (25, 2.5), (6, 1)])
def test_frames_are_those_of_the_fps_filter(n: int, fps: float, tmp_path: Path) -> None:
    actual = numbers(extract_frames(write_counting(tmp_path / "v.mkv", n), fps))
    assert actual == fps_filter([i / 10 for i in range(n)], n / 10, fps)


def test_a_part_of_a_video(tmp_path: Path) -> None:
    path = write_counting(tmp_path / "v.mkv", 40)
    assert numbers(extract_frames(path, 1, 1, 3)) == [14, 24]
    for start, end in ((9, 12), (1, 1.3)):  # behind the end, and less than half a second
        with pytest.raises(ClipProblem, match="no frame at 1 per second") as caught:
            extract_frames(path, 1, start, end)
        assert caught.value.kind == "no_frames"


def test_a_video_and_the_folder_of_its_frames_read_alike(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.flv", made_frames(1, 40, RNG), "flv")
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, picture in enumerate(extract_frames(video), 1):
        picture.save(folder / f"{i:05d}.png")
    reader = ClipReader(32, 6)
    (one, n_one), (other, n_other) = reader(video), reader(folder)
    assert n_one == n_other == 4 and np.array_equal(one, other) and one.shape == (6, 3, 32, 32)
    assert one[:4].any(axis=(1, 2, 3)).all() and not one[4:].any()
    few, n_few = ClipReader(32, 2)(folder)
    assert n_few == 2 and np.array_equal(few, one[[1, 3]]), "evenly spaced ones of more"


def test_what_cannot_be_seen_says_why(tmp_path: Path) -> None:
    write_frames(tmp_path / "two", made_frames(0, 2, RNG))
    (tmp_path / "none").mkdir()
    write_frames(tmp_path / "spoilt", made_frames(0, 3, RNG))
    frame_files(tmp_path / "spoilt")[1].write_bytes(b"no picture")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    cases = {"two": "few_frames", "none": "no_frames", "spoilt": "unreadable", "broken.mp4": "unreadable"}
    for name, kind in cases.items():
        with pytest.raises(ClipProblem) as caught:
            ClipReader(16, 4, least=3)(tmp_path / name)
        assert caught.value.kind == kind
    write_wav(tmp_path / "sound.wav", made_sound(0, 1, 16_000, RNG), 16_000)
    with pytest.raises(ClipProblem, match="no video track"):
        extract_frames(tmp_path / "sound.wav")


# ------------------------------------------------------------------------------------------------ which frames, and how


def test_evaluation_takes_evenly_spaced_frames() -> None:
    counts = torch.tensor([1, 2, 3, 7, 10])
    assert Frames(3).choose(counts, None).tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 2], [1, 3, 5], [1, 5, 8]]
    assert Frames(3).choose(counts, None).tolist() == [spread(n, 3).tolist() for n in counts.tolist()]
    assert Frames(1, skip_first=True).choose(torch.tensor([1, 2, 3, 4]), None).tolist() == [[0], [1], [2], [2]]


@pytest.mark.parametrize(("skip_first", "first"), [(False, 0), (True, 1)])
def test_training_takes_random_frames_without_repetition(skip_first: bool, first: int) -> None:
    counts, generator = torch.tensor([6] * 3000 + [3] * 10), torch.Generator().manual_seed(0)
    places = Frames(2, skip_first=skip_first).choose(counts, generator)
    assert (places[:, 0] < places[:, 1]).all() and places.min() == first and (places[3000:] < 3).all()
    pairs, seen = places[:3000].unique(dim=0, return_counts=True)
    n = math.comb(6 - first, 2)
    assert len(pairs) == n and (seen / 3000 - 1 / n).abs().max() < 0.02, "all pairs equally often"
    one = Frames(3, skip_first=skip_first).choose(torch.tensor([1, 2, 3]), generator)
    assert one[0].tolist() == [0, 0, 0] and (one.diff(dim=1) >= 0).all()


def test_frames_are_resized_and_standardised_as_torchvision_does() -> None:
    from torchvision.transforms import v2

    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    x = torch.rand(2, 3, 3, 40, 40)
    frames = Frames(3, 32, mean=mean, deviation=deviation, crop_scale=(0.1, 1.0), flip_rate=0.5)
    ours = frames(x, None)
    steps = v2.Compose([v2.Resize((32, 32), antialias=True), v2.Normalize(mean, deviation)])
    assert ours.shape == (2, 3, 3, 32, 32)
    for row in (0, 1):
        for t in range(3):
            torch.testing.assert_close(ours[row, t], steps(x[row, t]))
    augmented = frames(x, torch.Generator().manual_seed(0))
    assert torch.equal(augmented, frames(x, torch.Generator().manual_seed(0))) and augmented.shape == ours.shape
    same = x[:1, :1].expand(2, 3, 3, 40, 40)
    changed = frames(same, torch.Generator().manual_seed(0)).flatten(0, 1)
    assert all(not torch.equal(changed[i], changed[j]) for i in range(6) for j in range(i)), "each frame on its own"
    flipped = Frames(3, 40, flip_rate=1.0)(x, torch.Generator())
    torch.testing.assert_close(flipped, x.flip(-1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "must be 1 or more"),
        ({"flip_rate": 2.0}, "outside"),
        ({"crop_scale": (0.0, 1.0)}, "must rise"),
        ({"deviation": (1.0, 0.0, 1.0)}, "must be positive"),
    ],
)
def test_frames_refuse_what_makes_no_sense(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Frames(**settings)
