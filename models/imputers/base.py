"""`Imputer`, the interface of every recovery method, and its two kinds that learn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from datasets.batch import Batch, Modality, missing_content
from models.row_losses import RowLosses
from utils.transfer import to_device
from utils.weights import load_strict


class LearningStage(Protocol):
    """Stage impute as a method sees it in :meth:`Imputer.learn`; each call runs and finishes the stage."""

    def train(self, imputer: pl.LightningModule) -> None:
        """Train a module for the epochs of the configuration."""

    def fit(self, imputer: FittedImputer) -> None:
        """Pass the training batches once, and store what was learned."""

    def skip(self) -> None:
        """Learn nothing."""

    def assemble(self, imputer: Assembled) -> None:
        """Run the stage for every part, and store what they learned."""


class Assembled(Protocol):
    """An imputer that consists of others.

    Attributes:
        parts: modality name -> imputer.
    """

    parts: dict[str, Imputer]

    def replace_part(self, label: str, part: Imputer) -> None:
        """Use another imputer in place of the part with this label."""

    def state_dict(self) -> Any:
        """Weights of all parts."""

    def architecture(self) -> Any:
        """Modalities of each part."""


class Imputer(ABC):
    """Fill in what is missing and pass observed content through unchanged.

    Attributes:
        needs: out of ``weights`` (stage impute makes them), ``networks`` (one per modality, in the configuration),
            ``parts`` (imputers, in the configuration) and ``oracle`` (the content of missing modalities; refused
            outside evaluation studies).
        recovers: kinds of modality that the method fills in, None = all.
        reads_others: it fills them in only in rows that have all other modalities.
        leaves_unrecoverable: :meth:`impute` takes masks with modalities that it cannot recover, and neither reads nor
            fills these.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    recovers: ClassVar[tuple[str, ...] | None] = None
    reads_others: ClassVar[bool] = False
    leaves_unrecoverable: ClassVar[bool] = False

    @classmethod
    def fits(cls, kinds: Sequence[str]) -> bool:
        """Whether the method is made for a data set with modalities of these kinds."""
        return True

    @property
    def kinds_read(self) -> tuple[str, ...] | None:
        """Kinds of modality that recoveries depend on, None = all."""
        return None

    def learn(self, stage: LearningStage) -> None:
        """Run stage impute: train, fit or, by default, learn nothing."""
        stage.skip()

    def load(self, content: Mapping[str, Any], path: Path, name: str) -> None:
        """Load what stage impute stored, or the original's weights.

        Args:
            content: of the file.
            path: of the file, for messages.
            name: of the method, for messages.

        Raises:
            ValueError: the content is of something else; the message continues the name of the file.
            UserError: weights do not fit.
        """
        raise ValueError(f"holds no weights of {name}, which has none")

    def recovery_state(self) -> Mapping[str, Any]:
        """Entries of the state that a recovery needs, for a bundle; :meth:`load` takes them."""
        return self.state_dict()  # type: ignore[attr-defined]

    def networks(self) -> list[nn.Module]:
        """Networks whose weights a recovery needs."""
        return [self] if isinstance(self, nn.Module) else []

    def move_to(self, device: torch.device) -> Self:
        """Make the method ready to recover on a device."""
        return self.eval().to(device) if isinstance(self, nn.Module) else self

    def recoverable(self, modalities: Sequence[Modality]) -> list[str]:
        """Names of the modalities that the method can fill in."""
        return [m.name for m in modalities if self.recovers is None or m.kind in self.recovers]

    def unrecoverable(self, modalities: Sequence[Modality], missing: Tensor) -> Tensor | None:
        """Mask of what stays missing after recovery.

        Args:
            modalities: of the data set, in the column order of ``missing``.
            missing: (B, M) bool, True = missing.

        Returns:
            (B, M) bool, True = missing and not recoverable in this row; None where the method can fill everything.
        """
        names = self.recoverable(modalities)
        if len(names) == len(modalities):
            return None
        is_fixed = to_device(torch.tensor([m.name not in names for m in modalities]), missing.device)
        unrecoverable = missing & is_fixed
        return unrecoverable | (missing & unrecoverable.any(1, keepdim=True)) if self.reads_others else unrecoverable

    @property
    def has_draws(self) -> bool:
        """Whether recoveries can be drawn from a posterior, see :meth:`drawing`."""
        return False

    @contextmanager
    def drawing(self, number: int) -> Iterator[None]:
        """Context manager in which recoveries are posterior draw ``number``, the same for a row in any batch.

        Raises:
            ValueError: the method has no posterior (:attr:`has_draws` is False).
        """
        raise ValueError(f"{type(self).__name__} draws no recoveries")
        yield

    def draw_for_seed(self, seed: int) -> None:
        """Draw the random part of recoveries anew for every seed, so that runs with other seeds do not share it.

        Called once, before the first recovery. Methods that recover without random numbers have nothing to do.
        """
        return

    def why_not_exported(self) -> str | None:
        """Reason why :meth:`impute_fixed` cannot become a program (:mod:`models.program`); None if it can."""
        return None

    def impute_fixed(
        self, inputs: Mapping[str, Tensor], missing: Tensor, feature_missing: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """:meth:`impute` for export, where no shape may depend on values. A method that selects rows overrides it."""
        return self.impute(inputs, missing, feature_missing=feature_missing)

    def check_training_rows(self, missing: np.ndarray) -> None:
        """Check that the method can learn from training rows with this mask (N, M), True = missing.

        Raises:
            UserError: they do not.
        """
        return

    @abstractmethod
    def impute(
        self,
        inputs: Mapping[str, Tensor],
        missing: Tensor,
        index: Tensor | None = None,
        feature_missing: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Completed inputs.

        Args:
            inputs: modality name -> (B, ...), in the column order of ``missing``; the content of missing rows is never
                read.
            missing: (B, M) bool, True = missing, any mix of patterns. A row without a False has some cells of a table.
            index: (B,) row numbers in the data set; methods that draw at random draw the same for the same row,
                whatever the batch. None = 0 .. B-1.
            feature_missing: table name -> (B, F) bool, the cells that are missing of a masked table; None, or no entry
                = all of them.

        Returns:
            name -> (B, ...): observed rows and cells are the given ones bit for bit, missing ones are recoveries.
        """


class FittedImputer(Imputer):
    """A method that is fitted in one pass over the complete training batches."""

    needs: ClassVar[tuple[str, ...]] = ("weights",)

    @property
    def kinds_read(self) -> tuple[str, ...] | None:
        return self.recovers

    def learn(self, stage: LearningStage) -> None:
        stage.fit(self)

    def load(self, content: Mapping[str, Any], path: Path, name: str) -> None:
        self.load_state_dict(content.get("state_dict", content))

    @abstractmethod
    def fit(self, batches: Iterable[Batch]) -> None:
        """Learn from training batches."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Result of :meth:`fit`."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        Raises:
            ValueError: the state is of something else; the message continues the name of its file.
        """


class TrainedImputer(RowLosses, Imputer):
    """A network that is trained by Lightning.

    Args:
        modalities: of the data set.
        optimizer: partial that takes the parameters.
        scheduler: partial that takes the optimiser (stepped once per epoch), or None.
    """

    needs: ClassVar[tuple[str, ...]] = ("weights",)

    def __init__(
        self,
        modalities: Sequence[Modality],
        optimizer: Callable[..., torch.optim.Optimizer] | None,
        scheduler: Callable[..., Any] | None,
    ) -> None:
        super().__init__()
        self.modalities = list(modalities)
        self._optimizer, self._scheduler = optimizer, scheduler

    def learn(self, stage: LearningStage) -> None:
        stage.train(self)

    def load(self, content: Mapping[str, Any], path: Path, name: str) -> None:
        load_strict(self, self.convert(content), path, name)

    def convert(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """State dict of this module from a file of ours or of the original."""
        return content.get("state_dict", content)

    def configure_optimizers(self) -> Any:
        assert self._optimizer is not None, "this imputer was built without an optimiser"
        optimizer = self._optimizer([p for p in self.parameters() if p.requires_grad])
        if self._scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._scheduler(optimizer), "interval": "epoch"}}

    def architecture(self) -> dict[str, Any]:
        """Plain values that identify these weights; kept in the checkpoint."""
        modalities = [[m.name, m.kind, list(m.shape)] for m in self.modalities]
        return {"method": type(self).__name__, "modalities": modalities}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["architecture"] = self.architecture()


def recover(imputer: Imputer, batch: Batch, is_fixed: bool = False) -> dict[str, Tensor]:
    """Fill in everything that the masks of a batch hide; ``is_fixed``: by :meth:`Imputer.impute_fixed`."""
    if batch.complete:
        return batch.inputs
    if is_fixed:
        return imputer.impute_fixed(batch.inputs, batch.missing, batch.feature_missing)
    if not batch.feature_missing:
        return imputer.impute(batch.inputs, batch.missing, batch.index)
    return imputer.impute(batch.inputs, batch.missing, batch.index, feature_missing=batch.feature_missing)


def recover_possible(
    imputer: Imputer, modalities: Sequence[Modality], batch: Batch, is_fixed: bool = False
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Like :func:`recover`, but what the method cannot recover in a row stays missing.

    Args:
        modalities: of the data set, in the column order of ``batch.missing``.
        is_fixed: by :meth:`Imputer.impute_fixed`, for export.

    Returns:
        name -> (B, ...) inputs, zeros where content stays missing (of a partly missing table, in its missing cells);
        and (B, M) bool, True = stays missing, None where the method can fill everything.
    """
    if batch.complete:
        return batch.inputs, None
    unrecoverable = imputer.unrecoverable(modalities, batch.missing)
    if unrecoverable is None:
        return recover(imputer, batch, is_fixed), None
    known = batch if imputer.leaves_unrecoverable else batch.replace(missing=batch.missing & ~unrecoverable)
    completed = recover(imputer, known, is_fixed)
    for i, (name, x) in enumerate(completed.items()):
        is_missing = missing_content(x, name, unrecoverable[:, i], batch.feature_missing)
        completed[name] = torch.where(is_missing, torch.zeros_like(x), x)
    return completed, unrecoverable


def row_numbers(missing: Tensor, index: Tensor | None) -> Tensor:
    """Row numbers (B,) that random draws depend on: ``index``, or 0 .. B-1 where it is None."""
    return torch.arange(len(missing), device=missing.device) if index is None else index


def merge(x: Tensor, missing: Tensor, recovered: Tensor) -> Tensor:
    """``recovered`` where ``missing``, ``x`` elsewhere; ``missing`` is (B,), or a mask that broadcasts against x."""
    return torch.where(missing.reshape(-1, *[1] * (x.ndim - 1)) if missing.ndim == 1 else missing, recovered, x)
