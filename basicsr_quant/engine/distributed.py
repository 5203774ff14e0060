"""Processes: who am I, how many are we, on which device, and what we exchange."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from basicsr_quant.errors import UserError

logger = logging.getLogger("basicsr_quant")

TIMEOUT = datetime.timedelta(minutes=30)


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
        """Return whether the flag is set on any process."""
        if self.world_size == 1:
            return flag
        value = torch.tensor(int(flag), device=self.device)
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


def _environment(launcher: str) -> tuple[int, int, int]:
    """Return rank, world size and local rank as the launcher gives them."""
    if launcher == "slurm":
        os.environ.setdefault("RANK", os.environ["SLURM_PROCID"])
        os.environ.setdefault("WORLD_SIZE", os.environ["SLURM_NTASKS"])
        os.environ.setdefault("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
        os.environ.setdefault("MASTER_ADDR", os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
    try:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", "0"))
    except KeyError as error:
        raise UserError(f"--launcher {launcher} needs {error} in the environment; start with torchrun or srun") from None


@contextlib.contextmanager
def processes(launcher: str, num_gpu: int | str, gpu: int | None, backend: str, port: int) -> Iterator[Process]:
    """Join the process group for the duration of a run.

    Args:
        launcher: ``none``, ``pytorch`` (torchrun) or ``slurm``.
        num_gpu: ``auto``, 0 for the CPU, or a number.
        gpu: CUDA device of a single-process run.
        backend: ``nccl`` or ``gloo``; nccl on a CPU becomes gloo.
        port: Where to meet if the launcher does not say.
    """
    if launcher == "none":
        yield Process(0, 1, choose_device(num_gpu, gpu))
        return
    if launcher == "slurm":
        os.environ.setdefault("MASTER_PORT", str(port))
    rank, world_size, local_rank = _environment(launcher)
    device = choose_device(num_gpu, None, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif backend == "nccl":
        logger.info("dist_params:backend nccl needs CUDA; using gloo")
        backend = "gloo"
    dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=TIMEOUT)
    try:
        yield Process(rank, world_size, device)
    finally:
        dist.destroy_process_group()
