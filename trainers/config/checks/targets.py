"""Checks of classes: every ``_target_`` exists and takes the arguments that the configuration gives it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from torchmetrics import Metric

from utils.checks import nearest
from utils.errors import first_line
from utils.metrics import METRICS
from utils.signatures import known_arguments

EXAMPLE = "torchmetrics.classification.MulticlassCohenKappa"
OF_SELECTION = ("accepted_share", "iterations")  # further rows of results.csv


def target_of(node: DictConfig | None) -> Any:
    """The object that ``_target_`` of a node names, or None, which :func:`check_targets` reports."""
    module, _, name = str(node.get("_target_") if node else None).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)  # Hydra's would log the error a second time
    except (ImportError, ValueError):
        return None


def check_targets(cfg: DictConfig, key: str = "") -> Iterator[str]:
    """Classes that do not exist, and arguments that they do not take, in a node and everything below it."""
    if "_target_" in cfg:
        try:
            target = get_object(cfg._target_)
        except (ImportError, ValueError) as error:
            yield f"{key}._target_={cfg._target_}: {first_line(error)}"
            return
        known = known_arguments(target)
        if known is not None:
            for given in map(str, cfg):
                if not given.startswith("_") and given not in known:
                    yield f"{key}.{given}: {cfg._target_} takes no '{given}'{nearest(given, known)}"
    for name in map(str, cfg):
        is_plain = not OmegaConf.is_missing(cfg, name) and not OmegaConf.is_interpolation(cfg, name)
        if is_plain and isinstance(cfg[name], DictConfig):
            yield from check_targets(cfg[name], f"{key}.{name}" if key else name)


def check_metrics(cfg: DictConfig) -> Iterator[str]:
    """Metrics of the user: named as no other, and classes of torchmetrics."""
    metrics = cfg.get("metrics")
    if metrics is None:
        return
    if not isinstance(metrics, DictConfig):
        yield f"metrics={metrics}: must be a mapping such as {{kappa: {{_target_: {EXAMPLE}}}}}"
        return
    for name, node in ((str(name), metrics[name]) for name in metrics):
        target = target_of(node) if isinstance(node, DictConfig) else None
        if name in (*METRICS, *OF_SELECTION):
            yield f"metrics.{name}: there is a metric of this name already, choose another"
        elif not isinstance(node, DictConfig) or "_target_" not in node:
            yield f"metrics.{name}: name a class of torchmetrics in metrics.{name}._target_, such as {EXAMPLE}"
        elif target is not None and not (isinstance(target, type) and issubclass(target, Metric)):
            yield f"metrics.{name}._target_={node._target_}: is no metric of torchmetrics, such as {EXAMPLE}"
