"""UDML: what docs/reference/udml.md §1.17 demands of the model, number by number."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from datasets.batch import Batch, Modality
from datasets.noise import TrainingNoise
from models.baselines.masks import TrainingMasks
from models.encoders.resnet import ResNetEncoder
from models.udml.heads import HEADS
from models.udml.representation import Gaussian, divergence
from models.udml.udml import UDML, Dependency
from models.udml.weights import fusion_weights, logit_distances
from tests.contracts.test_baselines import configure
from tests.tolerances import assert_close_sums
from trainers import run as pipeline
from trainers import udml_curves as curves
from trainers.config.build import build_noise
from trainers.config.compose import compose_config
from trainers.config.validate import validate
from trainers.fit import after_clean_epochs
from trainers.loading import Run
from trainers.report.runs import read_results
from utils.errors import UserError
from utils.files import save_arrays

CLASSES = 4


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Tokens(nn.Module):
    """(B, 3 n) -> (B, 3, width), a token out of every n numbers."""

    tokens = 3

    def __init__(self, n: int, width: int) -> None:
        super().__init__()
        self.width, self.linear = width, nn.Linear(n, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x.unflatten(1, (3, -1))))


def model_of(m: int = 2, seed: int = 0, **options: Any) -> UDML:
    """On vectors, encoders of different widths; no parameter at a value that could hide a term."""
    torch.manual_seed(seed)
    views = [Modality(f"m{i}", "audio", (6,)) for i in range(m)]
    encoders = {v.name: Tokens(2, 5 + i) for i, v in enumerate(views)}
    task = options.pop("task", "multiclass")
    options = {"detach_weights": False, **options}
    model = UDML(
        views, CLASSES, encoders, task=task, **{"width": 8, "dependency": Dependency(), "weights_from": 6, **options}
    )
    model.log_losses = lambda *_: None  # type: ignore[method-assign]
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def batch_of(m: int = 2, rows: int = 16, seed: int = 0, hide: bool = False) -> Batch:
    """Levels 1 to 11; with ``hide`` every number of missing modalities."""
    g = generator(seed)
    order = torch.rand(rows, m, generator=g).argsort(1)
    missing = order < (torch.arange(rows) % m * hide)[:, None]
    levels = torch.randint(1, 12, (rows, m), generator=g).float()
    inputs = {f"m{i}": torch.randn(rows, 6, generator=g) for i in range(m)}
    return Batch(inputs, missing, torch.arange(rows) % CLASSES, torch.arange(rows), {}, levels, not hide)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, bool]:
    """Name of a parameter -> whether any gradient reaches it."""
    model.zero_grad()
    loss.backward()
    return {name: bool(p.grad is not None and p.grad.any()) for name, p in model.named_parameters()}


# ------------------------------------------------------------------------------------------------------------- weights


def weights_by_hand(rho: Tensor, alpha: Tensor, there: Tensor) -> Tensor:
    """Row by row, in float64, as it is written (docs/reference/udml.md §1.15)."""
    rows = []
    for r, a in zip(rho.double(), there):
        inverse = [float(1 / (x * y)) if ok else 0.0 for x, y, ok in zip(r, alpha.double(), a)]
        rows.append([int(a.sum()) * i / sum(inverse) for i in inverse])
    return torch.tensor(rows)


def test_weights_are_those_of_the_formula() -> None:
    rho, alpha = torch.rand(50, 3, generator=generator()) * 120 + 0.5, torch.tensor([0.2, 0.9, 1.9])
    present = ~batch_of(3, 50, hide=True).missing
    weights = fusion_weights((rho * alpha).log(), present)
    torch.testing.assert_close(weights, weights_by_hand(rho, alpha, present), atol=1e-5, rtol=1e-5)
    assert (weights >= 0).all() and not weights[~present].any()
    torch.testing.assert_close(weights.sum(1), present.sum(1).float())
    assert (weights[present & (present.sum(1, keepdim=True) == 1)] == 1).all()
    # The closed form for two modalities (docs/reference/udml.md §1.6): t_a = 2 l_v^2 / (l_a^2 + l_v^2), then divided by
    # d and normalised.
    la, lv = (torch.rand(2, 50, generator=generator(1)) * 10 + 1).unbind()
    ta, tv = 2 * lv**2 / (la**2 + lv**2), 2 * la**2 / (la**2 + lv**2)
    da, dv = 32.0, 10.0
    total = ta / da + tv / dv
    cost = torch.stack([la**2 * da, lv**2 * dv], dim=1).log()
    expected = torch.stack([2 * ta / da / total, 2 * tv / dv / total], dim=1)
    torch.testing.assert_close(fusion_weights(cost, torch.ones(50, 2, dtype=torch.bool)), expected)


def test_weights_do_not_know_scales_and_fall_with_noise_and_reliance() -> None:
    cost = torch.randn(20, 4, generator=generator())
    present = torch.ones(20, 4, dtype=torch.bool)
    weights = fusion_weights(cost, present)
    torch.testing.assert_close(fusion_weights(cost + 3, present), weights)
    for m in range(4):
        more = fusion_weights(cost + 0.1 * F.one_hot(torch.tensor(m), 4), present) - weights
        assert (more[:, m] < 0).all() and (more[:, [i for i in range(4) if i != m]] > 0).all()
    assert (fusion_weights(torch.full((3, 4), 1.7), present[:3]) == 1).all()
    extreme = fusion_weights(torch.tensor([[500.0, -500.0], [500.0, 500.0]]), present[:2, :2])
    assert torch.equal(extreme, torch.tensor([[0.0, 2.0], [1.0, 1.0]]))
    assert not fusion_weights(cost, ~present).any(), "a row with nothing"


def test_weights_of_the_stages() -> None:
    """Ours are 1 until they set in; the release divides by the dependency from the start (32 and 10)."""
    batch = batch_of()
    ours, theirs = model_of(), model_of(reference=True)
    ours.dependency.copy_(torch.tensor([32.0, 10.0]))
    static, divided = torch.ones(16, 2), torch.tensor([2 * 10 / 42, 2 * 32 / 42]).expand(16, 2)
    for model, expected in ((ours, static), (theirs, divided)):
        model.train()
        assert_close_sums(model(batch).extras["fusion_weights"], expected)
        model.set_epoch(5)
        assert_close_sums(model(batch).extras["fusion_weights"], expected)
        model.set_epoch(6)
        assert model(batch).extras["fusion_weights"].std(0).min() > 1e-3, "they depend on the sample now"
    ours.eval().set_epoch(5)
    theirs.eval().set_epoch(0)
    assert_close_sums(ours(batch).extras["fusion_weights"], static)
    assert theirs(batch).extras["fusion_weights"].std(0).min() > 1e-3, "in full in evaluation"


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e6])
def test_active_weights_do_not_see_what_is_missing_nor_other_rows(value: float) -> None:
    model, batch = model_of(3), batch_of(3, hide=True)
    model.dependency.copy_(torch.tensor([3.0, 1.0, 2.0]))
    model.set_epoch(6)
    model.eval()
    spoilt = {}
    for i, (name, x) in enumerate(batch.inputs.items()):
        spoilt[name] = torch.where(batch.missing[:, i].reshape(-1, *[1] * (x.ndim - 1)), value, x)
    with torch.no_grad():
        clean, other = model(batch), model(batch.replace(inputs=spoilt))
        for row in range(len(batch)):
            alone = Batch(
                {name: x[row : row + 1] for name, x in spoilt.items()},
                *(x[row : row + 1] for x in (batch.missing, batch.target, batch.index)),
            )
            assert_close_sums(model(alone).logits, clean.logits[row : row + 1])
    assert torch.equal(clean.logits, other.logits) and torch.isfinite(clean.logits).all()
    weights = other.extras["fusion_weights"]
    assert torch.equal(weights == 0, batch.missing), "the weights are in"
    torch.testing.assert_close(weights.sum(1), (~batch.missing).sum(1).float())
    assert not torch.allclose(weights[0], torch.ones(3), atol=0.05)


def test_features_are_reweighted_residually() -> None:
    batch = batch_of(hide=True)
    for residual in (True, False):
        model = model_of(residual=residual, weights_from=0).eval()
        encoded = model.encode_batch(batch)
        prediction = model.fuse(encoded, batch)
        weights = prediction.extras["fusion_weights"]
        expected = (residual + weights)[..., None] * torch.where(batch.missing[..., None], 0, encoded[:, :, 0])
        assert prediction.features is not None
        assert_close_sums(prediction.features, expected.flatten(1))


# --------------------------------------------------------------------------------------------------------------- heads


def test_heads_of_two_modalities_are_the_released_ones() -> None:
    z = torch.randn(7, 2, 5, generator=generator())
    together = torch.ones(7, 2, dtype=torch.bool)
    heads: dict[str, Any] = {name: head(2, 5, 3) for name, head in HEADS.items()}
    a, v = z.unbind(1)
    zero = torch.zeros_like(a)
    concat, added, gated, bilinear = heads.values()
    x, y = (f(u) for f, u in zip(gated.linears, (a, v)))

    def outer(s: Tensor, t: Tensor) -> Tensor:
        flat = torch.einsum("bi,bj->bij", s, t).flatten(1)
        return bilinear.out(F.linear(flat, bilinear.bilinear.weight.flatten(1), bilinear.bilinear.bias))

    expected = {
        "concat": [concat.linear(torch.cat(pair, 1)) for pair in ((a, v), (a, zero), (zero, v))],
        "sum": [added.linears[0](a) + added.linears[1](v), added.linears[0](a), added.linears[1](v)],
        "gated": [gated.out(x.sigmoid() * y), gated.out(x.sigmoid() * x), gated.out(y.sigmoid() * y)],
        "bilinear": [outer(a, v), outer(a, a), outer(v, v)],
    }
    masks = [together, together & torch.tensor([True, False]), together & torch.tensor([False, True])]
    for name, head in heads.items():
        for mask, logits in zip(masks, expected[name], strict=True):
            assert_close_sums(head(z, mask), logits)
            torch.testing.assert_close(head(torch.where(mask[..., None], z, math.nan), mask), logits, atol=1e-5, rtol=0)


def test_heads_of_three_modalities() -> None:
    """Every row against a loop over what counts."""
    z = torch.randn(8, 3, 4, generator=generator())
    counts = torch.tensor(list(itertools.product((True, False), repeat=3)))
    gated: Any = HEADS["gated"](3, 4, 2)
    bilinear: Any = HEADS["bilinear"](3, 4, 2)
    actual = {"gated": gated(z, counts), "bilinear": bilinear(z, counts)}
    for row, (vectors, mask) in enumerate(zip(z, counts)):
        present = [i for i in range(3) if mask[i]]
        if not present:
            continue
        hidden = {i: gated.linears[i](vectors[i]) for i in present}
        gates = present[:-1] or present
        value = hidden[present[-1]]
        for i in gates:
            value = value * hidden[i].sigmoid()
        assert_close_sums(actual["gated"][row], gated.out(value))
        pairs = list(itertools.combinations(present, 2)) or [(present[0], present[0])]
        mean = sum(bilinear.bilinear(vectors[i], vectors[j]) for i, j in pairs) / len(pairs)
        assert_close_sums(actual["bilinear"][row], bilinear.out(mean))


# ----------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("detach", [False, True])
def test_who_learns_from_what(detach: bool) -> None:
    batch = batch_of()
    for active in (False, True):
        model = model_of(detach_weights=detach)
        model.dependency.fill_(1.0)
        model.set_epoch(6 if active else 5)
        losses = model.loss(model(batch), batch)
        reached = gradients(model, losses["regression"])
        assert all(value == name.startswith("regressors") for name, value in reached.items())
        model.zero_grad()
        prediction = model(batch)
        reached = gradients(model, F.cross_entropy(prediction.logits, batch.target))
        regressors = [value for name, value in reached.items() if name.startswith("regressors")]
        assert any(regressors) is (active and not detach)
        assert all(reached[name] for name in reached if name.startswith(("encoders", "head")))


def test_where_regressors_start_and_who_may_move_them() -> None:
    """Ours predict the clean level at first and learn from levels alone; the release's are random, and open."""
    torch.manual_seed(0)
    for reference in (False, True):
        views = [Modality(f"m{i}", "audio", (6,)) for i in range(2)]
        model = UDML(views, CLASSES, {v.name: Tokens(2, 5) for v in views}, width=8, reference=reference)
        levels = model(batch_of()).extras["predicted_level"]
        assert bool((levels == 1).all()) is not reference and model.detach_weights is not reference


def test_predicted_levels_are_positive_and_learn_a_constant() -> None:
    model = model_of(regressor_dropout=0.0)
    seen = torch.rand(1, 2, 8, generator=generator()).expand(32, 2, 8)
    assert ((0.5 * model.log_uncertainty(10 * torch.randn(99, 2, 8))).exp() > 0).all()
    optimizer = torch.optim.Adam(model.regressors.parameters(), 0.01)
    for _ in range(200):
        loss = ((0.5 * model.log_uncertainty(seen)).exp() - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close((0.5 * model.log_uncertainty(seen)).exp(), torch.ones(32, 2), atol=0.01, rtol=0)


# ------------------------------------------------------------------------------------- encoders, sampling, divergence


def test_only_training_samples() -> None:
    model, batch = model_of(regressor_dropout=0.0), batch_of()
    assert not torch.equal(model(batch).logits, model(batch).logits)
    for part in model.gaussians.values():
        part.norms["log_variance"].weight.data.zero_()  # type: ignore[union-attr, index]
        part.norms["log_variance"].bias.data.fill_(-200)  # type: ignore[union-attr, index]
    torch.testing.assert_close(model(batch).logits, model(batch).logits)
    model = model_of().eval()
    assert torch.equal(model(batch).logits, model(batch).logits)


def test_samples_have_the_deviations_that_the_regressors_see() -> None:
    model = model_of(max_deviation={"m1": 0.25}).train()
    batch = batch_of(rows=4)
    distributions = model.distributions(batch.inputs)
    draws = torch.stack([model.pooled(distributions) for _ in range(4000)])
    for i, (mean, log_variance) in enumerate(distributions.values()):
        assert log_variance is not None
        torch.testing.assert_close(draws[:, :, i, 0].mean(0), mean.mean((1, 2)), atol=0.06, rtol=0)
        torch.testing.assert_close(draws[0, :, i, 1], log_variance.exp().sqrt().mean((1, 2)))
        # The mean of three independent tokens.
        spread = log_variance.exp().sum((1, 2)).sqrt() / 3
        torch.testing.assert_close(draws[:, :, i, 0].std(0), spread, atol=0, rtol=0.06)
        assert (i == 1) == bool((log_variance <= 2 * math.log(0.25) + 1e-6).all())


def test_divergence_is_that_of_the_library() -> None:
    mean, log_variance = torch.randn(2, 5, 3, 4, 6, generator=generator())
    prior = torch.tensor([1.0, 2, 5, 9, 11])
    pairs = kl_divergence(
        Normal(mean, (0.5 * log_variance).exp()), Normal(torch.zeros_like(mean), prior.sqrt()[:, None, None, None])
    )
    # The level of a clip is that of all its 3 frames: the mean over 15 rows of sums over each map.
    expected = pairs.flatten(0, 1).sum((1, 2))
    torch.testing.assert_close(divergence(Gaussian(mean, log_variance), prior), expected.unflatten(0, (5, 3)).mean(1))
    at_prior = Gaussian(torch.zeros_like(mean), prior.log()[:, None, None, None].expand_as(mean))
    torch.testing.assert_close(divergence(at_prior, prior), torch.zeros(5), atol=1e-4, rtol=0)
    assert (divergence(at_prior, prior * 1.1) > 0.01).all()


def test_clips_go_through_frame_by_frame() -> None:
    """A map of every frame, as (B T, D, h, w) feature maps of 1x1 convolutions and batch normalisation in two dims."""
    torch.manual_seed(0)
    views = [Modality("audio", "audio", (40, 50)), Modality("visual", "video", (3, 3, 32, 32))]
    encoders = {"audio": ResNetEncoder("resnet18", channels=1), "visual": ResNetEncoder("resnet18")}
    model = UDML(views, CLASSES, encoders, width=512, dependency=Dependency())
    x = {"audio": torch.randn(2, 40, 50), "visual": torch.randn(2, 3, 3, 32, 32)}
    shapes = {"audio": (2, 1, 4, 512), "visual": (2, 3, 1, 512)}
    actual = model.distributions(x)
    assert {k: tuple(v.mean.shape) for k, v in actual.items()} == shapes
    head: Any = model.gaussians["visual"]
    conv, norm = nn.Conv2d(512, 512, 1), nn.BatchNorm2d(512)
    conv.load_state_dict({"weight": head.linears["mean"].weight[:, :, None, None], "bias": head.linears["mean"].bias})
    expected = norm(conv(encoders["visual"](x["visual"].flatten(0, 1)).transpose(1, 2).unflatten(2, (1, 1))))
    torch.testing.assert_close(actual["visual"].mean.flatten(0, 1)[:, 0], expected[..., 0, 0], atol=1e-4, rtol=1e-4)
    pooled = model.eval().encode(x)
    mean = model.distributions(x)["visual"].mean.mean((1, 2))
    torch.testing.assert_close(pooled[:, 1, 0], mean)


def test_a_training_batch_of_one_row_is_normalised_by_the_running_statistics() -> None:
    torch.manual_seed(0)
    single = UDML([Modality("v", "audio", (4,))], CLASSES, {"v": OneToken()}, width=4)
    x = torch.randn(1, 4)
    mean = single.distributions({"v": x})["v"].mean
    assert_close_sums(mean, single.eval().distributions({"v": x})["v"].mean)
    assert not torch.equal(mean, single.train().distributions({"v": torch.cat([x, x + 1])})["v"].mean[:1])


class OneToken(nn.Module):
    width = 4

    def forward(self, x: Tensor) -> Tensor:
        return x[:, None]


# ---------------------------------------------------------------------------------------------------------- dependency


def test_dependency_of_a_linear_head_is_what_each_part_adds() -> None:
    for m in (2, 3):
        z = torch.randn(9, m, 5, generator=generator())
        head: Any = HEADS["concat"](m, 5, CLASSES)
        parts = head.linear.weight.unflatten(1, (m, 5))
        expected = torch.einsum("cmd,bmd->bmc", parts, z).abs().sum(2)
        assert_close_sums(logit_distances(head, z, True), expected)
        with_bias = (torch.einsum("cmd,bmd->bmc", parts, z) + head.linear.bias).abs().sum(2)
        assert_close_sums(logit_distances(head, z, False), with_bias)


def test_dependency_is_a_moving_average_over_complete_rows() -> None:
    batch = batch_of(3, hide=True)
    model = model_of(3, weights_from=0, dependency=Dependency(momentum=0.75))
    complete = ~batch.missing.any(1)
    assert 0 < complete.sum() < 16
    assert torch.equal(model.alpha(), torch.ones(3))
    encoded = [model.encode_batch(batch).detach() for _ in range(2)]
    means = [logit_distances(model.head, e[complete, :, 0], True).mean(0).detach() for e in encoded]
    model.measure(encoded[0], ~batch.missing)
    assert_close_sums(model.dependency, means[0])
    model.measure(torch.where(batch.missing[..., None, None], math.nan, encoded[1]), ~batch.missing)
    assert_close_sums(model.dependency, 0.75 * means[0] + 0.25 * means[1])
    assert_close_sums(model.alpha(), 3 * model.dependency / model.dependency.sum())
    before = model.dependency.clone()
    model.measure(encoded[0], ~batch.missing & torch.tensor([True, True, False]))
    assert torch.equal(model.dependency, before), "no row is complete"
    # The release: the last batch alone, logits of one modality from weighted features.
    theirs = model_of(reference=True, regressor_dropout=0.0)
    theirs.set_epoch(6)
    whole = batch_of()
    encoded_whole = theirs.encode_batch(whole).detach()
    alone = theirs.fuse(encoded_whole, whole).extras["unimodal_logits"]
    theirs.measure(encoded_whole, ~whole.missing)
    assert_close_sums(theirs.dependency, alone.abs().mean(0).sum(1))


def test_order_of_the_modalities_does_not_matter() -> None:
    model, batch = model_of(3, weights_from=0), batch_of(3)
    order = [2, 0, 1]
    other = model_of(3, weights_from=0)
    other.modalities = [model.modalities[i] for i in order]
    for parts in ("encoders", "gaussians"):
        setattr(other, parts, nn.ModuleDict({f"m{i}": getattr(model, parts)[f"m{i}"] for i in order}))
    other.regressors = nn.ModuleList(model.regressors[i] for i in order)
    weight = model.head.linear.weight.unflatten(1, (3, 8))[:, order].flatten(1)  # type: ignore[union-attr]
    other.head.load_state_dict({"linear.weight": weight, "linear.bias": model.head.linear.bias})  # type: ignore[union-attr]
    swapped = batch.replace(inputs={f"m{i}": batch.inputs[f"m{i}"] for i in order})
    for m, b in ((model.eval(), batch), (other.eval(), swapped)):
        m.measure(m.encode(b.inputs), ~b.missing)
    assert_close_sums(other.dependency, model.dependency[order])
    ours, theirs = model(batch), other(swapped)
    assert_close_sums(theirs.extras["fusion_weights"], ours.extras["fusion_weights"][:, order])
    assert_close_sums(theirs.logits, ours.logits)


# ------------------------------------------------------------------------------------------------------------ the loss


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_the_loss_is_the_sum_of_its_terms(task: str) -> None:
    """Against loops over rows and modalities."""
    model = model_of(3, task=task, gamma=2.5, beta=0.01, weights_from=0, regressor_dropout=0.0)
    model.dependency.copy_(torch.tensor([1.0, 2, 3]))
    batch = batch_of(3, hide=True)
    if task == "multilabel":
        batch = batch.replace(target=torch.randint(-1, 2, (16, CLASSES), generator=generator(3)).float())
    torch.manual_seed(4)
    loss = model.training_step(batch, 0)
    model.dependency.copy_(torch.tensor([1.0, 2, 3]))
    torch.manual_seed(4)
    # Missing content takes no part in the batch normalisation.
    distributions = model.distributions(model.observed_inputs(batch), model.cells(batch.missing, batch.feature_missing))
    prediction = model.fuse(model.pooled(distributions), batch)
    assert batch.noise_level is not None

    def entropy(logits: Tensor, target: Tensor) -> float:
        if task == "multiclass":
            return -float(logits.detach().log_softmax(0)[target])
        terms = [F.binary_cross_entropy_with_logits(x, t) for x, t in zip(logits, target) if t >= 0]
        return float(torch.stack(terms).mean()) if terms else 0.0

    if task == "multiclass":
        expected = sum(entropy(x, t) for x, t in zip(prediction.logits, batch.target)) / 16
    else:
        labelled = batch.target >= 0
        expected = float(F.binary_cross_entropy_with_logits(prediction.logits[labelled], batch.target[labelled]))
    for m, (mean, log_variance) in enumerate(distributions.values()):
        rows = [b for b in range(16) if not batch.missing[b, m]]
        alone = [entropy(prediction.extras["unimodal_logits"][b, m], batch.target[b]) for b in rows]
        level = batch.noise_level[:, m]
        off = [float(prediction.extras["predicted_level"][b, m].detach() - level[b]) ** 2 for b in rows]
        assert log_variance is not None
        kl = [
            float(kl_divergence(Normal(mean[b], (0.5 * log_variance[b]).exp()), Normal(0.0, math.sqrt(level[b]))).sum())
            for b in rows
        ]
        expected += (2.5 * sum(alone) + 0.01 * sum(kl) + 0.1 * sum(off)) / len(rows)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_without_levels_all_is_clean_and_masks_are_stacked() -> None:
    model = model_of(3, regressor_dropout=0.0, masks=TrainingMasks("subsets", k=2))
    batch = batch_of(3).replace(noise_level=None)
    ones = batch.replace(noise_level=torch.ones(16, 3))
    torch.manual_seed(1)
    first = model.training_step(batch, 0)
    torch.manual_seed(1)
    assert torch.equal(model.training_step(ones, 0), first)
    torch.manual_seed(1)
    model.masks = TrainingMasks()
    assert not torch.equal(model.training_step(ones, 0), first)


@pytest.mark.parametrize("fusion", HEADS)
def test_every_head_is_trained(fusion: str) -> None:
    model = model_of(3, fusion=fusion, weights_from=0)
    for step in range(3):
        model.training_step(batch_of(3, seed=step), step).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert model.dependency.min() > 0


def test_ablations() -> None:
    batch = batch_of()
    plain: dict[str, Any] = {"estimator": False, "dependency": None, "probabilistic": False}
    for parts in ([], *([key] for key in plain), list(plain)):
        model = model_of(weights_from=0, **{key: plain[key] for key in parts})
        model.training_step(batch, 0).backward()
        model.eval()
        extras = model(batch).extras
        assert ("predicted_level" in extras) is ("estimator" not in parts)
        weights = extras["fusion_weights"]
        varying = bool(weights.std(0).max() > 1e-4)
        assert varying is ("estimator" not in parts)
        assert bool((weights == 1).all()) is ({"estimator", "dependency"} <= set(parts))
        assert any("log_variance" in name for name in model.state_dict()) is ("probabilistic" not in parts)
        assert bool(model.dependency.any()) is ("dependency" not in parts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": "film"}, "fusion=film: must be one of concat, sum, gated, bilinear"),
        ({"regressor_start": "zero"}, "regressor_start=zero: must be one of clean, random"),
        ({"gamma": -1.0}, "gamma=-1.0: must not be negative"),
        ({"max_deviation": {"m7": 2.0}}, "max_deviation.m7=2.0: specify positive bounds of m0, m1"),
        ({"dependency": Dependency(measure="L2")}, "dependency.measure=L2: must be removal or alone"),
        ({"dependency": Dependency(momentum=1.0)}, "dependency.momentum=1.0"),
        ({"dependency": Dependency(init=(1.0,))}, "specify 2 non-negative values"),
        ({"m": 3, "reference": True}, "reference has two values, specify 3"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_of(**options)


# ------------------------------------------------------------------------------------------- configuration and training


def context_of(dataset: str, modalities: Sequence[Modality], classes: int, *overrides: str) -> Run:
    cfg = configure("model=UDML", f"dataset={dataset}", *overrides)
    validate(cfg)
    context = Run(cfg)
    data: Any = SimpleNamespace(modalities=list(modalities), num_classes=classes, task="multiclass")
    context.__dict__["data"] = data
    return context


def test_the_released_configurations() -> None:
    """Counts measured on the release (docs/reference/udml.md §1.3), and its schedule."""
    sound = Modality("audio", "audio", (257, 188))
    with torch.device("meta"):
        context = context_of("CREMAD", [sound, Modality("visual", "video", (1, 3, 224, 224))], 6)
        model: Any = context.build()
        kinetics = context_of("KineticsSound", [sound, Modality("visual", "video", (3, 3, 224, 224))], 34).build()
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert counts["head"] == 6_150 and counts["regressors"] == 2 * 131_585
    assert counts["encoders"] + counts["gaussians"] == 11_697_600 + 11_703_872
    assert sum(counts.values()) == 23_670_792
    assert sum(p.numel() for p in kinetics.head.parameters()) == 34_850  # type: ignore[union-attr, operator]
    assert (model.gamma, model.beta, model.weights_from) == (4.0, 1e-5, 60)
    assert (kinetics.gamma, kinetics.beta) == (2.5, 0.0)
    training = context.cfg.model.training
    assert (training.max_epochs, training.gradient_clip_val, context.cfg.model.noise.start_epoch) == (100, 40.0, 50)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1e-3)
    schedule: Any = model._scheduler(optimizer)
    rates = []
    for _ in range(75):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[69] == pytest.approx(1e-3) and rates[70] == pytest.approx(1e-4)


class Weighting(pl.Callback):
    """What was active at the start of each epoch, and the greatest level of its first batch."""

    def __init__(self) -> None:
        self.active: list[list[bool]] = []
        self.noisy: list[bool] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_index: int) -> None:
        if batch_index == 0:
            assert batch.noise_level is not None
            self.noisy.append(bool(batch.noise_level.max() > 1))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.active.append(pl_module.active.tolist())


def test_stages_and_checkpoint(composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights set in with their epoch; the best epoch is none of the first stage; a reloaded model is the same."""
    from trainers import fit as fit_module

    watch, original = Weighting(), fit_module.build_trainer

    def watched(cfg: Any, **arguments: Any) -> pl.Trainer:
        return original(cfg, **{**arguments, "callbacks": [*arguments["callbacks"], watch]})

    monkeypatch.setattr(fit_module, "build_trainer", watched)
    overrides = ["model=UDML", "model.width=8", "model.training.max_epochs=5", "model.training.batch_size=16"]
    cfg = composed(
        *overrides, "dataset.training_defaults.schedule=cosine", "stages=[prepare,fit,test]", "missing.test=[none]"
    )
    assert (cfg.model.noise.start_epoch, cfg.model.module.weights_from) == (2, 3)
    pipeline.run(cfg)
    # The callback is called before the model, so that it sees what the epoch before had.
    assert watch.active == [[False, False]] * 4 + [[True, True]]
    assert watch.noisy == [False] * 2 + [True] * 3
    context = Run(cfg)
    saved = torch.load(context.fit_directory / "checkpoints" / "best.ckpt", weights_only=True)
    assert saved["epoch"] >= 3 and saved["state_dict"]["active"].all(), "the weights are in"
    last = torch.load(context.fit_directory / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert last["dependency"].min() > 0 and last["active"].all()
    model: Any = context.build()
    model.load_state_dict(saved["state_dict"])
    batch = next(iter(context.data.loader("test")))
    with np.load(context.directory / "predictions" / "none.npz") as tested, torch.no_grad():
        again = model.eval()(batch).logits.numpy()
        np.testing.assert_allclose(again, tested["logits"][batch.index], rtol=1e-5, atol=1e-5)
    # Each modality alone, as the release prints it beside the fused accuracy.
    results = pd.read_csv(context.directory / "results.csv").query("metric == 'accuracy'").set_index("model")["value"]
    assert list(results.index) == ["UDML", *(f"UDML/{name}" for name in context.data.modality_names)]
    for i, name in enumerate(context.data.modality_names):
        unimodal = again_unimodal(model, context, i)
        assert results[f"UDML/{name}"] == pytest.approx(unimodal)
        with np.load(context.directory / "predictions" / name / "none.npz") as alone:
            assert accuracy_score(alone["target"], alone["logits"].argmax(1)) == pytest.approx(unimodal)
    del last["dependency"]
    with pytest.raises(RuntimeError, match="dependency"):
        model.load_state_dict(last)


def again_unimodal(model: Any, context: Run, column: int) -> float:
    """Accuracy of the head on complete test data with the features of all modalities but one at 0."""
    right = rows = 0
    for batch in context.data.loader("test"):
        with torch.no_grad():
            encoded = model.encode(batch.inputs)
            _, weights, _ = model.weighted(encoded, torch.ones(encoded.shape[:2], dtype=torch.bool))
            features = torch.zeros_like(encoded[:, :, 0])
            features[:, column] = (1 + weights[:, column, None]) * encoded[:, column, 0]
            predicted = model.head.linear(features.flatten(1)).argmax(1)
        right, rows = right + int((predicted == batch.target).sum()), rows + len(batch)
    return right / rows


@pytest.mark.parametrize(("reference", "first"), [(False, 60), (True, 51)])
def test_the_first_epoch_that_can_be_the_best(reference: bool, first: int) -> None:
    """Release: clean epochs 0 to 49, and the best one is searched for epoch > 50."""
    cfg = compose_config("model=UDML", "dataset=CREMAD", f"model.module.reference={str(reference).lower()}")
    assert cfg.model.training.warmup_epochs == first and cfg.model.noise.start_epoch == 50
    noise = build_noise(cfg.model)
    assert max(after_clean_epochs(noise, 100), cfg.model.training.warmup_epochs) == first
    # Any other method on the same noisy data, of which the first noisy epoch is the last where there is one only.
    assert [after_clean_epochs(noise, epochs) for epochs in (100, 52, 51)] == [51, 51, 50]
    assert after_clean_epochs(None, 100) == after_clean_epochs(TrainingNoise(), 100) == 0


def test_no_complete_row_is_said(composed, caplog: pytest.LogCaptureFixture) -> None:
    cfg = composed("model=UDML", "model.width=8", "model.training.max_epochs=2", "missing.train=random_0.4")
    cfg.stages = ["prepare", "fit"]
    pipeline.run(cfg)
    assert "the dependency was never measured" in caplog.text


def test_training_settings_are_checked(composed) -> None:
    with pytest.raises(UserError, match=r"model.noise.start_epoch=3: training of model ends after 3 epochs"):
        validate(composed("model=UDML", "model.training.max_epochs=3", "model.noise.start_epoch=3"))
    with pytest.raises(UserError, match=r"gradient_clip_val=-1: must be a number at least 0"):
        validate(composed("model=UDML", "model.training.gradient_clip_val=-1"))


def test_curves_are_read_from_finished_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = []
    for seed in (0, 1):
        run = tmp_path / f"seed{seed}"
        runs.append(run)
        predicted = {"none": [1.5, 2.0], "noise_gaussian_6_a": [5.0, 2.0], "noise_gaussian_9_b": [1.5, 7.0]}
        levels = {"none": None, "noise_gaussian_6_a": [6, 1], "noise_gaussian_9_b": [1, 9]}
        predicted |= {"noise_gaussian_4_all": [4.0, 4.0], "noise_occlusion_4_a": [4.0, 1.0]}
        levels |= {"noise_gaussian_4_all": [4, 4], "noise_occlusion_4_a": [4, 1]}
        for name, values in predicted.items():
            wobble = np.array([[-0.1], [0.1]]) + seed
            weights = np.array([[0.5, 1.5]]) + 0 * wobble
            truth = {} if levels[name] is None else {"noise_level": np.tile(levels[name], (2, 1))}
            extras = {"fusion_weights": weights, "predicted_level": np.array([values]) + wobble}
            save_arrays(run / "predictions" / f"{name}.npz", extras)
            save_arrays(run / "masks" / f"{name}.npz", {"missing": np.zeros((2, 2), dtype=bool), **truth})
        OmegaConf.save(
            {"dataset": {"modalities": ["a", "b"]}, "seed": seed, "model": {"name": "UDML"}}, run / "config.yaml"
        )
        if seed == 0:
            (run / "DONE").touch()
    with pytest.raises(UserError, match="seed1 is no finished run"):
        curves.main([str(tmp_path / "out"), *map(str, runs)])
    (runs[1] / "DONE").touch()
    curves.main([str(tmp_path / "out"), *map(str, runs)])
    assert "rank_correlation" in capsys.readouterr().out and (tmp_path / "out" / "curves.png").stat().st_size > 10_000
    actual = pd.read_csv(tmp_path / "out" / "curves.csv")
    assert actual["rank_correlation"].min() > 0.85
    rows = [list(row) for row in actual.drop(columns=["rank_correlation", "n"]).itertuples(index=False)]
    assert rows == [
        *(["a", 1, 0, 0.5, 1.5], ["a", 6, 0, 0.5, 5.0], ["b", 1, 0, 1.5, 2.0], ["b", 9, 0, 1.5, 7.0]),
        *(["a", 1, 1, 0.5, 2.5], ["a", 6, 1, 0.5, 6.0], ["b", 1, 1, 1.5, 3.0], ["b", 9, 1, 1.5, 8.0]),
    ]
    long = read_results(tmp_path / "out" / "weights.csv").set_index(["model", "scenario", "seed", "metric"])["value"]
    assert len(long) == 8 * 3 and long["b", "9", 1, "predicted_level"] == 8.0 and long["a", "6", 0, "weight"] == 0.5
    with pytest.raises(UserError, match="usage"):
        curves.main(["out"])


# ------------------------------------------------------------------------------------------------------------ behaviour


WIDE = 64


def noisy_task(rows: int, levels: Tensor, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Two patterns of the class; noise of level l adds l - 1 times 0.3 deviations, 11 leaves nothing else."""
    g = generator(seed)
    patterns = torch.randn(2, CLASSES, WIDE, generator=generator(99))
    target = torch.randint(CLASSES, (rows,), generator=g)
    inputs = {}
    for m in range(2):
        level = levels[:, m, None]
        noise = torch.randn(rows, WIDE, generator=g) * 0.3 * (level - 1)
        inputs[f"m{m}"] = torch.where(level == 11, noise, patterns[m, target] + noise)
    return inputs, target


def test_destroyed_modalities_lose_weight() -> None:
    """Levels are predicted in their order, and the modality that is destroyed counts less than the other."""
    torch.manual_seed(0)
    views = [Modality(f"m{i}", "audio", (WIDE,)) for i in range(2)]
    # 32 numbers a modality, not 27,648: the divergence, which makes deviations follow the levels, needs more weight.
    options: dict[str, Any] = {"width": 32, "dependency": Dependency(), "weights_from": 6, "beta": 0.3}
    model = UDML(views, CLASSES, {v.name: Deep() for v in views}, **options)
    model.log_losses = lambda *_: None  # type: ignore[method-assign]
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
    rows = 1024
    levels = torch.randint(1, 12, (rows, 2), generator=generator(5)).float()
    levels[: rows // 2] = 1
    inputs, target = noisy_task(rows, levels, seed=1)
    whole = Batch(inputs, torch.zeros(rows, 2, dtype=torch.bool), target, torch.arange(rows), {}, levels, True)
    for epoch in range(12):
        model.set_epoch(epoch)
        for part in torch.randperm(rows, generator=generator(epoch)).split(64):
            batch = whole.replace(
                inputs={k: x[part] for k, x in inputs.items()},
                missing=whole.missing[part],
                target=target[part],
                index=part,
                noise_level=levels[part],
            )
            optimizer.zero_grad()
            model.training_step(batch, 0).backward()
            optimizer.step()
        schedule.step()
    model.eval()
    seen = torch.randint(1, 12, (1000, 2), generator=generator(6)).float()
    x, _ = noisy_task(1000, seen, seed=2)
    fresh = Batch(x, torch.zeros(1000, 2, dtype=torch.bool), target[:1000], torch.arange(1000), complete=True)
    predicted = model(fresh).extras["predicted_level"].detach()
    for m in range(2):
        assert spearmanr(predicted[:, m], seen[:, m]).statistic > 0.8
    half = torch.ones(1000, 2)
    half[:500, 0] = 11
    x, labels = noisy_task(1000, half, seed=3)
    prediction = model(fresh.replace(inputs=x))
    weights = prediction.extras["fusion_weights"][:500].mean(0)
    assert weights[0] < 1 < weights[1]
    assert (prediction.logits.argmax(1) == labels)[:500].float().mean() > 0.8


class Deep(nn.Module):
    """(B, 64) -> (B, 1, 32)."""

    width = 32

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDE, 64), nn.ReLU(), nn.Linear(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)[:, None]
