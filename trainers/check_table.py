"""Stage check: report everything that is wrong with a user's table, and suggest a configuration where there is none.

Runs before everything else, and needs no torch for an image with a table or text.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from datasets.inspection.check import check_configured, check_unknown
from datasets.inspection.layout import Layout, layout_of
from datasets.inspection.report import Report
from datasets.inspection.suggestion import yaml_of
from trainers.config.compose import CONFIGS
from utils.errors import UserError
from utils.files import replacing

log = logging.getLogger(__name__)
LOG_LEVELS = {"error": logging.ERROR, "warning": logging.WARNING, "note": logging.INFO, "summary": logging.INFO}


def check_table(cfg: DictConfig) -> None:
    """Check ``check.csv``, or the table of ``cfg.dataset``; log the findings and write ``check.md`` and ``check.json``.

    Only the first of several processes does.

    Raises:
        UserError: there is no table, or a bad option.
        SystemExit: status 1, the table has errors.
    """
    if any(os.environ.get(rank, "0") != "0" for rank in ("LOCAL_RANK", "SLURM_PROCID")):
        return
    report = check_unknown(asked_layout(cfg)) if cfg.check.csv else check_configured(configured_layout(cfg))
    for level, line in report.lines():
        log.log(LOG_LEVELS[level], line)
    folder = Path(cfg.paths.output) / report.layout.name / "check"
    for file, text in (("check.md", report.markdown()), ("check.json", report.json())):
        with replacing(folder / file) as temporary:
            temporary.write_text(text)
    log.info("check: report in %s", folder / "check.md")
    if report.suggestion is not None:
        _write_suggestion(cfg, report, report.suggestion)
    if report.of_level("error"):
        raise SystemExit(1)


def configured_layout(cfg: DictConfig) -> Layout:
    """The layout of ``cfg.dataset``.

    Raises:
        UserError: the data set is not read from one CSV file, or has an impossible modality.
    """
    is_mixture = cfg.dataset.module._target_ == "datasets.from_csv.FromCSV"
    absent = {"csv", "label", *(() if is_mixture else ("image",))} - set(cfg.dataset)
    if absent or not cfg.dataset.csv:
        raise UserError(
            f"stage check reads one CSV file, and dataset={cfg.dataset.name} names none: give check.csv=FILE, or the "
            "name of your own data set"
        )
    settings = OmegaConf.to_container(cfg.dataset, resolve=True)
    assert isinstance(settings, dict)
    if is_mixture:
        from datasets.inspection.mixture import mixture_layout  # imports torch

        return mixture_layout({str(key): value for key, value in settings.items()})
    return layout_of({str(key): value for key, value in settings.items()})


def asked_layout(cfg: DictConfig) -> Layout:
    """What ``cfg.check`` says of a table without a configuration.

    Raises:
        UserError: a name that cannot be that of a file, or no folder of images.
    """
    asked = cfg.check
    name = str(asked.name or "".join(word.capitalize() for word in re.split(r"\W|_", Path(asked.csv).stem)))
    if not re.fullmatch(r"[A-Za-z][\w-]*", name):
        raise UserError(f"check.name={name}: must be letters, digits, - and _, and begin with a letter")
    csv = Path(asked.csv)
    images = Path(asked.images) if asked.images else csv.parent
    if not images.is_dir():
        raise UserError(f"check.images={images}: there is no such folder")
    labels = asked.label if OmegaConf.is_list(asked.label) else [asked.label] if asked.label else []
    return Layout(name, csv, images, asked.image, tuple(map(str, labels)), group=asked.group)


def _write_suggestion(cfg: DictConfig, report: Report, suggestion: Layout) -> None:
    """Write the suggested configuration, unless another file is in its place."""
    file = Path(cfg.check.output or CONFIGS / "dataset" / f"{suggestion.name}.yaml")
    text = yaml_of(suggestion, report.rejected(), Path(cfg.paths.data))
    if file.exists() and file.read_text() != text and not cfg.overwrite:
        log.warning(
            "check: %s exists and differs from the suggestion: not written; set check.output=FILE, or overwrite=true",
            file,
        )
        return
    with replacing(file) as temporary:
        temporary.write_text(text)
    log.info("check: suggested %s; correct it, then: python run.py dataset=%s stages=[check]", file, suggestion.name)
