"""MUSE: multimodal patient representation learning with missing modalities
(Wu et al., ICLR 2024; docs/reference/baselines.md §2.7).

Rows and modalities are the two sides of a graph; an observed modality of a row is an edge that carries its vector. In
each layer a node takes the mean of its messages relu(W_msg [x_neighbour, e]) and becomes relu(W_upd [mean, x]); between
layers e becomes relu(W_e [x_source, x_destination, e]). Rows start from ones, modalities from learned vectors. A second
view of each training row, with edges dropped, is held against the first by two contrastive losses, one without and one
with labels:  L = CE + 0.5 L_unsupervised + 0.5 L_supervised.

With every edge in one matrix (B, M), a layer is two dense steps; no graph library is needed. The state of a modality
after a layer is a mean over rows. In prediction the rows are those of the training data
(:mod:`models.baselines.anchors`), so that a test row only reads it; with ``reference=true`` they are the test batch's,
as in the original, and predictions change with it. A table with an observed cell has an edge; with ``reference=true``,
one with a missing cell has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.base import Prediction
from models.baselines.anchors import AnchorBaseline


class MUSE(AnchorBaseline):
    """
    Args:
        encoders: see :meth:`models.baselines.base.VectorBaseline.add_encoders`.
        graph_layers: of message passing.
        dropout: of nodes between layers, and in the classifier.
        temperature: of the contrastive losses.
        unsupervised, supervised: their weights.
        mapper: whether a linear map of each modality makes edges out of vectors.
        anchors: training rows that predictions take the states of the modalities from.
        others: see :class:`models.baselines.base.Baseline`.
    """

    reference_hides_partial_tables = True

    def __init__(
        self,
        modalities: Sequence[Modality],
        num_classes: int,
        encoders: Mapping[str, nn.Module],
        *,
        graph_layers: int = 2,
        dropout: float = 0.25,
        temperature: float = 0.07,
        unsupervised: float = 0.5,
        supervised: float = 0.5,
        mapper: bool = True,
        anchors: int = 256,
        **others: Any,
    ) -> None:
        super().__init__(modalities, num_classes, **others)
        self.temperature, self.unsupervised, self.supervised = temperature, unsupervised, supervised
        self.add_encoders(encoders)
        m, width = len(modalities), self.vector_width
        self.mappers = nn.ModuleList(nn.Linear(width, width) if mapper else nn.Identity() for _ in range(m))
        self.modality_nodes = nn.Parameter(torch.randn(m, width))
        self.messages = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(graph_layers))
        self.updates = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(graph_layers))
        self.edge_updates = nn.ModuleList(nn.Linear(3 * width, width) for _ in range(graph_layers - 1))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, num_classes)
        )
        self.contrast = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        self.add_anchors(anchors)

    def encode(self, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor] | None = None) -> Tensor:
        vectors = super().encode(inputs, cells)
        return torch.stack([mapper(vectors[:, i]) for i, mapper in enumerate(self.mappers)], 1)

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        edges = ~self.absent(batch)
        states = None
        if not self.in_batch:
            known = ~self.anchor_missing
            _, states = self.pass_messages(torch.where(known[..., None], self.anchors, 0).to(encoded.dtype), known)
        e = self.replace_missing(encoded, batch)
        z, _ = self.pass_messages(e, edges, states)
        extras = {}
        if self.training:
            other, _ = self.pass_messages(e, drop_edges(edges))
            extras = {"first": F.normalize(self.contrast(z), dim=1), "second": F.normalize(self.contrast(other), dim=1)}
        return Prediction(self.classifier(z), z, extras)

    def pass_messages(
        self, e: Tensor, edges: Tensor, states: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """
        Args:
            e: (B, M, D), what the edges carry.
            edges: (B, M) bool, which there are.
            states: of the modalities before each layer, (M, D) each; None = what these rows make of them.

        Returns:
            rows (B, D) after the last layer, and the states of the modalities before each layer.
        """
        rows = e.new_ones(len(e), e.shape[-1])
        modalities: Tensor = self.modality_nodes
        to_row = to_modality = e
        found: list[Tensor] = []
        for layer, (message, update) in enumerate(zip(self.messages, self.updates)):
            if states is not None:
                modalities = states[layer]
            found.append(modalities)
            x, y = rows[:, None].expand_as(e), modalities.expand_as(e)
            for_rows = mean_of(F.relu(message(torch.cat([y, to_row], -1))), edges, 1)
            new_rows = F.relu(update(torch.cat([for_rows, rows], -1)))
            if layer == len(self.messages) - 1:
                return new_rows, found
            if states is None:
                for_modalities = mean_of(F.relu(message(torch.cat([x, to_modality], -1))), edges, 0)
                modalities = self.dropout(F.relu(update(torch.cat([for_modalities, modalities], -1))))
            else:
                modalities = states[layer + 1]
            rows = self.dropout(new_rows)
            x, y = rows[:, None].expand_as(e), modalities.expand_as(e)
            edge_update = self.edge_updates[layer]
            to_row, to_modality = (
                F.relu(edge_update(torch.cat([y, x, to_row], -1))),
                F.relu(edge_update(torch.cat([x, y, to_modality], -1))),
            )
        raise AssertionError("MUSE needs a layer")

    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        losses = super().loss(prediction, batch)
        if "first" in prediction.extras:
            views = prediction.extras["first"], prediction.extras["second"]
            target = batch.target.reshape(len(batch), -1)
            same = (target[:, None] == target[None]).all(-1)
            losses["unsupervised"] = unsupervised_contrast(*views, self.temperature)
            losses["supervised"] = supervised_contrast(*views, same, self.temperature)
            losses["classification"] = losses["loss"]
            losses["loss"] = (
                losses["classification"]
                + self.unsupervised * losses["unsupervised"]
                + self.supervised * losses["supervised"]
            )
        return losses


def mean_of(x: Tensor, edges: Tensor, axis: int) -> Tensor:
    """Mean of x (B, M, D) over rows (0) or modalities (1) with an edge (B, M); 0 where there is none."""
    return torch.where(edges[..., None], x, 0).sum(axis) / edges.sum(axis).clamp(min=1)[:, None]


def drop_edges(edges: Tensor) -> Tensor:
    """Each row keeps its edges (B, M) with probability 1/2; else, of n edges, k of 1 .. n - 1, uniform, any of them
    alike. Rows with one edge keep it."""
    b, m = edges.shape
    n = edges.sum(1)
    order = torch.where(edges, torch.rand(b, m, device=edges.device), 2.0).argsort(1).argsort(1)
    k = 1 + (torch.rand(b, device=edges.device) * (n - 1)).long().clamp(max=(n - 2).clamp(min=0))
    keep_all = (torch.rand(b, device=edges.device) < 0.5) | (n < 2)
    return edges & (keep_all[:, None] | (order < k[:, None]))


def unsupervised_contrast(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Symmetric InfoNCE of two views (B, D) of unit length: a row is to find itself among those of the other view."""
    logits = first @ second.T / temperature
    own = torch.arange(len(first), device=first.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def supervised_contrast(first: Tensor, second: Tensor, same: Tensor, temperature: float) -> Tensor:
    """Mean over all pairs, a row with itself included, of the cross-entropy of 'same label' (B, B) against similarity:
    half of it within the first view, a quarter each way between the views."""
    y = same.to(first.dtype)
    within = F.binary_cross_entropy_with_logits(first @ first.T / temperature, y)
    between = F.binary_cross_entropy_with_logits(first @ second.T / temperature, y)
    back = F.binary_cross_entropy_with_logits(second @ first.T / temperature, y)
    return (2 * within + between + back) / 4
