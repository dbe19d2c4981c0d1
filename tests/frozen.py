"""Record what the code computes, and compare two records: for changes that must not change a number.

    python -m tests.frozen record FOLDER [PATTERN]  # runs whose name matches; continues where it was interrupted
    python -m tests.frozen compare OLD NEW        # prints every difference; the exit status is 1 if there is one

A record holds the resolved configuration of every model, imputer, experiment and schedule with every data set; for
every model × data set (demo data, tiny networks) the state-dict shapes and the predictions after two training steps;
and ``results.csv`` of one epoch of six methods on Digits. Everything goes through configurations and stages, as a
user's command does, so that it does not matter where the code lives. :data:`RENAMED` maps names that were changed on
purpose.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf

from tests.contracts.test_baselines import METHODS, ONLY
from tests.contracts.test_contracts import PAIRS, SMALL_DATA, SMALL_METHODS, configure, options
from tests.makers import make_image_table, make_mnist_idx, make_polymnist_folder
from trainers import run as pipeline
from trainers.config.build import data_arguments
from trainers.config.compose import group_options, register
from trainers.loading import Run

# Old spelling -> new spelling: regular expressions for flattened configuration keys, values and state-dict keys.
RENAMED: dict[str, str] = {
    r"\bmodels\.baselines\.base\.TrainingMasks": "models.baselines.masks.TrainingMasks",
    r"\bdatasets\.(audio|video)\.": r"datasets.readers.\1.",
    r"\bdataset\.(module\.)?low\b": r"dataset.\1train_fraction",
    r"\bdataset\.baselines\b": "dataset.training_defaults",
}
# Keys of a resolved configuration that only the new record has.
ADDED: tuple[str, ...] = (
    "dataset.demo_maker",
    "model.selector._target_",
    "trainer.float32_precision",
    "dataset.channels_last",
)
DIGITS_METHODS = ("DyMo", "ModDrop", "MAP", "QMF", "MUSE", "LogitAverage")
IMPUTERS = {"Digits": ("MoPoE", "CMVAE", "MMVAEPlus", "Mean"), "CAD": ("TIP", "IMI")}
SMALL_IMPUTERS = {
    "MoPoE": ["imputer.latent=8"],
    "CMVAE": ["imputer.width=4", "imputer.shared=8", "imputer.private=4", "imputer.module.clusters=4"],
    "MMVAEPlus": ["imputer.width=4"],
}


def flat(node: Any, key: str = "") -> dict[str, Any]:
    """Nested mappings -> one level, with dotted keys."""
    if not isinstance(node, dict):
        return {key: node}
    return {k: v for name, child in node.items() for k, v in flat(child, f"{key}.{name}" if key else str(name)).items()}


def compositions() -> Iterator[list[str]]:
    """Overrides of every configuration that ships."""
    for dataset in options("dataset"):
        for model in options("model"):
            yield [f"dataset={dataset}", f"model={model}"]
        for imputer in options("imputer"):
            yield [f"dataset={dataset}", f"imputer={imputer}"]
        for schedule in options("schedule"):
            yield [f"dataset={dataset}", f"schedule={schedule}"]
    for experiment in group_options("experiment"):
        yield [f"+experiment={experiment}", "dataset=Food101", "model=CMPT"]


def data_module(cfg: DictConfig) -> dict[str, Any]:
    """Class and arguments of the data module, without those that the program sets itself."""
    return {"_target_": str(cfg.dataset.module._target_), **data_arguments(cfg)}


def resolved(overrides: list[str]) -> dict[str, Any]:
    """The values of a composed configuration, or the error where it does not compose."""
    try:
        cfg = configure(*overrides)
        values = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
        values["dataset"]["module"] = data_module(cfg)
        return flat(values)
    except Exception as error:  # experiments for other data sets do not compose
        return {"error": type(error).__name__}


def runs(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Name and overrides of every small run."""
    raw = folder.parent / "frozen_data"
    if not raw.exists():
        make_polymnist_folder(raw / "PolyMNIST", per_class=6)
        make_mnist_idx(raw / "mnist", n_train=60, n_test=100)
        make_image_table(raw / "parts", per_class=30)
    roots = {
        "PolyMNIST": [f"dataset.root={raw / 'PolyMNIST'}"],
        "PolyMNIST_hard": [f"dataset.mnist={raw / 'mnist'}"],
        "ImageTable": [f"dataset.csv={raw / 'parts' / 'parts.csv'}", f"dataset.images={raw / 'parts' / 'photos'}"],
    }
    common = [
        *(f"paths.data={raw}", f"paths.cache={raw / 'cache'}", "trainer=cpu", "trainer.enable_progress_bar=false"),
        *("trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "dataset.training_defaults.batch_size=16"),
        *("dataset.training_defaults.max_epochs=1", "dataset.monitor=null", "report.samples=2"),
    ]

    def overrides(dataset: str, model: str, *more: str) -> list[str]:
        table = "table" if dataset in ("CAD", "ImageTable") else None
        scenarios = "[none,whole_1,table_value_0.5]" if table else "[none,whole_1,random_0.5]"
        return [
            *(f"dataset={dataset}", f"model={model}", *SMALL_DATA[dataset], *roots.get(dataset, []), *common),
            *(f"missing.test={scenarios}", f"paths.output={folder / 'runs'}", *more),
        ]

    for dataset, model in PAIRS:
        yield f"{dataset}-{model}", overrides(dataset, model, "imputer=Zero", *SMALL_METHODS.get((dataset, model), []))
    for dataset in SMALL_DATA:
        for model, small in METHODS.items():
            if model in ONLY and dataset not in ONLY[model]:
                continue
            imputer = [] if model in ONLY else ["imputer=Mean"]
            yield f"{dataset}-{model}", overrides(dataset, model, *imputer, *small, "name=small")
    for dataset, imputers in IMPUTERS.items():
        for imputer in imputers:
            small = [*SMALL_IMPUTERS.get(imputer, []), f"name=imputer_{imputer}", "imputer.quality.judge_epochs=1"]
            epochs = [] if imputer in ("Mean", "IMI") else ["imputer.training.max_epochs=1"]
            yield f"{dataset}-imputer-{imputer}", overrides(dataset, "DyMo", f"imputer={imputer}", *small, *epochs)


def record_run(overrides: list[str], target: Path) -> None:
    """Run all stages but the report; keep predictions, losses, state-dict shapes and sums."""
    impute = "" if "imputer=Zero" in overrides else "impute,"
    cfg = configure(*overrides, f"stages=[prepare,{impute}fit,gaussian,test]")
    pipeline.run(cfg)
    context = Run(cfg)
    arrays: dict[str, np.ndarray] = {}
    for file in sorted((context.directory / "predictions").rglob("*.npz")):
        with np.load(file) as stored:
            for key in ("logits", "final_missing", "missing"):
                if key in stored:
                    arrays[f"{file.relative_to(context.directory.path).with_suffix('')}.{key}"] = stored[key][:64]
    directories = {"fit": context.fit_directory, "imputer": context.imputer_directory}
    for name, directory in directories.items():
        checkpoint = directory / "checkpoints" / "last.ckpt"
        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=True)["state_dict"]
            for key, value in state.items():
                arrays[f"{name}.state.{key}"] = np.array([*value.shape, float(value.double().abs().sum())])
    np.savez_compressed(target, **arrays)


def record(folder: Path, pattern: str = "") -> None:
    """Record into ``folder``; what is there already is kept.

    Args:
        pattern: regular expression of the runs to make, for example ``PolyMNIST-`` or ``-ModDrop$``; empty = all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "configurations.json").exists():
        values = {" ".join(overrides): resolved(overrides) for overrides in compositions()}
        (folder / "configurations.json").write_text(json.dumps(values, indent=1, default=str))
    failures = {}
    for name, overrides in runs(folder):
        target = folder / f"{name}.npz"
        if target.exists() or not re.search(pattern, name):
            continue
        try:
            record_run(overrides, target)
        except Exception as error:  # a refusal is behaviour too
            failures[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            (folder / f"{name}.error").write_text(failures[name])
        print(name, failures.get(name, ""), flush=True)
    for model in DIGITS_METHODS:
        target = folder / f"digits_{model}.csv"
        if not target.exists() and re.search(pattern, target.stem):
            small = ["dataset.train_pairings=1", "imputer=Mean", "name=digits", "trainer=cpu"]
            small += [f"paths.output={folder / 'runs'}", "dataset.training_defaults.max_epochs=1"]
            small += [f"paths.cache={folder.parent / 'frozen_data' / 'cache'}", "trainer.enable_progress_bar=false"]
            small += ["model.unimodal.training.max_epochs=1"] if model == "LogitAverage" else []
            cfg = configure("dataset=Digits", f"model={model}", *small, "stages=[prepare,impute,fit,gaussian,test]")
            pipeline.run(cfg)
            target.write_bytes((Run(cfg).directory / "results.csv").read_bytes())
            print(target.stem, flush=True)


def renamed(text: str) -> str:
    for old, new in RENAMED.items():
        text = re.sub(old, new, text)
    return text


def compare(old: Path, new: Path) -> list[str]:
    """Every difference, one line each."""
    differences = []
    before, after = (json.loads((folder / "configurations.json").read_text()) for folder in (old, new))
    for name, values in before.items():
        name = renamed(name)
        if name not in after:
            differences.append(f"configuration {name}: gone")
            continue
        expected = {renamed(key): renamed(json.dumps(value)) for key, value in values.items()}
        actual = {key: json.dumps(value) for key, value in after[name].items()}
        for key in sorted(expected.keys() | actual.keys()):
            if expected.get(key) != actual.get(key) and key not in ADDED:
                differences.append(f"configuration {name}: {key}: {expected.get(key)} -> {actual.get(key)}")
    for file in sorted([*old.glob("*.npz"), *old.glob("*.error")]):
        other = new / file.name
        if not other.exists():
            differences.append(f"{file.name}: gone")
        elif file.suffix == ".error":
            if renamed(file.read_text()) != other.read_text():
                differences.append(f"{file.name}: {file.read_text()} -> {other.read_text()}")
        else:
            with np.load(file) as a, np.load(other) as b:
                expected = {renamed(key): a[key] for key in a}
                for key in sorted(expected.keys() | set(b)):
                    if key not in expected or key not in b:
                        differences.append(f"{file.stem}: {key}: only in {'new' if key in b else 'old'}")
                    elif not np.array_equal(expected[key], b[key], equal_nan=True):
                        gap = np.abs(expected[key].astype(float) - b[key].astype(float)).max()
                        differences.append(f"{file.stem}: {key}: differs by {gap:.3g}")
    for file in sorted(old.glob("digits_*.csv")):
        a, b = pd.read_csv(file), pd.read_csv(new / file.name)
        columns = [column for column in a if column in b]
        if not a[columns].equals(b[columns]):
            differences.append(f"{file.name}: differs")
    return differences


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["record", "compare"])
    parser.add_argument("arguments", nargs="+", help="FOLDER [PATTERN], or OLD NEW")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    register()
    logging.disable(logging.WARNING)
    if arguments.command == "record":
        folder, *pattern = arguments.arguments
        record(Path(folder).resolve(), *pattern)
        return 0
    differences = compare(*map(Path, arguments.arguments))
    print("\n".join(differences) or "no difference")
    return int(bool(differences))


if __name__ == "__main__":
    sys.exit(main())
