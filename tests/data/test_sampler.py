"""Which sample takes which image: resume, processes, epochs."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from basicsr_quant.data.sampler import SampleIndex, TrainSampler

SIZES = st.integers(1, 4)


def served(**arguments: int) -> list[list[SampleIndex]]:
    return list(TrainSampler(**arguments))  # type: ignore[arg-type]


@given(length=st.integers(1, 12), seed=st.integers(0, 5), batch=SIZES, world=SIZES, accumulation=SIZES,
       total=st.integers(1, 6))
@settings(deadline=None)
def test_processes_and_accumulation_serve_the_same_samples(
    length: int, seed: int, batch: int, world: int, accumulation: int, total: int,
) -> None:
    whole = served(length=length, seed=seed, batch_size=batch * world * accumulation, total_iter=total)
    parts: list[SampleIndex] = []
    for rank in range(world):
        own = served(length=length, seed=seed, batch_size=batch, rank=rank, world_size=world, accumulation=accumulation,
                     total_iter=total)
        assert len(own) == total * accumulation and all(len(indices) == batch for indices in own)
        parts += [index for indices in own for index in indices]
    expected = [index for indices in whole for index in indices]
    assert sorted(parts, key=lambda index: index[1:]) == expected
    assert [index.sample for index in expected] == list(range(batch * world * accumulation)) * total


@given(length=st.integers(1, 12), batch=SIZES, accumulation=SIZES, start=st.integers(0, 9))
@settings(deadline=None)
def test_resume_serves_what_was_left(length: int, batch: int, accumulation: int, start: int) -> None:
    common = {"length": length, "seed": 3, "batch_size": batch, "accumulation": accumulation, "total_iter": 9}
    assert served(**common, start_iteration=start) == served(**common)[start * accumulation:]
    assert len(TrainSampler(**common, start_iteration=start)) == (9 - start) * accumulation  # type: ignore[arg-type]


@given(length=st.integers(1, 9), enlarge=st.integers(1, 3), batch=st.integers(1, 7), seed=st.integers(0, 3))
@settings(deadline=None)
def test_every_epoch_takes_every_image_equally_often(length: int, enlarge: int, batch: int, seed: int) -> None:
    epoch = length * enlarge
    sampler = TrainSampler(length, seed, batch, total_iter=-(-3 * epoch // batch), enlarge=enlarge)
    items = [index.item for indices in sampler for index in indices]
    for start in range(0, 3 * epoch, epoch):
        assert Counter(items[start:start + epoch]) == {item: enlarge for item in range(length)}


def test_batch_of_one_process_is_a_row_of_the_global_batch() -> None:
    second = served(length=100, seed=0, batch_size=3, rank=1, world_size=2, total_iter=1, accumulation=2)
    assert [[index.sample for index in indices] for indices in second] == [[3, 4, 5], [9, 10, 11]]


def test_epochs_and_seeds_differ() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [index.item for index in served(length=50, seed=seed, batch_size=50, total_iter=epoch + 1)[epoch]]

    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    plain = TrainSampler(3, 0, 2, total_iter=3, shuffle=False)
    assert [index.item for indices in plain for index in indices] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("wrong", [{"length": 0}, {"rank": 2, "world_size": 2}, {"batch_size": 0}, {"accumulation": 0}])
def test_refusals(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="no sampler"):
        TrainSampler(**{"length": 3, "seed": 0, "batch_size": 1, "total_iter": 1} | wrong)  # type: ignore[arg-type]
