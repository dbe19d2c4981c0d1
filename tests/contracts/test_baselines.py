"""Contracts of the comparison methods: every option of ``model`` but those of ``test_contracts.py``."""

from __future__ import annotations

import copy
import json
import logging
import math
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from datasets.batch import Batch, Modality
from datasets.multi_feature_digits import VIEWS
from models.base import IncompleteClassifier, Prediction, classification_loss
from models.baselines.masks import TrainingMasks
from models.baselines.memory import RowMemory
from models.baselines.unimodal import prior_logits
from models.completed import Completed
from models.imputers.simple import Zero
from tests.bundles import assert_bundle_predicts_alike
from tests.makers import make_image_table
from tests.networks import under
from tests.tolerances import assert_close_sums, batch_bound
from trainers import fit as fit_module
from trainers import run as pipeline
from trainers.config.build import build_model, method_class
from trainers.config.compose import CONFIGS, compose_config, group_options
from trainers.config.imputers import build_imputer
from trainers.config.validate import validate
from trainers.loading import Run
from utils.errors import UserError
from utils.safe_pickle import read_tensors
from utils.subsets import enumerate_subsets

VECTOR, TOKENS = ["model.vector_width=8"], ["model.module.width=8", "model.module.heads=2"]
# Tried by test_contracts.py on every data set.
OF_ALL_DATA_SETS = ("CMPT", "DyMo", "DynamicTransformer")


def tiny_settings(method: str) -> list[str]:
    """Overrides that make a method small, from the lines "# In tests: ..." of its configuration file."""
    lines = re.findall(r"^# In tests: (.*?)(?:   .*)?$", (CONFIGS / "model" / f"{method}.yaml").read_text(), flags=re.M)
    return [override for line in lines for override in shlex.split(line)]


METHODS = {method: tiny_settings(method) for method in group_options("model") if method not in OF_ALL_DATA_SETS}
# Those that are built on an imputer: the families that it knows.
ONLY = {"MoPoE_Classification": ["PolyMNIST", "MST", "CelebA"], "CMVAE_Classification": ["PolyMNIST"]}
# To save time: MaskedAttention and its baselines on few families; of Pooling_MLP and Late, Zeros_MLP and ModelSelection
# have the code. All but the last are parts of a run of that as well.
PARTS_OF_RUNS = ("TokenUnimodal", "Zeros_MLP", "Pooling_MLP", "Late", "ModelSelection")
FEW: dict[str, list[str]] = {"MaskedAttention": ["MST", "CAD"], **{method: ["CAD"] for method in PARTS_OF_RUNS}}
FEW |= {"Pooling_MLP": [], "Late": []}
# Millions of parameters of the reference (docs/reference/baselines.md §3.3): PolyMNIST, MST, CelebA, DVM, CAD.
COUNTS: dict[str, list[float | None]] = {
    "ModDrop": [0.951, 0.733, 34.712, 38.453, 38.440],
    "Multimodal_CONCAT": [5.763, 0.709, 34.687, 37.085, 36.838],
    "MTL": [0.954, 0.733, 34.712, 38.453, 38.440],
    "MAP": [1.046, 0.735, 34.713, 38.465, 38.464],
    "QMF": [5.737, 0.708, 34.687, 36.938, 36.837],
    "PDF": [10.990, 0.720, 34.695, 37.464, 37.363],
    "DynMM": [12.815, 1.420, 69.376, 74.155, 73.807],
    "LogitAverage": [5.737, 0.708, 34.687, 36.938, 36.837],  # what QMF consists of
    "Concat_ModDrop": [5.763, 0.709, 34.687, 37.085, 36.838],
    "M3Care": [2.592, 0.749, 34.723, 39.104, 39.076],
    "MUSE": [2.076, 0.724, 34.703, 37.719, 37.691],
    "OnlineMAE": [7.250, 0.785, 34.764, 41.670, 41.642],
    "MultiAE": [13.009, 1.419, 70.165, None, None],
}
# Parameters that the published training reaches in no method.
NEVER_REACHED = {"mask_special_token"}


def views(*shapes: tuple[int, ...]) -> list[Modality]:
    return [Modality(f"m{i}", "image", shape) for i, shape in enumerate(shapes)]


IMG = Modality("img", "image", (3, 128, 128))
FAMILIES = {
    "PolyMNIST": (views(*[(3, 28, 28)] * 5), 10),
    "MST": ([Modality("mnist", "image", (1, 28, 28)), Modality("svhn", "image", (3, 32, 32)),
             Modality("text", "text", (8, 71))], 10),
    "CelebA": ([Modality("img", "image", (3, 64, 64)), Modality("text", "text", (256, 71))], 2),
    # Cardinalities of which only the sum counts.
    "DVM": ([IMG, Modality("tabular", "table", (17,), (5, 6, 5, 6))], 286),
    "CAD": ([IMG, Modality("tabular", "table", (75,), (2,) * 26)], 2),
}  # fmt: skip
SMALL = {
    "PolyMNIST": FAMILIES["PolyMNIST"],
    "MST": FAMILIES["MST"],
    "CelebA": FAMILIES["CelebA"],
    "CAD": ([Modality("img", "image", (3, 32, 32)), Modality("tabular", "table", (5,), (2, 3))], 3),
    # More than five modalities, and pairwise different widths.
    "MultiFeatureDigits": ([Modality(v, "table", (3 + i,)) for i, v in enumerate(VIEWS)], 10),
}


def small_convolutions(modality: str) -> list[str]:
    """In the place of a ResNet of an image, which has ten million parameters."""
    encoder = f"dataset.encoders.{modality}"
    return [f"~{encoder}", f"+{encoder}={{_target_:models.encoders.convolutional.ConvolutionalEncoder,width:16}}"]


def small_table(modality: str) -> list[str]:
    return [f"+dataset.encoders.{modality}.{key}" for key in ("width=16", "blocks=1", "heads=2")]


SMALL_ENCODERS = {
    "CelebA": ["+dataset.encoders.img.base=4", "+dataset.encoders.text.base=4"],
    "CAD": ["dataset.side=32", *small_convolutions("img"), *small_table("tabular")],
}
# The ResNet itself: for a method that reads tokens, and for one that reads vectors.
WITH_RESNET = ("ModDrop", "QMF")
RESNET_18 = ["dataset.image_weights=none", "dataset.encoders.img.architecture=resnet18", "dataset.side=32"]
SMALL_IMPUTER = [f"+imputer.{part}.{name}.base=4" for part in ("encoders", "decoders") for name in ("img", "text")]


def configure(*overrides: str) -> DictConfig:
    return compose_config(*overrides)


def build(method: str, family: str, *overrides: str, sizes: Any = SMALL, part: str = "") -> IncompleteClassifier:
    """A method on one family of encoders, or a ``part`` that stage fit trains before it."""
    cfg = configure(f"model={method}", f"dataset={family}", *overrides)
    modalities, classes = sizes[family]
    data: Any = SimpleNamespace(modalities=modalities, num_classes=classes, task="multiclass")
    context = Run(cfg)
    context.__dict__["data"] = data
    if not part and method not in ONLY:
        return context.build()
    imputer = build_imputer(cfg, data) if method in ONLY else None
    return build_model(cfg, cfg.model[part] if part else cfg.model, data, pretrained=False, imputer=imputer)


@pytest.fixture(scope="module", params=[f"{m}-{f}" for m in METHODS for f in (ONLY | FEW).get(m, SMALL)])
def untouched(request: pytest.FixtureRequest) -> tuple[IncompleteClassifier, str]:
    """Every method on every family of encoders, no parameter at a value that could hide a term."""
    method, family = request.param.split("-")
    torch.manual_seed(0)
    networks = SMALL_IMPUTER if (method, family) == ("MoPoE_Classification", "CelebA") else []
    encoders = SMALL_ENCODERS.get(family, [])
    if family == "CAD" and method in WITH_RESNET:
        encoders = [*RESNET_18, *small_table("tabular")]
    model = build(method, family, *METHODS[method], *encoders, *networks)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.log_losses = lambda *_: None  # type: ignore[method-assign]
    empty_memory(model)
    return model, family


@pytest.fixture
def small(untouched: tuple[IncompleteClassifier, str]) -> tuple[IncompleteClassifier, str]:
    """A copy, which the test may train."""
    torch.manual_seed(1)
    model, family = untouched
    return copy.deepcopy(model), family


def empty_memory(model: IncompleteClassifier) -> None:
    """As at the start of training, for the rows of :func:`some_batch`."""
    if isinstance(model, RowMemory):
        model.memory = torch.zeros(12, len(model.modalities))


def some_batch(family: str, rows: int = 12, seed: int = 0) -> Batch:
    """Every number of missing modalities, and of tables some cells as well; the last row has nothing but some cells
    where there are tables."""
    generator = torch.Generator().manual_seed(seed)
    modalities, classes = SMALL[family]
    inputs, cells = {}, {}
    for m in modalities:
        x = torch.rand(rows, *m.shape, generator=generator)
        if m.kind == "text":
            x = F.one_hot(x.argmax(-1), m.shape[-1]).to(x)
        if m.kind == "table":
            for column, levels in enumerate(m.cardinalities):
                x[:, column] = torch.randint(levels, (rows,), generator=generator)
            cells[m.name] = torch.rand(rows, *m.shape, generator=generator) < 0.5
            cells[m.name][: rows // 2] = True
        inputs[m.name] = x
    m = len(modalities)
    order = torch.rand(rows, m, generator=generator).argsort(1)
    missing = order < (torch.arange(rows) % m)[:, None]
    target = torch.arange(rows) % classes
    for i, modality in enumerate(modalities):
        if modality.name in cells:
            cells[modality.name] |= ~cells[modality.name].any(1, keepdim=True)
            cells[modality.name] &= missing[:, i, None]
            cells[modality.name][-1] = torch.arange(modality.shape[0]) % 2 == 0
    missing[-1] |= bool(cells)
    return Batch(inputs, missing, target, torch.arange(rows), cells)


def spoilt(model: IncompleteClassifier, batch: Batch, value: float) -> Batch:
    """The batch with ``value`` in everything that is missing."""
    inputs, cells = {}, model.cells(batch.missing, batch.feature_missing)
    for i, (name, x) in enumerate(batch.inputs.items()):
        absent = cells[name] if name in cells else batch.missing[:, i].reshape(-1, *[1] * (x.ndim - 1))
        inputs[name] = torch.where(absent, value, x)
    return batch.replace(inputs=inputs)


# ------------------------------------------------------------------------------------------------------------- leakage


def kept(prediction: Prediction) -> dict[str, Tensor]:
    """Everything that stage test keeps of a prediction."""
    features = {} if prediction.features is None else {"features": prediction.features}
    return {"logits": prediction.logits, **features, **prediction.extras}


def test_missing_content_reaches_no_prediction(small: tuple[IncompleteClassifier, str]) -> None:
    model, family = small
    batch = some_batch(family)
    model.eval()
    with torch.inference_mode():
        expected = kept(model(batch))
        assert torch.isfinite(expected["logits"]).all()
        for value in (math.nan, math.inf, 1e30):
            torch.testing.assert_close(
                kept(model(spoilt(model, batch, value))), expected, atol=0, rtol=0, equal_nan=True
            )
        # What stage test does: the encoders see everything, the fusion hides.
        inputs = batch.replace(missing=torch.zeros_like(batch.missing), feature_missing={}, complete=True)
        cells = {"s": batch.feature_missing} if batch.feature_missing else {}
        together = kept(model.predict_scenarios(inputs, under(inputs, {"s": batch.missing}, cells))[""]["s"])
    for key, value in expected.items():
        assert together.keys() == expected.keys()
        torch.testing.assert_close(together[key], value, atol=batch_bound(value), rtol=0, equal_nan=True)


def test_missing_content_reaches_no_loss_and_no_gradient(small: tuple[IncompleteClassifier, str]) -> None:
    """Data whose rows are incomplete keep their masks in training, whatever training hides besides."""
    model, family = small
    batch = some_batch(family)
    actual = []
    buffers = {k: v.clone() for k, v in model.state_dict().items()}
    for value in (0.3, math.nan, 1e30):
        model.load_state_dict(buffers)
        empty_memory(model)
        model.train().zero_grad()
        torch.manual_seed(1)  # dropout of encoders
        loss = model.training_step(spoilt(model, batch, value), 0)
        loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        actual.append([loss.detach(), *gradients, *model.buffers()])
        assert torch.isfinite(loss) and all(torch.isfinite(g).all() for g in gradients)
        actual[-1] = [x.clone() for x in actual[-1]]
    for other in actual[1:]:
        assert len(other) == len(actual[0]) and all(torch.equal(a, b) for a, b in zip(actual[0], other))


def test_gradients_reach_every_parameter(small: tuple[IncompleteClassifier, str]) -> None:
    model, family = small
    batch = some_batch(family)
    whole = batch.replace(missing=torch.zeros_like(batch.missing), feature_missing={}, complete=True)
    for step in range(3):
        model.training_step(whole, step).backward()
    unreached = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert {name.rpartition(".")[2] for name in unreached} <= NEVER_REACHED, unreached


def test_a_row_is_classified_alone_as_among_others(small: tuple[IncompleteClassifier, str]) -> None:
    model, family = small
    if model.batch_dependent:
        pytest.skip("rows see each other by design")
    batch = some_batch(family)
    model.eval()

    def rows(x: Tensor, row: int) -> Tensor:
        return x[row : row + 1]

    with torch.inference_mode():
        many = model(batch).logits
        for row in range(len(batch)):
            one = Batch(
                {name: rows(x, row) for name, x in batch.inputs.items()},
                rows(batch.missing, row),
                rows(batch.target, row),
                rows(batch.index, row),
                {name: rows(cells, row) for name, cells in batch.feature_missing.items()},
            )
            torch.testing.assert_close(model(one).logits, rows(many, row), atol=batch_bound(many), rtol=0)


# ---------------------------------------------------------------------------------------------------- parameter counts


@pytest.mark.parametrize(
    ("method", "family", "millions"),
    [(m, f, n) for m, counts in COUNTS.items() for f, n in zip(FAMILIES, counts, strict=True) if n is not None],
)
def test_parameter_counts_of_the_reference(method: str, family: str, millions: float) -> None:
    weights = ["dataset.image_weights=none"] if family in ("DVM", "CAD") else []
    with torch.device("meta"):
        model = build(method, family, *weights, sizes=FAMILIES)
    count = sum(p.numel() for p in model.parameters())
    # The reference's concatenation carries the unused heads of its M unimodal parts.
    if method in ("Multimodal_CONCAT", "Concat_ModDrop", "DynMM"):
        modalities, classes = FAMILIES[family]
        concat: Any = model.concat if method == "DynMM" else model
        count += len(modalities) * (concat.vector_width + 1) * classes
    if method == "MultiAE":  # the reference carries the decoders along
        with torch.device("meta"):
            autoencoder = build(method, family, sizes=FAMILIES, part="autoencoder")
        count += sum(p.numel() for p in autoencoder.decoders.parameters())  # type: ignore[union-attr]
    assert round(count / 1e6, 3) == millions, count


@pytest.mark.parametrize(
    ("family", "millions"), {"PolyMNIST": [1.147] * 5, "MST": [0.327, 0.236, 0.145], "CelebA": [21.498, 13.189]}.items()
)
def test_parameter_counts_of_the_reference_unimodal(family: str, millions: list[float]) -> None:
    for i, expected in enumerate(millions):
        with torch.device("meta"):
            model = build("Unimodal", family, f"model.modality={i}", sizes=FAMILIES)
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == expected


# --------------------------------------------------------------------------------------------------------------- masks


def test_bernoulli_masks_have_the_shares_of_the_spec() -> None:
    """Measured on the reference (docs/reference/baselines.md §2.3): how many of 5 modalities are kept."""
    drawn = TrainingMasks("bernoulli", p=0.5).draw(torch.zeros(200_000, 5, dtype=torch.bool), generator())
    shares = torch.bincount((~drawn[0]).sum(1), minlength=6) / 200_000
    np.testing.assert_allclose(shares, [0, 0.187, 0.313, 0.312, 0.157, 0.031], atol=0.004)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("per", ["row", "batch"])
@pytest.mark.parametrize("kind", ["none", "bernoulli", "subsets", "count", "all"])
def test_masks_keep_those_of_the_data_and_leave_something(kind: str, per: str) -> None:
    missing = torch.rand(500, 4, generator=generator(1)).argsort(1) < torch.randint(4, (500, 1), generator=generator(2))
    masks = TrainingMasks(kind, k=3, per=per)
    drawn = masks.draw(missing, generator())
    assert drawn.shape == ({"none": 1, "bernoulli": 1, "subsets": 3, "count": 1, "all": 15}[kind], 500, 4)
    assert not (missing & ~drawn).any() and not drawn.all(2).any()
    assert torch.equal(drawn, masks.draw(missing, generator()))
    whole = torch.zeros_like(missing)
    free = masks.draw(whole, generator())
    if kind == "none":
        assert not free.any()
    if kind == "all":
        assert torch.equal(free, enumerate_subsets(4)[:, None].expand(-1, 500, -1))
    if kind == "subsets":
        assert all(len(set(map(tuple, row.tolist()))) == 3 for row in free.transpose(0, 1))
        counts = torch.bincount((free.int() * torch.tensor([1, 2, 4, 8])).sum(2).flatten(), minlength=16)
        assert per == "batch" or (counts[:15] - 100).abs().max() < 45
    if kind == "count" and per == "row":
        sizes = torch.bincount((~free).sum(2).flatten(), minlength=5)
        assert sizes[0] == 0 and (sizes[1:] - 125).abs().max() < 40
    if kind in ("bernoulli", "subsets", "count"):
        assert len(set(map(str, free.transpose(0, 1).tolist()))) > 10 or per == "batch"
        assert per == "row" or (free == free[:, :1]).all() or kind == "bernoulli"


def test_all_masks_of_a_step_count_alike() -> None:
    """The stacked call against one call per mask."""
    model = build("ModDrop", "CAD", *TOKENS, *SMALL_ENCODERS["CAD"], "model.module.masks.kind=all")
    batch = some_batch("CAD")
    masks = model.masks.draw(batch.missing, generator())  # type: ignore[union-attr, operator]
    encoded = model.encode_batch(batch)  # type: ignore[operator]
    stacked = model.losses_under(encoded, batch, masks)["loss"]  # type: ignore[operator]
    parts = []
    for mask in masks:
        # A table that the data have in part loses the rest where the mask did not add it.
        cells = batch.feature_missing["tabular"] | (mask & ~batch.missing)[:, 1, None]
        prediction = model.fuse(encoded, batch.replace(missing=mask, feature_missing={"tabular": cells}))  # type: ignore[operator]
        parts.append(classification_loss(prediction.logits, batch.target, "multiclass"))
    assert_close_sums(stacked, torch.stack(parts).mean())


def test_masks_in_parts_have_the_losses_and_gradients_of_one_call() -> None:
    model = build("MTL", "CAD", *TOKENS, *SMALL_ENCODERS["CAD"])
    batch, gradients = some_batch("CAD"), []
    masks = model.masks.draw(batch.missing, generator())  # type: ignore[union-attr, operator]
    for at_once in (64, 2):
        model.zero_grad()
        model.masks_at_once = at_once  # type: ignore[assignment]
        losses = model.losses_under(model.encode_batch(batch), batch, masks)  # type: ignore[operator]
        losses["loss"].backward()
        gradients.append([losses["loss"].detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(masks) == 3 and len(gradients[0]) > 10
    for expected, actual in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_masks_say_what_is_wrong() -> None:
    for bad in ({"kind": "dropout"}, {"p": 1.0}, {"k": 0}, {"per": "epoch"}):
        with pytest.raises(ValueError, match="masks"):
            TrainingMasks(**bad)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- methods


def test_unimodal_answers_without_its_modality_by_class_frequencies() -> None:
    model = build("Unimodal", "PolyMNIST", *VECTOR, "model.modality=m3").eval()
    model.prior.copy_(prior_logits(torch.tensor([0] * 6 + [4] * 3), 10))  # type: ignore[union-attr, operator]
    batch = some_batch("PolyMNIST")
    with torch.inference_mode():
        shares = model(batch).logits.softmax(1)
    absent = batch.missing[:, 3]
    expected = torch.tensor([7, 1, 1, 1, 4, 1, 1, 1, 1, 1]) / 19
    torch.testing.assert_close(shares[absent], expected.expand(int(absent.sum()), -1))
    assert not torch.isclose(shares[~absent], expected).all(1).any()
    labels = torch.tensor([[1.0, 0], [1, -1], [0, -1]])
    torch.testing.assert_close(prior_logits(labels, 2).sigmoid(), torch.tensor([3 / 5, 1 / 3]))


def test_moddrop_zeroes_content_and_keeps_embeddings() -> None:
    """A missing modality counts as one whose normalised tokens are zero."""
    model = build("ModDrop", "PolyMNIST", *TOKENS).eval()
    batch = some_batch("PolyMNIST")
    with torch.inference_mode():
        expected = model(batch).logits
        parts = []
        for i, name in enumerate(model.modality_names):
            content = model.m_norms[i](model.m_projection[name](model.encoders[name](batch.inputs[name])))  # type: ignore[union-attr, operator, index]
            content = content * ~batch.missing[:, i, None, None]
            parts.append(content + model.modality_embeddings.weight[i] + model.pos_embeddings[:, 1 + 4 * i : 5 + 4 * i])  # type: ignore[union-attr, index]
        x = model.with_class_token(torch.cat(parts, 1))  # type: ignore[operator]
        for block in model.transformer:  # type: ignore[union-attr]
            x = block(x)
        torch.testing.assert_close(model.classifier(x[:, 0]), expected)  # type: ignore[operator]


def test_completed_clears_the_masks() -> None:
    model = build("Multimodal_CONCAT", "PolyMNIST", *VECTOR).eval()
    batch = some_batch("PolyMNIST")
    whole = batch.replace(inputs=batch.observed(), missing=torch.zeros_like(batch.missing))
    with torch.inference_mode():
        expected = model(whole).logits
        assert torch.equal(Completed(model, Zero())(spoilt(model, batch, math.nan)).logits, expected)
        assert not torch.allclose(model(batch).logits, expected)


# ------------------------------------------------------------------------------------------------------- whole pipeline

RUN = ["model.training.batch_size=16", "imputer=Mean", "dataset.training_defaults.schedule=cosine"]


WITHOUT_REPORT = ["prepare", "impute", "fit", "gaussian", "test"]


def run_of(method: str) -> list[str]:
    """What makes a run of a method small."""
    return [*METHODS[method], *(RUN[:1] if method in ONLY else RUN)]


@pytest.fixture
def vectors(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., DictConfig]:
    """As ``composed``, on six vectors, which take a tenth of the time of five pictures."""
    folder = tmp_path_factory.getbasetemp() / "vectors"
    common = [
        "dataset=MultiFeatureDigits",
        "dataset.demo=true",
        f"dataset.root={folder / 'raw'}",
        "trainer=cpu",
        "dataset.train_fraction=0.3",
    ]
    common += [f"paths.cache={folder / 'cache'}", f"paths.output={tmp_path / 'out'}"]
    common += ["trainer.enable_progress_bar=false", "imputer.quality.judge_epochs=1"]
    return lambda *overrides: configure(*common, *overrides)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("method", [method for method in METHODS if method not in PARTS_OF_RUNS])
def test_the_default_stages_run_and_resume(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
) -> None:
    """From data to results; interrupted and continued, the weights are those of an uninterrupted run.

    The report and the quality of recoveries, which are the same for all methods, are written for one.
    """
    composed = request.getfixturevalue("composed" if method in ONLY else "vectors")
    overrides = [f"model={method}", *run_of(method), "model.training.max_epochs=2"]
    overrides += [] if method == "ModDrop" else ["imputer.quality=null"]
    imputes = composed(*overrides).model.use_imputer or method in ONLY
    overrides += [] if imputes else ["missing.train=random_0.2"]  # imputers learn from complete data
    cfg = composed(*overrides)
    if method != "ModDrop":
        cfg.stages = WITHOUT_REPORT
    with caplog.at_level(logging.INFO):
        pipeline.run(cfg)
    context = Run(cfg)
    name = cfg.model.name
    assert f"stage gaussian: skipped, {name} has no use for Gaussian parameters" in caplog.text
    unused = f"stage impute: skipped, {name} uses no imputer (it would with model.use_imputer=true)"
    assert (unused in caplog.text) is not imputes
    assert context.imputer_directory.path.exists() is imputes
    results = pd.read_csv(context.directory / "results.csv")
    assert set(results["scenario"]) == set(cfg.missing.test) and np.isfinite(results["value"]).all()
    label = name + ("_Mean" if cfg.model.use_imputer else "")
    alone = context.data.modality_names if method_class(cfg.model).reports_unimodal else []
    assert set(results["model"]) == {label, *(f"{label}/{modality}" for modality in alone)}
    assert context.directory.path.parts[-3] == label
    assert_bundle_predicts_alike(context, tmp_path)

    original = fit_module.build_trainer

    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.current_epoch == 1 and trainer.global_step % 4 == 2:
                raise KeyboardInterrupt

    def interrupting(cfg: DictConfig, **arguments: Any) -> pl.Trainer:
        return original(cfg, **{**arguments, "callbacks": [*arguments["callbacks"], Stop()]})

    cut = [*overrides, f"paths.output={tmp_path / 'cut'}", f"stages=[{'impute,' * (method in ONLY)}fit]"]
    # What the method is built on is there; it does not train again.
    shutil.copytree(cfg.paths.output, tmp_path / "cut")
    again = Run(composed(*cut))
    for folder in {again.directory.path, again.fit_directory.path}:
        shutil.rmtree(folder)
    monkeypatch.setattr(fit_module, "build_trainer", interrupting)
    with pytest.raises(KeyboardInterrupt, match="run the same command"):
        pipeline.run(composed(*cut))
    monkeypatch.setattr(fit_module, "build_trainer", original)
    pipeline.run(composed(*cut))
    paths = [c.fit_directory / "checkpoints" / "last.ckpt" for c in (context, again)]
    ends = [read_tensors(path) for path in paths]
    a, b = ({**end["state_dict"], "row_memory": end.get("row_memory", torch.zeros(0))} for end in ends)
    assert all(state["last_epoch"] == 2 for state in ends[0]["lr_schedulers"])
    hidden = context.data.mask("train", context.data.missing_train)
    assert int((a["row_memory"] > 0).sum()) == (0 if method != "QMF" else int((~hidden).sum()))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def table_with_gaps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_table(tmp_path_factory.mktemp("gaps") / "parts", per_class=20)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in (*ONLY, *PARTS_OF_RUNS[:-1])])
def test_tables_with_gaps_run(tmp_path: Path, table_with_gaps: Path, method: str) -> None:
    csv = table_with_gaps
    table = ["dataset.image=photo", "dataset.image_suffix=.jpg", "dataset.label=kind", f"dataset.csv={csv}"]
    table += [f"dataset.images={csv.parent / 'photos'}", "dataset.classes=[nut,bolt,screw]"]
    table += ["dataset.categorical={metal:null,finish:null}", "dataset.continuous=[weight,length]"]
    resnet = ["dataset.encoders.image.architecture=resnet18"]
    table += ["dataset.side=32", "dataset.stored_side=32", *small_table("table")]
    table += resnet if method in WITH_RESNET else small_convolutions("image")
    overrides = ["dataset=ImageTable", *table, f"model={method}", *run_of(method), "trainer=cpu"]
    overrides += ["model.training.max_epochs=1", "trainer.enable_progress_bar=false", "missing.train=none"]
    overrides += [f"paths.cache={csv.parents[1] / 'cache'}", f"paths.output={tmp_path / 'out'}"]
    overrides += ["missing.test=[none,whole_1,table_value_0.5]", "imputer.quality.judge_epochs=1"]
    cfg = configure(*overrides)
    cfg.stages = WITHOUT_REPORT
    pipeline.run(cfg)
    results = pd.read_csv(Run(cfg).directory / "results.csv")
    assert len(set(results["scenario"])) == 3 and np.isfinite(results["value"]).all()
    assert_bundle_predicts_alike(Run(cfg), tmp_path, "table_value_0.5")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=Multimodal_CONCAT", "model.use_imputer=false"], "complete inputs only, but missing.test has random"),
        (["model=Unimodal", "model.modality=m7"], "model.modality=m7: PolyMNIST has m0, m1, m2, m3, m4"),
        (["model=Multimodal_CONCAT", "missing.train=random_0.2"], "missing.train=random_0.2: stage impute learns from"),
        (["model=ModDrop", "model.use_imputer=true", "imputer=Oracle"], "imputer=Oracle reads the content"),
        (["model=ModDrop", "model.checkpoint=nowhere.ckpt"], "model.checkpoint: there is no file nowhere.ckpt"),
        (["model=ModDrop", "+model.training.accumulate_grad_batches=0"], "accumulate_grad_batches=0: must be a whole"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_said(composed, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        validate(composed(*overrides))


def test_a_method_of_one_mask_a_step_takes_no_several() -> None:
    nothing = torch.zeros(4, 3, dtype=torch.bool)
    for many in (TrainingMasks("subsets", k=2), TrainingMasks("all")):
        with pytest.raises(UserError, match="draws several masks per step"):
            many.draw_one(nothing, generator())
    for one in (TrainingMasks("subsets", k=1), TrainingMasks("count")):
        assert torch.equal(one.draw_one(nothing, generator()), one.draw(nothing, generator())[0])


def test_maps_reference_draws_for_whole_batches() -> None:
    for reference, per in ((False, "row"), (True, "batch")):
        model = build("MAP", "PolyMNIST", *TOKENS, f"model.module.reference={reference}")
        assert model.masks.per == per  # type: ignore[union-attr]


def test_a_data_set_without_defaults_for_comparison_methods_is_named(composed) -> None:
    cfg = composed("model=ModDrop")
    OmegaConf.set_struct(cfg, False)
    del cfg.dataset.training_defaults
    with pytest.raises(UserError, match="dataset=PolyMNIST has no block 'training_defaults'"):
        validate(cfg)


def test_capabilities_are_checked(composed, monkeypatch: pytest.MonkeyPatch) -> None:
    from models.baselines.moddrop import ModDrop

    settings = {"max_modalities": 3, "needs_complete_training": True, "needs_index": True, "built_on": ("TIP",)}
    for name, value in {**settings, "accepts_imputer": False}.items():
        monkeypatch.setattr(ModDrop, name, value)
    cfg = composed("model=ModDrop", "missing.train=random_0.2", "trainer.devices=2", "model.use_imputer=true")
    with pytest.raises(UserError) as caught:
        validate(cfg)
    for line in ("at most 3 modalities", "trains on complete data", "trainer.devices=1", "imputer=TIP", "no imputer"):
        assert line in str(caught.value)


def test_a_part_that_does_not_fit_is_refused_before_the_data_are_packed(composed, tmp_path) -> None:
    demo = ["dataset=DVM", "dataset.demo=true", f"paths.data={tmp_path}"]
    chosen = ("model=Multimodal_CONCAT", "model.use_imputer=true", "imputer=Chain", "imputer.modalities={img:TIP}")
    for stages in ("[prepare,impute]", "[prepare,fit,test]"):
        with pytest.raises(
            UserError, match=r"imputer\.parts\.img=TIP: cannot recover 'img' \(image\).*choose one that"
        ):
            pipeline.run(composed(*chosen, *demo, f"stages={stages}", tiny=False))
    assert not list(tmp_path.iterdir())


def test_a_method_made_of_trained_models_is_refused_without_them(composed) -> None:
    for name in ("DynMM", "LogitAverage"):
        with pytest.raises(UserError, match=f"model.prerequisites=null: {name} is made of trained models"):
            validate(composed(f"model={name}", "model.prerequisites=null"))
    validate(composed("model=SimMLM", "model.prerequisites=null"))


def test_all_gpus_of_a_machine_are_several_processes(composed, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = composed("model=QMF", "trainer.devices=auto", "trainer.accelerator=auto")
    validate(cfg)  # there is one or none
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"set trainer\.devices=1"):
        validate(cfg)
    cfg.trainer.accelerator = "cpu"
    validate(cfg)


def mixture(composed: Callable[..., DictConfig], *overrides: str) -> DictConfig:
    """A method on M unimodal experts and a concatenation, written as a configuration file would compose it."""
    small = [*RUN, "model.training.max_epochs=1", *VECTOR]
    cfg = composed("model=Unimodal", *small, *overrides)
    concat = composed("model=Multimodal_CONCAT", *small).model
    node = OmegaConf.to_container(cfg.model, resolve=False)
    assert isinstance(node, dict)
    cfg.model = {
        **{"name": "Mixture", "checkpoint": None, "use_imputer": False, "vector_width": 8},
        "prerequisites": {"unimodal": "each_modality", "concat": "once"},
        "unimodal": node,
        "concat": OmegaConf.to_container(concat, resolve=False),
        "module": {"_target_": "tests.toy_methods.Mixture", "optimizer": node["module"]["optimizer"]},
        "training": {**node["training"], "max_epochs": 2, "accumulate_grad_batches": 2},
    }
    OmegaConf.set_struct(cfg, True)
    return cfg


def test_parts_with_another_option_have_run_directories_of_their_own(composed) -> None:
    """Late fusion of parts with more feature dropout beside one of parts with less: neither is refused, and neither
    loses its parts to the other, with overwrite or without."""

    def context(*overrides: str) -> Run:
        return Run(composed("model=Late", *RUN, *METHODS["Late"], "stages=[fit]", *overrides))

    pipeline.run(context().cfg)
    changed = ["model.unimodal.module.feature_dropout=0.5", "overwrite=true"]
    pipeline.run(context("model.name=Late_other", *changed).cfg)
    usual, other, third = context(), context(*changed), context("model.name=Late_third", *changed)
    for label, part in other.prerequisites.items():
        same, different = usual.prerequisites[label].fit_directory.path, part.fit_directory.path
        assert same.parent.parent.name == f"TokenUnimodal_Late_{label.removeprefix('unimodal_')}"
        assert re.fullmatch(rf"{same.parent.parent.name}-[0-9a-f]{{8}}", different.parent.parent.name)
        assert different.parent.parent.parent == same.parent.parent.parent
        rates = [
            json.loads((path / "stages" / "fit.json").read_text())["settings"]["model"]["module"]["feature_dropout"]
            for path in (same, different)
        ]
        assert rates == [0.3, 0.5]
        assert third.prerequisites[label].fit_directory.path == different, "the same option finds its parts again"


def test_what_a_method_is_built_on_is_trained_first(composed, caplog: pytest.LogCaptureFixture) -> None:
    cfg = mixture(composed, "stages=[fit,test]")
    pipeline.run(cfg)
    context = Run(cfg)
    labels = [*(f"unimodal_m{i}" for i in range(5)), "concat"]
    assert list(context.prerequisites) == labels
    state = read_tensors(context.checkpoint)["state_dict"]
    for label, part in context.prerequisites.items():
        separate = read_tensors(part.checkpoint)["state_dict"]
        assert separate and all(torch.equal(state[f"experts.{label}.{key}"], value) for key, value in separate.items())
    assert set(pd.read_csv(context.directory / "results.csv")["model"]) == {"Mixture"}
    # 60 rows in batches of 16, two batches a step, and every row was seen in each of two epochs.
    last = torch.load(context.fit_directory / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4 and torch.equal(last["row_memory"], torch.full((60, 5), 2.0))
    # The runs of the parts are those that the parts have on their own.
    with caplog.at_level(logging.INFO):
        own_run = ["model=Unimodal", "model.modality=1", *VECTOR, *RUN, "model.training.max_epochs=1", "stages=[fit]"]
        pipeline.run(composed(*own_run))
        pipeline.run(mixture(composed, "stages=[fit]"))
    assert caplog.text.count("is there and valid, skipped") == 2
