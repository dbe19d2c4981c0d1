"""The ``report`` stage: any number of run directories into tables, tests, figures and one ``report.html``."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from datasets.missingness.base import slug
from trainers.report import plots as plotting
from trainers.report.figures import _draw, training_sweep
from trainers.report.plots import ORACLE_NOTE, is_oracle
from trainers.report.runs import Run, gather
from trainers.report.statistics import compare
from trainers.report.tables import (
    _escape,
    label,
    rate_notes,
    spread,
    summarise,
    table,
    to_latex,
    to_markdown,
    with_rates,
)
from utils.errors import UserError
from utils.metrics import LOWER_IS_BETTER

log = logging.getLogger(__name__)


@dataclass
class Report:
    """What was written: the page, ``summary.csv``, ``tests.csv``, and (dataset, metric) -> table of plain strings."""

    html: Path
    summary: pd.DataFrame
    tests: pd.DataFrame
    tables: dict[tuple[str, str], pd.DataFrame]


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 72rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere }
h1 { line-height: 1.2 } h2 { margin-top: 2.2em; border-bottom: 1px solid #bbb } img { max-width: 100%; height: auto }
.wide { overflow-x: auto; margin: .6em 0 } table { border-collapse: collapse; font-size: .9rem }
th, td { padding: .3em .7em; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd }
th { border-bottom: 2px solid #555 } .note { color: #444; font-size: .9rem } u { text-underline-offset: .2em }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff }
pre { overflow-x: auto; background: #f5f5f5; padding: .8em; font-size: .8rem }
summary { cursor: pointer; padding: .3em 0 }
</style></head><body>
<h1>{{ title }}</h1>
<p class="note">{{ runs | length }} runs, {{ date }}</p>
{% for s in skipped %}<p class="note">Skipped {{ s }}</p>{% endfor %}
<h2>How to read this</h2>
<p>A row is a model, a column a way of being incomplete: <i>none</i> is complete data, <i>random_0.4</i> hides 40 % of
the modalities (the last row of a table has the realised rate), <i>whole_12</i> hides modalities 1 and 2 (counted from
0) of every sample, <i>nested_0_0.25</i> hides modality 0 of 25 % of them, <i>noise_gaussian_4_m0</i> adds noise of
level 4 (of 11) to modality m0, and what follows a plus is hidden besides. Cells are the {{ spread }}; without ± there
is one run. <b>Bold</b> is best and <u>underlined</u> second best in a column, equal values alike; for {{ lower }}
lower is better. A name after a slash is another way of using the same trained model.{% if oracle %} <sup>†</sup> {{
oracle }}.{% endif %}</p>
{% for metric, tables, figures in metrics %}<details{% if loop.first %} open{% endif %}>
<summary><b>{{ metric }}</b></summary>
{% for dataset, cells in tables %}<h3>{{ dataset }}</h3><div class="wide">{{ cells }}</div>{% endfor %}
{% for name, uri in figures %}<p><img alt="{{ name }}" src="{{ uri }}"></p>{% endfor %}</details>
{% endfor %}
{% if sweep %}<h2>Trained on incomplete data, tested on complete data</h2>
<p class="note">A column is what was missing in training.</p>
{% for metric, cells in sweep %}<h3>{{ metric }}</h3><div class="wide">{{ cells }}</div>{% endfor %}{% endif %}
{% if tests %}<h2>Paired tests, {{ primary }}</h2>
<details><summary>Best model of each scenario against the others</summary>
<p class="note">p_t: paired t-test over common seeds; few seeds see only large differences, and it is empty where the
difference never varies. p_mcnemar: exact McNemar test, for the accuracy of one label and one seed. p_bootstrap, low and
high: paired bootstrap over test rows with the 95 % interval of the difference, for everything else; seeds share their
test rows, so a row is drawn with the predictions of all seeds. The tests over rows speak of these trained models, not
of training anew. The column unit says what is drawn or counted. {% if folds %}The training rows of folds overlap, so
over folds p_t comes out too small. {% endif %}Nothing is corrected for the number of comparisons, nor for calling the
best one best after seeing the results.{% if oracle %} <sup>†</sup> {{ oracle }}, and not tested.{% endif %}</p>
<div class="wide">{{ tests }}</div></details>{% endif %}
{% for heading, note, figures in sections if figures %}<h2>{{ heading }}</h2><p class="note">{{ note }}</p>
{% for name, uri in figures %}<details><summary>{{ name }}</summary><img alt="{{ name }}" src="{{ uri }}"></details>
{% endfor %}{% endfor %}
<h2>Runs</h2>{% for part in environment %}<div class="wide">{{ part }}</div>{% endfor %}
{% for run in runs %}<details><summary>{{ run.path }}</summary><pre>{{ run.text("config.yaml") or "no config.yaml" }}
</pre></details>{% endfor %}
</body></html>
"""
SECTIONS = {
    "sweep": "Tested on complete data; at rate 0 trained on complete data.",
    "samples": "Missing originals are dimmed in a dashed frame. Accepted recoveries have a green frame and their order "
    "in brackets; their reward is bold at the step that accepted them.",
    "rewards": "The last reward of each recovery, over all seeds; numbers in brackets count recoveries.",
    "training": "One line for each seed or fold.",
}


def _html(summary: pd.DataFrame, metric: str) -> str:
    cells = with_rates(table(summary, metric, "html"), summary, "html").reset_index()
    notes = "".join(f'<p class="note">{_escape(text, "html")}</p>' for text in rate_notes(summary))
    return cells.to_html(index=False, border=0, escape=False) + notes


def _environment(runs: Sequence[Run]) -> list[Markup]:
    """Tables of environment.json: what all runs share, and what differs."""
    entries = [json.loads(run.text("environment.json") or "{}") for run in runs]
    frame = pd.json_normalize(entries).astype(object).map(lambda v: "–" if v is None or v != v else str(v))
    shared = [column for column in frame if frame[column].nunique() == 1]
    common = pd.DataFrame({"entry": shared, "the same in all runs": [frame[c].iloc[0] for c in shared]})
    frame.insert(0, "run", [f"{run.dataset}, {run.model}, {run.repeat}" for run in runs])
    parts = [common] * bool(shared) + [frame.drop(columns=shared)]
    return [Markup(part.to_html(index=False, border=0)) for part in parts]


def _page(
    runs: Sequence[Run],
    skipped: Sequence[str],
    summary: pd.DataFrame,
    sweep: pd.DataFrame,
    tests: pd.DataFrame,
    metrics: Sequence[str],
    primary: str,
    title: str,
    drawn: dict[str, list[Path]],
) -> str:
    figures = {section: [(file.stem, plotting.data_uri(file)) for file in files] for section, files in drawn.items()}
    blocks = []
    for metric in metrics:
        tables = [
            (name, Markup(_html(part, metric)))
            for name, part in summary[summary["metric"] == metric].groupby("dataset", sort=False)
        ]
        blocks.append((label(metric), tables, figures.get(metric, [])))
    page = jinja2.Environment(autoescape=True).from_string(PAGE)
    return page.render(
        runs=runs,
        skipped=skipped,
        title=title,
        date=datetime.now().strftime("%Y-%m-%d %H:%M"),
        spread=spread(summary),
        folds=bool((summary["n_folds"] > 0).any()),
        lower=", ".join(LOWER_IS_BETTER),
        oracle=ORACLE_NOTE if summary["model"].map(is_oracle).any() else "",
        metrics=blocks,
        sweep=[(label(m), Markup(_html(sweep, m))) for m in metrics if len(sweep)],
        primary=primary,
        tests=len(tests) and Markup(tests.to_html(index=False, border=0, float_format="{:.3g}".format, na_rep="")),
        sections=[(name.capitalize(), note, figures.get(name)) for name, note in SECTIONS.items()],
        environment=_environment(runs),
    )


def _check_output(output: Path, run_dirs: Sequence[Path]) -> None:
    if any(Path(run).resolve().is_relative_to(output) for run in run_dirs):
        mend = f"give it a folder of its own, for example {output / 'report'}"
        raise UserError(f"{output} holds runs, and a report replaces its folder whole: {mend}")
    if output.is_file() or (output.exists() and any(output.iterdir()) and not (output / "report.html").is_file()):
        raise UserError(f"{output} holds something else than a report, which would be lost: give a new folder")


def write_report(
    run_dirs: Sequence[Path],
    output: Path,
    *,
    title: str,
    metrics: Sequence[str] | None = None,
    primary: str = "accuracy",
) -> Report:
    """Gather finished run directories into ``output``, which is replaced whole once everything is written.

    Args:
        run_dirs: ``.../<dataset>/<model>/<name>/seed<k>``; without DONE or results.csv skipped with a warning.
        title: heading of the page.
        metrics: those that get tables and figures, all by default.
        primary: the metric of the paired tests, shown first.

    Raises:
        UserError: nothing to report, unreadable results, unknown metric, or an ``output`` that holds other things.
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
    summary, tests, tables = summarise(frame), compare(runs, frame, primary), {}
    sweep = summarise(training_sweep(frame))

    draft, old = (output.with_name(f".{output.name}.{os.getpid()}.{kind}") for kind in ("draft", "old"))
    draft.mkdir(parents=True)
    try:
        for name, content in (("results", frame), ("summary", summary), ("sweep", sweep), ("tests", tests)):
            if name == "sweep" and not len(sweep):
                continue
            content.to_csv(draft / f"{name}.csv", index=False)
        for metric in metrics:
            markdown, latex = [], ["% needs \\usepackage{booktabs}"]
            for dataset, part in summary[summary["metric"] == metric].groupby("dataset", sort=False):
                tables[str(dataset), metric] = table(part, metric)
                note = bool(part["model"].map(is_oracle).any())
                notes, of_style = rate_notes(part), {}
                for style in ("markdown", "latex"):
                    of_style[style] = with_rates(table(part, metric, style), part, style)
                markdown += [f"## {dataset}, {label(metric)}\n", to_markdown(of_style["markdown"]) + "\n"]
                markdown += [f"{text}\n" for text in notes]
                markdown += [f"† {ORACLE_NOTE}\n"] * note + [f"{spread(part)}\n"] * bool(part["n_folds"].any())
                latex += [f"% {dataset}, {label(metric)}", to_latex(of_style["latex"])]
                latex += [rf"\par{{\footnotesize {_escape(text, 'latex')}}}" for text in notes]
                latex += [rf"\par{{\footnotesize $^\dagger$ {ORACLE_NOTE}}}"] * note
            (draft / f"summary_{slug(metric)}.md").write_text("\n".join(markdown))
            (draft / f"summary_{slug(metric)}.tex").write_text("\n".join(latex) + "\n")
            if len(sweep):
                (draft / f"sweep_{slug(metric)}.md").write_text(to_markdown(table(sweep, metric, "markdown")) + "\n")
                (draft / f"sweep_{slug(metric)}.tex").write_text(to_latex(table(sweep, metric, "latex")) + "\n")
        drawn = _draw(runs, summary, sweep, metrics, draft / "figures")
        page = _page(runs, skipped, summary, sweep, tests, metrics, primary, title, drawn)
        (draft / "report.html").write_text(page)
        if output.exists():
            output.rename(old)
        draft.rename(output)
    finally:
        for rest in (draft, old):
            shutil.rmtree(rest, ignore_errors=True)
    return Report(output / "report.html", summary, tests, tables)
