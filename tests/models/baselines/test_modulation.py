"""OGM-GE: coefficients against the closed form, gradients of a step, whole runs; the sum fusion that it also serves."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.baselines.concat import MultimodalConcat
from models.baselines.modulation import GradientModulation, coefficients, modulate, unimodal_scores
from trainers import run as pipeline
from trainers.config.validate import validate
from trainers.loading import Run
from utils.errors import UserError
from utils.safe_pickle import read_tensors

quick = settings(max_examples=30, deadline=None)
VIEWS = [Modality(name, "table", (5,)) for name in ("a", "b", "c")]


class Vector(nn.Module):
    """(B, 5) -> (B, 1, 4): a linear layer, a norm with weights of one dimension."""

    width, tokens = 4, 1

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)[:, None]


def model_of(m: int, fusion: str = "concat") -> MultimodalConcat:
    torch.manual_seed(0)
    return MultimodalConcat(VIEWS[:m], 3, {v.name: Vector() for v in VIEWS[:m]}, fusion=fusion)


def batch_of(m: int, n: int = 12) -> Batch:
    torch.manual_seed(1)
    inputs = {v.name: torch.randn(n, 5) * (i + 1) for i, v in enumerate(VIEWS[:m])}
    return Batch(inputs, torch.zeros(n, m, dtype=torch.bool), torch.arange(n) % 3, torch.arange(n), complete=True)


def test_coefficients_of_two_modalities_are_those_of_the_paper() -> None:
    """rho_a = s_a / s_b; 1 - tanh(alpha rho) where it is above 1, else 1."""
    a, b = coefficients(torch.tensor([6.0, 2.0]), 0.3).tolist()
    assert a == pytest.approx(1 - math.tanh(0.3 * 3)) and b == 1
    assert coefficients(torch.tensor([2.0, 2.0]), 0.3).tolist() == [1, 1]
    assert coefficients(torch.tensor([6.0, 2.0]), 0.0).tolist() == [1, 1]
    assert coefficients(torch.tensor([6.0, 0.0]), 0.1).tolist() == [0, 1]
    assert coefficients(torch.tensor([6.0]), 0.1).tolist() == [1]
    three = coefficients(torch.tensor([6.0, 3.0, 1.0]), 0.2).tolist()
    assert three == [pytest.approx(1 - math.tanh(0.2 * 3)), 1, 1]


@quick
@given(st.lists(st.integers(1, 500), min_size=2, max_size=5, unique=True), st.floats(0, 2), st.randoms())
def test_coefficients_slow_down_who_leads_and_follow_a_permutation(
    scores: list[int], alpha: float, random: Any
) -> None:
    s = torch.tensor(scores, dtype=torch.float64)
    # The step at a ratio of 1 is the paper's: what falls on it is not asked about.
    assume(((s - (s.sum() - s) / (len(s) - 1)).abs() > 1e-6).all())
    k = coefficients(s, alpha)
    assert ((k >= 0) & (k <= 1)).all() and k[s.argmin()] == 1
    order = random.sample(range(len(scores)), len(scores))
    assert torch.allclose(coefficients(s[order], alpha), k[order])
    assert torch.allclose(coefficients(s * 4, alpha), k)


@pytest.mark.parametrize("fusion", ["concat", "sum"])
def test_shares_of_the_logits_add_up_to_them(fusion: str) -> None:
    model, batch = model_of(3, fusion).eval(), batch_of(3)
    prediction = model(batch)
    shares = model.unimodal_logits(prediction.features)
    assert shares.shape == (12, 3, 3) and torch.allclose(shares.sum(1), prediction.logits, atol=1e-5)
    vectors = {name: encoder(batch.inputs[name])[:, 0] for name, encoder in model.encoders.items()}
    for i, (name, vector) in enumerate(vectors.items()):
        if fusion == "sum":
            expected = model.classifier[i](vector)
        else:  # the slice of the weights that meets this modality, and a third of the bias
            expected = vector @ model.classifier.weight[:, 4 * i : 4 * i + 4].T + model.classifier.bias / 3
        assert torch.allclose(shares[:, i], expected, atol=1e-5), name
    absent = batch.replace(missing=torch.tensor([[False, True, False]]).expand(12, 3))
    absent.inputs["b"] = torch.full((12, 5), float("nan"))
    without = shares[:, [0, 2]].sum(1) + (0 if fusion == "sum" else model.classifier.bias / 3)
    assert torch.allclose(model(absent).logits, without, atol=1e-5)


def test_scores_are_probabilities_of_the_targets_on_complete_rows() -> None:
    model, batch = model_of(2).eval(), batch_of(2)
    missing = torch.zeros(12, 2, dtype=torch.bool)
    missing[3, 0] = True
    prediction = model(batch)
    shares, expected = model.unimodal_logits(prediction.features), torch.zeros(2)
    for row in range(12):
        if row != 3:
            for i in range(2):
                expected[i] += shares[row, i].exp()[batch.target[row]] / shares[row, i].exp().sum()
    assert torch.allclose(unimodal_scores(model, prediction, batch.replace(missing=missing)), expected, atol=1e-5)


def test_gradients_are_multiplied_and_noise_has_their_deviation() -> None:
    model, batch = model_of(2), batch_of(2)
    model.loss(model(batch), batch)["loss"].backward()
    before = {n: p.grad.clone() for n, p in model.named_parameters()}
    factors = torch.tensor([0.25, 1.0])
    modulate(model.encoders, ["a", "b"], factors)
    for name, p in model.named_parameters():
        weight = name.startswith("encoders.a.") and p.ndim > 1
        assert torch.equal(p.grad, before[name] * (0.25 if weight else 1)), name
    big = nn.ModuleDict({"a": nn.Linear(300, 300), "b": nn.Linear(300, 300)})
    for p in big.parameters():
        p.grad = 0.02 + 0.01 * torch.randn(p.shape)
    old = copy.deepcopy({n: p.grad for n, p in big.named_parameters()})
    modulate(big, ["a", "b"], factors, torch.Generator().manual_seed(0))
    noise = [big[n].weight.grad - k * old[f"{n}.weight"] for n, k in zip("ab", factors)]
    for added in noise:
        assert added.std() == pytest.approx(0.01, rel=0.02) and abs(added.mean()) < 2e-4
    assert torch.equal(big["a"].bias.grad, old["a.bias"])


RUN = [
    *("model=Multimodal_CONCAT", "stages=[prepare,fit]", "model.use_imputer=false", "missing.test=[none]"),
    *("model.training.batch_size=30", "model.training.max_epochs=2", "model.vector_width=16"),
]


def test_a_run_slows_down_the_leading_view(composed, monkeypatch: pytest.MonkeyPatch) -> None:
    """The factors that a run uses are those of its own batches; without any effect of alpha the weights are the plain
    run's, with one they are others; epochs outside its span are untouched."""
    seen: list[tuple[Tensor, Tensor]] = []
    original = GradientModulation.on_before_optimizer_step

    def recording(self, trainer, module, optimizer):  # type: ignore[no-untyped-def]
        scores, before = self.scores.clone(), module.encoders["m0"].state_dict()
        gradients = [p.grad.clone() for p in module.encoders["m0"].parameters()]
        original(self, trainer, module, optimizer)
        after = [p.grad for p in module.encoders["m0"].parameters()]
        factor = coefficients(scores, self.alpha)[0] if trainer.current_epoch == 1 else torch.tensor(1.0)
        for a, b in zip(gradients, after):
            assert torch.allclose(a * (factor if a.ndim > 1 else 1), b)
        seen.append((scores, before))

    monkeypatch.setattr(GradientModulation, "on_before_optimizer_step", recording)
    weights = {}
    for name, node in {
        "plain": "null",
        "idle": "{alpha: 0, enhancement: false}",
        "half": "{alpha: 0.5, enhancement: false, start_epoch: 1}",
    }.items():
        seen.clear()
        cfg = composed(*RUN, f"name={name}", f"model.modulation={node}", "model.module.fusion=sum")
        pipeline.run(cfg)
        assert len(seen) == (0 if name == "plain" else 4)
        weights[name] = read_tensors(Run(cfg).fit_directory / "checkpoints" / "last.ckpt")["state_dict"]
    keys = [k for k in weights["plain"] if k.startswith("encoders.")]
    assert all(torch.equal(weights["plain"][k], weights["idle"][k]) for k in keys)
    assert not all(torch.equal(weights["plain"][k], weights["half"][k]) for k in keys)


def test_settings_and_refusals(composed) -> None:
    assert "modulation" not in Run(composed(*RUN)).fit_settings["model"]
    assert Run(composed(*RUN, "model.modulation={alpha: 0.1}")).fit_settings["model"]["modulation"] == {"alpha": 0.1}
    for node, message in (
        ("{alfa: 1}", r"model\.modulation\.alfa: there is no such key, known are alpha"),
        ("{alpha: -1}", r"model\.modulation\.alpha=-1: must be 0 or more"),
        ("{start_epoch: 3, end_epoch: 3}", "must be at least 0 and below end_epoch=3"),
        ("0.3", r"model\.modulation=0\.3: must be null or a mapping"),
    ):
        with pytest.raises(UserError, match=message):
            validate(composed(*RUN, f"model.modulation={node}"))
    with pytest.raises(ValueError, match="fusion=product: must be concat or sum"):
        model_of(2, "product")
