"""Counts of a campaign: how often each kind of accident was tried, and what it led to.

``python -m tests.campaign.tally [FILE]`` prints the table of ``docs/reliability.md`` from the file of a campaign.
"""

from __future__ import annotations

import csv
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

SEED = int(os.environ.get("DYMO_CAMPAIGN_SEED", "0"))
MINUTES = float(os.environ.get("DYMO_CAMPAIGN_MINUTES", "0"))  # 0 = a small sample, for every run of the tests
FILE = os.environ.get("DYMO_CAMPAIGN_FILE")  # the table as CSV
STORED = Path(__file__).parents[2] / "docs" / "campaign.csv"
OUTCOMES = ("refused", "unchanged", "losses")
COLUMNS = ("kind", "place", "tries", *OUTCOMES)


def tries(sample: int, hour: int) -> Iterator[int]:
    """Numbers of tries: ``sample`` in every run of the tests; in a campaign in proportion to its minutes.

    Args:
        hour: tries in a campaign of an hour.
    """
    yield from range(max(sample, math.ceil(hour * MINUTES / 60)))


class Tally:
    """Outcomes by kind and place: ``refused`` in one line, ``unchanged`` result, or a loss, with its description."""

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, str], Counter[str]] = {}
        self.losses: list[str] = []

    def add(self, kind: str, place: str, outcome: str, description: str = "") -> None:
        """Count a try.

        Args:
            place: stage, reader, file or key at which it was tried.
        """
        self.outcomes.setdefault((kind, place), Counter())[outcome] += 1
        if outcome == "losses":
            self.losses.append(f"{kind}, {place}: {description}")

    def rows(self) -> list[dict[str, str | int]]:
        return [
            {"kind": kind, "place": place, "tries": counts.total(), **{name: counts[name] for name in OUTCOMES}}
            for (kind, place), counts in sorted(self.outcomes.items())
        ]

    def write(self, file: Path) -> None:
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows())


def read(file: Path) -> list[dict[str, str | int]]:
    """Rows of a file that :meth:`Tally.write` wrote."""
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [{key: value if key in ("kind", "place") else int(value) for key, value in row.items()} for row in rows]


def table(rows: list[dict[str, str | int]]) -> list[str]:
    """Lines of a Markdown table with a row per kind."""
    head = ("kind", "places", "fewest tries per place", "tries", "refused", "same result", "losses")
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        part = [row for row in rows if row["kind"] == kind]
        counts = [[int(row[name]) for row in part] for name in ("tries", *OUTCOMES)]
        cells = [kind, len(part), min(counts[0]), *map(sum, counts)]
        lines.append(f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else str(cell) for cell in cells)} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table(read(Path(sys.argv[1]) if len(sys.argv) > 1 else STORED))))
