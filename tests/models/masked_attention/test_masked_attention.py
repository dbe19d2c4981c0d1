"""The masked-attention model and its baselines: leakage, dropout, loss, schedule, and a small study
(docs/reference/masked-attention.md §3.16).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc

from datasets.batch import Batch, Modality
from datasets.rows import take_rows
from models.base import IncompleteClassifier
from models.baselines.masks import TrainingMasks
from models.encoders.naim import NAIM
from models.encoders.pretrained import PretrainedEncoder
from models.masked_attention.base import TokenFusion, TokenInput
from models.masked_attention.decisions import LateFusion, ModelSelection, pool_probabilities
from models.masked_attention.masked_attention import MaskedAttention
from models.masked_attention.perceptron import TokenPerceptron
from models.masked_attention.training import mean_of_labels
from models.masked_attention.unimodal import TokenUnimodal
from tests.contracts.test_baselines import configure, generator, vectors  # noqa: F401
from tests.models.encoders.test_naim import jolted, some_cells
from tests.networks import CELLS, LEVELS, N_CONTINUOUS, random_table
from tests.tolerances import assert_close_sums, summation_bound
from trainers import run as pipeline
from trainers.config.validate import validate
from trainers.loading import Run
from utils.errors import UserError
from utils.safe_pickle import read_tensors

PARTS = [Modality("img", "image", (3, 8, 8)), Modality("tab", "table", (CELLS,), LEVELS)]
CLASSES, WIDTH = 4, 8


class Pixels(nn.Module):
    """(B, 3, 8, 8) -> (B, 4, 16), through batch normalisation."""

    tokens, width = 4, 2 * WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, self.width, 4, 4), nn.BatchNorm2d(self.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).flatten(2).transpose(1, 2)


def encoders(**options: Any) -> dict[str, nn.Module]:
    return {"img": Pixels(), "tab": NAIM(LEVELS, N_CONTINUOUS, width=WIDTH, heads=2, hidden=16, **options)}


def build(kind: type[TokenFusion] = MaskedAttention, seed: int = 0, **options: Any) -> Any:
    """In eval mode, 2 + 6 tokens."""
    torch.manual_seed(seed)
    if kind is MaskedAttention:
        options = {"heads": 2, "hidden": 16} | options
    model = kind(PARTS, CLASSES, encoders(), width=WIDTH, **options)
    model.log_losses = lambda *_: None  # type: ignore[method-assign]
    for name, part in model.named_children():
        if name != "encoders":
            jolted(part, seed + 1)
    return model.eval()


def some_batch(rows: int = 40, seed: int = 0, labels: bool = False) -> Batch:
    """Images and tables that are there, missing as a whole, and tables that are missing in part."""
    inputs = {"img": torch.randn(rows, 3, 8, 8, generator=generator(seed)), "tab": random_table(rows, seed)}
    cells = some_cells(rows, seed=seed)
    missing = torch.zeros(rows, 2, dtype=torch.bool)
    missing[:, 1] = cells.any(1)
    missing[:, 0] = (torch.arange(rows) % 5 == 0) & ~cells.all(1)
    target = torch.arange(rows) % CLASSES
    if labels:
        target = torch.randint(-1, 2, (rows, CLASSES), generator=generator(seed + 9)).float()
    return Batch(inputs, missing, target, torch.arange(rows), {"tab": cells})


def filled(batch: Batch, value: float) -> Batch:
    """``value`` in everything that is missing."""
    image = torch.where(batch.missing[:, 0, None, None, None], value, batch.inputs["img"])
    table = torch.where(batch.missing[:, 1, None] & batch.feature_missing["tab"], value, batch.inputs["tab"])
    return batch.replace(inputs={"img": image, "tab": table})


def complete(batch: Batch) -> Batch:
    return batch.replace(missing=torch.zeros_like(batch.missing), feature_missing={}, complete=True)


# -------------------------------------------------------------------------------------------------- sizes and tokens


def test_published_sizes() -> None:
    parts = [Modality("img", "image", (3, 224, 224)), Modality("tab", "table", (381,), (2,) * 374)]
    with torch.device("meta"):
        image, table = Pixels(), NAIM((2,) * 374, 7, width=1024, heads=16)
        image.width = 2048  # type: ignore[misc]
        model = MaskedAttention(parts, 14, {"img": image, "tab": table}, task="multilabel")
        zeros = TokenPerceptron(parts, 14, {"img": image, "tab": table})

    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert model.tokens_per_modality == [2, 381] and count(model.inputs) == 0
    assert count(model.transformer) == 12_496_848 + 2_048
    assert count(model.classifier) == 5_490_702 and model.gates.shape == (2, 1024)
    assert zeros.perceptron[0].in_features == 392_192
    assert count(zeros.perceptron) + count(zeros.classifier) == 392_193 * 300 + 2 * 301 * 300 + 301 * 14


@pytest.mark.parametrize(
    ("width", "pooled", "tokens", "projected"),
    [(8, True, 2, False), (16, True, 1, False), (12, True, 1, True), (16, False, 4, False), (8, False, 4, True)],
)
def test_tokens_of_an_encoder(width: int, pooled: bool, tokens: int, projected: bool) -> None:
    part, x = TokenInput(Pixels(), width, pooled), torch.randn(3, 4, 16)
    assert part.tokens == tokens and (part.proj is not None) is projected
    assert part(x).shape == (3, tokens, width)
    if not projected:
        torch.testing.assert_close(part(x).flatten(1), (x.mean(1) if pooled else x.flatten(1)))


@pytest.mark.parametrize("architecture", ["vit", "timm/vit_tiny_patch16_224"])
def test_tokens_of_a_vision_transformer(architecture: str) -> None:
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    size |= {"image_size": 8, "patch_size": 4}
    if architecture != "vit":
        size = {"embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": 8, "patch_size": 4}
    encoder = PretrainedEncoder(architecture, size=size, output="tokens").eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        tokens = encoder(x)
        assert encoder.tokens == 5 and tokens.shape == (2, 5, 16)
        assert_close_sums(tokens[:, 0], encoder.states(x).summary)
        assert_close_sums(encoder(x[:, None].expand(-1, 3, -1, -1, -1)), tokens)
    model = MaskedAttention(PARTS[:1], 3, {"img": encoder}, width=16, heads=2, tokens="all")
    assert model.tokens_per_modality == [5]
    with pytest.raises(ValueError, match="output=tokens"):
        PretrainedEncoder("bert", size=size, output="tokens")


# ----------------------------------------------------------------------------------------------- leakage and gradients

VARIANTS: list[dict[str, Any]] = [
    {},
    {"pooling": "mean"},
    {"pooling": "cls"},
    {"mask_mode": "key_only", "gate": "add"},
    {"mask_mode": "none"},
    {"mask_mode": "none", "fill": "inputs", "feature_mask": False},
    {"mask_mode": "none", "fill": "mixed", "feature_mask": False},
    {"mask_mode": "none", "fill": "mixed", "reference": True},
    {"reference": True},
    {"tokens": {"img": "all"}, "gate": "none"},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_content_of_what_is_missing_reaches_nothing(options: dict[str, Any]) -> None:
    model, batch = build(masks=TrainingMasks("fewer", p=0.3), feature_dropout=0.3, **options), some_batch()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    actual = []
    for value in (0.0, 1e6, 1e30, math.nan):
        model.load_state_dict(state)
        with torch.no_grad():
            logits = model.eval()(filled(batch, value)).logits
        model.train().zero_grad()
        loss = model.training_step(filled(batch, value), 0)
        loss.backward()
        actual.append([logits, loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
        assert all(torch.isfinite(x).all() for x in actual[-1])
    for other in actual[1:]:
        assert all(map(torch.equal, other, actual[0]))


@pytest.mark.parametrize("value", [0.0, 1e6, math.nan])
def test_the_fusion_does_not_see_what_is_hidden_from_it_alone(value: float) -> None:
    """As in a test of many scenarios, where encoders run once and see everything."""
    batch = some_batch()
    for pooling in ("flatten", "mean", "cls"):
        model = build(pooling=pooling)
        with torch.no_grad():
            tokens = model.encode(batch.inputs)
            expected = model.fuse(tokens, batch).logits
            spoilt = torch.where(model.available(batch)[..., None], tokens, value)
            assert torch.equal(model.fuse(spoilt, batch).logits, expected) and torch.isfinite(expected).all()


def test_nothing_of_a_modality_that_no_row_has_is_trained() -> None:
    model, batch = build(), some_batch()
    for column, (name, other) in enumerate((("img", "tab"), ("tab", "img"))):
        missing = torch.zeros(40, 2, dtype=torch.bool)
        missing[:, column] = True
        model.zero_grad()
        model.loss(p := model(batch.replace(missing=missing, feature_missing={})), batch)["loss"].backward()
        assert torch.isfinite(p.logits).all()
        assert all(g.grad is None or (g.grad == 0).all() for g in model.encoders[name].parameters())
        assert (model.gates.grad[column] == 0).all() and (model.gates.grad[1 - column] != 0).any()
        assert any((g.grad != 0).any() for g in model.encoders[other].parameters())
        assert all(torch.isfinite(g.grad).all() for g in model.parameters() if g.grad is not None)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", VARIANTS[:3], ids=str)
def test_nothing_at_all_is_finite(options: dict[str, Any], dtype: torch.dtype | None) -> None:
    model, batch = build(**options), filled(some_batch(), 0.0)
    absent = batch.replace(missing=torch.ones_like(batch.missing), feature_missing={})
    for x in (batch, absent):
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            logits = model(x).logits
        model.zero_grad()
        logits.float().sum().backward()
        assert torch.isfinite(logits).all()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_encoder_of_the_table_knows_what_is_missing() -> None:
    batch = filled(some_batch(), 0.0)
    partly = batch.missing[:, 1] & ~batch.feature_missing["tab"].all(1)
    hidden = batch.missing[:, 1, None] & batch.feature_missing["tab"]
    for options, knows in (({}, True), ({"feature_mask": False}, False), ({"reference": True}, False)):
        model = build(**options)
        with torch.no_grad():
            tokens = model.encode_batch(batch)[:, 2:]
            direct, blind = (
                model.encoders["tab"](batch.inputs["tab"], hidden),
                model.encoders["tab"](batch.inputs["tab"]),
            )
        assert torch.equal(tokens, direct) is knows and torch.equal(tokens, blind) is not knows
        assert not torch.allclose(direct[partly], blind[partly])


def test_states_of_missing_tokens_reach_the_head_in_the_original_only() -> None:
    batch = some_batch()
    for reference in (False, True):
        model = build(reference=reference)
        with torch.no_grad():
            before = model(batch).logits
            # Token 7 is the last column: its place in the flattened row.
            model.classifier.weight[:, 7 * WIDTH :] += 1
            change = (model(batch).logits - before).abs().amax(1)
        absent = batch.missing[:, 1] & batch.feature_missing["tab"][:, -1]
        assert (change[~absent] > 0).all() and (change[absent] > 0).any() == reference


# ---------------------------------------------------------------------------------------------------- modality vectors


def test_vectors_of_ones_change_nothing_and_order_does_not_matter() -> None:
    model, plain, batch = build(), build(gate="none"), some_batch()
    assert model.tokens_per_modality == [2, 6]
    with torch.no_grad():
        plain.load_state_dict({k: v for k, v in model.state_dict().items() if k != "gates"})
        expected = model(batch).logits
        gates = model.gates.clone()
        model.gates.fill_(1)
        assert_close_sums(model(batch).logits, plain(batch).logits)
        assert not torch.allclose(expected, plain(batch).logits)
        model.gates.copy_(gates)
        # The table first: gates, mask and columns of the head change places with it.
        swapped = MaskedAttention(PARTS[::-1], CLASSES, encoders(), width=WIDTH, heads=2, hidden=16).eval()
        state = {k.replace(".img.", ".x.").replace(".x.", ".img."): v for k, v in model.state_dict().items()}
        head = state["classifier.weight"].unflatten(1, (8, WIDTH))
        state |= {"gates": gates.flip(0), "classifier.weight": torch.cat([head[:, 2:], head[:, :2]], 1).flatten(1)}
        swapped.load_state_dict(state)
        inputs = {name: batch.inputs[name] for name in ("tab", "img")}
        logits = swapped(batch.replace(inputs=inputs, missing=batch.missing.flip(1))).logits
    assert_close_sums(logits, expected)


# ------------------------------------------------------------------------------------------------------------- dropout


def test_modality_dropout_has_the_published_shares() -> None:
    masks = TrainingMasks("fewer", p=0.3)
    drawn = masks.draw(torch.zeros(20_000, 2, dtype=torch.bool), generator())[0]
    shares = [(~drawn).all(1), drawn[:, 1] & ~drawn[:, 0], drawn[:, 0] & ~drawn[:, 1]]
    torch.testing.assert_close(
        torch.stack(shares, 1).float().mean(0), torch.tensor([0.7, 0.15, 0.15]), atol=0.01, rtol=0
    )
    three = masks.draw(torch.zeros(20_000, 3, dtype=torch.bool), generator())[0].sum(1)
    actual = torch.bincount(three, minlength=4) / 20_000
    torch.testing.assert_close(actual, torch.tensor([0.7, 0.15, 0.15, 0]), atol=0.01, rtol=0)
    absent = torch.tensor([[True, False, False], [True, True, False]]).repeat(500, 1)
    again = masks.draw(absent, generator())[0]
    assert not (absent & ~again).any() and not again.all(1).any() and torch.equal(again[1::2], absent[1::2])
    assert again[::2, 1].any() and again[::2, 2].any()


def test_dropout_hides_from_encoder_and_fusion_in_training_only() -> None:
    model = build(masks=TrainingMasks("fewer", p=0.3), feature_dropout=0.3)
    batch = some_batch(400)
    features = model.drop_features(complete(batch), generator())
    assert 0.25 < features.feature_missing["tab"].any(1).float().mean() < 0.35
    dropped = model.drop_modalities(features, generator(1))
    assert 0.25 < model.absent(dropped).any(1).float().mean() < 0.35 and not model.absent(dropped).all(1).any()
    # A table with some cells left loses them as well.
    pair = features.feature_missing["tab"].any(1) & model.absent(dropped)[:, 1]
    assert pair.any() and dropped.feature_missing["tab"][pair].all()
    natural = model.drop_modalities(model.drop_features(batch, generator()), generator(1))
    assert not (model.absent(batch) & ~model.absent(natural)).any() and not model.absent(natural).all(1).any()
    with torch.no_grad():
        assert torch.equal(model(batch).logits, model(batch).logits)
    seen: list[Tensor] = []
    model.encoders["img"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for reference in (False, True):  # the original drops images before their encoder
        model.reference = reference
        model.train().training_step(complete(batch), 0)
    blank = [(x == 0).flatten(1).all(1).sum() for x in seen]
    assert blank[0] == 0 and 30 < blank[1] < 90


# ---------------------------------------------------------------------------------------------------------------- loss


def test_labels_count_alike_and_unlabelled_cells_not_at_all() -> None:
    logits = torch.randn(6, 4, generator=generator()).requires_grad_()
    target = torch.tensor([[1.0, 0, -1, -1], [0, 1, -1, -1], [-1, 1, 1, -1], [-1] * 4, [1, -1, -1, -1], [-1] * 4])
    loss = mean_of_labels(logits, target)
    cells = F.binary_cross_entropy_with_logits(logits.detach(), target, reduction="none")
    by_hand = [cells[[0, 1, 4], 0].mean(), cells[[0, 1, 2], 1].mean(), cells[2, 2]]
    torch.testing.assert_close(loss.detach(), torch.stack(by_hand).mean())
    loss.backward()
    assert logits.grad is not None and torch.equal(logits.grad != 0, target >= 0)
    torch.testing.assert_close(mean_of_labels(logits[:3], target[:3]), mean_of_labels(logits[:4], target[:4]))
    assert mean_of_labels(logits, torch.full((6, 4), -1.0)) == 0
    full = torch.randint(2, (6, 4), generator=generator()).float()
    torch.testing.assert_close(mean_of_labels(logits, full), F.binary_cross_entropy_with_logits(logits, full))
    for kind in (MaskedAttention, TokenPerceptron):
        model, batch = build(kind, task="multilabel"), some_batch(labels=True)
        expected = mean_of_labels(model(batch).logits, batch.target)
        assert_close_sums(model.loss(model(batch), batch)["loss"], expected)


# ----------------------------------------------------------------------------------------- pretraining, freezing, rates


def unimodals(task: str = "multiclass") -> dict[str, IncompleteClassifier]:
    parts = {}
    for seed, name in enumerate(("img", "tab")):
        torch.manual_seed(seed + 20)
        parts[f"unimodal_{name}"] = TokenUnimodal(PARTS, CLASSES, encoders(), modality=name, task=task)
        jolted(parts[f"unimodal_{name}"].classifier)  # type: ignore[arg-type]
    return {name: part.eval() for name, part in parts.items()}


def test_a_unimodal_part_is_encoder_and_linear_layer() -> None:
    batch, parts = some_batch(), unimodals()
    image: Any = parts["unimodal_img"]
    table: Any = parts["unimodal_tab"]
    assert (image.classifier.in_features, table.classifier.in_features) == (16, CELLS * WIDTH)
    with torch.no_grad():
        absent = batch.missing[:, 1, None] & batch.feature_missing["tab"]
        states = torch.where(absent[..., None], 0, table.encoders["tab"](batch.inputs["tab"], absent))
        present = ~absent.all(1)
        assert_close_sums(table(batch).logits[present], table.classifier(states.flatten(1))[present])
        vector = image.encoders["img"](batch.inputs["img"]).mean(1)
        assert_close_sums(image(complete(batch)).logits, image.classifier(vector))
    # Rows without it do not meet batch normalisation.
    image.log_losses = lambda *_: None
    means = []
    for some in (batch, batch.replace(inputs=filled(batch, 0).inputs)):
        image.encoders["img"].norm.reset_running_stats()
        image.train().training_step(some, 0)
        means.append(image.encoders["img"].norm.running_mean.clone())
    rows = image.encoders["img"].conv(batch.inputs["img"][~batch.missing[:, 0]]).mean((0, 2, 3))
    torch.testing.assert_close(means[0], 0.1 * rows.detach())
    assert torch.equal(*means)


def test_encoders_come_from_the_unimodal_parts_and_may_stay_as_they_are() -> None:
    parts, batch = unimodals(), some_batch()
    model = build(prerequisites=parts, freeze_encoders=True).train()
    model._optimizer = lambda groups: torch.optim.AdamW(groups, lr=0.1)
    optimizer = model.configure_optimizers()
    for step in range(3):
        optimizer.zero_grad()
        model.training_step(batch, step).backward()
        optimizer.step()
    for name in ("img", "tab"):
        expert: Any = parts[f"unimodal_{name}"]
        mine, theirs = model.encoders[name].state_dict(), expert.encoders[name].state_dict()
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs) and model.encoders[name].pretrained
        assert not model.encoders[name].training
    assert not any(p.requires_grad for p in model.encoders.parameters()) and model.transformer.training


def test_every_trained_parameter_has_one_rate() -> None:
    model = build(encoder_lr=1e-6)
    model._optimizer = lambda groups: torch.optim.AdamW(groups, lr=1e-3)
    groups = model.configure_optimizers().param_groups
    assert [group["lr"] for group in groups] == [1e-6, 1e-3]
    ids = [id(p) for group in groups for p in group["params"]]
    assert len(ids) == len(set(ids)) and set(ids) == set(map(id, model.parameters()))
    assert set(map(id, groups[0]["params"])) == set(map(id, model.encoders.parameters()))
    alone = build()
    alone._optimizer = model._optimizer
    assert [group["lr"] for group in alone.configure_optimizers().param_groups] == [1e-3]


def test_what_does_not_go_together_is_said(composed: Callable[..., DictConfig]) -> None:
    for options, message in (
        ({"gate": "times"}, "gate=times"),
        ({"mask_mode": "both"}, "mask_mode=both"),
        ({"pooling": "max"}, "pooling=max"),
        ({"fill": "inputs"}, "set mask_mode=none"),
        ({"fill": "mixed"}, "set mask_mode=none"),
        ({"fill": "zeros"}, "fill=zeros: must be one of tokens, inputs, mixed"),
        ({"tokens": "some"}, "tokens=some"),
        ({"tokens": {"im": "all"}}, "tokens names 'im'"),
        ({"feature_dropout": 1.0}, "feature_dropout=1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            build(**options)
    with pytest.raises(ValueError, match="set per=row"):
        TrainingMasks("fewer", per="batch")
    with pytest.raises(ValueError, match="combine=mean"):
        build(TokenPerceptron, combine="mean")
    with pytest.raises(ValueError, match="rule=median"):
        LateFusion(PARTS, CLASSES, {}, prerequisites={}, rule="median")
    with pytest.raises(UserError, match=r"model\.unimodal\.training\.warmup_epochs=50: none of 5 epochs"):
        validate(
            composed(
                "model=MaskedAttention",
                "model.unimodal.training.max_epochs=5",
                "model.unimodal.training.warmup_epochs=50",
            )
        )


# ----------------------------------------------------------------------------------------------------------- baselines


def test_perceptrons_read_tokens_of_zeros() -> None:
    batch = some_batch()
    for combine in ("concat", "max", "sum"):
        model = build(TokenPerceptron, combine=combine, hidden=(5,), fill="inputs", feature_mask=False)
        assert not model.can_split
        with torch.no_grad():
            image = model.encoders["img"](filled(batch, 0.0).inputs["img"]).mean(1).unflatten(1, (2, WIDTH))
            tokens = torch.cat([image, model.encoders["tab"](filled(batch, 0.0).inputs["tab"])], 1)
            x = {"concat": tokens.flatten(1), "max": tokens.max(1).values, "sum": tokens.sum(1)}[combine]
            expected = model.classifier(F.relu(model.perceptron[0](x)))
            assert_close_sums(model(batch).logits, expected)


def released_tokens(model: Any, batch: Batch) -> Tensor:
    """The tokens (B, P, D) of the released baselines without a mask, row by row: a missing image is a black image, the
    features of a table without a single cell are zeros, and a missing cell is a zero."""
    rows = []
    for i in range(len(batch)):
        has_image, has_table = (~model.absent(batch)[i]).tolist()
        image = batch.inputs["img"][i : i + 1] if has_image else torch.zeros(1, 3, 8, 8)
        image = model.encoders["img"](image).mean(1).reshape(1, 2, WIDTH)
        hidden = batch.missing[i, 1] & batch.feature_missing["tab"][i : i + 1]
        table = torch.zeros(1, CELLS, WIDTH)
        if has_table:
            table = model.encoders["tab"](torch.where(hidden, 0, batch.inputs["tab"][i : i + 1]))
        rows.append(torch.cat([image, table], dim=1))
    return torch.cat(rows)


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("hidden_content", [0.0, 1e30, math.nan])
def test_a_missing_table_gives_zero_features_as_published(reference: bool, hidden_content: float) -> None:
    batch = some_batch()
    absent = build().absent(batch)
    assert absent[:, 1].any() and absent[:, 0].any() and (batch.missing[:, 1] & ~absent[:, 1]).any()
    for combine in ("concat", "max", "sum"):
        options: dict[str, Any] = {"fill": "mixed", "feature_mask": False, "reference": reference}
        model = build(TokenPerceptron, combine=combine, hidden=(5,), **options)
        assert not model.can_split
        with torch.no_grad():
            tokens = released_tokens(model, batch)
            x = {"concat": tokens.flatten(1), "max": tokens.max(1).values, "sum": tokens.sum(1)}[combine]
            expected = model.classifier(F.relu(model.perceptron[0](x)))
            assert_close_sums(model(filled(batch, hidden_content)).logits, expected)
            torch.testing.assert_close(
                model(complete(batch)).logits, model.fuse(model.encode(batch.inputs), complete(batch)).logits
            )
    model = build(mask_mode="none", **options)
    with torch.no_grad():
        expected = model.classify(released_tokens(model, batch), None).logits
        assert_close_sums(model(filled(batch, hidden_content)).logits, expected)


def test_a_missing_table_trains_nothing_of_its_encoder() -> None:
    batch = some_batch()
    missing = torch.zeros(40, 2, dtype=torch.bool)
    missing[:, 1] = True
    batch = batch.replace(missing=missing, feature_missing={})
    for kind, options in ((TokenPerceptron, {}), (MaskedAttention, {"mask_mode": "none"})):
        model = build(kind, fill="mixed", feature_mask=False, **options).train()
        model.training_step(batch, 0).backward()
        assert not any(p.grad is not None and p.grad.any() for p in model.encoders["tab"].parameters())
        assert any(p.grad.any() for p in model.encoders["img"].parameters())
        # A missing image is a black image, which the encoder and its batch normalisation see, in training too.
        seen: list[Tensor] = []
        model.encoders["img"].register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        model.training_step(batch.replace(missing=missing.flip(1)), 0)
        assert len(seen[0]) == 40 and not seen[0].any()


def test_defaults_of_the_baselines_are_the_published_ones(composed: Callable[..., DictConfig]) -> None:
    for name in ("Zeros_MLP", "Pooling_MLP"):
        cfg = composed(f"model={name}")
        assert (cfg.model.module.fill, cfg.model.module.feature_mask) == ("mixed", False)
        assert cfg.model.unimodal.module.feature_dropout == 0.5
    late = composed("model=Late").model
    assert late.unimodal.module.feature_dropout == 0.3
    shared = composed("model=MaskedAttention").model.unimodal
    assert shared.module.feature_dropout == 0.5 and late.unimodal.name != shared.name
    selection = composed("model=ModelSelection").model
    for part in (selection.unimodal, selection.mlp.unimodal, selection.fusion.unimodal):
        assert (part.name, part.module.feature_dropout) == (shared.name, 0.5)
    assert (selection.mlp.module.fill, selection.fusion.module.fill) == ("mixed", "mixed")


def test_weights_of_another_fill_are_refused(vectors: Callable[..., DictConfig]) -> None:  # noqa: F811
    small = ["model=Zeros_MLP", "model.module.width=8", "dataset.train_fraction=0.1", "model.prerequisites=null"]
    small += ["model.training.max_epochs=1", "model.training.warmup_epochs=0", "model.training.batch_size=16"]
    cfg = vectors(*small, "model.module.fill=inputs", "stages=[prepare,fit]")
    pipeline.run(cfg)
    checkpoint = Run(cfg).checkpoint
    other = vectors(*small, f"model.checkpoint={checkpoint}", "name=other")
    with pytest.raises(
        UserError, match=r"trained with fill=inputs, this run uses fill=mixed: set model\.module\.fill=inputs"
    ):
        Run(other).load_model()
    assert (
        Run(vectors(*small, "model.module.fill=inputs", f"model.checkpoint={checkpoint}")).load_model().fill == "inputs"
    )


def test_rows_that_lack_something_do_not_train_a_model_of_complete_rows() -> None:
    model, batch = build(TokenPerceptron, complete_rows=True, fill="inputs"), some_batch()
    whole = ~model.absent(batch).any(1)
    some = batch.replace(target=torch.where(whole, batch.target, 0))
    losses = [model.training_step(x, 0) for x in (batch, some)]
    assert 0 < int(whole.sum()) < 40 and torch.equal(*losses) and losses[0] > 0
    none = batch.replace(missing=torch.tensor([[True, False]]).expand(40, 2), feature_missing={})
    assert model.training_step(none, 0) == 0


def normalisation(model: Any) -> list[Tensor]:
    return [x for key, x in model.encoders.state_dict().items() if "running" in key or "tracked" in key]


@pytest.mark.parametrize("there", [40, 8, 2, 1, 0])
def test_blank_images_count_in_no_statistic_of_training(there: int) -> None:
    batch = some_batch()
    absent = torch.arange(40) * there % 40 >= there if there else torch.ones(40, dtype=torch.bool)
    missing = torch.stack([absent, batch.missing[:, 1] & ~absent], 1)
    cells = torch.where(absent[:, None], False, batch.feature_missing["tab"])
    batch = batch.replace(missing=missing, feature_missing={"tab": cells})
    assert int((~absent).sum()) == there
    model, alone = build().train(), build().train()
    before = [x.clone() for x in normalisation(model)]
    actual = model.encode_batch(batch)
    assert actual.shape == (40, 8, WIDTH) and not actual[absent, :2].any()
    if there:
        expected = alone.inputs["img"](
            alone.encoders["img"](batch.inputs["img"][~absent].repeat(2 // there or 1, 1, 1, 1))
        )
        assert_close_sums(actual[~absent, :2], expected[:there])
    assert len(before) and all(map(torch.equal, normalisation(model), normalisation(alone)))
    assert there == 0 or not all(map(torch.equal, normalisation(model), before))
    model.loss(model.fuse(actual, batch), batch)["loss"].backward()
    grads = [p.grad for p in model.encoders["img"].parameters()]
    assert all(g is not None for g in grads) and any(g.any() for g in grads) == (there > 0)


def test_rows_that_have_everything_are_encoded_as_ever() -> None:
    batch = some_batch()
    batch = batch.replace(missing=torch.zeros(40, 2, dtype=torch.bool), feature_missing={})
    grads = []
    for complete in (True, False):
        model, whole = build().train(), batch.replace(complete=complete)
        model.training_step(whole, 0).backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        assert_close_sums(a, b)


def test_batches_without_complete_rows_leave_the_encoders_alone() -> None:
    model, batch = build(complete_rows=True).train(), some_batch()
    before = [x.clone() for x in normalisation(model)]
    none = batch.replace(missing=torch.tensor([[True, False]]).expand(40, 2), feature_missing={})
    loss = model.training_step(none, 0)
    loss.backward()
    assert loss == 0 and all(map(torch.equal, normalisation(model), before))
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("rule", ["mean", "max", "min", "majority"])
def test_late_fusion_counts_what_is_there(rule: str) -> None:
    for task in ("multiclass", "multilabel"):
        parts, batch = unimodals(task), some_batch()
        model = LateFusion(PARTS, CLASSES, {}, prerequisites=parts, rule=rule, task=task).eval()
        present = ~model.absent(batch)
        with torch.no_grad():
            singles = torch.stack([part(batch).logits for part in parts.values()], 1)
            actual = model(batch).logits
        singles = singles.softmax(-1) if task == "multiclass" else singles.sigmoid()
        for row in range(40):
            p = singles[row, present[row]]
            if rule == "majority":
                votes = F.one_hot(p.argmax(1), CLASSES) if task == "multiclass" else (p > 0.5).long()
                expected = (votes.sum(0) + p.mean(0)) / (len(p) + 1)
            else:
                expected = {"mean": p.mean(0), "max": p.max(0).values, "min": p.min(0).values}[rule]
            if task == "multiclass":
                torch.testing.assert_close(actual[row].softmax(0), expected / expected.sum())
            else:
                torch.testing.assert_close(actual[row].sigmoid(), expected)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_late_fusion_keeps_the_order_of_confident_rows(task: str) -> None:
    """Probabilities within 1e-12 of one another, which float32 rounds to 1."""
    model = LateFusion(PARTS, CLASSES, {}, prerequisites=unimodals(task), task=task)
    logits = torch.zeros(5, 2, CLASSES)
    logits[..., 1] = torch.linspace(26, 30, 5)[:, None]
    actual = model.combine(logits, torch.ones(5, 2, dtype=torch.bool))
    assert actual.dtype == torch.float32
    odds = actual[:, 1] - actual[:, 0] if task == "multiclass" else actual[:, 1]
    torch.testing.assert_close(odds, logits[:, 0, 1], atol=0.02, rtol=0)


def test_the_majority_decides_and_the_mean_between_equals() -> None:
    p = torch.tensor([[[0.6, 0.4], [0.55, 0.45], [0.0, 1.0]]])
    three = torch.ones(1, 3, dtype=torch.bool)
    assert pool_probabilities(p, three, "mean")[0].argmax() == 1
    assert pool_probabilities(p, three, "majority")[0].argmax() == 0
    two = torch.tensor([[True, False, True]])
    assert pool_probabilities(p, two, "majority")[0].argmax() == 1
    torch.testing.assert_close(pool_probabilities(p, three, "majority").sum(), torch.tensor(1.0))


def test_model_selection_sends_every_row_to_its_model() -> None:
    parts, batch = unimodals(), some_batch()
    joint = build(TokenPerceptron, fill="inputs", seed=5)
    model = ModelSelection(PARTS, CLASSES, {}, prerequisites=parts | {"joint": joint}).eval()
    absent = model.absent(batch)
    with torch.no_grad():
        actual = model(batch).logits.softmax(1)
        separate = {(False, False): joint, (True, False): parts["unimodal_tab"], (False, True): parts["unimodal_img"]}
        for pattern, expert in separate.items():
            rows = (absent == torch.tensor(pattern)).all(1)
            assert rows.any()
            assert_close_sums(actual[rows], expert(batch).logits.softmax(1)[rows])
    assert not model.can_split and not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("rows", [3, 7, 40])
def test_the_validation_loss_of_labels_does_not_depend_on_the_batches(rows: int) -> None:
    model, batch = build(task="multilabel"), some_batch(labels=True)
    batch = batch.replace(target=torch.where(torch.arange(40)[:, None] % 7 > 2, -1, batch.target))
    with torch.no_grad():
        expected = float(model.criterion(model(batch).logits, batch.target))
    parts = [take_rows(batch, index) for index in torch.arange(40).split(rows)]
    trainer = pl.Trainer(logger=False, enable_progress_bar=False, accelerator="cpu", enable_checkpointing=False)
    for _ in range(2):  # nothing is left over from the validation before
        (actual,) = trainer.validate(model, torch.utils.data.DataLoader(parts, batch_size=None), verbose=False)
        assert actual["val_loss"] == pytest.approx(expected, abs=summation_bound(batch.target.numel(), expected))


# -------------------------------------------------------------------------------------------------------- whole runs


def test_the_best_epoch_is_past_the_warm_up_and_reproduces_its_loss(vectors: Callable[..., DictConfig]) -> None:  # noqa: F811
    small = ["model.module.width=8", "model.module.heads=2", "model.module.hidden=16", "dataset.train_fraction=0.1"]
    small += ["model.training.batch_size=16", "model.prerequisites=null", "model.module.encoder_lr=null"]
    schedule = ["model.training.max_epochs=12", "model.training.warmup_epochs=3", "model.training.patience=3"]
    # The first epochs are best: at a rate that is far too high, losses climb.
    rates = ["model.module.optimizer.lr=0.1", "model.module.plateau.patience=2", "model.module.plateau.factor=0.5"]
    cfg = vectors("model=MaskedAttention", "stages=[prepare,fit]", *small, *schedule, *rates)
    pipeline.run(cfg)
    context = Run(cfg)
    losses = pd.read_csv(context.fit_directory / "metrics.csv")["val_loss"]
    counted = losses[3:]
    content = read_tensors(context.checkpoint)
    assert content["epoch"] == counted.idxmin()
    model: Any = context.load_model()
    trainer = pl.Trainer(logger=False, enable_progress_bar=False, accelerator="cpu", enable_checkpointing=False)
    (again,) = trainer.validate(model, context.data, verbose=False)
    assert again["val_loss"] == pytest.approx(losses[content["epoch"]], rel=1e-5)
    # Patience and falls of the rate, as the losses say.
    best, stale, falls, stops = math.inf, 0, 0, len(losses)
    for epoch, loss in counted.items():
        best, stale = (loss, 0) if loss < best - 1e-3 else (best, stale + 1)
        falls += stale > 0 and stale % 2 == 0
        if stale == 3:
            stops = int(epoch) + 1
            break
    last = read_tensors(context.fit_directory / "checkpoints" / "last.ckpt")
    assert len(losses) == stops and last["plateau"]["stale"] == stale
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.1 * 0.5**falls)


SIDE = 6


def two_views(rows: int, seed: int) -> Batch:
    """Two tables of six numbers of a class of two, the first clearer than the second; zeros look like class 0."""
    g = generator(seed)
    target = torch.arange(rows) % 2
    patterns = torch.randn(2, SIDE, generator=generator(77))
    sign = (2.0 * target - 1)[:, None]
    inputs = {
        f"v{i}": patterns[i] * (1 + sign * strength) + torch.randn(rows, SIDE, generator=g)
        for i, strength in enumerate((0.5, 0.35))
    }
    return Batch(inputs, torch.zeros(rows, 2, dtype=torch.bool), target, torch.arange(rows), complete=True)


def trained(model: Any, steps: int = 80) -> Any:
    model.log_losses = lambda *_: None
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(steps):
        optimizer.zero_grad()
        model.train().training_step(two_views(128, 1000 + step), step).backward()
        optimizer.step()
    return model.eval()


def test_training_with_dropout_bears_the_loss_of_a_view() -> None:
    """Test AUC at shares 0 .. 100 % of a missing view, against a model of the other view alone, and one without mask
    and dropout."""
    parts = [Modality(f"v{i}", "table", (SIDE,)) for i in range(2)]

    def networks() -> dict[str, nn.Module]:
        return {m.name: NAIM((), SIDE, width=16, heads=2, blocks=1, hidden=32) for m in parts}

    torch.manual_seed(0)
    options: dict[str, Any] = {"width": 16, "heads": 2, "layers": 1, "hidden": 32}
    dropout: dict[str, Any] = {"masks": TrainingMasks("fewer", p=0.3), "feature_dropout": 0.3}
    ours = trained(MaskedAttention(parts, 2, networks(), **options, **dropout))
    bare = trained(
        MaskedAttention(parts, 2, networks(), **options, mask_mode="none", fill="inputs", feature_mask=False)
    )
    alone = trained(TokenUnimodal(parts, 2, networks(), modality="v1"))
    test = two_views(4000, 1)

    def auc(model: Any, share: float) -> float:
        missing = test.missing.clone()
        missing[: int(share * len(test)), 0] = True
        order = torch.randperm(len(test), generator=generator(4))
        missing = missing[order]
        with torch.no_grad():
            p = model(test.replace(missing=missing)).logits.softmax(1)[:, 1]
        return float(binary_auroc(p, test.target))

    curve = [auc(ours, share) for share in (0, 0.25, 0.5, 0.75, 1)]
    assert curve[-1] > auc(alone, 0) - 0.02, (curve, auc(alone, 0))
    assert all(b < a + 0.01 for a, b in pairwise(curve)) and curve[0] > curve[-1] + 0.03, curve
    without = [auc(bare, share) for share in (0, 0.5, 1)]
    assert without[0] > curve[0] - 0.02 and without[1] < curve[2] - 0.05, (without, curve)
