"""Hook of mkdocs.yml: shows Sphinx roles of docstrings (``:class:`Batch```) as code on the API page."""

from __future__ import annotations

import re
from typing import Any

ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):(<code>)~?([^<]*</code>)")


def on_page_content(html: str, **_: Any) -> str:
    """Drop the name of the role, keep what it refers to."""
    return ROLE.sub(r"\1\2", html)
