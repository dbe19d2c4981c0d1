"""CMVAE (ICLR 2024) and MMVAE+ (ICLR 2023, openreview sdQGxouELX) as recovery methods (docs/reference/dymo.md §5.2).

Every modality has a private latent w, all share u. The posterior of u is the uniform mixture of the single modalities'
posteriors; another modality than the one that u came from is decoded with a private latent drawn from a learned
distribution r, so that no private information can leak through it. MMVAE+ has a Laplace prior on u, CMVAE a mixture of
Laplace clusters. Everything is Laplace, with scales that sum to the width of the latent. The layer and parameter names
are those of the ``multivae`` package with the networks of the original repository, whose ``model.pt`` therefore loads.
The original recovers images of 28 x 28 pixels; likelihoods and networks of all other modalities are those of
:mod:`models.imputers.generative`. In an incomplete row, u comes from the observed modalities only.

What we do differently: the original recovers row by row from one observed modality drawn at random, and draws u and w.
``conditioning=mean``, the default, averages the means of u over all observed modalities, so that no evidence is
thrown away and, with ``sample=false``, recoveries are reproducible; ``conditioning=random sample=true`` is the
original, seeded by row. Only the shared branch of the observed modalities' encoders is run, once per modality. CMVAE's
expectation over the clusters, sum_c q(c|u) [log pi_c p(u|c) - log q(c|u)] with q the exact posterior of c, is log
sum_c pi_c p(u|c), and computed as such.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from datasets.batch import Batch, Modality, missing_content
from models.imputers.base import merge, row_numbers
from models.imputers.cmvae_networks import SIDE, ResNetDecoder, ResNetEncoder
from models.imputers.default_networks import Decoder, SharedPrivatePosterior
from models.imputers.generative import GenerativeImputer
from utils.noise import hash_seed, row_laplace, row_uniform
from utils.transfer import column_rows
from utils.weights import checkpoint_kind

CONDITIONINGS = ("mean", "random")
PRIVATE_PRIORS = ("joint", "modality")


def scale(raw: Tensor) -> Tensor:
    """Scales > 0 of a Laplace over the last axis, which sum to its width (+ 1e-6 each)."""
    return raw.softmax(-1) * raw.shape[-1] + 1e-6


def laplace_log_prob(x: Tensor, mu: Tensor, b: Tensor) -> Tensor:
    """log Laplace(x; mu, b), summed over the last axis."""
    return -((x - mu).abs() / b + (2 * b).log()).sum(-1)


def standard_laplace(*shape: int, like: Tensor) -> Tensor:
    """Standard Laplace noise from the global generator, the difference of two exponentials."""
    first, second = torch.empty(2, *shape, device=like.device, dtype=like.dtype).exponential_()
    return first - second


def _missing(cells: Tensor | None) -> dict[str, Tensor]:
    """Argument of an encoder, which only encoders that see missing cells have."""
    return {} if cells is None else {"missing": cells}


def _repeat(x: Tensor, times: int) -> Tensor:
    """The batch (B, ...) several times in turn."""
    return x.repeat(times, *[1] * (x.ndim - 1))


def _fixed(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape), requires_grad=False)


class _SharedPrivateVAE(GenerativeImputer):
    """What CMVAE and MMVAE+ share: everything but the priors.

    Args:
        encoders, decoders: by modality name, see :class:`ResNetEncoder` and :class:`ResNetDecoder`, which are for
            images of 28 x 28 pixels, and :meth:`default_network`.
        shared, private: widths of u and w.
        beta: weight of everything but the likelihoods.
        conditioning: what stands for the observed modalities at recovery: ``mean`` of what each says of u, or one of
            them drawn at ``random``.
        private_prior: where recoveries take w from: ``joint``, the general prior, or ``modality``, the learned r.
        others: see :class:`GenerativeImputer`.
    """

    sums_over_batch = True

    def __init__(
        self,
        modalities: Sequence[Modality],
        encoders: Mapping[str, nn.Module],
        decoders: Mapping[str, nn.Module],
        *,
        shared: int = 32,
        private: int = 32,
        beta: float = 2.5,
        conditioning: str = "mean",
        private_prior: str = "joint",
        **others: Any,
    ) -> None:
        super().__init__(modalities, encoders, decoders, shared, **others)
        for m in modalities:
            is_published = isinstance(encoders[m.name], ResNetEncoder) or isinstance(decoders[m.name], ResNetDecoder)
            if is_published and (m.kind != "image" or m.shape[1:] != (SIDE, SIDE)):
                raise ValueError(
                    f"ResNetEncoder and ResNetDecoder are for images of {SIDE} x {SIDE} pixels, modality '{m.name}' is "
                    f"of kind {m.kind} and shape {m.shape}: leave them out, default networks are built for the shape"
                )
        for key, value, known in (
            ("conditioning", conditioning, CONDITIONINGS),
            ("private_prior", private_prior, PRIVATE_PRIORS),
        ):
            if value not in known:
                raise ValueError(f"{key} must be one of {', '.join(known)}, not {value!r}")
        self.names = [m.name for m in modalities]
        self.private, self.beta = private, beta
        self.conditioning, self.private_prior = conditioning, private_prior
        self.encoders = nn.ModuleDict({n: encoders[n] for n in self.names})
        self.decoders = nn.ModuleDict({n: decoders[n] for n in self.names})
        self.make_private_priors()

    @classmethod
    def default_network(cls, part: str, modality: Modality, shared: int, private: int) -> nn.Module:
        """Encoder or decoder (``part``) of a modality for which the configuration names none."""
        if part == "encoder":
            return SharedPrivatePosterior(modality, shared, private)
        return Decoder(modality, shared + private)

    @abstractmethod
    def make_private_priors(self) -> None:
        """Parameters of r and p(w)."""

    @abstractmethod
    def r(self, name: str) -> tuple[Tensor, Tensor]:
        """Mean and scale (1, private) of a modality's learned distribution of w."""

    @abstractmethod
    def general_private_prior(self) -> tuple[Tensor, Tensor]:
        """Mean and scale (1, private) of p(w)."""

    @abstractmethod
    def log_prior(self, u: Tensor, w: Tensor) -> Tensor:
        """log p(u) + log p(w): (..., shared), (..., private) -> (...)."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Negative ELBO per sample, the mean over the modalities that u is drawn from.

        For each modality m: the log-likelihood of every modality n, decoded from u ~ q(u|x_m) with w ~ q(w|x_m) for
        n = m and w ~ r_n otherwise, plus beta [log p(u) + log p(w) - log mean_k q(u|x_k) - log q(w|x_m)]. Modalities m,
        n and k are the observed ones of the row.
        """
        m, b = len(self.names), len(batch)
        cells = {} if batch.complete else self.hidden_cells(batch.missing, batch.feature_missing)
        absent = self.absent(batch.missing, batch.feature_missing).T  # (M, B)
        has_absent = not batch.complete and bool(absent.any())
        inputs = batch.observed()
        outputs = [self.encoders[name](x, **_missing(cells.get(name))) for name, x in inputs.items()]
        u_mu, u_raw, w_mu, w_raw = (torch.stack(parts) for parts in zip(*outputs))
        u_scale, w_scale = scale(u_raw), scale(w_raw)
        u = u_mu + u_scale * standard_laplace(m, b, self.latent, like=u_mu)
        w = w_mu + w_scale * standard_laplace(m, b, self.private, like=w_mu)
        # (target modality, modality of u, row)
        stranger = standard_laplace(m, m, b, self.private, like=w_mu)
        log_likelihood = u.new_zeros(m, b)
        for n, (name, x) in enumerate(inputs.items()):
            r_mu, r_scale = self.r(name)
            is_source = (torch.arange(m, device=u.device) == n)[:, None, None]
            z = torch.cat([u, torch.where(is_source, w, r_mu + r_scale * stranger[n])], dim=-1)
            decoded = self.decoders[name](z.flatten(0, 1))
            gaps = _repeat(cells[name], m) if name in cells else None
            error = self.weights[n] * self.nll(n, _repeat(x, m), decoded, gaps).unflatten(0, (m, b))
            log_likelihood = log_likelihood - (torch.where(absent[n], 0, error) if has_absent else error)
        experts = laplace_log_prob(u[None], u_mu[:, None], u_scale[:, None])  # (M experts, M sources, B)
        if has_absent:
            observed = (~absent).sum(0)
            mixture = torch.where(absent[:, None], -torch.inf, experts).logsumexp(0) - observed.log()
        else:
            mixture = experts.logsumexp(0) - math.log(m)
        gap = mixture + laplace_log_prob(w, w_mu, w_scale) - self.log_prior(u, w)
        if has_absent:  # the mean over the sources of a row
            nll, kl = ((torch.where(absent, 0, x).sum(0) / observed).mean() for x in (-log_likelihood, gap))
        else:
            nll, kl = -log_likelihood.mean(), gap.mean()
        losses = {"loss": nll + self.beta * kl, "nll": nll, "kl": kl}
        return self.add_classification(losses, u_mu, batch.target, absent.T)

    def convert(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        if checkpoint_kind(content) == "reference_multivae":  # model.pt of the multivae package
            return content["model_state_dict"]
        return super().convert(content)

    def _conditioning(self, missing: Tensor, absent: Tensor, index: Tensor) -> Tensor:
        """(B, M) bool: the modalities that u of a row comes from, none of those that are ``absent`` (:meth:`absent`);
        none at all where nothing is missing."""
        use = ~absent & missing.any(1, keepdim=True)
        if self.conditioning == "random":
            count = (~absent).sum(1, keepdim=True)
            uniform = row_uniform(index, 1, hash_seed(self.draw_seed, 0))
            chosen = (uniform * count).ceil().long()  # 1 .. count, since uniform is in (0, 1]
            use &= (~absent).cumsum(1) == chosen
        return use

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
            cells = self.hidden_cells(missing, feature_missing)
            use = self._conditioning(missing, self.absent(missing, feature_missing), index)
            u = torch.zeros(len(missing), self.latent, device=missing.device)
            for i, (name, rows) in enumerate(zip(self.names, column_rows(use), strict=True)):
                if len(rows):
                    mu, raw = self._shared(name, inputs[name][rows], cells[name][rows] if name in cells else None)
                    if self.sample:
                        seed = hash_seed(self.draw_seed, 1, i)
                        mu = mu + scale(raw) * row_laplace(index[rows], self.latent, seed)
                    u[rows] += mu
            u = u / use.sum(1, keepdim=True).clamp(min=1)
            completed = {}
            for i, ((name, x), rows) in enumerate(zip(inputs.items(), column_rows(missing), strict=True)):
                completed[name] = x
                if len(rows):
                    w = self._private(name, index[rows], hash_seed(self.draw_seed, 2, i))
                    recovered = self.most_likely(i, self.decoders[name](torch.cat([u[rows], w], dim=1)))
                    is_missing = missing_content(x, name, missing[:, i], feature_missing)
                    completed[name] = merge(x, is_missing, x.index_put((rows,), recovered.to(x.dtype)))
        return completed

    @property
    def recovers_at_random(self) -> bool:
        return self.sample or self.conditioning == "random"

    def why_not_exported(self) -> str | None:
        if self.conditioning == "random":
            return f"imputer {type(self).__name__} with conditioning=random draws by the number of the row"
        return super().why_not_exported()

    def impute_fixed(
        self, inputs: Mapping[str, Tensor], missing: Tensor, feature_missing: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        rows = torch.arange(len(missing), device=missing.device)
        cells = self.hidden_cells(missing, feature_missing)
        use = self._conditioning(missing, self.absent(missing, feature_missing), rows)
        means = [self._shared(name, inputs[name], cells.get(name))[0] for name in self.names]
        u = torch.where(use[..., None], torch.stack(means, dim=1), 0).sum(1) / use.sum(1, keepdim=True).clamp(min=1)
        completed = {}
        for i, (name, x) in enumerate(inputs.items()):
            recovered = self.most_likely(i, self.decoders[name](torch.cat([u, self._private(name, rows, 0)], dim=1)))
            is_missing = missing_content(x, name, missing[:, i], feature_missing)
            completed[name] = merge(x, is_missing, recovered.to(x.dtype))
        return completed

    def _shared(self, name: str, x: Tensor, cells: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and raw scale of the shared latent from one modality, without its missing ``cells``."""
        return self.encoders[name].branch(x, "u", **_missing(cells))  # type: ignore[operator]

    def _private(self, name: str, index: Tensor, seed: int) -> Tensor:
        """Private latents (R, private) of a missing modality: the prior's mean, or draws."""
        mu, spread = self.general_private_prior() if self.private_prior == "joint" else self.r(name)
        if self.sample:
            return mu + spread * row_laplace(index, self.private, seed)
        return mu.expand(len(index), -1)


class MMVAEPlus(_SharedPrivateVAE):
    """MMVAE+: a standard Laplace prior on u and w. 22,156,943 parameters on PolyMNIST, the fixed ones included."""

    def make_private_priors(self) -> None:
        self.mean_priors = nn.ParameterDict({n: _fixed(1, self.private) for n in self.names})
        self.logvars_priors = nn.ParameterDict({n: nn.Parameter(torch.zeros(1, self.private)) for n in self.names})
        if "shared" in self.names:
            raise ValueError("no modality can be called 'shared', a name among the weights of MMVAE+: rename it")
        for priors in (self.mean_priors, self.logvars_priors):
            priors["shared"] = _fixed(1, self.latent + self.private)

    def r(self, name: str) -> tuple[Tensor, Tensor]:
        return self.mean_priors[name], scale(self.logvars_priors[name])

    def general_private_prior(self) -> tuple[Tensor, Tensor]:
        mu, raw = (priors["shared"][:, self.latent :] for priors in (self.mean_priors, self.logvars_priors))
        return mu, scale(raw)

    def log_prior(self, u: Tensor, w: Tensor) -> Tensor:
        z = torch.cat([u, w], dim=-1)
        return laplace_log_prob(z, self.mean_priors["shared"], scale(self.logvars_priors["shared"]))


class CMVAE(_SharedPrivateVAE):
    """CMVAE: u comes from one of several Laplace clusters with learned weights and means. 22,159,479 parameters on
    PolyMNIST with 40 clusters, the fixed ones included. Clusters are not pruned.

    Args:
        clusters: number of clusters.
        others: see the base class.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        encoders: Mapping[str, nn.Module],
        decoders: Mapping[str, nn.Module],
        *,
        clusters: int = 40,
        shared: int = 32,
        **others: Any,
    ) -> None:
        super().__init__(modalities, encoders, decoders, shared=shared, **others)
        self._pc_params = nn.Parameter(torch.zeros(clusters))
        means = (2 * torch.rand(1, shared) - 1 for _ in range(clusters))
        self.mean_clusters = nn.ParameterList(nn.Parameter(mean) for mean in means)
        self.logvar_clusters = nn.ParameterList(_fixed(1, shared) for _ in range(clusters))

    def make_private_priors(self) -> None:
        self.r_mean_priors = nn.ParameterDict({n: _fixed(1, self.private) for n in self.names})
        self.r_logvars_priors = nn.ParameterDict({n: nn.Parameter(torch.zeros(1, self.private)) for n in self.names})
        self.w_mean_prior, self.w_logvar_prior = _fixed(1, self.private), _fixed(1, self.private)

    def r(self, name: str) -> tuple[Tensor, Tensor]:
        return self.r_mean_priors[name], scale(self.r_logvars_priors[name])

    def general_private_prior(self) -> tuple[Tensor, Tensor]:
        return self.w_mean_prior, scale(self.w_logvar_prior)

    def log_prior(self, u: Tensor, w: Tensor) -> Tensor:
        means, raw = torch.cat(list(self.mean_clusters)), torch.cat(list(self.logvar_clusters))
        by_cluster = laplace_log_prob(u[..., None, :], means, scale(raw)) + self._pc_params.log_softmax(0)
        return by_cluster.logsumexp(-1) + laplace_log_prob(w, *self.general_private_prior())
