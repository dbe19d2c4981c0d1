"""Masks beside the results of a run: an npz file, and a JSON file that says how the mask was made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.missingness.base import Scenario, unobserved
from datasets.noise import Corruption
from utils.files import save_arrays


def mask_hash(mask: np.ndarray) -> str:
    """First 16 hex digits of the SHA-256 of shape and content."""
    return _digest(repr(mask.shape).encode() + np.packbits(mask).tobytes())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def save_mask(
    path: Path,
    mask: np.ndarray,
    scenario: Scenario,
    seed: int,
    modalities: Sequence[str],
    cells: Mapping[str, np.ndarray] | None = None,
    corruption: Corruption | None = None,
) -> str:
    """Write ``<path>.npz`` and ``<path>.json``; returns the hash.

    Args:
        mask: (N, M) bool, stored as ``missing``.
        modalities: their names, in the order of the columns.
        cells: table name -> (N, F) bool, stored as ``cells_<table>``; part of the hash.
        corruption: the scenario's noise; its levels (N, M) are stored as ``noise_level``, and are part of the hash.
    """
    cells = cells or {}
    levels = {} if corruption is None else {"noise_level": corruption.of_rows(len(mask))}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_arrays(
        path.with_suffix(path.suffix + ".npz"),
        {"missing": mask, **{f"cells_{name}": is_missing for name, is_missing in cells.items()}, **levels},
    )
    digest = mask_hash(mask)
    if cells:
        digest = _digest("".join([digest, *map(mask_hash, cells.values())]).encode())
    if corruption is not None:
        digest = _digest(f"{digest} {corruption.operator} {corruption.levels} {corruption.seed}".encode())
    unobserved_modalities = unobserved(mask, cells, modalities)
    about = {
        "scenario": scenario.name,
        "generator": scenario.protocol,
        "seed": seed,
        "shape": list(mask.shape),
        "modalities": list(modalities),
        "realised_rate": float(unobserved_modalities.mean()),
        "realised_rates": {name: float(rate) for name, rate in zip(modalities, unobserved_modalities.mean(0))},
        "sha256_16": digest,
    }
    if corruption is not None:
        level_of = {m.name: level for m, level in zip(corruption.modalities, corruption.levels)}
        about["noise"] = {"operator": corruption.operator, "levels": level_of, "seed": corruption.seed}
    if cells:
        about["cells"] = {
            name: {
                "shape": list(is_missing.shape),
                "realised_rate": float(is_missing.mean()),
                "rows_without_a_cell": int(is_missing.reshape(len(is_missing), -1).all(1).sum()),
                "sha256_16": mask_hash(is_missing),
            }
            for name, is_missing in cells.items()
        }
    path.with_suffix(path.suffix + ".json").write_text(json.dumps(about, indent=2) + "\n")
    return digest
