"""Checks of files: checkpoints, initial weights, raw data; and of the sizes that encoders are made for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from trainers.config.build import encoders_of_data
from trainers.config.checks.targets import target_of
from trainers.config.imputers import imputer_nodes


def weights_exist(weights: str) -> bool:
    """Whether ``weights`` can be loaded: false only for what is written like a path and does not exist."""
    is_path = weights.startswith((".", "/", "~")) or weights.count("/") > 1
    return not is_path or Path(weights).exists()


def check_checkpoints(cfg: DictConfig) -> Iterator[str]:
    """Files of trained parts."""
    of_parts = [f"{key}.checkpoint" for key in imputer_nodes(cfg) if key != "imputer"]
    for key in ("model.transformer_checkpoint", "model.checkpoint", "model.gaussian", "imputer.checkpoint", *of_parts):
        path = OmegaConf.select(cfg, key)
        if path is not None and not Path(str(path)).is_file():
            yield f"{key}: there is no file {path}"


def check_weights(cfg: DictConfig) -> Iterator[str]:
    """Initial weights of encoders."""
    nodes = {f"dataset.encoders.{name}": node for name, node in encoders_of_data(cfg).items()}
    nodes |= {f"model.encoders.{name}": node for name, node in (cfg.model.get("encoders") or {}).items()}
    for where, imputer in imputer_nodes(cfg).items():
        nodes |= {f"{where}.{key}": imputer[key] for key in ("image_encoder", "table_encoder") if key in imputer}
    for key, node in nodes.items():
        weights = str(node.get("weights", "none"))
        if getattr(target_of(node), "is_transformer", False):
            if not weights_exist(weights):
                yield f"{key}.weights: there is no {weights}: give a folder or file, or none"
        elif weights not in ("none", "imagenet") and not Path(weights).is_file():
            yield f"{key}.weights: there is no file {weights}: give one, or none"


def check_input_sizes(cfg: DictConfig) -> Iterator[str]:
    """Encoders are made for the size that the data set gives them."""
    for name, node in encoders_of_data(cfg).items():
        for key, of_data in (("image_size", "side"), ("length", "text_length")):
            value = node.get(key)
            if isinstance(value, int) and value != cfg.dataset.get(of_data, value):
                yield (
                    f"dataset.encoders.{name}.{key}={value} is not dataset.{of_data}={cfg.dataset.get(of_data)}: "
                    f"the encoder would be given another size than it is made for, set dataset.{of_data}"
                )


def check_folders(cfg: DictConfig) -> Iterator[str]:
    """Folders of raw files that the data module reads."""
    for key in getattr(target_of(cfg.dataset.get("module")), "folders", ()):
        path = cfg.dataset.get(key)
        if path is not None and not Path(str(path)).is_dir():
            yield f"dataset.{key}: there is no folder {path}"
