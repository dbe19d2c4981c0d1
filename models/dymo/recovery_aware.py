"""Training of the backbone on recoveries (ours, not in the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.batch import Batch, Modality, rows_like
from models.dymo.backbone import Sequences
from models.imputers.base import Imputer, recover_possible
from utils.subsets import enumerate_subsets
from utils.transfer import to_device


def with_recoveries(
    batch: Batch, imputer: Imputer, modalities: Sequence[Modality], share: float, generator: torch.Generator
) -> Batch:
    """With probability ``share``, replace the inputs of each row outside a random subset by recoveries.

    Args:
        modalities: of the data set.
        generator: on the CPU.
    """
    if torch.rand((), generator=generator) >= share:
        return batch
    masked = hide_randomly(batch, imputer, modalities, generator)
    return batch.replace(inputs=_recover(imputer, modalities, masked)[0])


def hide_randomly(batch: Batch, imputer: Imputer, modalities: Sequence[Modality], generator: torch.Generator) -> Batch:
    """The batch under a mask that hides, beside what is missing, what is outside a random subset of each row and can be
    recovered; the subset may be all modalities."""
    names = imputer.recoverable(modalities)
    is_fixed = torch.tensor([m.name not in names for m in modalities])
    subsets = enumerate_subsets(len(modalities))
    subsets = subsets[~(subsets & is_fixed).any(1)]
    rows = torch.randint(len(subsets), (len(batch),), generator=generator)
    hidden = to_device(subsets[rows], batch.missing.device) | batch.missing
    hidden = torch.where(hidden.all(1, keepdim=True), batch.missing, hidden)
    unrecoverable = imputer.unrecoverable(modalities, hidden)
    if unrecoverable is not None:  # observed content that would not come back stays
        hidden = hidden & ~(unrecoverable & ~batch.missing)
    # All cells of a table that the subset hides are recovered.
    cells = {
        m.name: cells | ~rows_like(batch.missing[:, i], cells)
        for i, m in enumerate(modalities)
        if (cells := batch.feature_missing.get(m.name)) is not None
    }
    return batch.replace(missing=hidden, feature_missing=cells)


def _recover(imputer: Imputer, modalities: Sequence[Modality], batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
    """In float32 whatever the trainer's precision: these are the recoveries that a test sees."""
    with torch.no_grad(), torch.autocast(batch.missing.device.type, enabled=False):
        return recover_possible(imputer, modalities, batch)


def consistency_loss(model: Any, sequences: Sequences, batch: Batch, generator: torch.Generator) -> Tensor:
    """Mean over rows of KL(p(. | x_o) || p(. | x_o, x^)) for a random subset o of what a row has, and recoveries x^ of
    the others. The first distribution is the target and gets no gradient; labels are not read.

    Args:
        model: :class:`models.dymo.dynamic_transformer.DynamicTransformer` with an imputer.
        sequences: of the batch.
        generator: on the CPU.
    """
    masked = hide_randomly(batch, model.imputer, model.modalities, generator)
    inputs, unrecoverable = _recover(model.imputer, model.modalities, masked)
    with torch.no_grad():
        visible = model.visible(masked.missing, model.cells(masked.missing, masked.feature_missing))
        target, _ = model.fuse_prepared(sequences, visible)
    missing = torch.zeros_like(batch.missing) if unrecoverable is None else unrecoverable
    cells = model.cells(missing, batch.feature_missing)
    logits, _ = model.fuse_prepared(model.prepare(model.encode(inputs, cells)), model.visible(missing, cells))
    divergence = F.kl_div(logits.log_softmax(-1), target.log_softmax(-1), reduction="none", log_target=True).sum(1)
    is_recovered = (masked.missing & ~missing).any(1)
    return torch.where(is_recovered, divergence, 0).sum() / is_recovered.sum().clamp(min=1)
