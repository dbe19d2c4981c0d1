"""MUSE: multimodal patient representation learning with missing modalities
(Wu et al., ICLR 2024; docs/reference/baselines.md §2.7).

A bipartite graph connects rows and modalities: each observed modality of a row is an edge with its vector e. A layer
averages the messages relu(W_msg [x_neighbour, e]) of the neighbours of a node and updates its state to
relu(W_upd [mean, x]); between layers, e is updated to relu(W_e [x_source, x_destination, e]). Rows are initialised to
ones, modalities to learned vectors. Two contrastive losses, without and with labels, compare each training row with a
second view that has fewer edges:  L = CE + 0.5 L_unsupervised + 0.5 L_supervised.

With all edges in one matrix (B, M), a layer is two dense operations and needs no graph library. The state of a modality
after a layer is a mean over rows. In predictions, these are training rows (:mod:`models.baselines.anchors`), so that
test rows are independent; with ``reference=true``, they are those of the test batch, as in the original, on which
predictions then depend. A table with an observed cell has an edge; with ``reference=true``, a table with a missing cell
has none.
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
    """Message passing between rows and modalities.

    Args:
        encoders: see :meth:`models.baselines.base.VectorBaseline.add_encoders`.
        graph_layers: number of message-passing layers.
        dropout: of nodes between layers, and in the classifier.
        temperature: of the contrastive losses.
        unsupervised, supervised: weights of the contrastive losses.
        mapper: apply a linear map per modality to the vectors of the edges.
        anchors: number of training rows for the states of the modalities in predictions.
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
        if not self.uses_batch:
            anchor_edges = ~self.anchor_missing
            anchors = torch.where(anchor_edges[..., None], self.anchors, 0).to(encoded.dtype)
            _, states = self.pass_messages(anchors, anchor_edges)
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
        """Run all layers.

        Args:
            e: (B, M, D), vectors of the edges.
            edges: (B, M) bool, True = there is an edge.
            states: (M, D) per layer, states of the modalities before the layer; None computes them from these rows.

        Returns:
            States (B, D) of the rows after the last layer, and states (M, D) of the modalities before each layer.
        """
        rows = e.new_ones(len(e), e.shape[-1])
        modalities: Tensor = self.modality_nodes
        to_row = to_modality = e
        layer_states: list[Tensor] = []
        for layer, (message, update) in enumerate(zip(self.messages, self.updates)):
            if states is not None:
                modalities = states[layer]
            layer_states.append(modalities)
            x, y = rows[:, None].expand_as(e), modalities.expand_as(e)
            for_rows = mean_of(F.relu(message(torch.cat([y, to_row], -1))), edges, 1)
            new_rows = F.relu(update(torch.cat([for_rows, rows], -1)))
            if layer == len(self.messages) - 1:
                return new_rows, layer_states
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
        raise AssertionError("graph_layers must be at least 1")

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
    """Mean of x (B, M, D) over rows (axis 0) or modalities (axis 1) with an edge (B, M); 0 without any."""
    return torch.where(edges[..., None], x, 0).sum(axis) / edges.sum(axis).clamp(min=1)[:, None]


def drop_edges(edges: Tensor) -> Tensor:
    """With probability 1/2, reduce the n edges (B, M) of a row to a random k, uniform on 1 .. n - 1; a single edge is
    kept."""
    b, m = edges.shape
    n = edges.sum(1)
    order = torch.where(edges, torch.rand(b, m, device=edges.device), 2.0).argsort(1).argsort(1)
    k = 1 + (torch.rand(b, device=edges.device) * (n - 1)).long().clamp(max=(n - 2).clamp(min=0))
    is_unchanged = (torch.rand(b, device=edges.device) < 0.5) | (n < 2)
    return edges & (is_unchanged[:, None] | (order < k[:, None]))


def unsupervised_contrast(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Symmetric InfoNCE of two views (B, D) of unit norm, whose positive pairs are the views of the same row."""
    logits = first @ second.T / temperature
    target = torch.arange(len(first), device=first.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def supervised_contrast(first: Tensor, second: Tensor, same: Tensor, temperature: float) -> Tensor:
    """Mean binary cross-entropy between similarity and ``same`` label (B, B) over all pairs (i, j), i = j included: one
    half within the first view, one quarter from the first to the second view, one quarter back."""
    y = same.to(first.dtype)
    within = F.binary_cross_entropy_with_logits(first @ first.T / temperature, y)
    between = F.binary_cross_entropy_with_logits(first @ second.T / temperature, y)
    back = F.binary_cross_entropy_with_logits(second @ first.T / temperature, y)
    return (2 * within + between + back) / 4
