"""README and documentation: pages are in the menu, links resolve, examples work, every command is composed or run.

The site itself is built by ``job_scripts/docs.sh``; nothing here needs its packages.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from datasets import noise_operators
from datasets.batch import Batch, Modality
from datasets.missingness.base import Rows
from datasets.missingness.parse import EXAMPLES, SCENARIOS, parse_scenario
from models.encoders.vector import VectorEncoder
from trainers import figures
from trainers.config.compose import compose_config
from trainers.config.imputers import build_imputer
from trainers.config.overrides import check_overrides
from trainers.config.validate import validate
from trainers.loading import Run

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
MENU = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
COMMAND = re.compile(r"`((?:python |bash job_scripts/)[^`]+)`")
# Words in capitals that stand for something of the user's.
PLACEHOLDERS = ("FOLDER", "DATA", "MNIST", "SVHN", "RECORDINGS", "VOCABULARY")
NOT_RUN = ("source .venv/bin/activate",)


def name_of(page: Path | str) -> str:
    return page if isinstance(page, str) else str(page.relative_to(ROOT))


@cache
def text_of(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)


@cache
def anchors_of(page: Path) -> frozenset[str]:
    """Anchors of the headings, as GitHub and Python-Markdown make them."""
    titles = re.findall(r"^#{1,6} (.+)$", text_of(page), flags=re.M)
    return frozenset(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles)


def menu_pages(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from menu_pages(child)


# ------------------------------------------------------------------------------------------------------- menu and links


def test_every_page_is_in_the_menu_once() -> None:
    assert sorted(menu_pages(MENU["nav"])) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def link_problems(page: Path, text: str) -> list[str]:
    """Files and anchors that do not exist, and links from a page of the site to what the site does not contain."""
    problems = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        if not file.is_file():
            problems.append(f"{link}: no such file")
        elif page.is_relative_to(DOCS) and not file.is_relative_to(DOCS):
            problems.append(f"{link}: outside docs/")
        elif anchor and anchor not in anchors_of(file):
            problems.append(f"{link}: no such heading")
    return problems


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    problems = link_problems(page, text_of(page))
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ("absent.md", "no such file"),
        ("your-data.md#absent", "no such heading"),
        ("#absent", "no such heading"),
        ("../README.md", "outside docs/"),
        ("your-data.md#any-other-data", None),
        ("https://arxiv.org", None),
    ],
)
def test_wrong_links_are_found(link: str, problem: str | None) -> None:
    problems = link_problems(DOCS / "missingness.md", f"See [this]({link}).")
    assert problems == ([] if problem is None else [f"{link}: {problem}"])


def test_images_are_small_and_used() -> None:
    text = "".join(page.read_text() for page in PAGES)
    for image in (DOCS / "images").iterdir():
        assert image.stat().st_size < 200_000
        assert f"images/{image.name}" in text
    for image in (DOCS / "results").glob("*.png"):
        assert image.stat().st_size < 200_000
        assert f"]({image.name})" in text, "figures of studies are embedded"


def test_packages_of_the_site_are_pinned() -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["docs"]
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {re.split(r"[\[<>=]", requirement)[0] for requirement in extra} - {"ruff"} <= pinned
    assert "/site/" in (ROOT / ".gitignore").read_text().splitlines()


# ------------------------------------------------------------------------------------------------------------- commands


def commands(page: Path) -> list[str]:
    """Commands in Bash blocks and in code spans, each once."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(), flags=re.S | re.M)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    spans = [re.sub(r"\s+", " ", span) for span in COMMAND.findall(text_of(page))]
    return list(dict.fromkeys(re.sub(r"\s+#.*", "", line).strip() for line in [*lines, *spans] if line.strip()))


COMMANDS = [(page, command) for page in PAGES for command in commands(page) if command not in NOT_RUN]


def test_commands_are_noticed() -> None:
    assert len(COMMANDS) > 80
    assert {"README.md", "CONTRIBUTING.md", "docs/your-data.md"} <= {name_of(page) for page, _ in COMMANDS}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The job scripts with programs that note what they are called with; the configurations with those of the pages."""
    root = tmp_path_factory.mktemp("docs")
    shutil.copytree(ROOT / "job_scripts", root / "job_scripts")
    (root / "job_scripts" / "_environment.sh").write_text('die() { echo "$*" >&2; exit 1; }\n')
    (root / "bin").mkdir()
    (root / "run.py").touch()
    (root / ".venv").mkdir()
    (root / ".venv" / "bin").symlink_to(root / "bin")
    for program in ("python", "ruff", "mypy", "pytest", "sbatch", "srun"):
        file = root / "bin" / program
        file.write_text(f'#!/bin/sh\n[ $# = 0 ] || printf "%s\\n" "{program}" "$@" "" >>"{root}/log"\n')
        file.chmod(0o755)
    for placeholder in PLACEHOLDERS:
        (root / placeholder).mkdir()
    shutil.copytree(ROOT / "configs", root / "configs")
    for path, block in examples("yaml"):
        (root / path).write_text(block)
    return SimpleNamespace(root=root, configs=root / "configs")


def examples(language: str) -> list[tuple[str, str]]:
    """Path and content of the files that pages show: named in the line before the block."""
    pattern = rf"`((?:configs|models|datasets)/[\w/]+\.\w+)`[^`\n]*:\n\n```{language}\n(.*?)^```"
    return [example for page in PAGES for example in re.findall(pattern, page.read_text(), flags=re.S | re.M)]


def first_values(arguments: Sequence[str]) -> list[str]:
    """Overrides with the first value of each sweep; options of Hydra, and sweepers that are not installed, are left
    out."""
    left_out = ("--", "hydra/sweeper=optuna", "hydra.sweeper.direction", "hydra.sweeper.n_trials")
    texts = [argument for argument in arguments if not argument.startswith(left_out)]

    def first(override: Override) -> str:
        if not override.is_sweep_override():
            return str(override.input_line)
        value = override.value().start if override.is_interval_sweep() else next(override.sweep_string_iterator())
        return f"{override.get_key_element()}={value}"

    return [first(override) for override in OverridesParser.create().parse_overrides(texts)]


@cache
def check_run(overrides: tuple[str, ...], configs: Path) -> None:
    """The overrides of ``run.py`` name options and keys that exist."""
    check_overrides(first_values(overrides), configs)


def check_python(arguments: list[str], configs: Path) -> None:
    """``python ARGUMENTS``: an entry point of the project, with overrides that compose."""
    if arguments[0] == "run.py":
        check_run(tuple(a for a in arguments[1:] if a != "job"), configs)
        return
    flag, module, *others = arguments
    assert flag == "-m"
    if module == "mkdocs":
        return
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"there is no module {module}"
    if module == "trainers.figures":
        assert hasattr(figures, others[0]), f"trainers.figures draws no {others[0]}"
    check_run(tuple(a for a in others if re.match(r"[\w.]+=", a)), configs)


def check_docker(arguments: list[str], configs: Path) -> None:
    """``docker build`` with arguments that the Dockerfile has; ``docker run`` with overrides behind the name of the
    image."""
    if arguments[0] == "build":
        given = {value.partition("=")[0] for flag, value in pairwise(arguments) if flag == "--build-arg"}
        assert given <= set(re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
        return
    assert arguments[0] == "run"
    image = next(i for i, argument in enumerate(arguments) if re.fullmatch(r"dymo-bench(:\w+)?", argument))
    check_python(["run.py", *arguments[image + 1 :]], configs)


def run_script(command: list[str], machine: SimpleNamespace) -> list[list[str]]:
    """Run a job script; what it calls, program first."""
    log = machine.root / "log"
    log.unlink(missing_ok=True)
    environment = {**os.environ, "PATH": f"{machine.root / 'bin'}:{os.environ['PATH']}"}
    process = subprocess.run(command, cwd=machine.root, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return [call.splitlines() for call in log.read_text().split("\n\n") if call.strip()]


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=name_of)
def test_a_command_is_understood(page: Path, command: str, machine: SimpleNamespace) -> None:
    program, *arguments = shlex.split(command)
    while "=" in program:  # settings of the environment
        program, *arguments = arguments
    if program == "python" or program == ".venv/bin/python":
        check_python(arguments, machine.configs)
        return
    if program == "docker":
        check_docker(arguments, machine.configs)
        return
    if program == "pip":  # wheels of packages that have a pinned version
        assert arguments[0] == "wheel" and "constraints.txt" in arguments
        names = [
            argument
            for argument in arguments[1:]
            if argument[0] != "-" and argument not in ("wheels", "constraints.txt")
        ]
        pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
        assert names and set(names) <= pinned
        return
    job = []
    if program == "sbatch":  # the script with what SLURM sets for these options
        names = {"--nodes": "SLURM_NNODES", "--ntasks-per-node": "SLURM_NTASKS_PER_NODE"}
        script = next(i for i, argument in enumerate(arguments) if not argument.startswith("-"))
        options = [argument.partition("=") for argument in arguments[:script]]
        job = ["env", *(f"{names[key]}={value}" for key, _, value in options if key in names)]
        program, arguments = "bash", arguments[script:]
    assert program == "bash" and (ROOT / arguments[0]).is_file(), "how is this command to be checked?"
    if page.parent.name == "results" and any(a == "..." or "|" in a for a in arguments):
        return  # an abbreviation of several commands
    calls = run_script([*job, program, *arguments], machine)
    assert calls
    runs = [call[call.index("python") + 1 :] for call in calls if call[0] in ("python", "srun")]
    for run in [*runs[:1], *runs[-1:], *(runs if job else ())]:  # the scripts have tests of their own
        check_python(run, machine.configs)


def test_a_wrong_command_is_found(machine: SimpleNamespace) -> None:
    for command in (
        "python run.py model=MUSEE",
        "python run.py 'missing.tset=[none]'",
        "python -m trainers.figure selection a.png RUN",
        "python -m trainers.figures selektion a.png RUN",
        "bash job_scripts/baselines.sh",
        "bash job_scripts/quickstart.sh model=MUSEE",
        "bash job_scripts/absent.sh",
    ):
        with pytest.raises(Exception, match=r"MUSEE|tset|figure|usage|how is this"):
            test_a_command_is_understood(ROOT / "README.md", command, machine)


# ------------------------------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_import_what_exists(page: Path) -> None:
    for block in re.findall(r"^ *```python\n(.*?)^ *```", page.read_text(), flags=re.S | re.M):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


def test_names_of_the_api_page_exist_and_are_described() -> None:
    names = re.findall(r"^::: ([\w.]+)$", (DOCS / "api.md").read_text(), flags=re.M)
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert getattr(importlib.import_module(module), attribute).__doc__, name
    described = {name.rpartition(".")[2] for name in names}
    assert {"Modality", "Batch", "MultimodalDataModule", "IncompleteClassifier", "Prediction", "Imputer"} <= described
    assert {"Scenario", "SelectionRule", "open_run", "classification_metrics"} <= described


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """The Python files that the pages show, by the dotted names that they would have."""
    modules = {}
    with pytest.MonkeyPatch.context() as patch:
        for path, block in examples("python"):
            name = path.removesuffix(".py").replace("/", ".")
            modules[name] = ModuleType(name)
            patch.setitem(sys.modules, name, modules[name])  # dataclasses look up their module
            exec(compile(block, path, "exec"), modules[name].__dict__)
        yield modules


@pytest.fixture(scope="module")
def classes(modules: dict[str, ModuleType]) -> dict[str, Any]:
    """Their classes."""
    return {name: value for module in modules.values() for name, value in vars(module).items()}


def test_the_configurations_of_the_page_build_its_classes(
    modules: dict[str, ModuleType], machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(importlib.import_module(parent), child, module, raising=False)
    cfg = compose_config("model=Mine", "dataset=Digits", "imputer=Constant", configs=machine.configs)
    validate(cfg)
    assert type(Run(cfg).build()).__name__ == "Mine"
    assert type(build_imputer(cfg, Run(cfg).data)).__name__ == "Constant"


def test_the_classifier_of_the_page_works(classes: dict[str, Any]) -> None:
    modalities = [Modality("a", "table", (3,)), Modality("b", "table", (4,))]
    encoders = {"a": VectorEncoder([], 3, width=8), "b": VectorEncoder([], 4, width=8)}
    torch.manual_seed(0)
    model = classes["Mine"](modalities, 5, encoders).eval()
    missing = torch.tensor([[False, False], [True, False], [False, True]])
    batch = Batch({"a": torch.randn(3, 3), "b": torch.randn(3, 4)}, missing, torch.tensor([0, 1, 2]), torch.arange(3))
    logits = model(batch).logits
    vectors = [encoders[name](batch.inputs[name])[:, 0] for name in ("a", "b")]
    expected = torch.stack([(vectors[0][0] + vectors[1][0]) / 2, vectors[1][1], vectors[0][2]])
    torch.testing.assert_close(logits, model.head(expected))
    other = batch.replace(inputs={name: x.clone() for name, x in batch.inputs.items()})
    other.inputs["a"][1], other.inputs["b"][2] = torch.nan, 1e9
    assert torch.equal(model(other).logits, logits), "missing content has no influence"
    assert model.loss(model(batch), batch)["loss"].isfinite()


def test_the_recovery_method_of_the_page_works(classes: dict[str, Any]) -> None:
    images = torch.rand(2, 3, 4, 4)
    missing = torch.tensor([[False], [True]])
    recovered = classes["Constant"]([Modality("m0", "image", (3, 4, 4))], 0.25).impute({"m0": images}, missing)["m0"]
    assert torch.equal(recovered[0], images[0]) and (recovered[1] == 0.25).all()


def test_the_scenario_of_the_page_works(classes: dict[str, Any]) -> None:
    scenario = classes["Failure"].parse("failure_1_0.25")
    assert scenario == classes["Failure"].from_mapping({"modality": 1, "rate": 0.25})
    mask = scenario.generate(Rows(8, 3))
    expected = np.zeros((8, 3), dtype=bool)
    expected[6:, 1] = True
    assert np.array_equal(mask, expected) and scenario.realised_rate(mask) == 0.25
    assert classes["Failure"].parse("random_0.5") is None


def test_the_data_module_of_the_page_works(classes: dict[str, Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        photo, sketch = rng.integers(256, size=(4, 3, 64, 64)), rng.integers(256, size=(4, 1, 64, 64))
        arrays = {"photo": photo.astype(np.uint8), "sketch": sketch.astype(np.uint8), "target": np.array([0, 1, 0, 1])}
        np.savez(tmp_path / f"{split}.npz", **arrays)
    data = classes["Animals"](root=str(tmp_path), store=str(tmp_path / "store"))
    data.prepare()
    data.prepare()
    batch = data.rows("test", np.array([2, 3]))
    assert batch.target.tolist() == [0, 1] and batch.inputs["sketch"].shape == (2, 1, 64, 64)
    torch.testing.assert_close(batch.inputs["photo"], torch.from_numpy(photo[2:]).float() / 255)


# --------------------------------------------------------------------------------------------------------------- tables


def cells(page: Path, heading: str) -> list[list[str]]:
    """Cells of the first table below a heading, without its head."""
    section = text_of(page).split(f"\n{heading}\n")[1]
    (table, *_) = re.findall(r"(?:^\|.*\|\n)+", section, flags=re.M)
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table.splitlines()[2:]]


@pytest.mark.parametrize(("heading", "group"), [("## Methods", "model"), ("## Data sets", "dataset")])
def test_the_readme_lists_every_option(heading: str, group: str) -> None:
    listed = [name for row in cells(ROOT / "README.md", heading) for name in re.findall(r"`([^`]+)`", row[0])]
    assert sorted(listed) == sorted(file.stem for file in (ROOT / "configs" / group).glob("*.yaml"))


def test_the_readme_lists_every_recovery_method() -> None:
    text = (ROOT / "README.md").read_text()
    assert all(f"`{file.stem}`" in text for file in (ROOT / "configs" / "imputer").glob("*.yaml"))


def test_the_scenarios_of_the_page_are_those_of_the_code() -> None:
    page = DOCS / "missingness.md"
    listed = {row[0].strip("`"): row[1] for row in cells(page, "## All kinds")}
    assert listed == {name: what for examples in EXAMPLES.values() for name, what in examples.items()}
    for kind in SCENARIOS:
        assert {type(parse_scenario(name)) for name in kind.examples} == {kind}
    assert all(parse_scenario(name).noise for name in EXAMPLES["noise"])
    for synonym, name in (("whole_1_2", "whole_12"), ("table_most_important_0.7", "table_MI_0.7")):
        assert f"`{synonym}`" in page.read_text()
        assert parse_scenario(synonym) == parse_scenario(name)
    mappings = re.findall(r"^\| `(\{.*\})` \| `([^`]+)` \|$", page.read_text(), flags=re.M)
    assert len(mappings) == len(SCENARIOS)
    for mapping, name in mappings:
        assert parse_scenario(yaml.safe_load(mapping)) == parse_scenario(name)
    operators = {row[0].strip("`"): row[1].split(", ") for row in cells(page, "## Noise") if row[0] != "`gaussian`"}
    assert operators == {name: list(o.kinds) for name, o in noise_operators.OPERATORS.items() if name != "gaussian"}
