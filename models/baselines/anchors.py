"""Anchors: training rows that replace the batch in the predictions of methods whose rows depend on each other.

In training, such a method uses the rows of its batch. Predictions that depend on other test rows would change with the
batch size and the order of the rows. They use training rows instead, which are drawn once with the seed of the run,
encoded at the end of each epoch, and saved in the checkpoint as vectors and masks. With ``reference=true``, there are
no anchors, and a prediction uses its batch, as in the original works.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from datasets.batch import Batch
from models.baselines.base import VectorBaseline
from utils.noise import hash_seed


class AnchorBaseline(VectorBaseline):
    """A vector method with anchors. The constructor calls :meth:`add_anchors` after ``add_encoders``.

    Attributes:
        anchors: (A, M, D), the output of ``encode`` for the anchors.
        anchor_missing: (A, M) bool; rows without any modality (before training, all) are ignored.
    """

    can_stack_masks = False
    batch_dependent: ClassVar[bool | str] = "reference"
    anchors: Tensor
    anchor_missing: Tensor
    _anchor_batch: Batch | None = None
    _anchors_current = False

    def add_anchors(self, count: int) -> None:
        """Add A = ``count`` anchors, or all training rows if there are fewer; with 0, rows do not depend on others."""
        if count < 0:
            raise ValueError(f"anchors: must be at least 0, not {count}")
        rows = 0 if self.reference else count
        m = len(self.modalities)
        self.register_buffer("anchors", torch.zeros(rows, m, self.vector_width))
        self.register_buffer("anchor_missing", torch.ones(rows, m, dtype=torch.bool))
        self.batch_dependent = self.reference  # type: ignore[misc]

    @property
    def uses_batch(self) -> bool:
        """Whether rows depend on those of their batch instead of the anchors."""
        return self.training or self.reference

    def on_fit_start(self) -> None:
        super().on_fit_start()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        rng = np.random.default_rng(hash_seed(self.stream_seed, 6))
        n = len(data.split("train"))
        rows = np.sort(rng.permutation(n)[: len(self.anchors)])
        missing, cells = data.masks("train", data.missing_train)
        if len(rows):
            self._anchor_batch = data.rows("train", rows).replace(
                missing=torch.from_numpy(missing[rows]),
                feature_missing={name: torch.from_numpy(hidden[rows]) for name, hidden in cells.items()},
            )

    def on_train_epoch_start(self) -> None:
        self._anchors_current = False

    def on_validation_epoch_start(self) -> None:
        self.refresh_anchors()

    def on_train_epoch_end(self) -> None:
        if not self._anchors_current:  # without validation
            self.refresh_anchors()

    @torch.no_grad()
    def refresh_anchors(self) -> None:
        """Encode the anchors with the current weights."""
        self._anchors_current = True
        if self._anchor_batch is None:
            return
        batch, training = self._anchor_batch.to(self.device), self.training
        self.eval()
        self.anchors[: len(batch)] = self.encode_batch(batch).to(self.anchors.dtype)
        self.anchor_missing[: len(batch)] = self.absent(batch)
        self.train(training)
