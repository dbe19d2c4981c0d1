"""Which stages a model has a use for, and what stage fit trains."""

from __future__ import annotations

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf


def fitted_node(cfg: DictConfig) -> str:
    """Key of the model that stage fit trains: the backbone, where there is one."""
    return "model.backbone" if "backbone" in cfg.model else "model"


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
