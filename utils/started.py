"""When the program began; to be imported before anything that takes time."""

from __future__ import annotations

import time

STARTED = time.perf_counter()
