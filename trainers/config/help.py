"""What ``python run.py --help`` prints, from the files in ``configs/`` and without composing them."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import yaml

from trainers.config.compose import CONFIGS, group_options

STAGES = {
    "check": "report everything that is wrong with a CSV file and its images, suggest a configuration",
    "plan": "tell what the run takes (parameters, disk, memory, time of every stage), from a few batches",
    "prepare": "pack the raw files into a store that loads fast",
    "impute": "train the method that recovers missing modalities, measure its recoveries",
    "fit": "train the model (DyMo: its backbone)",
    "gaussian": "estimate the class-wise Gaussian parameters of the backbone (DyMo)",
    "test": "evaluate every scenario of missing.test in one pass",
    "report": "gather all runs in tables, figures and report.html",
    "export": "write one folder with everything that predictions on new data need",
    "predict": "write a table of predictions for new rows, by this run or by predict.bundle",
}
EXAMPLES = {
    "DyMo on Digits, which need no download": "python run.py",
    "another method and data set, some stages": "python run.py model=MUSE dataset=SpokenDigits dataset.demo=true "
    "'stages=[prepare,fit,test]'",
    "two methods, three seeds": "python run.py --multirun model=DyMo,ModDrop seed=0,1,2 "
    "'missing.test=[none,random_0.8]'",
}
GROUPS = ("model", "dataset", "imputer", "missing", "schedule", "experiment", "trainer", "logger")
WIDTH = 110


def help_text(configs: Path = CONFIGS) -> str:
    """Purpose, stages and examples, then the options of every group."""
    lines = [
        "Train, test and compare classifiers that must work when modalities are missing.",
        "",
        "usage: python run.py [GROUP=OPTION] [KEY=VALUE] ...",
        "",
        "Stages run in this order, or those of stages=[...]; finished output is kept:",
        *(f"  {stage:9} {purpose}" for stage, purpose in STAGES.items()),
        "",
        "Examples:",
        *(f"  {command}\n      {purpose}" for purpose, command in EXAMPLES.items()),
        "",
        "Groups, with the default in brackets:",
        *(_options(group, configs) for group in GROUPS),
        "",
        "Keys are explained in configs/, starting at configs/config.yaml. Options of the program:",
        "  --cfg job       print the composed configuration instead of running it",
        "  --multirun, -m  run every combination of the values that commas separate",
        "  --hydra-help    print the other options, which are Hydra's",
    ]
    return "\n".join(lines)


def _options(group: str, configs: Path) -> str:
    """A group and its options, wrapped."""
    defaults: dict[str, Any] = {}
    for entry in yaml.safe_load((configs / "config.yaml").read_text())["defaults"]:
        defaults |= entry if isinstance(entry, dict) else {}
    chosen = defaults.get(group) or []
    # Of a study in configs/study only its name.
    names = dict.fromkeys(re.sub("/.*", "/...", name) for name in group_options(group, configs))
    marked = (f"[{name}]" if name in chosen or name == chosen else name for name in names)
    return textwrap.fill(", ".join(marked), WIDTH, initial_indent=f"  {group:11}", subsequent_indent=" " * 13)
