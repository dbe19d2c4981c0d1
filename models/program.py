"""A trained method as a function of tensors, which can be exported (stage export, ``export.format``)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from datasets.batch import Batch, hide
from models.base import Method


class Program(nn.Module):
    """Encode, recover, select and classify, as far as the method does these.

    Args:
        method: trained, in eval mode, with :meth:`models.base.Method.why_not_exported` None.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(
        self, inputs: Mapping[str, Tensor], missing: Tensor, feature_missing: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """
        Args:
            inputs: modality name -> (B, ...), in the column order of ``missing``; missing content is arbitrary.
            missing: (B, M) bool, True = missing. A table is also marked where only some of its cells are missing.
            feature_missing: name of every table -> (B, F) bool, True = this cell is missing; read in rows whose table
                is marked.

        Returns:
            ``logits`` (B, C), and the method's :attr:`models.base.Method.program_outputs`.
        """
        rows = torch.zeros_like(missing[:, 0], dtype=torch.long)  # neither labels nor row numbers are read
        observed = hide(inputs, missing, feature_missing)
        prediction = self.method.forward_fixed(Batch(observed, missing, rows, rows, dict(feature_missing)))
        return {"logits": prediction.logits, **{key: prediction.extras[key] for key in self.method.program_outputs}}
