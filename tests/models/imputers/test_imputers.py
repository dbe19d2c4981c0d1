"""Recovery methods: MoPoE against its slow twin, the trivial ones, row-keyed noise, quality of recoveries."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from datasets.batch import Batch, Modality, missing_content
from models.imputers.base import Imputer, merge, recover
from models.imputers.chain import Chain
from models.imputers.mopoe import MoPoE
from models.imputers.mopoe_networks import ImageDecoder, ImageEncoder
from models.imputers.quality import Judge, recovery_quality
from models.imputers.simple import Mean, Oracle, Zero
from tests import slow_twin as twin
from tests.networks import TokenEncoder, modalities, random_masks
from tests.tolerances import assert_close_sums
from trainers.config.compose import compose_config
from trainers.loading import Run
from utils.errors import UserError
from utils.noise import hash_seed, row_normal


def mopoe(count: int = 3, latent: int = 6, seed: int = 0, **options: Any) -> MoPoE:
    """A small one whose posteriors differ clearly by row and modality, in eval mode."""
    torch.manual_seed(seed)
    views = modalities(count)
    encoders = {m.name: ImageEncoder(latent=latent, hidden=16) for m in views}
    decoders = {m.name: ImageDecoder(latent=latent) for m in views}
    with torch.no_grad():
        for encoder in encoders.values():
            encoder.class_mu.weight.mul_(30)
            encoder.class_logvar.weight.mul_(30)
    return MoPoE(views, encoders, decoders, latent=latent, **options).eval()


def images(rows: int, count: int = 3, seed: int = 0, missing: Tensor | None = None) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    inputs = {f"m{i}": torch.rand(rows, 3, 28, 28, generator=generator) for i in range(count)}
    mask = torch.zeros(rows, count, dtype=torch.bool) if missing is None else missing
    return Batch(inputs, mask, torch.arange(rows) % 4, torch.arange(rows), complete=missing is None)


def filled(batch: Batch, value: float) -> dict[str, Tensor]:
    """The inputs with ``value`` as the content of what is missing."""
    return {
        n: merge(x, batch.missing[:, i], torch.full_like(x, value)) for i, (n, x) in enumerate(batch.inputs.items())
    }


# ---------------------------------------------------------------------------------------------- MoPoE: training


def test_parameters_of_the_published_network() -> None:
    views = modalities(5)
    model = MoPoE(views, {m.name: ImageEncoder() for m in views}, {m.name: ImageDecoder() for m in views})
    assert sum(p.numel() for p in model.parameters()) == 14_056_975
    keys = {key.split(".", 2)[2].rsplit(".", 1)[0] for key in model.state_dict()}
    encoder = {*(f"shared_encoder.{i}" for i in (0, 2, 4, 7)), "class_mu", "class_logvar"}
    assert keys == encoder | {f"decoder.{i}" for i in (0, 3, 5, 7)}
    mu, logvar = model.encoders[0](torch.rand(2, 3, 28, 28))
    assert mu.shape == logvar.shape == (2, 512)
    assert model.decoders[0](mu).shape == (2, 3, 28, 28)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_product_equals_twin_for_every_subset(count: int) -> None:
    """The prior is one more expert of the full set only; what is missing is not read."""
    generator = torch.Generator().manual_seed(0)
    mu = 2 * torch.randn(count, 4, 6, generator=generator)
    logvar = 2 * torch.randn(count, 4, 6, generator=generator)
    model = mopoe(count)
    together = model.subset_posteriors(mu, logvar)
    for s, mask in enumerate(twin.subsets(count)):
        present = [i for i in range(count) if not mask[i]]
        absent = torch.tensor(mask)[:, None, None]
        actual = model.product(
            mu.masked_fill(absent, torch.nan), logvar.masked_fill(absent, torch.inf), torch.tensor(mask).expand(4, -1)
        )
        for row in range(4):
            expected = twin.product_of_experts(
                [mu[i, row].double() for i in present], [logvar[i, row].double() for i in present], not any(mask)
            )
            for value, wanted in zip(actual, expected):
                torch.testing.assert_close(value[row].double(), wanted, rtol=1e-5, atol=1e-5)
            for value, wanted in zip(together, expected):
                torch.testing.assert_close(value[s, row].double(), wanted, rtol=1e-5, atol=1e-5)


def test_product_of_one_expert_is_the_expert() -> None:
    model = mopoe(2)
    mu, logvar = torch.randn(2, 1, 6), torch.tensor([-40.0, 1.0])[:, None, None].expand(2, 1, 6)
    for i, mask in enumerate(([False, True], [True, False])):
        mean, spread = model.product(mu, logvar, torch.tensor([mask]))
        torch.testing.assert_close(mean, mu[i])
        torch.testing.assert_close(spread.exp(), logvar[i].exp() + 1e-8)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("count", "rows"), [(3, 17), (3, 7), (5, 40), (2, 3)])
def test_loss_equals_twin(count: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same noise; also the gradient of one weight, through both terms. The sums have 10^4 terms."""
    model = mopoe(count, beta=1.7)
    batch = images(rows, count)
    noise = torch.randn(rows, 6, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(torch, "randn_like", lambda like: noise)
    losses = model.losses(batch)
    mus, logvars = model.encode_all(batch.inputs)
    expected = twin.mopoe_loss(mus, logvars, list(batch.inputs.values()), list(model.decoders), noise, beta=1.7)
    torch.testing.assert_close(losses["loss"], expected)
    torch.testing.assert_close(losses["nll"] + 1.7 * losses["kl"], losses["loss"])
    without = twin.mopoe_loss(mus, logvars, list(batch.inputs.values()), list(model.decoders), noise, beta=0)
    torch.testing.assert_close(losses["nll"], without)
    weight = model.encoders[1].class_logvar.weight
    actual, wanted = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in (losses["loss"], expected))
    torch.testing.assert_close(actual, wanted)


def test_class_weight_adds_the_cross_entropy_of_every_single_posterior(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, model = mopoe(), mopoe(class_weight=0.3, num_classes=4)
    model.load_state_dict(plain.state_dict(), strict=False)
    batch = images(9)
    noise = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(torch, "randn_like", lambda like: noise)
    mus, _ = model.encode_all(batch.inputs)
    terms = []
    for mu in mus:
        terms += [-torch.log_softmax(model.class_head(mu[row]), 0)[batch.target[row]] for row in range(9)]
    expected = plain.losses(batch)["loss"] + 0.3 * torch.stack(terms).mean()
    torch.testing.assert_close(model.losses(batch)["loss"], expected)
    assert set(model.state_dict()) - set(plain.state_dict()) == {"class_head.weight", "class_head.bias"}


class Flag(nn.Module):
    """Encoder whose mean is the unit vector of its own modality, so that a latent tells its subset."""

    def __init__(self, i: int, count: int) -> None:
        super().__init__()
        self.i, self.count = i, count

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu = torch.zeros(len(x), self.count)
        mu[:, self.i] = 1
        return mu, torch.zeros(len(x), self.count)


class Keep(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        self.seen = z
        return z


@pytest.mark.parametrize(
    ("count", "rows", "sizes"), [(5, 256, [8] * 30 + [16]), (3, 17, [2] * 6 + [5]), (2, 3, [1] * 3)]
)
def test_slices_of_the_batch(count: int, rows: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    views = modalities(count, (count,))
    keep = [Keep() for _ in views]
    encoders = {m.name: Flag(i, count) for i, m in enumerate(views)}
    model = MoPoE(views, encoders, dict(zip(encoders, keep)), latent=count)
    inputs = {m.name: torch.zeros(rows, count) for m in views}
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    missing = torch.zeros(rows, count, dtype=torch.bool)
    model.losses(Batch(inputs, missing, torch.zeros(rows), torch.arange(rows)))
    masks = [tuple((z == 0).tolist()) for z in keep[0].seen]
    assert all(torch.equal(k.seen, keep[0].seen) for k in keep)
    assert masks == [m for m, size in zip(twin.subsets(count), sizes) for _ in range(size)]
    assert twin.slices(rows, len(sizes)) == [s for s, size in enumerate(sizes) for _ in range(size)]


# ---------------------------------------------------------------------------------------------- MoPoE: recovery


@pytest.mark.parametrize("sample", [False, True])
def test_recovery_is_decoded_from_what_is_observed(sample: bool) -> None:
    """Rows one by one: posterior of the observed experts (no prior unless all are), its mean or one keyed draw."""
    masks = random_masks(9, 3, seed=0)
    batch = images(9, missing=masks)
    model = mopoe(sample=sample, draw_seed=3)
    index = torch.arange(9) * 7
    actual = model.impute(filled(batch, torch.nan), masks, index)
    with torch.no_grad():
        for row, mask in enumerate(masks.tolist()):
            present = [i for i in range(3) if not mask[i]]
            pairs = [model.encoders[i](batch.inputs[f"m{i}"][row : row + 1]) for i in present]
            mean, logvar = twin.product_of_experts(
                [p[0][0] for p in pairs], [p[1][0] for p in pairs], len(present) == 3
            )
            if sample:
                mean = mean + torch.exp(0.5 * logvar) * row_normal(index[row : row + 1], 6, 3)[0]
            for i in range(3):
                expected = model.decoders[i](mean[None])[0] if mask[i] else batch.inputs[f"m{i}"][row]
                torch.testing.assert_close(actual[f"m{i}"][row], expected, rtol=1e-4, atol=1e-5)


IMPUTERS = {
    "mopoe": lambda: mopoe(),
    "mopoe, sampled": lambda: mopoe(sample=True),
    "zero": Zero,
    "mean": lambda: fitted_mean(),
}


def test_masks_set_by_hand_on_a_complete_batch_are_recovered() -> None:
    """A batch of :meth:`MultimodalDataModule.rows` says that it is complete: other masks end that, other fields not."""
    batch, mean = images(4, seed=1), fitted_mean()
    hidden = torch.tensor([[True, False, False]]).expand(4, -1)
    assert recover(mean, batch.replace(index=batch.index + 7)) is batch.inputs
    actual = recover(mean, batch.replace(missing=hidden))
    torch.testing.assert_close(actual["m0"], mean.state_dict()["m0"].expand_as(actual["m0"]))
    assert torch.equal(actual["m1"], batch.inputs["m1"])
    assert not batch.replace(feature_missing={"m0": hidden}).complete
    assert batch.replace(missing=hidden, complete=True).complete


def fitted_mean() -> Mean:
    mean = Mean(modalities(3))
    mean.fit([images(5, seed=11), images(2, seed=12)])
    return mean


def test_the_mean_is_over_what_is_there() -> None:
    whole, other = images(4, seed=1), images(3, seed=2)
    absent = torch.tensor([[True, False, False], [False, True, False], [True, False, True]])
    lacking = other.replace(inputs=filled(other.replace(missing=absent), torch.nan), missing=absent)
    mean = Mean(modalities(3))
    mean.fit([whole, lacking])
    for i, (name, actual) in enumerate(mean.state_dict().items()):
        present = torch.cat([whole.inputs[name], other.inputs[name][~absent[:, i]]])
        torch.testing.assert_close(actual, present.mean(0))
    nothing = whole.replace(missing=torch.ones(4, 3, dtype=torch.bool) & torch.tensor([True, False, False]))
    with pytest.raises(UserError, match=r"no training row has all of 'm0'"):
        Mean(modalities(3)).fit([nothing])


@pytest.mark.parametrize("name", IMPUTERS)
def test_observed_rows_pass_through_bit_for_bit(name: str) -> None:
    masks = random_masks(8, 3, seed=1)
    batch = images(8, missing=masks)
    inputs = filled(batch, 3.0)
    inputs["m0"][~masks[:, 0], 0, 0, 0] = torch.nan
    inputs["m1"] = inputs["m1"].contiguous(memory_format=torch.channels_last)
    before, mask = {n: x.clone() for n, x in inputs.items()}, masks.clone()
    actual = IMPUTERS[name]().impute(inputs, masks)
    assert list(actual) == list(inputs)
    assert torch.equal(masks, mask)
    for i, (n, x) in enumerate(actual.items()):
        assert torch.equal(inputs[n].view(torch.int32), before[n].view(torch.int32)), "the caller's input was changed"
        observed = ~masks[:, i]
        assert torch.equal(x[observed].view(torch.int32), before[n][observed].view(torch.int32))
        assert x.dtype == inputs[n].dtype
        assert x.shape == inputs[n].shape


@pytest.mark.parametrize("fill", [torch.nan, torch.inf, -1e30])
@pytest.mark.parametrize("name", IMPUTERS)
def test_content_of_missing_modalities_is_never_read(name: str, fill: float) -> None:
    masks = random_masks(8, 3, seed=2)
    batch = images(8, missing=masks)
    imputer = IMPUTERS[name]()
    one, other = (imputer.impute(filled(batch, value), masks) for value in (0.5, fill))
    for n, x in one.items():
        assert x.isfinite().all()
        assert torch.equal(x, other[n])


@pytest.mark.parametrize("name", IMPUTERS)
def test_mixed_patterns_equal_row_by_row_calls(name: str) -> None:
    masks = random_masks(8, 3, seed=3)
    batch = images(8, missing=masks)
    imputer = IMPUTERS[name]()
    together = imputer.impute(batch.inputs, masks, batch.index)
    for row in range(8):
        one = slice(row, row + 1)
        alone = imputer.impute({n: x[one] for n, x in batch.inputs.items()}, masks[one], batch.index[one])
        for n, x in alone.items():
            assert_close_sums(x, together[n][one])


def test_draws_belong_to_rows_not_to_batches() -> None:
    """The same row number gives the same recovery in any batch; other rows and other seeds give other ones."""
    model = mopoe(sample=True)
    x = torch.rand(1, 3, 28, 28).expand(6, -1, -1, -1)
    inputs = {"m0": x, "m1": x, "m2": x}
    masks = torch.tensor([[False, True, True]]).expand(6, -1)
    index = torch.tensor([4, 900, 4, 17, 5, 60_000])
    actual = model.impute(inputs, masks, index)["m1"]
    again = model.impute(inputs, masks, index.flip(0))["m1"].flip(0)
    torch.testing.assert_close(actual, again, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(actual[0], actual[2], rtol=1e-6, atol=1e-6)
    for one, other in itertools.combinations((0, 1, 3, 4, 5), 2):
        assert (actual[one] - actual[other]).abs().max() > 1e-3
    mean = mopoe().impute(inputs, masks, index)["m1"]
    assert (mean - mean[:1]).abs().max() < 1e-6
    assert (actual - mean).abs().amax((1, 2, 3)).min() > 1e-3
    other = mopoe(sample=True, draw_seed=7).impute(inputs, masks, index)["m1"]
    assert (actual - other).abs().amax((1, 2, 3)).min() > 1e-3
    default = model.impute(inputs, masks)["m1"]
    assert_close_sums(default, model.impute(inputs, masks, torch.arange(6))["m1"])


def test_draws_differ_between_seeds_of_a_run() -> None:
    """With one model, so that nothing but the draws can differ; recoveries from the mean stay as they are."""
    x = torch.rand(1, 3, 28, 28).expand(3, -1, -1, -1)
    inputs, masks = {"m0": x, "m1": x, "m2": x}, torch.tensor([[False, True, True]]).expand(3, -1)
    for sample in (True, False):
        recovered = []
        for seed in (0, 1, 1):
            model = mopoe(sample=sample)
            Chain(model.modalities, dict.fromkeys(("m0", "m1"), model)).draw_for_seed(seed)
            recovered.append(model.impute(inputs, masks)["m1"])
        assert torch.equal(recovered[1], recovered[2])
        assert torch.equal(recovered[0], recovered[1]) is not sample


def test_the_imputer_of_a_run_draws_for_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.loading.build_imputer", lambda *_, **__: mopoe(sample=True, draw_seed=5))
    imputer: Any = Run(compose_config("dataset=Digits", "imputer=Zero", "seed=3")).load_imputer()
    assert imputer.draw_seed == hash_seed(5, 3)


def test_numbered_draws() -> None:
    """Each number is another draw of a row, the same in any batch and from a chain; then the imputer is as it was,
    also after an error."""
    model = mopoe(draw_seed=3)
    x = torch.rand(1, 3, 28, 28).expand(3, -1, -1, -1)
    inputs = {"m0": x, "m1": x, "m2": x}
    masks, index = torch.tensor([[False, True, True]]).expand(3, -1), torch.tensor([7, 8, 9])
    mean = model.impute(inputs, masks, index)["m1"]
    draws = []
    for number in (0, 1):
        with model.drawing(number):
            draws.append(model.impute(inputs, masks, index)["m1"])
            assert_close_sums(model.impute(inputs, masks, index.flip(0))["m1"].flip(0), draws[-1])
    for one, other in itertools.combinations((mean, *draws), 2):
        assert (one - other).abs().amax((1, 2, 3)).min() > 1e-3
    chain = Chain(model.modalities, {m.name: model for m in model.modalities})
    with pytest.raises(KeyError), chain.drawing(1):
        assert_close_sums(chain.impute(inputs, masks, index)["m1"], draws[1])
        raise KeyError
    assert chain.has_draws and not model.sample and model.draw_seed == 3 and not Zero().has_draws
    with pytest.raises(ValueError, match="Zero draws no recoveries"), Zero().drawing(0):
        pass


def test_recovery_leaves_the_model_as_it_was() -> None:
    model = mopoe().train()
    batch = images(4, missing=random_masks(4, 3, seed=0))
    state = torch.get_rng_state()
    actual = model.impute(batch.inputs, batch.missing)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(x.requires_grad for x in actual.values())
    complete = images(4)
    assert all(x is complete.inputs[n] for n, x in model.impute(complete.inputs, complete.missing).items())


def test_mopoe_learns() -> None:
    """A few steps on one batch lower the loss; every parameter takes part."""
    model = mopoe(seed=2, optimizer=lambda p: torch.optim.Adam(p, 1e-3)).train()
    torch.manual_seed(0)
    batch = images(14)
    optimizer = model.configure_optimizers()
    history = []
    for _ in range(15):
        loss = model.losses(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters())
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.9 * history[0]


# ---------------------------------------------------------------------------------------------- the trivial ones


def test_zero_mean_and_oracle() -> None:
    masks = random_masks(6, 3, seed=4)
    batch = images(6, missing=masks)
    recovered = {"zero": Zero().impute(batch.inputs, masks), "mean": fitted_mean().impute(batch.inputs, masks)}
    seen = [images(5, seed=11), images(2, seed=12)]
    for i, n in enumerate(batch.inputs):
        absent = masks[:, i]
        assert not recovered["zero"][n][absent].any()
        mean = torch.cat([b.inputs[n] for b in seen]).mean(0)
        torch.testing.assert_close(recovered["mean"][n][absent], mean.expand(int(absent.sum()), -1, -1, -1))
        assert torch.equal(Oracle().impute(batch.inputs, masks)[n], batch.inputs[n])
    assert "oracle" in Oracle.needs
    assert not any("oracle" in kind.needs for kind in (Zero, Mean, MoPoE, Imputer))


def test_mean_keeps_its_values_through_a_state() -> None:
    fitted, fresh = fitted_mean(), Mean(modalities(3))
    assert all(value.isnan().all() for value in fresh.state_dict().values())
    fresh.load_state_dict(fitted.state_dict())
    assert all(torch.equal(fresh.means[n], fitted.means[n]) for n in fitted.means)


# ---------------------------------------------------------------------------------------------- noise


def test_noise_is_standard_normal() -> None:
    """Values, squares, and the independence of neighbouring rows and columns."""
    noise = row_normal(torch.arange(400), 256, seed=5)
    assert noise.shape == (400, 256)
    assert noise.dtype == torch.float32
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 0.01
    for axis in (0, 1):
        means = noise.double().mean(axis) * noise.shape[axis] ** 0.5
        assert stats.kstest(means.numpy(), "norm").pvalue > 0.01
    n = noise.numel()
    for a, b in ((noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1]), (noise[:, :128], noise[:, 128:])):
        assert abs(float((a * b).mean())) < 5 / n**0.5
        assert abs(float((a.square() * b.square()).mean()) - 1) < 5 * 8**0.5 / n**0.5
    assert noise.abs().max() > 4


def test_noise_depends_on_the_row_alone() -> None:
    whole = row_normal(torch.arange(50), 7, seed=1)
    rows = torch.tensor([49, 3, 3, 0])
    assert torch.equal(row_normal(rows, 7, seed=1), whole[rows])
    assert len(whole.unique()) == whole.numel()
    huge = row_normal(torch.tensor([2**40, 2**62]), 1000, seed=1)
    assert huge.isfinite().all()
    assert abs(float(huge.mean())) < 0.1


def test_noise_of_another_seed_is_another_table() -> None:
    one, other = row_normal(torch.arange(50), 4, seed=2025), row_normal(torch.arange(50), 4, seed=2026)
    assert not set(one.flatten().tolist()) & set(other.flatten().tolist())


# ---------------------------------------------------------------------------------------------- quality


class Spy(Imputer):
    """Recovers as 0 and remembers which modalities were missing."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor | None]] = []

    def impute(self, inputs: Mapping[str, Tensor], missing: Tensor, index: Tensor | None = None) -> dict[str, Tensor]:
        self.calls.append((missing, index))
        return Zero().impute(inputs, missing)


def test_quality_of_columns_channels_and_symbols() -> None:
    """Against sums over the cells that were hidden; zeros are level 0, and the first symbol."""
    views = [
        Modality("labs", "table", (3,), cardinalities=(3,), columns=("sex", "age", "crp")),
        Modality("ecg", "series", (5, 2)),
        Modality("letters", "text", (4, 3)),
    ]
    hidden: dict[str, list[Tensor]] = {}

    class Watched(Zero):
        def impute(self, inputs: Any, missing: Tensor, index: Any = None, feature_missing: Any = None) -> Any:
            for i, (name, x) in enumerate(inputs.items()):
                suffix = "_cells" if feature_missing else ""
                if not feature_missing or name in feature_missing:
                    cells = missing_content(x, name, missing[:, i], feature_missing).expand(x.shape)
                    hidden.setdefault(name + suffix, []).append(cells)
            return super().impute(inputs, missing, index, feature_missing)

    generator = torch.Generator().manual_seed(0)
    labs, ecg = (torch.randn(30, *m.shape, generator=generator) for m in views[:2])
    labs[:, 0] = torch.arange(30) % 3
    letters = F.one_hot(torch.randint(3, (30, 4), generator=generator), 3).float()
    letters[:, 3] = 0  # no symbol
    encoders = {"labs": nn.Unflatten(1, (1, 3)), "ecg": nn.Identity(), "letters": nn.Identity()}
    inputs = {"labs": labs, "ecg": ecg, "letters": letters}
    batch = Batch(inputs, torch.zeros(30, 3, dtype=torch.bool), torch.arange(30) % 2, torch.arange(30), complete=True)
    quality = recovery_quality(Watched(), Judge(views, 2, encoders), [batch])
    actual = {(*r[1:5],): r[5:] for r in quality.columns.itertuples()}  # modality, column, observed, metric
    assert {(name, column) for name, column, *_ in actual} == {
        *(("labs", column) for column in ("sex", "age", "crp")),
        *(("ecg", channel) for channel in "01"),
    }
    for name, column, observed, metric in actual:
        suffix = "_cells" if metric.endswith("_cells") else ""
        calls = hidden[name + suffix]  # one and two missing, then half of the cells
        cells = calls[0] if suffix or observed == 2 else calls[1]
        i = int(column) if name == "ecg" else views[0].columns.index(column)
        values = inputs[name][..., i][cells[..., i]].double()
        measures = {"accuracy": (values == 0).double(), "mse": values.square(), "mae": values.abs()}
        assert (metric.removesuffix(suffix) == "accuracy") == (column == "sex")
        expected = measures[metric.removesuffix(suffix)]
        assert actual[name, column, observed, metric] == (pytest.approx(float(expected.mean())), len(expected))
    of_texts = quality.modalities.query("metric == 'symbol_accuracy'").set_index("observed")
    rows = hidden["letters"][0][:, 0, 0]
    first = letters[rows][:, :3].argmax(2) == 0
    assert of_texts.loc[2, "value"] == pytest.approx(float(first.double().mean()))
    assert of_texts.loc[2, "n"] == 3 * int(rows.sum())
    assert {"mse_cells", "level_accuracy_cells"} <= set(quality.modalities["metric"])


def test_quality_of_recoveries() -> None:
    """Errors and coherence of every modality by number of observed ones, computed again row by row."""
    views = modalities(3, (2, 3))
    judge = Judge(views, 4, {m.name: TokenEncoder(2, 8) for m in views})
    generator = torch.Generator().manual_seed(0)
    parts = []
    for start, rows in ((0, 40), (40, 25)):
        inputs = {m.name: torch.randn(rows, 2, 3, generator=generator) for m in views}
        missing = torch.zeros(rows, 3, dtype=torch.bool)
        parts.append(Batch(inputs, missing, torch.arange(rows) % 4, start + torch.arange(rows), complete=True))
    spy = Spy()
    table = recovery_quality(spy, judge, parts).modalities
    actual = {(r.modality, r.observed, r.metric): (r.value, r.n) for r in table.itertuples()}
    assert [int(m.sum(1).unique()) for m, _ in spy.calls] == [1, 2, 1, 2]
    assert all(torch.equal(index, part.index) for (_, index), part in zip(spy.calls, [parts[0]] * 2 + [parts[1]] * 2))
    calls = [(parts[0], spy.calls[0]), (parts[0], spy.calls[1]), (parts[1], spy.calls[2]), (parts[1], spy.calls[3])]
    for i, m in enumerate(views):
        for observed in (1, 2):
            squares, right = [], []
            for part, (missing, _) in calls:
                if int((~missing[0]).sum()) != observed:
                    continue
                rows = missing[:, i]
                squares += part.inputs[m.name][rows].square().mean((1, 2)).tolist()
                with torch.no_grad():
                    guess = judge.read({m.name: torch.zeros(1, 2, 3)})[m.name].argmax(1)
                right += (part.target[rows] == guess).float().tolist()
            assert actual[m.name, observed, "mse"] == (
                pytest.approx(sum(squares) / len(squares), rel=1e-5),
                len(squares),
            )
            assert actual[m.name, observed, "coherence"] == (pytest.approx(sum(right) / len(right)), len(right))
        with torch.no_grad():
            hits = [judge.read(p.inputs)[m.name].argmax(1) == p.target for p in parts]
        assert actual[m.name, 3, "judge_accuracy"] == (pytest.approx(float(torch.cat(hits).float().mean())), 65)
    perfect = recovery_quality(Oracle(), judge, parts).modalities
    assert (perfect[perfect.metric.isin(["mse", "mae"])].value == 0).all()


def test_texts_of_token_ids_are_judged_as_ids() -> None:
    """Their embedding takes whole numbers, and ids have no distance: the share of equal ids is the error."""
    text = [Modality("a", "text", (6,), vocabulary=9), Modality("b", "text", (6,), vocabulary=9)]
    judge = Judge(text, 3, {m.name: nn.Embedding(9, 4) for m in text})
    ids = torch.randint(0, 9, (30, 6), generator=torch.Generator().manual_seed(0))
    batch = Batch({"a": ids, "b": ids}, torch.zeros(30, 2, dtype=torch.bool), torch.arange(30) % 3, torch.arange(30))
    rows = recovery_quality(Zero(), judge, [batch]).modalities
    assert set(rows["metric"]) == {"token_accuracy", "coherence", "judge_accuracy"}
    right = rows[rows["metric"] == "token_accuracy"]
    total = (right["value"] * right["n"]).sum() / right["n"].sum()
    assert right["n"].sum() == 30 and abs(total - float((ids == 0).float().mean())) < 0.05
    exact = recovery_quality(Oracle(), judge, [batch]).modalities
    assert (exact[exact["metric"] == "token_accuracy"]["value"] == 1).all()


def test_a_generative_imputer_is_refused_without_a_complete_row() -> None:
    model = mopoe()
    model.check_training_rows(np.array([[True, False], [False, False]]))
    with pytest.raises(UserError, match=r"imputer MoPoE learns from rows that have every .*no training row of 2"):
        model.check_training_rows(np.array([[True, False], [False, True]]))


def test_judge_is_trained_on_each_modality_alone() -> None:
    views = modalities(2, (2, 3))
    judge = Judge(views, 4, {m.name: TokenEncoder(2, 8) for m in views})
    inputs = {m.name: torch.randn(5, 2, 3) for m in views}
    missing = torch.zeros(5, 2, dtype=torch.bool)
    batch = Batch(inputs, missing, torch.tensor([0, 1, 2, 3, 0]), torch.arange(5))
    prediction = judge(batch)
    expected = sum(nn.functional.cross_entropy(judge.read(inputs)[m.name], batch.target) for m in views)
    torch.testing.assert_close(judge.loss(prediction, batch)["loss"], expected)
    other = judge(batch.replace(inputs={"m0": inputs["m0"], "m1": torch.randn(5, 2, 3)}))
    assert torch.equal(other.extras["m0"], prediction.extras["m0"])
    assert not torch.equal(other.extras["m1"], prediction.extras["m1"])
