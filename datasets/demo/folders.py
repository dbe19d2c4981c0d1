"""Folders of demo data: small seeded data sets in the layouts of the real files, so that the real readers read them.

They show that everything runs, and how methods behave when modalities differ in how much they tell. Nothing is learned
from them about the real data.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import alone, replace_folder, temporary_beside

log = logging.getLogger(__name__)
VERSION = 2
MARKER = "demo.json"


def demo_folder(root: str | Path | None) -> Path:
    """Folder of the demo data of a data set, ``<root>-demo``.

    Raises:
        UserError: ``root`` is None.
    """
    if root is None:
        raise UserError("dataset.demo=true makes its files beside dataset.root, which is null: name a folder")
    return Path(root).with_name(f"{Path(root).name}-demo")


def ensure_demo(folder: str | Path, make: Callable[..., None], **arguments: Any) -> Path:
    """Fill ``folder`` by ``make(folder, **arguments)``, unless that has been done before with the same arguments.

    The files are written into a temporary folder, which is renamed when it is complete.

    Args:
        folder: replaced where it holds demo data that were made with other arguments.
        arguments: plain values.

    Returns:
        ``folder``.

    Raises:
        UserError: the folder holds something else than demo data.
    """
    folder = Path(folder)
    about = json.dumps({"demo": make.__name__.removeprefix("make_"), "version": VERSION, **arguments})
    marker = folder / MARKER

    def is_made() -> bool:
        return marker.is_file() and marker.read_text() == about

    if is_made():
        return folder
    older = folder / "meta.json"  # what earlier versions wrote beside demo tables
    is_demo = marker.is_file() or (older.is_file() and ' stand-in"' in older.read_text())
    if folder.exists() and not is_demo:
        raise UserError(f"{folder} holds no demo data made by dataset.demo=true: move it away, or change dataset.root")
    log.info("making demo data in %s", folder)
    temporary = temporary_beside(folder)
    try:
        temporary.mkdir(parents=True)
        make(temporary, **arguments)
        (temporary / MARKER).write_text(about)
        with alone(folder):
            if not is_made():  # another process may have been faster, and may be reading it
                replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
