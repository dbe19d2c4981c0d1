"""ModDrop: adaptive multi-modal gesture recognition (Neverova et al., TPAMI 2016, arXiv 1501.00102).

The fusion is trained with modality dropout, p = 0.5, where at least one modality remains (docs/reference/baselines.md
§2.3). On the token pipeline, the content of the tokens of a missing modality is zero, its embeddings of modality and
position remain, and attention is not masked. Unlike in the paper, but as in the comparison of DyMo: a transformer
instead of the MLP, and no staged training. Tokens of missing cells of a table are set to zero one by one, also in
training.

``reference=true`` restores the modality index ``min(i, 1)``, by which all modalities after the first share an
embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.base import Prediction
from models.baselines.base import TokenBaseline


class ModDrop(TokenBaseline):
    """Transformer trained with modality dropout.

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
        self.initialise()

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        visible = self.visible(batch.missing, self.cells(batch.missing, batch.feature_missing))
        x = self.with_class_token(self.replace_missing(encoded, visible))
        for depth, block in enumerate(self.transformer):
            x = block(x, first_only=depth == len(self.transformer) - 1)
        return Prediction(self.classifier(x[:, 0]), x[:, 0])
