"""SimMLM: a simple framework for multi-modal learning with missing modality (Li et al., ICCV 2025, arXiv 2507.19264).

One expert per modality, an encoder with linear head, returns logits o_m; a gate with the same inputs weights the
experts of the observed modalities, o = sum_m w_m o_m. Each training row is used with more (+) and with fewer (-)
modalities, and the more-versus-fewer ranking loss penalises a higher loss with more modalities:

    L = CE(+) + CE(-) + weight * mean over rows of max(0, CE_i(+) - CE_i(-)).

The experts are first trained separately, as in the paper (``model.prerequisites=null`` omits this). Ours, where the
paper leaves the choice to the task: the gate is a perceptron on the experts' vectors, zeros for missing ones; its
softmax is over the observed modalities; (+) is the mask drawn by ``masks``, (-) keeps k of its n modalities, k uniform
on 1 .. n - 1, and the ranking loss of rows with one modality is 0. The original comparison lacks this method:
``reference`` has no effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.base import IncompleteClassifier, Prediction
from models.baselines.base import VectorBaseline
from models.baselines.decisions import row_losses
from models.baselines.masks import fewer_of


class SimMLM(VectorBaseline):
    """Gated sum of unimodal experts.

    Args:
        encoders: see :meth:`models.baselines.base.VectorBaseline.add_encoders`.
        ranking: weight of the ranking loss.
        prerequisites: ``unimodal_<modality>``, trained unimodal classifiers; None = as initialised.
        others: see :class:`models.baselines.base.Baseline`.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        num_classes: int,
        encoders: Mapping[str, nn.Module],
        *,
        ranking: float = 1.0,
        prerequisites: Mapping[str, IncompleteClassifier] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(modalities, num_classes, **others)
        self.ranking = ranking
        self.add_encoders(encoders)
        m, width = len(modalities), self.vector_width
        self.heads = nn.ModuleList(nn.Linear(width, num_classes) for _ in range(m))
        self.gate = nn.Sequential(nn.Linear(m * width, width), nn.ReLU(), nn.Linear(width, m))
        for i, name in enumerate(self.modality_names if prerequisites else []):
            expert: Any = prerequisites[f"unimodal_{name}"]  # type: ignore[index]
            self.encoders[name].load_state_dict(expert.encoders[name].state_dict())
            self.heads[i].load_state_dict(expert.classifier.state_dict())

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        absent = self.absent(batch)
        vectors = self.replace_missing(encoded, batch)
        weights = self.gate(vectors.flatten(1)).masked_fill(absent, -torch.inf).softmax(1)
        outputs = torch.stack([head(vectors[:, i]) for i, head in enumerate(self.heads)], 1)
        features = (weights[..., None] * vectors).sum(1)
        return Prediction((weights[..., None] * outputs).sum(1), features, {"weights": weights})

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        generator = self.mask_generator(batch_index)
        encoded = self.encode_batch(batch)
        more = self.hide_more(batch, self.masks.draw_one(self.absent(batch), generator))
        absent = self.absent(more)
        fewer = self.hide_more(more, fewer_of(absent, generator))
        logits = torch.stack([self.fuse(encoded, view).logits for view in (more, fewer)], dim=1)
        more_loss, fewer_loss = row_losses(logits, batch.target, self.task).unbind(1)
        losses = {
            "more": more_loss.mean(),
            "fewer": fewer_loss.mean(),
            "ranking": ranking_loss(more_loss, fewer_loss),
        }
        losses["loss"] = losses["more"] + losses["fewer"] + self.ranking * losses["ranking"]
        self.log_losses("train", losses, batch.counted)
        return losses["loss"]


def ranking_loss(more: Tensor, fewer: Tensor) -> Tensor:
    """Mean over rows of the excess of the loss with more modalities (B,) over that with fewer."""
    return F.relu(more - fewer).mean()
