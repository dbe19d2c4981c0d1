"""Checks of a method: what its class declares that it needs and can do (:class:`models.base.IncompleteClassifier`)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from datasets.missingness import check_validation
from trainers.config.build import encoders_of_data
from trainers.config.checks.machine import number_of_processes
from trainers.config.checks.scenarios import hiding_test_scenarios
from trainers.config.checks.targets import target_of
from trainers.config.imputers import imputer_nodes
from trainers.config.stages import fitted_node, stages_without_use
from utils.checks import nearest


def check_method(cfg: DictConfig) -> Iterator[str]:
    """What the class of the model that is trained declares, one check after the other."""
    model = OmegaConf.select(cfg, fitted_node(cfg))
    try:
        method = get_object(model.module._target_) if OmegaConf.select(model, "module._target_") else None
    except (ImportError, ValueError):  # check_targets reports it
        method = None
    if method is None:
        return
    # The names of DyMo's models may not resolve before the other checks.
    name = cfg.model.name if "use_imputer" in cfg.model else method.__name__
    for check in (_check_training_data, _check_modalities, _check_imputer, _check_parts, _check_encoders):
        yield from check(cfg, model, method, name)


def check_hooks(cfg: DictConfig) -> Iterator[str]:
    """What method and selector themselves report, by their hook ``check(cfg, part)``."""
    for part, key in ((fitted_node(cfg), "module"), ("model", "selector")):
        method = target_of(OmegaConf.select(cfg, f"{part}.{key}"))
        if hasattr(method, "check"):
            yield from method.check(cfg, part)


def check_oracle(cfg: DictConfig) -> Iterator[str]:
    """An imputer that reads what is missing was allowed to."""
    uses_recoveries = "backbone" in cfg.model or cfg.model.get("use_imputer")
    for key, node in imputer_nodes(cfg).items():
        needs_oracle = "oracle" in getattr(target_of(node.get("module")), "needs", ())
        if uses_recoveries and "test" in (cfg.stages or []) and needs_oracle and not node.get("allow_oracle"):
            yield (
                f"{key}={node.name} reads the content that is missing: add {key}.allow_oracle=true if this is a study "
                "of the selection rule"
            )


def check_parts(cfg: DictConfig) -> Iterator[str]:
    """The parts of ``imputer=Chain`` are of modalities that the data set has."""
    if "parts" not in cfg.imputer:
        return
    parts, names = cfg.imputer.parts or {}, list(cfg.dataset.modalities)
    if not parts:
        example = ", ".join(f"{name}: MoPoE" for name in names)
        yield (
            f"imputer={cfg.imputer.name} has no parts: name an imputer per modality, for example "
            f"'imputer.modalities={{{example}}}'"
        )
    for name in parts:
        if name not in names:
            yield f"imputer.modalities.{name}: {cfg.dataset.name} has no modality '{name}', it has {', '.join(names)}"


def _check_training_data(cfg: DictConfig, model: DictConfig, method: Any, name: str) -> Iterator[str]:
    names, stages = list(cfg.dataset.modalities), list(cfg.stages or [])
    if foreign := sorted(set(model.get("encoders") or {}) - set(names)):
        yield (
            f"model.encoders.{foreign[0]}: {cfg.dataset.name} has {', '.join(names)}; this setting, or "
            "experiment, is for other data"
        )
    unused = stages_without_use(cfg)
    from_complete = [s for s in ("impute", "gaussian") if s in stages and s not in unused]
    if cfg.missing.train != "none" and from_complete:
        verb = "learn" if len(from_complete) > 1 else "learns"
        yield (
            f"missing.train={cfg.missing.train}: stage{'s' * (len(from_complete) > 1)} {' and '.join(from_complete)} "
            f"{verb} from complete training data; set missing.train=none or leave that out"
        )
    if method.needs_complete_training and cfg.missing.train != "none" and "fit" in stages:
        yield f"missing.train={cfg.missing.train}: {name} trains on complete data, set missing.train=none"


def _check_modalities(cfg: DictConfig, model: DictConfig, method: Any, name: str) -> Iterator[str]:
    if method.max_modalities and len(cfg.dataset.modalities) > method.max_modalities:
        yield (
            f"model {name} is for at most {method.max_modalities} modalities, {cfg.dataset.name} has "
            f"{len(cfg.dataset.modalities)}: choose another model"
        )


def _check_comparators(cfg: DictConfig, method: Any, name: str) -> Iterator[str]:
    """Those of a method whose inputs an imputer completes."""
    comparators, known = cfg.model.get("comparators") or (), method.recovery_comparators
    if not comparators:
        return
    option = method.batch_dependent  # the name of a switch of the method, or whether it always is
    is_batch_dependent = bool(cfg.model.module.get(option)) if isinstance(option, str) else bool(option)
    if not known or not method.accepts_imputer:
        yield f"model.comparators: {name} has none, leave it out"
    elif not cfg.model.use_imputer:
        yield "model.comparators: they use recoveries, set model.use_imputer=true"
    elif is_batch_dependent or method.needs_imputer:
        reason = "its predictions depend on the batch" if is_batch_dependent else "it needs complete inputs"
        yield f"model.comparators: {name} cannot be compared with and without recoveries, since {reason}"
    yield from check_validation(cfg.model.validation, len(cfg.dataset.modalities), "model.validation")
    for comparator in comparators:
        if known and comparator not in known:
            yield f"model.comparators: unknown '{comparator}'{nearest(str(comparator), known)}"


def _check_imputer(cfg: DictConfig, model: DictConfig, method: Any, name: str) -> Iterator[str]:
    if cfg.model.get("use_imputer") and not method.accepts_imputer:
        yield f"model.use_imputer=true: {name} takes no imputer, leave it out"
    if "selection" not in cfg.model:
        yield from _check_comparators(cfg, method, name)
    is_trained_on_masks = OmegaConf.select(model, "module.masks.kind") not in (None, "none")
    hidden = hiding_test_scenarios(cfg) if "test" in (cfg.stages or []) else []
    if method.needs_imputer and hidden and not cfg.model.get("use_imputer") and not is_trained_on_masks:
        yield (
            f"model {name} classifies complete inputs only, but missing.test has {hidden[0]}: add "
            "model.use_imputer=true, or set missing.test=[none]"
        )
    kind = getattr(target_of(cfg.imputer.get("module")), "__name__", None)
    if method.built_on and kind not in method.built_on:
        yield (
            f"model {name} is built on imputer={' or '.join(method.built_on)}, not {cfg.imputer.name}"
            f"{'' if kind in (None, cfg.imputer.name) else f' ({kind})'}"
        )


def _check_parts(cfg: DictConfig, model: DictConfig, method: Any, name: str) -> Iterator[str]:
    if method.needs_index and "fit" in (cfg.stages or []) and number_of_processes(cfg) != 1:
        one = "trainer.devices=1 and trainer.num_nodes=1"
        yield f"model {name} keeps values of every training row in one process: set {one}"
    needed = inspect.signature(method).parameters.get("prerequisites")
    if needed is not None and needed.default is inspect.Parameter.empty and not model.get("prerequisites"):
        yield f"model.prerequisites=null: {name} is made of trained models, leave that out"


def _check_encoders(cfg: DictConfig, model: DictConfig, method: Any, name: str) -> Iterator[str]:
    names = list(cfg.dataset.modalities)
    if method.transformers_only:
        chosen, of_data = model.get("encoders") or {}, encoders_of_data(cfg)
        encoders = {n: chosen.get(n) or of_data[n] for n in names}
        other = [n for n, node in encoders.items() if not getattr(target_of(node), "is_transformer", False)]
        if other:
            yield (
                f"model {name} works inside transformers, and the encoder of '{other[0]}' is no "
                "models.encoders.pretrained.PretrainedEncoder: give one in model.encoders, see "
                "CMPT in configs/recipe/Digits.yaml, or choose another data set"
            )
    if method.encoder_view == "vector" and not isinstance(model.get("vector_width"), int):
        yield f"model {name}: vector_width={model.get('vector_width')} must be a whole number"
    if "modality" in model and model.module.modality not in names:
        yield f"model.modality={model.modality}: {cfg.dataset.name} has {', '.join(names)}"
