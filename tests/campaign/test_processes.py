"""Two gloo processes of one training, of which any is killed: the same command finishes with the same weights."""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only

from tests.campaign.children import KILLED, REFUSED, Child
from tests.campaign.tally import MINUTES, SEED, Tally, tries
from tests.campaign.tiny import TinyRun, contents
from trainers import evaluate
from utils.errors import UserError

pytestmark = pytest.mark.campaign
RANKS = 2
BATCH = 3  # rows of stage test


def keep(cfg: DictConfig, rank: int) -> None:
    """Change nothing."""


def start(
    tiny: TinyRun, place: Path, ranks: int = RANKS, stage: str = "fit", change: Callable[[DictConfig, int], None] = keep
) -> list[Child]:
    """The processes of a stage; ``change`` gets their configuration and rank."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    def train(rank: int) -> None:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
        os.environ |= {"WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
        rank_zero_only.rank = rank  # Lightning reads it from the environment when it is imported
        cfg = tiny.config(place, [stage])
        cfg.trainer.devices, cfg.trainer.strategy = ranks, "ddp_find_unused_parameters_true" if ranks > 1 else "auto"
        change(cfg, rank)
        tiny.start(cfg)

    return [Child(lambda rank=rank: train(rank), place) for rank in range(ranks)]  # type: ignore[misc]


def with_comparators(cfg: DictConfig, rank: int = 0) -> None:
    """Those that choose on validation rows, draw, or learn from training rows among them."""
    cfg.model.comparators = ["discard", "random", "threshold", "pool", "critic"]
    cfg.model.rules.critic_epochs = 1
    cfg.dataset.test_batch_size = BATCH


def test_processes_that_share_stage_test_write_what_one_writes(tiny: TinyRun, tmp_path: Path) -> None:
    whole, shared = (tiny.copy(tmp_path / name, tiny.before["test"]) for name in ("whole", "shared"))
    cfg = tiny.config(whole, ["test"])
    with_comparators(cfg)
    tiny.start(cfg)
    ends = [child.wait() for child in start(tiny, shared, stage="test", change=with_comparators)]
    assert [status for status, *_ in ends] == [0, 0], ends
    expected = contents(whole)
    assert {"results.csv", "selection_validation.csv", "critic.safetensors"} <= {Path(name).name for name in expected}
    (rows,) = {len(arrays["index"]) for arrays in map(np.load, whole.glob("out/**/predictions/none.npz"))}
    assert -(-rows // BATCH) % RANKS, "one process has a batch more"
    assert contents(shared) == expected
    # Where the rows of the second process have no answer, the first one says so.
    place = tiny.copy(tmp_path / "broken", tiny.before["test"])

    def fail(*_: object) -> None:
        raise UserError("logits are not finite")

    def spoil(cfg: DictConfig, rank: int) -> None:
        if rank == 1:
            evaluate.predict = broken  # type: ignore[assignment]

    broken: Callable[..., object] = fail

    (first, _, text), (second, *_) = [child.wait() for child in start(tiny, place, stage="test", change=spoil)]
    assert (first, second) == (REFUSED, 0) and text.endswith("logits are not finite")
    # Where the second process is killed, the first one does not wait for it.
    broken = lambda *_: os._exit(KILLED)  # noqa: E731
    (first, _, text), (second, *_) = [child.wait() for child in start(tiny, place, stage="test", change=spoil)]
    assert (first, second) == (REFUSED, KILLED) and "another process of this run has ended" in text

    def full(cfg: DictConfig, rank: int) -> None:
        if rank == 0:
            evaluate.learn = fail  # type: ignore[assignment]

    # What the first process alone cannot do ends the others, which would wait.
    (first, _, text), (second, _, other) = [child.wait() for child in start(tiny, place, stage="test", change=full)]
    assert (first, second) == (REFUSED, REFUSED) and text.endswith("not finite") and "has ended" in other


def test_processes_that_share_new_rows_write_what_one_writes(tiny: TinyRun, tmp_path: Path) -> None:
    rows = pd.read_csv(tiny.csv)
    rows.loc[::3, ["metal", "finish", "weight", "length"]] = None

    def predicting(name: str, rows: pd.DataFrame) -> Callable[[DictConfig, int], None]:
        """Predict them in chunks of BATCH rows, into a folder of this name."""
        (tmp_path / name).mkdir()
        rows.to_csv(tmp_path / name / "rows.csv", index=False)

        def change(cfg: DictConfig, rank: int = 0) -> None:
            cfg.predict.input, cfg.predict.chunk = str(tmp_path / name / "rows.csv"), BATCH
            cfg.predict.output = str(tmp_path / name / "predictions.csv")
            cfg.predict.recovered = str(tmp_path / name / "recovered")

        return change

    place = tiny.copy(tmp_path / "run", tiny.before["predict"])
    cfg = tiny.config(place, ["predict"])
    predicting("alone", rows)(cfg, 0)
    tiny.start(cfg)
    ends = [child.wait() for child in start(tiny, place, stage="predict", change=predicting("shared", rows))]
    assert [status for status, *_ in ends] == [0, 0], ends
    alone, shared = (
        {file.relative_to(tmp_path / name): file.read_bytes() for file in (tmp_path / name).rglob("*.*")}
        for name in ("alone", "shared")
    )
    assert shared == alone and len(rows) > 2 * RANKS * BATCH
    assert alone.keys() >= {Path("predictions.csv"), Path("recovered", "table", "recovered.csv")}
    # A chunk of the second process that cannot be read: what comes before it is kept, and the reason is given.
    rows.loc[BATCH + 1, "metal"] = "gold"
    (first, _, text), (second, *_) = (
        child.wait() for child in start(tiny, place, stage="predict", change=predicting("refused", rows))
    )
    assert (first, second) == (REFUSED, 0) and "gold" in text
    assert json.loads((tmp_path / "refused" / ".predictions.csv.progress.json").read_text())["rows"] == BATCH


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
