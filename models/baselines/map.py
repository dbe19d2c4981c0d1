"""MAP: Multimodal Prompting with Missing Modalities for Visual Recognition (Lee et al., CVPR 2023, arXiv 2303.03369).

Each of the 2^M - 1 patterns of missing modalities has learned prompts, which join the tokens of a row at the input of
each of the first ``depth`` blocks, so that the sequence grows by ``length`` a block (docs/reference/baselines.md §2.5).
The content of a missing modality's tokens is 1.0 (to blocks that begin with a LayerNorm, the same as 0.0), its
embeddings stay, and nothing is hidden from attention. The class token stands first and prompts last here, first in the
original: attention does not know the order. Unlike the paper, and like DyMo's comparison: the transformer is trained
from scratch with the prompts, instead of a frozen ViLT.

The paper's other kind of prompt, ``prompts=attention``, is a prefix of keys (first half) and values (second half) of
each block; the sequence keeps its length. The original's does not run.

A table with an observed cell counts as present. ``reference=true`` restores the prompts of the original, in which any
missing cell makes the table missing, while the observed cells still feed its tokens; the modality index ``min(i, 1)``:
all modalities after the first share an embedding; and one set of patterns for a whole batch.
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
    """
    Args:
        encoders, width, heads, layers: see :meth:`models.tokens.TokenPipeline.add_tokens`.
        prompts: ``input`` or ``attention``.
        length: prompts of a pattern in a block.
        depth: blocks with prompts.
        others: see :class:`models.baselines.base.Baseline`.
    """

    reference_hides_partial_tables = True
    max_modalities: ClassVar[int | None] = 10  # each of the 2^M - 1 patterns has prompts of its own

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
                f"prompts is one of {', '.join(KINDS)} (not {prompts}), depth 1 to {layers} (not {depth}), length at "
                f"least 1, and even with prompts=attention (not {length})"
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
        self.initialise_normal()

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        visible = self.visible(batch.missing, self.cells(batch.missing, batch.feature_missing))
        x = self.with_class_token(self.replace_missing(encoded, visible, 1.0))
        of_blocks = self.prompts[self.patterns[mask_code(self.absent(batch))]].unbind(1)
        for number, block in enumerate(self.transformer):
            last = number == len(self.transformer) - 1
            if number >= len(of_blocks):
                x = block(x, first_only=last)
            elif self.kind == "input":
                x = block(torch.cat([x, of_blocks[number]], dim=1), first_only=last)
            else:
                x = prefixed(block, x, of_blocks[number])  # type: ignore[arg-type]
        return Prediction(self.classifier(x[:, 0]), x[:, 0])


def prefixed(block: Block, x: Tensor, prompts: Tensor) -> Tensor:
    """A block on x (B, N, D) whose keys and values begin with the two halves of ``prompts`` (B, L, D)."""
    keys, values = prompts.chunk(2, dim=1)
    q, k, v = block.project(x).chunk(3, dim=-1)
    x = x + block.attn.attend(q, torch.cat([keys, k], dim=1), torch.cat([values, v], dim=1))
    return x + block.mlp(block.norm2(x))
