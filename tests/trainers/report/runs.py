"""Finished runs as a report reads them, with predictions, examples and curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

from datasets.missingness.base import slug
from trainers.report.runs import COLUMNS

SCENARIOS = ("none", "random_0.2", "random_0.4", "random_global_0.4", "whole_01", "whole_2", "file:masks.csv")
NAMES = ("mnist_a", "mnist_b", "text")
CLASSES = 10
QUALITY = {"DyMo": 0.9, "DyMo/discard": 0.8, "DyMo/oracle_subset": 0.97, "M3Care": 0.75, "CMPT_x": 0.7}


def write_run(
    root: Path,
    model: str,
    seed: int,
    *,
    dataset: str = "PolyMNIST",
    name: str = "default",
    n: int = 60,
    scenarios: Sequence[str] = SCENARIOS,
) -> Path:
    """A finished run; models of QUALITY that start with ``model/`` are its comparators."""
    run = root / dataset / model / name / f"seed{seed}"
    run.mkdir(parents=True)
    rng = np.random.default_rng([seed, len(model)])
    rows = []
    for member in [m for m in QUALITY if m.partition("/")[0] == model]:
        for position, scenario in enumerate(scenarios):
            folder = run / "predictions" / member.partition("/")[2]
            folder.mkdir(parents=True, exist_ok=True)
            stem = slug(scenario)
            target = np.random.default_rng(seed).integers(CLASSES, size=n)
            missing = np.random.default_rng([seed, position]).random((n, 3)) < 0.4
            missing[:, 0] &= ~missing.all(axis=1)
            right = rng.random(n) < QUALITY[member] - 0.05 * position
            logits = np.eye(CLASSES)[np.where(right, target, (target + 1) % CLASSES)] + rng.random((n, CLASSES)) * 0.1
            arrays = {"index": rng.permutation(n), "logits": logits, "target": target, "missing": missing}
            order = arrays["index"]
            arrays |= {"logits": logits[order], "target": target[order], "missing": missing[order]}
            if member == "DyMo":
                arrays |= selection(arrays["missing"], rng)
                write_examples(run / "examples" / f"{stem}.npz", arrays, rng)
            np.savez_compressed(folder / f"{stem}.npz", **arrays)
            values = {"accuracy": right.mean(), "auroc": min(right.mean() + 0.05, 1), "ece": rng.uniform(0.02, 0.1)}
            if member == "DyMo":
                values |= {"accepted_share": 0.43, "iterations": 1.375}
            rows += [(dataset, member, seed, scenario, metric, value, n) for metric, value in values.items()]
    pd.DataFrame(rows, columns=COLUMNS).to_csv(run / "results.csv", index=False)
    about = {"versions": {"torch": "2.11"}, "device": "cpu", "git_commit": "abc123", "masks": {"none": f"{seed:016x}"}}
    about["cost"] = {"parameters": 1000 * len(model), "trainable_parameters": 900, "fit_seconds": 2.0 + seed}
    about["cost"]["test_seconds_per_1000_rows"] = 0.1
    (run / "environment.json").write_text(json.dumps(about))
    (run / "config.yaml").write_text(
        f"model: {model}\nseed: {seed}\nwidth: {len(model)}\nnote: <b>see https://example.org</b>\n"
    )
    curves = [
        f"{e},{10 * e + 9},{2 / (e + 1)},,\n{e},{10 * e + 9},,{2.2 / (e + 1)},{1 - 0.8 / (e + 1)}\n" for e in range(8)
    ]
    (run / "metrics.csv").write_text("epoch,step,train_loss,val_loss,val_accuracy\n" + "".join(curves))
    (run / "DONE").touch()
    return run


def write_committed_run(root: Path, model: str, seed: int) -> Path:
    """A finished run that can be stored as evidence; its configuration has folders of this machine."""
    run = write_run(root, model, seed, scenarios=("none", "random_0.4"))
    config = {"dataset": {"root": "/data/private/mnist"}, "paths": {"data": str(root / "raw"), "output": str(root)}}
    config["imputer"] = {"checkpoint": str(root / "PolyMNIST" / "imputer" / "best.ckpt")}
    (run / "config.yaml").write_text(json.dumps(config))
    cost = {"parameters": 1200000, "trainable_parameters": 1000, "fit_seconds": 10.0 + seed}
    cost["fit_processor_seconds"] = 1008.0 + seed
    about = {"git_commit": "abc123456789", "device": "cpu, 1 threads", "cost": cost}
    (run / "environment.json").write_text(json.dumps(about))
    return run


def selection(missing: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Greedy acceptance on random rewards, as DyMo stores it."""
    n, m = missing.shape
    rewards = np.full((n, m, m), np.nan, dtype=np.float32)
    accepted = np.full((n, m), -1, dtype=np.int8)
    left = missing.copy()
    for row in range(n):
        for step in range(m):
            if not left[row].any():
                break
            rewards[row, step, left[row]] = rng.normal(0.1, 0.3, left[row].sum())
            left[row] &= rewards[row, step] >= 0
            if not left[row].any():
                break
            accepted[row, step] = np.nanargmax(rewards[row, step])
            left[row, accepted[row, step]] = False
    final = missing.copy()
    for row, order in enumerate(accepted):
        final[row, order[order >= 0]] = False
    return {"final_missing": final, "accepted": accepted, "rewards": rewards}


def write_examples(path: Path, arrays: dict[str, np.ndarray], rng: np.random.Generator, k: int = 4) -> None:
    digits = load_digits()
    data = {key: arrays[key][:k] for key in ("index", "target", "missing", "final_missing", "rewards", "accepted")}
    data["prediction"] = arrays["logits"][:k].argmax(axis=1)
    data |= {"modality_names": np.array(NAMES), "class_names": np.array([f"digit {c}" for c in range(CLASSES)])}
    for name, channels in (("mnist_a", 3), ("mnist_b", 1)):
        pictures = (
            np.stack([digits.images[digits.target == t][0] * 15 for t in data["target"]]).repeat(4, 1).repeat(4, 2)
        )
        colour = rng.uniform(0.4, 1, (k, channels, 1, 1))
        data[f"original_{name}"] = (pictures[:, None] * colour).astype(np.uint8)
        data[f"recovered_{name}"] = np.clip(data[f"original_{name}"] + rng.normal(0, 30, (k, channels, 32, 32)), 0, 255)
        data[f"recovered_{name}"] = data[f"recovered_{name}"].astype(np.uint8)
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **data)


def frame_of(cells: dict[tuple[str, str], list[float]], metric: str = "accuracy") -> pd.DataFrame:
    """Rows of results.csv from (model, scenario) -> value of seed 0, 1, ..."""
    rows = [("D", m, seed, s, metric, v, 9) for (m, s), values in cells.items() for seed, v in enumerate(values)]
    return pd.DataFrame(rows, columns=COLUMNS)
