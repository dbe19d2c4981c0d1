"""MTL: Are Multimodal Transformers Robust to Missing Modality? (Ma et al., CVPR 2022, arXiv 2204.05454).

One transformer is trained on every pattern of missing modalities at once, each with a class token of its own:
L = 1 / (2^M - 1) * sum_S CE(f(x; S), y) (docs/reference/baselines.md §2.4). A missing modality counts as tokens without
content, which the class token may not attend to; all other queries see them. Unlike the paper: no search for the layer
of fusion, one head for all patterns. The encoders run once a step, and what is repeated for each pattern are their
tokens.

A table with an observed cell counts as present. ``reference=true`` restores the class token of the original, for which
any missing cell makes the table missing, while the observed cells still feed its tokens; and the modality index
``min(i, 1)``: all modalities after the first share an embedding. What the data do not have stays hidden either way; the
original showed it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.base import Prediction
from models.baselines.base import TokenBaseline
from utils.subsets import mask_code, subset_lookup


class MTL(TokenBaseline):
    """
    Args:
        encoders, width, heads, layers: see :meth:`models.tokens.TokenPipeline.add_tokens`.
        others: see :class:`models.baselines.base.Baseline`.
    """

    reference_hides_partial_tables = True
    max_modalities: ClassVar[int | None] = 8  # a step goes through all 2^M - 1 patterns

    def __init__(
        self,
        modalities: Sequence[Modality],
        num_classes: int,
        encoders: Mapping[str, nn.Module],
        *,
        width: int = 128,
        heads: int = 4,
        layers: int = 2,
        **others: Any,
    ) -> None:
        super().__init__(modalities, num_classes, **others)
        self.reference_modality_index = self.reference
        self.add_tokens(encoders, width, heads, layers)
        self.register_buffer("patterns", subset_lookup(len(modalities)), persistent=False)
        self.patterns: Tensor
        self.cls_token = nn.Parameter(torch.zeros(2 ** len(modalities) - 1, 1, width))
        self.classifier = nn.Linear(width, num_classes)
        self.initialise_normal()

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        visible = self.visible(batch.missing, self.cells(batch.missing, batch.feature_missing))
        cls = self.cls_token[self.patterns[mask_code(self.absent(batch))]] + self.pos_embeddings[:, :1]
        x = torch.cat([cls, self.replace_missing(encoded, visible)], dim=1)
        for block in self.transformer[:-1]:
            x = block(x, hide_from_class_token(visible))
        x = self.transformer[-1](x, visible, first_only=True)
        return Prediction(self.classifier(x[:, 0]), x[:, 0])


def hide_from_class_token(visible: Tensor) -> Tensor:
    """(B, N) bool, True = visible -> (B, N, N), queries by keys: that for token 0, and everything for all others."""
    others = torch.arange(visible.shape[1], device=visible.device) > 0
    return visible[:, None, :] | others[None, :, None]
