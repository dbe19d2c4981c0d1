"""Token fusion, the base class of the masked-attention model and its baselines
(docs/reference/masked-attention.md §3.6 to §3.9).
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from datasets.batch import Batch, Modality, rows_like
from datasets.rows import take_rows
from models.base import IncompleteClassifier, Prediction
from models.layers.batch_norm import apply_with_cells
from models.layers.masked_attention import xavier_initialisation
from models.layers.transformer import owners
from models.masked_attention.training import StagedTraining
from models.row_losses import zero_loss
from utils.transfer import column_rows

log = logging.getLogger(__name__)
FILLS = ("tokens", "inputs", "mixed")


class TokenInput(nn.Module):
    """Tokens of one encoder (B, N, W) -> tokens of the fusion (B, ``tokens``, D).

    A linear layer maps W to D if tokens are pooled and W is not a multiple of D, or if they are not pooled and W is not
    D.

    Args:
        encoder: with ``tokens`` (N) and ``width`` (W).
        width: D.
        pooled: average the tokens, and split the mean into W / D tokens.
    """

    def __init__(self, encoder: nn.Module, width: int, pooled: bool) -> None:
        super().__init__()
        encoder_width, tokens = int(encoder.width), int(encoder.tokens)  # type: ignore[arg-type]
        self.pooled = pooled
        self.pieces = encoder_width // width if pooled and encoder_width % width == 0 else 1
        self.tokens = (1 if pooled else tokens) * self.pieces
        self.proj = nn.Linear(encoder_width, width) if encoder_width != self.pieces * width else None

    def forward(self, x: Tensor) -> Tensor:
        if self.pooled:
            x = x.mean(1, keepdim=True)
        return x.unflatten(-1, (self.pieces, -1)).flatten(1, 2) if self.proj is None else self.proj(x)


class TokenFusion(StagedTraining):
    """A method on the tokens of all modalities (B, P, D).

    A subclass implements :meth:`classify`. Its constructor adds its own layers, then calls :meth:`initialise`.

    Args:
        encoders: modality name -> module with ``tokens`` (N) and ``width`` (W) and output (B, N, W). Encoders of tables
            take ``missing`` (B, n) as a second argument.
        width: D.
        tokens: ``pooled`` averages the tokens of a modality, ``all`` keeps them; or modality name -> one of these.
            Tables always keep all tokens, one per column.
        fill: where zeros replace a missing modality: in its ``tokens``, in its ``inputs`` (in front of the encoder), or
            ``mixed``: in the tokens of tables and the inputs of other modalities, as the released code does for
            baselines without a mask. A table with an observed cell is not missing.
        feature_mask: pass the missing cells to the encoders of tables; otherwise, they are encoded as zeros.
        freeze_encoders: do not train the encoders nor update their batch statistics.
        encoder_lr: learning rate of the encoders; None = that of the optimiser.
        complete_rows: train only on rows with all modalities.
        prerequisites: ``unimodal_<modality>``, trained :class:`models.masked_attention.unimodal.TokenUnimodal`, whose
            encoder weights are copied; None leaves the encoders as they are.
        others: see :class:`models.masked_attention.training.StagedTraining`; ``masks`` is the modality dropout.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        num_classes: int,
        encoders: Mapping[str, nn.Module],
        *,
        width: int = 1024,
        tokens: str | Mapping[str, str] = "pooled",
        fill: str = "tokens",
        feature_mask: bool = True,
        freeze_encoders: bool = False,
        encoder_lr: float | None = None,
        complete_rows: bool = False,
        prerequisites: Mapping[str, IncompleteClassifier] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(modalities, num_classes, **others)
        names = self.modality_names
        if unknown := sorted(set(tokens) - set(names)) if isinstance(tokens, Mapping) else []:
            raise ValueError(f"tokens names '{unknown[0]}', the modalities are {', '.join(names)}")
        reductions = {name: tokens if isinstance(tokens, str) else tokens.get(name, "pooled") for name in names}
        if bad := set(reductions.values()) - {"pooled", "all"}:
            raise ValueError(f"tokens={min(bad)}: must be pooled or all")
        if fill not in FILLS:
            raise ValueError(f"fill={fill}: must be one of {', '.join(FILLS)}")
        self.fill, self.feature_mask = fill, feature_mask and not self.reference
        self.freeze_encoders, self.encoder_lr, self.complete_rows = freeze_encoders, encoder_lr, complete_rows
        self.encoders = nn.ModuleDict({name: encoders[name] for name in names})
        if self.reference:
            xavier_initialisation(self.encoders)
        for name in names if prerequisites else []:
            expert: Any = prerequisites[f"unimodal_{name}"]  # type: ignore[index]
            self.encoders[name].load_state_dict(expert.encoders[name].state_dict())
            self.encoders[name].pretrained = True  # type: ignore[assignment]
        if freeze_encoders:
            self.encoders.requires_grad_(False)
            self.train(self.training)
        self.inputs = nn.ModuleDict(
            {
                m.name: TokenInput(encoders[m.name], width, reductions[m.name] == "pooled" and m.kind != "table")
                for m in modalities
            }
        )
        self.width, self.tokens_per_modality = width, [int(part.tokens) for part in self.inputs.values()]  # type: ignore[arg-type]
        self._spans = [slice(a, b) for a, b in pairwise([0, *accumulate(self.tokens_per_modality)])]

    def initialise(self) -> None:
        """Initialise all parts except the encoders by :func:`models.layers.masked_attention.xavier_initialisation`."""
        for name, part in self.named_children():
            if name != "encoders":
                xavier_initialisation(part)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if getattr(self, "freeze_encoders", False):
            self.encoders.eval()
        return self

    # ---- encode, fuse ------------------------------------------------------------------------------------------------

    @abstractmethod
    def classify(self, tokens: Tensor, available: Tensor | None) -> Prediction:
        """Classify by the tokens.

        Args:
            tokens: (B, P, D), overwritten where a modality or cell is missing (see ``fill``).
            available: (B, P) bool, True = observed; None = all.
        """

    @property
    def can_split(self) -> bool:
        return super().can_split and self.fill == "tokens"

    def encode(self, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor] | None = None) -> Tensor:
        """Inputs (B, ...) per modality -> (B, P, D)."""
        return torch.cat([self.encode_one(name, inputs[name], cells) for name in self.modality_names], dim=1)

    def encode_one(self, name: str, x: Tensor, cells: Mapping[str, Tensor] | None = None) -> Tensor:
        """One modality (B, ...) -> its tokens (B, N, D)."""
        hidden = cells.get(name) if cells and self.feature_mask else None
        return self.inputs[name](apply_with_cells(self.encoders[name], x, hidden))

    def encode_batch(self, batch: Batch) -> Tensor:
        """Encode a batch; in training, encode only observed rows of modalities other than tables, and fill in zeros.

        Missing content thus never enters the statistics of batch normalisation. A single row is repeated, since the
        statistics need two.
        """
        if batch.complete or not self.training or self.reference or self.fill != "tokens":
            return super().encode_batch(batch)
        observed, cells, parts = batch.observed(), self.cells(batch.missing, batch.feature_missing), []
        for i, (m, rows) in enumerate(zip(self.modalities, column_rows(self.absent(batch), False), strict=True)):
            x = observed[m.name]
            if m.kind == "table":
                parts.append(self.encode_one(m.name, x, cells))
            elif len(rows) == 0:
                blank = x.new_zeros(len(batch), self.tokens_per_modality[i], self.width)
                parts.append(blank + zero_loss(self.encoders[m.name], self.inputs[m.name]))
            else:
                encoded = self.encode_one(m.name, x[rows if len(rows) > 1 else rows.repeat(2)])[: len(rows)]
                parts.append(encoded.new_zeros(len(batch), *encoded.shape[1:]).index_put((rows,), encoded))
        return torch.cat(parts, dim=1)

    def available(self, batch: Batch) -> Tensor | None:
        """Observed tokens (B, P) bool, by cell for tables with one token per column; None = all."""
        if batch.complete:
            return None
        available = ~self.absent(batch)[:, owners(self.tokens_per_modality, batch.missing.device)]
        for name, hidden in self.cells(batch.missing, batch.feature_missing).items():
            i = self.modality_names.index(name)
            if hidden.ndim == 2 and self.tokens_per_modality[i] == hidden.shape[1]:
                available[:, self._spans[i]] = ~hidden
        return available

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        available = self.available(batch)
        if available is not None and self.fill == "tokens":
            visible = available
            if self.reference:  # keep tokens of single missing cells, which were encoded as zeros
                visible = self.available(batch.replace(missing=self.absent(batch), feature_missing={}))  # type: ignore[assignment]
            encoded = torch.where(visible[..., None], encoded, 0)
        elif available is not None and self.fill == "mixed":
            encoded = torch.where(self.missing_table_tokens(batch)[..., None], 0, encoded)
        return self.classify(encoded, available)

    def missing_table_tokens(self, batch: Batch) -> Tensor:
        """Tokens (B, P) bool of tables without any observed cell."""
        absent, tokens = self.absent(batch), []
        for i, (modality, count) in enumerate(zip(self.modalities, self.tokens_per_modality, strict=True)):
            is_missing = absent[:, i] if modality.kind == "table" else torch.zeros_like(absent[:, i])
            tokens.append(is_missing[:, None].expand(-1, count))
        return torch.cat(tokens, dim=1)

    # ---- training ----------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        super().on_fit_start()
        random = [name for name, part in self.encoders.items() if not getattr(part, "pretrained", False)]
        if self.freeze_encoders and random:
            log.warning(
                "the frozen encoders of %s have random weights: specify weights, or train them first "
                "(prerequisites={unimodal: each_modality})",
                ", ".join(random),
            )

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        generator = self.mask_generator(batch_index)
        if self.complete_rows and not batch.complete:
            is_complete = ~self.absent(batch).any(1)
            if is_complete.sum() < 2:  # too few for batch normalisation
                self.rows_of_step = 0
                return zero_loss(self)
            batch = take_rows(batch, is_complete)
        features = self.drop_features(batch, generator)
        dropped = self.drop_modalities(features, generator)
        # Drop modalities after the encoders, to exclude blank images from batch statistics; the original drops before.
        encoder_batch = dropped if self.reference or self.fill != "tokens" else features
        losses = self.loss(self.fuse(self.encode_batch(encoder_batch), dropped), dropped)
        self.log_losses("train", losses, batch.counted)
        return losses["loss"]

    def drop_modalities(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Hide modalities of a batch by a mask drawn from ``masks``; a dropped table loses all its cells."""
        if self.masks.kind == "none":
            return batch
        dropped = self.masks.draw_one(self.absent(batch), generator)
        cells = {
            name: hidden | rows_like(dropped[:, self.modality_names.index(name)], hidden)
            for name, hidden in self.cells(batch.missing, batch.feature_missing).items()
        }
        return batch.replace(missing=batch.missing | dropped, feature_missing=cells)

    def parameter_groups(self) -> list[Any]:
        """Encoders, trained at ``encoder_lr``, and all other parameters."""
        encoders = [p for p in self.encoders.parameters() if p.requires_grad]
        encoder_ids = set(map(id, encoders))
        others = [p for p in self.parameters() if p.requires_grad and id(p) not in encoder_ids]
        if self.encoder_lr is None or not encoders:
            return [*encoders, *others]
        return [{"params": encoders, "lr": self.encoder_lr}, {"params": others}]

    def architecture(self) -> dict[str, Any]:
        return super().architecture() | {"width": self.width, "tokens": self.tokens_per_modality, "fill": self.fill}
