"""Training of the backbone on recoveries (ours, not in the paper)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from datasets.batch import Batch, Modality, rows_like
from models.imputers.base import Imputer, recover_possible
from utils.subsets import enumerate_subsets


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
    names = imputer.recoverable(modalities)
    is_fixed = torch.tensor([m.name not in names for m in modalities])
    subsets = enumerate_subsets(len(modalities))
    subsets = subsets[~(subsets & is_fixed).any(1)]
    rows = torch.randint(len(subsets), (len(batch),), generator=generator)
    hidden = subsets[rows].to(batch.missing.device) | batch.missing
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
    # In float32 whatever the trainer's precision: these are the recoveries that a test sees.
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        masked = batch.replace(missing=hidden, feature_missing=cells)
        return batch.replace(inputs=recover_possible(imputer, modalities, masked)[0])
