"""Transfers between the host and a GPU that do not wait for it, or wait once.

Reading a value of a GPU, such as the number of rows that a mask selects, waits for everything that was queued before. A
mask that was made on the host is therefore remembered with its copy on the GPU, and where the host needs it, it reads
that one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

HOST_COPY = "host_copy"  # attribute of a tensor on a GPU, with its version; operations return tensors without it


def to_device(x: Tensor, device: torch.device, is_remembered: bool = False) -> Tensor:
    """Copy a tensor of the host without waiting for the device.

    Args:
        is_remembered: :func:`on_host` returns ``x`` for the copy, which is then not to be written to.
    """
    if x.device.type != "cpu" or device.type == "cpu":
        return x.to(device)
    copy = x.to(device, non_blocking=True)
    if is_remembered:
        setattr(copy, HOST_COPY, (x, _version(copy)))
    return copy


def _version(x: Tensor) -> int | None:
    """Number of writes to a tensor; None where PyTorch does not count them."""
    return None if x.is_inference() else x._version


def on_host(x: Tensor) -> Tensor:
    """The same values on the CPU: ``x`` itself, what was remembered, or a copy, which waits for the device once."""
    if x.device.type == "cpu":
        return x
    copy, version = getattr(x, HOST_COPY, (None, None))
    if copy is None or version != _version(x):  # never copied, or written to since
        copy = x.cpu()
        setattr(x, HOST_COPY, (copy, _version(x)))
    return copy


def column_rows(mask: Tensor, value: bool = True) -> list[Tensor]:
    """Numbers of the rows (R,) with this value, of each column of a mask (B, M); see :func:`on_host`."""
    return [to_device((c == value).nonzero()[:, 0], mask.device) for c in on_host(mask).unbind(1)]


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies on the CPU, made in one transfer: each single one would wait for the device. Tensors of the CPU are
    returned as they are."""
    if all(x.device.type == "cpu" for x in tensors):
        return list(tensors)
    # The widest types first, so that every part starts at a multiple of its own width.
    order = sorted(range(len(tensors)), key=lambda i: -tensors[i].element_size())
    parts = [tensors[i].contiguous().flatten().view(torch.uint8) for i in order]
    copies = list(tensors)
    for i, part in zip(order, torch.cat(parts).cpu().split([len(part) for part in parts]), strict=True):
        copies[i] = part.view(tensors[i].dtype).view(tensors[i].shape)
    return copies
