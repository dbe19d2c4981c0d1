"""Stage ``predict``: a table of predictions for new rows, in chunks of bounded memory, resumed where it stopped."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig
from PIL import Image

from datasets.new_rows import NewRows, read_arrays
from trainers.bundle import MANIFEST, open_bundle
from trainers.config.checks.machine import check_trainer
from trainers.loading import Run
from trainers.predictor import Predictor, load
from trainers.processes import Processes, join, quiet_others
from utils.errors import UserError
from utils.files import alone, remove_leftovers, replacing, unwritable
from utils.metrics import classification_metrics
from utils.progress import Progress
from utils.run_directory import file_hash, write_json
from utils.spreadsheet import guarded, unguard

log = logging.getLogger(__name__)
UNKNOWN = ("refuse", "missing")
MAX_REMARKS = 20
RECOVERED = "recovered.csv"  # of a table


def check_predict(cfg: DictConfig) -> None:
    """
    Raises:
        UserError: everything in ``cfg.predict`` that cannot be done, before anything is loaded.
    """
    problems, settings = [], cfg.predict
    if settings.input is None:
        problems.append("predict.input=null: give the .csv or .npz file with the new rows")
    elif Path(settings.input).is_dir():
        problems.append(f"predict.input={settings.input}: is a folder, name a .csv or .npz file")
    elif not Path(settings.input).is_file():
        problems.append(f"predict.input={settings.input}: there is no such file, correct the path")
    elif Path(settings.input).suffix not in (".csv", ".tsv", ".txt", ".npz"):
        problems.append(f"predict.input={settings.input}: must be a .csv or .npz file")
    if settings.output is None or Path(settings.output).suffix != ".csv":
        problems.append(f"predict.output={settings.output}: must be the name of a .csv file")
    elif Path(settings.output).is_dir():
        problems.append(f"predict.output={settings.output}: is a folder, name a .csv file")
    elif settings.input is not None and Path(settings.output).resolve() == Path(settings.input).resolve():
        problems.append(
            f"predict.output={settings.output}: is the input, and would be overwritten, name another .csv file"
        )
    elif Path(settings.output).is_file() and not holds_predictions(Path(settings.output)):
        problems.append(
            f"predict.output={settings.output}: holds no predictions, and would be overwritten, name another .csv file"
        )
    for key in ("images", "recovered"):
        if settings[key] is not None and Path(settings[key]).is_file():
            problems.append(f"predict.{key}={settings[key]}: is a file, name a folder")
    if settings.images is not None and not Path(settings.images).exists():
        problems.append(f"predict.images={settings.images}: there is no such folder, correct the path")
    if settings.unknown not in UNKNOWN:
        problems.append(f"predict.unknown={settings.unknown}: must be one of {', '.join(UNKNOWN)}")
    if isinstance(settings.chunk, bool) or not isinstance(settings.chunk, int) or settings.chunk < 1:
        problems.append(f"predict.chunk={settings.chunk}: must be a whole number of at least 1")
    if problems:
        raise UserError("\n".join(problems))


def holds_predictions(output: Path) -> bool:
    """Whether a file is empty or begins like a table of predictions, so that a new one may replace it."""
    with output.open("rb") as stream:
        return stream.readline(64).startswith((b"id,missing", b"id\n")) or not output.stat().st_size


def predict_with_bundle(cfg: DictConfig) -> None:
    """The stage on ``predict.bundle``, which needs no other setting of the run than those of the trainer."""
    check_predict(cfg)
    check_trainer(cfg)
    quiet_others()
    processes = join(cfg, "predict")
    bundle = open_bundle(cfg.predict.bundle)
    log.info(
        "predict: %s on %s (%d classes: %s)",
        *(bundle.about["model"], bundle.about["dataset"], len(bundle.about["classes"])),
        ", ".join(bundle.about["classes"][:8]),
    )
    write_predictions(cfg, load(bundle), file_hash(bundle.folder / MANIFEST), processes)


def predict(run: Run) -> None:
    """The stage on the run's own artefacts."""
    check_predict(run.cfg)
    processes = join(run.cfg, "predict") if is_alone(run.cfg) else Processes()
    write_predictions(run.cfg, Predictor(run, processes=processes), file_hash(run.checkpoint), processes)


def is_alone(cfg: DictConfig) -> bool:
    """Whether the command has no other stage, so that several processes can share it."""
    return list(cfg.stages) == ["predict"]


def write_predictions(cfg: DictConfig, predictor: Predictor, weights: str, processes: Processes) -> None:
    """Predict chunk by chunk into a hidden file, which becomes ``predict.output`` at the end; one command at a time.

    Args:
        weights: hash of what predicts; the interrupted output of other weights, rows or settings is not continued.
        processes: those that share the chunks; the first one writes the tables.
    """
    output = Path(cfg.predict.output)
    if cfg.predict.recovered:
        predictor.check_recovers()
    if processes.rank:
        with processes.common_work(is_last=True):
            for _ in rounds(cfg, predictor, processes, done=processes.share(0)):
                pass
        return
    with alone(output.with_name(f".{output.name}")):
        _write_predictions(cfg, predictor, weights, processes)


def _write_predictions(cfg: DictConfig, predictor: Predictor, weights: str, processes: Processes) -> None:
    with processes.common_work(is_last=True):
        remarks, unanswered = _write_rows(cfg, predictor, weights, processes)
    for remark in remarks[:MAX_REMARKS]:
        log.warning("predict: %s", remark)
    if len(remarks) > MAX_REMARKS:
        log.warning("predict: %d more remarks on other chunks of rows", len(remarks) - MAX_REMARKS)
    if unanswered:
        log.warning("predict: %d rows have nothing that is observed, and no prediction", unanswered)
    output = Path(cfg.predict.output)
    report_scores(predictor, output)
    log.info("predict: %s", output)


def _write_rows(cfg: DictConfig, predictor: Predictor, weights: str, processes: Processes) -> tuple[list[str], int]:
    """Write the table; remarks on its rows, and how many have no prediction."""
    settings = cfg.predict
    source, output = Path(settings.input), Path(settings.output)
    stat = source.stat()
    remove_leftovers(output.parent)
    if settings.recovered:
        remove_leftovers(Path(settings.recovered), recursive=True)
    about = {
        "weights": weights,
        "input": [str(source.resolve()), stat.st_size, stat.st_mtime_ns],
        "settings": {key: settings[key] for key in ("images", "id", "unknown", "chunk", "recovered")},
    }
    part, progress = output.with_name(f".{output.name}.part"), output.with_name(f".{output.name}.progress.json")
    stored = interrupted(part, progress, about)
    done, size = stored.get("rows", 0), stored.get("bytes", 0)
    if done:
        log.info("predict: continuing after %d rows of an interrupted run", done)
    for file in recovered_tables(settings.recovered):  # rows behind those of the interrupted run
        os.truncate(file, stored.get("recovered_bytes", {}).get(str(file), 0))
    remarks: dict[str, None] = {}
    unanswered = 0
    total = None if source.suffix == ".npz" else predictor.data.count_new(source)
    processes.share(done)
    with writing(part, size) as stream, Progress(desc="predict", unit="row", total=total, initial=done) as bar:
        for chunk in rounds(cfg, predictor, processes, done):
            stream.write(guarded(chunk.table).to_csv(index=False, header=stream.tell() == 0).encode())
            stream.flush()
            os.fsync(stream.fileno())
            for name, cells in chunk.recovered.items():
                append(cells, Path(settings.recovered) / name / RECOVERED)
            sizes = {str(file): file.stat().st_size for file in recovered_tables(settings.recovered)}
            state = {"rows": chunk.start + len(chunk.table), "bytes": stream.tell(), "recovered_bytes": sizes}
            write_json(progress, {"about": about, **state})
            remarks |= dict.fromkeys(chunk.remarks)
            unanswered += chunk.unanswered
            bar.update(len(chunk.table))
    os.replace(part, output)
    progress.unlink(missing_ok=True)
    return list(remarks), unanswered


@dataclass
class Chunk:
    """Predictions of some rows.

    Attributes:
        start: number of rows before them.
        table: see :meth:`trainers.predictor.Predictor.table`, with the known labels.
        recovered: modality -> recovered cells.
        unanswered: number of rows of which nothing is observed.
    """

    start: int
    table: pd.DataFrame
    recovered: dict[str, pd.DataFrame]
    remarks: Sequence[str]
    unanswered: int


def rounds(cfg: DictConfig, predictor: Predictor, processes: Processes, done: int) -> Iterator[Chunk]:
    """The chunks behind the first ``done`` rows, in order, for the first process; each process predicts every n-th.

    Raises:
        UserError: that of a chunk, after the chunks before it; in the first process.
    """
    left = chunks_of(predictor, Path(cfg.predict.input), cfg)
    is_left = True
    while is_left:
        own: Chunk | UserError | None = None
        for number in range(processes.count):
            try:
                start, encode = next(chunk for chunk in left if chunk[0] >= done)
            except StopIteration:
                is_left = False
                break
            except UserError as error:  # every process reads the table
                own, is_left = own or error, False
                break
            if number == processes.rank:
                own = answer(predictor, start, encode, cfg.predict.recovered)
        pieces = [piece for piece in processes.gather(own) if piece is not None]
        yield from itertools.takewhile(lambda piece: isinstance(piece, Chunk), pieces)
        failed = processes.share(next((piece for piece in pieces if isinstance(piece, UserError)), None))
        if failed and processes.rank == 0:
            processes.wait()  # for the others, which end in order
            raise failed
        if failed:
            return


def answer(predictor: Predictor, start: int, encode: Callable[[], NewRows], recovered: str | None) -> Chunk | UserError:
    """Predict some rows, and write their recoveries into the folder ``recovered``, but for those of tables; or why this
    cannot be done."""
    try:
        rows = encode()
        table = predictor.table(rows)
        add_labels(table, rows, predictor)
        cells = {} if recovered is None else save_recoveries(predictor, rows, Path(recovered))
    except UserError as error:
        return error
    return Chunk(start, table, cells, rows.remarks, int((~predictor.answerable(rows)).sum()))


@contextmanager
def writing(part: Path, size: int) -> Iterator[BinaryIO]:
    """The hidden output, open behind its first ``size`` bytes; removed where the first rows are refused.

    Raises:
        UserError: it cannot be written.
    """
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        stream = part.open("r+b" if size else "wb")
    except OSError as error:
        raise unwritable(part.parent, error) from None
    with stream:
        stream.truncate(size)
        stream.seek(size)
        try:
            yield stream
        except UserError:
            if not stream.tell():
                part.unlink()
            raise


def interrupted(part: Path, progress: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """State of an interrupted output that can be continued; empty where there is none."""
    try:
        stored = json.loads(progress.read_text())
        is_same = stored["about"] == json.loads(json.dumps(about)) and part.stat().st_size >= stored["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return stored if is_same else {}


def recovered_tables(folder: str | None) -> list[Path]:
    """Tables of recovered cells in the folder of recoveries."""
    return [] if folder is None else sorted(Path(folder).glob(f"*/{RECOVERED}"))


def chunks_of(predictor: Predictor, source: Path, cfg: DictConfig) -> Iterator[tuple[int, Callable[[], NewRows]]]:
    """Chunks of ``predict.chunk`` new rows: the number of rows before them, and what encodes them."""
    settings, data, start = cfg.predict, predictor.data, 0
    if source.suffix == ".npz":
        rows = data.encode_arrays(read_arrays(source), str(source))
        for start in range(0, len(rows), settings.chunk):
            yield start, partial(rows.take, np.arange(start, min(start + settings.chunk, len(rows))))
        return
    images = Path(settings.images) if settings.images else source.parent
    # predict.id, else dataset.id of the training configuration
    how = {"unknown": str(settings.unknown), "id_column": settings.id or predictor.run.cfg.dataset.get("id")}
    for frame in data.read_new(source, int(settings.chunk)):
        yield start, partial(data.encode_rows, frame, images, str(source), **how)
        start += len(frame)


def add_labels(frame: pd.DataFrame, rows: NewRows, predictor: Predictor) -> None:
    """Add the known labels to a table of predictions: ``label``, or ``label_<name>``, empty where not known."""
    if rows.target is None:
        return
    names = predictor.class_names
    if rows.target.ndim == 1:
        frame["label"] = [names[i] if i >= 0 else "" for i in rows.target]
        return
    for j, name in enumerate(names):
        frame[f"label_{name}"] = ["" if value < 0 else int(value) for value in rows.target[:, j]]


def report_scores(predictor: Predictor, output: Path) -> None:
    """Log the scores of the rows whose label is known, and write them to ``<output>.scores.csv``."""
    header = list(pd.read_csv(output, nrows=0))
    names = predictor.class_names
    columns = ["label"] if "label" in header else [f"label_{name}" for name in names]
    if not set(columns) <= set(header):
        return
    task = predictor.data.task
    metrics, n = classification_metrics(task, len(names)), 0
    wanted = [*(f"probability_{name}" for name in names), *columns]
    for chunk in pd.read_csv(output, usecols=wanted, chunksize=65536, dtype=dict.fromkeys(columns, str)):
        known = chunk[chunk[columns].notna().any(axis=1) & chunk[wanted[0]].notna()]
        if known.empty:
            continue
        probabilities = torch.from_numpy(known[wanted[: len(names)]].to_numpy(np.float64))
        if task == "multilabel":
            target = torch.from_numpy(known[columns].astype(float).fillna(-1).to_numpy(np.float32))
            metrics.update(torch.logit(probabilities).float(), target)
        else:
            target = torch.tensor([names.index(unguard(label)) for label in known["label"]])
            metrics.update(probabilities.log().float(), target)
        n += len(known)
    if not n:
        return
    values = {name: float(value) for name, value in metrics.compute().items()}
    frame = pd.DataFrame([(name, value, n) for name, value in values.items()], columns=["metric", "value", "n"])
    with replacing(output.with_suffix(".scores.csv")) as file:
        frame.to_csv(file, index=False)
    log.info("predict: scores of the %d rows with a label\n%s", n, frame.to_string(index=False))


def append(cells: pd.DataFrame, file: Path) -> None:
    """Add recovered cells to a table."""
    file.parent.mkdir(parents=True, exist_ok=True)
    is_new = not file.is_file() or not file.stat().st_size
    guarded(cells).to_csv(file, mode="a", header=is_new, index=False)


def save_recoveries(predictor: Predictor, rows: NewRows, folder: Path) -> dict[str, pd.DataFrame]:
    """Write what was recovered for every missing modality: images as PNG, everything else but tables as .npy.

    Returns:
        Table -> its recovered cells.
    """
    answered = rows.take(predictor.answerable(rows))
    missing = ~answered.observed(predictor.data.modalities)
    recovered, tables = predictor.recover(answered), {}
    for i, m in enumerate(predictor.data.modalities):
        content, target = recovered[m.name], folder / m.name
        filled = np.flatnonzero(missing[:, i] & ~np.isnan(content.reshape(len(content), -1)).any(1))
        if not len(filled):
            continue
        if m.kind == "table":
            tables[m.name] = predictor.cells_of(content[filled], m)
            tables[m.name].insert(0, "id", [answered.names[n] for n in filled])
            continue
        target.mkdir(parents=True, exist_ok=True)
        for n in filled:
            stem = re.sub(r"[^\w.-]+", "_", answered.names[n]).strip(".") or str(n)
            if m.kind == "image":
                pixels = predictor.data.pixels(m.name, torch.from_numpy(content[n : n + 1]))[0]
                array = (pixels * 255).round().byte().permute(1, 2, 0).numpy()
                with replacing(target / f"{stem}.png") as file:
                    Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array).save(file, format="png")
            else:
                with replacing(target / f"{stem}.npy") as file, file.open("wb") as stream:
                    np.save(stream, content[n])
    return tables
