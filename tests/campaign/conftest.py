"""One tiny finished run for all accidents, and the table of what was tried."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaign.tally import FILE, MINUTES, SEED, Tally, table
from tests.campaign.tiny import TinyRun

_tally = Tally()


@pytest.fixture(scope="session")
def tally() -> Tally:
    return _tally


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return TinyRun(tmp_path_factory.mktemp("campaign"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _tally.outcomes or not MINUTES:
        return
    terminalreporter.section(f"campaign, seed {SEED}, {MINUTES:g} minutes")
    for line in (*table(_tally.rows()), *_tally.losses):
        terminalreporter.write_line(line)
    if FILE:
        _tally.write(Path(FILE))
