"""Conversion of an exported program to ONNX, and its execution with onnxruntime."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError

Arguments = tuple[Mapping[str, Tensor], Tensor, Mapping[str, Tensor]]
# log(erfc(x)) = log(t) - x^2 + polynomial in t = 1 / (1 + x / 2), for x >= 0, with an error of erfc below 1.2e-7 of its
# value (Press et al., Numerical Recipes in C, 2nd ed., section 6.2).
LOG_ERFC = (-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807, -1.13520398, 1.48851587,
            -0.82215223, 0.17087277)  # fmt: skip


def input_names(example: Arguments) -> list[str]:
    """Names of the inputs, in their order: ``inputs_<modality>``, ``missing``, ``feature_missing_<table>``."""
    inputs, _, cells = example
    return [*(f"inputs_{name}" for name in inputs), "missing", *(f"feature_missing_{name}" for name in cells)]


def save_onnx(program: torch.export.ExportedProgram, example: Arguments, outputs: list[str], file: Path) -> None:
    """Convert a program to ONNX.

    Args:
        example: that the program was traced with.
        outputs: names of its outputs.

    Raises:
        UserError: an operation has no counterpart in ONNX.
    """
    level = logging.getLogger("onnxscript").level
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    try:
        converted = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            optimize=False,  # its rules take x + 1e-8 for x; onnxruntime optimises on its own
            input_names=input_names(example),
            output_names=outputs,
            custom_translation_table={
                torch.ops.aten.special_log_ndtr.default: log_ndtr,
                torch.ops.aten.log_sigmoid.default: log_sigmoid,
                torch.ops.aten._cdist_forward.default: euclidean_distances,
            },
        )
    except Exception as error:  # the exporter has many ways to refuse
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
        raise UserError(
            f"export.format=onnx: the program has no form in ONNX (torch.onnx: {reason}): leave onnx out"
        ) from error
    finally:
        logging.getLogger("onnxscript").setLevel(level)
    assert converted is not None
    from onnxscript.optimizer import fold_constants, remove_unused_nodes  # optional

    fold_constants(converted.model)
    remove_unused_nodes(converted.model)
    converted.save(file)


def open_onnx(file: Path) -> Callable[[Arguments], dict[str, Tensor]]:
    """An ONNX program as a function. To open it, which optimises its graph, takes longer than a call."""
    import onnxruntime  # optional

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    # Inputs that a method does not read are not in the graph.
    known = {node.name for node in session.get_inputs()}
    names = [node.name for node in session.get_outputs()]

    def run(arguments: Arguments) -> dict[str, Tensor]:
        inputs, missing, cells = arguments
        values = zip(input_names(arguments), [*inputs.values(), missing, *cells.values()], strict=True)
        outputs = session.run(None, {name: value.numpy() for name, value in values if name in known})
        return {name: torch.from_numpy(value) for name, value in zip(names, outputs, strict=True)}

    return run


def run_onnx(file: Path, arguments: Arguments) -> dict[str, Tensor]:
    """Outputs of an ONNX program."""
    return open_onnx(file)(arguments)


def operators() -> Any:
    """Operators of ONNX, for the functions below."""
    from onnxscript import opset18  # optional

    return opset18


def log_ndtr(x: Any) -> Any:
    """ONNX form of ``torch.special.log_ndtr``, exact in the tail, where the usual one through erf has no digits."""
    op = operators()

    def constant(value: float) -> Any:
        return op.CastLike(op.Constant(value_float=value), x)

    z = op.Div(op.Abs(x), constant(math.sqrt(2)))
    t = op.Reciprocal(op.Add(constant(1.0), op.Mul(constant(0.5), z)))
    polynomial = constant(LOG_ERFC[-1])
    for coefficient in reversed(LOG_ERFC[:-1]):
        polynomial = op.Add(op.Mul(polynomial, t), constant(coefficient))
    tail = op.Sub(op.Add(op.Add(op.Log(t), polynomial), constant(-math.log(2))), op.Mul(z, z))
    body = op.Log(op.Sub(constant(1.0), op.Exp(tail)))
    return op.Where(op.Less(x, constant(0.0)), tail, body)


def log_sigmoid(x: Any) -> Any:
    """ONNX form of ``logsigmoid``; the usual one is the logarithm of a sigmoid that onnxruntime clips below -18."""
    op = operators()
    return op.Neg(op.Softplus(op.Neg(x)))


def euclidean_distances(x: Any, y: Any, p: float, compute_mode: int) -> Any:
    """ONNX form of ``torch.cdist``, x (R, D), y (C, D) -> (R, C), from differences; ``p`` is 2."""
    op = operators()
    differences = op.Sub(op.Unsqueeze(x, [-2]), op.Unsqueeze(y, [-3]))
    return op.ReduceL2(differences, [-1], keepdims=0)
