"""All rules beyond the paper: settings, and that they read neither labels of the test nor missing content."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from models.dymo.rule import RuleSettings, check_settings
from models.imputers.base import merge
from tests.networks import under
from tests.rule_cases import calibrated, masks
from trainers.artefacts import NOT_OF_PREDICTIONS
from trainers.loading import Run


@pytest.mark.parametrize("value", ["margin=0", "delta=0.7", "draws=0.5", "minimum_rows=null", "draws=0"])
def test_settings_are_checked(value: str) -> None:
    name, _, number = value.partition("=")
    cfg = OmegaConf.create({"rules": {**vars(RuleSettings()), name: yaml.safe_load(number)}})
    assert [problem.split(":")[0] for problem in check_settings(cfg, "rules")] == [f"rules.{value}"]
    assert not list(check_settings(OmegaConf.create({"rules": vars(RuleSettings())}), "rules"))


RULES_OF_VALIDATION = ("pool", "certified")


def test_what_is_chosen_does_not_depend_on_labels_of_the_test() -> None:
    """Permuted test labels change neither a fitted value nor a prediction; permuted validation labels do."""
    dymo, batch = calibrated(*RULES_OF_VALIDATION)
    before = dymo.choices.copy()
    shuffled = batch.replace(target=batch.target.roll(7))
    scenarios = {"s": masks(5)}
    first = dymo.predict_scenarios(batch, under(batch, scenarios))
    second = dymo.predict_scenarios(shuffled, under(shuffled, scenarios))
    assert dymo.choices.equals(before) and len(before)
    for name in RULES_OF_VALIDATION:
        assert torch.equal(first[name]["s"].logits, second[name]["s"].logits)
    other, _ = calibrated(*RULES_OF_VALIDATION, target=batch.target.roll(7))
    assert set(other.choices["rule"]) == set(before["rule"])
    assert not other.choices["value"].equals(before["value"])


def test_rules_never_read_what_is_missing() -> None:
    dymo, batch = calibrated(*RULES_OF_VALIDATION, "critic", critic_epochs=1)
    dymo.learner.learn([batch])
    scenario = {"s": masks(5)}
    results = []
    for fill in (0.0, float("nan")):
        inputs = {
            n: merge(x, scenario["s"][:, i], torch.full_like(x, fill)) for i, (n, x) in enumerate(batch.inputs.items())
        }
        seen = batch.replace(inputs=inputs, missing=scenario["s"])
        results.append({n: r["s"].logits for n, r in dymo.predict_scenarios(seen, {"s": seen}).items()})
    for name in (*RULES_OF_VALIDATION, "critic"):
        assert torch.equal(results[0][name], results[1][name]) and results[0][name].isfinite().all()


def test_consistency_of_weight_zero_does_not_change_what_is_trained(composed: Callable[..., DictConfig]) -> None:
    """Markers of backbones that were trained before there was the option stay valid."""
    assert "consistency" not in str(Run(composed("model=DyMo")).fit_settings)
    backbone = Run(composed("model=DynamicTransformer"))
    assert "consistency" not in str(backbone.fit_settings) and backbone.cfg.model.module.consistency == 0
    assert "consistency" not in backbone._plain(backbone.cfg.model.module, *NOT_OF_PREDICTIONS)
    trained = Run(composed("model=DyMo", "model.consistency=0.5")).fit_settings
    assert trained["model"]["consistency"] == 0.5 and "imputer" in trained
