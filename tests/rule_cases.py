"""A network, recoveries with draws, and slow predictions of single rows, for the tests of rules beyond the paper."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.batch import Batch
from gaussian_parameter_generation.estimate import estimate
from models.dymo.lattice import COMPARATORS
from models.dymo.method import DyMo
from models.dymo.rule import RuleSettings
from models.imputers.base import Imputer, merge
from tests.networks import random_masks, toy_batch, toy_model, under

ROWS, VIEWS, DRAWS = 120, 3, 3


class Noisy(Imputer):
    """Recover the true content plus noise, another one for every draw."""

    def __init__(self, truth: Mapping[str, Tensor], scale: float = 1.0) -> None:
        self.truth, self.scale, self.number = truth, scale, 0

    @property
    def has_draws(self) -> bool:
        return True

    @contextmanager
    def drawing(self, number: int) -> Iterator[None]:
        self.number = 1 + number
        yield
        self.number = 0

    def impute(self, inputs: Any, missing: Tensor, index: Any = None, feature_missing: Any = None) -> dict[str, Tensor]:
        assert index is not None
        return {
            name: merge(x, missing[:, i], self.truth[name][index] + self.noise(i, name)[index])
            for i, (name, x) in enumerate(inputs.items())
        }

    def noise(self, i: int, name: str) -> Tensor:
        g = torch.Generator().manual_seed(100 * self.number + i)
        return self.scale * torch.randn(self.truth[name].shape, generator=g)


class Deterministic(Noisy):
    """Without draws."""

    @property
    def has_draws(self) -> bool:
        return False


@functools.cache
def case(seed: int = 0) -> tuple[Any, Any, Batch]:
    """Network with random weights, its parameters, and rows labelled by it from one view: some recoveries help."""
    model = toy_model((2, 2, 2), seed=3, width=8)
    complete = toy_batch(model, ROWS, seed=seed)
    with torch.no_grad():
        labels = model(complete).logits.argmax(1)
    stray = torch.rand(ROWS, generator=torch.Generator().manual_seed(seed)) < 0.2
    batch = complete.replace(target=torch.where(stray, complete.target, labels))
    return model, estimate(model, [batch.replace(target=torch.arange(ROWS) % 4)], progress=False), batch


def build(*names: str, imputer: type[Noisy] = Noisy, scale: float = 1.0, **settings: Any) -> tuple[DyMo, Batch]:
    model, parameters, batch = case()
    rules = RuleSettings(**{"draws": DRAWS} | settings)
    dymo = DyMo(model, imputer(batch.inputs, scale), parameters, comparators=(*COMPARATORS, *names), settings=rules)
    return dymo, batch


def masks(seed: int = 1) -> Tensor:
    return random_masks(ROWS, VIEWS, seed)


def calibrated(*names: str, target: Tensor | None = None, **options: Any) -> tuple[DyMo, Batch]:
    """Rules fitted on two scenarios of the rows; certificates of few rows are allowed."""
    options = {"minimum_rows": 1, "margin": 0.2, "delta": 0.3} | options
    dymo, batch = build(*names, **options)
    seen = batch if target is None else batch.replace(target=target)
    dymo.calibrate([(seen, under(seen, {"a": masks(1), "b": masks(2)}))])
    return dymo, batch


def probabilities(dymo: DyMo, batch: Batch, row: int, shown: list[bool], number: int = 0) -> np.ndarray:
    return outputs_of(dymo, batch, row, shown, number)[0]


def outputs_of(dymo: DyMo, batch: Batch, row: int, shown: list[bool], number: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Class probabilities (C,) and features of one row, with the recoveries of one draw in place of what it misses,
    under the mask ``shown``."""
    imputer: Any = dymo.imputer
    imputer.number = number
    completed = imputer.impute(batch.inputs, batch.missing, batch.index)
    imputer.number = 0
    one = Batch(
        {n: x[row : row + 1] for n, x in completed.items()}, torch.tensor([shown]), batch.target[:1], batch.index[:1]
    )
    with torch.no_grad():
        prediction: Any = dymo.backbone.fuse(dymo.backbone.encode(one.inputs), one)
    logits = prediction.logits[0].double().numpy()
    p = np.exp(logits - logits.max())
    return p / p.sum(), prediction.features[0].double().numpy()


def slow_members(dymo: DyMo, batch: Batch, row: int, has_draws: bool = True) -> list[np.ndarray]:
    """Probabilities of the members of the pool, one row at a time."""
    missing = batch.missing[row].tolist()
    hidden = [i for i, is_missing in enumerate(missing) if is_missing]
    lattice = []
    for size in range(len(hidden) + 1):
        for added in itertools.combinations(hidden, size):
            lattice.append(probabilities(dymo, batch, row, [m and i not in added for i, m in enumerate(missing)]))
    draws = [probabilities(dymo, batch, row, [False] * VIEWS, 1 + s) for s in range(DRAWS)]
    return [lattice[0], lattice[-1], *([sum(draws) / DRAWS] if has_draws else []), sum(lattice) / len(lattice)]
