"""Pretrained transformers as encoders: against the libraries' own forward passes, with tiny random networks."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

from datasets.batch import Modality
from models.encoders.adapters import Adapter
from models.encoders.pretrained import PretrainedEncoder
from tests.tolerances import assert_close_sums
from utils.errors import UserError

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGE = {**SMALL, "image_size": 12, "patch_size": 4}
AUDIO = {"num_mel_bins": 8, "max_length": 12, "patch_size": 4, "frequency_stride": 2, "time_stride": 4}
TIMM = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 12, "patch_size": 4}
SIZES: dict[str, dict[str, Any]] = {
    "clip": IMAGE,
    "vit": IMAGE,
    "siglip": IMAGE,
    "bert": {**SMALL, "vocab_size": 30, "max_position_embeddings": 12},
    "ast": {**SMALL, **AUDIO},
    "timm/vit_tiny_patch16_224": TIMM,
    "timm/vit_base_patch16_clip_224": TIMM,
    "timm/vit_base_patch16_siglip_224": TIMM,
}
SHAPES = {"bert": (10,), "ast": (12, 8)}
LENGTHS = {"bert": 10, "ast": 2 + 3 * 3, "siglip": 9, "timm/vit_base_patch16_siglip_224": 9}  # others: CLS and 3 x 3


def make(architecture: str, **others: Any) -> PretrainedEncoder:
    """Tiny and random, with no parameter at a value that could hide a term; without dropout."""
    torch.manual_seed(0)
    size = {**SIZES[architecture], **others.pop("size", {})}
    encoder = PretrainedEncoder(architecture, size=size, class_id=2, **others)
    for parameter in encoder.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return encoder.eval()


def content(architecture: str, rows: int = 3) -> Tensor:
    torch.manual_seed(1)
    if architecture == "bert":
        ids = torch.randint(3, 30, (rows, 10))
        ids[:, 0] = 2
        ids[0, 6:], ids[1, 2:] = 0, 0  # padding
        return ids
    return torch.randn(rows, *SHAPES.get(architecture, (3, 12, 12)))


def library(encoder: PretrainedEncoder, x: Tensor) -> Tensor:
    """What the library itself computes as the vector of the input."""
    network = encoder.network
    if encoder.family == "timm":
        return network(x)
    if encoder.family == "bert":
        return network(input_ids=x, attention_mask=(x != 0).long()).last_hidden_state[:, 0]
    if encoder.family == "ast":
        return network(input_values=x).last_hidden_state[:, 0]
    out = network(pixel_values=x)
    return out.last_hidden_state[:, 0] if encoder.family == "vit" else out.pooler_output


def train_a_little(encoder: PretrainedEncoder) -> None:
    """Give the adapters values; at first they change nothing."""
    torch.manual_seed(2)
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)


@pytest.fixture(params=SIZES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


# ------------------------------------------------------------------------------------------------------------- forward


def test_the_summary_is_what_the_library_computes(architecture: str) -> None:
    encoder, x = make(architecture), content(architecture)
    with torch.inference_mode():
        expected = library(encoder, x)
        assert_close_sums(encoder(x), expected[:, None])
        assert encoder.embed(x).shape == (3, LENGTHS.get(architecture, 10), 16)
        vector = make(architecture, vector_width=7)
        projected = library(vector, x) @ vector.proj.weight.T + vector.proj.bias  # type: ignore[union-attr, operator]
        assert_close_sums(vector(x), projected[:, None])
    assert (encoder.tokens, encoder.width, vector.width) == (1, 16, 7)


def test_asts_own_summary_is_the_mean_of_two_tokens() -> None:
    encoder, x = make("ast", summary="mean_class_distillation"), content("ast")
    with torch.inference_mode():
        torch.testing.assert_close(encoder(x)[:, 0], encoder.network(input_values=x).pooler_output)


def attention(x: Tensor, w: Any, heads: int, visible: Tensor) -> Tensor:
    """Multi-head attention of (N, D) in loops; ``w``: four linear layers; ``visible`` (N, N)."""
    q, k, v = (layer(x) for layer in w[:3])
    d = x.shape[-1] // heads
    out = torch.zeros_like(x)
    for head in range(heads):
        part = slice(head * d, (head + 1) * d)
        for i in range(len(x)):
            keys = [j for j in range(len(x)) if visible[i, j]]
            scores = torch.stack([q[i, part] @ k[j, part] / d**0.5 for j in keys]).softmax(0)
            out[i, part] = sum(score * v[j, part] for score, j in zip(scores, keys))
    return w[3](out)


def slow_clip(network: Any, x: Tensor, proxies: Tensor, visible: Tensor) -> Tensor:
    """One image (3, 12, 12) through CLIP's transformer with proxies first -> (K + 10, 16), written out."""
    patches = []
    for row in range(3):
        for column in range(3):
            patch = x[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            patches.append((network.embeddings.patch_embedding.weight * patch).sum((1, 2, 3)))
    positions = network.embeddings.position_embedding.weight
    tokens = torch.stack([network.embeddings.class_embedding, *patches]) + positions
    y = network.pre_layrnorm(torch.cat([proxies, tokens]))
    for layer in network.encoder.layers:
        a = layer.self_attn
        y = y + attention(layer.layer_norm1(y), (a.q_proj, a.k_proj, a.v_proj, a.out_proj), 2, visible)
        hidden = layer.mlp.fc1(layer.layer_norm2(y))
        y = y + layer.mlp.fc2(hidden * torch.sigmoid(1.702 * hidden))
    return network.post_layernorm(y)


def slow_bert(network: Any, ids: Tensor, proxies: Tensor, visible: Tensor) -> Tensor:
    """One text (L,) through BERT with proxies first -> (K + L, 16), written out."""
    e = network.embeddings
    tokens = (
        e.word_embeddings.weight[ids] + e.position_embeddings.weight[: len(ids)] + e.token_type_embeddings.weight[0]
    )
    y = torch.cat([proxies, e.LayerNorm(tokens)])
    for layer in network.encoder.layer:
        a, o = layer.attention.self, layer.attention.output
        y = o.LayerNorm(y + attention(y, (a.query, a.key, a.value, o.dense), 2, visible))
        hidden = nn.functional.gelu(layer.intermediate.dense(y))
        y = layer.output.LayerNorm(y + layer.output.dense(hidden))
    return y


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("architecture", ["clip", "bert"])
def test_proxies_go_through_the_network_as_tokens_before_the_class_token(architecture: str, read_only: bool) -> None:
    """Against loops: proxies first, the others keep their positions, padding is seen by nobody."""
    encoder, x = make(architecture), content(architecture)
    proxies = torch.randn(2, 16)
    with torch.inference_mode():
        states = encoder.states(x, proxies, read_only)
        for row in range(3):
            length = 2 + LENGTHS.get(architecture, 10)
            visible = torch.ones(length, length, dtype=torch.bool)
            if architecture == "bert":
                visible[:, 2:] &= x[row] != 0
            if read_only:
                visible[:, :2] &= torch.eye(length, dtype=torch.bool)[:, :2]
            slow = slow_clip if architecture == "clip" else slow_bert
            expected = slow(encoder.network, x[row], proxies, visible)
            torch.testing.assert_close(states.proxies[row], expected[:2], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(states.summary[row], expected[2], atol=1e-4, rtol=1e-4)


def test_read_only_proxies_leave_the_summary_as_the_library_computes_it(architecture: str) -> None:
    encoder, x = make(architecture), content(architecture)
    proxies = torch.randn(3, 16)
    with torch.inference_mode():
        expected = library(encoder, x)
        assert_close_sums(encoder.states(x, proxies, True).summary, expected)
        seen = encoder.states(x, proxies).summary
        assert (seen - expected).abs().amax() > 1e-3, "with full attention the others see the proxies"
        # A pooling head pools the patches alone: at one block it cannot see what the proxies hold.
        assert encoder.states(x, proxies).proxies.shape == (3, 3, 16)


def test_siglip_pools_the_patches_without_the_proxy() -> None:
    encoder, x = make("siglip"), content("siglip")
    with torch.inference_mode():
        summary, proxies = encoder.states(x, torch.randn(1, 16), read_only=True)
        hidden = encoder.network(pixel_values=x).last_hidden_state
        assert_close_sums(summary, encoder.network.head(hidden))
        with_proxy = encoder.network.head(torch.cat([proxies, hidden], 1))
        assert (with_proxy - summary).abs().amax() > 1e-3


def test_padding_does_not_count_and_a_text_of_padding_is_finite() -> None:
    encoder, x = make("bert"), content("bert")
    with torch.inference_mode():
        short = encoder(x[1:2, :2])
        assert_close_sums(encoder(x)[1:2], short)
        assert torch.isfinite(encoder(torch.zeros_like(x))).all()


def test_a_video_is_the_mean_over_its_frames() -> None:
    encoder = make("clip")
    frames, proxies = torch.randn(2, 3, 3, 12, 12), torch.randn(1, 16)
    with torch.inference_mode():
        video = encoder.states(frames, proxies)
        parts = [encoder.states(frames[:, t], proxies) for t in range(3)]
    assert_close_sums(video.summary, sum(s.summary for s in parts) / 3)
    assert_close_sums(video.proxies, sum(s.proxies for s in parts) / 3)


def test_the_class_input_is_what_opens_every_sequence(architecture: str) -> None:
    encoder = make(architecture)
    if "siglip" in architecture:
        with pytest.raises(UserError, match="no class token"):
            encoder.class_input()
        return
    torch.testing.assert_close(encoder.class_input(), encoder.embed(content(architecture))[2, 0])


def test_checkpointing_changes_no_number() -> None:
    for architecture in ("clip", "bert", "timm/vit_tiny_patch16_224"):
        encoder, x = make(architecture), content(architecture)
        encoder.adapt(Adapter(dropout=0.0))
        train_a_little(encoder)
        actual = []
        for on in (False, True):
            encoder.checkpointing = on
            encoder.zero_grad()
            loss = encoder(x).square().sum()
            loss.backward()
            actual.append([loss.detach(), *(p.grad.clone() for p in encoder.parameters() if p.grad is not None)])
        assert len(actual[0]) == 17 and all(torch.equal(a, b) for a, b in zip(*actual))


# ------------------------------------------------------------------------------------------------------------ adapters

PER_LAYER = {"lora": 16 + 16, "dora": 16 + 16 + 16, "vera": 16 + 1}


@pytest.mark.parametrize("kind", PER_LAYER)
def test_adapters_are_where_they_should_be_and_change_nothing_at_first(architecture: str, kind: str) -> None:
    encoder, x = make(architecture), content(architecture)
    with torch.inference_mode():
        expected = encoder(x)
        names = encoder.adapt(Adapter(kind))
        assert_close_sums(encoder(x), expected)
    assert len(names) == len(set(names)) == 2 * 4 and not any("head" in n or "pool" in n or "mlp" in n for n in names)
    assert {int(re.search(r"\.(\d)\.", name)[1]) for name in names} == {0, 1}  # type: ignore[index]
    trained = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    assert all(re.search(r"lora_|vera_lambda", name) for name in trained)
    assert sum(p.numel() for p in trained.values()) == 8 * PER_LAYER[kind]


@pytest.mark.parametrize("kind", PER_LAYER)
def test_an_adapter_adds_its_product_and_merging_keeps_the_function(architecture: str, kind: str) -> None:
    encoder, x = make(architecture), content(architecture)
    encoder.adapt(Adapter(kind, rank=2, alpha=3.0))
    train_a_little(encoder)
    layer: Any = encoder.network.get_submodule(encoder.adapted[0])
    y = torch.randn(5, 16)
    with torch.inference_mode():
        w = layer.base_layer.weight
        if kind == "vera":
            a, b = layer.vera_A["default"][:, :16], layer.vera_B["default"][:16]
            full = w + torch.diag(layer.vera_lambda_b["default"]) @ b @ torch.diag(layer.vera_lambda_d["default"]) @ a
        else:
            full = w + 3.0 / 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        if kind == "dora":
            full = layer.lora_magnitude_vector["default"].weight[:, None] * full / full.norm(dim=1, keepdim=True)
        bias = layer.base_layer.bias
        expected = y @ full.T + (0 if bias is None else bias)
        torch.testing.assert_close(layer(y), expected, atol=1e-4, rtol=1e-4)
        proxies = torch.randn(2, 16)
        before, state = encoder.states(x, proxies), {k: v.clone() for k, v in encoder.state_dict().items()}
        encoder.merge()
        assert not torch.equal(layer.base_layer.weight, state_of(state, encoder.adapted[0]))
        torch.testing.assert_close(encoder.states(x, proxies), before, atol=1e-4, rtol=1e-4)
        encoder.unmerge()
        torch.testing.assert_close(layer.base_layer.weight, state_of(state, encoder.adapted[0]), atol=1e-5, rtol=1e-5)


def state_of(state: dict[str, Tensor], name: str) -> Tensor:
    return state[f"network.{name}.base_layer.weight"]


def test_timms_fused_projection_is_divided_without_a_change() -> None:
    """Three adapters of rank 1, not one: 3 * (16 + 16), the fused one would have 16 + 48."""
    fused, divided = make("timm/vit_tiny_patch16_224"), make("timm/vit_tiny_patch16_224")
    weight = fused.network.blocks[0].attn.qkv.weight
    divided.adapt(Adapter(targets="v"))
    assert divided.adapted == ["blocks.0.attn.qkv.v", "blocks.1.attn.qkv.v"]
    assert torch.equal(divided.network.blocks[0].attn.qkv.v.base_layer.weight, weight[32:])
    assert torch.equal(divided.network.blocks[0].attn.qkv.k.weight, weight[16:32])
    assert not divided.network.blocks[0].attn.qkv.k.weight.requires_grad


@pytest.mark.parametrize("targets", ["qv", "f", "qkvof"])
def test_targets_choose_projections(architecture: str, targets: str) -> None:
    encoder = make(architecture)
    names = encoder.adapt(Adapter(targets=targets))
    assert len(names) == 2 * len(targets)
    per_block = {"qv": 2 * 32, "f": 16 + 64 if "timm" in architecture else 16 + 32, "qkvof": 4 * 32 + 48}
    if "timm" not in architecture:
        assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) == 2 * per_block[targets]


def test_targets_that_match_nothing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"adapter\.targets=qx 'x' matches nothing in clip: choose letters out of q"):
        make("clip").adapt(Adapter(targets="qx"))
    with pytest.raises(UserError, match=r"adapter\.targets= is empty"):
        make("clip").adapt(Adapter(targets=""))
    # Another version of the library, with another name.
    encoder = make("vit")
    renamed = {**encoder.layout.projections, "q": "attention.query"}
    encoder.layout = replace(encoder.layout, projections=renamed)
    with pytest.raises(UserError, match="found 6 modules in vit instead of 8"):
        encoder.adapt(Adapter())


def test_adapter_settings_are_checked() -> None:
    for bad in ({"kind": "qlora"}, {"rank": 0}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match="adapter"):
            Adapter(**bad)  # type: ignore[arg-type]


def test_a_frozen_network_has_no_dropout_and_its_adapters_have() -> None:
    size = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    x = content("bert")
    trained, frozen = make("bert", size=size), make("bert", size=size, frozen=True)
    for encoder in (trained, frozen):
        encoder.train()
    assert not torch.equal(trained(x), trained(x)) and torch.equal(frozen(x), frozen(x))
    assert not any(p.requires_grad for p in frozen.network.parameters()) and frozen.training
    adapted = make("bert", size=size)
    adapted.adapt(Adapter(dropout=0.5))
    train_a_little(adapted)
    adapted.train()
    on = [part for part in adapted.modules() if isinstance(part, nn.Dropout) and part.training]
    assert len(on) == 8 and not torch.equal(adapted(x), adapted(x))
    adapted.eval()
    assert torch.equal(adapted(x), adapted(x))


# -------------------------------------------------------------------------------------------------------------- weights


def test_weights_are_read_from_a_folder(architecture: str, tmp_path: Path) -> None:
    """Written by the library, of a network with heads and towers that are not used."""
    if architecture.startswith("timm"):
        torch.manual_seed(5)
        whole = timm.create_model(architecture.removeprefix("timm/"), num_classes=0, **SIZES[architecture])
        weights = tmp_path / "model.pth"
        torch.save(whole.state_dict(), weights)
        encoder = PretrainedEncoder(architecture, weights=str(weights), size=SIZES[architecture])
        assert encoder.pretrained
        assert all(
            torch.equal(a, b) for a, b in zip(encoder.network.state_dict().values(), whole.state_dict().values())
        )
        return
    whole = with_heads(architecture)
    whole.save_pretrained(tmp_path)
    encoder = PretrainedEncoder(architecture, weights=str(tmp_path), size=SIZES[architecture])
    torch.manual_seed(9)
    random = PretrainedEncoder(architecture, size=SIZES[architecture])
    assert encoder.pretrained and not random.pretrained and encoder.training
    separate = whole.state_dict()
    for key, value in encoder.network.state_dict().items():
        twin = [v for k, v in separate.items() if k == key or k.endswith(f".{key}")]
        assert any(v.shape == value.shape and torch.equal(v, value) for v in twin), key
    x = content(architecture)
    assert not torch.allclose(encoder.eval()(x), random.eval()(x))


def with_heads(architecture: str) -> Any:
    """A whole network with random weights whose encoder is ``architecture``."""
    torch.manual_seed(5)
    size = SIZES[architecture]
    text = {**SMALL, "vocab_size": 20, "max_position_embeddings": 8}
    if architecture == "clip":
        network: Any = transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=size, projection_dim=8)
        )
    elif architecture == "siglip":
        network = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=size))
    elif architecture == "vit":
        network = transformers.ViTForImageClassification(transformers.ViTConfig(**size))
    elif architecture == "bert":
        network = transformers.BertForMaskedLM(transformers.BertConfig(**size))
    else:
        network = transformers.ASTForAudioClassification(transformers.ASTConfig(**size))
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    with_heads("bert").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"\(vocab_size differ\): set size=\{vocab_size: 30\}"):
        PretrainedEncoder("bert", weights=str(tmp_path), size={**SIZES["bert"], "vocab_size": 31})
    from safetensors.torch import load_file, save_file

    state = load_file(tmp_path / "model.safetensors")
    del state["bert.encoder.layer.1.attention.self.query.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 tensors of bert \(the first is encoder\.layer\.1\.attention"):
        PretrainedEncoder("bert", weights=str(tmp_path), size=SIZES["bert"])
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be read"):
        PretrainedEncoder("bert", weights=str(tmp_path), size=SIZES["bert"])
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(UserError, match=r"must hold config\.json and model\.safetensors"):
        PretrainedEncoder("bert", weights=str(tmp_path), size=SIZES["bert"])


def test_a_hub_that_cannot_be_reached_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"put config\.json and model\.safetensors of https://huggingface\.co/no/such"):
        PretrainedEncoder("clip_vit_base_patch16", weights="no/such")
    with pytest.raises(UserError, match=r"timm/vit_tiny_patch16_224: there is no such file"):
        PretrainedEncoder("timm/vit_tiny_patch16_224", weights="nowhere.pth")
    with pytest.raises(UserError, match=r"huggingface\.co/timm/vit_tiny_patch16_224 and set weights"):
        PretrainedEncoder("timm/vit_tiny_patch16_224", weights="hub")


def test_arguments_and_shapes_are_checked() -> None:
    for arguments, message in (
        ({"architecture": "resnet50"}, "must be timm/<name> or one of clip_vit_base"),
        ({"architecture": "timm/no_such_vit"}, "timm has no such network"),
        ({"architecture": "timm/test_efficientnet"}, "not a VisionTransformer"),
        ({"architecture": "vit", "size": {"depth": 3}}, "size.depth: vit has no such setting"),
        ({"architecture": "vit", "summary": "mean_class_distillation"}, "must be class, or for AST"),
        ({"architecture": "timm/vit_base_patch16_siglip_gap_224", "size": TIMM}, "neither a class token nor"),
    ):
        with pytest.raises(ValueError, match=message):
            PretrainedEncoder(**arguments)  # type: ignore[arg-type]
    for architecture, shape in (("clip", (3, 14, 14)), ("bert", (13,)), ("ast", (12, 9)), ("vit", (1, 12, 12))):
        with pytest.raises(UserError, match=rf"has the shape .*, {architecture} takes"):
            make(architecture)(torch.zeros(2, *shape))
    make("clip").check_shape((5, 3, 12, 12))
    with pytest.raises(UserError, match="change the data set's transform"):
        make("ast").check_shape((5, 12, 8))


def test_a_vocabulary_that_the_network_lacks_is_refused_and_foreign_ids_of_a_missing_text_do_no_harm() -> None:
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = PretrainedEncoder("bert", size={**size, "vocab_size": 50, "max_position_embeddings": 6}).eval()
    encoder.check_modality(Modality("title", "text", (6,), vocabulary=50))
    with pytest.raises(UserError, match=r"'title' have ids up to 51, bert knows 50: set dataset.tokenizer"):
        encoder.check_modality(Modality("title", "text", (6,), vocabulary=51))
    ids = torch.tensor([[1, 7, 49, 0, 0, 0], [1, 2**40, -5, 3, 0, 0]])
    with torch.no_grad():
        assert_close_sums(encoder(ids)[0], encoder(ids[:1])[0])
        assert torch.isfinite(encoder(ids)).all()
