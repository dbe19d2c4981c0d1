"""What the comparison methods share: encode once, draw masks, fuse under each
(docs/reference/baselines.md §1.2 to §1.4, §5.1).

A method implements ``fuse(encoded, batch) -> Prediction`` and, where its objective is more than classification,
``loss(prediction, batch)``. Everything that hides content goes through :meth:`Baseline.absent` or
:meth:`models.tokens.TokenPipeline.visible`, and overwrites.

Unlike the original: masks are drawn per row, not per batch (``masks.per=batch`` restores that), and always on top of
the data's own mask, which the original threw away; encoders run once per sample and step, not once per mask.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.base import IncompleteClassifier, Method, Prediction
from models.imputers.base import Imputer, recover_possible
from models.layers.batch_norm import apply_to_observed
from models.tokens import TokenPipeline
from utils.errors import UserError
from utils.noise import hash_seed
from utils.subsets import enumerate_subsets

KINDS = ("none", "bernoulli", "subsets", "count", "all", "one", "fewer")


@dataclass(frozen=True)
class TrainingMasks:
    """What training hides besides what the data do not have.

    Attributes:
        kind: ``none``; ``bernoulli``: every modality with probability ``p``, independently; ``subsets``: ``k`` distinct
            non-empty subsets, uniformly; ``count``: keeps n modalities, n uniform on 1 .. M, any of them alike;
            ``all``: each of the 2^M - 1 subsets; ``one``: nothing or one modality, by ``shares``; ``fewer``: with
            probability ``p`` keeps 1 .. n - 1 of the n that the row has, any number alike (never ``per`` batch).
        shares: of nothing, of modality 0, of modality 1, ...; they sum to 1.
        per: ``row``: every sample draws its own; ``batch``: one draw for the whole batch, as the original does.
    """

    kind: str = "none"
    p: float = 0.5
    k: int = 2
    per: str = "row"
    shares: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.per not in ("row", "batch"):
            raise ValueError(f"masks: kind is one of {', '.join(KINDS)} and per is row or batch, not {self}")
        if not 0 <= self.p < 1 or self.k < 1:
            raise ValueError(f"masks: p must be at least 0 and below 1 (it is {self.p}), k at least 1 (it is {self.k})")
        if self.kind == "fewer" and self.per == "batch":
            raise ValueError("masks: kind=fewer is drawn for every row, leave out per=batch")
        shares = self.shares
        if (self.kind == "one") != (shares is not None):
            raise ValueError("masks: kind=one needs shares, and no other kind takes them")
        if shares is not None and (min(shares) < 0 or abs(sum(shares) - 1) > 1e-6):
            raise ValueError(f"masks: shares {list(shares)} must not be negative and sum to 1")

    def draw_one(self, missing: Tensor, generator: torch.Generator) -> Tensor:
        """The mask (B, M) of a method that draws one a step, see :meth:`draw`.

        Raises:
            UserError: there are several.
        """
        if self.kind == "all" or (self.kind == "subsets" and self.k > 1):
            raise UserError(
                f"masks.kind={self.kind} has several masks a step, of which this method takes one: set masks.kind="
                "count, or masks.kind=subsets with masks.k=1"
            )
        return self.draw(missing, generator)[0]

    def draw(self, missing: Tensor, generator: torch.Generator) -> Tensor:
        """Masks for one training batch.

        Args:
            missing: (B, M) bool, what the data do not have.
            generator: on the CPU.

        Returns:
            (K, B, M) bool, True = missing: never less than ``missing``, and a row that would lose everything keeps one
            of the modalities that it has, uniformly.
        """
        if self.kind == "fewer":
            drops = torch.rand(len(missing), 1, generator=generator) < self.p
            return torch.where(drops.to(missing.device), missing | fewer_of(missing, generator), missing)[None]
        b, m = missing.shape
        rows = b if self.per == "row" else 1
        if self.kind == "bernoulli":
            drawn = (torch.rand(rows, m, generator=generator) < self.p)[None]
        elif self.kind == "count":
            rank = torch.rand(rows, m, generator=generator).argsort(1).argsort(1)
            drawn = (rank >= torch.randint(1, m + 1, (rows, 1), generator=generator))[None]
        elif self.shares is not None:
            if len(self.shares) != m + 1:
                raise UserError(f"masks.shares has {len(self.shares)} values, {m} modalities need {m + 1}")
            picked = torch.multinomial(
                torch.tensor(self.shares, dtype=torch.float), rows, replacement=True, generator=generator
            )
            drawn = (picked[:, None] == torch.arange(1, m + 1))[None]
        elif self.kind == "none":
            drawn = torch.zeros(1, rows, m, dtype=torch.bool)
        else:
            subsets = enumerate_subsets(m)
            if self.kind == "all":
                drawn = subsets[:, None]
            else:
                picked = torch.rand(rows, len(subsets), generator=generator).argsort(1)[:, : self.k]
                drawn = subsets[picked].transpose(0, 1)
        kept = torch.rand(len(drawn), b, m, generator=generator).to(missing.device)
        hidden = drawn.to(missing.device) | missing
        kept = torch.where(missing, -1, kept)
        last = kept == kept.amax(-1, keepdim=True)
        return torch.where(hidden.all(-1, keepdim=True), missing | ~last, hidden)


def fewer_of(absent: Tensor, generator: torch.Generator) -> Tensor:
    """A mask (B, M) that keeps k of the n modalities that a row has, k uniform on 1 .. n - 1; all where n is 1."""
    n = (~absent).sum(1).cpu()
    order = torch.where(absent.cpu(), 2.0, torch.rand(absent.shape, generator=generator)).argsort(1).argsort(1)
    drawn = 1 + (torch.rand(len(n), generator=generator) * (n - 1)).long()
    k = torch.minimum(drawn, (n - 1).clamp(min=1))
    return absent | (order >= k[:, None]).to(absent.device)


class Baseline(IncompleteClassifier):
    """
    Args:
        masks: what training hides; None = nothing but what the data do not have.
        reference: restore what the original does where we differ; a method says what that is.
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
        """Encode what a batch has; content that is missing is overwritten before it meets any arithmetic. With
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
        """A batch of which a mask (B, M) hides more. A table that the mask adds to :meth:`absent` loses all its
        cells."""
        added = missing & ~self.absent(batch)
        cells = {
            name: hidden | added[:, self.modality_names.index(name), None]
            for name, hidden in batch.feature_missing.items()
        }
        return batch.replace(missing=batch.missing | missing, feature_missing=cells)

    def mask_generator(self, batch_index: int) -> torch.Generator:
        """Source of a step's masks: the same on resume, another on every rank."""
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
        each = []
        for mask in masks:
            masked = self.hide_more(batch, mask)
            each.append(self.loss(self.fuse(encoded, masked), masked))
        return {key: torch.stack([losses[key] for losses in each]).mean() for key in each[0]}

    def compile_parts(self, backend: str) -> None:
        """The encoders, and what fuses, whose calls differ in size (hence dynamic)."""
        self.encode = torch.compile(self.encode, backend=backend)  # type: ignore[method-assign]
        self.fuse = torch.compile(self.fuse, backend=backend, dynamic=True)  # type: ignore[method-assign]

    def architecture(self) -> dict[str, Any]:
        return super().architecture() | {"reference": self.reference}


class TokenBaseline(TokenPipeline, Baseline):
    """A method on the token pipeline. Constructor: :meth:`add_tokens`, own parts, :meth:`initialise_normal`. Its
    ``fuse`` reads what was encoded through :meth:`models.tokens.TokenPipeline.replace_missing` alone."""

    broadcasts = True


class VectorBaseline(Baseline):
    """A method on one vector a modality. Constructor: :meth:`add_encoders`, own parts."""

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


class RowMemory(Baseline):
    """A method that keeps values of each training row across epochs: ``self.memory`` (N_train, M) float32, zeros at
    first, at row ``batch.index`` or, by modality, ``batch.sources``. Part of the checkpoint, so that a resumed run goes
    on with it.
    """

    needs_index = True
    memory: Tensor | None = None

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.memory is None:
            rows = len(self.trainer.datamodule.split("train"))  # type: ignore[attr-defined]
            self.memory = torch.zeros(rows, len(self.modalities))
        self.memory = self.memory.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.memory is not None:
            checkpoint["row_memory"] = self.memory.cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.memory = checkpoint.get("row_memory")


class Completed(Method):
    """A method behind an imputer: inputs are completed and the masks cleared, but for what the imputer cannot recover
    in a row, which stays missing.

    Args:
        method: trained.
        imputer: fills what is missing.
    """

    def __init__(self, method: IncompleteClassifier, imputer: Imputer) -> None:
        super().__init__()
        self.method = method.eval()
        self._imputer = [imputer]  # kept out of the module tree: it need not be a module

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Prediction:
        inputs, unrecoverable = recover_possible(self._imputer[0], self.method.modalities, batch)
        if unrecoverable is None or not unrecoverable.any():
            nothing = torch.zeros_like(batch.missing)
            return self.method(batch.replace(inputs=inputs, missing=nothing, feature_missing={}, complete=True))
        names = self.method.modality_names
        cells = {
            name: hidden & unrecoverable[:, names.index(name), None] for name, hidden in batch.feature_missing.items()
        }
        completed = batch.replace(inputs=inputs, missing=unrecoverable, feature_missing=cells)
        return self.method(completed)

    def predict_scenarios(self, batch: Batch, scenarios: Mapping[str, Batch]) -> dict[str, dict[str, Prediction]]:
        return self.method.by_label({name: self(masked) for name, masked in scenarios.items()})


def take_rows(batch: Batch, rows: Tensor) -> Batch:
    """Some rows of a batch, by their numbers or a mask (B,)."""
    return Batch(
        {name: x[rows] for name, x in batch.inputs.items()},
        batch.missing[rows],
        batch.target[rows],
        batch.index[rows],
        {name: cells[rows] for name, cells in batch.feature_missing.items()},
        None if batch.noise_level is None else batch.noise_level[rows],
        batch.complete,
        None if batch.sources is None else batch.sources[rows],
    )


def repeat_rows(batch: Batch, k: int) -> Batch:
    """The rows of a batch k times over, one copy after the other; without ``inputs`` where that is more than one."""
    if k == 1:
        return batch

    def copies(x: Tensor) -> Tensor:
        return x.repeat(k, *[1] * (x.ndim - 1))

    return Batch(
        {},
        copies(batch.missing),
        copies(batch.target),
        copies(batch.index),
        {name: copies(cells) for name, cells in batch.feature_missing.items()},
        None if batch.noise_level is None else copies(batch.noise_level),
        batch.complete,
        None if batch.sources is None else copies(batch.sources),
    )
