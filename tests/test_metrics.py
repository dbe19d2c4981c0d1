"""Metrics against scikit-learn and against a loop."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from torch import Tensor

from tests import slow_twin as twin
from utils.metrics import METRICS, classification_metrics


def predictions(n: int, classes: int, seed: int, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Logits that lean to the target, every class present."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(n) % classes
    logits = scale * torch.randn(n, classes, generator=generator)
    logits[torch.arange(n), target] += 1.0
    return logits, target


def computed(logits: Tensor, target: Tensor, *names: str, classes: int, task: str = "multiclass") -> dict[str, float]:
    metrics = classification_metrics(task, classes, names or METRICS)
    for start in range(0, len(target), 37):
        metrics.update(logits[start : start + 37], target[start : start + 37])
    return {k: float(v) for k, v in metrics.compute().items()}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [3, 10])
def test_multiclass_metrics_equal_scikit_learn(classes: int, seed: int) -> None:
    logits, target = predictions(200, classes, seed)
    probabilities = logits.double().softmax(1).numpy()
    found = computed(logits, target, classes=classes)
    assert set(found) == {"accuracy", "auroc", "f1_macro", "ece"}
    guess = probabilities.argmax(1)
    assert found["accuracy"] == pytest.approx(accuracy_score(target, guess), abs=1e-6)
    assert found["f1_macro"] == pytest.approx(f1_score(target, guess, average="macro"), abs=1e-6)
    auroc = roc_auc_score(target, probabilities, multi_class="ovr", average="macro")
    assert found["auroc"] == pytest.approx(auroc, abs=1e-6)
    assert found["ece"] == pytest.approx(twin.calibration_error(probabilities.tolist(), target.tolist(), 15), abs=1e-5)


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_two_classes_equal_scikit_learn(task: str) -> None:
    logits, target = predictions(150, 2, 4)
    target[:30] = 0
    probabilities = logits.double().softmax(1).numpy()
    found = computed(logits, target, classes=2, task=task)
    assert found["accuracy"] == pytest.approx(accuracy_score(target, probabilities[:, 1] > 0.5), abs=1e-6)
    assert found["auroc"] == pytest.approx(roc_auc_score(target, probabilities[:, 1]), abs=1e-6)
    assert found["f1_macro"] == pytest.approx(f1_score(target, probabilities.argmax(1), average="macro"), abs=1e-6)
    assert found["ece"] == pytest.approx(twin.calibration_error(probabilities.tolist(), target.tolist(), 15), abs=1e-5)


def test_class_that_never_occurs_does_not_count_in_f1() -> None:
    logits, target = predictions(60, 3, 5)
    wider = torch.cat([logits, torch.full((60, 1), -50.0)], dim=1)
    expected = f1_score(target, logits.argmax(1), average="macro")
    assert computed(wider, target, "f1_macro", classes=4)["f1_macro"] == pytest.approx(expected, abs=1e-6)


def test_metrics_do_not_depend_on_batches_or_precision() -> None:
    logits, target = predictions(111, 4, 6)
    logits = logits.half().float()
    whole = classification_metrics("multiclass", 4)
    whole.update(logits.half(), target)
    expected = {k: float(v) for k, v in whole.compute().items()}
    assert computed(logits, target, classes=4) == pytest.approx(expected, abs=1e-6)


def test_calibration_error_by_hand() -> None:
    """Confidence 0.9 with accuracy 0.5, confidence 0.4 with accuracy 1: (0.4 * 2 + 0.6) / 3."""
    probabilities = torch.tensor([[0.9, 0.05, 0.05], [0.9, 0.05, 0.05], [0.3, 0.4, 0.3]])
    found = computed(probabilities.log(), torch.tensor([0, 1, 1]), "ece", classes=3)
    assert found["ece"] == pytest.approx((0.4 * 2 + 0.6) / 3, abs=1e-6)


def test_saturated_confidence_belongs_to_the_last_bin() -> None:
    """Two of confidence 1 (one right) and two of 0.95 (right): |0.975 - 0.75| in one bin."""
    logits = torch.tensor([[200.0, 0, 0], [200.0, 0, 0], [0.95, 0.03, 0.02], [0.95, 0.03, 0.02]])
    logits[2:] = logits[2:].log()
    assert computed(logits, torch.tensor([0, 1, 0, 0]), "ece", classes=3)["ece"] == pytest.approx(0.225, abs=1e-5)


def test_unknown_name_and_task_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown metric 'brier', known are accuracy"):
        classification_metrics("multiclass", 3, ("accuracy", "brier"))
    with pytest.raises(ValueError, match="ranking"):
        classification_metrics("ranking", 3)


def test_several_labels_equal_scikit_learn_on_the_labelled_cells() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(120, 4, generator=generator)
    target = (logits + torch.randn(120, 4, generator=generator) > 0).float()
    target[torch.rand(120, 4, generator=generator) < 0.3] = -1
    found = computed(logits, target, classes=4, task="multilabel")
    assert set(found) == {
        "accuracy",
        "auroc",
        *(f"f1_{average}" for average in ("macro", "micro", "weighted", "samples")),
    }
    labelled = [(target[:, c] >= 0).numpy() for c in range(4)]
    columns = [(target[:, c].numpy()[k], logits[:, c].numpy()[k]) for c, k in enumerate(labelled)]
    hits = torch.cat([torch.tensor((x > 0) == (y > 0)) for y, x in columns])
    assert found["accuracy"] == pytest.approx(float(hits.float().mean()), abs=1e-6)
    auroc = sum(roc_auc_score(y, x) for y, x in columns) / 4
    assert found["auroc"] == pytest.approx(auroc, abs=1e-6)
    each = [f1_score(y, x > 0) for y, x in columns]
    assert found["f1_macro"] == pytest.approx(sum(each) / 4, abs=1e-6)
    support = [y.sum() for y, _ in columns]
    assert found["f1_weighted"] == pytest.approx(sum(f * n for f, n in zip(each, support)) / sum(support), abs=1e-6)
    pooled = f1_score(*(torch.cat([torch.tensor(part[i] > 0) for part in columns]) for i in (0, 1)))
    assert found["f1_micro"] == pytest.approx(pooled, abs=1e-6)
    rows = []
    for said, true in zip((logits > 0).tolist(), target.tolist()):
        cells = [(s, t) for s, t in zip(said, true) if t >= 0]
        rows.append(f1_score([t for _, t in cells], [float(s) for s, _ in cells], zero_division=0) if cells else 0.0)
    assert found["f1_samples"] == pytest.approx(sum(rows) / 120, abs=1e-6)
