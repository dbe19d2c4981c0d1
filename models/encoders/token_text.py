"""Small transformer that encodes token ids as one token, the mean over all but the padding.

Trained from scratch, for methods without a pretrained language model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.readers.tokens import PADDING
from models.layers.transformer import Block, normal_initialisation


class TokenTextEncoder(nn.Module):
    """(B, L) integer ids -> (B, 1, width), or (B, 1, ``vector_width``); padding is masked.

    Args:
        vocabulary: number of ids.
        length: maximum text length L.
        blocks: number of blocks; 0 averages the embeddings.
    """

    tokens = 1

    def __init__(
        self,
        vocabulary: int,
        length: int,
        width: int = 128,
        blocks: int = 2,
        heads: int = 4,
        vector_width: int | None = None,
    ) -> None:
        super().__init__()
        self.width = vector_width or width
        self.embedding = nn.Embedding(vocabulary, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embeddings = nn.Parameter(torch.zeros(1, length, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.proj = nn.Linear(width, self.width)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embeddings, std=0.02)
        normal_initialisation(self)

    def forward(self, ids: Tensor) -> Tensor:
        # The ids of a missing text are arbitrary; one outside the table would abort the process on a GPU.
        ids = ids.clamp(0, self.embedding.num_embeddings - 1)
        visible = F.pad(ids != PADDING, (1, 0), value=True)  # (B, 1 + L), CLS token first
        x = torch.cat([self.cls_token.expand(len(ids), -1, -1), self.embedding(ids) + self.pos_embeddings], dim=1)
        for block in self.blocks:
            x = block(x, visible)
        x = torch.where(visible[..., None], self.norm(x), 0)
        return self.proj(x.sum(1, keepdim=True) / visible.sum(1)[:, None, None])
