"""DyMo's selection on CMPT: whether a proxy may stand for what is missing is decided for each sample and modality.

CMPT substitutes always. Here a proxy is a recovery like any other: it is accepted where DyMo's reward (ICLR 2026, Eqs.
of the intra-class similarity) says that the fused feature stays as typical of a class as it was, and otherwise left out
of the sum. The features are those of Eq. 3 of CMPT, of unit norm for the cosine metric; class-wise Gaussian parameters
of every subset come from the class states of complete training rows, without any proxy.

Neither paper has this. CMPT is not trained with prototypes, so the posterior over them is one that nothing made sharp;
``selection.temperature`` is DyMo's. The statistics take S C D^2 doubles (S subsets, C classes): for 101 classes and
D = 768 1.4 GB.
"""

from __future__ import annotations

import torch
from torch import Tensor

from datasets.batch import Batch
from models.dymo.backbone import Partial
from models.dymo.method import DyMo


class ProxySelection(DyMo):
    """:class:`models.dymo.method.DyMo` whose recoveries are the proxies; comparator ``impute_all`` is CMPT's own rule,
    ``discard`` never substitutes."""

    takes_tables = False
    advice = "set"

    @torch.inference_mode()
    def complete(self, batch: Batch, tokens: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """
        Args:
            tokens: states (B, M, M, D), where the caller has them already.

        Returns:
            completed vectors (B, M, D); no inputs, for proxies have none.
        """
        model = self.backbone.model
        states = model.encode_batch(batch) if tokens is None else tokens
        return model.complete(states, batch.missing), {}

    def partial(self, batch: Batch) -> Partial | None:
        return None

    def examples(self, batch: Batch) -> None:
        return None  # proxies are no inputs
