"""``python -m tests.benchmarks.gpu [--dry] [--out FOLDER] [--seconds 450] [--parts tests,...] [overrides of run.py]``

What only a GPU can show: the tests marked ``gpu``, and measurements beside the slow twin. Every part has its own limit
in seconds and a row that says how it ended; a part that runs out of time is reported with the rows that it has. The
exit status is 1 if a part failed. ``--dry`` runs all parts on the CPU with tiny sizes, whose times mean nothing.

``job_scripts/gpu_check.sh`` calls this.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch

from tests.benchmarks.gpu_parts import PARTS
from tests.benchmarks.gpu_rows import Rows
from tests.makers import make_mnist_idx
from trainers.config.build import set_float32_precision
from trainers.loading import Run, open_run
from utils.errors import UserError

log = logging.getLogger("benchmarks")
TOTAL = 450  # seconds; with the start of Python below the eight minutes of the check
SCENARIOS = "missing.test=[none,random_0.4,random_0.8]"
REAL = ("trainer=gpu", SCENARIOS)
DRY = (
    "trainer=cpu",
    SCENARIOS,
    "dataset.training_defaults={usual_epochs: 1, batch_size: 50, width: 16}",
    "imputer.training={max_epochs: 1, batch_size: 50}",
    "imputer.latent=8",
)


class OutOfTime(BaseException):
    """The limit of a part. Not an ``Exception``, which code in between would take for its own."""


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """
    Raises:
        OutOfTime: within the block, after so many seconds.
    """

    def stop(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Check:
    """What the parts share.

    Args:
        overrides: of run.py.
        is_dry: on the CPU, with tiny sizes.
        rows: where results go.
    """

    def __init__(self, overrides: Sequence[str], is_dry: bool, rows: Rows) -> None:
        self.overrides, self.is_dry, self.rows = list(overrides), is_dry, rows
        self.seconds = 0.0  # limit of the current part
        self.device = torch.device("cpu" if is_dry else "cuda")

    @cached_property
    def context(self) -> Run:
        return open_run(*self.overrides)


def run_parts(check: Check, parts: dict[str, tuple[Callable[[Check], None], float]], total: float) -> list[str]:
    """Run the parts in order; returns the names of those that failed."""
    deadline, failed = time.monotonic() + total, []
    for name, (part, seconds) in parts.items():
        start, rows = time.monotonic(), check.rows
        check.seconds, rows.part = min(seconds, deadline - start), name
        before = len(rows)
        if check.seconds < 1:
            outcome = f"NOT RUN: the {total:.0f} s of the check are over"
        else:
            try:
                with limit(check.seconds):
                    part(check)
                outcome = "done"
            except OutOfTime:
                outcome = f"OUT OF TIME after its {check.seconds:.0f} s"
            except (Exception, SystemExit) as error:
                log.exception("part %s", name)
                failed.append(name)
                outcome = f"FAILED: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        measured = len(rows) - before
        rows.add(f"part {name}", time.monotonic() - start, "s", detail=f"{outcome}, {measured} rows")
        log.info("%s: %s, %d rows, %.1f s", name, outcome, measured, time.monotonic() - start)
        rows.write()
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check.

    Returns:
        exit status: 1 if a part failed.

    Raises:
        UserError: no GPU, or an unknown part.
    """
    parser = argparse.ArgumentParser("python -m tests.benchmarks.gpu", description=__doc__)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu_check"))
    parser.add_argument("--seconds", type=float, default=TOTAL, help="of all parts together")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if unknown := set(options.parts.split(",")) - set(PARTS):
        raise UserError(f"--parts: unknown '{min(unknown)}', known are {', '.join(PARTS)}")
    if not options.dry and not torch.cuda.is_available():
        raise UserError("PyTorch finds no GPU on this machine: add --dry (DRY=1 of the script) for the dry run")
    overrides = ["dataset=PolyMNIST", *(DRY if options.dry else REAL), "name=gpu_check", "overwrite=true"]
    overrides += [f"paths.cache={options.out}/packed", f"paths.output={options.out}/runs", *options.overrides]
    if not any(text.startswith(("dataset.mnist=", "dataset.root=")) for text in options.overrides):
        sizes = (100, 60) if options.dry else (60_000, 10_000)
        overrides.append(f"dataset.mnist={make_mnist_idx(options.out / 'made_up', *sizes, gz=False)}")
    check = Check(overrides, options.dry, Rows(options.out / "gpu.csv", options.dry))
    set_float32_precision("highest", check.device)
    patience = 10 if options.dry else 1  # a dry run has all its rows on a busy machine too
    chosen = {
        name: (part, patience * seconds) for name, (part, seconds) in PARTS.items() if name in options.parts.split(",")
    }
    failed = run_parts(check, chosen, patience * options.seconds)
    for name in failed:
        log.error("FAILED: part %s, see above", name)
    log.info("%d rows in %s", len(check.rows), check.rows.path)
    return int(bool(failed))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
