"""QMF: Provable Dynamic Fusion for Low-Quality Multimodal Data (Zhang et al., ICML 2023, arXiv 2306.02050).

A modality's logits f_m are weighted by its confidence, the negative energy w_m = log sum_c exp f_mc / 10, without
normalisation; a ranking loss aligns confidences with how hard a training row has been so far
(docs/reference/baselines.md §2.12): L = CE(F, y) + sum_m CE(f_m, y) + sum_m R_m with F = sum_m w_m f_m, the weights
detached there.

``reference=true`` restores:

- missing modalities vote with a constant (their vector is 1.0), instead of being left out;
- ``rank=slack``: the ranking loss is zero until the harder row is the more confident one by more than the difference of
  the histories, which the official code has too; ``rank=margin``, ours, wants the easier one ahead by it, as in the
  loss on which it is modelled (Moon et al., ICML 2020) and as the paper says;
- rows without a history yet count as the easiest;
- a table with a missing cell counts as missing;
- one step of the optimiser in 24 batches (12 on CAD and Infarction), taken over from batches of 16: ``accumulation``. A
  group that the end of an epoch leaves incomplete goes on in the next epoch, and is lost at the end of training.

Its ``QMF_ML`` is ``model.use_imputer=true imputer=IMI``.
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
    """``memory``: the sum of the losses so far of what each training row has of each modality, wherever pairs that are
    drawn anew take it.

    Args:
        encoders: see :meth:`models.baselines.base.VectorBaseline.add_encoders`.
        rank: ``margin`` or ``slack``; None = slack with ``reference``, else margin.
        accumulation: batches per step of the optimiser with ``reference``, None = 24; the loss is divided by it.
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
                f"accumulation={accumulation}: must be at least 1, and is for reference=true; without, set "
                "training.accumulate_grad_batches"
            )
        self.accumulation = (accumulation or REFERENCE_ACCUMULATION) if self.reference else 1
        self.accumulated = 0  # batches of the present group so far
        self._pending: dict[str, Tensor] = {}  # gradients of an incomplete group, out of a checkpoint
        self.rank = rank or ("slack" if self.reference else "margin")
        if self.rank not in RANKS:
            raise ValueError(f"rank is one of {', '.join(RANKS)}, not {rank}")

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        logits = self.decide(self.vectors(encoded, batch))
        weights = torch.where(self.voters(batch), confidence(logits).detach(), 0)
        fused = (weights[..., None] * logits).sum(1)
        return Prediction(fused, extras={"unimodal_logits": logits, "fusion_weights": weights})

    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        """Classification, and in training the ranking; the history takes the losses of the batch in before."""
        losses = super().loss(prediction, batch)
        if not self.training:
            return losses
        assert self.memory is not None, "stage fit makes the memory"
        logits, counts = prediction.extras["unimodal_logits"], self.voters(batch)
        each = torch.where(counts, row_losses(logits, batch.target, self.task).detach(), 0)
        items = batch.index[:, None].expand_as(counts) if batch.sources is None else batch.sources
        self.memory.scatter_add_(0, items, each.to(self.memory.dtype))
        hardness = normalised(self.memory, only_visited=not self.reference).gather(0, items)
        rank = rank_loss(confidence(logits), hardness, counts, self.rank == "margin")
        return losses | {"loss": losses["loss"] + rank, "rank": rank}

    # ---- accumulation that goes on over the end of an epoch, where that of the trainer steps -------------------------

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
                f"QMF with reference=true takes a step every {self.accumulation} batches, and training has "
                f"{batches:g}: set model.module.accumulation lower, or train longer (model.training.max_epochs)"
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
    """(..., C) -> (...), the negative energy over 10."""
    return logits.logsumexp(-1) / 10


def normalised(history: Tensor, only_visited: bool) -> Tensor:
    """(N, M) -> (N, M) in [0, 1] by the extremes of each column; ``only_visited``: of its positive entries."""
    low = (torch.where(history > 0, history, torch.inf) if only_visited else history).amin(0)
    span = (history.amax(0) - low).clamp(min=torch.finfo(history.dtype).tiny)
    return ((history - low) / span).clamp(0, 1)


def rank_loss(confidence: Tensor, hardness: Tensor, counts: Tensor, margin: bool) -> Tensor:
    """Sum over the modalities of the mean over pairs of a row and the next one that both count.

    With t = sign(k_i - k_j) and d = |k_i - k_j| of the hardness: max(0, t (w_i - w_j) + d), or - d without ``margin``.

    Args:
        confidence, hardness: (B, M).
        counts: (B, M) bool.
    """
    more_confident = confidence - confidence.roll(-1, 0)
    harder = hardness - hardness.roll(-1, 0)
    offset = harder.abs() if margin else -harder.abs()
    return mean_where(counts & counts.roll(-1, 0), (harder.sign() * more_confident + offset).relu()).sum()
