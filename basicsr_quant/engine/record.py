"""Where the numbers of a run go beside the log: TensorBoard, Weights & Biases."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from basicsr_quant.engine.events import EventFile
from basicsr_quant.options.types import Options

logger = logging.getLogger("basicsr_quant")


class Recorder:
    """Write scalars to TensorBoard and, if asked for and possible, to Weights & Biases.

    A package that is missing and a service that fails cost one warning. A disk that is full stops the run.

    Raises:
        WriteError: The TensorBoard log cannot be begun.
    """

    def __init__(self, options: Options, is_main: bool) -> None:
        self._tensorboard: EventFile | None = None
        self._wandb: Any = None
        if not is_main:
            return
        if options.logger.use_tb_logger:
            self._open_tensorboard(Path(options.path.tb_root) / options.name)
        if options.logger.wandb is not None and options.logger.wandb.project and "debug" not in options.name:
            self._open_wandb(options)

    def _open_tensorboard(self, folder: Path) -> None:
        try:
            self._tensorboard = EventFile(folder)
        except ImportError as error:
            logger.warning("no TensorBoard log: %s", error)

    def _open_wandb(self, options: Options) -> None:
        try:
            import wandb

            assert options.logger.wandb is not None
            if not (wandb.api.api_key or os.environ.get("WANDB_MODE") == "offline"):
                logger.warning("logger:wandb is set but nobody is logged in; the run goes on without it")
                return
            self._wandb = wandb.init(project=options.logger.wandb.project, id=options.logger.wandb.resume_id,
                                     resume="allow", name=options.name)
        except Exception as error:  # a tracker's trouble must not end a training
            logger.warning("logger:wandb is set but does not work (%s); the run goes on without it", error)

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        """Record named numbers of one iteration.

        Raises:
            WriteError: The TensorBoard log cannot be written.
        """
        if self._tensorboard is not None:
            self._tensorboard.scalars(values, iteration)
        self._to_wandb(lambda run: run.log(dict(values), step=iteration))

    def close(self) -> None:
        """Close what is open."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        self._to_wandb(lambda run: run.finish())

    def _to_wandb(self, write: Callable[[Any], Any]) -> None:
        try:
            if self._wandb is not None:
                write(self._wandb)
        except Exception as error:  # a tracker's trouble must not end a training
            logger.warning("the log to Weights & Biases ends here: %s", error)
            self._wandb = None
