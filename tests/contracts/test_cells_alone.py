"""Rows that have nothing but some cells of their table, from the masks of a data set to predictions of each kind of
method: the cells that are there count, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from datasets.base import MultimodalDataModule
from datasets.batch import Batch
from datasets.missingness import parse_scenario
from gaussian_parameter_generation.estimate import estimate
from models.completed import Completed
from models.dymo.lattice import COMPARATORS
from models.dymo.method import DyMo
from models.imputers.simple import Mean
from tests.contracts.test_baselines import METHODS, configure
from tests.makers import make_image_table
from tests.tolerances import summation_bound
from trainers.config.build import build_data, build_model
from trainers.prediction import predict

SCENARIOS = ("none", "nested_0_0.5", "nested_0_1", "whole_0", "table_value_0.5")
TABLE_ONLY = {"TokenUnimodal": "table", "Unimodal": "table"}
OTHERS = ("ModDrop", "Multimodal_CONCAT", "UDML", "MaskedAttention", "DyMo")
SMALL = {
    **METHODS,
    "DyMo": [
        *(f"model.module.{key}" for key in ("width=8", "heads=2", "projection=4")),
        "distance_metric=cosine_similarity",
    ],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("parts")
    csv = make_image_table(folder / "parts", per_class=12)
    table = ["dataset.image=photo", "dataset.image_suffix=.jpg", "dataset.label=kind", f"dataset.csv={csv}"]
    table += [f"dataset.images={csv.parent / 'photos'}", "dataset.classes=[nut,bolt,screw]"]
    table += ["dataset.categorical={metal:null,finish:null}", "dataset.continuous=[weight,length]"]
    table += ["dataset.side=16", "dataset.stored_side=16"]
    image = "dataset.encoders.image"
    table += [f"{image}._target_=models.encoders.convolutional.ConvolutionalEncoder", f"+{image}.width=8"]
    table += [f"~{image}.{key}" for key in ("architecture", "weights", "image_size")]
    table += [f"+dataset.encoders.table.{key}" for key in ("width=8", "blocks=1", "heads=2")]
    return ("dataset=ImageTable", *table, "trainer=cpu", f"paths.cache={folder / 'cache'}")


def parts_of(store: tuple[str, ...], method: str) -> tuple[MultimodalDataModule, Any]:
    """The data, and an untrained method whose weights are all large enough to show."""
    changes = [f"model.modality={TABLE_ONLY[method]}"] if method in TABLE_ONLY else []
    changes += ["model.prerequisites=null"] if method == "MaskedAttention" else []
    model_name = "DynamicTransformer" if method == "DyMo" else method
    cfg = configure(*store, f"model={model_name}", *(x for x in SMALL[method] if ".unimodal." not in x), *changes)
    data = build_data(cfg)
    data.prepare()
    torch.manual_seed(0)
    model: Any = build_model(cfg, cfg.model, data, pretrained=False)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    if method in ("Multimodal_CONCAT", "DyMo"):
        complete = [data.loader("train", parse_scenario("none"), batch_size=64)]
        mean = Mean(data.modalities)
        mean.fit(batch for loader in complete for batch in loader)
        if method != "DyMo":
            return data, Completed(model, mean)
        return data, DyMo(model.eval(), mean, estimate(model, *complete, progress=False), comparators=COMPARATORS)
    return data, model.eval()


def results(
    data: MultimodalDataModule, model: Any, spoil: float | None = None, batch_size: int = 16
) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """label -> scenario -> arrays; with ``spoil`` in everything that is missing."""
    pair = {name: data.masks("train", parse_scenario(name)) for name in SCENARIOS}
    actual: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for name, (missing, cells) in pair.items():
        batches = [
            batch if spoil is None else spoilt(batch, missing, cells, spoil)
            for batch in data.loader("train", batch_size=batch_size)
        ]
        for label, of in predict(model, batches, {name: missing}, {name: cells}, progress=False).items():
            actual.setdefault(label, {}).update(of)
    return actual


def spoilt(batch: Batch, missing: np.ndarray, cells: Mapping[str, np.ndarray], value: float) -> Batch:
    rows = batch.index.numpy()
    image = torch.from_numpy(missing[rows, 0])[:, None, None, None]
    absent = {"image": image, "table": torch.from_numpy(cells["table"][rows])}
    return batch.replace(inputs={name: torch.where(absent[name], value, x) for name, x in batch.inputs.items()})


@pytest.mark.parametrize("method", TABLE_ONLY)
def test_who_reads_the_table_alone_gives_the_same_whatever_becomes_of_the_image(
    store: tuple[str, ...], method: str
) -> None:
    actual = results(*parts_of(store, method))[""]
    alone = actual["whole_0"]["missing"].all(1)
    assert 3 < alone.sum() < len(alone)
    for scenario in SCENARIOS[1:4]:
        expected = actual["none"]["logits"]
        # Rows are grouped by what is missing, and kernels sum in another order for another number of rows. What the
        # image would change is above 1e-3.
        np.testing.assert_allclose(
            actual[scenario]["logits"], expected, rtol=0, atol=summation_bound(64, 1 + np.abs(expected).max())
        )
    assert np.ptp(actual["none"]["logits"][alone], axis=0).max() > 1e-3


@pytest.mark.parametrize("method", [*TABLE_ONLY, *OTHERS])
def test_only_the_cells_that_are_there_count(store: tuple[str, ...], method: str) -> None:
    data, model = parts_of(store, method)
    expected = results(data, model)
    single = results(data, model, batch_size=1)
    for spoil in (math.nan, 1e30):
        for label, of in results(data, model, spoil).items():
            for scenario, arrays in of.items():
                local = expected[label][scenario]["logits"]
                assert np.isfinite(local).all()
                np.testing.assert_array_equal(arrays["logits"], local, err_msg=f"{label} {scenario}")
                alone_in_batch = single[label][scenario]["logits"]
                np.testing.assert_allclose(
                    alone_in_batch, local, rtol=0, atol=summation_bound(128, 1 + np.abs(local).max())
                )
    missing, cells = data.masks("train", parse_scenario("whole_0"))
    alone = torch.from_numpy(missing.all(1).nonzero()[0])
    # A cell that is there says something, and its neighbours that are not say nothing.
    batch = data.rows("train", alone.numpy())
    gaps = torch.from_numpy(cells["table"])[alone]
    batch = batch.replace(missing=torch.from_numpy(missing)[alone], feature_missing={"table": gaps})
    other = batch.inputs["table"].clone()
    other[:, -1] += 1
    assert not gaps[:, -1].any()
    with torch.no_grad():
        moved = model(batch.replace(inputs={**batch.inputs, "table": other})).logits - model(batch).logits
    assert (moved.abs().amax(1) > 1e-6).all()
