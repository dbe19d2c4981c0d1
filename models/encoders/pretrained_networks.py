"""Architectures of pretrained transformers of transformers and timm: their module paths, settings and loading."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError

from utils.errors import UserError, first_line

# Projections of a transformer block by the letters of ``Adapter.targets``.
PROJECTIONS = {"q": "query", "k": "key", "v": "value", "o": "attention output", "f": "MLP output"}


@dataclass(frozen=True)
class Layout:
    """Module paths of an architecture, relative to the network; those in ``projections`` are relative to a block."""

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
LAYOUTS = {
    "clip": Layout(
        _IMAGE,
        "encoder.layers",
        "post_layernorm",
        {**_SELF, "f": "mlp.fc2"},
        "CLIPVisionModel",
        "CLIPVisionConfig",
        first_norm="pre_layrnorm",
    ),
    "siglip": Layout(
        _IMAGE,
        "encoder.layers",
        "post_layernorm",
        {**_SELF, "f": "mlp.fc2"},
        "SiglipVisionModel",
        "SiglipVisionConfig",
        pooling="head",
    ),
    "vit": Layout(_IMAGE, "layers", "layernorm", {**_VIT, "f": "mlp.fc2"}, "ViTModel", "ViTConfig"),
    "ast": Layout(("audio",), "layers", "layernorm", {**_VIT, "f": "mlp.fc2"}, "ASTModel", "ASTConfig"),
    "bert": Layout(
        ("text",),
        "encoder.layer",
        "",
        {
            **{letter: f"attention.self.{PROJECTIONS[letter]}" for letter in "qkv"},
            **{"o": "attention.output.dense", "f": "output.dense"},
        },
        "BertModel",
        "BertConfig",
    ),
    "timm": Layout(
        _IMAGE,
        "blocks",
        "norm",
        {**{letter: f"attn.qkv.{letter}" for letter in "qkv"}, "o": "attn.proj", "f": "mlp.fc2"},
        first_norm="norm_pre",
        pooling="attn_pool",
    ),
}
_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
# Layout and settings that differ from the defaults of the configuration class, which are the Base sizes.
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
# Settings that change the function of a network: weights with other values are refused.
COMPARED_SETTINGS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps",
    "num_channels", "image_size", "patch_size", "qkv_bias", "vision_use_head",
    "vocab_size", "max_position_embeddings", "type_vocab_size", "pad_token_id",
    "max_length", "num_mel_bins", "frequency_stride", "time_stride",
)  # fmt: skip


def transformers_network(architecture: str, layout: Layout, weights: str, size: Mapping[str, Any]) -> Any:
    """Build a network of transformers with random or pretrained weights."""
    config_class, model_class = getattr(transformers, layout.config), getattr(transformers, layout.model)
    if unknown := sorted(set(size) - set(config_class().to_dict())):
        raise ValueError(f"size.{unknown[0]}: {architecture} has no such setting")
    config = config_class(**size)
    # The poolers of BERT and ViT follow the class token and are not used.
    options = {"add_pooling_layer": False} if layout.model in ("BertModel", "ViTModel") else {}
    config._attn_implementation = "sdpa"
    if weights == "none":
        return model_class(config, **options)
    weights_config = _load_local_or_download(
        architecture, weights, lambda local: config_class.from_pretrained(weights, local_files_only=local)
    )
    expected, actual = config.to_dict(), weights_config.to_dict()
    differing = [key for key in COMPARED_SETTINGS if key in expected and expected[key] != actual.get(key)]
    if differing:
        settings = ", ".join(f"{key}: {actual.get(key)}" for key in differing)
        raise UserError(
            f"weights={weights} belong to another network than {architecture} ({', '.join(differing)} differ): set "
            f"size={{{settings}}}, or choose the architecture of the weights"
        )

    def load(local: bool) -> Any:
        return model_class.from_pretrained(
            weights,
            config=config,
            dtype=torch.float32,
            attn_implementation="sdpa",
            local_files_only=local,
            output_loading_info=True,
            **options,
        )

    network, loading_info = _load_local_or_download(architecture, weights, load)
    if missing := sorted(loading_info["missing_keys"]):
        raise UserError(
            f"weights={weights} lack {len(missing)} tensors of {architecture} (the first is "
            f"{missing[0]}): specify weights of the complete network"
        )
    return network.train()


def _load_local_or_download(architecture: str, weights: str, load: Callable[[bool], Any]) -> Any:
    """Call ``load(local_files_only)``, first for the folder or the cache, then for the hub."""
    is_folder = Path(weights).is_dir()
    verbosity = transformers.logging.get_verbosity()
    for local in (True,) if is_folder else (True, False):
        try:
            transformers.logging.set_verbosity_error()  # unused tensors; missing ones raise below
            return load(local)
        except (OSError, ValueError, TypeError, RuntimeError, SafetensorError, HfHubHTTPError) as error:
            reason = first_line(error)
        finally:
            transformers.logging.set_verbosity(verbosity)
    if is_folder:
        raise UserError(
            f"weights={weights} of {architecture} cannot be read ({reason}): the folder must hold config.json and "
            "model.safetensors"
        )
    raise UserError(
        f"weights={weights} of {architecture} are not in the cache and cannot be downloaded: put config.json and "
        f"model.safetensors of https://huggingface.co/{weights} into a folder and set weights to that folder, or set "
        "weights=none"
    )


def timm_network(variant: str, weights: str, size: Mapping[str, Any]) -> Any:
    """Build a vision transformer of timm with random or pretrained weights."""
    is_file = weights not in ("none", "hub")
    if is_file and not Path(weights).is_file():
        raise UserError(f"weights={weights} of timm/{variant}: there is no such file; specify a file, hub or none")
    try:
        network = timm.create_model(
            variant,
            pretrained=weights != "none",
            num_classes=0,
            pretrained_cfg_overlay={"file": weights} if is_file else None,
            **size,
        )
    except (OSError, RuntimeError, HfHubHTTPError) as error:
        reason = first_line(error)
        if "Unknown model" in reason:
            raise ValueError(f"architecture=timm/{variant}: timm has no such network") from None
        raise UserError(
            f"weights={weights} of timm/{variant} cannot be loaded ({reason}): download model.safetensors of "
            f"https://huggingface.co/timm/{variant} and set weights to that file, or set weights=none"
        ) from None
    if not isinstance(network, timm.models.VisionTransformer):
        raise ValueError(f"architecture=timm/{variant}: it is a {type(network).__name__}, not a VisionTransformer")
    return network
