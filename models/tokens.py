"""Token pipeline of DynamicTransformer and the transformers among the baselines."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from models.base import IncompleteClassifier
from models.layers.batch_norm import apply_to_observed, apply_with_cells
from models.layers.transformer import Block, normal_initialisation, visible_tokens


class TokenPipeline(IncompleteClassifier):
    """Encoder, optional projection to D and LayerNorm per modality; embeddings of modality and position; CLS token;
    transformer blocks. The constructor of a subclass calls :meth:`add_tokens`; the subclass implements the fusion."""

    reference_modality_index = False

    def add_tokens(self, encoders: Mapping[str, nn.Module], width: int, heads: int, layers: int) -> None:
        """Add encoders, embeddings and transformer.

        Args:
            encoders: modality name -> module with ``tokens`` (N) and output (B, N, W), which is mapped to D if its
                ``width`` (W) differs. Encoders of tables with missing cells take ``missing`` (B, N) as a second
                argument.
            width: D.
            heads, layers: of the transformer.
        """
        names = self.modality_names
        self.encoders = nn.ModuleDict({name: encoders[name] for name in names})
        self.tokens_per_modality = [int(encoders[name].tokens) for name in names]  # type: ignore[arg-type]
        n_tokens = sum(self.tokens_per_modality)
        widths = {name: int(getattr(encoders[name], "width", width)) for name in names}
        self.m_projection = nn.ModuleDict({n: nn.Linear(w, width) for n, w in widths.items() if w != width})
        self.m_norms = nn.ModuleList(nn.LayerNorm(width) for _ in names)
        self.modality_embeddings = nn.Embedding(len(names), width)
        self.pos_embeddings = nn.Parameter(torch.zeros(1, 1 + n_tokens, width))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.transformer = nn.ModuleList(Block(width, heads) for _ in range(layers))
        starts = [0, *accumulate(self.tokens_per_modality)]
        self._token_spans = [range(1 + a, 1 + b) for a, b in pairwise(starts)]

    def initialise_normal(self) -> None:
        """Initialise positions and CLS token truncated normal, and all other parts by
        :func:`models.layers.transformer.normal_initialisation`. Call at the end of the constructor."""
        nn.init.trunc_normal_(self.pos_embeddings, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        normal_initialisation(self)

    def encode(self, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor] | None = None) -> Tensor:
        """Inputs (B, ...) per modality -> normalised tokens (B, P, D) with modality and position embeddings.

        Args:
            cells: table name -> hidden cells, see :meth:`cells`; they do not influence other tokens.
        """
        parts = [
            self._place(i, apply_to_observed(self.encoders[name], inputs, name, cells))
            for i, name in enumerate(self.modality_names)
        ]
        return torch.cat(parts, dim=1)

    def encode_one(self, i: int, x: Tensor, cells: Tensor | None = None) -> Tensor:
        """Modality ``i`` (R, ...), with hidden ``cells`` (R, N) -> its tokens (R, N, D) in :meth:`encode`."""
        name = self.modality_names[i]
        return self._place(i, apply_with_cells(self.encoders[name], x, cells))

    def encode_modality(self, name: str, x: Tensor, cells: Tensor | None = None) -> Tensor:
        return self.encode_one(self.modality_names.index(name), x, cells)

    def _place(self, i: int, tokens: Tensor) -> Tensor:
        """Output (R, N, W) of encoder ``i`` -> tokens (R, N, D) in :meth:`encode`."""
        name = self.modality_names[i]
        if name in self.m_projection:
            tokens = self.m_projection[name](tokens)
        modality, position = self.embeddings(i)
        return self.m_norms[i](tokens) + modality + position

    def embeddings(self, i: int) -> tuple[Tensor, Tensor]:
        """Embeddings of modality (D,) and position (1, N, D) that :meth:`encode_one` adds to the tokens of ``i``."""
        row = min(i, 1) if self.reference_modality_index else i
        span = self._token_spans[i]
        return self.modality_embeddings.weight[row], self.pos_embeddings[:, span.start : span.stop]

    def replace_missing(self, tokens: Tensor, visible: Tensor, value: float | Tensor = 0.0) -> Tensor:
        """Overwrite the content of invisible tokens (B, P, D) with ``value``; embeddings are unchanged.

        Args:
            tokens: output of :meth:`encode`.
            visible: (B, 1 + P) bool with the CLS token first, or (K * B, 1 + P) for K masks of the same rows, one after
                the other; the result then is (K * B, P, D).
        """
        empty = value + torch.cat([torch.add(*self.embeddings(i)) for i in range(len(self.modalities))], dim=1)
        return torch.where(visible[:, 1:].unflatten(0, (-1, len(tokens)))[..., None], tokens, empty).flatten(0, 1)

    def with_class_token(self, tokens: Tensor) -> Tensor:
        """Prepend the CLS token with its position: (B, P, D) -> (B, 1 + P, D)."""
        cls = (self.cls_token + self.pos_embeddings[:, :1]).expand(len(tokens), -1, -1)
        return torch.cat([cls, tokens], dim=1)

    def token_columns(self, i: int) -> slice:
        """Columns of the tokens of modality ``i`` in the output of :meth:`encode`."""
        return slice(self._token_spans[i].start - 1, self._token_spans[i].stop - 1)

    def visible(self, missing: Tensor, cells: Mapping[str, Tensor] | None = None) -> Tensor:
        """Missing modalities (B, M) bool and hidden ``cells`` of tables -> visible tokens (B, 1 + P) bool."""
        visible = visible_tokens(missing, self.tokens_per_modality)
        for i, name in enumerate(self.modality_names):
            if cells and name in cells:
                span = self._token_spans[i]
                visible[:, span.start : span.stop] = self.shown(i, cells[name])
        return visible

    def shown(self, i: int, cells: Tensor) -> Tensor:
        """Hidden cells (B, F) of table ``i`` -> visible tokens (B, N): those of observed cells, or a single token if
        any cell is observed. Of other modalities, all tokens if any cell is observed."""
        observed = ~cells
        if observed.ndim > 2:  # encoders of other kinds mix cells
            return observed.flatten(1).any(1, keepdim=True).expand(-1, self.tokens_per_modality[i])
        return observed if self.tokens_per_modality[i] == observed.shape[1] else observed.any(1, keepdim=True)
