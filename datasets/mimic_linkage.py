"""The clinical table and the table of images of MIMIC, linked from the files of PhysioNet by steps of our own.

1. films: frontal views (PA, AP) of ``mimic-cxr-2.0.0-metadata``; one per study, PA before AP, then the earliest.
2. findings: of the same study in ``mimic-cxr-2.0.0-chexpert``.
3. admission: the latest admission of the patient that includes the time of the study, from arrival in the emergency
   department (or admission) to discharge. Studies outside every admission are left out.
4. studies: the first per admission (or per patient); or all.
5. age, sex: ``patients``; race: ``admissions``; vital signs: ``triage`` of the last emergency stay of the admission
   that began before the film.
6. flags: the most common descriptions in ``drgcodes`` among the linked admissions, 1 or 0; empty for an admission
   without any code.

Every count is logged and kept in ``preparation.json``.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from datasets.readers.csv_files import check_columns
from utils.errors import UserError, first_line

log = logging.getLogger(__name__)

Note = Callable[[str, int], None]  # takes a step and the number of rows after it

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
PATIENT = "subject_id"
STUDIES = ("first_of_admission", "first_of_patient", "all")
# Raw table -> columns that are read.
RAW = {
    "mimic-cxr-2.0.0-metadata": ["dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime"],
    "mimic-cxr-2.0.0-chexpert": ["subject_id", "study_id", *FINDINGS],
    "patients": ["subject_id", "gender", "anchor_age"],
    "admissions": ["subject_id", "hadm_id", "admittime", "dischtime", "edregtime", "race"],
    "drgcodes": ["hadm_id", "description"],
    "edstays": ["subject_id", "hadm_id", "stay_id", "intime"],
    "triage": ["stay_id", *VITALS],
}
TABLES_OF = {"cxr": list(RAW)[:2], "iv": list(RAW)[2:5], "ed": list(RAW)[5:]}  # by download


def raw_file(folder: Path, name: str) -> Path:
    """A table of the downloads, compressed or not, in the folder or its part ``hosp`` or ``ed``.

    Raises:
        UserError: the file does not exist.
    """
    for part in (folder, folder / "hosp", folder / "ed"):
        for suffix in (".csv.gz", ".csv"):
            if (part / f"{name}{suffix}").is_file():
                return part / f"{name}{suffix}"
    raise UserError(f"there is no {name}.csv.gz in {folder}: give the folder as PhysioNet has it")


def read_raw(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Some columns of a table of the downloads.

    Raises:
        UserError: the file cannot be read, or lacks a column.
    """
    try:
        header = pd.read_csv(path, nrows=0)
        check_columns(header, columns, path)
        return pd.read_csv(path, usecols=list(columns), low_memory=False)
    except (
        OSError,
        EOFError,
        zlib.error,
        pd.errors.ParserError,
        pd.errors.EmptyDataError,
        UnicodeDecodeError,
    ) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): download it again") from None


def link(raw: dict[str, pd.DataFrame], flags: int, studies: str) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Link the raw tables, see the module.

    Args:
        raw: the tables of RAW, by name.
        flags: number of DRG descriptions that become columns.
        studies: one of STUDIES.

    Returns:
        The clinical table, the table of images, and the number of rows after each step.

    Raises:
        UserError: no study is left.
    """
    counts: dict[str, int] = {}

    def note(step: str, n: int) -> None:
        counts[step] = int(n)
        log.info("MIMIC: %s: %d", step, n)

    rows = _films_with_findings(raw, note)
    rows = _during_admissions(rows, raw["admissions"], note).sort_values(["time", "study_id"])
    if studies != "all":
        rows = rows.drop_duplicates("hadm_id" if studies == "first_of_admission" else "subject_id")
    note(f"studies used ({studies})", len(rows))
    if rows.empty:
        raise UserError("no study lies within an admission: give the folders of one release of the data")
    note("patients", rows["subject_id"].nunique())
    rows = rows.merge(raw["patients"], on="subject_id", how="left", validate="many_to_one")
    rows = _with_vital_signs(rows, raw, note)
    drg = _drg_columns(rows, raw["drgcodes"].dropna(), flags, note)

    rows = rows.reset_index(drop=True).assign(ID=rows["study_id"].to_numpy())
    order = ["ID", PATIENT, "gender", "anchor_age", "race", *VITALS]
    clinical = pd.concat([rows[order], drg, rows[list(FINDINGS)]], axis=1)
    subject, study = rows["subject_id"].astype(str), rows["study_id"].astype(str)
    folder = "files/p" + subject.str[:2] + "/p" + subject + "/s" + study
    images = pd.DataFrame({"ID": rows["ID"], "folder": folder, "img": rows["dicom_id"] + ".jpg"})
    for finding in FINDINGS:
        note(f"{finding}: positive", int((rows[finding] == 1).sum()))
        note(f"{finding}: negative", int((rows[finding] == 0).sum()))
    note("findings unlabelled, of all cells", int(np.sum(~rows[list(FINDINGS)].isin([0, 1]).to_numpy())))
    return clinical, pd.concat([images, rows[list(FINDINGS)]], axis=1), counts


def _films_with_findings(raw: dict[str, pd.DataFrame], note: Note) -> pd.DataFrame:
    """Steps 1 and 2: one frontal film per study, with its findings."""
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
    rows = films.merge(labels, on="study_id", validate="one_to_one")
    note("of these with findings", len(rows))
    return rows


def _during_admissions(rows: pd.DataFrame, admissions: pd.DataFrame, note: Note) -> pd.DataFrame:
    """Step 3: the studies within an admission of their patient, with its number and race."""
    admissions = admissions.copy()
    for column in ("admittime", "dischtime", "edregtime"):
        admissions[column] = pd.to_datetime(admissions[column])
    admissions["start"] = admissions[["admittime", "edregtime"]].min(axis=1)
    pairs = rows[["study_id", "subject_id", "time"]].merge(admissions, on="subject_id")
    pairs = pairs[(pairs["start"] <= pairs["time"]) & (pairs["time"] <= pairs["dischtime"])]
    pairs = pairs.sort_values(["study_id", "start", "hadm_id"]).drop_duplicates("study_id", keep="last")
    rows = rows.merge(pairs[["study_id", "hadm_id", "race"]], on="study_id")
    note("of these during an admission", len(rows))
    return rows


def _with_vital_signs(rows: pd.DataFrame, raw: dict[str, pd.DataFrame], note: Note) -> pd.DataFrame:
    """Step 5: the vital signs of the last emergency stay before the film."""
    stays = raw["edstays"].dropna(subset=["hadm_id"]).astype({"hadm_id": "int64"})
    stays = stays.assign(intime=pd.to_datetime(stays["intime"]))[["hadm_id", "stay_id", "intime"]]
    stays = rows[["study_id", "hadm_id", "time"]].merge(stays, on="hadm_id")
    stays = stays[stays["intime"] <= stays["time"]].sort_values(["study_id", "intime", "stay_id"])
    stays = stays.drop_duplicates("study_id", keep="last")[["study_id", "stay_id"]]
    rows = rows.merge(stays.merge(raw["triage"].drop_duplicates("stay_id"), on="stay_id"), on="study_id", how="left")
    note("of these with vital signs", int(rows[list(VITALS)].notna().any(axis=1).sum()))
    return rows


def _drg_columns(rows: pd.DataFrame, codes: pd.DataFrame, flags: int, note: Note) -> pd.DataFrame:
    """Step 6: one column of 1 and 0 per DRG description, empty for admissions without any code."""
    codes = codes.assign(description=codes["description"].str.strip()).drop_duplicates()
    codes = codes[codes["hadm_id"].isin(rows["hadm_id"])]
    frequency = codes["description"].value_counts().rename_axis("description").reset_index(name="n")
    chosen = frequency.sort_values(["n", "description"], ascending=[False, True])["description"].head(flags).tolist()
    note("diagnosis-related groups", len(frequency))
    note("of these as columns", len(chosen))
    has_codes = rows["hadm_id"].isin(codes["hadm_id"])
    note("studies without any group", int((~has_codes).sum()))
    table = pd.crosstab(codes["hadm_id"], codes["description"]).reindex(index=rows["hadm_id"], columns=chosen)
    columns = [f"DRG {description}" for description in chosen]
    drg = pd.DataFrame(table.fillna(0).to_numpy(int), columns=columns).astype("Int64")
    drg[~has_codes.to_numpy()] = pd.NA
    return drg
