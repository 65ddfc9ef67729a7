"""Checks of the number of processes and machines."""

import os

from nsaug.utils.errors import UserError

MAX_PER_CORE = 4


def check_num_processes(setting: str, count: int) -> None:
    """Raise UserError for more processes on the CPU than this machine can run; starting them would only fill memory.

    Args:
        setting: as it was typed, such as `devices=100`.
        count: number of processes.
    """
    cores = os.cpu_count() or 1
    if count > MAX_PER_CORE * cores:
        raise UserError(f"{setting}: {count:,} processes are too many for {cores} CPU cores: set it to {cores} or less")


def check_num_nodes(name: str, num_nodes: int) -> None:
    """Raise UserError if nothing tells this process which of the machines it is on: it would wait for the others."""
    known = ("MASTER_ADDR", "SLURM_JOB_ID", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
    if num_nodes > 1 and not any(variable in os.environ for variable in known):
        raise UserError(
            f"{name}={num_nodes}: start the command on each machine with torchrun --nnodes={num_nodes} or srun, or set"
            " MASTER_ADDR and NODE_RANK"
        )
