"""Predictions of a trained method on new rows: ``load(bundle or run).predict(frame)``."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from scipy.special import expit, softmax
from torch import Tensor

from datasets.base import MultimodalDataModule
from datasets.batch import Batch, Modality
from datasets.description import readable_cells
from datasets.missingness import Complete
from datasets.new_rows import NewRows, read_arrays
from datasets.storage import PackedStore
from models.imputers.base import recover_possible
from trainers.bundle import Bundle, open_bundle
from trainers.config.build import build_data, set_float32_precision
from trainers.evaluate import load_settled
from trainers.explanation import explain_row
from trainers.loading import Run
from trainers.prediction import predict
from trainers.processes import Processes
from utils.calibration import Temperatures
from utils.errors import UserError

log = logging.getLogger(__name__)
COMPLETE = "none"
Rows: TypeAlias = str | Path | pd.DataFrame | Mapping[str, np.ndarray]


class Predictor:
    """A trained method that answers for new rows, whatever they lack.

    Args:
        run: one whose method predicts, or that of a bundle.
        temperatures: that calibrate the confidence; None = the probabilities as they are.
        unknown: what happens to absent columns, unseen levels, cells that are no numbers and images that cannot be
            read: ``refuse`` or ``missing``.
        processes: those that share the new rows; all load this method.
    """

    def __init__(
        self,
        run: Run,
        temperatures: Temperatures | None = None,
        unknown: str = "refuse",
        processes: Processes | None = None,
    ) -> None:
        self.run, self.temperatures = run, temperatures
        # As in stage test. Older bundles do not name it.
        set_float32_precision(OmegaConf.select(run.cfg, "trainer.float32_precision") or "highest", run.device)
        self.data = run.data
        self.method = load_settled(run, processes)
        self._how: dict[str, Any] = {"unknown": unknown, "id_column": run.cfg.dataset.get("id")}

    @property
    def class_names(self) -> list[str]:
        return list(self.data.class_names)

    @property
    def modality_names(self) -> list[str]:
        return self.data.modality_names

    # ---- rows --------------------------------------------------------------------------------------------------------

    def read(self, rows: Rows, images: str | Path | None = None) -> NewRows:
        """New rows in the form that the model takes.

        Args:
            rows: a data frame or CSV file with the columns of the training table (order does not matter; columns of
                labels are optional, other columns are ignored), or arrays by modality (a mapping or an ``.npz`` file,
                see :func:`datasets.new_rows.rows_of_arrays`).
            images: folder of the image files; None = that of the CSV file, or the working directory.

        Raises:
            UserError: everything that does not fit.
        """
        if isinstance(rows, Mapping):
            return self.data.encode_arrays(rows, "the mapping")
        if isinstance(rows, pd.DataFrame):
            return self.data.encode_rows(rows, Path(images or "."), "the data frame", **self._how)
        path = Path(rows)
        if not path.is_file():
            raise UserError(f"there is no file {path}: give a .csv or .npz file with the new rows")
        if path.suffix == ".npz":
            return self.data.encode_arrays(read_arrays(path), str(path))
        frame = pd.concat(self.data.read_new(path))
        return self.data.encode_rows(frame, Path(images or path.parent), str(path), **self._how)

    def packed(self, rows: NewRows, folder: Path) -> MultimodalDataModule:
        """The data module of this run on a store that has these rows as its test split."""
        n, classes = len(rows), self.data.num_classes
        shape = (n, classes) if self.data.task == "multilabel" else (n,)
        # Predictions read no labels: this one stands in only because a store has them.
        target = np.zeros(shape, dtype=np.float32 if len(shape) == 2 else np.int64)
        meta = {k: v for k, v in (self.data.store.meta() or {}).items() if k not in ("counts", "format_version")}
        arrays = {**rows.arrays, "target": target, "name": np.array(rows.names, dtype=str)}
        PackedStore(folder).write({"test": arrays}, meta)
        cfg = self.run.cfg.copy()
        cfg.dataset.store = str(folder)
        data = build_data(cfg)
        data.residence = "host"
        return data

    # ---- predictions -------------------------------------------------------------------------------------------------

    def outputs(self, rows: NewRows) -> dict[str, np.ndarray]:
        """Logits (N, C), ``missing`` (N, M) and the extras of the method, in the order of the rows.

        Rows of which nothing is observed are not among them: see :meth:`answerable`.
        """
        with tempfile.TemporaryDirectory(prefix="predict-") as folder:
            data = self.packed(rows, Path(folder) / "rows")
            missing, cells = data.masks("test", Complete())
            loader = data.loader("test", device=self.run.device)
            outputs = predict(self.method, loader, {COMPLETE: missing}, {COMPLETE: cells}, progress=False)
        return outputs[""][COMPLETE]

    def answerable(self, rows: NewRows) -> np.ndarray:
        """(N,) bool: rows of which at least one modality or cell is observed."""
        return np.asarray(rows.observed(self.data.modalities).any(1))

    def predict(self, rows: Rows | NewRows, images: str | Path | None = None) -> pd.DataFrame:
        """One line per row: see :meth:`table`.

        Args:
            rows, images: see :meth:`read`.
        """
        return self.table(rows if isinstance(rows, NewRows) else self.read(rows, images))

    def predict_proba(self, rows: Rows | NewRows, images: str | Path | None = None) -> np.ndarray:
        """(N, C) probabilities; NaN in rows of which nothing is observed."""
        frame = self.predict(rows, images)
        return frame[[f"probability_{name}" for name in self.class_names]].to_numpy()

    def table(self, rows: NewRows) -> pd.DataFrame:
        """Predictions with an account of what they were made from.

        Returns:
            ``id``; ``prediction`` and ``confidence`` (several labels: ``prediction_<label>``, 0 or 1);
            ``probability_<class>``; ``missing``, modalities of which nothing is observed; ``missing_cells``, names of
            columns of tables and features of vectors, and the share of missing cells of series (``ecg 25%``);
            for DyMo ``accepted``, recovered modalities in the order of acceptance, with ``rewards``, and ``rejected``;
            and ``not_recovered``, what its imputer cannot fill. Lists are separated by ``;``. ``confidence`` is
            the probability of the predicted class after temperature scaling. Rows of which nothing is observed have no
            prediction.
        """
        seen, names = rows.observed(self.data.modalities), np.array(self.modality_names)
        answered = self.answerable(rows)
        frame = pd.DataFrame({"id": rows.names, "missing": [";".join(names[~row]) for row in seen]})
        if {"table", "series"} & set(self.data.kinds.values()):
            frame["missing_cells"] = self._missing_cells(rows, seen)
        if answered.any():
            out = self.outputs(rows.take(answered))
            columns = self.scores(out["logits"], ~seen[answered]) | self._account(out, names)
            answers = pd.DataFrame(columns, index=np.flatnonzero(answered))
        else:
            answers = pd.DataFrame(index=[])
        # The same columns whatever the rows lack, so that tables of several chunks fit together.
        return frame.join(answers.reindex(columns=self.columns))

    @property
    def columns(self) -> list[str]:
        """Names of the columns that depend on the logits, in their order."""
        names = self.class_names
        if self.data.task == "multilabel":
            columns = [f"{what}_{name}" for what in ("prediction", "confidence") for name in names]
        else:
            columns = ["prediction", "confidence"]
        columns += [f"probability_{name}" for name in names]
        return columns + (["accepted", "rewards", "rejected", "not_recovered"] if self.run.uses_selection else [])

    def scores(self, logits: np.ndarray, missing: np.ndarray) -> dict[str, Any]:
        """Columns of the table that follow from logits (N, C) and ``missing`` (N, M), see :meth:`table`."""
        logits = logits.astype(np.float64)
        temperature = np.ones(len(logits)) if self.temperatures is None else self.temperatures.of(missing)
        cooled = logits / temperature[:, None]
        columns: dict[str, Any] = {}
        if self.data.task == "multilabel":
            for j, name in enumerate(self.class_names):
                columns[f"prediction_{name}"] = (logits[:, j] > 0).astype(int)
            probabilities, confidence = expit(logits), np.maximum(expit(cooled), expit(-cooled))
            columns |= {f"confidence_{name}": confidence[:, j] for j, name in enumerate(self.class_names)}
        else:
            best = logits.argmax(1)
            columns["prediction"] = np.array(self.class_names, dtype=object)[best]
            columns["confidence"] = softmax(cooled, axis=1)[np.arange(len(best)), best]
            probabilities = softmax(logits, axis=1)
        return columns | {f"probability_{name}": probabilities[:, j] for j, name in enumerate(self.class_names)}

    def _account(self, out: Mapping[str, np.ndarray], names: np.ndarray) -> dict[str, Any]:
        if not self.run.uses_selection:
            return {}
        accepted = [[int(i) for i in row if i >= 0] for row in out["accepted"]]
        rewards = [[out["rewards"][n, step, i] for step, i in enumerate(row)] for n, row in enumerate(accepted)]
        unrecoverable = out.get("unrecoverable", np.zeros_like(out["missing"]))
        return {
            "accepted": [";".join(names[row]) for row in accepted],
            "rewards": [";".join(f"{reward:.6g}" for reward in row) for row in rewards],
            "rejected": [";".join(names[row]) for row in out["final_missing"] & out["missing"] & ~unrecoverable],
            "not_recovered": [";".join(names[row]) for row in unrecoverable],
        }

    def _missing_cells(self, rows: NewRows, seen: np.ndarray) -> list[str]:
        """Missing cells of tables and series of which some are observed."""
        listed: list[list[str]] = [[] for _ in range(len(rows))]
        for i, m in enumerate(self.data.modalities):
            if (cells := rows.arrays.get(f"{m.name}_missing")) is None:
                continue
            if m.kind == "series":
                shares = cells.reshape(len(rows), -1).mean(1)
                for n in np.flatnonzero(seen[:, i] & (shares > 0)):
                    listed[n].append(f"{m.name} {shares[n]:.0%}")
                continue
            columns = np.array(m.columns or [str(j) for j in range(m.shape[0])])
            for n in np.flatnonzero(seen[:, i] & cells.any(1)):
                listed[n] += columns[cells[n]].tolist()
        return [";".join(cells) for cells in listed]

    # ---- recoveries --------------------------------------------------------------------------------------------------

    def recover(self, rows: Rows | NewRows, images: str | Path | None = None) -> dict[str, np.ndarray]:
        """What the imputer makes of every missing modality, whether the method accepts it or not.

        Returns:
            modality name -> (N, ...) in the units of the model's inputs, observed content as it is; NaN in rows that
            keep the modality missing. Rows of which nothing is observed are left out.

        Raises:
            UserError: the method has no imputer.
        """
        self.check_recovers()
        new = rows if isinstance(rows, NewRows) else self.read(rows, images)
        imputer = self.run.load_imputer()
        pieces: dict[str, list[Tensor]] = {name: [] for name in self.modality_names}
        for batch in self.batches(new.take(self.answerable(new))):
            with torch.inference_mode():
                filled, unrecoverable = recover_possible(imputer, self.data.modalities, batch)
                for i, name in enumerate(self.modality_names):
                    content = filled[name].float().cpu()
                    if unrecoverable is not None:
                        content[unrecoverable[:, i].cpu()] = float("nan")
                    pieces[name].append(content)
        return {name: torch.cat(parts).numpy() for name, parts in pieces.items()}

    def batches(self, rows: NewRows) -> Iterator[Batch]:
        """Batches of rows in the form that the model takes, on its device."""
        with tempfile.TemporaryDirectory(prefix="predict-") as folder:
            data = self.packed(rows, Path(folder) / "rows")
            yield from data.loader("test", Complete(), device=self.run.device)

    def explain(self, rows: Rows | NewRows, images: str | Path | None = None, number: int = 0) -> Figure:
        """Picture of one row: what is observed, what was recovered and accepted with which rewards, the prediction.

        Args:
            rows, images: see :meth:`read`.
            number: of the row, counted from 0.

        Raises:
            UserError: there is no such row, or nothing of it is observed.
        """
        new = rows if isinstance(rows, NewRows) else self.read(rows, images)
        if not 0 <= number < len(new):
            raise UserError(f"number={number}: there are {len(new)} rows, give one from 0 to {len(new) - 1}")
        row = new.take(np.array([number]))
        if not self.answerable(row).any():
            raise UserError(f"row {row.names[0]}: nothing of it is observed, so that there is no prediction to explain")
        output = {key: value[0] for key, value in self.outputs(row).items()}
        scores = self.scores(output["logits"][None], ~row.observed(self.data.modalities))
        has_confidence = self.temperatures is not None
        return explain_row(self.run, row, next(self.batches(row)), output, scores, has_confidence)

    def check_recovers(self) -> None:
        """
        Raises:
            UserError: the method has no imputer.
        """
        if not self.run.predicts_with_imputer:
            raise UserError(f"{self.run.label} recovers nothing: it has no imputer; leave predict.recovered out")

    def cells_of(self, content: np.ndarray, table: Modality) -> pd.DataFrame:
        """Table rows (N, F) as a reader writes them: names of levels, numbers in the units of the training table."""
        return readable_cells(content, table, self.data.store.meta() or {})


def load(source: str | Path | Run | Bundle, unknown: str = "refuse") -> Predictor:
    """The method of a bundle (a folder, a ``.zip`` file, or ``user/name`` on the Hugging Face hub), or of a run
    (:func:`trainers.loading.open_run`).

    Args:
        unknown: see :class:`Predictor`.

    Raises:
        UserError: it cannot be opened, or its artefacts are not there.
    """
    if isinstance(source, Run):
        return Predictor(source, unknown=unknown)
    bundle = source if isinstance(source, Bundle) else open_bundle(source)
    return Predictor(bundle.run(), bundle.temperatures, unknown)
