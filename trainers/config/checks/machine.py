"""Checks of the machine: what Lightning would refuse once the data are packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig

from trainers.config.build import build_loggers, build_trainer
from utils.errors import UserError


def check_trainer(cfg: DictConfig) -> None:
    """Find what Lightning would refuse on this machine once the data are packed: the device, the trainer, the loggers.

    Raises:
        UserError: all problems, one line each.
    """
    if not {"impute", "fit", "gaussian", "test", "predict"} & set(cfg.stages):
        return
    if cfg.trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(
            f"trainer.accelerator={cfg.trainer.accelerator}: PyTorch finds no GPU on this machine; set trainer=cpu, or "
            "trainer=default to use a GPU where there is one"
        )
    problems = []
    try:
        # Neither starts processes nor writes.
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


def number_of_processes(cfg: DictConfig) -> int:
    """Number of processes that ``trainer.devices`` and ``trainer.num_nodes`` ask for; ``auto`` and -1 mean all GPUs, if
    there are any. At least 1, also for values that :func:`check_trainer` refuses."""
    return max(1, _devices(cfg)) * max(1, _number(cfg.trainer.num_nodes))


def gpu_numbers(cfg: DictConfig) -> list[int]:
    """The numbers of the devices that ``trainer.devices`` names, as ``[2,3]`` or ``"2,3"``; empty if it does not."""
    devices = cfg.trainer.devices
    if not isinstance(devices, ListConfig):
        devices = [name for name in str(devices).split(",") if name.strip()] if "," in str(devices) else []
    return [_number(device) for device in devices]


def _devices(cfg: DictConfig) -> int:
    devices = cfg.trainer.devices
    if named := gpu_numbers(cfg):
        return len(named)
    if devices in ("auto", "-1", -1):
        return torch.cuda.device_count() if cfg.trainer.accelerator in ("auto", "gpu", "cuda") else 1
    return _number(devices)


def _number(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return 1
