"""PatchTST (Nie et al., ICLR 2023, arXiv 2211.14730) as an encoder of series with missing cells; the network is that of
transformers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchSeriesEncoder(nn.Module):
    """(B, length, channels) -> (B, ceil(length / patch), width), one token per patch of time steps; with
    ``vector_width``, a linear map of their mean (B, 1, ``vector_width``).

    Every channel is embedded and transformed by itself, and a token is the mean over channels. A missing cell is 0, the
    training mean of a standardised channel.

    Args:
        length: time steps; a last patch is filled with zeros.
        patch: time steps per token, None = an eighth of the length, at least 1.
    """

    def __init__(
        self,
        length: int,
        channels: int,
        width: int = 128,
        patch: int | None = None,
        blocks: int = 3,
        heads: int = 4,
        vector_width: int | None = None,
    ) -> None:
        super().__init__()
        from transformers import PatchTSTConfig, PatchTSTModel  # slow to import

        patch = patch or max(1, length // 8)
        count = -(-length // patch)
        self.filled = count * patch
        self.tokens, self.width = (1, vector_width) if vector_width else (count, width)
        config = PatchTSTConfig(
            num_input_channels=channels,
            context_length=self.filled,
            patch_length=patch,
            patch_stride=patch,
            d_model=width,
            num_hidden_layers=blocks,
            num_attention_heads=heads,
            ffn_dim=2 * width,
            norm_type="layernorm",  # no statistics of other rows
            share_embedding=False,
            use_cls_token=False,
            scaling=None,
        )
        self.network = PatchTSTModel(config)
        self.proj = nn.Linear(width, vector_width) if vector_width else None

    def forward(self, x: Tensor, missing: Tensor | None = None) -> Tensor:
        """Encode series, with missing cells ``missing`` (B, length, channels) bool, True = missing."""
        if missing is not None:
            x = torch.where(missing, torch.zeros((), dtype=x.dtype, device=x.device), x)
        x = F.pad(x, (0, 0, 0, self.filled - x.shape[1]))
        tokens = self.network(past_values=x).last_hidden_state.mean(1)  # (B, channels, N, width) before the mean
        return tokens if self.proj is None else self.proj(tokens.mean(1, keepdim=True))
