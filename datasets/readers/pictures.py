"""Image files to pixels: one rule per Pillow mode, upright, without clipping.

All readers of pictures in this project use :func:`open_picture`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from utils.errors import UserError, first_line
from utils.files import natural_key
from utils.limits import advice, limit

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")
PICTURE_RULES = 2  # version of the rules of open_picture; 1 clipped deep images and ignored EXIF orientation
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
# The only formats that are opened: Pillow would hand EPS to an interpreter, PDF and FITS to other programs.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "GIF", "WEBP", "PPM", "JPEG2000", "TGA", "ICO")
ORIENTATION, BITS_PER_SAMPLE = 0x0112, 258  # EXIF and TIFF tags
_PNG_MARKS = (b"eXIf", b"Raw profile type", b"com.adobe.xmp")  # blocks in which Pillow finds an orientation
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextmanager
def decoding() -> Iterator[None]:
    """Turn what Pillow raises on damaged files, in any of its parsers, into one of UNREADABLE."""
    try:
        yield
    except (UserError, MemoryError, *UNREADABLE):
        raise
    except Exception as error:
        raise ValueError(f"damaged: {first_line(error)}") from None


@decoding()
def open_picture(path: Path, channels: int, bits: int | None = None) -> Image.Image:
    """Read an image file as grey (mode ``L``) or colour (``RGB``), 8 bits, upright.

    Rules per Pillow mode:

    - 8 bits per channel or less (``1, L, LA, P, PA, RGB, RGBA, RGBX, CMYK, YCbCr, LAB, HSV``): Pillow's conversion;
      transparency is dropped. 16 bits per channel in colour: Pillow keeps the upper 8.
    - 16 bits, grey (``I;16``, ``I;16B``, and ``I`` where all values fit): the range 0 to 2^bits - 1 becomes 0 to 255,
      rounded. The range is that of the file (16 bits, or the 12 that a TIFF declares), never that of its content, so
      that the images of a data set stay comparable.
    - floating point (``F``): [0, 1] becomes 0 to 255, rounded.

    The orientation in EXIF or TIFF is applied, as image viewers do.

    Args:
        channels: 1 or 3.
        bits: 8 to 16, bits in use of 16-bit files; None = 16, and files that seem to use fewer bits are refused.

    Raises:
        any of UNREADABLE: the file is unreadable, or has values outside the range of its mode, which are not clipped.
    """
    with open_image(path) as image:
        if _is_misread(image):
            raise ValueError(
                "an uncompressed TIFF with an orientation of 90 degrees, which Pillow misreads: save it upright"
            )
        declared = image.tag_v2.get(BITS_PER_SAMPLE) if hasattr(image, "tag_v2") else None
        picture = upright(image)
        if image.mode in DEEP_MODES:
            if isinstance(declared, tuple):
                declared = declared[0]
            picture = Image.fromarray(_eight_bits(np.asarray(picture), image.mode, bits, declared))
        picture.load()  # before the file is closed
        mode = {1: "L", 3: "RGB"}[channels]
        return picture if picture.mode == mode else picture.convert(mode)  # which would copy it


@decoding()
def open_image(path: Path) -> Image.Image:
    """Open an image file of one of FORMATS; reads its header alone.

    Raises:
        any of UNREADABLE: another format, unreadable, or over the limit of pixels (:mod:`utils.limits`).
    """
    most = Image.MAX_IMAGE_PIXELS = limit("PIXELS")
    image = Image.open(path, formats=FORMATS)
    if (pixels := image.width * image.height) > most:
        image.close()
        raise ValueError(
            f"{image.width} x {image.height} = {pixels:,} pixels, over the limit ({advice('PIXELS', most)})"
        )
    return image


@decoding()
def upright(image: Image.Image) -> Image.Image:
    """Apply the orientation tag of an image; an image without one is returned unchanged.

    Raises:
        any of UNREADABLE: its pixels cannot be read.
    """
    image.load()  # for a TIFF, Pillow applies and removes the tag here
    transposition = _UPRIGHT.get(_orientation(image))
    return image if transposition is None else image.transpose(transposition)


def _is_misread(image: Image.Image) -> bool:
    """Whether Pillow swaps the sides of an uncompressed TIFF before it reads its rows, which scrambles them."""
    return image.format == "TIFF" and image.info.get("compression") == "raw" and _orientation(image) >= 5


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged EXIF block can fail in any way; the pixels may be intact
        return 1
    return value if isinstance(value, int) else 1


def _eight_bits(values: np.ndarray, mode: str, bits: int | None, declared: int | None) -> np.ndarray:
    """Convert values (H, W) of a deep mode to (H, W) uint8, see :func:`open_picture`."""
    if mode == "F":
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise ValueError("floating-point values outside [0, 1]: save it with values in [0, 1], or as 8 or 16 bits")
        return np.round(values * 255).astype(np.uint8)
    low, high = int(values.min()), int(values.max())
    if bits is None and declared in range(9, 16):
        bits = declared
    if bits is None and 0 < high < 4096 and low >= 0:
        used = next(n for n in (8, 10, 12) if high < 2**n)
        raise ValueError(
            f"its 16-bit values end at {high}, as of {used}-bit data: set dataset.image_bits={used} (16 if it is that "
            "dark), or save it as 8 bits"
        )
    top = 2 ** (bits or 16) - 1
    if low < 0 or high > top:
        raise ValueError(f"values from {low} to {high} are outside 0 to {top} ({bits or 16} bits): save it as 8 bits")
    return np.round(values.astype(np.float64) * (255 / top)).astype(np.uint8)


def frame_files(folder: Path) -> list[Path]:
    """Pictures in a folder, in the natural order of their names: 2 before 10."""
    files = (f for f in folder.iterdir() if f.suffix.lower() in FRAME_SUFFIXES and not f.name.startswith("."))
    return sorted(files, key=lambda file: natural_key(file.name))


def changed_pictures(paths: Iterable[Path]) -> list[Path]:
    """Files and folders of frames that version 1 of the rules (PICTURE_RULES) read differently.

    Decodes no pixels, except of PNG files with an EXIF block.
    """
    paths = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return [path for path, is_changed in zip(paths, pool.map(_is_changed, paths)) if is_changed]


def _is_changed(path: Path) -> bool:
    if path.suffix == ".npy":
        return False
    if path.is_dir():
        files = frame_files(path)
        return files != sorted(files) or any(map(_is_changed, files))
    try:
        with open_image(path) as image:
            if image.mode in DEEP_MODES or _is_misread(image):
                return True
            if image.format == "TIFF":  # Pillow already applied its orientation
                return False
            if image.format == "PNG" and not any(mark in path.read_bytes() for mark in _PNG_MARKS):
                return False  # Pillow would decode the pixels to look for a tag behind them
            return _orientation(image) in _UPRIGHT
    except UNREADABLE:
        return False
