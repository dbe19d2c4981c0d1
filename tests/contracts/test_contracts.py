"""Every shipped configuration keeps the promises that methods, data sets and presets make.

The files are found by walking ``configs/``.
"""

from __future__ import annotations

import importlib
import itertools
import math
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError

from datasets.base import MultimodalDataModule
from datasets.batch import Batch
from datasets.missingness import Rows, parse_scenario
from gaussian_parameter_generation.estimate import estimate
from models.base import Method
from models.dymo.gaussian import GaussianParameters
from models.imputers.base import Imputer
from models.imputers.simple import Oracle
from tests.bundles import assert_bundle_predicts_alike
from tests.campaign.tally import MINUTES
from tests.contracts.test_baselines import METHODS, small_convolutions, small_table
from tests.makers import make_image_table, make_mnist_idx
from tests.tolerances import batch_bound
from trainers import fit as fit_module
from trainers import run as pipeline
from trainers.config.build import build_model, build_trainer
from trainers.config.compose import CONFIGS, blocks, compose_config, group_options
from trainers.config.overrides import check_overrides
from trainers.config.validate import validate
from trainers.forecast import foresee
from trainers.loading import Run
from trainers.plan import resolve_metric
from utils.errors import UserError

ROOT = CONFIGS.parent


FILES = sorted(f.relative_to(CONFIGS) for f in CONFIGS.rglob("*.yaml"))
# Fewest files per group: a lost file fails, a new one needs no change here.
FEWEST = {
    ".": 1,
    "dataset": 35,
    "model": 33,
    "imputer": 8,
    "missing": 2,
    "trainer": 4,
    "logger": 3,
    "schedule": 26,
    "experiment": 22,
    "recipe": 16,
    "study": 3,
}
# Classes of the methods, recovery methods and data sets of a group.
BASES: dict[str, tuple[str, type]] = {
    "model": ("models", Method),
    "imputer": ("models/imputers", Imputer),
    "dataset": ("datasets", MultimodalDataModule),
}
# Built around another method, and by the stage that judges recoveries.
NO_OPTIONS = {
    "models.baselines.recoveries.LateRecoveries",
    "models.baselines.recoveries.PooledRecoveries",
    "models.completed.Completed",
    "models.imputers.quality.Judge",
}
# Recipes and experiments are for one data set or a few: test_cmpt_experiments.py.
GROUPS = [group for group in FEWEST if group not in (".", "recipe", "experiment", "study")]
# (schedule, data set, imputer) of every schedule that changes something; what it says of all models shows with any.
SCHEDULES = sorted(
    {
        (*group.split("/")[1:], "MoPoE" if name == "dataset" else name)
        for group, name, _ in blocks()
        if group.startswith(("schedule/short/", "schedule/small/"))
        # Of the same blocks, one is run: see test_hard_views_train_as_the_easy_ones.
        if group == "schedule/short/PolyMNIST" or (name == "MoPoE" and group.startswith("schedule/small/"))
    }
)
SMALL_IMAGES = ["dataset.side=32", "dataset.stored_side=32", "dataset.image_weights=none"]
SMALL_DATA = {
    "PolyMNIST": [],
    "PolyMNIST_hard": [],
    "Digits": ["dataset.train_pairings=1"],
    "MST": ["dataset.demo=true", "dataset.pairings=2", "dataset.train_fraction=0.2"],
    "CelebA": [
        "dataset.demo=true",
        "dataset.train_fraction=0.15",
        "+dataset.encoders.img.base=8",
        "+dataset.encoders.text.base=8",
    ],
    # Of images with tables, ImageTable has the ResNet.
    "CAD": [*SMALL_IMAGES, *small_convolutions("img"), *small_table("tabular"), "dataset.demo=true"],
    "MultiFeatureDigits": ["dataset.demo=true"],
    "Food101": [
        *("dataset.demo=true", "dataset.side=32", "dataset.stored_side=40"),
        "dataset.encoders.image.architecture=resnet18",
        *(f"+dataset.encoders.text.{key}" for key in ("width=16", "heads=2")),
    ],
    "CREMAD": [
        *("dataset.demo=true", "dataset.form=CMPT", "dataset.side=32", "dataset.stored_side=32"),
        *("dataset.forms.CMPT.audio.frames=48", "dataset.forms.CMPT.audio.mel_bins=32"),
    ],
    "SpokenDigits": ["dataset.demo=true", "dataset.train_fraction=0.2"],
    "ImageTable": [
        *(*SMALL_IMAGES, "dataset.encoders.image.architecture=resnet18", *small_table("table")),
        "dataset.image=photo",
        "dataset.image_suffix=.jpg",
        "dataset.label=kind",
        "dataset.classes=[nut,bolt,screw]",
        "dataset.categorical={metal:null,finish:null}",
        "dataset.continuous=[weight,length]",
    ],
}
# Composed and validated like all others, but not paired with every model; so are further data sets of the same classes.
SAME_AS = {
    "AVE": "CREMAD with other lists: test_audio_video_sets.py",
    "DVM": "CAD with other columns and classes",
    "KineticsSound": "CREMAD with other lists: test_audio_video_sets.py",
    "MIMIC": "ImageTable with several labels, which these models do not know: test_mimic.py",
    "MMIMDb": "Food101 with several labels, which these models do not know: test_image_text.py",
    "SmallImageTable": "ImageTable with other encoders: test_inspection.py",
    "ImageText": "Food101 from a CSV file: test_image_text.py",
    "FromCSV": "any modalities of the user's: test_from_csv.py",
    "Arrays": "arrays of the user: test_estimator.py",
}
# What a user has to give.
OF_THE_USER = {
    "FromCSV": ["dataset.modalities={labs:{kind:table,continuous:[age]},film:{kind:image,column:file}}"],
    "Chain": ["imputer.modalities={m0:Mean}"],
}


def options(group: str) -> list[str]:
    return sorted(f.stem for f in FILES if f.parent == Path(group))


def configure(*overrides: str) -> DictConfig:
    return compose_config(*overrides)


# --------------------------------------------------------------------------------------------------- files and groups


def test_no_file_is_lost() -> None:
    assert set(options("model")) == set(REACH) | set(METHODS)
    counts = Counter(str(f.parts[0] if len(f.parts) > 1 else ".") for f in FILES)
    assert counts.keys() == FEWEST.keys() and all(counts[group] >= fewest for group, fewest in FEWEST.items()), counts


def classes_of(folder: str, base: type) -> set[str]:
    """Dotted names of the classes of a folder that derive from ``base`` and that no other one extends."""
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in (ROOT / folder).rglob("*.py")]
    values = [value for name in modules for value in vars(importlib.import_module(name)).values()]
    classes = {value for value in values if isinstance(value, type) and issubclass(value, base)}
    extended = {parent for kind in classes for parent in kind.__mro__[1:]}
    return {f"{kind.__module__}.{kind.__qualname__}" for kind in classes - extended}


@pytest.mark.parametrize("group", BASES)
def test_every_class_has_a_configuration(group: str) -> None:
    text = "".join(file.read_text() for file in (CONFIGS / group).rglob("*.yaml"))
    targets = set(re.findall(r"_target_: ([\w.]+)", text))
    assert classes_of(*BASES[group]) - NO_OPTIONS <= targets


def test_every_data_set_is_tried() -> None:
    classes = {name: configure(f"dataset={name}").dataset.module._target_ for name in options("dataset")}
    tried = {classes[name] for name in (*SMALL_DATA, *SAME_AS)}
    assert {name for name, kind in classes.items() if kind not in tried} == set(), "say how to make the data set small"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_file_opens_with_what_it_is_or_how_to_run_it(file: Path) -> None:
    lines = [line for line in (CONFIGS / file).read_text().splitlines() if not line.startswith("# @package")]
    assert re.match(r"# .{10,}", lines[0]), lines[0]


def test_a_block_is_for_an_option_that_exists() -> None:
    for group, name, node in blocks():
        if group.startswith("experiment/"):
            continue  # composed in test_an_experiment_composes
        assert Path(group).name in options("dataset") and isinstance(node, dict)
        assert name in [*options("model"), *options("imputer"), "dataset"], f"{group}: {name}"


def test_hard_views_train_as_the_easy_ones() -> None:
    nodes = {(group, name): node for group, name, node in blocks() if "/PolyMNIST" in group}
    for group in ("recipe", "schedule/short", "schedule/small"):
        easy, hard = ({name for g, name in nodes if g == f"{group}/{d}"} for d in ("PolyMNIST", "PolyMNIST_hard"))
        assert easy == hard and easy
        for name in hard:
            reference = f"/{group}/PolyMNIST/{name}@_here_"
            assert nodes[f"{group}/PolyMNIST_hard", name] == {"defaults": [reference]}
    for name in ("CMVAE", "MMVAEPlus", "MoPoE"):  # small imputers
        assert nodes["schedule/small/PolyMNIST", name] == {"defaults": [f"/recipe/Digits/{name}@_here_"]}


@pytest.mark.parametrize("option", [o for o in group_options("experiment") if not o.startswith("cmpt_")])
def test_an_experiment_composes(option: str) -> None:
    dataset = {"udml": "CREMAD", "vision_tabular": "MIMIC", "cmpt_small": "SpokenDigits"}.get(option.split("/")[0])
    chosen = [f"experiment={option}", *([f"dataset={dataset}"] if dataset else [])]
    check_overrides(chosen)
    validate(configure(*chosen))


def commands() -> list[Any]:
    actual = []
    for file in FILES:
        for line in (CONFIGS / file).read_text().splitlines():
            if match := re.match(r"#.*?python run\.py([^(;]*?)(?:  .*|\(.*)?$", line):
                actual.append(pytest.param(shlex.split(match[1]), id=f"{file}: {match[1].strip()}"))
    return actual


@pytest.mark.parametrize("arguments", commands())
def test_the_commands_in_comments_are_understood(arguments: list[str]) -> None:
    check_overrides(arguments)
    configure(*(argument for argument in arguments if not argument.startswith("--")))


@pytest.mark.parametrize(("group", "option"), [(g, o) for g in GROUPS for o in options(g)])
def test_an_option_composes_with_the_defaults_of_all_others(group: str, option: str) -> None:
    # A model that is built on an imputer composes with that one.
    built_on = ["imputer=CMVAE"] if option == "CMVAE_Classification" else []
    built_on += OF_THE_USER.get(option, [])
    cfg = configure(f"{group}={option}", *built_on)
    check_overrides([f"{group}={option}"])
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict) and {"dataset", "distance_metric"} <= plain.keys()
    if group in ("dataset", "model", "imputer"):
        assert cfg[group].get("name", option).startswith(option)
    if group == "model":
        assert Run(cfg).option == option
    if option == "Multimodal_CONCAT":
        assert Run(cfg).label == "Multimodal_CONCAT_MoPoE"
    if (group, option) == ("imputer", "Oracle"):  # reads what is missing
        with pytest.raises(UserError, match=r"imputer\.allow_oracle=true"):
            validate(cfg)
        cfg.imputer.allow_oracle = True
    validate(cfg)
    resolve_metric(cfg)
    nodes = [cfg, *(node for node in cfg.values() if isinstance(node, DictConfig))]
    for node in nodes:
        assert OmegaConf.is_struct(node)
        with pytest.raises(ConfigAttributeError):
            _ = node.no_such_key


def test_a_key_that_does_not_exist_is_refused() -> None:
    for chosen in ([], ["dataset=CAD", "model=MAP"]):
        with pytest.raises(ConfigCompositionException):
            configure(*chosen, "no_such_key=1")


def test_variants_of_a_model_have_their_own_run_directories() -> None:
    labels = []
    for metric, aware in itertools.product(("cosine_similarity", "squared_euclidean"), (0.0, 0.25, 0.5)):
        cfg = configure("model=DyMo", f"distance_metric={metric}", f"model.recovery_aware={aware}")
        labels.append((cfg.model.name, cfg.model.backbone.name))
        assert cfg.model.backbone.recovery_aware == cfg.model.backbone.module.recovery_aware == aware
    assert labels == [
        ("DyMo" + tail, "DynamicTransformer" + tail)
        for tail in ("", "_aware0.25", "_aware", "_EU", "_EU_aware0.25", "_EU_aware")
    ]
    cfg = configure("model=DyMo", "model.recovery_aware=0.25", "model.consistency=0.1")
    assert cfg.model.name == "DyMo_aware0.25_consistent0.1" and cfg.model.backbone.module.consistency == 0.1
    assert Run(cfg).option == "DyMo" and Run(cfg).trains_on_recoveries


# ---------------------------------------------------------------------------------------------------- how long to train

# Passes that measure; their parts train as long as all others.
MEASURES = ("Late", "LogitAverage", "ModelSelection")
# Models that train for a multiple of dataset.training_defaults.max_epochs: published proportions, in configs/recipe.
MULTIPLES = {
    ("MST", "MoPoE_Classification"): 5,
    ("CelebA", "MoPoE_Classification"): 5,
    ("MST", "MultiAE_autoencoder"): 10,
    ("CelebA", "MultiAE_autoencoder"): 10,
    ("PolyMNIST", "MultiAE_autoencoder"): 3,
    ("PolyMNIST_hard", "MultiAE_autoencoder"): 3,
}
# Where nothing is said: the settings of the publications that differ from those of the data set.
PUBLISHED_EPOCHS = ("MaskedAttention", "TokenUnimodal", "Zeros_MLP", "Pooling_MLP")
USUAL_EPOCHS = {
    "Digits": 12,
    "PolyMNIST": 100,
    "PolyMNIST_hard": 100,
    "CREMAD": 100,
    "KineticsSound": 100,
    "MST": 20,
    "CelebA": 20,
    "SpokenDigits": 15,
}


def epochs_of_parts(composed: DictConfig, **changes: int) -> dict[str, int]:
    """Name -> epochs of the model that is trained and of all that it is built on.

    Args:
        changes: values of keys with "__" for ".", put into a copy as overrides of the command line are.
    """
    cfg = composed.copy()
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value)

    def walk(context: Run) -> dict[str, int]:
        epochs = {str(context.trainable.name): int(context.trainable.training.max_epochs)}
        for part in context.prerequisites.values():
            epochs |= walk(part)
        return epochs

    return walk(Run(cfg))


# Every model on the embedded data, and wherever a recipe has a number of epochs.
RECIPES = [(group.removeprefix("recipe/"), name, str(node)) for group, name, node in blocks() if "recipe" in group]
EPOCH_PAIRS = [(model, "Digits") for model in options("model")] + [
    (name, dataset)
    for dataset, name, text in RECIPES
    if re.search("max_epochs|recipe/", text) and name in options("model") and dataset in USUAL_EPOCHS
]


@pytest.mark.parametrize(("model", "dataset"), EPOCH_PAIRS)
def test_one_setting_says_how_long_every_method_trains(model: str, dataset: str) -> None:
    chosen = [f"dataset={dataset}", f"model={model}", *(["imputer=CMVAE"] if model == "CMVAE_Classification" else [])]
    cfg = configure(*chosen)
    usual = epochs_of_parts(cfg)
    first = next(iter(usual))
    if model in PUBLISHED_EPOCHS:
        assert set(usual.values()) == {500}
    elif model not in (*MEASURES, "CMPT", "UDML"):
        assert usual[first] == USUAL_EPOCHS[dataset] * MULTIPLES.get((dataset, first), 1)
    # 7 is the default of nothing; the default of the data set, said aloud, counts as well.
    for epochs in (7, USUAL_EPOCHS[dataset])[: 2 if model == "MaskedAttention" else 1]:
        for name, value in epochs_of_parts(cfg, dataset__training_defaults__max_epochs=epochs).items():
            assert value == (1 if name in MEASURES else epochs * MULTIPLES.get((dataset, name), 1)), name
    # And one that is for this model alone.
    assert epochs_of_parts(cfg, model__training__max_epochs=7)[first] == 7


@pytest.mark.parametrize("model", ["MaskedAttention", "TokenUnimodal", "Zeros_MLP", "Pooling_MLP", "UDML", "CMPT"])
@pytest.mark.parametrize("epochs", [1, 3, 500])
def test_a_short_training_has_a_warmup_that_fits_into_it(model: str, epochs: int) -> None:
    dataset = "Digits" if model == "CMPT" else "SpokenDigits" if model == "UDML" else "CAD"
    cfg = configure(
        f"dataset={dataset}",
        f"model={model}",
        f"dataset.training_defaults.max_epochs={epochs}",
        "stages=[fit]",
        "imputer=Zero",
    )
    if model != "UDML" or epochs > 1:  # of one epoch none is left for its weights
        validate(cfg)
    if model not in ("UDML", "CMPT"):
        assert cfg.model.training.warmup_epochs == cfg.model.module.plateau.warmup_epochs == epochs // 10


def test_a_data_set_of_ones_own_says_how_long_by_a_plain_number() -> None:
    cfg = configure("dataset=Digits", "model=MaskedAttention")
    OmegaConf.set_struct(cfg, False)
    del cfg.dataset.training_defaults["usual_epochs"]
    cfg.dataset.training_defaults.max_epochs = 9
    assert cfg.model.training.max_epochs == 9
    del cfg.dataset.training_defaults["max_epochs"]
    assert cfg.model.training.max_epochs == 500


# -------------------------------------------------------------------------------------------------- model × data set


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, polymnist_root: Path) -> Callable[..., list[str]]:
    """Overrides that make any run tiny."""
    folder = tmp_path_factory.mktemp("contracts")
    parts = make_image_table(folder / "parts", per_class=30)
    mnist = make_mnist_idx(folder / "mnist", n_train=60, n_test=100)

    def overrides(dataset: str, model: str, *more: str, out: str = "out", epochs: int = 1) -> list[str]:
        fitted = "model.backbone" if "backbone" in configure(f"model={model}").model else "model"
        root = {
            "PolyMNIST": [f"dataset.root={polymnist_root}"],
            "PolyMNIST_hard": [f"dataset.mnist={mnist}"],
            "ImageTable": [f"dataset.csv={parts}", f"dataset.images={parts.parent / 'photos'}"],
        }.get(dataset, [])
        return [
            f"dataset={dataset}",
            f"model={model}",
            *root,
            *SMALL_DATA[dataset],
            f"paths.data={folder / 'data'}",
            f"paths.cache={folder / 'cache'}",
            f"paths.output={folder / out}",
            "trainer=cpu",
            "trainer.enable_progress_bar=false",
            "trainer.limit_train_batches=3",
            "trainer.limit_val_batches=1",
            "dataset.test_batch_size=60",
            f"{fitted}.training.max_epochs={epochs}",
            f"{fitted}.training.batch_size=20",
            "imputer=Zero",
            *more,
        ]

    return overrides


SMALL_TRANSFORMER = {"width": 32, "heads": 2, "projection": 16}
# What a method needs so that two epochs of three batches reach all of it.
REACH: dict[str, dict[str, Any]] = {
    # The projection is trained by the prototype loss, which sets in late; a modality may be outside all K subsets
    # (None = all subsets of the data set).
    "DynamicTransformer": {"prototype_start": 1, "subsets_per_step": None, **SMALL_TRANSFORMER},
    "DyMo": {"prototype_start": 1, "subsets_per_step": None, **SMALL_TRANSFORMER},
    "CMPT": {},
}


def tiny_transformer(modality: str, architecture: str, **size: int) -> list[str]:
    """In the place of a published encoder with its weights."""
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, **size}
    written = ",".join(f"{key}:{value}" for key, value in size.items())
    encoder = f"model.encoders.{modality}"
    return [f"{encoder}.architecture={architecture}", f"{encoder}.weights=none", f"+{encoder}.size={{{written}}}"]


ALONE = [f"model.unimodal.training.{key}" for key in ("max_epochs=1", "batch_size=20")]
# What else makes a method small on a data set. CMPT works inside the encoders: it runs where the recipe has such ones.
SMALL_METHODS = {
    ("Digits", "CMPT"): [*ALONE, *(f"model.encoders.m{i}.size.num_hidden_layers=1" for i in range(5))],
    ("SpokenDigits", "CMPT"): ["dataset.form=CMPT", *ALONE],
    ("Food101", "CMPT"): [
        *tiny_transformer("image", "clip", image_size=32, patch_size=8),
        *tiny_transformer("text", "bert", max_position_embeddings=40),
    ],
    ("CREMAD", "CMPT"): [
        *tiny_transformer("audio", "ast", max_length=48, num_mel_bins=32, frequency_stride=16, time_stride=16),
        *tiny_transformer("visual", "clip", image_size=32, patch_size=8),
    ],
}


class Watch(pl.Callback):
    """Notes losses and which parameters ever had a gradient."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.reached: set[str] = set()
        self.trainable: set[str] = set()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad:
                self.trainable.add(name)
                if parameter.grad is not None and parameter.grad.abs().sum() > 0:
                    self.reached.add(name)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))


def fit(cfg: DictConfig) -> tuple[Run, Watch]:
    """Train the model of a configuration through the stage, watched (after what it is built on)."""
    watches, original = [], fit_module.build_trainer

    def watched(cfg: DictConfig, **arguments: Any) -> pl.Trainer:
        watches.append(Watch())
        return original(cfg, **{**arguments, "callbacks": [*arguments["callbacks"], watches[-1]]})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "build_trainer", watched)
        cfg.stages = ["fit"]
        pipeline.run(cfg)
    return Run(cfg), watches[-1]


# Parameters that training on complete data cannot reach, with the reason.
NEVER_REACHED = {"mask_special_token": "stands for missing cells, and published training has none"}
# DyMo only where another kind of content is completed; elsewhere its backbone is tried.
SELECTED = ("CAD", "Digits", "MST", "MultiFeatureDigits")
# A seed is followed through every kind of encoder, not through every data set.
SEEDED = ("CAD", "Digits", "Food101", "MST")
# All others are comparison methods: test_baselines.py.
PAIRS = [
    (dataset, model)
    for dataset, model in itertools.product(sorted(SMALL_DATA), REACH)
    if {"CMPT": (dataset, model) in SMALL_METHODS, "DyMo": dataset in SELECTED}.get(model, True)
]


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def run(request: pytest.FixtureRequest, base: Callable[..., list[str]]) -> tuple[Run, Watch, list[str]]:
    """Every model, trained for two epochs on every data set; what else it needs is estimated."""
    dataset, model = request.param
    fitted = "model.backbone.module" if "backbone" in configure(f"model={model}").model else "model.module"
    subsets = 2 ** len(configure(f"dataset={dataset}").dataset.modalities) - 1
    changes = [f"{fitted}.{key}={subsets if value is None else value}" for key, value in REACH[model].items()]
    overrides = base(dataset, model, *changes, *SMALL_METHODS.get(request.param, []), out=f"out_{model}", epochs=2)
    context, watch = fit(configure(*overrides))
    cfg = configure(*overrides)
    if context.uses_selection:
        cfg.stages = ["gaussian"]
        pipeline.run(cfg)
    return context, watch, overrides


def some_batch(context: Run, n: int = 12) -> Batch:
    """Rows with every number of missing modalities, from none to all but one."""
    m = len(context.data.modalities)
    rng = np.random.default_rng(0)
    missing = rng.random((n, m)).argsort(1) < (np.arange(n) % m)[:, None]
    batch = context.data.rows("test", np.arange(n))
    return batch.replace(missing=torch.from_numpy(missing))


def test_training_is_finite_and_reaches_every_parameter(run: tuple[Run, Watch, list[str]]) -> None:
    context, watch, _ = run
    assert len(watch.losses) == 6 and all(map(math.isfinite, watch.losses))
    unreached = {name for name in watch.trainable - watch.reached if name.rpartition(".")[2] not in NEVER_REACHED}
    assert watch.trainable and unreached == set()
    metrics = pd.read_csv(context.fit_directory / "metrics.csv")
    assert len(metrics) == 2 and {"epoch", "step", "train_loss", "val_loss", "val_accuracy"} <= set(metrics)
    assert metrics["train_loss"].tolist() == pytest.approx([np.mean(watch.losses[:3]), np.mean(watch.losses[3:])])
    assert np.isfinite(metrics[["train_loss", "val_loss", "val_accuracy"]]).all(axis=None)


# What stands for NaN and the like where content is ids; an embedding has none of them.
ANY_ID = {math.nan: 5, math.inf: 2**40, 1e30: -7}


def test_content_of_what_is_missing_changes_nothing(run: tuple[Run, Watch, list[str]]) -> None:
    context, _, _ = run
    method, batch = context.load_method(), some_batch(context)
    outputs = []
    for value in (None, math.nan, math.inf, 1e30):
        inputs = {}
        for i, (name, x) in enumerate(batch.inputs.items()):
            x = x.clone()
            if value is not None:
                x[batch.missing[:, i]] = value if x.is_floating_point() else ANY_ID[value]
            inputs[name] = x
        changed = batch.replace(inputs=inputs)
        with torch.inference_mode():
            alone = method(changed)
            together = method.predict_scenarios(changed, {"s": changed.replace(missing=batch.missing)})[""]["s"]
        outputs.append((alone.logits, together.logits))
    for pair in outputs:
        for logits, reference in zip(pair, outputs[0]):
            assert torch.isfinite(logits).all() and torch.equal(logits, reference)
    torch.testing.assert_close(*outputs[0], atol=batch_bound(outputs[0][0]), rtol=0)


def test_a_batch_of_one_gives_what_a_batch_of_many_gives(run: tuple[Run, Watch, list[str]]) -> None:
    context, _, _ = run
    method, batch = context.load_method(), some_batch(context)
    with torch.inference_mode():
        many = method(batch)
        for row in range(len(batch)):
            one = Batch(
                {name: x[row : row + 1] for name, x in batch.inputs.items()},
                batch.missing[row : row + 1],
                batch.target[row : row + 1],
                batch.index[row : row + 1],
            )
            single = method(one)
            torch.testing.assert_close(single.logits, many.logits[row : row + 1], atol=batch_bound(many.logits), rtol=0)
            if "final_missing" in many.extras:
                assert torch.equal(single.extras["final_missing"][0], many.extras["final_missing"][row])


def test_the_batch_is_left_as_it_was(run: tuple[Run, Watch, list[str]]) -> None:
    context, _, _ = run
    method, batch = context.load_method(), some_batch(context)
    before = [batch.missing.clone(), batch.target.clone(), *(x.clone() for x in batch.inputs.values())]
    with torch.inference_mode():
        method(batch)
    after = [batch.missing, batch.target, *batch.inputs.values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after))


def test_weights_read_back_into_a_new_model(run: tuple[Run, Watch, list[str]]) -> None:
    context, _, _ = run
    trained, batch = context.load_model(), some_batch(context)
    fresh = build_model(context.cfg, context.trainable, context.data).eval()
    with torch.inference_mode():
        assert not torch.equal(fresh(batch).logits, trained(batch).logits)
        missing, unexpected = fresh.load_state_dict(trained.state_dict(), strict=True)
        assert not missing and not unexpected
        assert torch.equal(fresh(batch).logits, trained(batch).logits)
    content = torch.load(context.checkpoint, weights_only=True)  # plain values only
    assert content["architecture"]["modalities"] == [[m.name, m.kind, list(m.shape)] for m in context.data.modalities]


@pytest.mark.parametrize("dataset", sorted(SMALL_DATA))
def test_a_sample_of_the_rows_is_packed_like_all(base: Any, dataset: str, tmp_path: Path) -> None:
    cfg = configure(*base(dataset, "Late"))
    complete = Run(cfg)
    complete.prepare_data()
    stored = complete.data.packed_meta()["counts"]
    cfg.dataset.store = str(tmp_path / "store")
    data = Run(cfg).data
    sample = data.pack_sample(3)
    assert sample is not None and sample.counts == stored and sample.seconds > 0
    assert data.modalities == complete.data.modalities and data.class_names == complete.data.class_names
    size = sum(file.stat().st_size for file in complete.data.store.folder.rglob("*.npy"))
    # Rows of SpokenDigits share more images than those of a sample.
    assert 0.75 * size < sample.nbytes < (5 if dataset == "SpokenDigits" else 1.25) * size
    assert 0 < len(data.store.split("train")) < len(complete.data.store.split("train"))


def test_the_plan_knows_the_parameters(run: tuple[Run, Watch, list[str]]) -> None:
    context, _, _ = run
    cfg = context.cfg.copy()
    cfg.missing.test = ["none", "whole_0"]
    if context.uses_selection:
        cfg.model.validation = ["whole_0"]
    forecast = foresee(Run(cfg), ["fit", "gaussian", "test"] if context.uses_selection else ["fit", "test"])
    assert forecast is not None and "fit" in forecast.finished
    network = context.load_model()
    assert forecast.parameters[context.trainable.name][0] == sum(p.numel() for p in network.parameters())
    assert all(seconds >= 0 for seconds in forecast.seconds.values()) and "test" in forecast.seconds


def test_a_bundle_predicts_like_the_run(run: tuple[Run, Watch, list[str]], tmp_path: Path) -> None:
    assert_bundle_predicts_alike(run[0], tmp_path)


def test_a_seed_decides_everything(run: tuple[Run, Watch, list[str]], tmp_path: Path) -> None:
    context, watch, overrides = run
    if context.cfg.dataset.name not in (SEEDED if not context.uses_selection else ("Digits",)):
        pytest.skip("the same encoders, or the same backbone, are followed on another data set")
    again, same = fit(configure(*overrides, f"paths.output={tmp_path / '0'}", "seed=0"))
    states = [torch.load(r.fit_directory / "checkpoints" / "last.ckpt", weights_only=True) for r in (context, again)]
    first, second = (state["state_dict"] for state in states)
    assert same.losses == watch.losses
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    if context.cfg.dataset.name == "Digits":  # one data set suffices to show that a model uses the seed
        _, other = fit(configure(*overrides, f"paths.output={tmp_path / '1'}", "seed=1"))
        assert other.losses[0] != watch.losses[0]


# ------------------------------------------------------------------------------------------------------------ imputers


# Need a table, which PolyMNIST has not: test_tip.py, test_iterative.py.
FOR_TABLES = ("TIP", "IMI")
MADE_OF_OTHERS = ("Chain",)  # test_chain.py


@pytest.mark.parametrize("name", [name for name in options("imputer") if name not in FOR_TABLES + MADE_OF_OTHERS])
def test_an_imputer_fills_what_is_missing_and_passes_the_rest_through(base, name: str) -> None:
    cfg = configure(*base("PolyMNIST", "DyMo", f"imputer={name}"), "imputer.quality.judge_epochs=1", "stages=[impute]")
    if "max_epochs" in cfg.imputer.training:
        cfg.imputer.training.max_epochs = 1
    if "width" in cfg.imputer:
        cfg.imputer.width = 4
    pipeline.run(cfg)
    context = Run(cfg)
    quality = pd.read_csv(context.imputer_directory / "quality.csv")
    assert quality.groupby("metric").size().to_dict() == {"coherence": 20, "judge_accuracy": 5, "mae": 20, "mse": 20}
    assert np.isfinite(quality["value"]).all()
    imputer, batch = context.load_imputer(), some_batch(context)
    spoilt = {}
    for i, (view, x) in enumerate(batch.inputs.items()):
        absent = batch.missing[:, i].view(-1, 1, 1, 1)
        spoilt[view] = x if isinstance(imputer, Oracle) else torch.where(absent, math.nan, x)
    recovered = imputer.impute(spoilt, batch.missing, batch.index)
    assert list(recovered) == context.data.modality_names
    assert set(batch.missing.sum(1).tolist()) == set(range(5)), "every number of missing views is tried"
    for i, (view, x) in enumerate(recovered.items()):
        present = ~batch.missing[:, i]
        assert torch.equal(x[present], batch.inputs[view][present]) and torch.isfinite(x).all()
        if "oracle" in imputer.needs:
            assert torch.equal(x, batch.inputs[view])
    for row in range(len(batch)):
        one = {view: x[row : row + 1] for view, x in spoilt.items()}
        single = imputer.impute(one, batch.missing[row : row + 1], batch.index[row : row + 1])
        for view, x in single.items():
            torch.testing.assert_close(x, recovered[view][row : row + 1], atol=batch_bound(recovered[view]), rtol=0)
    if name == "Mean":  # against the packed pixels
        for view, mean in imputer.state_dict().items():
            pixels = context.data.split("train").read(view).double() / 255
            torch.testing.assert_close(mean.double(), pixels.mean(0), atol=1e-6, rtol=0)


# ------------------------------------------------------------------------------------------------- loggers, experiments


@pytest.mark.parametrize("name", [*options("logger"), "[tensorboard,wandb]"])
def test_a_logger_logs(base, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("WANDB_API_KEY", "WANDB_ENTITY"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    before = set(os.listdir(ROOT))
    overrides = base("PolyMNIST", "DynamicTransformer", f"logger={name}", f"paths.output={tmp_path}", epochs=2)
    context, watch = fit(configure(*overrides))
    folder = context.fit_directory.path
    losses = [np.mean(watch.losses[:3]), np.mean(watch.losses[3:])]
    assert pd.read_csv(folder / "metrics.csv")["train_loss"].tolist() == pytest.approx(losses)
    if "tensorboard" in name:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder / "tensorboard")).Reload()
        assert [e.value for e in events.Scalars("train_loss")] == pytest.approx(losses)
        assert len(events.Scalars("val_accuracy")) == 2
    if "wandb" in name:
        import wandb

        wandb.finish()
        (log,) = folder.glob("wandb/offline-run-*/run-*.wandb")
        # A process of wandb's own writes the file, and on a busy machine it ends after `finish` has returned.
        deadline = time.monotonic() + 60
        while b"val_accuracy" not in log.read_bytes() and time.monotonic() < deadline:
            time.sleep(0.1)
        content = log.read_bytes()
        assert b"val_accuracy" in content and b"train_loss" in content
    assert set(os.listdir(ROOT)) - before <= {"__pycache__"}, "nothing is written beside the sources"


@pytest.mark.parametrize(("name", "dataset", "imputer"), SCHEDULES)
def test_a_schedule_runs_a_step_of_every_stage(base, name: str, dataset: str, imputer: str, tmp_path: Path) -> None:
    incomplete = "whole_12" if dataset == "MST" else "random_0.8"
    cfg = configure(
        *base(dataset, "DyMo", f"imputer={imputer}", f"schedule={name}", f"paths.output={tmp_path}"),
        "trainer.limit_train_batches=1",
        "dataset.train_fraction=1",
        "model.backbone.training.batch_size=60",
        "imputer.training.max_epochs=1",
        "imputer.quality.judge_epochs=1",
        f"missing.test=[none,{incomplete}]",
        "stages=[prepare,impute,fit,gaussian,test]",
    )
    pipeline.run(cfg)
    results = pd.read_csv(Run(cfg).directory / "results.csv")
    assert set(results["scenario"]) == {"none", incomplete} and np.isfinite(results["value"]).all()


# ------------------------------------------------------------------------------------------------------------ trainers


@pytest.mark.parametrize("name", options("trainer"))
def test_a_trainer_preset_builds_or_says_what_is_lacking(name: str) -> None:
    cfg = configure(f"trainer={name}")
    if name in ("gpu", "ddp") and not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"config 'trainer': .*[Nn]o supported gpu"):
            build_trainer(cfg, logger=False, enable_checkpointing=False)
    else:
        trainer = build_trainer(cfg, logger=False, enable_checkpointing=False)
        assert trainer.num_devices == 1 or name == "ddp"


PROBE = """
import os, sys
from pathlib import Path
import torch
from datasets.loader import PackedLoader
from trainers import fit
from trainers import run as pipeline

built, rows, written = [], [], []
build_model, gather, merge_metrics = fit.build_model, PackedLoader.gather, fit.merge_metrics

def building(*arguments):
    built.append(build_model(*arguments))
    return built[-1]

def gathering(self, picked, *more):
    if self.shuffle:
        rows.append(picked.tolist())
    return gather(self, picked, *more)

def merging(attempts, target, *rows):
    written.append(target.name)
    return merge_metrics(attempts, target, *rows)

fit.build_model, PackedLoader.gather, fit.merge_metrics = building, gathering, merging
torch.randn_like = torch.zeros_like
try:
    exec(compile(Path({root!r}, "run.py").read_text(), str(Path({root!r}, "run.py")), "exec"))
finally:
    state = built[0].state_dict() if built else None
    rank = int(os.environ.get("NODE_RANK", 0)) * {devices} + int(os.environ.get("LOCAL_RANK", 0))
    torch.save((state, rows, written), Path({out!r}, f"rank{{rank}}.pt"))
"""


IN_CAMPAIGNS = (pytest.mark.campaign, pytest.mark.skipif(not MINUTES, reason="four processes take long on two cores"))


@pytest.mark.parametrize(
    ("nodes", "n"), [(1, 2), pytest.param(1, 4, marks=IN_CAMPAIGNS), pytest.param(2, 4, marks=IN_CAMPAIGNS)]
)
def test_processes_train_what_one_with_their_common_batch_trains(
    base, tmp_path: Path, monkeypatch, nodes: int, n: int
) -> None:
    """Several gloo processes through ``run.py`` and ``trainer=ddp``: rows split, gradients averaged, prototypes and
    metrics reduced, by an imputer too. 49 rows: in the last step of the model, all processes but one have no row. The
    projection has no gradient in the first epoch, which plain DDP would not accept."""
    sgd = ["_target_=torch.optim.SGD", "lr=0.05", "fused=false"]
    settings = [f"model.module.optimizer.{setting}" for setting in sgd]
    settings += [f"imputer.module.optimizer.{setting}" for setting in (*sgd[::2], "lr=1.0e-5")]
    settings += ["imputer=MoPoE", "imputer.latent=6", "imputer.training.max_epochs=2", "imputer.quality=null"]
    settings += ["model.module.prototype_start=1", "dataset.train_fraction=0.82"]
    settings += ["trainer.limit_train_batches=null", "trainer.limit_val_batches=null"]

    def overrides(n: int, output: str) -> list[str]:
        # Fewer rows of the imputer than subsets, which then are all of the complete subset, whatever the process.
        batches = [f"model.training.batch_size={48 // n}", f"imputer.training.batch_size={28 // n}"]
        output = f"paths.output={tmp_path / output}"
        tiny = base("PolyMNIST", "DynamicTransformer", *settings, output, epochs=2)
        return [argument for argument in (*tiny, *batches) if argument != "imputer=Zero"]

    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    imputed = configure(*overrides(1, "one"))
    imputed.stages = ["impute"]
    pipeline.run(imputed)
    context, watch = fit(configure(*overrides(1, "one")))

    script = tmp_path / "probe.py"
    script.write_text(PROBE.format(root=str(ROOT), out=str(tmp_path), devices=n // nodes))
    parallel = ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={n // nodes}", f"trainer.num_nodes={nodes}"]
    parallel += ["stages=[impute,fit,gaussian,test]"]
    shared = [argument for argument in overrides(n, "all") if argument != "trainer=cpu"]
    command = [sys.executable, str(script), *shared, *parallel, "missing.test=[none,random_0.8]"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    if nodes > 1:
        with socket.create_server(("127.0.0.1", 0)) as server:
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
    logs = [tmp_path / f"node{node}.log" for node in range(nodes)]
    with ExitStack() as stack:
        started = []
        for node, log in enumerate(logs):  # one command per node, as srun and mpirun start it; the others are children
            stream = stack.enter_context(log.open("w"))
            of_node = environment | ({"NODE_RANK": str(node)} if nodes > 1 else {})
            started.append(subprocess.Popen(command, cwd=ROOT, env=of_node, stdout=stream, stderr=stream))
            stack.callback(started[-1].kill)
        codes = [process.wait(300) for process in started]
    output = "\n".join(log.read_text() for log in logs)
    assert codes == [0] * nodes, output

    saved = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(n)]
    (first, *others), rows, written = zip(*saved, strict=True)
    assert written == (["metrics.csv"] * 2, *([] for _ in others)), "one process writes the files of a run"
    for other in others:
        assert all(torch.equal(first[key], other[key]) for key in first), "all ranks hold the same weights"
    alone = torch.load(context.fit_directory / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for key, value in alone.items():
        torch.testing.assert_close(first[key], value, atol=2e-5, rtol=1e-3, msg=lambda text, key=key: f"{key}: {text}")
    assert first["prototypes"].abs().sum() > 0
    trained = "PolyMNIST/imputer_MoPoE/default/seed0"
    imputers = (tmp_path / folder / trained / "checkpoints" / "last.ckpt" for folder in ("one", "all"))
    alone, together = (torch.load(file, weights_only=True)["state_dict"] for file in imputers)
    for key, value in alone.items():
        torch.testing.assert_close(together[key], value, atol=2e-5, rtol=1e-3, msg=lambda t, key=key: f"{key}: {t}")

    # Two steps in each epoch of the imputer and of the model, and each row once, by one of the processes.
    assert all(list(map(len, of_rank))[::2] == [28 // n] * 2 + [48 // n] * 2 for of_rank in rows)
    for epoch in range(4):
        steps = zip(*(of_rank[2 * epoch : 2 * epoch + 2] for of_rank in rows), strict=True)
        seen = Counter(itertools.chain.from_iterable(itertools.chain(*step) for step in steps))
        fillers = 0 if epoch < 2 else n - 1
        assert len(seen) == 49 and seen.total() == 49 + fillers and max(seen.values()) == 1 + fillers

    run = tmp_path / "all" / "PolyMNIST" / "DynamicTransformer" / "default" / "seed0"
    assert len(watch.losses) == 4
    columns = ["train_loss", "val_loss"]
    for folder, scores in (("DynamicTransformer", ["val_accuracy"]), ("imputer_MoPoE", [])):
        files = (tmp_path / output / "PolyMNIST" / folder / "default" / "seed0" for output in ("one", "all"))
        one, two = (pd.read_csv(file / "metrics.csv")[columns + scores] for file in files)
        assert len(two) == 2
        np.testing.assert_allclose(two, one, rtol=1e-4)
    # Each process estimates on its share of the rows, every row once.
    actual = GaussianParameters.load(run / "gaussian_cosine.safetensors")
    model = build_model(context.cfg, context.trainable, context.data)
    model.load_state_dict(torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"])
    expected = estimate(model, [context.data.rows("train", np.arange(49))], progress=False)
    assert actual.about["rows"] == expected.about["rows"] == 49
    torch.testing.assert_close(actual.prototypes, expected.prototypes, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(actual.sigma, expected.sigma, atol=1e-6, rtol=1e-5)
    # One process speaks for all.
    assert output.count("stage gaussian:") == output.count("stage test:") == 1
    results = pd.read_csv(run / "results.csv")
    assert (run / "DONE").exists() and len(results) == 2 * 11 and np.isfinite(results["value"]).all()


@pytest.mark.parametrize("dataset", options("dataset"))
def test_every_scenario_of_the_presets_fits(dataset: str) -> None:
    for name in options("missing"):
        cfg = configure(f"missing={name}", f"dataset={dataset}", *OF_THE_USER.get(dataset, []))
        scenarios = Run(cfg).scenarios
        m = len(cfg.dataset.modalities)
        assert len(scenarios) == {"random": len(cfg.dataset.scenarios), "subsets": 2**m - 1}[name]
        for scenario in [*scenarios, parse_scenario(cfg.missing.train), parse_scenario(cfg.missing.val)]:
            if scenario.hides_cells:  # tests/datasets/missingness/test_table.py
                assert m > 1 and scenario.generate(Rows(20, 17, ranking=range(17))).shape == (20, 17)
                continue
            # Only image_text asks for kinds, and is for these two.
            mask = scenario.generate(Rows(20, m, cfg.missing.seed, ["image", "text"]))
            assert mask.shape == (20, m) and not mask.all(1).any()
