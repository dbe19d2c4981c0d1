"""Transformer of NAIM, MARIA and their vision-tabular successor, with missing tokens masked as keys and queries
(docs/reference/masked-attention.md §3.3 and §3.5; arXiv 2407.11540, 2412.14810, 2605.12031).

A block is

    x1 = x + ReLU(W_o A V),  Q, K, V = ReLU(W_q n), ReLU(W_k n), ReLU(W_v n),  n = LN1(x)
    y = LN2(x1);  x2 = y + FF(y),

where the second residual starts after LN2. The attention projections have no bias. ``A = softmax(Q K^T / sqrt(d_h))``
over the observed keys, and zero for missing queries. The original adds -1e9 to the scores before the softmax and takes
the ReLU of weights and mask after it, which is equivalent, but yields NaN in half precision.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.transformer import attention

MASK_MODES = ("double", "key_only", "none")
POOLINGS = ("flatten", "mean", "cls")


class MaskedBlock(nn.Module):
    """Transformer block with missing tokens masked.

    Args:
        width: D.
        heads: number of attention heads.
        hidden: hidden units of the MLP.
        mask_mode: ``double``: mask keys and queries; ``key_only``: missing tokens attend to observed ones; ``none``.
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
        """Attention of projected q, k, v (B, N, D) -> (B, N, D) before the output projection."""
        if available is None or self.mask_mode == "none":
            return attention(q, k, v, self.heads)
        # A row without observed tokens attends to all: a softmax over no key would be NaN.
        y = attention(q, k, v, self.heads, available | ~available.any(1, keepdim=True))
        return torch.where(available[..., None], y, 0) if self.mask_mode == "double" else y

    def forward(self, x: Tensor, available: Tensor | None = None) -> Tensor:
        """Apply the block.

        Args:
            x: (B, N, D); also finite for missing tokens.
            available: (B, N) bool, True = observed; None = all.

        Returns:
            (B, N, D).
        """
        n = self.norm1(x)
        q, k, v = (F.relu(part(n)) for part in (self.query, self.key, self.value))
        mixed = self.attend(q, k, v, available)
        y = self.norm2(x + F.relu(self.proj(mixed)))
        return y + self.fc2(F.relu(self.fc1(y)))


class MaskedTransformer(nn.Module):
    """Blocks and a final LayerNorm, with a CLS token in front if ``pooling`` uses it.

    Args:
        layers: number of blocks.
        pooling: ``flatten``: concatenate all tokens; ``mean`` of the observed tokens (zero without any); ``cls``.
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
        """Tokens (B, N, D) and ``available`` (B, N) bool -> states (B, N, D), or (B, 1 + N, D) with the CLS token.

        The state of a missing token depends on its content unless that was overwritten before.
        """
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
            available = None if available is None else F.pad(available, (1, 0), value=True)
        for block in self.blocks:
            x = block(x, available)
        return self.norm(x)

    def pool(self, states: Tensor, available: Tensor | None = None, keep_missing: bool = False) -> Tensor:
        """States of :meth:`forward` -> (B, N * D) if flattened, else (B, D).

        Args:
            keep_missing: keep the states of missing tokens when flattening, as in the original.
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
    """Initialise weights of linear layers and convolutions Xavier uniform, and their biases to 0.

    Modules with a true attribute ``pretrained``, and other parameters, are unchanged.
    """
    if getattr(module, "pretrained", False):
        return
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    for part in module.children():
        xavier_initialisation(part)
