"""Stage ``report``: tables, tests, figures and one ``report.html`` from any number of run directories."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from datasets.missingness.base import slug
from trainers.report.costs import cost_table
from trainers.report.directions import LOWER, check_primary, direction
from trainers.report.figures import draw_figures, training_sweep
from trainers.report.grid_tables import as_csv, draw_heat_maps, matrix_html, matrix_markdown, train_test_matrices
from trainers.report.measure_tables import Measure, measures_of, pattern_blocks, pattern_table
from trainers.report.ranks import Ranks, compare_ranks, critical_difference
from trainers.report.runs import FinishedRun, gather, modality_names, scenario_of
from trainers.report.statistics import compare
from trainers.report.style import ORACLE_NOTE, data_uri, is_oracle, save
from trainers.report.tables import captions_of, html_block, label, latex_block, markdown_block, spread, summarise, table
from trainers.report.verification import verify_results
from utils.errors import UserError
from utils.files import remove_leftovers, temporary_beside
from utils.spreadsheet import write_table

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
    "outcomes": "On complete data and under the scenario with the highest missing rate. Confusion matrices and bins of "
    "confidence pool the rows of all seeds, the other curves average over seeds. Risk: error rate of the most "
    "confident rows.",
    "samples": "Missing originals are dimmed, in a dashed frame. Accepted recoveries have a green frame and their "
    "order in brackets; their reward is bold at the step that accepted them.",
    "rewards": "Last reward of each recovery, over all seeds.",
    "training": "One line per seed or fold.",
}


def _environment(runs: Sequence[FinishedRun]) -> list[Markup]:
    """Tables of environment.json: entries that all runs share, and entries that differ."""
    entries = [json.loads(run.text("environment.json") or "{}") for run in runs]
    entries = [{key: value for key, value in entry.items() if key != "cost"} for entry in entries]  # costs.csv
    frame = pd.json_normalize(entries).astype(object).map(lambda v: "–" if v is None or v != v else str(v))
    shared = [column for column in frame if frame[column].nunique() == 1]
    common = pd.DataFrame({"entry": shared, "the same in all runs": [frame[c].iloc[0] for c in shared]})
    frame.insert(0, "run", [f"{run.dataset}, {run.model}, {run.repeat}" for run in runs])
    parts = [common] * bool(shared) + [frame.drop(columns=shared)]
    return [Markup(part.to_html(index=False, border=0)) for part in parts]


@dataclass(frozen=True)
class Content:
    """Runs of a report, and everything that is computed from them.

    Attributes:
        skipped: run directories that are left out, with the reason.
        frame: all results.
        metrics: metrics with tables and figures, ``primary`` first.
        names: data set -> names of its modalities.
        sweep: summary by missing data in training; empty without such runs.
        matrices: (data set, method) -> scores by training and test scenario.
        patterns: scores per pattern of missing modalities.
        tests: paired tests of ``primary``.
        costs: of the models, see :func:`trainers.report.costs.cost_table`.
    """

    runs: Sequence[FinishedRun]
    skipped: Sequence[str]
    frame: pd.DataFrame
    metrics: Sequence[str]
    primary: str
    names: Mapping[str, Sequence[str]]
    summary: pd.DataFrame
    sweep: pd.DataFrame
    matrices: dict[tuple[str, str], pd.DataFrame]
    measures: Sequence[Measure]
    patterns: pd.DataFrame
    tests: pd.DataFrame
    ranks: Ranks | None
    costs: pd.DataFrame


def _content(run_dirs: Sequence[Path], output: Path, metrics: Sequence[str] | None, primary: str) -> Content:
    runs, skipped = gather(run_dirs)
    verify_results(runs)
    frame = pd.concat([run.frame for run in runs], ignore_index=True)
    present = list(frame["metric"].unique())
    if unknown := [m for m in (primary, *(metrics or ())) if m not in present]:
        raise UserError(f"no run has the metric '{unknown[0]}': choose from {', '.join(present)}")
    check_primary(frame, primary)
    metrics = sorted(dict.fromkeys(metrics or present), key=lambda m: m != primary)
    log.info("report: %d runs, %s, into %s", len(runs), ", ".join(metrics), output)
    names = modality_names(runs)
    return Content(
        runs=runs,
        skipped=skipped,
        frame=frame,
        metrics=metrics,
        primary=primary,
        names=names,
        summary=summarise(frame),
        sweep=summarise(training_sweep(frame)),
        matrices=train_test_matrices(frame),
        measures=measures_of(runs, frame, primary, names),
        patterns=pattern_table(runs, names),
        tests=compare(runs, frame, primary),
        ranks=compare_ranks(frame, primary),
        costs=cost_table(runs),
    )


def _page(content: Content, title: str, drawn: Mapping[str, Sequence[Path]]) -> str:
    figures = {section: [(file.stem, data_uri(file)) for file in files] for section, files in drawn.items()}
    names, primary, tests, ranks = content.names, content.primary, content.tests, content.ranks

    def tables(summary: pd.DataFrame, metric: str) -> list[tuple[str, Markup]]:
        parts = summary[summary["metric"] == metric].groupby("dataset", sort=False)
        captions = {dataset: captions_of(part, names.get(dataset, ())) for dataset, part in parts}
        return [(dataset, Markup(html_block(part, metric, captions[dataset]))) for dataset, part in parts]

    captions = [scenario_of(s).caption(names.get(d, ())) for d, s in zip(tests["dataset"], tests["scenario"])]
    tests_html = _numbers_html(tests.assign(scenario=captions))
    page = jinja2.Environment(autoescape=True).from_string(PAGE.read_text())
    return page.render(
        runs=content.runs,
        skipped=content.skipped,
        title=title,
        date=datetime.now().strftime("%Y-%m-%d %H:%M"),
        spread=spread(content.summary),
        lower=", ".join(m for m in content.metrics if direction(content.frame, m) == LOWER),
        oracle=ORACLE_NOTE if content.summary["model"].map(is_oracle).any() else "",
        metrics=[
            (label(metric), tables(content.summary, metric), figures.get(metric, [])) for metric in content.metrics
        ],
        sweep=[(label(metric), tables(content.sweep, metric)) for metric in content.metrics if len(content.sweep)],
        grid=[
            (f"{dataset}, {method}, {label(primary)}", Markup(matrix_html(matrix, primary, names.get(dataset, ()))))
            for (dataset, method), matrix in content.matrices.items()
        ],
        grid_figures=figures.get("grid", []),
        measures=[(m.title, m.note, m.html(names)) for m in content.measures],
        patterns=pattern_blocks(content.patterns, names),
        primary=primary,
        tests=len(tests) and Markup(tests_html),
        ranks=ranks,
        rank_table=ranks and Markup(_numbers_html(ranks.table)),
        rank_figures=figures.get("ranks", []),
        sections=[(name.capitalize(), note, figures.get(name)) for name, note in SECTIONS.items()],
        environment=_environment(content.runs),
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
    content = _content(run_dirs, output, metrics, primary)

    remove_leftovers(output.parent)
    draft, old = temporary_beside(output), temporary_beside(output, is_old=True)
    draft.mkdir(parents=True)
    try:
        drawn = _write_files(draft, content)
        (draft / "report.html").write_text(_page(content, title, drawn))
        if output.exists():
            output.rename(old)
        draft.rename(output)
    finally:
        for folder in (draft, old):
            shutil.rmtree(folder, ignore_errors=True)
    summary = content.summary
    parts = summary[summary["metric"].isin(content.metrics)].groupby(["dataset", "metric"], sort=False)
    tables = {(str(dataset), str(metric)): table(part, str(metric)) for (dataset, metric), part in parts}
    return Report(output / "report.html", summary, content.tests, tables, content.ranks)


def _write_files(folder: Path, content: Content) -> dict[str, list[Path]]:
    """Write tables and figures; returns section -> its figures."""
    metrics, primary, names = content.metrics, content.primary, content.names
    files = {"results": content.frame, "summary": content.summary, "tests": content.tests}
    files |= {"sweep": content.sweep} if len(content.sweep) else {}
    files |= {"patterns": content.patterns} if len(content.patterns) else {}
    files |= {"costs": content.costs} if len(content.costs) else {}
    for name, frame in files.items():
        write_table(frame, folder / f"{name}.csv")
    if content.measures:
        all_measures = pd.concat([m.summary().assign(measure=m.name) for m in content.measures], ignore_index=True)
        write_table(all_measures, folder / "measures.csv")
    if content.matrices:
        write_table(as_csv(content.matrices), folder / "grid.csv")
        texts = [matrix_markdown(matrix, primary, method) for (_, method), matrix in content.matrices.items()]
        (folder / f"grid_{slug(primary)}.md").write_text("\n".join(texts))
    _write_tables(folder, "summary", content.summary, metrics, names)
    if len(content.sweep):
        _write_tables(folder, "sweep", content.sweep, metrics, names, kind="by missing data in training")
    drawn = draw_figures(content.runs, content.summary, content.sweep, metrics, folder / "figures")
    if content.ranks:
        write_table(content.ranks.table, folder / "ranks.csv")
        drawn["ranks"] = [folder / "figures" / f"ranks_{slug(primary)}.png"]
        save(critical_difference(content.ranks), drawn["ranks"][0], pdf=True)
    if content.matrices:
        drawn["grid"] = draw_heat_maps(content.matrices, primary, folder / "figures", names)
    return drawn


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
