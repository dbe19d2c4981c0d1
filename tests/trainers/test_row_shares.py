"""Losses of several processes: weighted and logged as in one process with all rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.row_losses import RowLosses
from trainers.callbacks import RowShares

PROCESSES = ((0, 1, 2, 3), (4,), ())  # rows of each; the last one has a filler


class Line(RowLosses):
    """A mean of squares with one weight, or their sum."""

    def __init__(self, sums: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.sums_over_batch = sums

    def loss(self, x: Tensor) -> Tensor:
        losses = (self.weight * x - 1).square()
        return losses.sum() if self.sums_over_batch else losses.mean()


@pytest.mark.parametrize("sums", [False, True])
def test_gradients_are_those_of_one_process(sums: bool) -> None:
    x = torch.tensor([1.0, -2.0, 3.0, 0.5, 7.0], dtype=torch.float64)
    model, callback = Line(sums), RowShares()
    strategy = SimpleNamespace(reduce=lambda rows, reduce_op: torch.tensor(float(len(x)), dtype=torch.float64))
    trainer: Any = SimpleNamespace(world_size=len(PROCESSES), strategy=strategy)
    (expected,) = torch.autograd.grad(model.loss(x), model.weight)
    gradients = []
    for rows in PROCESSES:
        loss = model.loss(x[list(rows or (0,))]) * 1
        model.rows_of_step = len(rows)
        callback.on_before_backward(trainer, model, loss)
        gradients.append(torch.autograd.grad(loss, model.weight)[0])
    torch.testing.assert_close(torch.stack(gradients).mean(), expected)
    assert gradients[-1] == 0


def test_one_process_is_left_alone() -> None:
    loss = torch.tensor(3.0, requires_grad=True) * 1
    RowShares().on_before_backward(SimpleNamespace(world_size=1), Line(False), loss)
    assert loss == 3


def test_logged_losses_are_means_over_the_rows_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process has no row in the epoch, and hence no names."""
    models = [Line(False) for _ in PROCESSES]
    monkeypatch.setattr(Line, "processes", len(models))
    for model, rows in zip(models, PROCESSES, strict=True):
        for row in rows:
            model.log_losses("train", {"loss": torch.tensor(float(row))}, 1)
        model.log_losses("train", {"loss": torch.tensor(99.0)}, 0)
        assert model.rows_of_step == 0
    names = [list(model._sums.get("train", {})) for model in models]
    assert names == [["loss"], ["loss"], []]
    pairs = [model._sums["train"]["loss"] for model in models[:2]]

    def gather(everything: list[list[str]], ours: list[str]) -> None:
        everything[:] = names

    logged: dict[str, float] = {}
    monkeypatch.setattr("models.row_losses.dist.all_gather_object", gather)
    monkeypatch.setattr(Line, "log", lambda self, name, value: logged.update({name: float(value)}))
    strategy = SimpleNamespace(reduce=lambda pair, reduce_op: sum(pairs))
    monkeypatch.setattr(Line, "trainer", SimpleNamespace(strategy=strategy))
    for model in models:
        logged.clear()
        model.log_common_losses("train")
        assert logged == {"train_loss": 2.0} and model._sums == {}
