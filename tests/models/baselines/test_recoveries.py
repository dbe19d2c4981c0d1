"""Methods on observed and recovered modalities, and their comparators, against loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from datasets.batch import Batch
from models.base import Prediction
from models.baselines.base import Baseline
from models.baselines.logit_average import LogitAverage
from models.imputers.base import Imputer, merge
from tests.networks import modalities, random_masks
from tests.tolerances import assert_close_sums
from trainers.config.validate import validate
from trainers.loading import Run
from utils.errors import UserError

ROWS, CLASSES = 240, 4


class Expert(nn.Module):
    """Classify one view of three numbers."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.classifier = name, nn.Linear(3, CLASSES)

    def encode(self, inputs: Mapping[str, Tensor], cells: Any = None) -> Tensor:
        return inputs[self.name][:, None]

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self.classifier(inputs[self.name])


class Given(Imputer):
    """Recoveries made beforehand, by row number."""

    def __init__(self, content: dict[str, Tensor]) -> None:
        self.content = content

    def impute(self, inputs: Any, missing: Tensor, index: Any = None, feature_missing: Any = None) -> dict[str, Tensor]:
        return {n: merge(x, missing[:, i], self.content[n][index]) for i, (n, x) in enumerate(inputs.items())}


def average() -> Any:
    torch.manual_seed(0)
    experts: Any = {f"unimodal_m{i}": Expert(f"m{i}") for i in range(5)}
    return LogitAverage(modalities(5, (3,)), CLASSES, {}, prerequisites=experts).eval()


def labelled(model: LogitAverage) -> Batch:
    """Rows whose views and recoveries both say something of their labels."""
    g = torch.Generator().manual_seed(0)
    inputs = {m.name: torch.randn(ROWS, 3, generator=g) for m in model.modalities}
    missing = torch.zeros(ROWS, 5, dtype=torch.bool)
    batch = Batch(inputs, missing, torch.randint(CLASSES, (ROWS,), generator=g), torch.arange(ROWS), complete=True)
    with torch.inference_mode():
        logits = model(batch).logits
    sharp = torch.distributions.Categorical(logits=4 * (logits + 0.7 * logits.flip(0)))
    torch.manual_seed(1)
    return batch.replace(target=sharp.sample())


def test_late_recoveries_equal_loops() -> None:
    """Observed and recovered views are averaged apart; their weight is the best of a fine grid."""
    model = average()
    batch = labelled(model)
    late = model.complete_with(Given({n: x.flip(0) for n, x in batch.inputs.items()}), ("discard", "weighted"))
    scenario = {"s": batch.replace(missing=random_masks(ROWS, 5, seed=3))}
    missing = scenario["s"].missing
    assert late is not None and "weighted" not in late.predict_scenarios(batch, scenario)
    measured = late.calibrate([(batch, scenario)])
    results = {label: r["s"].logits for label, r in late.predict_scenarios(batch, scenario).items()}
    with torch.inference_mode():
        completed = late._imputer[0].impute(batch.inputs, missing, batch.index)
        parts = torch.stack([model.experts[f"unimodal_m{i}"].logits(completed) for i in range(5)], 1)
        assert torch.equal(results["discard"], model(scenario["s"]).logits)
        assert_close_sums(results[""], parts.mean(1))
    chosen = late.choices.set_index(["missing", "parameter"])["value"]
    recovered_is_right = 0
    for k in range(1, 5):
        rows = (missing.sum(1) == k).nonzero()[:, 0].tolist()
        members = torch.stack(
            [torch.stack([parts[r, ~missing[r]].mean(0), parts[r, missing[r]].mean(0)]) for r in rows]
        )
        grid = torch.linspace(0, 1, 501)
        losses = [F.cross_entropy((1 - v) * members[:, 0] + v * members[:, 1], batch.target[rows]) for v in grid]
        v = chosen[k, "recovered"]
        assert abs(v - grid[int(torch.stack(losses).argmin())]) < 0.005 and chosen[k, "nll"] <= min(losses) + 1e-6
        assert_close_sums(results["weighted"][rows], (1 - v) * members[:, 0] + v * members[:, 1])
        recovered_is_right += int((members[:, 1].argmax(1) == batch.target[rows]).sum())
    assert 0 < float(chosen.xs("recovered", level=1).max()) < 1, "neither member alone: the weights are tested"
    none_missing = int((parts.mean(1).argmax(1) == batch.target)[missing.sum(1) == 0].sum())
    assert measured.recovered.item() == pytest.approx((recovered_is_right + none_missing) / ROWS)
    other = batch.replace(target=batch.target.roll(1))  # labels of the test change nothing
    again = late.predict_scenarios(other, {"s": other.replace(missing=missing)})
    assert torch.equal(again["weighted"]["s"].logits, results["weighted"])


class Summed(Baseline):
    """Classify the sum of the observed views of three numbers."""

    def __init__(self) -> None:
        super().__init__(modalities(5, (3,)), CLASSES)
        torch.manual_seed(0)
        self.head = nn.Linear(3, CLASSES)

    def encode(self, inputs: Mapping[str, Tensor], cells: Any = None) -> Tensor:
        return torch.stack(list(inputs.values()), dim=1)

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        return Prediction(self.head(torch.where(batch.missing[..., None], 0, encoded).sum(1)))

    def forward(self, batch: Batch) -> Prediction:
        return self.fuse(self.encode(batch.inputs), batch)


class Drawn(Given):
    """Every draw is of other rows; modality 4 is not recovered."""

    shift = 0

    @property
    def has_draws(self) -> bool:
        return True

    @contextmanager
    def drawing(self, number: int) -> Iterator[None]:
        self.shift = 1 + number
        yield
        self.shift = 0

    def recoverable(self, modalities: Any) -> list[str]:
        return ["m0", "m1", "m2", "m3"]

    def impute(self, inputs: Any, missing: Tensor, index: Any = None, feature_missing: Any = None) -> dict[str, Tensor]:
        return super().impute(inputs, missing, (index + self.shift) % ROWS)


def test_pool_of_any_method_equals_loops() -> None:
    """Supersets, draws and products of powers, one row at a time."""
    model = Summed().eval()
    g = torch.Generator().manual_seed(0)
    inputs = {m.name: torch.randn(ROWS, 3, generator=g) for m in model.modalities}
    batch = Batch(inputs, torch.zeros(ROWS, 5).bool(), torch.arange(ROWS) % CLASSES, torch.arange(ROWS), complete=True)
    imputer = Drawn({n: x.flip(0) for n, x in inputs.items()})
    pooled: Any = model.complete_with(imputer, ("discard", "pool"))
    masked = batch.replace(missing=random_masks(ROWS, 5, seed=3))
    pooled.calibrate([(batch, {"s": masked})])
    assert pooled.names == ("discard", "impute_all", "draws", "lattice")
    results = {label: r["s"].logits.softmax(1) for label, r in pooled.predict_scenarios(batch, {"s": masked}).items()}

    def p(row: int, missing: list[int], shift: int = 0) -> Tensor:
        views = []
        for i in range(5):
            if i not in missing:
                other = ROWS - 1 - (row + shift) % ROWS if masked.missing[row, i] else row
                views.append(inputs[f"m{i}"][other])
        return model.head(torch.stack([torch.zeros(3), *views]).sum(0)).softmax(0)

    with torch.no_grad():
        for row in range(0, ROWS, 5):
            hidden = masked.missing[row].nonzero()[:, 0].tolist()
            fixed, back = [i for i in hidden if i == 4], [i for i in hidden if i != 4]
            lattice = [p(row, [*fixed, *left]) for n in range(len(back) + 1) for left in combinations(back, n)]
            draws = torch.stack([p(row, fixed, 1 + s) for s in range(8)]).mean(0)
            members = [p(row, hidden), p(row, fixed), draws, torch.stack(lattice).mean(0)]
            members = members if back else [members[0]] * 4
            weights = pooled.weights.weights.get(len(hidden), [1.0])
            expected = torch.stack([m**w for m, w in zip(members, weights)]).prod(0)
            assert_close_sums(results["pool"][row], expected / expected.sum())
            assert_close_sums(results["discard"][row], members[0])
            assert_close_sums(results[""][row], members[1])
    assert max(max(w[1:]) for w in pooled.weights.weights.values()) > 0.1, "something is recovered"


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (("model=LogitAverage",), "they use recoveries, set model.use_imputer=true"),
        (("model=LogitAverage", "model.use_imputer=true"), "unknown 'wieghted'; did you mean 'weighted'"),
        (("model=ModDrop", "model.use_imputer=true"), "unknown 'wieghted'; known are discard, pool"),
        (("model=MUSE", "model.use_imputer=true", "model.module.reference=true"), "MUSE .* predictions depend on the"),
        (("model=MoPoE_Classification",), "MoPoE_Classification has none"),
        (("model=Multimodal_CONCAT",), "Multimodal_CONCAT cannot be compared .* it needs complete inputs"),
    ],
)
def test_comparators_are_checked(overrides: tuple[str, ...], problem: str, composed: Callable[..., DictConfig]) -> None:
    with pytest.raises(UserError, match=rf"model\.comparators: {problem}"):
        validate(composed("dataset=Digits", *overrides, "model.comparators=[wieghted]"))


@pytest.mark.parametrize(
    ("scenario", "problem"),
    [("bogus_1", "unknown missing scenario 'bogus_1'"), ("noise_gaussian_3_all", "has noise, which")],
)
def test_scenarios_of_the_validation_are_checked(
    scenario: str, problem: str, composed: Callable[..., DictConfig]
) -> None:
    more = ("model.use_imputer=true", "model.comparators=[pool]", f"model.validation=[{scenario}]")
    with pytest.raises(UserError, match=problem):
        validate(composed("dataset=Digits", "model=ModDrop", *more))


@pytest.mark.parametrize("model", ["LogitAverage", "DynMM"])
def test_comparators_do_not_change_what_is_trained(model: str, composed: Callable[..., DictConfig]) -> None:
    """Markers of models that were trained before there were comparators stay valid, with models within them too."""
    plain = Run(composed(f"model={model}")).fit_settings
    known = Run(composed(f"model={model}")).cfg.model
    more = ("model.use_imputer=true", "model.comparators=[discard]", "model.validation=[whole_0]")
    assert Run(composed(f"model={model}", *more)).fit_settings == plain
    assert "comparators" in known and "comparators" not in str(plain) and "whole_0" not in str(plain)
