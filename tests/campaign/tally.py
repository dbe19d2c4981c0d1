"""Counts of a campaign: how often each kind of accident was tried, and what it led to."""

from __future__ import annotations

import csv
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

SEED = int(os.environ.get("DYMO_CAMPAIGN_SEED", "0"))
MINUTES = float(os.environ.get("DYMO_CAMPAIGN_MINUTES", "0"))  # 0 = a small sample, for every run of the tests
FILE = os.environ.get("DYMO_CAMPAIGN_FILE")  # the table as CSV
COLUMNS = ("kind", "tries", "refused", "unchanged", "losses")


def tries(sample: int, minutes: float) -> Iterator[int]:
    """Numbers of tries: ``sample`` in every run of the tests; in a campaign as many as its share of the time allows.

    Args:
        minutes: share of a campaign of one minute.
    """
    end, number = time.monotonic() + 60 * MINUTES * minutes, 0
    while number < sample or time.monotonic() < end:
        yield number
        number += 1


class Tally:
    """Outcomes by kind: ``refused`` in one line, ``unchanged`` result, or a loss, with its description."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Counter[str]] = {}
        self.losses: list[str] = []

    def add(self, kind: str, outcome: str, description: str = "") -> None:
        self.outcomes.setdefault(kind, Counter())[outcome] += 1
        if outcome == "losses":
            self.losses.append(f"{kind}: {description}")

    def rows(self) -> list[dict[str, str | int]]:
        return [
            {"kind": kind, "tries": counts.total(), **{name: counts[name] for name in COLUMNS[2:]}}
            for kind, counts in self.outcomes.items()
        ]

    def lines(self) -> list[str]:
        """The table in Markdown."""
        table = [COLUMNS, ("---",) * len(COLUMNS), *(tuple(row.values()) for row in self.rows())]
        return [f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else cell for cell in row)} |" for row in table]

    def write(self, file: Path) -> None:
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows())
