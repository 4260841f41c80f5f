"""The command line: one small file per command; `main` is the program."""

from pliant.cli.program import main

__all__ = ["main"]
