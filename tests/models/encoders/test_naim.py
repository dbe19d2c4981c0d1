"""NAIM and its masked blocks: against a formula, on sub-sequences, and what missing cells can reach."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.batch import Modality
from models.encoders.naim import NAIM, drop_cells
from models.layers.masked_attention import POOLINGS, MaskedBlock, MaskedTransformer
from tests.contracts.test_baselines import METHODS, SMALL_ENCODERS, build, generator, some_batch, spoilt
from tests.networks import CELLS, LEVELS, N_CONTINUOUS, random_table
from trainers.config.build import build_encoder
from utils.schedule import Plateau


def naim(seed: int = 0, **options: object) -> NAIM:
    """Two blocks, in eval mode; no weight but the rows of missing cells keeps a value that could hide a term."""
    torch.manual_seed(seed)
    encoder = NAIM(LEVELS, N_CONTINUOUS, **({"width": 12, "heads": 3, "hidden": 20} | options))  # type: ignore[arg-type]
    return jolted(encoder).eval()  # type: ignore[return-value]


def jolted(network: nn.Module, seed: int = 1) -> nn.Module:
    with torch.no_grad():
        for name, p in network.named_parameters():
            if name != "embedding.weight":
                p.add_(torch.randn(p.shape, generator=generator(seed)).to(p), alpha=0.2)
    return network


def some_cells(rows: int = 40, columns: int = CELLS, seed: int = 3) -> Tensor:
    """(rows, columns) bool with none, some and all cells missing."""
    rank = torch.rand(rows, columns, generator=generator(seed)).argsort(1).argsort(1)
    return rank < (torch.arange(rows) % (columns + 1))[:, None]


# --------------------------------------------------------------------------------------------------- attention, blocks


def test_published_sizes() -> None:
    with torch.device("meta"):
        block, blocks = MaskedBlock(1024, 16), MaskedTransformer(1024, 16, 2)
        table, alone = NAIM((2,) * 374, 7), NAIM((2,) * 374, 7, vector_width=14)

    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(block) == 6_248_424
    assert count(blocks.blocks) == 12_496_848 and count(blocks.norm) == 2_048
    assert count(table.embedding) == 1_163_264
    assert count(table) == 13_662_160 and count(alone) == 19_124_190
    assert (table.tokens, table.width) == (381, 1024)


@pytest.mark.parametrize("mode", ["double", "key_only", "none"])
def test_attention_weights_are_those_of_the_formula(mode: str) -> None:
    """Read off with unit vectors as values: N tokens, N units a head."""
    n, heads = 5, 2
    block = MaskedBlock(n * heads, heads, mask_mode=mode).double()
    q, k = torch.randn(2, 8, n, n * heads, generator=generator(), dtype=torch.float64)
    v = torch.eye(n, dtype=torch.float64).repeat(1, heads).expand(8, -1, -1)
    present = ~some_cells(8, n)
    a = block.attend(q, k, v, present).unflatten(-1, (heads, n)).transpose(1, 2)
    for row, h in itertools.product(range(8), range(heads)):
        if mode != "key_only" or present[row].any():  # nobody reads what tokens of nothing make of each other
            part = slice(h * n, (h + 1) * n)
            scores = q[row, :, part] @ k[row, :, part].T / math.sqrt(n)
            if mode != "none":
                scores[:, ~present[row]] = torch.finfo(torch.float64).min
            expected = scores.softmax(-1)
            if mode == "double":
                expected = expected * present[row] * present[row][:, None]
                assert (a[row, h][:, ~present[row]] == 0).all() and (a[row, h][~present[row]] == 0).all()
                torch.testing.assert_close(a[row, h].sum(-1), present[row].double())
            torch.testing.assert_close(a[row, h], expected)
    everything = block.attend(q, k, v, torch.ones_like(present))
    torch.testing.assert_close(everything, block.attend(q, k, v, None))


def test_a_block_is_that_of_the_specification() -> None:
    block = jolted(MaskedBlock(6, 1, hidden=7).double())
    x = torch.randn(3, 4, 6, generator=generator(), dtype=torch.float64)
    n = F.layer_norm(x, (6,), block.norm1.weight, block.norm1.bias)
    q, k, v = (F.relu(n @ part.weight.T) for part in (block.query, block.key, block.value))
    mixed = (q @ k.transpose(1, 2) / math.sqrt(6)).softmax(-1) @ v
    y = F.layer_norm(x + F.relu(mixed @ block.proj.weight.T), (6,), block.norm2.weight, block.norm2.bias)
    hidden = F.relu(y @ block.fc1.weight.T + block.fc1.bias)
    torch.testing.assert_close(block(x), y + hidden @ block.fc2.weight.T + block.fc2.bias)


def test_what_is_there_is_as_if_the_rest_did_not_exist() -> None:
    network, encoder = jolted(MaskedTransformer(12, 3, 2, 20)).double(), naim().double()
    absent = some_cells()
    x = torch.randn(40, CELLS, 12, generator=generator(), dtype=torch.float64)
    cells = random_table(40).double()
    with torch.no_grad():
        states = network(torch.where(absent[..., None], 0, x), ~absent)
        tokens = encoder(cells, absent)
        embedded = encoder.cells(cells)
        for row in range(40):
            present = ~absent[row]
            if present.any():
                torch.testing.assert_close(
                    states[row, present], network(x[row, present][None])[0], atol=1e-10, rtol=1e-10
                )
                alone = encoder.transformer(embedded[row, present][None])[0]
                torch.testing.assert_close(tokens[row, present], alone, atol=1e-10, rtol=1e-10)


# --------------------------------------------------------------------------------------------------------------- NAIM


@pytest.mark.parametrize("options", [{}, *({"vector_width": 4, "pooling": pooling} for pooling in POOLINGS)])
def test_missing_cells_reach_neither_output_nor_gradient(options: dict) -> None:
    encoder, absent = naim(**options), some_cells()
    outputs, gradients = [], []
    for value in (0.0, 1e6, math.nan):
        x = torch.where(absent, value, random_table(40)).requires_grad_()
        out = encoder(x, absent)
        encoder.zero_grad()
        out.square().sum().backward()
        outputs.append(out.detach())
        gradients.append([p.grad.clone() for p in encoder.parameters()])
        assert x.grad is not None and (x.grad[absent] == 0).all() and torch.isfinite(x.grad).all()
        assert x.grad[:, len(LEVELS) :][~absent[:, len(LEVELS) :]].ne(0).all()
        assert (encoder.embedding.weight.grad[encoder.padding_rows] == 0).all()  # type: ignore[index]
    assert outputs[0].shape == ((40, 1, 4) if options else (40, CELLS, 12))
    for out, grads in zip(outputs[1:], gradients[1:]):
        assert torch.equal(out, outputs[0]) and all(map(torch.equal, grads, gradients[0]))


def test_a_missing_cell_is_the_same_constant_everywhere_and_no_value() -> None:
    encoder, absent = naim(), some_cells()
    with torch.no_grad():
        tokens = encoder(random_table(40), absent)
        constant = tokens[absent]
        torch.testing.assert_close(constant, constant[:1].expand_as(constant))
        # An observed zero has the same first token, but is seen.
        zero = torch.zeros(1, CELLS)
        only_last = torch.arange(CELLS) == CELLS - 1
        assert not torch.allclose(encoder(zero), encoder(zero, only_last[None]))
        assert (encoder.cells(zero)[0, -1] == 0).all() and (naim(bias=True).cells(zero)[0, -1] != 0).any()


def test_tokens_of_cells() -> None:
    encoder, x = naim(), random_table(20)
    with torch.no_grad():
        tokens = encoder.cells(x)
        for column, levels in enumerate(LEVELS):
            for code in range(levels):
                mine = tokens[x[:, column] == code, column]
                assert torch.equal(mine, mine[:1].expand_as(mine)) and mine.abs().sum() > 0
            assert len(tokens[:, column].unique(dim=0)) == len(x[:, column].unique())
        double = x.clone()
        double[:, len(LEVELS) :] *= 2
        n = len(LEVELS)
        torch.testing.assert_close(encoder.cells(double)[:, n:], 2 * tokens[:, n:])
        assert torch.equal(encoder.cells(double)[:, :n], tokens[:, :n])
        x[0, 0] = 7
        assert encoder(x)[0].isnan().any() and not encoder(x)[1:].isnan().any()
    with pytest.raises(ValueError, match="without columns"):
        NAIM((), 0)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_nothing_at_all_is_finite(dtype: torch.dtype | None) -> None:
    absent = torch.ones(3, CELLS, dtype=torch.bool)
    for options in ({}, {"vector_width": 4, "pooling": "mean"}, {"vector_width": 4, "pooling": "flatten"}):
        encoder = naim(**options)
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            out = encoder(torch.full((3, CELLS), math.nan), absent)
        out.float().sum().backward()
        assert torch.isfinite(out).all()
        assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)


def test_rows_of_missing_cells_stay_zero_in_training() -> None:
    encoder = naim(vector_width=3).train()
    assert (encoder.embedding.weight[encoder.padding_rows] == 0).all()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.1)
    before = encoder.embedding.weight.detach().clone()
    for step in range(4):
        optimizer.zero_grad()
        F.cross_entropy(encoder(random_table(40, step), some_cells(seed=step))[:, 0], torch.arange(40) % 3).backward()
        optimizer.step()
    changed = (encoder.embedding.weight != before).any(1)
    assert (encoder.embedding.weight[encoder.padding_rows] == 0).all()
    assert int(changed.sum()) == len(changed) - CELLS


def test_a_table_says_its_columns() -> None:
    from omegaconf import OmegaConf

    node = OmegaConf.create({"_target_": "models.encoders.naim.NAIM", "width": 8, "heads": 2})
    encoder = build_encoder(node, "x", Modality("t", "table", (CELLS,), LEVELS), vector_width=5)
    assert isinstance(encoder, NAIM) and encoder(random_table(4), some_cells(4)).shape == (4, 1, 5)


@pytest.mark.parametrize("method", ["ModDrop", "QMF"])
def test_other_methods_take_it_with_its_mask(method: str) -> None:
    """Of tokens, and of one vector a modality."""
    encoder = "+model.encoders={tabular:{_target_:models.encoders.naim.NAIM,width:8,heads:2,hidden:16}}"
    model = build(method, "CAD", *METHODS[method], *SMALL_ENCODERS["CAD"], encoder).eval()
    batch = some_batch("CAD")
    calls: list[Tensor | None] = []
    model.encoders["tabular"].register_forward_pre_hook(  # type: ignore[union-attr, index]
        lambda _, inputs, named: calls.append(named.get("missing")), with_kwargs=True
    )
    with torch.no_grad():
        logits = [model(spoilt(model, batch, value)).logits for value in (0.0, math.nan)]
    assert torch.equal(*logits) and torch.isfinite(logits[0]).all()
    assert len(calls) == 2 and all(torch.equal(seen, batch.feature_missing["tabular"]) for seen in calls)  # type: ignore[arg-type]


def test_feature_dropout_hides_one_to_all_but_two() -> None:
    absent = torch.zeros(30_000, 6, dtype=torch.bool)
    absent[:, 5] = True
    hidden = drop_cells(absent, 0.5, generator())
    added = (hidden & ~absent).sum(1)
    shares = torch.bincount(added, minlength=6) / len(absent)
    torch.testing.assert_close(shares, torch.tensor([0.5, 1 / 6, 1 / 6, 1 / 6, 0, 0]), atol=0.01, rtol=0)
    assert hidden[:, 5].all() and (hidden[:, :5].float().mean(0) - 0.2).abs().max() < 0.01
    few = torch.zeros(100, 6, dtype=torch.bool)
    few[:, 2:] = True
    assert torch.equal(drop_cells(few, 0.99, generator()), few)
    assert torch.equal(drop_cells(absent, 0.0, generator()), absent)


# ------------------------------------------------------------------------------------------------------------- plateau


@pytest.mark.parametrize("recreate", [False, True])
def test_rates_fall_after_patience_and_the_warm_up_counts_for_nothing(recreate: bool) -> None:
    one, two = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([{"params": [one], "lr": 1e-6}, {"params": [two]}], lr=1e-3)
    (one + two).backward()
    optimizer.step()
    plateau = Plateau(patience=2, min_delta=0.1, warmup_epochs=2, recreate=recreate)
    # Epoch 0 and 1 warm up; 5 is less than 0.1 below the best, 6 improves.
    losses = [0.0, 0.0, 1.0, 1.0, 0.95, 0.92, 0.5, 0.6, 0.7]
    rates = []
    for epoch, loss in enumerate(losses):
        if epoch == 5:  # resumed
            state = plateau.state_dict()
            plateau = Plateau(patience=2, min_delta=0.1, warmup_epochs=2, recreate=recreate)
            plateau.load_state_dict(state)
        plateau.step(optimizer, loss, epoch)
        rates.append([group["lr"] for group in optimizer.param_groups])
        assert len(optimizer.state) == (0 if recreate and epoch >= 4 else 2)
    expected = [[1e-6 * f, 1e-3 * f] for f in (1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01)]
    assert torch.allclose(torch.tensor(rates), torch.tensor(expected), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="plateau"):
        Plateau(patience=0)
