"""MoPoE-VAE: Generalized Multimodal ELBO (ICLR 2021, arXiv 2105.02470), as a recovery method
(docs/reference/dymo.md §5.1).

Posteriors of the single modalities are combined per subset by a product of experts; the joint posterior is the uniform
mixture over all subsets. The standard normal prior joins the product for the full set only, as in the published code.
On CelebA each modality has a style latent of its own besides. Likelihoods and default networks of all kinds:
:mod:`models.imputers.generative`.

At inference we encode what is observed, take the product of exactly those experts and decode what is missing; the
original encodes all modalities and decodes all of them from all 2^M - 1 subsets. ``sample=false`` recovers from the
posterior mean and the style 0 (deterministic), ``sample=true`` from one seeded draw per row, as the original does
unseeded. A recovered text is a matrix of probabilities.

The original's text likelihood is inverted: it takes log-probabilities for probabilities and normalises them. We train
with the proper one; ``reference_text=true`` restores the original's, and its weights are always read so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datasets.batch import Batch, Modality, missing_content
from models.imputers.base import merge, row_numbers
from models.imputers.default_networks import Decoder, Posterior
from models.imputers.generative import GenerativeImputer
from utils.noise import hash_seed, row_normal
from utils.subsets import enumerate_subsets
from utils.transfer import column_rows
from utils.weights import checkpoint_kind

VARIANCE_FLOOR = 1e-8


class MoPoE(GenerativeImputer):
    """
    Args:
        encoders, decoders: by modality name, see :mod:`models.imputers.mopoe_networks`.
        latent: width of the shared latent.
        beta: weight of the mean KL of the subset posteriors, and of the style term.
        style_beta: weight of the style KLs within the beta term.
        style_weights: modality name -> factor of its style KL, 1 where absent.
        reference_text: the original's text likelihood, see :func:`text_probabilities`.
        others: see :class:`GenerativeImputer`.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        encoders: Mapping[str, nn.Module],
        decoders: Mapping[str, nn.Module],
        *,
        latent: int = 512,
        beta: float = 2.5,
        style_beta: float = 1.0,
        style_weights: Mapping[str, float] | None = None,
        reference_text: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(modalities, encoders, decoders, latent, **others)
        self.check_names(style_weights)
        names = [m.name for m in modalities]
        self.beta, self.style_beta, self.reference_text = beta, style_beta, reference_text
        self.style_weights = [float((style_weights or {}).get(n, 1.0)) for n in names]
        self.encoders = nn.ModuleList(encoders[n] for n in names)
        self.decoders = nn.ModuleList(decoders[n] for n in names)
        self.styles = [int(getattr(encoder, "style", 0)) for encoder in self.encoders]
        self.register_buffer("subsets", enumerate_subsets(len(names)), persistent=False)
        self.subsets: Tensor

    @classmethod
    def default_network(cls, part: str, modality: Modality, latent: int) -> nn.Module:
        """Encoder or decoder (``part``) of a modality for which the configuration names none."""
        return Posterior(modality, latent) if part == "encoder" else Decoder(modality, latent)

    def product(self, mu: Tensor, logvar: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
        """Product of the experts that are present.

        Args:
            mu, logvar: (M, ..., L) of the single modalities.
            missing: (..., M) bool.

        Returns:
            mean and log-variance (..., L). With all modalities present the N(0, I) prior is one more expert; where none
            is, as of a row that has nothing but some cells of a table, it is the only one.
        """
        present = (~missing).movedim(-1, 0)[..., None]
        precision = torch.where(present, 1 / (logvar.exp() + VARIANCE_FLOOR), 0)
        weighted = torch.where(present, mu * precision, 0).sum(0)
        joins = ~present.any(0) if len(mu) == 1 else present.all(0) | ~present.any(0)
        total = precision.sum(0) + joins.to(mu.dtype) / (1 + VARIANCE_FLOOR)
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
        """(M, B, L) means and log-variances of the shared latent."""
        return self._shared([encoder(x) for encoder, x in zip(self.encoders, inputs.values(), strict=True)])

    @staticmethod
    def _shared(outputs: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
        return torch.stack([o[0] for o in outputs]), torch.stack([o[1] for o in outputs])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Negative joint ELBO per sample: the weighted negative log-likelihoods of every modality, decoded from one
        draw of the mixture (and of its own style), plus beta times the mean KL of the subset posteriors and the
        weighted KLs of the styles."""
        inputs = batch.observed()
        cells = {} if batch.complete else self.hidden_cells(batch.missing, batch.feature_missing)
        outputs = [self._encode(i, x, cells.get(name)) for i, (name, x) in enumerate(inputs.items())]
        mu, logvar = self._shared(outputs)
        b, s = len(batch), len(self.subsets)
        absent = self.absent(batch.missing, batch.feature_missing)
        if batch.complete or not absent.any():
            means, logvars = self.subset_posteriors(mu, logvar)
        else:
            hidden = self.subsets[:, None] | absent  # (S, B, M)
            hidden = torch.where(hidden.all(2, keepdim=True), absent, hidden)
            means, logvars = self.product(mu[:, None], logvar[:, None], hidden)
        kl = _kl(means, logvars).mean()
        # The mixture is drawn by slices: floor(B / S) consecutive rows per subset, the full set takes the rest.
        rows = torch.arange(b, device=mu.device)
        owner = rows.div(b // s, rounding_mode="floor").clamp(max=s - 1) if b >= s else torch.full_like(rows, s - 1)
        z = means[owner, rows] + torch.randn_like(means[0]) * (0.5 * logvars[owner, rows]).exp()
        nll, style_kl = z.new_zeros(()), z.new_zeros(())
        for i, (name, x) in enumerate(inputs.items()):
            latent = z
            if self.styles[i]:
                style_mu, style_logvar = outputs[i][2:]
                style_kl = style_kl + self.style_weights[i] * _kl(style_mu, style_logvar).mean()
                style = style_mu + torch.randn_like(style_mu) * (0.5 * style_logvar).exp()
                latent = torch.cat([style, z], dim=1)
            errors = self.nll(i, x, self.decoders[i](latent), cells.get(name))
            if not batch.complete:
                errors = torch.where(absent[:, i], 0, errors)
            nll = nll + self.weights[i] * errors.mean()
        losses = {"loss": nll + self.beta * kl, "nll": nll, "kl": kl}
        if any(self.styles):
            losses["style_kl"] = style_kl
            losses["loss"] = losses["loss"] + self.beta * self.style_beta * style_kl
        return self.add_classification(losses, mu, batch.target, absent)

    def _encode(self, i: int, x: Tensor, cells: Tensor | None = None) -> tuple[Tensor, ...]:
        return self.encoders[i](x) if cells is None else self.encoders[i](x, missing=cells)

    def architecture(self) -> dict[str, Any]:
        return super().architecture() | {"reference_text": self.reference_text}

    def load(self, content: Mapping[str, Any], path: Path, name: str) -> None:
        trained_with = (content.get("architecture") or {}).get("reference_text", self.reference_text)
        self.reference_text = checkpoint_kind(content) == "reference_mopoe" or bool(trained_with)
        super().load(content, path, name)

    def convert(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        if checkpoint_kind(content) == "reference_mopoe":
            return convert_mopoe(content, [m.name for m in self.modalities])
        return super().convert(content)

    def posterior(
        self,
        inputs: Mapping[str, Tensor],
        missing: Tensor,
        feature_missing: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (B, L) of the posterior given what is observed; encodes observed rows only."""
        cells = self.hidden_cells(missing, feature_missing)
        missing = self.absent(missing, feature_missing)
        b, m = missing.shape
        mu = torch.zeros(m, b, self.latent, device=missing.device)
        logvar = torch.zeros_like(mu)
        for i, ((name, x), rows) in enumerate(zip(inputs.items(), column_rows(missing, False), strict=True)):
            if len(rows):
                gaps = cells[name][rows] if name in cells else None
                mu[i, rows], logvar[i, rows] = self._encode(i, x[rows], gaps)[:2]
        return self.product(mu, logvar, missing)

    @torch.no_grad()
    def impute(
        self,
        inputs: Mapping[str, Tensor],
        missing: Tensor,
        index: Tensor | None = None,
        feature_missing: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        index = row_numbers(missing, index)
        with self.evaluating():
            mean, logvar = self.posterior(inputs, missing, feature_missing)
            if self.sample:
                mean = mean + row_normal(index, self.latent, self.draw_seed) * (0.5 * logvar).exp()
            completed = {}
            for i, ((name, x), rows) in enumerate(zip(inputs.items(), column_rows(missing), strict=True)):
                completed[name] = x
                if len(rows):
                    recovered = self._decode(i, mean[rows], index[rows])
                    is_missing = missing_content(x, name, missing[:, i], feature_missing)
                    completed[name] = merge(x, is_missing, x.index_put((rows,), recovered.to(x.dtype)))
        return completed

    def impute_fixed(
        self, inputs: Mapping[str, Tensor], missing: Tensor, feature_missing: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        cells = self.hidden_cells(missing, feature_missing)
        outputs = [self._encode(i, x, cells.get(name)) for i, (name, x) in enumerate(inputs.items())]
        mean, _ = self.product(*self._shared(outputs), self.absent(missing, feature_missing))
        rows = torch.arange(len(missing), device=missing.device)
        completed = {}
        for i, (name, x) in enumerate(inputs.items()):
            is_missing = missing_content(x, name, missing[:, i], feature_missing)
            completed[name] = merge(x, is_missing, self._decode(i, mean, rows).to(x.dtype))
        return completed

    def _decode(self, i: int, z: Tensor, index: Tensor) -> Tensor:
        """Decode modality ``i`` from shared latents (R, L)."""
        if width := self.styles[i]:
            drawn = row_normal(index, width, hash_seed(self.draw_seed, 1 + i)) if self.sample else None
            style = z.new_zeros(len(z), width) if drawn is None else drawn
            z = torch.cat([style, z], dim=1)
        return self.most_likely(i, self.decoders[i](z))


def convert_mopoe(state: Mapping[str, Any], modality_names: Sequence[str]) -> dict[str, Any]:
    """Weights of the original, ``encoders.m0.`` and ``decoders.m0.``, under our names, ``encoders.0.`` and so on."""
    converted = {}
    for key, value in state.items():
        part, name, parameter = (*str(key).split(".", 2), "", "")[:3]
        number = modality_names.index(name) if name in modality_names else name
        converted[f"{part}.{number}.{parameter}"] = value
    return converted


def _kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp logvar) || N(0, I)): (..., L) -> (...)."""
    return 0.5 * (mu.square() + logvar.exp() - logvar - 1).sum(-1)
