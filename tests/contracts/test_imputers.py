"""Imputers × kinds, alone and in pairs: no leak, batch of one equals batch of many, recoveries are valid content."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.utils import get_object
from torch import Tensor

from datasets.batch import Batch, Modality, missing_content
from datasets.rows import take_rows
from models.imputers.base import FittedImputer, Imputer, recover_possible
from tests.models.imputers.test_default_networks import KINDS, batch_of
from trainers.config.compose import compose_config, group_options
from trainers.config.imputers import build_imputer

VECTOR = Modality("genes", "table", (5,), columns=tuple("abcde"))
ALL = [*KINDS, VECTOR]
ALL_KINDS = {m.kind for m in ALL}
# Alone, a modality is recovered from its observed cells.
MIXES = [(m,) for m in ALL if m.kind in ("table", "series")] + list(itertools.combinations(ALL, 2))
SMALL = {
    "MoPoE": ["imputer.latent=6"],
    "CMVAE": ["imputer.shared=5", "imputer.private=3", "imputer.module.clusters=3"],
    "MMVAEPlus": ["imputer.shared=5", "imputer.private=3"],
    "IMI": ["imputer.module.trees=2"],
    "TIP": [
        *("imputer.image_encoder.architecture=resnet18", "imputer.module.blocks=1", "imputer.module.heads=2"),
        *(f"imputer.table_encoder.{key}" for key in ("width=16", "blocks=1", "heads=2")),
    ],
}
# Reads what is missing; made of the others.
NOT_TRIED = ("Oracle", "Chain")


@pytest.fixture(scope="module")
def configurations() -> dict[str, Any]:
    return {
        name: compose_config("dataset=CAD", f"imputer={name}", *SMALL.get(name, []))
        for name in group_options("imputer")
        if name not in NOT_TRIED
    }


def imputers(configurations: dict[str, Any], mix: tuple[Modality, ...]) -> dict[str, Imputer]:
    """The imputers that are made for these modalities, ready to recover."""
    data: Any = SimpleNamespace(modalities=list(mix), num_classes=2, task="multiclass")
    built = {}
    for name, cfg in configurations.items():
        torch.manual_seed(0)
        kinds = [m.kind for m in mix]
        method = get_object(cfg.imputer.module._target_)
        if not method.fits(kinds) or not set(kinds) & set(method.recovers or kinds):
            continue
        imputer = build_imputer(cfg, data, pretrained=False)
        if isinstance(imputer, FittedImputer):
            imputer.fit([batch_of(mix, torch.zeros(12, len(mix), dtype=torch.bool))])
        built[name] = imputer.move_to(torch.device("cpu"))
    return built


def patterns(mix: tuple[Modality, ...]) -> Batch:
    """Rows that lack each modality, nothing, and some cells of each table and series."""
    partial = [i for i, m in enumerate(mix) if m.kind in ("table", "series")]
    whole = list(range(len(mix))) if len(mix) > 1 else []
    missing = torch.zeros(len(whole) + 1 + len(partial), len(mix), dtype=torch.bool)
    for row, i in enumerate((*whole, None, *partial)):
        if i is not None:
            missing[row, i] = True
    cells = {}
    for i in partial:
        rows = missing[:, i].reshape(-1, *[1] * len(mix[i].shape))
        cells[mix[i].name] = rows.expand(-1, *mix[i].shape).clone()
        some = cells[mix[i].name][len(whole) + 1 + partial.index(i)]
        some[1::2] = False
    return batch_of(mix, missing, **cells)


def hidden(batch: Batch, i: int, name: str) -> Tensor:
    x = batch.inputs[name]
    return missing_content(x, name, batch.missing[:, i], batch.feature_missing).expand(x.shape)


def assert_valid(m: Modality, x: Tensor, like: Tensor) -> None:
    """The content is one that the data could have."""
    assert x.shape == like.shape and x.dtype == like.dtype and torch.isfinite(x.float()).all()
    for column, levels in enumerate(m.cardinalities):
        assert set(x[:, column].tolist()) <= set(range(levels))
    if m.vocabulary:
        assert x.min() >= 0 and x.max() < m.vocabulary
    elif m.kind == "text":  # probabilities of the symbols, or none
        assert x.min() >= 0 and x.sum(2).max() < 1 + 1e-4


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: "-".join(m.name for m in mix))
def test_recoveries_are_valid_and_read_nothing_that_is_missing(
    configurations: dict[str, Any], mix: tuple[Modality, ...]
) -> None:
    batch = patterns(mix)
    tried = imputers(configurations, mix)
    assert {"Zero", "MoPoE", "CMVAE", "MMVAEPlus"} <= tried.keys()
    assert ("IMI" in tried) == any(m.kind == "table" for m in mix)
    assert ("TIP" in tried) == (sorted(m.kind for m in mix) == ["image", "table"])
    for name, imputer in tried.items():
        recovered, unrecoverable = recover_possible(imputer, mix, batch)
        recovers = imputer.recovers or ALL_KINDS
        assert (unrecoverable is None) == all(m.kind in recovers for m in mix), name
        fixed = None
        if imputer.why_not_exported() is None:
            fixed, _ = recover_possible(imputer, mix, batch.replace(inputs=batch.observed()), is_fixed=True)
        for i, m in enumerate(mix):
            x, is_hidden = recovered[m.name], hidden(batch, i, m.name)
            assert_valid(m, x, batch.inputs[m.name])
            assert torch.equal(x[~is_hidden], batch.inputs[m.name][~is_hidden])
            if fixed is not None:
                torch.testing.assert_close(
                    fixed[m.name], x, atol=1e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
                )
        for value in (math.nan, 1e30):
            poisoned = {
                m.name: torch.where(hidden(batch, i, m.name), 10**6 if m.vocabulary else value, batch.inputs[m.name])
                for i, m in enumerate(mix)
            }
            again, _ = recover_possible(imputer, mix, batch.replace(inputs=poisoned, missing=batch.missing))
            assert all(torch.equal(again[key], x) for key, x in recovered.items()), (name, value)
        for row in range(len(batch)):
            alone, _ = recover_possible(imputer, mix, take_rows(batch, torch.tensor([row])))
            for key, x in recovered.items():
                torch.testing.assert_close(alone[key][0], x[row], atol=1e-5, rtol=1e-4)
