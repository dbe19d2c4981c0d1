"""CMPT: what docs/reference/cmpt.md §2.14 asks for, on tiny random transformers, against loops and published counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.baselines.masks import TrainingMasks
from models.baselines.unimodal import Unimodal
from models.cmpt import parameters
from models.cmpt.cmpt import CMPT, Alignment, Proxy, alignment_loss
from models.cmpt.count import Count, count, describe
from models.encoders.adapters import Adapter
from models.encoders.convolutional import PolyMNISTEncoder
from models.encoders.pretrained import PretrainedEncoder
from tests.models.encoders.test_pretrained import SIZES, with_heads
from tests.tolerances import assert_close_sums
from trainers import run as pipeline
from trainers.config.validate import validate
from trainers.loading import Run
from utils.errors import UserError
from utils.safe_pickle import read_tensors
from utils.schedule import warmup_polynomial

MODALITIES = [
    Modality("image", "image", (3, 12, 12)),
    Modality("text", "text", (10,)),
    Modality("audio", "audio", (12, 8)),
]
FAMILIES = {"image": "clip", "text": "bert", "audio": "ast"}
CLASSES = 5


def build(m: int = 2, shake: float = 0.2, **others: Any) -> CMPT:
    """A model on ``m`` modalities, nothing in it at a value that could hide a term."""
    torch.manual_seed(0)
    modalities = others.pop("modalities", MODALITIES[:m])
    sizes = others.pop("sizes", {})
    encoders: dict[str, nn.Module] = {
        x.name: PretrainedEncoder(
            FAMILIES[x.name], size={**SIZES[FAMILIES[x.name]], **sizes.get(x.name, {})}, class_id=2
        )
        for x in modalities
    }
    for encoder in encoders.values():
        for parameter in encoder.parameters():
            parameter.data += shake * torch.randn_like(parameter)
    settings = {"proxy": Proxy(), "masks": TrainingMasks("subsets", k=1, per="batch"), "adapter": Adapter(dropout=0.0)}
    model = CMPT(modalities, CLASSES, encoders, **{**settings, **others})
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += shake * torch.randn_like(parameter)
    model.log_losses = lambda *_: None  # type: ignore[method-assign]
    return model.eval()


def some_batch(m: int = 2, rows: int = 8, missing: Any = None, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 30, (rows, 10), generator=g)
    ids[:, 0] = 2
    ids[::2, 7:] = 0
    inputs = {
        "image": torch.randn(rows, 3, 12, 12, generator=g),
        "text": ids,
        "audio": torch.randn(rows, 12, 8, generator=g),
    }
    mask = torch.zeros(rows, m, dtype=torch.bool) if missing is None else torch.as_tensor(missing)
    inputs = {x.name: inputs[x.name] for x in MODALITIES[:m]}
    return Batch(inputs, mask, torch.arange(rows) % CLASSES, torch.arange(rows))


def mixed(m: int, rows: int = 8) -> Tensor:
    """Every number of missing modalities from none to all but one."""
    order = torch.rand(rows, m, generator=torch.Generator().manual_seed(3)).argsort(1)
    return order < (torch.arange(rows) % m)[:, None]


def slow_logits(model: CMPT, batch: Batch) -> Tensor:
    """Eqs. 2, 3, 5 and 6 for M modalities, a sample and a modality at a time; what is missing is not encoded."""
    names, out = model.modality_names, []
    for row in range(len(batch)):
        states = {}
        for i, name in enumerate(names):
            if not batch.missing[row, i]:
                states[i] = model.encoder(i).states(batch.inputs[name][row : row + 1], model.proxies[i])
        total = torch.zeros(model.width)
        for k in range(len(names)):
            if k in states:
                total = total + states[k].summary[0]
            else:
                # Proxies of encoder m stand in the order of the other modalities.
                total = total + sum(s.proxies[0, k - (k > m)] for m, s in states.items()) / len(states)
        out.append(model.classifier.weight @ total + model.classifier.bias)
    return torch.stack(out)


# ---------------------------------------------------------------------------------------------------------------- gate


@pytest.mark.parametrize("m", [2, 3])
def test_a_missing_class_state_is_replaced_by_its_proxy(m: int) -> None:
    model, batch = build(m), some_batch(m, missing=mixed(m))
    assert {0, m - 1} <= set(batch.missing.sum(1).tolist())
    with torch.inference_mode():
        assert_close_sums(model(batch).logits, slow_logits(model, batch))


def test_two_modalities_follow_equations_5_and_6_to_the_bit() -> None:
    model, w = build(), torch.Generator().manual_seed(1)
    states = torch.randn(3, 2, 2, 16, generator=w)
    missing = torch.tensor([[False, False], [True, False], [False, True]])
    with torch.inference_mode():
        logits, features = model.classify(model.complete(states, missing))
        expected = torch.stack(
            [
                states[0, 0, 0] + states[0, 1, 1],  # C_1 + C_2
                states[1, 1, 1] + states[1, 1, 0],  # C_2 + P_2
                states[2, 0, 0] + states[2, 0, 1],  # C_1 + P_1
            ]
        )
        assert torch.equal(features, expected) and torch.equal(logits, model.classifier(expected))
        # Of what is not used nothing counts, NaN included.
        for row, used in enumerate(([(0, 0), (1, 1)], [(1, 1), (1, 0)], [(0, 0), (0, 1)])):
            other = torch.full_like(states, math.nan)
            for place in used:
                other[row][place] = states[row][place]
            again = model.classify(model.complete(other, missing))[0]
            assert torch.equal(again[row], logits[row])


def test_one_and_all_modalities_of_three() -> None:
    model = build(3)
    states = torch.randn(2, 3, 3, 16)
    missing = torch.tensor([[True, False, True], [False, False, False]])
    vectors = model.complete(states, missing)
    assert torch.equal(vectors[0], states[0, 1]), "all of it from the one encoder that has something"
    assert torch.equal(vectors[1], states[1].diagonal(dim1=0, dim2=1).T), "no proxy where nothing is missing"


def test_a_refused_proxy_is_left_out_of_the_sum() -> None:
    """What a selection of recoveries needs: the decision for each sample and modality."""
    model = build()
    states = torch.randn(2, 2, 2, 16)
    missing = torch.tensor([[True, False], [True, False]])
    refused = torch.tensor([[True, False], [False, False]])
    _, features = model.classify(model.complete(states, missing), refused)
    assert torch.equal(features[0], states[0, 1, 1])
    assert torch.equal(features[1], states[1, 1, 1] + states[1, 1, 0])


def test_confidence_weighs_proxies_by_a_softmax_over_what_is_there() -> None:
    model = build(3, gate="confidence")
    assert build(2, gate="confidence").confidence is None
    states = torch.randn(1, 3, 3, 16)
    states[0, 2] = math.nan
    actual = model.complete(states, torch.tensor([[False, False, True]]))[0, 2]
    scores = [float(model.confidence(states[0, m, 2]).detach()) for m in (0, 1)]  # type: ignore[misc]
    share = 1 / (1 + math.exp(scores[1] - scores[0]))
    torch.testing.assert_close(actual, share * states[0, 0, 2] + (1 - share) * states[0, 1, 2])
    alone = model.complete(states, torch.tensor([[True, False, True]]))[0]
    torch.testing.assert_close(alone, states[0, 1])


@pytest.mark.parametrize("m", [2, 3])
def test_missing_content_reaches_nothing(m: int) -> None:
    """Neither prediction nor loss nor gradient, whatever it holds, in training and in prediction."""
    model, batch = build(m), some_batch(m, missing=mixed(m))
    actual = []
    for value in (None, 0.0, math.nan, 1e30):
        inputs = {}
        for i, (name, x) in enumerate(batch.inputs.items()):
            filler = x if value is None else torch.full_like(x, 7 if name == "text" else value)
            inputs[name] = torch.where(batch.missing[:, i].view(-1, *[1] * (x.ndim - 1)), filler, x)
        changed = batch.replace(inputs=inputs)
        model.train().zero_grad()
        loss = model.training_step(changed, 0)
        loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        with torch.inference_mode():
            model.eval()
            everything = model.fuse(model.encode(inputs), batch).logits  # as stage test: the gate alone hides
            actual.append([loss.detach(), model(changed).logits, *gradients])
        assert_close_sums(everything, actual[0][1])
    for other in actual[1:]:
        assert len(other) == len(actual[0]) and all(torch.equal(a, b) for a, b in zip(actual[0], other))


def test_the_encoder_of_a_missing_modality_gets_no_gradient_from_the_task() -> None:
    model = build(alignment=Alignment(weight=0.0), masks=TrainingMasks()).train()
    model.training_step(some_batch(missing=[[True, False]] * 8), 0).backward()
    for i, reached in enumerate((False, True)):
        parts = [*model.encoder(i).parameters(), model.proxies[i]]
        actual = [p.grad is not None and bool(p.grad.any()) for p in parts if p.requires_grad]
        assert all(actual) if reached else not any(actual)


def test_rows_do_not_see_each_other() -> None:
    model, batch = build(3), some_batch(3, missing=mixed(3))
    with torch.inference_mode():
        many = model(batch).logits
        for row in (0, 3, 7):
            pick = slice(row, row + 1)
            one = Batch(
                {n: x[pick] for n, x in batch.inputs.items()},
                batch.missing[pick],
                batch.target[pick],
                batch.index[pick],
            )
            assert_close_sums(model(one).logits, many[pick])


# ----------------------------------------------------------------------------------------------------------- alignment


def test_alignment_of_a_toy_by_hand() -> None:
    """Two samples, three coordinates: the second has no image."""
    states = torch.zeros(2, 2, 2, 3)
    states[0, 0, 1], states[0, 1, 1] = torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 0, 0])  # P_1, C_2: (4 + 9) / 3
    states[0, 1, 0], states[0, 0, 0] = torch.tensor([0.0, 0, 0]), torch.tensor([1.0, 1, 2])  # P_2, C_1: (1 + 1 + 4) / 3
    states[1] = 100.0
    missing = torch.tensor([[False, False], [True, False]])
    expected = 13 / 3 + 6 / 3
    assert float(alignment_loss(states, missing, Alignment())) == pytest.approx(expected)
    # MSE(P_1, C_1) = (0 + 1 + 1) / 3.
    assert float(alignment_loss(states, missing, Alignment(form="printed"))) == pytest.approx(expected / (2 / 3))


@pytest.mark.parametrize("m", [2, 3])
def test_alignment_against_loops(m: int) -> None:
    g = torch.Generator().manual_seed(5)
    states, missing = torch.randn(9, m, m, 4, generator=g, dtype=torch.float64), mixed(m, 9)
    sums = []
    for s, absent in zip(states, missing):
        present = [i for i in range(m) if not absent[i]]
        pairs = [float(((s[i, k] - s[k, k]) ** 2).mean()) for i in present for k in present if i != k]
        if pairs:
            sums.append(sum(pairs) / (m - 1))
    assert len(sums) < 9
    assert float(alignment_loss(states, missing, Alignment())) == pytest.approx(np.mean(sums), rel=1e-6)


def test_alignment_knows_complete_samples_only() -> None:
    states = torch.randn(4, 2, 2, 8)
    missing = torch.tensor([[False, False], [False, False], [True, False], [False, True]])
    value = alignment_loss(states, missing, Alignment())
    assert torch.equal(value, alignment_loss(states[:2], missing[:2], Alignment()))
    spoilt = states.clone()
    spoilt[2:] = math.nan
    spoilt.requires_grad_()
    again = alignment_loss(spoilt, missing, Alignment())
    again.backward()
    assert torch.equal(again, value) and torch.isfinite(spoilt.grad).all() and not spoilt.grad[2:].any()  # type: ignore[union-attr, index]
    same = torch.randn(3, 1, 2, 8).expand(3, 2, 2, 8)  # P_1 = C_2 and P_2 = C_1
    assert float(alignment_loss(same, torch.zeros(3, 2, dtype=torch.bool), Alignment())) == 0
    alone = states[2:].clone().requires_grad_()
    nothing = alignment_loss(alone, missing[2:], Alignment())
    nothing.backward()
    assert float(nothing.detach()) == 0 and not alone.grad.any()  # type: ignore[union-attr]


def test_a_detached_target_moves_the_proxies_only() -> None:
    for detach in (False, True):
        states = torch.randn(3, 2, 2, 8, requires_grad=True)
        alignment_loss(states, torch.zeros(3, 2, dtype=torch.bool), Alignment(detach_target=detach)).backward()
        assert states.grad is not None and states.grad[:, 0, 1].any()
        assert bool(states.grad[:, 1, 1].any()) is not detach


def test_the_loss_is_the_task_and_a_fifth_of_the_alignment() -> None:
    batch = some_batch(missing=mixed(2))
    values = {}
    for weight in (0.0, 0.2):
        model = build(masks=TrainingMasks(), alignment=Alignment(weight))
        values[weight] = model.training_step(batch, 0)
    task = F.cross_entropy(model(batch).logits, batch.target)
    states = model.encode_batch(batch)
    assert torch.equal(values[0.0], task)
    expected = task + 0.2 * alignment_loss(states, batch.missing, Alignment())
    torch.testing.assert_close(values[0.2], expected)
    assert (values[0.2] - values[0.0]) > 1e-3


def test_several_labels() -> None:
    model = build(task="multilabel", masks=TrainingMasks(), alignment=Alignment(0.0))
    batch = some_batch(missing=mixed(2))
    target = torch.rand(8, CLASSES, generator=torch.Generator().manual_seed(0)).round()
    loss = model.training_step(batch.replace(target=target), 0)
    p = model(batch).logits.sigmoid()
    torch.testing.assert_close(loss, -(target * p.log() + (1 - target) * (1 - p).log()).mean())


# ---------------------------------------------------------------------------------------------------- modality dropout


def test_dropout_follows_the_shares_and_never_drops_both() -> None:
    """Uniform over nothing, the first and the second by default; any other simplex on request."""
    whole = torch.zeros(30_000, 2, dtype=torch.bool)

    def shares(masks: TrainingMasks) -> list[float]:
        drawn = masks.draw(whole, torch.Generator().manual_seed(0))[0]
        assert not drawn.all(1).any()
        return [float((~drawn.any(1)).float().mean()), *drawn.float().mean(0).tolist()]

    np.testing.assert_allclose(shares(TrainingMasks("subsets", k=1)), [1 / 3] * 3, atol=0.01)
    np.testing.assert_allclose(shares(TrainingMasks("one", shares=[0.5, 0.2, 0.3])), [0.5, 0.2, 0.3], atol=0.01)
    batches = [TrainingMasks("one", per="batch", shares=[0.2, 0.8, 0]).draw(whole[:4], torch.Generator().manual_seed(s))
               for s in range(400)]  # fmt: skip
    first = torch.stack([b[0] for b in batches])
    assert (first == first[:, :1]).all() and float(first[:, 0, 0].float().mean()) == pytest.approx(0.8, abs=0.06)
    for bad in ({"kind": "one"}, {"kind": "one", "shares": [0.5, 0.6]}, {"kind": "all", "shares": [1.0]}):
        with pytest.raises(ValueError, match="shares"):
            TrainingMasks(**bad)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="3 values, 3 modalities need 4"):
        TrainingMasks("one", shares=[0.2, 0.4, 0.4]).draw(torch.zeros(2, 3, dtype=torch.bool), torch.Generator())


def losses_of(model: CMPT, batch: Batch, step: int = 0) -> dict[str, float]:
    actual: dict[str, float] = {}
    model.log_losses = lambda _, losses, n: actual.update({k: float(v.detach()) for k, v in losses.items()})  # type: ignore[method-assign]
    model.training_step(batch, step)
    return actual


def test_dropout_acts_in_the_gate_or_at_the_input() -> None:
    batch = some_batch()
    for at in ("gate", "input"):
        whole = losses_of(build(drop_at=at, masks=TrainingMasks("one", shares=[1, 0, 0])), batch)
        dropped = losses_of(build(drop_at=at, masks=TrainingMasks("one", shares=[0, 1, 0])), batch)
        assert dropped["classification"] != whole["classification"] and whole["alignment"] > 0
        # In the gate, the alignment is that of all samples; at the input, those that lost one have no pair.
        assert dropped["alignment"] == (whole["alignment"] if at == "gate" else 0)
        absent = batch.replace(missing=torch.tensor([[True, False]] * 8))
        expected = F.cross_entropy(build()(absent).logits, batch.target)
        assert dropped["classification"] == pytest.approx(float(expected), rel=1e-5)


def test_dropout_leaves_incomplete_rows_and_evaluation_alone() -> None:
    """Of a row that has two of three modalities nothing more is dropped."""
    batch = some_batch(3, missing=mixed(3))
    seen = []
    model = build(3, masks=TrainingMasks("one", shares=[0, 1, 0, 0]))
    fuse = model.fuse
    model.fuse = lambda encoded, under: seen.append(under.missing) or fuse(encoded, under)  # type: ignore[method-assign]
    model.training_step(batch, 0)
    incomplete = batch.missing.any(1)
    assert torch.equal(seen[0][incomplete], batch.missing[incomplete])
    assert seen[0][~incomplete].tolist() == [[True, False, False]] * int((~incomplete).sum())
    model.validation_step(batch, 0)
    assert torch.equal(seen[1], batch.missing)


# ------------------------------------------------------------------------------------------------------ what is trained


@pytest.mark.parametrize("kind", ["lora", "dora", "vera"])
def test_training_moves_adapters_proxies_and_head_and_nothing_else(kind: str) -> None:
    model = build(3, adapter=Adapter(kind), proxy=Proxy(position="learned")).train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    others = {name for name in trained if not ("lora_" in name or "vera_lambda" in name)}
    assert others == {
        *(f"{part}.{i}" for part in ("proxies", "positions") for i in range(3)),
        *("classifier.weight", "classifier.bias"),
    }
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for step in range(3):
        optimizer.zero_grad()
        model.training_step(some_batch(3, seed=step), step).backward()
        optimizer.step()
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == trained, "the frozen networks are as they were, to the bit, and all else learns"


def test_without_proxies_what_is_missing_is_left_out() -> None:
    model, batch = build(3, proxy=None), some_batch(3, missing=mixed(3))
    assert not [name for name, _ in model.named_parameters() if name.startswith(("prox", "positions"))]
    with torch.inference_mode():
        sums = torch.stack(
            [
                torch.where(batch.missing[:, i, None], 0, model.encoder(i)(batch.inputs[name])[:, 0])
                for i, name in enumerate(model.modality_names)
            ]
        ).sum(0)
        assert_close_sums(model(batch).logits, model.classifier(sums))
    assert set(losses_of(model, batch)) == {"loss"}


def test_encoders_of_different_widths_are_mapped_to_one() -> None:
    for proxy in (Proxy(), None):
        model, batch = build(proxy=proxy, sizes={"text": {"hidden_size": 12}}), some_batch(missing=mixed(2))
        assert model.width == 16 and list(model.projections) == ["text"]
        with torch.inference_mode():
            states = model.encode(batch.inputs)
            separate = model.projections["text"](
                model.encoder(1).states(batch.inputs["text"], *model.proxies[1:]).summary
            )
            assert_close_sums(states[:, 1, 1], separate)
            assert bool(states[:, 1, 0].any()) is (proxy is not None)
            assert torch.isfinite(model(batch).logits).all()


def test_merged_adapters_predict_the_same() -> None:
    model, batch = build(3), some_batch(3, missing=mixed(3))
    with torch.inference_mode():
        expected = model(batch).logits
        model.before_prediction()
        torch.testing.assert_close(model(batch).logits, expected, atol=1e-4, rtol=1e-4)


def test_proxies_may_start_as_the_class_token() -> None:
    model = build(3, shake=0.0, proxy=Proxy(init="class"))
    for i in range(3):
        assert torch.equal(model.proxies[i], model.encoder(i).class_input().expand(2, -1))
    spread = build(3, shake=0.0, proxy=Proxy(std=0.5)).proxies[0].std()
    assert 0.3 < float(spread) < 0.7


def test_bfloat16_is_finite_and_the_alignment_is_float32() -> None:
    model, batch = build(3), some_batch(3, missing=mixed(3))
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        states = model.encode_batch(batch)
        assert alignment_loss(states.bfloat16(), batch.missing, Alignment()).dtype == torch.float32
        loss = model.training_step(batch, 0)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_proxy_learns_the_other_modality_from_pairs_without_labels() -> None:
    """Noisy images and the text of one of four classes; 4 of 64 rows have labels. The alignment falls by a factor of
    ten, and without the text the classes are told apart better than by the same model with modality dropout alone,
    which has learned the images from four of them."""
    g = torch.Generator().manual_seed(0)
    patterns, words = torch.randn(4, 3, 12, 12, generator=g), torch.randint(3, 30, (4, 10), generator=g)

    def rows(n: int, labelled: int) -> Batch:
        kind = torch.arange(n) % 4
        target = F.one_hot(kind, CLASSES).float()
        target[labelled:] = -1
        image = patterns[kind] + torch.randn(n, 3, 12, 12, generator=g)
        return Batch({"image": image, "text": words[kind]}, torch.zeros(n, 2).bool(), target, kind, complete=True)

    batch, test = rows(64, 4), rows(128, 128)
    absent = test.replace(missing=torch.tensor([[False, True]] * 128))
    right = {}
    for proxy in (Proxy(), None):
        model = build(
            proxy=proxy,
            task="multilabel",
            masks=TrainingMasks("subsets", k=1, per="row"),
            adapter=Adapter(rank=4, dropout=0.0),
            alignment=Alignment(weight=1.0, detach_target=True),
        )
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
        alignment = []
        model.log_losses = lambda _, losses, n, to=alignment: to.append(losses.get("alignment"))  # type: ignore[method-assign]
        for step in range(150):
            optimizer.zero_grad()
            model.training_step(batch, step).backward()
            optimizer.step()
        if proxy:
            assert alignment[-1] < alignment[0] / 10
        with torch.inference_mode():
            right[proxy is not None] = float((model(absent).logits.argmax(1) == absent.index).float().mean())
    assert right[True] > right[False] + 0.2, right


# --------------------------------------------------------------------------------------------------------------- counts

BASE = {"clip_vit_base_patch16": 85_799_424, "bert_base": 109_482_240, "ast_base": 86_187_264,
        "siglip_base_patch16": 92_884_224}  # fmt: skip
BERT_POOLER = 768 * 768 + 768  # in the counts of docs/reference/cmpt.md §2.6, not in the network


@pytest.mark.parametrize("architecture", BASE)
def test_base_encoders_have_the_known_sizes_and_adapters(architecture: str) -> None:
    counts = {("lora", 1): 73_728, ("lora", 4): 294_912, ("dora", 1): 110_592, ("vera", 1): 36_912}
    for (kind, rank), expected in counts.items():
        with torch.device("meta"):
            encoder = PretrainedEncoder(architecture)
            total = sum(p.numel() for p in encoder.parameters()) + BERT_POOLER * (architecture == "bert_base")
            assert total == BASE[architecture]
            assert len(encoder.adapt(Adapter(kind, rank))) == 48
        assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) == expected
        if architecture != "clip_vit_base_patch16":
            break


def test_timm_has_the_same_adapters_as_transformers() -> None:
    with torch.device("meta"):
        encoder = PretrainedEncoder("timm/vit_base_patch16_clip_224")
        assert sum(p.numel() for p in encoder.parameters()) == BASE["clip_vit_base_patch16"]
        assert len(encoder.adapt(Adapter())) == 48
    assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) == 73_728


@pytest.mark.parametrize(
    ("data_set", "kind", "rank", "size", "expected"),
    [
        ("Food-101", "lora", 1, "base", {"ours": 226_661, "A": 271_205}),
        ("MM-IMDb", "lora", 1, "base", {"ours": 166_679, "A": 211_223}),
        ("AVE", "lora", 1, "base", {"ours": 170_524}),
        ("CREMA-D", "lora", 1, "base", {"ours": 153_606}),
        ("KS", "lora", 1, "base", {"ours": 172_831}),
        ("Food-101", "lora", 2, "base", {"B": 375_653}),
        ("CREMA-D", "lora", 2, "base", {"B": 302_598}),
        ("KS", "lora", 4, "base", {"B": 616_735}),
        ("AVE", "dora", 1, "base", {"B": 245_788}),
        ("MM-IMDb", "lora", 1, "large", {"A": 539_671}),
        ("Food-101", "lora", 1, "large", {"B": 500_837}),
    ],
)
def test_counts_of_the_published_settings(
    data_set: str, kind: str, rank: int, size: str, expected: dict[str, int]
) -> None:
    """Numbers of docs/reference/cmpt.md §2.6.1; both readings come out as printed, to three digits."""
    actual = parameters.readings(data_set, kind, rank, size)
    assert {name: actual[name] for name in expected} == expected
    if size == "base":
        classes = parameters.DATA_SETS[data_set][1]
        per_layer = {"lora": rank * 2 * 768, "dora": 3 * 768}[kind]
        assert actual["ours"] == 2 * 12 * 4 * per_layer + 2 * 768 + 769 * classes
    printed = parameters.PUBLISHED[kind, rank, size][data_set]
    for reading in {"A", "B"} & set(expected):
        assert round(actual[reading] / 1e6, 3) == printed


def test_the_report_prints_the_published_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = parameters.table([("vera", 1, "base")])
    monkeypatch.setattr(parameters, "table", lambda: row)
    parameters.main([])
    out = capsys.readouterr().out
    assert "0.153029" in out and "0.154565" in out and "0.155000" in out and "output.dense" in out


def test_totals_of_tables_3_and_4(capsys: pytest.CaptureFixture[str]) -> None:
    """Total parameters are the two encoders, BERT with its pooler (:data:`BASE`), and what is learned."""
    totals = parameters.totals().set_index("data set")
    image = BASE["clip_vit_base_patch16"]
    for name, other, learned in (
        ("Food-101", "bert_base", 226_661),
        ("MM-IMDb", "bert_base", 166_679),
        ("KS", "ast_base", 172_831),
        ("AVE", "ast_base", 170_524),
        ("CREMA-D", "ast_base", 153_606),
    ):
        assert round(totals.loc[name, "with pooler"] * 1e6) == image + BASE[other] + learned
        assert round(totals.loc[name, "learned"] * 1e6) == learned
        pooler = BERT_POOLER if other == "bert_base" else 0
        assert round((totals.loc[name, "with pooler"] - totals.loc[name, "total"]) * 1e6) == pooler
    printed = {"Food-101": 195.51, "KS": 172.16, "AVE": 172.16}
    assert totals["with pooler"].round(2)[list(printed)].to_dict() == printed
    parameters.main(["--totals"])
    out = capsys.readouterr().out
    assert "195.508" in out and "194.918" in out and "172.160" in out and "printed total" in out


def test_a_line_says_what_is_trained() -> None:
    model = build()
    actual = count(model)
    assert actual == Count(2 * 2 * 4 * 32, 2 * 16, 17 * CLASSES, 0, sum(p.numel() for p in model.parameters()))
    assert describe(actual).startswith("trains 629 of ") and "adapters 512, proxies 32, head 85" in (describe(actual))
    model.encoder(0).network.embeddings.requires_grad_(True)
    actual = count(model)
    assert actual.adapters > 512
    model.extra = nn.Linear(2, 2)
    with pytest.raises(AssertionError, match="only adapters, proxies, projections and the head"):
        count(model)


# ------------------------------------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize("ramp", [False, True])
def test_schedule_of_table_6(ramp: bool) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=1e-3)
    schedule = warmup_polynomial(optimizer, steps_per_epoch=4, warmup_epochs=5, max_epochs=10, ramp=ramp)
    rates = []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    warm = [1e-4 + 9e-4 * t / 20 for t in range(20)] if ramp else [1e-4] * 20
    expected = [*warm, *(1e-3 * (1 - t / 20) ** 0.9 for t in range(20))]
    np.testing.assert_allclose(rates, expected, rtol=1e-9)
    assert rates[20] == 1e-3 and rates[39] < 1e-4 and optimizer.param_groups[0]["lr"] == 0
    short = warmup_polynomial(torch.optim.SGD([parameter], lr=1.0), 3, warmup_epochs=5, max_epochs=2)
    assert short.get_last_lr() == [0.1]


# -------------------------------------------------------------------------------------------------------- configuration


def test_published_hyper_parameters(composed: Callable[..., DictConfig]) -> None:
    for preset, values in {"image_text": (1e-3, 10, 8), "audio_video": (5e-5, 100, 4)}.items():
        model = composed("model=CMPT", "dataset=PolyMNIST", f"model.preset={preset}", tiny=False).model
        actual = (model.module.optimizer.lr, model.training.max_epochs, model.training.batch_size)
        assert actual == values and model.module.scheduler.max_epochs == values[1]
        assert (model.module.optimizer.eps, model.module.optimizer.weight_decay) == (1e-8, 0.02)


def test_data_sets_without_transformers_are_refused(composed: Callable[..., DictConfig]) -> None:
    with pytest.raises(UserError, match="CMPT works inside transformers, and the encoder of 'm0' is no models"):
        validate(composed("model=CMPT", "imputer=Zero"))
    with pytest.raises(UserError, match=r"model\.encoders\.m1\.weights: there is no \./nowhere"):
        validate(composed("dataset=Digits", "model=CMPT", "model.encoders.m1.weights=./nowhere", tiny=False))
    validate(composed("dataset=Digits", "model=CMPT", "model.encoders.m1.weights=google/vit", tiny=False))


def test_what_does_not_fit_is_said() -> None:
    for arguments, error, message in (
        ({"alignment": Alignment(form="printed"), "m": 3}, ValueError, "requires two modalities, not 3"),
        ({"targets": {"sound": "q"}}, ValueError, "targets names 'sound', the modalities are image, text"),
        ({"drop_at": "output"}, ValueError, "drop_at must be gate or input"),
        ({"targets": {"text": "x"}}, UserError, "'x' matches nothing in bert"),
        ({"modalities": [Modality("image", "image", (3, 8, 8)), MODALITIES[1]]}, UserError, "'image' has the shape"),
        (
            {"modalities": [Modality("image", "audio", (3, 12, 12)), MODALITIES[1]]},
            UserError,
            "clip is for image or video",
        ),
    ):
        with pytest.raises(error, match=message):
            build(**arguments)  # type: ignore[arg-type]
    for wrong in ({"init": "zeros"}, {"attention": "none"}, {"position": "fixed"}):
        with pytest.raises(ValueError, match=f"proxy.{next(iter(wrong))}"):
            Proxy(**wrong)
    with pytest.raises(ValueError, match="alignment"):
        Alignment(form="ratio")
    view = [Modality("m0", "image", (3, 28, 28))]
    with pytest.raises(UserError, match="the encoder of 'm0' is a PolyMNISTEncoder"):
        CMPT(view, 3, {"m0": PolyMNISTEncoder()})


def test_encoders_come_from_a_folder_or_from_unimodal_models(tmp_path: Path) -> None:
    with_heads("bert").save_pretrained(tmp_path)
    text = [MODALITIES[1]]
    encoder = PretrainedEncoder("bert", weights=str(tmp_path), size=SIZES["bert"])
    model = CMPT(text, CLASSES, {"text": encoder})
    assert model.encoder(0).pretrained
    torch.manual_seed(7)
    trained = Unimodal(text, CLASSES, {"text": PretrainedEncoder("bert", size=SIZES["bert"], vector_width=6)})
    fresh = CMPT(
        text, CLASSES, {"text": PretrainedEncoder("bert", size=SIZES["bert"])}, prerequisites={"unimodal_text": trained}
    )
    x = some_batch().inputs["text"]
    with torch.inference_mode():
        trained.eval(), fresh.eval()
        inside = trained.encoders["text"].states(x).summary  # type: ignore[operator, union-attr]
        assert torch.equal(fresh.encoder(0).states(x).summary, inside)
    assert fresh.encoder(0).pretrained


def test_encoders_are_trained_alone_first_and_then_frozen(
    composed: Callable[..., DictConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The whole way on Digits, with what resuming and testing need."""
    small = [f"model.encoders.m{i}.size.num_hidden_layers=1" for i in range(5)]
    cfg = composed(
        *("dataset=Digits", "model=CMPT", "dataset.train_pairings=1", "trainer=cpu", "stages=[prepare,fit,test]"),
        *("model.unimodal.training.max_epochs=1", "model.training.max_epochs=2", "trainer.limit_train_batches=2"),
        *("trainer.enable_progress_bar=false", "missing.test=[none,whole_0,random_0.8]", "missing.train=random_0.2"),
        *(*small, f"paths.cache={tmp_path / 'cache'}", f"paths.output={tmp_path / 'out'}"),
        tiny=False,
    )
    with caplog.at_level("INFO"):
        pipeline.run(cfg)
    assert "CMPT: trains" in caplog.text and "random weights" not in caplog.text
    context = Run(cfg)
    state = read_tensors(context.checkpoint)["state_dict"]
    assert list(context.prerequisites) == [f"unimodal_m{i}" for i in range(5)]
    for label, part in context.prerequisites.items():
        assert part.fit_directory.path.parts[-3] == f"Unimodal_ViT_{label[9:]}"
        separate = read_tensors(part.checkpoint)["state_dict"]
        for key, value in separate.items():
            if key.startswith("encoders."):
                renamed = key if key in state else f"{key.rpartition('.')[0]}.base_layer.{key.rpartition('.')[2]}"
                assert torch.equal(state[renamed], value), key
    last = torch.load(context.fit_directory / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["lr_schedulers"][0]["last_epoch"] == 4 and last["architecture"]["adapter"]["rank"] == 1
