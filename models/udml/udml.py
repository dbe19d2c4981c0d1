"""UDML: Unbiased Dynamic Multimodal Learning (CVPR 2026 Findings, arXiv 2603.19681).

Each modality is encoded as a Gaussian by a mean and a log-variance head on the tokens of its encoder. A sample (in
evaluation the mean) is averaged over the tokens to z_m, and the standard deviation to s_m. Training inputs have noise
of known level l_m (1 = clean ... 11 = destroyed, ``Batch.noise_level``), which a regressor predicts from the detached
s_m. With rho_m = predicted level^2, and alpha_m the change of the logits when modality m is removed (normalised to mean
1), the fusion weights are

    w_m = n (rho_m alpha_m)^-1 / sum_j (rho_j alpha_j)^-1   (n observed modalities; the weights sum to n)

and the input of the fusion head is (1 + w_m) z_m. A missing modality is the limit of infinite noise: weight and feature
are 0. The objective (docs/reference/udml.md §1.8):

    L = CE + gamma sum_m CE_m + beta sum_m KL(N(mu_m, sigma_m^2) || N(0, l_m)) + 0.1 sum_m (predicted - l_m)^2

CE_m is the cross-entropy of the head with modality m alone. Each term is a mean over the rows that have the modality.
Training starts with clean data and continues with noisy data (``noise`` of the configuration). The weights are 1 before
epoch ``weights_from``.

The paper was not available when this was written; formulas and constants are those of the authors' release. We differ
where the release deviates from its description. Each difference has an option, and ``reference=true`` restores all:

- ``dependency.measure=removal``: |logits - logits without m|_1, as described. Reference ``alone``: |logits of m
  alone|_1, which includes the bias of the head.
- ``dependency.source=unweighted``: from z_m. Reference ``weighted``: from (1 + w_m) z_m, a feedback of the weights.
- ``dependency.momentum=0.9``: a moving average. Reference 0: the last batch only.
- ``dependency.init``: 1 for all until measured. Reference: 32 for the first modality, 10 for the second.
- ``dependency.from_epoch``: the same epoch as the weights. Reference 0: from the start.
- ``regressor_start=clean``: the last layer of the regressors is initialised to zero, which is level 1. Reference
  ``random``: a lower initial level may not recover, since the gradient of exp(o / 2) vanishes.
- ``detach_weights=true``: the regressors learn only from the levels, as described. Reference false: the classification
  loss also trains them once the weights are in use.
- ``always_in_evaluation=false``: evaluation uses the weights as the training of the same epoch. Reference true: always.

In both cases, the dependency is a buffer of the checkpoint (the release evaluates a reloaded model with 32 and 10) and
is measured on complete rows. The best epoch is selected on validation data among those trained with the weights (the
release and ``reference=true``: from the second noisy epoch on, 51 counted from 0; the release selects it on test data).
The last, smaller batch of an epoch is used; the release drops it. ``max_deviation`` bounds the standard deviations:
inputs of level 11 are tens of deviations away from clean ones, for which exp(log variance) would overflow. The release
has an unspecified bound for audio; 10 is ours. Unlike the release, an infinite regression loss is not set to 0.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.base import Prediction, classification_loss
from models.baselines.base import Baseline
from models.baselines.decisions import mean_where, row_losses
from models.layers.batch_norm import apply_to_observed, apply_with_cells
from models.udml.heads import HEADS
from models.udml.representation import Gaussian, ProbabilisticHead, divergence
from models.udml.weights import EPSILON, fusion_weights, logit_distances

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dependency:
    """Measurement of the dependency on each modality; None = the default, which depends on ``reference`` (see module).

    Attributes:
        measure: ``removal`` or ``alone``.
        source: ``unweighted`` or ``weighted`` features.
        momentum: of the moving average over training steps.
        init: initial value per modality.
        from_epoch: first epoch whose training uses the dependency.
    """

    measure: str | None = None
    source: str | None = None
    momentum: float | None = None
    init: Sequence[float] | None = None
    from_epoch: int | None = None

    def resolved(self, reference: bool, weights_from: int, modalities: int) -> Dependency:
        """Replace None by the defaults.

        Raises:
            ValueError: an unknown option or a value out of range.
        """
        init = self.init
        if init is None and reference:
            if modalities != 2:
                raise ValueError(f"dependency.init: reference has two values, specify {modalities}, one per modality")
            init = (32.0, 10.0)
        chosen = Dependency(
            measure=self.measure or ("alone" if reference else "removal"),
            source=self.source or ("weighted" if reference else "unweighted"),
            momentum=(0.0 if reference else 0.9) if self.momentum is None else self.momentum,
            init=(0.0,) * modalities if init is None else init,
            from_epoch=(0 if reference else weights_from) if self.from_epoch is None else self.from_epoch,
        )
        assert chosen.momentum is not None and chosen.init is not None
        for key, options in (("measure", ("removal", "alone")), ("source", ("unweighted", "weighted"))):
            if getattr(chosen, key) not in options:
                raise ValueError(f"dependency.{key}={getattr(chosen, key)}: must be {' or '.join(options)}")
        if not 0 <= chosen.momentum < 1:
            raise ValueError(f"dependency.momentum={chosen.momentum}: must be at least 0 and below 1")
        if len(chosen.init) != modalities or min(chosen.init) < 0:
            raise ValueError(f"dependency.init={list(chosen.init)}: specify {modalities} non-negative values")
        return chosen


STARTS = ("clean", "random")  # of the regressors


def _deviation_bounds(maximum: float | Mapping[str, float] | None, names: Sequence[str]) -> dict[str, float]:
    """Modality name -> upper bound of its standard deviations; modalities without a bound are left out."""
    limits = maximum if isinstance(maximum, Mapping) else dict.fromkeys(names, maximum)
    bounds = {name: bound for name, bound in limits.items() if bound is not None}
    if bad := [name for name, bound in bounds.items() if name not in names or bound <= 0]:
        raise ValueError(f"max_deviation.{bad[0]}={bounds[bad[0]]}: specify positive bounds of {', '.join(names)}")
    return bounds


class UDML(Baseline):
    """UDML for any number of modalities.

    Extras of predictions: ``fusion_weights`` (B, M); ``predicted_level`` (B, M), NaN in evaluation if the modality is
    missing, absent without an estimator; ``unimodal_logits`` (B, M, C), of the head with the features of the other
    modalities at 0. Stage test reports their accuracies as ``UDML/<modality>``, as the release prints them.

    Args:
        encoders: modality name -> module with output (B, N, D_m), and the attribute ``width`` if D_m is not ``width``.
            Clips (B, T, ...) are encoded frame by frame by an image encoder.
        width: D of the representation; the regressors have D / 2 hidden units.
        fusion: ``concat``, ``sum``, ``gated`` or ``bilinear``, see :mod:`models.udml.heads`.
        probabilistic: False omits the variances (ablation): no sampling, no KL, and the regressors take the mean.
        estimator: False omits the noise-level regressors (ablation): all levels are 1.
        dependency: None omits the dependency (ablation): alpha = 1.
        gamma: weight of the unimodal cross-entropies.
        beta: weight of the KL divergences.
        mse_weight: weight of the regression of the levels.
        regressor_dropout: between the two layers of a regressor.
        regressor_start: ``clean`` or ``random``; None: depends on ``reference``, see the module.
        residual: multiply features by 1 + w instead of w.
        detach_weights: stop gradients of the classification at the regressors; None: depends on ``reference``.
        weights_from: first epoch whose training uses the predicted levels.
        max_deviation: upper bound of the standard deviations, or modality name -> bound; None = unbounded.
        always_in_evaluation: None: depends on ``reference``, see the module.
        others: see :class:`models.baselines.base.Baseline`.

    Attributes:
        dependency: (M,), the measured d_m, 0 before the first measurement.
        active: (2,) bool, whether the noise levels and the dependency are in use.

    Raises:
        ValueError: an unknown option or a value out of range.
    """

    reports_unimodal = True
    dependency: Tensor
    active: Tensor

    def __init__(
        self,
        modalities: Sequence[Modality],
        num_classes: int,
        encoders: Mapping[str, nn.Module],
        *,
        width: int = 512,
        fusion: str = "concat",
        probabilistic: bool = True,
        estimator: bool = True,
        dependency: Dependency | None = None,
        gamma: float = 4.0,
        beta: float = 1e-5,
        mse_weight: float = 0.1,
        regressor_dropout: float = 0.1,
        regressor_start: str | None = None,
        residual: bool = True,
        detach_weights: bool | None = None,
        weights_from: int = 60,
        max_deviation: float | Mapping[str, float] | None = 10.0,
        always_in_evaluation: bool | None = None,
        **others: Any,
    ) -> None:
        super().__init__(modalities, num_classes, **others)
        m, names = len(modalities), self.modality_names
        regressor_start = regressor_start or ("random" if self.reference else "clean")
        for key, value, choices in (("fusion", fusion, HEADS), ("regressor_start", regressor_start, STARTS)):
            if value not in choices:
                raise ValueError(f"{key}={value}: must be one of {', '.join(choices)}")
        for key, weight in (("gamma", gamma), ("beta", beta), ("mse_weight", mse_weight)):
            if weight < 0:
                raise ValueError(f"{key}={weight}: must not be negative")
        bounds = _deviation_bounds(max_deviation, names)
        self.gamma, self.beta, self.mse_weight = gamma, beta, mse_weight
        self.probabilistic, self.residual = probabilistic, residual
        self.detach_weights = not self.reference if detach_weights is None else detach_weights
        self.weights_from = weights_from
        self.always_in_evaluation = self.reference if always_in_evaluation is None else always_in_evaluation
        self.measurement = None if dependency is None else dependency.resolved(self.reference, weights_from, m)
        self.encoders = nn.ModuleDict({name: encoders[name] for name in names})
        widths = {name: int(getattr(encoders[name], "width", width)) for name in names}
        self.gaussians = nn.ModuleDict(
            {name: ProbabilisticHead(widths[name], width, probabilistic, bounds.get(name)) for name in names}
        )
        self.head = HEADS[fusion](m, width, num_classes)
        self.regressors = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width // 2), nn.Dropout(regressor_dropout), nn.Linear(width // 2, 1))
            for _ in range(m if estimator else 0)
        )
        for layer in (*self.head.modules(), *self.regressors.modules()):
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
        for network in self.regressors if regressor_start == "clean" else ():
            nn.init.zeros_(network[-1].weight)  # type: ignore[index]
        init = (0.0,) * m if self.measurement is None else self.measurement.init
        self.register_buffer("dependency", torch.tensor(init, dtype=torch.float))
        self.register_buffer("active", torch.zeros(2, dtype=torch.bool))
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Update ``active``."""
        self.active[0] = epoch >= self.weights_from
        self.active[1] = self.measurement is not None and epoch >= (self.measurement.from_epoch or 0)

    def on_train_epoch_start(self) -> None:
        self.set_epoch(self.current_epoch)

    # ---- encode ------------------------------------------------------------------------------------------------------

    def distributions(
        self, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor] | None = None
    ) -> dict[str, Gaussian]:
        """Inputs (B, ...) per modality -> tokens as Gaussians."""
        distributions = {}
        for name, encoder in self.encoders.items():
            function = partial(self._mean_and_log_variance, name)
            mean, *log_variance = apply_to_observed(
                function, inputs, name, cells, (encoder, self.gaussians[name])
            ).unbind(1)
            distributions[name] = Gaussian(mean, log_variance[0] if log_variance else None)
        return distributions

    def _mean_and_log_variance(self, name: str, x: Tensor, missing: Tensor | None = None) -> Tensor:
        """One modality (R, ...) -> (R, 2, T, N, D), or (R, 1, T, N, D) without variances."""
        encoder, shape = self.encoders[name], (len(x), x.shape[1] if x.ndim == 5 else 1)
        if x.ndim == 5:
            x, missing = x.flatten(0, 1), None if missing is None else missing.flatten(0, 1)
        tokens = apply_with_cells(encoder, x, missing)
        parts = [part.unflatten(0, shape) for part in self.gaussians[name](tokens) if part is not None]
        return torch.stack(parts, dim=1)

    def pooled(self, distributions: Mapping[str, Gaussian]) -> Tensor:
        """Samples (in evaluation means) and standard deviations, averaged over frames and tokens: (B, M, 2, D). Without
        variances, the means replace the deviations."""
        parts = []
        for mean, log_variance in distributions.values():
            if log_variance is None:
                parts.append(torch.stack([mean.mean((1, 2))] * 2, dim=1))
                continue
            deviation = (0.5 * log_variance).exp()
            sample = mean + torch.randn_like(deviation) * deviation if self.training else mean
            parts.append(torch.stack([sample.mean((1, 2)), deviation.mean((1, 2))], dim=1))
        return torch.stack(parts, dim=1)

    def encode(self, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor] | None = None) -> Tensor:
        """Inputs (B, ...) per modality -> (B, M, 2, D): features, and the input of the regressors."""
        return self.pooled(self.distributions(inputs, cells))

    # ---- fuse --------------------------------------------------------------------------------------------------------

    def log_uncertainty(self, deviations: Tensor) -> Tensor:
        """Deviations (B, M, D), which are detached -> predicted log rho = 2 log(level) (B, M)."""
        deviations = deviations.detach()
        return torch.cat([f(s) for f, s in zip(self.regressors, deviations.unbind(1), strict=True)], dim=1)

    def alpha(self) -> Tensor:
        """Dependency (M,), normalised to mean 1; 1 before the first measurement."""
        total = self.dependency.sum()
        return torch.where(total > 0, len(self.dependency) * self.dependency / total.clamp(min=EPSILON), 1)

    def weighted(self, encoded: Tensor, observed: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Weight the features.

        Args:
            encoded: (B, M, 2, D), see :meth:`encode`.
            observed: (B, M) bool.

        Returns:
            features (B, M, D), 0 where missing; weights (B, M); log uncertainty (B, M), None without an estimator.
        """
        vectors, deviations = torch.where(observed[..., None, None], encoded, 0).unbind(2)
        active = self.active
        if self.always_in_evaluation and not self.training:
            active = torch.ones_like(active)
        log_rho = self.log_uncertainty(deviations) if len(self.regressors) else None
        uncertainty = torch.zeros_like(vectors[..., 0])
        if log_rho is not None:
            uncertainty = torch.where(active[0], log_rho.detach() if self.detach_weights else log_rho, 0)
        log_alpha = torch.zeros_like(self.dependency)
        if self.measurement is not None:
            log_alpha = torch.where(active[1], self.alpha().clamp(min=EPSILON).log(), 0)
        weights = fusion_weights(uncertainty + log_alpha, observed)
        return (weights + float(self.residual))[..., None] * vectors, weights, log_rho

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        observed = ~self.absent(batch)
        features, weights, log_rho = self.weighted(encoded, observed)
        single = torch.eye(observed.shape[1], dtype=torch.bool, device=observed.device)
        unimodal = torch.stack([self.head(features, only.expand_as(observed)) for only in single], dim=1)
        extras = {"fusion_weights": weights, "unimodal_logits": unimodal}
        if log_rho is not None:
            level = (0.5 * log_rho).exp()
            extras["predicted_level"] = level if self.training else torch.where(observed, level, torch.nan)
        return Prediction(self.head(features, observed), features.flatten(1), extras)

    # ---- training ----------------------------------------------------------------------------------------------------

    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        """All terms except the KL divergences, which :meth:`training_step` adds."""
        observed, extras = ~self.absent(batch), prediction.extras
        fused = classification_loss(prediction.logits, batch.target, self.task)
        unimodal = mean_where(observed, row_losses(extras["unimodal_logits"], batch.target, self.task)).sum()
        losses = {"loss": fused + self.gamma * unimodal, "fused": fused, "unimodal": unimodal}
        if "predicted_level" in extras:
            predicted = torch.where(observed, extras["predicted_level"], 1)
            losses["regression"] = mean_where(observed, (predicted - levels(batch)).square()).sum()
            losses["loss"] = losses["loss"] + self.mse_weight * losses["regression"]
        return losses

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        inputs, cells = batch.inputs, None
        if not batch.complete:
            inputs, cells = self.observed_inputs(batch), self.cells(batch.missing, batch.feature_missing)
        distributions = self.distributions(inputs, cells)
        encoded = self.pooled(distributions)
        fused = None
        if self.masks.kind == "none":
            prediction = self.fuse(encoded, batch)
            fused, losses = prediction.features, self.loss(prediction, batch)
        else:
            masks = self.masks.draw(self.absent(batch), self.mask_generator(batch_index))
            losses = self.losses_under(encoded, batch, masks)
        observed = ~self.absent(batch)
        if self.probabilistic and self.beta:
            prior = levels(batch)
            parts = [divergence(g, prior[:, i]) for i, g in enumerate(distributions.values())]
            losses["divergence"] = mean_where(observed, torch.stack(parts, dim=1)).sum()
            losses["loss"] = losses["loss"] + self.beta * losses["divergence"]
        if self.measurement is not None:
            self.measure(encoded, observed & (not batch.is_filler), fused)
        self.log_losses("train", losses, batch.counted)
        return losses["loss"]

    @torch.no_grad()
    def measure(self, encoded: Tensor, observed: Tensor, fused: Tensor | None = None) -> None:
        """Update the moving average of the dependency by the mean logit distances of the complete rows, if any.

        Args:
            encoded: (B, M, 2, D), see :meth:`encode`.
            observed: (B, M) bool.
            fused: (B, M * D), weighted features of the step; None under modality dropout (one set per mask).
        """
        assert self.measurement is not None
        features = encoded[:, :, 0]
        if self.measurement.source == "weighted":
            features = self.weighted(encoded, observed)[0] if fused is None else fused.view_as(features)
        is_complete = observed.all(1)
        features = torch.where(is_complete[:, None, None], features, 0).float()
        distances = logit_distances(self.head, features, self.measurement.measure == "removal")
        sums = torch.cat([torch.where(is_complete[:, None], distances, 0).sum(0), is_complete.sum()[None]])
        if self.processes > 1:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        measured = sums[:-1] / sums[-1].clamp(min=1)
        momentum = self.measurement.momentum or 0.0
        mixed = torch.where(self.dependency.sum() > 0, momentum * self.dependency + (1 - momentum) * measured, measured)
        self.dependency.copy_(torch.where(sums[-1] > 0, mixed, self.dependency))

    def on_train_end(self) -> None:
        if self.measurement is not None and self.dependency.tolist() == torch.tensor(self.measurement.init).tolist():
            log.warning(
                "UDML: the dependency was never measured, since no training row has all modalities: the weights depend "
                "on the noise levels only, as with model.module.dependency=null"
            )

    def compile_parts(self, backend: str) -> None:
        """Compile the encoders with their heads, and the fusion, with dynamic shapes."""
        self.distributions = torch.compile(self.distributions, backend=backend)  # type: ignore[method-assign]
        self.fuse = torch.compile(self.fuse, backend=backend, dynamic=True)  # type: ignore[method-assign]


def levels(batch: Batch) -> Tensor:
    """Noise levels (B, M) float; 1 = clean, also for batches without levels."""
    return torch.ones_like(batch.missing, dtype=torch.float) if batch.noise_level is None else batch.noise_level.float()
