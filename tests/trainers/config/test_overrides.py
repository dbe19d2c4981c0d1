"""The command line: what ``--help`` prints, misspelled words, and that neither needs PyTorch."""

from __future__ import annotations

import math
import shlex
import subprocess
import sys

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from trainers.config.compose import CONFIGS, compose_config
from trainers.config.help import EXAMPLES, GROUPS, STAGES, help_text
from trainers.config.overrides import RENAMED_KEYS, check_overrides, swept_values
from utils.errors import UserError

# Runs run.py as a program with the arguments after it, and fails if anything slow was imported.
PROBE = """
import runpy, sys
try:
    runpy.run_path("run.py", run_name="__main__")
finally:
    slow = {"torch", "pytorch_lightning", "transformers", "numpy", "pandas"} & set(sys.modules)
    assert not slow, slow
"""


def run_without_torch(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROBE, *arguments]
    return subprocess.run(command, cwd=CONFIGS.parent, capture_output=True, text=True)


def test_help_opens_with_purpose_stages_and_examples_on_one_screen() -> None:
    process = run_without_torch("--help")
    assert process.returncode == 0 and process.stderr == ""
    assert process.stdout.strip() == help_text()
    opening, groups = process.stdout.split("Groups")
    assert len(opening.splitlines()) <= 24 and max(map(len, process.stdout.splitlines())) <= 120
    assert all(f"  {stage} " in opening for stage in STAGES)
    for group in GROUPS:
        assert all(f"{file.stem}" in groups for file in (CONFIGS / group).glob("*.yaml"))
    assert all(f"[{default}]" in groups for default in ("DyMo", "Digits", "MoPoE", "published", "csv"))


def test_help_may_be_cut_off() -> None:
    """As by ``python run.py --help | head -1``."""
    command = [sys.executable, "run.py", "--help"]
    with subprocess.Popen(command, cwd=CONFIGS.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 0


@pytest.mark.parametrize("override", ["+imputer.module.weights.m0=2", "+imputer.module.weights={m0: 2}"])
def test_a_mapping_without_keys_takes_those_of_the_user(override: str) -> None:
    check_overrides([override])
    assert compose_config(override).imputer.module.weights == {"m0": 2}


@pytest.mark.parametrize("command", EXAMPLES.values())
def test_the_examples_of_the_help_are_understood(command: str) -> None:
    program, script, *arguments = shlex.split(command)
    assert (program, script) == ("python", "run.py")
    check_overrides(arguments)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("dataset=Digitz", "dataset=Digitz: there is no such option; did you mean 'Digits'?"),
        (
            "imputer.module.weights.m0=2",
            "imputer.module.weights has no 'm0'; to add it, write +imputer.module.weights.m0=2",
        ),
        ("+imputer.module.weight.m0=2", "imputer.module has no 'weight'; did you mean 'weights'?"),
        ("dataset.monitr=null", "unknown key 'dataset.monitr': dataset has no 'monitr'; did you mean 'monitor'?"),
        ("hydra/launcher=jobib", "hydra/launcher=jobib: there is no such launcher, known are basic"),
        ("hydra/launcher=ray_aws", "for example pip install hydra-ray-launcher)"),
    ],
)
def test_a_misspelled_word_is_answered_without_pytorch(argument: str, message: str) -> None:
    process = run_without_torch(argument)
    assert process.returncode == 2 and message in process.stderr


@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
def test_a_renamed_key_is_named(old: str, new: str) -> None:
    with pytest.raises(UserError, match=rf"'{old}[\w.]*': dataset has no '\w+'; it is {new} now"):
        check_overrides([f"{old}.x=1"])


def test_help_lists_the_stages_that_run() -> None:
    from trainers import run

    assert set(STAGES) == {"check", "plan", *run.STAGES}


@pytest.mark.parametrize(
    ("arguments", "params", "values"),
    [
        (
            ["--multirun", "seed=0,1,2", "model=Late,MAP", "name=x"],
            {},
            {"seed": ["0", "1", "2"], "model": ["Late", "MAP"]},
        ),
        (["-m", "seed=range(0,3)"], {"model": "Late,MAP"}, {"model": ["Late", "MAP"], "seed": ["0", "1", "2"]}),
        (["-m", "model=Late"], {"model": "Late,MAP"}, {}),
        (["-m", "model=QMF,PDF"], {"model": "Late,MAP"}, {"model": ["QMF", "PDF"]}),
        (["-m", "missing.test=[none,whole_1]"], {}, {}),
    ],
)
def test_the_command_line_replaces_what_the_configuration_sweeps(
    arguments: list[str], params: dict[str, str], values: dict[str, list[str]]
) -> None:
    """As Hydra's sweeper does: these are the combinations that it runs."""
    assert swept_values(arguments, params) == values
    texts = [*(f"{key}={value}" for key, value in params.items()), *(a for a in arguments if "=" in a)]
    (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(texts), None)
    assert len(jobs) == math.prod(map(len, values.values()))
