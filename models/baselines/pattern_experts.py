"""PatternExperts, a control of ours: a separate model for each of the 2^M - 1 subsets of observed modalities.

Each expert has encoders, concatenation and linear head (``Multimodal_CONCAT`` of a subset) and is trained on all rows
with its modalities. Experts share no weights (encoders are initialised as copies). The method is an upper bound without
weight sharing, with 80 encoders for five modalities, and 1,024 for eight, the maximum (docs/reference/baselines.md
§7.5). The checkpoint is selected by the mean loss of all experts, ``monitor: val_loss``, since metrics on complete
validation data would evaluate only one expert. ``reference`` has no effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.base import Prediction
from models.baselines.base import VectorBaseline
from models.baselines.decisions import mean_where, row_losses
from models.layers.batch_norm import apply_to_observed
from utils.subsets import enumerate_subsets, mask_code, subset_lookup


class PatternExperts(VectorBaseline):
    """One classifier per subset of observed modalities.

    Args:
        encoders: see :meth:`models.baselines.base.VectorBaseline.add_encoders`; each expert has copies.
        others: see :class:`models.baselines.base.Baseline`; ``masks`` must be of kind ``none``.
    """

    max_modalities = 8

    def __init__(
        self, modalities: Sequence[Modality], num_classes: int, encoders: Mapping[str, nn.Module], **others: Any
    ) -> None:
        super().__init__(modalities, num_classes, **others)
        if self.masks.kind != "none":
            raise ValueError(f"masks.kind={self.masks.kind}: all experts are trained on every row, set masks.kind=none")
        subsets = enumerate_subsets(len(modalities))
        self.register_buffer("subsets", subsets, persistent=False)
        self.register_buffer("patterns", subset_lookup(len(modalities)), persistent=False)
        self.subsets: Tensor
        self.patterns: Tensor
        present = [
            [name for name, is_missing in zip(self.modality_names, row) if not is_missing] for row in subsets.tolist()
        ]
        width = int(next(iter(encoders.values())).width)  # type: ignore[arg-type]
        self.experts = nn.ModuleList(nn.ModuleDict({n: deepcopy(encoders[n]) for n in names}) for names in present)
        self.classifiers = nn.ModuleList(nn.Linear(len(names) * width, num_classes) for names in present)
        self._spans = [slice(a, b) for a, b in pairwise([0, *accumulate(map(len, present))])]

    def encode(self, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor] | None = None) -> Tensor:
        """Inputs -> vectors (B, E, D) of the E encoders of all experts."""
        vectors = []
        for expert in self.experts:
            for name, encoder in expert.items():  # type: ignore[operator]
                vectors.append(apply_to_observed(encoder, inputs, name, cells))
        return torch.cat(vectors, dim=1)

    def decide(self, encoded: Tensor) -> Tensor:
        """Vectors (B, E, D) -> logits (B, S, C) of all experts."""
        parts = zip(self.classifiers, self._spans, strict=True)
        return torch.stack([head(encoded[:, span].flatten(1)) for head, span in parts], dim=1)

    def choose(self, logits: Tensor, batch: Batch) -> Prediction:
        """Select the expert of the observed modalities of each row."""
        expert = self.patterns[mask_code(self.absent(batch))]
        return Prediction(logits[torch.arange(len(logits), device=logits.device), expert])

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        return self.choose(self.decide(encoded), batch)

    def expert_losses(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Mean over the experts of the loss on the rows that have all their modalities."""
        counts = ~(self.absent(batch)[:, None] & ~self.subsets).any(-1)
        return {"loss": mean_where(counts, row_losses(logits, batch.target, self.task)).mean()}

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        losses = self.expert_losses(self.decide(self.encode_batch(batch)), batch)
        self.log_losses("train", losses, batch.counted)
        return losses["loss"]

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        logits = self.decide(self.encode_batch(batch))
        self.log_losses("val", self.expert_losses(logits, batch), len(batch))
        self.validation_metrics.update(self.choose(logits, batch).logits, batch.target)
