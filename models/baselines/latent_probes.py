"""Linear classifiers on the latent variables of a generative imputer (docs/reference/baselines.md §2.10, §2.11).

``MoPoE_Classification``: the mean of the product of experts over the observed modalities (Generalized multimodal ELBO,
Sutter et al., ICLR 2021); as in the imputer, the prior is an additional expert only for the full set.
``CMVAE_Classification``: the shared latent of CMVAE (Palumbo et al., ICLR 2024), averaged over the observed modalities.

The imputer is frozen, and saved in the checkpoint with the classifier. The original leaves it in training mode, where
dropout and batch statistics are active on CelebA. ``reference=true`` restores this, masks drawn per batch, and for
CMVAE the shared latent of one random observed modality, which is reproducible in predictions (drawn by row and seed).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.base import Prediction
from models.baselines.base import Baseline
from utils.noise import row_uniform


class _LatentProbe(Baseline):
    """Linear classifier on the latent variables of an imputer.

    Args:
        encoders: not used.
        imputer: trained, one of ``built_on``.
        draw_seed: seed of the modality drawn per row, with ``reference``.
        others: see :class:`models.baselines.base.Baseline`.
    """

    accepts_imputer = False

    def __init__(
        self,
        modalities: Sequence[Modality],
        num_classes: int,
        encoders: Mapping[str, nn.Module],
        *,
        imputer: Any,
        draw_seed: int = 2025,
        **others: Any,
    ) -> None:
        super().__init__(modalities, num_classes, **others)
        if self.reference:
            self.masks = replace(self.masks, per="batch")
        self.draw_seed = draw_seed
        self.imputer = imputer.requires_grad_(False)
        self.classifier = nn.Linear(imputer.latent, num_classes)
        self.train(self.training)

    def train(self, mode: bool = True) -> _LatentProbe:
        super().train(mode)
        if not self.reference:
            self.imputer.eval()
        return self

    @torch.no_grad()
    def encode(self, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor] | None = None) -> Tensor:
        """Inputs -> unimodal posterior parameters (B, M, L)."""
        return self.posteriors({name: inputs[name] for name in self.modality_names})

    @abstractmethod
    def posteriors(self, inputs: Mapping[str, Tensor]) -> Tensor: ...

    @abstractmethod
    def latent(self, encoded: Tensor, batch: Batch) -> Tensor:
        """Posterior parameters (B, M, L) -> latent (B, L) under the masks of a batch."""

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        z = self.latent(encoded, batch)
        return Prediction(self.classifier(z), z)


class MoPoEClassification(_LatentProbe):
    """Classify by the posterior mean of :class:`models.imputers.mopoe.MoPoE`."""

    built_on: ClassVar[tuple[str, ...]] = ("MoPoE",)

    def posteriors(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Means and log variances (B, M, 2 L)."""
        return torch.cat(self.imputer.encode_all(inputs), -1).transpose(0, 1)

    def latent(self, encoded: Tensor, batch: Batch) -> Tensor:
        mu, logvar = encoded.transpose(0, 1).chunk(2, -1)
        return self.imputer.product(mu, logvar, self.absent(batch))[0]


class CMVAEClassification(_LatentProbe):
    """Classify by the means of the shared latent of :class:`models.imputers.cmvae.CMVAE`."""

    built_on: ClassVar[tuple[str, ...]] = ("CMVAE",)

    def why_not_exported(self) -> str | None:
        return "reference=true draws one modality by the number of the row" if self.reference else None

    def posteriors(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([self.imputer.encoders[name].branch(x, "u")[0] for name, x in inputs.items()], 1)

    def latent(self, encoded: Tensor, batch: Batch) -> Tensor:
        is_used = ~self.absent(batch)
        if self.reference:
            drawn = torch.rand(is_used.shape, device=is_used.device)
            if not self.training:
                drawn = row_uniform(batch.index, is_used.shape[1], self.draw_seed).to(drawn.dtype)
            drawn = torch.where(is_used, drawn, -1)
            is_used = torch.zeros_like(is_used).scatter(1, drawn.argmax(1, keepdim=True), True)
        return torch.where(is_used[..., None], encoded, 0).sum(1) / is_used.sum(1, keepdim=True).clamp(min=1)
