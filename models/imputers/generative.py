"""Base of the generative recovery methods: training, and an optional classifier on the latent."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.imputers.base import TrainedImputer
from models.rows import take_rows
from utils.errors import UserError


class GenerativeImputer(TrainedImputer):
    """Base class; a method implements :meth:`losses` and ``impute``.

    Args:
        modalities: of the data set.
        latent: width of the shared latent.
        class_weight: weight of the cross-entropy of a linear classifier on the posterior mean of each single modality
            (ours, off by default). The ELBO alone takes tens of thousands of steps before the latent holds the class:
            most of a photograph's likelihood is its background.
        num_classes: C, read with ``class_weight`` alone.
        sample: recover from a posterior draw instead of the mean.
        draw_seed: of those draws.
        optimizer, scheduler: partials.
    """

    needs: ClassVar[tuple[str, ...]] = ("weights", "networks")
    sums_over_batch = False  # what is minimised: the sum over the rows instead of the mean

    def __init__(
        self,
        modalities: Sequence[Modality],
        latent: int,
        class_weight: float,
        num_classes: int,
        sample: bool,
        draw_seed: int,
        optimizer: Callable[..., torch.optim.Optimizer] | None,
        scheduler: Callable[..., Any] | None,
    ) -> None:
        super().__init__(modalities, optimizer, scheduler)
        self.latent, self.sample, self.draw_seed = latent, sample, draw_seed
        self.class_weight = class_weight
        self.class_head = nn.Linear(latent, num_classes) if class_weight else None

    def why_not_exported(self) -> str | None:
        return f"imputer {type(self).__name__} with sample=true draws by the number of the row" if self.sample else None

    def complete_rows(self, batch: Batch) -> Batch:
        """The rows of a batch that have every modality, since the objective is that of complete rows. A table with
        missing cells counts as missing."""
        return batch if batch.complete else take_rows(batch, ~batch.missing.any(1))

    def check_training_rows(self, missing: np.ndarray) -> None:
        if missing.any(1).all():
            raise UserError(
                f"imputer {type(self).__name__} learns from rows that have every modality with all its cells, and no "
                f"training row of {len(missing)} has: choose imputer=IMI or Mean, or set dataset.natural_missing=fill"
            )

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Means over the rows of the batch; ``loss`` is the objective."""

    def add_classification(self, losses: dict[str, Tensor], mu: Tensor, target: Tensor) -> dict[str, Tensor]:
        """With ``class_weight``, the cross-entropy on the single modalities' means ``mu`` (M, B, L), added to the
        loss."""
        if self.class_head is not None:
            logits = self.class_head(mu).flatten(0, 1)
            losses["classification"] = F.cross_entropy(logits, target.repeat(len(mu)))
            losses["loss"] = losses["loss"] + self.class_weight * losses["classification"]
        return losses

    def training_step(self, batch: Batch, batch_index: int) -> Tensor | None:
        batch = self.complete_rows(batch)
        if not len(batch):
            return None
        losses = self.losses(batch)
        values = {f"train_{k}": v.detach() for k, v in losses.items()}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(batch), sync_dist=True)
        return losses["loss"] * len(batch) if self.sums_over_batch else losses["loss"]

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        batch = self.complete_rows(batch)
        if not len(batch):
            return
        losses = self.losses(batch)
        self.log("val_loss", losses["loss"], batch_size=len(batch), sync_dist=True, prog_bar=True)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Context manager for recoveries in eval mode."""
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)
