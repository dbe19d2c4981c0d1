"""Resolvers of the configuration files: the functions behind ``${name:argument}``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

SHORT_METRIC = {"squared_euclidean": "_EU"}


def variant(base: str, metric: str | None, recovery_aware: float | bool, consistency: float = 0.0) -> str:
    """Label of a model's run directory, so that variants never share one."""
    rate = fraction_of_batches(recovery_aware)
    aware = f"_aware{'' if rate == 0.5 else format(rate, 'g')}" if rate else ""
    consistent = f"_consistent{consistency:g}" if consistency else ""
    return base + SHORT_METRIC.get(str(metric), "") + aware + consistent


def fraction_of_batches(value: float | bool) -> float:
    """``recovery_aware`` as a fraction of the batches: true stands for one half."""
    return 0.5 if value is True else float(value)


def subsets_per_step(modalities: Sequence[str]) -> int:
    """K of the published recipes: 5 for five modalities and more, 2 for fewer (1 for a single one)."""
    count = len(modalities or ())
    return 5 if count >= 5 else min(2, 2**count - 1)


def published_epochs(published: int | None, *, _root_: Any) -> int | None:
    """Epochs of a method whose published recipe has its own number: ``published`` while
    ``dataset.training_defaults.max_epochs`` still is the data set's ``usual_epochs``, else what was set there."""
    node = _root_.dataset.training_defaults
    usual = OmegaConf.is_interpolation(node, "max_epochs") or "max_epochs" not in node
    return published if usual else node.max_epochs


def multiple_of_epochs(factor: int, epochs: int | None) -> int | None:
    """A multiple of the epochs of another stage. None stays None; ``validate`` reports it."""
    return None if epochs is None else factor * epochs


def fraction_of_epochs(fraction: float | None, epochs: Any) -> int | None:
    """A fraction of the epochs, rounded down; None without a fraction. Other epochs than a number give None, which
    ``validate`` reports."""
    is_number = isinstance(epochs, int | float) and not isinstance(epochs, bool)
    return math.floor(fraction * epochs + 1e-9) if is_number and fraction is not None else None


def udml_warmup(reference: bool, clean_share: float, weights_share: float, epochs: Any) -> int | None:
    """Epochs of UDML of which none can be the best: those before its weights set in; with ``reference`` those up to and
    including the first noisy one, as in the release (50 clean of 100: the best is searched from epoch 51 on). One epoch
    is left."""
    before = fraction_of_epochs(clean_share if reference else weights_share, epochs)
    return None if before is None else min(before + reference, epochs - 1)


def modality_name(modality: str | int, modalities: Sequence[str]) -> str:
    """A modality's name from its name or number. Anything else stays as it is; ``validate`` reports it."""
    number, names = str(modality), list(modalities or ())
    return str(names[int(number)]) if number.isdecimal() and int(number) < len(names) else number


def each_missing(modalities: Sequence[str] | None) -> list[str]:
    """Scenarios in which nothing is missing, or one of several modalities."""
    count = len(modalities or ())
    return ["none", *(f"whole_{i}" for i in range(count) if count > 1)]


def register_resolvers() -> None:
    OmegaConf.register_new_resolver("each_missing", each_missing, replace=True)
    OmegaConf.register_new_resolver("modality_name", modality_name, replace=True)
    OmegaConf.register_new_resolver("variant", variant, replace=True)
    OmegaConf.register_new_resolver("fraction_of_batches", fraction_of_batches, replace=True)
    OmegaConf.register_new_resolver("subsets_per_step", subsets_per_step, replace=True)
    OmegaConf.register_new_resolver("multiple_of_epochs", multiple_of_epochs, replace=True)
    OmegaConf.register_new_resolver("published_epochs", published_epochs, replace=True)
    OmegaConf.register_new_resolver("fraction_of_epochs", fraction_of_epochs, replace=True)
    OmegaConf.register_new_resolver("udml_warmup", udml_warmup, replace=True)
    OmegaConf.register_new_resolver("when", lambda condition, value: value if condition else None, replace=True)
    OmegaConf.register_new_resolver("length_of", lambda listed: len(listed or ()), replace=True)
