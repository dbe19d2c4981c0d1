"""The page of a report: one HTML file with its style and script, and pictures as far as it stays small."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from trainers.report.charts import legend
from trainers.report.content import Content
from trainers.report.directions import LOWER, direction
from trainers.report.grid_tables import matrix_html
from trainers.report.headline import headlines
from trainers.report.html_tables import frame_table
from trainers.report.measure_tables import pattern_blocks
from trainers.report.page_parts import cost_charts, cost_tables, metric_parts, sweep_parts
from trainers.report.run_tables import environment_tables, run_groups, setting_differences
from trainers.report.style import ORACLE_NOTE, data_uri, is_oracle, model_styles
from trainers.report.tables import label, spread

FOLDER = Path(__file__).parent
LIMIT = 4 * 2**20  # bytes of the page up to which pictures are inside; further ones are read from the folder beside it
SECTIONS = {
    "outcomes": "On complete data and under the scenario with the highest missing rate. Confusion matrices and bins of "
    "confidence pool the rows of all seeds, the other curves average over seeds. Risk: error rate of the most "
    "confident rows.",
    "samples": "Missing originals are dimmed, in a dashed frame. Accepted recoveries have a green frame and their "
    "order in brackets; their reward is bold at the step that accepted them.",
    "rewards": "Last reward of each recovery, over all seeds.",
    "training": "One line per seed or fold.",
}


@dataclass
class Picture:
    """A figure of the report.

    Attributes:
        files: relative to the page: PNG, and PDF if there is one.
        source: data URI, or the PNG.
    """

    name: str
    files: Sequence[str]
    source: str


def render_page(content: Content, title: str, drawn: Mapping[str, Sequence[Path]], folder: Path) -> str:
    """The page.

    Args:
        drawn: section -> its figures in ``folder``.
        folder: of the report, with all other files written.
    """
    pictures = {section: [_picture(file, folder) for file in files] for section, files in drawn.items()}
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        (FOLDER / "page.html").read_text()
    )
    style, script = ((FOLDER / f"page.{kind}").read_text() for kind in ("css", "js"))
    context = _context(content, pictures, folder) | {
        "title": title,
        "date": datetime.now().strftime("%Y-%m-%d %H:%M"),
        "css": Markup(style),
        "script": Markup(script),
        "policy": "default-src 'none'; img-src data: file: 'self'; "
        f"style-src '{_hash(style)}'; script-src '{_hash(script)}'",
    }
    room = LIMIT - len(template.render(context).encode())
    shown = ("grid", "ranks", *SECTIONS)
    for picture in (picture for section in shown for picture in pictures.get(section, ())):
        source = data_uri(folder / picture.files[0])
        if len(source) <= room:
            room -= len(source)
            picture.source = source
    return template.render(context).lstrip()


def _picture(file: Path, folder: Path) -> Picture:
    files = [f for f in (file, file.with_suffix(".pdf")) if f.is_file()]
    names = [f.relative_to(folder).as_posix() for f in files]
    return Picture(file.stem, names, names[0])


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _context(content: Content, pictures: Mapping[str, Sequence[Picture]], folder: Path) -> dict[str, Any]:
    """What the template shows, but for the title."""
    names, primary, captions = content.names, content.primary, content.captions
    styles = model_styles(list((content.sweep if len(content.sweep) else content.summary)["model"].unique()))
    files = sorted(f.name for f in folder.iterdir() if f.is_file() and f.suffix in (".csv", ".md", ".tex"))
    figures = {section: _figures(items) for section, items in pictures.items()}
    metrics = metric_parts(content, styles, figures, files)
    shared, environment = environment_tables(content.runs)
    settings = setting_differences(content.runs)
    all_styles = model_styles(list(content.summary["model"].unique()))
    cost_styles = {m: s for m, s in all_styles.items() if (content.costs["model"] == m).any()}
    context = {
        "runs": len(content.runs),
        "skipped": content.skipped,
        "primary": label(primary),
        "cards": headlines(content.summary, content.tests, primary, captions),
        "spread": spread(content.summary),
        "lower": ", ".join(m for m in content.metrics if direction(content.frame, m) == LOWER),
        "oracle": ORACLE_NOTE if content.summary["model"].map(is_oracle).any() else "",
        "scenario_table": _scenario_table(content),
        "models": [(m, m) for m in content.summary["model"].unique()],
        "scenarios": list({s: text for of_set in captions.values() for s, text in of_set.items()}.items()),
        "metric_names": [(m, label(m)) for m in content.metrics],
        "datasets": [(d, d) for d in content.summary["dataset"].unique()],
        "metrics": metrics,
        "costs": cost_tables(content.costs),
        "cost_charts": cost_charts(content, cost_styles),
        "cost_legend": legend(cost_styles),
        "cost_files": [f for f in files if f.startswith("costs")] + figures.get("costs", []),
        "sweep": sweep_parts(content, styles, files),
        "sweep_figures": figures.get("sweep", []),
        "grid": [
            (f"{dataset}, {method}, {label(primary)}", matrix_html(matrix, primary, names.get(dataset, ())))
            for (dataset, method), matrix in content.matrices.items()
        ],
        "grid_files": [f for f in files if f.startswith("grid")],
        "grid_pictures": pictures.get("grid", []),
        "measures": [(m.title, m.note, m.html(names)) for m in content.measures],
        "patterns": pattern_blocks(content.patterns, names),
        "measure_files": [f for f in ("measures.csv", "patterns.csv") if f in files],
        "tests": _tests_table(content) if len(content.tests) else "",
        "ranks": content.ranks,
        "rank_table": content.ranks and _by_model(content.ranks.table, "Ranks"),
        "rank_pictures": pictures.get("ranks", []),
        "sections": [
            (name, name.capitalize(), note, pictures[name]) for name, note in SECTIONS.items() if pictures.get(name)
        ],
        "environment_shared": frame_table(shared, "Environment of all runs") if len(shared) else "",
        "environment": frame_table(environment, "Environment per run"),
        "settings": frame_table(settings, "Settings that differ") if len(settings) else "",
        "groups": run_groups(content.runs),
        "files": files,
    }
    return context | {"contents": _contents(context)}


def _contents(context: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Ids and headings of the sections of the page."""
    optional = {
        "costs": "Cost",
        "sweep": "Incomplete training data",
        "grid": "Training and test scenarios",
        "measures": "Measures",
    }
    has_part = {**context, "measures": context["measures"] or context["patterns"]}
    return [
        ("results", "Results"),
        *((m.id, m.label) for m in context["metrics"]),
        *((id, heading) for id, heading in optional.items() if has_part[id]),
        ("differences", "Differences"),
        *[("ranks", "Ranks")] * bool(context["ranks"]),
        *((id, heading) for id, heading, _, _ in context["sections"]),
        ("runs", "Runs and settings"),
        ("files", "Files"),
    ]


def _figures(pictures: Sequence[Picture]) -> list[str]:
    return [file for picture in pictures for file in picture.files]


def _scenario_table(content: Content) -> Markup:
    frame = content.summary.drop_duplicates(["dataset", "scenario"])
    captions = [content.captions[d][s] for d, s in zip(frame["dataset"], frame["scenario"])]
    shown = pd.DataFrame({"caption": captions, "name": frame["scenario"], "data set": frame["dataset"]})
    if "missing_rate" in frame:
        shown["missing rate"] = frame["missing_rate"]
    return frame_table(shown, "Scenarios")


def _tests_table(content: Content) -> Markup:
    tests = content.tests
    texts = [content.captions[d][s] for d, s in zip(tests["dataset"], tests["scenario"])]
    keys = {key: [str(value).removesuffix("†") for value in tests[key]] for key in ("dataset", "scenario", "model")}
    shown = tests.assign(scenario=texts).drop(columns=["metric", *["dataset"] * (tests["dataset"].nunique() == 1)])
    return frame_table(shown, "Differences to the best model", keys)


def _by_model(frame: pd.DataFrame, name: str) -> Markup:
    return frame_table(frame, name, {"model": list(frame["model"])})
