"""NAIM, "Not Another Imputation Method" (arXiv 2407.11540): one token per column of a table, missing cells masked.

See docs/reference/masked-attention.md §3.3. Each column has an embedding table: a categorical cell is embedded as the
row of its level, a continuous one as its value times the only row. The last row is for missing cells and is zero,
without a gradient. The blocks are :class:`models.layers.masked_attention.MaskedBlock`. No cell attends to a missing
cell, and a missing cell attends to none, so that its state is a learned constant, the same in every row and column.
Values are not rescaled; the original scales them to [0, 1] by the extremes of the training rows. A value of exactly 0
has the token of a missing cell (unless ``bias=true``, ours), but is attended to.

With ``vector_width=C`` it is the published classifier: a linear layer on the flattened states of the last block. In
front of this and any other head, the states of missing cells are overwritten with zeros, unlike in the original.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.layers.masked_attention import MaskedTransformer


class NAIM(nn.Module):
    """(B, n) -> (B, n, width), categorical columns first; with ``vector_width`` (B, 1, ``vector_width``).

    381 columns, 374 of them binary, at width 1024: 13,662,160 parameters, plus 5,462,030 in the head of 14 classes.

    Args:
        cardinalities: number of levels of the leading, categorical columns, whose values are codes 0 .. levels - 1.
        n_continuous: number of continuous columns, which follow.
        width, heads, hidden, blocks: of the transformer; 1024, 16, 1000, 2 in the published vision-tabular model, 6, 3,
            1000, 6 in the tabular one.
        bias: add a learned vector per column to every observed cell.
        pooling: with ``vector_width``, see :class:`models.layers.masked_attention.MaskedTransformer`.
        vector_width: return one vector of this width instead of tokens.

    Raises:
        ValueError: no columns, or an argument out of range.
    """

    def __init__(
        self,
        cardinalities: Sequence[int],
        n_continuous: int,
        width: int = 1024,
        heads: int = 16,
        blocks: int = 2,
        hidden: int = 1000,
        bias: bool = False,
        pooling: str = "flatten",
        vector_width: int | None = None,
    ) -> None:
        super().__init__()
        self.cardinalities, self.n_continuous = tuple(cardinalities), n_continuous
        columns = len(self.cardinalities) + n_continuous
        if not columns:
            raise ValueError("a table without columns cannot be encoded")
        self.tokens, self.width = (1, vector_width) if vector_width else (columns, width)
        self.pretrained = False
        counts = [levels + 1 for levels in self.cardinalities] + [2] * n_continuous
        rows = torch.tensor(counts)
        last = rows.cumsum(0) - 1
        # The tables of all columns, concatenated.
        self.embedding = nn.Embedding(sum(counts), width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        with torch.no_grad():
            self.embedding.weight[last] = 0
        self.bias = nn.Parameter(torch.randn(columns, width) * width**-0.5) if bias else None
        self.transformer = MaskedTransformer(width, heads, blocks, hidden, pooling=pooling)
        self.register_buffer("levels", torch.tensor(self.cardinalities, dtype=torch.long), persistent=False)
        self.register_buffer("first_rows", last - rows + 1, persistent=False)
        self.register_buffer("padding_rows", last, persistent=False)
        self.levels: Tensor
        self.first_rows: Tensor
        self.padding_rows: Tensor
        self.proj: nn.Linear | None = None
        if vector_width:
            self.proj = nn.Linear(width * (columns if pooling == "flatten" else 1), vector_width)
            nn.init.xavier_uniform_(self.proj.weight)
            nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor, missing: Tensor | None = None) -> Tensor:
        """Encode rows of a table.

        Args:
            x: (B, n) float; the content of missing cells is never read. An invalid code yields NaN.
            missing: (B, n) bool, True = missing; None = all cells are observed.

        Returns:
            (B, n, width), a constant for missing cells; or (B, 1, vector_width).
        """
        available = None if missing is None else ~missing
        states = self.transformer(self.cells(x, missing), available)
        if self.proj is not None:
            return self.proj(self.transformer.pool(states, available))[:, None]
        return states if self.transformer.cls_token is None else states[:, 1:]

    def cells(self, x: Tensor, missing: Tensor | None = None) -> Tensor:
        """Embedded cells (B, n, width), zero where missing; arguments as in :meth:`forward`."""
        if missing is not None:
            x = torch.where(missing, 0, x)
        n = len(self.cardinalities)
        codes, values = x[:, :n], x[:, n:]
        is_valid = (codes >= 0) & (codes < self.levels)
        rows = self.first_rows.expand(len(x), -1).clone()
        rows[:, :n] += torch.where(is_valid, codes, 0).long()
        # NaN makes invalid codes visible in the output.
        scale = torch.cat([torch.where(is_valid, 1.0, torch.nan), values], dim=1)
        tokens = scale[..., None] * self.embedding(
            rows if missing is None else torch.where(missing, self.padding_rows, rows)
        )
        if self.bias is not None:
            tokens = tokens + self.bias
        # Missing cells have zero rows already: this stops their gradient.
        return tokens if missing is None else torch.where(missing[..., None], 0, tokens)


def drop_cells(hidden: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """NAIM's regularisation (docs/reference/masked-attention.md §3.3.4): with probability ``rate``, hide k of the n
    observed cells of a row, k uniform on 1 .. n - 2; rows with n < 3 are unchanged.

    Args:
        hidden: (B, F) bool, missing cells.
        generator: on the CPU.

    Returns:
        (B, F) bool.
    """
    missing = hidden.cpu()
    n = (~missing).sum(1)
    k = 1 + (torch.rand(len(missing), generator=generator) * (n - 2).clamp(min=0)).long()
    is_regularised = (torch.rand(len(missing), generator=generator) < rate) & (n > 2)
    # Random rank of each observed cell in its row; missing cells come last.
    ranks = torch.where(missing, 2.0, torch.rand(missing.shape, generator=generator)).argsort(1).argsort(1)
    return hidden | (is_regularised[:, None] & (ranks < k[:, None])).to(hidden.device)
