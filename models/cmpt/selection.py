"""DyMo's selection on CMPT: whether a proxy may stand for what is missing is decided for each sample and modality.

CMPT substitutes always. Here a proxy is a recovery like any other: it is accepted where DyMo's reward (ICLR 2026, Eqs.
of the intra-class similarity) says that the fused feature stays as typical of a class as it was, and otherwise left out
of the sum. The features are those of Eq. 3 of CMPT, of unit norm for the cosine metric; class-wise Gaussian parameters
of every subset come from the class states of complete training rows, without any proxy.

Neither paper has this. CMPT is not trained with prototypes, so the posterior over them is one that nothing made sharp;
``selection.temperature`` is DyMo's. The statistics take S C D^2 doubles (S subsets, C classes): for 101 classes and
D = 768 1.4 GB.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.batch import Batch
from models.cmpt.cmpt import CMPT
from models.dymo.dynamic_transformer import Partial
from models.dymo.method import DyMo
from models.dymo.prototypes import COSINE


class ProxyBackbone(nn.Module):
    """CMPT as :class:`models.dymo.backbone.Backbone`.

    What :meth:`encode` gives are states (B, M, M, D); what :meth:`prepare` and :meth:`fuse_rows` take are the completed
    vectors (B, M, D) of :meth:`models.cmpt.cmpt.CMPT.complete`.

    Args:
        model: trained, with proxies.
    """

    def __init__(self, model: CMPT, distance_metric: str = COSINE) -> None:
        super().__init__()
        self.model, self.distance_metric = model, distance_metric
        self.modalities, self.num_classes = model.modalities, model.num_classes
        self.modality_names, self.feature_width = model.modality_names, model.width

    @property
    def device(self) -> torch.device:
        return self.model.device

    def encode(self, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor] | None = None) -> Tensor:
        return self.model.encode(inputs)

    def cells(self, missing: Tensor, feature_missing: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """None: no encoder of CMPT is one of tables."""
        return {}

    def encode_again(self, tokens: Tensor, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor]) -> Tensor:
        return tokens

    def fuse(self, tokens: Tensor, missing: Tensor, cells: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """States (B, M, M, D) under masks (B, M): the class states of what is there, no proxy."""
        return self._classify(tokens.diagonal(dim1=1, dim2=2).transpose(1, 2), missing)

    def fuse_subsets(self, tokens: Tensor, subsets: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for k, subset in enumerate(subsets.to(tokens.device)):
            logits, features = self.fuse(tokens, subset.expand(len(tokens), -1))
            yield torch.tensor([k]), logits[None], features[None]

    def prepare(self, tokens: Tensor, partial: Any = None) -> Tensor:
        return tokens

    def fuse_rows(self, sequences: Tensor, rows: Tensor, missing: Tensor, n_visible: int) -> tuple[Tensor, Tensor]:
        return self._classify(sequences[rows], missing)

    def _classify(self, vectors: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = self.model.classify(vectors, missing)
        return logits, F.normalize(features, dim=-1) if self.distance_metric == COSINE else features


class ProxySelection(DyMo):
    """:class:`models.dymo.method.DyMo` whose recoveries are the proxies; comparator ``impute_all`` is CMPT's own rule,
    ``discard`` never substitutes."""

    recovers_inputs = False
    takes_tables = False

    @torch.inference_mode()
    def complete(self, batch: Batch, tokens: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """
        Args:
            tokens: states (B, M, M, D), where the caller has them already.

        Returns:
            completed vectors (B, M, D); no inputs, for proxies have none.
        """
        model = self.backbone.model
        states = model.encode_batch(batch) if tokens is None else tokens
        return model.complete(states, batch.missing), {}

    def partial(self, batch: Batch) -> Partial | None:
        return None
