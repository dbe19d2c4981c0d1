"""``python -m tests.benchmarks.methods [--tiny] [--untrained] [--models A,B] [--out FILE] [overrides of run.py]``

What each method costs on one data set: parameters, multiply-adds a sample (counted by PyTorch: matrix products,
convolutions, attention) and samples a second, of a training step at the method's batch size, and of inference on rows
with all modalities and on rows of which as many miss 0, 1, ... M-1. All methods take turns in one run, medians. The
weights are those of the runs that the overrides name (``name=baselines``), or with ``--untrained`` random ones; costs
depend on them where a method decides row by row.

Of a method on parts that are trained before it, training samples a second are of its own step only;
``epochs`` and ``whole_training_multiply_adds`` (a training row, all its epochs) sum over its parts and the imputer. A
step is forward and backward, without the optimiser's update.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from datasets.base import MultimodalDataModule
from datasets.batch import Batch
from gaussian_parameter_generation.estimate import estimate
from models.base import Method
from models.baselines.memory import RowMemory
from models.completed import Completed
from models.dymo.dynamic_transformer import DynamicTransformer
from models.dymo.method import DyMo
from tests.benchmarks.__main__ import alternate
from trainers.config.build import build_selection
from trainers.config.compose import CONFIGS
from trainers.config.imputers import build_imputer
from trainers.loading import Run, open_run
from utils.errors import UserError

log = logging.getLogger("benchmarks")
LEFT_OUT = {"Unimodal": "sees one modality", "CMVAE_Classification": "needs imputer=CMVAE"}


def multiply_adds(call: Callable[[], Any]) -> float:
    """Multiply-adds of a call: half of the floating-point operations that PyTorch counts."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 2


class Step:
    """Forward and backward of one training batch, in a network of its own.

    Args:
        network: of a method, or an imputer.
        data: whose training rows it sees.
        rows: of a batch.
        device: of the network and its batch.
    """

    def __init__(self, network: Any, data: MultimodalDataModule, rows: int, device: torch.device) -> None:
        network.log = network.log_dict = lambda *_, **__: None  # there is no trainer
        if isinstance(network, RowMemory):
            network.memory = torch.zeros(len(data.split("train")), len(data.modalities), device=device)
        if isinstance(network, DynamicTransformer):
            network.on_train_epoch_start()
        self.network = network.to(device).train()
        self.batch = data.rows("train", spread(data, "train", rows)).replace(complete=True).to(device)

    def __call__(self) -> None:
        self.network.zero_grad()
        self.network.training_step(self.batch, 0).backward()


def training_parts(context: Run) -> Iterator[tuple[Any, Any]]:
    """(network, its node ``training``) of what stage fit trains for a method, itself last."""
    for part in context.prerequisites.values():
        yield from training_parts(part)
    yield context.build(), context.trainable.training


@dataclass
class Candidate:
    """A method ready to be measured: one training step, the whole of it for inference, what its training costs."""

    name: str
    train: Step
    whole: Method
    epochs: int
    whole_training: float

    @property
    def parameters(self) -> int:
        """Of everything that inference needs."""
        imputers = self.whole._imputer if isinstance(self.whole, Completed | DyMo) else []
        modules = [self.whole, *(part for part in imputers if isinstance(part, torch.nn.Module))]
        return sum(p.numel() for module in modules for p in module.parameters())

    def predict(self, batch: Batch) -> None:
        with torch.inference_mode():
            self.whole(batch)


def candidate(context: Run, data: MultimodalDataModule, untrained: bool) -> Candidate:
    """
    Raises:
        UserError: no trained weights.
    """
    cfg, context.__dict__["data"] = context.cfg, data
    torch.manual_seed(0)
    if untrained and context.needs_imputer_weights:
        imputer = build_imputer(cfg, data)
        if isinstance(imputer, torch.nn.Module):
            imputer.eval().to(context.device)
        context.load_imputer = lambda: imputer  # type: ignore[method-assign]
    classifier = context.build().eval().to(context.device) if untrained else context.load_model()
    if not untrained:
        whole = context.load_method()
    elif isinstance(classifier, DynamicTransformer) and context.uses_selection:
        rows = data.rows("train", spread(data, "train", 128)).to(context.device)
        whole = DyMo(
            classifier, context.load_imputer(), estimate(classifier, [rows], progress=False), build_selection(cfg)
        )
    else:
        whole = Completed(classifier, context.load_imputer()) if context.fills_missing else classifier
    parts = list(training_parts(context))
    if (context.uses_recoveries or context.is_built_on_imputer) and cfg.imputer.training.get("max_epochs"):
        parts.insert(0, (build_imputer(cfg, data), cfg.imputer.training))
    epochs, cost = 0, 0.0
    for network, training in parts:
        step = Step(network, data, training.batch_size, context.device)
        epochs += training.max_epochs
        cost += training.max_epochs * multiply_adds(step) / len(step.batch)
    return Candidate(cfg.model.name, step, whole.eval().to(context.device), epochs, cost)


def spread(data: MultimodalDataModule, split: str, rows: int) -> np.ndarray:
    """Row numbers from all over a split, which is sorted by class."""
    n = len(data.split(split))
    return np.linspace(0, n - 1, min(rows, n)).astype(int)


def incomplete(data: MultimodalDataModule, rows: int) -> Batch:
    """Rows of the test split that miss 0 to M-1 modalities, as many of each."""
    batch = data.rows("test", spread(data, "test", rows))
    m = len(data.modalities)
    order = torch.rand(len(batch), m, generator=torch.Generator().manual_seed(0)).argsort(1)
    return batch.replace(missing=order < (torch.arange(len(batch)) % m)[:, None])


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="random weights, few rows, one repeat")
    parser.add_argument("--untrained", action="store_true")
    parser.add_argument("--models", help="names by comma; all that suit the data where absent")
    parser.add_argument("--out", type=Path, default=Path("outputs/method_costs.csv"))
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    every = sorted(file.stem for file in (CONFIGS / "model").glob("*.yaml") if file.stem not in LEFT_OUT)
    rows, repeats, untrained = (24, 1, True) if options.tiny else (512, 5, options.untrained)
    first = open_run("model=ModDrop", *options.overrides)
    first.prepare_data()
    data = first.data
    candidates = []
    for name in options.models.split(",") if options.models else every:
        try:
            candidates.append(candidate(open_run(f"model={name}", *options.overrides), data, untrained))
        except UserError as error:
            log.warning("%s left out: %s", name, error)
    whole = data.rows("test", spread(data, "test", rows)).replace(complete=True).to(first.device)
    some = incomplete(data, rows).to(first.device)
    training = alternate(repeats, **{c.name: c.train for c in candidates})
    complete = alternate(repeats, **{c.name: (lambda c=c: c.predict(whole)) for c in candidates})
    partly = alternate(repeats, **{c.name: (lambda c=c: c.predict(some)) for c in candidates})
    frame = pd.DataFrame(
        {
            "model": c.name,
            "parameters": c.parameters,
            "epochs": c.epochs,
            "whole_training_multiply_adds": c.whole_training,
            "training_multiply_adds": multiply_adds(c.train) / len(c.train.batch),
            "multiply_adds_complete": multiply_adds(lambda c=c: c.predict(whole)) / len(whole),
            "multiply_adds_incomplete": multiply_adds(lambda c=c: c.predict(some)) / len(some),
            "training_samples_per_second": len(c.train.batch) / training[c.name],
            "samples_per_second_complete": len(whole) / complete[c.name],
            "samples_per_second_incomplete": len(some) / partly[c.name],
        }
        for c in candidates
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(options.out, index=False)
    shown = frame.assign(**{k: frame[k] / 1e6 for k in frame if "multiply_adds" in k or k == "parameters"})
    print("parameters and multiply-adds in millions\n" + shown.round(2).to_markdown(index=False))
    return frame


if __name__ == "__main__":
    main()
