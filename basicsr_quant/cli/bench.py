"""``bench``: time and memory of one part against the published way of doing it, results compared first."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

import torch

from basicsr_quant.errors import UserError
from basicsr_quant.io.atomic import write_text

BENCHMARKS = ("bi_diffsr", "conv", "dobi", "dqc", "linear", "osediff", "swinir")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb; each benchmark lives in a module of its own name in ``report/bench``."""
    parser = subparsers.add_parser("bench", help="time and memory, measured here and now")
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name in BENCHMARKS:
        module = importlib.import_module(f"basicsr_quant.report.bench.{name}")
        benchmark = benchmarks.add_parser(name, help=module.HELP)
        module.add_arguments(benchmark)
        threads = getattr(module, "THREADS", None)
        benchmark.add_argument("--threads", type=int, default=threads,
                               help=f"CPU threads; default: {threads or 'what torch takes'}")
        benchmark.add_argument("--json", type=Path, help="write everything as JSON too")
        benchmark.set_defaults(func=run, benchmark_module=module)


def run(arguments: argparse.Namespace) -> None:
    """Measure, print the tables, write the JSON file.

    Raises:
        UserError: An argument is out of range, or the variants do not compute the same.
    """
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise UserError(f"--threads: expected at least 1, found {arguments.threads}")
        torch.set_num_threads(arguments.threads)
    report = arguments.benchmark_module.run(arguments)
    sys.stdout.write(report.as_text())
    if arguments.json is not None:
        write_text(arguments.json, json.dumps(report.as_dict(), indent=1))
