"""For tools that look for setup.py: everything is in pyproject.toml. Builds no extension, imports no torch."""

from setuptools import setup

setup()
