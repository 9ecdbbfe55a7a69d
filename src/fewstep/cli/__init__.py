"""The command line: one file a verb, each a typed function that imports torch only late."""

from fewstep.cli.dispatch import main

__all__ = ["main"]
