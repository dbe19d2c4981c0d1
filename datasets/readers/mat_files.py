"""Reader of arrays of numbers in MATLAB files of level 5, as ``scipy.io.loadmat`` reads them.

SciPy's reader crashes the process on some damaged files, which a hostile one could use to run code. This one reads
nothing else, and checks every size against the file. Format: *MAT-File Format*, The MathWorks, section "Level 5".
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from utils.limits import advice, limit

HEADER = 128
MATRIX, COMPRESSED = 14, 15
COMPLEX = 0x0800
# Types of stored data, and classes of arrays, which may be stored in a smaller type.
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
# Highest compression ratio of zlib.
RATIO = 1032


def read_mat_arrays(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Read the named arrays, as far as the file has them.

    Returns:
        Name -> array with the shape and type that MATLAB showed, at least two dimensions.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is of another format or damaged, or a named variable is no array of real numbers.
    """
    content = memoryview(path.read_bytes())
    order = {b"IM": "<", b"MI": ">"}.get(bytes(content[HEADER - 2 : HEADER]))
    if order is None or struct.unpack_from(f"{order}H", content, HEADER - 4)[0] != 0x0100:
        raise ValueError("no MATLAB file of level 5 (save it with -v7 or -v6)")
    arrays: dict[str, np.ndarray] = {}
    for kind, data in _elements(content[HEADER:], order):
        if kind == COMPRESSED:
            kind, data = next(_elements(_unpacked(data, order), order), (0, data))
        if kind == MATRIX:
            arrays |= _matrix(data, order, names)
    return arrays


def _elements(content: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Type and data of each element.

    Raises:
        ValueError: an element is longer than the content.
    """
    position = 0
    while position < len(content):
        if position + 8 > len(content):
            raise ValueError("it is cut off")
        kind, size = struct.unpack_from(f"{order}2I", content, position)
        start, is_small = position + 8, kind >> 16
        if is_small:  # up to four bytes, within the tag
            kind, size, start = kind & 0xFFFF, is_small, position + 4
        if size > len(content) - start or (is_small and size > 4):
            raise ValueError("it is cut off")
        yield kind, content[start : start + size]
        # Elements begin at multiples of 8 bytes, but for compressed ones.
        position = start + size if kind == COMPRESSED else position + 8 if is_small else start + -(-size // 8) * 8


def _unpacked(data: memoryview, order: str) -> memoryview:
    """One compressed element.

    Raises:
        ValueError: it is damaged or over the limit (:mod:`utils.limits`).
    """
    try:
        size = 8 + struct.unpack_from(f"{order}2I", zlib.decompressobj().decompress(data, 8))[1]
        if size > (most := limit("UNPACKED")):
            raise ValueError(f"{size:,} bytes when unpacked, over the limit ({advice('UNPACKED', most)})")
        if size > RATIO * len(data) + 64:
            raise ValueError("it is cut off")
        stream = zlib.decompressobj()
        content = stream.decompress(data, size + 1)
    except (zlib.error, struct.error) as error:
        raise ValueError(f"it is damaged: {error}") from None
    if not stream.eof or len(content) != size:  # at the end of the stream, zlib has compared the checksum
        raise ValueError("it is cut off, or longer than it says")
    return memoryview(content)


def _matrix(data: memoryview, order: str, names: Collection[str]) -> dict[str, np.ndarray]:
    """Name and array of an element of type MATRIX, if it is one of ``names``.

    Raises:
        ValueError: it is damaged, or no array of real numbers.
    """
    parts = _elements(data, order)
    flags, shape, name = (_part(parts) for _ in range(3))
    if len(flags[1]) < 4 or len(shape[1]) % 4:
        raise ValueError("it is damaged")
    text = bytes(name[1]).decode("latin-1")
    if text not in names:
        return {}
    (flag,) = struct.unpack_from(f"{order}I", flags[1])
    dimensions = struct.unpack(f"{order}{len(shape[1]) // 4}i", shape[1])
    kind, values = _part(parts)
    if flag & 0xFF not in CLASSES or flag & COMPLEX or kind not in TYPES:
        raise ValueError(f"{text} is no array of real numbers")
    stored = np.dtype(f"{order}{TYPES[kind]}")
    if len(dimensions) < 2 or min(dimensions) < 0 or math.prod(dimensions) * stored.itemsize != len(values):
        raise ValueError(f"the shape of {text} does not fit its {len(values):,} bytes")
    array = np.frombuffer(values, stored).reshape(dimensions, order="F")
    return {text: array.astype(CLASSES[flag & 0xFF])}


def _part(parts: Iterator[tuple[int, memoryview]]) -> tuple[int, memoryview]:
    part = next(parts, None)
    if part is None:
        raise ValueError("it is cut off")
    return part
