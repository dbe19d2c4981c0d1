"""The table encoder: size, its slow twin, and that hidden cells leak nothing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datasets.batch import Modality
from models.dymo.dynamic_transformer import DynamicTransformer
from models.encoders.resnet import ResNetEncoder
from models.encoders.table import TableEncoder
from tests import slow_twin as twin
from tests.networks import CELLS, LEVELS, N_CONTINUOUS, random_table, table_encoder, table_model
from tests.tolerances import assert_close_sums
from utils.errors import UserError

DVM = (22, 13, 3, 12)
UKBB = (*[2] * 13, 3, 6, 4, 3, 3, 8, 8, 8, 3, 8, 3, 4, 3)


def random_cells(rows: int, seed: int = 0) -> Tensor:
    """(rows, 6) bool, from no cell to all of them."""
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.rand(rows, CELLS, generator=generator).argsort(1).argsort(1)
    return ranks < (torch.arange(rows) % (CELLS + 1))[:, None]


@pytest.mark.parametrize(
    ("levels", "n_continuous", "classes", "tokens", "encoders", "total"),
    [(DVM, 13, 286, 17, 36_149_312, 38_500_062), (UKBB, 49, 2, 75, 36_199_488, 38_492_098)],
)
def test_parameters_of_the_published_networks(
    levels: tuple[int, ...], n_continuous: int, classes: int, tokens: int, encoders: int, total: int
) -> None:
    """docs/reference/dymo.md §1.5 and §1.6: DVM, and CAD / Infarction."""
    assert (len(levels) + n_continuous, sum(levels)) == (tokens, {17: 50, 75: 90}[tokens])
    views = [Modality("img", "image", (3, 128, 128)), Modality("tabular", "table", (tokens,), levels)]
    with torch.device("meta"):
        parts = {"img": ResNetEncoder(), "tabular": TableEncoder(levels, n_continuous)}
        model = DynamicTransformer(views, classes, parts, width=256, heads=8, projection=128)
    assert sum(p.numel() for p in model.encoders.parameters()) == encoders
    assert sum(p.numel() for p in model.m_projection.parameters()) == 655_872
    assert sum(p.numel() for p in model.parameters()) == total
    assert len(model.state_dict()) == 408
    assert len(parts["tabular"].state_dict()) == 52
    assert model.tokens_per_modality == [16, tokens]
    assert model.pos_embeddings.shape == (1, 17 + tokens, 256)


def test_equals_twin() -> None:
    encoder, x, cells = table_encoder(), random_table(30), random_cells(30)
    with torch.no_grad():
        actual, complete = encoder.encode(x, cells), encoder(x)
        params = {f"t.{k}": v for k, v in encoder.state_dict().items()}
        for row in range(30):
            for hidden, tokens in ((cells[row].tolist(), actual[row]), ([False] * CELLS, None)):
                expected = twin.table_tokens(params, "t", x[row].tolist(), hidden, LEVELS, heads=3)
                tokens = torch.cat([expected[:1], complete[row]]) if tokens is None else tokens
                assert_close_sums(tokens, expected)


JUNK = st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -7.0, 99.0, 0.5, 0.0])


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.tuples(st.booleans(), JUNK), min_size=3 * CELLS, max_size=3 * CELLS))
def test_content_of_hidden_cells_never_matters(draws: list[tuple[bool, float]]) -> None:
    """Neither for outputs nor for gradients."""
    encoder, x = table_encoder(), random_table(3)
    cells = torch.tensor([absent for absent, _ in draws]).view(3, CELLS)
    junk = torch.tensor([value for _, value in draws]).view(3, CELLS)
    actual = []
    for content in (x, torch.where(cells, junk, x)):
        encoder.zero_grad()
        content = content.clone().requires_grad_()
        y = encoder(content, missing=cells)
        y.square().sum().backward()
        actual.append([y.detach(), *(p.grad.clone() for p in encoder.parameters())])
        assert not content.grad[cells].any()
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(*actual))


def test_hidden_cells_are_seen_by_themselves_alone() -> None:
    encoder, x, cells = table_encoder(), random_table(14), random_cells(14)
    with torch.no_grad():
        before = encoder.encode(x, cells)
        encoder.mask_special_token.add_(torch.linspace(-1, 1, 12).square())
        after = encoder.encode(x, cells)
        # A hidden cell still sees what is observed.
        x[:, 3:][~cells[:, 3:]] += 1.0
        other = encoder.encode(x, cells)
    shown = torch.cat([torch.ones(14, 1, dtype=torch.bool), ~cells], dim=1)
    assert torch.equal(before[shown], after[shown])
    assert (before - after)[~shown].abs().amax(-1).min() > 1e-3
    some = (~cells[:, 3:]).any(1)[:, None] & ~shown
    assert (after - other)[some].abs().amax(-1).min() > 1e-6


def test_a_code_that_is_no_level_shows() -> None:
    """Never read as a level of the next column."""
    encoder = table_encoder()
    for column, bad in ((0, 3.0), (0, -1.0), (1, 2.0), (2, math.nan)):
        x = random_table(2)
        x[1, column] = bad
        with torch.no_grad():
            y = encoder(x)
        assert y[0].isfinite().all() and y[1].isnan().any()


@pytest.mark.parametrize(("levels", "n_continuous"), [((), 4), ((3, 2), 0), ((5,), 0)])
def test_tables_of_one_kind_of_columns(levels: tuple[int, ...], n_continuous: int) -> None:
    encoder = TableEncoder(levels, n_continuous, width=6, blocks=1, heads=2)
    n = len(levels) + n_continuous
    x = torch.zeros(2, n)
    assert encoder(x, missing=torch.tensor([[True] * n, [False] * n])).shape == (2, n, 6)
    assert encoder(x).isfinite().all()


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(ValueError, match="without columns"):
        TableEncoder((), 0)


@pytest.mark.parametrize("prefix", ["", "encoder_tabular.", "m_encoders.tabular."])
def test_weights_of_a_file(tmp_path: Path, prefix: str) -> None:
    source = table_encoder(seed=3)
    state = {prefix + k: v for k, v in source.state_dict().items()}
    if prefix:
        state |= {"encoder_imaging.conv1.weight": torch.zeros(2)}
    torch.save({"state_dict": state, "epoch": 4} if prefix else state, tmp_path / "w.ckpt")
    sizes = {"width": 12, "blocks": 2, "heads": 3}
    encoder = TableEncoder(LEVELS, N_CONTINUOUS, weights=str(tmp_path / "w.ckpt"), **sizes)
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in encoder.state_dict().items())
    # The backbone's own start leaves them alone, and draws those of a fresh encoder.
    encoders = {"img": table_model().encoders["img"], "tabular": encoder}
    views = table_model().modalities
    DynamicTransformer(views, 4, encoders, width=8, heads=2, projection=5)
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in encoder.state_dict().items())
    with pytest.raises(UserError, match=r"w\.ckpt does not fit the table encoder"):
        TableEncoder((*LEVELS, 2), N_CONTINUOUS, weights=str(tmp_path / "w.ckpt"), **sizes)


def test_start() -> None:
    """Embeddings, linear maps and special tokens ~ N(0, 0.02²), norms 1 and 0."""
    torch.manual_seed(0)
    encoder = TableEncoder(DVM, 13)
    for value in (encoder.cls_token, encoder.mask_special_token, encoder.cat_embedding.weight):
        assert float(value.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert float(encoder.transformer_blocks[3].mlp.fc1.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    assert not encoder.con_proj.bias.any() and (encoder.norm.weight == 1).all()
