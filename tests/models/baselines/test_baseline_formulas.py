"""The core formulas of MTL, MAP, QMF, PDF, DynMM and the controls, against closed forms and slow versions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

from datasets.batch import Batch
from models.base import IncompleteClassifier
from models.baselines.concat import MultimodalConcat
from models.baselines.dynmm import straight_through
from models.baselines.mtl import hide_from_class_token
from models.baselines.pdf import holo_confidence, relative_calibration
from models.baselines.qmf import confidence, normalised, rank_loss
from models.completed import Completed
from models.imputers.simple import Zero
from tests.contracts.test_baselines import FAMILIES, SMALL_ENCODERS, TOKENS, VECTOR, build, some_batch
from trainers.config.validate import validate
from utils.subsets import enumerate_subsets, mask_code

# The random networks have logits up to 10^5, and the slow versions sum in other orders than the kernels.
pytestmark = pytest.mark.usefixtures("float64")


def random_model(method: str, family: str = "PolyMNIST", *overrides: str) -> Any:
    torch.manual_seed(0)
    model = build(method, family, *(TOKENS if method in ("MTL", "MAP") else VECTOR), *overrides)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.log_losses = lambda *_: None  # type: ignore[method-assign]
    return model


def whole(batch: Batch) -> Batch:
    return batch.replace(missing=torch.zeros_like(batch.missing), feature_missing={}, complete=True)


# ------------------------------------------------------------------------------------------------------------ MTL, MAP


def attend(block: Any, x: Tensor, extra: Tensor | None = None, prefix: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """A block on one row (N, D), head by head; ``extra`` (N, N) is added to the scores, ``prefix`` precedes k and v."""
    width, heads = x.shape[1], block.attn.heads
    normed = F.layer_norm(x, (width,), block.norm1.weight, block.norm1.bias)
    q, k, v = (normed @ w.T for w in block.attn.qkv.weight.split(width))
    if prefix:
        k, v = torch.cat([prefix[0], k]), torch.cat([prefix[1], v])
    size, parts = width // heads, []
    for h in range(heads):
        piece = slice(h * size, (h + 1) * size)
        scores = q[:, piece] @ k[:, piece].T / math.sqrt(size)
        parts.append((scores if extra is None else scores + extra).exp().nan_to_num())
        parts[-1] = parts[-1] / parts[-1].sum(1, keepdim=True) @ v[:, piece]
    x = x + torch.cat(parts, 1) @ block.attn.proj.weight.T + block.attn.proj.bias
    return x + block.mlp(F.layer_norm(x, (width,), block.norm2.weight, block.norm2.bias))


def contents(model: Any, batch: Batch, row: int, value: float) -> Tensor:
    """(P, D) tokens of a row of PolyMNIST before the transformer, ``value`` as content of missing modalities."""
    parts = []
    for i, name in enumerate(model.modality_names):
        tokens = model.m_norms[i](model.m_projection[name](model.encoders[name](batch.inputs[name][row : row + 1])))[0]
        tokens = torch.full_like(tokens, value) if batch.missing[row, i] else tokens
        parts.append(tokens + model.modality_embeddings.weight[i] + model.pos_embeddings[0, 1 + 4 * i : 5 + 4 * i])
    return torch.cat(parts)


def pattern(missing: Tensor) -> int:
    """Place of a row's pattern among the non-empty subsets, by size and then lexicographically."""
    present = tuple(i for i, absent in enumerate(missing.tolist()) if not absent)
    m = len(missing)
    return [s for size in range(1, m + 1) for s in itertools.combinations(range(m), size)].index(present)


def test_mtl_against_a_slow_version() -> None:
    """Each pattern has its class token, which alone does not see the tokens of missing modalities, in every layer."""
    model, batch = random_model("MTL").eval(), some_batch("PolyMNIST")
    assert sorted(model.patterns[mask_code(enumerate_subsets(5))].tolist()) == list(range(31))
    with torch.inference_mode():
        for row, logits in enumerate(model(batch).logits):
            cls = model.cls_token[pattern(batch.missing[row]), 0] + model.pos_embeddings[0, 0]
            x = torch.cat([cls[None], contents(model, batch, row, 0.0)])
            hidden = torch.zeros(21, 21)
            hidden[0, 1:] = torch.where(batch.missing[row].repeat_interleave(4), -1e9, 0)
            for block in model.transformer:
                x = attend(block, x, hidden)
            torch.testing.assert_close(model.classifier(x[0]), logits)
    seen = hide_from_class_token(torch.tensor([[True, False, True]]))
    assert seen.tolist() == [[[True, False, True], [True] * 3, [True] * 3]]


def test_mtl_trains_on_every_pattern_alike() -> None:
    """One call of the encoders for 31 patterns, and the mean of 31 losses on inputs that lack what is missing."""
    model, batch = random_model("MTL"), whole(some_batch("PolyMNIST"))
    calls = []
    model.encoders["m0"].register_forward_hook(lambda *_: calls.append(1))
    loss = model.training_step(batch, 0)
    assert len(calls) == 1
    parts = []
    for mask in enumerate_subsets(5):
        masked = batch.replace(missing=mask.expand(12, -1))
        parts.append(F.cross_entropy(model(masked).logits, batch.target))
    torch.testing.assert_close(loss, torch.stack(parts).mean())


@pytest.mark.parametrize("kind", ["input", "attention"])
def test_map_against_a_slow_version(kind: str) -> None:
    """Prompts of the row's pattern before everything else, block after block, and the class token behind them all."""
    model = random_model("MAP", "PolyMNIST", "model.module.length=6", f"model.module.prompts={kind}").eval()
    batch = some_batch("PolyMNIST")
    lengths = []
    model.transformer[-1].norm1.register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    with torch.inference_mode():
        logits = model(batch).logits
        assert lengths == [1 + 20 + (2 * 6 if kind == "input" else 0)]
        for row in range(12):
            prompts = model.prompts[pattern(batch.missing[row])]
            x = torch.cat([(model.cls_token + model.pos_embeddings[:, :1])[0], contents(model, batch, row, 1.0)])
            for depth, block in enumerate(model.transformer):
                if kind == "input":
                    x = attend(block, torch.cat([prompts[depth], x]))
                else:
                    x = attend(block, x, prefix=(prompts[depth, :3], prompts[depth, 3:]))
            place = 2 * 6 if kind == "input" else 0
            torch.testing.assert_close(model.classifier(x[place]), logits[row])


def test_map_says_what_is_wrong() -> None:
    for bad in ("prompts=prefix", "depth=3", "length=0", "{prompts:attention,length:5}"):
        overrides = bad.strip("{}").replace(":", "=").split(",")
        with pytest.raises(Exception, match="prompts must be one of input, attention"):
            build("MAP", "PolyMNIST", *TOKENS, *(f"model.module.{o}" for o in overrides))


@pytest.mark.parametrize("method", ["MTL", "MAP"])
def test_the_modality_index_of_the_original_is_restored(method: str) -> None:
    fixed, original = (random_model(method, "MST", f"model.module.reference={r}").eval() for r in ("false", "true"))
    original.load_state_dict(fixed.state_dict())
    batch = some_batch("MST")
    with torch.inference_mode():
        assert not torch.allclose(fixed(batch).logits, original(batch).logits)
        fixed.modality_embeddings.weight[2] = fixed.modality_embeddings.weight[1]
        torch.testing.assert_close(fixed(batch).logits, original(batch).logits)


# ----------------------------------------------------------------------------------------------------------------- QMF


def test_confidence_is_the_negative_energy() -> None:
    assert confidence(torch.zeros(10)) == pytest.approx(math.log(10) / 10)
    assert confidence(torch.tensor([1.0, 2.0, 3.0])) == pytest.approx(math.log(math.e + math.e**2 + math.e**3) / 10)
    assert confidence(torch.tensor([1000.0, 0.0])) == pytest.approx(100)


def test_rank_loss_has_the_values_of_the_spec() -> None:
    """docs/reference/baselines.md §2.12: hardness 1 and 0; confidence of the harder row ahead by 0, 0.5, 2. The pair
    counts once with each sign (two rows, rolled), and the other one, t = -1, gives the same."""
    hardness = torch.tensor([[1.0], [0.0]])
    pair = torch.ones(2, 1, dtype=torch.bool)
    for ahead, slack, margin in ((0, 0, 1), (0.5, 0, 1.5), (2, 1, 3), (-2, 0, 0)):
        w = torch.tensor([[float(ahead)], [0.0]])
        assert rank_loss(w, hardness, pair, margin=False) == pytest.approx(slack)
        assert rank_loss(w, hardness, pair, margin=True) == pytest.approx(margin)
    assert rank_loss(torch.tensor([[3.0], [0.0]]), torch.ones(2, 1), pair, margin=True) == 0


@pytest.mark.parametrize("margin", [False, True])
def test_rank_loss_against_a_loop(margin: bool) -> None:
    rng = np.random.default_rng(0)
    w, k, counts = rng.normal(size=(9, 3)), rng.random((9, 3)).round(1), rng.random((9, 3)) < 0.7
    expected = 0.0
    for m in range(3):
        values = []
        for i in range(9):
            j = (i + 1) % 9
            if counts[i, m] and counts[j, m]:
                t, d = np.sign(k[i, m] - k[j, m]), abs(k[i, m] - k[j, m])
                values.append(max(0, t * (w[i, m] - w[j, m]) + (d if margin else -d)))
        expected += np.mean(values)
    actual = rank_loss(*map(torch.from_numpy, (w, k, counts)), margin=margin)
    assert float(actual) == pytest.approx(expected)


def test_the_history_is_normalised_over_the_rows_that_were_seen() -> None:
    history = torch.tensor([[0.0, 0.0], [2.0, 0.0], [3.0, 0.0], [6.0, 0.0]])
    assert normalised(history, only_visited=True)[:, 0].tolist() == [0, 0, 0.25, 1]
    torch.testing.assert_close(normalised(history, only_visited=False)[:, 0], torch.tensor([0, 1 / 3, 1 / 2, 1]))
    assert not normalised(history, True)[:, 1].any()  # nothing seen yet: no rank, and no NaN


@pytest.mark.parametrize("reference", [False, True])
def test_qmf_step_by_hand(reference: bool) -> None:
    """Two visits of a batch: the history, and the loss with it, from each modality's own logits."""
    model = random_model("QMF", "PolyMNIST", f"model.module.reference={str(reference).lower()}")
    batch = some_batch("PolyMNIST").replace(index=torch.arange(12) * 2)
    model.memory = torch.zeros(30, 5)
    encoded = torch.cat([model.encoders[n](batch.inputs[n]) for n in model.modality_names], 1)
    counts = ~batch.missing | reference
    f = []
    for i in range(5):
        vectors = torch.where(batch.missing[:, i, None], 1.0, encoded[:, i])
        f.append(model.classifiers[i](vectors))
    ce = torch.stack([F.cross_entropy(x, batch.target, reduction="none") for x in f], 1)
    w = torch.stack([x.exp().sum(1).log() / 10 for x in f], 1)
    fused = sum((w[:, i, None] * counts[:, i, None]).detach() * f[i] for i in range(5))
    for visit in (1, 2):
        loss = model.training_step(batch, 0)
        history = torch.zeros(30, 5)
        history[::2][:12] = visit * ce.detach() * counts
        history[24:] = 0
        torch.testing.assert_close(model.memory, history)
        expected = F.cross_entropy(fused, batch.target)
        for i in range(5):
            expected = expected + ce[counts[:, i], i].mean()
            seen = history[:, i] if reference else history[:, i][history[:, i] > 0]
            k = (history[::2][:12, i] - seen.min()) / (seen.max() - seen.min())
            pairs = []
            for a in range(12):
                b = (a + 1) % 12
                if counts[a, i] and counts[b, i]:
                    d = (k[a] - k[b]).abs() * (-1 if reference else 1)
                    pairs.append(torch.relu(torch.sign(k[a] - k[b]) * (w[a, i] - w[b, i]) + d))
            expected = expected + torch.stack(pairs).mean()
        torch.testing.assert_close(loss, expected)
        heads = list(model.classifiers.parameters())
        for a, b in zip(*(torch.autograd.grad(x, heads, retain_graph=True) for x in (loss, expected)), strict=True):
            torch.testing.assert_close(a, b)
    before = model.memory.clone()
    model.eval()
    model.validation_step(batch, 0)
    assert torch.equal(model.memory, before)


def test_qmf_remembers_items_not_the_rows_that_pairs_drawn_anew_put_them_in() -> None:
    """The same items in other rows: each modality's history stays with its item, and the ranking reads it there."""
    model = random_model("QMF", "PolyMNIST")
    batch = some_batch("PolyMNIST").replace(index=torch.arange(12), missing=torch.zeros(12, 5, dtype=torch.bool))
    model.memory = torch.zeros(12, 5)
    perm = torch.stack([torch.randperm(12, generator=torch.Generator().manual_seed(i)) for i in range(5)], 1)
    inputs = {name: x[perm[:, i]] for i, (name, x) in enumerate(batch.inputs.items())}
    target = torch.zeros_like(batch.target)
    same_class = batch.replace(target=target)
    model.training_step(same_class, 0)
    once = model.memory.clone()
    loss = model.training_step(same_class.replace(inputs=inputs, sources=perm), 0)
    torch.testing.assert_close(model.memory, 2 * once)
    hardness = (once - once.amin(0)) / (once.amax(0) - once.amin(0))
    shown = torch.stack([hardness[perm[:, i], i] for i in range(5)], 1)
    prediction = model(same_class.replace(inputs=inputs))
    f = prediction.extras["unimodal_logits"]
    ce = F.cross_entropy(f.flatten(0, 1), target.repeat_interleave(5), reduction="none").view(12, 5)
    expected = F.cross_entropy(prediction.logits, target) + ce.mean(0).sum()
    w = f.logsumexp(-1) / 10
    for a in range(12):
        b = (a + 1) % 12
        d = shown[a] - shown[b]
        expected = expected + torch.relu(d.sign() * (w[a] - w[b]) + d.abs()).sum() / 12
    torch.testing.assert_close(loss, expected)


# ----------------------------------------------------------------------------------------------------------------- PDF


def slow_weights(c: np.ndarray, p: np.ndarray, there: np.ndarray, test: bool) -> np.ndarray:
    """PDF's weights of one row in float64, over the modalities that are there."""
    weights, rows = np.zeros(len(c)), np.flatnonzero(there)
    logs = {m: math.log(c[m]) for m in rows}
    du = {m: np.abs(p[m] - 1 / p.shape[1]).mean() for m in rows}
    for m in rows:
        others = [j for j in rows if j != m]
        belief = c[m] + sum(logs[j] for j in others) / sum(logs.values())
        if test:
            belief *= min(1.0, len(others) * du[m] / sum(du[j] for j in others)) if others else 0
        weights[m] = math.exp(belief)
    return weights / weights.sum()


@pytest.mark.parametrize("test", [False, True])
def test_pdf_against_a_slow_version(test: bool) -> None:
    model, batch = random_model("PDF").train(not test), some_batch("PolyMNIST")
    for i, head in enumerate(model.classifiers):
        head.weight.data *= 3 * i
    prediction = model(batch)
    extras = prediction.extras
    c, f, w = (extras[key].detach() for key in ("mono_confidence", "unimodal_logits", "fusion_weights"))
    torch.testing.assert_close(w.sum(1), torch.ones(12))
    assert not w[batch.missing].any() and (w[~batch.missing] > 0).all() and w.std() > 0.05
    for row in range(12):
        present = ~batch.missing[row].numpy()
        expected = slow_weights(*(x[row].double().numpy() for x in (c, f.softmax(-1))), present, test)
        np.testing.assert_allclose(w[row].numpy(), expected)
    torch.testing.assert_close(prediction.logits, torch.einsum("bm,bmc->bc", w, f))
    truth = f.softmax(-1)[torch.arange(12), :, batch.target]
    present = ~batch.missing
    expected = F.cross_entropy(prediction.logits, batch.target)
    for i in range(5):
        rows = present[:, i]
        expected = expected + F.cross_entropy(f[rows, i], batch.target[rows]) + (c - truth)[rows, i].abs().mean()
    torch.testing.assert_close(model.loss(prediction, batch)["loss"], expected)


def test_pdf_confidences() -> None:
    voters = torch.rand(50, 4, generator=torch.Generator().manual_seed(0)) < 0.6
    voters[:, 0] = True
    logs = F.logsigmoid(torch.randn(50, 4, generator=torch.Generator().manual_seed(1)) * 4)
    holo = torch.where(voters, holo_confidence(logs, voters), 0)
    torch.testing.assert_close(holo.sum(1), voters.sum(1) - 1.0)
    # All certain: log c is 0, and so is their sum.
    assert not holo_confidence(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)).any()
    # Two modalities: the paper's min(1, DU_m / DU_n).
    p = torch.randn(50, 2, 10, generator=torch.Generator().manual_seed(2)).softmax(-1)
    uneven = (p - 0.1).abs().mean(-1)
    expected = torch.stack([uneven[:, 0] / uneven[:, 1], uneven[:, 1] / uneven[:, 0]], 1).clamp(max=1)
    torch.testing.assert_close(relative_calibration(p, torch.ones(50, 2, dtype=torch.bool)), expected)


def test_pdf_predicts_confidence_without_touching_the_rest() -> None:
    model, batch = random_model("PDF"), some_batch("PolyMNIST")
    losses = model.loss(model(batch), batch)
    remainder = [p for n, p in model.named_parameters() if not n.startswith("confidences")]
    networks = list(model.confidences.parameters())
    assert all(
        g is None for g in torch.autograd.grad(losses["confidence"], remainder, allow_unused=True, retain_graph=True)
    )
    others = torch.autograd.grad(losses["fused"] + losses["unimodal"], networks, allow_unused=True, retain_graph=True)
    assert all(g is None for g in others)
    assert all(g.any() for g in torch.autograd.grad(losses["confidence"], networks))


@pytest.mark.parametrize("method", ["QMF", "PDF"])
def test_reference_lets_missing_modalities_vote(method: str) -> None:
    fixed, original = (random_model(method, "MST", f"model.module.reference={r}").eval() for r in ("false", "true"))
    original.load_state_dict(fixed.state_dict())
    batch = some_batch("MST")
    with torch.inference_mode():
        a, b = fixed(batch), original(batch)
        some = batch.missing.any(1)
        torch.testing.assert_close(a.logits[~some], b.logits[~some])
        assert not torch.isclose(a.logits[some], b.logits[some]).all(1).any()
        assert not a.extras["fusion_weights"][batch.missing].any()
        constant = fixed.classifiers[1](torch.ones(8))
        for row in batch.missing[:, 1].nonzero()[:, 0]:
            torch.testing.assert_close(b.extras["unimodal_logits"][row, 1], constant)


# --------------------------------------------------------------------------------------------------------------- DynMM


def test_the_gate_is_straight_through() -> None:
    """Forward one-hot, exactly; backward the Jacobian of the softmax, p_i (1[i = j] - p_j)."""
    scores = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    gates = straight_through(scores)
    assert torch.equal(gates, F.one_hot(scores.argmax(1), 4).double())
    upstream = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (actual,) = torch.autograd.grad((gates * upstream).sum(), scores)
    p = scores.detach().softmax(1)
    jacobian = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    torch.testing.assert_close(actual, torch.einsum("bij,bi->bj", jacobian, upstream))


def test_dynmm_takes_the_logits_of_the_chosen_expert() -> None:
    model, batch = random_model("DynMM").eval(), some_batch("PolyMNIST")
    model.gate[2].weight.data *= 10
    with torch.inference_mode():
        prediction = model(batch)
        choice = prediction.extras["gates"].argmax(1)
        labels = [*(f"unimodal_m{i}" for i in range(5)), "concat"]
        parts = [model.experts[label](batch).logits for label in labels]
        for row, expert in enumerate(choice.tolist()):
            torch.testing.assert_close(prediction.logits[row], parts[expert][row])
            assert expert == 5 or not batch.missing[row, expert]
    assert len(set(choice.tolist())) > 2
    losses = model.loss(prediction, batch)
    assert losses["multimodal_share"] == pytest.approx(float((choice == 5).float().mean()))
    expected = F.cross_entropy(prediction.logits, batch.target) + 0.1 * losses["multimodal_share"]
    torch.testing.assert_close(losses["loss"], expected)


@pytest.mark.parametrize("family", ["PolyMNIST", "CAD"])
def test_dynmm_runs_what_it_takes_only(family: str) -> None:
    """``sparse``: the same logits, while the concatenation's encoders meet the rows that are sent to it."""
    model, batch = random_model("DynMM", family, *SMALL_ENCODERS.get(family, [])).eval(), some_batch(family)
    m = len(model.modalities)
    scores = torch.randn(12, m + 1, generator=torch.Generator().manual_seed(3))
    rows: list[int] = []
    model.concat.encoders[model.modality_names[0]].register_forward_hook(lambda _, x, __: rows.append(len(x[0])))
    for shown in (batch, whole(batch)):
        hidden = F.pad(model.absent(shown), (0, 1))
        model.scores = lambda *_, hidden=hidden: scores.masked_fill(hidden, -torch.inf)
        with torch.inference_mode():
            model.sparse = False
            assert model.can_split
            dense = model(shown)
            model.sparse, taken = True, int(dense.extras["gates"][:, -1].sum())
            assert not model.can_split and 0 < taken < 12
            rows.clear()
            sparse = model(shown)
            assert rows == [taken]
            torch.testing.assert_close(sparse.logits, dense.logits)
            assert torch.equal(sparse.extras["gates"], dense.extras["gates"])
    # Nobody takes it: nothing runs.
    scores[:, -1] = -100
    rows.clear()
    with torch.inference_mode():
        model(whole(batch))
    assert not rows


def test_dynmm_trains_the_gate_alone() -> None:
    with torch.device("meta"):
        model = build("DynMM", "PolyMNIST", sizes=FAMILIES)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 1_314_310  # 5 * 512 -> 512 -> 6
    for reference in (False, True):
        overrides = [*SMALL_ENCODERS["CelebA"], f"model.module.reference={str(reference).lower()}"]
        model = random_model("DynMM", "CelebA", *overrides).train()
        before = {key: value.clone() for key, value in model.experts.state_dict().items()}
        model.training_step(whole(some_batch("CelebA")), 0).backward()
        drifted = any(not torch.equal(value, before[key]) for key, value in model.experts.state_dict().items())
        assert drifted is reference
        assert all(p.grad is None for p in model.experts.parameters())
        assert all(p.grad is not None and p.grad.any() for p in model.gate.parameters())


# ------------------------------------------------------------------------------------------------------------ controls


def test_logit_average_counts_what_is_there() -> None:
    model, batch = random_model("LogitAverage").eval(), some_batch("PolyMNIST")
    assert not any(p.requires_grad for p in model.parameters())
    with torch.inference_mode():
        parts = torch.stack([model.experts[f"unimodal_m{i}"](batch).logits for i in range(5)], 1)
        for row, logits in enumerate(model(batch).logits):
            torch.testing.assert_close(logits, parts[row, ~batch.missing[row]].mean(0))
    assert model.train().training and not any(part.training for part in model.experts.modules())


def test_pattern_experts_share_nothing() -> None:
    """The expert of a row's pattern answers, and a row teaches the experts of its subsets alone."""
    model, batch = random_model("PatternExperts", "MST"), some_batch("MST")
    with torch.inference_mode():
        logits = model.eval()(batch).logits
        for row in range(12):
            expert = pattern(batch.missing[row])
            vectors = [net(batch.inputs[name][row : row + 1])[0, 0] for name, net in model.experts[expert].items()]
            torch.testing.assert_close(model.classifiers[expert](torch.cat(vectors)), logits[row])
    # Rows without SVHN: of the 7 experts, those of MNIST, of the text, and of both learn.
    rows = batch.replace(missing=torch.tensor([[False, True, False]]).expand(12, -1))
    loss = model.train().training_step(rows, 0)
    loss.backward()
    learned = [any(p.grad is not None and p.grad.any() for p in head.parameters()) for head in model.classifiers]
    assert learned == [True, False, True, False, True, False, False]
    parts = [F.cross_entropy(model.decide(model.encode_batch(rows))[:, s], rows.target) for s in (0, 2, 4)]
    torch.testing.assert_close(loss, torch.stack(parts).sum() / 7)


def test_pattern_experts_count() -> None:
    """Every encoder stands in half of the 2^M subsets: 16 of each on PolyMNIST; heads read 80 vectors together."""
    model = build("PatternExperts", "PolyMNIST", *VECTOR)
    encoder = 93_248 + (2048 + 1) * 8
    assert sum(p.numel() for p in model.parameters()) == 80 * encoder + 80 * 8 * 10 + 31 * 10
    with pytest.raises(Exception, match="all experts are trained on every row"):
        masks = "{_target_: models.baselines.masks.TrainingMasks, kind: all}"
        build("PatternExperts", "MST", f"+model.module.masks={masks}")


def test_the_dropping_concatenation_is_a_configuration(composed: Callable[..., DictConfig]) -> None:
    cfg = composed("model=Concat_ModDrop", "missing.test=[whole_12]")
    validate(cfg)
    model: IncompleteClassifier = build("Concat_ModDrop", "PolyMNIST", *VECTOR)
    assert type(model) is MultimodalConcat and (model.masks.kind, model.masks.p) == ("bernoulli", 0.5)
    batch = some_batch("PolyMNIST")
    completed = Completed(model, Zero())
    assert completed(batch).logits.shape == (12, 10)
