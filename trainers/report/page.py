"""Stage ``report``: tables, tests, figures and one ``report.html`` from any number of run directories."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from datasets.missingness.base import slug
from trainers.report.content import Content, content_of
from trainers.report.costs import QUANTITIES, cost_rows
from trainers.report.figures import draw_figures
from trainers.report.grid_tables import as_csv, draw_heat_maps, matrix_markdown
from trainers.report.outcomes import extremes
from trainers.report.plots import cost_scatter
from trainers.report.ranks import Ranks, critical_difference
from trainers.report.render import render_page
from trainers.report.style import model_styles, save
from trainers.report.tables import captions_of, label, latex_block, markdown_block, table
from utils.errors import UserError
from utils.files import alone, remove_leftovers, replace_folder, temporary_beside
from utils.spreadsheet import write_table


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
        metrics: metrics with tables, charts and figures; by default all, with figures of ``primary`` alone.
        primary: metric of the paired tests, shown first.

    Raises:
        UserError: nothing to report, unreadable results, unknown metric, or an ``output`` that holds other files.
    """
    output = Path(output).resolve()
    _check_output(output, run_dirs)
    content = content_of(run_dirs, output, metrics, primary)

    remove_leftovers(output.parent)
    draft = temporary_beside(output)
    draft.mkdir(parents=True)
    try:
        drawn = _write_files(draft, content)
        (draft / "report.html").write_text(render_page(content, title, drawn, draft))
        with alone(output):
            replace_folder(draft, output)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
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
    drawn = draw_figures(content.runs, content.summary, content.sweep, content.drawn_metrics, folder / "figures")
    if content.ranks:
        write_table(content.ranks.table, folder / "ranks.csv")
        drawn["ranks"] = [folder / "figures" / f"ranks_{slug(primary)}.png"]
        save(critical_difference(content.ranks), drawn["ranks"][0], pdf=True)
    if len(content.costs):
        drawn["costs"] = _draw_costs(content, folder / "figures")
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


def _draw_costs(content: Content, folder: Path) -> list[Path]:
    """A figure of score against costs per data set."""
    files = []
    styles = model_styles(list(content.summary["model"].unique()))
    for dataset, part in content.summary.groupby("dataset", sort=False):
        panels = {
            content.captions[str(dataset)][scenario]: rows
            for scenario in extremes(part)
            if len(rows := cost_rows(content.costs, part, str(dataset), scenario, content.primary))
        }
        if panels:
            files.append(folder / f"costs_{slug(str(dataset))}_{slug(content.primary)}.png")
            save(cost_scatter(panels, QUANTITIES, label(content.primary), styles, str(dataset)), files[-1], pdf=True)
    return files
