"""`Plan`: what a run is, read from its configuration."""

from __future__ import annotations

import logging
import os
import re
import shlex
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from datasets.base import MultimodalDataModule
from datasets.missingness import Scenario, parse_scenario, parse_scenarios
from models.dymo.gaussian import GaussianParameters
from models.dymo.prototypes import COSINE, EUCLIDEAN
from trainers.config.build import build_data, make_demo_data, method_class
from trainers.config.checks.machine import gpu_numbers
from trainers.config.compose import MODALITIES, PARTS
from trainers.config.imputers import imputer_parts
from trainers.config.resolvers import SHORT_METRIC, modality_name
from utils.errors import UserError

log = logging.getLogger(__name__)
ON_RECOVERIES = ("recovery_aware", "consistency")  # settings of a model that is trained with recoveries
PART = "imputer"  # starts Plan.part_of of a part of an imputer


def resolve_metric(cfg: DictConfig) -> None:
    """Set ``distance_metric`` to the given value, else to that of the file ``model.gaussian``, else to cosine.

    Raises:
        UserError: the Gaussian file was made with another metric than the one that is given.
    """
    path = cfg.model.get("gaussian")
    if not path:
        cfg.distance_metric = cfg.distance_metric or COSINE
        return
    metric = GaussianParameters.load(Path(path)).metric
    if cfg.distance_metric is None:
        log.info("distance metric of %s: %s", path, metric)
        cfg.distance_metric = metric
    elif cfg.distance_metric != metric:
        raise UserError(
            f"{path} was made with {metric}, but distance_metric={cfg.distance_metric} is asked for: "
            "leave distance_metric out, or give the file of that metric"
        )


class Plan:
    """Configuration of one run, and what follows from it.

    Args:
        cfg: composed and resolved configuration.
        part_of: of a prerequisite, the keys that lead to it from the model that is trained, of a part of an imputer
            PART and its label; () = the run itself.
    """

    def __init__(self, cfg: DictConfig, part_of: tuple[str, ...] = ()) -> None:
        self.cfg, self.part_of = cfg, part_of

    # ---- the model ---------------------------------------------------------------------------------------------------

    @property
    def has_backbone(self) -> bool:
        """Whether the model stands on a backbone (DyMo) instead of being trained itself."""
        return "backbone" in self.cfg.model

    @property
    def uses_selection(self) -> bool:
        """Whether DyMo selects among recoveries: those of an imputer, or the model's own (``model.select``)."""
        return self.has_backbone or bool(self.cfg.model.get("select"))

    @property
    def fills_missing(self) -> bool:
        """Whether stage test fills in what is missing before the model sees it (``model.use_imputer``)."""
        return bool(self.cfg.model.get("use_imputer"))

    @property
    def recovery_comparators(self) -> tuple[str, ...]:
        """Comparators of a method whose inputs an imputer completes; () with a selection, which has its own."""
        is_of_selection = "selection" in self.cfg.model
        return () if is_of_selection or not self.fills_missing else tuple(self.cfg.model.get("comparators") or ())

    @property
    def uses_recoveries(self) -> bool:
        """Whether an imputer recovers what is missing in stage test."""
        return self.has_backbone or self.fills_missing

    @property
    def predicts_with_imputer(self) -> bool:
        """Whether predictions read recoveries of the imputer."""
        return self.uses_recoveries or self.is_built_on_imputer

    @property
    def trains_on_recoveries(self) -> bool:
        """Whether stage fit shows the model recoveries of the imputer."""
        return any(self.trainable.get(key) for key in ON_RECOVERIES)

    @property
    def is_built_on_imputer(self) -> bool:
        """Whether the model contains the trained imputer."""
        return bool(method_class(self.trainable).built_on)

    @property
    def needs_imputer_weights(self) -> bool:
        """Whether the imputer is trained or fitted before it can recover anything."""
        return "weights" in get_object(self.cfg.imputer.module._target_).needs

    @property
    def trainable(self) -> DictConfig:
        """The node of the model that stage fit trains."""
        return self.cfg.model.backbone if self.has_backbone else self.cfg.model

    @property
    def checkpoint_path(self) -> str | None:
        """Checkpoint to use instead of the one that stage fit would make."""
        return self.trainable.get("transformer_checkpoint") or self.trainable.get("checkpoint")

    @property
    def distance_metric(self) -> str | None:
        """Metric of the selection, or of the prototypes of a backbone."""
        if self.uses_selection and not self.has_backbone:
            return self.cfg.distance_metric or COSINE
        return self.trainable.module.get("distance_metric")

    @property
    def monitor(self) -> str | None:
        """Logged value that chooses the checkpoint: that of the model, else of the data set. With
        ``dataset.monitor=null`` every model keeps its last epoch."""
        if self.cfg.dataset.monitor is None:
            return None
        return self.trainable.get("monitor") if "monitor" in self.trainable else self.cfg.dataset.monitor

    @property
    def label(self) -> str:
        """Name of the tested model in results: with the imputer that completes its inputs, or with DyMo that selects
        among its own recoveries."""
        name = str(self.cfg.model.name)
        if self.uses_selection and not self.has_backbone:
            return f"{name}_DyMo{SHORT_METRIC.get(str(self.distance_metric), '')}"
        return f"{name}_{self.cfg.imputer.name}" if self.fills_missing else name

    @property
    def option(self) -> str:
        """The option ``model=`` of this run: the name without its variant."""
        modality = self.cfg.model.get("modality")
        name = str(self.cfg.model.name)
        if modality is not None:
            return name.removesuffix(f"_{modality_name(modality, list(self.cfg.dataset.modalities))}")
        return re.sub(r"(_EU)?(_aware[\d.]*)?(_consistent[\d.e+-]*)?$", "", name)

    def command(self, stage: str) -> str:
        """Command that runs another stage: with the user's overrides, or composed from the configuration."""
        cfg = self.cfg
        if HydraConfig.initialized():
            of_this_run = ("stages", "overwrite", "missing.test")
            overrides = [o for o in HydraConfig.get().overrides.task if o.split("=")[0].lstrip("+~") not in of_this_run]
            overrides = [o for o in overrides if f"@{PARTS}." not in o]  # imputer.modalities stands for them
        else:
            overrides = [f"dataset={cfg.dataset.name}", f"model={self.option}"]
            overrides += [f"imputer={cfg.imputer.name}"] if stage == "impute" else []
            if stage == "impute" and "parts" in cfg.imputer:
                named = ", ".join(f"{name}: {node.name}" for name, node in cfg.imputer.parts.items())
                overrides += [f"{MODALITIES}={{{named}}}"]
            overrides += [f"distance_metric={self.distance_metric}"] if self.distance_metric == EUCLIDEAN else []
            overrides += [f"model.{key}={self.trainable[key]}" for key in ON_RECOVERIES if self.trainable.get(key)]
            overrides += [f"seed={cfg.seed}"] if cfg.seed else []
            overrides += [f"dataset.fold={self.fold}"] if self.fold is not None else []
            overrides += [f"name={cfg.name}"] if cfg.name != "default" else []
        quoted = (o if re.fullmatch(r"[\w@%+=:,./~\[\]-]+", o) else shlex.quote(o) for o in overrides)
        return f"python run.py {' '.join([*quoted, f'stages=[{stage}]'])}"

    # ---- prerequisites -----------------------------------------------------------------------------------------------

    @cached_property
    def prerequisites(self) -> dict[str, Self]:
        """Label -> run of a model that stage fit trains first, in the run directory that it has by itself.

        ``model.prerequisites`` names nodes of the model that are complete models: ``once``, or ``each_modality``, which
        sets ``modality`` of the node; the labels are then ``<node>_<modality>``.
        """
        return self._prerequisites(self.cfg, ())

    def _prerequisites(self, cfg: DictConfig, path: tuple[str, ...]) -> dict[str, Self]:
        """Prerequisites of the node at ``path`` below the one that is trained. Those of a prerequisite come before its
        node is taken out of the configuration, which resolves what depends on the modality."""
        runs = {}
        for key, how in (self._node(cfg, *path).get("prerequisites") or {}).items():
            modalities = list(cfg.dataset.modalities) if how == "each_modality" else [None]
            for modality in modalities:
                part_cfg = deepcopy(cfg)
                node = self._node(part_cfg, *path, str(key))
                if modality is not None:
                    node.modality = modality
                if (noise := self._node(cfg, *path).get("noise")) is not None and node.get("noise") is None:
                    OmegaConf.set_struct(node, False)
                    node.noise = deepcopy(noise)
                below = self._prerequisites(part_cfg, (*path, str(key)))
                part_cfg.model = OmegaConf.create(OmegaConf.to_container(node, resolve=True))
                OmegaConf.set_struct(part_cfg, True)
                part = type(self)(part_cfg, (*path, str(key)))
                part.__dict__.update(data=self.data, prerequisites=below)
                runs[str(key) if modality is None else f"{key}_{modality}"] = part
        return runs

    def _node(self, cfg: DictConfig, *path: str) -> DictConfig:
        """The node that is trained, or one below it, in a copy of the configuration."""
        node = cfg.model.backbone if self.has_backbone else cfg.model
        for key in path:
            node = node[key]
        return node

    @cached_property
    def imputer_parts(self) -> dict[str, Self]:
        """Label -> run of each different part of ``imputer=Chain`` as its imputer, {} with another imputer; see
        :func:`trainers.config.imputers.imputer_parts`."""
        runs = {}
        for label in imputer_parts(self.cfg):
            cfg = deepcopy(self.cfg)
            cfg.imputer = OmegaConf.create(OmegaConf.to_container(cfg.imputer.parts[label], resolve=True))
            OmegaConf.set_struct(cfg, True)
            runs[label] = type(self)(cfg, (PART, label))
            runs[label].__dict__["data"] = self.data
        return runs

    # ---- data and machine --------------------------------------------------------------------------------------------

    @property
    def fold(self) -> int | None:
        """Fold of the cross-validation; None without one."""
        return self.cfg.dataset.get("fold")

    @cached_property
    def data(self) -> MultimodalDataModule:
        return build_data(self.cfg)

    def prepare_data(self) -> None:
        """Make the demo data if they are asked for, and pack what is not packed yet."""
        if self.cfg.dataset.get("demo"):
            make_demo_data(self.cfg)
        self.data.prepare()

    @cached_property
    def scenarios(self) -> list[Scenario]:
        """Scenarios of stage test."""
        names = list(self.cfg.dataset.modalities)
        return parse_scenarios(list(self.cfg.missing.test), len(names), names)

    @cached_property
    def training_scenario(self) -> Scenario:
        """What is missing in the training data, whatever the method hides on top."""
        return parse_scenario(self.cfg.missing.train)

    @cached_property
    def device(self) -> torch.device:
        """That of this process, as Lightning chooses it: ``trainer.devices`` may name GPUs."""
        if self.cfg.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
            gpus = gpu_numbers(self.cfg) or list(range(torch.cuda.device_count()))
            # Lightning sets LOCAL_RANK in the processes that it adds; SLURM numbers those of a machine.
            number = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
            return torch.device("cuda", gpus[number % len(gpus)])
        return torch.device("cpu")
