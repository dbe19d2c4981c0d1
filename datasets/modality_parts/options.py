"""From the options of a configuration to the parts of a data set; all problems at once."""

from __future__ import annotations

import difflib
import inspect
from collections import Counter
from collections.abc import Mapping
from typing import Any

from datasets.modality_parts.arrays import SeriesPart, VectorPart
from datasets.modality_parts.base import Part
from datasets.modality_parts.clips import AudioPart, VideoPart
from datasets.modality_parts.image import ImagePart
from datasets.modality_parts.table import TablePart
from datasets.modality_parts.text import TextPart
from utils.errors import UserError

PARTS: dict[str, type[Part]] = {
    part.kind: part for part in (ImagePart, TablePart, TextPart, AudioPart, VideoPart, SeriesPart, VectorPart)
}


def build_parts(modalities: Any, tokenizer: str | None) -> list[Part]:
    """Build the parts of ``dataset.modalities``.

    Args:
        modalities: modality name -> options, with the key ``kind``.
        tokenizer: of texts.

    Raises:
        UserError: all problems, one line each.
    """
    if not isinstance(modalities, Mapping) or not modalities:
        raise UserError(
            "dataset.modalities is empty: name the modalities, such as {film: {kind: image, column: file}, "
            "labs: {kind: table, continuous: [age]}}"
        )
    parts, problems = [], []
    for name, options in modalities.items():
        try:
            parts.append(_build(str(name), options, tokenizer))
        except UserError as error:
            problems.append(str(error))
    tables = Counter(column for part in parts if isinstance(part, TablePart) for column in part.columns)
    problems += [
        f"dataset.modalities: column '{column}' is in {n} tables: keep it in one"
        for column, n in tables.items()
        if n > 1
    ]
    if problems:
        raise UserError("\n".join(problems))
    return parts


def options_of(part: type[Part]) -> dict[str, inspect.Parameter]:
    """The options that a part takes, those of its base classes included."""
    options: dict[str, inspect.Parameter] = {}
    for base in part.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters
            options |= {key: p for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY and key not in options}
    return options


def _build(name: str, options: Any, tokenizer: str | None) -> Part:
    where = f"dataset.modalities.{name}"
    if not name.isidentifier():
        raise UserError(f"{where}: use letters, digits and _ in the name of a modality, with a letter first")
    if not isinstance(options, Mapping):
        raise UserError(f"{where}={options}: give its options, such as {{kind: image, column: file}}")
    kind = options.get("kind")
    if kind not in PARTS:
        raise UserError(f"{where}.kind={kind}: must be one of {', '.join(PARTS)}")
    given = {str(key): value for key, value in options.items() if key != "kind"}
    known = {key: parameter for key, parameter in options_of(PARTS[kind]).items() if key != "tokenizer"}
    problems = []
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, list(known), 1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            problems.append(f"{where}.{key}: there is no such option{hint}, known are {', '.join(known)}")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in given:
            problems.append(f"{where}: {key} is not given, and kind {kind} needs it")
    if problems:
        raise UserError("\n".join(problems))
    if kind == "text":
        given["tokenizer"] = tokenizer
    return PARTS[kind](name, **given)
