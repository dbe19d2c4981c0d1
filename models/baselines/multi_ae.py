"""MultiAE: the multimodal denoising autoencoder (after Ngiam et al., Multimodal deep learning, ICML 2011;
docs/reference/baselines.md §2.8).

A joint perceptron maps the vectors of all modalities, zeros for missing ones, to one code. First, :class:`Autoencoder`
is trained to reconstruct all modalities, including the hidden ones, from the code (its last epoch is used). Then,
:class:`MultiAE` trains a linear classifier on the code and the joint perceptron, with frozen encoders. Both draw K
subsets per step.

The reconstruction loss is the mean squared error for images, the cross-entropy for text and categorical columns, and
the squared error for continuous columns, averaged over positions of text and cells of tables. Missing content of the
data is not a target. The original has no decoder for tables, and none for texts of tokens, of which ours reconstructs
the frequencies.

Frozen encoders stay in eval mode; the original leaves them in training mode, where dropout and batch statistics are
active. ``reference=true`` restores this, and masks drawn per batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.batch import Batch, Modality, rows_like
from models.base import IncompleteClassifier, Prediction
from models.baselines.base import VectorBaseline
from models.imputers.mopoe_networks import ImageDecoder
from models.layers.decoders import Reshape, upsampling


class _JointCode(VectorBaseline):
    """Encoders and the joint perceptron."""

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
        """Vectors (B, M, D) -> code (B, D)."""
        return self.joint(self.replace_missing(encoded, batch).flatten(1))


class Autoencoder(_JointCode):
    """Multimodal denoising autoencoder.

    Args:
        encoders: see :meth:`models.baselines.base.VectorBaseline.add_encoders`.
        decoders: modality name -> module from a code (B, D) to content, text as log-probabilities; default:
            :func:`decoder`.
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
        custom = decoders or {}
        if unknown := set(custom) - set(self.modality_names):
            raise ValueError(f"decoders names '{min(unknown)}', the modalities are {', '.join(self.modality_names)}")
        self.decoders = nn.ModuleDict(
            {m.name: custom[m.name] if m.name in custom else decoder(m, self.vector_width) for m in modalities}
        )

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        """Return the code as features; the logits of an autoencoder are (B, 0)."""
        code = self.code(encoded, batch)
        return Prediction(code[:, :0], code)

    def reconstruction(self, code: Tensor, batch: Batch) -> Tensor:
        """Sum over the modalities of the mean reconstruction error of observed content.

        Args:
            batch: without the masks under which the code was computed.
        """
        content, cells = batch.observed(), self.cells(batch.missing, batch.feature_missing)
        total = code.new_zeros(())
        for i, m in enumerate(self.modalities):
            hidden = cells.get(m.name)
            error = reconstruction_error(m, self.decoders[m.name](code), content[m.name], hidden)
            if hidden is None:
                hidden = rows_like(batch.missing[:, i], error)
            elif hidden.shape != error.shape:  # the error is that of a row
                hidden = hidden.flatten(1).all(1, keepdim=True)
            observed = ~hidden.expand_as(error)
            total = total + torch.where(observed, error, 0).sum() / observed.sum().clamp(min=1)
        return total

    def losses(self, batch: Batch, masks: Tensor) -> dict[str, Tensor]:
        """Mean reconstruction loss under masks (K, B, M)."""
        encoded = self.encode_batch(batch)
        errors = [self.reconstruction(self.code(encoded, self.hide_more(batch, mask)), batch) for mask in masks]
        return {"loss": torch.stack(errors).mean()}

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        losses = self.losses(batch, self.masks.draw(self.absent(batch), self.mask_generator(batch_index)))
        self.log_losses("train", losses, batch.counted)
        return losses["loss"]

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Log the reconstruction loss without additional masks, in place of classification metrics."""
        self.log_losses("val", self.losses(batch, self.absent(batch)[None]), len(batch))

    def on_validation_epoch_end(self) -> None:
        pass


class MultiAE(_JointCode):
    """Linear classifier on the code of an autoencoder.

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


def reconstruction_error(modality: Modality, output: Tensor, x: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Error per row (B, 1), or per cell of a table (B, F) or series (B, T, channels).

    Args:
        output: of the decoder: images (B, ...); log-probabilities (B, L, symbols) of text, (B, vocabulary) of tokens;
            for tables, logits of all levels of the categorical columns, then continuous values.
        x: content.
        hidden: (B, ...) bool, cells of an image, sound or video that are no target; broadcastable to ``x``.
    """
    if modality.kind == "text" and len(modality.shape) == 1:
        is_token = x > 0
        log_likelihood = torch.where(is_token, output.gather(1, x), 0).sum(1, keepdim=True)
        return -log_likelihood / is_token.sum(1, keepdim=True).clamp(min=1)
    if modality.kind == "text":
        return -(x * output).sum(-1).mean(-1, keepdim=True)
    if modality.kind == "series":
        return (output - x).square()
    if modality.kind != "table":
        error = (output - x).square().flatten(1)
        if hidden is None:
            return error.mean(1, keepdim=True)
        observed = ~hidden.expand_as(x).flatten(1)
        return torch.where(observed, error, 0).sum(1, keepdim=True) / observed.sum(1, keepdim=True).clamp(min=1)
    levels = list(modality.cardinalities)
    *scores, numbers = output.split([*levels, x.shape[1] - len(levels)], dim=1)
    columns = [F.cross_entropy(s, x[:, i].long(), reduction="none") for i, s in enumerate(scores)]
    return torch.cat([*(c[:, None] for c in columns), (numbers - x[:, len(levels) :]).square()], 1)


def decoder(modality: Modality, width: int) -> nn.Module:
    """Default decoder of a modality: as published for 28 x 28 images; otherwise ours, transposed convolutions from
    4 x 4 for images, and a perceptron with one hidden layer for other kinds. Of a text of tokens, it gives the
    frequencies of the tokens, whatever their order.
    """
    shape = modality.shape
    if modality.kind == "image" and tuple(shape[1:]) == (28, 28):
        return nn.Sequential(ImageDecoder(shape[0], width), nn.Sigmoid())
    if modality.kind == "image":
        return upsampling(width, shape, nn.Sigmoid())
    hidden = [nn.Linear(width, width), nn.ReLU()]
    if modality.kind == "table":
        outputs = sum(modality.cardinalities) + shape[0] - len(modality.cardinalities)
        return nn.Sequential(*hidden, nn.Linear(width, outputs))
    if modality.kind == "text" and len(shape) == 1:
        assert modality.vocabulary is not None
        shape = (modality.vocabulary,)
    return nn.Sequential(*hidden, Reshape(width, shape, is_text=modality.kind == "text"))
