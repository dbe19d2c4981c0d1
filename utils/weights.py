"""Identify checkpoints by their content, and load weights strictly. :mod:`utils.safe_pickle` reads the files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.safe_pickle import read_tensors

Kind = Literal[
    "reference_dynamic_transformer",
    "reference_gaussian",
    "reference_mopoe",
    "reference_multivae",
    "reference_tip",
    "lightning",
    "unknown",
]


def safetensors_content(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> bytes:
    """Content of a ``.safetensors`` file, the same for the same values: the library writes the entries of ``header`` in
    random order."""
    content = safetensors.torch.save({key: value.contiguous().cpu() for key, value in tensors.items()}, dict(header))
    start = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:start])
    entries["__metadata__"] = dict(sorted(entries["__metadata__"].items()))
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned
    return len(text).to_bytes(8, "little") + text + content[start:]


# ------------------------------------------------------------------------------------------ what a file holds

_PREFIX = re.compile(r"^(?:module\.|model\.)+")


def checkpoint_kind(content: Mapping[str, Any]) -> Kind:
    """Identify a checkpoint by its content."""
    state = content.get("state_dict")
    if isinstance(state, Mapping):
        names = {_PREFIX.sub("", str(key)) for key in state}
        if "prototypes" in names and any(name.startswith("m_encoders.") for name in names):
            return "reference_dynamic_transformer"
        if "architecture" not in content and any(name.startswith("encoder_multimodal.") for name in names):
            return "reference_tip"
        return "lightning" if "pytorch-lightning_version" in content else "unknown"
    if {"prototypes", "dist_std", "id2subset"} <= content.keys() and np.ndim(content["prototypes"]) == 3:
        return "reference_gaussian"
    if isinstance(content.get("model_state_dict"), Mapping):
        return "reference_multivae"
    if content and all(re.match(r"(en|de)coders\.", str(key)) for key in content):
        heads = r"encoders\.[^.]+\.(class_mu|hidden_mu|latent_mu|feature_compressor\.content_mu)\."
        if any(re.match(heads, key) for key in content) and any(key.startswith("decoders.") for key in content):
            return "reference_mopoe"
    return "unknown"


def load_part(module: nn.Module, path: Path, prefixes: Sequence[str], what: str, ignore: tuple[str, ...] = ()) -> None:
    """Load a module from a file that holds it alone, or as a part of a larger one.

    Args:
        prefixes: of the part's entries in larger files; the first one that occurs is used.
        what: name of the module, for the message.
        ignore: prefixes of entries of the part that are left out.

    Raises:
        UserError: no such file, or its entries do not fit.
    """
    content = read_tensors(path)
    state = {_PREFIX.sub("", str(key)): value for key, value in content.get("state_dict", content).items()}
    prefix = next((p for p in prefixes if any(key.startswith(p) for key in state)), "")
    part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    load_strict(module, {k: v for k, v in part.items() if not k.startswith(ignore or "\0")}, path, what)


def load_strict(module: nn.Module, state: Mapping[str, Any], path: Path, what: str) -> None:
    """Load weights into a module; every entry must fit and be finite.

    Args:
        path: where the weights come from, for the message.
        what: name of the module, for the message ("DynamicTransformer on PolyMNIST").

    Raises:
        UserError: they do not fit; one line that says what they were trained for.
    """
    expected = {key: tuple(getattr(value, "shape", ())) for key, value in module.state_dict().items()}
    stored = {key: tuple(getattr(value, "shape", ())) for key, value in state.items()}
    if expected != stored:
        raise UserError(
            f"{path} does not fit the {what}: {_misfit(stored, expected)}: give the checkpoint that was trained with "
            "this data set and these settings"
        )
    for key, value in state.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{path} holds NaN or infinite values in {key}: its training diverged, give another one")
    module.load_state_dict(state, strict=True)


Shapes = Mapping[str, tuple[int, ...]]


def _names(shapes: Shapes, pattern: str) -> list[str]:
    """The distinct parts of the keys that the group of the pattern matches, in their order."""
    return list(dict.fromkeys(match[1] for key in shapes if (match := re.match(pattern, key))))


def _misfit(stored: Shapes, expected: Shapes) -> str:
    """What the checkpoint was made for, if shapes tell; else the first names that differ."""

    def size(shapes: Shapes, axis: int, *keys: str) -> int:
        return next((shapes[key][axis] for key in keys if len(shapes.get(key, ())) > axis), 0)

    def sizes(axis: int, *keys: str) -> tuple[int, int]:
        return size(stored, axis, *keys), size(expected, axis, *keys)

    def counts(pattern: str) -> tuple[int, int]:
        return len(_names(stored, pattern)), len(_names(expected, pattern))

    encoder = r"encoders\.([^.]+)\."
    modalities = next(
        (pair for pair in (sizes(0, "modality_embeddings.weight"), counts(r"m_norms\.(\d+)\."), counts(encoder))
         if all(pair)), (0, 0),
    )  # fmt: skip
    facts = [
        (modalities, "trained for {} modalities, the data set has {}"),
        (sizes(2, "cls_token", "pos_embeddings"), "width {}, the model has {}"),
        (counts(r"transformer\.(\d+)\."), "{} transformer blocks, the model has {}"),
        (sizes(0, "classifier.weight", "prototypes"), "{} classes, the data set has {}"),
        (sizes(1, "prototypes", "projection.weight"), "prototypes of {} values, those of the model have {}"),
    ]
    reasons = [text.format(a, b) for (a, b), text in facts if a and b and a != b]
    tokens, encoders = sizes(1, "pos_embeddings"), (_names(stored, encoder), _names(expected, encoder))
    if modalities[0] == modalities[1]:
        if all(encoders) and set(encoders[0]) != set(encoders[1]):
            reasons.append("trained for {}, the data set has {}".format(*map(" + ".join, encoders)))
        elif all(tokens) and tokens[0] != tokens[1]:
            reasons.append("{} tokens, the model has {}".format(*tokens))
    if reasons:
        return "; ".join(reasons)

    other = [key for key in expected if key in stored and expected[key] != stored[key]]
    listed = [
        ("without", [key for key in expected if key not in stored]),
        ("with unknown", [key for key in stored if key not in expected]),
        ("another shape of", [f"{key} {stored[key]}, the model has {expected[key]}" for key in other]),
    ]
    return "; ".join(
        f"{word} {', '.join(keys[:3])}" + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        for word, keys in listed if keys
    )  # fmt: skip
