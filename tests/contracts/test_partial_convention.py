"""One convention for tables of which some cells are missing (docs/reference/partial_tables.md): with an observed cell a
table counts as present, for every method; ``reference=true`` restores the original, for which it is missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from datasets.batch import Batch
from models.baselines.base import Baseline
from models.dymo.selection import SelectionRule
from tests.contracts.test_baselines import (
    METHODS,
    ONLY,
    RESNET_18,
    SMALL,
    SMALL_ENCODERS,
    build,
    configure,
    empty_memory,
    small_table,
    some_batch,
)
from utils.subsets import enumerate_subsets

TABLE = "tabular"
# As for the original: what any missing cell makes missing.
HIDDEN_BY_THE_REFERENCE = ("MAP", "MTL", "MUSE", "M3Care", "OnlineMAE", "QMF", "PDF")
WITH_TABLES = [m for m in METHODS if m not in ONLY]


def made(method: str, *overrides: str) -> Any:
    torch.manual_seed(0)
    changes = ["model.modality=tabular"] if method in ("Unimodal", "TokenUnimodal") else []
    # With features of the small network, the gate of DynMM sends every row to the image.
    encoders = [*RESNET_18, *small_table(TABLE)] if method == "DynMM" else SMALL_ENCODERS["CAD"]
    model: Any = build(method, "CAD", *METHODS[method], *encoders, *changes, *overrides)
    for name, parameter in model.named_parameters():
        if ".img." not in name:  # whose features would drown those of the table
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.log_losses = lambda *_: None
    empty_memory(model)
    return model.eval()


def partly(rows: int = 12) -> Batch:
    """Complete images, and tables of which every second row lacks some cells."""
    batch = some_batch("CAD", rows)
    cells = torch.zeros(rows, 5, dtype=torch.bool)
    cells[1::2, ::2] = True
    missing = torch.stack([torch.zeros(rows, dtype=torch.bool), cells.any(1)], 1)
    return batch.replace(missing=missing, feature_missing={TABLE: cells})


def without_table(batch: Batch) -> Batch:
    """The same rows, whose partly missing tables are missing as a whole."""
    return batch.replace(feature_missing={TABLE: batch.missing[:, 1:].expand(-1, 5)})


PARTIAL = torch.arange(12) % 2 == 1


def logits(model: Any, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model(batch).logits


@pytest.mark.parametrize("method", WITH_TABLES)
def test_observed_cells_count_in_every_method(method: str) -> None:
    """The prediction moves with an observed cell of a partly missing table, and not with a missing one."""
    model, batch = made(method), partly()
    if isinstance(model, Baseline):
        assert torch.equal(model.absent(batch), torch.zeros(12, 2, dtype=torch.bool))
    one, other = batch.inputs[TABLE].clone(), batch.inputs[TABLE].clone()
    one[:, 3] += 2.0  # observed everywhere
    other[PARTIAL, 4] += 2.0  # missing
    assert not batch.feature_missing[TABLE][:, 3].any() and batch.feature_missing[TABLE][PARTIAL, 4].all()
    before = logits(model, batch)
    moved = logits(model, batch.replace(inputs={**batch.inputs, TABLE: one})) - before
    # A gate may send a row to the image, and units may be off.
    assert (moved.abs().amax(1) > 0)[PARTIAL].sum() >= (1 if method == "DynMM" else 4)
    assert torch.equal(logits(model, batch.replace(inputs={**batch.inputs, TABLE: other})), before)


def subset_row(*missing: bool) -> int:
    return enumerate_subsets(2).tolist().index(list(missing))


@pytest.mark.parametrize(("method", "of_patterns"), [("MAP", "prompts"), ("MTL", "cls_token")])
def test_parameters_of_a_pattern_are_those_of_the_convention(method: str, of_patterns: str) -> None:
    """By default those of image and table; with reference those of the image alone, while the cells still feed tokens.
    The expectation comes from exchanging the parameters of the two patterns."""
    ours, original = made(method), made(method, "model.module.reference=true")
    batch, weights = partly(), ours.state_dict()
    original.load_state_dict(weights)
    everything, image = subset_row(False, False), subset_row(False, True)
    swapped = {k: v.clone() for k, v in weights.items()}
    swapped[of_patterns][[everything, image]] = weights[of_patterns][[image, everything]]
    exchanged = made(method)
    exchanged.load_state_dict(swapped)
    by_default, by_reference = logits(ours, batch), logits(original, batch)
    torch.testing.assert_close(by_reference[PARTIAL], logits(exchanged, batch)[PARTIAL], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(by_reference[~PARTIAL], by_default[~PARTIAL], atol=1e-6, rtol=1e-6)
    assert (by_reference - by_default)[PARTIAL].abs().amax(1).min() > 1e-4
    # The observed cells reach the tokens either way.
    for model in (ours, original):
        assert (logits(model, batch) - logits(model, without_table(batch)))[PARTIAL].abs().amax(1).min() > 1e-5


@pytest.mark.parametrize("method", ["MUSE", "M3Care", "OnlineMAE", "QMF", "PDF"])
def test_vectors_of_partly_missing_tables_are_left_out_by_the_reference(method: str) -> None:
    model, batch = made(method, "model.module.reference=true"), partly()
    assert torch.equal(logits(model, batch), logits(model, without_table(batch)))
    default = made(method)
    difference = logits(default, batch) - logits(default, without_table(batch))
    assert (difference[PARTIAL].abs().amax(1) > 1e-6).sum() >= 4 and not difference[~PARTIAL].abs().max() > 1e-4


@pytest.mark.parametrize("method", WITH_TABLES)
def test_what_the_reference_counts_as_missing(method: str) -> None:
    """Any missing cell, in the methods of the original comparison; a row that has nothing else keeps its table."""
    has_original = "reference" in configure(f"model={method}", *METHODS[method]).model.module
    if not has_original or method in ("LogitAverage", "SimMLM", "FlexMoE", "Concat_ModDrop", "PatternExperts"):
        assert not made(method).reference_hides_partial_tables
        return
    model, batch = made(method, "model.module.reference=true"), partly()
    batch.missing[-1] = True
    absent = torch.zeros_like(batch.missing)
    if method in HIDDEN_BY_THE_REFERENCE:
        absent = batch.missing.clone()
    absent[-1] = torch.tensor([True, False])
    assert torch.equal(model.absent(batch), absent)
    assert torch.isfinite(logits(model, batch)).all()


@pytest.mark.parametrize("method", ["MTL", "ModDrop", "MAP"])
def test_masks_of_training_hide_partly_missing_tables_too(method: str) -> None:
    """A table with an observed cell is one of the modalities that training drops: all of its cells go."""
    model, batch = made(method, "model.module.masks.kind=all", "~model.module.masks.p") if method == "ModDrop" else (
        made(method, "model.module.masks.kind=all")
    ), partly()  # fmt: skip
    model.eval()  # no dropout, and batch statistics that stand
    actual: dict[str, Tensor] = {}
    model.log_losses = lambda stage, losses, n: actual.update(losses)
    with torch.no_grad():
        model.training_step(batch, 0)
        cells, losses = batch.feature_missing[TABLE], []
        for image, table in enumerate_subsets(2).tolist():
            absent = cells | table
            missing = torch.stack([torch.full((12,), image), absent.any(1)], 1)
            hidden = batch.replace(missing=missing, feature_missing={TABLE: absent})
            encoded = model.encode(batch.observed(), model.cells(batch.missing, batch.feature_missing))
            losses.append(torch.nn.functional.cross_entropy(model.fuse(encoded, hidden).logits, batch.target))
    torch.testing.assert_close(actual["loss"], torch.stack(losses).mean(), atol=1e-6, rtol=1e-6)


def test_dymo_follows_the_convention_and_the_original_with_its_tail() -> None:
    assert SelectionRule().counts_partial_tables and not SelectionRule(tail="float32").counts_partial_tables
    assert SelectionRule(tail="float32", partial_tables="observed").counts_partial_tables
    assert not SelectionRule(partial_tables="missing").counts_partial_tables
    with pytest.raises(ValueError, match="partial_tables=some: must be one of observed, missing"):
        SelectionRule(partial_tables="some")
    assert SMALL["CAD"][0][1].kind == "table"
