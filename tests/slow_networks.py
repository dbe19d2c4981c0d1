"""The networks of MST, CelebA and CMVAE as functions of original state dicts, written from the description
(docs/reference/dymo.md §1.4, §1.6, §5.1, §5.2), and such states with random content. Nothing here is imported from the
package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
State = dict[str, Tensor]


# ---------------------------------------------------------------------------------------------- entries of the files


def affine(shapes: Shapes, key: str, *weight: int, bias: int | None = None) -> None:
    """``bias`` None = as many as rows of the weight, 0 = none."""
    shapes[f"{key}.weight"] = weight
    if bias != 0:
        shapes[f"{key}.bias"] = (weight[0] if bias is None else bias,)


def batch_norm(shapes: Shapes, key: str, n: int) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"{key}.{name}"] = (n,)
    shapes[f"{key}.num_batches_tracked"] = ()


def mst_trunks(p: Mapping[str, str]) -> Shapes:
    """``p``: modality -> prefix."""
    shapes: Shapes = {}
    affine(shapes, f"{p['mnist']}.enc.0.0", 400, 784)
    for i, (into, out) in enumerate(((3, 32), (32, 64), (64, 64), (64, 128)), 1):
        affine(shapes, f"{p['svhn']}.conv{i}", out, into, 4, 4)
    affine(shapes, f"{p['text']}.text_feature_enc.conv1", 128, 71, 1)
    affine(shapes, f"{p['text']}.text_feature_enc.conv2", 128, 128, 4)
    affine(shapes, f"{p['text']}.text_feature_enc.conv5", 128, 128, 4)
    return shapes


MST_FEATURES = {"mnist": 400, "svhn": 128, "text": 128}


def residual_block(shapes: Shapes, key: str, dims: int, into: int, out: int, transposed: bool = False) -> None:
    shortcut, four = ("upsample" if transposed else "downsample"), (4,) * dims
    bias = None if dims == 1 else 0
    pair = (into, out) if transposed else (out, into)
    affine(shapes, f"{key}.conv1", into, into, *(1,) * dims, bias=bias)
    affine(shapes, f"{key}.conv2", *pair, *four, bias=out if dims == 1 else 0)
    affine(shapes, f"{key}.{shortcut}.0", *pair, *four, bias=out)
    batch_norm(shapes, f"{key}.bn1", into)
    batch_norm(shapes, f"{key}.bn2", into)
    batch_norm(shapes, f"{key}.{shortcut}.1", out)


def celeba_trunks(p: Mapping[str, str], c: int = 128) -> Shapes:
    shapes: Shapes = {}
    affine(shapes, f"{p['img']}.feature_extractor.conv1", c, 3, 3, 3, bias=0)
    for i in range(1, 5):
        residual_block(shapes, f"{p['img']}.feature_extractor.resblock{i}.0", 2, i * c, (i + 1) * c)
    affine(shapes, f"{p['text']}.feature_extractor.conv1", c, 71, 4)
    for i, (into, out) in enumerate(((1, 2), (2, 3), (3, 4), (4, 5), (5, 5), (5, 5)), 1):
        residual_block(shapes, f"{p['text']}.feature_extractor.resblock_{i}.0", 1, into * c, out * c)
    return shapes


def transformer(encoders: Shapes, m: int, classes: int) -> Shapes:
    """Entries of an original DynamicTransformer of width 32 with one token per modality."""
    shapes: Shapes = {
        "cls_token": (1, 1, 32),
        "pos_embeddings": (1, 1 + m, 32),
        "prototypes": (classes, 16),
        "modality_embeddings.weight": (m, 32),
    } | encoders
    norms = [f"m_norms.{i}" for i in range(m)] + [f"transformer.{b}.norm{i}" for b in (0, 1) for i in (1, 2)]
    for key in norms:
        affine(shapes, key, 32)
    for b in (0, 1):
        affine(shapes, f"transformer.{b}.attn.qkv", 96, 32, bias=0)
        affine(shapes, f"transformer.{b}.attn.proj", 32, 32)
        affine(shapes, f"transformer.{b}.mlp.fc1", 128, 32)
        affine(shapes, f"transformer.{b}.mlp.fc2", 32, 128)
    affine(shapes, "classifier", classes, 32)
    affine(shapes, "projection", 16, 32)
    return shapes


def mst_transformer() -> Shapes:
    p = {name: f"m_encoders.{name}" for name in MST_FEATURES}
    shapes = mst_trunks(p)
    for name, n in MST_FEATURES.items():
        affine(shapes, f"{p[name]}.proj", 32, n)
    return transformer(shapes, 3, 10)


def celeba_transformer(c: int = 128) -> Shapes:
    p = {name: f"m_encoders.{name}" for name in ("img", "text")}
    shapes = celeba_trunks(p, c)
    for prefix in p.values():
        affine(shapes, f"{prefix}.proj", 32, 5 * c)
    return transformer(shapes, 2, 2)


def mst_mopoe(latent: int = 20) -> Shapes:
    """Entries of mm_vae."""
    shapes = mst_trunks({name: f"encoders.{name}" for name in MST_FEATURES})
    for name, n in MST_FEATURES.items():
        for head in ("mu", "logvar"):
            affine(shapes, f"encoders.{name}.{'latent' if name == 'text' else 'hidden'}_{head}", latent, n)
    affine(shapes, "decoders.mnist.dec.0.0", 400, latent)
    affine(shapes, "decoders.mnist.fc3", 784, 400)
    affine(shapes, "decoders.svhn.linear", 128, latent)
    for i, (into, out) in enumerate(((128, 64), (64, 64), (64, 32), (32, 3)), 1):
        affine(shapes, f"decoders.svhn.conv{i}", into, out, 4, 4, bias=out)
    affine(shapes, "decoders.text.linear", 128, latent)
    for i in (1, 2):
        affine(shapes, f"decoders.text.conv{i}", 128, 128, 4)
    affine(shapes, "decoders.text.conv_last", 71, 128, 1)
    return shapes


def celeba_mopoe(c: int = 128, latent: int = 32, style: int = 32) -> Shapes:
    """Entries of mm_vae."""
    names = ("img", "text")
    shapes = celeba_trunks({name: f"encoders.{name}" for name in names}, c)
    for name in names:
        for head, n in (("style", style), ("content", latent)):
            for part in ("mu", "logvar"):
                affine(shapes, f"encoders.{name}.feature_compressor.{head}_{part}", n, 5 * c)
        affine(shapes, f"decoders.{name}.feature_generator", 5 * c, style + latent)
    for i in range(1, 5):
        residual_block(shapes, f"decoders.img.img_generator.resblock{i}.0", 2, (6 - i) * c, (5 - i) * c, True)
    affine(shapes, "decoders.img.img_generator.conv", c, 3, 3, 3, bias=3)
    for i, (into, out) in enumerate(((5, 5), (5, 5), (5, 4), (4, 3), (3, 2), (2, 1)), 1):
        residual_block(shapes, f"decoders.text.text_generator.resblock_{i}.0", 1, into * c, out * c, True)
    affine(shapes, "decoders.text.text_generator.conv2", c, 71, 4, bias=71)
    return shapes


def resnet_block(shapes: Shapes, key: str, into: int, out: int) -> None:
    hidden = min(into, out)
    affine(shapes, f"{key}.conv_0", hidden, into, 3, 3)
    affine(shapes, f"{key}.conv_1", out, hidden, 3, 3)
    if into != out:
        affine(shapes, f"{key}.conv_s", out, into, 1, 1, bias=0)


def multivae(
    method: str, views: int = 5, f: int = 64, shared: int = 32, private: int = 32, clusters: int = 40
) -> Shapes:
    """Entries of model_state_dict."""
    shapes: Shapes = {}
    for view in (f"m{i}" for i in range(views)):
        for branch, n in (("w", private), ("u", shared)):
            affine(shapes, f"encoders.{view}.conv_img_{branch}", f, 3, 3, 3)
            for i, (into, out) in zip((0, 2, 4), ((1, 1), (1, 2), (2, 4))):
                resnet_block(shapes, f"encoders.{view}.resnet_{branch}.{i}", into * f, out * f)
            for head in ("mu", "lv"):
                affine(shapes, f"encoders.{view}.fc_{head}_{branch}", n, 4 * f * 49)
        affine(shapes, f"decoders.{view}.fc", 4 * f * 49, shared + private)
        for i, (into, out) in zip((0, 2, 4), ((4, 2), (2, 1), (1, 1))):
            resnet_block(shapes, f"decoders.{view}.resnet.{i}", into * f, out * f)
        affine(shapes, f"decoders.{view}.conv_img", 3, f, 3, 3)
        means, raws = ("r_mean_priors", "r_logvars_priors") if method == "CMVAE" else ("mean_priors", "logvars_priors")
        shapes[f"{means}.{view}"] = shapes[f"{raws}.{view}"] = (1, private)
    if method == "CMVAE":
        shapes["w_mean_prior"] = shapes["w_logvar_prior"] = (1, private)
        shapes["_pc_params"] = (clusters,)
        for i in range(clusters):
            shapes[f"mean_clusters.{i}"] = shapes[f"logvar_clusters.{i}"] = (1, shared)
    else:
        shapes["mean_priors.shared"] = shapes["logvars_priors.shared"] = (1, shared + private)
    return shapes


def random_state(shapes: Shapes, seed: int = 0) -> State:
    """Content of a size that keeps activations near one; running variances are positive, counters whole."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        elif key.endswith("running_var"):
            state[key] = 0.5 + noise.abs()
        elif len(shape) > 1 and key.endswith("weight"):
            state[key] = noise * math.prod(shape[1:]) ** -0.5
        else:
            state[key] = 0.2 * noise + (1 if len(shape) == 1 and key.endswith("weight") else 0)
        if key.endswith(("sample.1.weight", "sample.1.bias")):  # shortcuts are doubled
            state[key] = 0.4 * state[key]
        if "logvar" in key:
            state[key] = 0.3 * state[key]
    return state


# ---------------------------------------------------------------------------------------------- forward passes


class Network:
    """Layers looked up by their original names."""

    def __init__(self, state: Mapping[str, Tensor], prefix: str) -> None:
        self.state, self.prefix = state, prefix

    def __getitem__(self, name: str) -> Tensor | None:
        return self.state.get(f"{self.prefix}.{name}")

    def at(self, name: str) -> Network:
        return Network(self.state, f"{self.prefix}.{name}")

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self[f"{name}.weight"].T + self[f"{name}.bias"]

    def conv(self, name: str, x: Tensor, stride: int, padding: int, up: bool = False, extra: int = 0) -> Tensor:
        weight, bias = self[f"{name}.weight"], self[f"{name}.bias"]
        if up:
            function = F.conv_transpose1d if x.ndim == 3 else F.conv_transpose2d
            return function(x, weight, bias, stride, padding, extra)
        return (F.conv1d if x.ndim == 3 else F.conv2d)(x, weight, bias, stride, padding)

    def norm(self, name: str, x: Tensor) -> Tensor:
        columns = (-1, *[1] * (x.ndim - 2))
        mean, var, weight, bias = (
            self[f"{name}.{k}"].view(columns) for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    def block(self, name: str, x: Tensor, stride: int, padding: int, up: bool = False) -> Tensor:
        y = torch.relu(self.norm(f"{name}.bn1", x))
        y = torch.relu(self.norm(f"{name}.bn2", self.conv(f"{name}.conv1", y, 1, 0, up)))
        y = self.conv(f"{name}.conv2", y, stride, padding, up)
        shortcut = f"{name}.{'upsample' if up else 'downsample'}"
        return 2.0 * self.norm(f"{shortcut}.1", self.conv(f"{shortcut}.0", x, stride, padding, up)) + 0.3 * y

    def resnet_block(self, name: str, x: Tensor) -> Tensor:
        y = self.conv(f"{name}.conv_0", leaky(x), 1, 1)
        y = self.conv(f"{name}.conv_1", leaky(y), 1, 1)
        shortcut = x if self[f"{name}.conv_s.weight"] is None else self.conv(f"{name}.conv_s", x, 1, 0)
        return shortcut + 0.1 * y


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def features(net: Network, kind: str, x: Tensor) -> Tensor:
    """Trunk of a modality; ``kind`` mnist | svhn | mst_text | img | celeba_text."""
    if kind == "mnist":
        return torch.relu(net.linear("enc.0.0", x.reshape(len(x), 784)))
    if kind == "svhn":
        for i in range(1, 5):
            x = torch.relu(net.conv(f"conv{i}", x, 2, 1 if i < 4 else 0))
    elif kind == "mst_text":
        x = x.transpose(1, 2)
        for name, stride, padding in (("conv1", 1, 0), ("conv2", 2, 1), ("conv5", 2, 0)):
            x = torch.relu(net.conv(f"text_feature_enc.{name}", x, stride, padding))
    elif kind == "img":
        x = net.conv("feature_extractor.conv1", x, 2, 2)
        assert x.shape[-1] == 33
        for i in range(1, 5):
            x = net.block(f"feature_extractor.resblock{i}.0", x, 2, 1 if i < 4 else 0)
            assert x.shape[-1] == {1: 16, 2: 8, 3: 4, 4: 1}[i]
    else:
        x = net.conv("feature_extractor.conv1", x.transpose(1, 2), 2, 1)
        for i in range(1, 7):
            x = net.block(f"feature_extractor.resblock_{i}.0", x, 2, 1 if i < 6 else 0)
            assert x.shape[-1] == {1: 64, 2: 32, 3: 16, 4: 8, 5: 4, 6: 1}[i]
    return x.reshape(len(x), -1)


def decode(net: Network, kind: str, z: Tensor) -> Tensor:
    """Decoder of a modality: location, or log-softmax (B, L, 71) of a text."""
    if kind == "mnist":
        return torch.sigmoid(net.linear("fc3", torch.relu(net.linear("dec.0.0", z)))).reshape(-1, 1, 28, 28)
    if kind == "svhn":
        x = torch.relu(net.linear("linear", z))[:, :, None, None]
        for i in range(1, 5):
            x = net.conv(f"conv{i}", x, 1 if i == 1 else 2, 0 if i == 1 else 1, up=True)
            x = torch.relu(x) if i < 4 else x
        return x
    if kind == "mst_text":
        x = net.linear("linear", z)[:, :, None]
        x = torch.relu(net.conv("conv1", x, 1, 0, up=True))
        x = torch.relu(net.conv("conv2", x, 2, 1, up=True))
        return torch.log_softmax(net.conv("conv_last", x, 1, 0).transpose(1, 2), dim=2)
    x = net.linear("feature_generator", z)
    if kind == "img":
        x = x[:, :, None, None]
        for i in range(1, 5):
            x = net.block(f"img_generator.resblock{i}.0", x, *((1, 0) if i == 1 else (2, 1)), up=True)
        return net.conv("img_generator.conv", x, 2, 1, up=True, extra=1)
    x = x[:, :, None]
    for i in range(1, 7):
        x = net.block(f"text_generator.resblock_{i}.0", x, *((1, 0) if i == 1 else (2, 1)), up=True)
    return torch.log_softmax(net.conv("text_generator.conv2", x, 2, 1, up=True).transpose(1, 2), dim=2)


def resnet_encode(net: Network, branch: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and raw scale of CMVAE's latent ``u`` or ``w``."""
    x = net.conv(f"conv_img_{branch}", x, 1, 1)
    for i in (0, 2, 4):
        x = net.resnet_block(f"resnet_{branch}.{i}", x)
        x = F.avg_pool2d(x, 3, 2, 1) if i < 4 else x
    x = x.reshape(len(x), -1)
    return net.linear(f"fc_mu_{branch}", x), net.linear(f"fc_lv_{branch}", x)


def resnet_decode(net: Network, z: Tensor) -> Tensor:
    x = net.linear("fc", z)
    x = x.reshape(len(x), -1, 7, 7)
    for i in (0, 2, 4):
        x = net.resnet_block(f"resnet.{i}", x)
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3) if i < 4 else x
    return net.conv("conv_img", leaky(x), 1, 1)
