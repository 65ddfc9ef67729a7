"""Limits of the number of processes."""

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
