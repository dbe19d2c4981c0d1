"""Pickles that expand when they are read."""

from __future__ import annotations

import io
import os
import pickle
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from utils.errors import UserError
from utils.pickle_size import LARGEST, check_expansion
from utils.safe_pickle import read_tensors

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def nested(depth: int, kind: str) -> Any:
    """An object with 2^depth elements and a pickle of some bytes per level."""
    content: Any = ()
    for _ in range(depth):
        content = {"tuple": (content, content), "list": [content, content], "dict": {0: content, 1: content}}[kind]
    return content


def check(content: bytes) -> bytes:
    """Check a pickle with more bytes around it; returns those behind it."""
    everything = b"front" + content + b"rest"
    return everything[check_expansion(everything, 5) :]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_usual_content_is_accepted_and_the_stream_stands_behind_it(protocol: int) -> None:
    content = {
        "a": [1, 2.5, None, True, -(2**70), "é", b"x" * 300],
        "b": {"set": {1, 2}, "frozen": frozenset([3]), ("k", 1): ()},
        "shared": [[]] * 3,
        "path": Path("a"),
    }
    content["itself"] = content
    assert check(pickle.dumps(content, protocol)) == b"rest"


@pytest.mark.parametrize("kind", ["tuple", "list", "dict"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_expansion_is_refused_at_once(protocol: int, kind: str) -> None:
    assert 2**20 < LARGEST < 2**24
    check(pickle.dumps(nested(18, kind), protocol))
    for depth in (24, 150):
        with pytest.raises(pickle.UnpicklingError, match=f"more than {LARGEST} elements"):
            check(pickle.dumps({"state_dict": nested(depth, kind)}, protocol))


def test_lists_that_are_filled_after_they_were_referred_to_count_in_full() -> None:
    """From the top down, so that every list is empty when its parent takes it."""
    lists: list[list[Any]] = [[] for _ in range(60)]
    code = b"".join(b"]q" + bytes([i]) for i in range(60))  # 60 empty lists, memoised
    code += b"".join(b"h%ch%ca0h%ch%ca0" % (i, i + 1, i, i + 1) for i in range(59))
    content = b"\x80\x02" + code + b"h\x00."
    lists = pickle.loads(content)
    assert len(lists) == 2 and lists[0] is lists[1]
    with pytest.raises(pickle.UnpicklingError, match="more than"):
        check(content)


def bomb() -> bytes:
    """A tuple as the key of a dictionary, whose hash takes 2^60 steps."""
    content = pickle.dumps(nested(60, "tuple"), 2)
    return content[:2] + b"}" + content[2:-1] + b"K\x01s."


@pytest.mark.parametrize("form", ["zip", "deflated", "stream", "plain"])
def test_a_checkpoint_that_would_never_end_is_refused_in_a_moment(tmp_path: Path, form: str) -> None:
    file = tmp_path / "hang.ckpt"
    if form in ("zip", "deflated"):
        torch.save({"x": torch.zeros(2)}, tmp_path / "good.ckpt")
        kind = zipfile.ZIP_DEFLATED if form == "deflated" else zipfile.ZIP_STORED
        with zipfile.ZipFile(tmp_path / "good.ckpt") as good, zipfile.ZipFile(file, "w", kind) as bad:
            for entry in good.infolist():
                bad.writestr(entry.filename, bomb() if entry.filename.endswith("data.pkl") else good.read(entry))
    elif form == "stream":
        torch.save({"x": torch.zeros(2)}, file, _use_new_zipfile_serialization=False)
        stream = io.BytesIO(file.read_bytes())
        for _ in range(3):  # magic number, version, machine
            pickle.load(stream)
        file.write_bytes(file.read_bytes()[: stream.tell()] + bomb())
    else:
        file.write_bytes(bomb())
    start = time.process_time()
    with pytest.raises(UserError, match=r"hang\.ckpt is (cut off or damaged|not a checkpoint)"):
        read_tensors(file)
    assert time.process_time() - start < 10, "2^60 steps take years"


def test_a_file_in_the_place_of_a_checked_one_is_checked(tmp_path: Path) -> None:
    """Of the same size and time."""
    file, other = tmp_path / "weights.ckpt", tmp_path / "other"
    torch.save({"x": torch.zeros(2)}, file)
    assert read_tensors(file).keys() == read_tensors(file).keys() == {"x"}
    status = file.stat()
    other.write_bytes(bomb().ljust(status.st_size, b"\0"))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(file)
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    with pytest.raises(UserError, match=r"weights\.ckpt is not a checkpoint"):
        read_tensors(file)
