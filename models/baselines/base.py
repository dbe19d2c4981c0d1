"""Base classes of the comparison methods: encode once, draw masks, fuse under each mask
(docs/reference/baselines.md §1.2 to §1.4, §5.1).

A method implements ``fuse(encoded, batch) -> Prediction`` and, for additional objectives, ``loss(prediction, batch)``.
Hidden content is determined by :meth:`Baseline.absent` or :meth:`models.tokens.TokenPipeline.visible`, and overwritten.

Unlike in the original, masks are drawn per row, not per batch (``masks.per=batch`` restores that), in addition to the
mask of the data, which the original ignores; encoders run once per sample and step, not once per mask.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from datasets.batch import Batch, Modality, rows_like
from datasets.rows import repeat_rows
from models.base import IncompleteClassifier, Method, Prediction
from models.baselines.masks import TrainingMasks
from models.baselines.recoveries import PooledRecoveries
from models.imputers.base import Imputer
from models.layers.batch_norm import apply_to_observed
from models.layers.transformer import is_normal
from models.tokens import TokenPipeline
from utils.noise import hash_seed

log = logging.getLogger(__name__)


class Baseline(IncompleteClassifier):
    """Base class of methods that encode a batch once and fuse it under several masks.

    Args:
        masks: modalities hidden in training in addition to missing ones; None = none.
        reference: reproduce the original implementation's behaviour (see the method's docstring).
    """

    accepts_imputer = True
    recovery_comparators: ClassVar[tuple[str, ...]] = ("discard", "pool")
    # Whether one call of ``fuse`` can take the K masks of a step, as K * B rows in a batch without ``inputs``. False if
    # rows depend on each other or the loss reads inputs.
    can_stack_masks: ClassVar[bool] = True
    # Whether ``fuse`` then takes the B encoded rows instead of K copies of them.
    can_broadcast: ClassVar[bool] = False
    # Masks of one call of ``fuse``. More are taken in parts, whose activations are computed again in the backward pass.
    masks_at_once: ClassVar[int | None] = None
    # Whether the original treats a table with any missing cell as missing; ``reference`` restores that.
    reference_hides_partial_tables: ClassVar[bool] = False

    def __init__(
        self,
        modalities: Sequence[Modality],
        num_classes: int,
        *,
        task: str = "multiclass",
        masks: TrainingMasks | None = None,
        reference: bool = False,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(modalities, num_classes, task, optimizer, scheduler)
        self.masks, self.reference = masks or TrainingMasks(), reference

    # ---- to implement ------------------------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor] | None = None) -> Tensor:
        """Inputs (B, ...) per modality -> (B, P, D) or (B, M, D); no row may influence another (except by batch
        normalisation).

        Args:
            cells: table name -> (B, F) bool, cells that are hidden from the encoder, as :meth:`cells` gives them.
        """

    @abstractmethod
    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        """Classify under ``batch.missing`` and ``batch.feature_missing``.

        They may hide more than was hidden from :meth:`encode`; hidden content must not influence the prediction.
        """

    # ---- provided ----------------------------------------------------------------------------------------------------

    def complete_with(self, imputer: Imputer, comparators: Sequence[str]) -> Method | None:
        return PooledRecoveries(self, imputer, comparators) if comparators else None

    def encode_batch(self, batch: Batch) -> Tensor:
        """Encode the observed content of a batch; missing content is overwritten before any arithmetic. With
        ``reference``, rows of zeros enter batch statistics."""
        if batch.complete:
            return self.encode(batch.inputs)
        inputs = batch.observed() if self.reference else self.observed_inputs(batch)
        return self.encode(inputs, self.cells(batch.missing, batch.feature_missing))

    def absent(self, batch: Batch) -> Tensor:
        """(B, M) bool: modalities that count as missing.

        These are the unobserved ones (:meth:`unobserved`); a table with an observed cell is present. With ``reference``
        and ``reference_hides_partial_tables``, also tables with any missing cell, except in rows that would lose all
        modalities.
        """
        unobserved = self.unobserved(batch)
        if not (self.reference and self.reference_hides_partial_tables):
            return unobserved
        return torch.where(batch.missing.all(1, keepdim=True), unobserved, batch.missing)

    def hide_more(self, batch: Batch, missing: Tensor) -> Batch:
        """Hide more of a batch by a mask (B, M). A table that the mask adds to :meth:`absent` loses all its cells."""
        added = missing & ~self.absent(batch)
        cells = {
            name: hidden | rows_like(added[:, self.modality_names.index(name)], hidden)
            for name, hidden in batch.feature_missing.items()
        }
        return batch.replace(missing=batch.missing | missing, feature_missing=cells)

    def mask_generator(self, batch_index: int) -> torch.Generator:
        """Generator of the masks of one step: reproducible after a restart, different on every rank."""
        rank = self.global_rank if self._trainer is not None else 0
        seed = hash_seed(self.stream_seed, 4, self.current_epoch, batch_index, rank)
        return torch.Generator().manual_seed(seed)

    @property
    def can_split(self) -> bool:
        """Whether a prediction is ``fuse`` of ``encode``, so that one encoding serves all scenarios of a test."""
        return type(self).forward is Baseline.forward

    def forward(self, batch: Batch) -> Prediction:
        return self.fuse(self.encode_batch(batch), batch)

    def predict_each(self, batch: Batch, scenarios: Mapping[str, Batch]) -> dict[str, Prediction]:
        predictions, encoded = {}, None
        for name, masked in scenarios.items():
            # Cells of a table attend to each other in its encoder, so that every cell mask needs an encoding.
            if not self.can_split or masked.feature_missing:
                predictions[name] = self(masked)
                continue
            encoded = self.encode(batch.inputs) if encoded is None else encoded
            predictions[name] = self.fuse(encoded, masked)
        return predictions

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        encoded = self.encode_batch(batch)
        if self.masks.kind == "none":
            losses = self.loss(self.fuse(encoded, batch), batch)
        else:
            masks = self.masks.draw(self.absent(batch), self.mask_generator(batch_index))
            losses = self.losses_under(encoded, batch, masks)
        self.log_losses("train", losses, self.rows_of_loss(batch))
        return losses["loss"]

    def rows_of_loss(self, batch: Batch) -> int:
        """Number of rows of a batch that the loss is a mean over."""
        return batch.counted

    def losses_under(self, encoded: Tensor, batch: Batch, masks: Tensor) -> dict[str, Tensor]:
        """Mean over the masks (K, B, M) of the losses under each."""
        k = len(masks)
        if self.can_stack_masks:
            if self.masks_at_once is None or k <= self.masks_at_once:
                return self._stacked_losses(encoded, batch, masks)
            parts = masks.split(self.masks_at_once)
            losses = [checkpoint(self._stacked_losses, encoded, batch, part, use_reentrant=False) for part in parts]
            shares = [len(part) / k for part in parts]
            return {key: torch.stack([w * x[key] for w, x in zip(shares, losses)]).sum() for key in losses[0]}
        losses_by_mask = []
        for mask in masks:
            masked = self.hide_more(batch, mask)
            losses_by_mask.append(self.loss(self.fuse(encoded, masked), masked))
        return {key: torch.stack([losses[key] for losses in losses_by_mask]).mean() for key in losses_by_mask[0]}

    def _stacked_losses(self, encoded: Tensor, batch: Batch, masks: Tensor) -> dict[str, Tensor]:
        """:meth:`losses_under` in one call of :meth:`fuse`."""
        k = len(masks)
        stacked = self.hide_more(repeat_rows(batch, k), masks.flatten(0, 1))
        copies = encoded if self.can_broadcast else encoded.repeat(k, *[1] * (encoded.ndim - 1))
        return self.loss(self.fuse(copies, stacked), stacked)

    def compile_parts(self, backend: str) -> None:
        """Compile the encoders, and the fusion with dynamic shapes."""
        self.encode = torch.compile(self.encode, backend=backend)  # type: ignore[method-assign]
        self.fuse = torch.compile(self.fuse, backend=backend, dynamic=True)  # type: ignore[method-assign]

    def architecture(self) -> dict[str, Any]:
        return super().architecture() | {"reference": self.reference}


class TokenBaseline(TokenPipeline, Baseline):
    """A method on the token pipeline.

    The constructor calls :meth:`add_tokens`, adds the layers of the method, and calls :meth:`initialise`. ``fuse`` must
    access the encoded tokens through :meth:`models.tokens.TokenPipeline.replace_missing`.

    Args:
        initialisation: see :func:`models.layers.transformer.is_normal`.
    """

    can_broadcast = True
    masks_at_once = 64

    def __init__(
        self, modalities: Sequence[Modality], num_classes: int, *, initialisation: str | None = None, **others: Any
    ) -> None:
        super().__init__(modalities, num_classes, **others)
        self._is_normal = is_normal(initialisation)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        patterns = 2 ** len(self.modalities) - 1
        if self.masks.kind == "all" and patterns > self.masks_at_once:
            log.info(
                "%d patterns per step, %d at once: exact, with the memory of %d patterns and a third more work",
                *(patterns, self.masks_at_once, self.masks_at_once),
            )

    def initialise(self) -> None:
        """Initialise as the argument ``initialisation`` says."""
        if self._is_normal:
            self.initialise_normal()


class VectorBaseline(Baseline):
    """A method on one vector per modality. The constructor calls :meth:`add_encoders`, then adds its own layers."""

    encoder_view = "vector"

    def add_encoders(self, encoders: Mapping[str, nn.Module]) -> None:
        """
        Args:
            encoders: modality name -> module with output (B, 1, ``width``), of the same width.
        """
        self.encoders = nn.ModuleDict({name: encoders[name] for name in self.modality_names})
        self.vector_width = int(next(iter(encoders.values())).width)  # type: ignore[arg-type]

    def encode(self, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor] | None = None) -> Tensor:
        """Inputs -> (B, M, D)."""
        return torch.cat([self.encode_one(name, inputs, cells) for name in self.modality_names], dim=1)

    def encode_one(self, name: str, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor] | None = None) -> Tensor:
        """One modality of the inputs -> (B, 1, D)."""
        return apply_to_observed(self.encoders[name], inputs, name, cells)

    def encode_modality(self, name: str, x: Tensor, cells: Tensor | None = None) -> Tensor:
        return self.encode_one(name, {name: x}, None if cells is None else {name: cells})

    def replace_missing(self, vectors: Tensor, batch: Batch, value: float | Tensor = 0.0) -> Tensor:
        """Replace absent modalities of vectors (B, M, D) by ``value``, a number or broadcastable."""
        value = value.to(vectors) if isinstance(value, Tensor) else vectors.new_full((), value)
        return torch.where(self.absent(batch)[..., None], value, vectors)
