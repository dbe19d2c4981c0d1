"""QMF: Provable Dynamic Fusion for Low-Quality Multimodal Data (Zhang et al., ICML 2023, arXiv 2306.02050).

The logits f_m of a modality are weighted by its confidence, the negative energy w_m = log sum_c exp f_mc / 10, without
normalisation. A ranking loss aligns the confidence with the past losses of a training row (docs/reference/baselines.md
§2.12): L = CE(F, y) + sum_m CE(f_m, y) + sum_m R_m, with F = sum_m w_m f_m and detached weights.

``reference=true`` restores:

- missing modalities vote with a constant vector of 1.0 instead of being excluded;
- ``rank=slack``: the ranking loss is zero unless the confidence of the harder row exceeds that of the easier one by
  more than the difference of their histories, as in the official code; ours, ``rank=margin``, requires the easier row
  to exceed the harder one by this difference, as in the paper and the loss on which it is based (Moon et al., ICML
  2020);
- rows without a history are the easiest;
- a table with a missing cell is missing;
- one optimiser step per 24 batches (12 on CAD and Infarction), inherited from batches of 16: ``accumulation``. A group
  that is incomplete at the end of an epoch continues in the next epoch, and is discarded at the end of training.

The ``QMF_ML`` of the comparison is ``model.use_imputer=true imputer=IMI``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.base import Prediction
from models.baselines.decisions import DecisionFusion, mean_where, row_losses
from models.baselines.memory import RowMemory
from utils.errors import UserError

RANKS = ("margin", "slack")
REFERENCE_ACCUMULATION = 24


class QMF(RowMemory, DecisionFusion):
    """Fusion weighted by energy-based confidence.

    ``memory`` (N_train, M) is the sum of the past losses of the modalities of each training row, which follows the
    content if pairs are drawn.

    Args:
        encoders: see :meth:`models.baselines.base.VectorBaseline.add_encoders`.
        rank: ``margin`` or ``slack``; None = slack with ``reference``, else margin.
        accumulation: batches per optimiser step with ``reference``, by which the loss is divided; None = 24.
        others: see :class:`models.baselines.base.Baseline`.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        num_classes: int,
        encoders: Mapping[str, nn.Module],
        *,
        rank: str | None = None,
        accumulation: int | None = None,
        **others: Any,
    ) -> None:
        super().__init__(modalities, num_classes, encoders, **others)
        if accumulation is not None and (accumulation < 1 or not self.reference):
            raise ValueError(
                f"accumulation={accumulation}: must be at least 1, and requires reference=true; otherwise, set "
                "training.accumulate_grad_batches"
            )
        self.accumulation = (accumulation or REFERENCE_ACCUMULATION) if self.reference else 1
        self.accumulated = 0  # batches of the current group
        self._pending: dict[str, Tensor] = {}  # gradients of an incomplete group, from a checkpoint
        self.rank = rank or ("slack" if self.reference else "margin")
        if self.rank not in RANKS:
            raise ValueError(f"rank={rank}: must be {' or '.join(RANKS)}")

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        logits = self.decide(self.vectors(encoded, batch))
        weights = torch.where(self.voters(batch), confidence(logits).detach(), 0)
        fused = (weights[..., None] * logits).sum(1)
        return Prediction(fused, extras={"unimodal_logits": logits, "fusion_weights": weights})

    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        """Classification loss plus, in training, the ranking loss, computed after updating the memory by this batch."""
        losses = super().loss(prediction, batch)
        if not self.training:
            return losses
        assert self.memory is not None, "on_fit_start allocates the memory"
        logits, counts = prediction.extras["unimodal_logits"], self.voters(batch)
        unimodal_losses = torch.where(counts, row_losses(logits, batch.target, self.task).detach(), 0)
        items = batch.index[:, None].expand_as(counts) if batch.sources is None else batch.sources
        self.memory.scatter_add_(0, items, unimodal_losses.to(self.memory.dtype))
        hardness = normalised(self.memory, only_visited=not self.reference).gather(0, items)
        rank = rank_loss(confidence(logits), hardness, counts, self.rank == "margin")
        return losses | {"loss": losses["loss"] + rank, "rank": rank}

    # ---- accumulation across the end of an epoch, where that of the trainer steps ------------------------------------

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.accumulation > 1 and self.trainer.accumulate_grad_batches > 1:
            raise UserError(
                f"training.accumulate_grad_batches={self.trainer.accumulate_grad_batches} and reference=true both "
                "accumulate gradients: set model.training.accumulate_grad_batches=1, the number of batches per step is "
                "model.module.accumulation"
            )

    def on_train_start(self) -> None:
        super().on_train_start()
        batches = self.trainer.num_training_batches * (self.trainer.max_epochs or 1)
        if batches < self.accumulation:
            raise UserError(
                f"QMF with reference=true takes one step per {self.accumulation} batches, but training has {batches:g} "
                "batches: reduce model.module.accumulation, or increase model.training.max_epochs"
            )
        for name, parameter in self.named_parameters():
            if name in self._pending:
                parameter.grad = self._pending[name].to(parameter.device)
        self._pending = {}

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        super().backward(loss if self.accumulation == 1 else loss / self.accumulation, *args, **kwargs)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        self.accumulated += 1
        if self.accumulated < self.accumulation:
            optimizer_closure()
            return
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.accumulated = 0

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        if self.accumulated <= 1:  # the first batch of a group
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.accumulated:
            gradients = {name: p.grad.cpu() for name, p in self.named_parameters() if p.grad is not None}
            checkpoint["accumulated"] = {"batches": self.accumulated, "gradients": gradients}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        group = checkpoint.get("accumulated", {"batches": 0, "gradients": {}})
        self.accumulated, self._pending = group["batches"], group["gradients"]


def confidence(logits: Tensor) -> Tensor:
    """Negative energy of logits (..., C), divided by 10 -> (...)."""
    return logits.logsumexp(-1) / 10


def normalised(history: Tensor, only_visited: bool) -> Tensor:
    """Scale a history (N, M) to [0, 1] by the extremes of each column, or only of its positive entries."""
    minimum = (torch.where(history > 0, history, torch.inf) if only_visited else history).amin(0)
    span = (history.amax(0) - minimum).clamp(min=torch.finfo(history.dtype).tiny)
    return ((history - minimum) / span).clamp(0, 1)


def rank_loss(confidence: Tensor, hardness: Tensor, counts: Tensor, margin: bool) -> Tensor:
    """Sum over modalities of the mean over pairs of consecutive rows (i, j) that count.

    With t = sign(k_i - k_j) and d = |k_i - k_j| of the hardness k: max(0, t (w_i - w_j) + d), or - d without
    ``margin``.

    Args:
        confidence, hardness: (B, M).
        counts: (B, M) bool.
    """
    more_confident = confidence - confidence.roll(-1, 0)
    harder = hardness - hardness.roll(-1, 0)
    offset = harder.abs() if margin else -harder.abs()
    return mean_where(counts & counts.roll(-1, 0), (harder.sign() * more_confident + offset).relu()).sum()
