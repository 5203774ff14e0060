"""Random numbers as a pure function of (seed, stream, iteration, global sample index).

Whoever draws (any worker, any process, before or after an interruption) gets the same numbers, because no generator
lives longer than one draw. The generator is Philox, keyed by seed and stream, with its counter set from the iteration
and the sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch


def generator(seed: int, stream: str, iteration: int = 0, sample: int = 0) -> np.random.Generator:
    """Return a fresh generator for one sample of one iteration.

    Args:
        seed: ``manual_seed`` of the run.
        stream: What the numbers are for (``"crop"``, ``"drop_path"``); streams are independent of each other.
        iteration: Training iteration, or the epoch for a permutation.
        sample: Index of the sample in the global batch (over all processes).
    """
    key = hashlib.blake2b(f"{seed}:{stream}".encode(), digest_size=16).digest()
    counter = np.array([0, 0, sample, iteration], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype=np.uint64), counter=counter))


def uniform(seed: int, stream: str, iteration: int, samples: Sequence[int], shape: Sequence[int] = ()) -> torch.Tensor:
    """Return float32 draws from U[0, 1) of shape ``(len(samples), *shape)``, one generator for each sample."""
    rows = [generator(seed, stream, iteration, sample).random(tuple(shape), dtype=np.float32) for sample in samples]
    return torch.from_numpy(np.stack([np.asarray(row, dtype=np.float32) for row in rows]))


def normal(seed: int, stream: str, iteration: int, samples: Sequence[int], shape: Sequence[int] = ()) -> torch.Tensor:
    """Return float32 draws from N(0, 1) of shape ``(len(samples), *shape)``, one generator for each sample."""
    rows = [generator(seed, stream, iteration, sample).standard_normal(tuple(shape), dtype=np.float32)
            for sample in samples]
    return torch.from_numpy(np.stack([np.asarray(row, dtype=np.float32) for row in rows]))
