"""How good recoveries are: reconstruction error, and coherence (does a classifier read the right class off them)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.base import Batch, Modality
from datasets.missingness import random_mask
from models.base import IncompleteClassifier, Prediction
from models.imputers.base import Imputer


class Judge(IncompleteClassifier):
    """One classifier per modality (encoder, mean token, linear head), trained on true content only.

    Args:
        encoders: modality name -> module whose output is (B, N, D).
    """

    def __init__(self, modalities: list[Modality], num_classes: int, encoders: Mapping[str, nn.Module]) -> None:
        super().__init__(modalities, num_classes, "multiclass", lambda p: torch.optim.Adam(p, lr=1e-3))
        self.encoders = nn.ModuleDict(dict(encoders))
        self.heads = nn.ModuleDict({m.name: nn.LazyLinear(num_classes) for m in modalities})
        with torch.no_grad():
            self.eval().read({m.name: torch.zeros(1, *m.shape) for m in modalities})
        self.train()

    def read(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """name -> logits (B, C) of each modality alone."""
        return {name: self.heads[name](self.encoders[name](x).mean(1)) for name, x in inputs.items()}

    def forward(self, batch: Batch) -> Prediction:
        logits = self.read(batch.observed())
        return Prediction(torch.stack(list(logits.values())).mean(0), extras=logits)

    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        return {"loss": sum((F.cross_entropy(x, batch.target) for x in prediction.extras.values()), torch.zeros(()))}


@torch.inference_mode()
def recovery_quality(imputer: Imputer, judge: Judge, batches: Iterable[Batch], seed: int = 2025) -> pd.DataFrame:
    """Quality of recoveries of each modality, by how many modalities are observed.

    Each row of each batch gets, for every number of missing modalities from 1 to M-1, one random pattern.

    Returns:
        columns modality, observed, metric, value, n. Metrics: ``mse`` and ``mae`` of the content; ``coherence``, share
        of recoveries that the judge reads as the true class; ``judge_accuracy`` (observed = M), the same on true
        content.
    """
    m = len(judge.modalities)
    sums: dict[tuple[str, int, str], list[float]] = {}

    def add(name: str, observed: int, metric: str, values: Tensor) -> None:
        cell = sums.setdefault((name, observed, metric), [0.0, 0])
        cell[0] += float(values.double().sum())
        cell[1] += len(values)

    judge.eval()
    for batch in batches:
        for name, logits in judge.read(batch.inputs).items():
            add(name, m, "judge_accuracy", (logits.argmax(1) == batch.target).float())
        for k in range(1, m):
            mask = random_mask(len(batch), m, k / m, "exact", seed + k + int(batch.index[0]))
            missing = torch.from_numpy(mask).to(batch.missing.device)
            completed = imputer.impute(batch.inputs, missing, batch.index)
            for i, (name, logits) in enumerate(judge.read(completed).items()):
                gone = missing[:, i]
                error = (completed[name] - batch.inputs[name])[gone].flatten(1)
                add(name, m - k, "mse", error.square().mean(1))
                add(name, m - k, "mae", error.abs().mean(1))
                add(name, m - k, "coherence", (logits.argmax(1) == batch.target)[gone].float())
    rows = [(*key, total / n, n) for key, (total, n) in sums.items() if n]
    frame = pd.DataFrame(rows, columns=["modality", "observed", "metric", "value", "n"])
    return frame.sort_values(["metric", "modality", "observed"], ignore_index=True)
