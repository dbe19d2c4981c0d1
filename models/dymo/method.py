"""DyMo at inference: recover, select, classify (ICLR 2026, arXiv 2601.22853), with comparators on the same backbone."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from datasets.batch import Batch
from datasets.missingness import check_validation
from models.base import MAIN, Learner, Method, Prediction
from models.dymo.backbone import Backbone, Partial
from models.dymo.critic import Critic
from models.dymo.dynamic_transformer import DynamicTransformer
from models.dymo.evidence import candidates_of, examples_of
from models.dymo.fixed_selection import select_fixed
from models.dymo.gaussian import GaussianParameters
from models.dymo.lattice import COMPARATORS, compare, exhaustive
from models.dymo.rule import RuleSettings, check_settings
from models.dymo.rules import RULES, Rules
from models.dymo.selection import PARTIAL_TABLES, Scorer, Selection, SelectionRule, select
from models.dymo.similarity import CALIBRATIONS, REWARDS, TAILS
from models.dymo.validation import validate_selection
from models.imputers.base import Imputer, recover_possible
from utils.checks import check_choice, check_number, nearest
from utils.subsets import subset_lookup
from utils.transfer import column_rows

log = logging.getLogger(__name__)


class DyMo(Method):
    """Recover what is missing, select the recoveries to accept, classify.

    Args:
        backbone: trained.
        imputer: recovers what is missing; None if a subclass recovers without one.
        parameters: Gaussian parameters of this backbone.
        rule: how recoveries are accepted.
        comparators: names out of :data:`models.dymo.lattice.COMPARATORS` and :data:`models.dymo.rules.RULES`, and
            ``threshold``, which repeats the selection with :attr:`validated_threshold`.
        seed: of the draws of comparator ``random``, together with row and scenario.
        chooses_threshold: :meth:`calibrate` sets the threshold of the rule (``selection.threshold: auto``).
        settings: of the rules among the comparators.
    """

    needs_calibration = True
    # Beginning of the advice where the selection does harm.
    advice: ClassVar[str] = "train the imputer longer, set model.recovery_aware=0.5, or set"
    program_outputs: ClassVar[tuple[str, ...]] = ("final_missing", "accepted", "rewards")
    takes_tables: ClassVar[bool] = True  # so that its rule has a setting for partly missing ones

    def __init__(
        self,
        backbone: Backbone,
        imputer: Imputer | None,
        parameters: GaussianParameters,
        rule: SelectionRule | None = None,
        comparators: Sequence[str] = (),
        seed: int = 0,
        chooses_threshold: bool = False,
        settings: RuleSettings | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.rule, self.comparators = backbone.eval(), rule or SelectionRule(), tuple(comparators)
        # Kept out of the module tree: imputers need not be modules, and their weights are their own run's.
        self._imputer = [imputer]
        self._lookup = subset_lookup(len(backbone.modalities)).to(parameters.sigma.device)
        self.gaussian, self.seed, self.chooses_threshold = parameters, seed, chooses_threshold
        self.validated_threshold: float | None = None
        self.rules = Rules(self.comparators, settings)

    @classmethod
    def check(cls, cfg: DictConfig, node: str) -> Iterator[str]:
        """Problems in the settings of the selection, one message each; ``node`` is the key of the model."""
        yield from check_choice(cfg, f"{node}.selection.calibration", ("auto", *CALIBRATIONS))
        yield from check_choice(cfg, f"{node}.selection.reward", REWARDS)
        yield from check_choice(cfg, f"{node}.selection.tail", ("auto", *TAILS))
        if cls.takes_tables:
            yield from check_choice(cfg, f"{node}.selection.partial_tables", (None, *PARTIAL_TABLES))
        model = OmegaConf.select(cfg, node)
        if model.selection.threshold != "auto":
            yield from check_number(cfg, f"{node}.selection.threshold", 0)
        known = (*COMPARATORS, "threshold", *RULES)
        for name in model.comparators:
            if name not in known:
                yield f"{node}.comparators: unknown '{name}'{nearest(str(name), known)}"
        yield from check_settings(cfg, f"{node}.rules")
        yield from check_validation(model.validation, len(cfg.dataset.modalities), f"{node}.validation")

    @property
    def imputer(self) -> Imputer:
        assert self._imputer[0] is not None
        return self._imputer[0]

    @property
    def modality_names(self) -> list[str]:
        return self.backbone.modality_names

    def networks(self) -> list[nn.Module]:
        imputer = self._imputer[0]
        return [self, *([] if imputer is None else imputer.networks())]

    @torch.inference_mode()
    def complete(
        self, batch: Batch, tokens: Tensor | None = None, is_fixed: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Recover what is missing and encode it; zeros where :meth:`unrecoverable`.

        Args:
            tokens: (B, P, D) of the true content, if the caller has them already; then only recoveries are encoded.
            is_fixed: see :func:`models.imputers.base.recover_possible`.

        Returns:
            tokens (B, P, D) of the completed inputs, and those inputs.
        """
        backbone = self.backbone
        completed, _ = recover_possible(self.imputer, backbone.modalities, batch, is_fixed)
        assert isinstance(backbone, DynamicTransformer)
        if tokens is None:
            return backbone.encode(completed), completed
        tokens = tokens.clone()
        for i, (name, rows) in enumerate(zip(self.modality_names, column_rows(batch.missing), strict=True)):
            if len(rows):
                tokens[rows, backbone.token_columns(i)] = backbone.encode_one(i, completed[name][rows])
        return tokens, completed

    @property
    def has_draws(self) -> bool:
        """Whether recoveries can be drawn from a posterior."""
        return self._imputer[0] is not None and self._imputer[0].has_draws

    def unrecoverable(self, batch: Batch) -> Tensor | None:
        """Missing modalities without a recovery, which no selection accepts, (B, M) bool; None if there are none."""
        imputer = self._imputer[0]
        return None if imputer is None else imputer.unrecoverable(self.backbone.modalities, batch.missing)

    @torch.inference_mode()
    def partial(self, batch: Batch) -> Partial | None:
        """Encode the observed cells of masked tables; None without cell masks."""
        assert isinstance(self.backbone, DynamicTransformer)
        return self.backbone.encode_partial(batch.inputs, batch.missing, batch.feature_missing)

    @classmethod
    def comparator_settings(cls, model: DictConfig) -> tuple[str, ...]:
        return ("rules",) if set(model.comparators) & set(RULES) else ()

    @property
    def validated_comparators(self) -> tuple[str, ...]:
        names = {"threshold", *(name for name, rule in RULES.items() if rule.needs_validation)}
        return tuple(name for name in self.comparators if name in names)

    def scorer(self, threshold: float | None = None) -> Scorer:
        rule = self.rule if threshold is None else replace(self.rule, threshold=threshold)
        return Scorer(self.backbone, self.gaussian, rule, self._lookup)

    def forward(self, batch: Batch) -> Prediction:
        """Classify with the configured rule; extras hold ``final_missing``, ``accepted``, ``rewards``."""
        tokens, _ = self.complete(batch)
        unrecoverable = self.unrecoverable(batch)
        selection = select(self.scorer(), tokens, batch.missing, self.partial(batch), unrecoverable)
        return _prediction(selection, unrecoverable)

    def why_not_exported(self) -> str | None:
        imputer = self._imputer[0]
        return None if imputer is None else imputer.why_not_exported()

    def forward_fixed(self, batch: Batch) -> Prediction:
        tokens, _ = self.complete(batch, is_fixed=True)
        unrecoverable = self.unrecoverable(batch)
        selection = select_fixed(self.scorer(), tokens, batch.missing, self.partial(batch), unrecoverable)
        return _prediction(selection, unrecoverable)

    def undecided(self, prediction: Prediction, tolerance: float) -> Tensor:
        """Rows with a reward next to 0 or to the threshold, or two best ones next to each other."""
        bound = tolerance / self.rule.temperature  # by which similarities are divided
        rewards = prediction.extras["rewards"]  # (B, T, M), NaN where none was computed
        is_close = (rewards.abs() <= bound) | ((rewards - self.rule.threshold).abs() <= bound)
        best = rewards.nan_to_num(nan=-math.inf).topk(min(2, rewards.shape[2]), dim=2).values
        is_tied = (best[..., 0] - best[..., -1] <= bound) & (best[..., 0] > self.rule.threshold)
        return (is_close.any(2) | is_tied).any(1)

    @torch.inference_mode()
    def predict_scenarios(self, batch: Batch, scenarios: Mapping[str, Batch]) -> dict[str, dict[str, Prediction]]:
        """See :meth:`models.base.Method.predict_scenarios`; further labels are the comparators."""
        observed = self.backbone.encode(batch.inputs)
        results: dict[str, dict[str, Prediction]] = {}
        for scenario, masked in scenarios.items():
            missing = masked.missing
            tokens, _ = self.complete(masked, observed)
            partial = self.partial(masked)
            scorer, unrecoverable = self.scorer(), self.unrecoverable(masked)
            thresholds = [self.rule.threshold]
            if "threshold" in self.comparators and self.validated_threshold is not None:
                thresholds.append(self.validated_threshold)
            path = select(self.scorer(min(thresholds)), tokens, missing, partial, unrecoverable, is_path_kept=True)
            selection, *limited = (path.at(threshold) for threshold in thresholds)
            results.setdefault(MAIN, {})[scenario] = _prediction(selection, unrecoverable)
            names = tuple(n for n in self.comparators if n in COMPARATORS)
            if names or self.rules:
                lattices = exhaustive(scorer, tokens, missing, partial, unrecoverable)
                candidates = candidates_of(self, masked, observed, lattices)
                others = compare(lattices, selection, batch.target, names, batch.index, self.seed, scenario)
                for name, other in [*others.items(), *self.rules.predict(candidates).items()]:
                    results.setdefault(name, {})[scenario] = _prediction(other, unrecoverable)
            for other in limited:
                results.setdefault("threshold", {})[scenario] = _prediction(other, unrecoverable)
        return results

    def examples(self, batch: Batch) -> tuple[Prediction, dict[str, Tensor]] | None:
        _, completed = self.complete(batch)
        return self(batch), completed

    @property
    def choices(self) -> pd.DataFrame:
        return self.rules.fitted

    @property
    def learner(self) -> Learner | None:
        return None if self.rules.critic is None else CriticLearner(self, self.rules.critic)

    def calibrate(self, batches: Iterable[tuple[Batch, Mapping[str, Batch]]]) -> pd.DataFrame:
        """Choose the threshold on validation data, and warn where the paper's rule loses to discarding."""
        accuracy, discard, best = validate_selection(self, batches)
        self.validated_threshold = best
        self.rules.fit()
        if self.chooses_threshold:
            self.rule.threshold = best
        chosen = "accept nothing" if math.isinf(best) else f"{best:g}"
        log.info("selection threshold chosen on the validation split: %s", chosen)
        losing = {s: (by[0.0], discard[s]) for s, by in accuracy.items() if by[0.0] < discard[s]}
        if losing:
            text = ", ".join(f"{s}: {100 * a:.1f} against {100 * d:.1f}" for s, (a, d) in losing.items())
            log.warning(
                "selection by the paper's rule loses to discarding on validation data (accuracy in %%: %s). The "
                "recoveries mislead the backbone: %s model.selection.threshold=auto",
                text,
                self.advice,
            )
        rows = [(s, t, a, discard[s]) for s, by in accuracy.items() for t, a in by.items()]
        return pd.DataFrame(rows, columns=["scenario", "threshold", "accuracy", "discard"])


class CriticLearner(Learner):
    """The critic of a method."""

    file = "critic.safetensors"

    def __init__(self, dymo: DyMo, critic: Critic) -> None:
        self.dymo, self.critic = dymo, critic
        settings = dymo.rules.settings
        self.settings = {"critic_width": settings.critic_width, "critic_epochs": settings.critic_epochs}

    def learn(self, batches: Iterable[Batch]) -> None:
        self.critic.learn(examples_of(self.dymo, batches, self.dymo.seed), self.dymo.seed)

    def save(self, path: Path, about: Mapping[str, Any]) -> None:
        self.critic.save(path, about)

    def load(self, path: Path) -> dict[str, Any]:
        backbone = self.dymo.backbone
        return self.critic.load(path, backbone.feature_width, len(backbone.modalities))


def _prediction(selection: Selection | Prediction, unrecoverable: Tensor | None) -> Prediction:
    if isinstance(selection, Prediction):
        return selection
    return Prediction(
        selection.logits,
        extras={
            "final_missing": selection.final_missing,
            "accepted": selection.accepted,
            "rewards": selection.rewards,
            "iterations": selection.iterations,
            **({} if unrecoverable is None else {"unrecoverable": unrecoverable}),
        },
    )
