"""Transfers to and from a device, on a simulated one that notices what the host waits for."""

from __future__ import annotations

import torch

from tests.simulated_device import DEVICE, SimulatedDevice
from utils.transfer import column_rows, on_host, to_device, to_host


def test_values_come_back_in_one_transfer() -> None:
    values = [
        torch.arange(5),
        torch.rand(5, 3).T,
        torch.tensor([[True], [False]]),
        torch.arange(3, dtype=torch.int8),
        torch.rand(2, 0, 4),
        torch.rand(3).double(),
    ]
    with SimulatedDevice() as device:
        copies = to_host([to_device(value, DEVICE) for value in values])
        assert device.waits == ["aten._to_copy.default"]
    for value, copy in zip(values, copies, strict=True):
        assert copy.dtype == value.dtype and torch.equal(copy, value)
    assert to_host(values)[1] is values[1]  # on the CPU, nothing is copied


def test_a_remembered_mask_is_read_without_waiting() -> None:
    mask = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) < 0.4
    expected = [column.nonzero()[:, 0].tolist() for column in mask.unbind(1)]
    with SimulatedDevice() as device:
        copy = to_device(mask, DEVICE, is_remembered=True)
        rows = column_rows(copy)
        assert on_host(copy) is mask and not device.waits
        assert [part.inner.tolist() for part in rows] == expected  # type: ignore[attr-defined]
        unknown = to_device(mask, DEVICE)
        column_rows(unknown), column_rows(unknown, False)
        assert device.waits == ["aten._to_copy.default"]  # once per mask
    assert on_host(mask) is mask


def test_a_simulated_device_notices_what_a_gpu_waits_for() -> None:
    index, mask = torch.tensor([0, 1]), torch.tensor([True, False, True])
    with SimulatedDevice() as device:
        x = to_device(torch.rand(3), DEVICE)
        for call in (
            lambda: x.sum().item(),
            lambda: bool((x > 0).all()),
            lambda: x.nonzero(),
            lambda: x[index],
            lambda: x[to_device(mask, DEVICE)],
            lambda: mask.to(DEVICE),
            lambda: x.cpu(),
            lambda: x.tolist(),
            lambda: x.to("cpu", non_blocking=True),
            lambda: torch.tensor([1, 2], device=DEVICE),
        ):
            device.waits.clear()
            call()
            assert device.waits, call
        device.waits.clear()
        y = x[to_device(index, DEVICE)]
        y[to_device(mask[:2], DEVICE)] = 1.0
        (x * 2).sum().requires_grad_().backward()
        assert not device.waits and y.device == DEVICE
