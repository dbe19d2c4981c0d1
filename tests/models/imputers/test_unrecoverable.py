"""Rows whose missing modality an imputer cannot recover keep it missing: DyMo, its comparators, and other methods."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from datasets.batch import Batch, Modality
from datasets.rows import take_rows
from models.base import IncompleteClassifier, Prediction
from models.completed import Completed
from models.dymo.lattice import COMPARATORS, compare, exhaustive
from models.dymo.method import DyMo
from models.dymo.prototypes import COSINE
from models.dymo.rules import RULES
from models.dymo.selection import select
from models.imputers.base import recover_possible
from models.imputers.iterative import IMI
from models.imputers.quality import Judge, recovery_quality
from models.imputers.simple import Mean, Oracle, Zero
from models.imputers.tip import TIP
from tests.models.dymo.test_partial_tables import setting as table_setting
from tests.models.dymo.test_selection import setting
from tests.models.imputers.test_cmvae import model_of
from tests.models.imputers.test_imputers import images, mopoe
from tests.models.imputers.test_tip import SMALL, tip
from tests.networks import TokenEncoder, table_batch, table_encoder, table_modalities
from tests.tiny_tables import SIZES, TinyTables, content, tiny_config
from tests.tolerances import assert_close_sums
from trainers import run as pipeline
from trainers.config.imputers import fitting_imputers
from trainers.loading import Run
from utils.errors import UserError


class SomeWithoutPhoto(TinyTables):
    """Every sixth row has no photo; what stands in its place is white."""

    name = "TinyTables"

    def prepare(self) -> None:
        if self.store.meta() is None:
            splits = {split: content(n, seed) for seed, (split, n) in enumerate(SIZES.items())}
            for arrays in splits.values():
                absent = np.arange(len(arrays["target"])) % 6 == 5
                arrays["img"][absent] = 255
                arrays["img_absent"] = absent
            self.store.write(splits, {"signature": "tiny without some photos"})


def config(folder: Path, *overrides: str) -> Any:
    cfg = tiny_config(folder, *overrides)
    cfg.dataset.module._target_ = "tests.models.imputers.test_unrecoverable.SomeWithoutPhoto"
    return cfg


@pytest.mark.parametrize("imputer", ["TIP", "IMI"])
def test_dymo_discards_what_the_imputer_cannot_recover(
    imputer: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = [*SMALL[:-2], "imputer.training.max_epochs=2", "imputer.training.batch_size=32"]
    small = small if imputer == "TIP" else ["imputer=IMI", "imputer.module.trees=2"]
    small = [*small, "model.rules.minimum_rows=1", "model.rules.critic_epochs=1"]
    comparators = f"model.comparators=[{','.join((*COMPARATORS, *RULES))}]"
    scenarios = "missing.test=[none,whole_1,table_value_0.5]"
    stages = "stages=[prepare,impute,fit,gaussian,test]"
    cfg = config(tmp_path, *small, "model.backbone.training.max_epochs=1", comparators, scenarios, stages)
    with caplog.at_level(logging.INFO):
        pipeline.run(cfg)
    (line,) = [r.getMessage() for r in caplog.records if "cannot recover what the source lacks" in r.getMessage()]
    assert f"imputer={imputer}" in line and "'img' in 4 of 24 rows of split 'test'" in line
    directory = Run(cfg).directory
    absent = np.arange(24) % 6 == 5
    for scenario in ("none", "whole_1", "table_value_0.5"):
        for label in ("", *COMPARATORS):
            saved = np.load(directory / "predictions" / label / f"{scenario}.npz")
            assert saved["missing"][absent, 0].all() and saved["final_missing"][absent, 0].all()
            assert np.isfinite(saved["logits"]).all()
            if label == "impute_all":
                assert not saved["final_missing"][~absent].any()
            discard = np.load(directory / "predictions" / "discard" / f"{scenario}.npz")
            if imputer == "TIP" or scenario == "none":  # it reads the photo: without one nothing is recovered
                assert np.array_equal(saved["final_missing"][absent], saved["missing"][absent])
                np.testing.assert_allclose(saved["logits"][absent], discard["logits"][absent], atol=1e-5)
    results = (
        pd.read_csv(directory / "results.csv").query("metric == 'accepted_share'").set_index(["model", "scenario"])
    )
    assert results.loc[("DyMo/impute_all", "table_value_0.5"), "value"] == 1
    assert (results.xs("none", level="scenario")["value"] == 0).all()
    assert_rules_are_stored(cfg, imputer == "TIP")


def assert_rules_are_stored(cfg: Any, damages: bool) -> None:
    """Predictions of every rule, what they chose, and the critic, which is not trained again and verified."""
    directory = Run(cfg).directory
    for rule in RULES:
        assert np.isfinite(np.load(directory / "predictions" / rule / "whole_1.npz")["logits"]).all()
    chosen = pd.read_csv(directory / "selection_rules.csv")
    assert set(chosen["rule"]) <= {"pool", "certified"} and (chosen["missing"] == 1).all()
    critic, settings = directory / "critic.safetensors", directory.marker("learned")
    before = critic.stat().st_mtime_ns
    cfg.stages, cfg.overwrite, cfg.missing.test = ["test"], True, ["whole_1"]
    cfg.model.rules.margin = 0.3  # the critic does not depend on it
    pipeline.run(cfg)
    assert critic.stat().st_mtime_ns == before and settings.is_file()
    if damages:
        content = bytearray(critic.read_bytes())
        content[-1] ^= 1
        critic.write_bytes(content)
        cfg.missing.test = ["none"]
        with pytest.raises(UserError, match=r"critic\.safetensors was damaged or changed .* delete .*learned\.json"):
            pipeline.run(cfg)


def test_a_refusal_names_the_imputers_that_fit(tmp_path: Path) -> None:
    generative = "CMVAE or MMVAEPlus or {}MoPoE"
    scopes = rf"imputer={generative.format('Mean or ')} or Zero \(all modalities\), imputer=IMI or TIP \(tabular only\)"
    cfg = config(tmp_path, "imputer=TIP", *SMALL, "missing.test=[whole_0]")
    with pytest.raises(UserError, match=f"an imputer that fits, {scopes}"):
        pipeline.run(cfg)
    assert not (tmp_path / "out").exists()
    for kinds, names in (
        ({"a": "image", "b": "image"}, generative.format("Mean or ")),
        ({"a": "image", "b": "text"}, generative.format("")),
        ({"a": "table"}, "CMVAE or IMI or MMVAEPlus or Mean or MoPoE"),
    ):
        assert fitting_imputers(kinds) == f"imputer={names} or Zero (all modalities)"


# --------------------------------------------------------------------------------------------------------- selection


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_modality_without_a_recovery_is_no_candidate(share: float) -> None:
    """Whatever stands for it changes nothing, and the comparators choose among the other subsets."""
    case = setting(COSINE)
    generator = torch.Generator().manual_seed(3)
    unrecoverable = case.missing & (torch.rand(case.missing.shape, generator=generator) < share)
    scorer = case.scorer()
    free = select(scorer, case.tokens, case.missing)
    chosen = select(scorer, case.tokens, case.missing, None, unrecoverable)
    assert chosen.final_missing[unrecoverable].all() and chosen.rewards.transpose(1, 2)[unrecoverable].isnan().all()
    same = ~unrecoverable.any(1)
    assert torch.equal(chosen.final_missing[same], free.final_missing[same])
    assert_close_sums(chosen.logits[same], free.logits[same])
    per_modality = case.tokens.shape[1] // case.missing.shape[1]
    hidden_tokens = unrecoverable.repeat_interleave(per_modality, 1)[..., None]
    for value in (1e30, math.nan):
        other = select(scorer, torch.where(hidden_tokens, value, case.tokens), case.missing, None, unrecoverable)
        assert torch.equal(other.final_missing, chosen.final_missing)
        assert_close_sums(other.logits, chosen.logits)
    lattices = exhaustive(scorer, case.tokens, case.missing, None, unrecoverable)
    dymo = DyMo(case.model, Zero(), case.parameters, comparators=COMPARATORS)
    others = compare(lattices, chosen, case.batch.target, COMPARATORS, case.batch.index)
    assert torch.equal(others["impute_all"].final_missing, unrecoverable) and dymo.unrecoverable(case.batch) is None
    accepted = (case.missing & ~chosen.final_missing).sum(1)
    assert torch.equal((case.missing & ~others["random"].final_missing).sum(1), accepted)
    for lattice in lattices:
        for r, row in enumerate(lattice.rows.tolist()[:40]):
            masks = lattice.missing[r].tolist()
            fixed = unrecoverable[row].tolist()
            allowed = [a for a, mask in enumerate(masks) if all(m for m, f in zip(mask, fixed, strict=True) if f)]
            best = max(allowed, key=lambda a: float(lattice.reward[r, a]))
            assert others["best_subset"].final_missing[row].tolist() == masks[best]
            target = int(case.batch.target[row])

            def merit(a: int, logits: Tensor = lattice.logits[r], target: int = target) -> float:
                return float(logits[a].softmax(0)[target]) + (int(logits[a].argmax()) == target)

            assert merit(masks.index(others["oracle_subset"].final_missing[row].tolist())) == max(map(merit, allowed))
    if share == 1:
        assert torch.equal(chosen.final_missing, case.missing)
        for other in others.values():
            assert_close_sums(other.logits, others["discard"].logits)


def test_hidden_content_of_rows_without_a_recovery_reaches_nothing() -> None:
    """TIP on rows without an image, with whole and partly missing tables; in all labels."""
    case = table_setting(COSINE)
    batch, imputer = case.batch, tip()
    absent = torch.arange(len(batch)) % 3 == 0
    cells = batch.feature_missing["tabular"] & ~absent[:, None]
    cells[::6, 0] = True
    missing = torch.stack([absent, cells.any(1)], 1)
    dymo = DyMo(case.model, imputer, case.parameters, comparators=COMPARATORS)
    results = []
    for value in (0.0, 1e30, math.nan):
        image = torch.where(absent[:, None, None], value, batch.inputs["img"])
        table = torch.where(cells, value, batch.inputs["tabular"])
        seen = batch.replace(
            inputs={"img": image, "tabular": table}, missing=missing, feature_missing={"tabular": cells}
        )
        results.append([dymo(seen).logits, dymo(seen).extras["unrecoverable"]])
        completed, unrecoverable = recover_possible(imputer, case.model.modalities, seen)
        assert unrecoverable is not None and torch.equal(unrecoverable, missing & absent[:, None])
        assert all(torch.isfinite(x).all() for x in completed.values()) and not completed["img"][absent].any()
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))
    with torch.no_grad():  # without a photo: the observed cells alone
        alone = take_rows(seen, absent)
        torch.testing.assert_close(results[0][0][absent], case.model(alone).logits, atol=2e-5, rtol=2e-5)


# ------------------------------------------------------------------------------------------------------ other methods


class Recorder(IncompleteClassifier):
    def __init__(self) -> None:
        super().__init__(table_modalities(), 4)

    def forward(self, batch: Batch) -> Prediction:
        self.seen = batch
        return Prediction(torch.zeros(len(batch), 4))


def test_a_method_behind_an_imputer_is_told_what_stays_missing() -> None:
    method, batch = Recorder(), table_batch(12, 1)
    missing = torch.zeros(12, 2, dtype=torch.bool)
    missing[:3, 0], missing[2:6, 1] = True, True
    cells = torch.zeros(12, 6, dtype=torch.bool)
    cells[2:6, 0] = True
    batch = batch.replace(missing=missing, feature_missing={"tabular": cells}, complete=False)
    for imputer, remaining in ((tip(), missing & (torch.arange(12) < 3)[:, None]), (Zero(), torch.zeros(12, 2).bool())):
        Completed(method, imputer)(batch)
        assert torch.equal(method.seen.missing, remaining) and method.seen.complete is not bool(remaining.any())
        absent = method.cells(method.seen.missing, method.seen.feature_missing)
        assert bool(remaining.any()) == bool(absent) and all(
            torch.equal(x, cells & remaining[:, 1:]) for x in absent.values()
        )


@pytest.mark.parametrize("name", ["Mean", "Oracle", "Zero"])
def test_imputers_of_everything_leave_nothing_missing(name: str) -> None:
    batch = table_batch(12, 1)
    missing = torch.tensor([[True, False], [False, True]]).repeat(6, 1)
    imputer = {"Mean": Mean(table_modalities()), "Oracle": Oracle(), "Zero": Zero()}[name]
    if isinstance(imputer, Mean):
        imputer.fit([table_batch(30, 2)])
    _, unrecoverable = recover_possible(imputer, table_modalities(), batch.replace(missing=missing, complete=False))
    assert unrecoverable is None


# -------------------------------------------------------------------------------------------- what imputers learn from


def test_tip_learns_nothing_from_absent_images() -> None:
    batch = table_batch(16, 4)
    missing = torch.stack([torch.arange(16) % 4 == 0, torch.zeros(16, dtype=torch.bool)], 1)
    losses = []
    for value in (0.0, 1e30, math.nan, None):
        image = batch.inputs["img"]
        image = image if value is None else torch.where(missing[:, 0, None, None], value, image)
        seen = batch.replace(inputs={**batch.inputs, "img": image}, missing=missing, feature_missing={}, complete=False)
        seen = take_rows(seen, ~missing[:, 0]) if value is None else seen
        model = tip().train()
        torch.manual_seed(0)
        loss = model.losses(seen)["loss"]
        loss.backward()
        losses.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for other in losses[1:]:
        assert all(map(torch.equal, other, losses[0]))


@pytest.mark.parametrize("name", ["MoPoE", "MMVAEPlus", "CMVAE"])
def test_generative_imputers_learn_nothing_from_absent_modalities(name: str) -> None:
    batch = images(8)
    missing = torch.zeros(8, len(batch.inputs), dtype=torch.bool)
    missing[::2, 1] = True
    gradients = []
    for value in (0.0, 1e30, math.nan, None):
        inputs = dict(batch.inputs)
        second = list(inputs)[1]
        if value is not None:
            inputs[second] = torch.where(missing[:, 1, None, None, None], value, inputs[second])
        seen = batch.replace(inputs=inputs, missing=missing, complete=False)
        seen = take_rows(seen, ~missing.any(1)) if value is None else seen
        model = (mopoe() if name == "MoPoE" else model_of(name)[0]).train()
        model.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
        torch.manual_seed(0)
        loss = model.training_step(seen, 0)
        assert loss is not None
        loss.backward()
        gradients.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for other in gradients[1:]:
        assert all(map(torch.equal, other, gradients[0]))
    nothing = batch.replace(missing=torch.ones_like(missing), complete=False)
    assert model.training_step(nothing, 0) is None


def test_quality_is_of_what_was_there() -> None:
    judge = Judge(table_modalities(), 4, {"img": TokenEncoder(2, 6), "tabular": table_encoder()})
    batch = table_batch(40, 1)
    absent = torch.arange(40) % 4 == 0
    missing = torch.stack([absent, torch.zeros(40, dtype=torch.bool)], 1)
    for imputer in (tip(), Zero()):
        frames = []
        for value in (0.0, 1e30, math.nan):
            image = torch.where(absent[:, None, None], value, batch.inputs["img"])
            seen = Batch({**batch.inputs, "img": image}, missing, batch.target, batch.index)
            frames.append(
                recovery_quality(imputer, judge, [seen]).modalities.set_index(["modality", "observed", "metric"])
            )
        for other in frames[1:]:
            pd.testing.assert_frame_equal(other, frames[0])
        assert np.isfinite(frames[0]["value"]).all()
        assert frames[0].loc[("img", 2, "judge_accuracy"), "n"] == 30
        if isinstance(imputer, TIP):
            with_photo = recovery_quality(imputer, judge, [take_rows(seen, ~absent)]).modalities
            with_photo = with_photo.set_index(["modality", "observed", "metric"])
            assert frames[0].loc[("tabular", 1, "mse"), "n"] == with_photo.loc[("tabular", 1, "mse"), "n"] == 30 * 3


def test_kinds_that_an_imputer_is_made_for() -> None:
    assert TIP.fits(["table", "image"]) and not TIP.fits(["image", "image"]) and not TIP.fits(["table"])
    assert IMI.fits(["image", "table"]) and not IMI.fits(["image"]) and not Mean.fits(["image", "text"])
    one = [Modality("a", "image", (1, 2, 2)), Modality("b", "table", (3,))]
    missing = torch.tensor([[True, False], [False, True], [True, True], [False, False]])
    assert torch.equal(IMI([*one]).unrecoverable(one, missing), missing & torch.tensor([True, False]))
