"""Entry points: ``train.py``, ``test.py`` and the verbs of ``python -m basicsr_quant``."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Callable, Sequence

from basicsr_quant.engine.experiment import start_logging
from basicsr_quant.errors import UserError, is_out_of_memory

VERBS = ("prepare-data", "calibration-data", "evaluate", "inspect", "docs", "quickstart", "table", "bench", "pack",
         "infer", "export", "analyse", "sensitivity", "report")

OUT_OF_MEMORY = ("out of memory; to train, lower datasets:train:batch_size_per_gpu (train:accumulation makes up for "
                 "it) or gt_size, or set train:precision=bf16; to test, set val:tile (infer: --tile) or pipeline:tiles")
DEAD_WORKER = ("a worker that loads images was killed, most likely as memory ran out; lower "
               "datasets:train:num_worker_per_gpu and go on from the last checkpoint with --auto_resume")
INDETERMINATE = "does not have a deterministic implementation"


def guarded(function: Callable[[], int | None]) -> int:
    """Run a command; turn what a user can mend into one line on standard error and an exit code other than 0."""
    from basicsr_quant.engine.interruption import Interrupted

    try:
        return function() or 0
    except UserError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    except Interrupted as stop:
        sys.stderr.write(f"interrupted by {stop}; {stop.advice}\n")
        return stop.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted at once; the last checkpoint is intact, go on with --auto_resume\n")
        return 130
    except Exception as error:
        line = _mendable(error)
        if line is None:
            raise
        sys.stderr.write(f"error: {line}\n")
        return 2
    finally:
        logging.shutdown()


def _mendable(error: Exception) -> str | None:
    """Return the line for an error of Python or of a library that a user can mend; None for a defect."""
    if str(error).startswith("DataLoader worker"):
        return DEAD_WORKER
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    if INDETERMINATE in str(error):
        return f"{str(error).split(',')[0]}; set deterministic=false"
    if isinstance(error, OSError) and error.filename is not None:
        name = " ".join(str(error.filename).split())
        return f"cannot use '{name}': {error.strerror}; check the path and its permissions"
    return None


def train_main(argv: Sequence[str] | None = None) -> int:
    """Run ``train.py``."""
    def run() -> None:
        from basicsr_quant.engine.train import train
        from basicsr_quant.options.load import load_options, parse_arguments

        arguments = parse_arguments(argv, is_train=True)
        options = load_options(arguments.opt, arguments.force_yml, arguments.debug, is_train=True)
        train(options, arguments.launcher, arguments.auto_resume)

    return guarded(run)


def test_main(argv: Sequence[str] | None = None) -> int:
    """Run ``test.py``."""
    def run() -> None:
        from basicsr_quant.deploy.execute import execute
        from basicsr_quant.engine.test import test
        from basicsr_quant.options.load import load_options, parse_arguments

        arguments = parse_arguments(argv, is_train=False)
        options = load_options(arguments.opt, arguments.force_yml, arguments.debug, is_train=False)
        test(options, execute, arguments.launcher)

    return guarded(run)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m basicsr_quant VERB ...``; each verb lives in a module of its own name."""
    parser = argparse.ArgumentParser(prog="python -m basicsr_quant", description="Super-resolution at low bit-widths.")
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        importlib.import_module(f"basicsr_quant.cli.{verb.replace('-', '_')}").add_parser(subparsers)
    arguments = parser.parse_args(argv)
    start_logging(None, arguments.verb, is_main=True)
    return guarded(lambda: arguments.func(arguments))
