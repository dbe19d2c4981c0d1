"""References to docs/reference: each names a page and sections that exist. Links of the pages: test_docs.py.

A reference is spelled "docs/reference/dymo.md §4.2"; further "§..." of the same docstring, comment or paragraph belong
to the page named last, and ", Q7" or ", G5" behind a section to a row of its table.
"""

from __future__ import annotations

import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs" / "reference").glob("*.md"))
SUFFIXES = (".py", ".yaml", ".sh", ".toml", ".md", ".ipynb", ".cff")
NUMBER = r"\d{1,2}(?:\.\d{1,2}){0,2}"
REFERENCE = re.compile(rf"docs/reference/([\w-]+)\.md|§({NUMBER})(?:, ([QG]\d{{1,2}})\b)?|(§)")
# How the pages were cited before they were part of the repository: "dymo_core 4", "datasets spec 12.3", "methods 2.14".
OLD = re.compile(
    r"\bdymo_core\b|\b[Dd]atasets spec\b|\b[Ss]pec \d|(?<![/\w-])(?:datasets|baselines|methods)\.md \d"
    r"|\b(?:[Bb]aselines|[Mm]ethods) (?:\d{1,2}\.\d|[GQ]\d)|\b(?:from|by|of|in|as) (?:the|its) spec(?:ification)?\b"
)
BARE = re.compile(r"\([1-9]\d?\.\d{1,2}(?:\.\d)?(?:(?:, | and | to )\d{1,2}\.\d{1,2}(?:\.\d)?)*\)")


@cache
def tree() -> tuple[Path, ...]:
    """Text files of the project, as git lists them, or (in an archive without git) as they lie there."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.splitlines()]
    else:
        folders = ("configs", "datasets", "docs", "gaussian_parameter_generation", "job_scripts", "models", "tests")
        paths = [p for folder in (*folders, "trainers", "utils") for p in (ROOT / folder).rglob("*")] + [
            *ROOT.glob("*")
        ]
    return tuple(p for p in paths if p.suffix in SUFFIXES and p.is_file() and p != Path(__file__).resolve())


def python_blocks(source: str) -> Iterator[tuple[int, str]]:
    """Line number and text of every string and of every run of comment lines."""
    comments: list[str] = []
    start = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if comments and token.start[0] != last + 1:
                yield start, "\n".join(comments)
                comments = []
            start = start if comments else token.start[0]
            last = token.start[0]
            comments.append(token.string)
        elif token.type == tokenize.STRING:
            yield token.start[0], token.string
    if comments:
        yield start, "\n".join(comments)


@cache
def blocks(path: Path, source: str) -> tuple[tuple[int, str], ...]:
    """Line number and text of what a reference may stand in: Python's strings and comments, else paragraphs."""
    if path.suffix == ".py":
        return tuple(python_blocks(source))
    paragraphs, line = [], 1
    for paragraph in re.split(r"(\n\s*\n)", source):
        paragraphs.append((line, paragraph))
        line += paragraph.count("\n")
    return tuple(paragraphs)


@cache
def headings(page: str) -> dict[str, str]:
    """Section number -> anchor of the heading, as GitHub makes it; headings without a number by their anchor."""
    text = re.sub(r"^```.*?^```", "", (ROOT / "docs" / "reference" / page).read_text(), flags=re.S | re.M)
    anchors = {}
    for title in re.findall(r"^#{1,5} (.+)$", text, flags=re.M):
        anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        number = re.match(rf"({NUMBER})\.? ", title)
        anchors[number[1] if number else anchor] = anchor
    return anchors


def problems(path: Path, source: str) -> Iterator[str]:
    """What is wrong with the references in a file, with line numbers."""
    for line, text in blocks(path, source):
        page: str | None = None  # of docs/reference, the one named last
        for match in REFERENCE.finditer(text):
            where = f"{path.name}:{line + text[: match.start()].count(chr(10))}"
            name, section, row, alone = match.groups()
            if name:
                page = f"{name}.md"
                if not (ROOT / "docs" / "reference" / page).is_file():
                    yield f"{where}: there is no docs/reference/{page}"
            elif alone:
                yield f"{where}: § without a section number"
            elif page is None:
                yield f"{where}: §{section} follows no page of docs/reference in the same comment or paragraph"
            elif not (ROOT / "docs" / "reference" / page).is_file():
                continue  # reported where the page was named
            elif section not in headings(page):
                yield f"{where}: docs/reference/{page} has no section {section}"
            elif row and f"| {row} |" not in (ROOT / "docs" / "reference" / page).read_text():
                yield f"{where}: docs/reference/{page} has no row {row}"


def test_references_resolve() -> None:
    wrong, count = [], 0
    for path in tree():
        if path.parent == PAGES[0].parent:
            continue  # links within the pages: test_docs.py
        source = path.read_text()
        count += len(re.findall(rf"docs/reference/[\w-]+\.md[\s#]+§{NUMBER}", source))
        wrong += problems(path, source)
    assert not wrong, "\n".join(wrong)
    assert count > 80


def test_no_reference_of_the_old_kind() -> None:
    """The pages' sources were not in the repository; a bare "(6.4)" in a docstring or comment said not even which."""
    wrong = []
    for path in tree():
        source = path.read_text()
        for line, text in blocks(path, source):
            for match in OLD.finditer(text):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {match[0]}")
            if path.suffix == ".py" and (text.startswith("#") or text.lstrip("rRbB").startswith('"""')):
                wrong += [f"{path.relative_to(ROOT)}:{line}: {match[0]}" for match in BARE.finditer(text)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_anchors_are_the_same_everywhere(page: Path) -> None:
    """GitHub and Python-Markdown make the same anchor of a heading in ASCII without signs that stand alone."""
    assert all(anchor.isascii() and "--" not in anchor for anchor in headings(page.name).values())


@pytest.mark.parametrize(
    ("page", "last"),
    [
        ("dymo.md", "7"),
        ("baselines.md", "8"),
        ("datasets.md", "17"),
        ("udml.md", "1.17"),
        ("cmpt.md", "2.14"),
        ("masked-attention.md", "3.16"),
    ],
)
def test_sections_are_numbered_without_gaps(page: str, last: str) -> None:
    """References from elsewhere stay valid as long as no number is removed."""
    numbers = [n for n in headings(page) if re.fullmatch(NUMBER, n)]
    assert last in numbers
    for number in numbers:
        *parents, child = map(int, number.split("."))
        before = ".".join(map(str, [*parents, child - 1]))
        if child > (1 if parents else 0):
            assert before in numbers, f"{page}: {number} without {before}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("# docs/reference/dymo.md §4.2, and §1.4\n", None),
        ("# docs/reference/dymo.md §4.6,\n# Q7 and docs/reference/baselines.md §6, G5\n", None),
        ("# docs/reference/dymo.md §9.1\n", "has no section 9.1"),
        ("# docs/reference/dymos.md §4.2\n", "there is no docs/reference/dymos.md"),
        ("# docs/reference/baselines.md §6, G99\n", "has no row G99"),
        ("# see §4.2\n", "follows no page"),
        ("# docs/reference/dymo.md §4\nx = 1\n# §4.2\n", "follows no page"),
        ('"""Text (docs/reference/cmpt.md § 2.4)."""\n', "without a section number"),
    ],
)
def test_wrong_references_are_found(text: str, problem: str | None) -> None:
    messages = list(problems(Path("example.py"), text))
    assert not messages if problem is None else len(messages) == 1 and problem in messages[0]


@pytest.mark.parametrize("text", ["dymo_core 4.1", "datasets spec 12.3", "methods 2.14", "baselines G5", "Spec 5.2"])
def test_old_references_are_found(text: str) -> None:
    assert OLD.search(f"# as published ({text}); more")


def test_bare_sections_are_found() -> None:
    assert BARE.search("Against the description (3.3)") and BARE.search("# counts (2.4, 14.6).")
    assert not BARE.search("a rate of 0.5 (0.25)") and not BARE.search("version (1)")
