"""Folders of demo data that several processes make at the same time."""

from __future__ import annotations

from pathlib import Path

from datasets.demo.folders import MARKER, ensure_demo


def test_the_folder_of_a_faster_process_stays(tmp_path: Path) -> None:
    """The other process finishes while this one is making its files, and may already read its own."""
    folder = tmp_path / "demo"

    def make_demo(target: Path) -> None:
        (target / "data.txt").write_text("slower")
        if not folder.exists():
            folder.mkdir()
            (folder / "data.txt").write_text("faster")
            (folder / MARKER).write_text('{"demo": "demo", "version": 2}')

    assert ensure_demo(folder, make_demo) == folder
    assert (folder / "data.txt").read_text() == "faster"
    assert [f.name for f in tmp_path.iterdir()] == ["demo"]
