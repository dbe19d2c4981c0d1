"""Tables and pages of docs: sentences follow from the numbers beside them, links resolve."""

from __future__ import annotations

import re
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest

from models.cmpt import parameters
from tests.marks import plain

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RESULTS = ROOT / "docs" / "results"
STUDIES = sorted(page.stem for page in RESULTS.glob("*.md") if page.stem != "README")
SUMMARY = "| {} | published | ours ± SD | why they differ |"


def test_links_between_pages_resolve() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
    assert "docs/reference/parity.md" in (ROOT / "README.md").read_text()


def test_no_second_hand_number_is_quoted_as_published() -> None:
    """70.02 and 67.53 of UDML come from a note that another note contradicts: the reference says so beside them, and no
    other page has them."""
    for page in PAGES:
        for line in page.read_text().splitlines():
            is_said = page.parent.name == "reference" and re.search("third-party note|secondary source", line)
            assert is_said or not re.search(r"70\.02|67\.53|published 70\.0", line), (page.name, line)


def test_parity_page_has_all_corrections() -> None:
    text = (ROOT / "docs" / "reference" / "parity.md").read_text()
    corrections = text.partition("## Corrected since")[2].partition("\n## ")[0]
    assert [int(number) for number in re.findall(r"^(\d+)\. ", corrections, re.M)] == list(range(1, 10))
    for commit in ("693f6cb", "64e0f78", "d78331e", "198c34e", "9aa5381"):
        assert commit in text


# ----------------------------------------------------------------------------------------------------- pages and tables


def section(study: str, *headings: str) -> str:
    """A section of a page of docs/results, from its heading (within earlier ones) to the next one of the same level,
    without comments."""
    text = re.sub(r"<!--.*?-->", "", (RESULTS / f"{study}.md").read_text())
    for heading in headings:
        text = text.partition(f"\n{heading}\n")[2]
        assert text, heading
        level = heading.partition(" ")[0]
        text = text.partition(f"\n{level} ")[0]
    return text


def tables_of(text: str) -> list[list[list[str]]]:
    """Rows of each table of a section, without head and marks."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", text + "\n", flags=re.M)
    return [[[plain(cell) for cell in line.split("|")[1:-1]] for line in block.splitlines()[2:]] for block in blocks]


def scores(text: str, model: str, table: int = 0) -> list[float]:
    """The numbers of a model's row in a table of a section, means only."""
    (row,) = (row for row in tables_of(text)[table] if row[0] == model)
    return [float(cell.split(" ±")[0]) for cell in row[1:] if re.match(r"[\d.]+( ±|$)", cell)]


def gap(high: float, low: float, places: int = 1) -> str:
    """The difference of two numbers as shown, rounded by hand."""
    return str((Decimal(str(high)) - Decimal(str(low))).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP))


def check(text: str, *sentences: str) -> None:
    """The section contains the sentences, however its lines are broken."""
    words = " ".join(text.split())
    missing = [sentence for sentence in sentences if sentence not in words]
    assert not missing, missing


def test_every_study_begins_with_a_question_and_a_summary() -> None:
    for study in STUDIES:
        title, question, summary = section(study).split("\n\n")[:3]
        assert title.startswith("# ") and summary == "## Summary", study
        assert question.partition("\n")[0] and "?" in question, study
        assert SUMMARY.format("quantity") in section(study, "## Summary"), study


def test_every_study_has_a_row_of_the_index_with_its_numbers() -> None:
    text = section("README")
    assert SUMMARY.format("study") in text
    rows = tables_of(text)[0]
    assert sorted(re.findall(r"\((\S+)\.md\)", "".join(row[0] for row in rows))) == STUDIES
    for study, published, ours, _ in rows:
        page = section(re.findall(r"\((\S+)\.md\)", study)[0])
        for number in re.findall(r"\d+\.\d+", f"{published} {ours}"):
            assert number in page, (study, number)


def test_published_numbers_of_the_summaries_are_in_the_reference() -> None:
    pages = [ROOT / "docs" / "reference" / f"{name}.md" for name in ("published-results", "cmpt")]
    reference = "".join(page.read_text() for page in pages)
    for study in STUDIES:
        for row in tables_of(section(study, "## Summary"))[0]:
            for number in re.findall(r"\d+\.\d+", row[1]):
                is_difference = row[0] == "DyMo minus ModDrop" and number == gap(96.61, 88.44)
                assert is_difference or number in reference, (study, row)


@pytest.mark.parametrize("study", STUDIES)
def test_numbers_of_the_summary_are_in_the_tables_below(study: str) -> None:
    below = section(study).partition("\n## Summary\n")[2].partition("\n## ")[2]
    for quantity, _, ours, _ in tables_of(section(study, "## Summary"))[0]:
        if "parameters" in quantity or ours.startswith("+"):
            continue  # rounded to the digits of the paper, or a difference that another test computes
        if match := re.match(r"(−?)(\d+\.\d) \(([\d.]+) ± [\d.]+ against ([\d.]+) ± [\d.]+\)", ours):
            assert match[1].replace("−", "-") + match[2] == gap(float(match[3]), float(match[4])), quantity
            ours = ours.partition("(")[2]
        for number in re.findall(r"\d+\.\d+(?: ± \d+\.\d+)?", ours):
            assert re.search(rf"(?<![\d.]){number}(?!\d)", below), (quantity, number)


# ------------------------------------------------------------------------------------------------------------ sentences


def test_the_lead_over_moddrop_is_that_of_the_table() -> None:
    text = section("digits", "## Comparison methods")
    (row,) = (r for r in tables_of(section("digits", "## Summary"))[0] if r[0] == "DyMo minus ModDrop")
    assert row[2] == f"+{gap(scores(text, 'DyMo')[4], scores(text, 'ModDrop')[4])}"


def test_sentences_on_polymnist_follow_from_its_table() -> None:
    text = section("polymnist", "## DyMo and its selection rule")
    ours, discard, accept, oracle = (
        scores(text, f"DyMo{part}")[4] for part in ("", "/discard", "/impute_all", "/oracle_subset†")
    )
    check(text, f"{gap(ours, discard, 2)} above discarding", f"{gap(ours, accept, 2)} above accepting everything")
    check(text, f"{100 * (ours - discard) / (oracle - discard):.0f} % of the gain")


def test_sentences_on_late_fusion_follow_from_the_table() -> None:
    text = section("polymnist", "## Comparison methods at equal epochs")
    ours = scores(text, "DyMo")
    late = [scores(text, model) for model in ("LogitAverage (control)", "QMF", "PDF", "SimMLM")]
    lead = [[values[k] - ours[k] for values in late] for k in range(5)]
    assert all(min(lead[k]) > 0 for k in range(4)) and max(lead[4]) < 0
    check(text, "are above DyMo without any recovery up to a rate of 0.6")
    assert "level with DyMo at every rate" not in text
    for k, rate in ((2, 0.4), (3, 0.6)):
        check(text, f"{min(lead[k]):.1f} to {max(lead[k]):.1f} at {rate}")
    below = sorted(-value for value in lead[4])
    check(text, f"three of them are {below[0]:.1f} to {below[2]:.1f} below it, and SimMLM is {below[3]:.1f} below")
    discard, accept = scores(text, "DyMo/discard"), scores(text, "DyMo/impute_all")
    check(
        text,
        f"selecting is {gap(ours[4], discard[4])} points above discarding ({ours[4]:.1f} against {discard[4]:.1f}) and "
        f"{gap(accept[4], ours[4])} *below* accepting everything",
        f"At 0.6, it is {gap(ours[3], discard[3])} above and {gap(accept[3], ours[3])} below",
    )


def test_learned_parameters_of_the_reference_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "reference" / "cmpt.md").read_text().partition("### 2.6.2 Our counts")[2]
    shown = {row[0]: row[1:] for row in tables_of(text.replace("**", ""))[0] if row[1].startswith("Food-101")}
    for adapter, (kind, rank, size) in {
        "LoRA 1": ("lora", 1, "base"),
        "LoRA 4": ("lora", 4, "base"),
        "VeRA": ("vera", 1, "base"),
        "large": ("lora", 1, "large"),
    }.items():
        counts = parameters.readings("Food-101", kind, rank, size)
        first = [cell.split(" / ")[0] for cell in shown[adapter][1:]]
        assert first[0] == f"{counts['ours'] / 1e6:.4f}" and first[2] == f"{counts['B'] / 1e6:.4f}"
        assert first[1] in ("–", f"{counts['A'] / 1e6:.4f}")
        assert first[3] == f"{parameters.PUBLISHED[kind, rank, size]['Food-101']:.3f}"


def test_total_parameters_of_the_page_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "reference" / "cmpt.md").read_text().partition("### 2.6.2 Our counts")[2]
    for row in parameters.totals().itertuples(index=False):
        name, *numbers = row
        digits = (3, 3, 2, 3, 2)
        cells = " | ".join(f"{value:.{places}f}" for value, places in zip(numbers, digits, strict=True))
        assert f"| {name} | {cells} |" in text


def test_sentences_on_cmpt_follow_from_the_tables() -> None:
    for heading in ("## Digits", "## Digits of unknown speakers"):
        tables = tables_of(section("cmpt", heading))
        (tests,) = [table for table in tables if len(table[0]) == 7 and " to " in table[0][4]]
        assert len(tests) == 16 and all(float(row[5]) >= 0.05 for row in tests), "no difference is beyond chance"
        sound, image = ([[float(re.search(r"\d+\.\d", cell)[0]) for cell in row[1:]] for row in t] for t in tables[1:3])  # type: ignore[index]
        if heading == "## Digits":
            assert all(93 <= row[-1] <= 95 for row in sound + image), "about 94 %"
        else:
            assert all(row[-1] > row[0] for row in sound), "better without the sound"


def test_sentences_on_the_skin_lesions_under_stress_follow_from_the_table() -> None:
    text = section("masked-attention", "## Skin lesions, inference stress")
    ours, zeros = (scores(text, model, 1) for model in ("MaskedAttention", "Zeros_MLP"))  # the first lists the runs
    is_below = all(
        a < b for model in ("Late", "ModelSelection") for a, b in zip(ours, scores(text, model, 1), strict=True)
    )
    assert is_below == ("below Late and ModelSelection in every column" in " ".join(text.split()))
    assert [a > b for a, b in zip(ours, zeros, strict=True)] == [k in (2, 3, 4) for k in range(9)]


def test_sentences_on_skin_lesions_follow_from_the_table() -> None:
    (tests,) = [table for table in tables_of(section("skin-lesions", "## Results")) if len(table[0]) == 7]
    assert all(float(row[5]) >= 0.05 for row in tests if float(row[3]) > 0), "no recovery is worth having beyond chance"
    some = [row for row in tests if row[0].startswith("60 %") and re.fullmatch(r"DyMo_\w+", row[1])]
    assert len(some) == 3 and all(float(row[5]) >= 0.05 for row in some), "no rule differs with 60 % missing"
    assert {row[1] for row in tests if row[5] == "< 0.001"} == {"DyMo_IMI/impute_all", "DyMo_MoPoE/impute_all"}
