"""Signals that stop a run: all processes of it, after the same step; on Slurm, its job can be requeued."""

import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any, NoReturn

import lightning as L
import torch

from nsaug.utils.errors import first_line

REQUEUE = getattr(signal, "SIGUSR1", None)  # Windows has none
"""What `sbatch --signal=SIGUSR1@300` sends 300 seconds before the time limit."""
SUBMITIT = getattr(signal, "SIGUSR2", None)
"""What hydra/launcher=slurm has Slurm send; submitit's own handler then requeues the job."""


class Stopped(Exception):
    """A signal has stopped the run, in all of its processes.

    Args:
        number: of the signal.
        advice: what happens next, if that is not up to the user.
    """

    def __init__(self, number: int, advice: str = "") -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.advice = advice


class StopSignals:
    """SIGTERM, SIGUSR1 and submitit's SIGUSR2: noted when they arrive, and acted on between steps.

    Lightning's handlers communicate, or save a checkpoint, in the middle of a step: the processes of a run, which a
    signal does not reach at the same moment, would wait for one another in different operations.

    Args:
        requeue: whether the command of the run resumes it, so that its Slurm job can be requeued.
    """

    def __init__(self, requeue: bool) -> None:
        self.requeue = requeue
        self._numbers = [signal.SIGTERM]
        self._submitit: Any = None
        self._number = 0

    def prepare(self) -> None:
        """Look which signals have handlers already; before Lightning installs its own."""
        if REQUEUE and signal.getsignal(REQUEUE) == signal.SIG_DFL:
            self._numbers.append(REQUEUE)
        if SUBMITIT and "SUBMITIT_EXECUTOR" in os.environ:
            self._numbers.append(SUBMITIT)
            self._submitit = signal.getsignal(SUBMITIT)

    def listen(self, trainer: L.Trainer) -> None:
        """Install handlers, in place of Lightning's, which restores all when training ends."""
        if trainer.received_sigterm:  # by Lightning's handler, since it was installed
            self._number = signal.SIGTERM
        if threading.current_thread() is threading.main_thread():
            for number in self._numbers:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._number = max(self._number, number)

    def received(self, trainer: L.Trainer) -> int:
        """The signal that any process has received, 0 for none; all processes have to call it."""
        if trainer.world_size == 1:
            return self._number
        number = torch.tensor(self._number, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(number, reduce_op="max"))

    def stop(self, trainer: L.Trainer, number: int) -> NoReturn:
        """End the run in this process; all processes have to call it."""
        if number == SUBMITIT:
            try:
                self._submitit(number, None)  # requeues the job and ends the process, if it is the first one
            except Exception as error:  # submitit's UncompletedJobError: as many time limits as allowed
                advice = f"not requeued ({first_line(error)}): allow more by hydra.launcher.max_num_timeout=10"
                raise Stopped(number, advice) from error
        raise Stopped(number, _requeue() if number == REQUEUE and self.requeue and trainer.is_global_zero else "")


def _requeue() -> str:
    """Requeue the Slurm job that this process belongs to, and return what became of it; empty outside Slurm."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return ""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", "").strip() or first_line(error)
        return f"Slurm job {job} cannot be requeued ({reason}): submit it again"
    return f"Slurm job {job} is requeued and resumes the run"
