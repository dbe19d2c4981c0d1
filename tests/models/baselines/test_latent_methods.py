"""OnlineMAE, MultiAE, the latent probes, SimMLM and Flex-MoE against slow versions and closed forms."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.batch import Batch, Modality
from models.baselines.flex_moe import DenseMixture, routing_loss
from models.baselines.masks import fewer_of
from models.baselines.multi_ae import decoder, reconstruction_error
from models.baselines.online_mae import OnlineMAE, reconstruction, standardised
from models.baselines.simmlm import ranking_loss
from models.imputers.mopoe import VARIANCE_FLOOR
from tests.contracts.test_baselines import METHODS, SMALL_ENCODERS, build, generator, some_batch, spoilt
from tests.tolerances import assert_close_sums, batch_bound


def made(method: str, family: str = "PolyMNIST", *overrides: str, part: str = "") -> Any:
    """A method with random parameters."""
    torch.manual_seed(0)
    model = build(method, family, *METHODS[method], *SMALL_ENCODERS.get(family, []), *overrides, part=part)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.log_losses = lambda *_: None  # type: ignore[method-assign]
    return model


def losses_of_a_step(model: Any, batch: Batch) -> dict[str, Tensor]:
    logged: dict[str, Tensor] = {}
    model.log_losses = lambda stage, losses, n: logged.update(losses)
    model.train().training_step(batch, 0)
    return logged


# ----------------------------------------------------------------------------------------------------------- OnlineMAE


@torch.no_grad()
def test_online_mae_takes_tokens_out_and_restores_their_order() -> None:
    """The published steps, a row at a time: the kept tokens alone are encoded, mask tokens go back between them."""
    model = made("OnlineMAE").eval()
    batch = some_batch("PolyMNIST")
    tokens, memory = model.replace_missing(model.encode_batch(batch), batch), 6
    actual = model.rebuilt(tokens, batch.missing)
    for row in range(len(batch)):
        remaining = [m for m in range(5) if not batch.missing[row, m]]
        places = [*range(memory), *(memory + m for m in remaining)]
        x = torch.cat([model.memory_tokens[0], tokens[row, remaining]])[None] + model.mae_positions[:, places]
        for block in model.mae_encoder:
            x = block(x)
        x = model.encoder_norm(x)[0]
        whole = model.mask_token[0].repeat(memory + 5, 1)
        for place, token in zip(places, x, strict=True):
            whole[place] = token
        y = (whole + model.mae_positions[0])[None]
        for block in model.mae_decoder:
            y = block(y)
        assert_close_sums(model.rebuild(model.decoder_norm(y))[0, memory:], actual[row])


def test_online_mae_reconstruction_loss() -> None:
    target = torch.randn(4, 3, 6, generator=generator())
    rebuilt = torch.randn(4, 3, 6, generator=generator(1))
    dropped = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 0, 1]]).bool()
    total = []
    for i, m in dropped.nonzero().tolist():
        t = target[i, m].tolist()
        mean = sum(t) / 6
        spread = math.sqrt(sum((v - mean) ** 2 for v in t) / 5 + 1e-6)
        total.append(sum((o - (v - mean) / spread) ** 2 for o, v in zip(rebuilt[i, m].tolist(), t)) / 6)
    assert float(reconstruction(rebuilt, target, dropped)) == pytest.approx(sum(total) / 5, rel=1e-5)
    assert reconstruction(rebuilt, target, dropped & False) == 0
    torch.testing.assert_close(standardised(target).std(-1), torch.ones(4, 3), atol=1e-4, rtol=0)


def test_online_mae_against_the_original() -> None:
    """Never complete and as many in every row there; any number here, and observed tokens are classified themselves."""
    batch = some_batch("PolyMNIST", 200)
    none = torch.zeros_like(batch.missing)
    ours, original = made("OnlineMAE").eval(), made("OnlineMAE", "PolyMNIST", "model.module.reference=true").eval()
    assert set((~ours.draw(none, generator())).sum(1).tolist()) == {1, 2, 3, 4, 5}
    counts = [(~original.draw(none, generator(seed))).sum(1) for seed in range(20)]
    assert {int(n[0]) for n in counts} == {1, 2, 3, 4} and all((n == n[0]).all() for n in counts)
    drawn = original.draw(batch.missing, generator())
    assert not (batch.missing & ~drawn).any() and not drawn.all(1).any()
    complete = some_batch("PolyMNIST", 6).replace(missing=none[:6])
    with torch.no_grad():
        before = [model(complete).logits for model in (ours, original)]
        for model in (ours, original):
            model.rebuild.weight.mul_(2)
        after = [model(complete).logits for model in (ours, original)]
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1], after[1])


def test_online_mae_starts_from_the_encoders_of_multi_ae() -> None:
    """They survive the initialisation; the original's order overwrites the linear layers, and those alone."""
    start = made("MultiAE")
    for reference in (False, True):
        encoders = {n: e for n, e in build("MultiAE", "PolyMNIST", *METHODS["MultiAE"]).encoders.items()}  # type: ignore[union-attr, operator]
        model = OnlineMAE(
            start.modalities, 10, encoders, width=8, heads=2, prerequisites={"multiae": start}, reference=reference
        )
        for name, value in start.encoders.state_dict().items():
            same = torch.equal(model.encoders.state_dict()[name], value)
            assert same is not (reference and ".proj." in name), name


# ------------------------------------------------------------------------------------------------------------- MultiAE


def test_multi_ae_reconstructs_what_was_hidden_and_what_the_data_have() -> None:
    model = made("MultiAE", part="autoencoder")
    batch = some_batch("PolyMNIST")
    masks = model.masks.draw(batch.missing, generator())
    assert masks.shape == (5, 12, 5)
    actual = model.losses(batch, masks)["loss"]
    expected = []
    with torch.no_grad():
        for mask in masks:
            vectors = torch.stack([model.encoders[f"m{i}"](batch.inputs[f"m{i}"])[:, 0] for i in range(5)], 1)
            code = model.joint((vectors * ~mask[..., None]).flatten(1))
            total = 0.0
            for i in range(5):
                present = ~batch.missing[:, i]
                total += float(F.mse_loss(model.decoders[f"m{i}"](code)[present], batch.inputs[f"m{i}"][present]))
            expected.append(total)
    assert float(actual.detach()) == pytest.approx(sum(expected) / 5, rel=1e-5)
    torch.testing.assert_close(model.losses(spoilt(model, batch, math.nan), masks)["loss"], actual)


def test_multi_ae_errors_by_kind() -> None:
    table = Modality("t", "table", (3,), (2, 4))
    output, x = torch.randn(5, 7, generator=generator()), torch.tensor([[1.0, 3, 0.5]] * 5)
    expected = torch.stack([
        -output[:, :2].log_softmax(1)[:, 1], -output[:, 2:6].log_softmax(1)[:, 3], (output[:, 6] - 0.5) ** 2
    ], 1)  # fmt: skip
    torch.testing.assert_close(reconstruction_error(table, output, x), expected)
    text = Modality("s", "text", (4, 6))
    symbols = torch.randint(6, (5, 4), generator=generator())
    scores = torch.randn(5, 4, 6, generator=generator(2)).log_softmax(-1)
    actual = reconstruction_error(text, scores, F.one_hot(symbols, 6).float())[:, 0].mean()
    torch.testing.assert_close(actual, F.nll_loss(scores.transpose(1, 2), symbols))
    notes = Modality("n", "text", (4,), vocabulary=9)
    frequencies = torch.randn(5, 9, generator=generator(3)).log_softmax(-1)
    ids = torch.tensor([[3, 3, 8, 0], [1, 0, 0, 0], [0, 0, 0, 0], [5, 6, 7, 8], [2, 1, 0, 0]])  # 0 is padding
    by_row = [float(-frequencies[i][row[row > 0]].mean()) if row.any() else 0.0 for i, row in enumerate(ids)]
    actual = reconstruction_error(notes, frequencies, ids)[:, 0]
    torch.testing.assert_close(actual, torch.tensor(by_row))
    clip = Modality("c", "video", (2, 3, 4, 4))
    output, x = torch.randn(2, 5, *clip.shape, generator=generator(4))
    hidden = torch.zeros(5, 2, 1, 1, 1, dtype=torch.bool)
    hidden[0, 1] = hidden[2] = True
    actual = reconstruction_error(clip, output, x, hidden)[:, 0]
    expected = ((output - x) ** 2).flatten(1).mean(1)
    expected[0], expected[2] = ((output - x)[0, 0] ** 2).mean(), 0.0
    torch.testing.assert_close(actual, expected)
    assert decoder(notes, 8)(torch.randn(2, 8)).shape == (2, 9)
    for m in (table, text, *(Modality("i", "image", (3, s, s)) for s in (28, 32, 50, 64, 128))):
        shape = (7,) if m.kind == "table" else m.shape
        assert decoder(m, 8)(torch.randn(2, 8)).shape == (2, *shape), m


def test_multi_ae_classifies_on_frozen_encoders() -> None:
    for reference in ("false", "true"):
        model = made("MultiAE", "CelebA", f"model.module.reference={reference}")
        autoencoder = made("MultiAE", "CelebA", part="autoencoder")
        assert any(p.requires_grad for p in autoencoder.encoders.parameters())
        assert not any(p.requires_grad for p in model.encoders.parameters())
        assert model.training and any(m.training for m in model.encoders.modules()) is (reference == "true")
        assert model.train().joint.training and model.masks.per == {"true": "batch", "false": "row"}[reference]


# -------------------------------------------------------------------------------------------------------------- probes


@pytest.mark.usefixtures("float64")
@torch.no_grad()
@pytest.mark.parametrize("family", ["PolyMNIST", "MST"])
def test_mopoe_classification_reads_the_product_of_gaussians(family: str) -> None:
    """The mean as the mode of the sum of the log-densities: a weighted least squares solution."""
    model = made("MoPoE_Classification", family).eval()
    batch = some_batch(family)
    z = model(batch).features
    for row in range(len(batch)):
        means, precisions = [], []
        for i, name in enumerate(model.modality_names):
            if not batch.missing[row, i]:
                mu, logvar = model.imputer.encoders[i](batch.inputs[name][row : row + 1])[:2]
                means.append(mu[0])
                precisions.append(1 / (logvar[0].exp() + VARIANCE_FLOOR))
        if not batch.missing[row].any():
            means.append(torch.zeros_like(means[0]))
            precisions.append(torch.ones_like(means[0]))
        w = torch.stack(precisions).sqrt()
        solved = torch.stack([
            torch.linalg.lstsq(w[:, d, None], w[:, d, None] * torch.stack(means)[:, d, None]).solution[0, 0]
            for d in range(w.shape[1])
        ])  # fmt: skip
        torch.testing.assert_close(z[row], solved)


@torch.no_grad()
def test_cmvae_classification_averages_and_the_original_draws() -> None:
    batch = some_batch("PolyMNIST", 60)
    ours = made("CMVAE_Classification").eval()
    original = made("CMVAE_Classification", "PolyMNIST", "model.module.reference=true").eval()
    assert original.masks.per == "batch" and ours.masks.per == "row"
    assert original.train().imputer.training and not ours.train().imputer.training
    means = torch.stack([ours.imputer.encoders[f"m{i}"](batch.inputs[f"m{i}"])[0] for i in range(5)], 1)
    original.eval()
    averaged, drawn = ours(batch).features, original(batch).features
    assert torch.equal(original(batch).features, drawn)
    first = set()
    for row in range(60):
        present = [i for i in range(5) if not batch.missing[row, i]]
        torch.testing.assert_close(averaged[row], means[row, present].mean(0), atol=batch_bound(means), rtol=0)
        chosen = [i for i in present if torch.allclose(drawn[row], means[row, i], atol=batch_bound(means), rtol=0)]
        assert len(chosen) == 1
        first.add(present.index(chosen[0]))
    assert first == {0, 1, 2, 3, 4}


def test_probes_leave_the_imputer_alone() -> None:
    model = made("MoPoE_Classification")
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"classifier.weight", "classifier.bias"}
    assert not model.imputer.training and not model.train().imputer.training


# -------------------------------------------------------------------------------------------------------------- SimMLM


@torch.no_grad()
def test_simmlm_mixes_the_experts_of_what_is_there() -> None:
    model = made("SimMLM").eval()
    batch = some_batch("PolyMNIST")
    prediction = model(batch)
    for row in range(len(batch)):
        present = [i for i in range(5) if not batch.missing[row, i]]
        vectors = torch.zeros(5, 8)
        for i in present:
            vectors[i] = model.encoders[f"m{i}"](batch.inputs[f"m{i}"][row : row + 1])[0, 0]
        scores = model.gate(vectors.flatten()[None])[0].exp()
        logits = sum(scores[i] / scores[present].sum() * model.heads[i](vectors[i]) for i in present)
        torch.testing.assert_close(prediction.logits[row], logits, atol=batch_bound(prediction.logits), rtol=0)
    assert torch.equal(prediction.extras["weights"] == 0, batch.missing)


def test_simmlm_ranks_more_above_fewer() -> None:
    more, fewer = torch.tensor([1.0, 0.5, 2.0, 0.1]), torch.tensor([0.4, 0.9, 2.0, 0.0])
    assert float(ranking_loss(more, fewer)) == pytest.approx((0.6 + 0 + 0 + 0.1) / 4)
    absent = torch.rand(20_000, 4, generator=generator()).argsort(1) < torch.tensor([0, 1, 2, 3]).repeat(5000)[:, None]
    hidden = fewer_of(absent, generator(1))
    assert not (absent & ~hidden).any() and not hidden.all(1).any()
    n, k = (~absent).sum(1), (~hidden).sum(1)
    assert (k[n > 1] < n[n > 1]).all() and (k[n == 1] == 1).all()
    for size in (2, 3, 4):
        shares = torch.bincount(k[n == size], minlength=size)[1:size] / (n == size).sum()
        torch.testing.assert_close(shares, torch.full((size - 1,), 1 / (size - 1)), atol=0.03, rtol=0)
    losses = losses_of_a_step(made("SimMLM"), some_batch("PolyMNIST"))
    torch.testing.assert_close(losses["loss"], losses["more"] + losses["fewer"] + losses["ranking"])
    assert losses["ranking"] > 0


# ------------------------------------------------------------------------------------------------------------- FlexMoE


def test_flex_moe_dense_mixture_is_the_sparse_one() -> None:
    """A token at a time through its own experts alone."""
    torch.manual_seed(0)
    mixture = DenseMixture(6, 5, experts=7, chosen=3).double()
    mixture.router.weight.data *= 4
    x, fixed = torch.randn(40, 6, dtype=torch.float64), torch.tensor([-1, 4] * 20)
    with torch.no_grad():
        y, scores, gates = mixture(x, fixed)
    forced = 0
    for t in range(40):
        by_score = sorted(range(7), key=lambda e: -float(scores[t, e]))
        chosen = by_score[:3] if fixed[t] < 0 else [4, *(e for e in by_score if e != 4)][:3]
        forced += set(chosen) != set(by_score[:3])
        total = sum(math.exp(float(scores[t, e])) for e in chosen)
        expected = torch.zeros(6, dtype=torch.float64)
        for e in chosen:
            share = math.exp(float(scores[t, e])) / total
            assert float(gates[t, e]) == pytest.approx(share)
            hidden = F.gelu(x[t] @ mixture.weight_in[e] + mixture.bias_in[e, 0])
            expected += share * (hidden @ mixture.weight_out[e] + mixture.bias_out[e, 0]).detach()
        assert_close_sums(y[t], expected)
        assert int((gates[t] > 0).sum()) == 3
    assert forced


def test_flex_moe_routing_loss() -> None:
    scores = torch.randn(4, 2, 3, generator=generator(), dtype=torch.float64)
    gates = scores.softmax(-1)
    fixed = torch.tensor([-1, 2, 1, -1])
    sums = [float(gates[[0, 3], :, e].sum()) for e in range(3)]
    mean = sum(sums) / 3
    balance = sum((s - mean) ** 2 for s in sums) / 2 / mean**2
    error = -sum(math.log(float(gates[i, m, fixed[i]])) for i in (1, 2) for m in range(2)) / 4
    assert float(routing_loss(scores, gates, fixed)) == pytest.approx(balance + error)
    assert float(routing_loss(scores, gates, fixed.clamp(max=-1))) < 1
    assert float(routing_loss(torch.zeros(2, 2, 3), torch.full((2, 2, 3), 1 / 3), torch.tensor([-1, -1]))) == 0


@torch.no_grad()
def test_flex_moe_takes_missing_tokens_from_the_bank() -> None:
    """The bank's row of the observed combination, and the expert that belongs to it."""
    model = made("FlexMoE").eval()
    batch = some_batch("PolyMNIST")
    before = model(batch).logits
    row = 2
    present = tuple(i for i in range(5) if not batch.missing[row, i])
    sizes = [1, 2, 3, 4, 5]
    ids = {c: k for k, c in enumerate(c for s in sizes for c in combinations(range(5), s))}
    absent = [i for i in range(5) if i not in present]
    model.bank[ids[present], absent] += 1
    changed = (model(batch).logits != before).any(1)
    same = (batch.missing == batch.missing[row]).all(1)
    assert torch.equal(changed, same) and same[row]
    model.bank[ids[present], list(present)] += 1  # observed: never read
    model.bank[-1] += 1
    assert torch.equal((model(batch).logits != before).any(1), same)
    losses = losses_of_a_step(model, batch)
    torch.testing.assert_close(losses["loss"], losses["classification"] + 0.01 * losses["routing"])
