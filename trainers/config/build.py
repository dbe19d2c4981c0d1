"""Every call of ``hydra.utils.instantiate``: from configuration to objects."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import TQDMProgressBar
from torch import nn

from datasets.base import MultimodalDataModule
from datasets.batch import Modality
from datasets.demo.folders import demo_folder, ensure_demo
from datasets.missingness import parse_scenario
from datasets.noise import TrainingNoise
from models.base import IncompleteClassifier, Method
from models.baselines.modulation import GradientModulation
from models.dymo.backbone import Backbone
from models.dymo.gaussian import GaussianParameters
from models.encoders.pooled import PooledEncoder
from models.imputers.base import Imputer
from trainers.quiet import quiet_lightning
from utils.errors import UserError, first_line
from utils.progress import is_interactive
from utils.signatures import constructor_arguments
from utils.user_metrics import UserMetrics

Part = TypeVar("Part")
# Arguments of data modules that are no plain setting: :func:`build_data` sets them, and a few classes take a name.
PASSED_ON = ("store", "name", "missing_train", "missing_val", "missing_seed", "seed")


def make(node: DictConfig, where: str, **arguments: Any) -> Any:
    """Build what a node describes, with further arguments.

    Raises:
        UserError: it cannot be built; ``where`` names the node.
    """
    try:
        # Objects are handed over after Hydra's part: it would turn data classes among them into mappings.
        return instantiate(node, _convert_="all", _partial_=True)(**arguments)
    except InstantiationException as error:
        raise UserError(f"config '{where}': {str(error.__cause__ or error).splitlines()[0]}") from error
    except (ImportError, TypeError, ValueError) as error:
        raise UserError(f"config '{where}' ({node.get('_target_')}): {first_line(error)}") from error


def data_class(cfg: DictConfig) -> type[MultimodalDataModule]:
    """The class of the data module, for what it declares of its arguments."""
    return get_object(cfg.dataset.module._target_)


def data_arguments(cfg: DictConfig) -> dict[str, Any]:
    """Arguments of the data module: the keys of ``cfg.dataset`` that its constructor names, and ``dataset.module``.

    With ``dataset.demo=true`` the root is the folder of the demo data.
    """
    module = plain(cfg.dataset.module)
    target = get_object(module.pop("_target_"))
    given = (*PASSED_ON, *module)
    names = [name for name in constructor_arguments(target) if name in cfg.dataset and name not in given]
    arguments = module | {name: plain(cfg.dataset[name]) for name in names}
    if cfg.dataset.get("demo"):
        arguments["root"] = str(demo_folder(arguments["root"]))
    return arguments


def plain(node: Any) -> Any:
    """A node of the configuration as resolved plain values."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def store_path(cfg: DictConfig) -> Path:
    """Where the packed store of ``cfg.dataset`` is: as given, or under ``paths.cache`` by a hash of its source."""
    if cfg.dataset.store:
        return Path(cfg.dataset.store)
    source = data_class(cfg).packing_arguments(data_arguments(cfg))
    # Under the names that the front ends had when stores were first packed, which stay valid so.
    text = json.dumps(source, sort_keys=True, default=str).replace("datasets.readers.", "datasets.")
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    return Path(cfg.paths.cache) / f"{cfg.dataset.name}-{digest}"


def build_data(cfg: DictConfig) -> MultimodalDataModule:
    """The data module of ``cfg.dataset`` with the masks of ``cfg.missing``."""
    node = OmegaConf.create({"_target_": cfg.dataset.module._target_, **data_arguments(cfg)})
    return make(
        node,
        "dataset",
        store=str(store_path(cfg)),
        missing_train=parse_scenario(cfg.missing.train),
        missing_val=parse_scenario(cfg.missing.val),
        missing_seed=cfg.missing.seed,
        seed=cfg.seed,
    )


def make_demo_data(cfg: DictConfig) -> None:
    """Make the demo data of ``cfg.dataset`` beside its root, unless they are there.

    Raises:
        UserError: the data set has no root, or the folder holds something else.
    """
    ensure_demo(demo_folder(cfg.dataset.root), get_object(cfg.dataset.demo_maker))


def build_encoder(
    node: DictConfig, where: str, modality: Modality, pretrained: bool = True, vector_width: int | None = None
) -> nn.Module:
    """An encoder; the columns of a table and the vocabulary of a text are those of the data.

    Args:
        pretrained: false leaves out the initial ``weights`` that the configuration names, where a checkpoint is to
            replace them.
        vector_width: for one vector of this width in place of tokens: as the encoder does it, if it takes the argument,
            else by :class:`PooledEncoder`.
    """
    arguments: dict[str, Any] = {}
    if modality.kind == "table":
        arguments["cardinalities"] = modality.cardinalities
        arguments["n_continuous"] = modality.shape[0] - len(modality.cardinalities)
    parameters = inspect.signature(get_object(node._target_)).parameters
    if modality.vocabulary and "vocabulary" in parameters:
        arguments["vocabulary"] = modality.vocabulary
    arguments |= {key: size for key, size in sizes_of(modality).items() if key in parameters and key not in node}
    if not pretrained and "weights" in node:
        arguments["weights"] = "none"
    makes_vector = "vector_width" in parameters
    if vector_width is not None and makes_vector:
        arguments["vector_width"] = vector_width
    encoder = make(node, where, **arguments)
    encoder.takes_cells = "missing" in inspect.signature(encoder.forward).parameters
    if hasattr(encoder, "check_modality"):  # of models.encoders.pretrained, whose import takes seconds
        encoder.check_modality(modality)
    return encoder if vector_width is None or makes_vector else PooledEncoder(encoder, vector_width)


def sizes_of(modality: Modality) -> dict[str, Any]:
    """Arguments of encoders that are sizes of their input."""
    shape = modality.shape
    if modality.kind == "image":
        return {"channels": shape[0], "image_size": list(shape[1:])}
    if modality.kind == "video":
        return {"channels": shape[1], "image_size": list(shape[2:])}
    if modality.kind == "audio":
        return {"channels": 1, "image_size": list(shape)}
    if modality.kind == "series":
        return {"length": shape[0], "channels": shape[1]}
    if modality.kind == "text" and len(shape) == 1:
        return {"length": shape[0]}
    return {}


def encoders_of_data(cfg: DictConfig) -> dict[str, DictConfig]:
    """Modality -> node of its encoder: that of ``dataset.encoders``, or else that of its kind."""
    of_data, modalities = cfg.dataset.get("encoders") or {}, cfg.dataset.modalities
    if "encoder_sets" not in cfg.dataset:
        return dict(of_data)
    of_kinds = cfg.dataset.encoder_sets[cfg.dataset.encoder_set]
    named = {name: of_kinds[options.kind] for name, options in modalities.items() if options.kind in of_kinds}
    return named | dict(of_data)


def encoder_nodes(cfg: DictConfig, model: DictConfig | None = None) -> dict[str, tuple[str, DictConfig]]:
    """Modality -> key and node of its encoder: that of ``model.encoders``, or else the data set's."""
    of_model = (model.get("encoders") if model is not None else None) or {}
    return {
        name: (f"model.encoders.{name}", of_model[name]) if name in of_model else (f"dataset.encoders.{name}", node)
        for name, node in encoders_of_data(cfg).items()
    }


def build_encoders(
    cfg: DictConfig,
    data: MultimodalDataModule,
    pretrained: bool = True,
    vector_width: int | None = None,
    model: DictConfig | None = None,
) -> dict[str, nn.Module]:
    """The encoders of the data set (of the ``model``, where it has its own), by modality: their tokens, or one vector
    of ``vector_width``."""
    nodes = encoder_nodes(cfg, model)
    return {
        m.name: build_encoder(nodes[m.name][1], nodes[m.name][0], m, pretrained, vector_width) for m in data.modalities
    }


def method_class(model: DictConfig) -> type[IncompleteClassifier]:
    """The class that a model's node builds, for its capabilities."""
    return get_object(model.module._target_)


def build_model(
    cfg: DictConfig,
    model: DictConfig,
    data: MultimodalDataModule,
    pretrained: bool = True,
    prerequisites: Mapping[str, IncompleteClassifier] | None = None,
    imputer: Imputer | None = None,
) -> IncompleteClassifier:
    """A trainable method with the encoders of the data set.

    Args:
        prerequisites: the models on which it is built, by label.
        imputer: the one on which it is built.
    """
    vector_width = model.vector_width if method_class(model).encoder_view == "vector" else None
    encoders = build_encoders(cfg, data, pretrained, vector_width, model)
    parts = {k: v for k, v in (("prerequisites", prerequisites), ("imputer", imputer)) if v}
    return make(
        model.module,
        "model",
        modalities=data.modalities,
        num_classes=data.num_classes,
        task=data.task,
        encoders=encoders,
        **parts,
    )


def build_noise(model: DictConfig) -> TrainingNoise | None:
    """The noise on the training batches of a model's node, None = none.

    Raises:
        UserError: an unknown key, or an impossible value.
    """
    return _optional_part(model, "noise", TrainingNoise)


def build_modulation(model: DictConfig) -> GradientModulation | None:
    """The gradient modulation of a model's node, None = none.

    Raises:
        UserError: an unknown key, or an impossible value.
    """
    return _optional_part(model, "modulation", GradientModulation)


def _optional_part(model: DictConfig, key: str, kind: type[Part]) -> Part | None:
    """``kind`` with the arguments that the model's ``key`` gives, None where that is null or not there."""
    node = model.get(key)
    if node is None:
        return None
    if not isinstance(node, DictConfig):
        raise UserError(f"model.{key}={node}: must be null or a mapping, {{}} for the defaults")
    values: Any = OmegaConf.to_container(node, resolve=True)
    known = list(inspect.signature(kind).parameters)
    if unknown := set(values) - set(known):
        raise UserError(f"model.{key}.{min(unknown)}: there is no such key, known are {', '.join(known)}")
    return kind(**values)


def selector_class(model: DictConfig) -> type[Method]:
    """The class that selects recoveries."""
    return get_object(model.selector._target_)


def build_selector(
    cfg: DictConfig, backbone: Backbone, imputer: Imputer | None, parameters: GaussianParameters, tail: str = "robust"
) -> Method:
    """The selection of ``cfg.model.selector`` on a trained backbone.

    Args:
        tail: replaces ``model.selection.tail=auto``.
    """
    return make(
        cfg.model.selector,
        "model.selector",
        backbone=backbone,
        imputer=imputer,
        parameters=parameters,
        rule=build_selection(cfg, tail),
        comparators=tuple(cfg.model.comparators),
        seed=cfg.seed,
        chooses_threshold=cfg.model.selection.threshold == "auto",
        settings=make(cfg.model.rules, "model.rules") if cfg.model.get("rules") else None,
    )


def build_selection(cfg: DictConfig, tail: str = "robust") -> Any:
    """The selection rule; ``threshold: auto`` starts as 0 and is set from validation data by the test stage.

    Args:
        tail: replaces ``tail: auto``.
    """
    node = cfg.model.selection.copy()
    if node.tail == "auto":
        node.tail = tail
    if node.threshold == "auto":
        node.threshold = 0.0
    return make(node, "model.selection")


def build_metrics(cfg: DictConfig, data: MultimodalDataModule) -> UserMetrics:
    """The metrics of ``cfg.metrics``, checked; their arguments for the task and the number of classes are those of the
    data, unless they are given.

    Raises:
        UserError: a metric that does not fit the data.
    """
    metrics = {}
    of_data = {"task": data.task, "num_classes": data.num_classes, "num_labels": data.num_classes}
    if data.task == "multilabel":
        of_data["ignore_index"] = -1
    for name, node in (cfg.get("metrics") or {}).items():
        known = inspect.signature(get_object(node._target_)).parameters
        arguments = {key: value for key, value in of_data.items() if key in known and key not in node}
        metrics[str(name)] = make(node, f"metrics.{name}", **arguments)
    result = UserMetrics(metrics, data.task, data.num_classes)
    result.check()
    return result


def build_loggers(cfg: DictConfig, directory: Path) -> list[pl.loggers.Logger]:
    """The loggers of ``cfg.logger`` (metrics.csv is written besides, always)."""
    loggers = []
    for name, node in cfg.logger.items():
        loggers.append(make(node, f"logger.{name}", save_dir=str(directory)))
    return loggers


def set_float32_precision(name: str, device: torch.device) -> None:
    """Set ``trainer.float32_precision`` for this process, on a GPU alone. PyTorch's own default is TF32 in convolutions
    and float32 in matrix products."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision(name)
        torch.backends.cudnn.allow_tf32 = name != "highest"


def build_trainer(cfg: DictConfig, **arguments: Any) -> pl.Trainer:
    """Lightning's Trainer with ``cfg.trainer``."""
    settings = OmegaConf.to_container(cfg.trainer, resolve=True)
    assert isinstance(settings, dict)
    for key in ("compile", "float32_precision"):  # not the Trainer's: see trainers.fit and set_float32_precision
        settings.pop(key)
    settings["enable_progress_bar"] &= is_interactive(sys.stdout)
    if settings["enable_progress_bar"]:
        arguments["callbacks"] = [*arguments.get("callbacks", ()), TQDMProgressBar(refresh_rate=10)]
    try:
        with quiet_lightning():
            return pl.Trainer(**{**{str(k): v for k, v in settings.items()}, **arguments})
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"config 'trainer': {first_line(error)}") from error
