"""Missing-data scenarios and their masks. docs/missingness.md lists the names."""

from datasets.missingness.base import Rows, Scenario, unobserved
from datasets.missingness.none import Complete
from datasets.missingness.parse import check_validation, parse_scenario, parse_scenarios
from datasets.missingness.store import mask_hash, save_mask

__all__ = [
    "Complete",
    "Rows",
    "Scenario",
    "check_validation",
    "mask_hash",
    "parse_scenario",
    "parse_scenarios",
    "save_mask",
    "unobserved",
]
