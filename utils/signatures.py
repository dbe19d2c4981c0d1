"""Constructor arguments of classes."""

from __future__ import annotations

import inspect
from typing import Any


def constructor_arguments(target: type) -> list[str]:
    """Names of the constructor arguments of a class, with those of its base classes as far as it passes keywords on."""
    return _arguments(target)[0]


def known_arguments(target: Any) -> list[str] | None:
    """Names of the keyword arguments that a class or function takes, None if it takes any."""
    if isinstance(target, type) and _initialisers(target):
        names, takes_any = _arguments(target)
    else:
        parameters = inspect.signature(target).parameters
        names, takes_any = list(parameters), any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return None if takes_any else names


def _initialisers(target: type) -> list[Any]:
    """Every ``__init__`` of a class and its base classes, without that of ``object``."""
    return [vars(kind)["__init__"] for kind in target.__mro__[:-1] if "__init__" in vars(kind)]


def _arguments(target: type) -> tuple[list[str], bool]:
    """Names of the constructor arguments, and whether the last class that keywords reach takes any."""
    no_keyword = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names: dict[str, None] = {}
    takes_any = False
    for initialiser in _initialisers(target):
        parameters = inspect.signature(initialiser).parameters.values()
        names |= {p.name: None for p in parameters if p.name != "self" and p.kind not in no_keyword}
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        if not takes_any:
            break
    return list(names), takes_any
