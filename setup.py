"""Everything is declared in setup.cfg; this file serves tools that still call setup.py."""

from setuptools import setup

setup()
