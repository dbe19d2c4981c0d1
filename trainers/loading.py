"""`Run`: a run whose trained parts can be loaded; `open_run` opens one from a notebook."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from models.base import IncompleteClassifier, Method
from models.completed import Completed
from models.dymo.backbone import Backbone
from models.dymo.gaussian import GaussianParameters
from models.imputers.base import Imputer
from trainers.artefacts import Artefacts
from trainers.config.build import build_model, build_selector, set_float32_precision
from trainers.config.compose import compose_config
from trainers.config.imputers import build_imputer
from trainers.config.validate import validate
from trainers.plan import resolve_metric
from utils import weights as checkpoints
from utils.errors import UserError
from utils.inputs import KEY as INPUTS
from utils.inputs import from_architecture, input_differences
from utils.run_directory import file_hash
from utils.safe_pickle import read_tensors

log = logging.getLogger(__name__)


def open_run(*overrides: str) -> Run:
    """Open a run from Python: ``open_run("dataset=Digits", "seed=1").load_model()``."""
    cfg = compose_config(*overrides)
    validate(cfg)
    resolve_metric(cfg)
    run = Run(cfg)
    set_float32_precision(cfg.trainer.float32_precision, run.device)
    return run


class Run(Artefacts):
    """One run: its configuration, its files, and its trained parts."""

    def build(self) -> IncompleteClassifier:
        """The untrained model, into which weights can be loaded."""
        parts = {label: part.build() for label, part in self.prerequisites.items()}
        imputer = self.load_imputer() if self.is_built_on_imputer else None
        return build_model(self.cfg, self.trainable, self.data, False, parts, imputer)

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

    def load_backbone(self) -> Backbone:
        """The trained model as the selection uses it."""
        return self.load_model().as_backbone(str(self.distance_metric))

    def load_method(self) -> Method:
        """The trained method as stage test evaluates it, with everything that it needs."""
        model = self.load_model()
        model.before_prediction()
        if self.fills_missing:
            imputer = self.load_imputer()
            return model.complete_with(imputer, self.recovery_comparators) or Completed(model, imputer)
        if not self.uses_selection:
            return model
        backbone = model.as_backbone(str(self.distance_metric))
        parameters = self.load_parameters(backbone)
        recoveries = self.load_imputer() if self.uses_recoveries else None
        return build_selector(self.cfg, backbone, recoveries, parameters, self.tail)

    def load_parameters(self, model: Backbone) -> GaussianParameters:
        """Gaussian parameters of a backbone, on the device."""
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
        """The imputer with its weights, on the device."""
        imputer = build_imputer(self.cfg, self.data, pretrained=False)
        if self.needs_imputer_weights:
            path = self.imputer_checkpoint
            content = read_tensors(path)
            self._check_dataset(content, path)
            self.check_inputs(content, path, classes=False, kinds=imputer.kinds_read)
            try:
                imputer.load(content, path, str(self.cfg.imputer.name))
            except ValueError as error:
                raise UserError(f"{path} {error}: run {self.command('impute')}") from None
        imputer.draw_for_seed(int(self.cfg.seed))
        return imputer.move_to(self.device)

    # ---- checks ------------------------------------------------------------------------------------------------------

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What the inputs of this run mean, see ``MultimodalDataModule.describe_inputs``."""
        return self.data.describe_inputs()

    def check_inputs(
        self, content: Mapping[str, Any], path: Path, *, classes: bool = True, kinds: Sequence[str] | None = None
    ) -> None:
        """Compare the inputs that a file was made with to those of this run; log what the file does not say.

        Args:
            content: of the file, with a description under ``inputs`` or, in older files, ``architecture``.
            classes, kinds: see :func:`utils.inputs.input_differences`.

        Raises:
            UserError: they differ; one line per difference, with both values.
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
        modalities = [m[0] for m in architecture.get("modalities", [])]
        if modalities and modalities != self.data.modality_names:
            order = " (the same in another order)" if sorted(modalities) == sorted(self.data.modality_names) else ""
            raise UserError(
                f"{path} was trained on modalities {modalities}, {self.cfg.dataset.name} has "
                f"{self.data.modality_names}{order}: give a checkpoint of this data set"
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


def _short(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:8])}, ... ({len(names)})"
