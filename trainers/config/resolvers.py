"""Resolvers of the configuration files: the functions behind ``${name:argument}``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from models.dymo.prototypes import EUCLIDEAN

SHORT_METRIC = {EUCLIDEAN: "_EU"}


def variant(base: str, metric: str | None, recovery_aware: float | bool) -> str:
    """Label of a model's run directory, so that variants never share one."""
    rate = share(recovery_aware)
    aware = f"_aware{'' if rate == 0.5 else format(rate, 'g')}" if rate else ""
    return base + SHORT_METRIC.get(str(metric), "") + aware


def share(value: float | bool) -> float:
    """``recovery_aware`` as a share of the batches: true stands for one half."""
    return 0.5 if value is True else float(value)


def subsets_per_step(modalities: Sequence[str]) -> int:
    """K of the published recipes: 5 for five modalities and more, 2 for fewer (1 for a single one)."""
    return 5 if len(modalities) >= 5 else min(2, 2 ** len(modalities) - 1)


def given_epochs(published: int | None, *, _root_: Any) -> int | None:
    """How long a method trains whose published recipe has a number of its own: ``dataset.baselines.max_epochs`` where
    that was set, the recipe's where it is still the data set's ``usual_epochs``."""
    node = _root_.dataset.baselines
    usual = OmegaConf.is_interpolation(node, "max_epochs") or "max_epochs" not in node
    return published if usual else node.max_epochs


def times(factor: int, epochs: int | None) -> int | None:
    """A multiple of the epochs of another stage. None stays None; ``validate`` reports it."""
    return None if epochs is None else factor * epochs


def epochs_of_share(share: float, whole: Any) -> int | None:
    """``share`` of a number, rounded down. Anything but a number gives None; ``validate`` reports it."""
    number = isinstance(whole, int | float) and not isinstance(whole, bool)
    return math.floor(share * whole + 1e-9) if number else None


def udml_warmup(reference: bool, clean_share: float, weights_share: float, epochs: Any) -> int | None:
    """Epochs of UDML of which none can be the best: those before its weights set in; with ``reference`` those up to and
    including the first noisy one, as in the release (50 clean of 100: the best is searched from epoch 51 on). One epoch
    is left."""
    before = epochs_of_share(clean_share if reference else weights_share, epochs)
    return None if before is None else min(before + reference, epochs - 1)


def modality_name(modality: str | int, modalities: Sequence[str]) -> str:
    """A modality's name from its name or number. Anything else stays as it is; ``validate`` reports it."""
    number = str(modality)
    return str(modalities[int(number)]) if number.isdecimal() and int(number) < len(modalities) else number


def register_resolvers() -> None:
    OmegaConf.register_new_resolver("modality_name", modality_name, replace=True)
    OmegaConf.register_new_resolver("variant", variant, replace=True)
    OmegaConf.register_new_resolver("share", share, replace=True)
    OmegaConf.register_new_resolver("subsets_per_step", subsets_per_step, replace=True)
    OmegaConf.register_new_resolver("times", times, replace=True)
    OmegaConf.register_new_resolver("given_epochs", given_epochs, replace=True)
    OmegaConf.register_new_resolver("part", epochs_of_share, replace=True)
    OmegaConf.register_new_resolver("udml_warmup", udml_warmup, replace=True)
    OmegaConf.register_new_resolver("when", lambda condition, value: value if condition else None, replace=True)
    OmegaConf.register_new_resolver("count", lambda listed: len(listed or ()), replace=True)
