"""`Backbone`: the interface of a trained model to stage gaussian and to the selection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from datasets.batch import Batch, Modality
from models.base import Prediction


@dataclass
class Partial:
    """Tokens of the observed cells of partly missing tables, from an encoding that saw these cells alone. They stay
    visible while their modality is masked, beside the tokens of the complete (recovered) content.

    Attributes:
        tokens: (B, Q, D), one per cell, the tables one after the other.
        visible: (B, Q) bool, the observed cells.
        owner: (Q,) modality of each token.
    """

    tokens: Tensor
    visible: Tensor
    owner: Tensor

    def absent(self, rows: Tensor, m: int) -> Tensor:
        """(R, M) bool, of some rows (R,): all modalities except the tables with an observed cell."""
        seen = torch.zeros(len(rows), m, dtype=torch.long, device=rows.device)
        return seen.index_add(1, self.owner, self.visible[rows].long()) == 0


@dataclass
class Sequences:
    """Fusion input that all subsets share: tokens (B, 1 + P, D) with CLS first, followed by the Q tokens of
    ``partial``, and queries, keys and values of the first block (B, 1 + P + Q, 3D)."""

    x: Tensor
    qkv: Tensor
    partial: Partial | None = None


class Backbone(Protocol):
    """:class:`models.dymo.dynamic_transformer.DynamicTransformer`, or :class:`models.cmpt.selection.ProxyBackbone`.

    Attributes:
        modalities, num_classes: M and C.
        distance_metric: of the features, which have unit norm for cosine.
        feature_width: D_p.
    """

    modalities: list[Modality]
    num_classes: int
    distance_metric: str

    @property
    def modality_names(self) -> list[str]: ...
    @property
    def feature_width(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    def eval(self) -> Any: ...

    def encode(self, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor] | None = None) -> Tensor:
        """Inputs (B, ...) -> encodings (B, ...), as the methods below take them."""

    def encode_again(self, tokens: Tensor, batch: Batch) -> Tensor:
        """Encodings of :meth:`encode` with the partly missing tables of ``batch`` encoded under its cell masks."""

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        """Classify the observed content of a batch; features are (B, D_p)."""

    def fuse_subsets(self, tokens: Tensor, subsets: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Every row under each subset (K, M) -> ids (k,), logits (k, B, C), features (k, B, D_p)."""

    def prepare(self, tokens: Tensor, partial: Any = None) -> Any:
        """Completed tokens -> what :meth:`fuse_rows` takes."""

    def fuse_rows(self, sequences: Any, rows: Tensor, missing: Tensor, n_visible: int) -> tuple[Tensor, Tensor]:
        """Rows (R,), each under a mask (R, M) that leaves ``n_visible`` -> logits (R, C), features (R, D_p)."""

    def fuse_masked(self, sequences: Any, missing: Tensor) -> tuple[Tensor, Tensor]:
        """All B rows, each under K masks (K, B, M), without dropping masked tokens -> logits (K B, C), features
        (K B, D_p). For export, where no shape may depend on values."""
