"""Files that were damaged or changed after their stage wrote them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import xxhash

from models.dymo.gaussian import GaussianParameters
from utils import checksums as module
from utils.checksums import checksum, checksums, open_seal, sealed, verify
from utils.errors import UserError
from utils.run_directory import RunDirectory, file_hash
from utils.safe_pickle import read_tensors
from utils.subsets import enumerate_subsets


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run directory with the output of a finished stage."""
    run = RunDirectory(tmp_path / "run")
    (run / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": {"weight": torch.arange(64.0)}}, run / "checkpoints" / "best.ckpt")
    run.finish("fit", {"seed": 0}, files=["checkpoints", "absent.csv"])
    return run


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_checksums_are_xxh3(tmp_path: Path) -> None:
    """The checksum of no bytes is a constant of the published algorithm; longer files are read in blocks."""
    file = tmp_path / "file"
    file.write_bytes(b"")
    assert checksum(file) == "0-99aa06d3014798d86001c324468d497f"
    content = bytes(range(256)) * (2 * module.BLOCK // 256) + b"end"
    file.write_bytes(content)
    assert checksum(file) == f"{len(content)}-{xxhash.xxh3_128(content).hexdigest()}"


def test_files_and_folders_by_relative_name(run: RunDirectory) -> None:
    (run / "a.csv").touch()
    assert list(checksums(run.path, ["a.csv", "b.csv", "checkpoints"])) == ["a.csv", "checkpoints/best.ckpt"]


def test_every_flipped_bit_and_every_cut_is_found(tmp_path: Path) -> None:
    content = bytes(range(40))
    file = tmp_path / "file"
    file.write_bytes(content)
    expected = checksum(file)
    for bit in range(8 * len(content)):
        file.write_bytes(flipped(content, bit))
        with pytest.raises(UserError, match=r"damaged or changed after it was written \(checksum\): copy it$"):
            verify(file, expected, "copy it")
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(UserError, match=rf"\({length} bytes instead of 40\)"):
            verify(file, expected, "copy it")
    file.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        verify(file, expected, "copy it")


def test_a_file_is_read_once_per_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    expected = checksum(file)
    asked: list[Path] = []
    monkeypatch.setattr(module, "checksum", lambda path: asked.append(path) or expected)
    for _ in range(3):
        verify(file, expected, "")
    file.write_bytes(b"content, changed")
    verify(file, expected, "")
    assert asked == [file, file]


def test_files_over_the_limit_are_compared_by_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LARGEST", 9)
    file = tmp_path / "file"
    file.write_bytes(b"0123456789")
    expected = checksum(file)
    with caplog.at_level("INFO"):
        verify(file, expected, "")
    assert f"{file}: compared by its size alone" in caplog.text
    file.write_bytes(b"01234567890")
    with pytest.raises(UserError, match="11 bytes instead of 10"):
        verify(file, expected, "")


@pytest.mark.parametrize("reader", [read_tensors, file_hash])
def test_changed_weights_are_never_used(run: RunDirectory, reader) -> None:  # type: ignore[no-untyped-def]
    """Flips inside the weights, which torch.load reads without a word."""
    file = run / "checkpoints" / "best.ckpt"
    content = file.read_bytes()
    start = content.index(torch.arange(64.0).numpy().tobytes())
    for byte in range(start, start + 256, 16):
        file.write_bytes(flipped(content, 8 * byte + 6))
        torch.load(file, weights_only=True)
        with pytest.raises(UserError, match=rf"{file} was damaged.*delete .*fit\.json, and stage 'fit' runs again"):
            reader(file)
    file.write_bytes(content)
    reader(file)


def test_runs_without_checksums_and_unfinished_stages_are_read(run: RunDirectory) -> None:
    file = run / "checkpoints" / "best.ckpt"
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, file)
    for change in (lambda c: c.pop("files"), lambda c: c.update(files=None)):
        content = json.loads(run.marker("fit").read_text())
        change(content)
        run.marker("fit").write_text(json.dumps(content))
        assert torch.equal(read_tensors(file)["state_dict"]["weight"], torch.zeros(3))
    run.finish("fit", {"seed": 0}, files=["checkpoints"])
    run.begin("fit", {"seed": 0})
    torch.save({}, file)
    assert read_tensors(file) == {}


def test_changed_gaussian_parameters_are_refused(run: RunDirectory) -> None:
    parameters = GaussianParameters(
        prototypes=torch.rand(3, 2, 4), sigma=torch.rand(3, 2) + 1, overall=torch.rand(2, 4),
        subsets=enumerate_subsets(2), metric="squared_euclidean", about={},
    )  # fmt: skip
    file = run / "gaussian_EU.safetensors"
    parameters.save(file)
    run.finish("gaussian", {}, files=[file.name])
    assert torch.equal(GaussianParameters.load(file).sigma, parameters.sigma)
    file.write_bytes(flipped(file.read_bytes(), 8 * file.stat().st_size - 20))
    with pytest.raises(UserError, match="stage 'gaussian' runs again"):
        GaussianParameters.load(file)


def test_sealed_values_are_refused_when_one_changed() -> None:
    content = {"files": {"a.npy": "1-2"}, "scale": (1.5, 2), "classes": {1: "a"}}
    read = json.loads(json.dumps(sealed(content, "meta.json")))
    assert set(read["files"]) == {"a.npy", "meta.json"}
    changed = [read | {"scale": [1.5, 3]}, read | {"classes": {"2": "a"}}, read | {"more": None}]
    changed.append(read | {"files": read["files"] | {"a.npy": "1-3"}})
    for other in changed:
        with pytest.raises(ValueError, match="its checksum differs"):
            open_seal(json.loads(json.dumps(other)), "meta.json")
    assert open_seal(read, "meta.json") == json.loads(json.dumps(content))
    assert sealed({"scale": 1}, "meta.json") == {"scale": 1} == open_seal({"scale": 1}, "meta.json"), "older versions"
