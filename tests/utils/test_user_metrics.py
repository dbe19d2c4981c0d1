"""Metrics of the configuration: against scikit-learn, and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.metrics import cohen_kappa_score, fbeta_score, roc_auc_score
from torchmetrics import Metric

from trainers.config.build import build_metrics
from trainers.config.checks.targets import check_metrics
from trainers.config.overrides import check_overrides
from utils.errors import UserError
from utils.user_metrics import UserMetrics


class Data:
    def __init__(self, task: str, num_classes: int) -> None:
        self.task, self.num_classes = task, num_classes


class Margin(Metric):
    """Mean difference of the two largest probabilities: a class of a user."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("margins", [], dist_reduce_fx="cat")

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        top = preds.topk(2).values
        self.margins.append(top[:, 0] - top[:, 1])

    def compute(self) -> torch.Tensor:
        return torch.cat(self.margins).mean()


def metrics_of(task: str, classes: int, **nodes: dict) -> UserMetrics:
    nodes = {name: {**node, "_target_": f"torchmetrics.{node['_target_']}"} for name, node in nodes.items()}
    return build_metrics(OmegaConf.create({"metrics": nodes}), Data(task, classes))


def rows(task: str, classes: int, n: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    target = rng.integers(classes, size=n)
    if task == "multilabel":
        target = rng.integers(-1, 2, size=(n, classes)).astype(np.float32)
    return torch.from_numpy(rng.normal(size=(n, classes)).astype(np.float32)), torch.from_numpy(target)


def test_classes_of_torchmetrics_equal_scikit_learn_with_the_arguments_of_the_data() -> None:
    kappa = {"_target_": "classification.MulticlassCohenKappa"}
    metrics = metrics_of("multiclass", 4, kappa=kappa, wrapped={"_target_": "CohenKappa", "weights": "linear"})
    logits, target = rows("multiclass", 4)
    expected = cohen_kappa_score(target, logits.argmax(1))
    for _ in range(2):  # nothing stays from the first time
        assert metrics.compute("kappa", logits, target) == pytest.approx(expected, abs=1e-6)
    weighted = cohen_kappa_score(target, logits.argmax(1), weights="linear")
    assert metrics.compute("wrapped", logits, target) == pytest.approx(weighted, abs=1e-6)
    binary = metrics_of("binary", 2, area={"_target_": "classification.BinaryAUROC"}, kappa=kappa)
    logits, target = rows("binary", 2)
    area = roc_auc_score(target, logits[:, 1] - logits[:, 0])
    assert binary.compute("area", logits, target) == pytest.approx(area, abs=1e-6)
    assert binary.compute("kappa", logits, target) == pytest.approx(cohen_kappa_score(target, logits.argmax(1)))
    logits, target = rows("multilabel", 3)
    labels = metrics_of("multilabel", 3, f2={"_target_": "classification.MultilabelFBetaScore", "beta": 2.0})
    scores = [fbeta_score(y[y >= 0], (x > 0)[y >= 0], beta=2) for y, x in zip(target.T, logits.T)]
    assert labels.compute("f2", logits, target) == pytest.approx(np.mean(scores), abs=1e-6)


def test_a_class_of_the_user_and_a_value_that_is_not_defined() -> None:
    node = {"_target_": f"{__name__}.Margin"}
    metrics = build_metrics(OmegaConf.create({"metrics": {"margin": node}}), Data("multiclass", 3))
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]])
    assert metrics.compute("margin", probabilities.log(), torch.tensor([0, 1])) == pytest.approx((0.2 + 0.7) / 2)
    kappa = metrics_of("multiclass", 3, kappa={"_target_": "classification.MulticlassCohenKappa"})
    assert math.isnan(kappa.compute("kappa", torch.eye(3)[[0, 0]], torch.tensor([0, 0])))  # as scikit-learn


@pytest.mark.parametrize(
    ("task", "node", "message"),
    [
        ("multiclass", {"_target_": "classification.MultilabelF1Score"}, "cannot be computed for the task multiclass"),
        ("multiclass", {"_target_": "classification.MulticlassRecall", "average": None}, "gives 3 values, not one"),
        ("multiclass", {"_target_": "classification.MulticlassROC"}, "gives a tuple, not one"),
        ("multilabel", {"_target_": "HammingDistance", "ignore_index": None}, "some labels are not known, and"),
        ("multiclass", {"_target_": "classification.MulticlassRecall", "average": "most"}, "config 'metrics.x'"),
    ],
)
def test_metrics_that_do_not_fit_the_data_are_refused_in_one_line(task: str, node: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        metrics_of(task, 3, x=node)
    assert "\n" not in str(error.value) and "metrics.x" in str(error.value)


@pytest.mark.parametrize(
    ("metrics", "problem"),
    [
        ({"accuracy": {"_target_": "torchmetrics.Accuracy"}}, "metrics.accuracy: there is a metric of this name"),
        ({"x": {"average": "macro"}}, "metrics.x: name a class of torchmetrics in metrics.x._target_"),
        ({"x": "torchmetrics.Accuracy"}, "metrics.x: name a class of torchmetrics"),
        ({"x": {"_target_": "torch.nn.Linear"}}, "metrics.x._target_=torch.nn.Linear: is no metric of torchmetrics"),
        ("kappa", "metrics=kappa: must be a mapping"),
        ({"x": {"_target_": "torchmetrics.Accuracy"}}, None),
        ({}, None),
    ],
)
def test_faults_of_the_configuration_are_named_before_any_work(metrics: object, problem: str | None) -> None:
    problems = list(check_metrics(OmegaConf.create({"metrics": metrics})))
    assert [text[: len(problem)] for text in problems] == [problem] if problem else not problems


def test_the_command_line_adds_a_metric() -> None:
    check_overrides(["+metrics.kappa._target_=torchmetrics.classification.MulticlassCohenKappa"])
    with pytest.raises(UserError, match=r"unknown key 'metrics.kappa"):
        check_overrides(["metrics.kappa._target_=torchmetrics.CohenKappa"])  # Hydra asks for the plus sign
