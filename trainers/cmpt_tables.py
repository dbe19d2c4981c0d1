"""Train what a table or figure of CMPT needs, and print ours beside the paper's numbers.

``bash job_scripts/cmpt_tables.sh TABLE DATA|demo [Hydra overrides]``; what a table needs is in
``configs/cmpt_tables.yaml``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from trainers.config.compose import CONFIGS
from utils.errors import UserError
from utils.files import natural_key

FILE = CONFIGS / "cmpt_tables.yaml"


class Study:
    """The commands of one table or figure, each a list of arguments of ``python``.

    Args:
        table: its key in :data:`FILE`.
        folder: of the data sets; None = demo data.
        overrides: the user's, of every run.
    """

    def __init__(self, table: str, folder: Path | None, overrides: Sequence[str]) -> None:
        content: dict[str, Any] = yaml.safe_load(FILE.read_text())
        if table not in content["tables"]:
            raise UserError(f"there is no '{table}': choose from {', '.join(content['tables'])}")
        self.name, self.folder, self.overrides = table, folder, list(overrides)
        self.table, self.datasets, self.compared = content["tables"][table], content["datasets"], content["compared"]
        given = dict(override.partition("=")[::2] for override in overrides)
        # Demo runs are never among real ones.
        self.output = Path(given.get("paths.output", "outputs" if folder else "outputs/demo"))
        self.first_seed = given.get("seed", "0").partition(",")[0]
        self.without_seed = [override for override in overrides if not override.startswith("seed=")]

    def commands(self) -> Iterator[list[str]]:
        """Yield the commands in turn; those of figures depend on the run directories that the ones before have made."""
        for run in self.table["runs"]:
            stages = f"stages={run.get('stages', '[prepare,fit,test]')}"
            for experiment in run["experiments"]:
                for dataset in run["datasets"]:
                    common = self.common(dataset, experiment)
                    swept = [*run.get("sweep", ()), *self.overrides]
                    yield ["run.py", "--multirun", f"experiment=cmpt_{experiment}", *common, stages, *swept]
        for dataset in self.table.get("report", ()):
            common = [*self.common(dataset), *self.datasets[dataset].get("report", ())]
            yield ["run.py", "experiment=cmpt_complete", *common, "stages=[report]", *self.without_seed]
        if "draw" in self.table:
            for dataset in self.table["draw"]["datasets"]:
                yield from (["-m", "trainers.figures", *figure] for figure in self.figures(dataset))
        published = ["-m", "trainers.published", "docs/published/cmpt.csv"]
        if "published" in self.table:
            yield [*published, "--table", self.table["published"], "--output", str(self.output)]
        if "compare" in self.table:
            yield [*published, "--compare", *self.compared, "--output", str(self.output)]
        if "totals" in self.table:
            yield ["-m", "models.cmpt.parameters", "--totals"]

    def common(self, dataset: str, experiment: str = "complete") -> list[str]:
        """The overrides of all commands on a data set."""
        settings = self.datasets[dataset]
        data = f"paths.data={self.folder}" if self.folder else "dataset.demo=true"
        overrides = [f"dataset={dataset}", data, f"paths.output={self.output}", *settings.get("overrides", ())]
        if self.folder and "lists" in settings:
            lists = Path(os.environ.get("KINETICS_LISTS") or self.folder / dataset)
            if not all((lists / name).is_file() for name in settings["lists"]):
                raise UserError(
                    f"CMPT's {dataset} needs {' and '.join(settings['lists'])}: put them into {lists}, or set "
                    "KINETICS_LISTS to their folder"
                )
            overrides += [f"dataset.lists={lists}", *settings["with_lists"]]
        if self.folder is None:
            family = "siglip" if experiment.startswith("siglip") else "clip"
            overrides += [override.replace("FAMILY", family) for override in settings["demo"]]
        return overrides

    def figures(self, dataset: str) -> Iterator[list[str]]:
        """Arguments of ``trainers.figures`` for each figure on a data set."""
        draw = self.table["draw"]
        kind, report = draw["kind"], self.output / dataset / "report"
        runs = [str(run) for model in draw.get("models", ()) for run in self.runs(dataset, model)]
        without = self.output / dataset / "CMPT_without_proxies" / "complete"
        if kind == "per_class":
            for scenario in ("whole_0", "whole_1"):
                yield [kind, str(report / f"{self.name}-{scenario}.png"), *runs, "--scenario", scenario]
        elif kind == "one_model":
            yield [kind, str(report / f"{self.name}.png"), *runs, "--scenarios", "none", "whole_0", "whole_1"]
        elif kind == "attention":
            trained = ["experiment=cmpt_complete", *self.common(dataset), f"seed={self.first_seed}", *self.without_seed]
            options = ["--scenario", "whole_1", "--rows", str(draw["rows"])]
            control = str(without / f"seed{self.first_seed}")
            yield [kind, str(report / f"{self.name}.png"), *trained, *options, "--without", control]
        else:
            for run in self.runs(dataset, "CMPT"):
                if not (without / run.name).is_dir():
                    continue  # a seed of another table
                for scenario in ("whole_0", "whole_1"):
                    out = report / f"{self.name}-{scenario}-{run.name}.png"
                    options = ["--scenario", scenario, "--order", draw["order"]]
                    yield [kind, str(out), str(run), str(without / run.name), *options]

    def runs(self, dataset: str, model: str) -> list[Path]:
        """Run directories with name=complete, one per seed."""
        return sorted((self.output / dataset / model / "complete").glob("seed*"), key=natural_key)


def main(arguments: Sequence[str]) -> None:
    """Run the commands of a table, until one fails.

    Raises:
        UserError: no such table, or no lists of a data set.
    """
    table, data, *overrides = arguments
    for command in Study(table, None if data == "demo" else Path(data), overrides).commands():
        process = subprocess.run([sys.executable, *command])
        if process.returncode:
            raise SystemExit(process.returncode)
    if data == "demo":
        print("These are demo data and random encoders: the numbers mean nothing.")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        raise SystemExit(2) from None
