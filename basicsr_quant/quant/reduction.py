"""Statistics over all processes of a run; with one process nothing happens."""

from __future__ import annotations

import torch
import torch.distributed as dist


def reduce_(tensor: torch.Tensor, operation: str) -> torch.Tensor:
    """Replace ``tensor`` by its ``min``, ``max`` or ``sum`` over the processes, in place."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        operations = {"min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX, "sum": dist.ReduceOp.SUM}
        dist.all_reduce(tensor, operations[operation])
    return tensor


def same_everywhere(number: int, device: torch.device) -> bool:
    """Return whether all processes give the same number."""
    lowest, highest = (reduce_(torch.tensor(number, device=device), operation) for operation in ("min", "max"))
    return bool(lowest == highest)
