"""``python -m tests.benchmarks [--tiny] [--untrained] [--parts selection,...] [--out FILE] [overrides of run.py]``

Each line compares, alternating in one run, our path with (a) one masked forward pass of the same network and (b) a slow
twin written from docs/reference/dymo.md; medians. ``--tiny`` uses random weights and a few rows, ``--untrained`` random
weights at full size; otherwise the trained backbone and imputer of the run that the overrides name (default: those of
``python run.py``). The parts gaussian, training, scaling and memory are for data sets of images alone.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import platform
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from datasets.base import MultimodalDataModule
from datasets.batch import Batch
from datasets.missingness.random import random_mask
from gaussian_parameter_generation.estimate import collect, estimate
from models.dymo.dynamic_transformer import DynamicTransformer
from models.dymo.gaussian import GaussianParameters
from models.dymo.method import DyMo
from models.dymo.prototypes import COSINE, DISTANCE_METRICS
from models.dymo.selection import Scorer, SelectionRule, select
from models.imputers.mopoe import MoPoE
from tests.benchmarks import twin
from trainers.config.build import build_model
from trainers.config.imputers import build_imputer
from trainers.loading import Run, open_run
from utils.subsets import draw_subsets, enumerate_subsets
from utils.transfer import to_device

log = logging.getLogger("benchmarks")
RATES = (0.2, 0.4, 0.6, 0.8)


def alternate(repeats: int, **paths: Callable[[], Any]) -> dict[str, float]:
    """Median seconds of each path, run in turn; before several rounds, one warms up."""
    times: dict[str, list[float]] = {name: [] for name in paths}
    for run in range(0 if repeats > 1 else 1, repeats + 1):
        for name, path in paths.items():
            _wait()
            start = time.perf_counter()
            path()
            _wait()
            if run:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Bench:
    """Collects the table.

    Args:
        context: which data, backbone and imputer.
        tiny: few rows, one repeat.
        batch: rows of a batch.
        untrained: random weights.
    """

    def __init__(self, context: Run, tiny: bool, batch: int, untrained: bool) -> None:
        self.context, self.tiny, self.batch, self.untrained = context, tiny, batch, untrained
        self.repeats = 1 if tiny else 5
        self.rates, self.few = RATES, 128
        self.rows: list[dict[str, Any]] = []
        self.data: MultimodalDataModule = context.data
        context.prepare_data()
        self.imputer = build_imputer(context.cfg, self.data) if untrained else context.load_imputer()
        self.device = torch.device("cpu") if tiny else context.device
        if isinstance(self.imputer, MoPoE):
            self.imputer.eval().to(self.device)

    def backbone(self, metric: str) -> tuple[DynamicTransformer, GaussianParameters]:
        cfg = self.context.cfg.copy()
        cfg.distance_metric = metric
        context = Run(cfg)
        if self.untrained:
            torch.manual_seed(0)
            model = build_model(cfg, context.trainable, self.data).eval()
            for p in model.parameters():
                p.data.mul_(3 if p.ndim > 1 else 1)
        else:
            model = context.load_model()
        assert isinstance(model, DynamicTransformer)
        return model.to(self.device), estimate(model, self.some(2048), progress=False).to(self.device)

    def some(self, n: int) -> list[Batch]:
        # Stored rows are sorted by class.
        order = torch.randperm(len(self.data.split("train")), generator=torch.Generator().manual_seed(0))
        rows = order[: self.few if self.tiny else n]
        return [self.data.rows("train", part.numpy(), self.device) for part in rows.split(self.batch)]

    def add(
        self, what: str, rate: float | None, seconds: dict[str, float], agreement: str, peak: float | None = None
    ) -> None:
        row = {
            "what": what,
            "batch": self.batch,
            "rate": rate,
            "device": self.device.type,
            "ours_ms": 1e3 * seconds["ours"] if "ours" in seconds else None,
            "ratio_to_forward": seconds["ours"] / seconds["forward"] if "forward" in seconds else None,
            "ratio_to_own_forward": seconds["ours"] / seconds["own"] if "own" in seconds else None,
            "slow_twin_over_ours": seconds["slow"] / seconds["ours"] if "slow" in seconds else None,
            "agreement": agreement,
            "peak_mib": peak,
        }
        self.rows.append(row)
        log.info("%s", {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})

    def timed(self, repeats: int, slow: Callable[[], Any] | None, **paths: Callable[[], Any]) -> dict[str, float]:
        """Median seconds of all paths. On a GPU, the slow twin, which waits for it in every row, runs once."""
        if slow is None:
            return alternate(repeats, **paths)
        if self.device.type == "cpu":
            return alternate(repeats, **paths, slow=slow)
        return alternate(repeats, **paths) | alternate(1, slow=slow)

    def selection(self, metric: str) -> None:
        """Selection on given recoveries, and the whole of DyMo with the imputer."""
        model, parameters = self.backbone(metric)
        slow = twin.SlowTransformer(model)
        scorer = Scorer(model, parameters, SelectionRule(tail="float32"))
        dymo = DyMo(model, self.imputer, parameters, SelectionRule(tail="float32"))
        inputs_batch = self.some(self.batch)[0]
        inputs = inputs_batch.inputs
        m = len(model.modalities)
        for rate in self.rates if m >= 5 else (1 / m,):
            mask = random_mask(len(inputs_batch), m, rate, "exact", 7)
            missing = to_device(torch.from_numpy(mask), self.device, is_remembered=True)
            batch = inputs_batch.replace(missing=missing)
            recovered = self.imputer.impute(inputs, missing)

            def ours() -> Any:
                return select(scorer, model.encode(recovered), missing)  # noqa: B023

            def forward() -> Any:
                with torch.inference_mode():
                    return slow(recovered, missing)  # noqa: B023

            def ours_alone() -> Any:
                with torch.inference_mode():
                    return model(batch)  # noqa: B023

            def with_imputer() -> Any:
                return dymo(batch)  # noqa: B023

            paths: dict[str, Callable[[], Any]] = {"ours": ours, "forward": forward, "own": ours_alone}
            label = "cosine" if metric == COSINE else "euclidean"
            agreement = self._agreement(scorer, slow, parameters, rate)
            seconds = self.timed(
                self.repeats,
                lambda: twin.select(slow, recovered, missing, parameters),  # noqa: B023
                **paths,
            )
            self.add(f"selection, {label}", rate, seconds, agreement)
            if metric == COSINE and isinstance(self.imputer, MoPoE):
                paths = {"ours": with_imputer, "forward": forward, "own": ours_alone}
                theirs = None
                if rate in (self.rates[0], self.rates[-1]):

                    def theirs() -> Any:
                        completed = twin.impute(self.imputer, inputs, missing)  # noqa: B023
                        return twin.select(slow, completed, missing, parameters)  # noqa: B023

                self.add("DyMo with imputer, cosine", rate, self.timed(min(self.repeats, 3), theirs, **paths), "")

    def _agreement(
        self, scorer: Scorer, slow: twin.SlowTransformer, parameters: GaussianParameters, rate: float
    ) -> str:
        """Same final masks and logits (relative to those above 1) on many rows; rows whose decision hangs on a reward
        below 1e-5 may flip."""
        rows = flips = 0
        worst = 0.0
        for batch in self.some(1280)[: 1 if self.tiny or self.device.type != "cpu" else None]:
            mask = torch.from_numpy(random_mask(len(batch), len(batch.inputs), rate, "exact", rows))
            mask = to_device(mask, self.device, is_remembered=True)
            recovered = self.imputer.impute(batch.inputs, mask)
            ours = select(scorer, scorer.model.encode(recovered), mask)
            logits, final = twin.select(slow, recovered, mask, parameters)
            same = (final == ours.final_missing).all(1)
            decisive = ours.rewards.abs().nan_to_num(nan=1.0).flatten(1).amin(1) > 1e-5
            rows += len(batch)
            flips += int((~same & decisive).sum())
            worst = max(worst, float(((logits - ours.logits) / logits.abs().clamp(min=1))[same].abs().max()))
        return f"{rows} rows, {flips} other masks, max logit difference {worst:.1e}"

    def gaussian(self, folder: Path, has_files: bool = True) -> None:
        """Gaussian parameters of all subsets, on tensors and, with ``has_files``, with the data path: ours against PNG
        files that are opened again for every subset."""
        model, _ = self.backbone(COSINE)
        slow = twin.SlowTransformer(model)
        batches = self.some(1024)
        pairs = [(b.inputs, b.target) for b in batches]
        ratio = estimate(model, batches, progress=False).sigma / twin.gaussian(slow, pairs, COSINE).cpu()
        error = float((ratio - 1).abs().max())
        rows = self._write_pngs(folder, 16 if self.tiny else 512) if has_files else torch.arange(0)
        loader = self.data.loader("train", batch_size=self.batch, device=self.device)
        target = self.data.split("train").read("target")[rows]
        parts = torch.arange(len(rows)).split(self.batch)

        def packed() -> Iterator[Batch]:
            return (loader.gather(rows[part].to(loader.target.device)) for part in parts)

        class Files:
            def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
                for part in parts:
                    yield twin.load_pngs(folder, [str(i) for i in part.tolist()], model.modality_names), target[part]

        def forward() -> None:
            for x, y in pairs:
                slow(x, torch.zeros(len(y), len(x), dtype=torch.bool, device=y.device))

        repeats = min(self.repeats, 3)
        with torch.inference_mode():
            seconds = alternate(
                repeats,
                ours=lambda: estimate(model, batches, progress=False),
                forward=forward,
                slow=lambda: twin.gaussian(slow, pairs, COSINE),
            )
            self.add("Gaussian stage, tensors given", None, seconds, f"sigma within {error:.1e}")
            if not has_files:
                return
            seconds = alternate(
                repeats,
                ours=lambda: collect(model, packed(), False),
                slow=lambda: twin.gaussian(slow, Files(), COSINE),
            )
            self.add("Gaussian stage, data path included", None, seconds, "")

    def training(self, folder: Path) -> None:
        """Training steps with the data path: ours against K full forwards on PNG files."""
        model, _ = self.backbone(COSINE)
        model.train()
        m = len(model.modalities)
        written = self._write_pngs(folder, 16 if self.tiny else 512)
        loader = self.data.loader("train", train=True, batch_size=128, device=self.device)
        slow = twin.SlowTransformer(model)
        subsets = draw_subsets(m, 5, torch.Generator().manual_seed(0))
        target = self.data.split("train").read("target")[written]

        def step(loss: Tensor) -> None:
            loss.backward()
            model.zero_grad()

        def fused(inputs: dict[str, Tensor], y: Tensor) -> Tensor:
            parts = list(model.fuse_subsets(model.encode(inputs), subsets))
            logits = torch.cat([p[1] for p in parts])
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.repeat(len(logits)))

        def ours() -> None:
            for part in torch.arange(len(written)).split(128):
                batch = loader.gather(written[part].to(loader.target.device))
                step(fused(batch.inputs, batch.target))

        def theirs() -> None:
            for part in torch.arange(len(written)).split(128):
                inputs = twin.load_pngs(folder, [str(i) for i in part.tolist()], self.data.modality_names)
                inputs = {name: x.to(self.device) for name, x in inputs.items()}
                step(twin.training_step(slow, inputs, target[part].to(self.device), subsets))

        x = loader.gather(written[:64].to(loader.target.device)).inputs
        y = target[:64].to(self.device)
        gap = float((fused(x, y) - twin.training_step(slow, x, y, subsets)).detach().abs())
        self.add("training", None, alternate(min(self.repeats, 3), ours=ours, slow=theirs), f"loss within {gap:.1e}")

    def _write_pngs(self, folder: Path, n: int) -> Tensor:
        """Some rows of all classes as one PNG file a view, named 0, 1, ...; returns the rows."""
        from PIL import Image

        split = self.data.split("train")
        rows = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:n]
        for view in self.data.modality_names:
            (folder / view).mkdir()
            for i, row in enumerate(rows.tolist()):
                Image.fromarray(split.array(view)[row].transpose(1, 2, 0)).save(folder / view / f"{i}.png")
        return rows

    def scaling(self) -> None:
        """Time against rows, and of the fusion alone against the number of subsets."""
        model, parameters = self.backbone(COSINE)
        dymo = DyMo(model, self.imputer, parameters)
        batches = self.some(4 * self.batch)
        missing = torch.from_numpy(random_mask(self.batch, len(model.modalities), 0.8, "exact", 7)).to(self.device)
        for k in (1, 2) if self.tiny else (1, 2, 4):
            rows = self.batch * k
            seconds = alternate(min(self.repeats, 3), ours=lambda k=k: collect(model, batches[:k], False))
            self.add(f"Gaussian stage, {rows} rows", None, seconds, "")
            seconds = alternate(
                min(self.repeats, 3),
                ours=lambda k=k: [dymo(b.replace(missing=missing[: len(b)])) for b in batches[:k]],
            )
            self.add(f"DyMo with imputer, {rows} rows", 0.8, seconds, "")
        subsets = enumerate_subsets(len(model.modalities))
        with torch.inference_mode():
            sequences = model.prepare(model.encode(batches[0].inputs))
            for k in (8,) if self.tiny else (8, 16, len(subsets)):
                # Every so many-th, so that large and small subsets are mixed alike.
                chosen = subsets[torch.arange(k) * len(subsets) // k]
                seconds = alternate(self.repeats, ours=lambda c=chosen: list(model.fuse_subsets(sequences, c)))
                self.add(f"fusion of {k} subsets", None, seconds, "")

    def memory(self) -> None:
        """Peak memory of each stage over few and over many batches, arrays memory-mapped: it must not grow."""
        model, parameters = self.backbone(COSINE)
        dymo = DyMo(model, self.imputer, parameters)
        self.data.residence = "mmap"
        scenarios = {f"random_{rate}": rate for rate in RATES}

        def some(n: int, batch: int = self.batch) -> Iterator[Batch]:
            return islice(self.data.loader("train", batch_size=batch, device=self.device), n)

        def gaussian(n: int) -> None:
            collect(model, some(n), False)

        def test(n: int) -> None:
            for batch in some(n):
                masks = {
                    name: torch.from_numpy(random_mask(len(batch), len(model.modalities), rate, "exact", 7))
                    for name, rate in scenarios.items()
                }
                dymo.predict_scenarios(
                    batch, {name: batch.replace(missing=mask.to(self.device)) for name, mask in masks.items()}
                )

        def fit(n: int) -> None:
            subsets = draw_subsets(len(model.modalities), 5, torch.Generator().manual_seed(0))
            for batch in some(n, 128):
                logits = torch.cat([part[1] for part in model.fuse_subsets(model.encode(batch.inputs), subsets)])
                torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.target.repeat(len(logits))).backward()
                model.zero_grad()

        def impute(n: int) -> None:
            assert isinstance(self.imputer, MoPoE)
            for batch in some(n, 128):
                self.imputer.losses(batch)["loss"].backward()
                self.imputer.zero_grad()

        for name, stage in (("impute", impute), ("fit", fit), ("gaussian", gaussian), ("test, all scenarios", test)):
            for n in (1, 2) if self.tiny else (2, 8):
                with PeakMemory(self.device) as peak:
                    stage(n)
                self.add(f"memory of {name}, {n} batches", None, {}, "", peak.mib)


class PeakMemory:
    """Peak of the memory a block allocates, in MiB above what was allocated before: tensors on a GPU, else the
    process's own pages (Linux; files that are mapped do not count)."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.mib = device, float("nan")

    @staticmethod
    def _own() -> float:
        text = Path("/proc/self/status").read_text()
        return int(re.search(r"RssAnon:\s*(\d+)", text)[1]) / 1024  # type: ignore[index]

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated() / 2**20
            return self
        ctypes.CDLL(None).malloc_trim(0)
        self._before = self.mib = self._own()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.mib = max(self.mib, self._own())

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.mib = torch.cuda.max_memory_allocated() / 2**20 - self._before
            return
        self._stop.set()
        self._thread.join()
        self.mib -= self._before


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Print the table and write it as CSV."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks.csv"))
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--untrained", action="store_true")
    parser.add_argument("--parts", default="selection,gaussian,training,scaling,memory")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    context = open_run(*options.overrides)
    bench = Bench(context, options.tiny, 32 if options.tiny else options.batch, options.tiny or options.untrained)
    parts = options.parts.split(",")
    if "selection" in parts:
        for metric in (COSINE,) if options.tiny else DISTANCE_METRICS:
            bench.selection(metric)
    for name in [p for p in ("gaussian", "training") if p in parts]:
        with tempfile.TemporaryDirectory() as folder:
            getattr(bench, name)(Path(folder))
    for name in [p for p in ("scaling", "memory") if p in parts]:
        getattr(bench, name)()
    frame = pd.DataFrame(bench.rows)
    frame["machine"] = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(options.out, index=False)
    print(frame.drop(columns="machine").round(3).to_markdown(index=False))
    return frame


if __name__ == "__main__":
    main()
