"""MoPoE-VAE: Generalized Multimodal ELBO (ICLR 2021, arXiv 2105.02470), as a recovery method (dymo_core 5.1).

Posteriors of the single modalities are combined per subset by a product of experts; the joint posterior is the uniform
mixture over all subsets. The standard normal prior joins the product for the full set only, as in the published code.

At inference we encode what is there, take the product of exactly those experts and decode what is missing; the
original encodes all modalities and decodes all of them from all 2^M - 1 subsets. ``sample=false`` recovers from the
posterior mean (deterministic), ``sample=true`` from one seeded draw per row, as the original does unseeded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.base import Batch, Modality
from models.imputers.base import Imputer
from utils.noise import row_normal
from utils.subsets import enumerate_subsets

VARIANCE_FLOOR = 1e-8
LAPLACE_SCALE = 0.75


class ImageEncoder(nn.Module):
    """(B, C, 28, 28) -> mean and log-variance (B, latent)."""

    def __init__(self, channels: int = 3, latent: int = 512, hidden: int = 512) -> None:
        super().__init__()
        self.shared_encoder = nn.Sequential(
            nn.Conv2d(channels, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(64, 128, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2048, hidden),
            nn.ReLU(),
        )
        self.class_mu = nn.Linear(hidden, latent)
        self.class_logvar = nn.Linear(hidden, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.shared_encoder(x)
        return self.class_mu(h), self.class_logvar(h)


class ImageDecoder(nn.Module):
    """(B, latent) -> (B, C, 28, 28), the location of a Laplace; no output activation."""

    def __init__(self, channels: int = 3, latent: int = 512) -> None:
        super().__init__()
        self.decoder = nn.Sequential(
            nn.Linear(latent, 2048),
            nn.ReLU(),
            nn.Unflatten(1, (128, 4, 4)),
            nn.ConvTranspose2d(128, 64, 3, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 3, 2, 1, output_padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(32, channels, 3, 2, 1, output_padding=1),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(z)


class MoPoE(pl.LightningModule, Imputer):
    """
    Args:
        modalities: all of kind image.
        latent: width of the shared latent.
        beta: weight of the mean KL of the subset posteriors.
        class_weight: weight of the cross-entropy of a linear classifier on the mean of each single modality's posterior
            (ours, off by default). The ELBO alone takes tens of thousands of steps before the latent holds the class:
            most of a photograph's likelihood is its background.
        num_classes: C, read with ``class_weight`` alone.
        sample: recover from a posterior draw instead of the mean.
        draw_seed: of those draws.
        optimizer, scheduler: partials.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        encoders: Mapping[str, nn.Module],
        decoders: Mapping[str, nn.Module],
        *,
        latent: int = 512,
        beta: float = 2.5,
        class_weight: float = 0.0,
        num_classes: int = 0,
        sample: bool = False,
        draw_seed: int = 2025,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        self.modalities, self.latent, self.beta, self.sample, self.draw_seed = (
            list(modalities),
            latent,
            beta,
            sample,
            draw_seed,
        )
        self._optimizer, self._scheduler = optimizer, scheduler
        names = [m.name for m in modalities]
        self.encoders = nn.ModuleList(encoders[n] for n in names)
        self.decoders = nn.ModuleList(decoders[n] for n in names)
        self.class_weight = class_weight
        self.class_head = nn.Linear(latent, num_classes) if class_weight else None
        self.register_buffer("subsets", enumerate_subsets(len(names)), persistent=False)
        self.subsets: Tensor

    def product(self, mu: Tensor, logvar: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
        """Product of the experts that are present.

        Args:
            mu, logvar: (M, ..., L) of the single modalities.
            missing: (..., M) bool.

        Returns:
            mean and log-variance (..., L). With all modalities present the N(0, I) prior is one more expert.
        """
        present = (~missing).movedim(-1, 0)[..., None]
        precision = torch.where(present, 1 / (logvar.exp() + VARIANCE_FLOOR), 0)
        weighted = torch.where(present, mu * precision, 0).sum(0)
        prior = present.all(0).to(mu.dtype) / (1 + VARIANCE_FLOOR) if len(mu) > 1 else 0.0
        total = precision.sum(0) + prior
        return weighted / total, -total.log()

    def subset_posteriors(self, mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`product` for every subset at once, as two matrix products over the modalities.

        Args:
            mu, logvar: (M, B, L).

        Returns:
            means and log-variances (S, B, L).
        """
        present = (~self.subsets).to(mu.dtype)
        precision = 1 / (logvar.exp() + VARIANCE_FLOOR)
        total = (present @ precision.flatten(1)).unflatten(1, mu.shape[1:])
        if len(mu) > 1:
            prior = torch.zeros_like(present[:, :1])
            prior[-1] = 1 / (1 + VARIANCE_FLOOR)
            total = total + prior[:, :, None]
        weighted = (present @ (mu * precision).flatten(1)).unflatten(1, mu.shape[1:])
        return weighted / total, -total.log()

    def encode_all(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(M, B, L) means and log-variances."""
        pairs = [encoder(x) for encoder, x in zip(self.encoders, inputs.values(), strict=True)]
        return torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Negative joint ELBO per sample: sum over pixels of the Laplace NLL of every modality, decoded from one draw
        of the mixture, plus beta times the mean KL of the subset posteriors."""
        mu, logvar = self.encode_all(batch.inputs)
        b, s = len(batch), len(self.subsets)
        means, logvars = self.subset_posteriors(mu, logvar)
        kl = 0.5 * (means.square() + logvars.exp() - logvars - 1).sum(-1).mean()
        # The mixture is drawn by slices: floor(B / S) consecutive rows per subset, the full set takes the rest.
        rows = torch.arange(b, device=mu.device)
        owner = rows.div(b // s, rounding_mode="floor").clamp(max=s - 1) if b >= s else torch.full_like(rows, s - 1)
        z = means[owner, rows] + torch.randn_like(means[0]) * (0.5 * logvars[owner, rows]).exp()
        nll = z.new_zeros(())
        for decoder, x in zip(self.decoders, batch.inputs.values(), strict=True):
            error = (decoder(z) - x).abs() / LAPLACE_SCALE
            nll = nll + error.flatten(1).sum(1).mean() + x[0].numel() * torch.tensor(2 * LAPLACE_SCALE).log()
        losses = {"loss": nll + self.beta * kl, "nll": nll, "kl": kl}
        if self.class_head is not None:
            logits = self.class_head(mu).flatten(0, 1)
            losses["classification"] = F.cross_entropy(logits, batch.target.repeat(len(mu)))
            losses["loss"] = losses["loss"] + self.class_weight * losses["classification"]
        return losses

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        losses = self.losses(batch)
        values = {f"train_{k}": v.detach() for k, v in losses.items()}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(batch), sync_dist=True)
        return losses["loss"]

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        losses = self.losses(batch)
        self.log("val_loss", losses["loss"], batch_size=len(batch), sync_dist=True, prog_bar=True)

    def configure_optimizers(self) -> Any:
        assert self._optimizer is not None, "this imputer was built without an optimiser"
        optimizer = self._optimizer(self.parameters())
        if self._scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._scheduler(optimizer), "interval": "epoch"}}

    def architecture(self) -> dict[str, Any]:
        return {"method": "MoPoE", "modalities": [[m.name, m.kind, list(m.shape)] for m in self.modalities]}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["architecture"] = self.architecture()

    def posterior(self, inputs: Mapping[str, Tensor], missing: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (B, L) of the posterior given what is observed; encodes observed rows only."""
        b, m = missing.shape
        mu = torch.zeros(m, b, self.latent, device=missing.device)
        logvar = torch.zeros_like(mu)
        for i, (encoder, x) in enumerate(zip(self.encoders, inputs.values(), strict=True)):
            rows = (~missing[:, i]).nonzero()[:, 0]
            if len(rows):
                mu[i, rows], logvar[i, rows] = encoder(x[rows])
        return self.product(mu, logvar, missing)

    @torch.no_grad()
    def impute(
        self,
        inputs: Mapping[str, Tensor],
        missing: Tensor,
        index: Tensor | None = None,
        feature_missing: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        training = self.training
        self.eval()
        mean, logvar = self.posterior(inputs, missing)
        if self.sample:
            index = torch.arange(len(mean), device=mean.device) if index is None else index
            mean = mean + row_normal(index, self.latent, self.draw_seed) * (0.5 * logvar).exp()
        completed = {}
        for i, (decoder, (name, x)) in enumerate(zip(self.decoders, inputs.items(), strict=True)):
            rows = missing[:, i].nonzero()[:, 0]
            completed[name] = x
            if len(rows):
                completed[name] = x.index_put((rows,), decoder(mean[rows]).to(x.dtype))
        self.train(training)
        return completed
