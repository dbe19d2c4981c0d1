"""Metrics that a user adds in the configuration: classes of torchmetrics, computed from stored predictions."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from utils.errors import UserError

GUIDE = 'see "A metric" in docs/your-method.md'


def direction_of_class(metric: object) -> str:
    """``higher`` or ``lower``, whichever is better by ``higher_is_better`` of a class of torchmetrics or of its object;
    ``""`` where that says nothing."""
    return {True: "higher", False: "lower"}.get(getattr(metric, "higher_is_better", None), "")  # type: ignore[arg-type]


class UserMetrics:
    """Metrics of ``metrics`` in the configuration, each computed in one update.

    A metric gets probabilities (N, C) and targets (N,), or (N, C) of a multi-label task with -1 = not labelled. Classes
    ``Binary...`` of torchmetrics get the probabilities (N,) of class 1 of one label.

    Args:
        metrics: name -> metric.
        task: multiclass | binary | multilabel.
        num_classes: C.
    """

    def __init__(self, metrics: Mapping[str, Metric], task: str, num_classes: int) -> None:
        self.metrics, self.task, self.num_classes = dict(metrics), task, num_classes

    def check(self) -> None:
        """Compute every metric of a few random rows, so that one that does not fit fails before the test.

        Raises:
            UserError: a class that is for another task, or has more than one value.
        """
        rows = 2 * self.num_classes
        logits = torch.randn(rows, self.num_classes, generator=torch.Generator().manual_seed(0))
        target = torch.arange(rows) % self.num_classes
        if self.task == "multilabel":
            target = (torch.arange(logits.numel()) % 3 % 2).view_as(logits)
            target[0, 0] = -1
        for name in self.metrics:
            self.compute(name, logits, target)

    def compute(self, name: str, logits: Tensor, target: Tensor) -> float:
        """Value of one metric, NaN where the metric has none.

        Args:
            logits: (N, C), finite.
            target: (N,), or (N, C) for multi-label (< 0 = not labelled).

        Raises:
            UserError: the metric cannot be computed of these, or has more than one value.
        """
        metric, kind = self.metrics[name], type(self.metrics[name])
        metric.reset()
        if self.task == "multilabel":
            scores, target = logits.float().sigmoid(), torch.where(target < 0, -1, target).long()
            if (target < 0).any() and getattr(metric, "ignore_index", None) != -1:
                raise UserError(
                    f"metrics.{name}: some labels are not known, and {kind.__name__} does not leave them out: choose a "
                    f"class that takes ignore_index, {GUIDE}"
                )
        else:
            scores = logits.float().softmax(1)
            is_binary = any(base.__name__.startswith("Binary") for base in kind.__mro__)
            scores = scores[:, 1] if is_binary and self.num_classes == 2 else scores
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of values that are not defined, which are NaN or 0
                metric.update(scores, target)
                value = metric.compute()
        except Exception as error:
            raise UserError(
                f"metrics.{name}: {kind.__name__} cannot be computed for the task {self.task} with {self.num_classes} "
                f"classes ({str(error).partition(chr(10))[0]}): choose a class for this task, {GUIDE}"
            ) from error
        finally:
            metric.reset()
        if not isinstance(value, Tensor) or value.numel() != 1:
            size = f"{value.numel()} values" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise UserError(f"metrics.{name}: {kind.__name__} gives {size}, not one: average them, {GUIDE}")
        return float(value)
