"""Unimodal classifier that initialises the encoders of the masked-attention model
(docs/reference/masked-attention.md §3.3, §3.4, §3.9): a linear layer on the concatenated tokens of a table, or on the
mean of the tokens of another modality.

Rows without the modality are excluded from training, and their logits are the class frequencies as in
:class:`models.baselines.unimodal.Unimodal`. ``reference`` keeps the states of missing cells in the flattened tokens,
and initialises encoders without weights Xavier uniform.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from datasets.rows import take_rows
from models.baselines.unimodal import Unimodal
from models.layers.masked_attention import xavier_initialisation
from models.masked_attention.training import StagedTraining


class TokenUnimodal(StagedTraining, Unimodal):
    """Linear classifier on the tokens of one modality.

    Args:
        encoders: modality name -> module with ``tokens`` (N) and ``width`` (W) and output (B, N, W).
        others: see :class:`models.masked_attention.training.StagedTraining` and
            :class:`models.baselines.unimodal.Unimodal`.
    """

    def __init__(
        self, modalities: Sequence[Modality], num_classes: int, encoders: Mapping[str, nn.Module], **others: Any
    ) -> None:
        super().__init__(modalities, num_classes, encoders, **others)
        self.modality = self.modalities[self.column]
        encoder: Any = self.encoders[self.modality.name]
        self.flattens = self.modality.kind == "table"
        self.classifier = nn.Linear(encoder.width * (encoder.tokens if self.flattens else 1), num_classes)
        xavier_initialisation(self if self.reference else self.classifier)

    def encode(self, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor] | None = None) -> Tensor:
        """Inputs -> (B, 1, N * W) of a table, (B, 1, W) of another modality."""
        name = self.modality.name
        tokens = self.encode_one(name, inputs, cells)
        if not self.flattens:
            return tokens.mean(1, keepdim=True)
        if cells and name in cells and cells[name].shape[1] == tokens.shape[1] and not self.reference:
            tokens = torch.where(cells[name][..., None], 0, tokens)
        return tokens.flatten(1)[:, None]

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        is_present = ~self.absent(batch)[:, self.column]
        n = self.rows_of_loss(batch)
        # Batch normalisation needs two rows; the loss ignores rows without the modality.
        if not batch.complete and is_present.sum() > 1:
            batch = take_rows(batch, is_present)
        batch = self.drop_features(batch, self.mask_generator(batch_index))
        losses = self.loss(self.fuse(self.encode_batch(batch), batch), batch)
        self.log_losses("train", losses, n)
        return losses["loss"]
