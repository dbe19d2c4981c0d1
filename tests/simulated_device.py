"""A device that computes on the CPU and notices what a GPU would wait for.

Its tensors hold one of the CPU, and are on PyTorch's device ``meta``, for which autograd needs no driver. Numbers are
those of the CPU, and code that branches on the type of the device takes the way of a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, autocast
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
aten = torch.ops.aten
# Shapes or numbers that the host has to know.
READS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.bincount.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
    aten.equal.default,
}
# Indices on the CPU, and masks, of which the number of True is read.
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class Simulated(Tensor):
    """``inner`` as seen from the host."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Simulated:
        options: dict[str, Any] = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        x = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=DEVICE, **options)
        x.inner = inner
        return x

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Simulated({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} outside of SimulatedDevice")


class SimulatedDevice(TorchDispatchMode):
    """Within this context, ``DEVICE`` is a device.

    Attributes:
        waits: operations for which the host waited, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self._around = ExitStack()

    def __enter__(self) -> SimulatedDevice:
        self._around.enter_context(_Calls(self.waits))
        self._around.enter_context(patch.object(torch, "autocast", _autocast))
        # Subclasses of tensors do not know this mode.
        self._around.enter_context(patch.object(torch._C, "_InferenceMode", lambda _: torch.no_grad()))
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._around.close()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        is_simulated = any(isinstance(x, Simulated) for x in tree_leaves((args, kwargs)))
        target = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        if target is not None:
            kwargs["device"] = torch.device("cpu") if target == DEVICE else target
        if _is_read(function, args, target) if is_simulated else _is_blocking_upload(function, args, kwargs, target):
            self.waits.append(str(function))
        result = function(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        if function._schema.is_mutable:
            return args[0]
        moves = is_simulated if target is None else target == DEVICE
        return tree_map(lambda x: Simulated(x) if moves and isinstance(x, Tensor) else x, result)


class _Calls(TorchFunctionMode):
    """Calls that PyTorch refuses before they become operations. ``torch.tensor(values, device=DEVICE)`` is a blocking
    copy on a GPU."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            return (
                args[0] if isinstance(args[0], Simulated) else function(*args, **kwargs | {"device": None}).to(DEVICE)
            )
        if function is Tensor.tolist and isinstance(args[0], Simulated):
            self.waits.append("tolist")
            return args[0].inner.tolist()
        return function(*args, **kwargs)


def _autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
    return autocast("cpu" if device_type == DEVICE.type else device_type, *args, **kwargs)


def _is_read(function: Any, args: Sequence[Any], target: torch.device | None) -> bool:
    if function in READS:
        return True
    if function in INDEXING:
        indices = [x for x in args[1] if x is not None]
        # A number is written through a mask without counting it.
        is_filled = function is not aten.index.Tensor and args[2].ndim == 0
        return any(not isinstance(x, Simulated) or (x.dtype == torch.bool and not is_filled) for x in indices)
    if function is aten.copy_.default:
        return isinstance(args[0], Simulated) != isinstance(args[1], Simulated) and not any(args[2:])
    return target is not None and target != DEVICE and function is aten._to_copy.default


def _is_blocking_upload(
    function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], target: torch.device | None
) -> bool:
    return target == DEVICE and function is aten._to_copy.default and not kwargs.get("non_blocking")


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, Simulated) else x
