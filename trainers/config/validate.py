"""Configuration checks: every problem at once, each with its mend, before any work starts."""

from __future__ import annotations

import importlib
import inspect
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from datasets.missingness import parse_scenario, parse_scenarios
from models.dymo.prototypes import DISTANCE_METRICS
from trainers.config.build import build_loggers, build_modulation, build_noise, build_trainer
from trainers.config.help import STAGES
from utils.checks import check_choice, check_number, nearest
from utils.errors import UserError


def weights_exist(weights: str) -> bool:
    """Whether ``weights`` may be had: false only of what is written like a path and is not there."""
    is_path = weights.startswith((".", "/", "~")) or weights.count("/") > 1
    return not is_path or Path(weights).exists()


def uses_imputer(cfg: DictConfig) -> bool:
    """Whether the model has a use for the imputer, in training or test."""
    if "use_imputer" not in cfg.model:  # DyMo and its backbone
        return True
    return bool(cfg.model.use_imputer or get_object(cfg.model.module._target_).built_on)


def trained_nodes(cfg: DictConfig, node: str) -> list[str]:
    """Keys of the models that stage fit trains: ``node``, and what it is built on."""
    parts = OmegaConf.select(cfg, f"{node}.prerequisites") or {}
    return [node, *(key for part in parts for key in trained_nodes(cfg, f"{node}.{part}"))]


def stages_without_use(cfg: DictConfig) -> dict[str, str]:
    """Stage -> why, of those that the model has no use for; they are skipped."""
    reasons = {}
    if not uses_imputer(cfg):
        reasons["impute"] = f"{cfg.model.name} uses no imputer (it would with model.use_imputer=true)"
    if "gaussian" not in cfg.model:
        reasons["gaussian"] = f"{cfg.model.name} has no use for Gaussian parameters"
    elif not cfg.model.get("select", True):
        reasons["gaussian"] = f"{cfg.model.name} has no use for Gaussian parameters (it would with model.select=true)"
    return reasons


def validate(cfg: DictConfig) -> None:
    """Check a composed configuration.

    Raises:
        UserError: all problems, one line each.
    """
    problems: list[str] = []

    def need(condition: bool, message: str) -> None:
        if not condition:
            problems.append(message)

    def attempt(function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except UserError as error:
            problems.extend(str(error).splitlines())

    def one_of(key: str, known: Sequence[Any]) -> None:
        problems.extend(check_choice(cfg, key, known))

    def number(key: str, low: float, high: float = math.inf, *, whole: bool = False) -> None:
        problems.extend(check_number(cfg, key, low, high, whole=whole))

    for key in ("stages", "missing.test", "model.comparators", "model.validation"):
        value = OmegaConf.select(cfg, key)
        if isinstance(value, str | int | float | DictConfig):
            # Nothing else can be checked: every letter would count as an entry.
            raise UserError(f"{key}={value}: must be a list, write {key}=[{value}]")
    if "training_defaults" not in cfg.dataset:
        # Nothing else can be read: the model takes its defaults from there.
        raise UserError(
            f"dataset={cfg.dataset.name} has no block 'training_defaults', from which models take their defaults: "
            "see configs/dataset/PolyMNIST.yaml"
        )
    if "forms" in cfg.dataset and cfg.dataset.form not in cfg.dataset.forms:
        # Nothing else can be read: the data module takes its settings from there.
        raise UserError(f"dataset.form={cfg.dataset.form}: must be one of {', '.join(cfg.dataset.forms)}")
    stages = list(cfg.stages or [])
    for stage in stages:
        need(stage in STAGES, f"stages: unknown stage '{stage}'{nearest(str(stage), list(STAGES))}")
    need(bool(stages), f"stages is empty: choose from {', '.join(STAGES)}")
    m = len(cfg.dataset.modalities)
    need(bool(cfg.missing.test), "missing.test is empty: name at least one scenario, for example none")
    modalities = list(cfg.dataset.modalities)
    named = {"test": attempt(parse_scenarios, list(cfg.missing.test or []), m, modalities)}
    for split in ("train", "val"):
        scenario = attempt(parse_scenario, cfg.missing[split])
        if scenario is not None:
            attempt(scenario.check, m, modalities)
            named[split] = [scenario]
    for split, scenarios in named.items():
        for scenario in scenarios or []:
            need(
                split != "train" or scenario.noise is None,
                f"missing.train={scenario.name}: noise on training batches is model.noise, for example "
                "model.noise={levels: [4], clean_share: 0}",
            )
            for file in scenario.files if ("test" if split == "test" else "fit") in stages else ():
                need(file.is_file(), f"missing.{split}: mask file {file} does not exist")
    need(cfg.seed is not None, "seed=null: must be a whole number")
    number("seed", 0, whole=True)
    number("missing.seed", 0, whole=True)
    one_of("distance_metric", (None, *DISTANCE_METRICS))
    number("dataset.train_fraction", 1e-9, 1)
    number("dataset.test_batch_size", 1, whole=True)
    one_of("dataset.residence", ("auto", "device", "host", "mmap"))
    need("/" not in str(cfg.name), f"name={cfg.name}: must not hold a slash")
    need(str(cfg.name) not in ("", ".", ".."), f"name={cfg.name}: must be the name of a folder")
    one_of("dataset.monitor", ("val_accuracy", "val_auroc", "val_f1_macro", "val_loss", None))
    one_of("dataset.training_defaults.schedule", (None, "cosine"))
    one_of("gaussian.split", ("train", "val"))
    number("gaussian.batch_size", 1, whole=True)

    if cfg.trainer.compile is not None:
        from torch._dynamo import list_backends  # slow to import

        need(
            cfg.trainer.compile in list_backends(exclude_tags=()),
            f"trainer.compile={cfg.trainer.compile}: must be null or one of {', '.join(list_backends())}",
        )
    for split in ("train", "val"):
        value = cfg.trainer[f"limit_{split}_batches"]
        number_of_batches = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        need(
            value is None or number_of_batches or (isinstance(value, float) and 0 < value <= 1),
            f"trainer.limit_{split}_batches={value}: must be null, a whole number of batches (1 or more), or a share "
            "of them (above 0.0, up to 1.0)",
        )
    fitted = "model.backbone" if "backbone" in cfg.model else "model"
    for part in (fitted, "imputer"):
        need(
            OmegaConf.select(cfg, f"{part}.module._target_") is not None,
            f"{part} has no module: an experiment or recipe made for another one was added, leave it out or choose the "
            f"{part.partition('.')[0]} that it is for",
        )
    for part in (fitted, "imputer"):
        number(f"{part}.training.max_epochs", 1, whole=True)
        number(f"{part}.training.batch_size", 1, whole=True)
        number(f"{part}.training.patience", 1, whole=True)
        number(f"{part}.training.accumulate_grad_batches", 1, whole=True)
        number(f"{part}.training.gradient_clip_val", 0)
    start = OmegaConf.select(cfg, f"{fitted}.noise.start_epoch")
    for part in trained_nodes(cfg, fitted):
        epochs = OmegaConf.select(cfg, f"{part}.training.max_epochs")
        if isinstance(start, int) and isinstance(epochs, int):
            need(
                start < epochs,
                f"{fitted}.noise.start_epoch={start}: training of {part} ends after {epochs} epochs, so that none "
                "has noise; start earlier",
            )
        number(f"{part}.training.warmup_epochs", 0, whole=True)
        training = OmegaConf.select(cfg, f"{part}.training")
        if training is not None and (warmup := training.get("warmup_epochs")):
            need(
                warmup < training.max_epochs,
                f"{part}.training.warmup_epochs={warmup}: none of {training.max_epochs} epochs could be the best, set "
                f"it below {part}.training.max_epochs",
            )
    if OmegaConf.select(cfg, f"{fitted}.module._target_") is not None:
        hidden = [s.name for s in named.get("test") or [] if s.hides] if "test" in stages else []
        attempt(_check_method, cfg, OmegaConf.select(cfg, fitted), stages, hidden)
        attempt(build_noise, OmegaConf.select(cfg, fitted))
        attempt(build_modulation, OmegaConf.select(cfg, fitted))
    for part, key in ((fitted, "module"), ("model", "selector")):
        method = _target(OmegaConf.select(cfg, f"{part}.{key}"))
        if hasattr(method, "check"):
            problems.extend(method.check(cfg, part))
    uses_recoveries = "backbone" in cfg.model or cfg.model.get("use_imputer")
    if uses_recoveries and "test" in stages and "oracle" in getattr(_target(cfg.imputer.get("module")), "needs", ()):
        need(
            bool(cfg.imputer.get("allow_oracle")),
            f"imputer={cfg.imputer.name} reads the content that is missing: add imputer.allow_oracle=true if this is "
            "a study of the selection rule",
        )
    for key in ("model.transformer_checkpoint", "model.checkpoint", "model.gaussian", "imputer.checkpoint"):
        path = OmegaConf.select(cfg, key)
        need(path is None or Path(str(path)).is_file(), f"{key}: there is no file {path}")
    initialised = {f"dataset.encoders.{name}": node for name, node in cfg.dataset.encoders.items()}
    initialised |= {f"model.encoders.{name}": node for name, node in (cfg.model.get("encoders") or {}).items()}
    initialised |= {
        f"imputer.{key}": cfg.imputer[key] for key in ("image_encoder", "table_encoder") if key in cfg.imputer
    }
    for key, node in initialised.items():
        weights = str(node.get("weights", "none"))
        if getattr(_target(node), "is_transformer", False):
            need(weights_exist(weights), f"{key}.weights: there is no {weights}: give a folder or file, or none")
            continue
        need(
            weights in ("none", "imagenet") or Path(weights).is_file(),
            f"{key}.weights: there is no file {weights}: give one, or none",
        )
    for name, node in cfg.dataset.encoders.items():
        for key, of_data in (("image_size", "side"), ("length", "text_length")):
            need(
                not isinstance(node.get(key), int) or node[key] == cfg.dataset.get(of_data, node[key]),
                f"dataset.encoders.{name}.{key}={node.get(key)} is not dataset.{of_data}={cfg.dataset.get(of_data)}: "
                f"the encoder would be given another size than it is made for, set dataset.{of_data}",
            )
    for key in getattr(_target(cfg.dataset.get("module")), "folders", ()):
        path = cfg.dataset.get(key)
        need(path is None or Path(str(path)).is_dir(), f"dataset.{key}: there is no folder {path}")
    _check_targets(cfg, problems)
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))


def _check_method(cfg: DictConfig, model: DictConfig, stages: Sequence[str], hidden: Sequence[str]) -> None:
    """What the method's class says that it needs and can do, see :class:`models.base.IncompleteClassifier`.

    Args:
        model: the node that is trained.
        hidden: test scenarios that hide something.

    Raises:
        UserError: all problems, one line each.
    """
    try:
        method = get_object(model.module._target_)
    except (ImportError, ValueError):
        return  # _check_targets says it
    problems = []
    names = list(cfg.dataset.modalities)
    if foreign := sorted(set(model.get("encoders") or {}) - set(names)):
        problems.append(
            f"model.encoders.{foreign[0]}: {cfg.dataset.name} has {', '.join(names)}; this setting, or "
            "experiment, is for other data"
        )
    # DyMo's own models need nothing of this, and their names may not resolve before the other checks.
    name = cfg.model.name if "use_imputer" in cfg.model else method.__name__
    unused = stages_without_use(cfg)
    from_complete = [s for s in ("impute", "gaussian") if s in stages and s not in unused]
    if cfg.missing.train != "none" and from_complete:
        verb = "learn" if len(from_complete) > 1 else "learns"
        problems.append(
            f"missing.train={cfg.missing.train}: stage{'s' * (len(from_complete) > 1)} {' and '.join(from_complete)} "
            f"{verb} from complete training data; set missing.train=none or leave that out"
        )
    if method.needs_complete_training and cfg.missing.train != "none" and "fit" in stages:
        problems.append(f"missing.train={cfg.missing.train}: {name} trains on complete data, set missing.train=none")
    if method.max_modalities and len(names) > method.max_modalities:
        problems.append(
            f"model {name} is for at most {method.max_modalities} modalities, {cfg.dataset.name} has {len(names)}: "
            "choose another model"
        )
    if cfg.model.get("use_imputer") and not method.accepts_imputer:
        problems.append(f"model.use_imputer=true: {name} takes no imputer, leave it out")
    trained_on_masks = OmegaConf.select(model, "module.masks.kind") not in (None, "none")
    if method.needs_imputer and hidden and not cfg.model.get("use_imputer") and not trained_on_masks:
        problems.append(
            f"model {name} classifies complete inputs only, but missing.test has {hidden[0]}: add "
            "model.use_imputer=true, or set missing.test=[none]"
        )
    if (
        method.built_on
        and (kind := getattr(_target(cfg.imputer.get("module")), "__name__", None)) not in method.built_on
    ):
        problems.append(
            f"model {name} is built on imputer={' or '.join(method.built_on)}, not {cfg.imputer.name}"
            f"{'' if kind in (None, cfg.imputer.name) else f' ({kind})'}"
        )
    if method.needs_index and "fit" in stages and _processes(cfg) != 1:
        problems.append(f"model {name} keeps values of every training row in one process: set trainer.devices=1")
    needed = inspect.signature(method).parameters.get("prerequisites")
    if needed is not None and needed.default is inspect.Parameter.empty and not model.get("prerequisites"):
        problems.append(f"model.prerequisites=null: {name} is made of trained models, leave that out")
    if method.transformers_only:
        own = model.get("encoders") or {}
        encoders = {n: own.get(n) or cfg.dataset.encoders[n] for n in names}
        other = [n for n, node in encoders.items() if not getattr(_target(node), "is_transformer", False)]
        if other:
            problems.append(
                f"model {name} works inside transformers, and the encoder of '{other[0]}' is no "
                "models.encoders.pretrained.PretrainedEncoder: give one in model.encoders, see "
                "CMPT in configs/recipe/Digits.yaml, or choose another data set"
            )
    if method.encoder_view == "vector" and not isinstance(model.get("vector_width"), int):
        problems.append(f"model {name}: vector_width={model.get('vector_width')} must be a whole number")
    if "modality" in model and model.module.modality not in names:
        problems.append(f"model.modality={model.modality}: {cfg.dataset.name} has {', '.join(names)}")
    if problems:
        raise UserError("\n".join(problems))


def _target(node: DictConfig | None) -> Any:
    """The object that ``_target_`` of a node names, or None, which ``_check_targets`` reports."""
    module, _, name = str(node.get("_target_") if node else None).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)  # Hydra's would log the error a second time
    except (ImportError, ValueError):
        return None


def check_trainer(cfg: DictConfig) -> None:
    """Find what Lightning would refuse on this machine once the data are packed: the device, the trainer, the loggers.

    Raises:
        UserError: all problems, one line each.
    """
    if not {"impute", "fit", "gaussian", "test"} & set(cfg.stages):
        return
    if cfg.trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(
            f"trainer.accelerator={cfg.trainer.accelerator}: PyTorch finds no GPU on this machine; set trainer=cpu, or "
            "trainer=default to use a GPU where there is one"
        )
    problems = []
    try:
        # Neither starts processes nor writes; Lightning's remarks on the device come once, when a stage begins.
        with _quiet():
            build_trainer(cfg, logger=False, enable_checkpointing=False, enable_model_summary=False)
    except UserError as error:
        problems.append(str(error))
    if {"impute", "fit"} & set(cfg.stages):
        try:
            build_loggers(cfg, Path(cfg.paths.output))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _processes(cfg: DictConfig) -> Any:
    """How many ``trainer.devices`` asks for, as far as it says; of ``auto`` all GPUs, where there are any."""
    if cfg.trainer.devices != "auto":
        return cfg.trainer.devices
    return max(1, torch.cuda.device_count()) if cfg.trainer.accelerator in ("auto", "gpu", "cuda") else 1


def _check_targets(cfg: DictConfig, problems: list[str]) -> None:
    """Every ``_target_`` exists and takes the arguments that the configuration gives it."""

    def walk(node: Any, key: str) -> None:
        if not isinstance(node, DictConfig):
            return
        if "_target_" in node:
            try:
                target = get_object(node._target_)
            except (ImportError, ValueError) as error:
                problems.append(f"{key}._target_={node._target_}: {str(error).splitlines()[0]}")
                return
            parameters = inspect.signature(target).parameters
            if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                for given in map(str, node):
                    if not given.startswith("_") and given not in parameters:
                        problems.append(
                            f"{key}.{given}: {node._target_} takes no '{given}'{nearest(given, list(parameters))}"
                        )
        for name in node:
            plain = not OmegaConf.is_missing(node, name) and not OmegaConf.is_interpolation(node, str(name))
            if plain and isinstance(node[name], DictConfig):
                walk(node[name], ".".join(filter(None, (key, str(name)))))

    walk(cfg, "")
