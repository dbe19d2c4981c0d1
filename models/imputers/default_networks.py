"""Posterior and decoder networks for every kind of modality, built for its shape; ours.

A posterior maps a modality, and of tables and series the missing cells, to mean and log-variance (B, latent). A decoder
takes (B, latent) and returns locations of Laplaces; of a table, the logits of all levels of its categorical columns and
then locations; of text, log-probabilities (B, L, symbols).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.batch import Modality
from models.layers.decoders import Reshape, upsampling

HIDDEN = 256
TOKEN_WIDTH = 64


class Posterior(nn.Module):
    """Content (B, ...) of one modality, and its missing cells -> mean and log-variance (B, latent)."""

    takes_cells = True

    def __init__(self, modality: Modality, latent: int) -> None:
        super().__init__()
        self.trunk = _TRUNKS[_form(modality)](modality)
        self.mu, self.logvar = nn.Linear(HIDDEN, latent), nn.Linear(HIDDEN, latent)

    def forward(self, x: Tensor, missing: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """
        Args:
            missing: cells of a table (B, F) or series (B, T, channels), or a part of another content that broadcasts
                against it, True = missing; None = all are observed.
        """
        h = self.trunk(x, missing)
        return self.mu(h), self.logvar(h)


class SharedPrivatePosterior(nn.Module):
    """Content (B, ...) of one modality, and its missing cells -> mean and raw scale of a shared latent u (B, shared),
    then of a private one w (B, private), from two networks side by side."""

    takes_cells = True

    def __init__(self, modality: Modality, shared: int, private: int) -> None:
        super().__init__()
        self.u, self.w = Posterior(modality, shared), Posterior(modality, private)

    def branch(self, x: Tensor, name: str, missing: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and raw scale of the shared (``u``) or the private (``w``) latent alone."""
        return self.get_submodule(name)(x, missing)

    def forward(self, x: Tensor, missing: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return *self.u(x, missing), *self.w(x, missing)


class Decoder(nn.Module):
    """(B, latent) -> parameters of the likelihood, see the module."""

    def __init__(self, modality: Modality, latent: int) -> None:
        super().__init__()
        shape, form = modality.shape, _form(modality)
        hidden = [nn.Linear(latent, HIDDEN), nn.ReLU()]
        self.shape = shape
        if form == "image":
            self.network = nn.Sequential(*hidden, upsampling(HIDDEN, _as_image(shape)))
        elif form == "tokens":
            positions = Reshape(HIDDEN, (shape[0], TOKEN_WIDTH))
            symbols = nn.Linear(TOKEN_WIDTH, modality.vocabulary or 0)
            self.network = nn.Sequential(*hidden, positions, nn.ReLU(), symbols, nn.LogSoftmax(-1))
        elif form == "table":
            outputs = sum(modality.cardinalities) + shape[0] - len(modality.cardinalities)
            self.network = nn.Sequential(*hidden, nn.Linear(HIDDEN, outputs))
        else:
            self.network = nn.Sequential(*hidden, Reshape(HIDDEN, shape, is_text=modality.kind == "text"))
        self.is_image = form == "image"

    def forward(self, z: Tensor) -> Tensor:
        x = self.network(z)
        return x.reshape(len(x), *self.shape) if self.is_image else x


def _form(modality: Modality) -> str:
    """The form of the networks: image, table, tokens or sequence."""
    if modality.kind in ("image", "video", "audio"):
        return "image"
    if modality.kind == "text" and modality.vocabulary:
        return "tokens"
    return "table" if modality.kind == "table" else "sequence"


def _as_image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, height and width: the frames of a clip are channels, a spectrogram has one."""
    return math.prod(shape[:-2]), shape[-2], shape[-1]


class _ImageTrunk(nn.Module):
    """Stride-2 convolutions until a side is at most 4; missing parts are 0."""

    def __init__(self, modality: Modality) -> None:
        super().__init__()
        self.shape = _as_image(modality.shape)
        channels, height, width = self.shape
        layers: list[nn.Module] = []
        outer = 32
        while max(height, width) > 4:
            layers += [nn.Conv2d(channels, outer, 3, 2, 1), nn.ReLU()]
            channels, outer = outer, min(2 * outer, 128)
            height, width = -(-height // 2), -(-width // 2)
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, HIDDEN), nn.ReLU())

    def forward(self, x: Tensor, missing: Tensor | None = None) -> Tensor:
        x = x if missing is None else x.masked_fill(missing, 0)
        return self.layers(x.reshape(len(x), *self.shape))


class _TableTrunk(nn.Module):
    """Perceptron on levels (one-hot), numbers and the mask of the cells."""

    def __init__(self, modality: Modality) -> None:
        super().__init__()
        self.cardinalities = modality.cardinalities
        features = sum(self.cardinalities) + modality.shape[0] - len(self.cardinalities) + modality.shape[0]
        self.layers = nn.Sequential(nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU())

    def forward(self, x: Tensor, missing: Tensor | None = None) -> Tensor:
        missing = torch.zeros_like(x, dtype=torch.bool) if missing is None else missing
        x, n = torch.where(missing, 0, x), len(self.cardinalities)
        levels = [
            torch.where(missing[:, i, None], 0, F.one_hot(x[:, i].long(), size)).to(x.dtype)
            for i, size in enumerate(self.cardinalities)
        ]
        return self.layers(torch.cat([*levels, x[:, n:], missing.to(x.dtype)], dim=1))


class _TokenTrunk(nn.Module):
    """Perceptron on the mean embedding of the tokens without padding."""

    def __init__(self, modality: Modality) -> None:
        super().__init__()
        assert modality.vocabulary is not None
        self.embedding = nn.EmbeddingBag(modality.vocabulary, HIDDEN, mode="mean", padding_idx=0)
        self.layers = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.ReLU())

    def forward(self, x: Tensor, missing: Tensor | None = None) -> Tensor:
        return self.layers(self.embedding(x.long().clamp(0, self.embedding.num_embeddings - 1)))


class _SequenceTrunk(nn.Module):
    """Stride-2 convolutions over time until 4 steps are left; a series comes with the mask of its cells."""

    def __init__(self, modality: Modality) -> None:
        super().__init__()
        self.has_mask = modality.kind == "series"
        length, channels = modality.shape
        channels *= 2 if self.has_mask else 1
        layers: list[nn.Module] = []
        outer = 32
        while length > 4:
            layers += [nn.Conv1d(channels, outer, 5, 2, 2), nn.ReLU()]
            channels, outer, length = outer, min(2 * outer, 128), -(-length // 2)
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * length, HIDDEN), nn.ReLU())

    def forward(self, x: Tensor, missing: Tensor | None = None) -> Tensor:
        if self.has_mask:
            missing = torch.zeros_like(x, dtype=torch.bool) if missing is None else missing
            x = torch.cat([torch.where(missing, 0, x), missing.to(x.dtype)], dim=2)
        return self.layers(x.transpose(1, 2))


_TRUNKS: dict[str, type[nn.Module]] = {
    "image": _ImageTrunk,
    "table": _TableTrunk,
    "tokens": _TokenTrunk,
    "sequence": _SequenceTrunk,
}
