"""Demo data in the layout of UCI's Multiple Features."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datasets.multi_feature_digits import VIEWS
from datasets.readers.mnist import CLASSES


def make_views(folder: Path) -> None:
    """Make demo data in the layout of the download: 20 vectors per class around a random centre."""
    rng = np.random.default_rng(0)
    for view, features in VIEWS.items():
        centres = rng.normal(size=(CLASSES, features))
        values = np.repeat(centres, 20, axis=0) + rng.normal(size=(20 * CLASSES, features))
        np.savetxt(folder / f"mfeat-{view}", values, fmt="%.5f")
