"""What the masked-attention model and its baselines share: training, and tokens of one width
(docs/reference/masked-attention.md §3.6 to §3.9).
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.base import IncompleteClassifier, Prediction
from models.baselines.base import Baseline
from models.encoders.naim import drop_cells
from models.layers.masked_attention import xavier_initialisation
from models.rows import take_rows
from utils.schedule import Plateau

log = logging.getLogger(__name__)
FILLS = ("tokens", "inputs", "mixed")


class StagedTraining(Baseline):
    """Plateau schedule, feature dropout, and a loss in which every label counts alike.

    Args:
        feature_dropout: rate of :func:`models.encoders.naim.drop_cells`, for every table.
        plateau: lowers the learning rates; None = they stay.
        others: see :class:`models.baselines.base.Baseline`.
    """

    encoder_view = "tokens"

    def __init__(
        self, *arguments: Any, feature_dropout: float = 0.0, plateau: Plateau | None = None, **others: Any
    ) -> None:
        super().__init__(*arguments, **others)
        if not 0 <= feature_dropout < 1:
            raise ValueError(f"feature_dropout={feature_dropout}: must be at least 0 and below 1")
        self.feature_dropout, self.plateau = feature_dropout, plateau
        self._of_labels = torch.zeros(2, self.num_classes, dtype=torch.float64)
        if plateau is not None and self.reference:
            plateau.recreate = True

    def criterion(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy; of several labels :func:`mean_of_labels`."""
        return mean_of_labels(logits, target) if self.task == "multilabel" else super().criterion(logits, target)

    # Batches differ in which labels they have: the mean over labels is taken once, of the whole validation split.

    def on_validation_epoch_start(self) -> None:
        self._of_labels = torch.zeros(2, self.num_classes, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        if self.task != "multilabel":
            return super().validation_step(batch, batch_index)
        logits = self(batch).logits
        self._of_labels += torch.stack(sums_of_labels(logits, batch.target))
        self.validation_metrics.update(logits, batch.target)

    def on_validation_epoch_end(self) -> None:
        if self.task == "multilabel":
            sums, rows = self.trainer.strategy.reduce(self._of_labels, reduce_op="sum")
            self.log("val_loss", over_labels(sums, rows).float())
        super().on_validation_epoch_end()

    def drop_features(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with fewer cells of its tables."""
        if not self.feature_dropout:
            return batch
        missing, cells = batch.missing.clone(), dict(batch.feature_missing)
        hidden = self.cells(batch.missing, batch.feature_missing)
        for i, modality in enumerate(self.modalities):
            if modality.kind == "table":
                gone = hidden.get(modality.name)
                if gone is None:
                    gone = batch.missing[:, i, None].expand(-1, modality.shape[0])
                cells[modality.name] = drop_cells(gone, self.feature_dropout, generator)
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


class TokenInput(nn.Module):
    """Tokens of one encoder (B, N, W) -> tokens of the fusion (B, ``tokens``, D).

    Args:
        encoder: with ``tokens`` (N) and ``width`` (W).
        width: D.
        pooled: take the mean of the tokens, and split it into W / D tokens.

    Where W is no multiple of D, or tokens are not pooled and W is not D, they go through a linear layer.
    """

    def __init__(self, encoder: nn.Module, width: int, pooled: bool) -> None:
        super().__init__()
        own, tokens = int(encoder.width), int(encoder.tokens)  # type: ignore[arg-type]
        self.pooled = pooled
        self.pieces = own // width if pooled and own % width == 0 else 1
        self.tokens = (1 if pooled else tokens) * self.pieces
        self.proj = nn.Linear(own, width) if own != self.pieces * width else None

    def forward(self, x: Tensor) -> Tensor:
        if self.pooled:
            x = x.mean(1, keepdim=True)
        return x.unflatten(-1, (self.pieces, -1)).flatten(1, 2) if self.proj is None else self.proj(x)


class TokenFusion(StagedTraining):
    """A method on the tokens of all modalities, (B, P, D). Constructor: own parts, then :meth:`initialise`.

    A method implements ``classify(tokens, available) -> Prediction``.

    Args:
        encoders: modality name -> module with ``tokens`` (N) and ``width`` (W) whose output is (B, N, W). Those of
            tables take ``missing`` (B, n) as a second argument.
        width: D.
        tokens: what becomes of the tokens of images, texts and sound: ``pooled`` into one vector, or ``all``; or
            modality name -> one of these. Those of tables are all kept: one a column.
        fill: what stands for a missing modality: zeros in place of its ``tokens``, or of its ``inputs``, whatever its
            encoder makes of them; ``mixed``: of the tokens of a table and of the inputs of any other modality, as the
            released code does for its baselines without a mask. A table with some cells is not missing.
        feature_mask: tell the encoders of tables which cells are missing; without, these are zeros to them.
        freeze_encoders: train nothing of the encoders; batch normalisation stays as it is.
        encoder_lr: learning rate of the encoders; None = that of the optimiser.
        complete_rows: train on rows only that have every modality.
        prerequisites: ``unimodal_<modality>``, trained :class:`models.masked_attention.unimodal.TokenUnimodal` with the
            same encoders, from which the weights are taken; None = the encoders as they are.
        others: see :class:`StagedTraining`; ``masks`` is the modality dropout.
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
        how = {name: tokens if isinstance(tokens, str) else tokens.get(name, "pooled") for name in names}
        if bad := set(how.values()) - {"pooled", "all"}:
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
                m.name: TokenInput(encoders[m.name], width, how[m.name] == "pooled" and m.kind != "table")
                for m in modalities
            }
        )
        self.width, self.tokens_per_modality = width, [int(part.tokens) for part in self.inputs.values()]  # type: ignore[arg-type]
        self._spans = [slice(a, b) for a, b in pairwise([0, *accumulate(self.tokens_per_modality)])]

    def initialise(self) -> None:
        """Everything but the encoders, as :func:`models.layers.masked_attention.xavier_initialisation`."""
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
        """
        Args:
            tokens: (B, P, D), overwritten where a modality or cell is missing, as ``fill`` says.
            available: (B, P) bool, True = there; None = all.
        """

    @property
    def splits(self) -> bool:
        return super().splits and self.fill == "tokens"

    def encode(self, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor] | None = None) -> Tensor:
        """Inputs (B, ...) per modality -> (B, P, D)."""
        return torch.cat([self.tokens_of(name, inputs[name], cells) for name in self.modality_names], dim=1)

    def tokens_of(self, name: str, x: Tensor, cells: Mapping[str, Tensor] | None = None) -> Tensor:
        """One modality (B, ...) -> (B, its tokens, D)."""
        told = {"missing": cells[name]} if cells and name in cells and self.feature_mask else {}
        return self.inputs[name](self.encoders[name](x, **told))

    def encode_batch(self, batch: Batch) -> Tensor:
        """In training, encoders of other modalities than tables get the rows that have theirs, so that blanks count in
        no statistic of batch normalisation; zeros elsewhere. A row alone is given twice: the statistics need two."""
        if batch.complete or not self.training or self.reference or self.fill != "tokens":
            return super().encode_batch(batch)
        observed, there = batch.observed(), ~self.absent(batch)
        cells, parts = self.cells(batch.missing, batch.feature_missing), []
        for i, m in enumerate(self.modalities):
            x, rows = observed[m.name], there[:, i].nonzero()[:, 0]
            if m.kind == "table":
                parts.append(self.tokens_of(m.name, x, cells))
            elif len(rows) == 0:
                blank = x.new_zeros(len(batch), self.tokens_per_modality[i], self.width)
                parts.append(blank + without_effect(self.encoders[m.name], self.inputs[m.name]))
            else:
                own = self.tokens_of(m.name, x[rows if len(rows) > 1 else rows.repeat(2)])[: len(rows)]
                parts.append(own.new_zeros(len(batch), *own.shape[1:]).index_put((rows,), own))
        return torch.cat(parts, dim=1)

    def available(self, batch: Batch) -> Tensor | None:
        """(B, P) bool, True = there, None where everything is: of a table with a token a column those of its cells."""
        if batch.complete:
            return None
        there = (~self.absent(batch)).repeat_interleave(
            torch.tensor(self.tokens_per_modality, device=batch.missing.device), 1, output_size=self._spans[-1].stop
        )
        for name, gone in self.cells(batch.missing, batch.feature_missing).items():
            i = self.modality_names.index(name)
            if self.tokens_per_modality[i] == gone.shape[1]:
                there[:, self._spans[i]] = ~gone
        return there

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        available = self.available(batch)
        if available is not None and self.fill == "tokens":
            hidden = available
            if self.reference:  # tokens of single cells stay: their encoder saw zeros there
                hidden = self.available(batch.replace(missing=self.absent(batch), feature_missing={}))  # type: ignore[assignment]
            encoded = torch.where(hidden[..., None], encoded, 0)
        elif available is not None and self.fill == "mixed":
            encoded = torch.where(self.tokens_of_missing_tables(batch)[..., None], 0, encoded)
        return self.classify(encoded, available)

    def tokens_of_missing_tables(self, batch: Batch) -> Tensor:
        """(B, P) bool: tokens of tables without a single cell."""
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
                "the frozen encoders of %s have random weights: give them weights, or train them first (prerequisites: "
                "{unimodal: each_modality})",
                ", ".join(random),
            )

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        generator = self.mask_generator(batch_index)
        if self.complete_rows and not batch.complete:
            rows = ~self.absent(batch).any(1)
            if rows.sum() < 2:  # too few for batch normalisation
                nothing = without_effect(self)
                self.log_losses("train", {"loss": nothing}, len(batch))
                return nothing
            batch = take_rows(batch, rows)
        features = self.drop_features(batch, generator)
        dropped = self.drop_modalities(features, generator)
        # Behind the encoders, batch normalisation sees no blank images; the original drops before.
        seen = dropped if self.reference or self.fill != "tokens" else features
        losses = self.loss(self.fuse(self.encode_batch(seen), dropped), dropped)
        self.log_losses("train", losses, len(batch))
        return losses["loss"]

    def drop_modalities(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch under the mask that ``masks`` draws; a dropped table loses all its cells."""
        if self.masks.kind == "none":
            return batch
        gone = self.masks.draw_one(self.absent(batch), generator)
        cells = {
            name: hidden | gone[:, self.modality_names.index(name), None]
            for name, hidden in self.cells(batch.missing, batch.feature_missing).items()
        }
        return batch.replace(missing=batch.missing | gone, feature_missing=cells)

    def parameter_groups(self) -> list[Any]:
        """The encoders at ``encoder_lr``, and everything else."""
        own = [p for p in self.encoders.parameters() if p.requires_grad]
        of_encoders = set(map(id, own))
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in of_encoders]
        if self.encoder_lr is None or not own:
            return [*own, *rest]
        return [{"params": own, "lr": self.encoder_lr}, {"params": rest}]

    def architecture(self) -> dict[str, Any]:
        return super().architecture() | {"width": self.width, "tokens": self.tokens_per_modality, "fill": self.fill}


def without_effect(*modules: nn.Module) -> Tensor:
    """0 whose gradient reaches every parameter that is trained, as 0: processes that train together wait for it."""
    trained = [p for module in modules for p in module.parameters() if p.requires_grad]
    return sum((0 * p.sum() for p in trained), torch.zeros((), device=trained[0].device if trained else None))


def mean_of_labels(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of each label, the mean over the rows that have it, and the mean over the labels that any
    row has; 0 where there is none.

    Args:
        logits: (B, C).
        target: (B, C) float, < 0 = not labelled.
    """
    return over_labels(*sums_of_labels(logits, target))


def sums_of_labels(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of each label, summed over the rows that have it (C,), and their number (C,)."""
    labelled = target >= 0
    cells = F.binary_cross_entropy_with_logits(logits, target.clamp(min=0), reduction="none")
    return torch.where(labelled, cells, 0).sum(0), labelled.sum(0)


def over_labels(sums: Tensor, rows: Tensor) -> Tensor:
    """The mean over the labels that any row has of the means over their rows."""
    return (sums / rows.clamp(min=1)).sum() / (rows > 0).sum().clamp(min=1)
