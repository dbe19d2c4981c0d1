"""Arguments that a class takes, also where it passes keywords on."""

from __future__ import annotations

from typing import Any

from torch import nn

from utils.signatures import constructor_arguments, known_arguments


class Base:
    def __init__(self, width: int, *, depth: int = 1) -> None: ...


class Mixin:
    def __init__(self, *args: Any, rate: float = 0.0, **others: Any) -> None:
        super().__init__(*args, **others)


class Inherits(Base): ...


class PassesOn(Mixin, Base):
    def __init__(self, width: int, heads: int = 2, **others: Any) -> None:
        super().__init__(width, **others)


class Closed(PassesOn):
    def __init__(self, heads: int) -> None: ...


class Positional:
    def __init__(self, width: int, /, rate: float = 0.0) -> None: ...


class Narrow(Positional):
    def __init__(self, depth: int, **others: Any) -> None:
        super().__init__(2 * depth, **others)


class Open(Mixin, nn.Module): ...


def takes_any(first: int, **others: Any) -> None: ...


def test_arguments_reach_as_far_as_keywords_are_passed_on() -> None:
    assert constructor_arguments(PassesOn) == ["width", "heads", "rate", "depth"]
    assert known_arguments(PassesOn) == constructor_arguments(PassesOn)
    assert known_arguments(Inherits) == ["width", "depth"] and known_arguments(Closed) == ["heads"]
    assert known_arguments(Narrow) == ["depth", "rate"], "a positional argument of the base class is no keyword"
    assert known_arguments(Open) is None and known_arguments(takes_any) is None, "nobody refuses a keyword"
    assert known_arguments(known_arguments) == ["target"]


def test_a_class_with_new_alone_is_read_by_its_signature() -> None:
    class Pair(tuple[int, int]):
        def __new__(cls, first: int, second: int) -> Pair:
            return super().__new__(cls, (first, second))

    assert known_arguments(Pair) == ["first", "second"]
