"""CMPT as a backbone of DyMo's selection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.batch import Batch
from models.base import Prediction
from models.dymo.prototypes import COSINE


class ProxyBackbone(nn.Module):
    """CMPT as :class:`models.dymo.backbone.Backbone`.

    :meth:`encode` returns states (B, M, M, D); :meth:`prepare` and :meth:`fuse_rows` take the completed vectors (B, M,
    D) of :meth:`models.cmpt.cmpt.CMPT.complete`.

    Args:
        model: a trained :class:`models.cmpt.cmpt.CMPT` with proxies.
    """

    def __init__(self, model: Any, distance_metric: str = COSINE) -> None:
        super().__init__()
        self.model, self.distance_metric = model, distance_metric
        self.modalities, self.num_classes = model.modalities, model.num_classes
        self.modality_names, self.feature_width = model.modality_names, model.width

    @property
    def device(self) -> torch.device:
        return self.model.device

    def encode(self, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor] | None = None) -> Tensor:
        return self.model.encode(inputs)

    def encode_again(self, tokens: Tensor, batch: Batch) -> Tensor:
        return tokens  # CMPT has no encoder of tables

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        """Classify by the class states of the observed modalities in ``encoded`` (B, M, M, D), without proxies."""
        return Prediction(*self._without_proxies(encoded, batch.missing))

    def _without_proxies(self, states: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
        return self._classify(states.diagonal(dim1=1, dim2=2).transpose(1, 2), missing)

    def fuse_subsets(self, tokens: Tensor, subsets: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for k, subset in enumerate(subsets.to(tokens.device)):
            logits, features = self._without_proxies(tokens, subset.expand(len(tokens), -1))
            yield torch.tensor([k]), logits[None], features[None]

    def prepare(self, tokens: Tensor, partial: Any = None) -> Tensor:
        return tokens

    def fuse_rows(self, sequences: Tensor, rows: Tensor, missing: Tensor, n_visible: int) -> tuple[Tensor, Tensor]:
        return self._classify(sequences[rows], missing)

    def fuse_masked(self, sequences: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
        return self._classify(sequences.repeat(missing.shape[0], 1, 1), missing.flatten(0, 1))

    def _classify(self, vectors: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = self.model.classify(vectors, missing)
        return logits, F.normalize(features, dim=-1) if self.distance_metric == COSINE else features
