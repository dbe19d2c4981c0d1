"""The backbone against its slow twin: size, forward, masks, training step."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import models.dymo.dynamic_transformer as module
from datasets.batch import Batch
from datasets.rows import take_rows
from models.dymo.dynamic_transformer import CONSISTENCY, DynamicTransformer
from models.dymo.prototypes import COSINE, EUCLIDEAN, RunningPrototypes, prototype_logits
from models.dymo.recovery_aware import consistency_loss
from models.encoders.convolutional import PolyMNISTEncoder
from models.imputers.base import Imputer
from models.imputers.mopoe import MoPoE
from models.imputers.mopoe_networks import ImageDecoder, ImageEncoder
from models.layers.transformer import Attention, visible_tokens
from tests import slow_twin as twin
from tests.networks import (
    CLASSES,
    modalities,
    polymnist_model,
    random_masks,
    toy_batch,
    toy_model,
    twin_evaluator,
)
from tests.tolerances import assert_close_sums
from utils.errors import UserError
from utils.noise import hash_seed
from utils.subsets import enumerate_subsets

METRICS = (COSINE, EUCLIDEAN)


def images(rows: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    inputs = {f"m{i}": torch.rand(rows, 3, 28, 28, generator=generator) for i in range(5)}
    return Batch(inputs, torch.zeros(rows, 5, dtype=torch.bool), torch.arange(rows) % CLASSES, torch.arange(rows))


# ---------------------------------------------------------------------------------------------- size and start


def test_parameters_and_state_of_the_published_network() -> None:
    encoders = {m.name: PolyMNISTEncoder() for m in modalities(5)}
    model = DynamicTransformer(modalities(5), CLASSES, encoders)
    sizes: Counter[str] = Counter()
    for name, p in model.named_parameters():
        sizes[name.split(".")[0]] += p.numel()
    assert sizes == {
        "encoders": 548_800,
        "transformer": 395_776,
        "cls_token": 128,
        "pos_embeddings": 2_688,
        "m_norms": 1_280,
        "modality_embeddings": 640,
        "classifier": 1_290,
        "projection": 8_256,
    }
    assert sum(sizes.values()) == 958_858
    assert sum(p.numel() for p in encoders["m0"].parameters()) == 109_760
    assert len(model.state_dict()) == 80
    assert model.state_dict()["prototypes"].shape == (10, 64)
    assert not model.prototypes.any()
    assert "transformer.0.attn.qkv.bias" not in model.state_dict()


def test_normal_initialisation() -> None:
    """Linear and embedding weights of std 0.02, biases 0, norms 1 / 0; convolutions keep what they had."""
    encoders = {m.name: PolyMNISTEncoder() for m in modalities(5)}
    before = {k: v.clone() for k, v in encoders["m2"].state_dict().items()}
    model = DynamicTransformer(modalities(5), CLASSES, encoders)
    linear = [p for n, p in model.named_parameters() if "transformer" in n and "norm" not in n and n.endswith("weight")]
    assert len(linear) == 8
    for weight in [*linear, model.classifier.weight, model.projection.weight, model.modality_embeddings.weight]:
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert abs(weight.mean().item()) < 0.003
    assert model.pos_embeddings.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.3)
    for name, p in model.named_parameters():
        if "norm" in name:
            assert torch.equal(p, torch.ones_like(p) if name.endswith("weight") else torch.zeros_like(p)), name
        elif name.endswith("bias") and "encoders" not in name:
            assert not p.any(), name
    for key, value in model.encoders["m2"].state_dict().items():
        assert torch.equal(value, before[key]), key


def test_pytorch_initialisation() -> None:
    """What the reference's PolyMNIST job ran with: CLS and positions 0, embeddings of std 1, Linear uniform."""
    encoders = {m.name: PolyMNISTEncoder() for m in modalities(5)}
    model = DynamicTransformer(modalities(5), CLASSES, encoders, initialisation="pytorch")
    assert not model.pos_embeddings.any()
    assert not model.cls_token.any()
    assert model.modality_embeddings.weight.std().item() == pytest.approx(1, rel=0.15)
    weight = model.transformer[0].mlp.fc1.weight
    assert weight.abs().max().item() <= 128**-0.5
    assert weight.std().item() == pytest.approx((3 * 128) ** -0.5, rel=0.05)


def test_options_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="distance_metric"):
        toy_model(distance_metric="euclidean")
    with pytest.raises(ValueError, match="heads"):
        Attention(8, 3)


# ---------------------------------------------------------------------------------------------- forward


def all_paths(model: DynamicTransformer, batch: Batch, masks: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Logits and features (S, B, .) of every sample under every mask, by each way there is to compute them."""
    tokens, b = model.encode(batch.inputs), len(batch)
    results: dict[str, tuple[Tensor, Tensor]] = {}
    fused = [model.fuse(tokens, batch.replace(missing=mask.expand(b, -1))) for mask in masks]
    results["fuse"] = torch.stack([p.logits for p in fused]), torch.stack([p.features for p in fused])
    predictions = [model(batch.replace(missing=mask.expand(b, -1))) for mask in masks]
    results["forward"] = torch.stack([p.logits for p in predictions]), torch.stack([p.features for p in predictions])
    sequences = model.prepare(tokens)
    picked = []
    for mask in masks:
        visible = int((~mask).sum())
        rows = torch.arange(b).flip(0)
        picked.append([t.flip(0) for t in model.fuse_rows(sequences, rows, mask.expand(b, -1), visible)])
    results["fuse_rows"] = tuple(torch.stack(part) for part in zip(*picked))  # type: ignore[assignment]
    for name, fusion, missing, max_rows in (
        ("packed", "packed", None, 1 << 14),
        ("packed in pieces", "packed", None, 2 * b),
        ("masked", "masked", None, 1 << 14),
        ("masked in pieces", "masked", None, 3 * b + 1),
        ("masked by rows", "packed", torch.zeros_like(batch.missing), 1 << 14),
    ):
        model.fusion = fusion
        logits = torch.full((len(masks), b, model.num_classes), torch.nan)
        features = torch.full((len(masks), b, model.projection.out_features), torch.nan)
        for ids, part, z in model.fuse_subsets(tokens, masks, missing, max_rows):
            assert ids.numel() * b <= max(max_rows, b)
            assert logits[ids].isnan().all(), "a subset came twice"
            logits[ids], features[ids] = part, z
        results[name] = logits, features
    return results


def from_twin(model: DynamicTransformer, batch: Batch, masks: Tensor) -> tuple[Tensor, Tensor]:
    evaluators = [twin_evaluator(model, batch, row) for row in range(len(batch))]
    outputs = [[evaluate(tuple(mask)) for evaluate in evaluators] for mask in masks.tolist()]
    return tuple(torch.stack([torch.stack([o[part] for o in row]) for row in outputs]) for part in (0, 1))  # type: ignore[return-value]


@pytest.mark.parametrize("reference_index", [False, True])
@pytest.mark.parametrize("metric", METRICS)
def test_forward_equals_twin_on_all_subsets(metric: str, reference_index: bool) -> None:
    model = polymnist_model(distance_metric=metric, reference_modality_index=reference_index)
    batch = images(2)
    masks = enumerate_subsets(5)
    logits, features = from_twin(model, batch, masks)
    with torch.no_grad():
        for path, (found_logits, found_features) in all_paths(model, batch, masks).items():
            assert_close_sums(found_logits, logits, msg=path)
            assert_close_sums(found_features, features, msg=path)
    norms = features.norm(dim=-1)
    assert (norms - 1).abs().max() < 1e-5 if metric == COSINE else (norms - 1).abs().max() > 1e-2


def test_twin_reads_images_by_name() -> None:
    model, batch = polymnist_model(), images(1, seed=3)
    sample = {name: x[0] for name, x in batch.inputs.items()}
    mask = (False, True, False, False, True)
    expected, z = twin.polymnist_forward(dict(model.state_dict()), sample, mask, metric=COSINE, min_index=False)
    actual = model(batch.replace(missing=torch.tensor([mask])))
    assert_close_sums(actual.logits[0], expected)
    assert_close_sums(actual.features[0], z)


def test_index_options_differ_from_the_third_modality_on() -> None:
    one, other = polymnist_model(), polymnist_model(reference_modality_index=True)
    for i in range(5):
        x = images(1).inputs[f"m{i}"]
        assert torch.equal(one.encode_one(i, x), other.encode_one(i, x)) == (i < 2)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("tokens", [(16, 17), (2, 3, 1), (1, 1), (4, 1, 2, 3)])
def test_unequal_numbers_of_tokens_equal_twin(tokens: tuple[int, ...], layers: int) -> None:
    model = toy_model(tokens, layers=layers, distance_metric=METRICS[layers % 2])
    batch = toy_batch(model, 3)
    masks = enumerate_subsets(len(tokens))
    logits, features = from_twin(model, batch, masks)
    with torch.no_grad():
        for path, (found_logits, found_features) in all_paths(model, batch, masks).items():
            assert_close_sums(found_logits, logits, msg=path)
            assert_close_sums(found_features, features, msg=path)


def test_rows_with_masks_of_their_own_equal_twin() -> None:
    """fuse with a mask per row, and fuse_rows with repeated rows, unlike masks and as many tokens as fit."""
    model = toy_model((4, 1, 2, 3))
    masks = random_masks(12, 4, seed=0)
    batch = toy_batch(model, 12, missing=masks)
    evaluators = [twin_evaluator(model, batch, row) for row in range(12)]
    with torch.no_grad():
        tokens = model.encode(batch.inputs)
        expected = torch.stack([evaluate(tuple(m))[0] for evaluate, m in zip(evaluators, masks.tolist())])
        assert_close_sums(model.fuse(tokens, batch).logits, expected)
        assert_close_sums(model(batch).logits, expected)
        rows = torch.tensor([5, 0, 5, 3, 11, 5])
        pairs = torch.tensor([[0, 1], [2, 3], [0, 3], [1, 2], [1, 3], [0, 2]])
        hidden = torch.ones(6, 4, dtype=torch.bool).scatter(1, pairs, False)
        logits, _ = model.fuse_rows(model.prepare(tokens), rows, hidden, 2)
        assert_close_sums(
            logits, torch.stack([evaluators[r](tuple(m))[0] for r, m in zip(rows.tolist(), hidden.tolist())])
        )


def test_genuinely_missing_modalities_stay_hidden_under_every_subset() -> None:
    """A row of whose modalities a subset has none shows all that it has: on the CLS token alone nothing is learned."""
    model = toy_model((2, 3, 1))
    missing = random_masks(6, 3, seed=1)
    batch = toy_batch(model, 6, missing=missing)
    subsets = enumerate_subsets(3)
    with torch.no_grad():
        for ids, logits, _ in model.fuse_subsets(model.encode(batch.observed()), subsets, missing):
            for k, part in zip(ids, logits):
                hidden = subsets[k] | missing
                hidden = torch.where(hidden.all(1, keepdim=True), missing, hidden)
                assert_close_sums(part, model.fuse(model.encode(batch.inputs), batch.replace(missing=hidden)).logits)


def test_a_subset_may_be_asked_for_twice() -> None:
    model = toy_model((2, 3))
    tokens = model.encode(toy_batch(model, 3).inputs)
    subsets = torch.tensor([[False, False], [True, False], [False, False], [True, False]])
    actual = torch.full((4, 3, 4), torch.nan)
    for ids, logits, _ in model.fuse_subsets(tokens, subsets):
        actual[ids] = logits.detach()
    assert_close_sums(actual[2], actual[0])
    assert_close_sums(actual[3], actual[1])
    assert not torch.allclose(actual[0], actual[1])


def test_token_columns_and_visible_tokens_agree() -> None:
    model = toy_model((2, 3, 1))
    batch = toy_batch(model, 2)
    tokens = model.encode(batch.inputs)
    for i, x in enumerate(batch.inputs.values()):
        assert torch.equal(tokens[:, model.token_columns(i)], model.encode_one(i, x))
    visible = visible_tokens(torch.tensor([[True, False, False], [False, True, True]]), [2, 3, 1])
    assert visible.int().tolist() == [[1, 0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]]


# ---------------------------------------------------------------------------------------------- missing content


TOY = toy_model((2, 3, 1))
FILLS = st.sampled_from([float("nan"), float("inf"), float("-inf"), 1e30, -3.0])
MASKS = st.lists(st.sampled_from(twin.subsets(3)), min_size=4, max_size=4)


def with_content(batch: Batch, fill: float) -> Batch:
    """The batch with ``fill`` as the content of whatever is missing."""
    inputs = {}
    for i, (name, x) in enumerate(batch.inputs.items()):
        inputs[name] = torch.where(batch.missing[:, i, None, None], torch.full_like(x, fill), x)
    return batch.replace(inputs=inputs)


def gradients(model: DynamicTransformer) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def assert_same(one: dict[str, Tensor | None], other: dict[str, Tensor | None]) -> None:
    for name, value in one.items():
        if value is None:
            assert other[name] is None, name
        else:
            assert value.isfinite().all(), name
            assert torch.equal(value, other[name]), name


@settings(deadline=None, max_examples=40, derandomize=True)
@given(MASKS, FILLS)
def test_missing_content_changes_neither_logits_nor_gradients(masks: list[twin.Mask], fill: float) -> None:
    batch = toy_batch(TOY, 4, missing=torch.tensor(masks))
    results = []
    for given_batch in (batch, with_content(batch, fill)):
        TOY.zero_grad(set_to_none=True)
        prediction = TOY(given_batch)
        (TOY.loss(prediction, given_batch)["loss"] + prediction.features.square().sum()).backward()
        results.append({"logits": prediction.logits, "features": prediction.features} | gradients(TOY))
        with torch.no_grad():
            fused = TOY.fuse(TOY.encode(given_batch.inputs), given_batch)
        results[-1] |= {"fused logits": fused.logits, "fused features": fused.features}
    assert_same(*results)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(MASKS, FILLS, st.sampled_from([None, 1, 3]))
def test_missing_content_changes_no_training_step(masks: list[twin.Mask], fill: float, k: int | None) -> None:
    batch = toy_batch(TOY, 4, missing=torch.tensor(masks))
    results = []
    for given_batch in (batch, with_content(batch, fill)):
        loss = step(TOY, given_batch, epoch=3, subsets_per_step=k)
        running = TOY._running
        assert running is not None
        results.append({"loss": loss, "sum": running.sum, "count": running.count} | gradients(TOY))
    assert_same(*results)


# ---------------------------------------------------------------------------------------------- training


def step(model: DynamicTransformer, batch: Batch, epoch: int, **attributes: Any) -> Tensor:
    """One training step with backward, outside a Trainer."""
    generator = torch.Generator().manual_seed(9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DynamicTransformer, "current_epoch", epoch)
        patch.setattr(DynamicTransformer, "log_dict", lambda *args, **options: None)
        for key, value in attributes.items():
            patch.setattr(model, key, value)
        model.train()
        model.zero_grad(set_to_none=True)
        model.prototypes.copy_(torch.randn(model.prototypes.shape, generator=generator))
        model.on_train_epoch_start()
        loss = model.training_step(batch, 0)
        loss.backward()
        model.eval()
    return loss.detach()


@pytest.mark.parametrize("fusion", ["packed", "masked", "auto"])
@pytest.mark.parametrize("epoch", [2, 3, 7])
@pytest.mark.parametrize("metric", METRICS)
def test_training_loss_equals_the_formula(
    metric: str, epoch: int, fusion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where modalities are genuinely missing; subsets are shared by the batch."""
    model = toy_model((2, 3, 1), distance_metric=metric, prototype_rate=0.7, fusion=fusion)
    drawn = torch.tensor([[False, True, True], [True, False, False], [False, False, False], [False, True, False]])
    asked = []
    monkeypatch.setattr(module, "draw_subsets", lambda m, k, generator: (asked.append((m, k)), drawn)[1])
    for missing in (None, torch.tensor([[False, False, True]] * 3 + [[False] * 3] * 4)):
        batch = toy_batch(model, 7, seed=2, missing=missing)
        actual = step(model, batch, epoch, subsets_per_step=4)
        evaluators = [twin_evaluator(model, batch, row) for row in range(7)]
        hidden = drawn[:, None] | batch.missing
        # A row whose visible modalities are all missing keeps the CLS token alone.
        outputs = [[evaluate(tuple(row)) for evaluate, row in zip(evaluators, rows)] for rows in hidden.tolist()]
        expected = twin.training_loss(outputs, batch.target.tolist(), model.prototypes, metric, 0.7, epoch >= 3)
        assert_close_sums(actual, expected)
        assert model._running is not None
        features = torch.stack([torch.stack([z for _, z in rows]) for rows in outputs])
        for c in range(4):
            members = features[:, batch.target == c].flatten(0, 1).double()
            torch.testing.assert_close(model._running.sum[c], members.sum(0), rtol=1e-5, atol=1e-5)
            assert int(model._running.count[c]) == len(members)
    assert asked == [(3, 4), (3, 4)]


def test_without_subsets_each_row_trains_on_its_own_mask() -> None:
    model = toy_model((2, 3, 1))
    masks = random_masks(6, 3, seed=2)
    batch = toy_batch(model, 6, missing=masks)
    actual = step(model, batch, 3, subsets_per_step=None)
    rows = [twin_evaluator(model, batch, row)(tuple(mask)) for row, mask in enumerate(masks.tolist())]
    assert_close_sums(actual, twin.training_loss([rows], batch.target.tolist(), model.prototypes, COSINE, 1.0, True))


def test_subsets_follow_seed_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other subsets at every step and for every run seed, the same ones when a step is repeated."""
    model, drawn = toy_model((1, 1, 1, 1)), []
    batch = toy_batch(model, 2)
    real = module.draw_subsets
    monkeypatch.setattr(module, "draw_subsets", lambda *a: (drawn.append(real(*a)), drawn[-1])[1])
    for seed, at in ((0, 0), (0, 0), (0, 1), (1, 0), (0, 2)):
        monkeypatch.setattr(DynamicTransformer, "global_step", at)
        step(model, batch, 0, stream_seed=seed)
    assert torch.equal(drawn[0], drawn[1])
    assert len({tuple(d.flatten().tolist()) for d in drawn}) == 4
    assert all(d.shape == (5, 4) for d in drawn)


@pytest.mark.parametrize("fusion", ["packed", "masked"])
@pytest.mark.parametrize("metric", METRICS)
def test_gradient_reaches_every_parameter(metric: str, fusion: str) -> None:
    """In a step whose K subsets show every modality at least once."""
    model = polymnist_model(distance_metric=metric, fusion=fusion)
    batch = images(6).replace(complete=True)
    step(model, batch, epoch=3, stream_seed=1)
    untouched = [n for n, g in gradients(model).items() if g is None or not g.any()]
    assert untouched == []
    for gradient in model.modality_embeddings.weight.grad, model.pos_embeddings.grad[0]:
        assert gradient.any(dim=1).all()


def test_projection_has_no_gradient_before_the_prototype_loss() -> None:
    model = toy_model()
    for epoch in (0, 2, 3):
        step(model, toy_batch(model, 5), epoch)
        untouched = {n for n, g in gradients(model).items() if g is None or not g.any()}
        assert untouched == (set() if epoch == 3 else {"projection.weight", "projection.bias"})


def test_reference_index_leaves_later_embeddings_untrained() -> None:
    model = toy_model(reference_modality_index=True)
    step(model, toy_batch(model, 5), 3)
    assert model.modality_embeddings.weight.grad.any(dim=1).tolist() == [True, True, False]


def one_process(batches: int = 10) -> SimpleNamespace:
    """A trainer on a number of the 10 batches, whose sums over processes are those of this one."""
    strategy = SimpleNamespace(reduce=lambda part, reduce_op: part)
    return SimpleNamespace(strategy=strategy, num_training_batches=batches, train_dataloader=range(10))


def test_prototypes_are_means_over_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all features of all batches and subsets; taken over when validation starts."""
    model = toy_model()
    monkeypatch.setattr(DynamicTransformer, "trainer", one_process(), raising=False)
    running = RunningPrototypes(4, 5, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    members: dict[int, list[Tensor]] = {c: [] for c in range(4)}
    for rows in (3, 9, 6):
        features = torch.randn(2, rows, 5, generator=generator) + 1e3
        target = torch.randint(4, (rows,), generator=generator)
        running.update(features, target)
        for c in range(4):
            members[c].append(features[:, target == c].flatten(0, 1))
    expected = torch.stack([torch.cat(m).double().mean(0).float() for m in members.values()])
    model._running = running
    torch.testing.assert_close(running.mean(reduce=lambda part: part), expected)
    model.on_validation_start()
    torch.testing.assert_close(model.prototypes, expected)
    before = model.prototypes.clone()
    model.on_validation_start()
    assert torch.equal(model.prototypes, before)


def test_class_that_was_never_seen_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model()
    monkeypatch.setattr(DynamicTransformer, "trainer", one_process(), raising=False)
    model._running = RunningPrototypes(4, 5, torch.device("cpu"))
    model._running.update(torch.ones(1, 3, 5), torch.tensor([0, 1, 3]))
    with pytest.raises(UserError, match="class 2"):
        model.on_validation_start()
    # In an epoch of a part of the batches (trainer.limit_train_batches, stage plan), it keeps its prototype.
    monkeypatch.setattr(DynamicTransformer, "trainer", one_process(batches=9), raising=False)
    before = model.prototypes.fill_(0.5).clone()
    model.on_validation_start()
    assert torch.equal(model.prototypes, torch.where(torch.arange(4)[:, None] == 2, before, 1.0))


@pytest.mark.parametrize(("incomplete", "most"), [(False, 7), (True, 7), (False, 3)])
def test_validation_pools_all_subsets(incomplete: bool, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pool all subsets, or as many as a validation takes, the same ones in every batch."""
    monkeypatch.setattr(DynamicTransformer, "log_dict", lambda *args, **options: None)
    monkeypatch.setattr("models.dymo.dynamic_transformer.VALIDATED", most)
    model = toy_model()
    masks = twin.subsets(3) if most == 7 else [tuple(mask) for mask in model._validated_subsets().tolist()]
    assert len(set(masks)) == most
    missing = torch.tensor([[False, False, True]] * 10) if incomplete else None
    hits = []
    for seed in (0, 1):
        batch = toy_batch(model, 10, seed, missing)
        with torch.no_grad():
            model.validation_step(batch, seed)
        for row in range(10):
            evaluate = twin_evaluator(model, batch, row)
            for mask in masks:
                hidden = tuple(a or b for a, b in zip(mask, batch.missing[row].tolist()))
                hits.append(int(evaluate(hidden)[0].argmax()) == int(batch.target[row]))
    assert float(model.validation_metrics.compute()["accuracy"]) == pytest.approx(sum(hits) / len(hits))


@pytest.mark.parametrize("metric", METRICS)
def test_prototype_logits_equal_twin(metric: str) -> None:
    """Also where prototypes lie close together, far from the origin."""
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(2, 4, 6, generator=generator), dim=-1) + (100 if metric == EUCLIDEAN else 0)
    prototypes = features[0, :3] + 1e-2 * torch.randn(3, 6, generator=generator)
    actual = prototype_logits(features, prototypes, metric)
    expected = [[twin.prototype_logits(z.double(), prototypes.double(), metric) for z in row] for row in features]
    assert_close_sums(actual.double(), torch.stack([torch.stack(row) for row in expected]))


def test_architecture_says_what_weights_are() -> None:
    plain = toy_model(reference_modality_index=True, distance_metric=EUCLIDEAN).architecture()
    assert plain["method"] == "DynamicTransformer"
    assert plain["distance_metric"] == EUCLIDEAN
    assert plain["reference_modality_index"] is True
    assert plain["modalities"][1] == ["m1", "table", [3, 3]]


# ---------------------------------------------------------------------------------------------- recovery-aware training


class Marker(Imputer):
    """Recovers as 7, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Tensor] = []

    def impute(self, inputs: Any, missing: Tensor, index: Tensor | None = None) -> dict[str, Tensor]:
        self.asked.append(missing.clone())
        return {n: torch.where(missing[:, i, None, None], 7.0, x) for i, (n, x) in enumerate(inputs.items())}


@pytest.mark.parametrize("incomplete", [False, True])
def test_recoveries_replace_what_a_random_subset_hides(incomplete: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model(recovery_aware=1.0)
    model.attach_imputer(imputer := Marker())
    missing = random_masks(60, 3, seed=3) if incomplete else None
    batch = toy_batch(model, 60, missing=missing)
    remaining = {name: x.clone() for name, x in batch.inputs.items()}
    seen: dict[str, Tensor] = {}
    real = model.encode
    monkeypatch.setattr(model, "encode", lambda inputs, *more: (seen.update(inputs), real(inputs, *more))[1])
    assert step(model, batch, 3).isfinite()
    (hidden,) = imputer.asked
    assert not hidden.all(1).any()
    assert (hidden | ~batch.missing).all(), "what is genuinely missing must not feed a recovery"
    assert len({tuple(row) for row in hidden.tolist()}) > 3, "each row draws its own subset"
    for i, (name, x) in enumerate(seen.items()):
        assert torch.equal(batch.inputs[name], remaining[name])
        observed, absent = ~hidden[:, i], batch.missing[:, i]
        assert torch.equal(x[observed], remaining[name][observed])
        assert (x[hidden[:, i] & ~absent] == 7).all()
        assert not x[absent].any()
    untouched = [n for n, g in gradients(model).items() if g is None or not g.any()]
    assert untouched == []


def test_share_of_batches_with_recoveries(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model(recovery_aware=0.3)
    model.attach_imputer(imputer := Marker())
    batch = toy_batch(model, 2)
    for at in range(100):
        monkeypatch.setattr(DynamicTransformer, "global_step", at)
        step(model, batch, 0)
    assert 18 < len(imputer.asked) < 42


def generative() -> MoPoE:
    views = modalities(5)
    encoders = {m.name: ImageEncoder(latent=4, hidden=8) for m in views}
    return MoPoE(views, encoders, {m.name: ImageDecoder(latent=4) for m in views}, latent=4).train()


def test_recovery_aware_step_with_a_generative_imputer() -> None:
    """The imputer's weights are its own run's: neither in this checkpoint nor in this optimiser."""
    model, imputer = polymnist_model(width=32, recovery_aware=1.0), generative()
    model.attach_imputer(imputer)
    assert model.imputer is imputer
    assert all(part is not imputer for part in model.modules())
    assert len(model.state_dict()) == 80
    batch = images(8).replace(complete=True)
    remaining = {name: x.clone() for name, x in batch.inputs.items()}
    assert step(model, batch, 3).isfinite()
    assert all(p.grad is None for p in imputer.parameters())
    assert imputer.training
    assert all(torch.equal(batch.inputs[name], x) for name, x in remaining.items())


# ---------------------------------------------------------------------------------------------- consistency


@pytest.mark.parametrize("incomplete", [False, True])
def test_consistency_equals_rows_one_by_one(incomplete: bool) -> None:
    """KL(p(. | x_o) || p(. | x_o, x^)), whose gradient reaches the second distribution alone; labels are not read."""
    model = toy_model(consistency=0.5)
    model.attach_imputer(imputer := Marker())
    batch = toy_batch(model, 30, missing=random_masks(30, 3, seed=3) if incomplete else None)

    def loss(batch: Batch) -> Tensor:
        inputs = batch.inputs if batch.complete else model.observed_inputs(batch)
        return consistency_loss(model, model.prepare(model.encode(inputs)), batch, torch.Generator().manual_seed(1))

    value = loss(batch)
    value.backward()
    assert torch.equal(value, loss(batch.replace(target=batch.target.roll(1))))
    actual, hidden = gradients(model), imputer.asked[0]
    assert torch.equal(hidden, imputer.asked[1]) and not hidden.all(1).any() and (hidden | ~batch.missing).all()
    terms = []
    for row in hidden.any(1).nonzero()[:, 0].tolist():
        one = take_rows(batch, torch.tensor([row])).replace(missing=hidden[row : row + 1])
        with torch.no_grad():
            p = model(one).logits[0].softmax(0)
        seen = one.replace(inputs=imputer.impute(one.inputs, one.missing), missing=torch.zeros(1, 3).bool())
        terms.append((p * (p.log() - model(seen).logits[0].softmax(0).log())).sum())
    torch.testing.assert_close(value, torch.stack(terms).mean(), rtol=1e-4, atol=1e-6)
    model.zero_grad()
    torch.stack(terms).mean().backward()
    for name, expected in gradients(model).items():
        if expected is not None:
            torch.testing.assert_close(actual[name], expected, rtol=1e-3, atol=1e-6)


def test_a_step_adds_the_weighted_consistency_and_nothing_without_it() -> None:
    """With weight 0 a step is that of a model without the option, bit for bit."""
    batch = toy_batch(toy_model(), 30)
    plain = step(toy_model(), batch, 3)
    assert torch.equal(step(toy_model(consistency=0.0), batch, 3), plain)
    model = toy_model(consistency=0.5)
    with pytest.raises(AssertionError, match="needs an imputer"):
        step(model, batch, 3)
    model.attach_imputer(Marker())
    generator = torch.Generator().manual_seed(hash_seed(model.stream_seed, CONSISTENCY, 0))
    term = consistency_loss(model, model.prepare(model.encode(batch.inputs)), batch, generator)
    assert term > 1e-4
    torch.testing.assert_close(step(model, batch, 3), plain + 0.5 * term)
