"""``python -m tests.benchmarks.growth [PART ...] [--tiny] [--out FILE]``: how time and memory grow with the size.

Parts: rows, modalities, classes, scenarios, reports, runs (default: all). The stages of DyMo, and of MTL for
modalities, run through the pipeline of ``run.py`` on made-up tables, one size after the other. The table has the
processor seconds and the peak of the memory above what the process held before. The slope of a stage is that of the
logarithms between its two largest sizes: 1 = linear.
"""

from __future__ import annotations

import argparse
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf

from models.baselines.mtl import MTL
from tests.benchmarks.__main__ import PeakMemory
from trainers import run as pipeline
from trainers.config.compose import compose_config
from utils.errors import UserError

log = logging.getLogger("benchmarks")
SIZES = {
    "rows": (1_000, 10_000, 100_000, 1_000_000),
    "modalities": (2, 4, 6, 8, 10),
    "classes": (10, 100, 1_000),
    "scenarios": (1, 10, 100),
    "reports": (1, 10, 30),
    "runs": (10, 100, 1_000),
}
TINY = {
    "rows": (60, 120),
    "modalities": (2, 3),
    "classes": (2, 3),
    "scenarios": (1, 2),
    "reports": (1, 2),
    "runs": (2, 4),
}
MODELS = 10  # of a report of many runs, each with an equal number of seeds
STAGES = ("prepare", "impute", "fit", "gaussian", "test")
COLUMNS = 4  # of each table
VALUES = ("cpu_seconds", "peak_mib")
STYLES = ("o-", "s-", "^-", "v-", "D-", "P-", "X-", "o--", "s--", "^--")
SMALL = ["trainer=cpu", "trainer.enable_progress_bar=false", "dataset.training_defaults.width=64", "imputer.latent=16"]
SMALL += ["imputer.quality=null", "dataset.test_batch_size=1024"]


class Growth:
    """Collects the table.

    Args:
        folder: for the data and the runs.
        tiny: sizes for a test.
    """

    def __init__(self, folder: Path, tiny: bool = False) -> None:
        self.folder, self.sizes = folder, TINY if tiny else SIZES
        self.n = 60 if tiny else 2_000  # rows, where something else grows
        self.batch = 16 if tiny else 256
        self.entries: list[dict[str, Any]] = []

    def measure(self, part: str, size: int, stage: str, work: Callable[[], object]) -> None:
        with PeakMemory(torch.device("cpu")) as peak:
            start = time.process_time()
            work()
            seconds = time.process_time() - start
        self.entries.append({"part": part, "size": size, "stage": stage, "cpu_seconds": seconds, "peak_mib": peak.mib})
        log.info("%s = %d, %s: %.2f s, %.0f MiB", part, size, stage, seconds, peak.mib)

    def config(self, name: str, rows: int, modalities: int = 2, classes: int = 4, *overrides: str) -> DictConfig:
        """A run of one epoch on tables whose columns depend on the class."""
        folder = self.folder / name
        folder.mkdir()
        rng = np.random.default_rng(0)
        target = np.arange(rows) % classes
        names = [f"m{i}_{j}" for i in range(modalities) for j in range(COLUMNS)]
        centres = rng.normal(size=(classes, len(names)))
        table = pd.DataFrame((centres[target] + rng.normal(size=(rows, len(names)))).round(4), columns=names)
        table.assign(label=[f"c{c}" for c in target]).to_csv(folder / "rows.csv", index=False)
        cfg = compose_config(
            "dataset=FromCSV",
            f"dataset.csv={folder / 'rows.csv'}",
            f"paths.data={folder}",
            f"paths.cache={folder / 'cache'}",
            f"paths.output={folder / 'out'}",
            f"dataset.classes=[{','.join(f'c{c}' for c in range(classes))}]",
            "dataset.modalities={"
            + ",".join(
                f"m{i}: {{kind: table, continuous: [{','.join(names[i * COLUMNS : (i + 1) * COLUMNS])}]}}"
                for i in range(modalities)
            )
            + "}",
            "dataset.encoders={"
            + ",".join(
                f"m{i}: {{_target_: models.encoders.vector.VectorEncoder, width: 64}}" for i in range(modalities)
            )
            + "}",
            *(f"{part}.training.{key}" for part in ("imputer", "model") for key in ("max_epochs=1",)),
            f"imputer.training.batch_size={self.batch}",
            "dataset.monitor=null",
            *SMALL,
            *overrides,
        )
        OmegaConf.set_struct(cfg, True)
        return cfg

    def stages(self, part: str, size: int, cfg: DictConfig, stages: Sequence[str], prefix: str = "") -> None:
        for stage in stages:
            cfg.stages = [stage]
            self.measure(part, size, prefix + stage, lambda: pipeline.run(cfg))

    def warm_up(self) -> None:
        """Import everything and fill all caches: a small run that does not count."""
        cfg = self.config("warm", 200, 2, 4, "model=DyMo", "missing.test=[none,random_0.5]")
        cfg.stages = [*STAGES, "export", "report"]
        pipeline.run(cfg)

    # ---- parts -------------------------------------------------------------------------------------------------------

    def rows(self) -> None:
        """One epoch, the other stages once; predictions for as many rows as the file has."""
        for n in self.sizes["rows"]:
            cfg = self.config(f"rows{n}", n, 2, 4, "model=DyMo", "missing.test=[none,random_0.5]")
            self.stages("rows", n, cfg, (*STAGES, "export"))
            cfg.predict.input = cfg.dataset.csv
            cfg.predict.output = str(self.folder / f"rows{n}" / "predictions.csv")
            self.stages("rows", n, cfg, ("predict", "report"))

    def modalities(self) -> None:
        """2^M - 1 subsets: Gaussian parameters, validation, exhaustive comparators, and all patterns of MTL."""
        for m in self.sizes["modalities"]:
            options = ["missing.test=[none,random_0.5]", "model.comparators=[best_subset]"]
            cfg = self.config(f"modalities{m}", self.n, m, 4, "model=DyMo", *options)
            self.stages("modalities", m, cfg, STAGES)
            if MTL.max_modalities and m > MTL.max_modalities:
                continue
            cfg = self.config(f"mtl{m}", self.n, m, 4, "model=MTL", "missing.test=[none,random_0.5]")
            self.stages("modalities", m, cfg, ("prepare", "fit", "test"), "MTL: ")

    def classes(self) -> None:
        """S x C x D Gaussian parameters; four rows of each class at least."""
        for c in self.sizes["classes"]:
            options = ["model=DyMo", "missing.test=[none,random_0.5]"]
            cfg = self.config(f"classes{c}", max(self.n, 16 * c), 5, c, *options)
            self.stages("classes", c, cfg, STAGES)

    def scenarios(self) -> None:
        """Scenarios of one test."""
        for s in self.sizes["scenarios"]:
            rates = ",".join(f"random_global_{0.5 * (k + 1) / s:.4f}" for k in range(s))
            cfg = self.config(f"scenarios{s}", self.n, 4, 4, "model=DyMo", f"missing.test=[{rates}]")
            self.stages("scenarios", s, cfg, (*STAGES, "report"))

    def reports(self) -> None:
        """Models in one report, with one run each."""
        cfg, run = self._trained("reports")
        names = [f"Copy{k:04d}" for k in range(max(self.sizes["reports"]))]
        runs = [self._copy(run, name, 0) for name in names]
        self._report("reports", cfg, runs)

    def runs(self) -> None:
        """Runs in one report, of ten models (as many as there are runs, if that is fewer) with many seeds."""
        cfg, run = self._trained("runs")
        models = min(MODELS, min(self.sizes["runs"]))
        runs = [self._copy(run, f"Copy{k % models}", k // models) for k in range(max(self.sizes["runs"]))]
        self._report("runs", cfg, runs)

    def _report(self, part: str, cfg: DictConfig, runs: Sequence[Path]) -> None:
        for n in self.sizes[part]:
            cfg.report.include = [str(run) for run in runs[:n]]
            self.stages(part, n, cfg, ("report",))

    def _trained(self, part: str) -> tuple[DictConfig, Path]:
        """Configuration and directory of a run that is trained and tested."""
        cfg = self.config(part, self.n, 2, 4, "model=ModDrop", "missing.test=[none,random_0.5]")
        cfg.stages = ["prepare", "fit", "test"]
        pipeline.run(cfg)
        (run,) = (self.folder / part / "out").glob("*/ModDrop/*/seed0")
        return cfg, run

    @staticmethod
    def _copy(run: Path, model: str, seed: int) -> Path:
        """The run under the name of another model, and with another seed."""
        copy = run.parents[3] / "copies" / model / run.parent.name / f"seed{seed}"
        shutil.copytree(run, copy)
        (copy / "stages" / "test.json").unlink()  # the checksums of its files
        for file in (copy / "config.yaml", *copy.glob("*.csv")):
            file.write_text(file.read_text().replace("ModDrop", model))
        results = pd.read_csv(copy / "results.csv")
        results.assign(seed=seed).to_csv(copy / "results.csv", index=False)
        return copy


def slopes(table: pd.DataFrame) -> pd.DataFrame:
    """Slope of the logarithms of seconds and memory between the two largest sizes of each stage."""
    lines = []
    for (part, stage), points in table.groupby(["part", "stage"], sort=False):
        (_, small), (_, large) = points.sort_values("size").tail(2).iterrows()
        ratio = math.log(large["size"] / small["size"])
        growth = {key: math.log(max(large[key], 1e-9) / max(small[key], 1e-9)) / ratio for key in VALUES}
        lines.append({"part": part, "stage": stage, "from": small["size"], "to": large["size"], **growth})
    return pd.DataFrame(lines)


def page_table(table: pd.DataFrame) -> str:
    """The table of docs/scale.md: seconds and memory at the largest size of each stage, and both slopes."""
    lines = [
        "| grows | stage | from | to | processor s | slope | peak MiB | slope |",
        "|:--|:--|--:|--:|--:|--:|--:|--:|",
    ]
    for line in slopes(table).itertuples():
        stage = table[(table["part"] == line.part) & (table["stage"] == line.stage)].sort_values("size").iloc[-1]
        sizes = f"{line[3]:,} | {line.to:,}"
        seconds = f"{stage['cpu_seconds']:.1f} | {line.cpu_seconds:.1f}"
        memory = f"{stage['peak_mib']:.0f} | {line.peak_mib:.1f}"
        lines.append(f"| {line.part} | {line.stage} | {sizes} | {seconds} | {memory} |")
    return "\n".join(lines)


def figure(table: pd.DataFrame, file: Path) -> None:
    """Seconds of every stage against the size, one panel per part, on logarithmic axes."""
    parts = list(table["part"].unique())
    drawn, axes = plt.subplots(1, len(parts), figsize=(3.2 * len(parts), 3.4), squeeze=False, layout="constrained")
    for axis, part in zip(axes[0], parts, strict=True):
        for (stage, points), style in zip(table[table["part"] == part].groupby("stage", sort=False), STYLES):
            axis.loglog(points["size"], points["cpu_seconds"], style, markersize=4, linewidth=1, label=stage)
        sizes = sorted(table.loc[table["part"] == part, "size"].unique())
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
        axis.minorticks_off()
        axis.set_title(part, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6)
    axes[0, 0].set_ylabel("processor seconds", fontsize=8)
    drawn.savefig(file, dpi=150)
    plt.close(drawn)


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    parser = argparse.ArgumentParser("python -m tests.benchmarks.growth", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"default: {' '.join(SIZES)}")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, help="CSV file of the table")
    parser.add_argument("--figure", type=Path, help="PNG file of the curves")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(SIZES):
        raise UserError(f"unknown part {', '.join(sorted(unknown))}: known are {', '.join(SIZES)}")
    with tempfile.TemporaryDirectory(prefix="growth-") as folder:
        growth = Growth(Path(folder), options.tiny)
        if not options.tiny:
            growth.warm_up()
        for part in options.parts or SIZES:
            getattr(growth, part)()
            table = pd.DataFrame(growth.entries)
            if options.out:  # after each part: all of them take an hour
                table.round(3).to_csv(options.out, index=False)
    if options.figure:
        figure(table, options.figure)
    print(slopes(table).round(2).to_string(index=False))
    return table


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
