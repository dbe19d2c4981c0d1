"""Batch normalisation that is robust to missing content and small batches.

Two rules, for all encoders with batch statistics and all methods that train them:

- rows without the modality are not encoded, so that blanks do not enter the statistics (:func:`apply_to_observed`);
- if a training batch has a single value per channel, and thus no variance, the layer normalises by its running
  statistics without updating them (:class:`BatchNorm1d`, :class:`BatchNorm2d`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def _has_one_value_per_channel(x: Tensor) -> bool:
    return x.numel() == x.shape[1]


def _by_running_statistics(norm: _BatchNorm, x: Tensor) -> Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)


class BatchNorm1d(nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d` that accepts a single value per channel in training, see the module."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and self.running_mean is not None and _has_one_value_per_channel(input):
            return _by_running_statistics(self, input)
        return super().forward(input)


class BatchNorm2d(nn.BatchNorm2d):
    """:class:`torch.nn.BatchNorm2d` that accepts a single value per channel in training, see the module."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and self.running_mean is not None and _has_one_value_per_channel(input):
            return _by_running_statistics(self, input)
        return super().forward(input)


def accept_single_values(module: nn.Module) -> nn.Module:
    """Replace all PyTorch batch normalisation layers of a network, in place, to accept a single value per channel.

    Parameters, their names and all other results are unchanged. For networks of other libraries.
    """
    for part in module.modules():
        if type(part) is nn.BatchNorm1d:
            part.__class__ = BatchNorm1d
        elif type(part) is nn.BatchNorm2d:
            part.__class__ = BatchNorm2d
    return module


class ObservedInputs(dict[str, Tensor]):
    """Inputs of a training batch whose missing rows are overwritten with zeros.

    Attributes:
        is_observed: modality name -> (B,) bool, True = the row has content.
    """

    def __init__(self, inputs: Mapping[str, Tensor], is_observed: Mapping[str, Tensor]) -> None:
        super().__init__(inputs)
        self.is_observed = dict(is_observed)


def has_batch_statistics(*modules: nn.Module) -> bool:
    """Whether the output of a row depends on other rows of its batch in the current mode."""
    return any(isinstance(part, _BatchNorm) and part.training for module in modules for part in module.modules())


@contextmanager
def frozen_statistics(*modules: nn.Module) -> Iterator[None]:
    """Normalise by the running statistics without updating them."""
    norms = [m for module in modules for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


def apply_with_cells(function: Callable[..., Tensor], x: Tensor, missing: Tensor | None) -> Tensor:
    """Encode one modality (R, ...) of which cells are hidden.

    Args:
        function: an encoder with an argument ``missing``; with an attribute ``takes_cells=False`` (images, sounds,
            videos), it gets zeros in the place of hidden cells.
        missing: (R, ...) bool, broadcastable to ``x``; None = nothing is hidden.
    """
    if missing is None:
        return function(x)
    return (
        function(x, missing=missing) if getattr(function, "takes_cells", True) else function(x.masked_fill(missing, 0))
    )


def apply_to_observed(
    function: Callable[..., Tensor],
    inputs: Mapping[str, Tensor],
    name: str,
    cells: Mapping[str, Tensor] | None = None,
    modules: tuple[nn.Module, ...] = (),
) -> Tensor:
    """Encode one modality; with batch statistics, only the rows with the modality.

    Args:
        function: content (R, ...) of the modality -> (R, ...); see :func:`apply_with_cells`.
        inputs: modality name -> (B, ...); rows are excluded only from :class:`ObservedInputs`.
        name: of the modality.
        cells: name -> (B, ...) bool, cells hidden from the encoder.
        modules: networks that ``function`` runs; empty if ``function`` is a module.

    Returns:
        (B, ...). Excluded rows are zero, without a gradient; a batch without any row of the modality is normalised by
        the running statistics.
    """
    x, missing = inputs[name], None if cells is None else cells.get(name)
    networks = modules or (function,)
    if not isinstance(inputs, ObservedInputs) or not has_batch_statistics(*networks):
        return apply_with_cells(function, x, missing)
    rows = inputs.is_observed[name].nonzero()[:, 0]
    if len(rows) == len(x):
        return apply_with_cells(function, x, missing)
    if not len(rows):
        with frozen_statistics(*networks):
            return apply_with_cells(function, x, missing)
    encoded = apply_with_cells(function, x[rows], None if missing is None else missing[rows])
    return encoded.new_zeros(len(x), *encoded.shape[1:]).index_put((rows,), encoded)
