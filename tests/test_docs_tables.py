"""Tables and pages of docs: sentences follow from the numbers beside them, links resolve."""

from __future__ import annotations

import re
from pathlib import Path

from models.cmpt import parameters
from tests.marks import plain

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_links_between_pages_resolve() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
    assert "docs/reference/parity.md" in (ROOT / "README.md").read_text()


def test_total_parameters_of_the_page_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "results.md").read_text()
    for row in parameters.totals().itertuples(index=False):
        name, *numbers = row
        digits = (3, 3, 2, 3, 2)
        cells = " | ".join(f"{value:.{places}f}" for value, places in zip(numbers, digits, strict=True))
        assert f"| {name} | {cells} |" in text


def test_no_second_hand_number_is_quoted_as_published() -> None:
    """70.02 and 67.53 of UDML come from a note that another note contradicts: the reference says so beside them, and no
    other page has them."""
    for page in PAGES:
        for line in page.read_text().splitlines():
            is_said = page.parent.name == "reference" and re.search("third-party note|secondary source", line)
            assert is_said or not re.search(r"70\.02|67\.53|published 70\.0", line), (page.name, line)


def section(heading: str) -> str:
    """A section of the results page, from its heading to the next one of the same level."""
    text = (ROOT / "docs" / "results.md").read_text().partition(f"\n{heading}\n")[2]
    assert text, heading
    level = heading.partition(" ")[0]
    return text.partition(f"\n{level} ")[0]


def table_of(text: str) -> dict[str, list[str]]:
    """The first table of a section: label of a row -> its other cells, without marks."""
    lines = [line for line in text.partition("\n|")[2].partition("\n\n")[0].splitlines()[2:] if line.startswith("|")]
    cells = [[plain(cell) for cell in line.split("|")[1:-1]] for line in lines]
    return {" ".join(row[:1]) + f" {i}": row for i, row in enumerate(cells)}


def scores(text: str, model: str) -> list[float]:
    """The numbers of a model's row in the first table of a section, means only."""
    (row,) = (row for row in table_of(text).values() if row[0] == model)
    return [float(cell.split(" ±")[0]) for cell in row[1:] if re.match(r"[\d.]+( ±|$)", cell)]


def test_sentences_on_polymnist_follow_from_its_table() -> None:
    text = section("## PolyMNIST")
    ours, discard, accept, oracle = (
        scores(text, f"DyMo{part}")[4] for part in ("", "/discard", "/impute_all", "/oracle_subset†")
    )
    assert (
        f"{ours - discard:.2f} above discarding" in text and f"{ours - accept:.2f} above accepting everything" in text
    )
    assert f"{100 * (ours - discard) / (oracle - discard):.0f} % of the gain" in text


def test_sentences_on_late_fusion_follow_from_the_table() -> None:
    text = section("### Comparison methods at equal epochs")
    ours = scores(text, "DyMo")
    late = [scores(text, model) for model in ("LogitAverage (control)", "QMF", "PDF", "SimMLM")]
    lead = [[values[k] - ours[k] for values in late] for k in range(5)]
    assert all(min(lead[k]) > 0 for k in range(4)) and max(lead[4]) < 0
    assert (
        "are above DyMo without any recovery up to a rate of 0.6" in text
        and "level with DyMo at every rate" not in text
    )
    for k, rate in ((2, 0.4), (3, 0.6)):
        assert f"{min(lead[k]):.1f} to {max(lead[k]):.1f} at {rate}" in text
    below = sorted(-value for value in lead[4])
    assert f"three of\n  them are {below[0]:.1f} to {below[2]:.1f} below it and SimMLM {below[3]:.1f}" in text


def test_sentences_on_noise_follow_from_the_table() -> None:
    text = section("## Noise on Digits")
    rows = [row[2:] for row in table_of(text).values()]
    rates = {"DyMo": [], "impute_all": []}
    for method, *cells in rows:
        if method in rates:
            rates[method].append([float(cell) for cell in cells])
    pairs = [pair for ours, other in zip(*rates.values(), strict=True) for pair in zip(ours, other, strict=True)]
    ahead, level = sum(other > ours for ours, other in pairs), sum(other == ours for ours, other in pairs)
    assert f"ahead of DyMo in {ahead} of {len(pairs)} cells and level in one" in text and level == 1
    assert f"by up to {max(other - ours for ours, other in pairs):.1f} points" in text


def test_no_p_value_pools_the_same_rows_of_several_seeds() -> None:
    assert not re.search(r"\bp = ", section("## Digits").partition("\n### ")[0])


def test_parity_page_has_all_corrections() -> None:
    text = (ROOT / "docs" / "reference" / "parity.md").read_text()
    corrections = text.partition("## Corrected since")[2].partition("\n## ")[0]
    assert [int(number) for number in re.findall(r"^(\d+)\. ", corrections, re.M)] == list(range(1, 10))
    for commit in ("693f6cb", "64e0f78", "d78331e", "198c34e", "9aa5381"):
        assert commit in text
