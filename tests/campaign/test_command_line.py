"""Hostile files behind every key of the configuration that names files: one line, in bounded time, nothing executed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from tests.campaign.children import REFUSED, in_child
from tests.campaign.entries import WITH_DEMO
from tests.campaign.mutations import HOSTILE, payloads
from tests.campaign.tally import MINUTES, SEED, Tally, tries
from tests.campaign.tiny import TinyRun
from tests.test_cli import execute
from utils.errors import UserError

pytestmark = pytest.mark.campaign


@dataclass(frozen=True)
class Key:
    """A key of the configuration that names a file.

    Attributes:
        stage: that reads it; the run holds what earlier stages wrote.
        files: valid files.
        set: puts the path of the hostile file into the configuration.
    """

    stage: str
    files: Callable[[TinyRun, Path], Iterator[Path]]
    set: Callable[[DictConfig, Path], None]


def setter(*keys: str) -> Callable[[DictConfig, Path], None]:
    def put(cfg: DictConfig, path: Path) -> None:
        for key in keys:
            OmegaConf.update(cfg, key, str(path))

    return put


def of_run(pattern: str) -> Callable[[TinyRun, Path], Iterator[Path]]:
    return lambda tiny, folder: tiny.whole.glob(f"out/Parts/{pattern}")


def masks(tiny: TinyRun, folder: Path) -> Iterator[Path]:
    with np.load(next(tiny.whole.glob("out/Parts/DyMo_EU/default/seed0/masks/whole_1.npz"))) as arrays:
        missing = arrays["missing"]
    np.savetxt(folder / "masks.csv", missing, fmt="%s", delimiter=",")
    np.save(folder / "masks.npy", np.zeros((len(missing), 4), dtype=bool))
    torch.save(torch.zeros(len(missing), dtype=torch.long), folder / "masks.pt")
    return folder.glob("masks.*")


def new_rows(tiny: TinyRun, folder: Path) -> Iterator[Path]:
    shutil.copy(tiny.csv, folder / "new.csv")
    np.savez(folder / "new.npz", image=np.zeros((4, 28, 28, 3), np.uint8), table=np.zeros((4, 4)))
    return folder.glob("new.*")


def put_mask(cfg: DictConfig, path: Path) -> None:
    cfg.missing.test = [f"file:{path}"]


def put_picture(cfg: DictConfig, path: Path) -> None:
    """A folder of pictures, one of which is hostile."""
    folder = path.parent / "photos"
    shutil.copytree(cfg.dataset.images, folder, dirs_exist_ok=True)
    shutil.copy(path, sorted(folder.iterdir())[0])
    cfg.dataset.images = str(folder)


def put_run(cfg: DictConfig, path: Path) -> None:
    """A run directory without markers, so that no checksum is compared; one of its files is hostile."""
    run = next(Path(cfg.paths.output).glob("Parts/DyMo_EU/default/seed0"))
    copied = shutil.copytree(run, path.parent / "DyMo" / "other" / "seed0", dirs_exist_ok=True)
    shutil.rmtree(copied / "stages")
    for file in copied.rglob(path.name):
        shutil.copy(path, file)
    cfg.report.include = [str(copied)]


KEYS = {
    "model.transformer_checkpoint": Key(
        "gaussian", of_run("DynamicTransformer*/default/seed0/checkpoints/best.ckpt"),
        setter("model.transformer_checkpoint", "model.backbone.transformer_checkpoint"),
    ),
    "model.gaussian": Key(
        "test", of_run("*/default/seed0/gaussian_*.safetensors"), setter("model.gaussian", "model.backbone.gaussian")
    ),
    "imputer.checkpoint": Key(
        "test", of_run("imputer_TIP/default/seed0/checkpoints/best.ckpt"), setter("imputer.checkpoint")
    ),
    "missing.test": Key("test", masks, put_mask),
    "predict.input": Key("predict", new_rows, setter("predict.input")),
    "predict.bundle": Key("predict", of_run("DyMo_EU/default/seed0/bundle.zip"), setter("predict.bundle")),
    "dataset.csv": Key("prepare", lambda tiny, folder: iter([tiny.csv]), setter("dataset.csv")),
    "dataset.images": Key("prepare", lambda tiny, folder: (tiny.csv.parent / "photos").glob("*"), put_picture),
    "report.include": Key("report", of_run("DyMo_EU/default/seed0/*/*.npz"), put_run),
    "report.include, texts": Key("report", of_run("DyMo_EU/default/seed0/*.[cjy]*"), put_run),
}  # fmt: skip


def judged(status: int, text: str, sentinel: Path) -> tuple[str, str | None]:
    if sentinel.exists():
        sentinel.unlink()
        return "losses", "it was executed"
    if status in (0, REFUSED) and "Traceback" not in text:
        return ("refused" if status else "unchanged"), None
    return "losses", f"ended with {status}: {text}"


@pytest.mark.parametrize("name", KEYS)
def test_a_hostile_file_behind_a_key_is_one_line(name: str, tiny: TinyRun, tally: Tally, tmp_path: Path) -> None:
    key, rng, losses = KEYS[name], random.Random(f"{SEED}{name}"), []
    if key.stage == "report" and not MINUTES:
        pytest.skip("stage report draws for seconds")
    (made := tmp_path / "made").mkdir()
    (hostile := tmp_path / "hostile").mkdir()
    files, sentinel = sorted(key.files(tiny, made)), tmp_path / "executed"
    attacks = payloads(sentinel)
    assert files
    for number in tries(1, hour=12):
        place, file = tiny.copy(tmp_path / "run", tiny.before[key.stage]), rng.choice(files)
        content, path = file.read_bytes(), hostile / file.name
        mutate = rng.choice(HOSTILE)
        path.write_bytes(rng.choice(attacks) if number % 4 == 1 else mutate(content, rng) if content else b"{")

        def run() -> None:
            cfg = tiny.config(place, [key.stage])  # noqa: B023
            key.set(cfg, path)  # noqa: B023
            tiny.start(cfg)

        result, wrong = judged(*in_child(run, place)[::2], sentinel)
        what = f"{file.name}, {mutate.__name__}: {wrong}"
        tally.add("hostile file, behind a key of the configuration", name.partition(",")[0], result, what)
        losses += [f"{file.name}, {mutate.__name__}: {wrong}"] * bool(wrong)
    assert not losses, "\n".join(losses)


@pytest.mark.parametrize("name", WITH_DEMO if MINUTES else ["MultiFeatureDigits"])
def test_a_hostile_file_of_a_data_set_is_one_line(name: str, tally: Tally, tmp_path: Path) -> None:
    """``python run.py`` on demo data in the layout of the real files, of which one is hostile."""
    rng, losses, data = random.Random(f"{SEED}{name}"), [], tmp_path / "data"
    sentinel = tmp_path / "executed"
    attacks = payloads(sentinel)
    # Of several labels.
    model = "ModDrop" if name in ("MIMIC", "MMIMDb") else "DynamicTransformer"
    arguments = [
        *(f"dataset={name}", "dataset.demo=true", f"model={model}", "stages=[prepare]", "trainer=cpu"),
        *(f"paths.data={data}", f"paths.cache={tmp_path / 'cache'}", f"paths.output={tmp_path / 'out'}"),
    ]

    def run() -> None:
        status, lines = execute(arguments, tmp_path / "here")
        if status:
            raise (UserError if status == REFUSED else AssertionError)("\n".join(lines[-8:]))

    status, _, text = in_child(run, tmp_path)
    assert status == 0, text
    files = [path for path in sorted(data.rglob("*")) if path.is_file() and path.name != "demo.json"]
    by_suffix = [[file for file in files if file.suffix == suffix] for suffix in sorted({f.suffix for f in files})]
    for number in tries(2, hour=12):
        file, mutate = rng.choice(rng.choice(by_suffix)), rng.choice(HOSTILE)
        content = file.read_bytes()
        file.write_bytes(rng.choice(attacks) if number % 4 == 1 else mutate(content, rng) if content else b"{")
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        result, wrong = judged(*in_child(run, tmp_path)[::2], sentinel)
        what = f"{file.name}, {mutate.__name__}: {wrong}"
        tally.add("hostile file of a data set, through run.py", name, result, what)
        losses += [f"{file.name}, {mutate.__name__}: {wrong}"] * bool(wrong)
        file.write_bytes(content)
    assert not losses, "\n".join(losses)
