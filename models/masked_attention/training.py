"""Training of the masked-attention model and its baselines (docs/reference/masked-attention.md §3.9)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.batch import Batch
from models.baselines.base import Baseline
from models.encoders.naim import drop_cells
from utils.schedule import Plateau


class StagedTraining(Baseline):
    """Plateau schedule, feature dropout, and a loss that weights all labels equally.

    Args:
        feature_dropout: rate of :func:`models.encoders.naim.drop_cells`, for every table.
        plateau: schedule of the learning rates; None = constant.
        others: see :class:`models.baselines.base.Baseline`.
    """

    encoder_view = "tokens"

    def __init__(self, *args: Any, feature_dropout: float = 0.0, plateau: Plateau | None = None, **others: Any) -> None:
        super().__init__(*args, **others)
        if not 0 <= feature_dropout < 1:
            raise ValueError(f"feature_dropout={feature_dropout}: must be at least 0 and below 1")
        self.feature_dropout, self.plateau = feature_dropout, plateau
        self._label_sums = torch.zeros(2, self.num_classes, dtype=torch.float64)
        if plateau is not None and self.reference:
            plateau.recreate = True

    def criterion(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy; :func:`mean_of_labels` for multilabel targets."""
        return mean_of_labels(logits, target) if self.task == "multilabel" else super().criterion(logits, target)

    # Not all batches have all labels: average over labels once, after the complete validation split.

    def on_validation_epoch_start(self) -> None:
        self._label_sums = torch.zeros(2, self.num_classes, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        if self.task != "multilabel":
            return super().validation_step(batch, batch_index)
        logits = self(batch).logits
        self._label_sums += torch.stack(label_sums(logits, batch.target))
        self.validation_metrics.update(logits, batch.target)

    def on_validation_epoch_end(self) -> None:
        if self.task == "multilabel":
            sums, rows = self.trainer.strategy.reduce(self._label_sums, reduce_op="sum")
            self.log("val_loss", mean_over_labels(sums, rows).float())
        super().on_validation_epoch_end()

    def drop_features(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Hide cells of the tables of a batch."""
        if not self.feature_dropout:
            return batch
        missing, cells = batch.missing.clone(), dict(batch.feature_missing)
        hidden = self.cells(batch.missing, batch.feature_missing)
        for i, modality in enumerate(self.modalities):
            if modality.kind == "table":
                missing_cells = hidden.get(modality.name)
                if missing_cells is None:
                    missing_cells = batch.missing[:, i, None].expand(-1, modality.shape[0])
                cells[modality.name] = drop_cells(missing_cells, self.feature_dropout, generator)
                missing[:, i] = cells[modality.name].any(1)
        return batch.replace(missing=missing, feature_missing=cells)

    def on_train_epoch_end(self) -> None:
        loss = self.trainer.callback_metrics.get("val_loss")
        if self.plateau is not None and loss is not None:
            optimizer: Any = self.optimizers(use_pl_optimizer=False)
            self.plateau.step(optimizer, float(loss), self.current_epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.plateau is not None:
            checkpoint["plateau"] = self.plateau.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.plateau is not None and "plateau" in checkpoint:
            self.plateau.load_state_dict(checkpoint["plateau"])


def mean_of_labels(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy per label, averaged over its labelled rows, then over the labels that occur; 0 if none does.

    Args:
        logits: (B, C).
        target: (B, C) float, < 0 = not labelled.
    """
    return mean_over_labels(*label_sums(logits, target))


def label_sums(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy per label, summed over its labelled rows (C,), and the number of these rows (C,)."""
    is_labelled = target >= 0
    losses = F.binary_cross_entropy_with_logits(logits, target.clamp(min=0), reduction="none")
    return torch.where(is_labelled, losses, 0).sum(0), is_labelled.sum(0)


def mean_over_labels(sums: Tensor, rows: Tensor) -> Tensor:
    """Average (C,) sums over rows, then over the labels with rows."""
    return (sums / rows.clamp(min=1)).sum() / (rows > 0).sum().clamp(min=1)
