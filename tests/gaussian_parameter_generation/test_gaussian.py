"""Gaussian parameters of features: against lists of features, and through files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from datasets.batch import Batch
from gaussian_parameter_generation.estimate import (
    SCATTER_BYTES,
    GaussianStatistics,
    check_split,
    distances,
    estimate,
    rows_by_class,
)
from models.dymo.dynamic_transformer import DynamicTransformer
from models.dymo.gaussian import GaussianParameters
from models.dymo.prototypes import COSINE, EUCLIDEAN
from tests import slow_twin as twin
from tests.networks import toy_batch, toy_model, twin_evaluator
from trainers.report.distributions import distance_histograms
from utils.errors import UserError
from utils.subsets import enumerate_subsets

METRICS = (COSINE, EUCLIDEAN)
SUBSETS = enumerate_subsets(2)


def draw(metric: str, rows: int, seed: int = 0, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Features (3, rows, 5) of three classes under three subsets, and targets; unit norm for cosine."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(rows) % 3
    centres = 2 * torch.randn(3, 3, 5, generator=generator)
    features = centres[:, target] + torch.randn(3, rows, 5, generator=generator) + offset
    return (F.normalize(features, dim=-1) if metric == COSINE else features), target


def streamed(features: Tensor, target: Tensor, cuts: list[int], traces: bool = False) -> GaussianStatistics:
    statistics = GaussianStatistics(len(features), 3, features.shape[-1], traces=traces)
    for start, stop in zip([0, *cuts], [*cuts, len(target)]):
        if stop > start:
            for ids in (torch.tensor([0, 2]), torch.tensor([1])):
                statistics.update(ids, features[ids, start:stop], rows_by_class(target[start:stop]))
    return statistics


def assert_equals_twin(found: GaussianParameters, features: Tensor, target: Tensor, tolerance: float = 1e-5) -> None:
    collected = [list(rows) for rows in features]
    prototypes, overall, sigma = twin.gaussian_parameters(collected, target.tolist(), 3, found.metric)
    options = {"rtol": tolerance, "atol": 1e-7}
    torch.testing.assert_close(found.prototypes.double(), prototypes, **options)
    torch.testing.assert_close(found.overall.double(), overall, **options)
    torch.testing.assert_close(found.sigma.double(), sigma, **options)
    assert found.prototypes.dtype == found.sigma.dtype == found.overall.dtype == torch.float32


@pytest.mark.parametrize("metric", METRICS)
def test_one_pass_equals_twin(metric: str) -> None:
    features, target = draw(metric, 60)
    actual = streamed(features, target, [7, 8, 40]).finish(metric, SUBSETS, {})
    assert_equals_twin(actual, features, target)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.sampled_from(METRICS), st.lists(st.integers(0, 30), max_size=6).map(sorted), st.integers(0, 5))
def test_batches_do_not_matter(metric: str, cuts: list[int], seed: int) -> None:
    features, target = draw(metric, 30, seed)
    target = target[torch.randperm(30, generator=torch.Generator().manual_seed(seed))]
    whole = streamed(features, target, []).finish(metric, SUBSETS, {})
    actual = streamed(features, target, cuts).finish(metric, SUBSETS, {})
    torch.testing.assert_close(actual.sigma, whole.sigma, rtol=1e-6, atol=0)
    torch.testing.assert_close(actual.prototypes, whole.prototypes, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("metric", "traces"), [(COSINE, False), (EUCLIDEAN, False), (EUCLIDEAN, True)])
def test_merging_two_halves_equals_the_whole(metric: str, traces: bool) -> None:
    """Also where one half has not seen a class."""
    features, target = draw(metric, 60)
    order = target.argsort(stable=True)
    features, target = features[:, order], target[order]
    half = streamed(features[:, :25], target[:25], [10], traces)
    other = streamed(features[:, 25:], target[25:], [], traces)
    assert (half.count[:, 2] == 0).all()
    half.merge(other)
    whole = streamed(features, target, [], traces)
    assert torch.equal(half.count, whole.count)
    torch.testing.assert_close(half.scatter, whole.scatter, rtol=1e-10, atol=1e-10)
    assert_equals_twin(half.finish(metric, SUBSETS, {}), features, target)


def test_far_from_the_origin() -> None:
    """Squares of 1e4 would leave float64 eight digits of a spread of 1, and float32 none."""
    features, target = draw(EUCLIDEAN, 90, offset=1e4)
    actual = streamed(features, target, [31, 32]).finish(EUCLIDEAN, SUBSETS, {})
    assert_equals_twin(actual, features, target)
    near, _ = draw(EUCLIDEAN, 90)
    torch.testing.assert_close(
        actual.sigma, streamed(near, target, []).finish(EUCLIDEAN, SUBSETS, {}).sigma, rtol=1e-3, atol=0
    )


def test_rows_by_class() -> None:
    actual = {c: rows.tolist() for c, rows in rows_by_class(torch.tensor([2, 0, 2, 5, 0]))}
    assert actual == {0: [1, 4], 2: [0, 2], 5: [3]}


# ---------------------------------------------------------------------------------------------- from a network


def labelled(model: DynamicTransformer, rows: int, seed: int = 0) -> Batch:
    return toy_batch(model, rows, seed).replace(target=torch.arange(rows) % 4)


def batches(batch: Batch, size: int) -> list[Batch]:
    parts = []
    for start in range(0, len(batch), size):
        cut = slice(start, start + size)
        inputs = {name: x[cut] for name, x in batch.inputs.items()}
        parts.append(
            batch.replace(inputs=inputs, missing=batch.missing[cut], target=batch.target[cut], index=batch.index[cut])
        )
    return parts


@pytest.mark.parametrize(("metric", "limit"), [(COSINE, SCATTER_BYTES), (COSINE, 0), (EUCLIDEAN, SCATTER_BYTES)])
def test_estimate_equals_twin(metric: str, limit: int, monkeypatch, caplog) -> None:
    """Features of every subset by the slow network, collected in lists; the model was left in training mode. Above the
    limit of the scatter matrices, a second pass sums the distances."""
    monkeypatch.setattr("gaussian_parameter_generation.estimate.SCATTER_BYTES", limit)
    caplog.set_level("INFO")
    model = toy_model((2, 3, 1), distance_metric=metric).train()
    batch = labelled(model, 40)
    actual = estimate(model, batches(batch, 12), progress=False)
    evaluators = [twin_evaluator(model, batch, row) for row in range(40)]
    collected = [[evaluate(mask)[1] for evaluate in evaluators] for mask in twin.subsets(3)]
    prototypes, overall, sigma = twin.gaussian_parameters(collected, batch.target.tolist(), 4, metric)
    torch.testing.assert_close(actual.prototypes.double(), prototypes, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(actual.overall.double(), overall, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(actual.sigma.double(), sigma, rtol=1e-4, atol=1e-7)
    assert actual.metric == metric
    assert actual.subsets.tolist() == [list(mask) for mask in twin.subsets(3)]
    assert actual.about == {"split": "train", "rows": 40}
    assert not model.training
    assert ("a second pass over the data" in caplog.text) == (limit == 0)


@pytest.mark.parametrize("metric", METRICS)
def test_distances_equal_twin(metric: str) -> None:
    model = toy_model((2, 1), distance_metric=metric)
    batch = labelled(model, 20)
    parameters = estimate(model, [batch], progress=False)
    values, target = distances(model, batches(batch, 7), parameters, progress=False)
    assert values.shape == (3, 20)
    assert target.tolist() == batch.target.tolist()
    for row in range(20):
        evaluate = twin_evaluator(model, batch, row)
        for s, mask in enumerate(twin.subsets(2)):
            centre = parameters.prototypes[s, target[row]]
            assert values[s, row] == pytest.approx(float(twin.distance(evaluate(mask)[1], centre, metric)), abs=2e-6)
    for s in range(3):
        for c in range(4):
            members = values[s, target == c].astype(float)
            assert float(parameters.sigma[s, c]) == pytest.approx(math.sqrt((members**2).mean()), rel=1e-4)


def test_student_t_equals_scipy() -> None:
    model = toy_model((1,), distance_metric=EUCLIDEAN)
    batch = labelled(model, 60)
    actual = estimate(model, batches(batch, 25), fit_student_t=True, progress=False)
    assert actual.student_t is not None
    assert actual.student_t.shape == (1, 4, 3)
    values, target = distances(model, [batch], actual, progress=False)
    d = values[0, target == 2].astype(float)
    assert actual.student_t[0, 2].tolist() == pytest.approx(stats.t.fit([*d, *-d]), rel=1e-3, abs=1e-4)


def test_histograms_leave_out_rows_that_lack_a_modality() -> None:
    """As on data with natural gaps: every panel keeps its density, and its histogram is of the other rows."""
    rng = np.random.default_rng(0)
    target = np.arange(60) % 2
    values = np.abs(rng.normal(size=(2, 60))).astype(np.float32)
    values[0, ::4] = np.nan  # half of the rows of class 0
    values[1, 1::2] = np.nan  # all of class 1
    sigma = np.array([[0.9, 1.1], [1.0, 1.2]])
    figure = distance_histograms(values, target, sigma, {0: "some", 1: "none"}, [0, 1])
    for i, ax in enumerate(figure.axes):
        s, c = divmod(i, 2)
        x, density = ax.lines[0].get_data()
        assert np.isfinite(x).all() and x[-1] >= 3 * sigma[s, c] - 1e-6
        np.testing.assert_allclose(density, stats.halfnorm(scale=sigma[s, c]).pdf(x), rtol=1e-6)
        known = values[s, target == c]
        known = known[~np.isnan(known)]
        counts = np.array([bar.get_height() * bar.get_width() for bar in ax.patches]) * len(known)
        assert len(ax.patches) == (40 if len(known) else 0)
        np.testing.assert_allclose(counts, np.histogram(known, 40)[0] if len(known) else [], atol=1e-3)


def test_test_split_is_refused() -> None:
    model = toy_model((1, 1))
    with pytest.raises(UserError, match="never estimated on the test split"):
        estimate(model, [labelled(model, 8)], split="test", progress=False)
    with pytest.raises(UserError, match=r"gaussian\.split=train"):
        check_split("test")
    check_split("val")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("copies", [1, 3])
def test_class_without_spread_is_refused(metric: str, copies: int) -> None:
    """One sample, or the same one several times."""
    model = toy_model((2, 1), distance_metric=metric)
    batch = labelled(model, 20)
    alone = torch.cat([(batch.target != 2).nonzero()[:, 0], torch.tensor([2]).expand(copies)])
    inputs = {name: x[alone] for name, x in batch.inputs.items()}
    batch = replace(batch, inputs=inputs, target=batch.target[alone], missing=batch.missing[alone], index=alone)
    with pytest.raises(UserError, match=r"class 2 under visible modalities \[0\] has sigma .* two different training"):
        estimate(model, [batch], progress=False)


@pytest.mark.parametrize("metric", METRICS)
def test_class_without_samples_is_refused(metric: str) -> None:
    model = toy_model((2, 1), distance_metric=metric)
    batch = labelled(model, 20)
    with pytest.raises(UserError, match="class 3 under visible modalities"):
        estimate(model, [batch.replace(target=batch.target.clamp(max=2))], progress=False)


# ---------------------------------------------------------------------------------------------- files


def estimated(metric: str, **options: Any) -> GaussianParameters:
    model = toy_model((2, 3, 1), distance_metric=metric)
    parameters = estimate(model, [labelled(model, 60)], progress=False, **options)
    fits = torch.arange(7 * 4 * 3).reshape(7, 4, 3).float()
    return replace(parameters, student_t=fits)


def assert_same(found: GaussianParameters, expected: GaussianParameters) -> None:
    for name in ("prototypes", "sigma", "overall", "subsets", "student_t"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.metric == expected.metric


@pytest.mark.parametrize("metric", METRICS)
def test_round_trip_of_our_file(metric: str, tmp_path: Path) -> None:
    parameters = replace(estimated(metric), about={"split": "val", "rows": 60, "checkpoint": "abc"})
    path = tmp_path / "gaussian.safetensors"
    parameters.save(path)
    actual = GaussianParameters.load(path)
    assert_same(actual, parameters)
    assert actual.about == parameters.about
    assert [p.name for p in tmp_path.iterdir()] == ["gaussian.safetensors"]
    replace(parameters, student_t=None).save(path)
    assert GaussianParameters.load(path).student_t is None


@pytest.mark.parametrize(("metric", "name"), [(COSINE, "subset_gaussian.pt"), (EUCLIDEAN, "subset_gaussian_EU.pt")])
def test_round_trip_of_the_original_file(metric: str, name: str, tmp_path: Path) -> None:
    parameters = estimated(metric)
    parameters.save_reference(tmp_path / name)
    assert_same(GaussianParameters.load(tmp_path / name), parameters)
    content = torch.load(tmp_path / name, weights_only=True)
    assert set(content) == {
        "prototypes",
        "overall_prototypes",
        "dist_std",
        "t_dist_params",
        "id2subset",
        "subset2id",
    }
    assert content["id2subset"] == dict(enumerate(twin.subsets(3)))
    assert content["subset2id"] == {mask: i for i, mask in enumerate(twin.subsets(3))}
    assert content["dist_std"].shape == (7, 4)


def test_original_file_in_another_order_is_put_into_ours(tmp_path: Path) -> None:
    parameters = estimated(COSINE)
    order = [3, 6, 0, 1, 5, 2, 4]
    masks = [twin.subsets(3)[i] for i in order]
    content = {
        "prototypes": parameters.prototypes[order],
        "overall_prototypes": parameters.overall,
        "dist_std": parameters.sigma[order],
        "t_dist_params": parameters.student_t[order],
        "id2subset": dict(enumerate(masks)),
        "subset2id": {mask: i for i, mask in enumerate(masks)},
    }
    torch.save(content, tmp_path / "subset_gaussian.pt")
    assert_same(GaussianParameters.load(tmp_path / "subset_gaussian.pt"), parameters)


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    parameters = estimated(COSINE)
    with pytest.raises(UserError, match=r"absent\.safetensors does not exist"):
        GaussianParameters.load(tmp_path / "absent.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not a file")
    with pytest.raises(UserError, match=r"broken\.safetensors holds no Gaussian parameters"):
        GaussianParameters.load(tmp_path / "broken.safetensors")
    for name, value in (("zero", 0.0), ("nan", math.nan)):
        bad = replace(
            parameters, sigma=parameters.sigma.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(value))
        )
        bad.save(tmp_path / f"{name}.safetensors")
        with pytest.raises(UserError, match=rf"{name}\.safetensors.*class 2 under visible modalities \[1\]"):
            GaussianParameters.load(tmp_path / f"{name}.safetensors")
        bad.save_reference(tmp_path / "subset_gaussian.pt")
        with pytest.raises(UserError, match="class 2"):
            GaussianParameters.load(tmp_path / "subset_gaussian.pt")
    same = parameters.sigma.clone()
    same[1] = 0  # every class, as of a backbone that reads nothing off modality 1
    with pytest.raises(UserError, match=r"class 0 under visible modalities \[1\] .* it learned nothing"):
        replace(parameters, sigma=same).check("here")


@pytest.mark.parametrize(
    ("key", "options", "tokens"),
    [
        ("metric", {"distance_metric": EUCLIDEAN}, (2, 3, 1)),
        ("modalities", {}, (2, 3)),
        ("feature width", {"projection": 6}, (2, 3, 1)),
    ],
)
def test_parameters_of_another_backbone_are_refused(key: str, options: dict[str, Any], tokens: tuple[int, ...]) -> None:
    parameters = estimated(COSINE)
    parameters.check_fits(toy_model((2, 3, 1)), "here")
    with pytest.raises(UserError, match=f"here has {key}"):
        parameters.check_fits(toy_model(tokens, **options), "here")
