"""Packed PolyMNIST as the folders and mask files that the original code reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from datasets.base import SPLITS
from datasets.missingness import Scenario, mask_hash
from datasets.missingness.mask_files import write_dymo_csv
from datasets.polymnist import PolyMNIST
from datasets.polymnist_build import VIEWS
from utils.errors import UserError
from utils.files import temporary_beside
from utils.progress import Progress


def write_official_layout(data: PolyMNIST, folder: str | Path, scenarios: Sequence[Scenario] = ()) -> None:
    """Write the packed splits as the folders that the original code reads.

    Args:
        folder: new or empty.
        scenarios: masks to write beside the splits, see :func:`write_masks`.

    Raises:
        UserError: no packed store, or a folder with content.
    """
    folder = Path(folder).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: name a new folder, nothing is overwritten")
    splits = {name: data.split(name) for name in SPLITS if data.has_split(name)}
    if not splits:
        raise UserError(f"no packed data in {data.store.folder}: run the stage 'prepare' first (stages=[prepare])")
    temporary = temporary_beside(folder)
    try:
        with Progress(total=len(VIEWS) * sum(map(len, splits.values())), desc="writing PNG", unit="file") as progress:
            for name, split in splits.items():
                stems = split.names()
                for view in VIEWS:
                    (temporary / name / view).mkdir(parents=True)
                    pixels = split.memory_map(view).permute(0, 2, 3, 1).numpy()
                    for stem, image in zip(stems, pixels):
                        Image.fromarray(image).save(temporary / name / view / f"{stem}.png", compress_level=1)
                        progress.update()
        write_masks(data, temporary, scenarios)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_masks(data: PolyMNIST, folder: str | Path, scenarios: Sequence[Scenario]) -> None:
    """Write masks as ``<folder>/missing_modality/missing_<split>_<scenario>.csv``, for every packed split.

    Rows are in the order of the packed store (digit, i). The file names are those of the original repository, which do
    not include the generator: a JSON file beside each mask names it.

    Raises:
        UserError: a scenario without such a name, or a file that holds another mask.
    """
    for split in SPLITS if scenarios else ():
        if not data.has_split(split):
            continue
        for scenario in scenarios:
            mask = data.mask(split, scenario)
            about = {
                "scenario": scenario.name,
                "generator": scenario.protocol,
                "missing_seed": data.missing_seed,
                "shape": list(mask.shape),
                "sha256_16": mask_hash(mask),
            }
            path = Path(folder) / "missing_modality" / f"missing_{split}_{scenario.dymo_name}.csv"
            side_car = path.with_suffix(path.suffix + ".json")
            if path.exists() and (not side_car.exists() or json.loads(side_car.read_text()) != about):
                raise UserError(f"{path} holds another mask: remove it, or write to another folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_dymo_csv(path, mask)
            side_car.write_text(json.dumps(about, indent=2) + "\n")
