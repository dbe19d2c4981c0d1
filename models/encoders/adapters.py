"""Low-rank adapters of frozen transformers (docs/reference/cmpt.md §2.6)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft import LoraConfig, VeraConfig
from torch import Tensor, nn


@dataclass(frozen=True)
class Adapter:
    """Settings of low-rank adapters.

    Attributes:
        kind: ``lora``, ``dora`` or ``vera``; ``none`` trains nothing inside the network.
        rank, alpha, dropout: of the update alpha / rank * B A; VeRA has no alpha.
        targets: adapted projections of every block, letters out of q (query), k (key), v (value), o (attention output)
            and f (MLP output).
    """

    kind: str = "lora"
    rank: int = 1
    alpha: float = 1.0
    dropout: float = 0.1
    targets: str = "qkvo"

    def __post_init__(self) -> None:
        if self.kind not in ("none", "lora", "dora", "vera"):
            raise ValueError(f"adapter.kind={self.kind}: must be none, lora, dora or vera")
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"adapter: rank must be at least 1 (is {self.rank}), and dropout at least 0 and below 1 (is "
                f"{self.dropout})"
            )

    def config(self, pattern: str) -> LoraConfig | VeraConfig:
        """Configuration for peft; ``pattern`` is a regular expression of complete module names."""
        if self.kind == "vera":
            return VeraConfig(r=self.rank, vera_dropout=self.dropout, target_modules=pattern, bias="none")
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=pattern,
            use_dora=self.kind == "dora",
            bias="none",
        )


class SplitProjection(nn.Module):
    """Replace timm's fused projection of queries, keys and values by three, so that adapters can target one of them.

    The output is unchanged.
    """

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        width = fused.out_features // 3
        for i, letter in enumerate("qkv"):
            part = nn.Linear(fused.in_features, width, fused.bias is not None, fused.weight.device, fused.weight.dtype)
            rows = slice(i * width, (i + 1) * width)
            part.weight = nn.Parameter(fused.weight.detach()[rows].clone(), requires_grad=False)
            if fused.bias is not None:
                part.bias = nn.Parameter(fused.bias.detach()[rows].clone(), requires_grad=False)
            self.add_module(letter, part)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.children()], dim=-1)
