"""Keep the remarks of Lightning from the user: advertisements, deprecations, advice that does not apply here."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from utils.interruption import interruption

LIBRARIES = ("pytorch_lightning", "lightning_fabric")


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Let only errors of Lightning through. Warnings of PyTorch and other libraries stay as they are.

    Raises:
        Interruption: the user or the system ended the program, which Lightning answers with ``SystemExit``.
    """
    levels = {logger: logger.level for logger in map(logging.getLogger, LIBRARIES)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="|".join(LIBRARIES))
            yield
    except SystemExit as error:
        if (stop := interruption(error)) is None:
            raise
        raise stop from None
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
