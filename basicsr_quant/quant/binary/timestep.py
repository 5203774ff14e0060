"""Parameters that change with the timestep: one set for each group of timesteps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Literal

import torch
from torch import nn
from torch.func import functional_call

Group = int | torch.Tensor
UnusedGroups = Literal["skip", "momentum"]


class TimestepAware(nn.Module):
    """One module for each group of timesteps, of which a forward pass uses that of the current group.

    Given a group as a number, only its module is touched, and parameters of other groups have no gradient afterwards.
    Given groups as a tensor, nothing waits for the device; other groups then have zeros as gradients, which
    :func:`settle_unused_groups` takes away.

    Args:
        make: Makes the module of one group; its parameters have a first dimension of 1.
        groups: Number of groups K; with 1 the group is not looked at.

    Source: BI-DiffSR section 3.3 (TaR, TaA), eq. 8 and 9.
    """

    def __init__(self, make: Callable[[], nn.Module], groups: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(make() for _ in range(groups))

    @property
    def groups(self) -> int:
        """Number of groups."""
        return len(self.members)

    def forward(self, x: torch.Tensor, group: Group) -> torch.Tensor:
        """Apply the module of the group.

        Args:
            x: (B, ...).
            group: 0 to K - 1 for all samples, or int64 (1,) for all, or int64 (B,) with one for every sample.
        """
        if self.groups == 1:
            group = 0
        if isinstance(group, int):
            result: torch.Tensor = self.members[group](x)
            return result
        tables = [dict(member.named_parameters()) for member in self.members]
        chosen = {name: torch.cat([table[name] for table in tables]).index_select(0, group) for name in tables[0]}
        result = functional_call(self.members[0], chosen, (x,))
        return result


def group_of(timestep: int, groups: int, total: int) -> int:
    """Return the group of a timestep: floor(K t / T), from 0 to K - 1.

    Args:
        timestep: t, 0 to ``total`` - 1.
        groups: K.
        total: T.

    Source: BI-DiffSR eq. 8, counted from 0.
    """
    return min(max(timestep * groups // total, 0), groups - 1)


def groups_of(timesteps: torch.Tensor, groups: int, total: int) -> torch.Tensor:
    """Return :func:`group_of` for a tensor of timesteps of any shape and dtype, as int64."""
    return torch.div(timesteps * groups, total, rounding_mode="trunc").long().clamp(0, groups - 1)


def settle_unused_groups(model: nn.Module, used: Collection[int], policy: UnusedGroups,
                         optimizer: torch.optim.Optimizer) -> None:
    """Decide between backward and optimizer step what happens to parameters of groups that no sample needed.

    Args:
        model: Has :class:`TimestepAware` modules.
        used: Groups of all samples of this step, over all processes.
        policy: ``skip`` leaves these parameters and their optimizer state alone; ``momentum`` gives those that have
            learned before a gradient of zero, so that the optimizer moves them by its decaying momentum.
        optimizer: Its state says which parameters have learned before.

    Source: BI-DiffSR specification 3.3 (``momentum`` is what the pinned torch 1.13 did).
    """
    for parameter in unused_parameters(model, used):
        if policy == "skip":
            parameter.grad = None
        elif optimizer.state.get(parameter):
            parameter.grad = torch.zeros_like(parameter)
        else:
            parameter.grad = None


def unused_parameters(model: nn.Module, used: Collection[int]) -> Iterator[nn.Parameter]:
    """Yield the parameters of groups that are not in ``used``."""
    for module in model.modules():
        if isinstance(module, TimestepAware) and module.groups > 1:
            for group, member in enumerate(module.members):
                if group not in used:
                    yield from member.parameters()
