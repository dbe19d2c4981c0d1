"""Masked attention over the tokens of an image and a table with missing cells (arXiv 2605.12031; its code of 2026).

See docs/reference/masked-attention.md §3.5 to §3.9. Encoders (a ResNet, :class:`models.encoders.naim.NAIM`), first
trained separately, map each modality to tokens of width D: one token per column of a table, and the pooled vector of an
image split into D-wide pieces. Each token is multiplied by a learned vector of its modality, which the paper calls a
modality token. A small transformer of masked blocks (:mod:`models.layers.masked_attention`) masks missing tokens as
keys and as queries; a linear layer on its flattened states returns the logits. For robustness, training hides random
modalities (``masks``) and cells of tables (``feature_dropout``). Takes any number of modalities of any kind.

``freeze_encoders`` is early fusion in the paper's figures; ``gate: mul`` are its "modality tokens".

Ours: tokens of missing content are zero before the first block and before the head; missing cells are passed to the
encoder of a table; modalities are dropped after their encoders, so that blank images do not enter batch statistics;
labels without any row in a batch are excluded from the loss, which was NaN. ``reference=true`` reproduces the released
code where this changes numbers:

- missing cells are filled with zeros before the encoder of a table, whose mask has no effect, and their tokens enter
  the blocks unchanged (no token attends to them, and they attend to none);
- states of missing tokens enter the head;
- modalities are dropped before the encoders;
- each reduction of the learning rates resets the moments of the optimiser;
- encoders without weights are initialised Xavier uniform.

Not reproduced: the released code tests the weights of the last epoch, since its copy of the best ones is a reference to
the current ones (``model.monitor=null`` tests the last epoch, without early stopping), sorts the rows of each epoch by
the rarity of their labels, and drops the last, incomplete batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from datasets.batch import Modality
from models.base import Prediction
from models.layers.masked_attention import MaskedTransformer
from models.masked_attention.base import TokenFusion

GATES = ("mul", "add", "none")


class MaskedAttention(TokenFusion):
    """Transformer on the tokens of all modalities, masked where they are missing.

    Args:
        encoders, width: see :class:`models.masked_attention.base.TokenFusion`.
        heads, layers, hidden, mask_mode, pooling: see :class:`models.layers.masked_attention.MaskedTransformer`.
        gate: effect of a learned vector per modality on its tokens: ``mul`` scales, ``add`` shifts, ``none``.
        others: see :class:`models.masked_attention.base.TokenFusion`.

    Raises:
        ValueError: an argument out of range, or ``fill=inputs`` or ``fill=mixed`` with a mask.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        num_classes: int,
        encoders: Mapping[str, nn.Module],
        *,
        width: int = 1024,
        heads: int = 16,
        layers: int = 2,
        hidden: int = 1000,
        mask_mode: str = "double",
        pooling: str = "flatten",
        gate: str = "mul",
        **others: Any,
    ) -> None:
        super().__init__(modalities, num_classes, encoders, width=width, **others)
        if gate not in GATES:
            raise ValueError(f"gate={gate}: must be one of {', '.join(GATES)}")
        if self.fill != "tokens" and mask_mode != "none":
            raise ValueError(f"fill={self.fill}: it replaces the mask, set mask_mode=none instead of {mask_mode}")
        self.mask_mode, self.gate = mask_mode, gate
        columns = [i for i, count in enumerate(self.tokens_per_modality) for _ in range(count)]
        self.register_buffer("modality_of_token", torch.tensor(columns), persistent=False)
        self.modality_of_token: Tensor
        self.gates = nn.Parameter(torch.randn(len(modalities), width) * width**-0.5) if gate != "none" else None
        self.transformer = MaskedTransformer(width, heads, layers, hidden, mask_mode, pooling)
        self.classifier = nn.Linear(width * (sum(self.tokens_per_modality) if pooling == "flatten" else 1), num_classes)
        self.initialise()

    def mark(self, tokens: Tensor) -> Tensor:
        """Scale or shift tokens (B, P, D) by the vectors of their modalities."""
        if self.gates is None:
            return tokens
        vectors = self.gates[self.modality_of_token]
        return tokens * vectors if self.gate == "mul" else tokens + vectors

    def classify(self, tokens: Tensor, available: Tensor | None) -> Prediction:
        if self.mask_mode == "none":
            available = None
        tokens = self.mark(tokens)
        if self.gate == "add" and available is not None:
            tokens = torch.where(available[..., None], tokens, 0)
        states = self.transformer(tokens, available)
        features = self.transformer.pool(states, available, keep_missing=self.reference)
        return Prediction(self.classifier(features), features)

    def architecture(self) -> dict[str, Any]:
        return super().architecture() | {"mask_mode": self.mask_mode, "gate": self.gate}
