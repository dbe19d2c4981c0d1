"""Base classes of the comparison methods: encode once, draw masks, fuse under each mask
(docs/reference/baselines.md §1.2 to §1.4, §5.1).

A method implements ``fuse(encoded, batch) -> Prediction`` and, where its objective is more than classification,
``loss(prediction, batch)``. Everything that hides content goes through :meth:`Baseline.absent` or
:meth:`models.tokens.TokenPipeline.visible`, and overwrites.

Unlike the original: masks are drawn per row, not per batch (``masks.per=batch`` restores that), and always on top of
the mask of the data, which the original ignores; encoders run once per sample and step, not once per mask.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.base import IncompleteClassifier, Prediction
from models.baselines.masks import TrainingMasks
from models.layers.batch_norm import apply_to_observed
from models.rows import repeat_rows
from models.tokens import TokenPipeline
from utils.noise import hash_seed


class Baseline(IncompleteClassifier):
    """
    Args:
        masks: what training hides on top of what the data lack; None = nothing.
        reference: reproduce the original implementation's behaviour (see the method's docstring).
    """

    accepts_imputer = True
    # Whether the masks of a step go through one call of ``fuse``, all rows under each: K * B rows, in a batch without
    # ``inputs``. A method whose rows see each other, or whose loss reads inputs, says False.
    stack_masks: ClassVar[bool] = True
    # Whether ``fuse`` then takes the B rows that were encoded, instead of K copies of them.
    broadcasts: ClassVar[bool] = False
    # Whether the original implementation counts a table with any missing cell as missing; ``reference`` restores that.
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

    # ---- what a method implements ------------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor] | None = None) -> Tensor:
        """Inputs (B, ...) per modality -> (B, P, D) or (B, M, D); no row may influence another (batch normalisation
        apart).

        Args:
            cells: table name -> (B, F) bool, cells that are hidden from the encoder, as :meth:`cells` gives them.
        """

    @abstractmethod
    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        """Classify under ``batch.missing`` and ``batch.feature_missing``, which may hide more than what was hidden from
        :meth:`encode`: nothing of what they hide may count."""

    # ---- what it gets ------------------------------------------------------------------------------------------------

    def encode_batch(self, batch: Batch) -> Tensor:
        """Encode the observed content of a batch; missing content is overwritten before any arithmetic. With
        ``reference``, rows of zeros enter batch statistics."""
        if batch.complete:
            return self.encode(batch.inputs)
        inputs = batch.observed() if self.reference else self.observed_inputs(batch)
        return self.encode(inputs, self.cells(batch.missing, batch.feature_missing))

    def absent(self, batch: Batch) -> Tensor:
        """(B, M) bool: modalities that count as missing.

        Those of which nothing is observed (:meth:`unobserved`): a table with an observed cell counts as present. With
        ``reference``, in methods with ``reference_hides_partial_tables``, also tables with any missing cell, except in
        rows of which nothing else would be left.
        """
        unobserved = self.unobserved(batch)
        if not (self.reference and self.reference_hides_partial_tables):
            return unobserved
        return torch.where(batch.missing.all(1, keepdim=True), unobserved, batch.missing)

    def hide_more(self, batch: Batch, missing: Tensor) -> Batch:
        """Hide more of a batch by a mask (B, M). A table that the mask adds to :meth:`absent` loses all its cells."""
        added = missing & ~self.absent(batch)
        cells = {
            name: hidden | added[:, self.modality_names.index(name), None]
            for name, hidden in batch.feature_missing.items()
        }
        return batch.replace(missing=batch.missing | missing, feature_missing=cells)

    def mask_generator(self, batch_index: int) -> torch.Generator:
        """Generator of the masks of one step: the same on resume, another on every rank."""
        rank = self.global_rank if self._trainer is not None else 0
        seed = hash_seed(self.stream_seed, 4, self.current_epoch, batch_index, rank)
        return torch.Generator().manual_seed(seed)

    @property
    def splits(self) -> bool:
        """Whether a prediction is ``fuse`` of ``encode``, which then is computed once for all scenarios of a test."""
        return type(self).forward is Baseline.forward

    def forward(self, batch: Batch) -> Prediction:
        return self.fuse(self.encode_batch(batch), batch)

    def predict_each(self, batch: Batch, scenarios: Mapping[str, Batch]) -> dict[str, Prediction]:
        predictions, encoded = {}, None
        for name, masked in scenarios.items():
            # Cells of a table attend to each other in its encoder, so that other cell masks need another encoding.
            if not self.splits or masked.feature_missing:
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
        self.log_losses("train", losses, len(batch))
        return losses["loss"]

    def losses_under(self, encoded: Tensor, batch: Batch, masks: Tensor) -> dict[str, Tensor]:
        """Mean over the masks (K, B, M) of the losses under each."""
        k = len(masks)
        if self.stack_masks:
            stacked = self.hide_more(repeat_rows(batch, k), masks.flatten(0, 1))
            copies = encoded if self.broadcasts else encoded.repeat(k, *[1] * (encoded.ndim - 1))
            return self.loss(self.fuse(copies, stacked), stacked)
        losses_by_mask = []
        for mask in masks:
            masked = self.hide_more(batch, mask)
            losses_by_mask.append(self.loss(self.fuse(encoded, masked), masked))
        return {key: torch.stack([losses[key] for losses in losses_by_mask]).mean() for key in losses_by_mask[0]}

    def compile_parts(self, backend: str) -> None:
        """Compile the encoders, and the fusion, whose calls differ in size (hence dynamic)."""
        self.encode = torch.compile(self.encode, backend=backend)  # type: ignore[method-assign]
        self.fuse = torch.compile(self.fuse, backend=backend, dynamic=True)  # type: ignore[method-assign]

    def architecture(self) -> dict[str, Any]:
        return super().architecture() | {"reference": self.reference}


class TokenBaseline(TokenPipeline, Baseline):
    """A method on the token pipeline.

    Constructor: :meth:`add_tokens`, parts of the method, :meth:`initialise_normal`. ``fuse`` reads the encoded tokens
    through :meth:`models.tokens.TokenPipeline.replace_missing` alone.
    """

    broadcasts = True


class VectorBaseline(Baseline):
    """A method on one vector per modality. Constructor: :meth:`add_encoders`, then the parts of the method."""

    encoder_view = "vector"

    def add_encoders(self, encoders: Mapping[str, nn.Module]) -> None:
        """
        Args:
            encoders: modality name -> module whose output is (B, 1, ``width``), the same width for all.
        """
        self.encoders = nn.ModuleDict({name: encoders[name] for name in self.modality_names})
        self.vector_width = int(next(iter(encoders.values())).width)  # type: ignore[arg-type]

    def encode(self, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor] | None = None) -> Tensor:
        """Inputs -> (B, M, D)."""
        return torch.cat([self.encode_one(name, inputs, cells) for name in self.modality_names], dim=1)

    def encode_one(self, name: str, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor] | None = None) -> Tensor:
        """One modality of the inputs -> (B, 1, D)."""
        return apply_to_observed(self.encoders[name], inputs, name, cells)

    def replace_missing(self, vectors: Tensor, batch: Batch, value: float | Tensor = 0.0) -> Tensor:
        """Vectors (B, M, D) with ``value`` (a number, or broadcast against them) in place of absent modalities."""
        value = torch.as_tensor(value, dtype=vectors.dtype, device=vectors.device)
        return torch.where(self.absent(batch)[..., None], value, vectors)
