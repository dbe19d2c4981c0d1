"""DyMo's selection on CMPT: decide per sample and modality whether a proxy replaces a missing modality.

CMPT always substitutes proxies. Here, a proxy is treated as a recovered modality: it is accepted if, by DyMo's reward
(ICLR 2026, intra-class similarity), the fused feature remains typical of a class, and otherwise excluded from the sum.
The features are those of Eq. 3 of CMPT, normalised for the cosine metric; class-wise Gaussian parameters of each subset
are estimated from the class states of complete training rows, without proxies.

Neither paper evaluates this. CMPT is not trained with prototypes, so that the posterior over them may be flat;
``selection.temperature`` is that of DyMo. The statistics need S C D^2 doubles (S subsets, C classes): 1.4 GB for 101
classes and D = 768.
"""

from __future__ import annotations

import torch
from torch import Tensor

from datasets.batch import Batch
from models.dymo.backbone import Partial
from models.dymo.method import DyMo


class ProxySelection(DyMo):
    """:class:`models.dymo.method.DyMo` with proxies as recoveries; the comparator ``impute_all`` is CMPT without
    selection, ``discard`` never substitutes."""

    takes_tables = False
    advice = "set"

    @torch.inference_mode()
    def complete(
        self, batch: Batch, tokens: Tensor | None = None, is_fixed: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Replace missing modalities by proxies.

        Args:
            tokens: states (B, M, M, D), if already computed.

        Returns:
            Completed vectors (B, M, D), and no recovered inputs.
        """
        model = self.backbone.model
        states = model.encode_batch(batch) if tokens is None else tokens
        return model.complete(states, batch.missing), {}

    def partial(self, batch: Batch) -> Partial | None:
        return None

    def examples(self, batch: Batch) -> None:
        return None  # proxies are not inputs
