"""What the rules read of a backbone: predictions on recoveries, and training rows with simulated masks."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from datasets.batch import Batch
from datasets.rows import take_rows
from models.dymo.backbone import Backbone
from models.dymo.lattice import Lattice
from models.dymo.rule import Candidates, Draws, Examples
from models.dymo.selection import groups_by_missing
from utils.errors import UserError
from utils.noise import hash_seed, row_uniform
from utils.subsets import enumerate_subsets

SEED = 2017  # of the masks of the examples


@torch.inference_mode()
def candidates_of(dymo: Any, batch: Batch, observed: Tensor, lattices: list[Lattice]) -> Candidates:
    """What the rules combine.

    Args:
        dymo: :class:`models.dymo.method.DyMo`.
        observed: (B, P, D) tokens of the true content.
        lattices: of the recovered content.
    """
    rules = dymo.rules
    candidates = Candidates(batch.missing, batch.index, lattices, dymo.unrecoverable(batch), is_drawn=dymo.has_draws)
    if rules.needs_features:
        candidates.observed = dymo.backbone.fuse(dymo.backbone.encode_again(observed, batch), batch).features
    if rules.needs_features or (rules.needs_draws and dymo.has_draws):
        numbers = range(rules.settings.draws) if dymo.has_draws else (None,)
        draws = [draw(dymo, batch, observed, number) for number in numbers]
        candidates.recovered = Draws(*(torch.stack(part) for part in zip(*draws, strict=True)))
    return candidates


@torch.inference_mode()
def draw(dymo: Any, batch: Batch, observed: Tensor, number: int | None) -> tuple[Tensor, Tensor]:
    """Logits (B, C) and features (B, D_p) of everything observed and recovered.

    Args:
        number: of the posterior draw; None = the recovery that the selection sees.
    """
    with nullcontext() if number is None else dymo.imputer.drawing(number):
        tokens, _ = dymo.complete(batch, observed)
    unrecoverable = dymo.unrecoverable(batch)
    missing = torch.zeros_like(batch.missing) if unrecoverable is None else unrecoverable
    return fuse_under(dymo.backbone, dymo.backbone.prepare(tokens, dymo.partial(batch)), missing)


def fuse_under(backbone: Backbone, sequences: Any, missing: Tensor) -> tuple[Tensor, Tensor]:
    """Every row under its own mask.

    Args:
        sequences: B samples, from ``backbone.prepare``.
        missing: (B, M) bool, True = missing.

    Returns:
        logits (B, C), features (B, D_p).
    """
    b, m = missing.shape
    logits = torch.empty(b, backbone.num_classes, device=missing.device)
    features = torch.empty(b, backbone.feature_width, device=missing.device)
    for k, rows in groups_by_missing(missing):
        logits[rows], features[rows] = backbone.fuse_rows(sequences, rows, missing[rows], m - k)
    return logits, features


def examples_of(dymo: Any, batches: Iterable[Batch], seed: int) -> Examples:
    """Examples of the complete training rows, each under a random mask that hides one modality at least, not all.

    Raises:
        UserError: there are none.
    """
    pieces = [piece for batch in batches if len(piece := _examples(dymo, batch, seed))]
    if not pieces:
        raise UserError(
            "comparator 'critic' learns from training rows that have every modality, of which the imputer recovers "
            "some, and there are none: leave it out of model.comparators"
        )
    return Examples(*(torch.cat(parts) for parts in zip(*(vars(piece).values() for piece in pieces), strict=True)))


@torch.inference_mode()
def _examples(dymo: Any, batch: Batch, seed: int) -> Examples:
    batch = take_rows(batch, ~batch.missing.any(1))
    subsets = enumerate_subsets(len(dymo.backbone.modalities))[:-1].to(batch.missing.device)
    uniform = row_uniform(batch.index, 1, hash_seed(SEED, seed))[:, 0]
    missing = subsets[((1 - uniform) * len(subsets)).long()]  # 1 - (0, 1] is in [0, 1)
    tokens = dymo.backbone.encode(batch.inputs)
    masked = batch.replace(missing=missing, feature_missing={})
    unrecoverable = dymo.unrecoverable(masked)
    hidden = torch.zeros_like(missing) if unrecoverable is None else unrecoverable
    _, recovered = draw(dymo, masked, tokens, 0 if dymo.has_draws else None)
    real = dymo.backbone.fuse(tokens, batch.replace(missing=hidden, feature_missing={})).features
    observed = dymo.backbone.fuse(tokens, masked).features
    examples = Examples(real, recovered, observed, missing, batch.index)[(missing & ~hidden).any(1)]
    return Examples(*(part.cpu() for part in vars(examples).values()))
