"""Pretrained transformers of the libraries transformers and timm as encoders, optionally with adapters.

One class for the vision transformers of CLIP, SigLIP and timm, for ViT, BERT and AST. All have an embedding with
positions, blocks, a final norm, and a ``summary`` vector of the input (the class token; a pooling head in SigLIP). The
encoder returns the summary, or the final states of all tokens with ``output: tokens``. Methods that insert additional
tokens call :meth:`PretrainedEncoder.states` (docs/reference/cmpt.md §2.4, §2.6).

Inputs: images (B, 3, H, W), normalised as the weights require; video (B, T, 3, H, W), averaged over T frames; text
(B, L) token ids, padding masked; audio (B, frames, mel bins), a log-mel spectrogram normalised as AST requires.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from datasets.batch import Modality
from models.encoders.adapters import Adapter, SplitProjection
from models.encoders.pretrained_networks import (
    ARCHITECTURES,
    LAYOUTS,
    PROJECTIONS,
    timm_network,
    transformers_network,
)
from utils.errors import UserError


class States(NamedTuple):
    """``summary`` (B, D) of the input and final states ``proxies`` (B, K, D) of the inserted tokens."""

    summary: Tensor
    proxies: Tensor


class PretrainedEncoder(nn.Module):
    """Encode one modality by a pretrained transformer.

    Args:
        architecture: a name in :data:`models.encoders.pretrained_networks.ARCHITECTURES`; ``clip``, ``siglip``,
            ``vit``, ``bert`` or ``ast`` with a custom ``size``; or ``timm/<name>`` of a vision transformer of timm.
        weights: ``none`` (random), the name of a repository on the Hugging Face hub, or a folder with ``config.json``
            and ``model.safetensors``; for timm ``hub`` or a file.
        size: settings that override the architecture's, by the names of the library (``hidden_size``, ...; timm:
            ``embed_dim``, ``depth``, ``num_heads``, ``img_size``, ``patch_size``). They must match the weights.
        output: ``summary``, or ``tokens``: the final states of the class token (if any) and of all patches of an image
            or spectrogram.
        summary: ``class``; for AST also ``mean_class_distillation``, the input of its original head.
        frozen: train nothing of the network and leave it in eval mode.
        checkpointing: store one activation per block and recompute the others in the backward pass.
        class_id: first token of a text, for :meth:`class_input` (BERT's [CLS]).
        vector_width: width of the summary, by a linear map where it differs from D.

    Attributes:
        width: of the output.
        hidden: D, width of the network.
        has_token_output: whether the output is all tokens.
        adapted: names of the modules with an adapter.
        pretrained: whether the weights were loaded.

    Raises:
        UserError: the weights cannot be loaded or do not fit.
        ValueError: an unknown architecture, one without a class token, or ``output: tokens`` for text, whose padding
            the method could not identify.
    """

    is_transformer: ClassVar[bool] = True  # methods can insert tokens; the weights may come from a hub

    def __init__(
        self,
        architecture: str,
        *,
        weights: str = "none",
        size: Mapping[str, Any] | None = None,
        output: str = "summary",
        summary: str = "class",
        frozen: bool = False,
        checkpointing: bool = False,
        class_id: int = 101,
        vector_width: int | None = None,
    ) -> None:
        super().__init__()
        name, _, variant = architecture.partition("/")
        known = ARCHITECTURES | {family: (family, {}) for family in LAYOUTS if family != "timm"}
        if name != "timm" and architecture not in known:
            raise ValueError(f"architecture={architecture}: must be timm/<name> or one of {', '.join(known)}")
        family, defaults = ("timm", {}) if name == "timm" else known[architecture]
        if summary not in ("class", "mean_class_distillation") or (summary != "class" and family != "ast"):
            raise ValueError(f"summary={summary}: must be class, or for AST mean_class_distillation")
        if output not in ("summary", "tokens") or (output == "tokens" and family == "bert"):
            raise ValueError(f"output={output}: must be summary, or for images and spectrograms tokens")
        self.architecture, self.family, self.layout = architecture, family, LAYOUTS[family]
        self.summary, self.checkpointing, self.class_id = summary, checkpointing, class_id
        self.network: Any
        if family == "timm":
            self.network = timm_network(variant, weights, size or {})
            self.hidden = int(self.network.embed_dim)
            if self.network.cls_token is None and self.network.attn_pool is None:
                raise ValueError(f"architecture={architecture}: it has neither a class token nor attention pooling")
        else:
            self.network = transformers_network(architecture, self.layout, weights, {**defaults, **(size or {})})
            self.hidden = int(self.network.config.hidden_size)
        self.pretrained = weights != "none"
        self.adapted: list[str] = []
        self.frozen = False
        self.width = vector_width or self.hidden
        self.proj = nn.Linear(self.hidden, self.width) if self.width != self.hidden else nn.Identity()
        self.has_token_output = output == "tokens" and vector_width is None
        self.tokens = 1
        if self.has_token_output:
            with torch.no_grad():
                self.tokens = self.embed(torch.zeros(1, *self.shape)).shape[1]
        if frozen:
            self.freeze()

    # ---- shapes ------------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input: (C, H, W), (frames, mel bins), or the maximum length (L,) of a text."""
        if self.family == "timm":
            return (self.network.patch_embed.proj.in_channels, *self.network.patch_embed.img_size)
        config = self.network.config
        if self.family == "bert":
            return (config.max_position_embeddings,)
        if self.family == "ast":
            return (config.max_length, config.num_mel_bins)
        return (config.num_channels, config.image_size, config.image_size)

    def check_shape(self, shape: tuple[int, ...], name: str = "the input") -> None:
        """Check the shape of one input of the modality ``name``.

        Raises:
            UserError: the network takes another shape.
        """
        fits = len(shape) == 1 and shape[0] <= self.shape[0] if self.family == "bert" else shape[-3:] == self.shape
        if not fits or len(shape) > len(self.shape) + ("video" in self.layout.kinds):
            at_most = "at most " if self.family == "bert" else ""
            raise UserError(
                f"{name} has the shape {shape}, {self.architecture} takes {at_most}{self.shape}: change the data set's "
                "transform, or the encoder's size if its weights are random"
            )

    def check_modality(self, modality: Modality) -> None:
        """Check the kind, shape and vocabulary of a modality.

        Raises:
            UserError: the network takes another one.
        """
        name = f"'{modality.name}'"
        if modality.kind not in self.layout.kinds:
            raise UserError(
                f"{name} is of kind {modality.kind}, {self.architecture} is for {' or '.join(self.layout.kinds)}: "
                "choose another architecture"
            )
        self.check_shape(modality.shape, name)
        vocabulary = int(self.network.config.vocab_size) if self.family == "bert" else 0
        if vocabulary and (modality.vocabulary or 0) > vocabulary:
            raise UserError(
                f"the tokens of {name} have ids up to {modality.vocabulary}, {self.architecture} knows {vocabulary}: "
                "set dataset.tokenizer to the tokenizer of the encoder's weights"
            )

    # ---- forward -----------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (B, ...) -> (B, 1, ``width``), or (B, ``tokens``, ``width``) with ``output: tokens``."""
        if not self.has_token_output:
            return self.proj(self.states(x).summary)[:, None]
        self.check_shape(tuple(x.shape[1:]))
        is_video = x.ndim == 5
        tokens = self._run(self.embed(x.flatten(0, 1) if is_video else x), None)
        return tokens.unflatten(0, x.shape[:2]).mean(1) if is_video else tokens

    def states(self, x: Tensor, proxies: Tensor | None = None, read_only: bool = False) -> States:
        """Run the network on ``[proxies, class token, content]``.

        Args:
            x: (B, ...).
            proxies: (K, D) tokens in front of all others, inserted after the position embeddings (those of the others
                are unchanged) and before CLIP's first norm.
            read_only: only the proxy itself attends to a proxy, so that proxies do not change the other states.
        """
        self.check_shape(tuple(x.shape[1:]))
        is_video = x.ndim == 5
        tokens = self.embed(x.flatten(0, 1) if is_video else x)
        k = 0 if proxies is None else len(proxies)
        if proxies is not None:
            tokens = torch.cat([proxies.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], dim=1)
        visible = self._visible(x, tokens.shape[1], k, read_only)
        tokens = self._run(tokens, visible)
        states = States(self._summarise(tokens[:, k:]), tokens[:, :k])
        if not is_video:
            return states
        return States(*(y.unflatten(0, x.shape[:2]).mean(1) for y in states))

    def embed(self, x: Tensor) -> Tensor:
        """Inputs (B, ...) -> tokens (B, N, D) with positions; the class token, if any, comes first."""
        if self.family == "timm":
            return self.network._pos_embed(self.network.patch_embed(x))
        if self.family != "bert":
            return self.network.embeddings(x)
        # The ids of a missing text are arbitrary; one outside the vocabulary would abort the process on a GPU.
        return self.network.embeddings(x.long().clamp(0, int(self.network.config.vocab_size) - 1))

    def class_input(self) -> Tensor:
        """Embedded class token (D,), as the blocks receive it.

        Raises:
            UserError: the architecture has none.
        """
        if self.family == "siglip" or (self.family == "timm" and self.network.cls_token is None):
            raise UserError(f"{self.architecture} has no class token: set proxy.init=normal")
        reference = next(self.network.parameters())
        blank = torch.zeros((1, 1) if self.family == "bert" else (1, *self.shape), device=reference.device)
        training = self.network.training
        with torch.no_grad():  # without the dropout of the embedding
            self.network.eval()
            token = self.embed(blank + self.class_id if self.family == "bert" else blank)[0, 0]
            self.network.train(training)
        return token

    @property
    def grid(self) -> tuple[int, int]:
        """Number of rows and columns of patches; for a spectrogram, along mel bins and frames.

        Raises:
            UserError: the input is text.
        """
        if self.family == "bert":
            raise UserError(f"{self.architecture} encodes text, which has no grid of patches: choose an image")
        if self.family == "timm":
            return tuple(self.network.patch_embed.grid_size)
        config = self.network.config
        if self.family == "ast":
            sizes = (config.num_mel_bins, config.frequency_stride), (config.max_length, config.time_stride)
            rows, columns = ((size - config.patch_size) // stride + 1 for size, stride in sizes)
            return rows, columns
        side = config.image_size // config.patch_size
        return side, side

    @torch.no_grad()
    def attention(self, x: Tensor, proxies: Tensor | None = None, read_only: bool = False) -> Tensor:
        """Attention of the last block to the patches, for plots.

        Computed from queries and keys, since the fused attention of :meth:`states` does not return its weights.

        Args:
            x: (B, ...), a single frame of a video.
            proxies, read_only: as in :meth:`states`.

        Returns:
            (B, K + 1, *:attr:`grid`), one map per proxy and for the class token (if any), averaged over heads.
        """
        block, outputs = self.network.get_submodule(self.layout.blocks)[-1], {}
        is_fused = self.family == "timm" and isinstance(block.attn.qkv, nn.Linear)
        paths = {"qkv": "attn.qkv"} if is_fused else {letter: self.layout.projections[letter] for letter in "qk"}
        hooks = [
            block.get_submodule(path).register_forward_hook(lambda _, __, out, key=key: outputs.update({key: out}))
            for key, path in paths.items()
        ]
        try:
            self.states(x, proxies, read_only)
        finally:
            for hook in hooks:
                hook.remove()
        q, k = outputs["qkv"].chunk(3, dim=-1)[:2] if is_fused else (outputs["q"], outputs["k"])
        heads = block.attn.num_heads if self.family == "timm" else self.network.config.num_attention_heads
        q, k = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (q, k))
        if self.family == "timm":
            q, k = block.attn.q_norm(q), block.attn.k_norm(k)
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        first = 0 if proxies is None else len(proxies)
        visible = self._visible(x, scores.shape[-1], first, read_only)
        if visible is not None:
            scores = scores.masked_fill(~visible, float("-inf"))
        rows, columns = self.grid
        has_class = scores.shape[-1] > first + rows * columns
        weights = scores.softmax(-1).mean(1)[:, : first + has_class, -rows * columns :]
        return weights.unflatten(-1, (rows, columns))

    def _visible(self, x: Tensor, n: int, k: int, read_only: bool) -> Tensor | None:
        """Attention mask (B or 1, 1, n or 1, n) in PyTorch's polarity, True = the query attends to the key; None = all.

        Args:
            n, k: number of tokens, and of proxies among them.
        """
        visible = None
        if self.family == "bert":
            # The first token is always visible: attention in a text of padding alone would be NaN.
            is_content = x.long() != int(self.network.config.pad_token_id or 0)
            is_content = is_content | (torch.arange(x.shape[1], device=x.device) == 0)
            visible = torch.cat([is_content.new_ones(len(x), k), is_content], dim=1)[:, None, None]
        if read_only and k:
            position = torch.arange(n, device=x.device)
            is_hidden = (position[None, :] < k) & (position[:, None] != position[None, :])
            visible = ~is_hidden[None, None] if visible is None else visible & ~is_hidden
        return visible

    def _run(self, tokens: Tensor, visible: Tensor | None) -> Tensor:
        """Embedded tokens (B, N, D) -> final states (B, N, D)."""
        if self.layout.first_norm:
            tokens = self.network.get_submodule(self.layout.first_norm)(tokens)
        # The libraries pass the mask on to the attention without broadcasting it.
        mask = None if visible is None else visible.expand(len(tokens), 1, tokens.shape[1], tokens.shape[1])
        for block in self.network.get_submodule(self.layout.blocks):
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, mask, use_reentrant=False)
            else:
                tokens = block(tokens, mask)
        return self.network.get_submodule(self.layout.last_norm)(tokens) if self.layout.last_norm else tokens

    def _summarise(self, tokens: Tensor) -> Tensor:
        """Final states (B, N, D), those of proxies excluded -> (B, D)."""
        pooling = getattr(self.network, self.layout.pooling, None) if self.layout.pooling else None
        if pooling is not None:
            return pooling(tokens)
        if self.summary == "mean_class_distillation":
            return tokens[:, :2].mean(1)
        return tokens[:, 0]

    # ---- freezing, adapters ------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """Stop training the network, which stays in eval mode from now on (without dropout)."""
        self.network.requires_grad_(False)
        self.frozen = True
        self.train(self.training)

    def adapt(self, adapter: Adapter) -> list[str]:
        """Freeze the network and add adapters to the projections ``adapter.targets`` of every block.

        Returns:
            Names of the adapted modules, also in :attr:`adapted`.

        Raises:
            UserError: a target is unknown or missing in a block.
        """
        self.freeze()
        if adapter.kind == "none":
            return self.adapted
        paths = self.layout.projections
        if not adapter.targets or (unknown := sorted(set(adapter.targets) - set(paths))):
            problem = f"'{''.join(unknown)}' matches nothing in {self.architecture}" if adapter.targets else "is empty"
            letters = ", ".join(f"{letter} ({PROJECTIONS[letter]})" for letter in paths)
            raise UserError(f"adapter.targets={adapter.targets} {problem}: choose letters out of {letters}")
        if self.family == "timm":
            for block in self.network.blocks:
                if isinstance(block.attn.qkv, nn.Linear):
                    block.attn.qkv = SplitProjection(block.attn.qkv)
        inside = "|".join(re.escape(paths[letter]) for letter in adapter.targets)
        pattern = rf"{re.escape(self.layout.blocks)}\.\d+\.({inside})"
        expected = len(self.network.get_submodule(self.layout.blocks)) * len(set(adapter.targets))
        targets = [name for name, _ in self.network.named_modules() if re.fullmatch(pattern, name)]
        if len(targets) != expected:
            raise UserError(
                f"adapter.targets={adapter.targets}: found {len(targets)} modules in {self.architecture} instead of "
                f"{expected}, since the installed library names them differently: install the versions in "
                "constraints.txt"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft uses a name deprecated in transformers
            get_peft_model(self.network, adapter.config(pattern))
        self.adapted = [name for name, part in self.network.named_modules() if isinstance(part, BaseTunerLayer)]
        assert sorted(self.adapted) == sorted(targets)
        self.train(self.training)
        return self.adapted

    def train(self, mode: bool = True) -> PretrainedEncoder:
        """Set the mode; of a frozen network, only that of the adapters."""
        super().train(mode)
        if self.frozen:
            self.network.eval()
            for part in self.network.modules():
                if isinstance(part, BaseTunerLayer) and isinstance(part, nn.Module):
                    part.train(mode)
        return self

    def merge(self) -> None:
        """Merge the adapters into the weights: the same function at the cost of the original network.

        Do not train or save before :meth:`unmerge`.
        """
        for name in self.adapted:
            self.network.get_submodule(name).merge()

    def unmerge(self) -> None:
        for name in self.adapted:
            self.network.get_submodule(name).unmerge()
