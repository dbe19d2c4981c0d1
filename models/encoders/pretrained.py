"""Pretrained transformers of the libraries transformers and timm as encoders, and adapters in their attention.

One class for CLIP's and SigLIP's vision transformers, ViT, BERT, AST and timm's vision transformers. What they have in
common: an embedding that ends with the positions, blocks, a norm, and one vector that stands for the input, its
``summary`` (the class token; SigLIP has a pooling head instead). As an encoder it gives that one vector, or with
``output: tokens`` the final states of all tokens; methods that put tokens of their own beside the class token call
:meth:`PretrainedEncoder.states` (docs/reference/cmpt.md §2.4, §2.6).

Inputs: images (B, 3, H, W), normalised as the weights want it; video (B, T, 3, H, W), the mean over T frames; text
(B, L) token ids, padding masked; audio (B, frames, mel bins), a log-mel spectrogram normalised as AST wants it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from peft import LoraConfig, VeraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from datasets.batch import Modality
from models.encoders.pretrained_networks import (
    ARCHITECTURES,
    FAMILIES,
    LETTERS,
    SplitProjection,
    timm_network,
    transformers_network,
)
from utils.errors import UserError


@dataclass(frozen=True)
class Adapter:
    """Low-rank adapters (docs/reference/cmpt.md §2.6).

    Attributes:
        kind: ``lora``, ``dora``, ``vera``; ``none``: nothing inside the network is trained.
        rank, alpha, dropout: of the update alpha / rank * B A; VeRA knows no alpha.
        targets: which projections of every block, letters out of q, k, v, o (output of the attention) and f (output of
            the perceptron).
    """

    kind: str = "lora"
    rank: int = 1
    alpha: float = 1.0
    dropout: float = 0.1
    targets: str = "qkvo"

    def __post_init__(self) -> None:
        if self.kind not in ("none", "lora", "dora", "vera"):
            raise ValueError(f"adapter.kind={self.kind}: must be none, lora, dora or vera")
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"adapter: rank must be at least 1 (it is {self.rank}), dropout at least 0 and below 1 (it is "
                f"{self.dropout})"
            )

    def config(self, pattern: str) -> LoraConfig | VeraConfig:
        """For peft; ``pattern`` has to match the whole name of a module."""
        if self.kind == "vera":
            return VeraConfig(r=self.rank, vera_dropout=self.dropout, target_modules=pattern, bias="none")
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=pattern,
            use_dora=self.kind == "dora",
            bias="none",
        )


class States(NamedTuple):
    """``summary`` (B, D) of the input and the final states ``proxies`` (B, K, D) of the tokens put before it."""

    summary: Tensor
    proxies: Tensor


class PretrainedEncoder(nn.Module):
    """
    Args:
        architecture: a name in ``ARCHITECTURES`` of :mod:`models.encoders.pretrained_networks`; ``clip``, ``siglip``,
            ``vit``, ``bert`` or ``ast`` in a ``size`` of your own; or ``timm/<name>``, a vision transformer of timm.
        weights: ``none`` (random), the name of a repository on the Hugging Face hub, or a folder with ``config.json``
            and ``model.safetensors``; for timm ``hub`` or a file.
        size: settings that differ from the architecture's, by the names of the library (``hidden_size``, ...; timm:
            ``embed_dim``, ``depth``, ``num_heads``, ``img_size``, ``patch_size``). The weights have to agree.
        output: ``summary``, or ``tokens``: the final states of the class token (where there is one) and of all patches
            of an image or spectrogram, in place of one vector.
        summary: ``class``; of AST also ``mean_class_distillation``, which its own head takes.
        frozen: nothing of the network is trained, and it stays in eval mode.
        checkpointing: keep one activation a block and compute the rest again in the backward pass.
        class_id: token that opens a text, for :meth:`class_input` (BERT's [CLS]).
        vector_width: make the summary (B, D) a vector of this width, by a linear map where D is another.

    Attributes:
        width: of the output.
        hidden: D, of the network.
        adapted: names of the modules that have an adapter.
        pretrained: whether it has weights from elsewhere.

    Raises:
        UserError: the weights cannot be had, or do not fit.
        ValueError: an unknown architecture, one that has no class token, or the tokens of a text, whose padding the
            receiver could not tell.
    """

    is_transformer: ClassVar[bool] = True  # methods can put tokens into it, and its weights may come from a hub

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
        known = ARCHITECTURES | {family: (family, {}) for family in FAMILIES if family != "timm"}
        if name != "timm" and architecture not in known:
            raise ValueError(f"architecture={architecture}: must be timm/<name> or one of {', '.join(known)}")
        family, defaults = ("timm", {}) if name == "timm" else known[architecture]
        if summary not in ("class", "mean_class_distillation") or (summary != "class" and family != "ast"):
            raise ValueError(f"summary={summary}: must be class, or for AST mean_class_distillation")
        if output not in ("summary", "tokens") or (output == "tokens" and family == "bert"):
            raise ValueError(f"output={output}: must be summary, or for images and spectrograms tokens")
        self.architecture, self.family, self.layout = architecture, family, FAMILIES[family]
        self.summary, self.checkpointing, self.class_id = summary, checkpointing, class_id
        self.network: Any
        if family == "timm":
            self.network = timm_network(variant, weights, dict(size or {}))
            self.hidden = int(self.network.embed_dim)
            if self.network.cls_token is None and self.network.attn_pool is None:
                raise ValueError(f"architecture={architecture}: has neither a class token nor an attention pooling")
        else:
            self.network = transformers_network(architecture, self.layout, weights, {**defaults, **(size or {})})
            self.hidden = int(self.network.config.hidden_size)
        self.pretrained = weights != "none"
        self.adapted: list[str] = []
        self.frozen = False
        self.width = vector_width or self.hidden
        self.proj = nn.Linear(self.hidden, self.width) if self.width != self.hidden else nn.Identity()
        self.gives_tokens = output == "tokens" and vector_width is None
        self.tokens = 1
        if self.gives_tokens:
            with torch.no_grad():
                self.tokens = self.embed(torch.zeros(1, *self.shape)).shape[1]
        if frozen:
            self.freeze()

    # ---- shapes ------------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input: (C, H, W), (frames, mel bins), or the greatest length (L,) of a text."""
        if self.family == "timm":
            return (self.network.patch_embed.proj.in_channels, *self.network.patch_embed.img_size)
        config = self.network.config
        if self.family == "bert":
            return (config.max_position_embeddings,)
        if self.family == "ast":
            return (config.max_length, config.num_mel_bins)
        return (config.num_channels, config.image_size, config.image_size)

    def check_shape(self, shape: tuple[int, ...], name: str = "the input") -> None:
        """
        Args:
            shape: of one input of the modality ``name``.

        Raises:
            UserError: the network is made for another one.
        """
        fits = len(shape) == 1 and shape[0] <= self.shape[0] if self.family == "bert" else shape[-3:] == self.shape
        if not fits or len(shape) > len(self.shape) + ("video" in self.layout.kinds):
            at_most = "at most " if self.family == "bert" else ""
            raise UserError(
                f"{name} has the shape {shape}, {self.architecture} takes {at_most}{self.shape}: change the data set's "
                "transform, or the encoder's size where it has no weights from elsewhere"
            )

    def check_modality(self, modality: Modality) -> None:
        """
        Raises:
            UserError: the network is for another kind, shape or vocabulary.
        """
        name = f"'{modality.name}'"
        if modality.kind not in self.layout.kinds:
            raise UserError(
                f"{name} is of kind {modality.kind}, {self.architecture} is for {' or '.join(self.layout.kinds)}: "
                "choose another architecture"
            )
        self.check_shape(modality.shape, name)
        known = int(self.network.config.vocab_size) if self.family == "bert" else 0
        if known and (modality.vocabulary or 0) > known:
            raise UserError(
                f"the tokens of {name} have ids up to {modality.vocabulary}, {self.architecture} knows {known}: set "
                "dataset.tokenizer to that of the encoder's weights"
            )

    # ---- forward -----------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (B, ...) -> (B, 1, ``width``), or (B, ``tokens``, ``width``) with ``output: tokens``."""
        if not self.gives_tokens:
            return self.proj(self.states(x).summary)[:, None]
        self.check_shape(tuple(x.shape[1:]))
        video = x.ndim == 5
        tokens = self._run(self.embed(x.flatten(0, 1) if video else x), None)
        return tokens.unflatten(0, x.shape[:2]).mean(1) if video else tokens

    def states(self, x: Tensor, proxies: Tensor | None = None, read_only: bool = False) -> States:
        """Run the network on ``[proxies, class token, content]``.

        Args:
            x: (B, ...).
            proxies: (K, D) tokens before all others, behind the position embeddings (which the others keep) and before
                the first norm of CLIP.
            read_only: no token attends to a proxy, apart from itself; all others then have the states that they have
                without proxies.
        """
        self.check_shape(tuple(x.shape[1:]))
        video = x.ndim == 5
        tokens = self.embed(x.flatten(0, 1) if video else x)
        k = 0 if proxies is None else len(proxies)
        if proxies is not None:
            tokens = torch.cat([proxies.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], dim=1)
        visible = self._visible(x, tokens.shape[1], k, read_only)
        tokens = self._run(tokens, visible)
        states = States(self._summarise(tokens[:, k:]), tokens[:, :k])
        if not video:
            return states
        return States(*(y.unflatten(0, x.shape[:2]).mean(1) for y in states))

    def embed(self, x: Tensor) -> Tensor:
        """Inputs (B, ...) -> tokens (B, N, D) with their positions, the class token first where there is one."""
        if self.family == "timm":
            return self.network._pos_embed(self.network.patch_embed(x))
        if self.family != "bert":
            return self.network.embeddings(x)
        # The ids of a missing text may be anything, and one outside the vocabulary would end the process on a GPU.
        return self.network.embeddings(x.long().clamp(0, int(self.network.config.vocab_size) - 1))

    def class_input(self) -> Tensor:
        """(D,) what the class token is at the place where proxies are put in.

        Raises:
            UserError: the architecture has none.
        """
        if self.family == "siglip" or (self.family == "timm" and self.network.cls_token is None):
            raise UserError(f"{self.architecture} has no class token: start the proxies as random numbers, init=normal")
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
        """Rows and columns of the patches; of a spectrogram mel bins and frames.

        Raises:
            UserError: a text has none.
        """
        if self.family == "bert":
            raise UserError(f"{self.architecture} has no patches, whose attention could be drawn: choose an image")
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
        """How the last block attends to the patches, for pictures.

        Computed from its queries and keys, for the fused attention of :meth:`states` keeps no weights.

        Args:
            x: (B, ...), of a video one frame. proxies, read_only: as for :meth:`states`.

        Returns:
            (B, K + 1, *:attr:`grid`): of each proxy and the class token (where there is one), mean over heads.
        """
        block, taken = self.network.get_submodule(self.layout.blocks)[-1], {}
        fused = self.family == "timm" and isinstance(block.attn.qkv, nn.Linear)
        paths = {"qkv": "attn.qkv"} if fused else {letter: self.layout.projections[letter] for letter in "qk"}
        hooks = [
            block.get_submodule(path).register_forward_hook(lambda _, __, out, key=key: taken.update({key: out}))
            for key, path in paths.items()
        ]
        try:
            self.states(x, proxies, read_only)
        finally:
            for hook in hooks:
                hook.remove()
        q, k = taken["qkv"].chunk(3, dim=-1)[:2] if fused else (taken["q"], taken["k"])
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
        """(B or 1, 1, Q or 1, n) bool, True = the query sees the key, as PyTorch's attention wants it; None = all."""
        visible = None
        if self.family == "bert":
            # The first token is seen even in a text that is nothing but padding: attention to nothing is NaN.
            there = x.long() != int(self.network.config.pad_token_id or 0)
            there = there | (torch.arange(x.shape[1], device=x.device) == 0)
            visible = torch.cat([there.new_ones(len(x), k), there], dim=1)[:, None, None]
        if read_only and k:
            place = torch.arange(n, device=x.device)
            hidden = (place[None, :] < k) & (place[:, None] != place[None, :])
            visible = ~hidden[None, None] if visible is None else visible & ~hidden
        return visible

    def _run(self, tokens: Tensor, visible: Tensor | None) -> Tensor:
        if self.layout.first_norm:
            tokens = self.network.get_submodule(self.layout.first_norm)(tokens)
        # As many rows and queries as there are: what the libraries pass on to the attention.
        mask = None if visible is None else visible.expand(len(tokens), 1, tokens.shape[1], tokens.shape[1])
        for block in self.network.get_submodule(self.layout.blocks):
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, mask, use_reentrant=False)
            else:
                tokens = block(tokens, mask)
        return self.network.get_submodule(self.layout.last_norm)(tokens) if self.layout.last_norm else tokens

    def _summarise(self, tokens: Tensor) -> Tensor:
        """Final states (B, N, D) without proxies -> (B, D)."""
        pooling = getattr(self.network, self.layout.pooling, None) if self.layout.pooling else None
        if pooling is not None:
            return pooling(tokens)
        if self.summary == "mean_class_distillation":
            return tokens[:, :2].mean(1)
        return tokens[:, 0]

    # ---- training of parts -------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """Train nothing of the network; it stays in eval mode from now on, so that its dropout is off."""
        self.network.requires_grad_(False)
        self.frozen = True
        self.train(self.training)

    def adapt(self, adapter: Adapter) -> list[str]:
        """Freeze the network and put adapters into the projections that ``adapter.targets`` names, of every block.

        Returns:
            Names of the adapted modules, also in :attr:`adapted`.

        Raises:
            UserError: a target is unknown or is not in every block.
        """
        self.freeze()
        if adapter.kind == "none":
            return self.adapted
        known = self.layout.projections
        if not adapter.targets or (unknown := sorted(set(adapter.targets) - set(known))):
            what = f"'{''.join(unknown)}' matches nothing in {self.architecture}" if adapter.targets else "is empty"
            letters = ", ".join(f"{letter} ({LETTERS[letter]})" for letter in known)
            raise UserError(f"adapter.targets={adapter.targets} {what}: letters out of {letters}")
        if self.family == "timm":
            for block in self.network.blocks:
                if isinstance(block.attn.qkv, nn.Linear):
                    block.attn.qkv = SplitProjection(block.attn.qkv)
        inside = "|".join(re.escape(known[letter]) for letter in adapter.targets)
        pattern = rf"{re.escape(self.layout.blocks)}\.\d+\.({inside})"
        expected = len(self.network.get_submodule(self.layout.blocks)) * len(set(adapter.targets))
        found = [name for name, _ in self.network.named_modules() if re.fullmatch(pattern, name)]
        if len(found) != expected:
            raise UserError(
                f"adapter.targets={adapter.targets}: found {len(found)} modules in {self.architecture} instead of "
                f"{expected}, for its library names them otherwise: install the versions in constraints.txt"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks for what transformers will rename
            get_peft_model(self.network, adapter.config(pattern))
        self.adapted = [name for name, part in self.network.named_modules() if isinstance(part, BaseTunerLayer)]
        assert sorted(self.adapted) == sorted(found)
        self.train(self.training)
        return self.adapted

    def train(self, mode: bool = True) -> PretrainedEncoder:
        """A frozen network stays in eval mode, apart from its adapters."""
        super().train(mode)
        if self.frozen:
            self.network.eval()
            for part in self.network.modules():
                if isinstance(part, BaseTunerLayer) and isinstance(part, nn.Module):
                    part.train(mode)
        return self

    def merge(self) -> None:
        """Add the adapters to the weights that they change: the same function at the cost of the bare network. Not for
        training or saving; :meth:`unmerge` takes them out again."""
        for name in self.adapted:
            self.network.get_submodule(name).merge()

    def unmerge(self) -> None:
        for name in self.adapted:
            self.network.get_submodule(name).unmerge()
