"""The image and the cluster scripts, as far as they can be tested without Docker and SLURM."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hydra.core.utils import JobReturn
from pytorch_lightning.demos.boring_classes import BoringModel
from submitit import Job, LocalJob
from submitit.core.utils import DelayedSubmission

from trainers.callbacks import SigtermOfSubmitit
from trainers.config.checks.machine import number_of_processes
from trainers.config.compose import compose_config
from trainers.sweep_jobs import Jobs, count_lost_jobs_of_submitit

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "job_scripts" / "slurm_array.sh"
INSTRUCTIONS = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "VOLUME", "ENTRYPOINT", "CMD"}


def instructions() -> list[tuple[str, str]]:
    """(name, rest) of every instruction of the Dockerfile, continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(name, others.strip()) for name, _, others in (line.partition(" ") for line in text.splitlines() if line)]


def values(name: str) -> list[str]:
    return [others for instruction, others in instructions() if instruction == name]


def test_dockerfile_has_known_instructions_and_a_pinned_base() -> None:
    assert {name for name, _ in instructions()} == INSTRUCTIONS
    (base,) = values("FROM")
    assert re.fullmatch(r"python:3\.1[12]\.\d+-slim-\w+", base), "a tag with the full version"
    assert values("ENTRYPOINT") == ['["python", "run.py"]'] and values("CMD") == ["[]"]
    assert not any("latest" in others or "sudo" in others for _, others in instructions())


def test_dockerfile_runs_as_a_user_that_owns_data_and_outputs() -> None:
    names = [name for name, _ in instructions()]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in ("RUN", "COPY"))
    assert values("USER") == ["user"] and "chown user:user data outputs" in values("RUN")[-1]


def test_dockerfile_runs_as_any_other_user_too() -> None:
    """``docker run --user`` names a user without a home, who owns neither folder."""
    assert "chmod 1777 data outputs" in values("RUN")[-1] and "HOME=/tmp" in values("ENV")


def test_another_commit_builds_no_dependencies_again() -> None:
    """An image is built again from the first instruction that a changed argument reaches."""
    names = [name for name, _ in instructions()]
    first = next(i for i, (_, others) in enumerate(instructions()) if "GIT_COMMIT" in others)
    assert names.index("RUN") < first < len(names) - 1 - names[::-1].index("COPY")


def test_paths_that_the_image_copies_exist_and_are_not_ignored() -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    copied = [path for others in values("COPY") for path in shlex.split(others)[:-1]]
    assert "." in copied and {"pyproject.toml", "constraints.txt"} <= set(copied)
    needed = [*copied, "run.py", "configs", "datasets", "models", "trainers", "utils", "gaussian_parameter_generation"]
    for path in needed:
        assert (ROOT / path).exists()
        assert not any(fnmatch(path, pattern.removeprefix("**/")) for pattern in ignored), path
    assert {".git", ".venv", "data", "outputs"} <= set(ignored)


def test_wheels_are_chosen_by_the_build_argument_and_constrained(tmp_path: Path) -> None:
    """The command of the image, with a pip that only prints its arguments."""
    (tmp_path / "pip").write_text('#!/bin/sh\necho "pip $@"\n')
    (tmp_path / "pip").chmod(0o755)
    command = values("RUN")[0]

    def run(device: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DEVICE": device, "CPU_INDEX": "an index"}
        return subprocess.run(["sh", "-ec", command], env=environment, capture_output=True, text=True)

    cpu, cuda = run("cpu").stdout.splitlines(), run("cuda").stdout.splitlines()
    assert "--index-url an index" in cpu[0] and "--index-url" not in cuda[0]
    assert all("-c constraints.txt" in line for line in cpu + cuda) and cpu[1] == cuda[1]
    wrong = run("tpu")
    assert wrong.returncode == 2 and "DEVICE=tpu: must be cpu or cuda" in wrong.stderr


# ---------------------------------------------------------------------------------------------------------- SLURM


def slurm(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env={**plain, "DRY_RUN": "1", **environment},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def test_the_script_is_valid_bash() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(SCRIPT)], check=True)
    directives = re.findall(r"^#SBATCH --([\w-]+)", SCRIPT.read_text(), re.MULTILINE)
    assert {"requeue", "time", "output"} <= set(directives)
    first = next(i for i, line in enumerate(SCRIPT.read_text().splitlines()) if line and line[0] != "#")
    assert "#SBATCH" not in "\n".join(SCRIPT.read_text().splitlines()[first:]), (
        "SLURM stops reading at the first command"
    )


def test_every_task_is_another_model_and_seed() -> None:
    """Each of the printed commands composes; together they are all pairs."""
    seen = []
    for index in range(6):
        done = slurm("schedule=demo", MODELS="DyMo MUSE", SEEDS="0 1 5", SLURM_ARRAY_TASK_ID=str(index))
        assert done.returncode == 0, done.stderr
        words = shlex.split(done.stdout)
        assert words[:3] == ["python", "run.py", "schedule=demo"]
        cfg = compose_config(*words[2:])
        assert list(cfg.stages) == ["prepare", "impute", "fit", "gaussian", "test"]
        seen.append((cfg.model.name, cfg.seed))
    assert seen == [(model, seed) for model in ("DyMo", "MUSE") for seed in (0, 1, 5)]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SLURM_ARRAY_TASK_ID": "6"}, "error: task 6: 2 models and 3 seeds are tasks 0 to 5."),
        ({}, "error: SLURM_ARRAY_TASK_ID is not set"),
        ({"SLURM_ARRAY_TASK_ID": "0", "SEEDS": " "}, "error: MODELS and SEEDS must name"),
    ],
)
def test_a_wrong_task_is_one_line(environment: dict[str, str], message: str) -> None:
    done = slurm(**environment)
    assert done.returncode == 2 and message in done.stderr and done.stdout == ""


def test_submission_is_preparation_array_and_report(tmp_path: Path) -> None:
    """With an ``sbatch`` that numbers its jobs and notes its arguments."""
    (tmp_path / "sbatch").write_text(
        f'#!/bin/sh\necho "$MODELS|$*" >> {tmp_path}/log\necho "$(wc -l < {tmp_path}/log);cluster"\n'
    )
    (tmp_path / "sbatch").chmod(0o755)
    folder = tmp_path / "checkout"
    shutil.copytree(SCRIPT.parent, folder / "job_scripts")
    (folder / "run.py").touch()
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "MODELS": "DyMo  MAP MUSE", "SEEDS": "0 1"}
    assert shutil.which("sbatch", path=environment["PATH"]) == str(tmp_path / "sbatch"), "a real one would submit jobs"
    command = ["bash", str(folder / "job_scripts" / "slurm_array.sh"), "submit", "--partition=gpu", "--", "dataset=MST"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "submitted: prepare 1, 6 tasks 2, report 3\n"
    gpu, logs = "--partition=gpu job_scripts/slurm_array.sh", "outputs/slurm/%j"
    assert (tmp_path / "log").read_text().splitlines() == [
        f"DyMo MAP MUSE|--parsable --output={logs}_prepare.log {gpu} prepare dataset=MST",
        f"DyMo MAP MUSE|--parsable --array=0-5 --dependency=afterok:1 --kill-on-invalid-dep=yes {gpu} dataset=MST",
        f"DyMo MAP MUSE|--parsable --output={logs}_report.log --dependency=afterany:2 {gpu} report dataset=MST",
    ]
    assert (folder / "outputs" / "slurm").is_dir()


@pytest.mark.parametrize(
    ("environment", "threads"),
    [({}, "-"), ({"SLURM_CPUS_PER_TASK": "6"}, "6"), ({"SLURM_CPUS_PER_TASK": "6", "OMP_NUM_THREADS": "2"}, "2")],
)
def test_a_task_has_a_thread_per_core_that_it_was_given(
    tmp_path: Path, environment: dict[str, str], threads: str
) -> None:
    """With a Python that prints the number and its arguments."""
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "${OMP_NUM_THREADS:--} $*"\n')
    python.chmod(0o755)
    (tmp_path / "run.py").touch()
    (tmp_path / "job_scripts").symlink_to(SCRIPT.parent)
    plain = {"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(tmp_path), **environment}
    done = subprocess.run(["bash", str(SCRIPT), "report", "name=a"], env=plain, capture_output=True, text=True)
    assert done.stdout == f"{threads} run.py name=a stages=[report]\n", done.stderr


def test_one_training_has_a_process_per_task_of_every_machine() -> None:
    script = ["bash", str(ROOT / "job_scripts" / "slurm_nodes.sh"), "dataset=MST", "trainer.accelerator=cpu"]
    job = {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4", "SLURM_CPUS_PER_TASK": "3"}
    environment = {"PATH": os.environ["PATH"], "DRY_RUN": "1", "SLURM_SUBMIT_DIR": str(ROOT)}
    done = subprocess.run(script, env=environment | job, capture_output=True, text=True, check=True)
    first, distributed, last = (shlex.split(line) for line in done.stdout.splitlines())
    assert first == ["python", "run.py", *script[2:], "stages=[prepare]"]
    assert distributed[:4] == ["srun", "--cpus-per-task=3", "python", "run.py"] and last[-1] == "stages=[report]"
    cfg = compose_config(*distributed[4:])
    assert number_of_processes(cfg) == 8 and cfg.trainer.strategy.startswith("ddp") and cfg.trainer.accelerator == "cpu"
    assert {"prepare", "report"}.isdisjoint(cfg.stages)
    refused = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "submit with sbatch --nodes=2 --ntasks-per-node=4" in refused.stderr


@pytest.mark.parametrize(
    ("devices", "nodes", "expected"),
    [("1", 1, 1), ("2", 3, 6), ("[0,2]", 2, 4), ("'0,1'", 1, 2), ("-1", 2, 2), ("auto", 1, 1)]
    + [(wrong, 1, 1) for wrong in ("abc", "null", "0")]  # which are refused when the trainer is built
    + [("2", wrong, 2) for wrong in ("auto", "0")],
)
def test_processes_are_counted_on_all_machines(devices: str, nodes: int | str, expected: int) -> None:
    cfg = compose_config("trainer=cpu", f"trainer.devices={devices}", f"trainer.num_nodes={nodes}")
    assert number_of_processes(cfg) == expected


def test_a_killed_job_of_submitit_is_a_failed_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs 4 and 5 left no result: the process of the first was killed, the second had noted its end before."""
    monkeypatch.setattr(Job, "results", Job.results)  # is restored after the test
    monkeypatch.setattr(Job, "_results_timeout_s", 0)
    jobs = Jobs(tmp_path / "jobs")
    jobs.begin(jobs=6, parallel=None, named=[], swept=["seed"])
    jobs.start(5)
    jobs.end(5, overrides=["seed=5"], error=None, config="a: 1", worked=True)
    count_lost_jobs_of_submitit(tmp_path / "before")
    count_lost_jobs_of_submitit(jobs.folder)
    submitted: list[Job[JobReturn]] = [LocalJob(tmp_path, f"77_{number}") for number in (4, 5)]
    for number, job in enumerate(submitted, 4):
        arguments = ([f"seed={number}"], "hydra.sweep.dir", number, "id", {})
        DelayedSubmission(print, *arguments).dump(job.paths.submitted_pickle)
    assert [job.results()[0].return_value for job in submitted] == [None, None]
    lost, ended = jobs.ended()
    log = submitted[0].paths.stderr
    assert lost["error"] == f"job 77_4 ended without a result (NO PROCESS AND NO RESULT), see {log}"
    assert lost["overrides"] == ["seed=4"]
    assert ended["error"] is None and not (tmp_path / "before").exists()


@pytest.mark.parametrize(("executor", "steps"), [("slurm", 3), ("local", 1)])
def test_training_goes_on_after_sigterm_in_jobs_of_submitit(
    monkeypatch: pytest.MonkeyPatch, executor: str, steps: int
) -> None:
    """SIGTERM arrives in the first of three steps, in a process that ignores it but for Lightning."""
    monkeypatch.setenv("SUBMITIT_EXECUTOR", executor)
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))

    class Steps(BoringModel):
        taken = 0

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            self.taken += 1
            if batch_idx == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().training_step(batch, batch_idx)["loss"]

    module = Steps()
    trainer = pl.Trainer(
        max_epochs=1, limit_train_batches=3, limit_val_batches=0, accelerator="cpu", logger=False, barebones=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[SigtermOfSubmitit()],
    )  # fmt: skip
    try:
        with contextlib.suppress(SystemExit):
            trainer.fit(module)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert module.taken == steps and received == [signal.SIGTERM]


def test_submitit_runs_a_sweep_in_processes_of_its_own(tmp_path: Path) -> None:
    """The launcher of SLURM with the local executor of submitit: two seeds, one epoch."""
    command = [
        *(
            "run.py",
            "--multirun",
            "hydra/launcher=submitit_local",
            "seed=0,1",
            "model=ModDrop",
            "dataset=MultiFeatureDigits",
        ),
        *(
            "dataset.demo=true",
            "model.training.max_epochs=1",
            "missing.test=[none]",
            "trainer=cpu",
            "stages=[prepare,fit,test]",
        ),
        *("hydra.launcher.timeout_min=10", f"paths.data={tmp_path / 'data'}", f"paths.output={tmp_path / 'out'}"),
    ]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    logs = "\n".join(file.read_text() for file in tmp_path.rglob("*_log.*"))
    assert done.returncode == 0, done.stderr + logs
    finished = sorted(file.parent.name for file in tmp_path.glob("out/MultiFeatureDigits/ModDrop/default/*/DONE"))
    assert finished == ["seed0", "seed1"], done.stderr + logs


def test_submitit_of_slurm_is_an_option() -> None:
    command = [sys.executable, "run.py", "hydra/launcher=submitit_slurm", "hydra.launcher.gpus_per_node=1"]
    done = subprocess.run([*command, "--cfg", "hydra"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "SlurmLauncher" in done.stdout and "gpus_per_node: 1" in done.stdout, done.stderr
