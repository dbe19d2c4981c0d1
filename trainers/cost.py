"""What a run takes: seconds, bytes, parameters and work, by stage or file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from trainers.prediction import Outputs


@dataclass
class Cost:
    """What one part of a run takes.

    Attributes:
        seconds: of stage -> seconds.
        bytes: of file or kind of file -> bytes in run directories.
        parameters: of network -> number of all and of trained parameters.
        work: stage -> kind of work (training batches, checkpoints, ...) -> how much of it.
        may_stop_early: stages of which the seconds are those of all epochs, and early stopping may take fewer.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, tuple[int, int]] = field(default_factory=dict)
    work: dict[str, dict[str, int]] = field(default_factory=dict)
    may_stop_early: set[str] = field(default_factory=set)

    def add_seconds(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def add_work(self, stage: str, **counts: int) -> None:
        work = self.work.setdefault(stage, {})
        for kind, n in counts.items():
            work[kind] = work.get(kind, 0) + n


def limited(batches: int, limit: Any) -> int:
    """Number of batches under ``trainer.limit_..._batches``: a number, a share, or None."""
    if limit is None:
        return batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def count(module: Any) -> tuple[int, int]:
    """Number of all and of trained parameters; (0, 0) of what is no network."""
    parameters = list(module.parameters()) if isinstance(module, nn.Module) else []
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def repeated(outputs: Outputs, n: int) -> Outputs:
    """Outputs whose rows repeat until there are ``n``."""

    def repeat(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = np.arange(n) % len(arrays["index"])
        return {key: np.arange(n) if key == "index" else values[rows] for key, values in arrays.items()}

    return {label: {name: repeat(arrays) for name, arrays in part.items()} for label, part in outputs.items()}
