"""The processes of ``trainer=ddp`` in stages that Lightning's Trainer does not run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from lightning_fabric import Fabric
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only
from torch import distributed as dist

from trainers.config.build import build_trainer
from trainers.config.checks.machine import number_of_processes
from trainers.quiet import quiet_lightning
from utils.errors import UserError, first_line

PATIENCE = timedelta(days=1)  # the others wait while the first process learns, or waits for another run
T = TypeVar("T")


class Processes:
    """The processes of a distributed run, seen from one of them. Without a distributed run, that one alone.

    Every process calls the same methods in the same order.

    Attributes:
        rank: number of this process; the first is 0.
        count: how many there are.
    """

    def __init__(self) -> None:
        self.rank, self.count = 0, 1
        if dist.is_initialized():
            self.rank, self.count = dist.get_rank(), dist.get_world_size()
        # Objects are exchanged on the host.
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if self.count > 1 else None

    @contextmanager
    def common_work(self, is_last: bool) -> Iterator[None]:
        """Work of all processes. An error in one of them disconnects it, so that the others do not wait for it.

        Args:
            is_last: all disconnect at the end: what the first process computes from then on, such as a metric, waits
                for no other.
        """
        try:
            yield
        except BaseException:
            self._disconnect()
            raise
        if is_last:
            self.wait()
            self._disconnect()

    def _disconnect(self) -> None:
        if self._group is not None and dist.is_initialized():
            dist.destroy_process_group()

    def wait(self) -> None:
        """Wait until all processes are here, and what the first one has written can be read.

        Raises:
            UserError: one of them has ended; so do the methods below.
        """
        if self._group is not None:
            self._exchange(lambda: dist.barrier(group=self._group))

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in their order, for the first process; the others get an empty list."""
        if self._group is None:
            return [value]
        values = [None] * self.count if self.rank == 0 else None
        self._exchange(lambda: dist.gather_object(value, values, group=self._group))
        return values or []

    def share(self, value: T) -> T:
        """The value of the first process, for all."""
        if self._group is None:
            return value
        values = [value]
        self._exchange(lambda: dist.broadcast_object_list(values, group=self._group))
        return values[0]

    def _exchange(self, exchange: Callable[[], object]) -> None:
        try:
            exchange()
        except RuntimeError as error:
            raise UserError(
                f"process {self.rank}: another process of this run has ended, see its message ({first_line(error)})"
            ) from error


def quiet_others() -> None:
    """Let every process but the first log errors only, since it would say the same."""
    if getattr(rank_zero_only, "rank", 0):
        logging.getLogger().setLevel(logging.ERROR)


def starts_others(cfg: DictConfig) -> bool:
    """Whether :func:`join` will start all other processes, which then repeat the command from its beginning. Until
    then, this one may leave out the last stage that they share, if it is finished."""
    if dist.is_initialized() or number_of_processes(cfg) == 1 or cfg.trainer.num_nodes != 1:
        return False
    trainer: Any = build_trainer(cfg, logger=False, enable_checkpointing=False, enable_model_summary=False)
    return not trainer.strategy.cluster_environment.creates_processes_externally


def join(cfg: DictConfig, stage: str) -> Processes:
    """The processes that ``trainer.devices`` and ``trainer.num_nodes`` ask for, started here unless an earlier stage,
    SLURM or the user has done so. Each of them calls this in each stage.

    Raises:
        UserError: they are in different stages.
    """
    if not dist.is_initialized() and number_of_processes(cfg) > 1:
        settings: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
        with quiet_lightning():
            Fabric(**{key: settings[key] for key in ("accelerator", "devices", "num_nodes", "strategy")}).launch()
    processes = Processes()
    with processes.common_work(is_last=False):
        if (first := processes.share(stage)) != stage:
            raise UserError(f"process {processes.rank} is in stage {stage}, the first one in {first}: start all alike")
    return processes
