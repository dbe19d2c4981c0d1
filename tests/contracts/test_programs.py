"""Exported programs predict as the methods do, in any batch and under every pattern of missing modalities, or the
method is refused with its reason."""

from __future__ import annotations

import functools
import itertools
import math
import re
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch._export.serde import schema
from torch.export import exported_program
from torch.onnx._internal.exporter._registration import ONNXRegistry

from datasets.batch import Batch, Modality, hide, missing_content
from datasets.rows import take_rows
from models.base import Method
from models.cmpt.backbone import ProxyBackbone
from models.cmpt.selection import ProxySelection
from models.completed import Completed
from models.dymo.method import DyMo
from models.dymo.prototypes import COSINE, EUCLIDEAN
from models.dymo.selection import SelectionRule
from models.encoders.adapters import Adapter
from models.encoders.resnet import ResNetEncoder
from models.imputers.base import FittedImputer, Imputer
from models.imputers.simple import Mean
from models.program import Program
from models.udml.udml import UDML
from tests.contracts.test_baselines import METHODS, ONLY, SMALL, SMALL_ENCODERS, build, some_batch, spoilt
from tests.contracts.test_bundles import DYMO, parts_config
from tests.makers import make_image_table
from tests.models.cmpt import test_cmpt as cmpt_cases
from tests.models.cmpt import test_cmpt_selection as proxies
from tests.models.dymo.test_fixed_selection import REWARD_ROUNDING
from tests.models.dymo.test_selection import setting
from tests.networks import class_batch
from tests.tolerances import batch_bound
from trainers import run as pipeline
from trainers.bundle import open_bundle
from trainers.config.compose import CONFIGS, compose_config, group_options
from trainers.config.imputers import build_imputer
from trainers.config.validate import validate
from trainers.export import export
from trainers.loading import Run
from trainers.onnx_parts import Recovery, write_parts
from trainers.onnx_program import open_onnx, run_onnx, save_onnx
from trainers.programs import rows_to_compare
from trainers.tracing import arguments, blank, trace
from utils.errors import UserError
from utils.subsets import enumerate_subsets


@pytest.fixture(scope="module", autouse=True)
def operators_once() -> Iterator[None]:
    """PyTorch lists its operators anew for each program, which takes as long as to convert a small one, and looks up
    the types of its format anew for each node that it reads."""
    hints, known = typing.get_type_hints, dict[type, Any]()

    def hints_once(cls: Any, globalns: Any = None, *arguments: Any, **options: Any) -> Any:
        if globalns is not vars(schema):
            return hints(cls, globalns, *arguments, **options)
        if cls not in known:
            known[cls] = hints(cls, globalns)
        return known[cls]

    with pytest.MonkeyPatch.context() as patch:
        made, collected = ONNXRegistry.from_torchlib, exported_program._collect_all_valid_cia_ops
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(made)))
        patch.setattr(exported_program, "_collect_all_valid_cia_ops", functools.cache(collected))
        patch.setattr(typing, "get_type_hints", hints_once)
        yield


# One family per method: that with a table, for the methods whose code asks for cells; else the fastest to trace.
WITH_TABLE = ("ModDrop", "Unimodal", "MTL", "PDF", "SimMLM", "MUSE", "UDML", "MaskedAttention")
ONLY_TABLE = ("TokenUnimodal", "Zeros_MLP", "Pooling_MLP", "Late", "ModelSelection")
FAMILY = {method: "CAD" if method in WITH_TABLE + ONLY_TABLE else "MST" for method in METHODS}
FAMILY |= {method: families[0] for method, families in ONLY.items()}
# A further block of the same class adds nothing but time.
SHALLOW = {
    **{method: ["model.module.layers=1"] for method in ("FlexMoE", "M3Care", "MTL", "ModDrop", "MaskedAttention")},
    "OnlineMAE": ["model.module.layers=[1,1,1]"],
}
# Options with which a method cannot be exported, and why.
REFUSED = {
    ("M3Care", "reference=true"): "its predictions depend on the other rows of a batch",
    ("MUSE", "reference=true"): "its predictions depend on the other rows of a batch",
    ("CMVAE_Classification", "reference=true"): "reference=true draws one modality by the number of the row",
}


def small_method(method: str, *options: str) -> Any:
    """A method whose parameters all count."""
    torch.manual_seed(0)
    family = FAMILY[method]
    settings = [*SHALLOW.get(method, []), *(f"model.module.{option}" for option in options)]
    model = build(method, family, *METHODS[method], *SMALL_ENCODERS.get(family, []), *settings)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


Runner = Callable[[Batch], dict[str, Tensor]]


def exported(method: Method, batch: Batch, folder: Path) -> dict[str, Runner]:
    """Format -> the method as a program that was written, and read again."""
    example = blank(arguments(batch))
    # PyTorch notes the stack of each operation, which takes a third longer below the frames of pytest.
    with ThreadPoolExecutor(1) as thread:
        program = thread.submit(trace, Program(method).eval(), example, "method").result()
    torch.export.save(program, folder / "model.pt2")
    save_onnx(program, example, ["logits", *method.program_outputs], folder / "model.onnx")
    loaded, converted = torch.export.load(folder / "model.pt2").module(), open_onnx(folder / "model.onnx")
    return {
        "torch": lambda rows: loaded(*arguments(rows)),
        "onnx": lambda rows: converted(arguments(rows)),
    }


def assert_alike(method: Method, programs: dict[str, Runner], *batches: Batch) -> None:
    """All programs give the logits of the method, also with NaN in missing content."""
    classifier = getattr(method, "method", method)
    for rows in batches:
        expected = method(rows).logits
        for (kind, program), content in itertools.product(programs.items(), (rows, spoilt(classifier, rows, math.nan))):
            logits = program(content)["logits"]
            torch.testing.assert_close(
                logits, expected, atol=batch_bound(expected), rtol=0, msg=lambda text, kind=kind: f"{kind}: {text}"
            )


def every_pattern(family: str) -> Batch:
    """A row under each subset of modalities, and of tables half of the cells under each subset without them."""
    m = len(SMALL[family][0])
    subsets = enumerate_subsets(m)
    batch = some_batch(family, rows=2 * len(subsets))
    missing = subsets.repeat(2, 1)
    is_complete_mask = (torch.arange(len(missing)) < len(subsets))[:, None]
    cells = {
        name: missing[:, list(batch.inputs).index(name), None] & (is_complete_mask | (torch.arange(mask.shape[1]) > 1))
        for name, mask in batch.feature_missing.items()
    }
    return batch.replace(missing=missing, feature_missing=cells)


@pytest.mark.parametrize("name", METHODS)
def test_a_program_predicts_as_the_method(name: str, tmp_path: Path) -> None:
    method, family = small_method(name), FAMILY[name]
    assert method.why_not_exported() is None
    batch, patterns = some_batch(family), every_pattern(family)
    with torch.no_grad():
        programs = exported(method, batch, tmp_path)
        few = (take_rows(batch, torch.arange(1)), take_rows(batch, torch.arange(9, 12)))
        assert_alike(method, programs, batch, patterns, *few)
        # Another row under another mask has other logits, so that the comparison can fail.
        assert not torch.allclose(method(batch).logits[1:], method(batch).logits[:-1], atol=1e-3)


@pytest.mark.parametrize(("name", "option"), REFUSED)
def test_what_cannot_be_exported_says_why(name: str, option: str) -> None:
    assert small_method(name, option).why_not_exported() == REFUSED[name, option]


def test_the_sparse_form_of_dynmm_is_exported_as_the_dense_one(tmp_path: Path) -> None:
    method, batch = small_method("DynMM", "sparse=true"), some_batch("MST")
    with torch.no_grad():
        assert_alike(method, exported(method, batch, tmp_path), batch)


# ------------------------------------------------------------------------------------------------ imputers, selection

# Imputer -> family, and what makes it small.
IMPUTERS: dict[str, tuple[str, list[str]]] = {
    "Zero": ("CAD", []),
    "Mean": ("CAD", []),
    "MoPoE": ("MST", ["imputer.latent=8"]),
    "MMVAEPlus": ("CAD", ["imputer.shared=8", "imputer.private=4"]),  # default networks; CMVAE has the published ones
    "CMVAE": ("PolyMNIST", ["imputer.width=4", "imputer.shared=8", "imputer.private=4", "imputer.module.clusters=4"]),
    "TIP": (
        "CAD",
        [
            *("imputer.image_encoder.architecture=resnet18", "imputer.module.blocks=1", "imputer.module.heads=2"),
            *(f"imputer.table_encoder.{key}" for key in ("width=16", "blocks=1", "heads=2")),
        ],
    ),
}
IMPUTERS["Chain"] = (
    "CAD",
    [
        *("imputer.modalities={img:MoPoE,tabular:CMVAE}", "imputer.parts.img.latent=8"),
        *(f"imputer.parts.tabular.{option}" for option in ("shared=8", "private=4", "module.clusters=4")),
    ],
)
IMPUTER_OF_MST = ("MoPoE", "MST", "imputer.latent=8")
REFUSED_IMPUTERS = {
    ("IMI", "CAD", ""): "imputer IMI walks its random forests in NumPy, and iterates",
    ("Oracle", "CAD", ""): "imputer Oracle reads the content that is missing",
    ("MoPoE", "MST", "sample=true"): "imputer MoPoE with sample=true draws by the number of the row",
    ("MMVAEPlus", "PolyMNIST", "sample=true"): "imputer MMVAEPlus with sample=true draws by the number of the row",
    ("CMVAE", "PolyMNIST", "conditioning=random"): (
        "imputer CMVAE with conditioning=random draws by the number of the row"
    ),
}


def small_imputer(name: str, family: str, *overrides: str) -> Imputer:
    """An imputer with random weights."""
    torch.manual_seed(0)
    cfg = compose_config(f"imputer={name}", f"dataset={family}", *overrides)
    modalities, classes = SMALL[family]
    data: Any = SimpleNamespace(modalities=modalities, num_classes=classes, task="multiclass")
    imputer = build_imputer(cfg, data, pretrained=False)
    if isinstance(imputer, FittedImputer):
        rows = some_batch(family)
        nothing = torch.zeros_like(rows.missing)
        imputer.fit([rows.replace(missing=nothing, feature_missing={}, complete=True)])
    elif isinstance(imputer, torch.nn.Module):
        imputer.eval()
        for parameter in imputer.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return imputer.move_to(torch.device("cpu"))


def fillable(imputer: Imputer, family: str) -> Batch:
    """Rows in which the imputer can fill in everything that is missing."""
    batch = every_pattern(family)
    unrecoverable = imputer.unrecoverable(SMALL[family][0], batch.missing)
    return batch if unrecoverable is None else take_rows(batch, ~unrecoverable.any(1))


@pytest.mark.parametrize("name", IMPUTERS)
def test_recoveries_for_export_are_those_of_the_test_stage(name: str) -> None:
    family, small = IMPUTERS[name]
    imputer = small_imputer(name, family, *small)
    batch = fillable(imputer, family)
    assert imputer.why_not_exported() is None
    with torch.no_grad():
        expected = imputer.impute(batch.inputs, batch.missing, batch.index, batch.feature_missing)
        fixed = imputer.impute_fixed(batch.inputs, batch.missing, batch.feature_missing)
    for key, value in expected.items():
        torch.testing.assert_close(fixed[key], value, atol=batch_bound(value), rtol=0)
        assert not torch.equal(value, batch.inputs[key]) or name == "TIP"


@pytest.mark.parametrize(("name", "family", "option"), REFUSED_IMPUTERS)
def test_an_imputer_that_cannot_be_exported_says_why(name: str, family: str, option: str) -> None:
    options = [f"imputer.module.{option}"] if option else []
    imputer = small_imputer(name, family, *options)
    assert imputer.why_not_exported() == REFUSED_IMPUTERS[name, family, option]
    method = Completed(build("Multimodal_CONCAT", family, *METHODS["Multimodal_CONCAT"]), imputer)
    assert method.why_not_exported() == imputer.why_not_exported()
    case = setting(COSINE)
    assert DyMo(case.model, imputer, case.parameters).why_not_exported() == imputer.why_not_exported()


def test_every_imputer_is_exported_or_refused() -> None:
    assert set(IMPUTERS) | {name for name, *_ in REFUSED_IMPUTERS} == set(group_options("imputer"))
    assert {name for name, *_ in REFUSED} <= set(METHODS) and set(FAMILY) == set(METHODS)


@pytest.mark.parametrize("name", IMPUTERS)
def test_an_imputer_is_exported_as_a_part(name: str, tmp_path: Path) -> None:
    """Its recoveries under every pattern of one row and of several, with NaN in missing content."""
    family, small = IMPUTERS[name]
    imputer, batch = small_imputer(name, family, *small), some_batch(family)
    with torch.no_grad():
        expected = imputer.impute_fixed(batch.inputs, batch.missing, batch.feature_missing)
        part = Recovery(imputer, [key for key, x in expected.items() if not torch.equal(x, batch.inputs[key])])
        example = blank(arguments(batch))
        save_onnx(trace(part.eval(), example, name), example, list(part.outputs), tmp_path / "imputer.onnx")
        converted = open_onnx(tmp_path / "imputer.onnx")
        for rows in (fillable(imputer, family), take_rows(batch, torch.arange(1))):
            inputs = hide(rows.inputs, rows.missing, rows.feature_missing)
            expected = imputer.impute_fixed(inputs, rows.missing, rows.feature_missing)
            spoilt_inputs = {key: spoil(x, key, rows) for key, x in rows.inputs.items()}
            outputs = converted((spoilt_inputs, rows.missing, rows.feature_missing))
            for key in part.outputs:
                torch.testing.assert_close(outputs[key], expected[key], atol=batch_bound(expected[key]), rtol=0)


def spoil(x: Tensor, name: str, rows: Batch) -> Tensor:
    is_missing = missing_content(x, name, rows.missing[:, list(rows.inputs).index(name)], rows.feature_missing)
    return torch.where(is_missing, torch.nan, x) if x.is_floating_point() else x


def test_a_completed_method_is_exported_with_its_imputer(tmp_path: Path) -> None:
    family, small = IMPUTERS["MoPoE"]
    torch.manual_seed(1)
    classifier = build("Multimodal_CONCAT", family, *METHODS["Multimodal_CONCAT"], *SMALL_ENCODERS.get(family, []))
    method = Completed(classifier.eval(), small_imputer("MoPoE", family, *small))
    with torch.no_grad():
        programs = exported(method, some_batch(family), tmp_path)
        assert_alike(method, programs, every_pattern(family), take_rows(some_batch(family), torch.arange(1)))


@pytest.mark.slow
def test_dymo_recovers_selects_and_classifies_in_one_call(tmp_path: Path) -> None:
    """With the cosine distance; that of proxies below is Euclidean."""
    case = setting(COSINE)
    mean = Mean(case.model.modalities)
    mean.fit([class_batch(40, 0.0, seed=9)])
    method = DyMo(case.model, mean, case.parameters)
    batch = case.batch.replace(missing=case.missing)
    programs = exported(method, batch, tmp_path)
    expected = method(batch)
    undecided = method.undecided(expected, batch_bound(expected.logits))
    assert undecided.float().mean() < 0.2 and (expected.extras["accepted"] >= 0).any()
    rounds = expected.extras["rewards"].shape[1]
    for program, rows in itertools.product(programs.values(), (slice(0, 1), slice(5, 8), slice(0, None))):
        some = take_rows(batch, torch.arange(len(batch))[rows])
        with torch.no_grad():
            outputs = program(spoilt(case.model, some, math.nan))
        sure = ~undecided[rows]
        for key in ("final_missing", "accepted"):
            assert torch.equal(outputs[key][sure], expected.extras[key][rows][sure])
        torch.testing.assert_close(
            outputs["logits"][sure], expected.logits[rows][sure], atol=batch_bound(expected.logits), rtol=0
        )
        rewards, given = expected.extras["rewards"][rows][sure], outputs["rewards"][sure, :rounds]
        torch.testing.assert_close(given, rewards, atol=REWARD_ROUNDING, rtol=1e-4, equal_nan=True)
        assert outputs["rewards"][:, rounds:].isnan().all()


@pytest.mark.slow
def test_the_backbone_and_cmpt_are_exported_alone(tmp_path: Path) -> None:
    """CMPT with a vision, a text and an audio transformer, and its adapters merged, as stage export loads it."""
    case = setting(COSINE)
    batch = case.batch.replace(missing=case.missing)
    cmpt = cmpt_cases.build(3, adapter=Adapter(rank=4, dropout=0.0)).eval()
    rows = cmpt_cases.some_batch(3, rows=14, missing=enumerate_subsets(3).repeat(2, 1))
    cmpt.before_prediction()
    with torch.no_grad():
        assert_alike(case.model, exported(case.model, batch, tmp_path), batch, take_rows(batch, torch.arange(1)))
        programs = exported(cmpt, rows, tmp_path)
        for some in (rows, take_rows(rows, torch.arange(3)), take_rows(rows, torch.arange(1))):
            expected = cmpt(some).logits
            for program in programs.values():
                logits = program(some)["logits"]
                torch.testing.assert_close(logits, expected, atol=batch_bound(expected), rtol=0)


def test_clips_and_spectrograms_are_exported(tmp_path: Path) -> None:
    """Frames of a clip are folded into the rows."""
    modalities = [Modality("audio", "audio", (33, 33)), Modality("visual", "video", (2, 3, 32, 32))]
    torch.manual_seed(0)
    sizes = {"audio": {"image_size": 33, "channels": 1}, "visual": {"image_size": 32}}
    encoders = {name: ResNetEncoder("resnet18", **size) for name, size in sizes.items()}  # type: ignore[arg-type]
    method = UDML(modalities, 3, encoders, width=8).eval()
    inputs = {m.name: torch.rand(6, *m.shape) for m in modalities}
    batch = Batch(inputs, enumerate_subsets(2).repeat(2, 1), torch.zeros(6).long(), torch.arange(6))
    with torch.no_grad():
        assert_alike(method, exported(method, batch, tmp_path), batch, take_rows(batch, torch.arange(1)))


def test_the_selection_of_proxies_is_exported(tmp_path: Path) -> None:
    model, parameters, batch = proxies.setting(3, EUCLIDEAN)
    method = ProxySelection(ProxyBackbone(model, EUCLIDEAN), None, parameters, SelectionRule(temperature=1.0))
    expected = method(batch)
    sure = ~method.undecided(expected, batch_bound(expected.logits))
    assert sure.sum() > 10 and (expected.extras["accepted"] >= 0).any()
    for program in exported(method, batch, tmp_path).values():
        outputs = program(batch)
        assert torch.equal(outputs["accepted"][sure], expected.extras["accepted"][sure])
        torch.testing.assert_close(
            outputs["logits"][sure], expected.logits[sure], atol=batch_bound(expected.logits), rtol=0
        )


def in_onnx(function: Callable[[Tensor], Tensor], x: Tensor, folder: Path) -> np.ndarray:
    """Values of a function of numbers (N,) in onnxruntime."""

    class Alone(torch.nn.Module):
        def forward(self, inputs: Any, missing: Tensor, feature_missing: Any) -> dict[str, Tensor]:
            return {"logits": function(inputs["x"])}

    rows: Any = ({"x": x[:, None]}, torch.zeros(len(x), 1, dtype=torch.bool), {})
    save_onnx(trace(Alone(), blank(rows), "function"), blank(rows), ["logits"], folder / "alone.onnx")
    return run_onnx(folder / "alone.onnx", rows)["logits"][:, 0].numpy()


def test_functions_of_the_methods_have_their_digits_in_onnx(tmp_path: Path) -> None:
    """Against SciPy in float64. The tail of the normal distribution, where 1 - erf has no digits, has an error of
    1.2e-7 of erfc; a small summand stays; the rest is the rounding of float32."""
    x = torch.cat([-torch.logspace(-4, 2, 300), torch.linspace(0, 4, 50)])
    wide = x.double().numpy()
    actual = in_onnx(torch.special.log_ndtr, x, tmp_path)
    np.testing.assert_allclose(actual, stats.norm.logcdf(wide), atol=4e-7, rtol=4e-7)
    actual = in_onnx(torch.nn.functional.logsigmoid, x, tmp_path)
    np.testing.assert_allclose(actual, -np.logaddexp(0, -wide), atol=4e-7, rtol=4e-7)
    np.testing.assert_allclose(in_onnx(lambda y: 1 / (y * 0 + 1e-8), x, tmp_path), 1e8, rtol=1e-6)
    centres = torch.tensor([[1.0], [3.0]])
    actual = in_onnx(lambda y: torch.cdist(y, centres, compute_mode="donot_use_mm_for_euclid_dist")[:, 1:], x, tmp_path)
    np.testing.assert_allclose(actual, np.abs(wide - 3), atol=1e-5)


# ----------------------------------------------------------------------------------------------------- stage export


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """ModDrop on image and table, exported with its program."""
    folder = tmp_path_factory.mktemp("programs")
    make_image_table(folder / "parts")
    small = ["model.module.width=16", "model.module.heads=2", "model.training.max_epochs=1"]
    cfg = parts_config(folder, "model=ModDrop", *small, "export.format=[torch,onnx]", "stages=[prepare,fit,export]")
    cfg.export.parts = True
    pipeline.run(cfg)
    return Run(cfg)


def test_the_manifest_describes_the_program(run: Run) -> None:
    bundle = open_bundle(run.directory / "bundle")
    about = bundle.about["programs"]
    assert about["inputs"] == run.inputs
    assert about["outputs"] == {"logits": [3]}
    for kind, file in (("torch", "model.pt2"), ("onnx", "model.onnx")):
        assert about[kind]["file"] == file and f"programs/{file}" in bundle.about["files"]
        assert about[kind]["largest_difference"] <= about[kind]["tolerance"] < 1e-3
        assert f"`programs/{file}`" in (bundle.folder / "README.md").read_text()
    assert set(about["parts"]) == {"encoders/image", "encoders/table", "fusion"}
    for part in about["parts"].values():
        assert f"programs/{part['file']}" in bundle.about["files"]
        assert part["largest_difference"] <= part["tolerance"] < 1e-3


def test_programs_are_compared_on_every_pattern_and_on_partial_tables(run: Run) -> None:
    batch = rows_to_compare(run.data)
    assert {tuple(row) for row in batch.missing.tolist()} == {(False, False), (True, False), (False, True)}
    seen = ~batch.feature_missing["table"] & batch.missing[:, 1:]
    assert seen.any() and (seen.sum(1) < 4).all()
    assert batch.inputs["image"][batch.missing[:, 0]].isnan().all()


def test_the_text_of_the_page_runs_where_this_project_is_not(run: Run, tmp_path: Path) -> None:
    page = (CONFIGS.parent / "docs" / "predictions.md").read_text()
    section = page.partition("## Run it without this project")[2].partition("\n## ")[0]
    torch_code, onnx_code, parts_code = re.findall(r"```python\n(.*?)```", section, re.S)
    assert "import torch" not in onnx_code + parts_code
    (tmp_path / "run.py").write_text(
        f"{torch_code}\ntorch_logits = logits\n{onnx_code}\nnp.save('logits.npy', [torch_logits.numpy(), logits])\n"
        f"{parts_code}\nnp.save('part_logits.npy', part_logits)\n"
        "import sys\nassert not {'models', 'trainers', 'datasets', 'utils'} & set(sys.modules)\n"
    )
    (tmp_path / "bundle").symlink_to(run.directory / "bundle")
    # -I: neither the working directory nor PYTHONPATH is searched for modules.
    subprocess.run([sys.executable, "-I", "run.py"], check=True, cwd=tmp_path, timeout=300)
    zeros = blank(arguments(rows_to_compare(run.data)))
    inputs = {name: torch.zeros(4, *x.shape[1:]) for name, x in zeros[0].items()}
    missing = torch.tensor([[True, False], [False, True], [False, False], [False, False]])
    cells = torch.ones(4, 4, dtype=torch.bool)
    cells[1, ::2] = False
    rows = torch.arange(4)
    with torch.no_grad():
        expected = run.load_method()(Batch(inputs, missing, rows, rows, {"table": cells})).logits
    for logits in torch.from_numpy(np.load(tmp_path / "logits.npy")):
        torch.testing.assert_close(logits, expected, atol=batch_bound(expected), rtol=0)
    assert not torch.allclose(expected[0], expected[1], atol=1e-3)
    # Nothing is missing in the rows of the parts.
    part_logits = torch.from_numpy(np.load(tmp_path / "part_logits.npy"))
    torch.testing.assert_close(part_logits, expected[2].expand(4, -1), atol=batch_bound(expected), rtol=0)


def test_encoders_fusion_and_imputer_are_parts(tmp_path: Path) -> None:
    """Chained, the parts give the logits of the method under every pattern; missing content is filled as eagerly."""
    model, imputer, batch = small_method("MAP"), small_imputer(*IMPUTER_OF_MST), every_pattern("MST")
    about = write_parts(model, imputer, batch, tmp_path)
    assert set(about) == {*(f"encoders/{name}" for name in batch.inputs), "fusion", "imputer"}

    def outputs(part: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return run_onnx(tmp_path / about[part]["file"], (inputs, batch.missing, {}))

    observed = batch.observed()
    pieces = [outputs(f"encoders/{name}", {name: x})["encoded"] for name, x in observed.items()]
    logits = outputs("fusion", {"encoded": torch.cat(pieces, dim=1)})["logits"]
    with torch.no_grad():
        expected, filled = model(batch).logits, imputer.impute(observed, batch.missing)
    torch.testing.assert_close(logits, expected, atol=batch_bound(expected), rtol=0)
    for name, x in outputs("imputer", observed).items():
        torch.testing.assert_close(x, filled[name], atol=batch_bound(filled[name]), rtol=0)


def test_a_part_that_a_method_does_not_have_is_left_out_by_name(tmp_path: Path) -> None:
    about = write_parts(small_method("UDML"), None, some_batch(FAMILY["UDML"]), tmp_path)
    assert set(about) == {*(f"encoders/{m.name}" for m in SMALL[FAMILY["UDML"]][0]), "fusion"}
    assert {part["left_out"] for part in about.values()} == {
        "its encodings of single modalities are not the input of its fusion"
    }
    assert not list(tmp_path.rglob("*.onnx"))


@pytest.mark.parametrize("file", ["model.pt2", "model.onnx"])
def test_a_changed_program_is_refused(run: Run, file: str) -> None:
    program = run.directory / "bundle" / "programs" / file
    content = program.read_bytes()
    program.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(UserError, match=rf"{file} is not the file that was exported"):
            open_bundle(run.directory / "bundle")
    finally:
        program.write_bytes(content)


def test_a_program_that_predicts_something_else_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Program.forward

    def other(self: Program, inputs: Any, missing: Any, feature_missing: Any) -> Any:
        return {"logits": forward(self, inputs, missing, feature_missing)["logits"] + 0.01}

    monkeypatch.setattr(Program, "forward", other)
    cfg = run.cfg.copy()
    cfg.export.folder = str(tmp_path / "bundle")
    with pytest.raises(UserError, match=r"differ from those of ModDrop by 0\.01 on validation data, more"):
        export(Run(cfg))
    assert not (tmp_path / "bundle").exists()


def test_a_refused_method_is_named_with_the_reason(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.base.IncompleteClassifier.why_not_exported", lambda self: "it draws at random")
    message = r"export.format=torch,onnx: ModDrop cannot be exported, it draws at random: leave that out"
    with pytest.raises(UserError, match=message):
        export(Run(run.cfg.copy()))


def test_an_unknown_format_is_named() -> None:
    cfg = compose_config("dataset=Digits", "stages=[export]", "export.format=[bundle,torhc]")
    with pytest.raises(UserError, match=r"export.format: unknown format 'torhc'; did you mean 'torch'"):
        validate(cfg)


@pytest.mark.slow
def test_stage_export_writes_dymo_with_its_imputer(tmp_path: Path) -> None:
    """Trained on image and table, with TIP, which cannot recover images: those stay missing."""
    make_image_table(tmp_path / "parts")
    stages = "stages=[prepare,impute,fit,gaussian,export]"
    cfg = parts_config(tmp_path, *DYMO, "export.format=[torch,onnx]", stages)
    pipeline.run(cfg)
    run = Run(cfg)
    about = open_bundle(run.directory / "bundle").about["programs"]
    assert about["outputs"] == {"logits": [3], "final_missing": [2], "accepted": [2], "rewards": [2, 2]}
    batch = rows_to_compare(run.data)
    outputs = run_onnx(run.directory / "bundle" / "programs" / "model.onnx", arguments(batch))
    assert torch.equal(outputs["final_missing"][:, 0], batch.missing[:, 0])
    assert torch.equal((outputs["accepted"] == 1).any(1), (batch.missing & ~outputs["final_missing"])[:, 1])
