"""Tables and figures of CMPT: experiments compose, the script runs what it says, ours stands beside the paper's."""

from __future__ import annotations

import functools
import itertools
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from sklearn.metrics import f1_score, recall_score

from models.encoders.pretrained import Adapter, PretrainedEncoder
from tests.test_cmpt import build, some_batch
from tests.test_contracts import tiny_transformer
from tests.test_pretrained import SIZES
from tests.test_report import write_run
from trainers import figures, pipeline, published, report
from utils import plotting
from utils.build import build_data
from utils.errors import UserError
from utils.validate import CONFIGS, validate

ROOT = CONFIGS.parent
PUBLISHED = ROOT / "docs" / "published" / "cmpt.csv"
EXPERIMENTS = sorted(file.stem for file in (CONFIGS / "experiment").glob("cmpt_*.yaml"))
TABLES = [f"table_{n}" for n in (1, 2, 3, 4, 5, 7, 8, 9, 10, 11)]
FIGURES = [f"figure_{n}" for n in (3, 4, 5, 6)]  # the others share their branches


@functools.cache
def configured(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return compose("config", list(overrides))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_composes_on_its_data(experiment: str) -> None:
    own = ["dataset=CREMAD", "dataset.form=CMPT"] if "video" in experiment else ["dataset=Food101"]
    cfg = configured(f"experiment={experiment}", *own)
    validate(cfg)
    assert cfg.model.module._target_ == "models.cmpt.cmpt.CMPT"
    assert cfg.model.training.max_epochs == (100 if "video" in experiment else 10), "the published schedule"
    # Variants have names of their own; only the selection works on another's weights.
    names = [configured(f"experiment={e}", "dataset=Food101").model.name for e in EXPERIMENTS if "video" not in e]
    same = [e for e, name in zip((e for e in EXPERIMENTS if "video" not in e), names) if name == "CMPT"]
    assert set(same) == {"cmpt_complete", "cmpt_dymo", *(f"cmpt_{r}" for r in ("30_100", "65_65", "100_30"))}


@pytest.mark.parametrize("table", [*TABLES, *FIGURES, "dymo"])
def test_the_script_runs_what_a_table_needs(table: str, tmp_path: Path) -> None:
    """Its commands compose; after them every cell of CMPT in the published table has a run."""
    (tmp_path / "job_scripts").mkdir()
    shutil.copy(ROOT / "job_scripts" / "cmpt_tables.sh", tmp_path / "job_scripts")
    (tmp_path / "job_scripts" / "_environment.sh").write_text('python() { printf "%q " "$@"; echo; }\n')
    command = ["bash", "job_scripts/cmpt_tables.sh", table, "demo", "seed=0,1", f"paths.output={tmp_path}/out"]
    for model in ("CMPT", "CMPT_without_proxies"):
        (tmp_path / "out" / "Food101" / model / "complete" / "seed0").mkdir(parents=True)
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
    commands = [shlex.split(line) for line in found if line.startswith(("run.py", "-m "))]
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
    drawn = {a[2] for a in commands if a[:2] == ["-m", "trainers.figures"]}
    expected = {"figure_4": "per_class", "figure_5": "features", "figure_6": "attention"}
    assert drawn == ({expected[table]} if table in expected else set())


def test_an_unknown_table_is_said(tmp_path: Path) -> None:
    (tmp_path / "job_scripts").mkdir()
    shutil.copy(ROOT / "job_scripts" / "cmpt_tables.sh", tmp_path / "job_scripts")
    (tmp_path / "job_scripts" / "_environment.sh").write_text("")
    done = subprocess.run(
        ["bash", "job_scripts/cmpt_tables.sh", "table_6", "demo"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2 and "there is no 'table_6'" in done.stderr


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
    for (model, found), seed in itertools.product(values.items(), range(2)):
        run = tmp_path / "Food101" / model / "complete" / f"seed{seed}"
        run.mkdir(parents=True)
        row = ("Food101", model, seed, "whole_0", "accuracy", found[seed], 100)
        pd.DataFrame([row], columns=report.COLUMNS).to_csv(run / "results.csv", index=False)
        (run / "DONE").touch()
    unfinished = tmp_path / "Food101" / "CMPT" / "complete" / "seed2"
    unfinished.mkdir()
    (unfinished / "results.csv").write_text("not read")
    published.main([str(PUBLISHED), "--table", "table_2", "--output", str(tmp_path)])
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if line.startswith("| CMPT ") and "85.31" in line)
    assert "| 76.00 ± 2.83 " in line and "Food101, accuracy (%), ours: 2 seeds a cell" in text
    assert "CREMAD, accuracy (%), no runs of ours yet" in text
    joined = published.join(published.read_published(PUBLISHED), published.read_ours(tmp_path))
    both = joined[joined["model"] == "CMPT - CMPT_without_proxies"].dropna(subset="ours")
    assert both["ours"].tolist() == [pytest.approx(5)] and both["value"].tolist() == [3.81]
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
    runs, _ = report.gather([run])
    assert report._rate_one(runs) == {("PolyMNIST", "image_text_text_"): "whole_2"}
    summary = report.summarise(runs[0].frame.query("metric == 'accuracy'")).drop(columns="missing_rate")
    styles = plotting.model_styles(["CMPT_x"])
    long = summary.assign(model="CMPT_without_proxies_or_dropout")
    several = pd.concat([long.assign(model=long["model"] + str(i)) for i in range(6)])
    wide = plotting.degradation(several, "accuracy", plotting.model_styles(list(several["model"].unique())))
    assert wide is not None
    wide.draw_without_rendering()
    legend = wide.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= wide.bbox.x1, "long names stay inside the figure"
    drawn = plotting.degradation(summary, "accuracy", styles, report._rate_one(runs))
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
    found = figures.score_by_class(logits, target)
    np.testing.assert_allclose(found[:5], recall_score(target, logits.argmax(1), average=None, labels=range(5)))
    assert np.isnan(found[5])
    labels = rng.integers(2, size=(200, 6)).astype(float)
    expected = f1_score(labels, logits > 0, average=None)
    np.testing.assert_allclose(figures.score_by_class(logits, labels), expected)
    labels[:, 3] = 0
    assert np.isnan(figures.score_by_class(logits, labels)[3])


@pytest.mark.parametrize("family", ["clip", "vit", "siglip", "ast"])
def test_attention_is_that_of_the_library(family: str) -> None:
    torch.manual_seed(0)
    encoder = PretrainedEncoder(family, size=SIZES[family]).eval()
    for parameter in encoder.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    x = torch.randn(2, *encoder.shape)
    rows, columns = encoder.grid
    proxies = torch.randn(2, encoder.hidden)
    found = encoder.attention(x, proxies)
    classes = 0 if family == "siglip" else 1
    assert found.shape == (2, 2 + classes, rows, columns)
    encoder.network.set_attn_implementation("eager")
    kept = []
    blocks = encoder.network.get_submodule(encoder.layout.blocks)
    path = encoder.layout.projections["q"].rpartition(".")[0]
    hook = blocks[-1].get_submodule(path).register_forward_hook(lambda _, __, out: kept.append(out[1]))
    with torch.no_grad():
        encoder.states(x, proxies)
    hook.remove()
    expected = kept[0].mean(1)[:, : 2 + classes, -rows * columns :].unflatten(-1, (rows, columns))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
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
    with pytest.raises(UserError, match="bert has no patches"):
        model.attention(1, batch.inputs["text"])


@pytest.fixture
def food(tmp_path: Path) -> Callable[..., list[str]]:
    def overrides(*more: str) -> list[str]:
        return [
            *("experiment=cmpt_complete", "dataset=Food101", "dataset.demo=true", "trainer=cpu"),
            *("dataset.side=32", "dataset.stored_side=40", "dataset.text_length=24", "dataset.low=0.4"),
            *("model.training.max_epochs=1", "trainer.limit_train_batches=2", "trainer.enable_progress_bar=false"),
            *tiny_transformer("image", "clip", image_size=32, patch_size=8),
            *tiny_transformer("text", "bert", max_position_embeddings=24),
            *(f"paths.data={tmp_path / 'data'}", f"paths.output={tmp_path / 'out'}", *more),
        ]

    return overrides


def test_pictures_of_a_run(food: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with initialize_config_dir(str(CONFIGS), version_base=None):
        cfg = compose("config", food("stages=[prepare,fit,test,report]"))
    pipeline.run(cfg)
    run = tmp_path / "out" / "Food101" / "CMPT" / "complete" / "seed0"
    kept = np.load(run / "predictions" / "whole_0.npz")["features"]
    assert kept.shape == (len(np.load(run / "predictions" / "none.npz")["target"]), 16)
    assert "features" not in np.load(run / "predictions" / "image_text_text_0.5.npz")
    pictures = tmp_path / "out" / "Food101" / "report" / "complete" / "figures"
    assert (pictures / "degradation_accuracy.png").stat().st_size > 5000
    figures.main(["per_class", str(tmp_path / "classes.png"), str(run), "--scenario", "whole_1"])
    figures.main(["features", str(tmp_path / "features.png"), str(run), "--classes", "4", "--rows", "20"])
    figures.main(["attention", str(tmp_path / "attention.png"), *food(), "--rows", "2"])
    for name in ("classes", "features", "attention"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    with pytest.raises(UserError, match=r"has no predictions of 'whole_01' \(it has image_text"):
        figures.main(["per_class", str(tmp_path / "x.png"), str(run), "--scenario", "whole_01"])
    with pytest.raises(UserError, match="features are those of one run"):
        figures.main(["features", str(tmp_path / "x.png"), str(run), str(run)])
    other = write_run(tmp_path / "others", "M3Care", 0)
    with pytest.raises(UserError, match=re.escape("has no features: run stage test with report.features=[none]")):
        (other / "predictions" / "file-masks.csv.npz").touch()
        figures.features(_renamed(other), 3, 10)
    with pytest.raises(UserError, match="give runs of one"):
        figures.per_class([run, other], "none")


def _renamed(run: Path) -> Path:
    """Without the scenario whose file name differs from its name."""
    frame = pd.read_csv(run / "results.csv")
    frame[~frame["scenario"].str.startswith("file:")].to_csv(run / "results.csv", index=False)
    return run


def test_frames_are_shown_as_they_were() -> None:
    """Before the normalisation that an encoder's weights want."""
    cfg = configured("dataset=CREMAD", "dataset.demo=true", "dataset.form=CMPT", "model=CMPT")
    data = build_data(cfg)
    x = torch.rand(2, 3, 8, 8)
    frames = cfg.dataset.frames
    mean, deviation = (torch.tensor(list(v))[:, None, None] for v in (frames.mean, frames.deviation))
    torch.testing.assert_close(data.pixels("visual", (x - mean) / deviation), x, atol=1e-5, rtol=1e-5)
