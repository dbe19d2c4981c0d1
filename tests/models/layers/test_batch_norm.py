"""Batch statistics in training: rows without a modality do not enter them, and a last batch of one row breaks no method
and no encoder."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from datasets.rows import take_rows
from models.dymo.dynamic_transformer import DynamicTransformer
from models.encoders.convolutional import ConvolutionalEncoder, SpectrogramEncoder
from models.encoders.residual import ResidualImageEncoder, ResidualTextEncoder
from models.encoders.resnet import ResNetEncoder
from models.encoders.table import TableEncoder
from models.imputers.mopoe_networks import ResidualImageDecoder, ResidualTextDecoder
from models.imputers.tip import TIP
from models.layers.batch_norm import BatchNorm1d, BatchNorm2d, accept_single_values
from models.udml.representation import ProbabilisticHead
from tests.contracts.test_baselines import (
    METHODS,
    ONLY,
    PARTS_OF_RUNS,
    SMALL,
    SMALL_ENCODERS,
    build,
    empty_memory,
    some_batch,
)

FEW_FAMILIES = {method: ["CAD"] for method in ("MaskedAttention", *PARTS_OF_RUNS)}
# Shape of a row of content, and the encoder; each ends in layers of one value per channel.
WITH_STATISTICS = {
    "resnet18": (lambda: ResNetEncoder("resnet18", image_size=32), (3, 32, 32)),
    "resnet50": (lambda: ResNetEncoder("resnet50", image_size=16), (3, 16, 16)),
    "resnet18 of spectrograms": (lambda: ResNetEncoder("resnet18", image_size=32, channels=1), (32, 32)),
    "convolutional": (lambda: ConvolutionalEncoder(width=8), (3, 16, 16)),
    "spectrogram": (lambda: SpectrogramEncoder(width=8), (16, 16)),
    "residual image": (lambda: ResidualImageEncoder(base=2), (3, 64, 64)),
    "residual text": (lambda: ResidualTextEncoder(base=2), (256, 71)),
    "image decoder": (lambda: ResidualImageDecoder(base=2), (64,)),
    "text decoder": (lambda: ResidualTextDecoder(base=2), (64,)),
    "head of UDML": (lambda: ProbabilisticHead(6, 4, True, None), (1, 6)),
}


def norms(module: nn.Module) -> list[Any]:
    return [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize("name", WITH_STATISTICS)
def test_a_network_trains_on_one_row(name: str) -> None:
    """The layers without a variance use their running statistics and leave them; with two rows all is as in PyTorch."""
    make, shape = WITH_STATISTICS[name]
    torch.manual_seed(0)
    network = make().train()
    plain = deepcopy(network)
    for part in norms(plain):
        part.__class__ = nn.BatchNorm1d if isinstance(part, nn.BatchNorm1d) else nn.BatchNorm2d
    two = torch.rand(2, *shape)
    for part in (network, plain):
        torch.manual_seed(1)  # dropout
        part.output = part(two)  # type: ignore[assignment]
    for one, other in zip(outputs(network.output), outputs(plain.output), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(norms(network), norms(plain), strict=True):
        assert torch.equal(one.running_mean, other.running_mean) and torch.equal(one.running_var, other.running_var)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        plain(two[:1])
    before = [part.running_var.clone() for part in norms(network)]
    single = outputs(network(two[:1]))
    assert all(torch.isfinite(x).all() for x in single)
    sum(x.sum() for x in single).backward()  # type: ignore[union-attr]
    assert any(torch.equal(old, part.running_var) for old, part in zip(before, norms(network), strict=True))


def outputs(output: Any) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else tuple(output)


@pytest.mark.parametrize(("layer", "shape"), [(BatchNorm1d, (1, 3)), (BatchNorm2d, (1, 3, 1, 1))])
def test_one_value_per_channel_is_normalised_by_the_running_statistics(
    layer: type[Any], shape: tuple[int, ...]
) -> None:
    norm, x = layer(3).train(), torch.tensor([1.0, -2.0, 5.0]).view(shape)
    norm.running_mean.copy_(torch.tensor([0.5, 1.0, 2.0]))
    norm.running_var.copy_(torch.tensor([4.0, 9.0, 1.0]))
    expected = torch.tensor([0.25, -1.0, 3.0]).view(shape)
    torch.testing.assert_close(norm(x), expected, atol=1e-4, rtol=1e-4)
    assert norm.running_mean.tolist() == [0.5, 1.0, 2.0] and norm.running_var.tolist() == [4.0, 9.0, 1.0]
    assert type(accept_single_values(nn.Sequential(layer.__mro__[1](3)))[0]) is layer  # type: ignore[index]


# ------------------------------------------------------------------------------------------------- methods and encoders


def trainable(method: str, family: str, *overrides: str) -> Any:
    torch.manual_seed(0)
    networks = [f"+imputer.{part}.{name}.base=4" for part in ("encoders", "decoders") for name in ("img", "text")]
    small_imputer = networks if (method, family) == ("MoPoE_Classification", "CelebA") else []
    model: Any = build(method, family, *METHODS[method], *SMALL_ENCODERS.get(family, []), *small_imputer, *overrides)
    model.log_losses = lambda *_: None
    empty_memory(model)
    return model.train()


# The families whose encoders have batch statistics; the methods of masked attention are tried on one of them.
PAIRS = [(m, f) for m in METHODS for f in ("CAD", "CelebA") if f in (ONLY | FEW_FAMILIES).get(m, ("CAD", "CelebA"))]


@pytest.mark.parametrize(("method", "family"), PAIRS)
def test_no_method_depends_on_the_size_of_the_last_batch(method: str, family: str) -> None:
    """A last training batch of one row: complete, with one modality missing, and with one observed row among two."""
    model, batch = trainable(method, family), some_batch(family)
    complete = take_rows(batch, torch.tensor([0])).replace(
        missing=torch.zeros(1, len(model.modalities), dtype=torch.bool), feature_missing={}, complete=True
    )
    incomplete = complete.replace(missing=complete.missing.clone())
    incomplete.missing[0, 1] = True
    two = take_rows(batch, torch.tensor([0, 1]))
    two = two.replace(missing=torch.zeros_like(two.missing), feature_missing={})
    two.missing[0, 0] = True
    for last in (complete, incomplete, two):
        model.zero_grad()
        loss = model.training_step(last, 3)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        assert all(torch.isfinite(buffer).all() for buffer in model.buffers())


def backbone(*encoders: nn.Module) -> DynamicTransformer:
    shapes = [(3, 32, 32), (5,)]
    modalities = [Modality("img", "image", shapes[0]), Modality("tabular", "table", shapes[1], (2, 3))]
    named = dict(zip(("img", "tabular"), encoders, strict=True))
    model: Any = DynamicTransformer(modalities, 3, named, width=8, heads=2, projection=4, subsets_per_step=3)
    model.log_losses = lambda *_: None
    return model.train()


def two_encoders() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return ResNetEncoder("resnet18", image_size=32), TableEncoder((2, 3), 3, width=16, blocks=1, heads=2)


@pytest.mark.parametrize("rows", [1, 12])
def test_the_backbone_of_dymo_encodes_observed_rows_only(rows: int) -> None:
    model, batch = backbone(*two_encoders()), take_rows(some_batch("CAD"), torch.arange(rows))
    copy = deepcopy(model.encoders["img"])
    model.on_train_epoch_start()
    loss = model.training_step(batch, 0)
    loss.backward()
    assert torch.isfinite(loss)
    observed = ~batch.missing[:, 0]
    copy(batch.inputs["img"][observed])
    assert equal_statistics(model.encoders["img"], copy)


def test_tip_trains_on_one_row() -> None:
    image, table = two_encoders()
    batch = some_batch("CAD")
    model: Any = TIP(SMALL["CAD"][0], image, table, blocks=1, heads=2)  # type: ignore[arg-type]
    model.log_dict = lambda *_, **__: None
    one = take_rows(batch, torch.tensor([0])).replace(missing=torch.zeros(1, 2, dtype=torch.bool), feature_missing={})
    model.marginals = one.inputs["tabular"]
    for part in model.modules():
        if isinstance(part, nn.Sequential) and len(part) == 4:
            assert torch.isfinite(part.train()(torch.rand(1, part[0].in_features))).all()


def equal_statistics(one: nn.Module, other: nn.Module, tolerance: float = 1e-6) -> bool:
    pairs = list(zip(norms(one), norms(other), strict=True))
    assert pairs
    return all(
        torch.allclose(a, b, atol=tolerance, rtol=1e-5)
        for x, y in pairs
        for a, b in ((x.running_mean, y.running_mean), (x.running_var, y.running_var))
    )


def image_encoders(model: Any) -> list[nn.Module]:
    if hasattr(model, "encoders"):
        return [model.encoders["img"]]
    return [expert["img"] for expert in model.experts if "img" in expert]


NO_TRAINED_ENCODER = {
    **dict.fromkeys(("DynMM", "LogitAverage", "Late", "ModelSelection"), "its experts are frozen"),
    "MultiAE": "its encoders are frozen",
    "Zeros_MLP": "a blank image through the encoder is what it is",
    "Pooling_MLP": "a blank image through the encoder is what it is",
    **dict.fromkeys(ONLY, "on a trained imputer"),
}


@pytest.mark.parametrize("method", [m for m in METHODS if m not in NO_TRAINED_ENCODER])
def test_rows_without_a_modality_do_not_enter_batch_statistics(method: str) -> None:
    """The running statistics of an encoder after a training step are those of the observed rows alone."""
    model, batch = trainable(method, "CAD"), some_batch("CAD")
    copies = deepcopy(image_encoders(model))
    model.training_step(batch, 0)
    observed = ~batch.missing[:, 0]
    assert 2 < observed.sum() < len(batch) - 2
    for encoder, copy in zip(image_encoders(model), copies, strict=True):
        blanks = deepcopy(copy)
        copy(batch.inputs["img"][observed])
        assert equal_statistics(encoder, copy)
        blanks(torch.where(observed[:, None, None, None], batch.inputs["img"], 0))
        assert not equal_statistics(encoder, blanks, 1e-3)


@pytest.mark.parametrize("method", ["ModDrop", "QMF"])
def test_the_reference_encodes_blanks(method: str) -> None:
    model, batch = trainable(method, "CAD", "model.module.reference=true"), some_batch("CAD")
    copy = deepcopy(image_encoders(model)[0])
    model.training_step(batch, 0)
    copy(batch.observed()["img"])
    assert equal_statistics(image_encoders(model)[0], copy)


def test_tokens_of_observed_rows_are_those_of_a_batch_without_the_others() -> None:
    model, batch = trainable("ModDrop", "CAD"), some_batch("CAD")
    observed = (~batch.missing[:, 0]).nonzero()[:, 0]
    expected = deepcopy(model).encode_one(0, batch.inputs["img"][observed])
    tokens = model.encode_batch(batch)[observed, model.token_columns(0)]
    torch.testing.assert_close(tokens, expected, atol=1e-6, rtol=1e-5)


def test_a_batch_in_which_no_row_has_the_modality_leaves_the_statistics() -> None:
    model, batch = trainable("ModDrop", "CAD"), some_batch("CAD")
    missing = torch.zeros_like(batch.missing)
    missing[:, 0] = True
    before = deepcopy(model.encoders["img"])
    loss = model.training_step(batch.replace(missing=missing, feature_missing={}), 0)
    loss.backward()
    assert torch.isfinite(loss) and equal_statistics(model.encoders["img"], before, 0.0)
    # The gradient is there for processes that wait for it, and zero.
    assert all(p.grad is not None and not p.grad.any() for p in model.encoders["img"].parameters())


def test_complete_batches_are_encoded_as_they_are() -> None:
    """Nothing of complete data changes: one call of the encoder, on all rows."""
    model, batch = trainable("ModDrop", "CAD"), some_batch("CAD")
    complete = batch.replace(missing=torch.zeros_like(batch.missing), feature_missing={}, complete=True)
    seen: list[Batch | Tensor] = []
    model.encoders["img"].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model.training_step(complete, 0)
    assert len(seen) == 1 and seen[0] is complete.inputs["img"]
