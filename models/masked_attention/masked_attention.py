"""Masked attention over the tokens of an image and a table with missing cells (arXiv 2605.12031; its code of 2026).

docs/reference/masked-attention.md §3.5 to §3.9. Encoders (a ResNet, :class:`models.encoders.naim.NAIM`), trained alone
first, turn each modality into tokens of width D: a token a column, and the pooled vector of an image split into D-wide
pieces. Each token is multiplied by a vector of its modality, which the paper calls a modality token. A small
transformer of masked blocks (:mod:`models.layers.masked_attention`) hides missing tokens as keys and as queries; a
linear layer on its flattened states gives the logits. Robustness comes from training: whole modalities (``masks``) and
cells of tables (``feature_dropout``) are hidden at random. Any number of modalities, of any kind.

What the paper's figures call early fusion is ``freeze_encoders``; its "modality tokens" are ``gate: mul``.

Ours: tokens of what is missing are zero before the first block and before the head; the encoder of a table knows which
cells are missing; modalities are dropped behind their encoders, whose batch normalisation sees no blank images; labels
that no row of a batch has are left out of the loss, which was NaN. ``reference=true`` restores what the released code
does where that changes numbers:

- cells are filled with zeros before the encoder of a table, whose own mask never takes effect, and their tokens enter
  the blocks as they are (as queries they get nothing, and no token sees them);
- states of missing tokens reach the head;
- modalities are dropped before the encoders;
- every fall of the learning rates forgets the moments of the optimiser;
- encoders without weights are initialised Xavier uniform.

Not restored: the released code tests the weights of the last epoch, since its copy of the best ones is a reference to
the current (``model.monitor=null`` tests the last epoch, without early stopping), orders each epoch's rows by how rare
their labels are, and leaves out its last, incomplete batch.
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
    """
    Args:
        encoders, width: see :class:`models.masked_attention.base.TokenFusion`.
        heads, layers, hidden, mask_mode, pooling: see :class:`models.layers.masked_attention.MaskedTransformer`.
        gate: what a learned vector of its modality does to a token: ``mul`` scales it, ``add`` shifts it, ``none``.
        others: see :class:`models.masked_attention.base.TokenFusion`.

    Raises:
        ValueError: an argument that is out of range, or ``fill=inputs`` or ``fill=mixed`` with a mask.
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
            raise ValueError(f"fill={self.fill}: nothing is left to mask, set mask_mode=none instead of {mask_mode}")
        self.mask_mode, self.gate = mask_mode, gate
        modality = [i for i, count in enumerate(self.tokens_per_modality) for _ in range(count)]
        self.register_buffer("modality_of_token", torch.tensor(modality), persistent=False)
        self.modality_of_token: Tensor
        self.gates = nn.Parameter(torch.randn(len(modalities), width) * width**-0.5) if gate != "none" else None
        self.transformer = MaskedTransformer(width, heads, layers, hidden, mask_mode, pooling)
        self.classifier = nn.Linear(width * (sum(self.tokens_per_modality) if pooling == "flatten" else 1), num_classes)
        self.initialise()

    def mark(self, tokens: Tensor) -> Tensor:
        """Tokens (B, P, D) with the vectors of their modalities."""
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
