"""What joins the parts of the comparison methods: mixing, losses, what is taken over from earlier stages; besides, the
published settings and what each method declares. Slow versions are a row at a time, from the formulas."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from datasets.batch import Batch
from models.base import IncompleteClassifier, Prediction
from models.baselines.simmlm import ranking_loss
from tests.contracts.test_baselines import METHODS, SMALL, SMALL_ENCODERS, build, configure, some_batch
from tests.models.baselines.test_baseline_formulas import attend, random_model
from tests.tolerances import assert_close_sums
from trainers.config.build import build_model
from trainers.config.compose import CONFIGS
from trainers.config.validate import validate
from trainers.loading import Run
from utils.errors import UserError

REFERENCE = pytest.mark.parametrize("reference", [False, True])


def exact_model(method: str, *overrides: str) -> Any:
    """A method on PolyMNIST, random in all that it has, in float64."""
    model = random_model(method, "PolyMNIST", *overrides).double()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d):
            norm.running_mean.normal_()  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model


def exact_batch() -> Batch:
    """Twelve rows that lack none to four of five modalities."""
    batch = some_batch("PolyMNIST")
    return batch.replace(inputs={name: x.double() for name, x in batch.inputs.items()})


def normed(norm: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias)


def class_token(cls: Tensor, positions: Tensor, tokens: Tensor, blocks: Any) -> Tensor:
    """The class token (D,) of one row after transformer blocks on it and its tokens (M, D)."""
    x = torch.cat([cls[0], tokens]) + positions[0]
    for block in blocks:
        x = attend(block, x)
    return x[0]


def assert_same_with_gradients(model: nn.Module, found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected)
    parameters = [p for p in model.parameters() if p.requires_grad]
    pair = [torch.autograd.grad(x, parameters, allow_unused=True) for x in (found, expected)]
    for parameter, a, b in zip(parameters, *pair, strict=True):
        zero = torch.zeros_like(parameter)
        torch.testing.assert_close(zero if a is None else a, zero if b is None else b, atol=1e-9, rtol=1e-6)


# -------------------------------------------------------------------------------------------------------------- M3Care


def m3care(reference: bool, *overrides: str) -> Any:
    model = exact_model("M3Care", f"model.module.reference={reference}", "model.module.anchors=7", *overrides)
    model.threshold.data.fill_(-1.0)  # some rows are neighbours, some are not
    for layer in (0, 2, 4):  # of the projected vectors some are longer, some shorter than the raw ones
        model.maps[1][layer].weight.data *= 12
    if not reference:
        generator = torch.Generator().manual_seed(5)
        model.anchors.copy_(torch.randn(7, 5, 8, generator=generator))
        model.anchor_missing.copy_(torch.rand(7, 5, generator=generator) < 0.4)
        model.anchor_missing[3] = True
    return model


def phi(model: Any, m: int, x: Tensor) -> Tensor:
    first, second, third = (layer for layer in model.maps[m] if isinstance(layer, nn.Linear))
    return third(second(first(x).relu()).relu())


def m3care_graph(model: Any, h: Tensor, there: Tensor, among: Tensor) -> Tensor:
    """S (N, N) of nodes h (N, M, D); ``among`` (N, M): the rows that bandwidths (and batch statistics) are of."""
    total, count = torch.zeros(len(h), len(h)).double(), torch.zeros(len(h), len(h)).double()
    for m in range(5):
        rows = among[:, m].nonzero()[:, 0]
        kernels = []
        for view, u in enumerate((phi(model, m, h[:, m]), h[:, m])):
            norm = model.kernel_norms[0 if model.reference else 5 * view + m]
            mean, variance = norm.running_mean, norm.running_var
            if model.training:
                mean = u[rows].mean(0)
                variance = (u[rows] - mean).square().mean(0)
            u = (u - mean) / (variance + 1e-5).sqrt() * model.kernel_scale
            d = (u[:, None] - u).square().sum(-1)
            b = d[rows][:, rows].sum().detach() / max(1, len(rows) ** 2 - len(rows))
            b = b if b >= 1e-3 else torch.ones(())
            kernels.append(sum((-d / (scale * b)).exp() for scale in (0.5, 1.0, 2.0)) / 3)
        mix = model.kernel_mix[m].sigmoid()
        pair = torch.outer(there[:, m].double(), there[:, m].double())
        total, count = total + pair * ((1 - mix) * kernels[0] + mix * kernels[1]), count + pair
    s, cut = total / (count + 1e-9), model.threshold.sigmoid()
    return torch.where(s > cut, s - cut + cut.detach(), 0)


def m3care_imputed(model: Any, h: Tensor, there: Tensor) -> Tensor:
    """(B, M, D) out of the graph of the batch, or of each row's own with the anchors, which do not see it."""

    def convolved(nodes: Tensor, s: Tensor) -> Tensor:
        a = s if model.reference else s / s.sum(1)[:, None].clamp(min=1e-12)
        for weight, bias in zip(model.graph_weights, model.graph_biases):
            nodes = torch.stack([F.selu(a @ nodes[:, m] @ weight[m] + bias[m]) for m in range(5)], 1)
        return nodes

    if model.training or model.reference:
        return convolved(h, m3care_graph(model, h, there, there | model.reference))
    known = ~model.anchor_missing
    actual = []
    for row in range(len(h)):
        nodes = torch.cat([torch.where(known[..., None], model.anchors, 0), h[row, None]])
        everywhere = torch.cat([known, there[row, None]])
        among = torch.cat([known, torch.zeros(1, 5, dtype=torch.bool)])
        s = m3care_graph(model, nodes, everywhere, among)
        s[:7, 7] = 0
        actual.append(convolved(nodes, s)[7])
    return torch.stack(actual)


def m3care_by_hand(model: Any, batch: Batch, missing: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, C), and by how much the lengths of projected and raw vectors differ (M,)."""
    present = ~missing
    encoded = [normed(model.m_norms[i], model.encoders[f"m{i}"](batch.inputs[f"m{i}"])[:, 0]) for i in range(5)]
    h = torch.where(present[..., None], torch.stack(encoded, 1), 0)
    imputed = m3care_imputed(model, h, present)
    logits = []
    for row in range(len(h)):
        tokens = []
        for m in range(5):
            token = imputed[row, m]
            if present[row, m]:
                new, separate = model.share_imputed[m](token).sigmoid(), model.share_own[m](h[row, m]).sigmoid()
                alpha = new / (new + separate)
                token = alpha * token + (1 - alpha) * h[row, m]
            tokens.append(token + model.modality_embeddings.weight[min(m, 1) if model.reference else m])
        cls = class_token(model.cls_token, model.pos_embeddings, torch.stack(tokens), model.transformer)
        logits.append(model.classifier(cls))
    apart = []
    for m in range(5):
        raw = h[:, m] if model.reference else h[present[:, m], m]  # the original counts rows of zeros as well
        apart.append(phi(model, m, raw).norm() - raw.norm())
    return torch.stack(logits), torch.stack(apart)


@REFERENCE
def test_m3care_predicts_by_the_formulas(reference: bool) -> None:
    """From pictures to logits: the graph divided by its row sums, the convex mix for observed rows, the classifier."""
    model, batch = m3care(reference).eval(), exact_batch()
    with torch.no_grad():
        assert_close_sums(model(batch).logits, m3care_by_hand(model, batch, batch.missing)[0])


@REFERENCE
def test_m3care_step_by_hand(reference: bool) -> None:
    """Mean over the masks of cross-entropy plus ``stability`` times the lengths apart, with its gradient."""
    model, batch = m3care(reference, "model.module.stability=0.3").train(), exact_batch()
    masks = model.masks.draw(batch.missing, model.mask_generator(0))
    assert len(masks) == 5
    parts = []
    for missing in masks:
        logits, apart = m3care_by_hand(model, batch, missing)
        assert (apart > 0.1).any() and (apart < -0.1).any()
        parts.append(F.cross_entropy(logits, batch.target) + 0.3 * apart.abs().sum())
    assert_same_with_gradients(model, model.training_step(batch, 0), torch.stack(parts).mean())


def test_m3care_sees_no_stability_term_in_validation() -> None:
    model, batch = m3care(False, "model.module.stability=100").eval(), exact_batch()
    prediction = model(batch)
    torch.testing.assert_close(model.loss(prediction, batch)["loss"], F.cross_entropy(prediction.logits, batch.target))


# ----------------------------------------------------------------------------------------------------------- OnlineMAE


def online_mae(reference: bool) -> Any:
    """Vectors of another width than the transformers', so that there is a projection."""
    widths = ["model.vector_width=12", "model.module.width=8", "model.module.heads=2", "model.module.memory=3"]
    return exact_model("OnlineMAE", f"model.module.reference={reference}", *widths)


def online_mae_tokens(model: Any, batch: Batch) -> Tensor:
    """(B, M, D) of everything, seen or not."""
    vectors = [model.encoders[f"m{i}"](batch.inputs[f"m{i}"])[:, 0] for i in range(5)]
    return torch.stack([normed(model.m_norms[i], model.m_projection[i](v)) for i, v in enumerate(vectors)], 1)


def online_mae_by_hand(model: Any, tokens: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
    """What is rebuilt (B, M, D), and logits."""
    rebuilt, logits = [], []
    for row, absent in enumerate(missing):
        remaining = (~absent).nonzero()[:, 0]
        places = torch.cat([torch.arange(3), 3 + remaining])
        x = torch.cat([model.memory_tokens[0], tokens[row, remaining]]) + model.mae_positions[0, places]
        for block in model.mae_encoder:
            x = attend(block, x)
        y = model.mask_token[0].expand(8, -1).index_copy(0, places, normed(model.encoder_norm, x))
        y = y + model.mae_positions[0]
        for block in model.mae_decoder:
            y = attend(block, y)
        outputs = model.rebuild(normed(model.decoder_norm, y[3:]))
        fused = [outputs[m] if absent[m] or model.reference else tokens[row, m] for m in range(5)]
        cls = class_token(model.cls_token, model.pos_embeddings, torch.stack(fused), model.fusion)
        rebuilt.append(outputs)
        logits.append(model.classifier(cls))
    return torch.stack(rebuilt), torch.stack(logits)


@REFERENCE
def test_online_mae_classifies_rebuilt_tokens(reference: bool) -> None:
    """Those of missing modalities, beside the observed ones themselves; in the original all are rebuilt."""
    model, batch = online_mae(reference).eval(), exact_batch()
    with torch.no_grad():
        tokens = online_mae_tokens(model, batch)
        assert_close_sums(model(batch).logits, online_mae_by_hand(model, tokens, batch.missing)[1])


@REFERENCE
def test_online_mae_step_by_hand(reference: bool) -> None:
    """Classification and reconstruction count alike. Rebuilt are the tokens that training hid: not those that it left,
    nor those that the data do not have. The target is a constant, in the original it learns too."""
    model, batch = online_mae(reference).train(), exact_batch()
    hidden = model.draw(batch.missing, model.mask_generator(0))
    tokens = online_mae_tokens(model, batch)
    rebuilt, logits = online_mae_by_hand(model, tokens, hidden)
    errors = []
    for row in range(len(batch)):
        for m in range(5):
            if hidden[row, m] and not batch.missing[row, m]:
                target = tokens[row, m] if reference else tokens[row, m].detach()
                centred = target - target.sum() / 8
                standard = centred / (centred.square().sum() / 7 + 1e-6).sqrt()
                errors.append((rebuilt[row, m] - standard).square().sum() / 8)
    assert len(errors) > 3 and batch.missing.any()
    expected = F.cross_entropy(logits, batch.target) + sum(errors) / len(errors)
    assert_same_with_gradients(model, model.training_step(batch, 0), expected)


# -------------------------------------------------------------------------------------------------------------- SimMLM


def test_simmlm_ranking_pulls_down_the_loss_with_more() -> None:
    """Only where it is the greater one, and then the other up by as much; nothing where both are the same."""
    more = torch.tensor([2.0, 1.0, 0.5], requires_grad=True)
    fewer = torch.tensor([1.0, 2.0, 0.5], requires_grad=True)
    value = ranking_loss(more, fewer)
    assert value.item() == pytest.approx(1 / 3)
    down, up = torch.autograd.grad(value, (more, fewer))
    torch.testing.assert_close(down, torch.tensor([1 / 3, 0, 0]))
    torch.testing.assert_close(up, torch.tensor([-1 / 3, 0, 0]))


def test_simmlm_step_by_hand() -> None:
    """Which of the two views has more is told by their masks."""
    model, batch = exact_model("SimMLM", "model.module.ranking=2.5").train(), exact_batch()
    views: list[Tensor] = []
    fuse = model.fuse

    def watched(encoded: Tensor, view: Batch) -> Prediction:
        views.append(view.missing)
        return fuse(encoded, view)

    model.fuse = watched
    loss = model.training_step(batch, 0)
    assert len(views) == 2
    more, fewer = sorted(views, key=lambda missing: int(missing.sum()))
    assert not (more & ~fewer).any() and not (batch.missing & ~more).any() and int(more.sum()) < int(fewer.sum())
    losses: list[list[Tensor]] = [[], []]
    for row in range(len(batch)):
        vectors = [model.encoders[f"m{i}"](batch.inputs[f"m{i}"][row, None])[0, 0] for i in range(5)]
        for view, missing in enumerate((more, fewer)):
            present = [i for i in range(5) if not missing[row, i]]
            scores = model.gate(torch.cat([v if i in present else v * 0 for i, v in enumerate(vectors)]))
            shares = torch.softmax(scores[present], 0)
            logits = sum(share * model.heads[i](vectors[i]) for share, i in zip(shares, present))
            losses[view].append(-torch.log_softmax(torch.as_tensor(logits), 0)[batch.target[row]])
    pairs = list(zip(*losses, strict=True))
    excess = [a - b for a, b in pairs if a > b]
    assert 0 < len(excess) < 12  # both cases
    expected = sum(a + b for a, b in pairs) / 12 + 2.5 * sum(excess) / 12
    assert_same_with_gradients(model, loss, torch.as_tensor(expected))


# ------------------------------------------------------------------------------------------------------- prerequisites


def built_on(method: str, family: str) -> tuple[Any, dict[str, Any], dict[str, dict[str, Tensor]]]:
    """A method, the models on which it is built, whose weights and statistics differ from one another, and what these
    were before it was built."""
    small = [*METHODS[method], *SMALL_ENCODERS.get(family, [])]
    cfg = configure(f"model={method}", f"dataset={family}", "imputer=Mean", *small)
    context = Run(cfg)
    modalities, classes = SMALL[family]
    data: Any = SimpleNamespace(modalities=modalities, num_classes=classes, task="multiclass")
    context.__dict__["data"] = data
    parts: dict[str, Any] = {}
    for seed, (label, part) in enumerate(context.prerequisites.items()):
        generator = torch.Generator().manual_seed(seed)
        parts[label] = part.build()
        for value in parts[label].state_dict().values():
            if value.is_floating_point():
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    before = {label: {k: v.clone() for k, v in part.state_dict().items()} for label, part in parts.items()}
    return build_model(cfg, cfg.model, data, False, parts), parts, before


def given(method: str, names: list[str]) -> dict[str, tuple[str, str]]:
    """Part of a method -> the prerequisite that it is taken from, and which part of that ("" = all)."""
    if method == "MultiAE":
        return {"encoders": ("autoencoder", "encoders"), "joint": ("autoencoder", "joint")}
    if method == "OnlineMAE":
        return {"encoders": ("multiae", "encoders")}
    if method == "SimMLM":
        encoders = {f"encoders.{n}": (f"unimodal_{n}", f"encoders.{n}") for n in names}
        return encoders | {f"heads.{i}": (f"unimodal_{n}", "classifier") for i, n in enumerate(names)}
    return {f"experts.{label}": (label, "") for label in (*(f"unimodal_{n}" for n in names), "concat")}


@pytest.mark.parametrize("family", ["PolyMNIST", "CelebA"])  # CelebA: encoders with batch statistics
@pytest.mark.parametrize("method", ["MultiAE", "OnlineMAE", "SimMLM", "DynMM"])
def test_weights_of_prerequisites_are_taken_over(method: str, family: str) -> None:
    """All of them, each from its own modality, and as copies: what was trained before stays as it is."""
    model, parts, before = built_on(method, family)
    wanted = given(method, model.modality_names)
    assert set(parts) == {label for label, _ in wanted.values()}
    for separate, (label, place) in wanted.items():
        prefix = f"{place}." if place else ""
        source = {k.removeprefix(prefix): v for k, v in before[label].items() if k.startswith(prefix)}
        state = model.get_submodule(separate).state_dict()
        assert state and state.keys() == source.keys()
        for key, value in source.items():
            assert torch.equal(state[key], value), f"{separate}.{key}"
    if method == "DynMM":  # experts are the trained models themselves
        return
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(1)
    for label, part in parts.items():
        assert all(torch.equal(value, before[label][key]) for key, value in part.state_dict().items())


def test_simmlm_with_one_modality_is_its_expert() -> None:
    """Before it is trained: the gate has nothing to choose."""
    model, parts, _ = built_on("SimMLM", "PolyMNIST")
    batch = some_batch("PolyMNIST")
    with torch.inference_mode():
        for i in range(5):
            missing = torch.ones(12, 5, dtype=torch.bool)
            missing[:, i] = False
            alone = batch.replace(missing=missing)
            expected = parts[f"unimodal_m{i}"].eval()(alone).logits
            assert_close_sums(model.eval()(alone).logits, expected)


def test_multi_ae_starts_from_the_code_of_its_autoencoder() -> None:
    model, parts, _ = built_on("MultiAE", "PolyMNIST")
    batch = some_batch("PolyMNIST")
    with torch.inference_mode():
        autoencoder = parts["autoencoder"].eval()
        vectors = torch.cat([autoencoder.encoders[f"m{i}"](batch.inputs[f"m{i}"]) for i in range(5)], 1)
        zeroed = torch.where(batch.missing[..., None], 0, vectors).flatten(1)
        expected = autoencoder.joint[2](autoencoder.joint[0](zeroed).relu())
        assert_close_sums(model.eval()(batch).features, expected)
    trained = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"joint", "classifier"}


# -------------------------------------------------------------------------------------------------- published settings

COLUMNS = ["PolyMNIST", "MST", "CelebA", "DVM", "CAD", "Infarction"]
EPOCHS = (100, 20, 20, 300, 300, 300)
# Settings of docs/reference/baselines.md §3.1 and §3.2, and where those are silent of §1.5, §1.6 and §2. A tuple has a
# value for each column.
EVERY: dict[str, Any] = {
    "model.module.optimizer._target_": "torch.optim.Adam",
    "model.module.optimizer.lr": (1e-3, 1e-3, 1e-3, 3e-4, 3e-4, 3e-4),
    "model.module.optimizer.weight_decay": 0,
    "model.module.scheduler.name": None,
    "model.module.reference": False,
    "model.training.max_epochs": EPOCHS,
    "model.training.batch_size": (256, 256, 256, 256, 128, 128),
    "model.training.patience": 20,
    "model.training.min_delta": 1e-4,
    "model.training.accumulate_grad_batches": None,
    "dataset.test_batch_size": 512,
    "dataset.monitor": ("val_accuracy", "val_accuracy", "val_auroc", "val_accuracy", "val_auroc", "val_auroc"),
    "trainer.gradient_clip_val": None,
    "trainer.precision": "32-true",
    "missing.train": "none",
    "missing.val": "none",
}
BATCH_200 = {"model.training.batch_size": (256, 256, 256, 200, 128, 128)}
WIDTH = (128, 32, 32, 256, 256, 256)
TRANSFORMER: dict[str, Any] = {"model.module.heads": (4, 2, 2, 8, 8, 8), "model.module.layers": 2}
TOKENS = TRANSFORMER | {"model.module.width": WIDTH}
VECTOR = {"model.vector_width": (512, 32, 32, 256, 256, 256)}
EXPERT = {  # Unimodal and Multimodal_CONCAT, on their own as well
    "vector_width": VECTOR["model.vector_width"],
    "module.optimizer.lr": EVERY["model.module.optimizer.lr"],
    "training.max_epochs": EPOCHS,
    "training.batch_size": EVERY["model.training.batch_size"],
}
SUBSETS = {"model.module.masks.kind": "subsets", "model.module.masks.k": (5, 2, 2, 2, 2, 2)}
COMPLETE = {"model.module.masks.kind": "none"}
PRETRAINING = {
    "max_epochs": (300, 200, 200, 300),
    "batch_size": (256, 256, 256, 200),
    "patience": None,
}
RECONSTRUCTION = {"lr": 1e-3, "weight_decay": 0}


def below(prefix: str, settings: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{key}": value for key, value in settings.items()}


PUBLISHED: dict[str, dict[str, Any]] = {
    "ModDrop": TOKENS | {"model.module.masks.kind": "bernoulli", "model.module.masks.p": 0.5},
    "MTL": TOKENS | BATCH_200 | {"model.module.masks.kind": "all"},
    "MAP": TOKENS
    | SUBSETS
    | BATCH_200
    | {"model.module.length": (12, 4, 4, 8, 16, 16), "model.module.depth": 2, "model.module.prompts": "input"},
    "M3Care": TRANSFORMER
    | SUBSETS
    | {"model.vector_width": WIDTH, "model.module.graph_layers": 2, "model.module.stability": 1e-8},
    "MUSE": COMPLETE
    | {
        "model.vector_width": WIDTH,
        "model.module.graph_layers": 2,
        "model.module.dropout": 0.25,
        "model.module.temperature": 0.07,
        "model.module.unsupervised": 0.5,
        "model.module.supervised": 0.5,
        # Of images with tables the mapper is the encoder's own projection.
        "model.module.mapper": (True, True, True, False, False, False),
    },
    # Of images with tables the original has a configuration of DVM, and no code.
    "MultiAE": VECTOR
    | SUBSETS
    | BATCH_200
    | below("model.autoencoder.training", PRETRAINING)
    | below("model.autoencoder.module.optimizer", RECONSTRUCTION)
    | {"model.autoencoder.monitor": None, "model.autoencoder.module.masks.k": (5, 2, 2, 2)},
    "OnlineMAE": VECTOR
    | {
        "model.module.width": WIDTH,
        "model.module.heads": (4, 2, 2, 8, 8, 8),
        "model.module.layers": [2, 2, 2],
        "model.module.memory": (6, 4, 4, 4, 4, 4),
        # Encoders of a MultiAE; of images with tables TIP's.
        "model.prerequisites.multiae": ("once", "once", "once", None, None, None),
        "model.multiae.training.max_epochs": (100, 20, 20),
        "model.multiae.autoencoder.training.max_epochs": (300, 200, 200),
        "model.multiae.autoencoder.module.optimizer.lr": 1e-3,
    },
    "MoPoE_Classification": SUBSETS
    | {"model.training.max_epochs": (100, 100, 100), "imputer.latent": (512, 20, 32)}
    | {"imputer.training.max_epochs": (300, 200, 200)},
    "CMVAE_Classification": SUBSETS
    | {"imputer.shared": 32, "imputer.private": 32, "imputer.module.clusters": 40, "imputer.module.beta": 2.5}
    | {"imputer.module.optimizer.lr": 1e-3, "imputer.module.optimizer.amsgrad": True}
    | {"imputer.training.max_epochs": 250, "imputer.training.batch_size": 128},
    # One batch a step, as every other method; the original's 24 (12) are an option
    # (docs/reference/baselines.md §6, G5).
    "QMF": VECTOR | BATCH_200 | COMPLETE | {"model.training.accumulate_grad_batches": 1},
    "PDF": VECTOR | BATCH_200 | COMPLETE,
    "DynMM": VECTOR
    | COMPLETE
    | {"model.module.temperature": 1, "model.module.resource": 0.1}
    | below("model.unimodal", EXPERT)
    | below("model.concat", EXPERT),
}
# Methods that the original has not on all of them; Infarction is CAD with another label, whose recipes are copies.
COVERED = {"MultiAE": COLUMNS[:4], "MoPoE_Classification": COLUMNS[:3], "CMVAE_Classification": COLUMNS[:1]}
COVERED |= {method: COLUMNS[:5] for method in ("ModDrop", "MTL", "M3Care", "PDF", "DynMM")}


@pytest.mark.parametrize(("method", "dataset"), [(m, d) for m in PUBLISHED for d in COVERED.get(m, COLUMNS)])
def test_settings_are_the_published_ones(method: str, dataset: str) -> None:
    imputer = method.partition("_")[0] if method.endswith("_Classification") else "Mean"
    cfg = configure(f"model={method}", f"dataset={dataset}", f"imputer={imputer}")
    column, wrong = COLUMNS.index(dataset), {}
    for key, values in (EVERY | PUBLISHED[method]).items():
        if isinstance(values, tuple) and column >= len(values):
            continue
        expected = values[column] if isinstance(values, tuple) else values
        actual = OmegaConf.select(cfg, key)
        if actual != expected:
            wrong[key] = (actual, expected)
    assert not wrong


# -------------------------------------------------------------------------------------------------------- capabilities

# What differs from the defaults: a method that takes complete inputs only (docs/reference/baselines.md §6, G11), values
# by row (§2.12), rows that see each other (§5.3), a table of 2^M - 1 rows or more, an imputer as a part (§2.10, §2.11).
DECLARED: dict[str, dict[str, Any]] = {
    "Unimodal": {},
    "Multimodal_CONCAT": {"needs_imputer": True},
    "ModDrop": {},
    "MTL": {"max_modalities": 8},
    "MAP": {"max_modalities": 10},
    "M3Care": {"batch_dependent": "reference"},
    "MUSE": {"batch_dependent": "reference"},
    "MultiAE": {},
    "OnlineMAE": {},
    "MoPoE_Classification": {"built_on": ("MoPoE",), "accepts_imputer": False},
    "CMVAE_Classification": {"built_on": ("CMVAE",), "accepts_imputer": False},
    "QMF": {"needs_index": True},
    "PDF": {},
    "DynMM": {"needs_imputer": True},
    "LogitAverage": {},
    "PatternExperts": {"max_modalities": 8},
    "SimMLM": {},
    "FlexMoE": {"max_modalities": 10},
}
DEFAULTS: dict[str, Any] = {
    "accepts_imputer": True,
    "needs_imputer": False,
    "needs_complete_training": False,
    "needs_index": False,
    "batch_dependent": False,
    "max_modalities": None,
    "transformers_only": False,
    "several_labels": True,
    "built_on": (),
}
STAGES = {
    "MultiAE": {"autoencoder": "once"},
    "OnlineMAE": {"multiae": "once"},
    "DynMM": {"unimodal": "each_modality", "concat": "once"},
    "LogitAverage": {"unimodal": "each_modality"},
    "SimMLM": {"unimodal": "each_modality"},
}


@pytest.mark.parametrize("method", DECLARED)
def test_methods_declare_what_they_need(method: str) -> None:
    node: Any = OmegaConf.load(CONFIGS / "model" / f"{method}.yaml")
    kind: type[IncompleteClassifier] = get_object(node.module._target_)
    assert {name: getattr(kind, name) for name in DEFAULTS} == DEFAULTS | DECLARED[method]
    assert (node.get("prerequisites") or {}) == STAGES.get(method, {})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=QMF", "trainer.devices=2"], "QMF keeps values of every training row in one process"),
        (["model=DynMM", "model.use_imputer=false"], "DynMM classifies complete inputs only, but missing.test has"),
        (["model=DynMM", "model.prerequisites=null"], "DynMM is made of trained models"),
        (
            ["model=FlexMoE", f"dataset.modalities=[{','.join(f'm{i}' for i in range(11))}]"],
            "FlexMoE is for at most 10 modalities, PolyMNIST has 11",
        ),
    ],
)
def test_what_a_method_needs_is_asked_for(
    composed: Callable[..., DictConfig], overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        validate(composed(*overrides, "missing.test=[whole_1]"))


@pytest.mark.parametrize("method", ["ModDrop", "MTL", "MAP", "M3Care"])
def test_small_tables_keep_the_initialisation_of_pytorch(method: str) -> None:
    """Linear layers of width D then have an SD of (3 D)^-1/2 instead of 0.02, the published one."""
    data = ("dataset.continuous=[x]", f"model={method}")
    small, large = (configure(f"dataset={name}", *data).model for name in ("SmallImageTable", "ImageTable"))
    assert small.module.initialisation == "pytorch" and large.module.initialisation is None
    options = [f"model.module.initialisation={name}" for name in ("pytorch", "normal", "null")]
    models = [build(method, "PolyMNIST", option) for option in options]
    weights = [model.transformer[0].mlp.fc1.weight for model in models]
    assert weights[0].std().item() == pytest.approx((3 * weights[0].shape[1]) ** -0.5, rel=0.15)
    assert [w.std().item() for w in weights[1:]] == pytest.approx([0.02] * 2, rel=0.15)


def test_the_epochs_of_small_tables_are_chosen_after_the_warm_up() -> None:
    for method, keys in (("ModDrop", "model"), ("LogitAverage", "model.unimodal"), ("QMF", "model")):
        for data, expected in (("SmallImageTable", 30), ("ImageTable", None)):
            training = OmegaConf.select(configure(f"dataset={data}", f"model={method}"), keys).training
            assert training.warmup_epochs == expected, (method, data)
    backbone = configure("dataset=SmallImageTable", "model=DyMo", "model.training.max_epochs=30").model.backbone
    assert (backbone.training.warmup_epochs, backbone.module.width, backbone.module.prototype_rate) == (15, 64, 0.2)
    published = configure("dataset=CAD", "model=DyMo").model.backbone
    assert (published.training.warmup_epochs, published.module.width, published.module.prototype_rate) == (None, 256, 1)
