"""The parts of :mod:`tests.benchmarks.gpu` on training steps: options of the trainer, and the data path."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch

from models.dymo.dynamic_transformer import DynamicTransformer
from tests.benchmarks.__main__ import alternate
from tests.benchmarks.methods import spread
from trainers.config.build import set_float32_precision
from trainers.config.imputers import build_imputer
from trainers.loading import open_run

ROWS = 256  # of a batch, as in the published recipe
BATCHES = 60


class _Step:
    """Training step of a network with options of the trainer.

    Args:
        network: gets no trainer.
        batch: on its device.
        is_mixed: matrix products in bfloat16.
        is_channels_last: layout of images and weights.
        backend: of torch.compile, None = off.
    """

    def __init__(self, network: Any, batch: Any, is_mixed: bool, is_channels_last: bool, backend: str | None) -> None:
        layout = torch.channels_last if is_channels_last else torch.contiguous_format
        network.log = network.log_dict = lambda *_, **__: None
        network.to(batch.index.device, memory_format=layout).train()
        if isinstance(network, DynamicTransformer):
            network.on_train_epoch_start()
        if backend:
            network.compile_parts(backend)
        inputs = {name: x.contiguous(memory_format=layout) for name, x in batch.inputs.items()}
        self.network, self.batch, self.is_mixed = network, batch.replace(inputs=inputs, complete=True), is_mixed
        self.optimizer = torch.optim.Adam(network.parameters(), 1e-4, fused=True)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast(self.batch.index.device.type, torch.bfloat16, enabled=self.is_mixed):
            loss = self.network.training_step(self.batch, 0)
        loss.backward()
        self.optimizer.step()


# Name -> float32 products, bfloat16, channels last, compiler.
STEPS: dict[str, tuple[str, bool, bool, str | None]] = {
    "float32": ("highest", False, False, None),
    "float32, channels last": ("highest", False, True, None),
    "TF32": ("high", False, False, None),
    "bf16-mixed": ("highest", True, False, None),
    "bf16-mixed, channels last": ("highest", True, True, None),
    "bf16-mixed, compile=cudagraphs": ("highest", True, False, "cudagraphs"),
    "bf16-mixed, compile=inductor": ("highest", True, False, "inductor"),
}
DRY_STEPS: dict[str, tuple[str, bool, bool, str | None]] = {
    "float32": STEPS["float32"],
    "bf16-mixed, channels last": STEPS["bf16-mixed, channels last"],
    "float32, compile=eager": ("highest", False, False, "eager"),  # it traces alike, and needs no GPU
}


def steps(check: Any) -> None:
    """A training step under the options of the trainer; the rows of a step are those of the published recipes."""
    check.context.prepare_data()
    data, rows = check.context.data, 16 if check.is_dry else ROWS
    batch = data.rows("train", spread(data, "train", rows)).to(check.device)
    networks: dict[str, Callable[[], Any]] = {
        "DynamicTransformer": check.context.build,
        "ModDrop": open_run(*check.overrides, "model=ModDrop").build,
        "MoPoE": lambda: build_imputer(check.context.cfg, data),
    }
    problems = []
    plain: dict[str, float] = {}
    for option, (precision, is_mixed, is_channels_last, backend) in (DRY_STEPS if check.is_dry else STEPS).items():
        for name, make in networks.items():
            if backend and name != "DynamicTransformer":
                continue  # imputers are never compiled, and a second compilation takes the time of the check
            torch.manual_seed(0)
            set_float32_precision(precision, check.device)
            try:
                step = _Step(make(), batch, is_mixed, is_channels_last, backend)
                milliseconds = 1e3 * alternate(1 if check.is_dry else 10, step=step)["step"]
            except Exception as error:  # the other options are measured all the same
                problems.append(f"{name}, {option}: {type(error).__name__}: {str(error).splitlines()[0]}")
                continue
            finally:
                set_float32_precision("highest", check.device)
            ratio = plain.setdefault(name, milliseconds) / milliseconds
            check.rows.add(
                f"training step of {rows} rows, {name}, {option}", milliseconds, "ms", ratio, "float32 / this"
            )
    if problems:
        raise RuntimeError("; ".join(problems))


def loading(check: Any) -> None:
    """Rows per second of the data path, and of training steps on it, by where the arrays reside."""
    check.context.prepare_data()
    data, rows = check.context.data, 16 if check.is_dry else ROWS
    step = _Step(
        check.context.build(), data.rows("train", spread(data, "train", rows)).to(check.device), True, False, None
    )
    before = data.residence
    for residence in ("device", "host", "mmap"):
        data.residence = residence
        loader = data.loader("train", train=True, batch_size=rows, device=check.device)

        def batches(loader: Any = loader) -> None:
            for _ in islice(loader, BATCHES):
                pass

        def trained(loader: Any = loader) -> None:
            for step.batch in islice(loader, BATCHES):
                step()

        seconds = alternate(1 if check.is_dry else 3, batches=batches, trained=trained)
        n = rows * min(BATCHES, len(loader))
        check.rows.add(f"batches, residence={residence}", n / seconds["batches"], "rows/s")
        share, detail = seconds["batches"] / seconds["trained"], "ratio: time of the batches alone / with the steps"
        check.rows.add(f"training steps, residence={residence}", n / seconds["trained"], "rows/s", share, detail)
    data.residence = before
