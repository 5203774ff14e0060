"""Benchmarks: one module each, with ``HELP``, ``add_arguments(parser)`` and ``run(arguments) -> Report``."""
