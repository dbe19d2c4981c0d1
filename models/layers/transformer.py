"""Pre-norm transformer block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.transfer import to_device


class Attention(nn.Module):
    """Multi-head self-attention with one fused, bias-free projection (layout: 3, heads, head width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None) -> Tensor:
        """Attention of projected queries.

        Args:
            q: (B, Nq, D); k, v: (B, N, D).
            visible: (B, N) bool, True = attend to the key, or (B, Nq, N) per query; None = all. The polarity is that of
                PyTorch's attention, opposite to ``missing``.

        Returns:
            (B, Nq, D) after the output projection.
        """
        return self.proj(attention(q, k, v, self.heads, visible))


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, visible: Tensor | None = None) -> Tensor:
    """Multi-head attention of projected q (B, Nq, D), k and v (B, N, D); ``visible`` as in :meth:`Attention.attend`."""
    b, nq, width = q.shape
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    mask = None if visible is None else visible[:, None] if visible.ndim == 3 else visible[:, None, None, :]
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return y.transpose(1, 2).reshape(b, nq, width)


class Mlp(nn.Module):
    """Linear - exact GELU - Linear, hidden width 4D."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x += Attn(LN(x)); x += MLP(LN(x)). No dropout (docs/reference/dymo.md §1.2)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def project(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, 3D): queries, keys and values. They do not depend on which other tokens are visible."""
        return self.attn.qkv(self.norm1(x))

    def mix(self, x: Tensor, qkv: Tensor, visible: Tensor | None = None, first_only: bool = False) -> Tensor:
        """Apply the block after ``qkv = project(x)``: (B, N, D), or (B, 1, D) of token 0 with ``first_only``."""
        q, k, v = qkv.chunk(3, dim=-1)
        if first_only:
            x, q = x[:, :1], q[:, :1]
        x = x + self.attn.attend(q, k, v, visible)
        return x + self.mlp(self.norm2(x))

    def forward(self, x: Tensor, visible: Tensor | None = None, first_only: bool = False) -> Tensor:
        """(B, N, D) -> (B, N, D), or (B, 1, D) with ``first_only``; ``visible`` as in :meth:`Attention.attend`."""
        if not first_only:
            return self.mix(x, self.project(x), visible)
        normed = self.norm1(x)
        width = x.shape[-1]
        weight = self.attn.qkv.weight
        q = F.linear(normed[:, :1], weight[:width])
        k, v = F.linear(normed, weight[width:]).chunk(2, dim=-1)
        x = x[:, :1] + self.attn.attend(q, k, v, visible)
        return x + self.mlp(self.norm2(x))


def is_normal(initialisation: str | None) -> bool:
    """Whether a method calls :func:`normal_initialisation`.

    Args:
        initialisation: ``normal`` or None as published, for wide networks; ``pytorch`` keeps PyTorch's own, with which
            networks of width 64 and below need fewer steps.

    Raises:
        ValueError: another name.
    """
    if initialisation not in (None, "normal", "pytorch"):
        raise ValueError(f"initialisation must be normal or pytorch, not {initialisation!r}")
    return initialisation != "pytorch"


def normal_initialisation(module: nn.Module) -> None:
    """Initialise linear and embedding weights ~ N(0, 0.02^2), linear biases to 0, and LayerNorm to 1 and 0.

    Modules with a true attribute ``pretrained``, and other parameters, are unchanged.
    """
    if getattr(module, "pretrained", False):
        return
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    for part in module.children():
        normal_initialisation(part)


def visible_tokens(missing: Tensor, tokens_per_modality: list[int]) -> Tensor:
    """Missing modalities (B, M) bool -> visible tokens (B, 1 + P) bool, always with the CLS token, which is first."""
    return F.pad(~missing[:, owners(tokens_per_modality, missing.device)], (1, 0), value=True)


def owners(tokens_per_modality: Sequence[int], device: torch.device) -> Tensor:
    """Modality of each token (P,) int64."""
    return to_device(torch.tensor([i for i, count in enumerate(tokens_per_modality) for _ in range(count)]), device)
