"""A scikit-learn classifier for incomplete arrays, which runs the stages of ``run.py`` in the background."""

from __future__ import annotations

import io
import json
import logging
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.seed import isolate_rng
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from datasets.array_inputs import ArrayInputs, ImageFiles, is_number
from trainers import run as pipeline
from trainers.bundle import open_bundle
from trainers.config.compose import compose_config
from trainers.config.overrides import check_overrides
from trainers.predictor import Predictor, load
from utils.errors import UserError

log = logging.getLogger(__name__)
EXPERIMENT = "arrays_of_estimator"  # of the configuration that is made for each set of inputs
# Overrides that the estimator sets -> what to use instead.
SET_HERE = {
    "model": ", use the argument method",
    "imputer": ", use the argument imputer",
    "seed": ", use the argument random_state",
    "dataset": "",
    "stages": "",
    "experiment": "",
}
STAGES = "[prepare,impute,fit,gaussian,export]"


class IncompleteClassifierEstimator(ClassifierMixin, BaseEstimator):
    """Any method of this project as a classifier of arrays with missing content.

    ``X`` is a table (N, F); a mapping name -> images (N, H, W), (N, C, H, W) or (N, H, W, C), table (N, F) or data
    frame; or a data frame, whose ``image_columns`` hold image paths. NaN, None and masked entries are missing: a cell
    of a table, or a complete image. Rows without anything observed are left out of training; their probabilities are
    the class frequencies of the training data.

    Args:
        method: option of ``model=``.
        imputer: option of ``imputer=``, for methods that use one.
        overrides: further settings as on the command line, a list of ``key=value`` or a mapping key -> value; they
            override the arguments below.
        max_epochs, batch_size: of the method.
        validation_fraction: share of the rows that choose the best epoch, calibrate, and are not trained on; at least
            one row, where a class can spare it.
        image_columns: columns of a data frame with image paths.
        image_folder: that these start from, None = the working directory.
        image_side: to which image files are resized.
        output: folder that keeps run directory and packed store, None = a temporary one.
        random_state: seed of all draws.

    Attributes:
        classes_: labels, sorted.
        bundle_: :class:`StoredBundle` with the trained model.
        n_features_in_, feature_names_in_: of tables and data frames.
    """

    def __init__(
        self,
        method: str = "DyMo",
        imputer: str = "MoPoE",
        *,
        overrides: Sequence[str] | Mapping[str, Any] = (),
        max_epochs: int = 40,
        batch_size: int = 64,
        validation_fraction: float = 0.1,
        image_columns: Sequence[str] = (),
        image_folder: str | Path | None = None,
        image_side: int = 28,
        output: str | Path | None = None,
        random_state: Any = 0,
    ) -> None:
        self.method, self.imputer, self.overrides = method, imputer, overrides
        self.max_epochs, self.batch_size, self.validation_fraction = max_epochs, batch_size, validation_fraction
        self.image_columns, self.image_folder, self.image_side = image_columns, image_folder, image_side
        self.output, self.random_state = output, random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    # ---- training ----------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any) -> Self:
        """Train on rows ``X`` with labels ``y`` (N,)."""
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        X = self._checked(X, y)
        labels = column_or_1d(y, warn=True)
        check_classification_targets(labels)
        self.classes_, target = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has one class only ({self.classes_[0]}): at least 2 are needed")
        folder = ImageFiles(self.image_columns, Path(self.image_folder or "."), self.image_side)
        self.inputs_ = ArrayInputs(X, folder)
        content = self.inputs_.arrays(X)
        if len(target) != (n := len(next(iter(content.values())))):
            raise ValueError(f"X has {n} rows, y has {len(target)} labels: give as many of each")
        is_seen = observed_rows(content)
        if not is_seen.all():
            log.warning("%d of %d rows have nothing observed, and are left out of training", (~is_seen).sum(), n)
        lost = sorted(set(range(len(self.classes_))) - set(target[is_seen].tolist()))
        if lost:
            raise ValueError(f"nothing is observed in any row of class {self.classes_[lost[0]]}: leave the class out")
        self.class_prior_ = np.bincount(target) / len(target)
        if self.output is None:
            with tempfile.TemporaryDirectory(prefix="estimator-") as temporary:
                self._train(Path(temporary), content, is_seen, target)
        else:
            Path(self.output).mkdir(parents=True, exist_ok=True)
            self._train(Path(self.output), content, is_seen, target)
        return self

    def _train(self, folder: Path, content: Mapping[str, np.ndarray], is_seen: np.ndarray, target: np.ndarray) -> None:
        np.savez(folder / "arrays.npz", target=target[is_seen], **{k: v[is_seen] for k, v in content.items()})
        cfg = self.config(folder)
        # The global generators of a caller stay as they are.
        with isolate_rng():
            pipeline.run(cfg)
        self.bundle_ = StoredBundle(Path(cfg.export.folder).with_suffix(".zip").read_bytes())

    def config(self, folder: str | Path) -> DictConfig:
        """The configuration with which :meth:`fit` runs the stages, on ``arrays.npz`` in a folder."""
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(2**31 - 1)
        given = self.overrides
        if isinstance(given, Mapping):
            given = [f"{key}={value}" for key, value in given.items()]
        for override in map(str, given):
            if (key := override.partition("=")[0]) in SET_HERE:
                raise ValueError(f"overrides: {override} cannot be set there{SET_HERE[key]}")
        overrides = [
            "dataset=Arrays",
            f"model={self.method}",
            f"imputer={self.imputer}",
            f"seed={seed}",
            f"dataset.split_seed={seed}",
            f"dataset.validation={self.validation_fraction}",
            f"dataset.training_defaults.max_epochs={self.max_epochs}",
            f"dataset.training_defaults.batch_size={self.batch_size}",
            f"stages={STAGES}",
            "trainer.enable_progress_bar=false",
            "overwrite=true",
            "imputer.quality=null",
            *map(str, given),
        ]
        specs = json.dumps([self.inputs_.specs, [str(label) for label in self.classes_], self.imputer])
        cfg = _composed(tuple(overrides), specs).copy()
        folder = Path(folder).resolve()
        cfg.dataset.arrays = str(folder / "arrays.npz")
        cfg.paths = {"data": str(folder), "cache": str(folder / "packed"), "output": str(folder / "outputs")}
        cfg.export.folder = str(folder / "bundle")
        return cfg

    def _checked(self, X: Any, y: Any = None) -> Any:
        """Rows as a data frame or a mapping; with labels ``y``, their columns are those of the model."""
        is_fit = y is not None
        if isinstance(X, Mapping) and not issparse(X):  # a sparse matrix of keys is a dict
            return X
        is_frame = isinstance(X, pd.DataFrame)
        if is_frame and (len(self.image_columns) or not all(is_number(X[column]) for column in X)):
            validate_data(self, X, reset=is_fit, skip_check_array=True)
            return X
        if isinstance(X, np.ma.MaskedArray):
            X = np.ma.filled(X.astype(np.float64), np.nan)
        how: dict[str, Any] = {"reset": is_fit, "dtype": np.float64, "ensure_all_finite": "allow-nan"}
        array = validate_data(self, X, y, **how)[0] if is_fit else validate_data(self, X, **how)
        names = getattr(self, "feature_names_in_", [f"x{j}" for j in range(array.shape[1])])
        return pd.DataFrame(array, columns=list(names))

    # ---- prediction --------------------------------------------------------------------------------------------------

    @property
    def predictor_(self) -> Predictor:
        """The trained method, with ``predict``, ``recover`` and ``explain`` (:class:`trainers.predictor.Predictor`)."""
        check_is_fitted(self)
        return self.bundle_.predictor

    def rows(self, X: Any) -> dict[str, np.ndarray]:
        """Rows ``X`` as arrays by modality, as :attr:`predictor_` takes them."""
        check_is_fitted(self)
        return self.inputs_.arrays(self._checked(X))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (N, C) in the order of ``classes_``."""
        probabilities = self.predictor_.predict_proba(self.rows(X)).astype(np.float64)
        return np.where(np.isnan(probabilities), self.class_prior_, probabilities)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(1)]

    def explain(self, X: Any, number: int = 0) -> Any:
        """Picture of one row, see :meth:`trainers.predictor.Predictor.explain`."""
        return self.predictor_.explain(self.rows(X), number=number)


class StoredBundle:
    """The ``.zip`` file of a bundle in memory, so that a fitted estimator can be pickled; it is opened when it is used.

    Args:
        content: of the file.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self._opened: tuple[Predictor, tempfile.TemporaryDirectory[str]] | None = None

    @property
    def predictor(self) -> Predictor:
        if self._opened is None:
            folder = tempfile.TemporaryDirectory(prefix="bundle-")
            with zipfile.ZipFile(io.BytesIO(self.content)) as archive:
                archive.extractall(folder.name)
            (bundle,) = Path(folder.name).iterdir()
            self._opened = load(open_bundle(bundle)), folder
        return self._opened[0]

    def save(self, path: str | Path) -> None:
        """Write the file, for :func:`trainers.predictor.load`, stage predict or other people."""
        Path(path).write_bytes(self.content)

    def __getstate__(self) -> dict[str, Any]:
        return {"content": self.content, "_opened": None}


def observed_rows(content: Mapping[str, np.ndarray]) -> np.ndarray:
    """(N,) bool: rows of which an image or a cell is observed."""
    seen = []
    for name, array in content.items():
        if name.endswith("_absent") and name.removesuffix("_absent") in content:
            continue
        absent = content.get(f"{name}_absent")
        seen.append(~np.isnan(array).all(1) if absent is None else ~absent)
    return np.asarray(np.any(seen, axis=0))


@lru_cache(maxsize=16)
def _composed(overrides: tuple[str, ...], inputs: str) -> DictConfig:
    """The configuration of inputs, classes and imputer, which are given as JSON."""
    check_overrides(list(overrides))
    if "${" in inputs or '"???"' in inputs:
        raise UserError("a class, level or column is named '???' or has '${' in its name: rename it")
    specs, classes, imputer = json.loads(inputs)
    node: dict[str, Any] = {
        "dataset": {
            "inputs": specs,
            "modalities": list(specs),
            "classes": classes,
            "encoders": {name: encoder(name, spec) for name, spec in specs.items()},
        }
    }
    if imputer == "MoPoE":
        vectors = {name: len(s["numbers"]) for name, s in specs.items() if s["kind"] == "table" and not s["levels"]}
        node["imputer"] = {
            f"{part}s": {
                name: {
                    "_target_": f"models.imputers.mopoe_networks.{network}",
                    "features": n,
                    "latent": "${imputer.latent}",
                }
                for name, n in vectors.items()
            }
            for part, network in (("encoder", "VectorPosterior"), ("decoder", "VectorDecoder"))
        }
    ConfigStore.instance().store(group="experiment", name=EXPERIMENT, node=node, package="_global_")
    cfg = compose_config(*overrides, f"experiment={EXPERIMENT}")
    OmegaConf.set_struct(cfg, False)
    for key in ("inputs", "encoders"):  # the example of the data set's file
        for name in set(cfg.dataset[key]) - set(specs):
            del cfg.dataset[key][name]
    OmegaConf.set_struct(cfg, True)
    return cfg


def encoder(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Node of the encoder of an input.

    Raises:
        ValueError: images that are too small.
    """
    width = "${dataset.training_defaults.width}"
    if spec["kind"] == "table":
        if not spec["levels"]:
            return {"_target_": "models.encoders.vector.VectorEncoder", "width": width}
        heads = "${dataset.training_defaults.heads}"
        return {"_target_": "models.encoders.table.TableEncoder", "width": width, "blocks": 2, "heads": heads}
    channels, *sides = spec["shape"]
    if sides == [28, 28]:
        return {"_target_": "models.encoders.convolutional.PolyMNISTEncoder", "channels": channels, "width": width}
    if min(sides) < 16:
        raise ValueError(f"images '{name}' have {sides[0]}x{sides[1]} pixels: enlarge them to 16x16 or more")
    return {"_target_": "models.encoders.convolutional.ConvolutionalEncoder", "channels": channels, "width": width}
