"""M3Care and MUSE against slow versions: loops over nodes and edges, in float64."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import IncompleteClassifier
from models.baselines.m3care import masked_batch_norm
from models.baselines.muse import drop_edges, supervised_contrast, unsupervised_contrast
from tests.contracts.test_baselines import VECTOR, build, some_batch, spoilt
from tests.tolerances import assert_close_sums
from trainers import run as pipeline
from trainers.loading import Run
from utils.noise import hash_seed
from utils.safe_pickle import read_tensors

SMALL = {
    "M3Care": [*VECTOR, "model.module.heads=2", "model.module.anchors=7"],
    "MUSE": [*VECTOR, "model.module.anchors=7"],
}


def made(method: str, *overrides: str) -> Any:
    """A method whose parameters and anchors are random, in float64."""
    torch.manual_seed(0)
    model = build(method, "PolyMNIST", *SMALL[method], *overrides).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d):
            norm.running_mean.normal_()  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]
    if method == "M3Care":  # some of the random rows are neighbours, some not
        model.threshold.data.fill_(-1.0)  # type: ignore[operator, union-attr]
    if len(model.anchors):  # type: ignore[arg-type]
        model.anchors.normal_()  # type: ignore[operator, union-attr]
        model.anchor_missing.copy_(torch.rand(7, 5) < 0.4)  # type: ignore[operator, union-attr]
        model.anchor_missing[3] = True  # type: ignore[index, operator]
    return model


def vectors(rows: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    h = torch.randn(rows, 5, 8, generator=generator, dtype=torch.float64)
    missing = torch.rand(rows, 5, generator=generator).argsort(1) < (torch.arange(rows) % 5)[:, None]
    return torch.where(missing[..., None], 0, h), missing


# -------------------------------------------------------------------------------------------------------------- M3Care


def norm_of(model: Any, k: int, x: Tensor) -> Tensor:
    """Vectors after the k-th normalisation, with its running statistics."""
    norm = model.kernel_norms[k]
    return (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * model.kernel_scale


def slow_similarity(model: Any, u: Tensor, there: Tensor, among: list[int]) -> Tensor:
    """S of all nodes; b over pairs of ``among``. ``u`` (2, M, N, D) is normalised."""
    n = there.shape[0]
    s = torch.zeros(n, n, dtype=torch.float64)
    threshold = 1 / (1 + math.exp(-float(model.threshold)))
    for i in range(n):
        for j in range(n):
            total, count = 0.0, 0
            for m in range(5):
                if not (there[i, m] and there[j, m]):
                    continue
                count += 1
                kernels = []
                for view in range(2):
                    pairs = [(a, b) for a in among for b in among if a != b and there[a, m] and there[b, m]]
                    parts = [float((u[view, m, a] - u[view, m, b]).square().sum()) for a, b in pairs]
                    b = sum(parts) / len(parts) if parts and sum(parts) / len(parts) >= 1e-3 else 1.0
                    d = float((u[view, m, i] - u[view, m, j]).square().sum())
                    kernels.append(sum(math.exp(-d / (c * b)) for c in (0.5, 1, 2)) / 3)
                share = 1 / (1 + math.exp(-float(model.kernel_mix[m])))
                total += (1 - share) * kernels[0] + share * kernels[1]
            value = total / count if count else 0.0
            s[i, j] = value if value > threshold else 0.0
    return s


def slow_convolution(model: Any, h: Tensor, s: Tensor) -> Tensor:
    """h (N, M, D); every node sees the nodes of its row of S, which is normalised."""
    for layer in range(2):
        new = torch.zeros_like(h)
        for i in range(len(h)):
            for m in range(h.shape[1]):
                total = torch.zeros(h.shape[2], dtype=h.dtype)
                for j in range(len(h)):
                    if s[i].sum() > 0:
                        total += s[i, j] / s[i].sum() * (h[j, m] @ model.graph_weights[layer, m])
                new[i, m] = F.selu(total + model.graph_biases[layer, m, 0])
        h = new
    return h


@torch.no_grad()
def test_m3care_learns_from_its_batch_in_training() -> None:
    model = made("M3Care").train()
    h, missing = vectors()
    present, hm = ~missing, h.transpose(0, 1)
    nodes = model.normalise(hm, model.project(hm), present)
    squared = (nodes[:, :, :, None] - nodes[:, :, None]).square().sum(-1)
    s = model.similarity(squared, present, present, model.bandwidth(squared, present))
    expected = slow_similarity(model, nodes, present, list(range(6)))
    torch.testing.assert_close(s, expected, atol=1e-8, rtol=1e-8)
    assert (s == 0).any() and (s > 0).sum() > 6
    slow = slow_convolution(model, h, expected).transpose(0, 1)
    torch.testing.assert_close(model.convolve(hm, s / s.sum(1, keepdim=True)), slow, atol=1e-8, rtol=1e-8)


@torch.no_grad()
def test_m3care_learns_from_the_anchors_in_prediction() -> None:
    """Each row in a graph of its own, with the anchors, who do not see it."""
    model = made("M3Care")
    h, missing = vectors()
    hm, present = h.transpose(0, 1), ~missing
    actual = model.convolve_from_anchors(hm, model.normalise(hm, model.project(hm), present), present)
    anchors = torch.where(model.anchor_missing[..., None], 0, model.anchors)
    for i in range(len(h)):
        every = torch.cat([anchors, h[i : i + 1]])
        everywhere = torch.cat([~model.anchor_missing, present[i : i + 1]])
        em = every.transpose(0, 1)
        u = torch.stack([*model.project(em), *em])
        u = torch.stack([norm_of(model, k, x) for k, x in enumerate(u)]).unflatten(0, (2, 5))
        s = slow_similarity(model, u, everywhere, list(range(7)))
        s[:7, 7] = 0
        assert s[7, 7] == pytest.approx(1) and (s[7, :7] == 0).any() and (s[7, :7] > 0).any()
        torch.testing.assert_close(slow_convolution(model, every, s)[7], actual[:, i], atol=1e-7, rtol=1e-7)


def test_m3care_normalises_observed_rows_as_a_library_does() -> None:
    torch.manual_seed(0)
    x, rows = torch.randn(9, 4) * 3 + 1, torch.rand(9) < 0.6
    ours, theirs = (nn.BatchNorm1d(4, affine=False).train() for _ in range(2))
    torch.testing.assert_close(masked_batch_norm(x, rows, ours)[rows], theirs(x[rows]))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    assert torch.isfinite(masked_batch_norm(x, torch.zeros(9, dtype=torch.bool), ours)).all()
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_m3care_as_the_original_recovers_a_constant_where_nobody_has_a_modality() -> None:
    """The finding of docs/reference/baselines.md §2.6: bias only. Ours draws masks per row, and predicts from training
    rows.
    """
    h, _ = vectors()
    missing = torch.zeros(6, 5, dtype=torch.bool)
    missing[:, 2] = True
    hm = torch.where(missing[..., None], 0, h).transpose(0, 1)
    spread = {}
    for reference in ("false", "true"):
        model = made("M3Care", f"model.module.reference={reference}")
        assert model.masks.per == {"true": "batch", "false": "row"}[reference]
        with torch.no_grad():
            nodes = model.normalise(hm, model.project(hm), ~missing)
            if reference == "true":
                squared = (nodes[:, :, :, None] - nodes[:, :, None]).square().sum(-1)
                s = model.similarity(squared, ~missing, ~missing, model.bandwidth(squared, ~missing))
                # One layer: a constant for all. (A second one scales it by the sums of S.)
                model.graph_weights.data = model.graph_weights.data[:1]
                imputed = model.convolve(hm, s)
            else:
                imputed = model.convolve_from_anchors(hm, nodes, ~missing)
        spread[reference] = float(imputed[2].std(0).max())
    assert spread["true"] == 0 and spread["false"] > 1e-4, spread


# ---------------------------------------------------------------------------------------------------------------- MUSE


def slow_graph(model: Any, e: Tensor, edges: Tensor) -> Tensor:
    """Message passing over a list of directed edges: nodes 0 .. B-1 are rows, B .. B+M-1 modalities."""
    b, m, width = e.shape
    x = torch.cat([torch.ones(b, width, dtype=e.dtype), model.modality_nodes])
    observed = [(i, j) for i in range(b) for j in range(m) if edges[i, j]]
    directed = [(b + j, i) for i, j in observed] + [(i, b + j) for i, j in observed]
    assert len(directed) == 2 * int(edges.sum())
    carried = [e[i, j] for i, j in observed] * 2
    for layer in range(2):
        new = []
        for node in range(b + m):
            got = [
                F.relu(model.messages[layer](torch.cat([x[source], carried[k]])))
                for k, (source, to) in enumerate(directed)
                if to == node
            ]
            mean = torch.stack(got).mean(0) if got else torch.zeros(width, dtype=e.dtype)
            new.append(F.relu(model.updates[layer](torch.cat([mean, x[node]]))))
        x = torch.stack(new)
        if layer == 0:
            carried = [
                F.relu(model.edge_updates[0](torch.cat([x[s], x[t], carried[k]]))) for k, (s, t) in enumerate(directed)
            ]
    return x[:b]


@torch.no_grad()
def test_muse_passes_messages_along_every_edge() -> None:
    model = made("MUSE")
    e, missing = vectors()
    actual, states = model.pass_messages(e, ~missing)
    assert_close_sums(actual, slow_graph(model, e, ~missing))
    assert len(states) == 2
    # Rows that read the states of other rows' modalities: as in the graph of those rows, without being seen by them.
    alone, _ = model.pass_messages(e[:2], ~missing[:2], states)
    assert_close_sums(alone, actual[:2])


def test_muse_drops_edges_in_the_shares_of_the_spec() -> None:
    """Measured on the reference (docs/reference/baselines.md §2.7): of five edges one to four are kept by 13 % each,
    five by 50 %.
    """
    torch.manual_seed(0)
    remaining = drop_edges(torch.ones(40_000, 5, dtype=torch.bool))
    shares = torch.bincount(remaining.sum(1), minlength=6) / 40_000
    torch.testing.assert_close(shares, torch.tensor([0, 0.125, 0.125, 0.125, 0.125, 0.5]), atol=0.01, rtol=0)
    torch.testing.assert_close(remaining.float().mean(0), torch.full((5,), 0.75), atol=0.01, rtol=0)
    some = torch.rand(2000, 5) < 0.4
    fewer = drop_edges(some)
    assert not (fewer & ~some).any() and torch.equal(fewer.any(1), some.any(1))


def test_muse_losses() -> None:
    generator = torch.Generator().manual_seed(1)
    u, v = (F.normalize(torch.randn(5, 4, generator=generator, dtype=torch.float64), dim=1) for _ in range(2))
    y, t = [0, 1, 0, 2, 1], 0.07
    unsupervised = supervised = 0.0
    for i in range(5):
        for a, b in ((u, v), (v, u)):
            denominator = sum(math.exp(float(a[i] @ b[j]) / t) for j in range(5))
            unsupervised -= math.log(math.exp(float(a[i] @ b[i]) / t) / denominator) / 5 / 2
        for j in range(5):
            for a, b in ((u, u), (u, u), (u, v), (v, u)):
                p = 1 / (1 + math.exp(-float(a[i] @ b[j]) / t))
                supervised -= math.log(p if y[i] == y[j] else 1 - p) / 25 / 4
    labels = torch.tensor(y)
    assert float(unsupervised_contrast(u, v, t)) == pytest.approx(unsupervised)
    assert float(supervised_contrast(u, v, labels[:, None] == labels, t)) == pytest.approx(supervised)
    model = made("MUSE").float().train()
    batch = some_batch("PolyMNIST")
    losses = model.loss(model(batch), batch)
    expected = losses["classification"] + 0.5 * losses["unsupervised"] + 0.5 * losses["supervised"]
    assert_close_sums(losses["loss"], expected)


# ------------------------------------------------------------------------------------------------------------- anchors


@pytest.mark.parametrize("method", SMALL)
def test_predictions_depend_on_anchors_and_not_on_the_batch(method: str) -> None:
    h, missing = vectors()
    batch = some_batch("PolyMNIST", rows=6).replace(missing=missing)

    def logits(model: IncompleteClassifier, rows: slice) -> Tensor:
        part = batch.replace(missing=missing[rows], target=batch.target[rows], index=batch.index[rows])
        with torch.no_grad():
            return model.fuse(h[rows], part).logits  # type: ignore[operator]

    for reference in (False, True):
        model = made(method, f"model.module.reference={str(reference).lower()}")
        assert bool(model.batch_dependent) is reference and len(model.anchors) == (0 if reference else 7)
        whole, part = logits(model, slice(0, 6))[:3], logits(model, slice(0, 3))
        assert torch.allclose(whole, part, atol=1e-10) is not reference
        if not reference:
            model.anchors += 1
            assert not torch.allclose(logits(model, slice(0, 3)), part, atol=1e-4)


@pytest.mark.parametrize("method", SMALL)
def test_results_of_a_prediction_that_sees_its_batch_are_of_one_batch_size(composed: Any, method: str) -> None:
    """A test with another size of batches is another test, where that moves numbers, and the same one elsewhere."""

    def settings(*overrides: str) -> dict[str, Any]:
        context = Run(composed(f"model={method}", *overrides))
        context.__dict__["data"] = SimpleNamespace(store=SimpleNamespace(meta=dict))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("trainers.artefacts.file_hash", str)
            return context.test_settings

    reference, smaller = "model.module.reference=true", "dataset.test_batch_size=7"
    assert settings(reference) != settings(reference, smaller)
    assert settings() == settings(smaller)


@pytest.mark.parametrize("method", SMALL)
def test_anchors_are_training_rows_as_the_kept_weights_encode_them(composed: Any, method: str) -> None:
    overrides = [
        *SMALL[method],
        "model.training.batch_size=16",
        "model.training.max_epochs=2",
        "missing.train=random_0.4",
    ]
    cfg = composed(f"model={method}", *overrides, "stages=[fit]", "seed=3")
    pipeline.run(cfg)
    context = Run(cfg)
    model: Any = context.load_model()
    rows = np.sort(np.random.default_rng(hash_seed(3, 6)).permutation(60)[:7])
    missing, _ = context.data.masks("train", context.data.missing_train)
    batch = context.data.rows("train", rows).replace(missing=torch.from_numpy(missing[rows]))
    assert batch.missing.any() and torch.equal(model.anchor_missing, batch.missing)
    with torch.no_grad():
        assert_close_sums(model.encode_batch(batch), model.anchors)
    assert set(read_tensors(context.checkpoint)["state_dict"]) >= {"anchors", "anchor_missing"}


@pytest.mark.parametrize("method", SMALL)
def test_what_is_missing_counts_for_nothing_in_the_original_either(method: str) -> None:
    model = made(method, "model.module.reference=true").float()
    model.log_losses = lambda *_: None
    batch = some_batch("PolyMNIST")
    actual = []
    for value in (0.3, math.nan):
        changed = spoilt(model, batch, value)
        with torch.no_grad():
            logits = model.eval()(changed).logits
        torch.manual_seed(1)
        actual.append((logits, model.train().training_step(changed, 0).detach()))
        model.load_state_dict(made(method, "model.module.reference=true").float().state_dict())
    assert torch.equal(actual[0][0], actual[1][0]) and torch.equal(actual[0][1], actual[1][1])
    assert torch.isfinite(actual[0][1])


@torch.no_grad()
def test_the_reference_of_m3care_updates_its_shared_statistic_modality_by_modality() -> None:
    """Projected, raw, projected, raw ...: the last update weighs most, so that the order shows."""
    model = made("M3Care", "model.module.reference=true").train()
    norm = model.kernel_norms[0]
    h, missing = vectors()
    hm = h.transpose(0, 1)
    projected = model.project(hm)
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    for m in range(5):
        for x in (projected[m], hm[m]):
            mean = 0.9 * mean + 0.1 * x.mean(0)
            variance = 0.9 * variance + 0.1 * x.var(0)
    nodes = model.normalise(hm, projected, ~missing)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    for kind, parts in enumerate((projected, hm)):
        for m in range(5):
            x = parts[m]
            expected = (x - x.mean(0)) / (x.var(0, correction=0) + norm.eps).sqrt() * model.kernel_scale
            assert_close_sums(nodes[kind, m], expected)
