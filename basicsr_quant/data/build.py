"""Data sets and loaders from options."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from basicsr_quant.data.cache import DEFAULT_CACHE_BYTES
from basicsr_quant.data.paired import PairedImageDataset, Sample, collate
from basicsr_quant.data.sampler import TrainSampler
from basicsr_quant.errors import UserError
from basicsr_quant.registry import DATASETS

if TYPE_CHECKING:
    from basicsr_quant.options.types import DatasetOptions


def missing_folders(options: DatasetOptions) -> list[str]:
    """Return the data folders that the options name and that do not exist (an ``optional`` set is then skipped)."""
    named = [folder for folder in (options.dataroot_gt, options.dataroot_lq) if folder is not None]
    return [folder for folder in named if not Path(folder).is_dir()]


def build_dataset(
    options: DatasetOptions, scale: int, phase: str, seed: int, key: str | None = None, read_gt: bool = True,
) -> PairedImageDataset:
    """Open the data set that a block of the options describes.

    Images to be restored are not kept in memory. A defective image of a test set raises its error when it is asked
    for; one of the others raises it here.

    Args:
        options: The block.
        scale: HR pixels per LR pixel.
        phase: ``train`` for random patches; ``val``, ``test`` and ``calibration`` give whole images.
        seed: ``manual_seed`` of the run.
        key: Name of the block, for error messages; None = ``phase``.
        read_gt: If false, HR images are not decoded.

    Raises:
        UserError: Folders are missing or named wrongly, images do not fit; see :class:`PairedImageDataset`.
    """
    key = phase if key is None else key
    training = phase == "train"
    if options.dataroot_lq is None:
        raise UserError(f"datasets:{key}:dataroot_lq is missing; make LR images with: python -m basicsr_quant "
                        f"prepare-data --hr {options.dataroot_gt or 'DIR'} --out DIR --scale {scale}")
    if training and options.dataroot_gt is None and read_gt:
        raise UserError(f"datasets:{key}:dataroot_gt is missing; this training compares with HR images")
    if training and options.gt_size is None:
        raise UserError(f"datasets:{key}:gt_size is missing; training needs the side of a patch in HR pixels")
    dataset: PairedImageDataset = DATASETS.build(
        options.type, dataroot_gt=options.dataroot_gt, dataroot_lq=options.dataroot_lq, scale=scale, key=key,
        filename_tmpl=options.filename_tmpl, backend=options.io_backend.type, seed=seed,
        gt_size=options.gt_size if training else None, use_hflip=options.use_hflip, use_rot=options.use_rot,
        exclude_last=options.exclude_last, only_last=options.only_last,
        crop_size=None if training else options.crop_size, read_gt=read_gt, max_pixels=options.max_pixels,
        lenient=phase == "test", cache_bytes=0 if phase in ("val", "test") else DEFAULT_CACHE_BYTES,
    )
    return dataset


def worker_count(wanted: int) -> int:
    """Return how many workers to start: ``wanted``, at most one for each processor core (draws do not change)."""
    return min(wanted, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def ignore_signals(worker: int) -> None:
    """Leave SIGINT and SIGTERM, which reach a whole process group, to the main process, which saves first."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class ImageLoader:
    """Batches of a data set, as often as it is iterated.

    Args:
        dataset: The images.
        workers: Worker processes, as asked for in the options; at most one for each processor core is started.
        pin_memory: Page-locked batches, if there is a GPU.
        prefetch_factor: Batches that each worker prepares ahead.
        **order: What a torch ``DataLoader`` needs to know about the order (``batch_sampler``, or ``sampler``).
    """

    def __init__(
        self, dataset: PairedImageDataset, workers: int, pin_memory: bool, prefetch_factor: int, **order: Any,
    ) -> None:
        self.dataset = dataset
        workers = worker_count(workers)
        self._loader: DataLoader[Sample] = DataLoader(
            dataset, num_workers=workers, collate_fn=collate, worker_init_fn=ignore_signals,
            generator=torch.Generator().manual_seed(0),
            pin_memory=pin_memory and torch.cuda.is_available(),
            prefetch_factor=prefetch_factor if workers else None, **order,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Sample]:
        """Yield batches; what a worker has to tell the user arrives as its one line.

        Raises:
            UserError: An image cannot be read.
        """
        try:
            yield from self._loader
        except UserError as error:
            line = str(error).strip().splitlines()[-1]
            raise UserError(line.removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")) from error


def build_train_loader(
    dataset: PairedImageDataset, options: DatasetOptions, *, seed: int, total_iter: int, start_iteration: int = 0,
    rank: int = 0, world_size: int = 1, accumulation: int = 1,
) -> ImageLoader:
    """Return a loader that yields ``accumulation`` batches for each iteration from ``start_iteration`` to the end.

    Args:
        dataset: What :func:`build_dataset` returned for phase ``train``.
        options: Its block: batch size, workers, shuffling, enlargement.
        seed: ``manual_seed`` of the run.
        total_iter: Iterations of the whole training.
        start_iteration: Iterations that are done already.
        rank: This process.
        world_size: Number of processes.
        accumulation: Batches for one optimizer step.
    """
    sampler = TrainSampler(
        len(dataset), seed, options.batch_size_per_gpu, rank, world_size, start_iteration, total_iter, accumulation,
        shuffle=options.use_shuffle, enlarge=options.dataset_enlarge_ratio,
    )
    return ImageLoader(
        dataset, options.num_worker_per_gpu, options.pin_memory, options.prefetch_factor, batch_sampler=sampler,
    )
