"""MoPoE on MST and CelebA: the shipped recipes, original ``mm_vae`` files, loss and recovery against slow versions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from datasets.batch import Batch, Modality
from datasets.multi_feature_digits import VIEWS
from models.imputers.base import merge
from models.imputers.mopoe import MoPoE
from tests import slow_networks as slow
from tests import slow_twin as twin
from tests.models.encoders.test_encoders import CELEBA, KINDS, MST, inputs_of
from tests.networks import modalities, random_masks
from trainers.config.compose import CONFIGS
from trainers.config.imputers import build_imputer
from trainers.loading import Run
from utils.errors import UserError
from utils.noise import hash_seed, row_normal

FAMILIES = {"MST": MST, "CelebA": CELEBA}


def configured(family: str, recipe: str = "", **module: Any) -> DictConfig:
    """``imputer=MoPoE`` with the recipe of a family, as the command line composes it."""
    parts = [OmegaConf.load(CONFIGS / "imputer" / "MoPoE.yaml")]
    if recipe := recipe or family:
        parts.append(OmegaConf.load(CONFIGS / "recipe" / f"{recipe}.yaml").MoPoE)
    dataset = {"name": family, "num_classes": 10 if family == "MST" else 2}
    cfg = OmegaConf.create({"seed": 0, "dataset": dataset, "trainer": {"accelerator": "cpu"}})
    cfg.imputer = OmegaConf.merge(*parts, {"module": module})
    return cfg


def data_of(family: str, modalities: list[Modality] | None = None) -> Any:
    modalities = modalities or FAMILIES[family]
    names = [m.name for m in modalities]
    inputs = {
        "classes": [],
        "modalities": [{"name": m.name, "kind": m.kind, "shape": list(m.shape)} for m in modalities],
    }
    return SimpleNamespace(modalities=modalities, modality_names=names, describe_inputs=lambda: inputs)


def narrow(family: str, cfg: DictConfig, base: int) -> DictConfig:
    """CelebA's networks with ``5 * base`` features."""
    if family == "CelebA":
        for part in ("encoders", "decoders"):
            for name in cfg.imputer[part]:
                cfg.imputer[part][name].base = base
    return cfg


def mopoe(family: str, base: int = 8, seed: int = 0, **module: Any) -> tuple[MoPoE, slow.State]:
    """The published network (CelebA's narrower), in eval mode, with random content; its content under the names of the
    original."""
    model = build_imputer(narrow(family, configured(family, **module), base), data_of(family))
    assert isinstance(model, MoPoE)
    state = slow.random_state(slow.mst_mopoe() if family == "MST" else slow.celeba_mopoe(base), seed)
    names = [m.name for m in model.modalities]
    numbered = {
        k.replace(f".{n}.", f".{i}.", 1): v
        for k, v in state.items()
        for i, n in enumerate(names)
        if k.split(".")[1] == n
    }
    model.load_state_dict(numbered, strict=False)
    return model.eval(), state


def experts(family: str, state: slow.State, inputs: Mapping[str, Tensor]) -> list[tuple[Tensor, ...]]:
    """Mean and log-variance of every modality, on CelebA followed by those of its style."""
    actual = []
    for (name, x), kind in zip(inputs.items(), KINDS[family]):
        net = slow.Network(state, f"encoders.{name}")
        h = slow.features(net, kind, x)
        if family == "CelebA":
            heads = [f"feature_compressor.{k}" for k in ("content_mu", "content_logvar", "style_mu", "style_logvar")]
        else:
            heads = [f"{'latent' if kind == 'mst_text' else 'hidden'}_{part}" for part in ("mu", "logvar")]
        actual.append(tuple(net.linear(head, h) for head in heads))
    return actual


def probabilities(log_softmax: Tensor, reference: bool) -> Tensor:
    if reference:
        return log_softmax / sum(log_softmax[..., k : k + 1] for k in range(log_softmax.shape[-1]))
    return torch.exp(log_softmax)


# -------------------------------------------------------------------------------------------------------- structure


@pytest.mark.parametrize(
    ("family", "parameters", "entries"),
    [("MST", 1_411_826, slow.mst_mopoe()), ("CelebA", 70_326_218, slow.celeba_mopoe())],
)
def test_recipe_builds_the_published_network_and_an_original_file_loads(
    family: str, parameters: int, entries: slow.Shapes, tmp_path: Path
) -> None:
    """``mm_vae`` through the path of every stage; its texts are read with the original's likelihood."""
    state = slow.random_state(entries)
    torch.save(state, tmp_path / "mm_vae")
    cfg = configured(family)
    cfg.imputer.checkpoint = str(tmp_path / "mm_vae")
    context = Run(cfg)
    context.__dict__["data"] = data_of(family)
    imputer = context.load_imputer()
    assert isinstance(imputer, MoPoE) and imputer.reference_text and not imputer.training
    assert sum(p.numel() for p in imputer.parameters()) == parameters
    assert len(imputer.state_dict()) == len(entries)
    inputs = inputs_of(FAMILIES[family], 2)
    missing = torch.zeros(2, len(inputs), dtype=torch.bool)
    missing[:, -1] = True
    text = imputer.impute(inputs, missing)["text"]
    means, logvars = zip(*(e[:2] for e in experts(family, state, inputs)[:-1]))
    with torch.no_grad():
        for row in range(2):
            z = twin.product_of_experts([m[row] for m in means], [v[row] for v in logvars], prior=False)[0]
            style = torch.zeros(32 if family == "CelebA" else 0)
            net = slow.Network(state, "decoders.text")
            logs = slow.decode(net, KINDS[family][-1], torch.cat([style, z])[None])[0]
            torch.testing.assert_close(text[row], probabilities(logs, True), rtol=1e-3, atol=1e-5)
            assert torch.equal(text[row].argmax(-1), logs.argmin(-1)), "the original's probabilities are inverted"
    torch.testing.assert_close(text.sum(-1), torch.ones(text.shape[:2]))


def test_our_own_checkpoint_says_which_text_likelihood_it_has(tmp_path: Path) -> None:
    model, _ = mopoe("MST", reference_text=True)
    content: dict[str, Any] = {"state_dict": model.state_dict(), "pytorch-lightning_version": "2"}
    model.on_save_checkpoint(content)
    for trained_with in (True, False):
        content["architecture"]["reference_text"] = trained_with
        torch.save(content, tmp_path / "best.ckpt")
        for asked in (True, False):
            cfg = configured("MST", reference_text=asked)
            cfg.imputer.checkpoint = str(tmp_path / "best.ckpt")
            context = Run(cfg)
            context.__dict__["data"] = data_of("MST")
            assert context.load_imputer().reference_text is trained_with


def test_recipes_hold_the_published_numbers() -> None:
    mst, celeba = (configured(family).imputer for family in FAMILIES)
    assert mst.module.weights == {"mnist": pytest.approx(3072 / 784), "svhn": 1.0, "text": 3072 / 8}
    assert celeba.module.weights == {"img": pytest.approx(4096 / 12288), "text": 4096 / 256}
    assert (celeba.module.style_beta, celeba.module.style_weights) == (2.0, {"img": 1.0, "text": 5.0})
    assert (mst.module.optimizer.lr, celeba.module.optimizer.lr) == (1e-3, 5e-4)
    for node in (mst, celeba):
        assert (node.module.beta, node.training.max_epochs, node.training.batch_size) == (2.5, 200, 256)
        assert not node.module.class_weight


def test_what_cannot_be_recovered_is_refused() -> None:
    table = Modality("tabular", "table", (17,))
    for modality in (MST[2], table):  # without a network in the configuration
        default = build_imputer(configured("MST", recipe="PolyMNIST"), data_of("MST", [modality]))
        assert isinstance(default, MoPoE) and default.takes_cells == [True]
    net = {"it": torch.nn.Identity()}
    with pytest.raises(ValueError, match=r"continuous columns, and table 'it' has 2 categorical ones"):
        MoPoE([Modality("it", "table", (17,), (2, 3))], net, net)
    with pytest.raises(UserError, match=r"a weight of 'photo', the modalities are mnist, svhn, text"):
        build_imputer(configured("MST", weights={"photo": 1.0}), data_of("MST"))


# ------------------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reference", [True, False])
def test_loss_equals_slow_version(family: str, reference: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row by row with the same noise: weighted likelihoods, content and style KLs; and the gradient of a weight."""
    model, state = mopoe(family, reference_text=reference)
    for value in state.values():
        if value.is_floating_point():
            value.requires_grad_()
    modalities, rows = FAMILIES[family], 17 if family == "MST" else 7
    count, latent = len(modalities), model.latent
    inputs = inputs_of(modalities, rows)
    generator = torch.Generator().manual_seed(3)
    noise = [torch.randn(rows, latent, generator=generator) for _ in range(1 + (count if family == "CelebA" else 0))]
    feed = iter(noise)
    monkeypatch.setattr(torch, "randn_like", lambda like: next(feed))
    batch = Batch(
        inputs, torch.zeros(rows, count, dtype=torch.bool), torch.zeros(rows, dtype=torch.long), torch.arange(rows)
    )
    actual = model.losses(batch)
    assert next(feed, None) is None

    weights = [3072 / 784, 1, 384] if family == "MST" else [1 / 3, 16]
    posteriors, masks = experts(family, state, inputs), twin.subsets(count)
    expected = torch.zeros(())
    eps = 2.0**-23
    for row, drawn in enumerate(twin.slices(rows, len(masks))):
        joint = [
            twin.product_of_experts(
                [posteriors[i][0][row] for i in range(count) if not mask[i]],
                [posteriors[i][1][row] for i in range(count) if not mask[i]],
                prior=not any(mask),
            )
            for mask in masks
        ]
        for mu, logvar in joint:
            expected = expected + 2.5 * 0.5 * (mu**2 + torch.exp(logvar) - 1 - logvar).sum() / len(masks)
        z = joint[drawn][0] + torch.exp(0.5 * joint[drawn][1]) * noise[0][row]
        for i, (m, kind) in enumerate(zip(modalities, KINDS[family])):
            separate = z
            if family == "CelebA":
                mu, logvar = (part[row] for part in posteriors[i][2:])
                style_kl = 0.5 * (mu**2 + torch.exp(logvar) - 1 - logvar).sum()
                expected = expected + 2.5 * 2.0 * (1, 5)[i] * style_kl
                separate = torch.cat([mu + torch.exp(0.5 * logvar) * noise[1 + i][row], z])
            output = slow.decode(slow.Network(state, f"decoders.{m.name}"), kind, separate[None])[0]
            x = inputs[m.name][row]
            if m.kind == "image":
                nll = ((x - output).abs() / 0.75 + math.log(1.5)).sum()
            else:
                p = probabilities(output, reference)
                if reference:  # as PyTorch's categorical distribution
                    p = p.clamp(eps, 1 - eps)
                nll = -sum(
                    torch.log(p[position, int(x[position].argmax())]) for position in range(len(x)) if x[position].any()
                )
            expected = expected + weights[i] * nll
    expected = expected / rows
    torch.testing.assert_close(actual["loss"], expected, rtol=1e-4, atol=1e-2)
    key, weight = ("encoders.text.proj", None)
    if family == "MST":
        key, weight = "encoders.text.latent_mu.weight", model.encoders[2].latent_mu.weight
    else:
        key, weight = (
            "encoders.img.feature_compressor.style_mu.weight",
            model.encoders[0].feature_compressor["style_mu"].weight,
        )
    (mine,), (wanted,) = torch.autograd.grad(actual["loss"], [weight]), torch.autograd.grad(expected, [state[key]])
    torch.testing.assert_close(mine, wanted, rtol=1e-2, atol=2e-3 * float(wanted.abs().max()))


def test_reference_text_is_pytorchs_categorical_of_the_log_probabilities() -> None:
    """What the original writes: OneHotCategorical with the log-softmax in the place of the probabilities."""
    from models.imputers.likelihoods import text_nll

    logs = torch.log_softmax(4 * torch.randn(3, 8, 71, generator=torch.Generator().manual_seed(0)), -1)
    logs[0, 0], logs[0, 0, 5] = -200.0, 0.0
    x = inputs_of(MST, 3)["text"]
    x[:, 2, 4] = 1
    x[0, 0], x[0, 0, 5] = 0, 1
    x = (x == x.amax(-1, keepdim=True)).float()
    wanted = -torch.distributions.OneHotCategorical(probs=logs, validate_args=False).log_prob(x).sum(1)
    torch.testing.assert_close(text_nll(x, logs, reference=True), wanted)
    wanted = -torch.distributions.OneHotCategorical(logits=logs).log_prob(x).sum(1)
    torch.testing.assert_close(text_nll(x, logs, reference=False), wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns(family: str) -> None:
    """A few steps lower the loss; every parameter takes part, the classifier on the latent too."""
    cfg = narrow(family, configured(family, class_weight=50.0), 4)
    torch.manual_seed(0)
    model = build_imputer(cfg, data_of(family))
    assert isinstance(model, MoPoE)
    model.train()
    batch = Batch(
        inputs_of(FAMILIES[family], 16),
        torch.zeros(16, len(FAMILIES[family]), dtype=torch.bool),
        torch.arange(16) % 2,
        torch.arange(16),
    )
    optimizer = model.configure_optimizers()
    history = []
    for _ in range(12):
        losses = model.losses(batch)
        assert set(losses) == {"loss", "nll", "kl", "classification"} | ({"style_kl"} if family == "CelebA" else set())
        optimizer.zero_grad()
        losses["loss"].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
        optimizer.step()
        history.append(float(losses["loss"].detach()))
    assert history[-1] < 0.98 * history[0]


def test_rows_with_nothing_but_cells_are_recovered_from_the_prior() -> None:
    """Their cells stay as they are, as those of any table that is partly there."""
    modalities = [Modality(view, "table", (n,)) for view, n in VIEWS.items()]
    torch.manual_seed(0)
    model = build_imputer(configured("MultiFeatureDigits"), data_of("MultiFeatureDigits", modalities))
    assert isinstance(model, MoPoE)
    generator = torch.Generator().manual_seed(1)
    inputs = {m.name: torch.randn(4, *m.shape, generator=generator) for m in modalities}
    missing = torch.zeros(4, 6, dtype=torch.bool)
    missing[:2], missing[2, 0] = True, True
    name = modalities[0].name
    gaps = torch.arange(modalities[0].shape[0]) % 3 == 0
    actual = []
    for value in (0.0, math.nan):
        content = inputs | {name: torch.where(gaps & missing[:, :1], value, inputs[name])}
        actual.append(model.impute(content, missing, feature_missing={name: gaps.expand(4, -1)}))
    with torch.no_grad():
        prior = [model._decode(i, torch.zeros(1, model.latent), torch.arange(1)) for i in range(6)]
    for i, m in enumerate(modalities):
        whole = actual[0][m.name]
        assert torch.equal(whole, actual[1][m.name]) and whole.isfinite().all()
        absent = gaps if i == 0 else slice(None)
        torch.testing.assert_close(whole[:2, absent], prior[i][:, absent].expand(2, -1))
    assert torch.equal(actual[0][name][:, ~gaps], inputs[name][:, ~gaps])
    assert not torch.equal(actual[0][name][2, gaps], prior[0][0, gaps])


def test_vectors_are_laplacian_and_weigh_alike() -> None:
    """The recipe of six vectors: loss of one row, whose only draw is of the full set, in numpy."""
    modalities = [Modality(view, "table", (n,)) for view, n in VIEWS.items()]
    torch.manual_seed(0)
    cfg = configured("MultiFeatureDigits")
    assert cfg.imputer.module.weights == {view: pytest.approx(240 / n, rel=1e-3) for view, n in VIEWS.items()}
    cfg.imputer.module.scheduler = None
    model = build_imputer(cfg, data_of("MultiFeatureDigits", modalities))
    assert isinstance(model, MoPoE)
    generator = torch.Generator().manual_seed(1)
    inputs = {m.name: torch.randn(1, *m.shape, generator=generator) for m in modalities}
    torch.manual_seed(5)
    actual = model.losses(Batch(inputs, torch.zeros(1, 6, dtype=torch.bool), torch.zeros(1).long(), torch.arange(1)))
    torch.manual_seed(5)
    noise = torch.randn(1, model.latent).double().numpy()[0]

    def linear(layer: torch.nn.Linear, x: np.ndarray) -> np.ndarray:
        weight, bias = (p.detach().double().numpy() for p in layer.parameters())
        return weight @ x + bias

    experts = []
    for encoder, x in zip(model.encoders, inputs.values()):
        h = np.maximum(linear(encoder.trunk[0], x[0].double().numpy()), 0)
        experts.append((linear(encoder.mu, h), 1 / np.exp(linear(encoder.logvar, h))))
    kls = []
    for mask in twin.subsets(6):
        present = [experts[i] for i in range(6) if not mask[i]] + ([(0.0, 1.0)] if not any(mask) else [])
        precision = sum(p for _, p in present)
        mean = sum(m * p for m, p in present) / precision
        kls.append(0.5 * (mean**2 + 1 / precision - 1 + np.log(precision)).sum())
        if not any(mask):
            z = mean + noise / np.sqrt(precision)
    nll = 0.0
    for decoder, x in zip(model.decoders, inputs.values()):
        output = linear(decoder[2], np.maximum(linear(decoder[0], z), 0))
        nll += 240 / x.shape[1] * (np.abs(x[0].numpy() - output) / 0.75 + math.log(1.5)).sum()
    assert float(actual["nll"].detach()) == pytest.approx(nll, rel=1e-3)  # the weights of the recipe have four digits
    assert float(actual["kl"].detach()) == pytest.approx(np.mean(kls), rel=1e-4)


# --------------------------------------------------------------------------------------------------------- recovery


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sample", [False, True])
def test_recovery_is_decoded_from_what_is_observed(family: str, sample: bool) -> None:
    """Rows one by one, mixed patterns: mean or keyed draw of the content; style 0, or its own keyed draw per modality.
    What is missing is not read, what is observed comes back bit for bit."""
    model, state = mopoe(family, sample=sample, draw_seed=3)
    modalities = FAMILIES[family]
    count, rows = len(modalities), 6
    masks = random_masks(rows, count, seed=1)
    inputs = inputs_of(modalities, rows)
    spoilt = {n: merge(x, masks[:, i], torch.full_like(x, torch.nan)) for i, (n, x) in enumerate(inputs.items())}
    index = torch.arange(rows) * 5
    actual = model.impute(spoilt, masks, index)
    assert list(actual) == list(inputs)
    seen = experts(family, state, inputs)
    with torch.no_grad():
        for row, mask in enumerate(masks.tolist()):
            present = [i for i in range(count) if not mask[i]]
            mean, logvar = twin.product_of_experts(
                [seen[i][0][row] for i in present], [seen[i][1][row] for i in present], len(present) == count
            )
            if sample:
                mean = mean + torch.exp(0.5 * logvar) * row_normal(index[row : row + 1], model.latent, 3)[0]
            for i, (m, kind) in enumerate(zip(modalities, KINDS[family])):
                if not mask[i]:
                    assert torch.equal(actual[m.name][row], inputs[m.name][row])
                    continue
                z = mean
                if family == "CelebA":
                    keyed = row_normal(index[row : row + 1], 32, hash_seed(3, 1 + i))[0]
                    z = torch.cat([keyed if sample else torch.zeros(32), z])
                output = slow.decode(slow.Network(state, f"decoders.{m.name}"), kind, z[None])[0]
                expected = output if m.kind == "image" else probabilities(output, False)
                size = float(expected.abs().max())
                torch.testing.assert_close(actual[m.name][row], expected, rtol=1e-3, atol=2e-5 * max(size, 1))


# --------------------------------------------------------------------------------------------------------- multivae


@pytest.mark.parametrize("family", ["PolyMNIST", *FAMILIES])
def test_cross_check_with_multivae(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss (every draw 0.3 standard deviations above its mean) and subset posteriors on identical weights. The package
    is no dependency of the project, so this is usually skipped. Its text likelihood is the proper one, its style terms
    have one weight for all, its decoders take the style last."""
    pytest.importorskip("multivae")
    from multivae.data.datasets.base import MultimodalBaseDataset
    from multivae.models import MoPoE as TheirMoPoE
    from multivae.models import MoPoEConfig
    from multivae.models.base import BaseDecoder, BaseEncoder, ModelOutput
    from multivae.models.mopoe import mopoe_model

    if family == "PolyMNIST":
        views = modalities(5)
        model = build_imputer(configured("PolyMNIST"), data_of("PolyMNIST", views))
        model.eval()
        inputs = {
            m.name: torch.rand(m.shape, generator=torch.Generator().manual_seed(1)).expand(62, -1, -1, -1)
            for m in views
        }
        inputs = {n: x * torch.rand(62, 1, 1, 1, generator=torch.Generator().manual_seed(2)) for n, x in inputs.items()}
    else:
        options = {"style_weights": {"img": 1.0, "text": 1.0}} if family == "CelebA" else {}
        model, _ = mopoe(family, **options)
        views = FAMILIES[family]
        inputs = inputs_of(views, 17)
        for x in inputs.values():
            if x.shape[-1] == 71:
                x[:, 2, 69] = 1
    rows, style = len(inputs[views[0].name]), 32 * (family == "CelebA")

    class Encoder(BaseEncoder):
        def __init__(self, net: torch.nn.Module) -> None:
            super().__init__()
            self.net, self.latent_dim = net, model.latent

        def forward(self, x: Tensor) -> ModelOutput:
            mu, logvar, *separate = self.net(x)
            output = ModelOutput(embedding=mu, log_covariance=logvar)
            if separate:
                output["style_embedding"], output["style_log_covariance"] = separate
            return output

    class Decoder(BaseDecoder):
        def __init__(self, net: torch.nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.net(torch.cat([z[:, model.latent :], z[:, : model.latent]], 1)))

    names = [m.name for m in views]
    config = MoPoEConfig(
        n_modalities=len(names),
        latent_dim=model.latent,
        input_dims={m.name: m.shape for m in views},
        uses_likelihood_rescaling=True,
        rescale_factors=dict(zip(names, model.weights)),
        decoders_dist={m.name: "categorical" if m.kind == "text" else "laplace" for m in views},
        decoder_dist_params={m.name: {} if m.kind == "text" else {"scale": 0.75} for m in views},
        beta=2.5,
        beta_style=model.style_beta,
        modalities_specific_dim=dict.fromkeys(names, style) if style else None,
    )
    theirs = TheirMoPoE(
        config,
        {n: Encoder(net) for n, net in zip(names, model.encoders)},
        {n: Decoder(net) for n, net in zip(names, model.decoders)},
    ).eval()
    monkeypatch.setattr(mopoe_model, "rsample_from_gaussian", lambda mu, logvar: mu + 0.3 * torch.exp(0.5 * logvar))
    monkeypatch.setattr(torch, "randn_like", lambda like: torch.full_like(like, 0.3))
    batch = Batch(inputs, torch.zeros(rows, len(names), dtype=torch.bool), torch.zeros(rows), torch.arange(rows))
    with torch.no_grad():
        wanted = theirs(MultimodalBaseDataset(data=inputs)).loss
        actual = model.losses(batch)["loss"]
        latents = theirs.inference(MultimodalBaseDataset(data=inputs))
        means, logvars = model.subset_posteriors(*model.encode_all(inputs))
    mean_error, logvar_error = (latents["mus"] - means).abs().max(), (latents["logvars"] - logvars).abs().max()
    print(f"{family}: loss multivae {float(wanted):.6f}, ours {float(actual):.6f}", end="; ")
    print(f"posteriors differ by {float(mean_error):.1e} (mean), {float(logvar_error):.1e} (log variance)")
    torch.testing.assert_close(actual, wanted, rtol=2e-6, atol=0)
    assert max(mean_error, logvar_error) < 1e-4
