"""Benchmarks: one module each, with ``HELP``, ``add_arguments(parser)`` and ``run(arguments) -> Report``.

``THREADS`` of a module is how many CPU threads it takes if the command line does not say.
"""
