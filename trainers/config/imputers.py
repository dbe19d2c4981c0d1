"""Build a recovery method with its networks, or say which imputer fits the data instead."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from torch import nn

from datasets.base import MultimodalDataModule
from datasets.batch import Modality
from models.imputers.base import Imputer
from trainers.config.build import build_encoder, make
from trainers.config.compose import CONFIGS
from utils.errors import UserError


def build_imputer(cfg: DictConfig, data: MultimodalDataModule, pretrained: bool = True) -> Imputer:
    """The recovery method of ``cfg.imputer``, untrained."""
    arguments: dict[str, Any] = {}
    kinds = {m.name: m.kind for m in data.modalities}
    if "modalities" in inspect.signature(get_object(cfg.imputer.module._target_)).parameters:
        arguments["modalities"] = data.modalities
    for part in ("encoder", "decoder"):
        if part in cfg.imputer:
            arguments[f"{part}s"] = {m.name: _imputer_network(cfg, part, m, kinds) for m in data.modalities}
    for part, kind in (("image_encoder", "image"), ("table_encoder", "table")):
        if part in cfg.imputer:
            fitting = [m for m in data.modalities if m.kind == kind]
            if len(fitting) != 1:
                raise UserError(
                    f"imputer={cfg.imputer.name} is for one image and one table, {cfg.dataset.name} has {len(fitting)} "
                    f"modalities of kind {kind}: choose one that fits, {fitting_imputers(kinds)}"
                )
            arguments[part] = build_encoder(cfg.imputer[part], f"imputer.{part}", fitting[0], pretrained)
    return make(cfg.imputer.module, "imputer", **arguments)


def _imputer_network(cfg: DictConfig, part: str, modality: Modality, kinds: Mapping[str, str]) -> Any:
    """The network of a modality in ``imputer.encoders`` or ``imputer.decoders``, else the one for 28 x 28 images, else
    that which the method builds for the shape."""
    of_modalities = cfg.imputer.get(f"{part}s") or {}
    if modality.name in of_modalities:
        return make(of_modalities[modality.name], f"imputer.{part}s.{modality.name}")
    if modality.kind != "image" or modality.shape[1:] != (28, 28):
        if default := _default_network(cfg):
            widths = inspect.signature(default).parameters.keys() - {"part", "modality"}
            return default(part, modality, **{width: cfg.imputer.module[width] for width in widths})
        raise _no_network(cfg, part, modality.name, f"{modality.kind} of shape {modality.shape}", kinds)
    return make(cfg.imputer[part], f"imputer.{part}", channels=modality.shape[0])


def _default_network(cfg: DictConfig) -> Callable[..., nn.Module] | None:
    """The method's hook that builds networks for any modality, if it has one."""
    return getattr(get_object(cfg.imputer.module._target_), "default_network", None)


def _no_network(cfg: DictConfig, part: str, name: str, what: str, kinds: Mapping[str, str]) -> UserError:
    return UserError(
        f"imputer {cfg.imputer.name} has no {part} for modality '{name}' ({what}): name one in imputer.{part}s.{name}, "
        f"see MoPoE in configs/recipe/MST.yaml, or choose another imputer that fits, {fitting_imputers(kinds)}"
    )


def fitting_imputers(kinds: Mapping[str, str]) -> str:
    """The imputers that fit a data set, for messages: ``imputer=Mean or Zero (all modalities)``.

    Args:
        kinds: modality name -> kind, of all modalities.
    """
    by_names: dict[tuple[str, ...], list[str]] = {}
    for file in sorted(CONFIGS.glob("imputer/*.yaml")):
        target = OmegaConf.select(OmegaConf.load(file), "module._target_")
        method = get_object(target) if target else None
        if method is None or "oracle" in method.needs or not method.fits(list(kinds.values())):
            continue
        names = tuple(name for name, kind in kinds.items() if method.recovers is None or kind in method.recovers)
        by_names.setdefault(names, []).append(file.stem)
    texts = []
    for names, imputers in sorted(by_names.items(), key=lambda item: -len(item[0])):
        scope = "all modalities" if len(names) == len(kinds) else f"{', '.join(names)} only"
        texts.append(f"imputer={' or '.join(imputers)} ({scope})")
    return ", ".join(texts)


def check_imputer_networks(cfg: DictConfig, kinds: Mapping[str, str]) -> None:
    """What is known of the networks of ``cfg.imputer`` before the data are packed.

    Args:
        kinds: modality name -> kind.

    Raises:
        UserError: a table or text for which it has none.
    """
    for part in () if _default_network(cfg) else ("encoder", "decoder"):
        for name, kind in kinds.items() if part in cfg.imputer else ():
            if kind != "image" and name not in (cfg.imputer.get(f"{part}s") or {}):
                raise _no_network(cfg, part, name, kind, kinds)
