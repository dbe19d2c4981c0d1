"""TIP's tabular transformer (ECCV 2024, arXiv 2407.07582): one token per column, with missing cells.

A cell is embedded by its level, or by a linear map of its value (a z-score); a missing cell is replaced by a learned
token, to which no other cell attends (docs/reference/dymo.md §1.4). Parameters are named as in the original.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.transformer import Block, normal_initialisation
from utils.weights import load_part


class TableEncoder(nn.Module):
    """(B, n) -> (B, n, width), categorical columns first; with ``vector_width``, a linear map of the CLS token
    (B, 1, ``vector_width``).

    Args:
        cardinalities: number of levels of the leading, categorical columns, whose values are codes 0 .. levels - 1.
        n_continuous: number of continuous columns, which follow.
        weights: ``none``, or a checkpoint with the entries ``encoder_tabular.`` (TIP) or ``m_encoders.tabular.``
            (DyMo).
    """

    def __init__(
        self,
        cardinalities: Sequence[int],
        n_continuous: int,
        width: int = 512,
        blocks: int = 4,
        heads: int = 8,
        weights: str = "none",
        vector_width: int | None = None,
    ) -> None:
        super().__init__()
        self.cardinalities, self.n_continuous = tuple(cardinalities), n_continuous
        columns = len(self.cardinalities) + n_continuous
        if not columns:
            raise ValueError("a table without columns cannot be encoded")
        self.tokens, self.width = (1, vector_width) if vector_width else (columns, width)
        self.cat_embedding = nn.Embedding(sum(self.cardinalities), width) if self.cardinalities else None
        self.con_proj = nn.Linear(1, width) if n_continuous else None
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_special_token = nn.Parameter(torch.zeros(1, 1, width))
        self.column_embedding = nn.Embedding(columns + 1, width)
        self.norm = nn.LayerNorm(width)
        self.transformer_blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        levels = torch.tensor(self.cardinalities, dtype=torch.long)
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("cat_offsets", levels.cumsum(0) - levels, persistent=False)
        self.levels: Tensor
        self.cat_offsets: Tensor
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.mask_special_token, std=0.02)
        normal_initialisation(self)
        self.pretrained = weights != "none"
        if self.pretrained:
            load_part(self, Path(weights), ("encoder_tabular.", "m_encoders.tabular."), "table encoder")
        self.proj = nn.Linear(width, vector_width) if vector_width else None

    def forward(self, x: Tensor, missing: Tensor | None = None) -> Tensor:
        """Encode rows of a table.

        Args:
            x: (B, n) float; the content of missing cells is never read. An invalid code yields NaN.
            missing: (B, n) bool, True = missing; None = all cells are observed.

        Returns:
            (B, n, width), with tokens of missing cells; or (B, 1, vector_width).
        """
        if self.proj is not None:
            return self.proj(self.encode(x, missing)[:, :1])
        return self.encode(x, missing)[:, 1:]

    def encode(self, x: Tensor, missing: Tensor | None = None) -> Tensor:
        """Encode as :meth:`forward`, with the CLS token first: (B, 1 + n, width)."""
        visible = None
        cells = self._cells(x if missing is None else torch.where(missing, 0, x))
        if missing is not None:
            cells = torch.where(missing[..., None], self.mask_special_token, cells)
            # Only the missing cell itself attends to it: visible is (B, 1 + n, 1 + n).
            keys = F.pad(~missing, (1, 0), value=True)
            visible = keys[:, None] | torch.eye(keys.shape[1], dtype=torch.bool, device=keys.device)
        cells = torch.cat([self.cls_token.expand(len(x), -1, -1), cells], dim=1)
        y = self.norm(cells + self.column_embedding.weight)
        for block in self.transformer_blocks:
            y = block(y, visible)
        return y

    def _cells(self, x: Tensor) -> Tensor:
        """(B, n) -> (B, n, width) before column embedding and norm."""
        parts = []
        n = len(self.cardinalities)
        if self.cat_embedding is not None:
            codes = x[:, :n]
            is_valid = (codes >= 0) & (codes < self.levels)
            rows = torch.where(is_valid, codes, 0).long() + self.cat_offsets
            # NaN makes invalid codes visible in the output.
            parts.append(torch.where(is_valid[..., None], self.cat_embedding(rows), torch.nan))
        if self.con_proj is not None:
            parts.append(self.con_proj(x[:, n:, None]))
        return torch.cat(parts, dim=1)
