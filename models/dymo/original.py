"""Files of the original DyMo repository: its checkpoints and Gaussian parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

import torch
from torch import Tensor

from utils.errors import UserError
from utils.files import replacing
from utils.weights import _PREFIX

Metric = Literal["cosine_similarity", "squared_euclidean"]


def convert_dynamic_transformer(state: Mapping[str, Any], modality_names: Sequence[str]) -> dict[str, Any]:
    """The weights of an original DynamicTransformer under our names.

    Encoders move from ``m_encoders.{index or name}.`` to ``encoders.{name}.``; everything else keeps its name. Encoders
    of modalities that the data set does not have are passed on, so that ``load_strict`` can say what is wrong.
    """
    converted = {}
    for key, value in state.items():
        key = _PREFIX.sub("", key)
        if key.startswith("m_encoders."):
            _, name, parameter = key.split(".", 2)
            if name.isdecimal() and int(name) < len(modality_names):
                name = modality_names[int(name)]
            key = f"encoders.{name}.{parameter}"
        converted[key] = value
    return converted


# ------------------------------------------------------------------- class-wise Gaussian parameters of the original


_FIX = "estimate the parameters again with the stage 'gaussian', or give another file"


class ReferenceGaussian(TypedDict):
    """Class-wise parameters of every subset; S = 2^M - 1 in the order of the file.

    ``prototypes`` (S, C, D), ``overall_prototypes`` (C, D), ``dist_std`` (S, C) > 0, ``student_t`` (S, C, 3) or None
    (degrees of freedom, location, scale), all float32; ``subsets`` (S, M) bool, True = missing.
    """

    prototypes: Tensor
    overall_prototypes: Tensor
    dist_std: Tensor
    student_t: Tensor | None
    subsets: Tensor


def read_reference_gaussian(content: Mapping[str, Any], path: Path) -> ReferenceGaussian:
    """The content of ``subset_gaussian.pt`` or ``subset_gaussian_EU.pt``, checked.

    Args:
        content: as ``read_tensors`` returns it.
        path: for the messages.

    Raises:
        UserError: the file contradicts itself, or a class has no usable spread.
    """

    def array(key: str, *shape: int) -> Tensor:
        try:
            value = torch.as_tensor(content[key]).detach().float()
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path} has no array '{key}': {_FIX}") from error
        if (value.ndim != 3 or 0 in value.shape) if not shape else value.shape != shape:
            wanted = shape or "(subsets, classes, values)"
            raise UserError(f"{path}: '{key}' has the shape {tuple(value.shape)} instead of {wanted}: {_FIX}")
        return value

    prototypes = array("prototypes")
    s, c, d = prototypes.shape
    rows = _subset_rows(content, s, path)

    def where(bad: Tensor) -> str:
        subset, label = bad.nonzero()[0].tolist()
        absent = ", ".join(str(i) for i, missing in enumerate(rows[subset]) if missing) or "nothing"
        return f"class {label} in subset {subset} (missing: {absent})"

    dist_std = array("dist_std", s, c)
    if (bad := ~torch.isfinite(prototypes).all(-1)).any():
        raise UserError(f"{path}: the prototype of {where(bad)} is not finite, the class had no sample: {_FIX}")
    if (bad := ~(torch.isfinite(dist_std) & (dist_std > 0))).any():
        value = dist_std[bad][0].item()
        raise UserError(
            f"{path}: the spread of {where(bad)} is {value:g}, a class needs two different samples or more: {_FIX}"
        )
    overall = array("overall_prototypes", c, d)
    if not torch.isfinite(overall).all():
        raise UserError(f"{path}: 'overall_prototypes' is not finite: {_FIX}")
    student_t = None if content.get("t_dist_params") is None else array("t_dist_params", s, c, 3)
    if student_t is not None and student_t.isnan().all():
        student_t = None
    return ReferenceGaussian(
        prototypes=prototypes,
        overall_prototypes=overall,
        dist_std=dist_std,
        student_t=student_t,
        subsets=torch.tensor(rows, dtype=torch.bool),
    )


def _subset_rows(content: Mapping[str, Any], s: int, path: Path) -> list[tuple[bool, ...]]:
    """The S subsets in the order of the file, True = missing; every subset of M modalities once."""
    ids = content.get("id2subset")
    if not isinstance(ids, Mapping) or set(ids) != set(range(s)):
        raise UserError(f"{path}: 'id2subset' does not number the {s} subsets of 'prototypes' from 0: {_FIX}")
    rows = [tuple(map(bool, ids[i])) if isinstance(ids[i], Sequence) else () for i in range(s)]
    m = len(rows[0])
    if s != 2**m - 1 or len(set(rows)) != s or any(len(row) != m or all(row) for row in rows):
        raise UserError(
            f"{path}: 'id2subset' does not list every subset of {m} modalities once ({2**m - 1}, has {s}): {_FIX}"
        )
    inverse = content.get("subset2id")
    if isinstance(inverse, Mapping) and dict(inverse) != {row: i for i, row in enumerate(rows)}:
        raise UserError(f"{path}: 'subset2id' is not the inverse of 'id2subset': {_FIX}")
    return rows


def write_reference_gaussian(
    path: Path,
    prototypes: Tensor,
    dist_std: Tensor,
    subsets: Tensor,
    overall_prototypes: Tensor | None = None,
    student_t: Tensor | None = None,
) -> None:
    """Write Gaussian parameters as the original DyMo reads them (shapes as in ``ReferenceGaussian``).

    Args:
        overall_prototypes: None = the mean of ``prototypes`` over the subsets.
        student_t: None = NaN (DyMo never reads them).
    """
    rows = [tuple(row) for row in subsets.bool().tolist()]
    if overall_prototypes is None:
        overall_prototypes = prototypes.mean(0)
    if student_t is None:
        student_t = torch.full((*dist_std.shape, 3), torch.nan)
    arrays = {
        "prototypes": prototypes,
        "overall_prototypes": overall_prototypes,
        "dist_std": dist_std,
        "t_dist_params": student_t,
    }
    content: dict[str, Any] = {key: value.detach().cpu().float().contiguous() for key, value in arrays.items()}
    content["id2subset"] = dict(enumerate(rows))
    content["subset2id"] = {row: i for i, row in enumerate(rows)}
    path = Path(path)
    with replacing(path) as temporary:
        torch.save(content, temporary)


def guess_metric(prototypes: Tensor, dist_std: Tensor | None = None) -> Metric | None:
    """The distance that Gaussian parameters were estimated with, as far as their values tell.

    Cosine features z have length one, so a prototype c = mean z has |c| <= 1, and d = 1 - <z, c> has the mean 1 - |c|²,
    so (1 - |c|²)² <= σ² = E d² <= 1 - |c|². A longer prototype, or a σ outside, cannot be cosine.

    Args:
        prototypes: (S, C, D).
        dist_std: (S, C), or None.

    Returns:
        None where it cannot be told: NaN, or no prototype longer than one and no ``dist_std``.
    """
    norms = prototypes.double().norm(dim=-1)
    if not torch.isfinite(norms).all():
        return None
    if (norms > 1 + _NORM_TOLERANCE).any():
        return "squared_euclidean"
    if dist_std is None:
        return None
    remainder, spread = 1 - norms.square(), dist_std.double()
    # Prototypes of length one leave cosine no spread; files made by hand have them, trained Euclidean ones do not.
    possible = (spread >= remainder - 1e-3) & ((spread.square() <= remainder + 1e-3) | (norms > 1 - 1e-3))
    return "cosine_similarity" if possible.all() else "squared_euclidean"


_NORM_TOLERANCE = 1e-4


def reference_gaussian_metric(
    content: Mapping[str, Any] | ReferenceGaussian, path: Path, wanted: str | None = None
) -> Metric:
    """The distance of a Gaussian file of the original: by its name where it has one, else by its values.

    The original names are ``subset_gaussian.pt`` (cosine) and ``subset_gaussian_EU.pt``. Values can refute cosine (a
    prototype longer than one) but never Euclidean distance, so a name in ``_EU`` is believed. Where the name says
    nothing and the values refute nothing, ``wanted`` decides.

    Raises:
        UserError: the name says cosine and the values refute it, or neither says anything.
    """
    path = Path(path)
    prototypes = torch.as_tensor(content["prototypes"])
    stem = path.stem.lower()
    if stem.endswith("_eu"):
        return "squared_euclidean"
    if stem == "subset_gaussian" or stem.endswith("_cos"):
        longest = prototypes.double().norm(dim=-1).max().item()
        if longest > 1 + _NORM_TOLERANCE:
            raise UserError(
                f"{path} is named like cosine parameters, but a prototype has the length {longest:.4g} and cosine ones "
                "have at most 1: rename it to subset_gaussian_EU.pt if it is of a squared_euclidean model, or give the "
                "file of the cosine model"
            )
        return "cosine_similarity"
    refuted = bool((prototypes.double().norm(dim=-1) > 1 + _NORM_TOLERANCE).any())
    if wanted in ("cosine_similarity", "squared_euclidean") and not refuted:
        return cast(Metric, wanted)
    spread = content.get("dist_std")
    metric = guess_metric(prototypes, None if spread is None else torch.as_tensor(spread))
    if metric is None:
        raise UserError(
            f"the distance that {path} was estimated with cannot be told from its values: name it subset_gaussian.pt "
            "for cosine or subset_gaussian_EU.pt for squared Euclidean distance"
        )
    return metric
