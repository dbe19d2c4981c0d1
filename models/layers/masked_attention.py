"""The transformer of NAIM, MARIA and their vision-tabular successor: tokens that are missing neither see nor are seen
(docs/reference/masked-attention.md §3.3 and §3.5; arXiv 2407.11540, 2412.14810, 2605.12031).

A block is

    x1 = x + ReLU(W_o A V),  Q, K, V = ReLU(W_q n), ReLU(W_k n), ReLU(W_v n),  n = LN1(x)
    y = LN2(x1);  x2 = y + FF(y),

so that the second residual starts behind LN2. Projections of the attention have no bias. A missing token is no key, and
as a query it gets nothing: ``A = softmax(Q K^T / sqrt(d_h))`` over what is there, times both availabilities. The
original adds -1e9 to the scores before the softmax and takes the ReLU of weights and mask after it, which gives the
same numbers where it gives numbers, and NaN in half precision.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.transformer import attention

MASK_MODES = ("double", "key_only", "none")
POOLINGS = ("flatten", "mean", "cls")


class MaskedBlock(nn.Module):
    """
    Args:
        width: D.
        heads: among which D is split.
        hidden: units of the perceptron.
        mask_mode: ``double``; ``key_only``: missing tokens attend to what is there; ``none``: no mask.
    """

    def __init__(self, width: int, heads: int, hidden: int = 1000, mask_mode: str = "double") -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        if mask_mode not in MASK_MODES:
            raise ValueError(f"mask_mode={mask_mode}: must be one of {', '.join(MASK_MODES)}")
        self.heads, self.mask_mode = heads, mask_mode
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, available: Tensor | None) -> Tensor:
        """Projected (B, N, D) each -> (B, N, D) before the output projection; ``available`` as in :meth:`forward`."""
        if available is None or self.mask_mode == "none":
            return attention(q, k, v, self.heads)
        # A row of nothing sees its zeros: a softmax over no key would be NaN.
        y = attention(q, k, v, self.heads, available | ~available.any(1, keepdim=True))
        return torch.where(available[..., None], y, 0) if self.mask_mode == "double" else y

    def forward(self, x: Tensor, available: Tensor | None = None) -> Tensor:
        """
        Args:
            x: (B, N, D); finite at missing tokens too.
            available: (B, N) bool, True = there; None = all.

        Returns:
            (B, N, D).
        """
        n = self.norm1(x)
        q, k, v = (F.relu(part(n)) for part in (self.query, self.key, self.value))
        mixed = self.attend(q, k, v, available)
        y = self.norm2(x + F.relu(self.proj(mixed)))
        return y + self.fc2(F.relu(self.fc1(y)))


class MaskedTransformer(nn.Module):
    """Blocks and a final LayerNorm, with a CLS token in front where the pooling reads one.

    Args:
        layers: number of blocks.
        pooling: ``flatten``: all tokens side by side; ``mean``: of those that are there (zero where none is); ``cls``.
        others: see :class:`MaskedBlock`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        layers: int,
        hidden: int = 1000,
        mask_mode: str = "double",
        pooling: str = "flatten",
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling={pooling}: must be one of {', '.join(POOLINGS)}")
        self.pooling = pooling
        self.blocks = nn.ModuleList(MaskedBlock(width, heads, hidden, mask_mode) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * width**-0.5) if pooling == "cls" else None
        xavier_initialisation(self)

    def forward(self, x: Tensor, available: Tensor | None = None) -> Tensor:
        """(B, N, D) and ``available`` (B, N) bool -> (B, N, D), or (B, 1 + N, D) with the CLS token. The state of a
        missing token says nothing of its content where that was overwritten before."""
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
            available = None if available is None else F.pad(available, (1, 0), value=True)
        for block in self.blocks:
            x = block(x, available)
        return self.norm(x)

    def pool(self, states: Tensor, available: Tensor | None = None, keep_missing: bool = False) -> Tensor:
        """States of :meth:`forward` -> (B, N * D), or (B, D).

        Args:
            keep_missing: leave the states of missing tokens in the flattened row, as the original does.
        """
        if self.cls_token is not None:
            return states[:, 0]
        if available is not None and not keep_missing:
            states = torch.where(available[..., None], states, 0)
        if self.pooling == "flatten":
            return states.flatten(1)
        if available is None:
            return states.mean(1)
        return torch.where(available[..., None], states, 0).sum(1) / available.sum(1, keepdim=True).clamp(min=1)


def xavier_initialisation(module: nn.Module) -> None:
    """Linear and convolution weights Xavier uniform, their biases 0; parts whose attribute ``pretrained`` is true keep
    what they were given, all others what their constructor gave them."""
    if getattr(module, "pretrained", False):
        return
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    for part in module.children():
        xavier_initialisation(part)
