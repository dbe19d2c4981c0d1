"""Any mix of modalities: methods × kinds, alone and in pairs; and the stories of the guide, from its text."""

from __future__ import annotations

import itertools
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from omegaconf import DictConfig

from datasets.batch import Batch, hide
from tests.mixed import MODALITIES, arguments, as_override, make_mixed
from trainers import run as pipeline
from trainers.config.build import build_model
from trainers.config.compose import CONFIGS, compose_config
from trainers.loading import Run

# One modality per kind: vectors are tables for methods, but have encoders of their own.
KINDS = {"image": "film", "table": "labs", "text": "note", "audio": "heart", "series": "ecg", "vector": "genes"}
MIXES = [(name,) for name in KINDS.values()] + list(itertools.combinations([*KINDS.values(), "clip"], 2))
METHODS = ("DynamicTransformer", "ModDrop", "Zeros_MLP", "MaskedAttention")
ALONE = ("ModDrop", "Zeros_MLP")  # methods that train on one modality


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mixed(tmp_path_factory.mktemp("kinds"))


@pytest.fixture(scope="module")
def configured(csv: Path) -> Callable[..., DictConfig]:
    def build(names: tuple[str, ...], *more: str) -> DictConfig:
        given = [f"++dataset.{key}={as_override(value)}" for key, value in arguments(csv, *names).items()]
        widths = [f"dataset.training_defaults.{k}" for k in ("width=16", "heads=2", "vector_width=16")]
        small = ["dataset.encoder_set=tiny", "trainer=cpu", *widths, f"paths.cache={csv.parent / 'cache'}"]
        return compose_config(
            "dataset=FromCSV",
            *given,
            *small,
            "distance_metric=cosine_similarity",
            f"paths.output={csv.parent / 'out'}",
            *more,
        )

    return build


def poisoned(batch: Batch, value: float) -> Batch:
    """The batch with another content where something is missing."""
    zeros = hide(batch.inputs, batch.missing, batch.feature_missing)
    ones = hide({k: torch.ones_like(x) for k, x in batch.inputs.items()}, batch.missing, batch.feature_missing)
    inputs = {}
    for name, x in batch.inputs.items():
        missing = (zeros[name] == 0) & (ones[name] == 0)
        inputs[name] = torch.where(missing, value if x.is_floating_point() else 10**6, x)
    return batch.replace(inputs=inputs, missing=batch.missing, feature_missing=batch.feature_missing)


@pytest.mark.parametrize("names", MIXES, ids="-".join)
def test_missing_content_changes_nothing_and_a_batch_of_one_is_a_batch_of_many(
    configured: Callable[..., DictConfig], names: tuple[str, ...]
) -> None:
    for method in METHODS:
        if len(names) == 1 and method not in ALONE:
            continue
        cfg = configured(names, f"model={method}")
        run = Run(cfg)
        run.data.prepare()
        torch.manual_seed(0)
        model = build_model(cfg, cfg.model, run.data).eval()
        loader = run.data.loader("train", run.scenarios[-1])
        batch = loader.gather(torch.arange(12))
        # Rows that lack their only modality are left out of the data; the others may lack cells.
        assert batch.missing.any() or len(names) == 1
        with torch.no_grad():
            expected = model(batch).logits
            assert torch.isfinite(expected).all()
            for value in (math.nan, 1e30):
                assert torch.equal(model(poisoned(batch, value)).logits, expected), (method, value)
            for row in (0, 7):
                alone = model(loader.gather(torch.tensor([row]))).logits[0]
                torch.testing.assert_close(alone, expected[row], atol=1e-5, rtol=1e-4)


def stories() -> list[tuple[str, str, str]]:
    """Name, configuration and command of the three mixes of docs/your-data.md."""
    text = (CONFIGS.parent / "docs" / "your-data.md").read_text()
    section = text.split("## Any mix of modalities")[1].split("\n## ")[0]
    files = re.findall(r"```yaml\n(.*?)```", section, re.S)
    commands = re.findall(r"^python run\.py (.*)$", section, re.M)
    return [(yaml.safe_load(file)["name"], file, command) for file, command in zip(files, commands, strict=True)]


@pytest.mark.parametrize(("name", "file", "command"), stories(), ids=lambda value: value if value.isalpha() else "")
def test_a_story_of_the_guide_runs_from_its_text(
    name: str, file: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DyMo end to end: every modality is missing in one scenario and recovered from the others."""
    configs = tmp_path / "configs"
    shutil.copytree(CONFIGS, configs)
    (configs / "dataset" / f"{name}.yaml").write_text(file)
    make_mixed(tmp_path / "data" / name.lower())
    monkeypatch.chdir(tmp_path)
    small = [
        *("dataset.encoder_set=tiny", "trainer=cpu", "trainer.enable_progress_bar=false", "imputer.latent=8"),
        *(f"dataset.training_defaults.{k}" for k in ("width=16", "heads=2", "batch_size=16", "max_epochs=2")),
        *("model.backbone.training.max_epochs=2", "model.backbone.module.prototype_start=1"),
        *("imputer.training.max_epochs=2", "imputer.training.batch_size=16", "imputer.quality.judge_epochs=1"),
    ]
    cfg = compose_config(*command.split(), *small, configs=configs)
    pipeline.run(cfg)
    run, modalities = Run(cfg), list(yaml.safe_load(file)["modalities"])
    results = pd.read_csv(run.directory / "results.csv").query("metric == 'accuracy'")
    assert {"DyMo", "DyMo/discard", "DyMo/impute_all"} <= set(results["model"])
    assert set(results["scenario"]) == {"none", *(f"whole_{i}" for i in range(len(modalities)))}
    assert results["value"].between(0, 1).all()
    for i in range(len(modalities)):
        stored = np.load(run.directory / "predictions" / f"whole_{i}.npz")
        assert stored["missing"][:, i].mean() > 0.9
    pictured = [m for m in modalities if MODALITIES[m]["kind"] in ("image", "series")]
    shown = np.load(run.directory / "examples" / "whole_0.npz")
    for modality in pictured:
        assert shown[f"original_{modality}"].std((1, 2, 3)).max() > 0
        assert shown[f"recovered_{modality}"].shape == shown[f"original_{modality}"].shape
    quality = pd.read_csv(next((tmp_path / "outputs" / name).glob("imputer_*/*/seed0/quality.csv")))
    assert set(quality["modality"]) == set(modalities)
    assert np.isfinite(quality["value"]).all()
    assert MODALITIES.keys() >= set(modalities)
