"""The processes of ``trainer=ddp`` in stages that Lightning's Trainer does not run."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from lightning_fabric import Fabric
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only
from torch import distributed as dist

from trainers.config.checks.machine import number_of_processes
from trainers.quiet import quiet_lightning

PATIENCE = timedelta(days=7)  # the first process may work alone for long


class Processes:
    """The processes of this run, among them this one.

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

    def wait(self) -> None:
        """Wait until all processes are here, and what the first one has written can be read."""
        if self._group is not None:
            dist.barrier(group=self._group)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in their order, for the first process; the others get an empty list."""
        if self._group is None:
            return [value]
        values = [None] * self.count if self.rank == 0 else None
        dist.gather_object(value, values, group=self._group)
        return values or []

    def part(self) -> None:
        """End the common work: what one process computes from now on, such as a metric, waits for no other."""
        if self._group is not None:
            dist.barrier(group=self._group)
            dist.destroy_process_group()

    def share(self, value: Any) -> Any:
        """The value of the first process, for all."""
        if self._group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, group=self._group)
        return values[0]


def quiet_others() -> None:
    """Let every process but the first log errors only, since it would say the same."""
    if getattr(rank_zero_only, "rank", 0):
        logging.getLogger().setLevel(logging.ERROR)


def join(cfg: DictConfig) -> Processes:
    """The processes that ``trainer.devices`` and ``trainer.num_nodes`` ask for, started here unless an earlier stage
    has done so. Each of them calls this."""
    if not dist.is_initialized() and number_of_processes(cfg) > 1:
        settings: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
        with quiet_lightning():
            Fabric(**{key: settings[key] for key in ("accelerator", "devices", "num_nodes", "strategy")}).launch()
    return Processes()
