"""`Artefacts`: where the files of a run are, and the settings that each stage's output depends on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from models.dymo.gaussian import SUFFIX
from trainers.config.build import data_arguments, data_class, encoders_of_data, method_class, selector_class
from trainers.config.imputers import imputer_parts
from trainers.plan import PART, Plan
from utils import weights as checkpoints
from utils.run_directory import NOT_OF_FIT, RunDirectory, file_hash
from utils.safe_pickle import read_tensors

log = logging.getLogger(__name__)
# In the settings of runs with temporal_blur at even levels; earlier windows began one frame too early.
CENTRED = "even windows end one frame later"
# Arguments of an imputer that recoveries depend on, and its training does not.
RECOVERY = ("sample", "draw_seed", "reference", "conditioning", "private_prior", "max_iter")


# Arguments of a method that its trained weights hold the effect of.
NOT_OF_PREDICTIONS = ("optimizer", "scheduler", "consistency")


class Artefacts(Plan):
    """Directories, files and stage settings of one run."""

    # ---- directories and files ---------------------------------------------------------------------------------------

    def _directory(self, label: str) -> RunDirectory:
        cfg = self.cfg
        fold = "" if self.fold is None else f"_fold{self.fold}"
        path = Path(cfg.paths.output) / cfg.dataset.name / label / cfg.name / f"seed{cfg.seed}{fold}"
        return RunDirectory(path, cfg.overwrite, data_class(cfg).paths)

    @cached_property
    def directory(self) -> RunDirectory:
        """Run directory of the model that is tested."""
        return self._directory(self.label)

    @cached_property
    def fit_directory(self) -> RunDirectory:
        """Run directory of the model that is trained.

        A prerequisite shares the directory of the same model by itself. If that holds a model with other options, the
        prerequisite has a directory with a hash of its options, so that neither replaces or blocks the other.
        """
        if not self.part_of:
            return self._directory(self.trainable.name)
        return self._shared_directory(str(self.trainable.name), "fit", "model", self.fit_settings["model"])

    @cached_property
    def imputer_directory(self) -> RunDirectory:
        """Run directory of the imputer. A part of ``imputer=Chain`` shares that of the same imputer by itself, as a
        prerequisite does."""
        label = f"imputer_{self.cfg.imputer.name}"
        if self.part_of[:1] != (PART,):
            return self._directory(label)
        return self._shared_directory(label, "impute", "imputer", self.imputer_settings["imputer"])

    def _shared_directory(self, label: str, stage: str, key: str, options: Mapping[str, Any]) -> RunDirectory:
        """The directory of a method by itself, or one with a hash where that holds other ``options``.

        Args:
            key: of the options in the settings of the ``stage``.
        """
        plain = self._directory(label)
        differences = (plain.difference(marker, options, key) for marker in (stage, f"{stage}.begun"))
        difference = next(filter(None, differences), None)
        if difference is None:
            return plain
        # With the name that the masks had when such directories were first made.
        text = json.dumps(options, sort_keys=True, default=str)
        text = text.replace("models.baselines.masks.", "models.baselines.base.")
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        directory = self._directory(f"{label}-{digest}")
        log.info("%s holds %s with another option (%s): %s", plain.path, label, difference, directory.path)
        return directory

    @property
    def checkpoint(self) -> Path:
        """Weights of the trained model: as given, or by convention."""
        return Path(self.checkpoint_path) if self.checkpoint_path else self.fit_directory / "checkpoints" / "best.ckpt"

    @property
    def gaussian(self) -> Path:
        """File of the Gaussian parameters: as given, or by convention."""
        if self.trainable.get("gaussian"):
            return Path(self.trainable.gaussian)
        return self.fit_directory / f"gaussian_{SUFFIX[str(self.distance_metric)]}.safetensors"

    @property
    def imputer_checkpoint(self) -> Path:
        """Weights of the imputer: as given, or by convention."""
        given = self.cfg.imputer.checkpoint
        return Path(given) if given else self.imputer_directory / "checkpoints" / "best.ckpt"

    @cached_property
    def tail(self) -> str:
        """``model.selection.tail``; ``auto`` is that of the original with an original checkpoint, else ours."""
        tail = str(self.cfg.model.selection.tail)
        if tail != "auto":
            return tail
        kind = checkpoints.checkpoint_kind(read_tensors(self.checkpoint)) if self.checkpoint_path else None
        if kind != "reference_dynamic_transformer":
            return "robust"
        log.info(
            "%s is a checkpoint of the original repository: its tail=float32 is used (to keep ours, set "
            "model.selection.tail=robust)",
            self.checkpoint,
        )
        return "float32"

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
            "encoders": {name: self._plain(node) for name, node in encoders_of_data(cfg).items()},
            "model": self._plain(self.trainable, *NOT_OF_FIT),
            "monitor": self.monitor,
            "missing": {k: cfg.missing[k] for k in ("train", "val", "seed")},
            "precision": cfg.trainer.precision,
            "limits": [cfg.trainer.limit_train_batches, cfg.trainer.limit_val_batches],
        }
        if (noise := self.trainable.get("noise")) and noise.get("operator") == "temporal_blur":
            settings["temporal_blur"] = CENTRED
        settings |= self._settings_of_trainer(float32_precision="highest")
        for added in ("noise", "modulation"):  # runs from before there were these are valid
            if settings["model"].get(added) is None:
                settings["model"].pop(added, None)
        for node in settings["model"].values():  # models within the model, which are trained first
            _forget_comparators(node)
        if not settings["model"].get("consistency"):
            settings["model"].pop("consistency", None)
            settings["model"].get("module", {}).pop("consistency", None)
        if self.trains_on_recoveries or self.is_built_on_imputer:
            settings["imputer"] = self.recovery_settings
        if self.prerequisites:
            settings["prerequisites"] = {label: part.fit_settings for label, part in self.prerequisites.items()}
        return settings

    def _settings_of_trainer(self, **usual: str) -> dict[str, Any]:
        """Those that differ from the usual ones, with which stages finished before they were noted."""
        return {key: self.cfg.trainer[key] for key, value in usual.items() if self.cfg.trainer[key] != value}

    @property
    def imputer_settings(self) -> dict[str, Any]:
        cfg = self.cfg
        settings = {
            "seed": cfg.seed,
            "data": self.data_settings,
            "imputer": self._plain(cfg.imputer, "checkpoint", "quality"),
            "limits": [cfg.trainer.limit_train_batches, cfg.trainer.limit_val_batches],
        }
        settings |= self._settings_of_trainer(float32_precision="highest", precision="32-true")
        for key in RECOVERY:
            settings["imputer"]["module"].pop(key, None)
        if "parts" in cfg.imputer:
            settings["imputer"]["modalities"] = imputer_parts(cfg)
            settings["imputer"]["parts"] = {
                label: {key: value for key, value in part.imputer_settings.items() if key in ("imputer", "checkpoint")}
                for label, part in self.imputer_parts.items()
            }
        if cfg.imputer.checkpoint:
            settings["checkpoint"] = file_hash(Path(cfg.imputer.checkpoint))
        return settings

    @property
    def recovery_settings(self) -> dict[str, Any]:
        """Settings that recoveries depend on."""
        module = self._plain(self.cfg.imputer.module)
        recovery = {key: module[key] for key in RECOVERY if key in module}
        recovery |= {label: part.recovery_settings["recovery"] for label, part in self.imputer_parts.items()}
        return self.imputer_settings | {"recovery": recovery}

    @property
    def gaussian_settings(self) -> dict[str, Any]:
        split = self.cfg.gaussian.split
        settings: dict[str, Any] = {
            "checkpoint": file_hash(self.checkpoint),
            "data": self.data_settings,
            "split": split,
            "student_t": self.cfg.gaussian.student_t,
        }
        # Older parameters counted content that the source lacks as if it were observed.
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
        # Older runs blurred even numbers of frames one frame too early.
        noises = [scenario.noise for scenario in self.scenarios if scenario.noise is not None]
        if any(noise.operator == "temporal_blur" and noise.level % 2 == 0 for noise in noises):
            settings["temporal_blur"] = CENTRED
        if not self.has_backbone:  # switches of the prediction, such as a gate
            settings["module"] = self._plain(self.trainable.module, *NOT_OF_PREDICTIONS)
            option = method_class(self.trainable).batch_dependent
            if option and self.trainable.module.get(option):
                settings["test_batch_size"] = self.cfg.dataset.test_batch_size
        if self.uses_recoveries or self.is_built_on_imputer:
            settings["imputer"] = self._plain(self.cfg.imputer, "checkpoint", "quality", "training")
            for part in settings["imputer"].get("parts", {}).values():
                for key in ("checkpoint", "quality", "training"):
                    part.pop(key, None)
            if self.needs_imputer_weights:
                settings["imputer"]["weights"] = file_hash(self.imputer_checkpoint)
        if self.cfg.report.features and not self.uses_selection:
            settings["features"] = list(self.cfg.report.features)
        if self.cfg.get("metrics"):
            settings["metrics"] = self._plain(self.cfg.metrics)
        if self.has_backbone and any(m.kind == "table" for m in self.data.modalities):
            # Older runs judged tables with observed cells by parameters without the table.
            settings["partial_tables"] = self.cfg.model.selection.partial_tables or "by tail"
        if self.recovery_comparators:
            settings["model"] = {k: self._plain(self.cfg.model)[k] for k in ("comparators", "validation")}
        if self.uses_selection:
            settings["gaussian"] = file_hash(self.gaussian)
            settings["model"] = {k: self._plain(self.cfg.model)[k] for k in ("selection", "comparators", "validation")}
            settings["model"]["selection"]["tail"] = self.tail
            for key in selector_class(self.cfg.model).comparator_settings(self.cfg.model):
                settings["model"][key] = self._plain(self.cfg.model[key])
        return settings


def _forget_comparators(node: Any) -> None:
    """Remove the comparators of a model, and of those within it, on which no training depends."""
    if isinstance(node, dict) and "module" in node:
        for key in ("comparators", "validation"):
            node.pop(key, None)
        for part in node.values():
            _forget_comparators(part)
