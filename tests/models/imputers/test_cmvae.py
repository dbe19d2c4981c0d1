"""CMVAE and MMVAE+: structure, loss and recovery against slow versions, original files, and ``multivae``."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from scipy import stats
from torch import Tensor

from datasets.batch import Batch, Modality
from models.imputers import cmvae
from models.imputers.base import merge
from models.imputers.cmvae import CMVAE, MMVAEPlus
from models.imputers.cmvae_networks import ResNetDecoder, ResNetEncoder
from tests import slow_networks as slow
from tests.networks import modalities, random_masks
from tests.tolerances import assert_close_sums
from trainers.config.compose import CONFIGS
from trainers.loading import Run
from utils.errors import UserError
from utils.noise import hash_seed, row_laplace, row_normal, row_uniform
from utils.weights import checkpoint_kind

METHODS = {"CMVAE": CMVAE, "MMVAEPlus": MMVAEPlus}
SHARED, PRIVATE, CLUSTERS, WIDTH = 5, 3, 4, 2


def model_of(method: str, views: int = 3, seed: int = 0, **options: Any) -> tuple[Any, slow.State]:
    """A narrow one with random content (learned scales and clusters differ clearly), in eval mode, and its state."""
    names = modalities(views)
    sizes = {"shared": SHARED, "private": PRIVATE}
    encoders = {m.name: ResNetEncoder(width=WIDTH, **sizes) for m in names}
    decoders = {m.name: ResNetDecoder(width=WIDTH, **sizes) for m in names}
    if method == "CMVAE":
        options["clusters"] = CLUSTERS
    model = METHODS[method](names, encoders, decoders, **sizes, **options)
    state = slow.random_state(slow.multivae(method, views, WIDTH, SHARED, PRIVATE, CLUSTERS), seed)
    for key in state:
        if "fc_mu" in key or "fc_lv" in key:
            state[key] = state[key] * 3
    model.load_state_dict({**state, **{k: v for k, v in model.state_dict().items() if k.startswith("class_head")}})
    return model.eval(), {k: v.clone() for k, v in state.items()}


def images(rows: int, views: int = 3, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"m{i}": torch.rand(rows, 3, 28, 28, generator=generator) for i in range(views)}


def complete(inputs: dict[str, Tensor]) -> Batch:
    b = len(inputs["m0"])
    return Batch(inputs, torch.zeros(b, len(inputs), dtype=torch.bool), torch.arange(b) % 4, torch.arange(b))


def scale(raw: Tensor) -> Tensor:
    """docs/reference/dymo.md §5.2: softmax over the latent, times its width, plus 1e-6."""
    weights = torch.exp(raw - raw.max())
    return weights / weights.sum() * raw.numel() + 1e-6


def laplace(x: Tensor, mu: Tensor, b: Tensor) -> Tensor:
    return torch.distributions.Laplace(mu, b).log_prob(x).sum()


def slow_loss(state: slow.State, method: str, inputs: dict[str, Tensor], noise: list[Tensor], beta: float) -> Tensor:
    """docs/reference/dymo.md §5.2, summed over the batch, one row and one modality at a time.

    Args:
        noise: of u (M, B, shared), of w (M, B, private), of the strangers' w (target, source, B, private).
    """
    names, rows = list(inputs), len(inputs["m0"])
    total = torch.zeros(())
    r_raw = "r_logvars_priors" if method == "CMVAE" else "logvars_priors"
    r_mean = "r_mean_priors" if method == "CMVAE" else "mean_priors"
    for row in range(rows):
        posterior = {}
        for name in names:
            net = slow.Network(state, f"encoders.{name}")
            posterior[name] = [[v[0] for v in slow.resnet_encode(net, part, inputs[name][row][None])] for part in "uw"]
        for m, name in enumerate(names):
            (u_mu, u_raw), (w_mu, w_raw) = posterior[name]
            u = u_mu + scale(u_raw) * noise[0][m, row]
            w = w_mu + scale(w_raw) * noise[1][m, row]
            likelihood = torch.zeros(())
            for n, target in enumerate(names):
                private = w
                if target != name:
                    private = (
                        state[f"{r_mean}.{target}"][0] + scale(state[f"{r_raw}.{target}"][0]) * noise[2][n, m, row]
                    )
                location = slow.resnet_decode(slow.Network(state, f"decoders.{target}"), torch.cat([u, private])[None])[
                    0
                ]
                likelihood = likelihood + laplace(inputs[target][row], location, torch.tensor(0.75))
            mixture = sum(torch.exp(laplace(u, mu, scale(raw)).double()) for (mu, raw), _ in posterior.values())
            penalty = -torch.log(mixture / len(names)) - laplace(w, w_mu, scale(w_raw))
            if method == "CMVAE":
                pi = torch.softmax(state["_pc_params"], 0)
                by_cluster = torch.stack(
                    [
                        torch.log(pi[c])
                        + laplace(u, state[f"mean_clusters.{c}"][0], scale(state[f"logvar_clusters.{c}"][0]))
                        for c in range(len(pi))
                    ]
                )
                q = torch.softmax(by_cluster, 0) + 1e-20
                penalty = penalty + (q * (by_cluster - torch.log(q))).sum()
                penalty = penalty + laplace(w, state["w_mean_prior"][0], scale(state["w_logvar_prior"][0]))
            else:
                prior = state["mean_priors.shared"][0], scale(state["logvars_priors.shared"][0])
                penalty = penalty + laplace(torch.cat([u, w]), *prior)
            total = total - (likelihood + beta * penalty) / len(names)
    return total


# -------------------------------------------------------------------------------------------------------- structure


@pytest.mark.parametrize(
    ("method", "parameters", "entries"), [("CMVAE", 22_159_479, 383), ("MMVAEPlus", 22_156_943, 302)]
)
def test_published_networks_and_an_original_file(method: str, parameters: int, entries: int, tmp_path: Path) -> None:
    """The shipped configuration builds them; ``model.pt`` of the original loads through the path of every stage."""
    state = slow.random_state(slow.multivae(method))
    torch.save({"model_state_dict": state}, tmp_path / "model.pt")
    assert checkpoint_kind({"model_state_dict": state}) == "reference_multivae"
    base = OmegaConf.load(CONFIGS / "imputer" / "MMVAEPlus.yaml")
    separate = OmegaConf.load(CONFIGS / "imputer" / f"{method}.yaml")
    imputer = OmegaConf.merge(base, {k: v for k, v in separate.items() if k != "defaults"})
    cfg = OmegaConf.create(
        {"seed": 0, "dataset": {"name": "PolyMNIST", "num_classes": 10}, "trainer": {"accelerator": "cpu"}}
    )
    cfg.imputer = imputer
    cfg.imputer.checkpoint = str(tmp_path / "model.pt")
    context = Run(cfg)
    context.__dict__["data"] = SimpleNamespace(
        modalities=modalities(5), modality_names=[f"m{i}" for i in range(5)], describe_inputs=lambda: {"classes": []}
    )
    actual = context.load_imputer()
    assert type(actual) is METHODS[method] and sum(p.numel() for p in actual.parameters()) == parameters
    assert len(actual.state_dict()) == len(state) == entries
    assert all(torch.equal(actual.state_dict()[k], v) for k, v in state.items())
    optimizer = actual._optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.defaults["amsgrad"] and optimizer.defaults["lr"] == 1e-3
    assert (cfg.imputer.training.batch_size, cfg.imputer.training.max_epochs) == {
        "CMVAE": (128, 250),
        "MMVAEPlus": (32, 150),
    }[method]
    trainable = {"CMVAE": 40 + 5 * 32 + 40 * 32, "MMVAEPlus": 5 * 32}[method]
    networks = sum(p.numel() for part in (actual.encoders, actual.decoders) for p in part.parameters())
    assert sum(p.numel() for p in actual.parameters() if p.requires_grad) == networks + trainable
    swapped = slow.random_state(slow.multivae("MMVAEPlus" if method == "CMVAE" else "CMVAE"))
    torch.save({"model_state_dict": swapped}, tmp_path / "model.pt")
    with pytest.raises(UserError, match=rf"model\.pt does not fit the {method}"):
        context.load_imputer()


def test_initial_values() -> None:
    views = modalities(2)
    torch.manual_seed(0)
    model = CMVAE(
        views, {m.name: ResNetEncoder(width=1) for m in views}, {m.name: ResNetDecoder(width=1) for m in views}
    )
    means = torch.cat(list(model.mean_clusters))
    assert means.shape == (40, 32) and stats.kstest(means.detach().flatten().numpy(), "uniform", (-1, 2)).pvalue > 0.01
    assert not model._pc_params.any() and not any(p.any() for p in model.logvar_clusters)


@pytest.mark.parametrize("options", [{"conditioning": "best"}, {"private_prior": "none"}])
def test_unknown_options_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"must be one of (mean, random|joint, modality), not"):
        model_of("CMVAE", **options)


def test_the_published_networks_are_refused_for_other_modalities() -> None:
    for m in (Modality("text", "text", (8, 71)), Modality("svhn", "image", (3, 32, 32))):
        with pytest.raises(ValueError, match=rf"are for images of 28 x 28 pixels, modality '{m.name}'.*leave them out"):
            MMVAEPlus([m], {m.name: ResNetEncoder(width=1)}, {m.name: ResNetDecoder(width=1)})


# ------------------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("method", METHODS)
def test_loss_equals_slow_version(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same noise; also the gradients of an encoder, the learned r, and the clusters."""
    model, state = model_of(method, beta=1.7)
    for value in state.values():
        value.requires_grad_()
    inputs, generator = images(4), torch.Generator().manual_seed(1)
    shapes = [(3, 4, SHARED), (3, 4, PRIVATE), (3, 3, 4, PRIVATE)]
    noise = [torch.randn(shape, generator=generator) for shape in shapes]
    feed = iter(noise)

    def given(*shape: int, like: Tensor) -> Tensor:
        drawn = next(feed)
        assert drawn.shape == shape
        return drawn

    monkeypatch.setattr(cmvae, "standard_laplace", given)
    losses = model.losses(complete(inputs))
    expected = slow_loss(state, method, inputs, noise, beta=1.7)
    torch.testing.assert_close(4 * losses["loss"], expected.float(), rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(losses["nll"] + 1.7 * losses["kl"], losses["loss"])
    keys = ["encoders.m1.resnet_u.2.conv_s.weight", "encoders.m1.fc_lv_w.weight", "decoders.m2.fc.weight"]
    keys += ["r_logvars_priors.m0", "_pc_params", "mean_clusters.2"] if method == "CMVAE" else ["logvars_priors.m0"]
    separate = dict(model.named_parameters())
    actual = torch.autograd.grad(losses["loss"], [separate[k] for k in keys])
    wanted = torch.autograd.grad(expected, [state[k] for k in keys])
    for mine, other in zip(actual, wanted):
        assert other.any()
        torch.testing.assert_close(4 * mine, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def test_the_sum_over_the_batch_is_minimised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logged values are means."""
    model, _ = model_of("MMVAEPlus", class_weight=2.0, num_classes=4)
    logged: dict[str, Tensor] = {}
    monkeypatch.setattr(model, "log_dict", lambda values, **_: logged.update(values))
    batch = complete(images(6))
    torch.manual_seed(0)
    step = model.training_step(batch, 0)
    torch.manual_seed(0)
    losses = model.losses(batch)
    torch.testing.assert_close(step, 6 * losses["loss"])
    torch.testing.assert_close(logged["train_loss"], losses["loss"].detach())
    total = losses["nll"] + 2.5 * losses["kl"] + 2.0 * losses["classification"]
    torch.testing.assert_close(losses["loss"], total)
    means = [model.encoders[n](x)[0] for n, x in batch.inputs.items()]
    terms = [-torch.log_softmax(model.class_head(mu[row]), 0)[batch.target[row]] for mu in means for row in range(6)]
    torch.testing.assert_close(losses["classification"], torch.stack(terms).mean())


@pytest.mark.parametrize("method", METHODS)
def test_it_learns(method: str) -> None:
    views = modalities(2)
    torch.manual_seed(0)
    networks = [{m.name: make(width=2) for m in views} for make in (ResNetEncoder, ResNetDecoder)]
    model = METHODS[method](views, *networks, optimizer=lambda p: torch.optim.Adam(p, 3e-3, amsgrad=True))
    optimizer, batch, history = model.configure_optimizers(), complete(images(12, 2)), []
    for _ in range(15):
        losses = model.losses(batch)
        optimizer.zero_grad()
        (12 * losses["loss"]).backward()
        for name, p in model.named_parameters():
            assert (p.grad is not None and p.grad.isfinite().all() and bool(p.grad.any())) == p.requires_grad, name
        optimizer.step()
        history.append(float(losses["loss"].detach()))
    assert history[-1] < 0.9 * history[0]


# --------------------------------------------------------------------------------------------------------- recovery

SETTINGS = [("mean", False, "joint"), ("random", False, "joint"), ("mean", True, "modality"), ("random", True, "joint")]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("conditioning", "sample", "prior"), SETTINGS)
def test_recovery_equals_a_loop_over_rows(method: str, conditioning: str, sample: bool, prior: str) -> None:
    """Mixed patterns, one of them complete; missing content is NaN, observed content comes back bit for bit."""
    model, state = model_of(method, conditioning=conditioning, sample=sample, private_prior=prior, draw_seed=3)
    masks = random_masks(9, 3, seed=0)
    inputs = images(9)
    spoilt = {n: merge(x, masks[:, i], torch.full_like(x, torch.nan)) for i, (n, x) in enumerate(inputs.items())}
    index = torch.arange(9) * 7
    actual = model.train().impute(spoilt, masks, index)
    assert model.training and list(actual) == list(inputs) and not any(x.requires_grad for x in actual.values())
    r = ("r_mean_priors", "r_logvars_priors") if method == "CMVAE" else ("mean_priors", "logvars_priors")
    for row, mask in enumerate(masks.tolist()):
        one = index[row : row + 1]
        present = [i for i in range(3) if not mask[i]]
        if conditioning == "random":
            uniform = float(row_uniform(one, 1, hash_seed(3, 0)))
            present = [present[math.ceil(uniform * len(present)) - 1]]
        messages = []
        for i in present:
            net = slow.Network(state, f"encoders.m{i}")
            mu, raw = (v[0] for v in slow.resnet_encode(net, "u", inputs[f"m{i}"][row][None]))
            messages.append(mu + (scale(raw) * row_laplace(one, SHARED, hash_seed(3, 1, i))[0] if sample else 0))
        u = sum(messages) / len(messages)
        for i, (name, x) in enumerate(actual.items()):
            if not mask[i]:
                assert torch.equal(x[row], inputs[name][row])
                continue
            if prior == "modality":
                mu, raw = (state[f"{part}.{name}"][0] for part in r)
            elif method == "CMVAE":
                mu, raw = state["w_mean_prior"][0], state["w_logvar_prior"][0]
            else:
                mu, raw = (state[f"{part}.shared"][0, SHARED:] for part in r)
            w = mu + (scale(raw) * row_laplace(one, PRIVATE, hash_seed(3, 2, i))[0] if sample else 0)
            expected = slow.resnet_decode(slow.Network(state, f"decoders.{name}"), torch.cat([u, w])[None])[0]
            torch.testing.assert_close(x[row], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("conditioning", ["mean", "random"])
def test_draws_belong_to_rows_not_to_batches(conditioning: str) -> None:
    model, _ = model_of("CMVAE", conditioning=conditioning, sample=True)
    inputs = {n: x.expand(6, -1, -1, -1) for n, x in images(1).items()}
    masks = torch.tensor([[False, True, False]]).expand(6, -1)
    index = torch.tensor([4, 900, 4, 17, 5, 60_000])
    state = torch.get_rng_state()
    actual = model.impute(inputs, masks, index)["m1"]
    assert torch.equal(torch.get_rng_state(), state)
    again = model.impute(inputs, masks, index.flip(0))["m1"].flip(0)
    assert_close_sums(actual, again)
    assert_close_sums(actual[0], actual[2])
    assert (actual[[0, 1, 3, 4]] - actual[5]).abs().amax((1, 2, 3)).min() > 1e-3
    model.draw_seed = 1
    assert (actual - model.impute(inputs, masks, index)["m1"]).abs().amax((1, 2, 3)).min() > 1e-3


def test_the_random_modality_is_uniform_among_the_observed() -> None:
    model, _ = model_of("MMVAEPlus", views=5, conditioning="random")
    missing = torch.tensor([[True, False, False, True, False]]).expand(6000, -1)
    use = model._conditioning(missing, missing, torch.arange(6000))
    assert (use.sum(1) == 1).all() and not use[:, [0, 3]].any()
    assert stats.chisquare(use[:, [1, 2, 4]].sum(0).numpy()).pvalue > 0.01
    nothing_missing = torch.zeros(2, 5, dtype=torch.bool)
    assert not model._conditioning(nothing_missing, nothing_missing, torch.arange(2)).any()
    model.conditioning = "mean"
    assert torch.equal(model._conditioning(missing, missing, torch.arange(6000)), ~missing)


def test_a_modality_is_encoded_once_per_batch_and_only_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []
    original = ResNetEncoder.branch

    def counted(self: ResNetEncoder, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
        calls.append((name, len(x)))
        return original(self, x, name)

    monkeypatch.setattr(ResNetEncoder, "branch", counted)
    model, _ = model_of("MMVAEPlus")
    masks = torch.tensor([[True, False, False], [False, False, False], [False, True, True], [True, True, False]])
    model.impute(images(4), masks)
    assert calls == [("u", 1), ("u", 1), ("u", 2)]


# ------------------------------------------------------------------------------------------------------------ noise


def test_laplace_noise() -> None:
    noise = row_laplace(torch.arange(400), 200, seed=5)
    assert noise.shape == (400, 200) and noise.dtype == torch.float32 and noise.isfinite().all()
    assert stats.kstest(noise.flatten().numpy(), "laplace").pvalue > 0.01
    rows = torch.tensor([49, 3, 3, 0])
    assert torch.equal(row_laplace(rows, 200, 5), noise[rows])
    torch.manual_seed(0)
    drawn = cmvae.standard_laplace(300, 200, like=torch.zeros(()))
    assert stats.kstest(drawn.flatten().numpy(), "laplace").pvalue > 0.001
    uniform = row_uniform(torch.arange(400), 50, seed=1)
    assert uniform.min() > 0 and uniform.max() <= 1 and stats.kstest(uniform.flatten().numpy(), "uniform").pvalue > 0.01


def test_normal_noise_is_what_it_was() -> None:
    """Recoveries that were drawn before ``row_uniform`` was split off stay as they are."""
    index, seed, width = torch.tensor([0, 7, 2**40]), 2025, 3
    mask = (1 << 64) - 1

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    for row, value in zip(index.tolist(), row_normal(index, width, seed)):
        keyed = mix((row * golden + mix(seed * golden & mask)) & mask)
        uniform = [((mix((keyed + c * golden) & mask) >> 11) + 1) / 2**53 for c in range(2 * width)]
        for c in range(width):
            expected = math.sqrt(-2 * math.log(uniform[c])) * math.cos(2 * math.pi * uniform[width + c])
            assert float(value[c]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


# --------------------------------------------------------------------------------------------------------- multivae


@pytest.mark.parametrize("method", METHODS)
def test_cross_check_with_multivae(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss with the same noise on identical weights, and the conditional means. The package is no dependency of the
    project, so this is usually skipped."""
    pytest.importorskip("multivae")
    from multivae.data.datasets.base import MultimodalBaseDataset
    from multivae.models import CMVAE as TheirCMVAE
    from multivae.models import CMVAEConfig, MMVAEPlusConfig
    from multivae.models import MMVAEPlus as TheirMMVAEPlus
    from multivae.models.base import BaseDecoder, BaseEncoder, ModelOutput

    model, state = model_of(method, views=5, beta=1000.0)  # so that the priors weigh as much as the pixels

    class Encoder(BaseEncoder):
        def __init__(self, net: ResNetEncoder) -> None:
            super().__init__()
            self.net, self.latent_dim = net, SHARED

        def forward(self, x: Tensor) -> ModelOutput:
            u_mu, u_raw, w_mu, w_raw = self.net(x)
            return ModelOutput(embedding=u_mu, log_covariance=u_raw, style_embedding=w_mu, style_log_covariance=w_raw)

    class Decoder(BaseDecoder):
        def __init__(self, net: ResNetDecoder) -> None:
            super().__init__()
            self.net = net

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.net(z))

    settings = {
        "n_modalities": 5,
        "K": 1,
        "decoders_dist": dict.fromkeys(model.names, "laplace"),
        "decoder_dist_params": {n: {"scale": 0.75} for n in model.names},
        "prior_and_posterior_dist": "laplace_with_softmax",
        "beta": 1000.0,
        "modalities_specific_dim": PRIVATE,
        "latent_dim": SHARED,
        "input_dims": dict.fromkeys(model.names, (3, 28, 28)),
        "learn_modality_prior": True,
        "loss": "iwae_looser",
    }
    encoders = {n: Encoder(net) for n, net in model.encoders.items()}
    decoders = {n: Decoder(net) for n, net in model.decoders.items()}
    if method == "CMVAE":
        theirs = TheirCMVAE(CMVAEConfig(number_of_clusters=CLUSTERS, **settings), encoders, decoders)
    else:
        theirs = TheirMMVAEPlus(MMVAEPlusConfig(**settings), encoders, decoders)
    priors = {k: v for k, v in state.items() if not k.startswith(("encoders.", "decoders."))}
    separate = {k for k in theirs.state_dict() if not k.startswith(("encoders.", "decoders."))}
    assert set(priors) == separate, "names of the priors"
    theirs.load_state_dict(priors, strict=False)
    theirs.eval()

    inputs = images(6, 5)
    fixed = 0.3  # every draw is its mean plus 0.3 scales, in both
    monkeypatch.setattr(
        torch.distributions.Laplace,
        "rsample",
        lambda self, n=(): (self.loc + fixed * self.scale).expand(*n, *self.loc.shape),
    )
    monkeypatch.setattr(cmvae, "standard_laplace", lambda *shape, like: torch.full(shape, fixed))
    with torch.no_grad():
        wanted = theirs(MultimodalBaseDataset(data=inputs)).loss
        actual = 6 * model.losses(complete(inputs))["loss"]
    print(f"{method}: multivae {float(wanted):.6f}, ours {float(actual):.6f}")
    torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=0)

    missing = torch.tensor([[False, True, True, True, True]]).expand(6, -1)
    with torch.no_grad():
        latent = theirs.encode(MultimodalBaseDataset(data=inputs), ["m0"], return_mean=True)
        output = theirs.decode(latent)
    recovered = model.impute(inputs, missing)
    for name in model.names[1:]:
        print(f"{method} {name}: {float((recovered[name] - output[name]).abs().max()):.2e}")
        assert_close_sums(recovered[name], output[name])
