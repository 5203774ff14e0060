"""Which image each sample of each training iteration takes, as a pure function of (seed, iteration, sample)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from basicsr_quant.randomness import generator


class SampleIndex(NamedTuple):
    """What a training data set is asked for.

    Attributes:
        item: Index of the image.
        iteration: Optimizer iteration, counted from 0.
        sample: Index among all samples of that iteration, over processes and accumulated batches.
    """

    item: int
    iteration: int
    sample: int


class TrainSampler(Sampler[list[SampleIndex]]):
    """Batches of one process.

    The samples of all iterations form one endless stream: sample ``k`` of iteration ``i`` has the position
    ``i * G + k`` with G = accumulation * world_size * batch_size. Position p takes image
    ``permutation[p // L][p % L] % length`` with L = length * enlarge. Nothing is dropped, epochs may be shorter than a
    batch, and resuming needs the iteration alone. Every G that is the same product gives the same samples.

    Args:
        length: Images in the data set.
        seed: ``manual_seed`` of the run.
        batch_size: Samples in a batch of one process.
        rank: This process.
        world_size: Number of processes.
        start_iteration: First iteration to serve (0 = from scratch).
        total_iter: The first iteration that is not served.
        accumulation: Batches that each process takes for one iteration.
        shuffle: If false, every epoch goes through the images in sorted order.
        enlarge: ``dataset_enlarge_ratio``: how often an image occurs in one permutation.

    Raises:
        ValueError: A count is not positive or ``rank`` is outside the world.
    """

    def __init__(
        self, length: int, seed: int, batch_size: int, rank: int = 0, world_size: int = 1, start_iteration: int = 0,
        total_iter: int = 0, accumulation: int = 1, shuffle: bool = True, enlarge: int = 1,
    ) -> None:
        if min(length, batch_size, world_size, accumulation, enlarge) < 1 or not 0 <= rank < world_size:
            raise ValueError(f"no sampler for {length} images, batches of {batch_size}, rank {rank} of {world_size}, "
                             f"accumulation {accumulation}, enlarge {enlarge}")
        self.length, self.enlarge, self.seed, self.shuffle = length, enlarge, seed, shuffle
        self.batch_size, self.rank, self.world_size, self.accumulation = batch_size, rank, world_size, accumulation
        self.start_iteration, self.total_iter = start_iteration, total_iter
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def item(self, iteration: int, sample: int) -> int:
        """Return the image that sample ``sample`` of iteration ``iteration`` takes."""
        position = iteration * self.accumulation * self.world_size * self.batch_size + sample
        epoch, place = divmod(position, self.length * self.enlarge)
        if not self.shuffle:
            return place % self.length
        if epoch != self._epoch:
            self._order = generator(self.seed, "order", epoch).permutation(self.length * self.enlarge)
            self._epoch = epoch
        return int(self._order[place]) % self.length

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        for iteration in range(self.start_iteration, self.total_iter):
            for batch in range(self.accumulation):
                first = (batch * self.world_size + self.rank) * self.batch_size
                samples = range(first, first + self.batch_size)
                yield [SampleIndex(self.item(iteration, sample), iteration, sample) for sample in samples]

    def __len__(self) -> int:
        return max(0, self.total_iter - self.start_iteration) * self.accumulation
