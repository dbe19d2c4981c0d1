"""Files that ask for more than a limit, and formats that are never opened."""

from __future__ import annotations

import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from datasets.readers.audio import ClipProblem, read_audio
from datasets.readers.pictures import FORMATS, UNREADABLE, open_picture
from datasets.readers.video import extract_frames
from utils.errors import UserError
from utils.limits import DEFAULTS


def png_of_size(width: int, height: int) -> bytes:
    """The header of a PNG file, with one empty block of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    blocks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + blocks


@pytest.mark.parametrize("size", [(20_000, 10_000), (2**31 - 1, 1)])
def test_an_image_over_the_limit_is_refused_before_it_is_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    file = tmp_path / "large.png"
    file.write_bytes(png_of_size(*size))
    with pytest.raises(UNREADABLE, match=r"(?i)pixels"):
        open_picture(file, 3)


def test_the_limits_are_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture, sound = tmp_path / "a.png", tmp_path / "a.wav"
    Image.new("RGB", (11, 10)).save(picture)
    soundfile.write(sound, np.linspace(-0.5, 0.5, 111), 8000)
    assert open_picture(picture, 3).size == (11, 10) and len(read_audio(sound)[0]) == 111
    for name in DEFAULTS:
        monkeypatch.setenv(f"DYMO_MAX_{name}", "110")
    assert open_picture(picture, 3).size == (11, 10)
    with pytest.raises(ClipProblem, match=r"111 samples, over the limit \(110; .*DYMO_MAX_SAMPLES raises it"):
        read_audio(sound)
    monkeypatch.setenv("DYMO_MAX_PIXELS", "109")
    with pytest.raises(ValueError, match=r"11 x 10 = 110 pixels, over the limit \(109; .*DYMO_MAX_PIXELS raises it"):
        open_picture(picture, 3)
    monkeypatch.setenv("DYMO_MAX_PIXELS", "many")
    with pytest.raises(UserError, match="DYMO_MAX_PIXELS=many: must be a positive whole number"):
        open_picture(picture, 3)


def test_a_sound_file_whose_header_claims_more_than_it_holds_takes_no_memory(tmp_path: Path) -> None:
    """A FLAC file of 1 kB that claims 2^35 samples, 137 GB when decoded."""
    file = tmp_path / "a.flac"
    soundfile.write(file, np.zeros(100), 8000, subtype="PCM_16")
    content = bytearray(file.read_bytes())
    assert content[:4] == b"fLaC"
    content[21] |= 0x08  # the upper four of 36 bits of the number of samples
    file.write_bytes(content)
    with pytest.raises(ClipProblem, match=r"34,359,738,\d+ samples, over the limit"):
        read_audio(file)


@pytest.mark.parametrize("name", ["a.eps", "a.jpg"])
def test_formats_that_an_interpreter_would_read_are_never_opened(tmp_path: Path, name: str) -> None:
    """Whatever the name of the file says."""
    file = tmp_path / name
    Image.new("RGB", (8, 8)).save(file, "EPS")
    Image.open(file).close()  # Pillow itself would
    Image.init()
    with pytest.raises(UNREADABLE, match="cannot identify"):
        open_picture(file, 3)
    assert "EPS" not in FORMATS and set(FORMATS) <= set(Image.OPEN)


def write_video(path: Path, seconds: list[int], last: int = 1) -> None:
    """Black frames of 64 x 48 pixels at these times, of which the last one takes ``last`` seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for second in seconds:
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = second, Fraction(1)
            packets = list(stream.encode(frame))
            if second == seconds[-1] and last > 1:
                packets[-1].duration = int(last / packets[-1].time_base)
            container.mux(packets)
        container.mux(stream.encode(None))


def test_frames_that_lie_centuries_apart_are_not_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ffmpeg's filter repeats a frame until the next one comes."""
    file = tmp_path / "a.mkv"
    write_video(file, [0, 1, 5])
    assert len(extract_frames(file)) == 6
    # Each of the five frames until the last one counts as 100 x 100 pixels.
    monkeypatch.setenv("DYMO_MAX_CLIP_PIXELS", "60000")
    assert len(extract_frames(file)) == 6
    monkeypatch.setenv("DYMO_MAX_CLIP_PIXELS", "59999")
    with pytest.raises(ClipProblem, match=r"frames of 64 x 48 pixels, over the limit .*DYMO_MAX_CLIP_PIXELS raises it"):
        extract_frames(file)
    write_video(file, [0, 1, 2], last=3000)
    with pytest.raises(ClipProblem, match="6 frames of 64 x 48 pixels, over the limit"):
        extract_frames(file)
    monkeypatch.delenv("DYMO_MAX_CLIP_PIXELS")
    write_video(file, [0, 1, 10**7])
    with pytest.raises(ClipProblem, match=r"10,000,0\d\d frames of 64 x 48 pixels, over the limit"):
        extract_frames(file)


def test_an_error_within_pillow_is_an_unreadable_file(tmp_path: Path) -> None:
    """A TIFF whose strips begin at a fraction: Pillow raises a TypeError."""
    file, entry = tmp_path / "a.tif", struct.pack("<HHI", 273, 4, 1)  # StripOffsets, one whole number
    Image.new("L", (4, 4)).save(file)
    content = file.read_bytes()
    assert entry in content
    file.write_bytes(content.replace(entry, struct.pack("<HHI", 273, 11, 1)))  # one float
    with pytest.raises(ValueError, match="damaged: 'float' object cannot be interpreted as an integer"):
        open_picture(file, 1)
