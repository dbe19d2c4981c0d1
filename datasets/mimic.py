"""MIMIC-CXR-JPG films with MIMIC-IV clinical columns: 14 findings, some of them unlabelled (Resilient-VT, 2605.12031).

Two tables are read, in ``root`` or, in the layout of that work, below it::

    tabular/classification/MIMIC/processed/MIMIC_clinical_data.csv   ID, 7 numbers, categories, 14 findings
    imaging/classification/MIMIC/MIMIC_img_data.csv                  ID, folder, img, 14 findings

A finding is 1, 0, or unlabelled: -1 (uncertain) or an empty cell (not mentioned). The script that made these tables is
not published; :mod:`datasets.mimic_linkage` makes them from the files that credentialed users download.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from datasets.image_table import ImageTable
from datasets.mimic_linkage import FINDINGS, PATIENT, RAW, STUDIES, TABLES_OF, VITALS, link, raw_file, read_raw
from datasets.readers.csv_files import check_columns, read_csv
from datasets.source import Source, file_digest, file_stats, sha256
from utils.errors import UserError
from utils.files import replacing

log = logging.getLogger(__name__)

NUMBERS = ("anchor_age", *VITALS)
NO_INPUTS = ("ID", PATIENT, "study_id", "hadm_id", "stay_id")
CLINICAL, IMAGES = "MIMIC_clinical_data.csv", "MIMIC_img_data.csv"
FOLDERS = {CLINICAL: "tabular/classification/MIMIC/processed", IMAGES: "imaging/classification/MIMIC"}  # below root


class MIMIC(ImageTable):
    """MIMIC films and clinical columns. Folds are divided by patient where the table names the patients.

    Args:
        root: folder of the two tables; with ``cxr``, ``iv`` and ``ed`` they are made there.
        demo: ``root`` holds demo data, whose counts differ from the published ones.
        cxr, iv, ed: folders of MIMIC-CXR-JPG, MIMIC-IV and MIMIC-IV-ED, all or none.
        images: folder that ``folder/img`` start from; None = ``cxr``, or else that of the table of images.
        flags: number of DRG descriptions that become columns.
        studies: first_of_admission | first_of_patient | all.
        **kwargs: see :class:`ImageTable`; every column that is no number, label or identifier is categorical.

    Raises:
        UserError: an impossible option.
    """

    paths = ("root", "cxr", "iv", "ed")
    resample = Image.Resampling.BICUBIC

    def __init__(
        self,
        root: str,
        *,
        demo: bool = False,
        cxr: str | None = None,
        iv: str | None = None,
        ed: str | None = None,
        images: str | None = None,
        flags: int = 372,
        studies: str = "first_of_admission",
        **kwargs: Any,
    ) -> None:
        self.root = Path(root)
        self.demo, self.studies, self.flags = demo, studies, flags
        self.raw = {key: Path(folder) for key, folder in (("cxr", cxr), ("iv", iv), ("ed", ed)) if folder}
        if studies not in STUDIES:
            raise UserError(f"dataset.studies={studies}: must be one of {', '.join(STUDIES)}")
        if self.raw and len(self.raw) < len(TABLES_OF):
            absent = ", ".join(f"dataset.{key}" for key in TABLES_OF if key not in self.raw)
            raise UserError(f"the tables are made from MIMIC-CXR-JPG, MIMIC-IV and MIMIC-IV-ED together: give {absent}")
        if flags < 0:
            raise UserError(f"dataset.flags={flags}: must be a number of columns")
        super().__init__(
            name="MIMIC",
            csv=str(self.root / CLINICAL),
            image="image",
            label=list(FINDINGS),
            continuous=NUMBERS,
            **kwargs,
        )
        self.images_given = Path(images) if images else self.raw.get("cxr")

    def find_source(self) -> Source:
        """
        Raises:
            UserError: the tables do not exist, or lack columns.
        """
        if self.raw and not self.demo:
            self._make_tables()
        self.csv, self.image_csv = (self._table(name) for name in (CLINICAL, IMAGES))
        self.images = self.images_given or self.image_csv.parent
        frame = read_csv(self.csv, header_only=True)
        header = list(frame.columns)
        check_columns(frame, ["ID", *NUMBERS, *FINDINGS], self.csv)
        known = {*NO_INPUTS, *NUMBERS, *FINDINGS}
        self.columns.categorical = {column: None for column in header if column not in known}
        if self.row_splits.group is None and PATIENT in header:
            self.row_splits.group = PATIENT
        if self.row_splits.group is None:
            log.warning(
                "%s has no column %s: films of one patient may be in several splits, and scores come out too high; "
                "add it to divide by patient",
                self.csv,
                PATIENT,
            )
        source = super().find_source()
        signature = sha256([source.signature, file_digest(self.image_csv)])
        return replace(source, kind="stand-in" if self.demo else "csv", signature=signature)

    def _table(self, name: str) -> Path:
        candidates = [self.root / name, self.root / FOLDERS[name] / name]
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            raise UserError(
                f"there is no {candidates[0]} (nor {candidates[1]}): set dataset.root to the folder of the tables, "
                "dataset.cxr, dataset.iv and dataset.ed to make them from PhysioNet's downloads, or dataset.demo=true"
            )
        return path

    def _make_tables(self) -> None:
        """Make the two tables in ``root``, unless they exist and were made from these very files."""
        files = {name: raw_file(self.raw[key], name) for key, names in TABLES_OF.items() for name in names}
        signature = sha256([file_stats(files), self.flags, self.studies])
        about = self.root / "preparation.json"
        if about.is_file() and json.loads(about.read_text()).get("signature") == signature:
            return
        if not about.is_file() and (self.root / CLINICAL).is_file():
            raise UserError(
                f"{self.root} holds tables of another origin: name another folder in dataset.root, or leave out "
                "dataset.cxr, dataset.iv and dataset.ed to use them"
            )
        raw = {name: read_raw(file, RAW[name]) for name, file in files.items()}
        clinical, images, counts = link(raw, self.flags, self.studies)
        self.root.mkdir(parents=True, exist_ok=True)
        about.unlink(missing_ok=True)
        for name, frame in ((CLINICAL, clinical), (IMAGES, images)):
            with replacing(self.root / name) as file:
                frame.to_csv(file, index=False)
        with replacing(about) as file:
            file.write_text(json.dumps({"signature": signature, "counts": counts}, indent=2) + "\n")

    def read_frame(self) -> pd.DataFrame:
        """The table with the column ``image``, empty where a row has none.

        Raises:
            UserError: a repeated ID, or labels that differ between the two tables.
        """
        clinical, images = read_csv(self.csv), read_csv(self.image_csv)
        check_columns(images, ["ID", "folder", "img"], self.image_csv)
        for frame, path in ((clinical, self.csv), (images, self.image_csv)):
            if (repeated := frame["ID"].duplicated()).any():
                raise UserError(
                    f"{path}: {int(repeated.sum())} IDs stand twice (the first is {frame['ID'][repeated].iloc[0]}): "
                    "keep one row of each"
                )
        unpaired = ~images["ID"].isin(clinical["ID"])
        if unpaired.any():
            log.warning(
                "%s: %d of %d images have no row in %s and are left out (the first is %s)",
                self.image_csv,
                unpaired.sum(),
                len(images),
                self.csv.name,
                images["ID"][unpaired].iloc[0],
            )
        images = images[~unpaired].set_index("ID")
        file = (images["folder"] + "/" + images["img"]).str.strip("/").where(images["img"] != "", "")
        clinical["image"] = clinical["ID"].map(file).fillna("")
        shared = [finding for finding in FINDINGS if finding in images]
        frames = (clinical.set_index("ID").loc[images.index], images)
        one, other = (frame[shared].apply(pd.to_numeric, errors="coerce").replace(-1, np.nan) for frame in frames)
        differ = ((one != other) & ~(one.isna() & other.isna())).any(axis=1)
        if differ.any():
            raise UserError(
                f"{self.image_csv}: {int(differ.sum())} of {len(differ)} rows have other labels than in "
                f"{self.csv.name} (the first is ID {differ.index[differ.argmax()]}): give tables of one preparation"
            )
        return clinical
