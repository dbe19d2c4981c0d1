"""Tables and figures of CMPT: experiments compose, the script runs what it says, ours stands beside the paper's."""

from __future__ import annotations

import functools
import itertools
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import DictConfig
from sklearn.metrics import f1_score, recall_score

from models.encoders.adapters import Adapter
from models.encoders.pretrained import PretrainedEncoder
from tests.contracts.test_contracts import tiny_transformer
from tests.makers import calls_of
from tests.models.cmpt.test_cmpt import build, some_batch
from tests.models.encoders.test_pretrained import SIZES
from tests.trainers.report.runs import write_run
from trainers import attention, cmpt_tables, figures, published
from trainers import run as pipeline
from trainers.cmpt_tables import Study
from trainers.config.build import build_data
from trainers.config.compose import CONFIGS, compose_config
from trainers.config.validate import validate
from trainers.report import distributions, plots, run_data
from trainers.report.figures import scenarios_at_rate_one
from trainers.report.outcomes import score_by_class
from trainers.report.runs import COLUMNS, gather
from trainers.report.statistics import is_right
from trainers.report.style import model_styles
from trainers.report.tables import summarise
from utils.errors import UserError

ROOT = CONFIGS.parent
PUBLISHED = ROOT / "docs" / "published" / "cmpt.csv"
EXPERIMENTS = sorted(file.stem for file in (CONFIGS / "experiment").glob("cmpt_*.yaml"))
TABLES = [f"table_{n}" for n in (1, 2, 3, 4, 5, 7, 8, 9, 10, 11)]
FIGURES = [f"figure_{n}" for n in (3, 4, 5, 6, 7, 10, 11, 12, 13)]  # the others share their branches


@functools.cache
def configured(*overrides: str) -> DictConfig:
    return compose_config(*overrides)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_composes_on_its_data(experiment: str) -> None:
    separate = ["dataset=CREMAD", "dataset.form=CMPT"] if "video" in experiment else ["dataset=Food101"]
    cfg = configured(f"experiment={experiment}", *separate)
    validate(cfg)
    assert cfg.model.module._target_ == "models.cmpt.cmpt.CMPT"
    assert cfg.model.training.max_epochs == (100 if "video" in experiment else 10), "the published schedule"
    # Variants have names of their own; only the selection works on another's weights.
    names = [configured(f"experiment={e}", "dataset=Food101").model.name for e in EXPERIMENTS if "video" not in e]
    same = [e for e, name in zip((e for e in EXPERIMENTS if "video" not in e), names) if name == "CMPT"]
    assert set(same) == {"cmpt_complete", "cmpt_dymo", *(f"cmpt_{r}" for r in ("30_100", "65_65", "100_30"))}


@pytest.mark.parametrize("table", [*TABLES, *FIGURES, "dymo"])
def test_what_a_table_needs_is_run(table: str, tmp_path: Path) -> None:
    """Its commands compose; after them every cell of CMPT in the published table has a run."""
    for model in ("CMPT", "CMPT_without_proxies"):
        (tmp_path / "out" / "Food101" / model / "complete" / "seed0").mkdir(parents=True)
    commands = list(Study(table, None, ["seed=0,1", f"paths.output={tmp_path}/out"]).commands())
    made = set()
    for arguments in commands:
        if arguments[0] == "run.py":
            swept = [a.split("=", 1) for a in arguments[1:] if not a.startswith("--")]
            # What a sweep lists, one after the other; lists and mappings are one value.
            values = [[f"{k}={v}"] if v[0] in "[{" else [f"{k}={x}" for x in v.split(",")] for k, v in swept]
            for overrides in itertools.product(*values):
                cfg = configured(*(o for o in overrides if not o.startswith(("seed=", "paths."))))
                assert cfg.dataset.demo is True
                made |= {(cfg.dataset.name, cfg.model.name, cfg.name, str(s)) for s in cfg.missing.test}
    rows = published.read_published(PUBLISHED)
    ours = rows[(rows["table"] == table) & rows["model"].str.startswith("CMPT") & ~rows["model"].str.contains(" - ")]
    assert (len(ours) > 0) is table.startswith("table")
    assert not {tuple(row) for row in ours[["dataset", "model", "run", "scenario"]].itertuples(index=False)} - made
    drawn = [a[2:] for a in commands if a[:2] == ["-m", "trainers.figures"]]
    kinds = {"figure_4": "per_class", "figure_5": "features", "figure_10": "features", "figure_6": "attention"}
    kinds |= {"figure_11": "attention", "figure_12": "one_model", "figure_13": "one_model"}
    assert {a[0] for a in drawn} == ({kinds[table]} if table in kinds else set())
    # A map is of one run with and one without proxies; the classes of Figure 5 gain, those of Figure 10 do not.
    if kinds.get(table) == "features":
        assert {a[a.index("--order") + 1] for a in drawn} == {"gain" if table == "figure_5" else "no_gain"}
        assert all("/CMPT/" in a[2] and "/CMPT_without_proxies/" in a[3] for a in drawn)
    if kinds.get(table) == "attention":
        assert all("CMPT_without_proxies" in a[a.index("--without") + 1] for a in drawn)
    if kinds.get(table) == "one_model":
        assert ["MMIMDb" in drawn[0][1], "Food101" in drawn[0][1]] == [table == "figure_12", table == "figure_13"]
        assert drawn[0][-4:] == ["--scenarios", "none", "whole_0", "whole_1"] and len(drawn) == 1
    printed = [a for a in commands if a[:2] == ["-m", "trainers.published"] and "--compare" in a]
    assert len(printed) == (table in ("figure_3", "figure_7"))
    totals = [a for a in commands if a[:2] == ["-m", "models.cmpt.parameters"]]
    assert len(totals) == (table in ("table_3", "table_4"))


def test_the_script_names_the_folder_from_the_root(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for data, folder in (("demo", "demo"), ("data", str(tmp_path / "data"))):
        (call,) = calls_of(tmp_path, "cmpt_tables.sh", "table_8", data, "seed=0,1")
        assert call == ["-m", "trainers.cmpt_tables", "table_8", folder, "seed=0,1"]


def test_commands_run_until_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, calls = iter((0, 3)), []

    def run(command: list[str]) -> SimpleNamespace:
        calls.append(command)
        return SimpleNamespace(returncode=next(codes))

    monkeypatch.setattr(cmpt_tables.subprocess, "run", run)
    with pytest.raises(SystemExit) as ended:
        cmpt_tables.main(["table_1", str(tmp_path), "seed=0"])
    assert ended.value.code == 3 and [command[:2] for command in calls] == [[sys.executable, "run.py"]] * 2
    assert "paths.output=outputs" in calls[0] and f"paths.data={tmp_path}" in calls[0]


def test_an_unknown_table_and_absent_lists_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="there is no 'table_6': choose from table_1, "):
        Study("table_6", None, [])
    monkeypatch.delenv("KINETICS_LISTS", raising=False)
    with pytest.raises(UserError, match=rf"my_test.txt: put them into {tmp_path}/KineticsSound, or set KINETICS_LISTS"):
        list(Study("table_4", tmp_path, []).commands())
    for name in ("my_train.txt", "my_test.txt"):
        (tmp_path / name).touch()
    monkeypatch.setenv("KINETICS_LISTS", str(tmp_path))
    last_run = list(Study("table_4", tmp_path, []).commands())[2]
    assert {f"dataset.lists={tmp_path}", "dataset.num_classes=31"} <= set(last_run)


# ---------------------------------------------------------------------------------------------------- published numbers


def test_published_numbers_agree_where_the_paper_prints_them_twice() -> None:
    rows = published.read_published(PUBLISHED)
    key = ["dataset", "model", "run", "scenario", "metric"]
    values = rows[rows["model"] == "CMPT"].groupby(key)["value"].agg(["nunique", "size"])
    assert (values["nunique"] == 1).all() and (values["size"] > 1).sum() >= 12
    golden = rows.set_index(["table", *key])["value"]
    assert golden["table_8", "MMIMDb", "CMPT", "available_100_30", "image_text_image_0.7", "f1_macro"] == 44.72
    assert golden["table_2", "CREMAD", "CMPT", "complete", "whole_0", "accuracy"] == 76.21, "video alone"
    assert golden["table_10", "KineticsSound", "CMPT_SigLIP", "complete", "whole_0", "accuracy"] == 30.76
    assert set(rows["table"]) == {*TABLES, "figure_2", "figure_3"}


def test_ours_stand_beside_the_papers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"CMPT": (0.74, 0.78), "CMPT_without_proxies": (0.70, 0.72)}
    for (model, actual), seed in itertools.product(values.items(), range(2)):
        run = tmp_path / "Food101" / model / "complete" / f"seed{seed}"
        run.mkdir(parents=True)
        row = ("Food101", model, seed, "whole_0", "accuracy", actual[seed], 100)
        pd.DataFrame([row], columns=COLUMNS).to_csv(run / "results.csv", index=False)
        (run / "DONE").touch()
    unfinished = tmp_path / "Food101" / "CMPT" / "complete" / "seed2"
    unfinished.mkdir()
    (unfinished / "results.csv").write_text("not read")
    published.main([str(PUBLISHED), "--table", "table_2", "--output", str(tmp_path)])
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if line.startswith("| CMPT ") and "85.31" in line)
    assert "| 76.00 ± 2.83 " in line and "Food101, accuracy (%), ours: 2 seeds per cell" in text
    assert "CREMAD, accuracy (%), no runs of ours yet" in text
    joined = published.join(published.read_published(PUBLISHED), published.read_ours(tmp_path))
    pair = joined[joined["model"] == "CMPT - CMPT_without_proxies"].dropna(subset="ours")
    assert pair["ours"].tolist() == [pytest.approx(5)] and pair["value"].tolist() == [3.81]
    published.main([str(PUBLISHED), "--markdown", str(tmp_path / "a" / "all.md"), "--output", str(tmp_path / "none")])
    assert "no runs of ours yet" in (tmp_path / "a" / "all.md").read_text()
    with pytest.raises(UserError, match=r"has no table 'table_6': choose from table_1"):
        published.main([str(PUBLISHED), "--table", "table_6"])
    with pytest.raises(UserError, match="holds no published results"):
        published.main([str(tmp_path / "nothing.csv")])
    PUBLISHED_COPY = tmp_path / "short.csv"
    PUBLISHED_COPY.write_text("table,dataset\ntable_1,Food101\n")
    with pytest.raises(UserError, match="needs the columns table, dataset, model, run"):
        published.main([str(PUBLISHED_COPY)])


def test_models_beside_each_other_at_every_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Figure 7: the numbers of the curves, for the metrics that the paper prints of a data set."""
    values = {"CMPT": (0.74, 0.78), "CMPT_without_proxies": (0.70, 0.72)}
    for (model, actual), seed in itertools.product(values.items(), range(2)):
        run = tmp_path / "Food101" / model / "complete" / f"seed{seed}"
        run.mkdir(parents=True)
        scenarios = {"whole_0": 0.0, "image_text_text_0.5": 0.1} | ({"whole_1": 0.2} if model == "CMPT" else {})
        rows = [("Food101", model, seed, s, "accuracy", actual[seed] + more, 100) for s, more in scenarios.items()]
        rows.append(("Food101", model, seed, "whole_0", "ece", 0.1, 100))
        pd.DataFrame(rows, columns=COLUMNS).to_csv(run / "results.csv", index=False)
        (run / "DONE").touch()
    arguments = [str(PUBLISHED), "--output", str(tmp_path), "--compare", "CMPT", "CMPT_without_proxies"]
    text = published.main(arguments)
    assert text in capsys.readouterr().out and "Food101, accuracy (%), ours: 2 seeds per cell" in text
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert table[0] == ["scenario", "CMPT", "CMPT_without_proxies", "CMPT - CMPT_without_proxies"]
    assert table[-2:] == [
        ["whole_0", "76.00 ± 2.83", "71.00 ± 1.41", "+5.00"],
        ["image_text_text_0.5", "86.00 ± 2.83", "81.00 ± 1.41", "+5.00"],
    ], "without whole_1, which one of the two lacks"
    assert "ece" not in text
    assert "No data set has finished runs of CMPT, none yet" in published.main([*arguments[:4], "CMPT", "none"])
    for wrong in (["--compare", "CMPT"], ["--compare", "CMPT", "B", "--table", "table_2"]):
        with pytest.raises(UserError, match="--compare takes at least two models and no --table"):
            published.main([str(PUBLISHED), *wrong])


# -------------------------------------------------------------------------------------------------------------- figures


def test_curves_end_with_all_rows(tmp_path: Path) -> None:
    """Which scenario is rate 1 is read off the masks."""
    run = write_run(tmp_path, "CMPT_x", 0)
    frame = pd.read_csv(run / "results.csv")
    named = {"random_0.2": "image_text_text_0.3", "random_0.4": "image_text_text_0.9"}
    frame["scenario"] = frame["scenario"].replace(named)
    frame.to_csv(run / "results.csv", index=False)
    data = dict(np.load(run / "predictions" / "random_0.4.npz"))
    data["missing"] = np.arange(3)[None] == np.full((60, 1), 2)
    np.savez_compressed(run / "predictions" / "image_text_text_0.9.npz", **data)
    runs, _ = gather([run])
    assert scenarios_at_rate_one(runs) == {("PolyMNIST", "image_text_text_1"): "whole_2"}
    summary = summarise(runs[0].frame.query("metric == 'accuracy'")).drop(columns="missing_rate")
    styles = model_styles(["CMPT_x"])
    long = summary.assign(model="CMPT_without_proxies_or_dropout")
    many = pd.concat([long.assign(model=long["model"] + str(i)) for i in range(6)])
    wide = plots.degradation(many, "accuracy", model_styles(list(many["model"].unique())))
    assert wide is not None
    wide.draw_without_rendering()
    legend = wide.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= wide.bbox.x1, "long names stay inside the figure"
    drawn = plots.degradation(summary, "accuracy", styles, at_rate_one=scenarios_at_rate_one(runs))
    assert drawn is not None
    axes = {ax.get_title(): ax for ax in drawn.axes}
    line = axes["PolyMNIST, text or sound missing"].lines[0]
    assert list(line.get_xdata()) == [0, 0.3, 0.9, 1]
    means = summary.set_index("scenario")["mean"]
    expected = [means[s] for s in ("none", "image_text_text_0.3", "image_text_text_0.9", "whole_2")]
    np.testing.assert_allclose(line.get_ydata(), expected)


def test_scores_by_class_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(200, 6)), rng.integers(5, size=200)
    actual = score_by_class(logits, target)
    np.testing.assert_allclose(actual[:5], recall_score(target, logits.argmax(1), average=None, labels=range(5)))
    assert np.isnan(actual[5])
    labels = rng.integers(2, size=(200, 6)).astype(float)
    expected = f1_score(labels, logits > 0, average=None)
    np.testing.assert_allclose(score_by_class(logits, labels), expected)
    labels[:, 3] = 0
    assert np.isnan(score_by_class(logits, labels)[3])


@pytest.mark.parametrize("family", ["clip", "vit", "siglip", "ast"])
def test_attention_is_that_of_the_library(family: str) -> None:
    torch.manual_seed(0)
    encoder = PretrainedEncoder(family, size=SIZES[family]).eval()
    for parameter in encoder.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    x = torch.randn(2, *encoder.shape)
    rows, columns = encoder.grid
    proxies = torch.randn(2, encoder.hidden)
    actual = encoder.attention(x, proxies)
    classes = 0 if family == "siglip" else 1
    assert actual.shape == (2, 2 + classes, rows, columns)
    encoder.network.set_attn_implementation("eager")
    remaining = []
    blocks = encoder.network.get_submodule(encoder.layout.blocks)
    path = encoder.layout.projections["q"].rpartition(".")[0]
    hook = blocks[-1].get_submodule(path).register_forward_hook(lambda _, __, out: remaining.append(out[1]))
    with torch.no_grad():
        encoder.states(x, proxies)
    hook.remove()
    expected = remaining[0].mean(1)[:, : 2 + classes, -rows * columns :].unflatten(-1, (rows, columns))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)
    if classes:  # whom nobody sees changes nothing
        encoder.network.set_attn_implementation("sdpa")
        alone = encoder.attention(x)
        torch.testing.assert_close(encoder.attention(x, proxies, read_only=True)[:, 2:], alone, atol=1e-5, rtol=1e-4)


def test_attention_of_timm_is_the_same_with_and_without_adapters() -> None:
    torch.manual_seed(0)
    encoder = PretrainedEncoder("timm/vit_tiny_patch16_224", size={"depth": 2, "img_size": 32, "patch_size": 8}).eval()
    x = torch.randn(2, 3, 32, 32)
    plain = encoder.attention(x)
    assert plain.shape == (2, 1, 4, 4)
    encoder.adapt(Adapter())
    torch.testing.assert_close(encoder.eval().attention(x), plain, atol=1e-5, rtol=1e-4)


def test_attention_maps_of_cmpt() -> None:
    model, batch = build(3), some_batch(3)
    assert model.attention(0, batch.inputs["image"]).shape == (8, 3, *model.encoder(0).grid)
    assert build(proxy=None).attention(0, batch.inputs["image"]).shape == (8, 1, *model.encoder(0).grid)
    with pytest.raises(UserError, match="has no grid of patches"):
        model.attention(1, batch.inputs["text"])


@pytest.fixture
def food(tmp_path: Path) -> Callable[..., list[str]]:
    def overrides(*more: str) -> list[str]:
        return [
            *("experiment=cmpt_complete", "dataset=Food101", "dataset.demo=true", "trainer=cpu"),
            *("dataset.side=32", "dataset.stored_side=40", "dataset.text_length=24", "dataset.train_fraction=0.4"),
            *("model.training.max_epochs=1", "trainer.limit_train_batches=2", "trainer.enable_progress_bar=false"),
            *tiny_transformer("image", "clip", image_size=32, patch_size=8),
            *tiny_transformer("text", "bert", max_position_embeddings=24),
            *(f"paths.data={tmp_path / 'data'}", f"paths.output={tmp_path / 'out'}", *more),
        ]

    return overrides


def test_pictures_of_a_run(food: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = compose_config(*food("stages=[prepare,fit,test,report]"))
    pipeline.run(cfg)
    run = tmp_path / "out" / "Food101" / "CMPT" / "complete" / "seed0"
    remaining = np.load(run / "predictions" / "whole_0.npz")["features"]
    assert remaining.shape == (len(np.load(run / "predictions" / "none.npz")["target"]), 16)
    assert "features" not in np.load(run / "predictions" / "image_text_text_0.5.npz")
    pictures = tmp_path / "out" / "Food101" / "report" / "complete" / "figures"
    assert (pictures / "degradation_accuracy.png").stat().st_size > 5000
    control = run.parents[2] / "CMPT_without_proxies" / "complete" / "seed0"
    shutil.copytree(run, control)
    (control / "stages" / "test.json").unlink()  # the checksum of results.csv
    frame = pd.read_csv(control / "results.csv").assign(model="CMPT_without_proxies")
    frame.to_csv(control / "results.csv", index=False)
    figures.main(["per_class", str(tmp_path / "classes.png"), str(run), str(control), "--scenario", "whole_1"])
    figures.main(["one_model", str(tmp_path / "one.png"), str(run)])
    figures.main(["features", str(tmp_path / "features.png"), str(run), str(control), "--classes", "4", "--rows", "20"])
    capsys.readouterr()
    figures.main(["attention", str(tmp_path / "attention.png"), *food(), "--rows", "2", "--without", str(control)])
    shares = capsys.readouterr().out.splitlines()
    # The same predictions on both sides: no row changes its outcome.
    assert [line.split("%")[0].split()[-1] for line in (shares[0], shares[2])] == ["0.00", "0.00"]
    assert all("of 70 rows" in line and "paper" not in line for line in shares[:4]), (
        "demo data have no published shares"
    )
    for name in ("classes", "one", "features", "attention"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    with pytest.raises(UserError, match=r"has no predictions of 'whole_01' \(it has image_text"):
        figures.main(["per_class", str(tmp_path / "x.png"), str(run), "--scenario", "whole_01"])
    with pytest.raises(UserError, match="features compares two runs"):
        figures.main(["features", str(tmp_path / "x.png"), str(run)])
    with pytest.raises(UserError, match="give --without RUN_DIRECTORY"):
        figures.main(["attention", str(tmp_path / "x.png"), *food()])
    other = write_run(tmp_path / "others", "M3Care", 0)
    with pytest.raises(UserError, match="give runs of one"):
        figures.per_class([run, other], "none")
    with pytest.raises(UserError, match="one_model draws one model, not CMPT, CMPT_without_proxies"):
        figures.one_model([run, control], ["none"])


SCENARIOS = ("none", "whole_0", "whole_1")


@pytest.fixture
def made_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a finished run whose predictions are given: scenario -> (N,) predicted class, or (N, C) labels."""
    about = SimpleNamespace(class_names=[], modality_names=["image", "text"])
    monkeypatch.setattr(run_data, "data_module", lambda _: about)

    def write(model: str, target: np.ndarray, predicted: dict[str, np.ndarray], seed: int = 0, **more: Any) -> Path:
        run = tmp_path / "Food101" / model / "complete" / f"seed{seed}"
        (run / "predictions").mkdir(parents=True)
        classes_of_set = target.shape[1] if target.ndim == 2 else int(target.max()) + 1
        about.class_names = [f"dish {c}" for c in range(classes_of_set)]
        rng, rows = np.random.default_rng([seed, len(model)]), []
        for scenario, classes in predicted.items():
            logits = 2.0 * classes - 1 if classes.ndim == 2 else np.eye(classes_of_set)[classes]
            hidden = np.arange(2)[None] == np.full((len(target), 1), SCENARIOS.index(scenario) - 1)
            arrays = {"index": np.arange(len(target)), "logits": logits, "target": target, "missing": hidden}
            if scenario in more.get("features", {}):
                arrays["features"] = more["features"][scenario]
            order = rng.permutation(len(target))  # rows are paired by their index, not by their place in the file
            np.savez(run / "predictions" / f"{scenario}.npz", **{k: v[order] for k, v in arrays.items()})
            rows.append(("Food101", model, seed, scenario, "accuracy", 0.5, len(target)))
        pd.DataFrame(rows, columns=COLUMNS).to_csv(run / "results.csv", index=False)
        (run / "DONE").touch()
        return run

    return write


def with_accuracy(target: np.ndarray, right: list[int], wrong: int) -> np.ndarray:
    """Predictions with so many right rows of each class, the others of class ``wrong`` (or the next one)."""
    predicted = target.copy()
    for c, number in enumerate(right):
        predicted[np.flatnonzero(target == c)[number:]] = wrong if wrong != c else (c + 1) % len(right)
    return predicted


def test_classes_are_sorted_by_gain(made_run: Callable[..., Path]) -> None:
    """Figures 4, 8 and 9, with gains that follow from the counts: seeds averaged, ties in the order of the classes."""
    target = np.repeat(np.arange(4), 10)
    runs = [
        made_run("CMPT", target, {"whole_1": with_accuracy(target, [5, 9, 4, 6], 0)}, seed=0),
        made_run("CMPT", target, {"whole_1": with_accuracy(target, [7, 9, 4, 6], 0)}, seed=1),
        made_run("CMPT_without_proxies", target, {"whole_1": with_accuracy(target, [6, 4, 8, 6], 0)}),
    ]
    figure = figures.per_class(runs, "whole_1")
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["dish 1", "dish 0", "dish 3", "dish 2"]
    (right,) = ax.child_axes
    assert [label.get_text() for label in right.get_yticklabels()] == ["+50.0", "+0.0", "+0.0", "−40.0"]
    first = ax.collections[1]  # after the lines that join the marks of a class
    np.testing.assert_allclose(first.get_offsets()[:, 0], [90, 60, 60, 40])
    assert "text missing" in figure.get_suptitle() and "CMPT minus CMPT_without_proxies" in figure.get_suptitle()


def test_many_classes_go_into_panels_and_nothing_overlaps() -> None:
    rng = np.random.default_rng(0)
    names = [f"grilled_cheese_sandwich_{c}" for c in range(101)]
    values = pd.DataFrame(rng.uniform(0, 100, (101, 3)), columns=["CMPT", "A", "B"], index=names)
    figure = distributions.per_class(values, "right (%)", model_styles(list(values)), "x", values["CMPT"])
    labels = [label.get_text() for ax in figure.axes for label in ax.get_yticklabels()]
    assert len(figure.axes) == 3 and labels == names
    figure.draw_without_rendering()
    boxes = [ax.get_tightbbox() for ax in figure.axes]
    assert all(left.x1 <= right.x0 for left, right in itertools.pairwise(boxes)), "panels do not overlap"
    heights = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(heights)), "names do not overlap"


def test_one_model_complete_text_only_and_image_only(made_run: Callable[..., Path]) -> None:
    """Figures 12 and 13: sorted by the score on complete data; ``whole_0`` leaves the text, ``whole_1`` the image."""
    target = np.repeat(np.arange(3), 10)
    counts = {"none": [7, 9, 8], "whole_0": [5, 2, 3], "whole_1": [1, 6, 4]}
    run = made_run("CMPT", target, {s: with_accuracy(target, right, 0) for s, right in counts.items()})
    (ax,) = figures.one_model([run], ["none", "whole_0", "whole_1"]).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["dish 1", "dish 2", "dish 0"]
    marks = {c.get_label(): list(c.get_offsets()[:, 0]) for c in ax.collections if not c.get_label().startswith("_")}
    assert marks == {"complete": [90, 80, 70], "text only": [20, 30, 50], "image only": [60, 40, 10]}
    # Several labels: F1 of scikit-learn.
    rng = np.random.default_rng(0)
    labels, messages = rng.integers(2, size=(2, 50, 3))
    many = made_run("CMPT_labels", labels.astype(float), {"none": messages})
    (ax,) = figures.one_model([many], ["none"]).axes
    expected = np.sort(100 * f1_score(labels, messages, average=None))[::-1]
    np.testing.assert_allclose(ax.collections[1].get_offsets()[:, 0], expected)
    assert ax.get_xlabel() == "F1 (%)"


def test_classes_are_chosen_by_gain_or_lack_of_it() -> None:
    gain = np.array([0.1, np.nan, -0.3, 0.4, 0.0, 0.4])
    assert figures.choose_classes(gain, "gain", 3).tolist() == [3, 5, 0]
    assert figures.choose_classes(gain, "no_gain", 2).tolist() == [2, 4]
    assert figures.choose_classes(gain, "gain", 10).tolist() == [3, 5, 0, 4, 2], "a class without rows is never chosen"


@pytest.mark.parametrize(("order", "expected"), [("gain", [1, 0]), ("no_gain", [2, 3])])
def test_one_map_of_three_point_sets(made_run: Callable[..., Path], order: str, expected: list[int]) -> None:
    """Figures 5 and 10: complete, missing without and missing with proxies of the same rows, in one map."""
    target = np.tile(np.arange(4), 10)
    rng = np.random.default_rng(0)
    # Points of a set lie together, far from the other sets: a map of another file or row would show.
    sets = {name: 100 * i + rng.normal(size=(40, 8)) for i, name in enumerate(("complete", "without", "with"))}
    run = made_run(
        "CMPT",
        target,
        {"none": target, "whole_1": with_accuracy(target, [8, 9, 3, 5], 0)},
        features={"none": sets["complete"], "whole_1": sets["with"]},
    )
    control = made_run(
        "CMPT_without_proxies",
        target,
        {"whole_1": with_accuracy(target, [6, 2, 9, 5], 0)},
        features={"whole_1": sets["without"]},
    )
    figure = figures.features(run, control, "whole_1", order, classes=2, rows=100)
    (ax,) = figure.axes
    points = [c.get_offsets() for c in ax.collections if len(c.get_offsets())]
    assert [len(p) for p in points] == [10] * 6, "three sets of two classes with ten rows each"
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[:3] == ["complete", "missing, without proxies", "missing, with proxies"]
    assert [int(name.split("dish ")[1].split(" ")[0]) for name in names[3:]] == expected
    centres = [np.concatenate([points[i], points[i + 3]]).mean(0) for i in range(3)]
    spread = max(np.concatenate([points[i], points[i + 3]]).std(0).max() for i in range(3))
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(centres, 2)]
    assert min(distances) > 1.5 * spread
    # What cannot be drawn is refused by name.
    bare = made_run("CMPT_bare", target, {"none": target, "whole_1": target})
    for pair in ((run, bare), (bare, control)):
        with pytest.raises(
            UserError, match=r"CMPT_bare/complete/seed0 has no features: .*report.features=\[none,whole_1\]"
        ):
            figures.features(*pair, "whole_1", order, 2, 100)
    wide = made_run("CMPT_wide", target, {"whole_1": target}, features={"whole_1": np.zeros((40, 9))})
    with pytest.raises(UserError, match=r"widths \[8, 9\] have no common map"):
        figures.features(run, wide, "whole_1", order, 2, 100)
    labels = made_run("CMPT_labels", np.eye(4)[target], {"none": np.eye(4)[target], "whole_1": np.eye(4)[target]})
    with pytest.raises(UserError, match="differ in the target of the test rows"):
        figures.features(run, labels, "whole_1", order, 2, 100)
    with pytest.raises(UserError, match="has several labels"):
        figures.features(labels, labels, "whole_1", order, 2, 100)


def test_samples_by_outcome_and_their_shares(made_run: Callable[..., Path]) -> None:
    """Figures 6 and 11, against a loop over the rows."""
    target = np.random.default_rng(0).integers(3, size=200)
    predicted = [np.random.default_rng(seed).integers(3, size=200) for seed in (1, 2)]
    runs = [
        made_run(name, target, {"whole_1": p})
        for name, p in zip(("CMPT", "CMPT_without_proxies"), predicted, strict=True)
    ]
    _, (data, without) = run_data.load_pair(*runs, "whole_1")
    outcomes = [is_right(d["logits"], d["target"]) for d in (data, without)]
    expected: dict[str, list[int]] = {name: [] for name in attention.OUTCOMES}
    for row, (y, new, old) in enumerate(zip(target, *predicted, strict=True)):
        name = {
            (False, True): "wrong without proxies, right with",
            (True, True): "right with and without proxies",
            (True, False): "right without proxies, wrong with",
            (False, False): "wrong with and without proxies",
        }[bool(old == y), bool(new == y)]
        expected[name].append(row)
    groups = attention.rows_by_outcome(*outcomes)
    assert {name: rows.tolist() for name, rows in groups.items()} == expected
    lines = attention.describe_shares(groups, attention.PUBLISHED_SHARES).splitlines()
    for (name, rows), line in zip(expected.items(), lines, strict=True):
        assert line.startswith(name) and f"{len(rows) / 2:.2f} % of 200 rows ({len(rows)})" in line
    published_shares = [line.partition("paper: about ")[2] for line in lines]
    assert published_shares == ["15 %)", "60 %)", "3 %)", ""]
    # Of several labels a row is right where every labelled one is.
    logits = np.array([[1.0, -1], [1, 1], [-1, 1]])
    assert is_right(logits, np.array([[1, 0], [1, 0], [-1, 1]])).tolist() == [True, False, True]


def test_frames_are_shown_as_they_were() -> None:
    """Before the normalisation that an encoder's weights want."""
    cfg = configured("dataset=CREMAD", "dataset.demo=true", "dataset.form=CMPT", "model=CMPT")
    data = build_data(cfg)
    x = torch.rand(2, 3, 8, 8)
    frames = cfg.dataset.frames
    mean, deviation = (torch.tensor(list(v))[:, None, None] for v in (frames.mean, frames.deviation))
    torch.testing.assert_close(data.pixels("visual", (x - mean) / deviation), x, atol=1e-5, rtol=1e-5)
