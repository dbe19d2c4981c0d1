"""Late fusion by a linear head on one vector per modality, the bound on complete data
(docs/reference/baselines.md §2.2).

``fusion``: ``concat``, one head on all vectors; ``sum``, the sum of the logits of one head per modality (the same
functions with another initialisation, where missing modalities do not even add a bias).

The method takes complete inputs. Incomplete scenarios need ``model.use_imputer=true``, or training with masks
(``model.module.masks.kind=bernoulli``, a control of ours), where the vectors of missing modalities are zero. The
original has additional, unused heads of its unimodal parts; ``reference`` has no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.base import Prediction
from models.baselines.base import VectorBaseline

FUSIONS = ("concat", "sum")


class MultimodalConcat(VectorBaseline):
    """Linear head on the vectors of all modalities.

    Args:
        encoders: see :meth:`models.baselines.base.VectorBaseline.add_encoders`.
        fusion: ``concat`` or ``sum``.
        others: see :class:`models.baselines.base.Baseline`.

    Attributes:
        watcher: called with the prediction and the batch of each training step
            (see :mod:`models.baselines.modulation`).
    """

    needs_imputer = True

    def __init__(
        self,
        modalities: Sequence[Modality],
        num_classes: int,
        encoders: Mapping[str, nn.Module],
        fusion: str = "concat",
        **others: Any,
    ) -> None:
        super().__init__(modalities, num_classes, **others)
        if fusion not in FUSIONS:
            raise ValueError(f"fusion={fusion}: must be {' or '.join(FUSIONS)}")
        self.add_encoders(encoders)
        self.fusion = fusion
        self.watcher: Callable[[Prediction, Batch], None] | None = None
        if fusion == "concat":
            self.classifier: nn.Module = nn.Linear(len(modalities) * self.vector_width, num_classes)
        else:
            self.classifier = nn.ModuleList(nn.Linear(self.vector_width, num_classes) for _ in modalities)

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        features = self.replace_missing(encoded, batch).flatten(1)
        if isinstance(self.classifier, nn.Linear):
            return Prediction(self.classifier(features), features)
        logits = torch.where(self.absent(batch)[..., None], 0, self.unimodal_logits(features))
        return Prediction(logits.sum(1), features)

    def unimodal_logits(self, features: Tensor) -> Tensor:
        """Features (B, M D) of a prediction -> shares of the modalities in its logits (B, M, C), which sum to the
        logits.

        A common bias is divided equally.
        """
        vectors = features.unflatten(1, (len(self.modalities), self.vector_width))
        if isinstance(self.classifier, nn.Linear):
            weights = self.classifier.weight.unflatten(1, (len(self.modalities), self.vector_width))
            return torch.einsum("bmd,cmd->bmc", vectors, weights) + self.classifier.bias / len(self.modalities)
        assert isinstance(self.classifier, nn.ModuleList)
        return torch.stack([head(vectors[:, i]) for i, head in enumerate(self.classifier)], 1)

    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        if self.watcher is not None and self.training:
            self.watcher(prediction, batch)
        return super().loss(prediction, batch)

    def architecture(self) -> dict[str, Any]:
        return super().architecture() | {"fusion": self.fusion}
