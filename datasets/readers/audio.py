"""Sound files to inputs of networks: AST's log-mel filter bank, or a logarithmic short-time spectrum.

Decoded with soundfile (wav, flac, ogg, mp3) or PyAV (the sound track of a video), mixed to one channel (the mean) and
resampled with SciPy's polyphase filter. A front end is a data class with

- ``rate``: its samples per second (Hz);
- ``shape``: of the input of a model;
- ``scale``: meaning of the values, for noise;
- ``stored``: shape and type of a clip in the packed store;
- ``prepare(waveform)``: (n,) float32 in [-1, 1] -> stored clip, once, in stage ``prepare``;
- ``finish(stored, generator)``: batch of stored clips -> float32 (B, *shape); the generator is None in evaluation.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
import soundfile
import torch
from scipy.signal import resample_poly
from torch import Tensor

from datasets.scale import Scale
from utils.errors import first_line
from utils.limits import advice, limit

SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")  # in order of preference
SILENT = 1e-4  # peak to peak, about three steps of 16 bit
FLOOR = 1e-7
_INT16 = 2.0**15


class ClipProblem(ValueError):
    """Reason why a clip cannot be used.

    Args:
        kind: unreadable | no_audio | silent | short | no_frames | few_frames.
        message: details in a few words.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


# What PyAV raises about files that FFmpeg cannot decode; a stream whose codec is unknown has no such attributes.
BROKEN = (av.FFmpegError, OSError, ValueError, AttributeError)


def unreadable(error: Exception) -> ClipProblem:
    """The problem with a file of which PyAV raised one of BROKEN."""
    return ClipProblem("unreadable", f"no video file: {first_line(error)}")


def read_audio(path: Path, start: float | None = None, end: float | None = None) -> tuple[np.ndarray, int]:
    """Read the sound of a file as one channel.

    Args:
        path: a sound file, or a video with a sound track.
        start, end: of the part to read, in seconds; None = beginning, end.

    Returns:
        (n,) float32 in about [-1, 1]; samples per second.

    Raises:
        ClipProblem: unreadable, or no sound (no track, or no samples).
    """
    if path.suffix.lower() in SOUND_SUFFIXES:
        try:
            with soundfile.SoundFile(path) as file:
                rate = int(file.samplerate)
                if (samples := file.frames * file.channels) > (most := limit("SAMPLES")):
                    raise ClipProblem("unreadable", f"{samples:,} samples, over the limit ({advice('SAMPLES', most)})")
                channels = file.read(dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, OSError) as error:
            raise ClipProblem("unreadable", f"no sound file: {first_line(error)}") from None
        waveform = channels.mean(1)
    else:
        waveform, rate = _read_track(path)
    first = 0 if start is None else round(start * rate)
    last = len(waveform) if end is None else round(end * rate)
    waveform = waveform[first:last]
    if not len(waveform):
        raise ClipProblem("no_audio", "no sound in it")
    if not np.isfinite(waveform).all():
        raise ClipProblem("unreadable", "samples that are no numbers")
    return waveform, rate


def _read_track(path: Path) -> tuple[np.ndarray, int]:
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.audio:
                raise ClipProblem("no_audio", "no sound track")
            stream = container.streams.audio[0]
            planar = av.AudioResampler(format="fltp")  # converts the format; rate and channels stay
            # None flushes the resampler.
            frames = [part for frame in [*container.decode(stream), None] for part in planar.resample(frame)]
            if not frames:
                raise ClipProblem("no_audio", "no sound in its track")
            return np.concatenate([frame.to_ndarray() for frame in frames], axis=1).mean(0), int(stream.rate)
    except ClipProblem:
        raise
    except BROKEN as error:
        raise unreadable(error) from None


def resample(waveform: np.ndarray, rate: int, target: int) -> np.ndarray:
    """Resample (n,) from ``rate`` to ``target`` samples per second: (ceil(n target / rate),) float32."""
    if rate == target:
        return waveform.astype(np.float32)
    common = math.gcd(rate, target)
    return resample_poly(waveform, target // common, rate // common).astype(np.float32)


class FrontEnd(Protocol):
    """Front end, see the module."""

    rate: int

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def scale(self) -> Scale: ...

    @property
    def stored(self) -> tuple[tuple[int, ...], Any]: ...

    def prepare(self, waveform: np.ndarray) -> np.ndarray: ...

    def finish(self, stored: Tensor, generator: torch.Generator | None) -> Tensor: ...


def hear(front: FrontEnd, path: Path, start: float | None, end: float | None, keeps_silent: bool) -> np.ndarray:
    """Read a file and apply a front end, as the packed store holds it.

    Raises:
        ClipProblem: see :func:`read_audio`; also silent (unless ``keeps_silent``) or too short.
    """
    waveform, rate = read_audio(path, start, end)
    if not keeps_silent and float(np.ptp(waveform)) <= SILENT:
        raise ClipProblem("silent", "nothing to hear")
    return front.prepare(resample(waveform, rate, front.rate))


@dataclass(frozen=True)
class LogMel:
    """The input of the Audio Spectrogram Transformer (Gong, Chung, Glass, Interspeech 2021), (frames, mel bins).

    The feature extractor of transformers: mean subtracted; windows of 25 ms every 10 ms, Kaldi's filter bank, natural
    logarithm; padded with zeros to, or cut at, ``frames``; (x - mean) / (2 deviation).

    Attributes:
        frames: of 10 ms; the 1,024 of the published network are 10.24 s.
        mel_bins: number of mel filters, from 20 Hz to half the rate.
        mean, deviation: of the logarithms; the defaults are those of AudioSet.
    """

    frames: int = 1024
    mel_bins: int = 128
    mean: float = -4.2677393
    deviation: float = 4.5689974
    rate: int = 16_000

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.frames, self.mel_bins)

    @property
    def scale(self) -> Scale:
        return Scale((self.mean,), (2 * self.deviation,), time=0)

    @property
    def stored(self) -> tuple[tuple[int, ...], Any]:
        return self.shape, np.float32

    @cached_property
    def _spectrogram(self) -> Callable[..., np.ndarray]:
        """The filter bank of transformers' ``ASTFeatureExtractor``, whose windows have the lengths for 16 kHz."""
        from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

        window = self.rate // 40
        length = 1 << (window - 1).bit_length()
        with warnings.catch_warnings():
            # The narrowest of 128 filters lie between two bins of the spectrum, as in the published network.
            warnings.filterwarnings("ignore", message="At least one mel filter has all zero values")
            filters = mel_filter_bank(
                num_frequency_bins=length // 2 + 1,
                num_mel_filters=self.mel_bins,
                min_frequency=20,
                max_frequency=self.rate // 2,
                sampling_rate=self.rate,
                norm=None,
                mel_scale="kaldi",
                triangularize_in_mel_space=True,
            )
        return partial(
            spectrogram,
            window=window_function(window, "hann", periodic=False),
            frame_length=window,
            hop_length=self.rate // 100,
            fft_length=length,
            power=2.0,
            center=False,
            preemphasis=0.97,
            mel_filters=filters,
            log_mel="log",
            mel_floor=float(np.finfo(np.float32).eps),
            remove_dc_offset=True,
        )

    def prepare(self, waveform: np.ndarray) -> np.ndarray:
        window = self.rate // 40
        if len(waveform) < window:
            raise ClipProblem("short", f"{len(waveform) / self.rate:.3f} s, shorter than a window of 25 ms")
        # Samples beyond the last frame are not needed.
        needed = waveform[: window + (self.frames - 1) * (self.rate // 100)]
        energies = self._spectrogram((needed - waveform.mean()).astype(np.float32)).T
        padded = np.pad(energies.astype(np.float32), ((0, self.frames - len(energies)), (0, 0)))
        return (padded - self.mean) / (2 * self.deviation)

    def finish(self, stored: Tensor, generator: torch.Generator | None) -> Tensor:
        return stored


@dataclass(frozen=True)
class LogSTFT:
    """log(|S| + 1e-7) of a short-time Fourier transform with a Hann window (UDML), (n_fft / 2 + 1, 1 + samples // hop).

    The waveform is repeated, cut to ``seconds``, and limited to [-1, 1]. With ``longer``, that many seconds are stored
    as 16-bit samples, and a batch uses a window of ``seconds``: random in training, the middle in evaluation.

    Attributes:
        rate: samples per second.
        seconds: length of the input of the network.
        n_fft, hop: in samples.
        repeat: number of repetitions of the waveform before it is cut; None = as many as needed.
        longer: seconds from which a window is drawn, None = no window.
        pad_mode: padding of the first and last window: reflect | constant (zeros).
    """

    rate: int
    seconds: float
    n_fft: int
    hop: int
    repeat: int | None = None
    longer: float | None = None
    pad_mode: str = "reflect"

    def __post_init__(self) -> None:
        if self.longer is not None and self.longer < self.seconds:
            raise ValueError(f"longer={self.longer} must be at least seconds={self.seconds}")
        if self.samples <= self.n_fft // 2:
            raise ValueError(f"seconds={self.seconds} are no more than half a window of n_fft={self.n_fft}")

    @property
    def samples(self) -> int:
        return round(self.rate * self.seconds)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n_fft // 2 + 1, 1 + self.samples // self.hop)

    @property
    def scale(self) -> Scale:
        return Scale()

    @property
    def stored(self) -> tuple[tuple[int, ...], Any]:
        if self.longer is None:
            return self.shape, np.float32
        return (round(self.rate * self.longer),), np.int16

    def prepare(self, waveform: np.ndarray) -> np.ndarray:
        needed = self.samples if self.longer is None else self.stored[0][0]
        copies = -(-needed // len(waveform)) if self.repeat is None else self.repeat
        if copies * len(waveform) < needed:
            raise ClipProblem(
                "short",
                f"{len(waveform) / self.rate:.2f} s, {copies} times which are less than {needed / self.rate:g} s",
            )
        waveform = np.tile(waveform, copies)[:needed]
        if self.longer is not None:
            return np.round(waveform * _INT16).clip(-_INT16, _INT16 - 1).astype(np.int16)
        return self.transform(torch.from_numpy(waveform).clamp(-1, 1)).numpy()

    def transform(self, waveform: Tensor) -> Tensor:
        """(..., samples) -> (..., *shape)."""
        window = torch.hann_window(self.n_fft, device=waveform.device)
        spectrum = torch.stft(
            waveform, self.n_fft, self.hop, window=window, center=True, pad_mode=self.pad_mode, return_complex=True
        )
        return (spectrum.abs() + FLOOR).log()

    def finish(self, stored: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.longer is None:
            return stored
        spare = stored.shape[1] - self.samples
        if generator is None:
            start = torch.full((len(stored),), spare // 2)
        else:
            start = torch.randint(spare + 1, (len(stored),), generator=generator)
        columns = start[:, None] + torch.arange(self.samples)
        return self.transform(stored.gather(1, columns.to(stored.device)).float() / _INT16)
