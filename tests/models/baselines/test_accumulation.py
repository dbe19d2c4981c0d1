"""QMF with ``reference=true`` takes a step every N batches, across the ends of epochs, as the original does."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from datasets.rows import take_rows
from models.baselines.qmf import QMF
from tests.contracts.test_baselines import VECTOR, build, configure, some_batch
from utils.errors import UserError

ROWS, BATCHES, N = 12, 3, 4


class Rows(pl.LightningDataModule):
    """Twelve rows in three batches of four, always in the same order."""

    def split(self, name: str) -> range:
        return range(ROWS)

    def train_dataloader(self) -> Any:
        batch = some_batch("MST", ROWS)
        parts = [take_rows(batch, torch.arange(start, start + 4)) for start in range(0, ROWS, 4)]
        return DataLoader(parts, batch_size=None)  # type: ignore[arg-type]


def model_of(accumulation: int = N, *overrides: str) -> QMF:
    torch.manual_seed(0)
    model: Any = build(
        "QMF", "MST", *VECTOR, "model.module.reference=true", f"model.module.accumulation={accumulation}", *overrides
    )
    model._optimizer, model._scheduler = partial(torch.optim.SGD, lr=0.5), None
    return model


def trainer(folder: Path, epochs: int, **arguments: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", max_epochs=epochs, default_root_dir=folder, logger=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0, **arguments,
    )  # fmt: skip


def slow(epochs: int, accumulation: int = N) -> dict[str, torch.Tensor]:
    """The original's loop: one counter over all epochs, the loss divided by N."""
    model = model_of(accumulation).train()
    model.memory = torch.zeros(ROWS, 3)
    model.log_losses = lambda *_: None  # type: ignore[method-assign, assignment]
    optimizer, steps = torch.optim.SGD(model.parameters(), lr=0.5), 0
    for _ in range(epochs):
        for batch in Rows().train_dataloader():
            (model.training_step(batch, 0) / accumulation).backward()
            steps += 1
            if steps % accumulation == 0:
                optimizer.step()
                optimizer.zero_grad()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def close(model: QMF, expected: dict[str, torch.Tensor]) -> None:
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("epochs", [2, 3, 4])
def test_groups_go_on_over_the_end_of_an_epoch(tmp_path: Path, epochs: int) -> None:
    """Three batches per epoch and four per step: steps after batches 4, 8 and 12."""
    model = model_of()
    trainer(tmp_path, epochs, enable_checkpointing=False).fit(model, datamodule=Rows())
    close(model, slow(epochs))
    start = dict(model_of().named_parameters())
    assert any(not torch.allclose(p, start[name]) for name, p in model.named_parameters())
    assert model.accumulated == epochs * BATCHES % N


def test_a_resumed_run_has_the_gradients_of_its_incomplete_group(tmp_path: Path) -> None:
    first = trainer(tmp_path, 2, enable_checkpointing=False)
    first.fit(model_of(), datamodule=Rows())
    first.save_checkpoint(tmp_path / "half.ckpt")
    content = torch.load(tmp_path / "half.ckpt", weights_only=True)
    assert content["accumulated"]["batches"] == 2
    model = model_of()
    trainer(tmp_path, 4, enable_checkpointing=False).fit(
        model, datamodule=Rows(), ckpt_path=tmp_path / "half.ckpt", weights_only=True
    )
    close(model, slow(4))


def test_what_cannot_be_accumulated_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"one step per 24 batches, but training has 3"):
        trainer(tmp_path, 1, enable_checkpointing=False).fit(model_of(24), datamodule=Rows())
    with pytest.raises(UserError, match=r"set model\.training\.accumulate_grad_batches=1"):
        trainer(tmp_path, 4, enable_checkpointing=False, accumulate_grad_batches=2).fit(model_of(), datamodule=Rows())
    with pytest.raises(Exception, match=r"accumulation=3: .* requires reference=true"):
        model_of(3, "model.module.reference=false")


@pytest.mark.parametrize(
    ("dataset", "batches"),
    [("PolyMNIST", 24), ("MST", 24), ("CelebA", 24), ("DVM", 24), ("CAD", 12), ("Infarction", 12), ("Digits", 24)],
)
def test_the_reference_accumulates_as_published(dataset: str, batches: int) -> None:
    cfg = configure("model=QMF", f"dataset={dataset}", "model.module.reference=true")
    assert (cfg.model.module.accumulation, cfg.model.training.accumulate_grad_batches) == (batches, 1)
    # Runs from before there was the key, without reference, are those of today.
    assert configure("model=QMF", f"dataset={dataset}").model.module.accumulation is None
