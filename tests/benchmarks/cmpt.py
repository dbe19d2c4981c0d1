"""``python -m tests.benchmarks.cmpt``: what a step and a prediction of CMPT cost, in time and memory.

Ways of training: float32, bf16, each with and without gradient checkpointing; ways of predicting: adapters beside the
weights or merged into them, in float32 and bf16. On random data, with the published Base encoders (CLIP's ViT-B/16 and
BERT-base; no weights are read) or with ``--small``. All ways are run in turn, so that their ratios hold on a machine
that does other things too; memory is what a call allocates at its peak, beyond weights and optimiser.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from datasets.batch import Batch, Modality
from models.baselines.masks import TrainingMasks
from models.cmpt.cmpt import CMPT, Proxy
from models.encoders.pretrained import PretrainedEncoder
from tests.benchmarks.__main__ import PeakMemory, alternate

CLASSES = 101
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def build(device: torch.device, small: bool, text_length: int) -> CMPT:
    """CMPT of Food-101 with random weights; no name of a modality or size is anything else's."""
    side, size = (32, SMALL) if small else (224, {})
    modalities = [Modality("image", "image", (3, side, side)), Modality("text", "text", (text_length,))]
    more = ({"image_size": side, "patch_size": 8}, {"vocab_size": 200}) if small else ({}, {})
    torch.manual_seed(0)
    encoders = {
        "image": PretrainedEncoder("clip_vit_base_patch16", size={**size, **more[0]}),
        "text": PretrainedEncoder("bert_base", size={**size, **more[1]}),
    }
    model = CMPT(modalities, CLASSES, encoders, proxy=Proxy(), masks=TrainingMasks("subsets", k=1, per="batch"))
    for parameter in model.parameters():
        if parameter.requires_grad:  # adapters start as no change, and merging them would be none
            parameter.data += 0.02 * torch.randn_like(parameter)
    model.log_losses = lambda *_: None  # type: ignore[method-assign]
    return model.to(device)


def random_batch(model: CMPT, rows: int, device: torch.device) -> Batch:
    g = torch.Generator().manual_seed(0)
    image, text = model.modalities
    ids = torch.randint(1, 200, (rows, *text.shape), generator=g)
    inputs = {"image": torch.randn(rows, *image.shape, generator=g), "text": ids}
    batch = Batch(inputs, torch.zeros(rows, 2).bool(), torch.arange(rows) % CLASSES, torch.arange(rows), complete=True)
    return batch.to(device)


class Ways:
    """The ways of training and predicting, each a function of nothing."""

    def __init__(self, model: CMPT, batch: Batch, predicted: Batch) -> None:
        self.model, self.batch, self.predicted = model, batch, predicted
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def autocast(self, precision: str) -> torch.autocast:
        return torch.autocast(self.batch.target.device.type, torch.bfloat16, enabled=precision == "bf16")

    def step(self, precision: str, checkpointing: bool) -> None:
        """Forward, backward and optimiser."""
        self.model.train()
        for i in range(2):
            self.model.encoder(i).checkpointing = checkpointing
        self.optimizer.zero_grad()
        with self.autocast(precision):
            loss = self.model.training_step(self.batch, 0)
        loss.backward()
        self.optimizer.step()

    def predict(self, precision: str) -> torch.Tensor:
        with torch.inference_mode(), self.autocast(precision):
            return self.model.eval()(self.predicted).logits

    def all(self) -> dict[tuple[str, str, str], Callable[[], Any]]:
        """(what, precision, how) -> the call; merging is not part of it."""
        actual: dict[tuple[str, str, str], Callable[[], Any]] = {}
        for precision in ("float32", "bf16"):
            for checkpointing in (False, True):
                how = "checkpointing" if checkpointing else "plain"
                actual["step", precision, how] = lambda p=precision, c=checkpointing: self.step(p, c)  # type: ignore[misc]
        for precision in ("float32", "bf16"):
            actual["prediction", precision, "adapters beside"] = lambda p=precision: self.predict(p)  # type: ignore[misc]
        return actual


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Print the table as Markdown, and write it where ``--out`` says."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks.cmpt", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="tiny encoders")
    parser.add_argument("--batch", type=int, default=8, help="rows of a step")
    parser.add_argument("--rows", type=int, default=16, help="rows of a prediction")
    parser.add_argument("--text", type=int, default=40, help="tokens of a text")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, merged = (build(device, options.small, options.text) for _ in range(2))
    merged.eval().before_prediction()
    predicted = random_batch(model, options.rows, device)
    ways = Ways(model, random_batch(model, options.batch, device), predicted)
    calls = ways.all()
    other = Ways(merged, predicted, predicted)
    for precision in ("float32", "bf16"):
        calls["prediction", precision, "adapters merged"] = lambda p=precision: other.predict(p)  # type: ignore[misc]
    difference = float((ways.predict("float32") - other.predict("float32")).abs().max())
    rows = []
    seconds = alternate(options.repeats, **{"|".join(key): call for key, call in calls.items()})
    reference = {
        "step": seconds["step|float32|plain"],
        "prediction": seconds["prediction|float32|adapters beside"],
    }
    for key, call in calls.items():
        with PeakMemory(device) as peak:
            call()
        n, taken = options.batch if key[0] == "step" else options.rows, seconds["|".join(key)]
        rows.append((*key, n, n / taken, reference[key[0]] / taken, peak.mib))
    frame = pd.DataFrame(
        rows, columns=["what", "precision", "how", "rows", "samples_per_second", "times_float32", "peak_mib"]
    )
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}; merged and unmerged logits differ by at most {difference:.1e}\n")
    print(frame.round(2).to_markdown(index=False))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        as_results(frame).to_csv(options.out, index=False)
    return frame


def as_results(frame: pd.DataFrame) -> pd.DataFrame:
    """The table in the form of a file of results, a row per way and quantity. ``model`` is what is done in which
    precision, ``scenario`` how."""
    names = {"dataset": "random", "model": frame["what"] + "_" + frame["precision"], "seed": 0}
    frame = frame.assign(**names, scenario=frame["how"].str.replace(" ", "_"), n=frame["rows"])
    values = ["samples_per_second", "times_float32", "peak_mib"]
    return frame.melt(["dataset", "model", "seed", "scenario", "n"], values, "metric", "value")


if __name__ == "__main__":
    main()
