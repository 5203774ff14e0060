"""Parameters per timestep group: which group, which parameters, which gradients, which optimizer steps."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from basicsr_quant.quant.binary.shifts import LearnableBias, RPReLU
from basicsr_quant.quant.binary.timestep import TimestepAware, group_of, groups_of, settle_unused_groups


@pytest.fixture(params=[LearnableBias, RPReLU])
def aware(request: pytest.FixtureRequest) -> TimestepAware:
    torch.manual_seed(0)
    module = TimestepAware(lambda: request.param(4), 3)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module.double()


@pytest.mark.parametrize(("groups", "total"), [(5, 2000), (3, 2000), (7, 1000), (1, 10)])
def test_group_of_every_timestep(groups: int, total: int) -> None:
    numbers = [group_of(timestep, groups, total) for timestep in range(total)]
    assert numbers == sorted(numbers) and set(numbers) == set(range(groups))
    for dtype in (torch.int64, torch.float32, torch.float64):
        assert groups_of(torch.arange(total).to(dtype), groups, total).tolist() == numbers


def test_borders_of_the_published_groups() -> None:
    assert [group_of(timestep, 5, 2000) for timestep in (0, 399, 400, 1599, 1600, 1999)] == [0, 0, 1, 3, 4, 4]
    assert [group_of(timestep, 3, 2000) for timestep in (666, 667, 1333, 1334)] == [0, 1, 1, 2]
    assert group_of(5000, 5, 2000) == 4 and group_of(-3, 5, 2000) == 0


def test_number_and_tensor_give_the_same(aware: TimestepAware) -> None:
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    for group in range(3):
        torch.testing.assert_close(aware(x, torch.tensor([group])), aware(x, group))
    mixed = aware(x, torch.tensor([2, 0, 2]))
    expected = torch.cat([aware(x[index:index + 1], group) for index, group in enumerate((2, 0, 2))])
    torch.testing.assert_close(mixed, expected)


def test_gradients_of_mixed_groups_add_up(aware: TimestepAware) -> None:
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    aware(x, torch.tensor([2, 0, 2])).square().sum().backward()
    mixed = [parameter.grad for parameter in aware.parameters()]
    aware.zero_grad()
    for index, group in enumerate((2, 0, 2)):
        aware(x[index:index + 1], group).square().sum().backward()
    for parameter, gradient in zip(aware.parameters(), mixed, strict=True):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient) if parameter.grad is None else parameter.grad)
    assert all(parameter.grad is None for parameter in aware.members[1].parameters())


def _train(aware: TimestepAware, policy: str, sequence: list[int], as_tensor: bool) -> Iterator[list[torch.Tensor]]:
    """Train a step for each group of the sequence; yield the parameters after each."""
    optimizer = torch.optim.Adam(aware.parameters(), lr=0.1, betas=(0.9, 0.99))
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for group in sequence:
        optimizer.zero_grad()
        aware(x, torch.tensor([group]) if as_tensor else group).square().mean().backward()
        settle_unused_groups(aware, {group}, policy, optimizer)
        optimizer.step()
        yield [torch.cat([parameter.detach().flatten() for parameter in member.parameters()])
               for member in aware.members]


@pytest.mark.parametrize("as_tensor", [False, True])
def test_skipped_groups_do_not_move(aware: TimestepAware, as_tensor: bool) -> None:
    first, second, third = _train(aware, "skip", [0, 1, 1], as_tensor)
    assert torch.equal(first[0], third[0]) and torch.equal(first[2], third[2])
    assert not torch.equal(first[1], second[1])


@pytest.mark.parametrize("as_tensor", [False, True])
def test_momentum_moves_groups_that_have_learned_before(aware: TimestepAware, as_tensor: bool) -> None:
    first, second, third = _train(aware, "momentum", [0, 1, 1], as_tensor)
    assert not torch.equal(first[0], second[0]) and not torch.equal(second[0], third[0])
    assert torch.equal(first[2], third[2])


def test_momentum_is_what_zero_gradients_do(aware: TimestepAware) -> None:
    """As torch 1.13 trained: gradients of unused groups stay allocated and are zero."""
    other = copy.deepcopy(aware)
    optimizer = torch.optim.Adam(other.parameters(), lr=0.1, betas=(0.9, 0.99))
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for group in (0, 1, 2, 1):
        optimizer.zero_grad(set_to_none=False)
        other(x, group).square().mean().backward()
        optimizer.step()
    *_, last = _train(aware, "momentum", [0, 1, 2, 1], as_tensor=False)
    for member, values in zip(other.members, last, strict=True):
        assert torch.equal(torch.cat([parameter.detach().flatten() for parameter in member.parameters()]), values)


def test_initial_values_do_nothing_but_bend() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(TimestepAware(lambda: LearnableBias(3), 2)(x, 1), x)
    torch.testing.assert_close(TimestepAware(lambda: RPReLU(3), 2)(x, torch.tensor([1])), torch.where(x > 0, x, x / 4))
