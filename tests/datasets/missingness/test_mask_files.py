"""Mask files of the original works: reading, writing, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datasets.missingness import Rows
from datasets.missingness.file import File
from datasets.missingness.mask_files import read_dymo_csv, read_tip_npy, write_dymo_csv
from datasets.missingness.random import Random
from utils.errors import UserError


def bad_csv(tmp_path: Path, text: str) -> str:
    file = tmp_path / "masks.csv"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        read_dymo_csv(file, 2, 3)
    message = str(error.value)
    assert str(file) in message and "\n" not in message
    return message


def test_bad_mask_files_name_file_and_row(tmp_path: Path) -> None:
    assert "has 3 rows but the split has 2" in bad_csv(tmp_path, "True,False,False\n" * 3)
    assert "has 1 rows but the split has 2" in bad_csv(tmp_path, "True,False,False\n")
    assert "row 2: 2 columns, the data set has 3" in bad_csv(tmp_path, "True,False,False\nTrue,False\n")
    assert "row 2: 'yes' is not True or False" in bad_csv(tmp_path, "True,False,False\nTrue,yes,False\n")
    assert "row 1: 'm0' is not True or False (no header)" in bad_csv(tmp_path, "m0,m1,m2\nTrue,False,False\n")
    assert "row 2: every modality is missing (1 such rows)" in bad_csv(tmp_path, "True,False,0\n1,True,1.0\n")
    with pytest.raises(UserError, match=r"absent\.csv does not exist"):
        read_dymo_csv(tmp_path / "absent.csv", 2, 3)
    (tmp_path / "binary.csv").write_bytes(b"\x93NUMPY\xff\x00")
    with pytest.raises(UserError, match=r"binary\.csv is no text"):
        read_dymo_csv(tmp_path / "binary.csv", 2, 3)


def test_spellings_of_booleans(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("\ufeffTRUE, false,0\r\n\r\n0.0,1,true\r\n", encoding="utf-8")
    assert read_dymo_csv(tmp_path / "m.csv", 2, 3).tolist() == [[True, False, False], [False, True, True]]


def test_a_mask_reads_back_as_it_was_written(tmp_path: Path) -> None:
    mask = Random(0.5, "bernoulli").generate(Rows(50, 5))
    write_dymo_csv(tmp_path / "m.csv", mask)
    assert (tmp_path / "m.csv").read_text().splitlines()[0] == ",".join(map(str, mask[0].tolist()))
    again = File(str(tmp_path / "m.csv")).generate(Rows(50, 5, 7))
    assert np.array_equal(again, mask)


def test_bad_arrays_are_named(tmp_path: Path) -> None:
    file = tmp_path / "m.npy"

    def refused(content: np.ndarray | bytes, message: str) -> None:
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            np.save(file, content)
        with pytest.raises(UserError, match=message):
            read_tip_npy(file, 4, 3)

    refused(np.zeros((4, 2), dtype=bool), "4 rows and 2 columns, the split has 4 and the table 3")
    refused(np.full((4, 3), 0.5), "no matrix of booleans")
    refused(np.zeros(12, dtype=bool), "no matrix of booleans")
    refused(b"True,False\n", "no NumPy array")
    with pytest.raises(UserError, match="does not exist"):
        read_tip_npy(tmp_path / "absent.npy", 4, 3)
