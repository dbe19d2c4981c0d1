"""MAP: Multimodal Prompting with Missing Modalities for Visual Recognition (Lee et al., CVPR 2023, arXiv 2303.03369).

Each of the 2^M - 1 patterns of missing modalities has learned prompts, which are appended to the tokens of a row in
front of each of the first ``depth`` blocks, so that the sequence grows by ``length`` per block
(docs/reference/baselines.md §2.5). The content of the tokens of a missing modality is 1.0 (equal to 0.0 for blocks that
start with a LayerNorm), its embeddings remain, and attention is not masked. The original puts prompts in front of the
class token, which is equivalent. Unlike in the paper, but as in the comparison of DyMo, the transformer is trained from
scratch with the prompts, instead of a frozen ViLT.

The second kind of prompts in the paper, ``prompts=attention``, is a prefix of keys (first half) and values (second
half) of a block, which does not extend the sequence. The original implementation of it does not run.

A table with an observed cell is present. ``reference=true`` restores the prompts of the original, where any missing
cell makes a table missing although its tokens encode the observed cells; the modality index ``min(i, 1)``, by which all
modalities after the first share an embedding; and masks drawn per batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.base import Prediction
from models.baselines.base import TokenBaseline
from models.layers.transformer import Block
from utils.subsets import mask_code, subset_lookup

KINDS = ("input", "attention")


class MAP(TokenBaseline):
    """Transformer with prompts by pattern of missing modalities.

    Args:
        encoders, width, heads, layers: see :meth:`models.tokens.TokenPipeline.add_tokens`.
        prompts: ``input`` or ``attention``.
        length: number of prompts per pattern and block.
        depth: number of blocks with prompts.
        others: see :class:`models.baselines.base.Baseline`.
    """

    reference_hides_partial_tables = True
    max_modalities: ClassVar[int | None] = 10  # prompts for 2^M - 1 patterns

    def __init__(
        self,
        modalities: Sequence[Modality],
        num_classes: int,
        encoders: Mapping[str, nn.Module],
        *,
        width: int = 128,
        heads: int = 4,
        layers: int = 2,
        prompts: str = "input",
        length: int = 12,
        depth: int = 2,
        **others: Any,
    ) -> None:
        super().__init__(modalities, num_classes, **others)
        if prompts not in KINDS or not 0 < depth <= layers or length < 1 or (prompts == "attention" and length % 2):
            raise ValueError(
                f"prompts must be one of {', '.join(KINDS)} (is {prompts}), depth from 1 to {layers} (is {depth}), and "
                f"length at least 1, and even with prompts=attention (is {length})"
            )
        if self.reference:
            self.masks = replace(self.masks, per="batch")
        self.kind = prompts
        self.reference_modality_index = self.reference
        self.add_tokens(encoders, width, heads, layers)
        self.register_buffer("patterns", subset_lookup(len(modalities)), persistent=False)
        self.patterns: Tensor
        self.prompts = nn.Parameter(torch.zeros(2 ** len(modalities) - 1, depth, length, width))
        self.classifier = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.prompts, std=0.02)
        self.initialise()

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        visible = self.visible(batch.missing, self.cells(batch.missing, batch.feature_missing))
        x = self.with_class_token(self.replace_missing(encoded, visible, 1.0))
        block_prompts = self.prompts[self.patterns[mask_code(self.absent(batch))]].unbind(1)
        for number, block in enumerate(self.transformer):
            is_last = number == len(self.transformer) - 1
            if number >= len(block_prompts):
                x = block(x, first_only=is_last)
            elif self.kind == "input":
                x = block(torch.cat([x, block_prompts[number]], dim=1), first_only=is_last)
            else:
                x = prefixed(block, x, block_prompts[number])  # type: ignore[arg-type]
        return Prediction(self.classifier(x[:, 0]), x[:, 0])


def prefixed(block: Block, x: Tensor, prompts: Tensor) -> Tensor:
    """Apply a block to x (B, N, D), with the halves of ``prompts`` (B, L, D) as prefix of its keys and values."""
    keys, values = prompts.chunk(2, dim=1)
    q, k, v = block.project(x).chunk(3, dim=-1)
    x = x + block.attn.attend(q, torch.cat([keys, k], dim=1), torch.cat([values, v], dim=1))
    return x + block.mlp(block.norm2(x))
