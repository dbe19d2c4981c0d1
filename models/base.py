"""`Method`, the interface of everything that stage test evaluates, and `IncompleteClassifier`, which methods extend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn
from torchmetrics import MetricCollection

from datasets.batch import Batch, Modality, rows_like, unobserved
from models.imputers.base import Imputer
from models.layers.batch_norm import ObservedInputs
from models.row_losses import RowLosses
from utils.errors import UserError
from utils.metrics import classification_metrics
from utils.weights import checkpoint_kind, load_strict

MAIN = ""  # label of a method's own predictions, beside those of comparators or single modalities


@dataclass
class Prediction:
    """Output of a method: ``logits`` (B, C), optional ``features`` (B, D), and method-specific ``extras``."""

    logits: Tensor
    features: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)


class Learner(ABC):
    """Something that a method learns in stage test, and its file.

    Attributes:
        file: its name.
        settings: that :meth:`learn` depends on.
    """

    file: str
    settings: dict[str, Any]

    @abstractmethod
    def learn(self, batches: Iterable[Batch]) -> None:
        """Learn from training batches, as they are without simulated missingness."""

    @abstractmethod
    def save(self, path: Path, about: Mapping[str, Any]) -> None:
        """Write what was learned, with plain values about its origin."""

    @abstractmethod
    def load(self, path: Path) -> dict[str, Any]:
        """Read a file of :meth:`save`.

        Returns:
            what it says about its origin.

        Raises:
            UserError: it was damaged, or does not fit.
        """


class Method(nn.Module, ABC):
    """A trained method as stage test evaluates it: alone, behind an imputer, or DyMo's selection on a backbone.

    Attributes:
        needs_calibration: :meth:`calibrate` has to see validation data before the test.
        program_outputs: extras that an exported program returns beside the logits.
    """

    needs_calibration: ClassVar[bool] = False
    program_outputs: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.needs_calibration and cls.calibrate is Method.calibrate:
            raise TypeError(f"{cls.__name__} sets needs_calibration: implement calibrate()")

    @classmethod
    def check(cls, cfg: DictConfig, node: str) -> Iterator[str]:
        """Problems of the configuration that only this method knows, one message each.

        Args:
            node: key of the method's part of the configuration, such as ``model`` or ``model.backbone``.
        """
        yield from ()

    @classmethod
    def comparator_settings(cls, model: DictConfig) -> tuple[str, ...]:
        """Keys of the configuration ``model`` on which its comparators alone depend."""
        return ()

    @property
    def validated_comparators(self) -> tuple[str, ...]:
        """Comparators that :meth:`calibrate` makes possible."""
        return ()

    @abstractmethod
    def forward(self, batch: Batch) -> Prediction:
        """Classify the rows of a batch; missing content never influences the result."""

    def predict_scenarios(self, batch: Batch, scenarios: Mapping[str, Batch]) -> dict[str, dict[str, Prediction]]:
        """Classify a batch under every scenario.

        Args:
            batch: rows with all the content that the data have.
            scenarios: scenario -> the same rows under its masks.

        Returns:
            label -> scenario -> prediction; label ``""`` is the method itself.
        """
        return {MAIN: {name: self(masked) for name, masked in scenarios.items()}}

    def calibrate(self, batches: Iterable[tuple[Batch, Mapping[str, Batch]]]) -> pd.DataFrame:
        """Set what the method chooses on validation data; nothing by default.

        Args:
            batches: batch and its scenarios, as in :meth:`predict_scenarios`, of the validation split.

        Returns:
            The measurements behind the choice, for a CSV file.
        """
        return pd.DataFrame()

    @property
    def learner(self) -> Learner | None:
        """What the method learns from training rows in stage test; None by default."""
        return None

    @property
    def choices(self) -> pd.DataFrame:
        """Values that :meth:`calibrate` chose beside those in its measurements, for a CSV file; empty by default."""
        return pd.DataFrame()

    def examples(self, batch: Batch) -> tuple[Prediction, dict[str, Tensor]] | None:
        """Prediction and recovered inputs of a batch, for the pictures of the report; None without recovered inputs."""
        return None

    def networks(self) -> list[nn.Module]:
        """Networks whose weights a prediction needs: the method, and an imputer that is kept out of its module tree."""
        return [self]

    def why_not_exported(self) -> str | None:
        """Reason why the method cannot become a :class:`models.program.Program`; None if it can."""
        return None

    def forward_fixed(self, batch: Batch) -> Prediction:
        """:meth:`forward` for export, where no shape may depend on values. A method that selects rows or branches on
        values overrides it."""
        return self(batch)

    def undecided(self, prediction: Prediction, tolerance: float) -> Tensor:
        """(B,) bool: rows in which rounding errors up to ``tolerance`` could turn a decision of the method."""
        return torch.zeros(len(prediction.logits), dtype=torch.bool)


class IncompleteClassifier(Method, RowLosses):
    """Owns loss, metrics, optimiser and logging; a method overrides what it changes and nothing else.

    Args:
        modalities: of the data set, in the column order of ``missing``.
        num_classes: C.
        task: multiclass | binary | multilabel; picks loss and metrics.
        optimizer: partial that takes the parameters.
        scheduler: partial that takes the optimiser (stepped once per epoch; it may return None), or None.

    Class attributes declare what a method needs and can do; :func:`trainers.config.validate.validate` checks them:

    Attributes:
        encoder_view: ``tokens``: encoders give (B, N, D); ``vector``: (B, 1, D) of the width ``model.vector_width``.
        accepts_imputer: ``model.use_imputer=true`` completes its inputs in stage test.
        recovery_comparators: what ``model.comparators`` may name with ``model.use_imputer=true``.
        needs_imputer: it classifies complete inputs only, so that a scenario that hides something needs an imputer.
        needs_complete_training: ``missing.train`` has to be none.
        needs_index: it keeps values by ``Batch.index`` (:class:`models.baselines.memory.RowMemory`), in one process.
        batch_dependent: a prediction depends on the other rows of its batch; of a class, the name of the option of
            ``model.module`` with which that is so.
        max_modalities: of the data set, None = any number.
        transformers_only: its encoders are those of :mod:`models.encoders.pretrained`.
        several_labels: it can learn a task whose labels do not exclude one another.
        has_attention_maps: :meth:`attention_maps` returns maps.
        reports_unimodal: stage test reports each modality alone too, from ``unimodal_logits`` (B, M, C) of the extras,
            as ``<method>/<modality>``.
        built_on: names of the imputers on which it is built; it gets the trained one as ``imputer``.
    """

    encoder_view: ClassVar[str] = "tokens"
    accepts_imputer: ClassVar[bool] = False
    recovery_comparators: ClassVar[tuple[str, ...]] = ()
    needs_imputer: ClassVar[bool] = False
    needs_complete_training: ClassVar[bool] = False
    needs_index: ClassVar[bool] = False
    batch_dependent: ClassVar[bool | str] = False
    max_modalities: ClassVar[int | None] = None
    transformers_only: ClassVar[bool] = False
    several_labels: ClassVar[bool] = True
    has_attention_maps: ClassVar[bool] = False
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

    @property
    def modality_names(self) -> list[str]:
        return [m.name for m in self.modalities]

    def compile_parts(self, backend: str) -> None:
        """Apply ``torch.compile`` to what dominates a training step; weights keep their names."""
        self.forward = torch.compile(self.forward, backend=backend)  # type: ignore[method-assign]

    def cells(self, missing: Tensor, feature_missing: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Hidden cells of tables, name -> (B, F) bool, under a mask (B, M): none of an observed table, those in
        ``feature_missing`` of a masked one. Masked tables without an entry are hidden completely."""
        column = {name: i for i, name in enumerate(self.modality_names)}
        return {name: rows_like(missing[:, column[name]], cells) & cells for name, cells in feature_missing.items()}

    def unobserved(self, batch: Batch) -> Tensor:
        """Modalities without any observed content, (B, M) bool; a table with an observed cell is not one of them."""
        return unobserved(batch, self.modality_names)

    def observed_inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Inputs for the encoders, missing content overwritten by zeros. In training, encoders with batch statistics
        then skip rows without content (:mod:`models.layers.batch_norm`)."""
        if not self.training:
            return batch.observed()
        is_observed = ~self.unobserved(batch)
        return ObservedInputs(batch.observed(), dict(zip(self.modality_names, is_observed.unbind(1), strict=True)))

    def encode_modality(self, name: str, x: Tensor, cells: Tensor | None = None) -> Tensor | None:
        """Encodings (B, N, D) of one modality: those of all, side by side, are the output of ``encode``. None for a
        method that has no such encodings.

        Args:
            cells: hidden cells of a table.
        """
        return None

    def before_prediction(self) -> None:
        """Optimise for inference, for example merge adapters. Do not train or save afterwards."""

    def load(self, content: Mapping[str, Any], path: Path, name: str) -> None:
        """Load the weights of a checkpoint.

        Args:
            content: of the file.
            path: of the file, for messages.
            name: of the method, for messages.

        Raises:
            UserError: the file is of another kind, or its weights do not fit.
        """
        kind = checkpoint_kind(content)
        if kind not in ("lightning", "unknown"):
            raise UserError(f"{path} is a {kind.replace('_', ' ')} file: give a trained {name}")
        load_strict(self, content["state_dict"] if kind == "lightning" else content, path, name)

    def why_not_exported(self) -> str | None:
        return "its predictions depend on the other rows of a batch" if self.batch_dependent is True else None

    def attach_imputer(self, imputer: Imputer) -> None:
        """Set the imputer whose recoveries the method is trained on (``model.recovery_aware``,
        ``model.consistency``)."""
        raise UserError(
            f"{type(self).__name__} does not train on recoveries: set model.recovery_aware=0 and model.consistency=0"
        )

    def complete_with(self, imputer: Imputer, comparators: Sequence[str]) -> Method | None:
        """The trained method on inputs that an imputer completes, where it differs from
        :class:`models.completed.Completed`.

        Args:
            comparators: ``model.comparators``.
        """
        return None

    def as_backbone(self, metric: str) -> Any:
        """The trained method as a :class:`models.dymo.backbone.Backbone` of DyMo's selection.

        Args:
            metric: distance metric of the features.
        """
        raise UserError(f"{type(self).__name__} is no backbone of DyMo's selection: choose model=DyMo or model=CMPT")

    def attention_maps(self, modality: int, x: Tensor) -> dict[str, Tensor]:
        """Attention to the content of one modality, for the figures.

        Args:
            modality: column of the modality.
            x: (B, ...) its content.

        Returns:
            name of the query token -> (B, height, width); empty for a method without such tokens.
        """
        return {}

    def predict_scenarios(self, batch: Batch, scenarios: Mapping[str, Batch]) -> dict[str, dict[str, Prediction]]:
        return self.by_label(self.predict_each(batch, scenarios))

    def predict_each(self, batch: Batch, scenarios: Mapping[str, Batch]) -> dict[str, Prediction]:
        """Scenario -> prediction; a method that splits encoding from fusion encodes once, see
        :meth:`Method.predict_scenarios`."""
        return {name: self(masked) for name, masked in scenarios.items()}

    def by_label(self, predictions: dict[str, Prediction]) -> dict[str, dict[str, Prediction]]:
        """Predictions of the scenarios under the label of the method and, with ``reports_unimodal``, those of each
        modality alone under its name."""
        results = {MAIN: predictions}
        for i, name in enumerate(self.modality_names if self.reports_unimodal else ()):
            results[name] = {s: Prediction(p.extras["unimodal_logits"][:, i]) for s, p in predictions.items()}
        return results

    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        """Named losses, of which ``loss`` is minimised. Multi-label targets < 0 are unlabelled and ignored."""
        return {"loss": self.criterion(prediction.logits, batch.target)}

    def criterion(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of classification, see :func:`classification_loss`."""
        return classification_loss(logits, target, self.task)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        losses = self.loss(self(batch), batch)
        self.log_losses("train", losses, batch.counted)
        return losses["loss"]

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        prediction = self(batch)
        self.log_losses("val", self.loss(prediction, batch), len(batch))
        self.validation_metrics.update(prediction.logits, batch.target)

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val_{k}": v for k, v in self.validation_metrics.compute().items()}, prog_bar=True)
        self.validation_metrics.reset()

    def parameter_groups(self) -> list[Any]:
        """Parameters for the optimiser, or groups of them with different settings."""
        return [p for p in self.parameters() if p.requires_grad]

    def configure_optimizers(self) -> Any:
        assert self._optimizer is not None, "this model was built without an optimiser"
        optimizer = self._optimizer(self.parameter_groups())
        scheduler = None if self._scheduler is None else self._scheduler(optimizer)
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}

    def architecture(self) -> dict[str, Any]:
        """Plain values that identify these weights; kept in the checkpoint."""
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
