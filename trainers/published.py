"""Print our results beside published ones: ``python -m trainers.published docs/published/cmpt.csv --table table_8``.

``--compare CMPT CMPT_without_proxies`` prints our models beside each other instead, under all scenarios that they
share, for published figures that are curves without numbers.

A published file has the columns table, dataset, model, run, scenario, metric, value and sd (in percent). ``model`` is a
model of ours or one that only the paper has; ``A - B`` is a difference. ``run`` is the ``name`` of our runs.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from trainers.report.runs import read_results
from trainers.report.tables import to_markdown
from utils.errors import UserError

log = logging.getLogger(__name__)
COLUMNS = ["table", "dataset", "model", "run", "scenario", "metric", "value", "sd"]
KEY = ["dataset", "model", "run", "scenario", "metric"]
# Training rows where the paper has no validation split: of the paper (None = all that its lists have), ours by default.
TRAINING_ROWS: dict[str, dict[str, tuple[int | None, str]]] = {
    "cmpt": {
        "Food101": (67_988, "61,142, as 6,846 are validation rows"),
        "CREMAD": (6_698, "6,028, as 670 are validation clips"),
        "KineticsSound": (14_739, "90 % of the listed clips, as the others are validation clips"),
    }
}


def read_published(path: Path) -> pd.DataFrame:
    """Read a file of published results.

    Raises:
        UserError: the file is absent or has another format.
    """
    try:
        frame = pd.read_csv(path, dtype=dict.fromkeys(COLUMNS[:6], str) | {"value": float, "sd": float})
    except (OSError, ValueError) as error:
        raise UserError(f"{path} holds no published results ({error})") from None
    if list(frame) != COLUMNS or frame.duplicated(["table", *KEY]).any():
        raise UserError(f"{path}: needs the columns {', '.join(COLUMNS)}, and one row per number of a table")
    return frame


def read_ours(output: Path) -> pd.DataFrame:
    """Mean and SD (n - 1) over seeds, in percent, and number of seeds of all finished runs below ``output``.

    Returns:
        columns :data:`KEY`, ours, ours_sd, seeds.
    """
    frames = []
    for path in sorted(output.glob("*/*/*/seed*/results.csv")):
        if (path.parent / "DONE").is_file():
            frames.append(read_results(path).assign(run=path.parent.parent.name))
    if not frames:
        return pd.DataFrame(columns=[*KEY, "ours", "ours_sd", "seeds"])
    every = pd.concat(frames).assign(value=lambda frame: frame["value"] * 100)
    means = every.groupby(KEY, sort=False)["value"].agg(ours="mean", ours_sd="std", seeds="count")
    return means.reset_index()


def validation_of(output: Path) -> dict[str, set[str | None]]:
    """Data set -> values of ``dataset.validation`` in its finished runs below ``output``, None if it is not set."""
    settings: dict[str, set[str | None]] = {}
    for path in sorted(output.glob("*/*/*/seed*/config.yaml")):
        if (path.parent / "DONE").is_file():
            config = OmegaConf.load(path)
            name, value = (OmegaConf.select(config, f"dataset.{key}") for key in ("name", "validation"))
            settings.setdefault(str(name), set()).add(None if value is None else str(value))
    return settings


def training_note(protocol: str, dataset: str, settings: set[str | None]) -> str:
    """Sentence on how our training rows differ from the paper's; '' if they do not.

    Args:
        protocol: stem of the published file.
        settings: ``dataset.validation`` of our runs.
    """
    paper, ours = TRAINING_ROWS.get(protocol, {}).get(dataset, (None, ""))
    if paper is None:
        return ""
    note = f"The paper trains on {paper:,} rows and has no validation split"
    if settings == {"test"}:
        return f"{note}; so do these runs of ours (dataset.validation=test)."
    mixed = "some of these runs use dataset.validation=test, the others train" if "test" in settings else "ours train"
    return f"{note}; {mixed} on {ours}. For the paper's split: dataset.validation=test dataset.monitor=null."


def join(published: pd.DataFrame, ours: pd.DataFrame) -> pd.DataFrame:
    """Add our results to the published rows, NaN without runs. A difference ``A - B`` is that of our means, without SD,
    and has the smaller number of seeds of the two."""
    joined = published.merge(ours, on=KEY, how="left")
    means = ours.set_index(KEY)[["ours", "seeds"]]
    for row in joined.index[joined["model"].str.contains(" - ", regex=False)]:
        key = joined.loc[row, KEY].to_dict()
        parts = [tuple((key | {"model": model}).values()) for model in key["model"].split(" - ")]
        if all(part in means.index for part in parts):
            first, second = (means.loc[part] for part in parts)
            joined.loc[row, "ours"] = first["ours"] - second["ours"]
            joined.loc[row, "seeds"] = min(first["seeds"], second["seeds"])
    return joined


def compare(ours: pd.DataFrame, models: Sequence[str], run: str, metrics: pd.DataFrame) -> str:
    """Markdown, one block per data set and metric: one row per scenario, one column per model, and differences of the
    first model to each other one (of means, in percentage points).

    Args:
        ours: of :func:`read_ours`.
        models: at least two; a data set is left out unless all of them have results.
        run: ``name`` of the runs.
        metrics: columns dataset and metric; only these pairs are printed.
    """
    wanted = set(metrics[["dataset", "metric"]].itertuples(index=False, name=None))
    rows = ours[(ours["run"] == run) & ours["model"].isin(models)]
    blocks = []
    for (dataset, metric), part in rows.groupby(["dataset", "metric"], sort=False):
        shared = part.groupby("scenario")["model"].nunique() == len(models)
        scenarios = [s for s in part["scenario"].unique() if shared[s]]
        if (dataset, metric) not in wanted or not scenarios:
            continue
        cells = pd.DataFrame(index=pd.Index(scenarios, name="scenario"))
        by_model = {model: part[part["model"] == model].set_index("scenario").loc[scenarios] for model in models}
        for model, frame in by_model.items():
            cells[model] = [_number(value, sd) for value, sd in zip(frame["ours"], frame["ours_sd"])]
        for model in models[1:]:
            difference = by_model[models[0]]["ours"] - by_model[model]["ours"]
            cells[f"{models[0]} - {model}"] = [f"{value:+.2f}" for value in difference]
        seeds = sorted({int(n) for frame in by_model.values() for n in frame["seeds"]})
        heading = f"### {dataset}, {metric} (%), ours: {' to '.join(map(str, seeds))} seeds per cell"
        blocks.append(f"{heading}\n\n{to_markdown(cells)}\n")
    return "\n".join(blocks) or f"No data set has finished runs of {', '.join(models)} yet.\n"


def _number(value: float, sd: float) -> str:
    if np.isnan(value):
        return "–"
    return f"{value:.2f}" + ("" if np.isnan(sd) else f" ± {sd:.2f}")


def render(joined: pd.DataFrame, protocol: str = "", settings: Mapping[str, set[str | None]] | None = None) -> str:
    """Markdown, one block per table, data set and metric: rows are models (with the run if there are several), columns
    are our and the paper's values under each scenario.

    Args:
        protocol, settings: see :func:`training_note`; settings of each data set.
    """
    blocks = []
    for (table, dataset, metric), part in joined.groupby(["table", "dataset", "metric"], sort=False):
        has_several_runs = part["run"].nunique() > 1
        label = part["run"] + ": " + part["model"] if has_several_runs else part["model"]
        cells = pd.DataFrame(index=pd.Index(label.unique(), name="model"))
        for scenario in part["scenario"].unique():
            rows = part[part["scenario"] == scenario].set_index(label[part["scenario"] == scenario])
            for column, value, sd in (("ours", "ours", "ours_sd"), ("paper", "value", "sd")):
                text = {name: _number(row[value], row[sd]) for name, row in rows.iterrows()}
                cells[f"{scenario}, {column}"] = cells.index.map(lambda name, text=text: text.get(name, "–"))
        seeds = sorted({int(n) for n in part["seeds"].dropna()})
        note = f"ours: {' to '.join(map(str, seeds))} seeds per cell" if seeds else "no runs of ours yet"
        heading = f"### {str(table).replace('_', ' ').capitalize()}: {dataset}, {metric} (%), {note}"
        training = training_note(protocol, str(dataset), (settings or {}).get(str(dataset), set()))
        blocks.append("\n\n".join(filter(None, (heading, training, to_markdown(cells)))) + "\n")
    return "\n".join(blocks)


def main(arguments: Sequence[str] | None = None) -> str:
    """Print the tables, or write them to a file.

    Raises:
        UserError: no such file or table.
    """
    parser = argparse.ArgumentParser("python -m trainers.published", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, help="published numbers, docs/published/<method>.csv")
    parser.add_argument("--table", help="for example table_8; default: all")
    parser.add_argument("--compare", nargs="+", metavar="MODEL", help="our models beside each other, at least two")
    parser.add_argument("--run", default="complete", help="with --compare: name of our runs")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="paths.output of our runs")
    parser.add_argument("--markdown", type=Path, help="write here instead of printing")
    options = parser.parse_args(arguments)
    published = read_published(options.file)
    if options.compare and (options.table or len(set(options.compare)) < 2):
        raise UserError(
            "--compare takes at least two models and no --table: leave one of them out or name another model"
        )
    if options.table:
        known = list(dict.fromkeys(published["table"]))
        if options.table not in known:
            raise UserError(f"{options.file} has no table '{options.table}': choose from {', '.join(known)}")
        published = published[published["table"] == options.table]
    ours = read_ours(options.output)
    if options.compare:
        text = compare(ours, options.compare, options.run, published)
    else:
        text = render(join(published, ours), options.file.stem, validation_of(options.output))
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(text)
    else:
        print(text)
    return text


if __name__ == "__main__":
    try:
        main()
    except UserError as problem:
        raise SystemExit(f"error: {problem}") from None
