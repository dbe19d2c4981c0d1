"""Quality of recoveries of several imputers, in the form of results.

``python -m trainers.report.recoveries OUT.csv RUN...`` reads ``quality.csv`` (:mod:`models.imputers.quality`) in run
directories of imputers. In ``OUT.csv``, ``MODEL/VIEW`` is a modality that the imputer MODEL recovered, MODEL alone all
of them, and the scenario is the number of observed modalities, so that tables of ``docs/results`` can be made from it
(:mod:`trainers.report.docs`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from utils.checksums import verify_artefact
from utils.errors import UserError
from utils.files import replacing

COLUMNS = ["dataset", "model", "seed", "scenario", "metric", "value", "n"]


def read_quality(runs: Sequence[Path]) -> pd.DataFrame:
    """Measured quality of imputers.

    Args:
        runs: run directories ``<data set>/imputer_<name>/<name>/seed<k>``.

    Returns:
        Columns ``dataset`` to ``n``; values of all modalities are means over their recovered samples, of which there
        are ``n``.

    Raises:
        UserError: a directory has no measured quality, or a file of it is damaged.
    """
    parts = []
    for run in runs:
        file = run / "quality.csv"
        if not file.is_file():
            raise UserError(f"{run} has no quality.csv: give run directories of imputers, after stages=[impute]")
        for artefact in (file, run / "config.yaml"):
            verify_artefact(artefact)
        cfg, quality = OmegaConf.load(run / "config.yaml"), pd.read_csv(file)
        groups = quality.groupby(["observed", "metric"], sort=False)
        total = groups.apply(lambda part: np.average(part["value"], weights=part["n"]), include_groups=False)
        common = pd.DataFrame({"value": total, "n": groups["n"].sum()}).reset_index().assign(model=cfg.imputer.name)
        views = quality.assign(model=cfg.imputer.name + "/" + quality["modality"])
        parts.append(pd.concat([common, views]).assign(dataset=cfg.dataset.name, seed=int(cfg.seed)))
    return pd.concat(parts).rename(columns={"observed": "scenario"})[COLUMNS]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m trainers.report.recoveries", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("out", type=Path, metavar="OUT.csv", help="file to write")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories of imputers")
    options = parser.parse_args(arguments)
    frame = read_quality(options.runs)
    with replacing(options.out) as file:
        frame.to_csv(file, index=False)
    print(f"{options.out}: {len(options.runs)} imputers")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
