"""Stage ``report``: tables, tests, figures and one ``report.html`` from any number of run directories."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from datasets.missingness.base import slug
from trainers.report.figures import draw_figures, training_sweep
from trainers.report.measure_tables import Measure, measures_of, pattern_blocks, pattern_table
from trainers.report.ranks import Ranks, compare_ranks, critical_difference
from trainers.report.runs import FinishedRun, gather, modality_names, scenario_of
from trainers.report.statistics import compare
from trainers.report.style import ORACLE_NOTE, data_uri, is_oracle, save
from trainers.report.tables import captions_of, html_block, label, latex_block, markdown_block, spread, summarise, table
from trainers.report.train_test import as_csv, draw_heat_maps, matrix_html, matrix_markdown, train_test_matrices
from utils.errors import UserError
from utils.metrics import LOWER_IS_BETTER

log = logging.getLogger(__name__)


@dataclass
class Report:
    """Results: the page, ``summary.csv``, ``tests.csv``, and (dataset, metric) -> table of plain strings.

    ``ranks`` is None with too few models or scenarios, see :func:`trainers.report.ranks.compare_ranks`.
    """

    html: Path
    summary: pd.DataFrame
    tests: pd.DataFrame
    tables: dict[tuple[str, str], pd.DataFrame]
    ranks: Ranks | None = None


PAGE = Path(__file__).with_name("page.html")
SECTIONS = {
    "sweep": "Tested on complete data; at rate 0 trained on complete data.",
    "samples": "Missing originals are dimmed, in a dashed frame. Accepted recoveries have a green frame and their "
    "order in brackets; their reward is bold at the step that accepted them.",
    "rewards": "Last reward of each recovery, over all seeds.",
    "training": "One line per seed or fold.",
}


def _environment(runs: Sequence[FinishedRun]) -> list[Markup]:
    """Tables of environment.json: entries that all runs share, and entries that differ."""
    entries = [json.loads(run.text("environment.json") or "{}") for run in runs]
    frame = pd.json_normalize(entries).astype(object).map(lambda v: "–" if v is None or v != v else str(v))
    shared = [column for column in frame if frame[column].nunique() == 1]
    common = pd.DataFrame({"entry": shared, "the same in all runs": [frame[c].iloc[0] for c in shared]})
    frame.insert(0, "run", [f"{run.dataset}, {run.model}, {run.repeat}" for run in runs])
    parts = [common] * bool(shared) + [frame.drop(columns=shared)]
    return [Markup(part.to_html(index=False, border=0)) for part in parts]


def _page(
    runs: Sequence[FinishedRun],
    skipped: Sequence[str],
    summary: pd.DataFrame,
    sweep: pd.DataFrame,
    matrices: Mapping[tuple[str, str], pd.DataFrame],
    measures: Sequence[Measure],
    patterns: pd.DataFrame,
    tests: pd.DataFrame,
    ranks: Ranks | None,
    metrics: Sequence[str],
    primary: str,
    title: str,
    drawn: Mapping[str, Sequence[Path]],
) -> str:
    figures = {section: [(file.stem, data_uri(file)) for file in files] for section, files in drawn.items()}
    names = modality_names(runs)

    def tables(summary: pd.DataFrame, metric: str) -> list[tuple[str, Markup]]:
        parts = summary[summary["metric"] == metric].groupby("dataset", sort=False)
        captions = {dataset: captions_of(part, names.get(dataset, ())) for dataset, part in parts}
        return [(dataset, Markup(html_block(part, metric, captions[dataset]))) for dataset, part in parts]

    captions = [scenario_of(s).caption(names.get(d, ())) for d, s in zip(tests["dataset"], tests["scenario"])]
    tests_html = _numbers_html(tests.assign(scenario=captions))
    page = jinja2.Environment(autoescape=True).from_string(PAGE.read_text())
    return page.render(
        runs=runs,
        skipped=skipped,
        title=title,
        date=datetime.now().strftime("%Y-%m-%d %H:%M"),
        spread=spread(summary),
        lower=", ".join(LOWER_IS_BETTER),
        oracle=ORACLE_NOTE if summary["model"].map(is_oracle).any() else "",
        metrics=[(label(metric), tables(summary, metric), figures.get(metric, [])) for metric in metrics],
        sweep=[(label(metric), tables(sweep, metric)) for metric in metrics if len(sweep)],
        grid=[
            (f"{dataset}, {method}, {label(primary)}", Markup(matrix_html(matrix, primary, names.get(dataset, ()))))
            for (dataset, method), matrix in matrices.items()
        ],
        grid_figures=figures.get("grid", []),
        measures=[(m.title, m.note, m.html(names)) for m in measures],
        patterns=pattern_blocks(patterns, names),
        primary=primary,
        tests=len(tests) and Markup(tests_html),
        ranks=ranks,
        rank_table=ranks and Markup(_numbers_html(ranks.table)),
        rank_figures=figures.get("ranks", []),
        sections=[(name.capitalize(), note, figures.get(name)) for name, note in SECTIONS.items()],
        environment=_environment(runs),
    )


def _numbers_html(frame: pd.DataFrame) -> str:
    return frame.to_html(index=False, border=0, float_format="{:.3g}".format, na_rep="")


def _check_output(output: Path, run_dirs: Sequence[Path]) -> None:
    if any(Path(run).resolve().is_relative_to(output) for run in run_dirs):
        raise UserError(
            f"{output} holds runs, and a report replaces its folder: choose another folder, for example "
            f"{output / 'report'}"
        )
    if output.is_file() or (output.exists() and any(output.iterdir()) and not (output / "report.html").is_file()):
        raise UserError(f"{output} holds something else than a report, which would be lost: choose a new folder")


def write_report(
    run_dirs: Sequence[Path],
    output: Path,
    *,
    title: str,
    metrics: Sequence[str] | None = None,
    primary: str = "accuracy",
) -> Report:
    """Report finished run directories in the folder ``output``, which is replaced once everything is written.

    Args:
        run_dirs: ``.../<dataset>/<model>/<name>/seed<k>``; skipped with a warning without DONE or results.csv.
        title: heading of the page.
        metrics: metrics with tables and figures; all by default.
        primary: metric of the paired tests, shown first.

    Raises:
        UserError: nothing to report, unreadable results, unknown metric, or an ``output`` that holds other files.
    """
    output = Path(output).resolve()
    _check_output(output, run_dirs)
    runs, skipped = gather(run_dirs)
    frame = pd.concat([run.frame for run in runs], ignore_index=True)
    present = list(frame["metric"].unique())
    if unknown := [m for m in (primary, *(metrics or ())) if m not in present]:
        raise UserError(f"no run has the metric '{unknown[0]}': choose from {', '.join(present)}")
    metrics = sorted(dict.fromkeys(metrics or present), key=lambda m: m != primary)
    log.info("report: %d runs, %s, into %s", len(runs), ", ".join(metrics), output)
    summary, tests, ranks = summarise(frame), compare(runs, frame, primary), compare_ranks(frame, primary)
    sweep, matrices = summarise(training_sweep(frame)), train_test_matrices(frame)

    draft, old = (output.with_name(f".{output.name}.{os.getpid()}.{kind}") for kind in ("draft", "old"))
    draft.mkdir(parents=True)
    try:
        for name, content in (("results", frame), ("summary", summary), ("sweep", sweep), ("tests", tests)):
            if name != "sweep" or len(sweep):
                content.to_csv(draft / f"{name}.csv", index=False)
        names = modality_names(runs)
        measures, patterns = measures_of(runs, frame, primary, names), pattern_table(runs, names)
        if measures:
            all_measures = pd.concat([m.summary().assign(measure=m.name) for m in measures], ignore_index=True)
            all_measures.to_csv(draft / "measures.csv", index=False)
        if len(patterns):
            patterns.to_csv(draft / "patterns.csv", index=False)
        if matrices:
            as_csv(matrices).to_csv(draft / "grid.csv", index=False)
            texts = [matrix_markdown(matrix, primary, method) for (_, method), matrix in matrices.items()]
            (draft / f"grid_{slug(primary)}.md").write_text("\n".join(texts))
        _write_tables(draft, "summary", summary, metrics, names)
        if len(sweep):
            _write_tables(draft, "sweep", sweep, metrics, names, kind="by missing data in training")
        drawn = draw_figures(runs, summary, sweep, metrics, draft / "figures")
        if ranks:
            ranks.table.to_csv(draft / "ranks.csv", index=False)
            drawn["ranks"] = [draft / "figures" / f"ranks_{slug(primary)}.png"]
            save(critical_difference(ranks), drawn["ranks"][0], pdf=True)
        if matrices:
            drawn["grid"] = draw_heat_maps(matrices, primary, draft / "figures", names)
        page = _page(
            runs, skipped, summary, sweep, matrices, measures, patterns, tests, ranks, metrics, primary, title, drawn
        )
        (draft / "report.html").write_text(page)
        if output.exists():
            output.rename(old)
        draft.rename(output)
    finally:
        for folder in (draft, old):
            shutil.rmtree(folder, ignore_errors=True)
    parts = summary[summary["metric"].isin(metrics)].groupby(["dataset", "metric"], sort=False)
    tables = {(str(dataset), str(metric)): table(part, str(metric)) for (dataset, metric), part in parts}
    return Report(output / "report.html", summary, tests, tables, ranks)


def _write_tables(
    folder: Path,
    stem: str,
    summary: pd.DataFrame,
    metrics: Sequence[str],
    modalities: Mapping[str, Sequence[str]],
    kind: str = "",
) -> None:
    """Write ``<stem>_<metric>.md`` and ``.tex`` with a table per data set.

    Args:
        modalities: data set -> names of its modalities.
        kind: further words of the LaTeX captions.
    """
    for metric in metrics:
        markdown, latex = [], ["% needs \\usepackage{booktabs}"]
        for dataset, part in summary[summary["metric"] == metric].groupby("dataset", sort=False):
            markdown.append(markdown_block(part, metric))
            latex.append(latex_block(part, metric, captions_of(part, modalities.get(str(dataset), ())), kind))
        (folder / f"{stem}_{slug(metric)}.md").write_text("\n".join(markdown))
        (folder / f"{stem}_{slug(metric)}.tex").write_text("\n".join(latex) + "\n")
