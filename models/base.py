"""`IncompleteClassifier`, the LightningModule that every method extends, and `Prediction`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor
from torchmetrics import MetricCollection

from datasets.batch import Batch, Modality, unobserved
from models.layers.batch_norm import ObservedInputs
from utils.metrics import classification_metrics


@dataclass
class Prediction:
    """Output of a method: ``logits`` (B, C), ``features`` (B, D) where there are any, method-specific ``extras``."""

    logits: Tensor
    features: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)


class IncompleteClassifier(pl.LightningModule):
    """Owns loss, metrics, optimiser and logging; a method overrides what it changes and nothing else.

    Args:
        modalities: of the data set, in the column order of ``missing``.
        num_classes: C.
        task: multiclass | binary | multilabel; picks loss and metrics.
        optimizer: partial that takes the parameters.
        scheduler: partial that takes the optimiser (stepped once an epoch; it may give None), or None.

    What a method needs or can do is said by class attributes, which :func:`trainers.config.validate.validate` checks:

    Attributes:
        encoder_view: ``tokens``: encoders give (B, N, D); ``vector``: (B, 1, D) of the width ``model.vector_width``.
        accepts_imputer: ``model.use_imputer=true`` completes its inputs in stage test.
        needs_imputer: it classifies complete inputs only, so that a scenario that hides something needs an imputer.
        needs_complete_training: ``missing.train`` has to be none.
        needs_index: it keeps values by ``Batch.index`` (:class:`models.baselines.base.RowMemory`), in one process.
        batch_dependent: a prediction depends on the other rows of its batch; of a class, the name of the option of
            ``model.module`` with which that is so.
        max_modalities: of the data set, None = any number.
        transformers_only: its encoders are those of :mod:`models.encoders.pretrained`.
        several_labels: it can learn a task whose labels do not exclude one another.
        reports_unimodal: stage test reports each modality alone too, from ``unimodal_logits`` (B, M, C) of the extras,
            as ``<method>/<modality>``.
        built_on: names of the imputers on which it is built; it gets the trained one as ``imputer``.
    """

    encoder_view: ClassVar[str] = "tokens"
    accepts_imputer: ClassVar[bool] = False
    needs_imputer: ClassVar[bool] = False
    needs_complete_training: ClassVar[bool] = False
    needs_index: ClassVar[bool] = False
    batch_dependent: ClassVar[bool | str] = False
    max_modalities: ClassVar[int | None] = None
    transformers_only: ClassVar[bool] = False
    several_labels: ClassVar[bool] = True
    reports_unimodal: ClassVar[bool] = False
    built_on: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        modalities: Sequence[Modality],
        num_classes: int,
        task: str = "multiclass",
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        self.modalities, self.num_classes, self.task = list(modalities), num_classes, task
        self._optimizer, self._scheduler = optimizer, scheduler
        self.validation_metrics: MetricCollection = classification_metrics(
            task, num_classes, ("accuracy", "auroc", "f1_macro") if task == "multilabel" else ("accuracy", "auroc")
        )
        self.stream_seed = 0

    @classmethod
    def check(cls, cfg: DictConfig, node: str) -> Iterator[str]:
        """Problems of the configuration that only this method knows, one message each.

        Args:
            node: key of the method's part of the configuration, such as ``model`` or ``model.backbone``.
        """
        yield from ()

    @property
    def modality_names(self) -> list[str]:
        return [m.name for m in self.modalities]

    def compile_parts(self, backend: str) -> None:
        """``torch.compile`` what dominates a training step; the weights and their names stay."""
        self.forward = torch.compile(self.forward, backend=backend)  # type: ignore[method-assign]

    def cells(self, missing: Tensor, feature_missing: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Table name -> (B, F) bool, the cells that a mask (B, M) hides: none of a table that is there, those with a
        mark in ``feature_missing`` of one that is masked. Tables without an entry are hidden as a whole."""
        columns = {name: missing[:, i, None] for i, name in enumerate(self.modality_names)}
        return {name: columns[name] & cells for name, cells in feature_missing.items()}

    def unobserved(self, batch: Batch) -> Tensor:
        """(B, M) bool: modalities of which nothing is observed. A table with an observed cell is not among them."""
        return unobserved(batch, self.modality_names)

    def observed_inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Inputs for the encoders, missing content overwritten by zeros. In training, encoders with batch statistics
        then skip rows without content (:mod:`models.layers.batch_norm`)."""
        if not self.training:
            return batch.observed()
        is_observed = ~self.unobserved(batch)
        return ObservedInputs(batch.observed(), dict(zip(self.modality_names, is_observed.unbind(1), strict=True)))

    def before_prediction(self) -> None:
        """What makes a trained model faster without another result; it is neither trained nor saved afterwards."""

    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        """Named scalars; ``loss`` is the one that is minimised. Multi-label targets < 0 are unlabelled and ignored."""
        return {"loss": self.criterion(prediction.logits, batch.target)}

    def criterion(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of classification, see :func:`classification_loss`."""
        return classification_loss(logits, target, self.task)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        losses = self.loss(self(batch), batch)
        self.log_losses("train", losses, len(batch))
        return losses["loss"]

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        prediction = self(batch)
        self.log_losses("val", self.loss(prediction, batch), len(batch))
        self.validation_metrics.update(prediction.logits, batch.target)

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val_{k}": v for k, v in self.validation_metrics.compute().items()}, prog_bar=True)
        self.validation_metrics.reset()

    def log_losses(self, stage: str, losses: dict[str, Tensor], n: int) -> None:
        values = {f"{stage}_{k}": v.detach() for k, v in losses.items()}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=n, sync_dist=True)

    def parameter_groups(self) -> list[Any]:
        """What the optimiser is given: the trained parameters, or groups of them with settings of their own."""
        return [p for p in self.parameters() if p.requires_grad]

    def configure_optimizers(self) -> Any:
        assert self._optimizer is not None, "this model was built without an optimiser"
        optimizer = self._optimizer(self.parameter_groups())
        scheduler = None if self._scheduler is None else self._scheduler(optimizer)
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}

    def architecture(self) -> dict[str, Any]:
        """Plain values that say what these weights are; kept in the checkpoint."""
        return {
            "method": type(self).__name__,
            "modalities": [[m.name, m.kind, list(m.shape)] for m in self.modalities],
            "num_classes": self.num_classes,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["architecture"] = self.architecture()


def classification_loss(logits: Tensor, target: Tensor, task: str) -> Tensor:
    """Mean cross-entropy, or mean binary cross-entropy over the labelled cells of a multi-label target.

    Args:
        logits: (B, C).
        target: (B,) int64, or (B, C) float with values < 0 for 'no label'.
    """
    if task != "multilabel":
        return F.cross_entropy(logits, target)
    labelled = target >= 0
    cells = F.binary_cross_entropy_with_logits(logits, target.clamp(min=0), reduction="none")
    return torch.where(labelled, cells, 0).sum() / labelled.sum().clamp(min=1)
