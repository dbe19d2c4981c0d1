"""On-the-fly gradient modulation (OGM-GE; Peng, Wei, Deng, Wang, Hu, CVPR 2022, https://arxiv.org/abs/2203.15332).

In joint training, a modality that learns faster impedes the others. The score of a modality is the sum over a batch of
the target probabilities by its share of the logits. If the ratio rho of its score to that of the other modality exceeds
1, the gradient of its encoder is multiplied by 1 - tanh(alpha rho) ("OGM"). Gaussian noise with the standard deviation
of the gradient is added to every gradient, to compensate for the loss of generalisation ("GE").

For more than two modalities, rho is the ratio to the mean score of the others (ours; equal for two). Incomplete rows
are excluded. The original modulates only convolutions; to support any encoder, we modulate all weights with two or more
dimensions, which are the convolutions in its ResNets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from datasets.batch import Batch
from models.base import Prediction
from utils.errors import UserError
from utils.noise import hash_seed


def coefficients(scores: Tensor, alpha: float) -> Tensor:
    """Factors (M,) in (0, 1] of the gradients of the encoders.

    Args:
        scores: (M,), non-negative.
        alpha: strength of the modulation; 0 = none.
    """
    if len(scores) == 1:
        return torch.ones_like(scores)
    others = (scores.sum() - scores) / (len(scores) - 1)
    ratio = scores / others.clamp(min=torch.finfo(scores.dtype).tiny)
    return torch.where(scores > others, 1 - torch.tanh(alpha * ratio), 1.0)


class GradientModulation(pl.Callback):
    """Modulate the gradients of a method with ``encoders`` by modality, ``unimodal_logits`` and ``watcher``, such as
    :class:`models.baselines.concat.MultimodalConcat`.

    Args:
        alpha: see :func:`coefficients`; 0.1 to 0.8 in the original.
        enhancement: add noise.
        start_epoch, end_epoch: modulate in start_epoch <= epoch < end_epoch; None = until the end.

    Raises:
        UserError: a value out of range.
    """

    def __init__(
        self, alpha: float = 0.3, enhancement: bool = True, start_epoch: int = 0, end_epoch: int | None = None
    ) -> None:
        if alpha < 0:
            raise UserError(f"model.modulation.alpha={alpha}: must be 0 or more")
        if start_epoch < 0 or (end_epoch is not None and end_epoch <= start_epoch):
            raise UserError(
                f"model.modulation: start_epoch={start_epoch} must be at least 0 and below end_epoch={end_epoch}"
            )
        self.alpha, self.enhancement, self.start_epoch, self.end_epoch = alpha, enhancement, start_epoch, end_epoch
        self.scores: Tensor | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        def watch(prediction: Prediction, batch: Batch) -> None:
            scores = unimodal_scores(pl_module, prediction, batch) * (not batch.is_filler)
            # Accumulated like the gradients of one step.
            self.scores = scores if self.scores is None else self.scores + scores

        pl_module.watcher = watch

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.watcher = None

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        scores, self.scores = self.scores, None
        end = trainer.max_epochs if self.end_epoch is None else self.end_epoch
        if scores is None or not self.start_epoch <= trainer.current_epoch < (end or 0):
            return
        factors = coefficients(trainer.strategy.reduce(scores, reduce_op="sum"), self.alpha)
        names = pl_module.modality_names
        pl_module.log_dict(
            {f"train_modulation_{name}": k for name, k in zip(names, factors)}, on_epoch=True, on_step=False
        )
        generator = None
        if self.enhancement:
            # The same noise on all ranks, and after a restart.
            seed = hash_seed(pl_module.stream_seed, 8, trainer.global_step)
            generator = torch.Generator(pl_module.device).manual_seed(seed)
        modulate(pl_module.encoders, names, factors, generator)


@torch.no_grad()
def unimodal_scores(module: Any, prediction: Prediction, batch: Batch) -> Tensor:
    """Scores (M,): sums over the complete rows of the target probabilities of the unimodal logits."""
    assert prediction.features is not None
    probabilities = module.unimodal_logits(prediction.features.detach()).float().softmax(-1)
    target = batch.target[:, None, None].expand(-1, probabilities.shape[1], 1)
    target_probabilities = probabilities.gather(2, target)[..., 0]
    incomplete = module.absent(batch).any(1, keepdim=True)
    return torch.where(incomplete, 0, target_probabilities).sum(0)


@torch.no_grad()
def modulate(
    encoders: Mapping[str, nn.Module] | nn.ModuleDict,
    names: Sequence[str],
    factors: Tensor,
    generator: torch.Generator | None = None,
) -> None:
    """Multiply the gradients of the encoders by ``factors`` (M,); with a generator, add Gaussian noise of the standard
    deviation of the original gradient."""
    for name, factor in zip(names, factors):
        for parameter in encoders[name].parameters():
            gradient = parameter.grad
            if gradient is None or gradient.ndim < 2:
                continue
            deviation = gradient.std(correction=0)
            gradient.mul_(factor)
            if generator is not None:
                noise = torch.randn(gradient.shape, generator=generator, device=gradient.device, dtype=gradient.dtype)
                gradient.add_(noise * deviation)
