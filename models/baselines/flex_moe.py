"""Flex-MoE: modeling arbitrary modality combination via the flexible mixture-of-experts (Yun et al., NeurIPS 2024,
arXiv 2410.08245), with a dense mixture.

Each modality is one token. A missing one is replaced by a learned token from a bank with one token per pair of observed
combination and missing modality. The transformer blocks have a mixture of experts instead of an MLP. A router scores
the experts for each token, whose output is the average of the k best experts, weighted by the softmax of their scores.
Complete rows train the experts to generalise: their routing is balanced (squared coefficient of variation of the gates'
sums). Incomplete rows train them to specialise: the expert of the observed combination is always among the k, and a
cross-entropy trains the router to rank it first. Each row is trained with its observed modalities and under a drawn
mask.

    L = CE + weight * (balance of complete rows + cross-entropy of the router on incomplete rows), averaged over blocks.

All experts are computed for every token, with weight 0 if they are not selected, which equals sparse dispatch without a
library. Also ours: combinations share experts if there are fewer experts than combinations (expert 0 is that of the
full set); rows are not sorted by the number of their modalities, so that every step has complete and incomplete rows;
gates have neither noise nor load estimates. The original comparison lacks this method: ``reference`` has no effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.base import Prediction
from models.baselines.base import VectorBaseline
from models.layers.transformer import Attention
from utils.subsets import mask_code, subset_lookup


class DenseMixture(nn.Module):
    """MLPs D - ``hidden`` - D (GELU), of which each token uses ``chosen``."""

    def __init__(self, width: int, hidden: int, experts: int, chosen: int) -> None:
        super().__init__()
        if not 1 <= chosen <= experts:
            raise ValueError(f"chosen={chosen}: must be from 1 to the number of experts, {experts}")
        self.chosen = chosen
        self.router = nn.Linear(width, experts, bias=False)
        into, out = width**-0.5, hidden**-0.5
        self.weight_in = nn.Parameter(torch.empty(experts, width, hidden).uniform_(-into, into))
        self.bias_in = nn.Parameter(torch.empty(experts, 1, hidden).uniform_(-into, into))
        self.weight_out = nn.Parameter(torch.empty(experts, hidden, width).uniform_(-out, out))
        self.bias_out = nn.Parameter(torch.empty(experts, 1, width).uniform_(-out, out))

    def gates(self, scores: Tensor, fixed: Tensor) -> Tensor:
        """Weights (T, E) of the experts per token, which sum to 1; 0 for all but the selected ones.

        Args:
            scores: (T, E).
            fixed: (T,) index of an expert that is always selected, -1 = none.
        """
        is_fixed = F.one_hot(fixed.clamp(min=0), scores.shape[1]).bool() & (fixed >= 0)[:, None]
        best = scores.masked_fill(is_fixed, torch.inf).topk(self.chosen, dim=1).indices
        is_chosen = torch.zeros_like(is_fixed).scatter(1, best, True)
        return scores.masked_fill(~is_chosen, -torch.inf).softmax(1)

    def forward(self, x: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (T, D) -> outputs (T, D), scores (T, E) and gates (T, E)."""
        scores = self.router(x)
        gates = self.gates(scores, fixed)
        hidden = F.gelu(x @ self.weight_in + self.bias_in)  # (E, T, hidden)
        outputs = hidden @ self.weight_out + self.bias_out
        return torch.einsum("te,etd->td", gates, outputs), scores, gates


class FlexBlock(nn.Module):
    """x += Attn(LN(x)); x += Mixture(LN(x))."""

    def __init__(self, width: int, heads: int, hidden: int, experts: int, chosen: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mixture = DenseMixture(width, hidden, experts, chosen)

    def forward(self, x: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, M, D), ``fixed`` (B,) -> states (B, M, D), scores (B, M, E) and gates (B, M, E)."""
        b, m, _ = x.shape
        q, k, v = self.attn.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = x + self.attn.attend(q, k, v)
        y, scores, gates = self.mixture(self.norm2(x).flatten(0, 1), fixed.repeat_interleave(m))
        return x + y.view_as(x), scores.unflatten(0, (b, m)), gates.unflatten(0, (b, m))


class FlexMoE(VectorBaseline):
    """Transformer with mixtures of experts.

    Args:
        encoders: see :meth:`models.baselines.base.VectorBaseline.add_encoders`; their width is that of the transformer.
        heads, layers: of the transformer.
        experts, chosen: number of experts per mixture, and per token.
        hidden: width of an expert's hidden layer.
        routing: weight of the routers' losses.
        others: see :class:`models.baselines.base.Baseline`.
    """

    max_modalities: ClassVar[int | None] = 10  # the bank has one row per combination (2^M - 1)

    def __init__(
        self,
        modalities: Sequence[Modality],
        num_classes: int,
        encoders: Mapping[str, nn.Module],
        *,
        heads: int = 4,
        layers: int = 2,
        experts: int = 16,
        chosen: int = 2,
        hidden: int = 128,
        routing: float = 0.01,
        **others: Any,
    ) -> None:
        super().__init__(modalities, num_classes, **others)
        if experts < 2:
            raise ValueError(f"experts={experts}: must be at least 2, one of them for the full set")
        self.routing, self.experts = routing, experts
        self.add_encoders(encoders)
        m, width = len(modalities), self.vector_width
        self.bank = nn.Parameter(0.02 * torch.randn(2**m - 1, m, width))
        self.modality_embeddings = nn.Parameter(0.02 * torch.randn(m, width))
        self.blocks = nn.ModuleList(FlexBlock(width, heads, hidden, experts, chosen) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, num_classes)
        self.register_buffer("subset_ids", subset_lookup(m), persistent=False)
        self.subset_ids: Tensor

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        absent = self.absent(batch)
        combination = self.subset_ids[mask_code(absent)]
        tokens = self.replace_missing(encoded, batch, self.bank[combination])
        # The full set has expert 0, which is not fixed.
        is_complete = ~absent.any(1)
        expert = 1 + combination % (self.experts - 1)
        fixed = torch.where(is_complete, -1, expert)
        x = tokens + self.modality_embeddings
        losses = []
        for block in self.blocks:
            x, scores, gates = block(x, fixed)
            if self.training:
                losses.append(routing_loss(scores, gates, fixed))
        features = self.norm(x).mean(1)
        extras = {"routing": torch.stack(losses).mean()} if self.training else {}
        return Prediction(self.classifier(features), features, extras)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        absent = self.absent(batch)
        masks = torch.cat([absent[None], self.masks.draw(absent, self.mask_generator(batch_index))])
        losses = self.losses_under(self.encode_batch(batch), batch, masks)
        self.log_losses("train", losses, batch.counted)
        return losses["loss"]

    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        losses = super().loss(prediction, batch)
        if "routing" in prediction.extras:
            losses["classification"], losses["routing"] = losses["loss"], prediction.extras["routing"]
            losses["loss"] = losses["classification"] + self.routing * losses["routing"]
        return losses


def routing_loss(scores: Tensor, gates: Tensor, fixed: Tensor) -> Tensor:
    """Squared coefficient of variation of the gates of complete rows, summed per expert, plus the cross-entropy between
    the scores and the fixed expert of incomplete rows; a term without rows is 0.

    Args:
        scores, gates: (B, M, E).
        fixed: (B,) expert of an incomplete row, -1 = complete.
    """
    is_incomplete = fixed >= 0
    sums = torch.where(is_incomplete[:, None, None], 0, gates).sum((0, 1))
    balance = sums.var() / (sums.mean().square() + 1e-10)
    experts = fixed.clamp(min=0)[:, None].expand(scores.shape[:2])
    errors = F.cross_entropy(scores.flatten(0, 1), experts.flatten(), reduction="none").view_as(experts)
    specialised = torch.where(is_incomplete[:, None], errors, 0).sum()
    return balance + specialised / (is_incomplete.sum() * scores.shape[1]).clamp(min=1)
