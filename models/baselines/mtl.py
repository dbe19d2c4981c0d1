"""MTL: Are Multimodal Transformers Robust to Missing Modality? (Ma et al., CVPR 2022, arXiv 2204.05454).

One transformer is trained on all patterns of missing modalities simultaneously, with one class token per pattern:
L = 1 / (2^M - 1) * sum_S CE(f(x; S), y) (docs/reference/baselines.md §2.4). The tokens of a missing modality have no
content; the class token does not attend to them, but all others do. Unlike in the paper, the fusion layer is not
searched, and all patterns share one head. The encoders run once per step, and their tokens are repeated for each
pattern.

A table with an observed cell is present. ``reference=true`` restores the class token of the original, where any missing
cell makes a table missing although its tokens encode the observed cells; and the modality index ``min(i, 1)``, by which
all modalities after the first share an embedding. Missing content of the data is hidden in both cases, unlike in the
original.
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
    """Transformer with one class token per pattern of missing modalities.

    Args:
        encoders, width, heads, layers: see :meth:`models.tokens.TokenPipeline.add_tokens`.
        others: see :class:`models.baselines.base.Baseline`.
    """

    reference_hides_partial_tables = True
    max_modalities: ClassVar[int | None] = 8  # a step uses all 2^M - 1 patterns

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
        self.initialise()

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        visible = self.visible(batch.missing, self.cells(batch.missing, batch.feature_missing))
        cls = self.cls_token[self.patterns[mask_code(self.absent(batch))]] + self.pos_embeddings[:, :1]
        x = torch.cat([cls, self.replace_missing(encoded, visible)], dim=1)
        for block in self.transformer[:-1]:
            x = block(x, hide_from_class_token(visible))
        x = self.transformer[-1](x, visible, first_only=True)
        return Prediction(self.classifier(x[:, 0]), x[:, 0])


def hide_from_class_token(visible: Tensor) -> Tensor:
    """Visible tokens (B, N) bool -> attention mask (B, N, N): applies to token 0 only, all others attend to all."""
    others = torch.arange(visible.shape[1], device=visible.device) > 0
    return visible[:, None, :] | others[None, :, None]
