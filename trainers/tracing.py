"""Tracing of networks with a dynamic batch size, and the rounding that their programs may differ by."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datasets.batch import Batch
from utils.errors import UserError, first_line

Arguments = tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]


def trace(program: nn.Module, example: Arguments, name: str) -> torch.export.ExportedProgram:
    """Trace a program with a dynamic batch size.

    Args:
        example: two rows; a single one would fix the batch size to 1.
        name: of the method, for messages.

    Raises:
        UserError: it branches on values, or selects rows.
    """
    rows = {0: torch.export.Dim.DYNAMIC}
    shapes = ({key: rows for key in example[0]}, rows, {key: rows for key in example[2]})
    try:
        # strict: otherwise len(tensor) would fix the batch size.
        return torch.export.export(program, example, dynamic_shapes=shapes, strict=True)
    except Exception as error:  # torch.export has many ways to refuse
        reason = first_line(error)
        raise UserError(f"{name} cannot be exported (torch.export: {reason}): set export.format=[bundle]") from error


def arguments(batch: Batch) -> Arguments:
    """What :class:`models.program.Program` takes of a batch."""
    return dict(batch.inputs), batch.missing, dict(batch.feature_missing)


def blank(example: Arguments) -> Arguments:
    """Two rows of zeros in the place of the given ones, since a ``.pt2`` file stores its example."""
    inputs, missing, cells = example

    def zeros(x: Tensor) -> Tensor:
        return torch.zeros(2, *x.shape[1:], dtype=x.dtype)

    return (
        {name: zeros(x) for name, x in inputs.items()},
        zeros(missing),
        {name: zeros(x) for name, x in cells.items()},
    )


def rounding_bound(module: nn.Module, output: Tensor) -> float:
    """Largest difference of two float32 evaluations of a network with other orders of summation.

    To first order, two sums of n terms differ by at most n eps times the sum of the absolute terms (Higham, Accuracy
    and Stability of Numerical Algorithms, 2nd ed., eq. 3.5). Terms: of the widest layer, at least 256; magnitude: that
    of the output, at least 1, that of normalised activations.
    """
    terms = max([256, *(p[0].numel() for p in module.parameters() if p.ndim > 1)])
    return terms * torch.finfo(torch.float32).eps * max(1.0, float(output.abs().max()))
