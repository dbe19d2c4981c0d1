"""Texts that a spreadsheet would run are quoted, numbers are not, and reading undoes it."""

from __future__ import annotations

import io

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.spreadsheet import guard, unguard, write_table


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("\t=1+1", "'\t=1+1"),
        ("'=1+1", "''=1+1"),
        *[(text, text) for text in ("-1.5", "+3", "-.5e-3", "-", "=", "", "a=b", "random_0.8", "'quoted'", "don't")],
        (-1.5, -1.5),
        (None, None),
    ],
)
def test_formulas_are_quoted(value: object, expected: object) -> None:
    assert guard(value) == expected and unguard(expected) == value


@given(st.text("='+-@\ta1.e", max_size=6))
def test_reading_gives_back_any_text(text: str) -> None:
    assert unguard(guard(text)) == text


def test_heads_may_be_any_value() -> None:
    frame = pd.DataFrame([["=A1", 1, "-"]], columns=["self", 7, "self"])
    stream = io.StringIO()
    write_table(frame, stream)
    assert stream.getvalue() == "self,7,self\n'=A1,1,-\n"


def test_a_table_has_quoted_texts_and_heads_and_the_same_numbers() -> None:
    frame = pd.DataFrame({"model": ["=A1", "b"], "value": [-0.5, 2.0], "n": [-1, 2], "=x": ["-y", None]})
    stream = io.StringIO()
    write_table(frame, stream)
    assert stream.getvalue() == "model,value,n,'=x\n'=A1,-0.5,-1,'-y\nb,2.0,2,\n"
