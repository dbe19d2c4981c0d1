"""The packed store: whole or absent, replaced at once, read lazily."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.storage import FORMAT_VERSION, PackedSplit, PackedStore
from utils.errors import UserError


def arrays(n: int, value: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(value)
    return {
        "picture": rng.integers(0, 256, (n, 3, 2, 2), dtype=np.uint8),
        "table": rng.random((n, 4), dtype=np.float32),
        "target": np.arange(n) % 3,
    }


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture
def store(tmp_path: Path) -> PackedStore:
    store = PackedStore(tmp_path / "cache" / "set")
    store.write({"train": arrays(10), "test": {**arrays(4, 1), "name": np.array(["a", "b", "c", "d"])}}, {"seed": 7})
    return store


def test_what_is_written_reads_back(store: PackedStore) -> None:
    meta = store.meta() or {}
    names = [*(f"test/{name}" for name in ("name", "picture", "table", "target"))]
    names += [f"train/{name}" for name in ("picture", "table", "target")]
    assert list(meta.pop("files")) == [f"{name}.npy" for name in names]
    assert meta == {"format_version": FORMAT_VERSION, "counts": {"test": 4, "train": 10}, "seed": 7}
    for split, n, value in (("train", 10, 0), ("test", 4, 1)):
        packed = store.split(split)
        assert len(packed) == n
        for name, array in arrays(n, value).items():
            for tensor in (packed.read(name), packed.memory_map(name)):
                assert torch.equal(tensor, torch.from_numpy(array)) and tensor.numpy().dtype == array.dtype
    assert store.split("test").names() == ["a", "b", "c", "d"]
    assert store.split("train").names() == [str(i) for i in range(10)]
    assert store.split("train").nbytes >= sum(a.nbytes for a in arrays(10).values())
    assert os.listdir(store.folder.parent) == ["set"]


@pytest.mark.parametrize("name", ["picture", "table", "target", "name"])
def test_a_damaged_array_is_named_and_never_used(store: PackedStore, name: str) -> None:
    file = store.folder / "test" / f"{name}.npy"
    content = file.read_bytes()
    for position, damage in ((-1, b"\x01"), (-9, b"\x7f"), (len(content) // 2, b""), (0, b"")):
        file.write_bytes(content[:position] + damage + content[position + 1 :] if damage else content[:position])
        with pytest.raises(UserError, match=rf"test/{name}\.npy was damaged.*stage 'prepare' writes it again"):
            split = store.split("test")
            split.names() if name == "name" else split.read(name)
    file.write_bytes(content)
    split = store.split("test")
    assert split.names() == ["a", "b", "c", "d"] and torch.equal(
        split.read("table"), torch.from_numpy(arrays(4, 1)["table"])
    )


def test_a_store_of_before_checksums_is_compared_by_its_counts(store: PackedStore) -> None:
    meta = store.meta() or {}
    meta.pop("files")
    (store.folder / "meta.json").write_text(json.dumps(meta))
    assert len(store.split("test")) == 4 and store.digest("test") == {}
    for name in ("picture", "table", "target"):
        np.save(store.folder / "test" / f"{name}.npy", arrays(3, 1)[name])
    with pytest.raises(UserError, match="test has 3 rows, of which 4 were packed"):
        store.split("test")


def test_changing_a_memory_map_leaves_the_file_alone(store: PackedStore) -> None:
    store.split("train").memory_map("table").zero_()
    assert np.array_equal(store.split("train").array("table"), arrays(10)["table"])


@pytest.mark.parametrize("there", [False, True])
def test_an_exception_leaves_nothing_and_changes_nothing(tmp_path: Path, there: bool) -> None:
    store = PackedStore(tmp_path / "set")
    if there:
        store.write({"train": arrays(3)}, {"seed": 1})
    before, meta = content(tmp_path), store.meta()
    with pytest.raises(KeyboardInterrupt), store.writing({"seed": 2}) as folder:
        (folder / "train").mkdir()
        np.save(folder / "train" / "target.npy", np.zeros(3))
        raise KeyboardInterrupt
    with pytest.raises(TypeError):  # not JSON: found out when everything else is written
        store.write({"train": arrays(3)}, {"seed": object()})
    assert content(tmp_path) == before and store.meta() == meta
    assert os.listdir(tmp_path) == (["set"] if there else [])


def test_a_failed_replacement_keeps_the_old_store(store: PackedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    before, rename = content(store.folder), Path.rename

    def failing(self: Path, target: Path) -> Path:
        if target == store.folder and "-old." not in self.name:
            raise OSError("disk full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="disk full"):
        store.write({"train": arrays(2)}, {})
    assert content(store.folder) == before and os.listdir(store.folder.parent) == ["set"]


def test_a_new_store_replaces_the_old_one_whole(store: PackedStore) -> None:
    store.write({"val": arrays(2)}, {"seed": 8})
    meta = store.meta() or {}
    assert {key: meta[key] for key in meta if key != "files"} == {
        "format_version": FORMAT_VERSION,
        "counts": {"val": 2},
        "seed": 8,
    }
    assert {name.split("/")[0] for name in meta["files"]} == {"val"}
    assert not store.has_split("train") and not (store.folder / "train").exists()
    assert os.listdir(store.folder.parent) == ["set"]


def test_a_folder_with_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "raw" / "train").mkdir(parents=True)
    (tmp_path / "raw" / "train" / "1.png").write_bytes(b"x")
    with pytest.raises(UserError, match="holds 'train', which is no part of a packed store"):
        PackedStore(tmp_path / "raw").write({"train": arrays(2)}, {})
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file: name a folder"):
        PackedStore(tmp_path / "file").write({"train": arrays(2)}, {})
    assert (tmp_path / "raw" / "train" / "1.png").read_bytes() == b"x"


def test_a_store_of_another_version_counts_as_absent(store: PackedStore) -> None:
    meta = json.loads((store.folder / "meta.json").read_text())
    (store.folder / "meta.json").write_text(json.dumps(meta | {"format_version": FORMAT_VERSION + 1}))
    assert store.meta() is None and not store.has_split("train")
    with pytest.raises(UserError, match=r"no packed data in .*/set: run the stage 'prepare' first"):
        store.split("train")
    store.write({"train": arrays(5)}, {})
    assert len(store.split("train")) == 5


def test_an_absent_split_is_named_with_those_that_are_there(store: PackedStore) -> None:
    assert store.has_split("test") and not store.has_split("val")
    with pytest.raises(UserError, match=r"have no split 'val' \(only test, train\): add its folder to the source"):
        store.split("val")
    with pytest.raises(UserError, match=r"stages=\[prepare\]"):
        PackedStore(store.folder / "nowhere").split("val")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"version"', '{"format_version": 1,'])
def test_a_damaged_meta_names_file_and_mend(store: PackedStore, text: str) -> None:
    (store.folder / "meta.json").write_text(text)
    with pytest.raises(UserError) as error:
        store.split("train")
    message = str(error.value)
    assert f"{store.folder / 'meta.json'} is damaged" in message and "stage 'prepare'" in message
    assert "\n" not in message


def test_head_is_a_seeded_share_in_order(store: PackedStore) -> None:
    split = store.split("train")
    part = split.head(0.55, seed=2025)
    expected = np.sort(np.random.default_rng(2025).permutation(10)[:5])
    assert len(part) == 5 and np.array_equal(part.rows, expected)
    assert np.array_equal(part.read("table"), arrays(10)["table"][expected])
    assert np.array_equal(part.memory_map("target"), arrays(10)["target"][expected])
    assert part.names() == [str(i) for i in expected]
    smaller = part.head(0.5, seed=1)
    assert len(smaller) == 2 and set(smaller.rows) <= set(expected), "a share of a share stays inside it"
    with pytest.raises(UserError, match=r"dataset\.train_fraction=0\.05 keeps no row of 10: raise it"):
        split.head(0.05, seed=0)


def test_rows_with_nan_follow_the_share(store: PackedStore) -> None:
    flags = np.zeros((10, 2), dtype=bool)
    flags[3, 1] = True
    np.save(store.folder / "train" / "nan_rows.npy", flags)
    whole = store.split("train")
    rows = np.array([1, 3, 8])
    part = PackedSplit(whole.folder, rows)
    assert np.array_equal(whole.nan_rows, flags) and part.nan_rows.tolist() == flags[rows].tolist()
    assert store.split("test").nan_rows is None


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_train_fraction_cuts_the_training_split_alone(composed, fraction: float) -> None:
    from trainers.config.build import build_data

    data = build_data(composed(f"dataset.train_fraction={fraction}"))
    data.prepare()
    assert [len(data.split(s)) for s in ("train", "val", "test")] == [int(60 * fraction), 60, 60]
    batches = list(data.loader("train", batch_size=16))
    assert sum(map(len, batches)) == int(60 * fraction)
    assert {b.target.max().item() <= 9 for b in batches} == {True}
