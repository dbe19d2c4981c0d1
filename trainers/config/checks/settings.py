"""Checks of the settings of a run: structure, stages, seeds, names, data set, trainer."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from omegaconf import DictConfig, OmegaConf

from models.dymo.prototypes import DISTANCE_METRICS
from trainers.config.checks.machine import number_of_processes
from trainers.config.help import STAGES
from utils.checks import check_choice, check_number, nearest

FLOAT32_PRECISIONS = ("highest", "high", "medium")

FORMATS = ("bundle", "torch", "onnx")


def check_structure(cfg: DictConfig) -> Iterator[str]:
    """Faults after which nothing else can be checked."""
    for key in ("stages", "missing.test", "model.comparators", "model.validation"):
        value = OmegaConf.select(cfg, key)
        if isinstance(value, str | int | float | DictConfig):  # every letter would count as an entry
            yield f"{key}={value}: must be a list, write {key}=[{value}]"
            return
    if "training_defaults" not in cfg.dataset:  # the model takes its defaults from there
        yield (
            f"dataset={cfg.dataset.name} has no block 'training_defaults', from which models take their defaults: "
            "see configs/dataset/PolyMNIST.yaml"
        )
    elif not cfg.dataset.modalities:
        yield (
            "dataset.modalities is empty: name the modalities, such as {film: {kind: image, column: file}}, see "
            "docs/your-data.md"
        )
    elif "encoder_sets" in cfg.dataset and cfg.dataset.encoder_set not in cfg.dataset.encoder_sets:
        yield f"dataset.encoder_set={cfg.dataset.encoder_set}: must be one of {', '.join(cfg.dataset.encoder_sets)}"
    elif "forms" in cfg.dataset and cfg.dataset.form not in cfg.dataset.forms:
        # The data module takes its settings from there.
        yield f"dataset.form={cfg.dataset.form}: must be one of {', '.join(cfg.dataset.forms)}"


def check_stages(cfg: DictConfig) -> Iterator[str]:
    """Unknown stages, or none."""
    for stage in cfg.stages or []:
        if stage not in STAGES:
            yield f"stages: unknown stage '{stage}'{nearest(str(stage), list(STAGES))}"
    if not cfg.stages:
        yield f"stages is empty: choose from {', '.join(STAGES)}"
    elif number_of_processes(cfg) > 1:
        # After test, and for what one process does, the others have ended.
        lone = [stage for stage in cfg.stages if stage in ("test", "export", "predict", "report")]
        for stage in cfg.stages[list(cfg.stages).index(lone[0]) + 1 :] if lone else ():
            if stage in ("impute", "fit", "gaussian", "test"):
                yield f"stages: '{stage}' comes after '{lone[0]}', which several processes cannot do: put it before"


def check_export(cfg: DictConfig) -> Iterator[str]:
    """Unknown formats of stage export, and libraries that they need."""
    if "export" not in (cfg.stages or []):
        return
    names = [cfg.export.format] if isinstance(cfg.export.format, str) else list(cfg.export.format or [])
    for name in names:
        if name not in FORMATS:
            yield f"export.format: unknown format '{name}'{nearest(str(name), FORMATS)}"
    if cfg.export.parts and "onnx" not in names:
        yield "export.parts=true: parts are ONNX programs, add onnx to export.format, or leave export.parts out"
    lacking = [library for library in ("onnx", "onnxscript", "onnxruntime") if find_spec(library) is None]
    if "onnx" in names and lacking:
        yield f"export.format=onnx needs {', '.join(lacking)}: pip install {' '.join(lacking)}, or leave onnx out"


def check_settings(cfg: DictConfig) -> Iterator[str]:
    """Values outside their range, and a name that is no folder."""
    if cfg.seed is None:
        yield "seed=null: must be a whole number"
    yield from check_number(cfg, "seed", 0, whole=True)
    yield from check_number(cfg, "missing.seed", 0, whole=True)
    yield from check_choice(cfg, "distance_metric", (None, *DISTANCE_METRICS))
    yield from check_number(cfg, "dataset.train_fraction", 1e-9, 1)
    yield from check_number(cfg, "dataset.test_batch_size", 1, whole=True)
    yield from check_choice(cfg, "dataset.residence", ("auto", "device", "host", "mmap"))
    yield from check_choice(cfg, "dataset.channels_last", (None, True, False))
    if "/" in str(cfg.name):
        yield f"name={cfg.name}: must not hold a slash"
    if str(cfg.name) in ("", ".", ".."):
        yield f"name={cfg.name}: must be the name of a folder"
    yield from check_choice(cfg, "dataset.monitor", ("val_accuracy", "val_auroc", "val_f1_macro", "val_loss", None))
    yield from check_choice(cfg, "dataset.training_defaults.schedule", (None, "cosine"))
    yield from check_choice(cfg, "gaussian.split", ("train", "val"))
    yield from check_number(cfg, "gaussian.batch_size", 1, whole=True)


def check_trainer_settings(cfg: DictConfig) -> Iterator[str]:
    """An unknown compiler or precision, and limits that are neither a number nor a share of batches."""
    if cfg.trainer.compile is not None:
        from torch._dynamo import list_backends  # slow to import

        if cfg.trainer.compile not in list_backends(exclude_tags=()):
            yield f"trainer.compile={cfg.trainer.compile}: must be null or one of {', '.join(list_backends())}"
    yield from check_choice(cfg, "trainer.float32_precision", FLOAT32_PRECISIONS)
    for split in ("train", "val"):
        value = cfg.trainer[f"limit_{split}_batches"]
        is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not (value is None or is_number or (isinstance(value, float) and 0 < value <= 1)):
            yield (
                f"trainer.limit_{split}_batches={value}: must be null, a whole number of batches (1 or more), or a "
                "share of them (above 0.0, up to 1.0)"
            )
