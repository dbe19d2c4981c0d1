"""The comparison of all methods: what the commands of its script set is the same for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.makers import jobs_of
from trainers.loading import Run, open_run


def parts(context: Run) -> Iterator[Run]:
    """A run and everything that is trained before it."""
    yield context
    for part in context.prerequisites.values():
        yield from parts(part)


def check(context: Run, epochs: int, batch_size: int, patience: int | None, schedule: str | None) -> None:
    for part in parts(context):
        name, training = part.cfg.model.name, part.trainable.training
        of_stage = {"MultiAE_autoencoder": 3 * epochs, "LogitAverage": 1}  # as published; nothing to train
        actual = (training.max_epochs, training.batch_size, training.patience)
        stops = None if name == "MultiAE_autoencoder" else patience
        assert actual == (of_stage.get(name, epochs), batch_size, stops), name
        assert part.monitor is None, name
        scheduler = part.trainable.module.get("scheduler")
        if scheduler is not None:
            assert (scheduler.name, scheduler.max_epochs) == (schedule, training.max_epochs), name


def test_all_methods_train_alike_and_keep_their_last_epoch(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, "baselines.sh", "PolyMNIST", str(tmp_path), "schedule=short")[:-1]
    models = {next(o for o in job if o.startswith("model=")).removeprefix("model="): job for job in jobs}
    assert len(models) == 19
    for model, job in models.items():
        overrides = [*job, f"paths.output={tmp_path}"]
        check(open_run(*overrides), 15, 128, None, "cosine")
        if model in ("DyMo", "OnlineMAE", "SimMLM"):
            longer = ["schedule=published", "dataset.training_defaults.batch_size=32"]
            check(open_run(*(o for o in overrides if o != "schedule=short"), *longer), 100, 32, 20, None)
