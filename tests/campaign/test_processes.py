"""Two gloo processes of one training, of which any is killed: the same command finishes with the same weights."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

import pandas as pd
import pytest
from pytorch_lightning.utilities import rank_zero_only

from tests.campaign.children import Child
from tests.campaign.tally import MINUTES, SEED, Tally, tries
from tests.campaign.tiny import TinyRun, contents

pytestmark = pytest.mark.campaign
RANKS = 2


def start(tiny: TinyRun, place: Path, ranks: int = RANKS) -> list[Child]:
    """The processes of stage fit."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    def train(rank: int) -> None:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
        os.environ |= {"WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
        rank_zero_only.rank = rank  # Lightning reads it from the environment when it is imported
        cfg = tiny.config(place, ["fit"])
        cfg.trainer.devices, cfg.trainer.strategy = ranks, "ddp_find_unused_parameters_true" if ranks > 1 else "auto"
        tiny.start(cfg)

    return [Child(lambda rank=rank: train(rank), place) for rank in range(ranks)]  # type: ignore[misc]


@pytest.mark.skipif(not MINUTES, reason="processes that wait for each other take seconds on shared cores")
def test_a_training_of_two_processes_goes_on(tiny: TinyRun, tally: Tally, tmp_path: Path) -> None:
    rng, losses = random.Random(SEED), []
    place = tiny.copy(tmp_path / "whole", tiny.before["fit"])
    ends = [child.wait() for child in start(tiny, place)]
    assert [status for status, *_ in ends] == [0, 0], ends
    expected = contents(place)
    for _ in tries(2, hour=12):
        place = tiny.copy(tmp_path / "killed", tiny.before["fit"])
        children = start(tiny, place)
        first = rng.randrange(RANKS)
        # The second is killed soon afterwards, as a launcher does with the rest of its processes.
        waits = {first: rng.uniform(0, 3 * tiny.seconds["fit"]), 1 - first: rng.uniform(0, 0.2)}
        killed = [children[rank].kill_after(seconds)[0] < 0 for rank, seconds in waits.items()]
        ends = [child.wait() for child in start(tiny, place)]
        wrong = next((text or str(status) for status, _, text in ends if status), None)
        if wrong is None and contents(place) != expected:
            wrong = "other weights"
        kind = "one of two processes of a distributed training killed"
        tally.add(kind, "stage fit", "losses" if wrong else "unchanged", f"{killed}: {wrong}")
        losses += [f"{killed}: {wrong}"] * bool(wrong)
    assert not losses, "\n".join(losses)


@pytest.mark.skipif(not MINUTES, reason="processes that wait for each other take seconds on shared cores")
def test_a_training_goes_on_with_another_number_of_processes(tiny: TinyRun, tally: Tally, tmp_path: Path) -> None:
    """The batch of all processes together changes, so that the weights do; every epoch is there once."""
    rng, losses = random.Random(SEED + 1), []
    for _ in tries(2, hour=12):
        first, then = rng.choice([(1, 2), (2, 1), (2, 4), (4, 2)])
        place = tiny.copy(tmp_path / "elastic", tiny.before["fit"])
        for child in start(tiny, place, first):
            child.kill_after(rng.uniform(0, 2 * tiny.seconds["fit"]))
        ends = [child.wait() for child in start(tiny, place, then)]
        wrong = next((text or str(status) for status, _, text in ends if status), None)
        (metrics,) = place.glob("out/Parts/DynamicTransformer*/default/seed0/metrics.csv") if wrong is None else ("",)
        if wrong is None and (epochs := pd.read_csv(metrics)["epoch"].tolist()) != [0, 1]:
            wrong = f"epochs {epochs}"
        what = f"{first} to {then}: {wrong}"
        tally.add(
            "distributed training continued by another number of processes",
            "stage fit",
            "losses" if wrong else "unchanged",
            what,
        )
        losses += [what] * bool(wrong)
    assert not losses, "\n".join(losses)
