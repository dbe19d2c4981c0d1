"""ModDrop: adaptive multi-modal gesture recognition (Neverova et al., TPAMI 2016, arXiv 1501.00102).

Whole modalities are dropped at random while the fusion is trained, p = 0.5 each, at least one left
(docs/reference/baselines.md §2.3). On the token pipeline: the content of a missing modality's tokens is zero, its
embeddings of modality and position stay, and nothing is hidden from attention. Unlike the paper, and like DyMo's
comparison: a transformer in place of the MLP, no staged training. Cells of a table that are missing are zeroed one by
one, in training too.

``reference=true`` restores the modality index ``min(i, 1)``: all modalities after the first share an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.base import Prediction
from models.baselines.base import TokenBaseline


class ModDrop(TokenBaseline):
    """
    Args:
        encoders, width, heads, layers: see :meth:`models.tokens.TokenPipeline.add_tokens`.
        others: see :class:`models.baselines.base.Baseline`.
    """

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
        self.classifier = nn.Linear(width, num_classes)
        self.initialise_normal()

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        visible = self.visible(batch.missing, self.cells(batch.missing, batch.feature_missing))
        x = self.with_class_token(self.replace_missing(encoded, visible))
        for depth, block in enumerate(self.transformer):
            x = block(x, first_only=depth == len(self.transformer) - 1)
        return Prediction(self.classifier(x[:, 0]), x[:, 0])
