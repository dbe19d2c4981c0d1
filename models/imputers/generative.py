"""Base of the generative recovery methods: training, likelihoods of every kind, an optional classifier on the latent.

Numbers (pixels, spectrograms, series, continuous columns) have a Laplace, texts and categorical columns a categorical
likelihood. Modalities for which the configuration names no network have one that is built for their shape
(:mod:`models.imputers.default_networks`; ours). With such networks, the imputer also learns from incomplete rows: the
posteriors and the likelihood are those of the observed modalities and cells, each weighted by the number of its values.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.batch import Batch, Modality, rows_like
from datasets.rows import take_rows
from models.imputers.base import TrainedImputer
from models.imputers.default_networks import Decoder
from models.imputers.likelihoods import (
    laplace_cell_nll,
    laplace_nll,
    most_likely_cells,
    table_cell_nll,
    text_nll,
    text_probabilities,
    token_nll,
)
from utils.errors import UserError
from utils.noise import hash_seed

IGNORED = -100
DRAW = 11  # keeps the seeds of numbered draws apart from all others


class GenerativeImputer(TrainedImputer):
    """Base class; a method implements :meth:`losses` and ``impute``.

    Args:
        modalities: of the data set.
        encoders, decoders: by modality name.
        latent: width of the shared latent.
        weights: modality name -> factor of its negative log-likelihood; where absent 1, or with default networks the
            number of values of the largest modality over its own.
        class_weight: weight of the cross-entropy of a linear classifier on the posterior mean of each single modality
            (ours, off by default). The ELBO alone takes tens of thousands of steps before the latent holds the class:
            most of a photograph's likelihood is its background.
        num_classes: C, read with ``class_weight`` alone.
        sample: recover from a posterior draw instead of the mean.
        draw_seed: of those draws; a run adds its seed, see :meth:`draw_for_seed`.
        optimizer, scheduler: partials.
    """

    needs: ClassVar[tuple[str, ...]] = ("weights", "networks")
    reference_text = False  # the original MoPoE's text likelihood, see :func:`text_probabilities`

    def __init__(
        self,
        modalities: Sequence[Modality],
        encoders: Mapping[str, nn.Module],
        decoders: Mapping[str, nn.Module],
        latent: int,
        /,
        *,
        weights: Mapping[str, float] | None = None,
        class_weight: float = 0.0,
        num_classes: int = 0,
        sample: bool = False,
        draw_seed: int = 2025,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(modalities, optimizer, scheduler)
        self.latent, self.sample, self.draw_seed = latent, sample, draw_seed
        self.class_weight = class_weight
        self.class_head = nn.Linear(latent, num_classes) if class_weight else None
        names = [m.name for m in modalities]
        for m in modalities:
            if m.cardinalities and not isinstance(decoders[m.name], Decoder):
                raise ValueError(
                    f"imputer.decoders.{m.name} recovers continuous columns, and table '{m.name}' has "
                    f"{len(m.cardinalities)} categorical ones: leave it out, the default network recovers both"
                )
        self.check_names(weights)
        # The encoders that see missing cells; with one of them, incomplete rows are learned from.
        self.takes_cells = [bool(getattr(encoders[n], "takes_cells", False)) for n in names]
        sizes = [math.prod(m.shape) for m in modalities]
        default = [max(sizes) / size if any(self.takes_cells) else 1.0 for size in sizes]
        self.weights = [float((weights or {}).get(n, w)) for n, w in zip(names, default)]

    def check_names(self, weights: Mapping[str, float] | None) -> None:
        """
        Raises:
            ValueError: a weight of a modality that the data set does not have.
        """
        names = [m.name for m in self.modalities]
        if unknown := set(weights or {}) - set(names):
            raise ValueError(f"a weight of '{sorted(unknown)[0]}', the modalities are {', '.join(names)}")

    @property
    def has_draws(self) -> bool:
        return True

    @contextmanager
    def drawing(self, number: int) -> Iterator[None]:
        configured = self.sample, self.draw_seed
        self.sample, self.draw_seed = True, hash_seed(self.draw_seed, DRAW, number)
        try:
            yield
        finally:
            self.sample, self.draw_seed = configured

    @property
    def recovers_at_random(self) -> bool:
        """Whether :meth:`impute` uses random numbers."""
        return self.sample

    def draw_for_seed(self, seed: int) -> None:
        if self.recovers_at_random:
            self.draw_seed = hash_seed(self.draw_seed, seed)

    def why_not_exported(self) -> str | None:
        return f"imputer {type(self).__name__} with sample=true draws by the number of the row" if self.sample else None

    def absent(self, missing: Tensor, feature_missing: Mapping[str, Tensor] | None) -> Tensor:
        """Modalities (B, M) that are no evidence: those without observed content, and those with missing cells that
        their encoder would see."""
        if not feature_missing:
            return missing
        columns = list(missing.unbind(1))
        for i, m in enumerate(self.modalities):
            if self.takes_cells[i] and m.name in feature_missing:
                columns[i] = columns[i] & feature_missing[m.name].flatten(1).all(1)
        return torch.stack(columns, 1)

    def hidden_cells(self, missing: Tensor, feature_missing: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Hidden cells of tables and series whose encoder sees them and that have an entry in ``feature_missing``; none
        in rows that are not marked."""
        return {
            m.name: rows_like(missing[:, i], feature_missing[m.name]) & feature_missing[m.name]
            for i, m in enumerate(self.modalities)
            if self.takes_cells[i] and feature_missing and m.name in feature_missing
        }

    def complete_rows(self, batch: Batch) -> Batch:
        """The rows of a batch that the objective is of: those that have every modality, a table with missing cells
        counted as missing; with encoders that see missing cells, all that have any content."""
        if batch.complete:
            return batch
        if any(self.takes_cells):
            return take_rows(batch, ~self.absent(batch.missing, batch.feature_missing).all(1))
        return take_rows(batch, ~batch.missing.any(1))

    def check_training_rows(self, missing: np.ndarray) -> None:
        if not any(self.takes_cells) and missing.any(1).all():
            raise UserError(
                f"imputer {type(self).__name__} learns from rows that have every modality with all its cells, and no "
                f"training row of {len(missing)} has: choose imputer=IMI or Mean, or set dataset.natural_missing=fill"
            )

    def nll(self, i: int, x: Tensor, output: Tensor, cells: Tensor | None = None) -> Tensor:
        """Negative log-likelihood (B,) of modality ``i``, without its missing ``cells``."""
        m = self.modalities[i]
        if m.kind == "text" and m.vocabulary:
            return token_nll(x, output).sum(1)
        if m.kind == "text":
            return text_nll(x, output, self.reference_text)
        if cells is None and not m.cardinalities:
            return laplace_nll(x, output)
        errors = table_cell_nll(x, output, m.cardinalities) if m.kind == "table" else laplace_cell_nll(x, output)
        return (errors if cells is None else torch.where(cells, 0, errors)).flatten(1).sum(1)

    def most_likely(self, i: int, output: Tensor) -> Tensor:
        """Content (B, ...) of modality ``i`` from the output of its decoder; a text of symbols as probabilities."""
        m = self.modalities[i]
        if m.kind == "text":
            return output.argmax(2) if m.vocabulary else text_probabilities(output, self.reference_text)
        return most_likely_cells(output, m.cardinalities, m.shape[0]) if m.cardinalities else output

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Means over the rows of the batch; ``loss`` is the objective."""

    def add_classification(
        self, losses: dict[str, Tensor], mu: Tensor, target: Tensor, absent: Tensor
    ) -> dict[str, Tensor]:
        """With ``class_weight``, the cross-entropy on the means ``mu`` (M, B, L) of the single modalities, without
        those that are ``absent`` (B, M), added to the loss."""
        if self.class_head is not None:
            logits = self.class_head(mu).flatten(0, 1)
            targets = torch.where(absent.T, IGNORED, target).flatten()
            losses["classification"] = F.cross_entropy(logits, targets, ignore_index=IGNORED)
            losses["loss"] = losses["loss"] + self.class_weight * losses["classification"]
        return losses

    def training_step(self, batch: Batch, batch_index: int) -> Tensor | None:
        batch = self.complete_rows(batch)
        if not len(batch):
            return self.step_without_rows()
        losses = self.losses(batch)
        self.log_losses("train", losses, batch.counted)
        return losses["loss"] * len(batch) if self.sums_over_batch else losses["loss"]

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        batch = self.complete_rows(batch)
        if not len(batch):
            return
        self.log_losses("val", {"loss": self.losses(batch)["loss"]}, len(batch))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Context manager for recoveries in eval mode."""
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)
