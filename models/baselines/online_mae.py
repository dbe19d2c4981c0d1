"""OnlineMAE: the ActionMAE of "Towards good practices for missing modality robust action recognition" (Woo et al., AAAI
2023, arXiv 2211.13916; docs/reference/baselines.md §2.9).

Each modality is one token. Training drops random modalities; a small masked autoencoder with learned memory tokens
reconstructs their tokens from the others, and a transformer classifies all M tokens. With t a dropped token after its
LayerNorm and t' its standardisation over the width (unbiased variance + 1e-6),

    L = CE + mean over dropped tokens of |output - t'|^2 / D.

The encoder attends to the memory and the observed tokens. Dropped tokens are masked, which equals removing them, so
that rows of a batch may lack different numbers of modalities. The encoders are initialised from a trained MultiAE.

``reference=true`` reproduces the comparison of DyMo, unlike our default:

- 1 to M - 1 modalities are kept, the same number in the complete batch; ours keeps 1 to M per row, in addition to the
  missing ones of the data, so that training includes complete rows;
- the classifier takes the output of the autoencoder also for observed modalities; ours takes their tokens, as in the
  figure of the paper;
- the reconstruction loss also has a gradient for its target;
- the initialisation overwrites the linear layers of the loaded encoders;
- a table with a missing cell is missing (the original does not accept such tables).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.base import IncompleteClassifier, Prediction
from models.baselines.base import VectorBaseline
from models.layers.transformer import Block, normal_initialisation


class OnlineMAE(VectorBaseline):
    """Masked autoencoder over modality tokens, and a transformer classifier.

    Args:
        encoders: see :meth:`models.baselines.base.VectorBaseline.add_encoders`.
        width, heads: of the three transformers.
        layers: of the encoder, the decoder and the fusion.
        memory: number of learned memory tokens.
        prerequisites: ``multiae``, whose encoders are copied; None = as initialised.
        others: see :class:`models.baselines.base.Baseline`.
    """

    reference_hides_partial_tables = True

    def __init__(
        self,
        modalities: Sequence[Modality],
        num_classes: int,
        encoders: Mapping[str, nn.Module],
        *,
        width: int = 128,
        heads: int = 4,
        layers: Sequence[int] = (2, 2, 2),
        memory: int = 6,
        prerequisites: Mapping[str, IncompleteClassifier] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(modalities, num_classes, **others)
        self.add_encoders(encoders)
        m = len(modalities)
        needs_projection = self.vector_width != width
        self.m_projection = nn.ModuleList(
            nn.Linear(self.vector_width, width) if needs_projection else nn.Identity() for _ in range(m)
        )
        self.m_norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(m))
        self.memory_tokens = nn.Parameter(torch.zeros(1, memory, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mae_positions = nn.Parameter(torch.zeros(1, memory + m, width))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embeddings = nn.Parameter(torch.zeros(1, 1 + m, width))
        self.mae_encoder, self.mae_decoder, self.fusion = (
            nn.ModuleList(Block(width, heads) for _ in range(depth)) for depth in layers
        )
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.rebuild = nn.Linear(width, width)
        self.classifier = nn.Linear(width, num_classes)
        if self.reference:
            self.start_from(prerequisites)
        for tokens in (
            self.memory_tokens,
            self.mask_token,
            self.mae_positions,
            self.cls_token,
            self.pos_embeddings,
        ):
            nn.init.trunc_normal_(tokens, std=0.02)
        normal_initialisation(self)
        if not self.reference:
            self.start_from(prerequisites)

    def start_from(self, prerequisites: Mapping[str, IncompleteClassifier] | None) -> None:
        """Copy the encoders of a MultiAE."""
        if prerequisites:
            self.encoders.load_state_dict(prerequisites["multiae"].encoders.state_dict())  # type: ignore[union-attr]

    def encode(self, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor] | None = None) -> Tensor:
        """Inputs -> tokens (B, M, ``width``)."""
        vectors = super().encode(inputs, cells)
        parts = zip(self.m_projection, self.m_norms)
        return torch.stack([norm(projection(vectors[:, i])) for i, (projection, norm) in enumerate(parts)], 1)

    def rebuilt(self, tokens: Tensor, dropped: Tensor) -> Tensor:
        """Output (B, M, D) of the autoencoder for all modalities.

        Args:
            tokens: (B, M, D), without content where ``dropped`` (B, M) bool.
        """
        b, memory = len(tokens), self.memory_tokens.shape[1]
        visible = torch.cat([dropped.new_ones(b, memory), ~dropped], 1)
        x = torch.cat([self.memory_tokens.expand(b, -1, -1), tokens], 1) + self.mae_positions
        for block in self.mae_encoder:
            x = block(x, visible)
        x = torch.where(visible[..., None], self.encoder_norm(x), self.mask_token) + self.mae_positions
        for block in self.mae_decoder:
            x = block(x)
        return self.rebuild(self.decoder_norm(x[:, memory:]))

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        dropped = self.absent(batch)
        tokens = self.replace_missing(encoded, batch)
        rebuilt = self.rebuilt(tokens, dropped)
        x = rebuilt if self.reference else torch.where(dropped[..., None], rebuilt, tokens)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embeddings
        for depth, block in enumerate(self.fusion):
            x = block(x, first_only=depth == len(self.fusion) - 1)
        return Prediction(self.classifier(x[:, 0]), x[:, 0], {"rebuilt": rebuilt} if self.training else {})

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        encoded = self.encode_batch(batch)
        hidden = self.hide_more(batch, self.draw(self.absent(batch), self.mask_generator(batch_index)))
        prediction = self.fuse(encoded, hidden)
        losses = self.loss(prediction, hidden)
        losses["classification"] = losses["loss"]
        target = encoded if self.reference else encoded.detach()
        dropped = self.absent(hidden) & ~self.absent(batch)
        losses["reconstruction"] = reconstruction(prediction.extras["rebuilt"], target, dropped)
        losses["loss"] = losses["classification"] + losses["reconstruction"]
        self.log_losses("train", losses, batch.counted)
        return losses["loss"]

    def draw(self, missing: Tensor, generator: torch.Generator) -> Tensor:
        """Draw the mask (B, M) of a step."""
        m = missing.shape[1]
        if not self.reference or m == 1:
            return self.masks.draw_one(missing, generator)
        n = torch.randint(1, m, (), generator=generator)
        order = torch.where(missing.cpu(), 2.0, torch.rand(missing.shape, generator=generator))
        return missing | (order.argsort(1).argsort(1) >= n).to(missing.device)


def standardised(tokens: Tensor) -> Tensor:
    """Standardise tokens (..., D) over their width, with unbiased variance + 1e-6."""
    variance, mean = torch.var_mean(tokens, dim=-1, keepdim=True)
    return (tokens - mean) / (variance + 1e-6).sqrt()


def reconstruction(rebuilt: Tensor, target: Tensor, dropped: Tensor) -> Tensor:
    """Mean squared error from the standardised target (B, M, D) over ``dropped`` tokens (B, M); 0 without any."""
    error = (rebuilt - standardised(target)).square().mean(-1)
    return torch.where(dropped, error, 0).sum() / dropped.sum().clamp(min=1)
