"""Processes that share a run: on several devices, on several nodes, or a fixed share of a job array.

Lightning Fabric launches them (`devices=8`), or detects that torchrun or Slurm did. They share an atomic counter in a
torch.distributed store, which hands out units of work. There is no collective after the start, so that no time limit
is exceeded by a long attack.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import TypeVar

import torch
from torch.distributed import DistError, HashStore, Store, TCPStore

from nsaug.evaluation.units import Unit
from nsaug.utils.errors import UserError, first_line
from nsaug.utils.processes import check_num_processes

T = TypeVar("T")
POLL_SECONDS = 0.2
START_TIMEOUT = timedelta(days=1)
"""Time limit of the start, when other processes wait until the first one has listed and hashed the images."""


PARENT = "NSAUG_PARENT"
"""Environment variable with the id of the process that starts others."""


class Workers:
    """The processes of a run; only the first one has to know what there is to do before they `start`.

    Args:
        accelerator: as for `lightning.Trainer`: auto, cpu, gpu, ...
        devices: number of processes on a machine, one per device; or the indices of devices.
        num_nodes: number of machines. torchrun and Slurm set both numbers themselves.

    Attributes:
        device: device of this process.
        is_first: whether this is the process that plans and reports.
        local_size: number of processes on this machine.

    Raises:
        UserError: there are no such devices.
    """

    def __init__(self, accelerator: str, devices: int | str | list[int], num_nodes: int) -> None:
        from lightning.fabric import Fabric
        from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
        from lightning.fabric.strategies import DDPStrategy

        if TorchElasticEnvironment.detect():
            devices = int(os.environ["LOCAL_WORLD_SIZE"])
            num_nodes = int(os.environ["WORLD_SIZE"]) // devices
        elif SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) > 1:
            num_nodes = int(os.environ.get("SLURM_NNODES", 1))
            devices = int(os.environ["SLURM_NTASKS"]) // num_nodes
        # gloo: the only collectives are two broadcasts of Python objects at the start.
        strategy = DDPStrategy(process_group_backend="gloo", timeout=START_TIMEOUT)
        try:
            self._fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy=strategy)
        except Exception as error:  # of several types, by the accelerator
            raise UserError(
                f"accelerator={accelerator} devices={devices} cannot be used ({first_line(error)}): type"
                " accelerator=cpu devices=1"
            ) from error
        environment = strategy.cluster_environment
        assert environment is not None
        self.local_size = strategy.num_processes
        if strategy.root_device.type == "cpu":
            check_num_processes(f"devices={devices}", self.local_size)
        self.size = self.local_size * num_nodes
        self.is_first = environment.node_rank() == 0 and environment.local_rank() == 0
        self.device: torch.device = strategy.root_device
        self._environment = environment
        self._store: Store = HashStore()

    def start(self) -> None:
        """Start the other processes, or wait for them if torchrun or Slurm started them."""
        if self.size == 1:
            return
        # When the first process ends early, torch would print a stack of C++ in all others.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        is_parent = self._environment.local_rank() == 0
        if is_parent:
            os.environ[PARENT] = str(os.getpid())  # inherited by the processes that Fabric starts
        parent = os.environ.get(PARENT)  # not that of torchrun or Slurm, which end all processes when one ends
        try:
            with nullcontext() if is_parent or parent is None else _exit_with(int(parent)):
                self._connect()
        finally:
            os.environ.pop(PARENT, None)

    def _connect(self) -> None:
        self._fabric.launch()
        port = 0
        if self.is_first:
            self._store = store = TCPStore(self._environment.main_address, 0, is_master=True, wait_for_workers=False)
            port = store.port
        port = self.broadcast(port)
        if not self.is_first:
            self._store = TCPStore(self._environment.main_address, port, is_master=False)

    def broadcast(self, value: T) -> T:
        """Return the first process's value in all processes."""
        return self._fabric.broadcast(value) if self.size > 1 else value

    def take(self, count: int) -> Iterator[int]:
        """Yield numbers below `count` that no other process gets."""
        while (number := self._add("taken", 1) - 1) < count:
            yield number

    def add_progress(self, unit: Unit) -> None:
        """Count a finished unit."""
        self._add("progress", unit.cost)

    @property
    def progress(self) -> int:
        """Cost of the units that all processes have finished."""
        return self._add("progress", 0)

    def finish(self) -> None:
        """Wait for the other processes in the first one; report the end of the others to it."""
        if not self.is_first:
            self._add("finished", 1)
            return
        while self._add("finished", 0) < self.size - 1:
            time.sleep(POLL_SECONDS)

    def _add(self, counter: str, amount: int) -> int:
        """Add to a shared counter and return it; end silently when the first process, which holds it, is gone."""
        try:
            return self._store.add(counter, amount)
        except DistError:
            if self.is_first:
                raise
            raise SystemExit(1) from None


@contextmanager
def _exit_with(pid: int) -> Iterator[None]:
    """End this process if its parent `pid` ends within the context; it would wait for it until a time limit."""
    left = threading.Event()

    def watch() -> None:
        while not left.wait(POLL_SECONDS):
            if os.getppid() != pid:
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        left.set()


def parse_shard(text: str | int | None) -> tuple[int, int]:
    """Index and count of a share such as `3/8`; (0, 1) for None.

    Raises:
        UserError: it is not of this form.
    """
    if text is None:
        return 0, 1
    index, _, count = str(text).partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UserError(f"shard={text}: type shard=INDEX/COUNT, with INDEX from 0 to COUNT - 1, such as shard=0/8")
    return int(index), int(count)
