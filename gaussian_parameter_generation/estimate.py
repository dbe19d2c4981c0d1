"""Class-wise Gaussian parameters of the features of every modality subset, the reference of the ICS score.

(docs/reference/dymo.md §3.) For subset s and class c: the prototype is the mean feature, and sigma is the root mean
square of the members' distances to it, i.e. the standard deviation of the distances mirrored at zero. One pass over the
data: the distances follow from the mean and the scatter of the features, which are accumulated in float64 by Chan's
pairwise update, so nothing is subtracted that is nearly equal.

Euclidean distances need the trace of the scatter only, cosine distances the whole of it: D^2 values for each of S
subsets and C classes. Above :data:`SCATTER_BYTES` these are not kept, and a second pass sums the squared distances to
the prototypes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from datasets.batch import Batch, unobserved
from models.dymo.backbone import Backbone
from models.dymo.gaussian import NO_SPREAD, GaussianParameters
from models.dymo.prototypes import COSINE
from utils.errors import UserError
from utils.progress import Progress
from utils.subsets import enumerate_subsets
from utils.transfer import on_host, to_device

log = logging.getLogger(__name__)
SCATTER_BYTES = 2**29


class GaussianStatistics:
    """Streaming count, mean and scatter per subset and class, in float64.

    Args:
        n_subsets, num_classes, width: S, C, D.
        traces: keep only the traces of the scatter matrices.

    Attributes:
        squares: (S, C) sums of squared cosine distances to the means, by :func:`add_squares`; None = not needed.
    """

    def __init__(
        self,
        n_subsets: int,
        num_classes: int,
        width: int,
        device: torch.device | str = "cpu",
        *,
        traces: bool = False,
    ) -> None:
        options: dict[str, Any] = {"dtype": torch.float64, "device": device}
        self.traces = traces
        self.squares: Tensor | None = None
        self.count = torch.zeros(n_subsets, num_classes, **options)
        self.mean = torch.zeros(n_subsets, num_classes, width, **options)
        self.scatter = torch.zeros(n_subsets, num_classes, *(() if traces else (width, width)), **options)

    def update(self, ids: Tensor, features: Tensor, classes: list[tuple[int, Tensor]]) -> None:
        """Add one batch.

        Args:
            ids: (k,) subsets, on the CPU.
            features: (k, B, D).
            classes: (class, rows of the batch) for each class present.
        """
        ids = to_device(ids, features.device)
        for c, rows in classes:
            z = features[:, rows].double()
            n = torch.full((len(ids),), float(len(rows)), dtype=torch.float64, device=z.device)
            mean = z.mean(1)
            centred = z - mean[:, None]
            scatter = centred.square().sum((1, 2)) if self.traces else centred.transpose(1, 2) @ centred
            self._merge(ids, c, n, mean, scatter)

    def _merge(self, ids: Tensor, c: int, n: Tensor, mean: Tensor, scatter: Tensor) -> None:
        """Chan, Golub, LeVeque (1979): pairwise combination of means and centred sums."""
        total = self.count[ids, c] + n
        shift = mean - self.mean[ids, c]
        weight = torch.where(total > 0, self.count[ids, c] * n / total.clamp(min=1), 0)
        if self.traces:
            self.scatter[ids, c] += scatter + shift.square().sum(1) * weight
        else:
            self.scatter[ids, c] += scatter + shift[:, :, None] * shift[:, None, :] * weight[:, None, None]
        self.mean[ids, c] += shift * (n / total.clamp(min=1))[:, None]
        self.count[ids, c] = total

    def merge(self, other: GaussianStatistics) -> None:
        """Add what another rank or pass has seen."""
        ids = torch.arange(len(self.count), device=self.count.device)
        for c in range(self.count.shape[1]):
            self._merge(ids, c, other.count[:, c], other.mean[:, c], other.scatter[:, c])

    def merge_ranks(self) -> None:
        """Add what the other processes have seen, in the order of their ranks, so that all hold the same sums."""
        parts = [self._gathered(t) for t in (self.count, self.mean, self.scatter)]
        for t in (self.count, self.mean, self.scatter):
            t.zero_()
        for count, mean, scatter in zip(*parts, strict=True):
            s, c, d = mean.shape
            other = GaussianStatistics(s, c, d, mean.device, traces=self.traces)
            other.count, other.mean, other.scatter = count, mean, scatter
            self.merge(other)

    @staticmethod
    def _gathered(t: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(t) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, t)
        return parts

    def finish(self, metric: str, subsets: Tensor, about: dict[str, Any]) -> GaussianParameters:
        """Prototypes and sigma.

        With prototype c the class mean and Sigma its covariance: Euclidean E|z-c|^2 = tr Sigma; cosine, where
        E<z,c> = |c|^2, E(1-<z,c>)^2 = (1-|c|^2)^2 + c' Sigma c.
        """
        if self.squares is not None:
            second = self.squares / self.count
        elif metric == COSINE:
            covariance = self.scatter / self.count[..., None, None]
            spread = torch.einsum("sci,scij,scj->sc", self.mean, covariance, self.mean)
            second = (1 - self.mean.square().sum(-1)).square() + spread
        else:
            traces = self.scatter if self.traces else self.scatter.diagonal(dim1=-2, dim2=-1).sum(-1)
            second = traces / self.count
        prototypes = self.mean.float().cpu()
        # A float32 unit vector is one to 1e-7 only, so identical samples of a class leave a spread of that order.
        sigma = torch.where(second < NO_SPREAD**2, 0, second).sqrt().float().cpu()
        return GaussianParameters(prototypes, sigma, prototypes.mean(0), subsets, metric, about=about)


def rows_by_class(target: Tensor) -> list[tuple[int, Tensor]]:
    """(class, rows) of each class in a batch of targets (B,)."""
    host = on_host(target)
    order = host.argsort(stable=True)
    classes, counts = torch.unique_consecutive(host[order], return_counts=True)
    rows = to_device(order, target.device).split(counts.tolist())
    return list(zip(classes.tolist(), rows, strict=True))


def absent_modalities(batch: Batch, names: list[str]) -> Tensor | None:
    """(B, M) bool: modalities of which the data have nothing; None where they have something of all. A table that
    lacks some cells is there."""
    if batch.complete:
        return None
    absent = unobserved(batch, names)
    return absent if absent.any() else None


def check_split(split: str) -> None:
    """
    Raises:
        UserError: parameters may not be estimated on test data.
    """
    if split == "test":
        raise UserError("Gaussian parameters are never estimated on the test split: set gaussian.split=train (or val)")


@torch.inference_mode()
def collect(model: Backbone, batches: Iterable[Batch], progress: bool = True) -> GaussianStatistics:
    """The statistics of all subsets, each over the samples that have its modalities; the model is in eval mode. With
    :func:`needs_squares`, they lack the sums that :func:`add_squares` adds."""
    subsets = enumerate_subsets(len(model.modalities))
    traces = model.distance_metric != COSINE or needs_squares(model)
    sizes = len(subsets), model.num_classes, model.feature_width
    statistics = GaussianStatistics(*sizes, model.device, traces=traces)
    for ids, features, classes in _features(model, batches, subsets, "Gaussian parameters", progress):
        statistics.update(ids, features, classes)
    return statistics


def needs_squares(model: Backbone) -> bool:
    """Whether the scatter matrices of cosine distances take more than :data:`SCATTER_BYTES`."""
    subsets = 2 ** len(model.modalities) - 1
    return model.distance_metric == COSINE and 8 * subsets * model.num_classes * model.feature_width**2 > SCATTER_BYTES


@torch.inference_mode()
def add_squares(
    model: Backbone, batches: Iterable[Batch], statistics: GaussianStatistics, progress: bool = True
) -> None:
    """Add the sums of squared cosine distances to the means of finished statistics, by a second pass."""
    subsets = enumerate_subsets(len(model.modalities))
    squares = torch.zeros_like(statistics.count)
    for ids, features, classes in _features(model, batches, subsets, "distances to prototypes", progress):
        ids = ids.to(squares.device)
        for c, rows in classes:
            products = features[:, rows].double() @ statistics.mean[ids, c, :, None]
            squares[ids, c] += (1 - products).square().sum((1, 2))
    statistics.squares = squares


def _features(
    model: Backbone, batches: Iterable[Batch], subsets: Tensor, what: str, progress: bool
) -> Iterator[tuple[Tensor, Tensor, list[tuple[int, Tensor]]]]:
    """Subsets (k,), their features (k, B, D) and the rows of each class that have the modalities of these subsets."""
    for batch in Progress(batches, what, disable=not progress, unit="batch"):
        batch = batch.to(model.device)
        classes, absent = rows_by_class(batch.target), absent_modalities(batch, model.modality_names)
        for ids, _, features in model.fuse_subsets(model.encode(batch.inputs), subsets):
            if absent is None:
                yield ids, features, classes
                continue
            for k, feature in zip(ids, features):
                # A row without a modality is none of a subset that shows it.
                has = ~(absent & ~subsets[k].to(absent.device)).any(1)
                usable = ((c, rows[has[rows]]) for c, rows in classes)
                yield k[None], feature[None], [(c, rows) for c, rows in usable if len(rows)]


@torch.inference_mode()
def estimate(
    model: Backbone,
    batches: Iterable[Batch],
    *,
    split: str = "train",
    fit_student_t: bool = False,
    parallel: bool = False,
    progress: bool = True,
) -> GaussianParameters:
    """Gaussian parameters of all subsets, in one pass (two with :func:`needs_squares`), encoders once per sample.

    Args:
        model: trained backbone; put in eval mode.
        batches: samples, at best complete ones; a re-iterable (it is read again with ``fit_student_t`` and for
            a second pass).
        split: the name of the split that ``batches`` come from.
        fit_student_t: also fit scipy's Student-t to the mirrored distances (slow: S * C fits).
        parallel: every process of the default group calls this with its share of the batches; all get the parameters
            of the whole.

    Raises:
        UserError: the split is ``test``, or a class has fewer than two different samples.
    """
    check_split(split)
    model.eval()
    subsets = enumerate_subsets(len(model.modalities))
    statistics = collect(model, batches, progress)
    if parallel:
        statistics.merge_ranks()
    if needs_squares(model):
        log.info(
            "gaussian: a second pass over the data: scatter matrices for %d subsets, %d classes take more than %d MiB",
            *(len(subsets), model.num_classes, SCATTER_BYTES // 2**20),
        )
        add_squares(model, batches, statistics, progress)
        if parallel:
            assert statistics.squares is not None
            dist.all_reduce(statistics.squares)
    rows = int(statistics.count[0].sum())
    parameters = statistics.finish(model.distance_metric, subsets, {"split": split, "rows": rows})
    parameters.check("Gaussian stage")
    if fit_student_t:
        values, target = distances(model, batches, parameters, progress)
        parameters.student_t = _student_t(values, target, model.num_classes, progress)
    return parameters


@torch.inference_mode()
def distances(
    model: Backbone, batches: Iterable[Batch], parameters: GaussianParameters, progress: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of every sample to the prototype of its own class, under every subset.

    Returns:
        (S, N) float32 distances (1 - <z, c>, or |z - c|; NaN where a sample lacks a modality of the subset), (N,)
        targets.
    """
    model.eval()
    parameters = parameters.to(model.device)
    columns, targets = [], []
    for batch in Progress(batches, "distances", disable=not progress, unit="batch"):
        batch = batch.to(model.device)
        column = torch.empty(len(parameters.subsets), len(batch))
        absent = absent_modalities(batch, model.modality_names)
        for ids, _, features in model.fuse_subsets(model.encode(batch.inputs), parameters.subsets):
            centre = parameters.prototypes[ids.to(model.device)][:, batch.target]
            if parameters.metric == COSINE:
                d = 1 - (features * centre).sum(-1)
            else:
                d = torch.linalg.vector_norm(features - centre, dim=-1)
            column[ids] = d.cpu()
        if absent is not None:
            lacks = (absent.cpu() & ~parameters.subsets.cpu()[:, None]).any(-1)
            column = column.masked_fill(lacks, float("nan"))
        columns.append(column)
        targets.append(batch.target.cpu())
    return torch.cat(columns, 1).numpy(), torch.cat(targets).numpy()


def _student_t(values: np.ndarray, target: np.ndarray, num_classes: int, progress: bool) -> Tensor:
    from scipy import stats

    fits = torch.empty(len(values), num_classes, 3)
    for s in Progress(range(len(values)), "Student-t fits", disable=not progress, unit="subset"):
        for c in range(num_classes):
            d = values[s, target == c].astype(np.float64)
            d = d[~np.isnan(d)]
            fits[s, c] = torch.tensor(stats.t.fit(np.concatenate([d, -d])))
    return fits
