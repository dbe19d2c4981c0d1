"""Readers of the JSON files of published splits and records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from utils.errors import UserError


def read_json(path: Path, content_name: str) -> dict[str, Any]:
    """Read a JSON file with a mapping.

    Args:
        content_name: of the content, for the message.

    Raises:
        UserError: the file is unreadable, or holds no mapping.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): restore it") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no {content_name}: restore it")
    return content


def read_split(path: Path, parts: dict[str, str]) -> dict[str, list[str]]:
    """Read the lists of ``split.json``.

    Args:
        parts: split -> its name in the file.

    Raises:
        UserError: a list is absent, or an entry is repeated.
    """
    content = read_json(path, f"lists {', '.join(parts.values())}")
    lists = {}
    for split, name in parts.items():
        if not isinstance(content.get(name), list):
            raise UserError(f"{path} has no list '{name}' (it has {', '.join(content)}): take the original file")
        lists[split] = [str(entry) for entry in content[name]]
    rows = [row for listed in lists.values() for row in listed]
    if len(set(rows)) < len(rows):
        seen: set[str] = set()
        repeated = [row for row in rows if row in seen or seen.add(row)]  # type: ignore[func-returns-value]
        raise UserError(f"{path} lists {repeated[0]} twice ({len(repeated)} such entries): take the original file")
    return lists
