"""Small seeded networks and class-structured data for the tests of the core."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.dymo.dynamic_transformer import DynamicTransformer
from models.encoders.convolutional import PolyMNISTEncoder
from models.encoders.table import TableEncoder
from tests import slow_twin as twin
from utils.subsets import enumerate_subsets

CLASSES = 10
IMAGE = (3, 28, 28)


def modalities(count: int, shape: tuple[int, ...] = IMAGE) -> list[Modality]:
    return [Modality(f"m{i}", "image", shape) for i in range(count)]


def polymnist_model(width: int = 128, seed: int = 0, **options: Any) -> DynamicTransformer:
    """The PolyMNIST network, narrower if wanted, in eval mode; no parameter keeps a value that could hide a term."""
    torch.manual_seed(seed)
    views = modalities(5)
    encoders = {m.name: PolyMNISTEncoder(width=width) for m in views}
    options = {"initialisation": "pytorch"} | options
    return jolted(DynamicTransformer(views, CLASSES, encoders, width=width, **options), seed)


class TokenEncoder(nn.Module):
    """(B, tokens, 3) -> (B, tokens, width)."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.linear = nn.Linear(3, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))


def toy_model(tokens: Sequence[int] = (2, 3, 1), seed: int = 0, width: int = 8, **options: Any) -> DynamicTransformer:
    """Any number of tokens per modality, 4 classes, in eval mode."""
    torch.manual_seed(seed)
    parts = [Modality(f"m{i}", "table", (n, 3)) for i, n in enumerate(tokens)]
    encoders = {m.name: TokenEncoder(n, width) for m, n in zip(parts, tokens)}
    options = {"heads": 2, "projection": 5, "initialisation": "pytorch"} | options
    return jolted(DynamicTransformer(parts, 4, encoders, width=width, **options), seed)


LEVELS, N_CONTINUOUS = (3, 2, 4), 3
CELLS = len(LEVELS) + N_CONTINUOUS


def table_modalities() -> list[Modality]:
    """A small image of 2 tokens and a table of 3 categorical and 3 continuous columns."""
    return [Modality("img", "image", (2, 3)), Modality("tabular", "table", (CELLS,), LEVELS)]


def table_model(seed: int = 0, width: int = 8, **options: Any) -> DynamicTransformer:
    """An image encoder of the fusion's width and a table encoder of another one; 4 classes, in eval mode."""
    torch.manual_seed(seed)
    encoders = {"img": TokenEncoder(2, width), "tabular": table_encoder(seed)}
    options = {"heads": 2, "projection": 5, "initialisation": "pytorch", "subsets_per_step": 2} | options
    return jolted(DynamicTransformer(table_modalities(), 4, encoders, width=width, **options), seed)


def table_encoder(seed: int = 0, width: int = 12) -> TableEncoder:
    """Two blocks; every weight is large enough to show."""
    encoder = TableEncoder(LEVELS, N_CONTINUOUS, width=width, blocks=2, heads=3)
    generator = torch.Generator().manual_seed(seed + 50)
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.3)
    return encoder.eval()


def random_table(rows: int, seed: int = 0) -> Tensor:
    """(rows, 6): codes, then values."""
    generator = torch.Generator().manual_seed(seed)
    codes = [torch.randint(k, (rows, 1), generator=generator).float() for k in LEVELS]
    return torch.cat([*codes, torch.randn(rows, N_CONTINUOUS, generator=generator)], dim=1)


def table_batch(rows: int, seed: int = 0, missing: Tensor | None = None, cells: Tensor | None = None) -> Batch:
    """Random pairs of image and table; ``cells`` (rows, 6) are missing of masked tables."""
    generator = torch.Generator().manual_seed(seed + 1)
    inputs = {"img": torch.randn(rows, 2, 3, generator=generator), "tabular": random_table(rows, seed)}
    mask = torch.zeros(rows, 2, dtype=torch.bool) if missing is None else missing
    hidden = {} if cells is None else {"tabular": cells}
    return Batch(inputs, mask, torch.arange(rows) % 4, torch.arange(rows), hidden, complete=missing is None)


def jolted(model: DynamicTransformer, seed: int) -> DynamicTransformer:
    generator = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1 or name in ("cls_token", "pos_embeddings"):
                p.add_(torch.randn(p.shape, generator=generator), alpha=0.2)
    return model.eval()


def toy_batch(model: DynamicTransformer, rows: int, seed: int = 0, missing: Tensor | None = None) -> Batch:
    """Random content and random labels; ``missing`` None = complete."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {m.name: torch.randn(rows, *m.shape, generator=generator) for m in model.modalities}
    target = torch.randint(model.num_classes, (rows,), generator=generator)
    mask = torch.zeros(rows, len(inputs), dtype=torch.bool) if missing is None else missing
    return Batch(inputs, mask, target, torch.arange(rows), complete=missing is None)


def class_batch(rows: int, wrong: float, seed: int) -> Batch:
    """Five views that each show a noisy pattern of the class, or of a random class in a share ``wrong`` of the cells:
    recoveries as bad as that, so some are worth accepting and some are not."""
    patterns = torch.rand(5, CLASSES, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    patterns = patterns.repeat_interleave(7, 3).repeat_interleave(7, 4)
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(rows) % CLASSES
    inputs = {}
    for view in range(5):
        stray = torch.rand(rows, generator=generator) < wrong
        shown = torch.where(stray, torch.randint(CLASSES, (rows,), generator=generator), target)
        inputs[f"m{view}"] = patterns[view, shown] + 0.3 * torch.randn(rows, *IMAGE, generator=generator)
    missing = torch.zeros(rows, 5, dtype=torch.bool)
    return Batch(inputs, missing, target, torch.arange(rows), complete=True)


def random_masks(rows: int, m: int, seed: int) -> Tensor:
    """(rows, M) bool; the rows miss 0, 1, ..., M-1, 0, ... random modalities."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(rows, m, dtype=torch.bool)
    for row in range(rows):
        masks[row, torch.randperm(m, generator=generator)[: row % m]] = True
    return masks


@functools.cache
def _trained_state() -> dict[str, Tensor]:
    """Weights of a narrow PolyMNIST network after a few steps on :func:`class_batch`."""
    model = polymnist_model(width=32, projection=32)
    model.modality_embeddings.weight.data.mul_(0.2)
    data = class_batch(400, 0.15, seed=2)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        rows = torch.randint(400, (64,), generator=generator)
        tokens = model.encode({name: x[rows] for name, x in data.inputs.items()})
        subsets = enumerate_subsets(5)[torch.randperm(31, generator=generator)[:4]]
        logits = torch.cat([part for _, part, _ in model.fuse_subsets(tokens, subsets)])
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), data.target[rows].repeat(4)).backward()
        optimizer.step()
    return twin_parameters(model)


def deciding_model(metric: str) -> DynamicTransformer:
    """A network whose selections differ from row to row: briefly trained, its features a random mix of the logits and
    of the CLS token, centred, and small enough for posteriors that do not saturate."""
    model = polymnist_model(width=32, projection=32, distance_metric=twin.EUCLIDEAN)
    model.load_state_dict(_trained_state())
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        mix = torch.randn(32, CLASSES, generator=generator) @ model.classifier.weight
        model.projection.weight.copy_(0.012 * (mix + 0.5 * torch.randn(32, 32, generator=generator)))
        model.projection.bias.zero_()
        tokens = model.encode(class_batch(400, 0.15, seed=2).inputs)
        features = torch.cat([part for *_, part in model.fuse_subsets(tokens, enumerate_subsets(5))])
        model.projection.bias.copy_(-features.mean((0, 1)))
    model.distance_metric = metric
    return model


def twin_parameters(model: DynamicTransformer) -> dict[str, Tensor]:
    return {k: v.detach() for k, v in model.state_dict().items()}


def twin_evaluator(model: DynamicTransformer, batch: Batch, row: int) -> Callable[[twin.Mask], tuple[Tensor, Tensor]]:
    """mask -> the twin's logits and z of one row; remembered, since the twin is a pure function."""
    params = twin_parameters(model)
    if isinstance(model.encoders["m0"], PolyMNISTEncoder):
        tokens = [twin.polymnist_tokens(params, name, x[row]) for name, x in batch.inputs.items()]
    else:
        with torch.no_grad():
            tokens = [model.encoders[name](x[row : row + 1])[0] for name, x in batch.inputs.items()]

    @functools.cache
    def evaluate(mask: twin.Mask) -> tuple[Tensor, Tensor]:
        return twin.forward(
            params,
            tokens,
            mask,
            metric=model.distance_metric,
            heads=model.transformer[0].attn.heads,
            min_index=model.reference_modality_index,
        )

    return evaluate


class TableTokens(nn.Module):
    """(B, n) with missing cells (B, n) -> (B, n, width): each cell scaled by a vector of its column."""

    def __init__(self, cardinalities: Sequence[int] = (), n_continuous: int = 4, width: int = 8) -> None:
        super().__init__()
        self.tokens, self.width = len(cardinalities) + n_continuous, width
        self.weight = nn.Parameter(torch.randn(self.tokens, width))
        self.hidden = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor, missing: Tensor | None = None) -> Tensor:
        tokens = torch.where(torch.isfinite(x), x, 0)[..., None] * self.weight
        return tokens if missing is None else torch.where(missing[..., None], self.hidden, tokens)


def under(
    batch: Batch, masks: Mapping[str, Tensor], cells: Mapping[str, Mapping[str, Tensor]] | None = None
) -> dict[str, Batch]:
    """Scenario -> the batch under a mask (B, M) and, where ``cells`` names any, cell masks of its tables."""
    return {
        name: batch.replace(missing=mask, feature_missing=dict((cells or {}).get(name, {})))
        for name, mask in masks.items()
    }
