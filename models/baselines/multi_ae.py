"""MultiAE: the multimodal denoising autoencoder (after Ngiam et al., Multimodal deep learning, ICML 2011;
docs/reference/baselines.md §2.8).

The vectors of what is there, zeros for the rest, go through a joint perceptron into one code. First the code learns to
reconstruct all modalities, those that were hidden included (:class:`Autoencoder`, the last epoch counts); then a linear
classifier is trained on it, with the joint perceptron, while the encoders stay as they are (:class:`MultiAE`). Both
draw K subsets a step.

Images are reconstructed under the mean squared error, text and the categories of a table under the cross-entropy, its
numbers under the squared error; text and tables average over positions and cells. Content that the data do not have is
no target. The original has no decoder for tables; ours lets the method run on them.

Frozen encoders are kept in eval mode; the original leaves them in train mode, so that dropout and batch statistics go
on. ``reference=true`` restores that, and masks of whole batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.base import IncompleteClassifier, Prediction
from models.baselines.base import VectorBaseline
from models.imputers.mopoe_networks import ImageDecoder
from utils.errors import UserError


class _JointCode(VectorBaseline):
    """Encoders and the perceptron on top of them."""

    def __init__(
        self, modalities: Sequence[Modality], num_classes: int, encoders: Mapping[str, nn.Module], **others: Any
    ) -> None:
        super().__init__(modalities, num_classes, **others)
        if self.reference:
            self.masks = replace(self.masks, per="batch")
        self.add_encoders(encoders)
        width = self.vector_width
        self.joint = nn.Sequential(nn.Linear(len(modalities) * width, width), nn.ReLU(), nn.Linear(width, width))

    def code(self, encoded: Tensor, batch: Batch) -> Tensor:
        """(B, M, D) -> (B, D)."""
        return self.joint(self.replace_missing(encoded, batch).flatten(1))


class Autoencoder(_JointCode):
    """
    Args:
        encoders: see :meth:`models.baselines.base.VectorBaseline.add_encoders`.
        decoders: modality name -> module from a code (B, D) to content, text as log-probabilities; see :func:`decoder`
            for what those get that are not named.
        others: see :class:`models.baselines.base.Baseline`.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        num_classes: int,
        encoders: Mapping[str, nn.Module],
        *,
        decoders: Mapping[str, nn.Module] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(modalities, num_classes, encoders, **others)
        named = decoders or {}
        if unknown := set(named) - set(self.modality_names):
            raise ValueError(f"a decoder of '{min(unknown)}', the modalities are {', '.join(self.modality_names)}")
        self.decoders = nn.ModuleDict(
            {m.name: named[m.name] if m.name in named else decoder(m, self.vector_width) for m in modalities}
        )

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        """The code as features; an autoencoder has no classes, so that logits are (B, 0)."""
        code = self.code(encoded, batch)
        return Prediction(code[:, :0], code)

    def reconstruction(self, code: Tensor, batch: Batch) -> Tensor:
        """Sum over the modalities of the mean error of what the data have.

        Args:
            batch: as the data have it, whatever was hidden from the code.
        """
        content, cells = batch.observed(), self.cells(batch.missing, batch.feature_missing)
        total = code.new_zeros(())
        for i, m in enumerate(self.modalities):
            error = reconstruction_error(m, self.decoders[m.name](code), content[m.name])
            there = ~cells[m.name] if m.name in cells else ~batch.missing[:, i, None].expand_as(error)
            total = total + torch.where(there, error, 0).sum() / there.sum().clamp(min=1)
        return total

    def losses(self, batch: Batch, masks: Tensor) -> dict[str, Tensor]:
        """Mean over the masks (K, B, M)."""
        encoded = self.encode_batch(batch)
        each = [self.reconstruction(self.code(encoded, self.hide_more(batch, mask)), batch) for mask in masks]
        return {"loss": torch.stack(each).mean()}

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        losses = self.losses(batch, self.masks.draw(self.absent(batch), self.mask_generator(batch_index)))
        self.log_losses("train", losses, len(batch))
        return losses["loss"]

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Reconstruction from everything that is there; there is nothing to classify."""
        self.log_losses("val", self.losses(batch, self.absent(batch)[None]), len(batch))

    def on_validation_epoch_end(self) -> None:
        pass


class MultiAE(_JointCode):
    """
    Args:
        encoders: see :meth:`models.baselines.base.VectorBaseline.add_encoders`.
        prerequisites: ``autoencoder``, a trained :class:`Autoencoder`; None = as initialised.
        others: see :class:`models.baselines.base.Baseline`.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        num_classes: int,
        encoders: Mapping[str, nn.Module],
        *,
        prerequisites: Mapping[str, IncompleteClassifier] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(modalities, num_classes, encoders, **others)
        self.classifier = nn.Linear(self.vector_width, num_classes)
        if prerequisites:
            autoencoder: Any = prerequisites["autoencoder"]
            self.encoders.load_state_dict(autoencoder.encoders.state_dict())
            self.joint.load_state_dict(autoencoder.joint.state_dict())
        self.encoders.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> MultiAE:
        super().train(mode)
        if not self.reference:
            self.encoders.eval()
        return self

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        code = self.code(encoded, batch)
        return Prediction(self.classifier(code), code)


def reconstruction_error(modality: Modality, output: Tensor, x: Tensor) -> Tensor:
    """Error of each row, (B, 1), or of each cell of a table, (B, F).

    Args:
        output: of the decoder: content (B, ...) of an image; log-probabilities (B, L, symbols) of a text; scores of all
            levels, then the numbers, of a table.
        x: the content.
    """
    if modality.kind == "text":
        return -(x * output).sum(-1).mean(-1, keepdim=True)
    if modality.kind != "table":
        return (output - x).square().flatten(1).mean(1, keepdim=True)
    levels = list(modality.cardinalities)
    *scores, numbers = output.split([*levels, x.shape[1] - len(levels)], dim=1)
    columns = [F.cross_entropy(s, x[:, i].long(), reduction="none") for i, s in enumerate(scores)]
    return torch.cat([*(c[:, None] for c in columns), (numbers - x[:, len(levels) :]).square()], 1)


class Reshape(nn.Module):
    """(B, D) -> (B, *shape), through a linear map; with ``symbols``, log-probabilities over the last axis."""

    def __init__(self, width: int, shape: Sequence[int], symbols: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(width, int(torch.tensor(shape).prod()))
        self.shape, self.symbols = tuple(shape), symbols

    def forward(self, code: Tensor) -> Tensor:
        x = self.linear(code).unflatten(1, self.shape)
        return x.log_softmax(-1) if self.symbols else x


class Resized(nn.Module):
    """Images (B, C, h, w) -> (B, C, *sides)."""

    def __init__(self, sides: Sequence[int]) -> None:
        super().__init__()
        self.sides = tuple(sides)

    def forward(self, x: Tensor) -> Tensor:
        return x if tuple(x.shape[2:]) == self.sides else F.interpolate(x, self.sides, mode="bilinear")


def decoder(modality: Modality, width: int) -> nn.Module:
    """Images of 28 x 28: as published. Others are ours: doublings from 4 x 4 for images, a linear map after a hidden
    layer for the rest.

    Raises:
        UserError: a text of token numbers, whose vocabulary a decoder would have to know.
    """
    shape = modality.shape
    if modality.kind == "text" and len(shape) == 1:
        raise UserError(
            f"modality {modality.name} is a text of token numbers, which autoencoders (MultiAE, OnlineMAE) do not "
            "rebuild: choose another model, or a data set whose texts are symbols (MST)"
        )
    if modality.kind == "image" and tuple(shape[1:]) == (28, 28):
        return nn.Sequential(ImageDecoder(shape[0], width), nn.Sigmoid())
    if modality.kind == "image":
        doublings = max(1, (max(shape[1:]) - 1).bit_length() - 2)
        channels = [max(16, 128 >> i) for i in range(doublings)]
        layers: list[nn.Module] = [Reshape(width, (channels[0], 4, 4)), nn.ReLU()]
        for inner, outer in pairwise(channels):
            layers += [nn.ConvTranspose2d(inner, outer, 4, 2, 1), nn.ReLU()]
        return nn.Sequential(
            *layers, nn.ConvTranspose2d(channels[-1], shape[0], 4, 2, 1), nn.Sigmoid(), Resized(shape[1:])
        )
    hidden = [nn.Linear(width, width), nn.ReLU()]
    if modality.kind == "table":
        outputs = sum(modality.cardinalities) + shape[0] - len(modality.cardinalities)
        return nn.Sequential(*hidden, nn.Linear(width, outputs))
    return nn.Sequential(*hidden, Reshape(width, shape, symbols=modality.kind == "text"))
