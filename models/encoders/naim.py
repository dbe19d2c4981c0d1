"""NAIM, "Not Another Imputation Method" (arXiv 2407.11540): a table -> one token per column, missing cells masked.

docs/reference/masked-attention.md §3.3. A cell becomes the row of its level in a table of its column, or its value
times the only row of that table; the last row of each is that of a missing cell: zero, without a gradient. The blocks
are :class:`models.layers.masked_attention.MaskedBlock`. A missing cell is no key of any other and gets nothing as a
query, so its state is a learned constant, the same in every row and column. Values enter as they are: the original
scales them to [0, 1] with the extremes of the training rows. A value of exactly 0 has the token of a missing cell
(``bias=true``, ours, tells them apart) but is attended to.

Alone it is a classifier: ``vector_width=C`` is the published head, the flattened states of the last block through a
linear layer. There, and before any head of a method, the states of missing cells are overwritten by zeros, which the
original leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.layers.masked_attention import MaskedTransformer


class NAIM(nn.Module):
    """(B, n) -> (B, n, width), categorical columns first; with ``vector_width`` (B, 1, ``vector_width``).

    381 columns, 374 of them binary, at width 1024: 13,662,160 parameters, and 5,462,030 of the head of 14 classes.

    Args:
        cardinalities: levels of the leading, categorical columns; their content is the code 0 .. levels-1.
        n_continuous: columns after those.
        width, heads, hidden, blocks: of the transformer; the published vision-tabular model has 1024, 16, 1000, 2, the
            tabular one 6, 3, 1000, 6.
        bias: add a learned vector of its column to every cell that is there.
        pooling: of the one vector, see :class:`models.layers.masked_attention.MaskedTransformer`.
        vector_width: for one vector in place of tokens.

    Raises:
        ValueError: no columns, or an argument that is out of range.
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
        # All tables one below the other.
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
        """
        Args:
            x: (B, n) float; the content of missing cells is never read. A code that is no level gives NaN.
            missing: (B, n) bool, True = missing; None = all cells are there.

        Returns:
            (B, n, width), a constant for missing cells; or (B, 1, vector_width).
        """
        available = None if missing is None else ~missing
        states = self.transformer(self.cells(x, missing), available)
        if self.proj is not None:
            return self.proj(self.transformer.pool(states, available))[:, None]
        return states if self.transformer.cls_token is None else states[:, 1:]

    def cells(self, x: Tensor, missing: Tensor | None = None) -> Tensor:
        """As :meth:`forward` -> (B, n, width) before the blocks, zero where a cell is missing."""
        if missing is not None:
            x = torch.where(missing, 0, x)
        n = len(self.cardinalities)
        codes, values = x[:, :n], x[:, n:]
        known = (codes >= 0) & (codes < self.levels)
        rows = self.first_rows.expand(len(x), -1).clone()
        rows[:, :n] += torch.where(known, codes, 0).long()
        # Never another level in its place: what is no level shows in the output.
        scale = torch.cat([torch.where(known, 1.0, torch.nan), values], dim=1)
        tokens = scale[..., None] * self.embedding(
            rows if missing is None else torch.where(missing, self.padding_rows, rows)
        )
        if self.bias is not None:
            tokens = tokens + self.bias
        # The rows of missing cells are zero already: this stops their gradient.
        return tokens if missing is None else torch.where(missing[..., None], 0, tokens)


def drop_cells(hidden: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """NAIM's regularisation (docs/reference/masked-attention.md §3.3.4): hide k of the n cells that a row has, k
    uniform on 1 .. n - 2, with the probability ``rate``; rows with n < 3 stay as they are.

    Args:
        hidden: (B, F) bool, cells that are missing already.
        generator: on the CPU.

    Returns:
        (B, F) bool.
    """
    gone = hidden.cpu()
    n = (~gone).sum(1)
    k = 1 + (torch.rand(len(gone), generator=generator) * (n - 2).clamp(min=0)).long()
    drops = (torch.rand(len(gone), generator=generator) < rate) & (n > 2)
    order = torch.where(gone, 2.0, torch.rand(gone.shape, generator=generator)).argsort(1).argsort(1)
    return hidden | (drops[:, None] & (order < k[:, None])).to(hidden.device)
