"""What the Gaussian stage and the selection ask of a trained model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from datasets.batch import Modality


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
        """Inputs (B, ...) -> (B, ...), whatever the other methods take."""

    def cells(self, missing: Tensor, feature_missing: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
    def encode_again(self, tokens: Tensor, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor]) -> Tensor: ...

    def fuse(self, tokens: Tensor, missing: Tensor, cells: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """What is there alone -> logits (B, C), features (B, D_p)."""

    def fuse_subsets(self, tokens: Tensor, subsets: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Every row under each subset (K, M) -> ids (k,), logits (k, B, C), features (k, B, D_p)."""

    def prepare(self, tokens: Tensor, partial: Any = None) -> Any:
        """Completed tokens -> what :meth:`fuse_rows` takes."""

    def fuse_rows(self, sequences: Any, rows: Tensor, missing: Tensor, n_visible: int) -> tuple[Tensor, Tensor]:
        """Rows (R,), each under a mask (R, M) that leaves ``n_visible`` -> logits (R, C), features (R, D_p)."""
