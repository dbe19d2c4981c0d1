"""Networks of the libraries transformers and timm: where their parts are, and how they are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from torch import Tensor, nn

from utils.errors import UserError

# What each letter of Adapter targets stands for.
LETTERS = {"q": "query", "k": "key", "v": "value", "o": "output of the attention", "f": "output of the perceptron"}


@dataclass(frozen=True)
class Family:
    """Where an architecture keeps its parts; paths are relative to the network, ``projections`` to a block."""

    kinds: tuple[str, ...]
    blocks: str
    last_norm: str
    projections: Mapping[str, str]
    model: str = ""
    config: str = ""
    first_norm: str = ""
    pooling: str = ""


_SELF = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.out_proj"}
_VIT = {letter: f"attention.{letter}_proj" for letter in "qkvo"}
_IMAGE = ("image", "video")
FAMILIES = {
    "clip": Family(
        _IMAGE,
        "encoder.layers",
        "post_layernorm",
        {**_SELF, "f": "mlp.fc2"},
        "CLIPVisionModel",
        "CLIPVisionConfig",
        first_norm="pre_layrnorm",
    ),
    "siglip": Family(
        _IMAGE,
        "encoder.layers",
        "post_layernorm",
        {**_SELF, "f": "mlp.fc2"},
        "SiglipVisionModel",
        "SiglipVisionConfig",
        pooling="head",
    ),
    "vit": Family(_IMAGE, "layers", "layernorm", {**_VIT, "f": "mlp.fc2"}, "ViTModel", "ViTConfig"),
    "ast": Family(("audio",), "layers", "layernorm", {**_VIT, "f": "mlp.fc2"}, "ASTModel", "ASTConfig"),
    "bert": Family(
        ("text",),
        "encoder.layer",
        "",
        {
            **{letter: f"attention.self.{LETTERS[letter]}" for letter in "qkv"},
            **{"o": "attention.output.dense", "f": "output.dense"},
        },
        "BertModel",
        "BertConfig",
    ),
    "timm": Family(
        _IMAGE,
        "blocks",
        "norm",
        {**{letter: f"attn.qkv.{letter}" for letter in "qkv"}, "o": "attn.proj", "f": "mlp.fc2"},
        first_norm="norm_pre",
        pooling="attn_pool",
    ),
}
_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
# What differs from the defaults of the configuration class, which are the Base sizes.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "clip_vit_base_patch16": ("clip", {"patch_size": 16}),
    "clip_vit_large_patch14": ("clip", {**_LARGE, "patch_size": 14}),
    "siglip_base_patch16": ("siglip", {}),
    "vit_base_patch16": ("vit", {}),
    "vit_large_patch16": ("vit", _LARGE),
    "bert_base": ("bert", {}),
    "bert_large": ("bert", _LARGE),
    "ast_base": ("ast", {}),
}
# Settings that decide what a network computes: weights made with others are refused.
SETTINGS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps"),
    *("num_channels", "image_size", "patch_size", "qkv_bias", "vision_use_head"),
    *("vocab_size", "max_position_embeddings", "type_vocab_size", "pad_token_id"),
    *("max_length", "num_mel_bins", "frequency_stride", "time_stride"),
)


class SplitProjection(nn.Module):
    """timm's fused projection of queries, keys and values as three, so that each can have its own adapter; the same
    numbers."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        width = fused.out_features // 3
        for i, letter in enumerate("qkv"):
            part = nn.Linear(fused.in_features, width, fused.bias is not None, fused.weight.device, fused.weight.dtype)
            rows = slice(i * width, (i + 1) * width)
            part.weight = nn.Parameter(fused.weight.detach()[rows].clone(), requires_grad=False)
            if fused.bias is not None:
                part.bias = nn.Parameter(fused.bias.detach()[rows].clone(), requires_grad=False)
            self.add_module(letter, part)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.children()], dim=-1)


def transformers_network(architecture: str, layout: Family, weights: str, size: Mapping[str, Any]) -> Any:
    """Network of the library transformers with random or given weights."""
    config_class, model_class = getattr(transformers, layout.config), getattr(transformers, layout.model)
    known = config_class().to_dict()
    if unknown := sorted(set(size) - set(known)):
        raise ValueError(f"size.{unknown[0]}: {architecture} has no such setting")
    config = config_class(**size)
    # BERT's and ViT's poolers come after the class token and are not used.
    more = {"add_pooling_layer": False} if layout.model in ("BertModel", "ViTModel") else {}
    config._attn_implementation = "sdpa"
    if weights == "none":
        return model_class(config, **more)
    stored_config = _attempt(
        architecture, weights, lambda local: config_class.from_pretrained(weights, local_files_only=local)
    )
    expected, stored = config.to_dict(), stored_config.to_dict()
    differing = [key for key in SETTINGS if key in expected and expected[key] != stored.get(key)]
    if differing:
        settings = ", ".join(f"{key}: {stored.get(key)}" for key in differing)
        raise UserError(
            f"weights={weights} are of another network than {architecture} ({', '.join(differing)} differ): set "
            f"size={{{settings}}}, or choose the architecture that they are of"
        )

    def load(local: bool) -> Any:
        return model_class.from_pretrained(
            weights,
            config=config,
            dtype=torch.float32,
            attn_implementation="sdpa",
            local_files_only=local,
            output_loading_info=True,
            **more,
        )

    network, about = _attempt(architecture, weights, load)
    if missing := sorted(about["missing_keys"]):
        raise UserError(
            f"weights={weights} lack {len(missing)} tensors of {architecture} (the first is "
            f"{missing[0]}): give the weights of the complete network"
        )
    return network.train()


def _attempt(architecture: str, weights: str, load: Any) -> Any:
    """``load(local_files_only)``: from the folder or the cache, else from the hub."""
    is_folder = Path(weights).is_dir()
    verbosity = transformers.logging.get_verbosity()
    for local in (True,) if is_folder else (True, False):
        try:
            transformers.logging.set_verbosity_error()  # it lists what is not used; what lacks is an error of ours
            return load(local)
        except (OSError, ValueError, TypeError, RuntimeError, SafetensorError, HfHubHTTPError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        finally:
            transformers.logging.set_verbosity(verbosity)
    if is_folder:
        raise UserError(
            f"weights={weights} of {architecture} cannot be read ({reason}): the folder must hold config.json and "
            "model.safetensors"
        )
    raise UserError(
        f"weights={weights} of {architecture} are neither in the cache nor can they be downloaded: put config.json and "
        f"model.safetensors of https://huggingface.co/{weights} into a folder and give that as weights, or set "
        "weights=none"
    )


def timm_network(variant: str, weights: str, size: dict[str, Any]) -> Any:
    """Vision transformer of timm with random or given weights."""
    local = weights not in ("none", "hub")
    if local and not Path(weights).is_file():
        raise UserError(f"weights={weights} of timm/{variant}: there is no such file, give one, hub, or none")
    try:
        network = timm.create_model(
            variant,
            pretrained=weights != "none",
            num_classes=0,
            pretrained_cfg_overlay={"file": weights} if local else None,
            **size,
        )
    except (OSError, RuntimeError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        if "Unknown model" in reason:
            raise ValueError(f"architecture=timm/{variant}: timm has no such network") from None
        raise UserError(
            f"weights={weights} of timm/{variant} cannot be loaded ({reason}): put model.safetensors of "
            f"https://huggingface.co/timm/{variant} somewhere and give that file as weights, or set weights=none"
        ) from None
    if not isinstance(network, timm.models.VisionTransformer):
        raise ValueError(f"architecture=timm/{variant}: is a {type(network).__name__}, not a VisionTransformer")
    return network
