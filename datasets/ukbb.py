"""UK Biobank, cardiac MR and a table of 75 columns: coronary artery disease (CAD) and Infarction, from TIP's files.

Du et al., "TIP", ECCV 2024 (https://github.com/siyi-wind/TIP); used by DyMo, ICLR 2026. The data may not be
redistributed: apply to UK Biobank, and prepare them with TIP's notebooks (docs/reference/datasets.md §5), whose files
are read here. ``demo=true`` makes synthetic demo data in that layout.
"""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np

from datasets.base import SPLITS
from datasets.coded_table import Coded, content_of_coded
from datasets.content import Content
from datasets.image_table_module import ImageTableModule
from datasets.readers.tip_files import read_cardinalities, read_prepared
from datasets.source import Source, file_digest
from utils.errors import UserError

log = logging.getLogger(__name__)

TARGETS = ("CAD", "Infarction")
CATEGORICAL = {
    "shortness_of_breath_walking": 2,
    "sex": 2,
    "diabetes_diagnosed": 2,
    "angina": 2,
    "stroke": 2,
    "high_blood_pressure_diagnosed": 2,
    "cholesterol_lowering_medication": 2,
    "blood_pressure_medication": 2,
    "insulin": 2,
    "hormone_replacement_therapy": 2,
    "oral_contraceptive": 2,
    "long_standing_illness": 2,
    "ever_smoked": 2,
    "sleeplessness": 3,
    "alcohol_intake_frequency": 6,
    "overall_health": 4,
    "alcohol_drinker_status": 3,
    "falls": 3,
    "days_per_week_walked": 8,
    "days_per_week_moderate_activity": 8,
    "days_per_week_vigorous_activity": 8,
    "usual_walking_pace": 3,
    "duration_of_strenuous_sports": 8,
    "current_tobacco_smoking": 3,
    "past_tobacco_smoking": 4,
    "smoking_status": 3,
}
CONTINUOUS = (
    "pulse_wave_arterial_stiffness",
    "systolic_blood_pressure",
    "diastolic_blood_pressure",
    "pulse_rate",
    "body_fat_percentage",
    "whole_body_fat_mass",
    "body_mass_index",
    "basal_metabolic_rate",
    "waist_circumference",
    "hip_circumference",
    "weight",
    "ventricular_rate",
    "p_duration",
    "qrs_duration",
    "cardiac_output",
    "cardiac_index",
    "average_heart_rate",
    "body_surface_area",
    "duration_of_walks",
    "duration_of_moderate_activity",
    "duration_of_vigorous_activity",
    *(f"pulse_wave_analysis_{i}" for i in range(1, 16)),
    "sleep_duration",
    "tobacco_exposure_at_home",
    "tobacco_exposure_outside",
    "LVESV",
    "LVEDV",
    "LVSV",
    "LVEF",
    "LVCO",
    "LVM",
    "RVEDV",
    "RVESV",
    "RVSV",
    "RVEF",
)
COLUMNS = (*CATEGORICAL, *CONTINUOUS)
BALANCE_SEED = 2022
IMAGE_FOLDER = "subjects"
LENGTHS = "tabular_lengths_reordered.pt"
_TABLE = "cardiac_features_{}_imputed_noOH_tabular_imaging_{}reordered.csv"


def file_names(target: str, split: str, balanced: bool) -> tuple[str, str, str]:
    """File names of table, labels and image paths of a split; ``balanced`` applies only to the training split."""
    if split == "train" and balanced:
        return (
            _TABLE.format("train", f"{target}_balanced_"),
            f"cardiac_labels_{target}_train_balanced.pt",
            f"cardiac_train_paths_imaging_{target}_balanced.pt",
        )
    return _TABLE.format(split, ""), f"cardiac_labels_{target}_{split}.pt", f"cardiac_{split}_paths_imaging.pt"


class UKBB(ImageTableModule):
    """CAD or Infarction.

    Args:
        store: folder of the packed store.
        root: folder with TIP's files, and with ``subjects/`` where the stored paths do not exist.
        target: CAD | Infarction.
        demo: ``root`` holds demo data, whose counts differ from the published ones.
        balanced: train on all positives and as many negatives, from TIP's balanced files or, without them, drawn from
            the full files (seed 2022); false = the full training split.
        **kwargs: see :class:`ImageTableModule`.
    """

    paths = ("root",)
    image_name = "img"
    table_name = "tabular"
    task = "binary"

    def __init__(
        self, *, store: str, root: str, target: str, demo: bool = False, balanced: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(store, **kwargs)
        if target not in TARGETS:
            raise UserError(f"dataset.target={target}: must be one of {', '.join(TARGETS)}")
        self.name, self.target = target, target
        self.root, self.demo, self.balanced = Path(root), demo, balanced

    def find_source(self) -> Source:
        root = self.root
        if not (root / LENGTHS).is_file():
            raise UserError(
                f"no UK Biobank files in {root}: looked for {LENGTHS} and {file_names(self.target, 'test', True)[0]}; "
                "prepare them with TIP's notebooks and set dataset.root, or dataset.demo=true for synthetic demo data"
            )
        drawn = self.balanced and not (root / file_names(self.target, "train", True)[0]).is_file()
        files = {split: file_names(self.target, split, self.balanced and not drawn) for split in SPLITS}
        digests = {
            name: file_digest(root / name)
            for name in [LENGTHS, *(n for names in files.values() for n in names)]
            if (root / name).is_file()
        }
        return self.content_source("prepared", [digests, drawn], lambda: self._read(root, files, drawn))

    def _read(self, root: Path, files: dict[str, tuple[str, str, str]], drawn: bool) -> Content:
        cardinalities = read_cardinalities(root / LENGTHS, COLUMNS)
        splits = {
            split: read_prepared(root / table, root / labels, root / paths, COLUMNS, IMAGE_FOLDER, root)
            for split, (table, labels, paths) in files.items()
        }
        if drawn:
            splits["train"] = balance(splits["train"])
            log.info("%s: no balanced training files, %d rows drawn", self.name, len(splits["train"].target))
        about = {"root": str(root), "balanced": self.balanced, "drawn": drawn}
        names = (self.image_name, self.table_name)
        return content_of_coded(names, COLUMNS, cardinalities, [f"no {self.target}", self.target], splits, about)


def balance(train: Coded) -> Coded:
    """Select all positives and as many negatives, drawn with Python's generator (seed 2022), in their order.

    Raises:
        UserError: labels other than 0 and 1, or fewer negatives than positives.
    """
    positive, negative = (np.flatnonzero(train.target == value) for value in (1, 0))
    if len(positive) + len(negative) < len(train.target):
        bad = int((~np.isin(train.target, (0, 1))).sum())
        raise UserError(f"{bad} of {len(train.target)} training labels are not 0 or 1: check the file of labels")
    if len(negative) < len(positive):
        raise UserError(
            f"{len(positive)} positive and {len(negative)} negative training rows: there are too few negatives to "
            "balance, set dataset.balanced=false"
        )
    chosen = random.Random(BALANCE_SEED).sample(negative.tolist(), len(positive))
    rows = np.sort(np.concatenate([positive, chosen]))
    return Coded(train.table[rows], train.target[rows], [train.images[i] for i in rows], train.names[rows])
