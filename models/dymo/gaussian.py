"""Class-wise Gaussian parameters of a backbone's features, which the selection reads."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from models.dymo.backbone import Backbone
from models.dymo.original import read_reference_gaussian, reference_gaussian_metric, write_reference_gaussian
from models.dymo.prototypes import COSINE, EUCLIDEAN
from utils.checksums import verify_artefact
from utils.errors import UserError
from utils.files import replacing
from utils.safe_pickle import read_tensors
from utils.subsets import enumerate_subsets
from utils.weights import safetensors_content

# A class whose distances are below this everywhere has no spread.
NO_SPREAD = 1e-6
SUFFIX = {COSINE: "cosine", EUCLIDEAN: "euclidean"}


@dataclass
class GaussianParameters:
    """Per-subset, per-class reference of the features.

    Attributes:
        prototypes: (S, C, D) float32 mean features (not re-normalised).
        sigma: (S, C) float32, > 0.
        overall: (C, D), unweighted mean of the prototypes over subsets.
        subsets: (S, M) bool, True = missing, in the order of :mod:`utils.subsets`.
        metric: cosine_similarity or squared_euclidean.
        student_t: (S, C, 3) df, loc, scale of a fit to the mirrored distances, or None. DyMo does not use it.
        about: plain values: split, rows, checkpoint fingerprint.
    """

    prototypes: Tensor
    sigma: Tensor
    overall: Tensor
    subsets: Tensor
    metric: str
    student_t: Tensor | None = None
    about: dict[str, Any] | None = None

    def to(self, device: torch.device | str) -> GaussianParameters:
        """Copy for the selection on a device, without ``student_t``."""
        return replace(
            self,
            prototypes=self.prototypes.to(device),
            sigma=self.sigma.to(device),
            overall=self.overall.to(device),
            student_t=None,
        )

    def save(self, path: Path) -> None:
        """Write ``.safetensors``, with metric and ``about`` in the header."""
        tensors = {
            "prototypes": self.prototypes,
            "sigma": self.sigma,
            "overall": self.overall,
            "subsets": self.subsets,
        }
        if self.student_t is not None:
            tensors["student_t"] = self.student_t
        header = {"metric": self.metric, "about": json.dumps(self.about or {})}
        with replacing(path) as temporary:
            # Not save_file, whose errors are not those of the system.
            temporary.write_bytes(safetensors_content(tensors, header))

    def save_reference(self, path: Path) -> None:
        """Write the original repository's ``subset_gaussian.pt``; ``student_t`` is NaN where it was not fitted."""
        write_reference_gaussian(path, self.prototypes, self.sigma, self.subsets, self.overall, self.student_t)

    @classmethod
    def load(cls, path: Path, metric: str | None = None) -> GaussianParameters:
        """Read a file of ours, or ``subset_gaussian.pt`` or ``subset_gaussian_EU.pt`` of the original.

        Args:
            metric: expected metric, which decides for files of the original whose name and values leave it open.

        Raises:
            UserError: not such a file, or values that cannot be used (sigma <= 0, NaN), named.
        """
        if not path.is_file():
            raise UserError(f"Gaussian parameter file {path} does not exist: run stage 'gaussian' or correct the path")
        verify_artefact(path)
        if path.suffix == ".safetensors":
            try:
                with safetensors.safe_open(path, "pt") as file:
                    header = file.metadata() or {}
                    t = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a mapping)
                parameters = cls(
                    prototypes=t["prototypes"],
                    sigma=t["sigma"],
                    overall=t["overall"],
                    subsets=t["subsets"],
                    metric=header["metric"],
                    student_t=t.get("student_t"),
                    about=json.loads(header["about"]),
                )
            except (KeyError, ValueError, RecursionError, safetensors.SafetensorError) as error:
                raise UserError(f"{path} holds no Gaussian parameters ({error}): run stage 'gaussian' again") from None
        else:
            content = read_tensors(path)
            original = read_reference_gaussian(content, path)
            parameters = cls(
                prototypes=original["prototypes"],
                sigma=original["dist_std"],
                overall=original["overall_prototypes"],
                subsets=original["subsets"],
                metric=reference_gaussian_metric(content, path, metric),
                student_t=original["student_t"],
                about={"source": "original repository"},
            )
            parameters._reorder()
        parameters.check(str(path))
        return parameters

    def _reorder(self) -> None:
        """Sort the rows into our subset order."""
        order = {tuple(row): i for i, row in enumerate(self.subsets.tolist())}
        ours = enumerate_subsets(self.subsets.shape[1])
        index = torch.tensor([order[tuple(row)] for row in ours.tolist()])
        self.prototypes, self.sigma, self.subsets = self.prototypes[index], self.sigma[index], ours
        self.student_t = None if self.student_t is None else self.student_t[index]

    def check(self, where: str) -> None:
        """
        Raises:
            UserError: a class or subset whose distances have no spread, or a value that is not finite.
        """
        bad = ~(torch.isfinite(self.sigma) & (self.sigma > 0) & torch.isfinite(self.prototypes).all(-1))
        if bad.any():
            s, c = bad.nonzero()[0].tolist()
            visible = [i for i, is_missing in enumerate(self.subsets[s].tolist()) if not is_missing]
            fix = (
                "the backbone gives all samples the same feature there, so it learned nothing from these modalities: "
                "train it longer, or with another learning rate"
                if bool(bad[s].all())
                else "each class needs at least two different training samples, and a backbone that tells them apart: "
                "train it for fewer epochs, or set distance_metric=squared_euclidean"
            )
            raise UserError(
                f"{where}: class {c} under visible modalities {visible} has sigma {float(self.sigma[s, c]):g} "
                f"({int(bad.sum())} such entries); {fix}"
            )

    def check_fits(self, model: Backbone, where: str) -> None:
        """
        Raises:
            UserError: other modalities, classes, width or metric than the backbone has.
        """
        _, c, d = self.prototypes.shape
        have = {"modalities": self.subsets.shape[1], "classes": c, "feature width": d, "metric": self.metric}
        want = {
            "modalities": len(model.modalities),
            "classes": model.num_classes,
            "feature width": model.feature_width,
            "metric": model.distance_metric,
        }
        for key, value in have.items():
            if value != want[key]:
                fix = (
                    f"set distance_metric={value}, or give parameters made with {want[key]}"
                    if key == "metric"
                    else "use parameters made from this backbone on this data set"
                )
                raise UserError(f"{where} has {key} {value} but the backbone has {want[key]}: {fix}")
