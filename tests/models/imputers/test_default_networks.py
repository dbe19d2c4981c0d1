"""Generative imputers with default networks: kinds alone and in pairs; incomplete rows against a loop over rows."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from datasets.batch import Batch, Modality
from models.imputers import cmvae
from models.imputers.cmvae import CMVAE, MMVAEPlus, laplace_log_prob, scale
from models.imputers.generative import GenerativeImputer
from models.imputers.likelihoods import most_likely_cells, table_cell_nll
from models.imputers.mopoe import MoPoE
from models.imputers.simple import Mean

KINDS = [
    Modality("image", "image", (3, 20, 24)),
    Modality("table", "table", (4,), cardinalities=(3, 2)),
    Modality("note", "text", (6,), vocabulary=11),
    Modality("letters", "text", (8, 5)),
    Modality("sound", "audio", (32, 16)),
    Modality("clip", "video", (2, 3, 16, 16)),
    Modality("ecg", "series", (22, 2)),
]
WIDTHS: dict[type[GenerativeImputer], dict[str, int]] = {
    MoPoE: {"latent": 6},
    CMVAE: {"shared": 5, "private": 3},
    MMVAEPlus: {"shared": 5, "private": 3},
}
METHODS = pytest.mark.parametrize("method", WIDTHS, ids=lambda method: method.__name__)


def content(m: Modality, n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if m.vocabulary:
        return torch.randint(1, m.vocabulary, (n, *m.shape), generator=generator)
    if m.kind == "text":
        return torch.nn.functional.one_hot(torch.randint(m.shape[1], (n, m.shape[0]), generator=generator)).float()
    x = torch.randn(n, *m.shape, generator=generator)
    for i, size in enumerate(m.cardinalities):
        x[:, i] = torch.randint(size, (n,), generator=generator).float()
    return x


def imputer(*modalities: Modality, method: type[GenerativeImputer] = MoPoE, **options: Any) -> Any:
    torch.manual_seed(0)
    build: Any = method
    networks = [
        {m.name: build.default_network(part, m, **WIDTHS[method]) for m in modalities}
        for part in ("encoder", "decoder")
    ]
    return build(list(modalities), *networks, **WIDTHS[method], **options)


def batch_of(modalities: tuple[Modality, ...], missing: Tensor, **cells: Tensor) -> Batch:
    n = len(missing)
    inputs = {m.name: content(m, n, seed) for seed, m in enumerate(modalities)}
    return Batch(inputs, missing, torch.zeros(n, dtype=torch.long), torch.arange(n), cells)


@METHODS
def test_missing_cells_are_recovered_from_the_others(method: type[GenerativeImputer]) -> None:
    table, ecg = KINDS[1], KINDS[6]
    model = imputer(table, ecg, method=method)
    cells = {"table": torch.tensor([[True, False, True, False]]), "ecg": torch.zeros(1, 22, 2, dtype=torch.bool)}
    cells["ecg"][0, 5:9, 1] = True
    batch = batch_of((table, ecg), torch.tensor([[True, True]]), **cells)
    recovered = model.impute(batch.inputs, batch.missing, batch.index, cells)
    for name, hidden in cells.items():
        assert torch.equal(recovered[name][~hidden], batch.inputs[name][~hidden])
        assert not torch.equal(recovered[name][hidden], batch.inputs[name][hidden])
    other = {name: torch.where(cells[name], x, x + 1) for name, x in batch.inputs.items()}
    other["table"][:, :2] = batch.inputs["table"][:, :2]
    changed = model.impute(other, batch.missing, batch.index, cells)
    assert not torch.equal(changed["table"][0, 2], recovered["table"][0, 2])  # observed cells are evidence
    poisoned = {name: torch.where(cells[name], torch.nan, x) for name, x in batch.inputs.items()}
    again = model.impute(poisoned, batch.missing, batch.index, cells)
    assert all(torch.equal(again[name], recovered[name]) for name in again)
    fixed = model.eval().impute_fixed(batch.observed(), batch.missing, cells)
    for name, x in recovered.items():
        torch.testing.assert_close(fixed[name].detach(), x, atol=1e-5, rtol=1e-4)


def test_the_loss_of_incomplete_rows_is_that_of_what_is_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a loop over rows: no draw (the noise is zero), so that the objective is a plain sum."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    table, ecg = KINDS[1], Modality("ecg", "series", (22, 2))
    model = imputer(table, ecg).double()
    cells = {"table": torch.zeros(6, 4, dtype=torch.bool), "ecg": torch.zeros(6, 22, 2, dtype=torch.bool)}
    cells["table"][0] = cells["ecg"][1] = True  # complete modalities
    cells["table"][2, 1] = cells["ecg"][3, 4:, 0] = True
    missing = torch.stack([c.flatten(1).any(1) for c in cells.values()], 1)
    batch = batch_of((table, ecg), missing, **cells)
    batch.inputs = {name: x.double() for name, x in batch.inputs.items()}
    loss = model.losses(batch)["loss"]

    total, b = torch.zeros((), dtype=torch.double), 6
    weights = {"table": 11.0, "ecg": 1.0}  # 44 values in a series, 4 in a table
    subsets = [[0], [1], [0, 1]]
    for row in range(b):
        observed = [i for i, c in enumerate(cells.values()) if not c[row].all()]
        posteriors = []
        for m, encoder in zip((table, ecg), model.encoders):
            hidden = cells[m.name][row : row + 1]
            x = torch.where(hidden, 0, batch.inputs[m.name][row : row + 1])
            posteriors.append([part[0] for part in encoder(x, hidden)])
        means, kls = [], []
        for subset in subsets:
            experts = [i for i in subset if i in observed] or observed
            precision = sum(1 / (posteriors[i][1].exp() + 1e-8) for i in experts)
            weighted = sum(posteriors[i][0] / (posteriors[i][1].exp() + 1e-8) for i in experts)
            precision = precision + (1 / (1 + 1e-8) if len(experts) == 2 else 0)
            mean, variance = weighted / precision, 1 / precision
            means.append(mean)
            kls.append(0.5 * (mean**2 + variance - variance.log() - 1).sum())
        z = means[min(row // (b // 3), 2)]
        for m, decoder in zip((table, ecg), model.decoders):
            output, x = decoder(z[None])[0], batch.inputs[m.name][row]
            for place in itertools.product(*map(range, m.shape)):
                if cells[m.name][(row, *place)]:
                    continue
                if m is table and place[0] < 2:
                    start = 3 * place[0]
                    scores = output[start : start + m.cardinalities[place[0]]]
                    error = -scores.log_softmax(0)[int(x[place])]
                else:
                    location = output[place[0] + 3] if m is table else output[place]  # 5 logits, then 2 numbers
                    error = (x[place] - location).abs() / 0.75 + math.log(1.5)
                total = total + weights[m.name] * error / b
        total = total + 2.5 * torch.stack(kls).mean() / b
    torch.testing.assert_close(loss, total)
    loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("method", [CMVAE, MMVAEPlus], ids=lambda method: method.__name__)
def test_the_shared_latent_of_incomplete_rows_comes_from_what_is_observed(
    method: type[GenerativeImputer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a loop over rows and pairs of modalities, with half a scale for every draw."""
    monkeypatch.setattr(cmvae, "standard_laplace", lambda *shape, like: torch.full(shape, 0.5, dtype=like.dtype))
    mixed = (KINDS[1], KINDS[2], KINDS[6])
    model = imputer(*mixed, method=method, beta=1.5, class_weight=2.0, num_classes=3).double()
    missing = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 1], [1, 0, 0], [1, 1, 0]]).bool()
    cells = {"table": torch.ones(5, 4, dtype=torch.bool)}
    cells["table"][3] = torch.tensor([True, False, False, True])
    batch = batch_of(mixed, missing, **cells)
    batch.target = torch.tensor([0, 1, 2, 0, 1])
    batch.inputs = {name: x.double() if x.is_floating_point() else x for name, x in batch.inputs.items()}
    losses = model.losses(batch)

    weights, nll, kl, entropy = {"table": 11.0, "note": 44 / 6, "ecg": 1.0}, [], [], []
    for row in range(5):
        one = batch_of(mixed, missing[row : row + 1])
        one.inputs = {name: x[row : row + 1] for name, x in batch.inputs.items()}
        hidden = cells["table"][row : row + 1] & missing[row, 0]
        observed = [m for i, m in enumerate(mixed) if not missing[row, i] or (m is mixed[0] and row == 3)]
        posteriors = {}
        for m in observed:
            x = one.inputs[m.name].clone()
            if m is mixed[0]:
                x[hidden] = 0
            outputs = model.encoders[m.name](x, hidden if m is mixed[0] else None)
            posteriors[m.name] = (outputs[0], scale(outputs[1]), outputs[2], scale(outputs[3]))
            scores = model.class_head(outputs[0])[0].log_softmax(0)
            entropy.append(-scores[batch.target[row]])
        row_nll, row_kl = [], []
        for source in observed:
            u_mu, u_scale, w_mu, w_scale = posteriors[source.name]
            u, w = u_mu + u_scale / 2, w_mu + w_scale / 2
            total = torch.zeros((), dtype=torch.double)
            for target in observed:
                r_mu, r_scale = model.r(target.name)
                private = w if target is source else r_mu + r_scale / 2
                output = model.decoders[target.name](torch.cat([u, private], 1))
                x = one.inputs[target.name]
                if target is mixed[0]:
                    errors = table_cell_nll(torch.where(hidden, 0, x), output, target.cardinalities)[~hidden].sum()
                elif target is mixed[1]:
                    errors = -sum(output[0, place, int(symbol)] for place, symbol in enumerate(x[0]))
                else:
                    errors = ((x - output).abs() / 0.75 + math.log(1.5)).sum()
                total = total + weights[target.name] * errors
            row_nll.append(total)
            experts = [laplace_log_prob(u, mu, spread).exp() for mu, spread, _, _ in posteriors.values()]
            mixture = (sum(experts) / len(experts)).log()
            row_kl.append((mixture + laplace_log_prob(w, w_mu, w_scale) - model.log_prior(u, w))[0])
        nll.append(torch.stack(row_nll).mean())
        kl.append(torch.stack(row_kl).mean())
    expected = {"nll": torch.stack(nll).mean(), "kl": torch.stack(kl).mean()}
    expected["classification"] = torch.stack(entropy).mean()
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value)
    total = expected["nll"] + 1.5 * expected["kl"] + 2.0 * expected["classification"]
    torch.testing.assert_close(losses["loss"], total)
    losses["loss"].backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


@METHODS
def test_incomplete_rows_are_used_and_empty_ones_are_not(method: type[GenerativeImputer]) -> None:
    table, ecg = KINDS[1], KINDS[6]
    model = imputer(table, ecg, method=method)
    missing = torch.tensor([[True, False], [True, True], [False, False]])
    batch = batch_of((table, ecg), missing)
    assert len(model.complete_rows(batch)) == 2
    model.check_training_rows(missing[:2].numpy())


def test_a_mixed_table_is_what_its_distribution_makes_most_likely() -> None:
    output = torch.tensor([[0.1, 2.0, 0.3, 1.0, -1.0, 0.5, -0.25]])
    assert most_likely_cells(output, (3, 2), 4).tolist() == [[1.0, 0.0, 0.5, -0.25]]
    nll = table_cell_nll(torch.tensor([[1.0, 0.0, 0.5, -0.25]]), output, (3, 2))[0]
    first = -math.log(math.exp(2.0) / (math.exp(0.1) + math.exp(2.0) + math.exp(0.3)))
    second = -math.log(math.exp(1.0) / (math.exp(1.0) + math.exp(-1.0)))
    torch.testing.assert_close(nll, torch.tensor([first, second, math.log(1.5), math.log(1.5)]))


def test_means_do_not_read_what_is_missing() -> None:
    table, ecg = KINDS[1], KINDS[6]
    missing = torch.tensor([[True, False], [False, True], [False, False], [False, False]])
    batch = batch_of((table, ecg), missing)
    poisoned = {name: x.clone() for name, x in batch.inputs.items()}
    for i, x in enumerate(poisoned.values()):
        x[i] = 1e30
    mean = Mean((table, ecg))
    mean.fit([batch.replace(inputs=poisoned, missing=missing)])
    torch.testing.assert_close(mean.means["table"][2:], batch.inputs["table"][1:, 2:].mean(0))  # row 0 lacks it
    torch.testing.assert_close(mean.means["ecg"], batch.inputs["ecg"][[0, 2, 3]].mean(0))
