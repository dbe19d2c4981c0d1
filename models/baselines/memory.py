"""Values per training row that persist across epochs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.baselines.base import Baseline


class RowMemory(Baseline):
    """A method with values per training row that persist across epochs.

    ``self.memory`` (N_train, M) float32 is initialised to zeros, and indexed by ``batch.index`` or, per modality,
    ``batch.sources``. It is saved in the checkpoint for resumed runs.
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
