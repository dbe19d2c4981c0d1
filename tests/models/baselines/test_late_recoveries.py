"""Late fusion of observed and recovered modalities against loops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

from datasets.batch import Batch
from models.baselines.logit_average import LogitAverage
from models.imputers.base import Imputer, merge
from tests.networks import modalities, random_masks

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
        each = torch.stack([model.experts[f"unimodal_m{i}"].logits(completed) for i in range(5)], 1)
        assert torch.equal(results["discard"], model(scenario["s"]).logits)
        torch.testing.assert_close(results[""], each.mean(1))
    chosen = late.choices.set_index(["missing", "parameter"])["value"]
    recovered_is_right = 0
    for k in range(1, 5):
        rows = (missing.sum(1) == k).nonzero()[:, 0].tolist()
        members = torch.stack([torch.stack([each[r, ~missing[r]].mean(0), each[r, missing[r]].mean(0)]) for r in rows])
        grid = torch.linspace(0, 1, 501)
        losses = [F.cross_entropy((1 - v) * members[:, 0] + v * members[:, 1], batch.target[rows]) for v in grid]
        v = chosen[k, "recovered"]
        assert abs(v - grid[int(torch.stack(losses).argmin())]) < 0.005 and chosen[k, "nll"] <= min(losses) + 1e-6
        torch.testing.assert_close(results["weighted"][rows], (1 - v) * members[:, 0] + v * members[:, 1])
        recovered_is_right += int((members[:, 1].argmax(1) == batch.target[rows]).sum())
    assert 0 < float(chosen.xs("recovered", level=1).max()) < 1, "neither member alone: the weights are tested"
    none_missing = int((each.mean(1).argmax(1) == batch.target)[missing.sum(1) == 0].sum())
    assert measured.recovered.item() == pytest.approx((recovered_is_right + none_missing) / ROWS)
    other = batch.replace(target=batch.target.roll(1))  # labels of the test change nothing
    again = late.predict_scenarios(other, {"s": other.replace(missing=missing)})
    assert torch.equal(again["weighted"]["s"].logits, results["weighted"])


@pytest.mark.parametrize(
    ("comparators", "use_imputer", "problem"),
    [
        (["weighted"], False, "model.comparators: they use recoveries, set model.use_imputer=true"),
        (["wieghted"], True, "model.comparators: unknown 'wieghted'; did you mean 'weighted'?"),
    ],
)
def test_comparators_are_checked(comparators: list[str], use_imputer: bool, problem: str) -> None:
    cfg = OmegaConf.create({"model": {"comparators": comparators, "use_imputer": use_imputer}})
    assert list(LogitAverage.check(cfg, "model")) == [problem]
