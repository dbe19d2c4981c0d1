"""The original pipeline as docs/reference/dymo.md describes it, batch by batch, slow places included.

Every forward encodes all modalities and processes all tokens; every candidate costs two of them; ICS is a Python loop
over rows; the imputer encodes everything and decodes every modality from every subset; training re-encodes for each of
the K subsets; a sample is five PNG files. The numbers it gives are the ones that the fast path must equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import to_tensor

from models.dymo.dynamic_transformer import DynamicTransformer
from models.dymo.gaussian import GaussianParameters
from models.dymo.prototypes import COSINE
from models.imputers.mopoe import MoPoE
from utils.subsets import enumerate_subsets


class SlowTransformer(nn.Module):
    """All encoders, all tokens, an additive -1e9 key mask, full attention in every block
    (docs/reference/dymo.md §1.1).
    """

    def __init__(self, model: DynamicTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Mapping[str, Tensor], missing: Tensor) -> tuple[Tensor, Tensor]:
        m = self.model
        rows, bias = [m.cls_token.expand(len(missing), -1, -1)], [torch.zeros(len(missing), 1, device=missing.device)]
        for i, name in enumerate(m.modality_names):
            tokens = m.m_norms[i](m.encoders[name](inputs[name]))
            tokens = tokens * (~missing[:, i]).float()[:, None, None] + m.modality_embeddings.weight[i]
            rows.append(tokens)
            bias.append((missing[:, i].float() * -1e9)[:, None].expand(-1, tokens.shape[1]))
        x = torch.cat(rows, 1) + m.pos_embeddings
        mask = torch.cat(bias, 1)[:, None, None, :]
        for block in m.transformer:
            heads = block.attn.heads
            qkv = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
            scores = qkv[0] @ qkv[1].transpose(-2, -1) * qkv.shape[-1] ** -0.5 + mask
            mixed = (scores.softmax(-1) @ qkv[2]).transpose(1, 2).flatten(2)
            x = x + block.attn.proj(mixed)
            x = x + block.mlp(block.norm2(x))
        z = m.projection(x[:, 0])
        return m.classifier(x[:, 0]), F.normalize(z, dim=-1) if m.distance_metric == COSINE else z


def ics_loop(logits: Tensor, z: Tensor, missing: Tensor, parameters: GaussianParameters) -> Tensor:
    """ICS of each row in a Python loop, with one Normal object a row (the original's)."""
    ids = {tuple(mask): i for i, mask in enumerate(parameters.subsets.tolist())}
    values = []
    for row in range(len(logits)):
        s, c = ids[tuple(missing[row].tolist())], int(logits[row].argmax())
        centre = parameters.prototypes[s, c]
        d = 1 - torch.dot(z[row], centre) if parameters.metric == COSINE else torch.linalg.vector_norm(z[row] - centre)
        normal = torch.distributions.Normal(0.0, parameters.sigma[s, c])
        values.append(2 * (1 - normal.cdf(d)))
    return torch.stack(values)


@torch.no_grad()
def select(
    network: SlowTransformer, inputs: Mapping[str, Tensor], missing: Tensor, parameters: GaussianParameters
) -> tuple[Tensor, Tensor]:
    """Final logits and mask of a batch (docs/reference/dymo.md §4.2), paper rule."""
    missing = missing.clone()
    bad = torch.zeros_like(missing)
    finished = torch.zeros_like(missing[:, 0])

    def state(rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        logits, z = network({n: x[rows] for n, x in inputs.items()}, mask)
        if parameters.metric == COSINE:
            a = z @ parameters.overall.T / 0.1
        else:
            a = -torch.cdist(z, parameters.overall, compute_mode="donot_use_mm_for_euclid_dist").square() / 0.1
        return a.softmax(-1).amax(-1), ics_loop(logits, z, mask, parameters)

    for _ in range(int(missing.sum(1).max())):
        reward = torch.zeros(missing.shape, device=missing.device)
        for u in range(missing.shape[1]):
            rows = (missing[:, u] & ~bad[:, u]).nonzero()[:, 0]
            if not len(rows):
                continue
            after = missing[rows].clone()
            after[:, u] = False
            (q, p), (q_new, p_new) = state(rows, missing[rows]), state(rows, after)
            g = p.log() / (p_new + 1e-9).log() if parameters.metric == COSINE else p_new / (p + 1e-9)
            reward[rows, u] = q_new * torch.where(p_new < p, g, 1.0) - q
        bad |= reward < 0
        finished |= (reward <= 0).all(1)
        best = reward.argmax(1)
        going = (~finished).nonzero()[:, 0]
        missing[going, best[going]] = False
        if finished.all():
            break
    return network(inputs, missing)[0], missing


@torch.no_grad()
def impute(model: MoPoE, inputs: Mapping[str, Tensor], missing: Tensor) -> dict[str, Tensor]:
    """Posterior means of all subsets, all modalities decoded from each, merged row by row
    (docs/reference/dymo.md §5.1).
    """
    mu, logvar = model.encode_all(inputs)
    subsets = enumerate_subsets(missing.shape[1])
    decoded = []
    for mask in subsets:
        mean, _ = model.product(mu, logvar, mask.to(missing.device).expand(len(missing), -1))
        decoded.append([decoder(mean) for decoder in model.decoders])
    ids = {tuple(mask): i for i, mask in enumerate(subsets.tolist())}
    completed = {n: x.clone() for n, x in inputs.items()}
    for row in range(len(missing)):
        s = ids[tuple(missing[row].tolist())]
        for i, name in enumerate(inputs):
            if missing[row, i]:
                completed[name][row] = decoded[s][i][row]
    return completed


@torch.no_grad()
def gaussian(network: SlowTransformer, batches: Iterable[tuple[Mapping[str, Tensor], Tensor]], metric: str) -> Tensor:
    """Sigma (S, C): one pass over the data for each subset, all features kept (docs/reference/dymo.md §3)."""
    model = network.model
    rows = []
    for mask in enumerate_subsets(len(model.modalities)).to(model.device):
        actual = [(network(x, mask.expand(len(y), -1))[1], y) for x, y in batches]
        features, target = (torch.cat(part) for part in zip(*actual, strict=True))
        row = []
        for c in range(model.num_classes):
            z = features[target == c].double()
            centre = z.mean(0)
            d = 1 - z @ centre if metric == COSINE else torch.linalg.vector_norm(z - centre, dim=1)
            row.append(d.square().mean().sqrt())
        rows.append(torch.stack(row))
    return torch.stack(rows).float()


def training_step(network: SlowTransformer, inputs: Mapping[str, Tensor], target: Tensor, subsets: Tensor) -> Tensor:
    """Mean loss over K subsets, each a full forward (docs/reference/dymo.md §2, without the prototype term)."""
    masks = subsets.to(target.device)
    losses = [F.cross_entropy(network(inputs, mask.expand(len(target), -1))[0], target) for mask in masks]
    return torch.stack(losses).mean()


def load_pngs(folder: Path, names: list[str], views: list[str]) -> dict[str, Tensor]:
    """Five PNG files a sample, opened one by one."""
    return {v: torch.stack([to_tensor(Image.open(folder / v / f"{n}.png")) for n in names]) for v in views}
