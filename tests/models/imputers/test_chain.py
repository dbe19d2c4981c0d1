"""Chain: an imputer per modality, alone and through all stages."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import DictConfig

from models.imputers.base import recover_possible
from models.imputers.chain import Chain
from models.imputers.iterative import IMI
from models.imputers.simple import Mean, Zero
from tests.bundles import assert_bundle_predicts_alike
from tests.mixed import MODALITIES, arguments, as_override, make_mixed
from tests.models.imputers.test_default_networks import KINDS, batch_of
from tests.models.imputers.test_default_networks import imputer as generative
from trainers import run as pipeline
from trainers.config.compose import CONFIGS, compose_config, with_parts
from trainers.config.overrides import check_overrides
from trainers.config.validate import validate
from trainers.forecast import foresee
from trainers.loading import Run
from trainers.plan import resolve_metric
from utils.errors import UserError

IMAGE, TABLE, ECG = KINDS[0], KINDS[1], KINDS[6]
MIX = (IMAGE, TABLE, ECG)
ROOT = CONFIGS.parent


def fitted(method: Any) -> Any:
    method.fit([batch_of(MIX, torch.zeros(20, 3, dtype=torch.bool))])
    return method


def masks() -> torch.Tensor:
    """Every pattern with something observed."""
    rows = [[bool(pattern >> i & 1) for i in range(3)] for pattern in range(7)]
    return torch.tensor(rows)


# ------------------------------------------------------------------------------------------------------- the class


def test_each_modality_is_what_its_part_recovers() -> None:
    mopoe, mean = generative(*MIX).eval(), fitted(Mean(MIX))
    chain = Chain(MIX, {"table": mean, "image": mopoe, "ecg": mopoe})
    batch = batch_of(MIX, masks())
    recovered, unrecoverable = recover_possible(chain, MIX, batch)
    assert unrecoverable is None and list(chain.labels) == ["image", "table"]
    by_mopoe = mopoe.impute(batch.inputs, batch.missing, batch.index)
    by_mean = mean.impute(batch.inputs, batch.missing, batch.index)
    for name, expected in {"image": by_mopoe, "table": by_mean, "ecg": by_mopoe}.items():
        assert torch.equal(recovered[name], expected[name])
    assert not torch.equal(by_mopoe["table"], by_mean["table"])
    fixed = chain.impute_fixed(batch.observed(), batch.missing, {})
    for name, x in recovered.items():
        torch.testing.assert_close(fixed[name].detach(), x, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("value", [math.nan, 1e30])
def test_a_modality_without_a_part_stays_missing_and_is_no_evidence(value: float) -> None:
    """MoPoE would take whatever stands for the series as evidence of the image, were it not masked."""
    chain = Chain(MIX, {"image": generative(*MIX).eval(), "table": fitted(IMI(MIX, trees=2))})
    batch = batch_of(MIX, masks())
    recovered, unrecoverable = recover_possible(chain, MIX, batch)
    assert unrecoverable is not None and chain.recoverable(MIX) == ["image", "table"]
    assert torch.equal(unrecoverable[:, 2], batch.missing[:, 2]) and not unrecoverable[:, :2].any()
    assert not recovered["ecg"][batch.missing[:, 2]].any()
    other = {name: x.clone() for name, x in batch.inputs.items()}
    for i, x in enumerate(other.values()):
        x[batch.missing[:, i]] = value
    again, _ = recover_possible(chain, MIX, batch.replace(inputs=other, missing=batch.missing))
    for name, x in recovered.items():
        assert torch.isfinite(x).all() and torch.equal(x, again[name])


def test_weights_of_all_parts_are_in_one_file() -> None:
    mopoe, mean = generative(*MIX).eval(), fitted(Mean(MIX))
    chain = Chain(MIX, {"image": mopoe, "table": mean, "ecg": Zero()})
    content = {"state_dict": chain.state_dict(), "architecture": chain.architecture()}
    assert {key.split(".")[0] for key in content["state_dict"]} == {"image", "table"}
    torch.manual_seed(1)
    other = Chain(MIX, {"image": type(mopoe)(MIX, *networks(mopoe), latent=6), "table": Mean(MIX), "ecg": Zero()})
    other.load(content, Path("best.ckpt"), "Chain")
    batch = batch_of(MIX, masks())
    expected = chain.impute(batch.inputs, batch.missing)
    actual = other.move_to(torch.device("cpu")).impute(batch.inputs, batch.missing)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    with pytest.raises(ValueError, match=r"holds parts for image, table, ecg, not for image, ecg"):
        Chain(MIX, {"image": mopoe, "ecg": Zero()}).load(content, Path("best.ckpt"), "Chain")
    with pytest.raises(ValueError, match="holds no parts of a chain"):
        chain.load({"state_dict": {}}, Path("best.ckpt"), "Chain")


def networks(mopoe: Any) -> list[dict[str, Any]]:
    """New networks of the same form."""
    return [{m.name: mopoe.default_network(part, m, 6) for m in MIX} for part in ("encoder", "decoder")]


def test_what_a_part_cannot_recover_in_a_row_stays_missing() -> None:
    """A part that reads all other modalities recovers nothing in rows without them."""

    class Needy(Zero):
        recovers = ("table",)
        reads_others = True

    chain = Chain(MIX, {"image": generative(*MIX).eval(), "table": Needy(), "ecg": Zero()})
    missing = masks()
    unrecoverable = chain.unrecoverable(MIX, missing)
    assert unrecoverable is not None and not unrecoverable[:, [0, 2]].any()
    assert torch.equal(unrecoverable[:, 1], missing[:, 1] & (missing[:, 0] | missing[:, 2]))


# ------------------------------------------------------------------------------------------------- the configuration

CHAIN = ("imputer=Chain", "dataset=CAD")


def test_modalities_are_composed_like_other_options() -> None:
    given = [*CHAIN, "imputer.modalities={img: MoPoE, tabular: TIP}", "imputer.parts.tabular.module.heads=2"]
    check_overrides(given)
    assert with_parts(with_parts(given)) == with_parts(given)
    cfg, alone = compose_config(*given), compose_config("imputer=TIP", "dataset=CAD", "imputer.module.heads=2")
    assert cfg.imputer.parts.tabular == alone.imputer  # with the recipe of the data set
    assert cfg.imputer.parts.img == compose_config("imputer=MoPoE", "dataset=CAD").imputer
    validate(cfg)
    assert Run(cfg).imputer_parts["tabular"].imputer_settings == Run(alone).imputer_settings


@pytest.mark.parametrize(
    ("modalities", "message"),
    [
        ("{img: TIP, img: MoPoE}", "names several imputers for 'img', choose one per modality"),
        ("{img:[TIP,MoPoE]}", "names several imputers for 'img', choose one per modality"),
        ("TIP", r"must name an imputer per modality, such as 'imputer\.modalities=\{film: MoPoE, labs: TIP\}'"),
        ("{img:TPI}", "imputer=TPI: there is no such option; did you mean 'TIP'"),
        ("{photo:MoPoE}", r"imputer\.modalities\.photo: CAD has no modality 'photo', it has img, tabular"),
        ("{img:Oracle}", r"imputer\.parts\.img=Oracle reads the content that is missing"),
        ("null", r"imputer\.modalities=null: must name"),
        (
            "{img:TIP},{img:MoPoE}",
            r"modalities=\{img:TIP\},\{img:MoPoE\}: a sweep cannot .*: run one command per choice",
        ),
    ],
)
def test_mistakes_are_one_line_each(modalities: str, message: str) -> None:
    given = [*CHAIN, f"imputer.modalities={modalities}"]
    with pytest.raises(UserError, match=message) as caught:
        check_overrides(given)
        validate(compose_config(*given))
    assert len(str(caught.value).splitlines()) == 1


def test_a_key_per_modality_is_answered_with_the_mapping() -> None:
    with pytest.raises(UserError, match=r"modalities\.img=TIP: write imputer\.modalities=\{img: TIP\}$"):
        with_parts([*CHAIN, "imputer.modalities.img=TIP"])
    with pytest.raises(UserError, match=r"write imputer\.modalities=\{img: TIP\}; a sweep cannot choose .* per choice"):
        with_parts([*CHAIN, "+imputer.modalities.img=TIP,MoPoE"])


def test_a_chain_without_parts_says_how_to_name_them() -> None:
    with pytest.raises(UserError, match=r"no parts: .* 'imputer\.modalities=\{img: MoPoE, tabular: MoPoE\}'"):
        validate(compose_config(*CHAIN))


# -------------------------------------------------------------------------------------------------------- the stages

SMALL_TIP = [
    "image_encoder.architecture=resnet18",
    *(f"table_encoder.{key}" for key in ("width=16", "blocks=1", "heads=2")),
    *("module.blocks=1", "module.heads=2", "module.projection=8", "training.max_epochs=1", "training.batch_size=16"),
]


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., DictConfig]:
    csv = make_mixed(tmp_path_factory.mktemp("chain"))
    folder = csv.parent
    data = arguments(csv, modalities={"image": MODALITIES["film"], "table": MODALITIES["labs"]})

    def build(*more: str) -> DictConfig:
        given = [f"++dataset.{key}={as_override(value)}" for key, value in data.items()]
        widths = [f"dataset.training_defaults.{k}" for k in ("width=16", "heads=2", "batch_size=16", "max_epochs=2")]
        small = ["dataset.encoder_set=tiny", "trainer=cpu", "trainer.enable_progress_bar=false", *widths]
        backbone = ["model.backbone.training.max_epochs=2", "model.backbone.module.prototype_start=1"]
        paths = [f"paths.cache={folder / 'cache'}", f"paths.output={folder / 'out'}", "imputer.quality.judge_epochs=1"]
        scenarios = ["missing.test=[none,whole_0,whole_1]", "report.samples=2"]
        return compose_config("dataset=FromCSV", *given, *small, *backbone, *paths, *scenarios, *more)

    return build


def small(imputer: str, key: str) -> list[str]:
    """Overrides that make an imputer small."""
    if imputer == "TIP":
        return [f"{key}.{option}" for option in SMALL_TIP]
    widths = {"MoPoE": ["latent=6"], "CMVAE": ["shared=6", "private=4", "module.clusters=3"]}[imputer]
    return [f"{key}.{option}" for option in (*widths, "training.max_epochs=1", "training.batch_size=16")]


def overrides(imputer: str) -> list[str]:
    if imputer != "Chain":
        return [f"imputer={imputer}", *small(imputer, "imputer")]
    # The example of the README: {image: MoPoE, table: TIP}.
    (modalities,) = re.findall(r"imputer=Chain '(imputer\.modalities=.*?)'", (ROOT / "README.md").read_text())
    parts = [*small("MoPoE", "imputer.parts.image"), *small("TIP", "imputer.parts.table")]
    return ["imputer=Chain", modalities, *parts]


@pytest.fixture(scope="module")
def fitted_run(configured: Callable[..., DictConfig]) -> Callable[[str], Run]:
    """DyMo on an image and a table through all stages, by the imputer; runs of the chain come first."""

    @cache
    def run(imputer: str) -> Run:
        cfg = configured(*overrides(imputer), f"name={imputer}", "stages=[prepare,impute,fit,gaussian,test]")
        pipeline.run(cfg)
        return Run(cfg)

    return run


@pytest.mark.parametrize("imputer", ["MoPoE", "CMVAE", "Chain"])
def test_dymo_recovers_an_image_from_a_table_and_a_table_from_an_image(
    imputer: str, fitted_run: Callable[[str], Run]
) -> None:
    run = fitted_run(imputer)
    for i in range(2):
        stored = np.load(run.directory / "predictions" / f"whole_{i}.npz")
        everything = np.load(run.directory / "predictions" / "impute_all" / f"whole_{i}.npz")
        is_recoverable = ~stored["missing"][:, 1 - i]  # else nothing is observed, or some cells of the table
        assert stored["missing"][:, i].mean() > 0.9 and is_recoverable.sum() >= 8
        assert not everything["final_missing"][is_recoverable, i].any()
        assert np.isfinite(stored["logits"]).all()
    quality = pd.read_csv(run.imputer_directory / "quality.csv")
    assert set(quality["modality"]) == {"image", "table"} and np.isfinite(quality["value"]).all()
    assert {"mse", "mae", "coherence", "level_accuracy"} <= set(quality["metric"])


def test_parts_are_trained_once_and_shared_with_the_same_imputer_by_itself(
    configured: Callable[..., DictConfig], fitted_run: Callable[[str], Run], caplog: pytest.LogCaptureFixture
) -> None:
    chain = fitted_run("Chain")
    recoveries = {}
    batch = chain.data.loader("test", chain.scenarios[1]).gather(torch.arange(8))  # whole_0: without films
    for imputer in ("MoPoE", "TIP"):
        cfg = configured(*overrides(imputer), "name=Chain", "stages=[impute]", "imputer.quality=null")
        run = Run(cfg)
        assert run.imputer_directory.finished("impute", run.imputer_settings, run.imputer_checkpoint)
        recoveries[imputer] = recover_possible(run.load_imputer(), run.data.modalities, batch)[0]
    actual, _ = recover_possible(chain.load_imputer(), chain.data.modalities, batch)
    assert torch.equal(actual["image"], recoveries["MoPoE"]["image"])
    assert torch.equal(actual["table"], recoveries["TIP"]["table"])
    with caplog.at_level(logging.INFO):
        pipeline.run(configured(*overrides("Chain"), "name=Chain", "stages=[impute]"))
        assert "is there and valid, skipped" in caplog.text and "for at most" not in caplog.text
        changed = [*overrides("Chain"), "imputer.parts.image.latent=7", "name=Chain"]
        with pytest.raises(UserError, match=r"imputer_Chain.*parts\.image\..*latent: 6 -> 7"):
            pipeline.run(configured(*changed, "stages=[impute]"))
    other = Run(configured(*changed)).imputer_parts
    assert re.fullmatch(r"imputer_MoPoE-[0-9a-f]{8}", other["image"].imputer_directory.path.parts[-3])
    assert other["table"].imputer_directory.path.parts[-3] == "imputer_TIP"


def test_a_bundle_and_a_forecast_of_a_chain(
    configured: Callable[..., DictConfig], fitted_run: Callable[[str], Run], tmp_path: Path
) -> None:
    run = fitted_run("Chain")
    assert_bundle_predicts_alike(run, tmp_path)
    forecast = foresee(run, ["impute", "test"])
    assert forecast is not None and forecast.finished == ["prepare", "impute", "test"]
    planned = configured(*overrides("Chain"), "name=planned")
    resolve_metric(planned)
    forecast = foresee(Run(planned), ["impute", "fit", "gaussian", "test"])
    assert forecast is not None and "impute" not in forecast.finished and forecast.seconds["impute"] > 0
    assert {"imputer MoPoE", "imputer TIP"} <= set(forecast.parameters) and "imputer Chain" in forecast.bytes


def test_a_chain_predicts_by_its_run(
    configured: Callable[..., DictConfig], fitted_run: Callable[[str], Run], tmp_path: Path
) -> None:
    """Stage predict without a bundle: the probabilities of stage test, of the rows in the test split."""
    run = fitted_run("Chain")
    asked = [f"predict.input={run.data.csv}", f"predict.output={tmp_path / 'out.csv'}", "stages=[predict]"]
    pipeline.run(configured(*overrides("Chain"), "name=Chain", *asked))
    table = pd.read_csv(tmp_path / "out.csv").set_index("id")
    names = run.data.split("test").names()
    logits = np.load(run.directory / "predictions" / "none.npz")["logits"]
    expected = torch.from_numpy(logits).softmax(1).numpy()
    columns = [f"probability_{name}" for name in run.data.class_names]
    np.testing.assert_allclose(table.loc[names, columns], expected, atol=1e-5)


def test_parts_take_trained_weights(
    configured: Callable[..., DictConfig], fitted_run: Callable[[str], Run], caplog: pytest.LogCaptureFixture
) -> None:
    run = fitted_run("Chain")
    given = [f"imputer.parts.{name}.checkpoint={part.imputer_checkpoint}" for name, part in run.imputer_parts.items()]
    cfg = configured(*overrides("Chain"), *given, "name=given", "stages=[impute]", "imputer.quality=null")
    validate(cfg)
    with caplog.at_level(logging.INFO):
        pipeline.run(cfg)
    assert "for at most" not in caplog.text, "no part is trained"
    again = Run(cfg)
    batch = again.data.loader("test", again.scenarios[1]).gather(torch.arange(8))
    expected, _ = recover_possible(run.load_imputer(), run.data.modalities, batch)
    recovered, _ = recover_possible(again.load_imputer(), again.data.modalities, batch)
    assert torch.equal(recovered["image"], expected["image"])
    absent = [f"imputer.parts.image.checkpoint={run.imputer_checkpoint}.lost", "name=lost", "stages=[impute]"]
    with pytest.raises(UserError, match=r"imputer\.parts\.image\.checkpoint"):
        validate(configured(*overrides("Chain"), *absent))


def test_a_modality_without_a_part_is_counted(
    configured: Callable[..., DictConfig], caplog: pytest.LogCaptureFixture
) -> None:
    chosen = ["imputer=Chain", "imputer.modalities={table: Mean}", "model.selection.threshold=0", "name=counted"]
    cfg = configured(*chosen, "stages=[prepare,impute,fit,gaussian,test]")
    with caplog.at_level(logging.INFO):
        pipeline.run(cfg)
    (line,) = [r.getMessage() for r in caplog.records if "has no part for" in r.getMessage()]
    run = Run(cfg)
    stored = np.load(run.directory / "predictions" / "whole_0.npz")
    n, hidden = len(stored["missing"]), int(stored["missing"][:, 0].sum())
    assert line.endswith(f"'image', which stays missing: whole_0 in {hidden} of {n} rows of split 'test'")
    assert np.array_equal(stored["final_missing"][:, 0], stored["missing"][:, 0])
    with pytest.raises(UserError, match=r"imputer\.parts\.image=TIP: cannot recover .*imputer=CMVAE or"):
        pipeline.run(configured("imputer=Chain", "imputer.modalities={image: TIP, table: Mean}", "stages=[impute]"))
