"""M3Care: learning with missing modalities in multimodal healthcare data
(Zhang et al., KDD 2022; docs/reference/baselines.md §2.6).

Rows with similar vectors of shared modalities are neighbours in a graph. Graph convolutions impute vectors of missing
modalities from those of the neighbours, and a transformer classifies by one token per modality. With o = observed and
h_m = LN(encoder(x_m)), 0 where missing:

    S = sum_m o_m o_m' [(1 - s(e_m)) K(norm(phi_m(h_m))) + s(e_m) K(norm(h_m))] / sum_m o_m o_m',   s the sigmoid,
    K(u)_ij = mean over c in {1/2, 1, 2} of exp(-|u_i - u_j|^2 / (c b)),   b the mean squared distance of two rows,

entries of S below s(theta) are set to 0, and H <- selu(S H W + bias), twice. Vectors of observed modalities are mixed
with the imputed ones by a learned weight. The loss includes 1e-8 sum_m | |phi_m(h_m)|_F - |h_m|_F |.

``reference=true`` reproduces the comparison of DyMo, unlike our default:

- masks are drawn per batch, so that no row has the modalities that another lacks, and the graph imputes a constant;
- S is not normalised; we divide its rows by their sums, so that the scale is independent of the batch size;
- a prediction uses the graph of its test batch; ours uses training rows (:mod:`models.baselines.anchors`), which are
  connected to each other and determine b; a test row is connected to them and to itself;
- rows without a modality enter its normalisation and b as zeros, and raw and projected vectors of all modalities share
  one running statistic; ours are computed over observed rows, one per modality and kind of vector. The learned scale is
  shared in both cases (a shift would cancel in distances); the shared statistic is updated by the projected, then the
  raw vectors, modality by modality;
- a table with a missing cell is missing (the original does not accept such tables);
- the modality index is min(i, 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.base import Prediction
from models.baselines.anchors import AnchorBaseline
from models.layers.transformer import Block, is_normal, normal_initialisation

BANDWIDTHS = (0.5, 1.0, 2.0)


class M3Care(AnchorBaseline):
    """Graph convolutions between similar rows, then a transformer.

    Args:
        encoders: see :meth:`models.baselines.base.VectorBaseline.add_encoders`; their width is that of the transformer.
        heads, layers: of the transformer.
        graph_layers: number of graph convolutions.
        stability: weight of the term that preserves the norm of projected vectors.
        anchors: number of training rows in the graph of predictions.
        others: see :class:`models.baselines.base.Baseline`.
    """

    reference_hides_partial_tables = True

    def __init__(
        self,
        modalities: Sequence[Modality],
        num_classes: int,
        encoders: Mapping[str, nn.Module],
        *,
        heads: int = 4,
        layers: int = 2,
        graph_layers: int = 2,
        stability: float = 1.0e-8,
        anchors: int = 256,
        initialisation: str | None = None,
        **others: Any,
    ) -> None:
        super().__init__(modalities, num_classes, **others)
        if self.reference:
            self.masks = replace(self.masks, per="batch")
        self.stability = stability
        self.add_encoders(encoders)
        m, width = len(modalities), self.vector_width
        self.m_norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(m))
        self.maps = nn.ModuleList(
            nn.Sequential(*(part for _ in range(3) for part in (nn.Linear(width, width), nn.ReLU())))[:-1]
            for _ in range(m)
        )
        self.kernel_norms = nn.ModuleList(
            nn.BatchNorm1d(width, affine=False) for _ in range(1 if self.reference else 2 * m)
        )
        self.kernel_scale = nn.Parameter(torch.ones(width))
        self.kernel_mix = nn.Parameter(torch.full((m, 1, 1), 2.0))
        self.threshold = nn.Parameter(torch.zeros(()))
        bound = width**-0.5
        self.graph_weights = nn.Parameter(torch.empty(graph_layers, m, width, width).uniform_(-bound, bound))
        self.graph_biases = nn.Parameter(torch.empty(graph_layers, m, 1, width).uniform_(-bound, bound))
        self.share_imputed = nn.ModuleList(nn.Linear(width, 1) for _ in range(m))
        self.share_own = nn.ModuleList(nn.Linear(width, 1) for _ in range(m))
        self.modality_embeddings = nn.Embedding(m, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embeddings = nn.Parameter(torch.zeros(1, 1 + m, width))
        self.transformer = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.classifier = nn.Linear(width, num_classes)
        if is_normal(initialisation):
            nn.init.trunc_normal_(self.cls_token, std=0.02)
            nn.init.trunc_normal_(self.pos_embeddings, std=0.02)
            normal_initialisation(self)
        self.add_anchors(anchors)

    def encode(self, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor] | None = None) -> Tensor:
        vectors = super().encode(inputs, cells)
        return torch.stack([norm(vectors[:, i]) for i, norm in enumerate(self.m_norms)], 1)

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        observed = ~self.absent(batch)
        h = self.replace_missing(encoded, batch).transpose(0, 1)
        projected = self.project(h)
        nodes = self.normalise(h, projected, observed)
        if self.uses_batch:
            squared = distances(nodes, nodes)
            s = self.similarity(squared, observed, observed, self.bandwidth(squared, observed))
            imputed = self.convolve(h, s if self.reference else s / s.sum(1, keepdim=True))
        else:
            imputed = self.convolve_from_anchors(h, nodes, observed)
        h_weight = torch.stack([head(x) for head, x in zip(self.share_own, h)]).sigmoid()
        imputed_weight = torch.stack([head(x) for head, x in zip(self.share_imputed, imputed)]).sigmoid()
        share = imputed_weight / (imputed_weight + h_weight)
        mixed = torch.where(observed.T[..., None], share * imputed + (1 - share) * h, imputed).transpose(0, 1)
        logits, features = self.classify(mixed)
        extras = {"stability": self.norm_difference(h, projected, observed)} if self.training else {}
        return Prediction(logits, features, extras)

    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        losses = super().loss(prediction, batch)
        if "stability" in prediction.extras:
            losses["loss"] = losses["loss"] + self.stability * prediction.extras["stability"]
        return losses

    # ---- graph -------------------------------------------------------------------------------------------------------

    def project(self, h: Tensor) -> Tensor:
        """Apply phi_m to vectors (M, R, D)."""
        return torch.stack([phi(x) for phi, x in zip(self.maps, h)])

    def normalise(self, h: Tensor, projected: Tensor, observed: Tensor) -> Tensor:
        """Normalise the inputs of the kernels: (2, M, R, D), projected and raw vectors.

        Args:
            h, projected: (M, R, D).
            observed: (R, M) bool; rows that enter the statistics.
        """
        kinds: tuple[list[Tensor], list[Tensor]] = ([], [])
        # With one shared norm, the running statistics depend on this order.
        for i, vectors in enumerate(zip(projected, h, strict=True)):
            rows = torch.ones_like(observed[:, i]) if self.reference else observed[:, i]
            for kind, x in enumerate(vectors):
                norm = self.kernel_norms[0 if self.reference else kind * len(h) + i]
                kinds[kind].append(masked_batch_norm(x, rows, norm) * self.kernel_scale)  # type: ignore[arg-type]
        return torch.stack([torch.stack(parts) for parts in kinds])

    def bandwidth(self, squared: Tensor, observed: Tensor) -> Tensor:
        """b of the kernels (2, M, 1, 1): the mean of ``squared`` (2, M, R, R) over pairs of different rows with the
        modality; 1 if it is below 1e-3."""
        if self.reference:
            observed = torch.ones_like(observed)
        pairs = observed.T[:, :, None] & observed.T[:, None, :]
        n = observed.sum(0).to(squared.dtype)
        b = torch.where(pairs, squared.detach(), 0).sum((-1, -2)) / (n * n - n).clamp(min=1)
        return torch.where(b < 1e-3, 1.0, b)[..., None, None]

    def similarity(self, squared: Tensor, rows: Tensor, keys: Tensor, bandwidth: Tensor) -> Tensor:
        """S (R, K) in [0, 1], with entries below the threshold set to 0.

        Args:
            squared: (2, M, R, K).
            rows, keys: observed modalities, (R, M) and (K, M) bool.
        """
        kernels = torch.stack([(-squared / (c * bandwidth)).exp() for c in BANDWIDTHS]).mean(0)
        share = self.kernel_mix.sigmoid()
        shared = rows.T[:, :, None] & keys.T[:, None, :]
        s = torch.where(shared, (1 - share) * kernels[0] + share * kernels[1], 0).sum(0) / (shared.sum(0) + 1e-9)
        threshold = self.threshold.sigmoid()
        s = F.relu(s - threshold)
        return torch.where(s > 0, s + threshold.detach(), s)

    def convolve(self, h: Tensor, s: Tensor) -> Tensor:
        """Graph convolutions of vectors (M, R, D) over the graph S (R, R)."""
        for weight, bias in zip(self.graph_weights, self.graph_biases):
            h = F.selu(s @ (h @ weight) + bias)
        return h

    def convolve_from_anchors(self, h: Tensor, nodes: Tensor, observed: Tensor) -> Tensor:
        """Graph convolutions of vectors (M, R, D) over the graph in which anchors are connected to each other, and a
        row to the anchors and itself (S_ii = 1)."""
        known = ~self.anchor_missing
        anchor = torch.where(known[..., None], self.anchors, 0).transpose(0, 1).to(h.dtype)
        anchor_nodes = self.normalise(anchor, self.project(anchor), known)
        squared = distances(anchor_nodes, anchor_nodes)
        b = self.bandwidth(squared, known)
        among = self.similarity(squared, known, known, b)
        among = among / among.sum(1, keepdim=True).clamp(min=1e-9)  # anchors without any modality are isolated
        s = self.similarity(distances(nodes, anchor_nodes), observed, known, b)
        degree = s.sum(1, keepdim=True) + 1
        for weight, bias in zip(self.graph_weights, self.graph_biases):
            source = anchor @ weight
            h = F.selu((s @ source + h @ weight) / degree + bias)
            anchor = F.selu(among @ source + bias)
        return h

    def norm_difference(self, h: Tensor, projected: Tensor, observed: Tensor) -> Tensor:
        """sum_m | |phi_m(h_m)|_F - |h_m|_F | over the rows with the modality (``reference``: over all)."""
        rows = torch.ones_like(observed) if self.reference else observed
        norms = [torch.linalg.norm(torch.where(rows.T[..., None], x, 0).flatten(1), dim=1) for x in (projected, h)]
        return (norms[0] - norms[1]).abs().sum()

    def classify(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (B, M, D), one token per modality -> logits (B, C) and CLS state (B, D)."""
        m = vectors.shape[1]
        index = torch.arange(m, device=vectors.device)
        tokens = vectors + self.modality_embeddings(index.clamp(max=1) if self.reference else index)
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1) + self.pos_embeddings
        for depth, block in enumerate(self.transformer):
            x = block(x, first_only=depth == len(self.transformer) - 1)
        return self.classifier(x[:, 0]), x[:, 0]


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances: (..., R, D), (..., K, D) -> (..., R, K)."""
    squared = a.square().sum(-1)[..., None] + b.square().sum(-1)[..., None, :] - 2 * a @ b.mT
    return squared.clamp(min=0)


def masked_batch_norm(x: Tensor, rows: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    """Batch normalisation without scale and shift, with the statistics of selected rows.

    Args:
        x: (R, D).
        rows: (R,) bool; fewer than two do not update the running statistics.
    """
    if not norm.training:
        return norm(x)
    n = rows.sum()
    selected = rows[:, None]
    mean = torch.where(selected, x, 0).sum(0) / n.clamp(min=1)
    variance = torch.where(selected, (x - mean).square(), 0).sum(0) / n.clamp(min=1)
    with torch.no_grad():
        unbiased = variance * n / (n - 1).clamp(min=1)
        assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
        step = torch.where(n > 1, norm.momentum, 0.0)
        norm.running_mean += step * (mean - norm.running_mean)
        norm.running_var += step * (unbiased - norm.running_var)
    return (x - mean) / (variance + norm.eps).sqrt()
