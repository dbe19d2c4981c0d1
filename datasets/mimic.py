"""MIMIC-CXR-JPG films with MIMIC-IV clinical columns: 14 findings, some of them unlabelled (Resilient-VT, 2605.12031).

Two tables are read, in the layout of that work, below ``root`` or in it::

    tabular/classification/MIMIC/processed/MIMIC_clinical_data.csv   ID, 7 numbers, categories, 14 findings
    imaging/classification/MIMIC/MIMIC_img_data.csv                  ID, folder, img, 14 findings

A finding is 1, 0, or unlabelled: -1 (uncertain) and an empty cell (not mentioned) alike. The script that made these
tables is not published; :func:`link` makes them from the files that credentialed users download, by steps of our own:

1. films: frontal views (PA, AP) of ``mimic-cxr-2.0.0-metadata``; one a study, PA before AP, then the earliest.
2. findings: of the same study in ``mimic-cxr-2.0.0-chexpert``.
3. admission: the one of the patient that holds the time of the study, from arrival in the emergency department (or
   admission) to discharge; the latest of several. Studies outside every admission are left out.
4. one study an admission (or a patient), the first; or all.
5. age, sex: ``patients``; race: ``admissions``; vital signs: ``triage`` of the last emergency stay of the admission
   that began before the film.
6. flags: the commonest descriptions in ``drgcodes`` among the linked admissions, 1 or 0; empty for an admission without
   any code.

Every count is logged and kept in ``preparation.json``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from datasets.image_table import ImageTable
from datasets.readers.csv_files import check_columns, read_csv
from datasets.source import Source, file_digest, file_stats, sha256
from utils.errors import UserError
from utils.files import replacing

log = logging.getLogger(__name__)

FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
VITALS = ("temperature", "heartrate", "resprate", "o2sat", "sbp", "dbp")
NUMBERS = ("anchor_age", *VITALS)
PATIENT = "subject_id"  # divides the folds where the table has it
NO_INPUTS = ("ID", PATIENT, "study_id", "hadm_id", "stay_id")
CLINICAL, IMAGES = "MIMIC_clinical_data.csv", "MIMIC_img_data.csv"
PLACES = {CLINICAL: "tabular/classification/MIMIC/processed", IMAGES: "imaging/classification/MIMIC"}
STUDIES = ("first_of_admission", "first_of_patient", "all")
# Table of the raw files -> columns that are read.
RAW = {
    "mimic-cxr-2.0.0-metadata": ["dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime"],
    "mimic-cxr-2.0.0-chexpert": ["subject_id", "study_id", *FINDINGS],
    "patients": ["subject_id", "gender", "anchor_age"],
    "admissions": ["subject_id", "hadm_id", "admittime", "dischtime", "edregtime", "race"],
    "drgcodes": ["hadm_id", "description"],
    "edstays": ["subject_id", "hadm_id", "stay_id", "intime"],
    "triage": ["stay_id", *VITALS],
}
HOMES = {"cxr": list(RAW)[:2], "iv": list(RAW)[2:5], "ed": list(RAW)[5:]}


class MIMIC(ImageTable):
    """
    Args:
        root: folder of the two tables; with ``cxr``, ``iv`` and ``ed`` they are made there.
        demo: ``root`` holds demo data, whose counts are not those of the real ones.
        cxr, iv, ed: folders of MIMIC-CXR-JPG, MIMIC-IV and MIMIC-IV-ED, all or none.
        images: folder that ``folder/img`` start from; None = that of the table of images (with ``cxr`` that one).
        flags: number of DRG descriptions that become columns.
        studies: first_of_admission | first_of_patient | all.
        **kwargs: see :class:`ImageTable`; every column that is no number, label or number of a patient is a category.

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
        if self.raw and len(self.raw) < len(HOMES):
            absent = ", ".join(f"dataset.{key}" for key in HOMES if key not in self.raw)
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
            UserError: there are no tables, or columns are absent.
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
        places = [self.root / name, self.root / PLACES[name] / name]
        found = next((path for path in places if path.is_file()), None)
        if found is None:
            raise UserError(
                f"there is no {places[0]} (nor {places[1]}): set dataset.root to the folder of the tables, "
                "dataset.cxr, dataset.iv and dataset.ed to make them from PhysioNet's downloads, or dataset.demo=true"
            )
        return found

    def _make_tables(self) -> None:
        """Make the two tables in ``root`` unless they are there and of these files."""
        files = {name: raw_file(self.raw[key], name) for key, names in HOMES.items() for name in names}
        made = sha256([file_stats(files), self.flags, self.studies])
        about = self.root / "preparation.json"
        if about.is_file() and json.loads(about.read_text()).get("signature") == made:
            return
        if not about.is_file() and (self.root / CLINICAL).is_file():
            raise UserError(
                f"{self.root} holds tables that were not made here: name another folder in dataset.root, or leave out "
                "dataset.cxr, dataset.iv and dataset.ed to use them"
            )
        clinical, images, counts = link({n: read_raw(f, RAW[n]) for n, f in files.items()}, self.flags, self.studies)
        self.root.mkdir(parents=True, exist_ok=True)
        about.unlink(missing_ok=True)
        for name, frame in ((CLINICAL, clinical), (IMAGES, images)):
            with replacing(self.root / name) as file:
                frame.to_csv(file, index=False)
        with replacing(about) as file:
            file.write_text(json.dumps({"signature": made, "counts": counts}, indent=2) + "\n")

    def read_frame(self) -> pd.DataFrame:
        """The table with the column ``image``, empty where a row has none.

        Raises:
            UserError: an ID that stands twice, or labels that differ between the two tables.
        """
        clinical, images = read_csv(self.csv), read_csv(self.image_csv)
        check_columns(images, ["ID", "folder", "img"], self.image_csv)
        for frame, path in ((clinical, self.csv), (images, self.image_csv)):
            if (twice := frame["ID"].duplicated()).any():
                raise UserError(
                    f"{path}: {int(twice.sum())} IDs stand twice (the first is {frame['ID'][twice].iloc[0]}): keep one "
                    "row of each"
                )
        alone = ~images["ID"].isin(clinical["ID"])
        if alone.any():
            log.warning(
                "%s: %d of %d images have no row in %s and are left out (the first is %s)",
                self.image_csv,
                alone.sum(),
                len(images),
                self.csv.name,
                images["ID"][alone].iloc[0],
            )
        images = images[~alone].set_index("ID")
        place = (images["folder"] + "/" + images["img"]).str.strip("/").where(images["img"] != "", "")
        clinical["image"] = clinical["ID"].map(place).fillna("")
        shared = [finding for finding in FINDINGS if finding in images]
        both = clinical.set_index("ID").loc[images.index]
        numbers = [frame[shared].apply(pd.to_numeric, errors="coerce").replace(-1, np.nan) for frame in (both, images)]
        differ = ((numbers[0] != numbers[1]) & ~(numbers[0].isna() & numbers[1].isna())).any(axis=1)
        if differ.any():
            raise UserError(
                f"{self.image_csv}: {int(differ.sum())} of {len(differ)} rows have other labels than in "
                f"{self.csv.name} (the first is ID {differ.index[differ.argmax()]}): give tables of one preparation"
            )
        return clinical


def raw_file(folder: Path, name: str) -> Path:
    """A table of the downloads, packed or not, in the folder or one of its parts.

    Raises:
        UserError: it is not there.
    """
    for part in (folder, folder / "hosp", folder / "ed"):
        for suffix in (".csv.gz", ".csv"):
            if (part / f"{name}{suffix}").is_file():
                return part / f"{name}{suffix}"
    raise UserError(f"there is no {name}.csv.gz in {folder}: give the folder as PhysioNet has it")


def read_raw(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Some columns of a table of the downloads.

    Raises:
        UserError: it cannot be read, or lacks a column.
    """
    try:
        header = pd.read_csv(path, nrows=0)
        check_columns(header, columns, path)
        return pd.read_csv(path, usecols=list(columns), low_memory=False)
    except (OSError, EOFError, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}): download it again") from None


def link(raw: dict[str, pd.DataFrame], flags: int, studies: str) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """The clinical table, the table of images, and how many rows each step kept; see the module.

    Args:
        raw: the tables of RAW, by name.
        flags: number of DRG descriptions that become columns.
        studies: of STUDIES.

    Raises:
        UserError: nothing is left.
    """
    counts: dict[str, int] = {}

    def note(what: str, n: int) -> None:
        counts[what] = int(n)
        log.info("MIMIC: %s: %d", what, n)

    films = raw["mimic-cxr-2.0.0-metadata"]
    note("films", len(films))
    films = films[films["ViewPosition"].isin(["PA", "AP"])]
    note("frontal films", len(films))
    clock = films["StudyTime"].astype(float).astype(int).astype(str).str.zfill(6)
    films = films.assign(time=pd.to_datetime(films["StudyDate"].astype(str) + clock, format="%Y%m%d%H%M%S"))
    order = ["study_id", "ViewPosition", "time", "dicom_id"]
    films = films.sort_values(order, ascending=[True, False, True, True]).drop_duplicates("study_id")
    note("studies with a frontal film", len(films))
    labels = raw["mimic-cxr-2.0.0-chexpert"].drop(columns="subject_id")
    found = films.merge(labels, on="study_id", validate="one_to_one")
    note("of these with findings", len(found))

    admissions = raw["admissions"].copy()
    for column in ("admittime", "dischtime", "edregtime"):
        admissions[column] = pd.to_datetime(admissions[column])
    admissions["start"] = admissions[["admittime", "edregtime"]].min(axis=1)
    pairs = found[["study_id", "subject_id", "time"]].merge(admissions, on="subject_id")
    pairs = pairs[(pairs["start"] <= pairs["time"]) & (pairs["time"] <= pairs["dischtime"])]
    pairs = pairs.sort_values(["study_id", "start", "hadm_id"]).drop_duplicates("study_id", keep="last")
    found = found.merge(pairs[["study_id", "hadm_id", "race"]], on="study_id")
    note("of these during an admission", len(found))
    found = found.sort_values(["time", "study_id"])
    if studies != "all":
        found = found.drop_duplicates("hadm_id" if studies == "first_of_admission" else "subject_id")
    note(f"studies used ({studies})", len(found))
    if found.empty:
        raise UserError("no study lies within an admission: give the folders of one release of the data")
    note("patients", found["subject_id"].nunique())

    found = found.merge(raw["patients"], on="subject_id", how="left", validate="many_to_one")
    stays = raw["edstays"].dropna(subset=["hadm_id"]).astype({"hadm_id": "int64"})
    stays = stays.assign(intime=pd.to_datetime(stays["intime"]))[["hadm_id", "stay_id", "intime"]]
    stays = found[["study_id", "hadm_id", "time"]].merge(stays, on="hadm_id")
    stays = stays[stays["intime"] <= stays["time"]].sort_values(["study_id", "intime", "stay_id"])
    stays = stays.drop_duplicates("study_id", keep="last")[["study_id", "stay_id"]]
    found = found.merge(stays.merge(raw["triage"].drop_duplicates("stay_id"), on="stay_id"), on="study_id", how="left")
    note("of these with vital signs", int(found[list(VITALS)].notna().any(axis=1).sum()))

    codes = raw["drgcodes"].dropna()
    codes = codes.assign(description=codes["description"].str.strip()).drop_duplicates()
    codes = codes[codes["hadm_id"].isin(found["hadm_id"])]
    often = codes["description"].value_counts().rename_axis("description").reset_index(name="n")
    chosen = often.sort_values(["n", "description"], ascending=[False, True])["description"].head(flags).tolist()
    note("diagnosis-related groups", len(often))
    note("of these as columns", len(chosen))
    has = found["hadm_id"].isin(codes["hadm_id"])
    note("studies without any group", int((~has).sum()))
    table = pd.crosstab(codes["hadm_id"], codes["description"]).reindex(index=found["hadm_id"], columns=chosen)
    columns = [f"DRG {description}" for description in chosen]
    drg = pd.DataFrame(table.fillna(0).to_numpy(int), columns=columns).astype("Int64")
    drg[~has.to_numpy()] = pd.NA

    found = found.reset_index(drop=True).assign(ID=found["study_id"].to_numpy())
    order = ["ID", PATIENT, "gender", "anchor_age", "race", *VITALS]
    clinical = pd.concat([found[order], drg, found[list(FINDINGS)]], axis=1)
    subject, study = found["subject_id"].astype(str), found["study_id"].astype(str)
    folder = "files/p" + subject.str[:2] + "/p" + subject + "/s" + study
    images = pd.DataFrame({"ID": found["ID"], "folder": folder, "img": found["dicom_id"] + ".jpg"})
    for finding in FINDINGS:
        values = found[finding]
        note(f"{finding}: positive", int((values == 1).sum()))
        note(f"{finding}: negative", int((values == 0).sum()))
    note("findings unlabelled, of all cells", int(np.sum(~found[list(FINDINGS)].isin([0, 1]).to_numpy())))
    return clinical, pd.concat([images, found[list(FINDINGS)]], axis=1), counts
