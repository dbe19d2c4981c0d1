"""UDML: Unbiased Dynamic Multimodal Learning (CVPR 2026 Findings, arXiv 2603.19681).

Every modality is encoded as a Gaussian: a mean and a log-variance head on the tokens of its encoder, sampled in
training, the mean itself in evaluation, then averaged over the tokens to z_m; the deviations are averaged likewise to
s_m. Training inputs carry noise of known level l_m (1 = clean ... 11 = destroyed, ``Batch.noise_level``), which a
regressor predicts from s_m, detached. With rho_m = predicted level^2 and alpha_m, how much the logits move when
modality m is removed (normalised to mean 1), the fusion weights are

    w_m = n (rho_m alpha_m)^-1 / sum_j (rho_j alpha_j)^-1   (n observed modalities; they sum to n)

and z_m enters the fusion head as (1 + w_m) z_m. Missing is the limit of endless noise: weight and feature 0. The
objective (docs/reference/udml.md §1.8):

    L = CE + gamma sum_m CE_m + beta sum_m KL(N(mu_m, sigma_m^2) || N(0, l_m)) + 0.1 sum_m (predicted - l_m)^2

CE_m is that of the head with modality m alone. Sums are of means over the rows that have the modality. Training is
clean at first, then noisy (``noise`` of the configuration), and the weights set in ``weights_from`` epochs after its
start; until then all are 1.

The paper was not available when this was written; formulas and constants are those of the authors' release. Ours, where
it does something that it does not intend; each has a switch, ``reference=true`` turns all of them back:

- ``dependency.measure=removal``: |logits - logits without m|_1, as described. Reference ``alone``: |logits of m
  alone|_1, which the bias of the head is part of.
- ``dependency.source=unweighted``: from z_m. Reference ``weighted``: from (1 + w_m) z_m, so that the weights feed back.
- ``dependency.momentum=0.9``, a moving average. Reference 0: the last batch counts alone.
- ``dependency.init``: 1 for all until it was measured. Reference 32 for the first, 10 for the second modality.
- ``dependency.from_epoch``: together with the weights. Reference 0: it divides from the start.
- ``regressor_start=clean``: the last layer of the regressors starts at zero, which is level 1. Reference ``random``: a
  start below that may not come back, since the gradient of exp(o / 2) vanishes with it.
- ``detach_weights=true``: the regressors learn from the levels alone, as described. Reference false: the classification
  moves them as well once the weights have set in.
- ``always_in_evaluation=false``: evaluation weights as the training of the same epoch does. Reference true: in full.

In both the dependency is a buffer of the checkpoint (the release evaluates a reloaded model with 32 and 10), it is
measured on rows that have everything, and the best epoch is chosen on validation data, among those whose training had
the weights (the release, and ``reference=true``: from the second noisy epoch on, 51 counted from 0; the release chooses
it on test data). The last, smaller batch of an epoch counts; the release drops it. ``max_deviation`` bounds the
standard deviations: inputs at level 11 are tens of deviations away from clean ones, and exp(log variance) overflows in
their first batch otherwise. The release has such a bound for audio, whose value it does not give; 10 is ours. Not taken
over: a regression loss of infinity counts as 0.
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
from models.layers.batch_norm import apply_to_observed
from models.udml.heads import HEADS
from models.udml.representation import Gaussian, ProbabilisticHead, divergence
from models.udml.weights import EPSILON, fusion_weights, logit_distances

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dependency:
    """How the reliance on each modality is measured; None = by ``reference``, see the module.

    Attributes:
        measure: ``removal`` | ``alone``.
        source: ``unweighted`` | ``weighted`` features.
        momentum: of the moving average over training steps.
        init: values of the modalities before the first step.
        from_epoch: first epoch whose training it influences.
    """

    measure: str | None = None
    source: str | None = None
    momentum: float | None = None
    init: Sequence[float] | None = None
    from_epoch: int | None = None

    def resolved(self, reference: bool, weights_from: int, modalities: int) -> Dependency:
        """Copy with all open choices resolved.

        Raises:
            ValueError: an unknown choice.
        """
        init = self.init
        if init is None and reference:
            if modalities != 2:
                raise ValueError(f"dependency.init: reference has two values, give {modalities}, one per modality")
            init = (32.0, 10.0)
        chosen = Dependency(
            self.measure or ("alone" if reference else "removal"),
            self.source or ("weighted" if reference else "unweighted"),
            (0.0 if reference else 0.9) if self.momentum is None else self.momentum,
            (0.0,) * modalities if init is None else init,
            (0 if reference else weights_from) if self.from_epoch is None else self.from_epoch,
        )
        assert chosen.momentum is not None and chosen.init is not None
        for key, known in (("measure", ("removal", "alone")), ("source", ("unweighted", "weighted"))):
            if getattr(chosen, key) not in known:
                raise ValueError(f"dependency.{key}={getattr(chosen, key)}: must be {' or '.join(known)}")
        if not 0 <= chosen.momentum < 1:
            raise ValueError(f"dependency.momentum={chosen.momentum}: must be at least 0 and below 1")
        if len(chosen.init) != modalities or min(chosen.init) < 0:
            raise ValueError(f"dependency.init: give {modalities} positive values, not {list(chosen.init)}")
        return chosen


class UDML(Baseline):
    """``dependency`` (M,) is a buffer: the measured d_m, 0 before the first measurement. ``active`` (2,) says whether
    the noise levels and the dependency have set in.

    Predictions carry ``fusion_weights`` (B, M), ``predicted_level`` (B, M; NaN in evaluation where the modality is
    missing; absent without an estimator), and ``unimodal_logits`` (B, M, C), whose accuracies stage test reports as
    ``UDML/<modality>``, as the release prints them: the same head with the features of the others at 0.

    Args:
        encoders: modality name -> module whose output is tokens (B, N, D_m), with the attribute ``width`` where D_m is
            not ``width``. Clips (B, T, ...) go through an encoder of images frame by frame.
        width: D of the representation; the regressors have half of it as hidden units.
        fusion: concat | sum | gated | bilinear, see :mod:`models.udml.heads`.
        probabilistic: false = without variances (ablation): no sampling and no KL, and the regressors see the mean.
        estimator: false = without noise-level regressors (ablation): all levels count as 1.
        dependency: None = without it (ablation): alpha = 1.
        gamma: weight of the unimodal cross-entropies.
        beta: weight of the divergences.
        mse_weight: of the regression of the levels.
        regressor_dropout: between the two layers of a regressor.
        regressor_start: clean | random; None = by ``reference``, see the module.
        residual: features are (1 + w) z, else w z.
        detach_weights: no gradient of the classification reaches the regressors; None = by ``reference``.
        weights_from: first epoch whose training uses the predicted levels.
        max_deviation: upper bound of the standard deviations, of all modalities or modality name -> its own; None = no
            bound.
        always_in_evaluation: None = by ``reference``, see the module.
        others: see :class:`models.baselines.base.Baseline`.

    Raises:
        ValueError: an unknown choice.
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
        if fusion not in HEADS:
            raise ValueError(f"fusion={fusion}: must be one of {', '.join(HEADS)}")
        for key, value in (("gamma", gamma), ("beta", beta), ("mse_weight", mse_weight)):
            if value < 0:
                raise ValueError(f"{key}={value}: must not be negative")
        regressor_start = regressor_start or ("random" if self.reference else "clean")
        if regressor_start not in ("clean", "random"):
            raise ValueError(f"regressor_start={regressor_start}: must be clean or random")
        by_name = max_deviation if isinstance(max_deviation, Mapping) else dict.fromkeys(names, max_deviation)
        bounds = {name: bound for name, bound in by_name.items() if bound is not None}
        if bad := [name for name, bound in bounds.items() if name not in names or bound <= 0]:
            raise ValueError(f"max_deviation.{bad[0]}={bounds[bad[0]]}: give a positive bound of {', '.join(names)}")
        self.gamma, self.beta, self.mse_weight = gamma, beta, mse_weight
        self.probabilistic, self.residual = probabilistic, residual
        self.detach_weights = not self.reference if detach_weights is None else detach_weights
        self.weights_from = weights_from
        self.always_in_evaluation = self.reference if always_in_evaluation is None else always_in_evaluation
        self.measuring = None if dependency is None else dependency.resolved(self.reference, weights_from, m)
        self.encoders = nn.ModuleDict({name: encoders[name] for name in names})
        self.gaussians = nn.ModuleDict(
            {
                name: ProbabilisticHead(
                    int(getattr(encoders[name], "width", width)), width, probabilistic, bounds.get(name)
                )
                for name in names
            }
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
        init = (0.0,) * m if self.measuring is None else self.measuring.init
        self.register_buffer("dependency", torch.tensor(init, dtype=torch.float))
        self.register_buffer("active", torch.zeros(2, dtype=torch.bool))
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Switch on what applies from this epoch on."""
        self.active[0] = epoch >= self.weights_from
        self.active[1] = self.measuring is not None and epoch >= (self.measuring.from_epoch or 0)

    def on_train_epoch_start(self) -> None:
        self.set_epoch(self.current_epoch)

    # ---- encode ------------------------------------------------------------------------------------------------------

    def distributions(
        self, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor] | None = None
    ) -> dict[str, Gaussian]:
        """Inputs (B, ...) per modality -> its tokens as Gaussians."""
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
        if missing is not None:
            tokens = encoder(x, missing=missing)
        else:
            tokens = encoder(x.flatten(0, 1) if x.ndim == 5 else x)
        parts = [part.unflatten(0, shape) for part in self.gaussians[name](tokens) if part is not None]
        return torch.stack(parts, dim=1)

    def pooled(self, distributions: Mapping[str, Gaussian]) -> Tensor:
        """Samples (in evaluation means) and deviations, averaged over frames and tokens: (B, M, 2, D). Without
        variances the means stand in the place of the deviations."""
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
        """Inputs (B, ...) per modality -> (B, M, 2, D): what is fused, and what the regressors see."""
        return self.pooled(self.distributions(inputs, cells))

    # ---- fuse --------------------------------------------------------------------------------------------------------

    def log_uncertainty(self, seen: Tensor) -> Tensor:
        """(B, M, D), detached here -> (B, M) log rho = 2 log(level), which the regressors give."""
        seen = seen.detach()
        return torch.cat([f(s) for f, s in zip(self.regressors, seen.unbind(1), strict=True)], dim=1)

    def alpha(self) -> Tensor:
        """(M,) the dependency, normalised to mean 1; 1 before it was measured."""
        total = self.dependency.sum()
        return torch.where(total > 0, len(self.dependency) * self.dependency / total.clamp(min=EPSILON), 1)

    def weighted(self, encoded: Tensor, observed: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """
        Args:
            encoded: (B, M, 2, D), see :meth:`encode`.
            observed: (B, M) bool.

        Returns:
            features (B, M, D), 0 where missing; weights (B, M); log uncertainty (B, M), None without an estimator.
        """
        vectors, seen = torch.where(observed[..., None, None], encoded, 0).unbind(2)
        active = self.active
        if self.always_in_evaluation and not self.training:
            active = torch.ones_like(active)
        log_rho = self.log_uncertainty(seen) if len(self.regressors) else None
        uncertainty = torch.zeros_like(vectors[..., 0])
        if log_rho is not None:
            uncertainty = torch.where(active[0], log_rho.detach() if self.detach_weights else log_rho, 0)
        log_alpha = torch.zeros_like(self.dependency)
        if self.measuring is not None:
            log_alpha = torch.where(active[1], self.alpha().clamp(min=EPSILON).log(), 0)
        weights = fusion_weights(uncertainty + log_alpha, observed)
        return (weights + float(self.residual))[..., None] * vectors, weights, log_rho

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        observed = ~self.absent(batch)
        features, weights, log_rho = self.weighted(encoded, observed)
        alone = torch.eye(observed.shape[1], dtype=torch.bool, device=observed.device)
        unimodal = torch.stack([self.head(features, only.expand_as(observed)) for only in alone], dim=1)
        extras = {"fusion_weights": weights, "unimodal_logits": unimodal}
        if log_rho is not None:
            level = (0.5 * log_rho).exp()
            extras["predicted_level"] = level if self.training else torch.where(observed, level, torch.nan)
        return Prediction(self.head(features, observed), features.flatten(1), extras)

    # ---- training ----------------------------------------------------------------------------------------------------

    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        """All terms except the divergences, which training adds."""
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
        inputs, cells = (
            (batch.inputs, None)
            if batch.complete
            else (self.observed_inputs(batch), self.cells(batch.missing, batch.feature_missing))
        )
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
        if self.measuring is not None:
            self.measure(encoded, observed, fused)
        self.log_losses("train", losses, len(batch))
        return losses["loss"]

    @torch.no_grad()
    def measure(self, encoded: Tensor, observed: Tensor, fused: Tensor | None = None) -> None:
        """Update the moving average of the dependency after a training step: L1 distances of logits, means over the
        complete rows; unchanged without complete rows.

        Args:
            encoded: (B, M, 2, D), see :meth:`encode`.
            observed: (B, M) bool.
            fused: (B, M * D), the weighted features of the step; None under modality dropout, which has several.
        """
        assert self.measuring is not None
        features = encoded[:, :, 0]
        if self.measuring.source == "weighted":
            features = self.weighted(encoded, observed)[0] if fused is None else fused.view_as(features)
        rows = observed.all(1)
        features = torch.where(rows[:, None, None], features, 0).float()
        distances = logit_distances(self.head, features, self.measuring.measure == "removal")
        sums = torch.cat([torch.where(rows[:, None], distances, 0).sum(0), rows.sum()[None]])
        if self._trainer is not None and self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        measured = sums[:-1] / sums[-1].clamp(min=1)
        momentum = self.measuring.momentum or 0.0
        mixed = torch.where(self.dependency.sum() > 0, momentum * self.dependency + (1 - momentum) * measured, measured)
        self.dependency.copy_(torch.where(sums[-1] > 0, mixed, self.dependency))

    def on_train_end(self) -> None:
        if self.measuring is not None and self.dependency.tolist() == torch.tensor(self.measuring.init).tolist():
            log.warning(
                "UDML: the dependency was never measured, since no training row has every modality: its weights know "
                "the noise levels alone, as with model.module.dependency=null"
            )

    def compile_parts(self, backend: str) -> None:
        """Compile the encoders with their heads, and the fusion, whose calls differ in size (hence dynamic)."""
        self.distributions = torch.compile(self.distributions, backend=backend)  # type: ignore[method-assign]
        self.fuse = torch.compile(self.fuse, backend=backend, dynamic=True)  # type: ignore[method-assign]


def levels(batch: Batch) -> Tensor:
    """(B, M) float, 1 = clean, as a batch without levels is."""
    return torch.ones_like(batch.missing, dtype=torch.float) if batch.noise_level is None else batch.noise_level.float()
