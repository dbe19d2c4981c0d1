"""Constructor arguments of classes."""

from __future__ import annotations

import inspect
from typing import Any


def constructor_arguments(target: type) -> list[str]:
    """Names of the constructor arguments of a class, with those of its base classes as far as it passes keywords on."""
    return _arguments(target)[0]


def known_arguments(target: Any) -> list[str] | None:
    """Names of the keyword arguments that a class or function takes, None if it takes any."""
    if isinstance(target, type) and target.__init__ is not object.__init__:
        names, takes_any = _arguments(target)
    else:
        parameters = inspect.signature(target).parameters
        names, takes_any = list(parameters), any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return None if takes_any else names


def _arguments(target: type) -> tuple[list[str], bool]:
    """Names of the constructor arguments, and whether the last class that keywords reach takes any."""
    names: dict[str, None] = {}
    takes_any = False
    for kind in target.__mro__:
        if "__init__" not in vars(kind) or kind is object:
            continue
        parameters = inspect.signature(vars(kind)["__init__"]).parameters.values()
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        names |= {p.name: None for p in parameters if p.name != "self" and p.kind not in variable}
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        if not takes_any:
            break
    return list(names), takes_any
