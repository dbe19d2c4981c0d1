"""Every method and scenario on every kind of modality, alone and in pairs; and the stories of the guide."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from omegaconf import DictConfig

from datasets.batch import Batch, Modality, hide, missing_content, rows_like, unobserved
from datasets.from_csv import FromCSV
from datasets.missingness import Rows, parse_scenario
from datasets.missingness.parse import SCENARIOS as KINDS_OF_SCENARIOS
from datasets.missingness.segments import Segments
from datasets.split_masks import SplitMask
from gaussian_parameter_generation.estimate import estimate
from models.base import Method
from models.imputers.base import recover
from models.imputers.simple import Zero
from tests.contracts.test_baselines import METHODS, empty_memory
from tests.datasets.missingness.all_kinds import is_binomial
from tests.mixed import MODALITIES, arguments, as_override, make_mixed
from tests.tolerances import batch_bound
from trainers import run as pipeline
from trainers.config.build import build_model, build_selector
from trainers.config.compose import CONFIGS, compose_config, group_options
from trainers.config.imputers import build_imputer
from trainers.config.validate import validate
from trainers.loading import Run
from utils.errors import UserError

# One modality per kind, in a ring: vectors are tables for methods, but have encoders of their own.
RING = ("film", "labs", "note", "heart", "clip", "genes", "ecg")
# Method -> the reason that it gives for not taking these encoders or kinds.
REFUSED = {
    "CMPT": "model CMPT works inside transformers, and the encoder of 'film' is no",
}
ROWS = 10


def mixes(method: str) -> Iterator[tuple[str, ...]]:
    """Every kind alone, and two pairs with each kind: neighbours in the ring, or those two or three apart.

    Three methods in a row have all 21 pairs.
    """
    yield from ((name,) for name in RING)
    step = 1 + group_options("model").index(method) % 3
    yield from ((name, RING[(i + step) % len(RING)]) for i, name in enumerate(RING))


def test_every_pair_of_kinds_is_tried_by_a_third_of_the_methods() -> None:
    pairs = [frozenset(mix) for method in group_options("model")[:3] for mix in mixes(method) if len(mix) == 2]
    assert len(pairs) == len(set(pairs)) == 21
    assert {MODALITIES[name]["kind"] for name in RING} == {options["kind"] for options in MODALITIES.values()}


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mixed(tmp_path_factory.mktemp("kinds"))


@pytest.fixture(scope="module")
def data(csv: Path) -> FromCSV:
    data = FromCSV(store=str(csv.parent / "store"), **arguments(csv))
    data.prepare()
    return data


@pytest.fixture(scope="module")
def everything(data: FromCSV) -> Batch:
    """All training rows, in which the source lacks some modalities and cells."""
    loader = data.loader("train", data.missing_train)
    return loader.gather(torch.arange(len(data.split("train"))))


@pytest.fixture(scope="module")
def configured(csv: Path) -> Callable[..., DictConfig]:
    def build(*overrides: str) -> DictConfig:
        given = [f"++dataset.{key}={as_override(value)}" for key, value in arguments(csv, *RING).items()]
        widths = [f"dataset.training_defaults.{k}" for k in ("width=16", "heads=2", "vector_width=16")]
        small = ["dataset.encoder_set=tiny", "trainer=cpu", *widths, f"paths.cache={csv.parent / 'cache'}"]
        outputs = f"paths.output={csv.parent / 'out'}"
        return compose_config(
            "dataset=FromCSV", *given, *small, "distance_metric=cosine_similarity", outputs, *overrides
        )

    return build


def some_rows(everything: Batch, modalities: Sequence[Modality], names: Sequence[str]) -> Batch:
    """Rows with at least one of the modalities; of the others, half lack one, and some only a part of each.

    Args:
        everything: rows with all modalities of the data set.
        names: of all modalities of the data set.
    """
    columns = [names.index(m.name) for m in modalities]
    absent = unobserved(everything, names)[:, columns]
    rows = torch.nonzero(~absent.all(1)).flatten()[:ROWS]
    absent, number = absent[rows], torch.arange(len(rows))
    drawn = torch.zeros_like(absent)
    drawn[number[::2], number[::2] // 2 % len(modalities)] = True
    drawn = absent | (drawn & ~(absent | drawn).all(1, keepdim=True))
    missing, cells = drawn.clone(), {}
    for i, m in enumerate(modalities):
        if m.kind == "text":
            continue
        part = torch.from_numpy(Segments(0.5, i).generate(Rows(len(rows), m.shape[0], seed=3, modality=m)))
        source = everything.feature_missing.get(m.name)
        gaps = torch.zeros_like(part) if source is None else source[rows]
        is_partial = (number % 4 == 1) & ~(part | gaps).flatten(1).all(1)
        cells[m.name] = (part & rows_like(is_partial, part)) | rows_like(drawn[:, i], part) | gaps
        missing[:, i] = cells[m.name].flatten(1).any(1)
    inputs = {m.name: everything.inputs[m.name][rows] for m in modalities}
    return Batch(inputs, missing, everything.target[rows], number, cells)


def poisoned(batch: Batch, value: float) -> Batch:
    """The batch with another content where something is missing."""
    zeros = hide(batch.inputs, batch.missing, batch.feature_missing)
    ones = hide({k: torch.ones_like(x) for k, x in batch.inputs.items()}, batch.missing, batch.feature_missing)
    inputs = {}
    for name, x in batch.inputs.items():
        missing = (zeros[name] == 0) & (ones[name] == 0)
        inputs[name] = torch.where(missing, value if x.is_floating_point() else 10**6, x)
    return batch.replace(inputs=inputs, missing=batch.missing, feature_missing=batch.feature_missing)


def take(batch: Batch, rows: Sequence[int]) -> Batch:
    return Batch(
        {name: x[rows] for name, x in batch.inputs.items()},
        batch.missing[rows],
        batch.target[rows],
        batch.index[rows],
        {name: cells[rows] for name, cells in batch.feature_missing.items()},
    )


def built(cfg: DictConfig, modalities: Sequence[Modality], batch: Batch) -> Method:
    """The untrained method, no parameter at a value that could hide a term; DyMo on its untrained backbone."""
    data: Any = SimpleNamespace(modalities=modalities, num_classes=2, task="multiclass")
    torch.manual_seed(0)
    run = Run(cfg)
    run.__dict__["data"] = data
    if run.is_built_on_imputer:
        imputer = build_imputer(cfg, data)
        model = build_model(cfg, cfg.model, data, pretrained=False, imputer=imputer)
    else:
        model = run.build()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.log_losses = lambda *_: None  # type: ignore[method-assign]
    empty_memory(model)
    if not run.uses_selection:
        return model
    complete = batch.replace(missing=torch.zeros_like(batch.missing), feature_missing={}, complete=True)
    parameters = estimate(model.as_backbone("cosine_similarity"), [complete], progress=False)
    return build_selector(cfg, model, Zero(), parameters)


def check_contract(method: Method, batch: Batch) -> None:
    """Missing content changes no prediction and no training step; a batch of one is a batch of many."""
    method.eval()
    with torch.no_grad():
        expected = method(batch).logits
        assert torch.isfinite(expected).all()
        for value in (math.nan, 1e30):
            assert torch.equal(method(poisoned(batch, value)).logits, expected), value
        for row in () if getattr(method, "batch_dependent", False) else (0, len(batch) - 1):
            alone = method(take(batch, [row])).logits[0]
            torch.testing.assert_close(alone, expected[row], atol=batch_bound(expected), rtol=0)
    if not hasattr(method, "training_step"):
        return
    method.train()
    method.on_train_epoch_start()  # type: ignore[operator]
    steps = []
    for value in (0.3, math.nan):
        method.zero_grad()
        empty_memory(method)  # type: ignore[arg-type]
        torch.manual_seed(1)
        loss = method.training_step(poisoned(batch, value), 0)
        loss.backward()
        steps.append([loss.detach(), *(p.grad.clone() for p in method.parameters() if p.grad is not None)])
    assert all(torch.isfinite(x).all() and torch.equal(x, y) for x, y in zip(*steps, strict=True))


@pytest.mark.parametrize("method", group_options("model"))
def test_a_method_takes_every_kind_alone_and_in_pairs_or_says_why_not(
    configured: Callable[..., DictConfig], data: FromCSV, everything: Batch, method: str
) -> None:
    cfg = configured(f"model={method}", *METHODS.get(method, []), "missing.test=[none]")
    if method in REFUSED:
        with pytest.raises(UserError, match=re.escape(REFUSED[method])):
            validate(cfg)
        return
    validate(cfg)
    options = cfg.dataset.modalities
    for mix in mixes(method):
        cfg.dataset.modalities = {name: options[name] for name in mix}
        modalities = [m for name in mix for m in data.modalities if m.name == name]
        batch = some_rows(everything, modalities, data.modality_names)
        check_contract(built(cfg, modalities, batch), batch)


@pytest.mark.parametrize("name", ["MoPoE", "CMVAE", "MMVAEPlus", "Zero"])
def test_no_imputer_reads_missing_parts_of_any_kind(
    configured: Callable[..., DictConfig], data: FromCSV, everything: Batch, name: str
) -> None:
    cfg = configured(f"imputer={name}")
    modalities = [m for name in RING for m in data.modalities if m.name == name]
    cfg.dataset.modalities = {m.name: cfg.dataset.modalities[m.name] for m in modalities}
    torch.manual_seed(0)
    imputer: Any = build_imputer(cfg, SimpleNamespace(modalities=modalities))  # type: ignore[arg-type]
    batch = some_rows(everything, modalities, data.modality_names)
    is_partial = batch.missing & ~unobserved(batch, list(RING))
    assert all(is_partial[:, i].any() for i, m in enumerate(modalities) if m.kind != "text")
    expected = recover(imputer, batch)
    for value in (math.nan, 1e30):
        recovered = recover(imputer, poisoned(batch, value))
        for m in modalities:
            assert torch.equal(recovered[m.name], expected[m.name]), (m.name, value)
    is_missing = missing_content(batch.inputs["film"], "film", batch.missing[:, 0], batch.feature_missing)
    assert torch.equal(expected["film"].masked_fill(is_missing, 0), batch.observed()["film"])


# Scenarios on all kinds, on a table beside cells of other kinds, and on an image and a text.
SCENARIOS = {
    RING: [
        *("none", "whole_0", "random_0.5", "random_global_0.5", "random_bernoulli_0.5", "correlated_0.3_0.5"),
        *("rates_" + "_".join(["0.4"] * len(RING)), "patterns_none-1_0123-1_456-2", "patterns_like_train"),
        *("mnar_content_0.5", "mnar_class_0.5", "mar_1-age_0.5"),
        *(f"{kind}_{j}_0.5" for kind in ("nested", "mar", "mnar") for j in range(len(RING))),
        *(f"segments_{j}_0.5" for j, name in enumerate(RING) if name != "note"),
    ],
    ("labs", "ecg", "genes"): [f"table_{kind}_0.5" for kind in ("value", "feature", "MI", "LI")],
    ("film", "note"): [f"image_text_{kind}_0.7" for kind in ("both", "image", "text", "running_both")],
}


@pytest.fixture(scope="module", params=SCENARIOS, ids="-".join)
def mixture(
    request: pytest.FixtureRequest, csv: Path, configured: Callable[..., DictConfig]
) -> tuple[FromCSV, list[str], list[Method]]:
    """Data, the scenarios for them, and two methods: one that sees tokens and one that fills in zeros."""
    names = request.param
    data = FromCSV(store=str(csv.parent / "-".join(names)), **arguments(csv, *names))
    data.prepare()
    methods = []
    for method in ("DynamicTransformer", "Zeros_MLP"):
        cfg = configured(f"model={method}", *METHODS.get(method, []))
        cfg.dataset.modalities = {name: cfg.dataset.modalities[name] for name in names}
        batch = data.loader("train").gather(torch.arange(4))
        methods.append(built(cfg, data.modalities, batch).eval())
    return data, SCENARIOS[names], methods


def test_no_scenario_lets_missing_content_of_any_kind_through(
    mixture: tuple[FromCSV, list[str], list[Method]],
) -> None:
    data, names, methods = mixture
    for name in names:
        scenario = parse_scenario(name)
        for split in ("train", "test"):
            loader = data.loader(split, scenario)
            batch = loader.gather(torch.arange(min(20, len(data.split(split)))))
            assert not batch.complete or name == "none"
            for method in methods:
                with torch.no_grad():
                    expected = method(batch).logits
                    assert torch.isfinite(expected).all(), name
                    assert torch.equal(method(poisoned(batch, math.nan)).logits, expected), name
                    assert torch.equal(method(poisoned(batch, 1e30)).logits, expected), name
                    alone = method(loader.gather(torch.tensor([5]))).logits[0]
                torch.testing.assert_close(alone, expected[5], atol=batch_bound(expected), rtol=0)


@pytest.mark.parametrize("kind", ["nested", "mar", "mnar", "segments"])
def test_rates_hold_whatever_the_kind_of_the_named_modality(data: FromCSV, kind: str) -> None:
    """Of content that the source has; with bounds that independent draws of this rate miss once in a million times."""
    for split in ("train", "test"):
        gaps = data.source_gaps(split)
        for j, m in enumerate(data.modalities):
            if (kind, m.kind) == ("segments", "text"):
                continue
            missing, cells = data.masks(split, parse_scenario(f"{kind}_{j}_0.5"))
            has_content = ~gaps.unobservable()
            if kind == "segments":
                whole = has_content[:, j] & ~gaps.cells.get(m.name, gaps.absent[:, j]).reshape(len(missing), -1).any(1)
                assert not whole.any() or cells[m.name][whole].mean() == pytest.approx(0.5, abs=1 / 6), m.name
                continue
            hidden = SplitMask(data.modality_names, missing, cells)
            columns = np.arange(len(data.modalities)) != j if kind == "mar" else np.arange(len(data.modalities)) == j
            lost = hidden.unobserved()[:, columns] & has_content[:, columns]
            assert is_binomial(int(lost.sum()), int(has_content[:, columns].sum()), 0.5), (m.name, split)


def test_every_kind_of_scenario_is_tried() -> None:
    tried = {parse_scenario(name).kind for names in SCENARIOS.values() for name in names}
    assert tried == {scenario.kind for scenario in KINDS_OF_SCENARIOS} - {"file"}  # tests/datasets/missingness


def stories() -> list[tuple[str, str, str]]:
    """Name, configuration and command of the three mixes of docs/your-data.md."""
    text = (CONFIGS.parent / "docs" / "your-data.md").read_text()
    section = text.split("## Any mix of modalities")[1].split("### A public example")[0]
    files = re.findall(r"```yaml\n(.*?)```", section, re.S)
    commands = re.findall(r"^python run\.py (.*)$", section, re.M)
    return [(yaml.safe_load(file)["name"], file, command) for file, command in zip(files, commands, strict=True)]


@pytest.mark.usefixtures("undrawn")
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
        judged = stored["rewards"][stored["missing"][:, i], :, i]  # of the modality, recovered from the others
        assert len(judged) and np.isfinite(judged[:, 0]).all()
    pictured = [m for m in modalities if MODALITIES[m]["kind"] in ("image", "series")]
    shown = np.load(run.directory / "examples" / "whole_0.npz")
    for modality in pictured:
        assert shown[f"original_{modality}"].std((1, 2, 3)).max() > 0
        assert shown[f"recovered_{modality}"].shape == shown[f"original_{modality}"].shape
    quality = pd.read_csv(next((tmp_path / "outputs" / name).glob("imputer_*/*/seed0/quality.csv")))
    assert set(quality["modality"]) == set(modalities)
    assert np.isfinite(quality["value"]).all()
    assert MODALITIES.keys() >= set(modalities)
