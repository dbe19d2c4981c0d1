"""Recovery methods from the configuration: one imputer, or one per modality (``imputer=Chain``)."""

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
from trainers.config.build import build_encoder, make, plain
from trainers.config.compose import CONFIGS
from utils.errors import UserError


def build_imputer(cfg: DictConfig, data: MultimodalDataModule, pretrained: bool = True) -> Imputer:
    """The recovery method of ``cfg.imputer``, untrained."""
    if "parts" not in cfg.imputer:
        return _build_imputer(cfg.imputer, "imputer", data, pretrained)
    imputers: dict[str, Imputer] = {}
    for label, names in imputer_parts(cfg).items():
        imputer = _build_imputer(cfg.imputer.parts[label], f"imputer.parts.{label}", data, pretrained)
        imputers |= dict.fromkeys(names, imputer)
    return make(cfg.imputer.module, "imputer", modalities=data.modalities, parts=imputers)


def imputer_parts(cfg: DictConfig) -> dict[str, list[str]]:
    """Modalities of each different imputer in ``cfg.imputer.parts``, by the name of the first one in the order of the
    data set; {} for an imputer without parts."""
    chosen = cfg.imputer.get("parts") or {}
    labels: dict[str, list[str]] = {}
    for name in cfg.dataset.modalities:
        if name in chosen:
            label = next((label for label in labels if plain(chosen[label]) == plain(chosen[name])), str(name))
            labels.setdefault(label, []).append(str(name))
    return labels


def imputer_nodes(cfg: DictConfig) -> dict[str, DictConfig]:
    """Key and node of the imputer, or of the parts of one that has parts."""
    if "parts" not in cfg.imputer:
        return {"imputer": cfg.imputer}
    return {f"imputer.parts.{name}": node for name, node in (cfg.imputer.parts or {}).items()}


def _build_imputer(node: DictConfig, where: str, data: MultimodalDataModule, pretrained: bool) -> Imputer:
    arguments: dict[str, Any] = {}
    kinds = {m.name: m.kind for m in data.modalities}
    if "modalities" in inspect.signature(get_object(node.module._target_)).parameters:
        arguments["modalities"] = data.modalities
    for part in ("encoder", "decoder"):
        if part in node:
            arguments[f"{part}s"] = {m.name: _imputer_network(node, where, part, m, kinds) for m in data.modalities}
    for part, kind in (("image_encoder", "image"), ("table_encoder", "table")):
        if part in node:
            fitting = [m for m in data.modalities if m.kind == kind]
            if len(fitting) != 1:
                raise UserError(
                    f"{where}={node.name} is for one image and one table, the data set has {len(fitting)} modalities "
                    f"of kind {kind}: choose one that fits, {fitting_imputers(kinds)}"
                )
            arguments[part] = build_encoder(node[part], f"{where}.{part}", fitting[0], pretrained)
    return make(node.module, where, **arguments)


def _imputer_network(node: DictConfig, where: str, part: str, modality: Modality, kinds: Mapping[str, str]) -> Any:
    """The network of a modality in ``encoders`` or ``decoders`` of the node, else the one for 28 x 28 images, else that
    which the method builds for the shape."""
    of_modalities = node.get(f"{part}s") or {}
    if modality.name in of_modalities:
        return make(of_modalities[modality.name], f"{where}.{part}s.{modality.name}")
    if modality.kind != "image" or modality.shape[1:] != (28, 28):
        if default := _default_network(node):
            widths = inspect.signature(default).parameters.keys() - {"part", "modality"}
            return default(part, modality, **{width: node.module[width] for width in widths})
        raise _no_network(node, where, part, modality.name, f"{modality.kind} of shape {modality.shape}", kinds)
    return make(node[part], f"{where}.{part}", channels=modality.shape[0])


def _default_network(node: DictConfig) -> Callable[..., nn.Module] | None:
    """The method's hook that builds networks for any modality, if it has one."""
    return getattr(get_object(node.module._target_), "default_network", None)


def _no_network(node: DictConfig, where: str, part: str, name: str, what: str, kinds: Mapping[str, str]) -> UserError:
    return UserError(
        f"{where}={node.name} has no {part} for modality '{name}' ({what}): name one in {where}.{part}s.{name}, "
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
        if method is None or {"oracle", "parts"} & set(method.needs) or not method.fits(list(kinds.values())):
            continue
        names = tuple(name for name, kind in kinds.items() if _recovers(method, kind))
        by_names.setdefault(names, []).append(file.stem)
    texts = []
    for names, imputers in sorted(by_names.items(), key=lambda item: -len(item[0])):
        scope = "all modalities" if len(names) == len(kinds) else f"{', '.join(names)} only"
        texts.append(f"imputer={' or '.join(imputers)} ({scope})")
    return ", ".join(texts)


def check_imputer(cfg: DictConfig, kinds: Mapping[str, str]) -> None:
    """What is known of ``cfg.imputer`` before the data are packed.

    Args:
        kinds: modality name -> kind.

    Raises:
        UserError: a part that does not fit, or a table or text without a network; all problems, one line each.
    """
    problems = []
    for where, node in imputer_nodes(cfg).items():
        method, name = get_object(node.module._target_), where.removeprefix("imputer.parts.")
        if name != where and not (method.fits(list(kinds.values())) and _recovers(method, kinds[name])):
            problems.append(
                f"{where}={node.name}: cannot recover '{name}' ({kinds[name]}) in this data set; choose one that fits, "
                f"{fitting_imputers(kinds)}"
            )
            continue
        for part in () if _default_network(node) else ("encoder", "decoder"):
            for modality, kind in kinds.items() if part in node else ():
                if kind != "image" and modality not in (node.get(f"{part}s") or {}):
                    problems.append(str(_no_network(node, where, part, modality, kind, kinds)))
    if problems:
        raise UserError("\n".join(problems))


def recovered_modalities(cfg: DictConfig, kinds: Mapping[str, str]) -> list[str]:
    """Names of the modalities that ``cfg.imputer`` can recover.

    Args:
        kinds: modality name -> kind.
    """
    if "parts" in cfg.imputer:
        return [name for name in kinds if name in (cfg.imputer.parts or {})]
    method = get_object(cfg.imputer.module._target_)
    return [name for name, kind in kinds.items() if _recovers(method, kind)]


def _recovers(method: type[Imputer], kind: str) -> bool:
    return method.recovers is None or kind in method.recovers
