"""Files that are complete or absent, and what killed processes leave."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from utils.errors import UserError
from utils.files import (
    MACHINE,
    TEMPORARY,
    alone,
    remove_leftovers,
    replace_folder,
    replacing,
    reserve,
    temporary_beside,
)

KILLED = """
import os
from pathlib import Path
from utils.files import replacing, temporary_beside
folder = Path({folder!r})
temporary_beside(folder / "store").mkdir()
(folder / "old").rename(temporary_beside(folder / "old", is_old=True))
with replacing(folder / "run" / "best.ckpt") as file:
    file.write_bytes(b"a part")
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_left_is_removed_and_what_it_replaced_is_back(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").write_text("content")
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", KILLED.format(folder=str(tmp_path))], cwd=root, check=False)
    assert done.returncode == -9
    assert len(list(tmp_path.glob(".*"))) == 2 and [f.name.endswith("best.ckpt") for f in (tmp_path / "run").iterdir()]
    assert [TEMPORARY.fullmatch(path.name)[4] for path in remove_leftovers(tmp_path)] == ["store"]
    assert (tmp_path / "old" / "file").read_text() == "content" and not list(tmp_path.glob(".*"))
    assert [path.parent.name for path in remove_leftovers(tmp_path, recursive=True)] == ["run"]
    assert os.listdir(tmp_path / "run") == []


@pytest.mark.parametrize(
    "name",
    [
        f".{MACHINE}-{os.getpid()}-00000000.best.ckpt",  # of a process that runs
        ".00000000-999999999-00000000.best.ckpt",  # of another machine
        f".{MACHINE}-999999999-xyz.best.ckpt",
        ".lock",
        "best.ckpt",
    ],
    ids=["running", "elsewhere", "malformed", "lock", "plain"],  # the same in every process
)
def test_everything_else_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert remove_leftovers(tmp_path, recursive=True) == [] and os.listdir(tmp_path) == [name]
    assert remove_leftovers(tmp_path / "absent") == []


def test_the_new_content_wins_over_the_old_one(tmp_path: Path) -> None:
    (tmp_path / f".{MACHINE}-999999999-00000000-old.store").mkdir()
    (tmp_path / "store").mkdir()
    assert len(remove_leftovers(tmp_path)) == 1 and os.listdir(tmp_path) == ["store"]


def test_temporary_names_keep_the_suffix_and_the_folder(tmp_path: Path) -> None:
    for is_old in (False, True):
        name = temporary_beside(tmp_path / "a.tar.gz", is_old=is_old)
        assert name.parent == tmp_path and name.suffix == ".gz" and TEMPORARY.fullmatch(name.name)[4] == "a.tar.gz"
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("new")
        assert os.listdir(tmp_path) == [temporary.name]
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_replaced_keeps_its_content(tmp_path: Path) -> None:
    (target := tmp_path / "store").mkdir()
    (target / "old").touch()
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "absent", target)
    assert os.listdir(target) == ["old"] and os.listdir(tmp_path) == ["store"]
    (new := tmp_path / "new").mkdir()
    replace_folder(new, target)
    assert os.listdir(target) == [] and os.listdir(tmp_path) == ["store"]


def test_processes_work_on_a_path_one_by_one(tmp_path: Path) -> None:
    """No update of a counter is lost, although the process that has the lock removes its file."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    children = []
    for _ in range(3):
        if (child := os.fork()) == 0:
            status = 1
            try:
                for _ in range(50):
                    with alone(counter):
                        counter.write_text(str(int(counter.read_text()) + 1))
                status = 0
            finally:  # an error must not go on with the other tests in this process
                os._exit(status)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    assert counter.read_text() == "150" and os.listdir(tmp_path) == ["counter"]


def test_the_space_of_a_file_is_taken_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.npy"
    np.lib.format.open_memmap(file, "w+", np.uint8, (1000, 1000))
    assert file.stat().st_blocks * 512 < file.stat().st_size
    reserve(file)
    assert file.stat().st_blocks * 512 >= file.stat().st_size
    np.lib.format.open_memmap(file, "w+", np.uint8, (1000, 1000))
    number = errno.EOPNOTSUPP

    def refusing(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refusing)
    reserve(file)  # of a file system that cannot reserve space
    number = errno.ENOSPC
    with pytest.raises(UserError, match=r"a.npy cannot be written \(No space left on device\): make room"):
        reserve(file)
