"""Tables that are partly missing, through the backbone and DyMo, against the slow twin; original TIPData checkpoints.

A masked table shows its observed cells, encoded without the others; an accepted recovery shows all cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import models.dymo.dynamic_transformer as module
from datasets.batch import Batch, hide
from datasets.rows import take_rows
from gaussian_parameter_generation.estimate import estimate
from models.dymo.dynamic_transformer import DynamicTransformer
from models.dymo.gaussian import GaussianParameters
from models.dymo.lattice import COMPARATORS, exhaustive
from models.dymo.method import DyMo
from models.dymo.original import convert_dynamic_transformer
from models.dymo.prototypes import COSINE, EUCLIDEAN
from models.dymo.recovery_aware import with_recoveries
from models.dymo.selection import Scorer, SelectionRule, select
from models.dymo.validation import validate_selection
from models.encoders.resnet import ResNetEncoder
from models.encoders.table import TableEncoder
from models.imputers.base import Imputer, merge, recover
from models.imputers.iterative import IMI
from models.imputers.simple import Mean, Zero
from tests import slow_twin as twin
from tests.makers import make_original_checkpoint
from tests.models.dymo.test_selection import Intervals, is_close_call
from tests.networks import (
    CELLS,
    LEVELS,
    N_CONTINUOUS,
    random_table,
    table_batch,
    table_modalities,
    table_model,
    under,
)
from tests.tolerances import assert_close_sums
from utils.errors import UserError
from utils.safe_pickle import read_tensors
from utils.subsets import enumerate_subsets
from utils.weights import checkpoint_kind, load_strict

METRICS = (COSINE, EUCLIDEAN)
ROWS = 120


def masks(rows: int = ROWS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(rows, 2) and (rows, 6): tables that are there, that miss some cells, and all of them; a few without image."""
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.rand(rows, CELLS, generator=generator).argsort(1).argsort(1)
    cells = ranks < (torch.arange(rows) % (CELLS + 1))[:, None]
    missing = torch.zeros(rows, 2, dtype=torch.bool)
    missing[:, 1] = torch.arange(rows) % 5 > 0
    missing[::15, 0], missing[::15, 1] = True, False
    return missing, cells


def evaluator(
    params: twin.Params,
    image: Tensor,
    seen: Tensor,
    cells: Tensor,
    accepted: Tensor,
    *,
    metric: str,
    heads: int = 2,
    table_heads: int = 3,
    name: str = "encoders.tabular",
    levels: tuple[int, ...] = LEVELS,
    min_index: bool = False,
) -> Callable[[twin.Mask], tuple[Tensor, Tensor]]:
    """mask -> logits and z of one row by docs/reference/dymo.md §1.4 and §4.4.

    Args:
        image: (P, D) tokens as the fusion gets them, before the norm.
        seen, cells: (n,) content and mask of the table while it is masked.
        accepted: (n,) content of the table once it is not.
    """

    @cache
    def evaluate(mask: twin.Mask) -> tuple[Tensor, Tensor]:
        row, hidden = (seen, cells.tolist()) if mask[1] else (accepted, [False] * len(cells))
        table = twin.table_tokens(params, name, row.tolist(), hidden, levels, table_heads)[1:]
        table = table @ params["m_projection.tabular.weight"].T + params["m_projection.tabular.bias"]
        return twin.forward(
            params,
            [image, table],
            mask,
            metric=metric,
            heads=heads,
            min_index=min_index,
            hidden={1: hidden},
        )

    return evaluate


def evaluators(model: DynamicTransformer, batch: Batch, recovered: Tensor) -> list[Any]:
    """One for every row of the batch, with the tables that would be accepted."""
    params = {k: v.detach() for k, v in model.state_dict().items()}
    with torch.no_grad():
        images = model.encoders["img"](batch.inputs["img"])
    cells = batch.feature_missing.get("tabular", torch.ones(len(batch), CELLS, dtype=torch.bool))
    return [
        evaluator(
            params, images[row], batch.inputs["tabular"][row], cells[row], recovered[row], metric=model.distance_metric
        )
        for row in range(len(batch))
    ]


# ---------------------------------------------------------------------------------------------- the backbone


@pytest.mark.parametrize("metric", METRICS)
def test_forward_equals_twin(metric: str) -> None:
    missing, cells = masks()
    missing[1::7] = True  # nothing but some cells
    model, batch = table_model(distance_metric=metric), table_batch(ROWS, 1, missing, cells)
    with torch.no_grad():
        actual = model(batch)
    for row, evaluate in enumerate(evaluators(model, batch, batch.inputs["tabular"])):
        logits, z = evaluate(tuple(missing[row].tolist()))
        assert_close_sums(actual.logits[row], logits)
        assert_close_sums(actual.features[row], z)


def subset_masks(subset: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 2) mask and (B, F) cells of rows that have their image under a subset; the image stays where nothing else of
    the row would."""
    absent = hidden | subset[1]
    nothing = subset[0] & absent.all(1)
    absent = torch.where(nothing[:, None], hidden, absent)
    return torch.stack([subset[0] & ~nothing, absent.any(1)], 1), absent


@pytest.mark.parametrize("fusion", ["packed", "masked"])
def test_subsets_hide_whole_tables_besides_cells(fusion: str) -> None:
    """A subset without the table hides all of it, one with it leaves the observed cells."""
    missing, cells = masks()
    missing[:, 0] = False
    model, batch = table_model(fusion=fusion), table_batch(ROWS, 2, missing, cells)
    hidden = model.cells(missing, batch.feature_missing)
    subsets = enumerate_subsets(2)
    with torch.no_grad():
        tokens = model.encode(batch.observed(), hidden)
        parts = list(model.fuse_subsets(tokens, subsets, missing, max_rows=200, cells=hidden))
        logits = torch.cat([part for _, part, _ in parts])[torch.cat([ids for ids, *_ in parts]).argsort()]
        for k, subset in enumerate(subsets):
            mask, absent = subset_masks(subset, hidden["tabular"])
            one = batch.replace(missing=mask, feature_missing={"tabular": absent})
            assert_close_sums(logits[k], model(one).logits)


def test_cells_of_a_table_that_is_there_do_not_count() -> None:
    model = table_model()
    missing = torch.zeros(6, 2, dtype=torch.bool)
    cells = torch.ones(6, CELLS, dtype=torch.bool)
    with torch.no_grad():
        marked = model(table_batch(6, 3, missing, cells)).logits
        assert torch.equal(marked, model(table_batch(6, 3, missing)).logits)
        # Without an entry, and with all cells marked, a masked table is hidden as a whole.
        missing = torch.tensor([[False, True]]).expand(6, 2)
        whole = model(table_batch(6, 3, missing)).logits
        assert_close_sums(model(table_batch(6, 3, missing, cells)).logits, whole)
        none = model(table_batch(6, 3, missing, ~cells)).logits
        assert_close_sums(none, marked)
        assert (whole - none).abs().amax(1).min() > 1e-4


def test_hide_and_recover_follow_the_same_masks() -> None:
    missing, cells = masks(30)
    batch = table_batch(30, 4, missing, cells)
    absent = cells & missing[:, 1:]
    hidden = hide(batch.inputs, missing, batch.feature_missing)
    assert torch.equal(hidden["tabular"], torch.where(absent, 0, batch.inputs["tabular"]))
    mean = Mean(table_modalities())
    train = table_batch(50, 5)
    mean.fit([train, table_batch(7, 6)])
    pair = torch.cat([train.inputs["tabular"], table_batch(7, 6).inputs["tabular"]])
    expected = torch.cat([pair[:, :3].mode(0).values, pair[:, 3:].mean(0)])
    for imputer, value in ((Zero(), torch.zeros(CELLS)), (mean, expected)):
        actual = recover(imputer, batch)["tabular"]
        assert_close_sums(actual, torch.where(absent, value, batch.inputs["tabular"]))
        whole = recover(imputer, batch.replace(feature_missing={}))["tabular"]
        assert_close_sums(whole, torch.where(missing[:, 1:], value, batch.inputs["tabular"]))


JUNK = st.sampled_from([math.nan, math.inf, -1e30, -3.0, 77.0])


def spoilt(batch: Batch, junk: Tensor) -> Batch:
    """Other content in everything that is missing."""
    absent = batch.missing[:, 1:] & batch.feature_missing.get(
        "tabular", torch.ones(len(batch), CELLS, dtype=torch.bool)
    )
    inputs = {
        "img": merge(batch.inputs["img"], batch.missing[:, 0], junk[0, 0].expand_as(batch.inputs["img"])),
        "tabular": torch.where(absent, junk, batch.inputs["tabular"]),
    }
    return batch.replace(inputs=inputs)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.lists(JUNK, min_size=20 * CELLS, max_size=20 * CELLS), st.integers(0, 100), st.booleans())
def test_content_of_missing_cells_never_matters(values: list[float], seed: int, entry: bool) -> None:
    """Forward, DyMo with every comparator, one training step with its gradients, validation."""
    missing, cells = masks(20, seed)
    if entry:
        missing[1::7] = True  # nothing but some cells
    batch = table_batch(20, seed, missing, cells if entry else None)
    case, results = setting(COSINE), []
    dymo = DyMo(case.model, Zero(), case.parameters, comparators=COMPARATORS)
    for given_batch in (batch, spoilt(batch, torch.tensor(values).view(20, CELLS))):
        model = table_model()
        with torch.no_grad():
            actual = [model(given_batch).logits]
        many = dymo.predict_scenarios(given_batch, under(given_batch, {"s": missing}, {"s": batch.feature_missing}))
        actual += [many[label]["s"].logits for label in many]
        actual += [dymo(given_batch).logits]
        if not missing[:, 0].all():
            actual += step(model, given_batch)
        results.append(actual)
    for one, other in zip(*results):
        assert torch.equal(one, other) and one.isfinite().all()


def step(model: DynamicTransformer, batch: Batch) -> list[Tensor]:
    """Loss and gradients of a training step, and the losses of validation."""
    logged: dict[str, Tensor] = {}
    patch = pytest.MonkeyPatch()
    patch.setattr(DynamicTransformer, "log_losses", lambda self, stage, losses, n: logged.update({stage: losses}))
    patch.setattr(DynamicTransformer, "current_epoch", 5)
    patch.setattr(DynamicTransformer, "global_step", 1)
    try:
        model.train().on_train_epoch_start()
        loss = model.training_step(batch, 0)
        loss.backward()
        with torch.no_grad():
            model.validation_step(batch, 0)
    finally:
        patch.undo()
    gradients = [torch.zeros(()) if p.grad is None else p.grad for p in model.parameters()]
    return [loss.detach(), logged["val"]["loss"], *gradients]


def test_a_training_step_sees_subsets_of_what_is_there() -> None:
    missing, cells = masks(12)
    missing[:, 0] = False
    model, batch = table_model(subsets_per_step=3), table_batch(12, 7, missing, cells)
    actual = step(model, batch)[0]
    losses = []
    for subset in module.draw_subsets(2, 3, torch.Generator().manual_seed(0)):
        mask, absent = subset_masks(subset, missing[:, 1:] & cells)
        prediction = model(batch.replace(missing=mask, feature_missing={"tabular": absent}))
        losses.append(torch.nn.functional.cross_entropy(prediction.logits, batch.target))
    # The prototypes are still zero: a uniform posterior of four classes.
    assert_close_sums(actual, torch.stack(losses).mean().detach() + math.log(4))


class Spy(Imputer):
    """Remembers what it is asked to fill, and cannot fill images."""

    recovers = ("table",)

    def impute(self, inputs: Any, missing: Tensor, index: Any = None, feature_missing: Any = None) -> dict[str, Tensor]:
        self.asked = missing, feature_missing
        assert not torch.is_autocast_enabled("cpu"), "recoveries are those of a test"
        return Zero().impute(inputs, missing, index, feature_missing)


def test_recovery_aware_training_asks_for_what_the_imputer_can_recover() -> None:
    missing, cells = masks(40)
    missing = torch.stack([torch.zeros(40, dtype=torch.bool), torch.arange(40) % 2 == 0], 1)
    batch, spy, generator = table_batch(40, 8, missing, cells), Spy(), torch.Generator().manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as a trainer of mixed precision does
        actual = with_recoveries(batch, spy, table_modalities(), 1.0, generator)
    asked, of_cells = spy.asked
    assert not asked[:, 0].any() and 4 < int((asked & ~missing)[:, 1].sum()) < 16
    drawn = (asked & ~missing)[:, 1:]
    assert torch.equal(of_cells["tabular"] & asked[:, 1:], (cells & missing[:, 1:]) | drawn)
    assert torch.equal(actual.missing, missing)


# ---------------------------------------------------------------------------------------------- selection


class Given(Imputer):
    """Recovered tables made beforehand, by row number."""

    def __init__(self, content: Tensor) -> None:
        self.content = content

    def impute(self, inputs: Any, missing: Tensor, index: Any = None, feature_missing: Any = None) -> dict[str, Tensor]:
        absent = missing[:, 1:] & feature_missing["tabular"] if feature_missing else missing[:, 1:]
        table = torch.where(absent, self.content[index], inputs["tabular"])
        return {"img": merge(inputs["img"], missing[:, 0], torch.zeros_like(inputs["img"])), "tabular": table}


@cache
def setting(metric: str) -> SimpleNamespace:
    """A network, parameters of it, and rows whose recovered tables are accepted here and rejected there."""
    model = table_model(seed=2, distance_metric=metric)
    with torch.no_grad():
        model.projection.weight.mul_(0.6)
    train = table_batch(200, 11)
    with torch.no_grad():
        # Labels that the network finds, so that classes differ.
        train.target = model(train).logits.argmax(1) % 4
        for c in range(4):
            train.target[c * 3 : c * 3 + 3] = c
    parameters = estimate(model, [train], progress=False)
    missing, cells = masks(seed=3)
    missing[::15] = torch.tensor([False, True])
    return SimpleNamespace(
        model=model,
        parameters=parameters,
        missing=missing,
        batch=table_batch(ROWS, 12, missing, cells),
        recovered=random_table(ROWS, 13),
    )


def judge(parameters: GaussianParameters, metric: str) -> twin.Judge:
    return twin.Judge(
        parameters.prototypes,
        parameters.overall,
        parameters.sigma,
        metric=metric,
        calibration="log_ratio" if metric == COSINE else "ratio",
        tail="exact",
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rows_with", ["cells", "whole", "alone"])
@pytest.mark.parametrize("counted", ["observed", "missing"])
def test_selection_equals_twin(metric: str, rows_with: str, counted: str) -> None:
    """Rewards, decisions, logits and the lattice; with cell masks, with whole tables masked, and without images. A
    table with observed cells is judged by the parameters of the subset with it, in the original without it."""
    case = setting(metric)
    batch = case.batch.replace(feature_missing={}) if rows_with == "whole" else case.batch
    if rows_with == "alone":
        batch = cells_alone(case)
        assert batch.missing.all(1).sum() > 50
    selection_rule = SelectionRule(partial_tables=counted)
    dymo = DyMo(case.model, Given(case.recovered), case.parameters, selection_rule)
    actual = dymo(batch)
    tokens, completed = dymo.complete(batch)
    absent = batch.missing[:, 1:] & batch.feature_missing.get("tabular", torch.tensor(True))
    assert torch.equal(completed["tabular"], torch.where(absent, case.recovered, batch.inputs["tabular"]))
    scorer = Scorer(case.model, case.parameters, selection_rule)
    lattices = exhaustive(scorer, tokens, batch.missing, dymo.partial(batch))
    rows = {int(row): (lattice, i) for lattice in lattices for i, row in enumerate(lattice.rows)}
    accepted = rejected = close_calls = 0
    rule = judge(case.parameters, metric)
    ids = dict(rule.ids)
    rule.ids[True, True] = rule.ids[True, False]  # the cells of a row that has nothing else are its table
    seen = batch.replace(inputs={**batch.inputs, "img": completed["img"]})
    for row, evaluate in enumerate(evaluators(case.model, seen, completed["tabular"])):
        start = tuple(batch.missing[row].tolist())
        cells = batch.feature_missing.get("tabular")
        has_cells = cells is not None and not bool(cells[row].all())
        rule.ids[False, True] = ids[False, False] if counted == "observed" and has_cells else ids[False, True]
        final, order, history, logits = twin.greedy(evaluate, start, rule)
        lattice, i = rows[row]
        for a, mask in enumerate(lattice.missing[i].tolist()):
            assert_close_sums(lattice.logits[i, a], evaluate(tuple(mask))[0])
        one: Any = SimpleNamespace(missing={row: torch.tensor(start)}, evaluators={row: evaluate})
        intervals = Intervals(one, rule, row).history(order, history)
        for t, step in enumerate(intervals):
            for u, (low, high) in step.items():
                assert low <= float(actual.extras["rewards"][row, t, u]) <= high, (row, t, u)
        if is_close_call(intervals, 0.0):
            close_calls += 1
            continue
        assert tuple(actual.extras["final_missing"][row].tolist()) == final
        assert_close_sums(actual.logits[row], logits)
        accepted += len(order)
        rejected += sum(final)
    assert accepted >= 5 and rejected >= 5 and close_calls <= ROWS // 4, (accepted, rejected, close_calls)


def cells_alone(case: SimpleNamespace) -> Batch:
    """The rows of a setting, those with some cells of their table without the rest and without an image."""
    cells = case.batch.feature_missing["tabular"]
    some = cells.any(1) & ~cells.all(1)
    return case.batch.replace(missing=torch.where(some[:, None], True, case.missing))


@pytest.mark.parametrize("metric", METRICS)
def test_rows_with_nothing_but_cells_are_selected_as_they_are_alone(metric: str) -> None:
    """In a batch of one as in one of many, with every comparator; imputers of tables refuse them in one line."""
    case = setting(metric)
    batch = cells_alone(case)
    mean = Mean(table_modalities())
    mean.fit([table_batch(50, 5)])
    dymo = DyMo(case.model, mean, case.parameters, comparators=COMPARATORS)
    many = dymo.predict_scenarios(batch, {"s": batch})
    alone = batch.missing.all(1).nonzero()[:, 0].tolist()
    assert len(alone) > 50
    for row in alone[::9]:
        one = take_rows(batch, torch.tensor([row]))
        actual = dymo.predict_scenarios(one, {"s": one})
        for label, by_scenario in many.items():
            assert_close_sums(actual[label]["s"].logits[0], by_scenario["s"].logits[row])
            remaining = actual[label]["s"].extras["final_missing"][0]
            assert torch.equal(remaining, by_scenario["s"].extras["final_missing"][row])
    with torch.no_grad():
        assert_close_sums(many["discard"]["s"].logits, case.model(batch).logits)
        complete = batch.replace(inputs=recover(mean, batch), missing=torch.zeros_like(batch.missing))
        assert_close_sums(many["impute_all"]["s"].logits, case.model(complete).logits)
    iterative = IMI(table_modalities(), max_iter=2, trees=2)
    iterative.fit([table_batch(50, 5)])
    with pytest.raises(UserError, match=f"cannot recover 'img', which is missing in {len(alone)} rows"):
        recover(iterative, take_rows(batch, batch.missing.all(1)))


def test_observed_cells_matter_before_and_after() -> None:
    """The two states are different encodings: what is discarded still shows its observed cells."""
    case = setting(COSINE)
    dymo = DyMo(case.model, Given(case.recovered), case.parameters, SelectionRule(threshold=math.inf))
    partly = dymo(case.batch).logits
    whole = dymo(case.batch.replace(feature_missing={})).logits
    with torch.no_grad():
        assert_close_sums(partly, case.model(case.batch).logits)
    some = case.missing[:, 1] & ~case.batch.feature_missing["tabular"].all(1)
    assert (partly - whole)[some].abs().amax(1).min() > 1e-5
    assert_close_sums(partly[~some], whole[~some])


@pytest.mark.parametrize("metric", METRICS)
def test_scenarios_equal_one_call_each(metric: str) -> None:
    case = setting(metric)
    dymo = DyMo(case.model, Given(case.recovered), case.parameters, comparators=(*COMPARATORS, "threshold"))
    dymo.validated_threshold = 0.1
    table = torch.tensor([[False, True]]).expand(ROWS, 2)
    one, other = masks(seed=9)[1], masks(seed=10)[1]
    by_scenario = {"none": torch.zeros_like(table), "whole_1": table, "a": table, "b": case.missing}
    cells = {"a": {"tabular": one}, "b": {"tabular": other}}
    complete_batch = case.batch.replace(feature_missing={})
    scenarios = under(complete_batch, by_scenario, cells)
    results = dymo.predict_scenarios(complete_batch, scenarios)
    for name, missing in by_scenario.items():
        batch = case.batch.replace(missing=missing, feature_missing=cells.get(name, {}))
        assert_close_sums(results[""][name].logits, dymo(batch).logits)
        with torch.no_grad():
            discard = case.model(batch).logits
            _, complete = dymo.complete(batch)
            everything = case.model(batch.replace(inputs=complete, missing=torch.zeros_like(missing))).logits
        assert_close_sums(results["discard"][name].logits, discard)
        assert_close_sums(results["impute_all"][name].logits, everything)
    accuracy, baseline, _ = validate_selection(dymo, [(complete_batch, scenarios)], (0.0,))
    for name in by_scenario:
        for value, label in ((accuracy[name][0.0], ""), (baseline[name], "discard")):
            right = results[label][name].logits.argmax(1) == case.batch.target
            assert value == pytest.approx(float(right.double().mean()))


def test_the_backbone_alone_encodes_images_once_for_all_scenarios() -> None:
    model, (_, one), (missing, other) = table_model(), masks(seed=9), masks(seed=10)
    batch = table_batch(ROWS, 12)
    table = torch.tensor([[False, True]]).expand(ROWS, 2)
    by_scenario = {"none": torch.zeros_like(table), "whole_1": table, "a": table, "b": missing}
    cells = {"a": {"tabular": one}, "b": {"tabular": other}}
    calls: list[int] = []
    model.encoders["img"].register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        actual = model.predict_scenarios(batch, under(batch, by_scenario, cells))[""]
        assert len(calls) == 1
        for name, mask in by_scenario.items():
            single = model(batch.replace(missing=mask, feature_missing=cells.get(name, {})))
            assert_close_sums(actual[name].logits, single.logits)
            assert_close_sums(actual[name].features, single.features)


def test_data_without_tables_have_no_second_bank() -> None:
    case = setting(COSINE)
    batch = case.batch.replace(feature_missing={})
    dymo = DyMo(case.model, Given(case.recovered), case.parameters)
    assert dymo.partial(batch) is None
    tokens, _ = dymo.complete(batch)
    assert case.model.prepare(tokens).x.shape[1] == 1 + 2 + CELLS
    plain = select(dymo.scorer(), tokens, batch.missing)
    everything = batch.replace(feature_missing={"tabular": torch.ones(ROWS, CELLS, dtype=torch.bool)})
    banked = select(dymo.scorer(), tokens, batch.missing, dymo.partial(everything))
    assert torch.equal(plain.final_missing, banked.final_missing)
    assert_close_sums(plain.logits, banked.logits)


# ---------------------------------------------------------------------------------------------- original checkpoints


def original_state(
    levels: tuple[int, ...], n_continuous: int, width: int, table_width: int, blocks: int, classes: int
) -> dict[str, Tensor]:
    """Random weights of a TIPData DynamicTransformer, ResNet-18, under the keys of the original
    (docs/reference/dymo.md §1.6).
    """
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}

    def noise(name: str, *shape: int, scale: float = 0.3) -> None:
        state[name] = torch.randn(*shape, generator=generator) * scale

    def affine(name: str, out: int, into: int) -> None:
        noise(f"{name}.weight", out, into, scale=into**-0.5)
        noise(f"{name}.bias", out, scale=0.1)

    def norm(name: str, d: int) -> None:
        state[f"{name}.weight"] = 1 + torch.randn(d, generator=generator) * 0.1
        noise(f"{name}.bias", d, scale=0.1)

    def block(name: str, d: int) -> None:
        norm(f"{name}.norm1", d)
        noise(f"{name}.attn.qkv.weight", 3 * d, d, scale=d**-0.5)
        affine(f"{name}.attn.proj", d, d)
        norm(f"{name}.norm2", d)
        affine(f"{name}.mlp.fc1", 4 * d, d)
        affine(f"{name}.mlp.fc2", d, 4 * d)

    n = len(levels) + n_continuous
    noise("cls_token", 1, 1, width)
    noise("pos_embeddings", 1, 1 + 4 + n, width)
    noise("prototypes", classes, 6)
    image = torchvision.models.resnet18()
    state |= {f"m_encoders.img.{k}": v for k, v in image.state_dict().items() if not k.startswith("fc.")}
    table = "m_encoders.tabular"
    noise(f"{table}.cls_token", 1, 1, table_width)
    noise(f"{table}.mask_special_token", 1, 1, table_width)
    noise(f"{table}.cat_embedding.weight", sum(levels), table_width)
    affine(f"{table}.con_proj", table_width, 1)
    noise(f"{table}.column_embedding.weight", n + 1, table_width)
    norm(f"{table}.norm", table_width)
    for b in range(blocks):
        block(f"{table}.transformer_blocks.{b}", table_width)
    affine("m_projection.img", width, 512)
    affine("m_projection.tabular", width, table_width)
    for i in range(2):
        norm(f"m_norms.{i}", width)
    noise("modality_embeddings.weight", 2, width)
    for b in range(2):
        block(f"transformer.{b}", width)
    affine("classifier", classes, width)
    affine("projection", 6, width)
    return state


def test_original_checkpoint_loads_and_predicts_the_same(tmp_path: Path) -> None:
    state = original_state(LEVELS, N_CONTINUOUS, width=16, table_width=24, blocks=4, classes=3)
    path = make_original_checkpoint(tmp_path / "checkpoint_best_auc.ckpt", state)
    content = read_tensors(path)  # its hyper-parameters would need executing
    assert checkpoint_kind(content) == "reference_dynamic_transformer"
    views = table_modalities()
    encoders = {
        "img": ResNetEncoder("resnet18", image_size=64),
        "tabular": TableEncoder(LEVELS, N_CONTINUOUS, width=24, blocks=4, heads=8),
    }
    model = DynamicTransformer(
        views, 3, encoders, width=16, heads=8, projection=6, reference_modality_index=True
    ).eval()
    load_strict(model, convert_dynamic_transformer(content["state_dict"], ["img", "tabular"]), path, "backbone")
    assert len(model.state_dict()) == len(state)

    missing, cells = masks(14)
    missing[0, 0], missing[0, 1] = False, True
    batch = table_batch(14, 5, missing, cells)
    batch.inputs["img"] = torch.rand(14, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        actual = model(batch)
        features = encoders["img"](batch.inputs["img"])
    for row in range(14):
        image = features[row] @ state["m_projection.img.weight"].T + state["m_projection.img.bias"]
        evaluate = evaluator(
            state, image, batch.inputs["tabular"][row], cells[row], batch.inputs["tabular"][row],
            metric=COSINE, heads=8, table_heads=8, name="m_encoders.tabular", min_index=True,
        )  # fmt: skip
        logits, z = evaluate(tuple(missing[row].tolist()))
        assert_close_sums(actual.logits[row], logits)
        assert_close_sums(actual.features[row], z)

    other = original_state((3, 2, 5), N_CONTINUOUS, width=16, table_width=24, blocks=4, classes=3)
    with pytest.raises(UserError, match=r"another shape of encoders\.tabular\.cat_embedding\.weight"):
        load_strict(model, convert_dynamic_transformer(other, ["img", "tabular"]), path, "backbone")
