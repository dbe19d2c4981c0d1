"""The rules beyond the paper by name, and those of one run (ours; docs/reference/rules.md)."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from torch import Tensor

from models.base import Prediction
from models.dymo.certified import Certified
from models.dymo.critic import Critic
from models.dymo.pool import Pool
from models.dymo.rule import Candidates, Rule, RuleSettings
from models.dymo.selection import Selection

RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (Pool, Certified, Critic)}


class Rules:
    """The rules of one run.

    Args:
        names: of comparators; those that are not in :data:`RULES` are ignored.
        settings: of all rules.
    """

    def __init__(self, names: Sequence[str], settings: RuleSettings | None = None) -> None:
        self.settings = settings or RuleSettings()
        self.rules = [RULES[name](self.settings) for name in dict.fromkeys(names) if name in RULES]
        self.fitted = pd.DataFrame()

    def __bool__(self) -> bool:
        return bool(self.rules)

    @property
    def needs_draws(self) -> bool:
        return any(rule.needs_draws for rule in self.rules)

    @property
    def needs_features(self) -> bool:
        return any(rule.needs_features for rule in self.rules)

    @property
    def critic(self) -> Critic | None:
        """The rule that learns from training rows, if it is one of them."""
        return next((rule for rule in self.rules if isinstance(rule, Critic)), None)

    def observe(self, candidates: Candidates, target: Tensor) -> None:
        """Collect the rows of a validation batch."""
        for rule in self.rules:
            rule.observe(candidates, target)

    def fit(self) -> None:
        """Fit every rule on what was collected; :attr:`fitted` has one row per chosen value."""
        rows = [{"rule": rule.name, **values} for rule in self.rules for values in rule.fit()]
        self.fitted = pd.DataFrame(rows, columns=["rule", "missing", "parameter", "value", "rows"])

    def predict(self, candidates: Candidates) -> dict[str, Prediction | Selection]:
        """Name -> prediction, of the rules that are fitted."""
        return {rule.name: rule.predict(candidates) for rule in self.rules if rule.is_ready}
