"""Average pooling of any token encoder."""

from __future__ import annotations

from torch import Tensor, nn


class PooledEncoder(nn.Module):
    """(B, ...) -> (B, 1, width): a linear map of the mean of the tokens (for a ResNet, its average pooling).

    Args:
        encoder: returns tokens (B, N, D), with the attribute ``width`` (D).
    """

    tokens = 1
    takes_cells = False

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder, self.width = encoder, width
        self.proj = nn.Linear(int(encoder.width), width)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.encoder(x).mean(1, keepdim=True))
