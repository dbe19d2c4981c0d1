"""Slow, obvious twins of the fast code, written from docs/reference/dymo.md alone: the oracles of the tests.

One sample, one mask, one candidate at a time; every token takes part in every attention, hidden by an additive -1e9;
nothing is cached. True in a mask means missing. Nothing here is imported from the package.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import mpmath
import torch
import torch.nn.functional as F
from torch import Tensor

Params = Mapping[str, Tensor]
Mask = tuple[bool, ...]
Evaluate = Callable[[Mask], tuple[Tensor, Tensor]]  # mask -> logits (C,), z (P,)

COSINE = "cosine_similarity"
EUCLIDEAN = "squared_euclidean"


# ---------------------------------------------------------------------------------------------- subsets


def subsets(count: int) -> list[Mask]:
    """Missing masks of all non-empty sets of present modalities, by size, then lexicographic."""
    masks = []
    for size in range(1, count + 1):
        for present in itertools.combinations(range(count), size):
            masks.append(tuple(i not in present for i in range(count)))
    return masks


# ---------------------------------------------------------------------------------------------- network


def polymnist_tokens(params: Params, name: str, image: Tensor) -> Tensor:
    """(3, 28, 28) -> (4, 128)."""
    x = image[None]
    for layer in (0, 2, 4):
        prefix = f"encoders.{name}.network.{layer}"
        x = torch.relu(F.conv2d(x, params[f"{prefix}.weight"], params[f"{prefix}.bias"], stride=2, padding=1))
    prefix = f"encoders.{name}.proj_conv.0"
    x = F.conv2d(x, params[f"{prefix}.weight"], params[f"{prefix}.bias"])
    x = F.max_pool2d(x, 2, 2)[0]  # (128, 2, 2)
    return torch.stack([x[:, row, column] for row in range(2) for column in range(2)])


def table_tokens(
    params: Params, name: str, row: Sequence[float], hidden: Sequence[bool], levels: Sequence[int], heads: int
) -> Tensor:
    """One row of a table -> (1 + n, D), CLS first; the columns with ``levels`` come first
    (docs/reference/dymo.md §1.4).

    A hidden cell is the special token, and a key for nothing but itself.
    """
    tokens = [params[f"{name}.cls_token"][0, 0]]
    for j, (value, absent) in enumerate(zip(row, hidden)):
        if absent:
            tokens.append(params[f"{name}.mask_special_token"][0, 0])
        elif j < len(levels):
            tokens.append(params[f"{name}.cat_embedding.weight"][int(value) + sum(levels[:j])])
        else:
            tokens.append(params[f"{name}.con_proj.weight"][:, 0] * value + params[f"{name}.con_proj.bias"])
    x = _norm(params, f"{name}.norm", torch.stack(tokens) + params[f"{name}.column_embedding.weight"])
    bias = torch.zeros(len(x), len(x))
    for query, key in itertools.product(range(len(x)), range(1, len(x))):
        if hidden[key - 1] and key != query:
            bias[query, key] = -1e9
    for b in sorted(int(key.split(".")[-4]) for key in _blocks(params, name)):
        x = _block(params, f"{name}.transformer_blocks.{b}", x, bias, heads)
    return x


def tip_cells(
    params: Params,
    image: Tensor,
    row: Sequence[float],
    hidden: Sequence[bool],
    levels: Sequence[int],
    heads: int,
    *,
    reference: bool,
) -> list[float]:
    """What TIP reads off every cell of one row; ``image`` (K, width) tokens (docs/reference/dymo.md §5.3)."""
    context = _norm(params, "encoder_multimodal.image_norm", _linear(params, "encoder_multimodal.image_proj", image))
    x = table_tokens(params, "encoder_tabular", row, hidden, levels, heads)
    for b in sorted(int(key.split(".")[-4]) for key in _blocks(params, "encoder_multimodal")):
        x = _block(params, f"encoder_multimodal.transformer_blocks.{b}", x, torch.zeros(len(x)), heads, context)
    cells = _norm(params, "encoder_multimodal.norm", x)[1:]
    actual = []
    for j, cell in enumerate(cells):
        if j >= len(levels):
            actual.append(float(_linear(params, "predictor_tabular.con_regressor", cell)[0]))
            continue
        logits = _linear(params, "predictor_tabular.cat_classifier", cell)
        first = sum(levels[:j])
        if reference:
            actual.append(float(min(max(int(logits.argmax()) - first, 0), levels[j] - 1)))
        else:
            actual.append(float(logits[first : first + levels[j]].argmax()))
    return actual


def _blocks(params: Params, name: str) -> list[str]:
    return [key for key in params if key.startswith(f"{name}.transformer_blocks.") and key.endswith("fc1.weight")]


def _block(params: Params, prefix: str, x: Tensor, bias: Tensor, heads: int, context: Tensor | None = None) -> Tensor:
    x = x + _attention(params, f"{prefix}.attn", _norm(params, f"{prefix}.norm1", x), bias, heads)
    if context is not None:
        queries = _linear(params, f"{prefix}.cross_attn.q_proj", _norm(params, f"{prefix}.cross_norm", x))
        pair = _linear(params, f"{prefix}.cross_attn.kv_proj", context)
        width = x.shape[1]
        size = width // heads
        out = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = queries[:, part] @ pair[:, :width][:, part].T / math.sqrt(size)
            out.append(torch.softmax(scores, dim=-1) @ pair[:, width:][:, part])
        x = x + _linear(params, f"{prefix}.cross_attn.proj", torch.cat(out, dim=1))
    hidden = _linear(params, f"{prefix}.mlp.fc1", _norm(params, f"{prefix}.norm2", x))
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + _linear(params, f"{prefix}.mlp.fc2", hidden)


def _norm(params: Params, prefix: str, x: Tensor) -> Tensor:
    mean = x.mean(dim=-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5) * params[f"{prefix}.weight"] + params[f"{prefix}.bias"]


def _linear(params: Params, prefix: str, x: Tensor) -> Tensor:
    y = x @ params[f"{prefix}.weight"].T
    return y + params[f"{prefix}.bias"] if f"{prefix}.bias" in params else y


def _attention(params: Params, prefix: str, x: Tensor, key_bias: Tensor, heads: int) -> Tensor:
    """Full attention over (N, D), ``key_bias`` (N,) or (N, N); the fused output is laid out as (3, heads, head_dim)."""
    width = x.shape[1]
    size = width // heads
    fused = _linear(params, f"{prefix}.qkv", x)
    out = []
    for head in range(heads):
        q, k, v = (fused[:, part * width + head * size : part * width + (head + 1) * size] for part in range(3))
        out.append(torch.softmax(q @ k.T / math.sqrt(size) + key_bias, dim=-1) @ v)
    return _linear(params, f"{prefix}.proj", torch.cat(out, dim=1))


def forward(
    params: Params,
    tokens: Sequence[Tensor],
    missing: Sequence[bool],
    *,
    metric: str,
    heads: int,
    min_index: bool,
    hidden: Mapping[int, Sequence[bool]] | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits (C,) and z (P,) of one sample.

    Args:
        tokens: (P_i, D) of every modality in order, missing ones too, before the modality's LayerNorm.
        hidden: of a missing table (by position) that is partly there, the tokens that are not.
        min_index: the reference's embedding row min(i, 1) instead of i.
    """
    rows = [params["cls_token"][0, 0]]
    bias = [0.0]
    for i, (matrix, absent) in enumerate(zip(tokens, missing)):
        normed = _norm(params, f"m_norms.{i}", matrix)
        embedding = params["modality_embeddings.weight"][min(i, 1) if min_index else i]
        for j, token in enumerate(normed):
            off = absent and (hidden is None or i not in hidden or hidden[i][j])
            rows.append(token * (0.0 if off else 1.0) + embedding)
            bias.append(-1e9 if off else 0.0)
    x = torch.stack(rows) + params["pos_embeddings"][0]
    key_bias = torch.tensor(bias, dtype=x.dtype)
    blocks = sorted({int(key.split(".")[1]) for key in params if key.startswith("transformer.")})
    for b in blocks:
        prefix = f"transformer.{b}"
        x = x + _attention(params, f"{prefix}.attn", _norm(params, f"{prefix}.norm1", x), key_bias, heads)
        hidden = _linear(params, f"{prefix}.mlp.fc1", _norm(params, f"{prefix}.norm2", x))
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + _linear(params, f"{prefix}.mlp.fc2", hidden)
    z = _linear(params, "projection", x[0])
    if metric == COSINE:
        z = z / max(float(torch.linalg.vector_norm(z)), 1e-12)
    return _linear(params, "classifier", x[0]), z


def polymnist_forward(
    params: Params,
    images: Mapping[str, Tensor],
    missing: Sequence[bool],
    *,
    metric: str,
    min_index: bool,
    heads: int = 4,
) -> tuple[Tensor, Tensor]:
    """Logits and z of one sample from its five (3, 28, 28) images, in the mapping's order."""
    tokens = [polymnist_tokens(params, name, image) for name, image in images.items()]
    return forward(params, tokens, missing, metric=metric, heads=heads, min_index=min_index)


# ---------------------------------------------------------------------------------------------- training loss


def prototype_logits(z: Tensor, prototypes: Tensor, metric: str, temperature: float = 0.1) -> Tensor:
    """(C,): similarity of one z to every prototype over the temperature."""
    if metric == COSINE:
        return torch.stack([torch.dot(z, c) / temperature for c in prototypes])
    return torch.stack([-((z - c) ** 2).sum() / temperature for c in prototypes])


def training_loss(
    outputs: Sequence[Sequence[tuple[Tensor, Tensor]]],
    labels: Sequence[int],
    prototypes: Tensor,
    metric: str,
    pt_rate: float,
    contrastive: bool,
) -> Tensor:
    """mean_k CE_k + [contrastive] pt_rate mean_k PT_k; ``outputs[k][b]`` is (logits, z) of row b under mask k."""
    total = torch.zeros(())
    for rows in outputs:
        ce = torch.stack([-torch.log_softmax(logits, 0)[y] for (logits, _), y in zip(rows, labels)]).mean()
        total = total + ce / len(outputs)
        if contrastive:
            terms = [
                -torch.log_softmax(prototype_logits(z, prototypes, metric), 0)[y] for (_, z), y in zip(rows, labels)
            ]
            total = total + pt_rate * torch.stack(terms).mean() / len(outputs)
    return total


# ---------------------------------------------------------------------------------------------- Gaussian parameters


def gaussian_parameters(
    features: Sequence[Sequence[Tensor]], labels: Sequence[int], num_classes: int, metric: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Prototypes (S, C, P), overall prototypes (C, P) and sigma (S, C), float64, from ``features[subset][sample]``."""
    prototypes, sigma = [], []
    for collected in features:
        proto_row, sigma_row = [], []
        for c in range(num_classes):
            members = [z.double() for z, y in zip(collected, labels) if y == c]
            centre = torch.stack(members).mean(dim=0)
            distances = [float(distance(z, centre, metric)) for z in members]
            mirrored = distances + [-d for d in distances]
            mean = sum(mirrored) / len(mirrored)
            proto_row.append(centre)
            sigma_row.append(math.sqrt(sum((d - mean) ** 2 for d in mirrored) / len(mirrored)))
        prototypes.append(torch.stack(proto_row))
        sigma.append(torch.tensor(sigma_row, dtype=torch.float64))
    stacked = torch.stack(prototypes)
    return stacked, stacked.mean(dim=0), torch.stack(sigma)


def distance(z: Tensor, centre: Tensor, metric: str) -> Tensor:
    """Distance of ICS: 1 - <z, c>, or the Euclidean distance, not squared."""
    if metric == COSINE:
        return 1 - torch.dot(z, centre)
    return torch.sqrt(((z - centre) ** 2).sum())


# ---------------------------------------------------------------------------------------------- reward


def ics_float32(d: float, sigma: float) -> float:
    """2 (1 - Phi(d / sigma)) as the reference computes it, in float32."""
    scale = torch.tensor(sigma, dtype=torch.float32)
    return float(2 * (1 - torch.distributions.Normal(torch.zeros(()), scale).cdf(torch.tensor(d, dtype=torch.float32))))


def ics_exact(d: float, sigma: float) -> mpmath.mpf:
    """The same to 50 digits: erfc(d / (sigma sqrt 2))."""
    with mpmath.workdps(50):
        return mpmath.erfc(mpmath.mpf(d) / (mpmath.mpf(sigma) * mpmath.sqrt(2)))


def calibration_float32(p: float, p_new: float, kind: str) -> float:
    """G of docs/reference/dymo.md §4.1, in float32 arithmetic."""
    if kind == "none" or p_new >= p:
        return 1.0
    before, after = (torch.tensor(value, dtype=torch.float32) for value in (p, p_new))
    if kind == "log_ratio":
        return float(torch.log(before) / torch.log(after + 1e-9))
    return float(after / (before + 1e-9))


def calibration_exact(p: mpmath.mpf, p_new: mpmath.mpf, kind: str) -> float:
    """G without rounding; its guard of 1e-9 ends where float32 has no digits left, at 2^-23."""
    with mpmath.workdps(50):
        if kind == "none" or p_new >= p:
            return 1.0
        if kind == "log_ratio":
            return float(mpmath.log(p) / mpmath.log(p_new + (1e-9 if p_new >= 2.0**-23 else 0)))
        return float(p_new / (p + (1e-9 if p >= 2.0**-23 else 0)))


class Judge:
    """Reward of unmasking: holds the Gaussian parameters and the options, evaluates nothing itself."""

    def __init__(
        self,
        prototypes: Tensor,
        overall: Tensor,
        sigma: Tensor,
        *,
        metric: str,
        calibration: str,
        tail: str = "float32",
        reward: str = "posterior",
        temperature: float = 0.1,
    ) -> None:
        self.prototypes, self.overall, self.sigma = prototypes, overall, sigma
        self.metric, self.calibration, self.tail, self.kind = metric, calibration, tail, reward
        self.temperature = temperature
        self.ids = {mask: i for i, mask in enumerate(subsets(round(math.log2(len(prototypes) + 1))))}

    def quality(self, z: Tensor) -> float:
        return float(torch.softmax(prototype_logits(z, self.overall, self.metric, self.temperature), 0).max())

    def ics(self, logits: Tensor, z: Tensor, mask: Mask) -> float | mpmath.mpf:
        s, c = self.ids[mask], int(torch.argmax(logits))
        d, sigma = float(distance(z, self.prototypes[s, c], self.metric)), float(self.sigma[s, c])
        return ics_float32(d, sigma) if self.tail == "float32" else ics_exact(d, sigma)

    def combine(self, q: float, q_new: float, p: float | mpmath.mpf, p_new: float | mpmath.mpf) -> float:
        """q' G - q, or log(q' G) - log q for the kind ``log``."""
        g = (calibration_float32 if self.tail == "float32" else calibration_exact)(p, p_new, self.calibration)
        if self.kind == "posterior":
            return q_new * g - q
        return math.log(q_new * g) - math.log(q) if g > 0 else -math.inf

    def reward(self, evaluate: Evaluate, before: Mask, after: Mask) -> float:
        """Two full forwards per call, as in the reference."""
        (logits, z), (logits_new, z_new) = evaluate(before), evaluate(after)
        p, p_new = self.ics(logits, z, before), self.ics(logits_new, z_new, after)
        return self.combine(self.quality(z), self.quality(z_new), p, p_new)


# ---------------------------------------------------------------------------------------------- selection


def greedy(
    evaluate: Evaluate, start: Mask, judge: Judge, threshold: float = 0.0
) -> tuple[Mask, list[int], list[dict[int, float]], Tensor]:
    """DyMo's choice for one sample. Unlike the reference, a NaN reward rejects, and ``threshold`` may be above 0.

    Returns:
        Final mask, modalities in the order they were accepted, candidate -> reward of every step, logits under the
        final mask.
    """
    mask, rejected, accepted, history = list(start), set(), [], []
    while True:
        rewards = {}
        for u in range(len(mask)):
            if mask[u] and u not in rejected:
                after = tuple(absent and i != u for i, absent in enumerate(mask))
                rewards[u] = judge.reward(evaluate, tuple(mask), after)
        if not rewards:
            break
        history.append(rewards)
        rejected |= {u for u, value in rewards.items() if value < 0 or math.isnan(value)}
        positive = {u: value for u, value in rewards.items() if value > threshold}
        if not positive:
            break
        best = min(u for u, value in positive.items() if value == max(positive.values()))
        mask[best] = False
        accepted.append(best)
    final = tuple(mask)
    return final, accepted, history, evaluate(final)[0]


def best_subset(evaluate: Evaluate, start: Mask, judge: Judge, threshold: float = 0.0) -> tuple[Mask, float]:
    """The set of missing modalities with the highest reward when unmasked at once, if that is above the threshold."""
    missing = [i for i, absent in enumerate(start) if absent]
    best, best_reward = start, threshold
    for size in range(1, len(missing) + 1):
        for chosen in itertools.combinations(missing, size):
            after = tuple(absent and i not in chosen for i, absent in enumerate(start))
            value = judge.reward(evaluate, start, after)
            if value > best_reward:
                best, best_reward = after, value
    return best, best_reward


def supersets(start: Mask) -> list[Mask]:
    """All masks reachable from ``start`` by unmasking, ``start`` included."""
    missing = [i for i, absent in enumerate(start) if absent]
    reachable = []
    for size in range(len(missing) + 1):
        for chosen in itertools.combinations(missing, size):
            reachable.append(tuple(absent and i not in chosen for i, absent in enumerate(start)))
    return reachable


# ---------------------------------------------------------------------------------------------- MoPoE


def product_of_experts(mus: Sequence[Tensor], logvars: Sequence[Tensor], prior: bool) -> tuple[Tensor, Tensor]:
    """Mean and log variance of the product of Gaussians (L,), with N(0, 1) as one more expert where ``prior``."""
    mus, logvars = list(mus), list(logvars)
    if prior:
        mus.append(torch.zeros_like(mus[0]))
        logvars.append(torch.zeros_like(mus[0]))
    precision = sum(1 / (torch.exp(logvar) + 1e-8) for logvar in logvars)
    weighted = sum(mu / (torch.exp(logvar) + 1e-8) for mu, logvar in zip(mus, logvars))
    return weighted / precision, -torch.log(precision)


def slices(batch: int, count: int) -> list[int]:
    """Subset id of every row: equal slices in order, the last subset takes the remainder."""
    size = batch // count
    return [min(row // size, count - 1) if size else count - 1 for row in range(batch)]


def mopoe_loss(
    mus: Tensor,
    logvars: Tensor,
    images: Sequence[Tensor],
    decoders: Sequence[Callable[[Tensor], Tensor]],
    noise: Tensor,
    beta: float = 2.5,
    scale: float = 0.75,
) -> Tensor:
    """Mean over the batch of sum of Laplace NLLs + beta (1/S) sum of KLs, one row at a time.

    Args:
        mus, logvars: (M, B, L).
        images: (B, ...) of every modality.
        decoders: latent (1, L) -> location (1, ...), one for every modality.
        noise: (B, L), the draw of every row.
    """
    count, batch = mus.shape[0], mus.shape[1]
    masks = subsets(count)
    total = torch.zeros(())
    for row, drawn in enumerate(slices(batch, len(masks))):
        posteriors = []
        for mask in masks:
            present = [i for i in range(count) if not mask[i]]
            posteriors.append(
                product_of_experts(
                    [mus[i, row] for i in present], [logvars[i, row] for i in present], prior=len(present) == count
                )
            )
        mu, logvar = posteriors[drawn]
        latent = (mu + torch.exp(0.5 * logvar) * noise[row])[None]
        for image, decode in zip(images, decoders):
            location = decode(latent)[0]
            total = total + ((image[row] - location).abs() / scale + math.log(2 * scale)).sum()
        for mu, logvar in posteriors:
            total = total + beta * 0.5 * (mu**2 + torch.exp(logvar) - 1 - logvar).sum() / len(masks)
    return total / batch


# ---------------------------------------------------------------------------------------------- metrics


def calibration_error(probabilities: Sequence[Sequence[float]], labels: Sequence[int], bins: int) -> float:
    """Expected calibration error: bins of equal width over the top probability, weighted by their share of samples."""
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, label in zip(probabilities, labels):
        top = max(row)
        members[min(int(top * bins), bins - 1)].append((top, list(row).index(top) == label))
    error = 0.0
    for content in members:
        if content:
            confidence = sum(top for top, _ in content) / len(content)
            accuracy = sum(right for _, right in content) / len(content)
            error += len(content) / len(labels) * abs(confidence - accuracy)
    return error
