"""Write the tables, figures and numbers of the documentation from stored results.

``python -m trainers.report.docs [PAGE...]`` fills the blocks of README.md and ``docs/results/*.md`` (default: all);
``--check`` changes no page and fails where one differs. A block is a pair of HTML comments::

    <!-- table from=digits metric=accuracy models=DyMo,QMF scenarios=none,random_0.8 digits=2 -->
    <!-- /table -->

The kinds of blocks are in :data:`trainers.report.docs_blocks.BLOCKS`; ``from`` is a study with stored runs
(:mod:`trainers.report.evidence`) or a CSV file of ``docs/results``. Numbers within sentences are cells::

    It is <!-- cell digits: DyMo minus DyMo/discard at random_0.8 -->3.1<!-- /cell --> points above ...

Results of tests refer to a comparison of the page that has a ``name``::

    (95 % interval <!-- cell interval of DyMo minus DyMo/discard at random_0.8 in rules -->1.6 to 4.9<!-- /cell -->)

The block ``evidence`` names the tables of a page for which no runs are stored.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from trainers.report.docs_blocks import BLOCKS, TEST, Block, cell_text, test_text
from trainers.report.docs_sources import Sources
from trainers.report.evidence import check_files, studies
from utils.errors import UserError
from utils.files import replacing

ROOT = Path(__file__).resolve().parents[2]
KINDS = "|".join([*BLOCKS, "cell", "evidence"])
MARKED = re.compile(rf"<!-- ({KINDS})((?: (?:(?!-->).)+)?) -->(.*?)<!-- /\1 -->", flags=re.DOTALL)
NAMED = re.compile(r"<!-- comparison((?: (?:(?!-->).)+)? name=(\S+)(?: (?:(?!-->).)+)?) -->")
HALF = re.compile(rf"<!-- /?(?:{KINDS})\b.*?-->", flags=re.DOTALL)
CODE = re.compile(r"^```.*?^```", flags=re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^(?=#{1,6} )", flags=re.MULTILINE)
# A cell of a table that is a number with decimals.
SCORE = re.compile(r"^\|.*\| *[*_]*\d+\.\d+(?: ± \d+\.\d+)?[*_]* *\|", flags=re.MULTILINE)


def pages(root: Path) -> list[Path]:
    """Pages that may have blocks."""
    return [root / "README.md", *sorted((root / "docs" / "results").glob("*.md"))]


def render(text: str, page: Path, sources: Sources) -> str:
    """A page with its blocks and cells written anew.

    Raises:
        UserError: a block is not closed, or its query does not fit the stored results.
    """
    if half := HALF.search(MARKED.sub("", text)):
        raise UserError(f"{page.name}: {half[0]} has no other half: blocks end with <!-- /KIND -->")

    named_blocks = [(match[2], match[1]) for match in NAMED.finditer(text)]
    queries = dict(named_blocks)
    if len(queries) < len(named_blocks):
        raise UserError(f"{page.name}: two comparisons have the same name=: give each its own")

    @cache
    def named(name: str) -> Block | None:
        return Block.parse("comparison", queries[name], page, sources) if name in queries else None

    def fill(match: re.Match[str]) -> str:
        kind, query = match[1], match[2].strip()
        try:
            if kind == "cell" and (asked := TEST.fullmatch(query)):
                new = test_text(asked, match[3], named(asked["name"]))
            elif kind == "cell":
                new = cell_text(query, match[3], sources)
            elif kind == "evidence":
                new = _block(evidence_note(*unbacked(text, sources)))
            else:
                new = _block(BLOCKS[kind](Block.parse(kind, query, page, sources)))
        except UserError as error:
            raise UserError(f"{page.name}, <!-- {kind} {query} -->: {error}") from None
        return f"<!-- {kind}{match[2]} -->{new}<!-- /{kind} -->"

    return MARKED.sub(fill, text)


def _block(text: str) -> str:
    return f"\n\n{text}\n\n" if text else "\n"


def unbacked(text: str, sources: Sources) -> tuple[list[str], list[str]]:
    """Headings with a table of scores that no stored file gives, and headings with a table from a file without runs.

    "Summary" is left out, since it repeats numbers of the tables below it.
    """

    def without_stored(match: re.Match[str]) -> str:
        source = re.search(r"\bfrom=(\S+)", match[2])
        return "" if source is None or sources.has_runs(source[1]) else "\nRESULTS ONLY\n"

    without_file, without_runs = [], []
    for part in HEADING.split(CODE.sub("", MARKED.sub(without_stored, text))):
        heading = part.partition("\n")[0].lstrip("# ") if part.startswith("#") else ""
        if SCORE.search(part) and heading != "Summary":
            without_file.append(heading)
        if "\nRESULTS ONLY\n" in part:
            without_runs.append(heading)
    return without_file, without_runs


def evidence_note(without_file: Sequence[str], without_runs: Sequence[str]) -> str:
    """Which tables of a page have no stored runs; empty if all have them."""
    parts = []
    if without_file:
        parts.append(f"No results are stored for the tables under {_listed(without_file)}.")
    if without_runs:
        parts.append(
            f"Scores but no predictions are stored for the generated tables under {_listed(without_runs)}: their "
            "differences cannot be tested."
        )
    return " ".join(parts)


def _listed(headings: Sequence[str]) -> str:
    quoted = [f'"{heading}"' for heading in headings]
    return " and ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))


def update(root: Path, chosen: Sequence[str] = (), is_check: bool = False) -> list[str]:
    """Write the pages, after every stored file was checked.

    Args:
        chosen: names of pages without ``.md``; all by default.
        is_check: compare only.

    Returns:
        Pages that differ from what they were, with the first line that does.

    Raises:
        UserError: a stored file is absent or changed, or a block cannot be written.
    """
    results = root / "docs" / "results"
    files = {"results" if page == results / "README.md" else page.stem: page for page in pages(root)}
    if unknown := [name for name in chosen if name not in files]:
        raise UserError(f"no page '{unknown[0]}': choose from {', '.join(sorted(files))}")
    for study in studies(results):
        check_files(results / study)
    changed = []
    with Sources(results) as sources:
        for page in (files[name] for name in chosen or files):
            old = page.read_text()
            new = render(old, page, sources)
            if new != old:
                changed.append(f"{page.relative_to(root)}: {_first_difference(old, new)}")
                if not is_check:
                    with replacing(page) as temporary:
                        temporary.write_text(new)
    return changed


def _first_difference(old: str, new: str) -> str:
    pairs = zip([*old.splitlines(), ""], [*new.splitlines(), ""])
    before, after = next((pair for pair in pairs if pair[0] != pair[1]), ("", ""))
    return f"'{before[:100]}' should be '{after[:100]}'"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write or check the pages; prints those that differ.

    Raises:
        UserError: see :func:`update`, and with ``--check`` a page differs.
    """
    parser = argparse.ArgumentParser("python -m trainers.report.docs", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="digits, ... (docs/results), README or results")
    parser.add_argument("--check", action="store_true", help="compare only")
    parser.add_argument("--root", type=Path, default=ROOT, help="of the repository")
    options = parser.parse_args(arguments)
    changed = update(options.root, options.pages, options.check)
    if changed and options.check:
        problem = "\n".join(changed)
        raise UserError(f"pages differ from the stored results: run python -m trainers.report.docs\n{problem}")
    print("\n".join(["written:", *changed]) if changed else "every page agrees with the stored results")


if __name__ == "__main__":
    try:
        main()
    except UserError as problem:
        raise SystemExit(f"error: {problem}") from None
