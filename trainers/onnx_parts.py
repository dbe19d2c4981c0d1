"""Parts of a method as ONNX programs of their own: encoders, fusion and imputer (``export.parts``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datasets.batch import Batch, hide
from datasets.rows import take_rows
from models.base import IncompleteClassifier
from models.imputers.base import Imputer
from trainers.onnx_program import run_onnx, save_onnx
from trainers.tracing import Arguments, arguments, blank, rounding_bound, trace
from utils.errors import UserError

ENCODED = "encoded"


class Part(nn.Module):
    """A part, as a function of what :class:`models.program.Program` takes."""

    outputs: Sequence[str] = ()


class Encoder(Part):
    """One modality of ``inputs`` -> ``encoded`` (B, N, D)."""

    outputs = (ENCODED,)

    def __init__(self, model: IncompleteClassifier, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(
        self, inputs: Mapping[str, Tensor], missing: Tensor, feature_missing: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        x, cells = inputs[self.name], feature_missing.get(self.name)
        x = x if cells is None else torch.where(cells, torch.zeros((), dtype=x.dtype), x)
        encoded = self.model.encode_modality(self.name, x, cells)
        assert encoded is not None
        return {ENCODED: encoded}


class Fusion(Part):
    """``encoded`` (B, P, D), the outputs of the encoders side by side -> ``logits`` (B, C)."""

    outputs = ("logits",)

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, inputs: Mapping[str, Tensor], missing: Tensor, feature_missing: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        rows = torch.zeros_like(missing[:, 0], dtype=torch.long)
        batch = Batch({}, missing, rows, rows, dict(feature_missing))
        return {"logits": self.model.fuse(inputs[ENCODED], batch).logits}


class Recovery(Part):
    """``inputs`` with what is missing filled in, modality by modality."""

    def __init__(self, imputer: Imputer, outputs: Sequence[str]) -> None:
        super().__init__()
        self.imputer, self.outputs = imputer, outputs

    def forward(
        self, inputs: Mapping[str, Tensor], missing: Tensor, feature_missing: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        observed = hide(inputs, missing, feature_missing)
        filled = self.imputer.impute_fixed(observed, missing, feature_missing)
        return {name: filled[name] for name in self.outputs}


@torch.no_grad()
def write_parts(model: Any, imputer: Imputer | None, batch: Batch, folder: Path) -> dict[str, Any]:
    """Write ``encoders/<modality>.onnx``, ``fusion.onnx`` and ``imputer.onnx``.

    Args:
        model: classifier of the method, in eval mode on the CPU.
        imputer: of the method, if it has one.
        batch: rows on which the parts are compared with the method.

    Returns:
        Name of the part -> file, largest difference from the method and its tolerance; or the reason why it is
        ``left_out``.
    """
    about: dict[str, Any] = {}
    for name, part, rows, expected in _parts(model, imputer, batch):
        try:
            about[name] = _write(name, part, rows, expected, folder)
        except UserError as error:
            about[name] = {"left_out": str(error)}
    if "fusion" not in about:
        reason = "its encodings of single modalities are not the input of its fusion"
        about |= {name: {"left_out": reason} for name in (*_encoder_names(model), "fusion")}
    return about


def _encoder_names(model: Any) -> list[str]:
    return [f"encoders/{name}" for name in model.modality_names]


def _parts(
    model: Any, imputer: Imputer | None, batch: Batch
) -> Iterator[tuple[str, Part, Arguments, Mapping[str, Tensor]]]:
    """Name, part, arguments and expected outputs of everything that the method has."""
    pieces = _encodings(model, batch)
    if pieces is not None:
        for name, piece in pieces.items():
            cells = {table: mask for table, mask in _cells(model, batch).items() if table == name}
            rows = ({name: batch.observed()[name]}, batch.missing, cells)
            yield f"encoders/{name}", Encoder(model, name), rows, {ENCODED: piece}
        rows = ({ENCODED: torch.cat(list(pieces.values()), dim=1)}, batch.missing, dict(batch.feature_missing))
        yield "fusion", Fusion(model), rows, {"logits": model.fuse(rows[0][ENCODED], batch).logits}
    if imputer is None:
        return
    names = imputer.recoverable(model.modalities)
    unrecoverable = imputer.unrecoverable(model.modalities, batch.missing)
    fillable = batch if unrecoverable is None else take_rows(batch, ~unrecoverable.any(1))
    observed = fillable.replace(inputs=fillable.observed())
    filled = imputer.impute(observed.inputs, fillable.missing, feature_missing=fillable.feature_missing)
    yield "imputer", Recovery(imputer, names), arguments(observed), {name: filled[name] for name in names}


def _cells(model: Any, batch: Batch) -> dict[str, Tensor]:
    return model.cells(batch.missing, batch.feature_missing) if hasattr(model, "cells") else {}


def _encodings(model: Any, batch: Batch) -> dict[str, Tensor] | None:
    """Modality -> its encodings (B, N, D); None where their sequence is not what the method fuses."""
    if not (hasattr(model, "encode_modality") and hasattr(model, "fuse")):
        return None
    observed, cells = batch.observed(), _cells(model, batch)
    pieces: dict[str, Tensor] = {}
    for name in model.modality_names:
        encoded = model.encode_modality(name, observed[name], cells.get(name))
        if encoded is None:
            return None
        pieces[name] = encoded
    together, logits = torch.cat(list(pieces.values()), dim=1), model(batch).logits
    complete = model.encode(observed, cells)
    is_sequence = complete.shape == together.shape and torch.equal(complete, together)
    bound = rounding_bound(model, logits)
    return pieces if is_sequence and (model.fuse(together, batch).logits - logits).abs().max() <= bound else None


def _write(name: str, part: Part, rows: Arguments, expected: Mapping[str, Tensor], folder: Path) -> dict[str, Any]:
    """
    Raises:
        UserError: the part cannot be traced, has no form in ONNX, or computes something else.
    """
    file = folder / f"{name}.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    example = blank(rows)
    save_onnx(trace(part.eval(), example, f"part {name}"), example, list(part.outputs), file)
    outputs = run_onnx(file, rows)
    difference = max(float((outputs[key].double() - value.double()).abs().max()) for key, value in expected.items())
    tolerance = max(rounding_bound(part, value) for value in expected.values())
    if not difference <= tolerance:
        file.unlink()
        raise UserError(
            f"its outputs differ from those of the method by {difference:.2g} on validation data, more than rounding "
            f"explains ({tolerance:.2g})"
        )
    return {"file": file.relative_to(folder).as_posix(), "largest_difference": difference, "tolerance": tolerance}
