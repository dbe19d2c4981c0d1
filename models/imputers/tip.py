"""TIP, tabular-image pre-training (ECCV 2024, arXiv 2407.07582), as a recovery method for tables
(docs/reference/dymo.md §5.3).

A table encoder sees the observed cells, a multimodal encoder lets its tokens attend to those of the image, and linear
heads read every cell off its token. Pre-trained on complete pairs with three losses of equal weight: image and table of
a sample find each other in a batch (contrastive), pairs are told from hard negatives (matching), and hidden cells are
reconstructed. Names of the weights are those of the published Lightning checkpoints.

What we do differently: a categorical cell becomes the best level of its own column (the original takes the best of all
columns' levels and clamps what is left after subtracting the offset; ``reference=true`` restores that). In
pre-training, the corrupted view draws its cells from the batch, the original from the whole training split, and the
learning rate warms up from above zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.batch import Batch, Modality, missing_content
from datasets.rows import take_rows
from models.encoders.table import TableEncoder
from models.imputers.base import TrainedImputer
from models.layers.batch_norm import BatchNorm1d
from models.layers.transformer import Attention, Mlp, attention, normal_initialisation
from utils.errors import UserError

NEGATIVE_FLOOR = 1e-4


class CrossAttention(nn.Module):
    """Queries of one sequence, keys and values of another; q with bias, k and v in one projection without."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.kv_proj = nn.Linear(width, 2 * width, bias=False)
        self.q_proj = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, N, D), context (B, K, D) -> (B, N, D)."""
        k, v = self.kv_proj(context).chunk(2, dim=-1)
        return self.proj(attention(self.q_proj(x), k, v, self.heads))


class CrossBlock(nn.Module):
    """x += SelfAttn(LN(x)); x += CrossAttn(LN(x), context); x += MLP(LN(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.cross_attn = CrossAttention(width, heads)
        self.cross_norm = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn.attend(*self.attn.qkv(self.norm1(x)).chunk(3, dim=-1))
        x = x + self.cross_attn(self.cross_norm(x), context)
        return x + self.mlp(self.norm2(x))


class MultimodalEncoder(nn.Module):
    """Table tokens (B, 1 + n, D), all of them visible, that look at image tokens (B, K, ``image_width``)."""

    def __init__(self, image_width: int, width: int, blocks: int, heads: int) -> None:
        super().__init__()
        self.image_proj = nn.Linear(image_width, width)
        self.image_norm = nn.LayerNorm(width)
        self.transformer_blocks = nn.ModuleList(CrossBlock(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)

    def forward(self, table: Tensor, image: Tensor) -> Tensor:
        context = self.image_norm(self.image_proj(image))
        for block in self.transformer_blocks:
            table = block(table, context)
        return self.norm(table)


class TablePredictor(nn.Module):
    """Tokens of the cells (B, n, D) -> logits (B, n_cat, U) over the levels of all columns, values (B, n_con)."""

    def __init__(self, cardinalities: Sequence[int], n_continuous: int, width: int) -> None:
        super().__init__()
        self.n_cat = len(cardinalities)
        self.cat_classifier = nn.Linear(width, sum(cardinalities)) if cardinalities else None
        self.con_regressor = nn.Linear(width, 1) if n_continuous else None

    def forward(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        levels, values = cells[:, : self.n_cat], cells[:, self.n_cat :]
        logits = levels if self.cat_classifier is None else self.cat_classifier(levels)
        return logits, (values if self.con_regressor is None else self.con_regressor(values)).flatten(1)


def projector(width: int, out: int) -> nn.Sequential:
    """Linear - batch norm - ReLU - linear, of the contrastive loss."""
    return nn.Sequential(nn.Linear(width, width, bias=False), BatchNorm1d(width), nn.ReLU(), nn.Linear(width, out))


class TIP(TrainedImputer):
    """
    Args:
        modalities: one image and one table.
        image_encoder: (B, 3, H, W) -> (B, K, ``image_encoder.width``).
        table_encoder: of the table; its width is that of the multimodal encoder.
        blocks, heads: of the multimodal encoder.
        reference: take a categorical cell's level as the original does.
        mask_rate: share of the cells of a row that are hidden to be reconstructed (Python's round).
        corruption: share of the columns of the contrastive view that are drawn anew (floor).
        projection, temperature: of the contrastive loss.
        optimizer, scheduler: partials.
    """

    recovers = ("table",)
    reads_others = True

    @classmethod
    def fits(cls, kinds: Sequence[str]) -> bool:
        return sorted(kinds) == ["image", "table"]

    def __init__(
        self,
        modalities: Sequence[Modality],
        image_encoder: nn.Module,
        table_encoder: TableEncoder,
        *,
        blocks: int = 4,
        heads: int = 8,
        reference: bool = False,
        mask_rate: float = 0.5,
        corruption: float = 0.3,
        projection: int = 128,
        temperature: float = 0.1,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(modalities, optimizer, scheduler)
        if sorted(m.kind for m in modalities) != ["image", "table"]:
            raise UserError(
                "TIP recovers a table from an image: the data set must have one of each and nothing else; "
                "choose one that fits, for example imputer=Mean or imputer=Zero"
            )
        self.image, self.table = (next(m for m in modalities if m.kind == kind) for kind in ("image", "table"))
        self.reference, self.mask_rate, self.corruption = reference, mask_rate, corruption
        self.temperature = temperature
        width, image_width = table_encoder.width, int(image_encoder.width)  # type: ignore[arg-type]
        self.encoder_imaging = image_encoder
        self.encoder_tabular = table_encoder
        self.encoder_multimodal = MultimodalEncoder(image_width, width, blocks, heads)
        self.predictor_tabular = TablePredictor(table_encoder.cardinalities, table_encoder.n_continuous, width)
        self.projector_imaging = projector(image_width, projection)
        self.projector_tabular = projector(width, projection)
        self.itm_head = nn.Linear(width, 2)
        normal_initialisation(self.encoder_multimodal)
        normal_initialisation(self.predictor_tabular)

    # ---- recovery ----------------------------------------------------------------------------------------------------

    def predict_cells(self, image: Tensor, table: Tensor, missing: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (B, n_cat, U) and values (B, n_con) of every cell.

        Args:
            image: tokens (B, K, image width).
            table: (B, n), read where it is not ``missing`` (B, n).
        """
        tokens = self.encoder_multimodal(self.encoder_tabular.encode(table, missing), image)
        return self.predictor_tabular(tokens[:, 1:])

    def decode(self, logits: Tensor, values: Tensor) -> Tensor:
        """What :meth:`predict_cells` gives -> table (B, n)."""
        levels, offsets = self.encoder_tabular.levels, self.encoder_tabular.cat_offsets
        if not len(levels):
            return values
        if self.reference:
            codes = torch.minimum((logits.argmax(-1) - offsets).clamp(min=0), levels - 1)
        else:
            level = torch.arange(logits.shape[-1], device=logits.device)
            is_of_column = (level >= offsets[:, None]) & (level < (offsets + levels)[:, None])
            codes = torch.where(is_of_column, logits, -torch.inf).argmax(-1) - offsets
        return torch.cat([codes.to(values.dtype), values], dim=1)

    @torch.no_grad()
    def impute(
        self,
        inputs: Mapping[str, Tensor],
        missing: Tensor,
        index: Tensor | None = None,
        feature_missing: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        names = list(inputs)
        column, image = names.index(self.table.name), names.index(self.image.name)
        if missing[:, image].any():
            raise UserError(
                f"TIP cannot recover '{self.image.name}', which is missing in {int(missing[:, image].sum())} rows: "
                f"name scenarios in missing.test that leave it there, for example whole_{column}, or choose an imputer "
                "that recovers every modality, for example imputer=Mean or imputer=Zero"
            )
        x = inputs[self.table.name]
        rows = missing[:, column].nonzero()[:, 0]
        if not len(rows):
            return dict(inputs)
        training = self.training
        self.eval()
        absent = missing_content(x, self.table.name, missing[:, column], feature_missing)[rows].expand(-1, x.shape[1])
        cells = self.predict_cells(self.encoder_imaging(inputs[self.image.name][rows]), x[rows], absent)
        filled = torch.where(absent, self.decode(*cells).to(x.dtype), x[rows])
        self.train(training)
        return {**inputs, self.table.name: x.index_put((rows,), filled)}

    def impute_fixed(
        self, inputs: Mapping[str, Tensor], missing: Tensor, feature_missing: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        x = inputs[self.table.name]
        column = list(inputs).index(self.table.name)
        absent = missing_content(x, self.table.name, missing[:, column], feature_missing).expand_as(x)
        cells = self.predict_cells(self.encoder_imaging(inputs[self.image.name]), x, absent)
        return {**inputs, self.table.name: torch.where(absent, self.decode(*cells).to(x.dtype), x)}

    # ---- pre-training ------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The three losses and their mean. Cells that the data lack stay hidden, and nothing is asked of them; nor of a
        row without an image."""
        batch = self._with_image(batch)
        original, absent = batch.inputs[self.table.name], None
        if not batch.complete:
            column = list(batch.inputs).index(self.table.name)
            absent = missing_content(original, self.table.name, batch.missing[:, column], batch.feature_missing)
            absent = absent.expand_as(original)
            original = torch.where(absent, 0, original)
        image = self.encoder_imaging(batch.inputs[self.image.name])
        view = corrupt(original, self.corruption, absent) if self.training else original
        table = self.encoder_tabular.encode(view, absent)
        z = F.normalize(self.projector_imaging(image.mean(1)), dim=-1)
        w = F.normalize(self.projector_tabular(table[:, 0]), dim=-1)
        logits = z @ w.T / self.temperature
        same = torch.arange(len(batch), device=logits.device)
        contrastive = (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2
        matching = self._matching(image, table, logits.detach())
        hidden = random_cells(len(batch), original.shape[1], self.mask_rate, original.device)
        shown = self.predict_cells(image, original, hidden if absent is None else hidden | absent)
        reconstruction = self._reconstruction(shown, original, hidden if absent is None else hidden & ~absent)
        return {
            "loss": (contrastive + matching + reconstruction) / 3,
            "contrastive": contrastive,
            "matching": matching,
            "reconstruction": reconstruction,
        }

    def _with_image(self, batch: Batch) -> Batch:
        """The rows of a batch that have an image."""
        if batch.complete:
            return batch
        return take_rows(batch, ~batch.missing[:, [m.name for m in self.modalities].index(self.image.name)])

    def _matching(self, image: Tensor, table: Tensor, logits: Tensor) -> Tensor:
        """True pairs against, for every image and every table, a partner drawn by how alike the wrong pair looks."""
        b = len(image)
        pairs_table, pairs_image = [table], [image]
        if b > 1:
            for_image, for_table = (hard_negatives(x) for x in (logits, logits.T))
            pairs_table += [table, table[for_image]]
            pairs_image += [image[for_table], image]
        output = self.encoder_multimodal(torch.cat(pairs_table), torch.cat(pairs_image))[:, 0]
        label = (torch.arange(len(output), device=output.device) < b).long()
        return F.cross_entropy(self.itm_head(output), label)

    def _reconstruction(self, predicted: tuple[Tensor, Tensor], table: Tensor, hidden: Tensor) -> Tensor:
        """(mean cross-entropy of the hidden categorical cells + mean squared error of the continuous ones) / 2."""
        logits, values = predicted
        n = len(self.encoder_tabular.levels)
        total = values.new_zeros(())
        if n:
            codes = table[:, :n].long() + self.encoder_tabular.cat_offsets
            loss = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").view_as(codes)
            total = total + (loss * hidden[:, :n]).sum() / hidden[:, :n].sum().clamp(min=1)
        if values.shape[1]:
            loss = (values - table[:, n:]).square()
            total = total + (loss * hidden[:, n:]).sum() / hidden[:, n:].sum().clamp(min=1)
        return total / 2

    def training_step(self, batch: Batch, batch_index: int) -> Tensor | None:
        batch = self._with_image(batch)
        if len(batch) < 2:  # a pair alone has nothing to be told from
            return self.step_without_rows()
        losses = self.losses(batch)
        self.log_losses("train", losses, batch.counted)
        return losses["loss"]

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        batch = self._with_image(batch)
        if not len(batch):
            return
        self.log_losses("val", self.losses(batch), len(batch))

    def recovery_state(self) -> Mapping[str, Any]:
        return {key: value for key, value in self.state_dict().items() if key.startswith(TIP_PARTS)}

    def convert(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        return convert_tip(super().convert(content), self.state_dict())


def random_cells(rows: int, columns: int, rate: float, device: torch.device | str = "cpu") -> Tensor:
    """(rows, columns) bool with round(columns * rate) True in every row (Python's round: 8 of 17, 38 of 75)."""
    return torch.rand(rows, columns, device=device).argsort(1).argsort(1) < round(columns * rate)


def corrupt(table: Tensor, rate: float, absent: Tensor | None = None) -> Tensor:
    """(B, n) with floor(n * rate) cells of every row replaced by those of random rows of the batch; cells that are
    ``absent`` (B, n) neither give nor take."""
    b, n = table.shape
    chosen = torch.rand(b, n, device=table.device).argsort(1).argsort(1) < int(n * rate)
    rows = torch.randint(b, (b, n), device=table.device)
    if absent is not None:
        chosen = chosen & ~absent & ~absent.gather(0, rows)
    return torch.where(chosen, table.gather(0, rows), table)


def hard_negatives(logits: Tensor) -> Tensor:
    """(B, B) similarities -> (B,) another column for every row, drawn by softmax."""
    weights = logits.softmax(1) + NEGATIVE_FLOOR
    return torch.multinomial(weights.fill_diagonal_(0), 1)[:, 0]


TIP_PARTS = ("encoder_imaging.", "encoder_tabular.", "encoder_multimodal.", "predictor_tabular.")


def convert_tip(state: Mapping[str, Any], initial: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a TIP checkpoint that recover tables, with the heads of ``initial``, which pre-training alone
    reads."""
    parts = {key: value for key, value in state.items() if key.startswith(TIP_PARTS)}
    return parts | {key: value for key, value in initial.items() if not key.startswith(TIP_PARTS)}
