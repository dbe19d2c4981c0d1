"""What the stages of one run share: configuration, data, and where the artefacts of each part are."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from datasets.base import MultimodalDataModule
from datasets.missingness import Scenario, parse_scenario, parse_scenarios
from models.base import IncompleteClassifier, Method
from models.baselines.base import Completed
from models.dymo.backbone import Backbone
from models.dymo.gaussian import SUFFIX, GaussianParameters
from models.dymo.prototypes import COSINE, EUCLIDEAN
from models.imputers.base import Imputer
from trainers.config.build import (
    build_data,
    build_imputer,
    build_model,
    build_selector,
    data_arguments,
    data_class,
    make_demo_data,
    method_class,
)
from trainers.config.compose import compose_config
from trainers.config.resolvers import SHORT_METRIC, modality_name
from trainers.config.validate import validate
from utils import weights as checkpoints
from utils.errors import UserError
from utils.inputs import KEY as INPUTS
from utils.inputs import from_architecture, input_differences
from utils.run_directory import RunDirectory, file_hash
from utils.safe_pickle import read_tensors

log = logging.getLogger(__name__)
# Keys of a model that its training does not depend on (a modality is part of its module).
NOT_OF_FIT = (
    *("transformer_checkpoint", "checkpoint", "gaussian", "use_imputer", "modality", "prerequisites"),
    *("select", "selector", "selection", "comparators", "validation"),
)

# In the settings of runs with temporal_blur at even levels; earlier windows began one frame too early.
CENTRED = "even windows end one frame later"

# How recoveries are drawn from what an imputer has learned: arguments that its training does not depend on.
RECOVERY = ("sample", "draw_seed", "reference", "conditioning", "private_prior", "max_iter")


def open_run(*overrides: str) -> Context:
    """The parts of a run for a notebook: ``open_run("dataset=Digits", "seed=1").load_model()``."""
    cfg = compose_config(*overrides)
    validate(cfg)
    resolve_metric(cfg)
    return Context(cfg)


def resolve_metric(cfg: DictConfig) -> None:
    """Settle ``distance_metric``: as given, else that of ``model.gaussian``, else cosine.

    Raises:
        UserError: the Gaussian file was made with another metric than the one asked for.
    """
    path = cfg.model.get("gaussian")
    if not path:
        cfg.distance_metric = cfg.distance_metric or COSINE
        return
    found = GaussianParameters.load(Path(path)).metric
    if cfg.distance_metric is None:
        log.info("distance metric of %s: %s", path, found)
        cfg.distance_metric = found
    elif cfg.distance_metric != found:
        raise UserError(
            f"{path} was made with {found}, but distance_metric={cfg.distance_metric} is asked for: "
            "leave distance_metric out, or give the file of that metric"
        )


class Context:
    """One run.

    Args:
        cfg: composed and resolved configuration.
        part_of: keys below the model that is trained, of a model on which it is built; () = the model itself.
    """

    def __init__(self, cfg: DictConfig, part_of: tuple[str, ...] = ()) -> None:
        self.cfg, self.part_of = cfg, part_of

    # ---- configuration -----------------------------------------------------------------------------------------------

    @property
    def has_backbone(self) -> bool:
        """Whether the model stands on a backbone (DyMo) instead of being trained itself."""
        return "backbone" in self.cfg.model

    @property
    def selects(self) -> bool:
        """Whether DyMo decides what is accepted: recoveries of an imputer, or the model's own (``model.select``)."""
        return self.has_backbone or bool(self.cfg.model.get("select"))

    @property
    def recovers(self) -> bool:
        """Whether an imputer recovers what is missing in stage test."""
        return self.has_backbone or self.completes

    @property
    def trainable(self) -> DictConfig:
        """The node of the model that stage fit trains."""
        return self.cfg.model.backbone if self.has_backbone else self.cfg.model

    @property
    def distance_metric(self) -> str | None:
        if self.selects and not self.has_backbone:
            return self.cfg.distance_metric or COSINE
        return self.trainable.module.get("distance_metric")

    @property
    def monitor(self) -> str | None:
        """What chooses the checkpoint: the data set's, unless the model says otherwise. Null is the last epoch, with
        ``dataset.monitor=null`` of every model, on equal terms."""
        if self.cfg.dataset.monitor is None:
            return None
        return self.trainable.get("monitor") if "monitor" in self.trainable else self.cfg.dataset.monitor

    @property
    def fold(self) -> int | None:
        """Of the cross-validation, whose folds have run directories of their own; None without one."""
        return self.cfg.dataset.get("fold")

    @property
    def completes(self) -> bool:
        """Whether stage test fills what is missing before the model sees it (``model.use_imputer``)."""
        return bool(self.cfg.model.get("use_imputer"))

    @property
    def built_on_imputer(self) -> bool:
        return bool(method_class(self.trainable).built_on)

    @property
    def label(self) -> str:
        """What the tested model is called in results: with the imputer, where it stands behind one, and with DyMo,
        where that decides over what the model itself recovers."""
        name = str(self.cfg.model.name)
        if self.selects and not self.has_backbone:
            return f"{name}_DyMo{SHORT_METRIC.get(str(self.distance_metric), '')}"
        return f"{name}_{self.cfg.imputer.name}" if self.completes else name

    @cached_property
    def prerequisites(self) -> dict[str, Context]:
        """What stage fit trains first, each in the run directory that it has on its own: label -> its run.

        ``model.prerequisites`` names nodes of the model, each a whole model of its own: ``once``, or
        ``each_modality``, which sets ``modality`` of the node; the labels are then ``<node>_<modality>``.
        """
        return self._built_on(self.cfg, ())

    def _built_on(self, cfg: DictConfig, path: tuple[str, ...]) -> dict[str, Context]:
        """The runs that the node at ``path`` below the one that is trained is built on. Theirs are found before a node
        is taken out of the configuration, which settles what in it depends on the modality."""
        found = {}
        for key, how in (self._in(cfg, *path).get("prerequisites") or {}).items():
            modalities = list(cfg.dataset.modalities) if how == "each_modality" else [None]
            for modality in modalities:
                own = deepcopy(cfg)
                node = self._in(own, *path, str(key))
                if modality is not None:
                    node.modality = modality
                if (noise := self._in(cfg, *path).get("noise")) is not None and node.get("noise") is None:
                    OmegaConf.set_struct(node, False)
                    node.noise = deepcopy(noise)
                below = self._built_on(own, (*path, str(key)))
                own.model = OmegaConf.create(OmegaConf.to_container(node, resolve=True))
                OmegaConf.set_struct(own, True)
                part = Context(own, (*path, str(key)))
                part.__dict__.update(data=self.data, prerequisites=below)
                found[str(key) if modality is None else f"{key}_{modality}"] = part
        return found

    def _in(self, cfg: DictConfig, *path: str) -> DictConfig:
        """The node that is trained, or one below it, in a copy of the configuration."""
        node = cfg.model.backbone if self.has_backbone else cfg.model
        for key in path:
            node = node[key]
        return node

    def build(self) -> IncompleteClassifier:
        """The model untrained, as an empty shape for weights."""
        parts = {label: part.build() for label, part in self.prerequisites.items()}
        imputer = self.load_imputer() if self.built_on_imputer else None
        return build_model(self.cfg, self.trainable, self.data, False, parts, imputer)

    def _directory(self, label: str) -> RunDirectory:
        cfg = self.cfg
        fold = "" if self.fold is None else f"_fold{self.fold}"
        path = Path(cfg.paths.output) / cfg.dataset.name / label / cfg.name / f"seed{cfg.seed}{fold}"
        return RunDirectory(path, cfg.overwrite, data_class(cfg).paths)

    @cached_property
    def directory(self) -> RunDirectory:
        """Of the model that is tested."""
        return self._directory(self.label)

    @cached_property
    def trained(self) -> RunDirectory:
        """Of the model that is trained. A part of other models shares that of the same model by itself, unless that
        holds one with other options: then it has one of its own, so that no option replaces or blocks another."""
        plain = self._directory(self.trainable.name)
        if not self.part_of:
            return plain
        model = self.fit_settings["model"]
        differences = [plain.difference("fit", model, "model"), plain.difference("fit.begun", model, "model")]
        difference = next(filter(None, differences), None)
        if difference is None:
            return plain
        digest = hashlib.sha256(json.dumps(model, sort_keys=True, default=str).encode()).hexdigest()[:8]
        directory = self._directory(f"{self.trainable.name}-{digest}")
        log.info(
            "%s holds %s with another option (%s): %s", plain.path, self.trainable.name, difference, directory.path
        )
        return directory

    @cached_property
    def imputed(self) -> RunDirectory:
        """Of the recovery method."""
        return self._directory(f"imputer_{self.cfg.imputer.name}")

    @cached_property
    def data(self) -> MultimodalDataModule:
        return build_data(self.cfg)

    def prepare_data(self) -> None:
        """Make the demo data where they are asked for, and pack what is not packed yet."""
        if self.cfg.dataset.get("demo"):
            make_demo_data(self.cfg)
        self.data.prepare()

    @cached_property
    def scenarios(self) -> list[Scenario]:
        names = list(self.cfg.dataset.modalities)
        return parse_scenarios(list(self.cfg.missing.test), len(names), names)

    @cached_property
    def trained_scenario(self) -> Scenario:
        """What is missing in training, whatever the method adds to it."""
        return parse_scenario(self.cfg.missing.train)

    @cached_property
    def device(self) -> torch.device:
        if self.cfg.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
            # Lightning sets LOCAL_RANK in the processes that it adds.
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        return torch.device("cpu")

    # ---- paths of artefacts ------------------------------------------------------------------------------------------

    @property
    def checkpoint(self) -> Path:
        """Weights of the trained model: given, or by convention."""
        return Path(self.given) if self.given else self.trained / "checkpoints" / "best.ckpt"

    @property
    def given(self) -> str | None:
        """File to use instead of what stage fit would make."""
        return self.trainable.get("transformer_checkpoint") or self.trainable.get("checkpoint")

    @property
    def gaussian(self) -> Path:
        """Gaussian parameters: given, or by convention."""
        if self.trainable.get("gaussian"):
            return Path(self.trainable.gaussian)
        return self.trained / f"gaussian_{SUFFIX[str(self.distance_metric)]}.safetensors"

    @property
    def imputer_checkpoint(self) -> Path:
        given = self.cfg.imputer.checkpoint
        return Path(given) if given else self.imputed / "checkpoints" / "best.ckpt"

    @property
    def imputer_needs_weights(self) -> bool:
        """Whether the imputer is trained or fitted before it can recover anything."""
        return "weights" in get_object(self.cfg.imputer.module._target_).needs

    def command(self, stage: str) -> str:
        """The command that makes what is missing: the user's own with another stage, where there is one."""
        cfg = self.cfg
        if HydraConfig.initialized():
            of_this_run = ("stages", "overwrite", "missing.test")
            overrides = [o for o in HydraConfig.get().overrides.task if o.split("=")[0].lstrip("+~") not in of_this_run]
        else:
            overrides = [f"dataset={cfg.dataset.name}", f"model={self.option}"]
            overrides += [f"imputer={cfg.imputer.name}"] if stage == "impute" else []
            overrides += [f"distance_metric={self.distance_metric}"] if self.distance_metric == EUCLIDEAN else []
            aware = self.trainable.get("recovery_aware")
            overrides += [f"model.recovery_aware={aware}"] if aware else []
            overrides += [f"seed={cfg.seed}"] if cfg.seed else []
            overrides += [f"dataset.fold={self.fold}"] if self.fold is not None else []
            overrides += [f"name={cfg.name}"] if cfg.name != "default" else []
        quoted = (o if re.fullmatch(r"[\w@%+=:,./~\[\]-]+", o) else shlex.quote(o) for o in overrides)
        return f"python run.py {' '.join([*quoted, f'stages=[{stage}]'])}"

    @property
    def option(self) -> str:
        """The option ``model=`` of this run: the name without its variant."""
        modality = self.cfg.model.get("modality")
        name = str(self.cfg.model.name)
        if modality is not None:
            return name.removesuffix(f"_{modality_name(modality, list(self.cfg.dataset.modalities))}")
        return re.sub(r"(_EU)?(_aware[\d.]*)?$", "", name)

    # ---- settings that outputs depend on -----------------------------------------------------------------------------

    def _plain(self, node: Any, *without: str) -> dict[str, Any]:
        plain = OmegaConf.to_container(node, resolve=True)
        assert isinstance(plain, dict)
        return {str(k): v for k, v in plain.items() if k not in without}

    @property
    def data_settings(self) -> dict[str, Any]:
        # A folder may move; the signature of the packed store says what is in it.
        left_out = {*data_class(self.cfg).resources, *data_class(self.cfg).paths}
        arguments = {key: value for key, value in data_arguments(self.cfg).items() if key not in left_out}
        meta = self.data.store.meta() or {}
        return {"_target_": self.cfg.dataset.module._target_, **arguments, "signature": meta.get("signature")}

    @property
    def fit_settings(self) -> dict[str, Any]:
        cfg = self.cfg
        settings = {
            "seed": cfg.seed,
            "data": self.data_settings,
            "encoders": self._plain(cfg.dataset.encoders),
            "model": self._plain(self.trainable, *NOT_OF_FIT),
            "monitor": self.monitor,
            "missing": {k: cfg.missing[k] for k in ("train", "val", "seed")},
            "precision": cfg.trainer.precision,
            "limits": [cfg.trainer.limit_train_batches, cfg.trainer.limit_val_batches],
        }
        if (noise := self.trainable.get("noise")) and noise.get("operator") == "temporal_blur":
            settings["temporal_blur"] = CENTRED
        for added in ("noise", "modulation"):  # runs from before there were these are valid
            if settings["model"].get(added) is None:
                settings["model"].pop(added, None)
        if self.trainable.get("recovery_aware") or self.built_on_imputer:
            settings["imputer"] = self.recovery_settings
        if self.prerequisites:
            settings["prerequisites"] = {label: part.fit_settings for label, part in self.prerequisites.items()}
        return settings

    @property
    def imputer_settings(self) -> dict[str, Any]:
        cfg = self.cfg
        settings = {
            "seed": cfg.seed,
            "data": self.data_settings,
            "imputer": self._plain(cfg.imputer, "checkpoint", "quality"),
            "limits": [cfg.trainer.limit_train_batches, cfg.trainer.limit_val_batches],
        }
        for key in RECOVERY:
            settings["imputer"]["module"].pop(key, None)
        if cfg.imputer.checkpoint:
            settings["checkpoint"] = file_hash(Path(cfg.imputer.checkpoint))
        return settings

    @property
    def recovery_settings(self) -> dict[str, Any]:
        """What recoveries depend on."""
        module = self._plain(self.cfg.imputer.module)
        return self.imputer_settings | {"recovery": {key: module[key] for key in RECOVERY if key in module}}

    @property
    def gaussian_settings(self) -> dict[str, Any]:
        split = self.cfg.gaussian.split
        settings: dict[str, Any] = {
            "checkpoint": file_hash(self.checkpoint),
            "data": self.data_settings,
            "split": split,
            "student_t": self.cfg.gaussian.student_t,
        }
        # Older parameters counted what the source never had as if it were there.
        if self.data.natural_rows(split) or self.data.natural_cells(split):
            settings["absent"] = "left out"
        return settings

    @property
    def test_settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "checkpoint": file_hash(self.checkpoint),
            "data": self.data_settings,
            "missing": self._plain(self.cfg.missing, "train", "val"),
        }
        # Results of runs that blurred even numbers of frames one frame too early are not those of now.
        noises = [scenario.noise for scenario in self.scenarios if scenario.noise is not None]
        if any(noise.operator == "temporal_blur" and noise.level % 2 == 0 for noise in noises):
            settings["temporal_blur"] = CENTRED
        if not self.has_backbone:  # switches of the prediction, such as a gate
            settings["module"] = self._plain(self.trainable.module, "optimizer", "scheduler")
            option = method_class(self.trainable).batch_dependent
            if option and self.trainable.module.get(option):
                settings["test_batch_size"] = self.cfg.dataset.test_batch_size
        if self.recovers or self.built_on_imputer:
            settings["imputer"] = self._plain(self.cfg.imputer, "checkpoint", "quality", "training")
            if self.imputer_needs_weights:
                settings["imputer"]["weights"] = file_hash(self.imputer_checkpoint)
        if self.cfg.report.features and not self.selects:
            settings["features"] = list(self.cfg.report.features)
        if self.selects and self.has_backbone and any(m.kind == "table" for m in self.data.modalities):
            # Results of tables with observed cells that were judged by parameters without the table are not these.
            settings["partial_tables"] = self.cfg.model.selection.partial_tables or "by tail"
        if self.selects:
            settings["gaussian"] = file_hash(self.gaussian)
            settings["model"] = {k: self._plain(self.cfg.model)[k] for k in ("selection", "comparators", "validation")}
            settings["model"]["selection"]["tail"] = self.tail
        return settings

    @cached_property
    def tail(self) -> str:
        """``model.selection.tail``, where ``auto`` restores the original's with an original checkpoint."""
        tail = str(self.cfg.model.selection.tail)
        if tail != "auto":
            return tail
        kind = checkpoints.checkpoint_kind(read_tensors(self.checkpoint)) if self.given else None
        if kind != "reference_dynamic_transformer":
            return "robust"
        log.info(
            "%s is a checkpoint of the original repository: its tail=float32 is used (to keep ours, set "
            "model.selection.tail=robust)",
            self.checkpoint,
        )
        return "float32"

    # ---- trained parts -----------------------------------------------------------------------------------------------

    def load_model(self) -> IncompleteClassifier:
        """The trained model, in eval mode on the device."""
        model = self.build()
        path = self.checkpoint
        content = read_tensors(path)
        is_ours = checkpoints.checkpoint_kind(content) == "lightning"
        if is_ours:
            self._check_dataset(content, path)
            self._check_architecture(content.get("architecture") or {}, path)
        self.check_inputs(content if is_ours else {}, path)
        model.load(content, path, str(self.trainable.name))
        return model.eval().to(self.device)

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What the inputs of this run mean, see ``MultimodalDataModule.describe_inputs``."""
        return self.data.describe_inputs()

    def check_inputs(
        self, content: Mapping[str, Any], path: Path, *, classes: bool = True, kinds: Sequence[str] | None = None
    ) -> None:
        """Compare what the inputs of a file mean with those of this run; log what is assumed where it does not say.

        Args:
            content: of the file: its description under ``inputs``, or (older files) ``architecture``.
            classes, kinds: see :func:`utils.inputs.input_differences`.

        Raises:
            UserError: they mean something else, with both values; one line each.
        """
        stored = content.get(INPUTS) or from_architecture(content.get("architecture") or {})
        if problems := input_differences(stored, self.inputs, classes=classes, kinds=kinds):
            raise UserError("\n".join(f"{path} was made with {problem}" for problem in problems))
        if not content.get(INPUTS):
            log.info(
                "%s does not say what its inputs mean: assumed are those of %s as this run has them (%sthe modalities "
                "%s in this order, with these columns, levels, scaling and normalisation)",
                path,
                self.cfg.dataset.name,
                f"the classes {_short(self.inputs['classes'])} and " if classes else "",
                ", ".join(self.data.modality_names),
            )

    def _check_dataset(self, content: Mapping[str, Any], path: Path) -> None:
        dataset = content.get("dataset")
        if dataset and dataset != self.cfg.dataset.name:
            raise UserError(
                f"{path} was trained on {dataset}, this run is on {self.cfg.dataset.name}: "
                "give a checkpoint of this data set"
            )

    def _check_architecture(self, architecture: dict[str, Any], path: Path) -> None:
        there = [m[0] for m in architecture.get("modalities", [])]
        if there and there != self.data.modality_names:
            order = " (the same in another order)" if sorted(there) == sorted(self.data.modality_names) else ""
            raise UserError(
                f"{path} was trained on modalities {there}, {self.cfg.dataset.name} has {self.data.modality_names}"
                f"{order}: give a checkpoint of this data set"
            )
        metric = architecture.get("distance_metric")
        if metric and metric != self.distance_metric:
            raise UserError(
                f"{path} was trained with distance_metric {metric}, this run uses {self.distance_metric}: "
                f"set distance_metric={metric}"
            )
        fill = architecture.get("fill")
        if fill and fill != self.trainable.module.get("fill", fill):
            raise UserError(
                f"{path} was trained with fill={fill}, this run uses fill={self.trainable.module.fill}: set "
                f"model.module.fill={fill}, or train it again"
            )

    def load_backbone(self) -> Backbone:
        """The trained model as the selection uses it."""
        return self.load_model().as_backbone(str(self.distance_metric))

    def load_method(self) -> Method:
        """The trained method as stage test evaluates it, with everything that it needs."""
        model = self.load_model()
        model.before_prediction()
        if self.completes:
            return Completed(model, self.load_imputer())
        if not self.selects:
            return model
        backbone = model.as_backbone(str(self.distance_metric))
        parameters = self.load_parameters(backbone)
        imputer = self.load_imputer() if self.recovers else None
        return build_selector(self.cfg, backbone, imputer, parameters, self.tail)

    def load_parameters(self, model: Backbone) -> GaussianParameters:
        parameters = GaussianParameters.load(self.gaussian, self.distance_metric)
        parameters.check_fits(model, str(self.gaussian))
        self.check_inputs(parameters.about or {}, self.gaussian)
        made_from = (parameters.about or {}).get("checkpoint")
        if made_from and made_from != file_hash(self.checkpoint):
            raise UserError(
                f"{self.gaussian} was estimated from another checkpoint than {self.checkpoint}: "
                f"run stage gaussian again ({self.command('gaussian')} overwrite=true)"
            )
        return parameters.to(self.device)

    def load_imputer(self) -> Imputer:
        """The recovery method with its weights, on the device."""
        imputer = build_imputer(self.cfg, self.data, pretrained=False)
        if self.imputer_needs_weights:
            path = self.imputer_checkpoint
            content = read_tensors(path)
            self._check_dataset(content, path)
            self.check_inputs(content, path, classes=False, kinds=imputer.kinds_read)
            try:
                imputer.load(content, path, str(self.cfg.imputer.name))
            except ValueError as error:
                raise UserError(f"{path} {error}: run {self.command('impute')}") from None
        return imputer.move_to(self.device)


def _short(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:8])}, ... ({len(names)})"
