"""TIP: size, recovery against the slow twin, the three losses, published checkpoints, the whole stage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor

import models.imputers.tip as module
from datasets.batch import Batch, Modality
from models.encoders.resnet import ResNetEncoder
from models.encoders.table import TableEncoder
from models.imputers.quality import Judge, recovery_quality
from models.imputers.simple import Zero
from models.imputers.tip import TIP, TIP_PARTS, convert_tip, corrupt, hard_negatives, random_cells
from tests import slow_twin as twin
from tests.networks import CELLS, LEVELS, TokenEncoder, table_batch, table_encoder, table_modalities
from tests.tiny_tables import tiny_config
from tests.tolerances import assert_close_sums
from trainers import impute
from trainers import run as pipeline
from trainers.loading import Run
from utils.errors import UserError
from utils.safe_pickle import read_tensors
from utils.schedule import warmup_cosine
from utils.weights import checkpoint_kind, load_strict


class ToyImage(TokenEncoder):
    """(B, 2, 3) -> (B, 2, 10)."""

    width = 10

    def __init__(self) -> None:
        super().__init__(2, 10)


def tip(seed: int = 0, **options: object) -> TIP:
    """A small one whose weights are large enough to show, in eval mode."""
    torch.manual_seed(seed)
    options = {"blocks": 2, "heads": 3, "projection": 4} | options
    model = TIP(table_modalities(), ToyImage(), table_encoder(seed), **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in (model.encoder_multimodal, model.predictor_tabular):
            for p in part.parameters():
                p.add_(torch.randn(p.shape, generator=generator), alpha=0.3)
    return model.eval()


def masks(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    missing = torch.zeros(rows, 2, dtype=torch.bool)
    missing[:, 1] = torch.arange(rows) % 4 > 0
    return missing, torch.rand(rows, CELLS, generator=generator) < 0.5


# ---------------------------------------------------------------------------------------------- size


@pytest.mark.parametrize(
    ("levels", "n_continuous", "total"),
    [((22, 13, 3, 12), 13, 54_032_499), ((*[2] * 13, 3, 6, 4, 3, 3, 8, 8, 8, 3, 8, 3, 4, 3), 49, 54_103_195)],
)
def test_parameters_of_the_published_networks(levels: tuple[int, ...], n_continuous: int, total: int) -> None:
    """docs/reference/dymo.md §5.3: DVM and UK Biobank; the projection heads count apart."""
    n = len(levels) + n_continuous
    views = [Modality("img", "image", (3, 128, 128)), Modality("tabular", "table", (n,), levels)]
    with torch.device("meta"):
        model = TIP(views, ResNetEncoder(), TableEncoder(levels, n_continuous))
    assert sum(p.numel() for name, p in model.named_parameters() if name.startswith(TIP_PARTS)) == total
    assert [sum(key.startswith(part) for key in model.state_dict()) for part in TIP_PARTS] == [318, 52, 78, 4]


# ---------------------------------------------------------------------------------------------- recovery


@pytest.mark.parametrize("reference", [False, True])
def test_recovery_equals_twin(reference: bool) -> None:
    missing, cells = masks(40)
    cells[1] = True
    model = tip(reference=reference)
    batch = table_batch(40, 1, missing, cells)
    actual = model.impute(batch.inputs, missing, batch.index, batch.feature_missing)
    assert actual["img"] is batch.inputs["img"]
    params = {k: v.detach() for k, v in model.state_dict().items()}
    with torch.no_grad():
        images = model.encoder_imaging(batch.inputs["img"])
    quirks = 0
    for row in range(40):
        hidden = [bool(missing[row, 1] and absent) for absent in cells[row]]
        content = batch.inputs["tabular"][row].tolist()
        expected = twin.tip_cells(params, images[row], content, hidden, LEVELS, 3, reference=reference)
        other = twin.tip_cells(params, images[row], content, hidden, LEVELS, 3, reference=not reference)
        expected = [e if absent else c for e, c, absent in zip(expected, content, hidden)]
        assert actual["tabular"][row].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)
        quirks += any(absent and abs(e - o) > 0.5 for e, o, absent in zip(expected, other, hidden))
    assert quirks >= 5, "the two ways to read a level differ"
    codes = actual["tabular"][:, :3]
    assert (codes == codes.round()).all() and (codes >= 0).all() and (codes < torch.tensor(LEVELS)).all()
    # Without cell masks a masked table is recovered as a whole.
    whole = model.impute(batch.inputs, missing, batch.index)["tabular"]
    everything = {"tabular": torch.ones_like(cells)}
    assert torch.equal(whole, model.impute(batch.inputs, missing, None, everything)["tabular"])


JUNK = st.sampled_from([math.nan, math.inf, -1e30, -3.0, 77.0])


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.lists(JUNK, min_size=12 * CELLS, max_size=12 * CELLS), st.integers(0, 50), st.booleans())
def test_content_of_missing_cells_is_never_read(values: list[float], seed: int, entry: bool) -> None:
    missing, cells = masks(12, seed)
    batch, model = table_batch(12, seed), tip()
    hidden = {"tabular": cells} if entry else None
    absent = missing[:, 1:] & (cells if entry else torch.ones_like(cells))
    table = torch.where(absent, torch.tensor(values).view(12, CELLS), batch.inputs["tabular"])
    one = model.impute(batch.inputs, missing, None, hidden)["tabular"]
    other = model.impute({**batch.inputs, "tabular": table}, missing, None, hidden)["tabular"]
    assert torch.equal(one, other) and one.isfinite().all()
    assert torch.equal(one[~absent], batch.inputs["tabular"][~absent])


def test_rows_do_not_depend_on_their_batch_and_the_model_stays_as_it_was() -> None:
    missing, cells = masks(8)
    batch, model = table_batch(8, 2), tip().train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    together = model.impute(batch.inputs, missing, None, {"tabular": cells})["tabular"]
    assert model.training and not together.requires_grad
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    for row in range(8):
        one = slice(row, row + 1)
        inputs = {n: x[one] for n, x in batch.inputs.items()}
        alone = model.impute(inputs, missing[one], None, {"tabular": cells[one]})["tabular"]
        assert_close_sums(alone, together[one])


def test_a_missing_image_is_refused() -> None:
    batch = table_batch(3)
    missing = torch.tensor([[False, True], [True, False], [False, False]])
    with pytest.raises(UserError, match=r"TIP cannot recover 'img', which is missing in 1 rows: .*whole_1"):
        tip().impute(batch.inputs, missing)
    with pytest.raises(UserError, match="one of each"):
        TIP([Modality("m0", "image", (2, 3)), Modality("m1", "image", (2, 3))], ToyImage(), table_encoder())


# ---------------------------------------------------------------------------------------------- pre-training


def test_losses_equal_a_slow_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pair at a time; the draws are given."""
    model, batch = tip(), table_batch(5, 3)
    hidden = torch.rand(5, CELLS, generator=torch.Generator().manual_seed(0)) < 0.5
    monkeypatch.setattr(module, "random_cells", lambda *_: hidden)
    monkeypatch.setattr(module, "hard_negatives", lambda logits: torch.tensor([1, 2, 3, 4, 0]))
    with torch.no_grad():
        actual = model.losses(batch)
        images = model.encoder_imaging(batch.inputs["img"])
        table = batch.inputs["tabular"]
        tokens = model.encoder_tabular.encode(table)
        z = F.normalize(model.projector_imaging(images.mean(1)), dim=-1)
        w = F.normalize(model.projector_tabular(tokens[:, 0]), dim=-1)
        contrastive = sum(
            -torch.log_softmax(z[i] @ w.T / 0.1, 0)[i] / 10 - torch.log_softmax(w[i] @ z.T / 0.1, 0)[i] / 10
            for i in range(5)
        )
        assert_close_sums(actual["contrastive"], contrastive)

        def match(image: int, row: int, label: int) -> Tensor:
            cls = model.encoder_multimodal(tokens[row : row + 1], images[image : image + 1])[0, 0]
            return -torch.log_softmax(model.itm_head(cls), 0)[label]

        terms = [match(i, i, 1) for i in range(5)]
        terms += [match((i + 1) % 5, i, 0) for i in range(5)] + [match(i, (i + 1) % 5, 0) for i in range(5)]
        assert_close_sums(actual["matching"], torch.stack(terms).mean())

        levels, values = [], []
        logits, regressed = model.predict_cells(images, table, hidden)
        for row, column in hidden.nonzero().tolist():
            if column < 3:
                code = int(table[row, column]) + sum(LEVELS[:column])
                levels.append(-torch.log_softmax(logits[row, column], 0)[code])
            else:
                values.append((regressed[row, column - 3] - table[row, column]) ** 2)
        expected = (torch.stack(levels).mean() + torch.stack(values).mean()) / 2
        assert_close_sums(actual["reconstruction"], expected)
    parts = actual["contrastive"] + actual["matching"] + actual["reconstruction"]
    torch.testing.assert_close(actual["loss"], parts / 3)


def test_reconstruction_never_sees_what_it_reconstructs() -> None:
    """The loss asks for the hidden cells; their content reaches the prediction nowhere."""
    model, x = tip(), table_batch(6).inputs
    hidden = random_cells(6, CELLS, 0.5)
    images = model.encoder_imaging(x["img"]).detach()
    table = x["tabular"].clone().requires_grad_()
    logits, values = model.predict_cells(images, table, hidden)
    (logits.square().sum() + values.square().sum()).backward()
    assert not table.grad[hidden].any() and table.grad[:, 3:][~hidden[:, 3:]].all()


@pytest.mark.parametrize(("columns", "count", "corrupted"), [(17, 8, 5), (75, 38, 22)])
def test_counts_of_hidden_and_corrupted_cells(columns: int, count: int, corrupted: int) -> None:
    torch.manual_seed(0)
    assert (random_cells(200, columns, 0.5).sum(1) == count).all()
    share = random_cells(4000, columns, 0.5).double().mean(0)
    assert (share - count / columns).abs().max() < 0.04
    # Every cell tells its row and column; a column keeps its own values.
    table = torch.arange(columns) + 1000.0 * torch.arange(50)[:, None]
    changed = corrupt(table, 0.3)
    assert torch.equal(changed % 1000, table % 1000) and (changed // 1000 < 50).all()
    differ = (changed != table).sum(1)
    assert differ.max() <= corrupted and differ.double().mean() == pytest.approx(corrupted * 49 / 50, abs=0.3)
    # Rows from the tenth on are gone: they neither give nor take.
    absent = (torch.arange(50) >= 10)[:, None].expand_as(table)
    changed = corrupt(table, 0.3, absent)
    assert torch.equal(changed[10:], table[10:]) and (changed[:10] != table[:10]).any()
    assert (changed[:10] // 1000 < 10).all()


def test_hard_negatives_follow_the_softmax_and_are_never_the_pair_itself() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([[5.0, 1.0, 0.0], [0.0, 9.0, 0.0], [2.0, 0.0, 0.0]])
    draws = torch.stack([hard_negatives(logits) for _ in range(4000)])
    assert not (draws == torch.arange(3)).any()
    for row in range(3):
        weights = logits[row].softmax(0).add(1e-4)
        weights[row] = 0
        share = torch.bincount(draws[:, row], minlength=3) / 4000
        torch.testing.assert_close(share, weights / weights.sum(), atol=0.03, rtol=0)


@settings(deadline=None, max_examples=20, derandomize=True)
@given(st.lists(JUNK, min_size=12 * CELLS, max_size=12 * CELLS), st.integers(0, 50), st.booleans())
def test_cells_that_the_data_lack_teach_nothing(values: list[float], seed: int, training: bool) -> None:
    """Neither the losses nor a gradient depend on what stands in their place."""
    missing, cells = masks(12, seed)
    absent = missing[:, 1:] & cells
    batch, actual = table_batch(12, seed, missing, cells), []
    for table in (
        batch.inputs["tabular"],
        torch.where(absent, torch.tensor(values).view(12, CELLS), batch.inputs["tabular"]),
    ):
        model = tip().train(training)
        torch.manual_seed(seed)
        losses = model.losses(batch.replace(inputs={**batch.inputs, "tabular": table}))
        losses["loss"].backward()
        actual.append(
            [*(v.detach() for v in losses.values()), *(p.grad for p in model.parameters() if p.grad is not None)]
        )
    assert all(torch.equal(one, other) and one.isfinite().all() for one, other in zip(*actual, strict=True))


def test_nothing_is_asked_of_cells_that_the_data_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    model, hidden = tip(), random_cells(12, CELLS, 0.5)
    monkeypatch.setattr(module, "random_cells", lambda *_: hidden)
    missing, cells = masks(12)
    absent = missing[:, 1:] & cells
    batch = table_batch(12, 3, missing, cells)
    actual = model.losses(batch)["reconstruction"]
    logits, values = model.predict_cells(
        model.encoder_imaging(batch.inputs["img"]), batch.inputs["tabular"], hidden | absent
    )
    codes = batch.inputs["tabular"][:, :3].long() + model.encoder_tabular.cat_offsets
    asked = hidden & ~absent
    assert 0 < asked.sum() < hidden.sum()
    levels = F.cross_entropy(logits[asked[:, :3]], codes[asked[:, :3]])
    numbers = (values - batch.inputs["tabular"][:, 3:])[asked[:, 3:]].square().mean()
    assert_close_sums(actual, (levels + numbers) / 2)


def test_a_batch_of_one_has_a_loss() -> None:
    losses = tip().losses(table_batch(1))
    assert all(value.isfinite() for value in losses.values())


def test_every_parameter_learns() -> None:
    model = tip().train()
    torch.manual_seed(0)
    model.losses(table_batch(16))["loss"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_warmup_and_cosine() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = warmup_cosine(optimizer, 4, 10)
    rates = []
    for _ in range(11):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    expected = [0.5, 1.0, 1.5, 2.0, *(1 + math.cos(math.pi * k / 6) for k in range(7))]
    assert rates == pytest.approx(expected)


# ---------------------------------------------------------------------------------------------- checkpoints


def published(model: TIP, path: Path) -> Path:
    """A Lightning checkpoint as the original writes it: objects among the hyper-parameters, heads of other shapes."""
    state = {k: v for k, v in model.state_dict().items() if k.startswith(TIP_PARTS)}
    state |= {"projector_imaging.layers.0.weight": torch.zeros(3, 3), "itm_head.weight": torch.zeros(2, 7)}
    content = {
        "epoch": 499,
        "global_step": 9,
        "pytorch-lightning_version": "1.6.4",
        "state_dict": state,
        "hyper_parameters": OmegaConf.create({"model": "resnet50"}),
    }
    torch.save(content, path)
    return path


def test_a_published_checkpoint_recovers_the_same(tmp_path: Path) -> None:
    trained, fresh = tip(seed=1), tip(seed=2)
    path = published(trained, tmp_path / "checkpoint_last_epoch_499.ckpt")
    content = read_tensors(path)
    assert checkpoint_kind(content) == "reference_tip"
    heads = {k: v.clone() for k, v in fresh.state_dict().items() if not k.startswith(TIP_PARTS)}
    load_strict(fresh, convert_tip(content["state_dict"], fresh.state_dict()), path, "TIP")
    batch, (missing, cells) = table_batch(9), masks(9)
    actual, expected = (m.impute(batch.inputs, missing, None, {"tabular": cells})["tabular"] for m in (fresh, trained))
    assert torch.equal(actual, expected)
    assert all(torch.equal(fresh.state_dict()[k], v) for k, v in heads.items())
    del content["state_dict"]["predictor_tabular.con_regressor.bias"]
    with pytest.raises(UserError, match=r"without predictor_tabular\.con_regressor\.bias"):
        load_strict(fresh, convert_tip(content["state_dict"], fresh.state_dict()), path, "TIP")


SMALL = [
    "imputer=TIP",
    "imputer.table_encoder.width=16",
    "imputer.table_encoder.blocks=1",
    "imputer.table_encoder.heads=2",
    "imputer.module.blocks=1",
    "imputer.module.heads=2",
    "imputer.module.optimizer.lr=0.01",
    "imputer.module.scheduler.warmup_epochs=1",
    "imputer.training.max_epochs=40",
    "imputer.training.batch_size=32",
]


def test_stages_from_pretraining_to_selection(tmp_path: Path) -> None:
    """The pre-trained model recovers better than chance; the backbone selects its recoveries; its own checkpoint, and
    one in the published layout, are read back."""
    stages = "stages=[prepare,impute,fit,gaussian,test]"
    cfg = tiny_config(tmp_path, *SMALL, "model.backbone.training.max_epochs=2", stages)
    pipeline.run(cfg)
    context = Run(cfg)
    metrics = pd.read_csv(context.imputer_directory / "metrics.csv")
    assert metrics["train_reconstruction"].iloc[-1] < 0.7 * metrics["train_reconstruction"].iloc[0]
    assert np.isfinite(metrics[["val_loss", "train_contrastive", "train_matching"]]).all(axis=None)
    quality = pd.read_csv(context.imputer_directory / "quality.csv").set_index(["modality", "observed", "metric"])[
        "value"
    ]
    assert {m for m, _, name in quality.index if name != "judge_accuracy"} == {"tabular"}
    # The mean would have 0.98, chance 0.36.
    assert quality["tabular", 1, "mse_cells"] < 0.5 and quality["tabular", 1, "level_accuracy_cells"] > 0.42
    results = pd.read_csv(context.directory / "results.csv")
    assert set(results.scenario) == {"none", "whole_1"} and np.isfinite(results["value"]).all()
    mine = context.load_imputer()
    batch = context.data.rows("test", np.arange(12))
    missing = torch.tensor([[False, True]]).expand(12, 2)
    path = published(mine, tmp_path / "theirs.ckpt")
    cfg = tiny_config(tmp_path, *SMALL, f"imputer.checkpoint={path}", "stages=[impute]")
    theirs = Run(cfg).load_imputer()
    actual, expected = (m.impute(batch.inputs, missing)["tabular"] for m in (theirs, mine))
    assert torch.equal(actual, expected)


def test_scenarios_that_hide_the_image_are_refused_before_any_training(tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path, *SMALL, "missing.test=[whole_0,whole_1]")
    with pytest.raises(UserError, match=r"^missing scenario 'whole_0' hides 'img', which imputer=TIP cannot recover"):
        pipeline.run(cfg)
    cfg = tiny_config(tmp_path, *SMALL, "model.validation=[whole_1,whole_0]")
    with pytest.raises(
        UserError, match=r"^missing scenario 'whole_0' hides 'img', .* leave it out of model.validation"
    ):
        pipeline.run(cfg)
    assert not (tmp_path / "out").exists()


def test_pretraining_changes_the_augmentation_of_the_data_while_it_runs() -> None:
    @dataclass(frozen=True)
    class Augmentation:
        rate: float = 0.95
        corruption: float = 0.3
        crop_scale: tuple[float, float] = (0.6, 1.0)

    data = SimpleNamespace(augmentation=Augmentation())
    changes = OmegaConf.create({"corruption": 0.0, "crop_scale": [0.08, 1.0]})
    with pytest.raises(RuntimeError), impute.augmented(data, changes):
        assert data.augmentation == Augmentation(0.95, 0.0, (0.08, 1.0))
        raise RuntimeError
    assert data.augmentation == Augmentation()
    with impute.augmented(SimpleNamespace(augmentation=None), changes), impute.augmented(data, None):
        assert data.augmentation == Augmentation()


def test_quality_of_tables() -> None:
    """Errors of levels and values apart, whole tables and half of their cells; images are never hidden from TIP."""
    judge = Judge(table_modalities(), 4, {"img": TokenEncoder(2, 6), "tabular": table_encoder()})
    parts = [table_batch(40, 1), table_batch(25, 2)]
    parts = [Batch(p.inputs, p.missing, p.target, p.index) for p in parts]
    actual = {
        (r.modality, r.metric): (r.value, r.n) for r in recovery_quality(tip(), judge, parts).modalities.itertuples()
    }
    assert {m for m, name in actual if name != "judge_accuracy"} == {"tabular"}
    tables = torch.cat([p.inputs["tabular"] for p in parts])
    missing = torch.tensor([[False, True]])
    recovered = torch.cat([tip().impute(p.inputs, missing.expand(len(p), 2))["tabular"] for p in parts])
    error = (recovered - tables)[:, 3:]
    assert actual["tabular", "mse"] == (pytest.approx(float(error.square().mean()), rel=1e-5), 65 * 3)
    right = (recovered == tables)[:, :3].double().mean()
    assert actual["tabular", "level_accuracy"] == (pytest.approx(float(right)), 65 * 3)
    # Cells that the data lack are in no error, whatever stands there.
    generator, spoilt = torch.Generator().manual_seed(0), []
    for p in parts:
        gaps = torch.rand(len(p), CELLS, generator=generator) < 0.3
        missing = torch.stack([torch.zeros(len(p), dtype=torch.bool), gaps.any(1)], 1)
        table = torch.where(gaps, p.inputs["tabular"] + 1.0, p.inputs["tabular"])
        table[:, :3] %= torch.tensor(LEVELS)  # the judge reads them
        spoilt.append(p.replace(missing=missing, feature_missing={"tabular": gaps}))
        spoilt.append(spoilt[-1].replace(inputs={**p.inputs, "tabular": table}))
    one, other = (
        recovery_quality(tip(), judge, rows)
        .modalities.set_index(["modality", "metric"])
        .drop(index="judge_accuracy", level=1)
        for rows in (spoilt[::2], spoilt[1::2])
    )
    pd.testing.assert_frame_equal(one, other)
    lacking = sum(int(p.feature_missing["tabular"][:, 3:].sum()) for p in spoilt[::2])
    assert one.loc[("tabular", "mse"), "n"] == 65 * 3 - lacking < 65 * 3
    zero = recovery_quality(Zero(), judge, parts).modalities.set_index(["modality", "observed", "metric"])
    assert 65 * 0.7 < zero.loc[("tabular", 1, "mae_cells"), "n"] / 1.5 < 65 * 1.3
    assert ("img", 1, "mse") in zero.index
