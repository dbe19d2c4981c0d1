"""MATLAB files, against SciPy's reader and damaged in every byte."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from datasets.readers.mat_files import read_mat_arrays

ARRAYS = {
    "X": np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5),
    "y": np.arange(1, 6)[:, None],
    **{f"a_{t}": np.array([[0, 1, 100]], dtype=t) for t in ("i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")},
    "empty": np.zeros((0, 3)),
}


@pytest.mark.parametrize("is_compressed", [False, True])
def test_arrays_are_those_of_scipy(tmp_path: Path, is_compressed: bool) -> None:
    file = tmp_path / "a.mat"
    others = {"text": "abc", "nested": {"b": 1}, "cells": np.array([1, "x"], dtype=object)}
    savemat(file, ARRAYS | others, do_compression=is_compressed)
    arrays, expected = read_mat_arrays(file, ARRAYS), loadmat(file)
    assert set(arrays) == set(ARRAYS)
    for name, array in arrays.items():
        assert array.dtype == expected[name].dtype and np.array_equal(array, expected[name]), name
    assert read_mat_arrays(file, ("z",)) == {}
    for name in others:
        with pytest.raises(ValueError, match=f"{name} is no array of real numbers"):
            read_mat_arrays(file, (name,))


def test_numbers_stored_in_a_smaller_type_and_in_the_other_byte_order(tmp_path: Path) -> None:
    """As MATLAB writes whole numbers of class double, on a big-endian machine."""

    def element(kind: int, data: bytes) -> bytes:
        return struct.pack(">2I", kind, len(data)) + data + bytes(-len(data) % 8)

    flags, shape = element(6, struct.pack(">2I", 6, 0)), element(5, struct.pack(">2i", 2, 2))
    matrix = element(14, flags + shape + struct.pack(">2H", 1, 1) + b"y\0\0\0" + struct.pack(">2H", 4, 2) + b"\1\2\3\4")
    (tmp_path / "a.mat").write_bytes(b"made by hand".ljust(124) + b"\1\0MI" + matrix)
    array = read_mat_arrays(tmp_path / "a.mat", ("y",))["y"]
    assert array.dtype == np.float64 and array.tolist() == [[1.0, 3.0], [2.0, 4.0]]
    assert np.array_equal(array, loadmat(tmp_path / "a.mat")["y"])


@pytest.mark.parametrize("is_compressed", [False, True])
def test_a_damaged_file_is_refused_or_read(tmp_path: Path, is_compressed: bool) -> None:
    """Every byte is changed in three ways, and the file is cut off at every byte."""
    file = tmp_path / "a.mat"
    savemat(file, {"y": np.arange(1, 4)[:, None], "X": np.zeros((2, 2), np.uint8)}, do_compression=is_compressed)
    content, expected, refused = file.read_bytes(), read_mat_arrays(file, ("X", "y")), 0
    damaged = [content[:i] for i in range(len(content))]
    for i, byte in enumerate(content):
        damaged += [content[:i] + bytes([new]) + content[i + 1 :] for new in (0, 255, byte ^ 1)]
    for other in damaged:
        file.write_bytes(other)
        try:
            arrays = read_mat_arrays(file, ("X", "y"))
        except ValueError as error:
            assert str(error)
            refused += 1
        else:  # compressed data have a checksum
            assert not is_compressed or all(np.array_equal(arrays[name], expected[name]) for name in arrays)
    assert refused > len(content)


def test_sizes_are_checked_before_memory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An element that claims 4 GB in 100 bytes; and one over the limit."""
    file, head = tmp_path / "a.mat", b"".ljust(124) + b"\0\1IM"
    packed = zlib.compress(struct.pack("<2I", 14, 2**32 - 8))
    file.write_bytes(head + struct.pack("<2I", 15, len(packed)) + packed)
    with pytest.raises(ValueError, match="cut off"):
        read_mat_arrays(file, ("X",))
    savemat(file, {"X": np.zeros((100, 100))}, do_compression=True)
    monkeypatch.setenv("DYMO_MAX_UNPACKED", "80000")
    with pytest.raises(ValueError, match=r"80,0\d\d bytes when unpacked, over the limit \(80,000"):
        read_mat_arrays(file, ("X",))
    for text in (b"", b"\x89HDF\r\n\x1a\n".ljust(600), head[:-4] + b"\0\2IM"):
        file.write_bytes(text)
        with pytest.raises(ValueError, match="no MATLAB file of level 5"):
            read_mat_arrays(file, ("X",))
