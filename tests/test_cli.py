"""The command line: one clear message per mistake and nothing left behind; a whole tiny run and all that it writes."""

from __future__ import annotations

import csv
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hydra.core.global_hydra import GlobalHydra
from safetensors import safe_open
from sklearn import metrics as sk

from datasets.missingness import mask_hash
from tests.conftest import empty_pictures
from trainers import fit as fit_module
from trainers import run as pipeline

ROOT = Path(__file__).resolve().parent.parent
STAGES = "stages=[prepare,impute,fit,gaussian,test,report]"
SCENARIOS = ("none", "random_0.8", "whole_12")
LABELS = ("", "discard", "impute_all", "random", "best_subset", "threshold", "oracle_subset")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "offline"}

Result = tuple[int, list[str]]
Command = Callable[..., Result]


def execute(arguments: list[str], folder: Path) -> Result:
    """What ``python run.py`` does, here and now instead of in a process that takes ten seconds to start.

    Args:
        folder: working directory; nothing may appear in it.

    Returns:
        exit status and the lines on stderr.
    """
    root, file = logging.getLogger(), folder.with_name(f"{folder.name}.err")
    handlers, level, argv, stderr, cwd = root.handlers[:], root.level, sys.argv, sys.stderr, Path.cwd()
    GlobalHydra.instance().clear()
    root.handlers = []
    folder.mkdir(exist_ok=True)
    code = 0
    try:
        with file.open("w") as sys.stderr:
            sys.argv = [str(ROOT / "run.py"), *arguments]
            os.chdir(folder)
            exec(compile((ROOT / "run.py").read_text(), str(ROOT / "run.py"), "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        root.handlers, root.level, sys.argv, sys.stderr = handlers, level, argv, stderr
        os.chdir(cwd)
        GlobalHydra.instance().clear()
    assert os.listdir(folder) == [], "nothing is written into the working directory"
    return code, file.read_text().splitlines()


def tiny(root: Path, folder: Path, output: Path) -> list[str]:
    return [
        "dataset=PolyMNIST",
        f"dataset.root={root}",
        f"paths.cache={folder / 'cache'}",
        f"paths.output={output}",
        "trainer=cpu",
        "trainer.enable_progress_bar=false",
        "imputer.quality.judge_epochs=1",
    ]


EPOCHS = ["model.backbone.training.max_epochs=1", "imputer.training.max_epochs=1", "imputer.latent=16"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, polymnist_root: Path) -> tuple[Path, list[str], list[str]]:
    """A whole tiny run: output folder, its arguments, what it printed."""
    folder = tmp_path_factory.mktemp("cli")
    arguments = [
        *tiny(polymnist_root, folder, folder / "out"),
        *EPOCHS,
        f"missing.test=[{','.join(SCENARIOS)}]",
        "report.samples=2",
        STAGES,
    ]
    with empty_pictures():
        code, lines = execute(arguments, folder / "cwd")
    assert code == 0, lines
    return folder / "out", arguments, lines


@pytest.fixture
def command(tmp_path: Path, polymnist_root: Path) -> Command:
    """Run with tiny data; outputs in ``tmp_path / "out"``."""

    def run(*arguments: str) -> Result:
        return execute([*tiny(polymnist_root, polymnist_root.parent, tmp_path / "out"), *arguments], tmp_path / "cwd")

    return run


# ------------------------------------------------------------------------------------------------------------ mistakes


def refused(result: Result, *messages: str) -> None:
    """One line on stderr per message, in this order, each holding its message."""
    code, lines = result
    assert code == 2, lines
    errors = [line for line in lines if line.startswith("[E]")]
    assert len(errors) == len(messages), lines
    for line, message in zip(errors, messages):
        assert message in line
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("modle.training=3", "unknown key 'modle.training': the configuration has no 'modle'; did you mean 'model'?"),
        ("missing.tset=[none]", "unknown key 'missing.tset': missing has no 'tset'; did you mean 'test'?"),
        ("model.selection.treshold=1", "model.selection has no 'treshold'; did you mean 'threshold'?"),
        ("+unknown=1", "unknown key 'unknown'"),
        ("model=DyMoo", "model=DyMoo: there is no such option; did you mean 'DyMo'?"),
        ("dataset=polymnist", "dataset=polymnist: there is no such option; known are AVE, Arrays, CAD, "),
        ("imputer=null", "imputer=null: leave it out, or choose one of CMVAE, Chain, IMI, "),
        ("seed=", "seed=: must be a whole number at least 0"),
        ("seed", "cannot read the overrides"),
        ("seed=null", "seed=null: must be a whole number"),
        ("stages=[fti]", "stages: unknown stage 'fti'; did you mean 'fit'?"),
        ("stages=fit", "stages=fit: must be a list, write stages=[fit]"),
        ("stages=[]", "stages is empty"),
        ("trainer.devices=2 stages=[fit,test,gaussian]", "stages: 'gaussian' comes after 'test', which several proc"),
        ("trainer.devices=2 stages=[export,test]", "stages: 'test' comes after 'export', which several processes ca"),
        ("missing.test=[randm_0.4]", "unknown missing scenario 'randm_0.4': did you mean 'random'?"),
        ("missing.test=[random_1.2]", "missing scenario 'random_1.2': the rate 1.2 is outside [0, 1)"),
        (
            "missing.test=[random_0.9]",
            "'random_0.9' would leave no modality of 5 in some rows: the highest rate is 0.8",
        ),
        ("missing.test=[whole_5]", "missing scenario 'whole_5': there is no modality 5, the data set has 0 to 4"),
        ("missing.test=random_0.4", "missing.test=random_0.4: must be a list, write missing.test=[random_0.4]"),
        ("missing.test=[file:absent.csv]", "missing.test: mask file absent.csv does not exist"),
        ("missing.train=whole_7 stages=[fit]", "missing scenario 'whole_7': there is no modality 7"),
        ("missing.train=random_0.4", "stages impute and gaussian learn from complete training data"),
        ("missing.val=file:absent.csv", "missing.val: mask file absent.csv does not exist"),
        ("model.transformer_checkpoint=absent.ckpt", "model.transformer_checkpoint: there is no file absent.ckpt"),
        ("model.gaussian=absent.pt", "model.gaussian: there is no file absent.pt"),
        ("imputer.checkpoint=absent", "imputer.checkpoint: there is no file absent"),
        ("dataset.mnist=absent", "dataset.mnist: there is no folder absent"),
        ("distance_metric=cosine", "distance_metric=cosine: must be one of None, cosine_similarity, squared_euclidean"),
        ("gaussian.split=test", "gaussian.split=test: must be one of train, val"),
        ("dataset.monitor=val_acc", "must be one of val_accuracy, val_auroc, val_f1_macro, val_loss"),
        ("model.backbone.training.max_epochs=0", "max_epochs=0: must be a whole number at least 1"),
        ("model.backbone.module.subsets_per_step=32", "subsets_per_step=32: must be a whole number from 1 to 31"),
        ("model.comparators=[discard,oracel_subset]", "unknown 'oracel_subset'; did you mean 'oracle_subset'?"),
        ("+model.backbone.module.widht=3", "DynamicTransformer takes no 'widht'; did you mean 'width'?"),
        ("name=a/b", "name=a/b: must not hold a slash"),
        ("model.recovery_aware=much", "model.recovery_aware=much: must be a number from 0 to 1"),
        ("schedule=shrt", "schedule=shrt: there is no such option; did you mean 'short'?"),
        ("imputer=Oracle", "imputer=Oracle reads the content that is missing: add imputer.allow_oracle=true"),
        ("imputer=Oracle imputer.name=Foo", "imputer=Foo reads the content that is missing: add imputer.allow_oracle"),
        (
            "imputer=Zero imputer.name=Foo imputer.module._target_=models.imputers.simple.Oracle",
            "imputer=Foo reads the content that is missing: add imputer.allow_oracle=true",
        ),
        (
            "imputer=Zero imputer.name=MoPoE model=MoPoE_Classification",
            "model MoPoE_Classification is built on imputer=MoPoE, not MoPoE (Zero)",
        ),
        ("trainer.limit_train_batches=0.0", "trainer.limit_train_batches=0.0: must be null, a whole number of batches"),
        ("trainer.limit_val_batches=1.5", "trainer.limit_val_batches=1.5: must be null, a whole number of batches"),
        ("trainer.precision=17", "config 'trainer': Precision 17 is invalid"),
        ("trainer.strategy=fast", "config 'trainer': You selected an invalid strategy name"),
        ("hydra/launcher=slurm --multirun", "hydra/launcher=slurm: there is no such launcher, known are basic"),
        ("hydra/sweeper=optuna --multirun", "hydra/sweeper=optuna: there is no such sweeper, known are basic"),
        ("hydra.sweeper.trials=3", "hydra.sweeper.trials=3: Could not override 'hydra.sweeper.trials'."),
        ("logger=[tensorboard,wandbb]", "logger=wandbb: there is no such option; did you mean 'wandb'?"),
        ("dataset=[Digits,MST]", "dataset=[Digits,MST]: takes one option, choose one of AVE, "),
        ("stages=[report]", "PolyMNIST/*/default/seed*: run stage test first"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    command: Command, tmp_path: Path, arguments: str, message: str
) -> None:
    refused(command(*arguments.split(" ")), message)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("stage", ["fit", "impute", "gaussian", "test"])
def test_a_gpu_that_is_not_there_is_refused_before_packing(command: Command, tmp_path: Path, stage: str) -> None:
    result = command(
        "trainer.accelerator=gpu", "imputer=Mean", f"stages=[prepare,{stage}]", f"dataset.store={tmp_path}/S"
    )
    refused(
        result, "trainer.accelerator=gpu: PyTorch finds no GPU on this machine; set trainer=cpu, or trainer=default"
    )
    assert not (tmp_path / "S").exists() and not (tmp_path / "out").exists()


def test_a_logger_whose_package_is_lacking_is_refused_before_packing(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'tensorboard'")

    monkeypatch.setattr("pytorch_lightning.loggers.TensorBoardLogger.__init__", lacking)
    refused(command("logger=[csv,tensorboard]"), "TensorBoardLogger): No module named 'tensorboard'")
    assert not (tmp_path / "out").exists()


def test_every_mistake_is_reported_at_once(command: Command, tmp_path: Path) -> None:
    result = command("missing.test=[random_1.2,quux]", "seed=-1", "model.gaussian=absent.pt", "gaussian.split=test")
    refused(result, "random_1.2", "quux", "seed=-1", "gaussian.split=test", "model.gaussian: there is no file")
    refused(command("sed=1", "imputr=Zero"), "did you mean 'seed'?", "did you mean 'imputer'?")
    assert not (tmp_path / "out").exists()


def test_what_a_stage_lacks_is_named_with_the_command_that_makes_it(command: Command, tmp_path: Path) -> None:
    base = tmp_path / "out" / "PolyMNIST"
    result = command("model=DyMo", "seed=3", "distance_metric=squared_euclidean", "stages=[test]", "overwrite=true")
    refused(
        result,
        f"no trained DynamicTransformer_EU at {base}/DynamicTransformer_EU/default/seed3/checkpoints/best.ckpt",
        f"no trained MoPoE at {base}/imputer_MoPoE/default/seed3/checkpoints/best.ckpt",
        f"no Gaussian parameters at {base}/DynamicTransformer_EU/default/seed3/gaussian_euclidean.safetensors",
    )
    for line, stage in zip([line for line in result[1] if line.startswith("[E]")], ("fit", "impute", "gaussian")):
        told = line.partition(": run ")[2]  # the user's own command with another stage
        assert told.startswith("python run.py dataset=PolyMNIST dataset.root=") and f"paths.output={tmp_path}" in told
        assert f"model=DyMo seed=3 distance_metric=squared_euclidean stages=[{stage}]" in told
        assert "stages=[test]" not in told and "overwrite" not in told
    assert not (tmp_path / "out").exists()


def test_a_mask_file_of_the_wrong_shape_stops_before_training(command: Command, tmp_path: Path) -> None:
    for name, text in {
        "short": "False,False,True,False,False\n" * 3,
        "empty": "True,True,True,True,True\n" * 60,
    }.items():
        (tmp_path / f"{name}.csv").write_text(text)
    scenarios = f"missing.test=[file:{tmp_path}/short.csv,none,file:{tmp_path}/empty.csv]"
    refused(
        command("imputer=Zero", scenarios, "stages=[fit,gaussian,test]"),
        f"mask file {tmp_path}/short.csv has 3 rows but the split has 60: use the mask of this split",
        f"mask file {tmp_path}/empty.csv, row 1: every modality is missing (60 such rows)",
    )
    assert not (tmp_path / "out").exists()


def test_a_split_that_a_stage_needs_is_named(tmp_path: Path, polymnist_root: Path) -> None:
    root = tmp_path / "D"
    shutil.copytree(polymnist_root / "test", root / "test")
    result = execute([*tiny(root, tmp_path, tmp_path / "out"), "imputer=Zero", "stages=[fit]"], tmp_path / "cwd")
    refused(result, "stage fit needs the split 'train'", "stage fit needs the split 'val'")
    assert not (tmp_path / "out").exists()


def test_a_wrong_checkpoint_is_refused_by_name(finished, command: Command, tmp_path: Path) -> None:
    output, *_ = finished
    best = output / "PolyMNIST" / "DynamicTransformer" / "default" / "seed0" / "checkpoints" / "best.ckpt"
    given = [f"model.transformer_checkpoint={best}", "imputer=Zero", "stages=[gaussian]"]
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    refused(
        command(f"model.transformer_checkpoint={tmp_path}/text.ckpt", *given[1:]),
        f"{tmp_path}/text.ckpt is not a checkpoint: give a file written by torch.save or safetensors",
    )
    (tmp_path / "cut.ckpt").write_bytes(best.read_bytes()[:5000])
    refused(command(f"model.transformer_checkpoint={tmp_path}/cut.ckpt", *given[1:]), "cut.ckpt is cut off or damaged")
    refused(command(*given, "model.backbone.module.width=64"), f"{best} does not fit the DynamicTransformer: width 128")
    refused(
        command(*given, "distance_metric=squared_euclidean"),
        f"{best} was trained with distance_metric cosine_similarity, this run uses squared_euclidean: "
        "set distance_metric=cosine_similarity",
    )
    content = torch.load(best, weights_only=True)
    torch.save(content | {"dataset": "Digits"}, tmp_path / "digits.ckpt")
    local = "digits.ckpt was trained on Digits, this run is on PolyMNIST: give a checkpoint of this data set"
    refused(command(f"model.transformer_checkpoint={tmp_path}/digits.ckpt", *given[1:]), local)
    content["architecture"]["modalities"] = [["img", "image", [3, 28, 28]], ["text", "text", [256, 71]]]
    torch.save(content, tmp_path / "other.ckpt")
    refused(
        command(f"model.transformer_checkpoint={tmp_path}/other.ckpt", *given[1:]),
        "other.ckpt was trained on modalities ['img', 'text'], PolyMNIST has ['m0', 'm1', 'm2', 'm3', 'm4']",
    )
    weights = output / "PolyMNIST" / "imputer_MoPoE" / "default" / "seed0" / "checkpoints" / "best.ckpt"
    refused(
        command(f"model.transformer_checkpoint={weights}", *given[1:]),
        f"{weights} does not fit the DynamicTransformer",
    )
    torch.save(torch.load(weights, weights_only=True) | {"dataset": "Digits"}, tmp_path / "digits.ckpt")
    refused(command("imputer.latent=16", f"imputer.checkpoint={tmp_path}/digits.ckpt", "stages=[impute]"), local)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("limit", [100_000, 1_000_000])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(command: Command, tmp_path: Path, limit: int) -> None:
    """A limit of the size of files, which the packed store exceeds, or the checkpoint."""
    arguments = ["model=ModDrop", "model.training.max_epochs=1", "stages=[prepare,fit,test]", "missing.test=[none]"]
    arguments += [f"paths.cache={tmp_path / 'cache'}", "dataset.monitor=null"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        refused(command(*arguments), "and run the same command again")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.rglob("DONE")) and not [
        path for path in tmp_path.rglob(".*") if path.suffix != ".lock" and path.name != ".lock"
    ]
    code, lines = command(*arguments)
    assert code == 0 and len(list(tmp_path.rglob("DONE"))) == 1, lines


def test_an_interruption_outside_training_is_one_line(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(pipeline.STAGES, "prepare", interrupted)
    code, lines = command("model=ModDrop", "stages=[prepare]")
    assert code == 130 and lines[-1] == "[E] interrupted: run the same command to go on"
    assert not any("Traceback" in line for line in lines)


def test_the_real_process_ends_with_status_2_and_one_line_each(tmp_path: Path, polymnist_root: Path) -> None:
    """As above, through the shell's eyes."""
    arguments = [*tiny(polymnist_root, tmp_path, tmp_path / "out"), "missing.test=[random_1.2,randm_0.4]"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        cwd=tmp_path,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first == "[E] missing scenario 'random_1.2': the rate 1.2 is outside [0, 1), one modality must stay"
    known = "known are none, whole_12, random_0.8, random_global_0.8, "
    assert second.startswith(f"[E] unknown missing scenario 'randm_0.4': did you mean 'random'? {known}")
    assert os.listdir(tmp_path) == []


# --------------------------------------------------------------------------------------------------------- a whole run


def test_a_whole_run_writes_every_named_file(finished) -> None:
    output, _, lines = finished
    base = output / "PolyMNIST"
    assert sorted(f.name for f in base.iterdir()) == ["DyMo", "DynamicTransformer", "imputer_MoPoE", "report"]
    tested, trained, imputed = (base / m / "default" / "seed0" for m in ("DyMo", "DynamicTransformer", "imputer_MoPoE"))
    npz = [f"{s}.npz" for s in SCENARIOS]
    made = "DONE config.yaml environment.json examples masks predictions"
    made += " results.csv results_per_class.csv selection_validation.csv stages"
    assert sorted(f.name for f in tested.iterdir()) == made.split()
    assert sorted(f.name for f in (tested / "masks").iterdir()) == sorted(npz + [f"{s}.json" for s in SCENARIOS])
    assert sorted(f.name for f in (tested / "examples").iterdir()) == sorted(npz[1:])  # nothing is missing in none
    for label in LABELS:
        assert sorted(f.name for f in (tested / "predictions" / label).glob("*.npz")) == sorted(npz), label
    for folder, stages in ((trained, {"fit", "gaussian"}), (imputed, {"impute", "quality"}), (tested, {"test"})):
        assert {f.name for f in (folder / "stages").glob("*.json")} == {f"{s}.json" for s in stages}
        assert not [f for f in folder.rglob(".*") if f.name != ".lock"], "no temporary file is left"
    for folder in (trained, imputed):
        assert sorted(f.name for f in (folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert (base / "report" / "default" / "report.html").stat().st_size > 10_000
    assert any(str(base / "report" / "default" / "report.html") in line for line in lines), "the path is printed"
    assert [line for line in lines if "Traceback" in line or line.startswith("[E]")] == []

    columns = ["dataset", "model", "seed", "scenario", "metric", "value", "n", "train", "fold", "missing_rate"]
    assert list(pd.read_csv(tested / "results.csv")) == columns
    assert list(pd.read_csv(trained / "metrics.csv"))[:2] == ["epoch", "step"]
    assert {"train_loss", "val_loss", "val_accuracy", "val_auroc"} <= set(pd.read_csv(trained / "metrics.csv"))
    assert {"train_loss", "train_nll", "train_kl", "val_loss"} <= set(pd.read_csv(imputed / "metrics.csv"))
    assert list(pd.read_csv(imputed / "quality.csv")) == ["modality", "observed", "metric", "value", "n"]
    assert list(pd.read_csv(tested / "selection_validation.csv")) == ["scenario", "threshold", "accuracy", "discard"]
    with safe_open(trained / "gaussian_cosine.safetensors", "pt") as file:
        shapes = {key: tuple(file.get_tensor(key).shape) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        assert file.metadata()["metric"] == "cosine_similarity"
    assert shapes == {"prototypes": (31, 10, 64), "sigma": (31, 10), "overall": (10, 64), "subsets": (31, 5)}
    config = yaml.safe_load((tested / "config.yaml").read_text())
    assert config["distance_metric"] == config["model"]["backbone"]["module"]["distance_metric"] == "cosine_similarity"
    about = json.loads((tested / "environment.json").read_text())
    assert {"python", "packages", "device", "git_commit", "mask_sha256_16"} <= set(about)
    cost = about["cost"]
    trainings = [
        json.loads((f / "stages" / s).read_text())["effort"]
        for f, s in ((trained, "fit.json"), (trained, "gaussian.json"), (imputed, "impute.json"))
    ]
    assert list(cost["fit_parts"]) == ["fit DynamicTransformer", "gaussian", "impute MoPoE"]
    assert cost["fit_seconds"] == pytest.approx(sum(part["seconds"] for part in trainings)) and cost["fit_seconds"] > 0
    learned = [torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (trained, imputed)]
    moments = [m["exp_avg"] for c in learned for o in c["optimizer_states"] for m in o["state"].values()]
    reached = sum(m.numel() for m in moments)  # by a gradient, which all but a few weights are
    assert reached <= cost["trainable_parameters"] == cost["parameters"] < 1.01 * reached
    assert cost["test_seconds_per_1000_rows"] > 0 and cost["test_scenario"] == "random_0.8"
    for slot, scenario in enumerate(SCENARIOS):
        mask = np.load(tested / "masks" / npz[slot])["missing"]
        assert about["mask_sha256_16"][scenario] == mask_hash(mask)
        assert mask.mean(0).round(3).tolist() == {"none": [0] * 5, "whole_12": [0, 1, 1, 0, 0]}.get(
            scenario, mask.mean(0).round(3).tolist()
        )
    ranks = np.random.default_rng(2027).random((60, 5)).argsort(1).argsort(1)
    assert np.array_equal(np.load(tested / "masks" / "random_0.8.npz")["missing"], ranks < 4)


def test_the_numbers_are_those_of_the_predictions(finished) -> None:
    """results.csv against scikit-learn on predictions/*.npz, for DyMo and every comparator."""
    run = finished[0] / "PolyMNIST" / "DyMo" / "default" / "seed0"
    frame = pd.read_csv(run / "results.csv")
    assert set(frame["model"]) == {f"DyMo/{label}".rstrip("/") for label in LABELS}
    assert (frame["n"] == 60).all() and (frame["seed"] == 0).all() and set(frame["dataset"]) == {"PolyMNIST"}
    assert not frame.duplicated(["model", "scenario", "metric"]).any()
    values = frame.set_index(["model", "scenario", "metric"])["value"]
    truth = np.repeat(np.arange(10), 6)
    for label in LABELS:
        for scenario in SCENARIOS:
            got = np.load(run / "predictions" / label / f"{scenario}.npz")
            assert got["index"].tolist() == list(range(60)) and got["target"].tolist() == truth.tolist()
            mask = np.load(run / "masks" / f"{scenario}.npz")["missing"]
            assert np.array_equal(got["missing"], mask)
            assert (got["final_missing"] <= mask).all(), "what is observed stays observed"
            logits = got["logits"].astype(np.float64)
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            guess = p.argmax(1)
            expected = {
                "accuracy": sk.accuracy_score(truth, guess),
                "auroc": sk.roc_auc_score(truth, p, multi_class="ovr", average="macro"),
                "f1_macro": sk.f1_score(truth, guess, average="macro"),
                "accepted_share": (mask & ~got["final_missing"]).sum() / max(mask.sum(), 1),
            }
            for metric, value in expected.items():
                assert values[f"DyMo/{label}".rstrip("/"), scenario, metric] == pytest.approx(value, abs=1e-5), metric
            if label == "discard":
                assert np.array_equal(got["final_missing"], mask)
            if label == "impute_all":
                assert not got["final_missing"].any()
            if label == "random":
                chosen = np.load(run / "predictions" / f"{scenario}.npz")["final_missing"]
                assert np.array_equal(got["final_missing"].sum(1), chosen.sum(1)), "as many as DyMo accepted"
            if label == "":
                accepted = got["accepted"]
                assert accepted.shape == (60, 5) and accepted.dtype == np.int8
                for row in range(60):
                    order = [u for u in accepted[row] if u >= 0]
                    assert sorted(order) == np.flatnonzero(mask[row] & ~got["final_missing"][row]).tolist()
    accuracy = frame[frame["metric"] == "accuracy"].set_index(["model", "scenario"])["value"]
    for scenario in SCENARIOS:
        best = accuracy["DyMo/oracle_subset", scenario]
        assert all(best >= accuracy[f"DyMo/{label}".rstrip("/"), scenario] for label in LABELS), "an upper bound"


def test_valid_stages_are_skipped(finished, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    output, arguments, _ = finished
    before = {f: f.stat().st_mtime_ns for f in output.rglob("*") if f.is_file() and "report" not in f.parts}

    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(fit_module, "build_trainer", never)
    again = [a.replace(",report]", "]") for a in arguments]
    code, lines = execute([*again, "overwrite=true"], tmp_path / "cwd")
    assert code == 0 and sum("is there and valid, skipped" in line for line in lines) == 4
    assert {f: f.stat().st_mtime_ns for f in output.rglob("*") if f.is_file() and "report" not in f.parts} == before


def test_other_settings_are_refused_and_overwrite_replaces(finished, tmp_path: Path) -> None:
    output, arguments, _ = finished
    shutil.copytree(output, tmp_path / "out")
    moved = [a for a in arguments if not a.startswith(("paths.output", "stages"))] + [f"paths.output={tmp_path}/out"]
    trained = tmp_path / "out" / "PolyMNIST" / "DynamicTransformer" / "default" / "seed0"
    before = {f: f.read_bytes() for f in (tmp_path / "out").rglob("*") if f.is_file()}
    narrower = "model.backbone.module.projection=32"
    # Found before anything else runs, although the imputer would come first.
    result = execute([*moved, narrower, "stages=[impute,fit]"], tmp_path / "cwd")
    refused(result, f"{trained} holds a finished stage 'fit' with other settings (model.module.projection: 64 -> 32)")
    refused(
        execute([*moved, "model.selection.threshold=0.5", "stages=[test]"], tmp_path / "cwd"),
        "DyMo/default/seed0 holds a finished stage 'test' with other settings (model.selection.threshold: 0.0 -> 0.5)",
    )
    assert {f: f.read_bytes() for f in (tmp_path / "out").rglob("*") if f.is_file()} == before
    code, lines = execute([*moved, narrower, "overwrite=true", "stages=[fit,gaussian,test]"], tmp_path / "cwd")
    assert code == 0, lines
    state = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert state["projection.weight"].shape == (32, 128)
    with safe_open(trained / "gaussian_cosine.safetensors", "pt") as file:
        assert file.get_tensor("overall").shape == (10, 32)
    assert (tmp_path / "out" / "PolyMNIST" / "DyMo" / "default" / "seed0" / "DONE").exists()


def test_a_lost_checkpoint_is_made_again(finished, tmp_path: Path) -> None:
    """A marker without its file counts as nothing."""
    output, arguments, _ = finished
    shutil.copytree(output, tmp_path / "out")
    moved = [a for a in arguments if not a.startswith(("paths.output", "stages"))] + [f"paths.output={tmp_path}/out"]
    best = tmp_path / "out" / "PolyMNIST" / "DynamicTransformer" / "default" / "seed0" / "checkpoints" / "best.ckpt"
    before = torch.load(best, weights_only=True)["state_dict"]
    best.unlink()
    refused(
        execute([*moved, "stages=[gaussian]"], tmp_path / "cwd"),
        f"no trained DynamicTransformer at {best}: run python run.py",
    )
    assert execute([*moved, "stages=[fit]"], tmp_path / "cwd")[0] == 0
    after = torch.load(best, weights_only=True)["state_dict"]
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_an_oracle_is_allowed_when_asked_for(finished, tmp_path: Path) -> None:
    """True content as recovery: accepting everything is then the same as missing nothing."""
    output, arguments, _ = finished
    shutil.copytree(output / "PolyMNIST" / "DynamicTransformer", tmp_path / "out" / "PolyMNIST" / "DynamicTransformer")
    remaining = ("dataset", "paths.cache", "trainer", "missing", "model.backbone")
    moved = [a for a in arguments if a.startswith(remaining)] + [f"paths.output={tmp_path}/out", "stages=[test]"]
    code, lines = execute([*moved, "imputer=Oracle", "imputer.allow_oracle=true"], tmp_path / "cwd")
    assert code == 0, lines
    predictions = tmp_path / "out" / "PolyMNIST" / "DyMo" / "default" / "seed0" / "predictions"
    everything = np.load(predictions / "none.npz")["logits"]
    accepted = np.load(predictions / "impute_all" / "random_0.8.npz")["logits"]
    np.testing.assert_allclose(accepted, everything, atol=1e-4)
    assert not np.allclose(np.load(predictions / "discard" / "random_0.8.npz")["logits"], everything, atol=1e-2)


@pytest.mark.usefixtures("undrawn")
def test_two_seeds_in_one_multirun_give_mean_and_sd(tmp_path: Path, polymnist_root: Path) -> None:
    arguments = [
        *tiny(polymnist_root, polymnist_root.parent, tmp_path / "out"),
        "model=DynamicTransformer",
        "model.training.max_epochs=1",
        "missing.test=[none,random_0.8]",
    ]
    code, lines = execute(["--multirun", *arguments, "seed=0,1", "stages=[fit,test]"], tmp_path / "cwd")
    assert code == 0, lines
    model = tmp_path / "out" / "PolyMNIST" / "DynamicTransformer" / "default"
    assert sorted(f.name for f in model.iterdir()) == ["seed0", "seed1"]
    code, lines = execute([*arguments, "stages=[report]"], tmp_path / "cwd")
    assert code == 0, lines
    report = tmp_path / "out" / "PolyMNIST" / "report" / "default"
    with (report / "summary.csv").open() as file:
        summary = {(row["scenario"], row["metric"]): row for row in csv.DictReader(file)}
    seeds = [pd.read_csv(model / f"seed{k}" / "results.csv").set_index(["scenario", "metric"])["value"] for k in (0, 1)]
    for key, row in summary.items():
        a, b = (seed[key] for seed in seeds)
        assert float(row["mean"]) == pytest.approx((a + b) / 2) and row["n_seeds"] == "2"
        assert float(row["sd"]) == pytest.approx(abs(a - b) / 2**0.5)  # n - 1
    assert seeds[0]["none", "ece"] != seeds[1]["none", "ece"], "seeds differ"
    masks = [np.load(model / f"seed{k}" / "masks" / "random_0.8.npz")["missing"] for k in (0, 1)]
    assert np.array_equal(*masks), "the masks of the test are the same for every seed"
