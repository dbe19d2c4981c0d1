"""DyMo's selection of CMPT's proxies, against loops over samples and modalities."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

from datasets.batch import Batch
from gaussian_parameter_generation.estimate import estimate
from models.cmpt.backbone import ProxyBackbone
from models.cmpt.cmpt import CMPT, Alignment
from models.cmpt.selection import ProxySelection
from models.dymo.gaussian import GaussianParameters
from models.dymo.prototypes import COSINE, EUCLIDEAN
from models.dymo.rules import RULES
from models.dymo.selection import SelectionRule
from models.dymo.validation import validate_selection
from models.encoders.adapters import Adapter
from tests import slow_twin as twin
from tests.bundles import assert_bundle_predicts_alike, rows_under
from tests.models.cmpt.test_cmpt import CLASSES, MODALITIES, build, mixed
from tests.networks import under
from tests.tolerances import assert_close_sums, batch_bound
from trainers import checks
from trainers import run as pipeline
from trainers.bundle import open_bundle
from trainers.config.validate import validate
from trainers.loading import Run
from trainers.predictor import load
from trainers.tracing import arguments
from utils.errors import UserError
from utils.subsets import enumerate_subsets


def patterned(m: int, rows: int, noise: float, seed: int) -> Batch:
    """Images and sounds with a pattern of their class, texts with words of it, some of another class."""
    g, kinds = torch.Generator().manual_seed(9), torch.arange(rows) % CLASSES
    image, audio = torch.randn(CLASSES, 3, 12, 12, generator=g), torch.randn(CLASSES, 12, 8, generator=g)
    words = torch.randint(3, 30, (CLASSES, 10), generator=g)
    g.manual_seed(seed)
    inputs = {}
    for name, of_class in (("image", image), ("text", words), ("audio", audio)):
        shown = torch.where(torch.rand(rows, generator=g) < 0.25, torch.randint(CLASSES, (rows,), generator=g), kinds)
        x = of_class[shown]
        inputs[name] = x if name == "text" else x + noise * torch.randn(x.shape, generator=g)
    names = [x.name for x in MODALITIES[:m]]
    return Batch({n: inputs[n] for n in names}, torch.zeros(rows, m).bool(), kinds, torch.arange(rows), complete=True)


@functools.cache
def trained(m: int) -> CMPT:
    """A model whose proxies are worth something: some are to be accepted, some not."""
    model = build(m, adapter=Adapter(rank=4, dropout=0.0), alignment=Alignment(weight=1.0))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for step in range(60):
        optimizer.zero_grad()
        model.training_step(patterned(m, 40, 0.4, 100 + step), step).backward()
        optimizer.step()
    return model.requires_grad_(False)


@functools.cache
def setting(m: int, metric: str) -> tuple[CMPT, GaussianParameters, Batch]:
    model = trained(m)
    parameters = estimate(ProxyBackbone(model, metric), [patterned(m, 150, 0.4, 1)], progress=False)
    return model, parameters, patterned(m, 48, 0.4, 2).replace(missing=mixed(m, 48))


def slow_states(model: CMPT, batch: Batch, row: int) -> dict[int, tuple[Tensor, Tensor]]:
    """Class state and proxies of each modality that a row has."""
    actual = {}
    for i, name in enumerate(model.modality_names):
        if not batch.missing[row, i]:
            states = model.encoder(i).states(batch.inputs[name][row : row + 1], model.proxies[i])
            actual[i] = states.summary[0], states.proxies[0]
    return actual


def evaluator(model: CMPT, batch: Batch, row: int, metric: str) -> Callable[[twin.Mask], tuple[Tensor, Tensor]]:
    """Mask -> logits and feature of one row; what the row lacks and the mask shows is the mean of its proxies."""
    states = slow_states(model, batch, row)

    def evaluate(mask: twin.Mask) -> tuple[Tensor, Tensor]:
        total = torch.zeros(model.width)
        for k, hidden in enumerate(mask):
            if hidden:
                continue
            if k in states:
                total = total + states[k][0]
            else:
                total = total + sum(proxies[k - (k > m)] for m, (_, proxies) in states.items()) / len(states)
        logits = model.classifier.weight @ total + model.classifier.bias
        return logits, total / total.norm() if metric == COSINE else total

    return evaluate


@pytest.mark.parametrize(
    ("m", "metric", "calibration"),
    # In the first case the calibrated rule accepts nothing here.
    [(2, COSINE, "none"), (2, EUCLIDEAN, "ratio"), (3, COSINE, "log_ratio"), (3, EUCLIDEAN, "ratio")],
)
def test_proxies_are_accepted_as_one_by_one(m: int, metric: str, calibration: str) -> None:
    model, p, batch = setting(m, metric)
    rule = SelectionRule(calibration, temperature=0.1 if metric == COSINE else 1.0)
    actual = ProxySelection(ProxyBackbone(model, metric), None, p, rule)(batch)
    accepted = float((actual.extras["accepted"] >= 0).sum() / batch.missing.sum())
    assert 0.05 < accepted < 0.95
    judge = twin.Judge(
        p.prototypes,
        p.overall,
        p.sigma,
        metric=metric,
        calibration=calibration,
        tail="robust",
        temperature=rule.temperature,
    )
    close_calls = 0
    for row, mask in enumerate(batch.missing.tolist()):
        final, order, history, logits = twin.greedy(evaluator(model, batch, row, metric), tuple(mask), judge)
        # A softmax of scores up to 10 / temperature, which float32 leaves four digits.
        if any(abs(value) < 1e-4 for step in history for value in step.values()):
            close_calls += 1  # rounding could turn it
            continue
        assert tuple(actual.extras["final_missing"][row].tolist()) == final
        assert [u for u in actual.extras["accepted"][row].tolist() if u >= 0] == order
        torch.testing.assert_close(actual.logits[row], logits, atol=batch_bound(actual.logits), rtol=0)
    assert close_calls <= 3


@torch.inference_mode()
@pytest.mark.parametrize("metric", [COSINE, EUCLIDEAN])
def test_parameters_of_every_subset(metric: str) -> None:
    """From class states alone; a row counts for the subsets whose modalities it has."""
    model = build(3)
    batch = patterned(3, 90, 0.4, 1).replace(missing=mixed(3, 90))
    p = estimate(ProxyBackbone(model, metric), [batch], progress=False)
    for s, subset in enumerate(enumerate_subsets(3).tolist()):
        rows = [r for r in range(90) if not any(batch.missing[r, i] and not subset[i] for i in range(3))]
        features = [
            sum(model.encoder(i).states(batch.inputs[n][r : r + 1], model.proxies[i]).summary[0] for i, n in
                enumerate(model.modality_names) if not subset[i])
            for r in rows
        ]  # fmt: skip
        if metric == COSINE:
            features = [F.normalize(z, dim=0) for z in features]
        prototypes, _, sigma = twin.gaussian_parameters([features], batch.target[rows].tolist(), CLASSES, metric)
        torch.testing.assert_close(p.prototypes[s], prototypes[0].float(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(p.sigma[s], sigma[0].float(), atol=1e-5, rtol=1e-3)


def test_comparators_are_cmpt_and_the_same_without_proxies() -> None:
    model, p, batch = setting(3, COSINE)
    selection = ProxySelection(ProxyBackbone(model), None, p, comparators=("discard", "impute_all"))
    outputs = selection.predict_scenarios(batch, {"some": batch})
    assert_close_sums(outputs["impute_all"]["some"].logits, model(batch).logits)
    separate = model.encode_batch(batch).diagonal(dim1=1, dim2=2).transpose(1, 2)
    alone = model.classifier(torch.where(batch.missing[..., None], 0, separate).sum(1))
    assert_close_sums(outputs["discard"]["some"].logits, alone)
    complete = ~batch.missing.any(1)
    assert_close_sums(outputs[""]["some"].logits[complete], model(batch).logits[complete])


def test_what_is_missing_changes_no_decision() -> None:
    model, p, batch = setting(3, COSINE)
    selection = ProxySelection(ProxyBackbone(model), None, p)
    inputs = {
        name: torch.where(batch.missing[:, i].view(-1, *[1] * (x.ndim - 1)), 7 if name == "text" else torch.nan, x)
        for i, (name, x) in enumerate(batch.inputs.items())
    }
    first, other = selection(batch), selection(batch.replace(inputs=inputs))
    assert torch.equal(first.logits, other.logits)
    assert torch.equal(first.extras["final_missing"], other.extras["final_missing"])


def test_the_threshold_of_validation_data_is_nowhere_worse_than_no_proxies() -> None:
    model, p, batch = setting(2, COSINE)
    selection = ProxySelection(ProxyBackbone(model), None, p)
    masks = {f"whole_{i}": (torch.arange(2) == i).expand(len(batch), -1) for i in range(2)}
    accuracy, discard, best = validate_selection(selection, [(batch, under(batch, masks))])
    for i, scenario in enumerate(masks):
        right = 0
        for row in range(len(batch)):
            whole = batch.replace(missing=masks[scenario])
            logits, _ = evaluator(model, whole, row, COSINE)(tuple(k == i for k in range(2)))
            right += int(logits.argmax() == batch.target[row])
        assert discard[scenario] == pytest.approx(right / len(batch))
        assert best == float("inf") or accuracy[scenario][best] >= discard[scenario]


@pytest.fixture
def tiny(composed: Callable[..., DictConfig], tmp_path: Path) -> Callable[..., DictConfig]:
    def build(*more: str) -> DictConfig:
        return composed(
            *(
                "dataset=SpokenDigits",
                "dataset.demo=true",
                "dataset.train_fraction=0.2",
                "dataset.form=CMPT",
                "model=CMPT",
            ),
            *("model.unimodal.training.max_epochs=1", "model.training.max_epochs=1", "trainer.limit_train_batches=3"),
            *("trainer=cpu", "trainer.enable_progress_bar=false", "missing.test=[none,whole_0,image_text_both_0.7]"),
            *(f"paths.data={tmp_path / 'data'}", f"paths.output={tmp_path / 'out'}"),
            *more,
            tiny=False,
        )

    return build


def estimate_wide(*arguments: Any, **options: Any) -> GaussianParameters:
    """Estimate Gaussian parameters, and widen those of complete rows.

    After three steps proxies are far from the class states, so that the calibration rejects all of them. With widths
    that are 20 times as large it rejects about half.
    """
    parameters = estimate(*arguments, **options)
    is_complete = ~enumerate_subsets(2).any(1)
    return replace(parameters, sigma=torch.where(is_complete[:, None], 20 * parameters.sigma, parameters.sigma))


def assert_exported(context: Run, folder: Path) -> None:
    """The bundle and its program predict as stage test did, and accept and reject the same proxies."""
    bundle = context.directory / "bundle"
    stored = np.load(context.directory / "predictions" / "whole_0.npz")
    outputs = load(bundle).outputs(rows_under(context, "whole_0"))
    np.testing.assert_allclose(
        outputs["logits"], stored["logits"], atol=1e-6 * max(1.0, np.abs(stored["logits"]).max())
    )
    np.testing.assert_array_equal(outputs["accepted"], stored["accepted"])
    is_accepted = (stored["accepted"] >= 0).any(1)
    assert 5 <= is_accepted.sum() <= len(is_accepted) - 5
    about = open_bundle(bundle).about["programs"]
    program = torch.export.load(bundle / "programs" / about["torch"]["file"]).module()
    batch = next(iter(context.data.loader("test", batch_size=len(stored["index"]))))
    assert batch.index.tolist() == stored["index"].tolist()
    decided = program(*arguments(batch.replace(missing=torch.from_numpy(stored["missing"]))))
    for key in ("accepted", "final_missing"):
        np.testing.assert_array_equal(decided[key], stored[key])
    assert set(about["outputs"]) == {"logits", *ProxySelection.program_outputs}
    assert about["torch"]["largest_difference"] <= about["torch"]["tolerance"]
    assert_bundle_predicts_alike(context, folder)


@pytest.mark.usefixtures("undrawn")
def test_the_whole_way_on_spoken_digits(
    tiny: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CMPT alone first; its weights serve the selection as they are, and the results stand side by side."""
    pipeline.run(tiny("stages=[prepare,fit,test]"))
    select = ("model.select=true", "model.selection.temperature=0.01", "export.format=[torch]")
    monkeypatch.setattr("trainers.gaussian.estimate", estimate_wide)
    rules = "model.comparators=[discard,impute_all,pool,certified,critic]"
    cfg = tiny(*select, rules, "stages=[fit,gaussian,test,report,export]")
    pipeline.run(cfg)
    context = Run(cfg)
    assert_exported(context, tmp_path)
    assert context.directory.path.parts[-3] == "CMPT_DyMo" and context.fit_directory.path.parts[-3] == "CMPT"
    actual = pd.read_csv(context.directory / "results.csv").set_index(["model", "scenario", "metric"])["value"]
    alone = pd.read_csv(context.fit_directory / "results.csv").set_index(["scenario", "metric"])["value"]
    for scenario in ("none", "whole_0", "image_text_both_0.7"):
        assert actual["CMPT_DyMo/impute_all", scenario, "accuracy"] == pytest.approx(alone[scenario, "accuracy"])
        assert 0 <= actual["CMPT_DyMo", scenario, "accepted_share"] <= 1
        assert {f"CMPT_DyMo/{name}" for name in RULES} <= set(actual.xs(scenario, level=1).index.get_level_values(0))
        assert actual["CMPT_DyMo/certified", scenario, "accepted_share"] == 0, "too few rows: it discards"
    arrays = np.load(context.directory / "predictions" / "whole_0.npz")
    assert arrays["missing"][:, 0].all() and not arrays["final_missing"][:, 1].any()
    assert isinstance(context.load_method(), ProxySelection)
    assert "CMPT_DyMo" in (tmp_path / "out" / "SpokenDigits" / "report" / "default" / "summary_accuracy.md").read_text()
    euclidean = Run(tiny("model.select=true", "distance_metric=squared_euclidean"))
    assert euclidean.label == "CMPT_DyMo_EU" and euclidean.gaussian.name == "gaussian_euclidean.safetensors"
    # Without a file of its own the stage says what makes it.
    (context.fit_directory / "gaussian_cosine.safetensors").unlink()
    with pytest.raises(UserError, match=r"no Gaussian parameters at .*: run python run.py dataset=SpokenDigits"):
        pipeline.run(tiny("model.select=true", "stages=[test]", "overwrite=true"))


def test_what_cannot_be_selected_is_said(tiny: Callable[..., DictConfig], composed: Callable[..., DictConfig]) -> None:
    with pytest.raises(UserError, match=r"requires proxies, and model\.module\.proxy=null has none"):
        validate(tiny("model.select=true", "model.module.proxy=null"))
    with pytest.raises(UserError, match=r"selects proxies, not recoveries of an imputer"):
        validate(tiny("model.select=true", "model.use_imputer=true", "imputer=Zero"))
    with pytest.raises(UserError, match=r"model\.selection\.reward=best: must be one of posterior, log"):
        validate(tiny("model.select=true", "model.selection.reward=best"))
    cfg = composed("dataset=MMIMDb", "dataset.demo=true", "model=CMPT", "model.select=true", tiny=False)
    with pytest.raises(UserError, match=r"MMIMDb has several labels, and DyMo selects by classes"):
        checks.check_task(Run(cfg))
    cfg.model.select = False
    checks.check_task(Run(cfg))  # the comparators are of the selection
    cfg.model.use_imputer = True
    assert Run(cfg).recovery_comparators == ()
