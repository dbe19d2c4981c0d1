"""Encoders of MST and CelebA, and original DynamicTransformer checkpoints of both, against ``slow_networks``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.dymo.dynamic_transformer import DynamicTransformer
from models.dymo.original import convert_dynamic_transformer
from models.encoders.mst import MNISTEncoder, SVHNEncoder, TextEncoder
from models.encoders.residual import ResidualBlock, ResidualImageEncoder, ResidualTextEncoder
from models.imputers.quality import Judge
from tests import slow_networks as slow
from tests import slow_twin as twin
from tests.makers import make_original_checkpoint
from utils.errors import UserError
from utils.safe_pickle import read_tensors
from utils.weights import checkpoint_kind, load_strict

MST = [
    Modality("mnist", "image", (1, 28, 28)),
    Modality("svhn", "image", (3, 32, 32)),
    Modality("text", "text", (8, 71)),
]
CELEBA = [Modality("img", "image", (3, 64, 64)), Modality("text", "text", (256, 71))]
KINDS = {"MST": ("mnist", "svhn", "mst_text"), "CelebA": ("img", "celeba_text")}


def inputs_of(modalities: list[Modality], rows: int, seed: int = 0) -> dict[str, Tensor]:
    """Random images, random one-hot texts (one blank row each, of an unknown symbol)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {}
    for m in modalities:
        if m.kind == "text":
            codes = torch.randint(71, (rows, m.shape[0]), generator=generator)
            inputs[m.name] = F.one_hot(codes, 71).float()
            inputs[m.name][:, 2] = 0
        else:
            inputs[m.name] = torch.rand(rows, *m.shape, generator=generator)
    return inputs


def network(family: str, base: int = 128, **options: Any) -> DynamicTransformer:
    """The published network of a family."""
    if family == "MST":
        modalities, classes = MST, 10
        encoders: dict[str, nn.Module] = {"mnist": MNISTEncoder(), "svhn": SVHNEncoder(), "text": TextEncoder()}
    else:
        modalities, classes = CELEBA, 2
        encoders = {"img": ResidualImageEncoder(base=base), "text": ResidualTextEncoder(base=base)}
    options = {"width": 32, "heads": 2, "projection": 16, "initialisation": "pytorch"} | options
    return DynamicTransformer(modalities, classes, encoders, **options)


@pytest.mark.parametrize(
    ("make", "shape", "parameters"),
    [
        (MNISTEncoder, (1, 28, 28), 326_832),
        (SVHNEncoder, (3, 32, 32), 235_328),
        (TextEncoder, (8, 71), 144_672),
        (ResidualImageEncoder, (3, 64, 64), 21_497_504),
        (ResidualTextEncoder, (256, 71), 13_189_280),
    ],
)
def test_one_token_of_any_width(make: Any, shape: tuple[int, ...], parameters: int) -> None:
    encoder = make().eval()
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    assert encoder.tokens == 1 and encoder(torch.rand(2, *shape)).shape == (2, 1, 32)
    assert make(width=5).eval()(torch.rand(1, *shape)).shape == (1, 1, 5)


@pytest.mark.parametrize(("family", "parameters", "entries"), [("MST", 733_354, 58), ("CelebA", 34_712_914, 243)])
def test_an_original_checkpoint_predicts_what_its_formulas_say(
    family: str, parameters: int, entries: int, tmp_path: Path
) -> None:
    """File in the original layout -> read -> converted -> strict load; tokens, logits and features row by row, under
    every mask, with the embedding row min(i, 1)."""
    shapes = slow.mst_transformer() if family == "MST" else slow.celeba_transformer()
    state = slow.random_state(shapes)
    assert len(state) == entries
    path = make_original_checkpoint(tmp_path / "checkpoint_best.ckpt", state)
    content = read_tensors(path)
    assert checkpoint_kind(content) == "reference_dynamic_transformer"
    model = network(family, reference_modality_index=True).eval()
    assert sum(p.numel() for p in model.parameters()) == parameters and len(model.state_dict()) == entries
    names = model.modality_names
    load_strict(model, convert_dynamic_transformer(content["state_dict"], names), path, "DynamicTransformer")

    inputs = inputs_of(model.modalities, 3)
    tokens = {}
    for name, kind in zip(names, KINDS[family]):
        net = slow.Network(state, f"m_encoders.{name}")
        tokens[name] = net.linear("proj", slow.features(net, kind, inputs[name]))[:, None]
        with torch.no_grad():
            torch.testing.assert_close(model.encoders[name](inputs[name]), tokens[name], rtol=1e-4, atol=1e-4)
    missing = torch.zeros(3, len(names), dtype=torch.bool)
    for mask in twin.subsets(len(names)):
        missing[:] = torch.tensor(mask)
        with torch.no_grad():
            actual = model(Batch(inputs, missing, torch.zeros(3), torch.arange(3)))
        for row in range(3):
            logits, z = twin.forward(
                state, [t[row] for t in tokens.values()], mask, metric=twin.COSINE, heads=2, min_index=True
            )
            torch.testing.assert_close(actual.logits[row], logits, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(actual.features[row], z, rtol=1e-3, atol=1e-4)
    if family == "MST":  # text and svhn share a row of the embedding: the plain index is another function
        model.reference_modality_index = False
        with torch.no_grad():
            other = model(Batch(inputs, missing, torch.zeros(3), torch.arange(3)))
        assert (other.logits - actual.logits).abs().max() > 1e-3


def test_a_checkpoint_of_the_other_family_is_refused_by_name(tmp_path: Path) -> None:
    state = slow.random_state(slow.mst_transformer())
    model = network("CelebA", base=4)
    with pytest.raises(UserError, match=r"mst\.ckpt does not fit .* trained for 3 modalities, the data set has 2"):
        load_strict(model, convert_dynamic_transformer(state, model.modality_names), tmp_path / "mst.ckpt", "network")


def test_residual_blocks_drop_and_normalise_in_training() -> None:
    """Whole channels on images, single values on text; running statistics move by 0.1."""
    for dims, shape, dropout, norm in (
        (2, (6, 4, 8, 8), nn.Dropout2d, nn.BatchNorm2d),
        (1, (6, 4, 8), nn.Dropout, nn.BatchNorm1d),
    ):
        torch.manual_seed(0)
        block = ResidualBlock(dims, 4, 6)
        assert type(block.dropout1) is type(block.dropout2) is dropout and block.dropout1.p == block.dropout2.p == 0.5
        assert isinstance(block.bn1, norm) and (block.conv1.bias is None) == (block.conv2.bias is None) == (dims == 2)
        assert block.downsample[0].bias is not None
        x = torch.randn(shape)
        assert not torch.equal(block(x), block(x))
        block.bn1.reset_running_stats()
        block(x)
        axes = (0, *range(2, x.ndim))
        torch.testing.assert_close(block.bn1.running_mean, 0.1 * x.mean(axes))
        assert torch.equal(block.eval()(x), block(x))


def test_the_judge_of_recoveries_takes_encoders_with_batch_normalisation() -> None:
    encoders = {"img": ResidualImageEncoder(base=2), "text": ResidualTextEncoder(base=2)}
    judge = Judge(CELEBA, 2, encoders)
    assert judge.training and encoders["img"].feature_extractor["resblock1"][0].bn1.num_batches_tracked == 0
    logits = judge.read(inputs_of(CELEBA, 3))
    assert {name: tuple(x.shape) for name, x in logits.items()} == {"img": (3, 2), "text": (3, 2)}
