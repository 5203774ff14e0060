"""Processes: who am I, how many are we, on which device, and what we exchange."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from basicsr_quant.errors import UserError

TIMEOUT = datetime.timedelta(minutes=30)
LOST = ("closed by peer", "Connection reset", "Connection refused", "Broken pipe", "connection was aborted",
        "pair closure")


@dataclass(frozen=True)
class Process:
    """One of the processes of a run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """Return every process's ``value`` (plain types), ordered by rank, on every process."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any process; it travels between CPUs, so a GPU need not finish its work."""
        if self.world_size == 1:
            return flag
        value = torch.tensor(int(flag))
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value.item())


def choose_device(num_gpu: int | str, gpu: int | None, local_rank: int = 0) -> torch.device:
    """Return the device that the options ask for.

    Raises:
        UserError: GPUs are asked for that this machine lacks.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if num_gpu == 0 or (num_gpu == "auto" and available == 0):
        return torch.device("cpu")
    if available == 0:
        raise UserError(f"num_gpu: {num_gpu} asks for CUDA, which this machine lacks; set num_gpu=0 to run on the CPU")
    index = local_rank if gpu is None else gpu
    if index >= available:
        raise UserError(f"CUDA device {index} is asked for, but only {available} are there; check num_gpu and gpu")
    return torch.device("cuda", index)


def _environment(launcher: str, port: int) -> tuple[int, int, int]:
    """Return rank, world size and local rank as the launcher gives them.

    Raises:
        UserError: The process was not started by this launcher.
    """
    environment = os.environ
    if launcher == "slurm":
        for name, source in (("RANK", "SLURM_PROCID"), ("WORLD_SIZE", "SLURM_NTASKS"), ("LOCAL_RANK", "SLURM_LOCALID")):
            if source in environment:
                environment.setdefault(name, environment[source])
        environment.setdefault("MASTER_ADDR", environment.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
        environment.setdefault("MASTER_PORT", str(port))
    starter = "torchrun" if launcher == "pytorch" else "srun"
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        if name not in environment:
            raise UserError(f"--launcher {launcher} needs {name} in the environment; start with {starter}, or leave "
                            "--launcher out for one process")
    try:
        return int(environment["RANK"]), int(environment["WORLD_SIZE"]), int(environment.get("LOCAL_RANK", "0"))
    except ValueError as error:
        raise UserError(f"RANK, WORLD_SIZE or LOCAL_RANK in the environment is no number ({error}); "
                        f"start with {starter}") from None


@contextlib.contextmanager
def processes(launcher: str, num_gpu: int | str, gpu: int | None, backend: str, port: int) -> Iterator[Process]:
    """Join the process group for the duration of a run.

    Args:
        launcher: ``none``, ``pytorch`` (torchrun) or ``slurm``.
        num_gpu: ``auto``, 0 for the CPU, or a number.
        gpu: CUDA device of a single-process run.
        backend: ``nccl`` or ``gloo``, for tensors on GPUs; those on CPUs always go by gloo.
        port: Where to meet if the launcher does not say.

    Raises:
        UserError: The environment does not fit the launcher, or another process of the run ended.
    """
    if launcher == "none":
        if os.environ.get("WORLD_SIZE", "1") != "1" and "TORCHELASTIC_RUN_ID" in os.environ:
            raise UserError("torchrun started several processes, but --launcher is missing; add --launcher pytorch")
        yield Process(0, 1, choose_device(num_gpu, gpu))
        return
    rank, world_size, local_rank = _environment(launcher, port)
    device = choose_device(num_gpu, None, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(f"cpu:gloo,cuda:{backend}" if device.type == "cuda" else "gloo",
                                rank=rank, world_size=world_size, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(f"the processes of this run cannot meet at {place} ({str(error).splitlines()[0]}); choose a "
                        "free port (torchrun --rdzv-endpoint localhost:0, or dist_params:port)") from error
    try:
        yield Process(rank, world_size, device)
    except RuntimeError as error:
        if any(sign in str(error) for sign in LOST):
            raise UserError("another process of this run ended: its message says why, or it was killed (for memory, "
                            "say); go on from the last checkpoint with --auto_resume") from error
        raise
    finally:
        dist.destroy_process_group()
