"""Entry points: ``train.py``, ``test.py`` and the verbs of ``python -m basicsr_quant``."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Callable, Sequence

from basicsr_quant.engine.experiment import start_logging
from basicsr_quant.errors import UserError

VERBS = ("prepare-data", "calibration-data", "evaluate", "inspect", "docs", "quickstart", "table", "bench", "pack",
         "infer", "export", "analyse", "sensitivity", "report")


def guarded(function: Callable[[], int | None]) -> int:
    """Run a command; turn what a user can mend into one line on standard error and an exit code other than 0."""
    import torch

    from basicsr_quant.engine.interruption import Interrupted

    try:
        return function() or 0
    except UserError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    except Interrupted as stop:
        sys.stderr.write(f"interrupted by {stop}; the state was saved, go on with --auto_resume\n")
        return stop.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted at once; the last checkpoint is intact, go on with --auto_resume\n")
        return 130
    except torch.cuda.OutOfMemoryError:
        sys.stderr.write("error: out of GPU memory; lower datasets:train:batch_size_per_gpu or gt_size, set val:tile, "
                         "or train:precision=bf16\n")
        return 2
    finally:
        logging.shutdown()


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
