"""python -m cluster plan

Exit codes: 0 done, 1 failed, 2 bad usage or input, 130 interrupted.
Messages and progress go to stderr; what was asked for goes to stdout.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from trainers.words import run_command

USAGE = """usage: python -m cluster COMMAND ...

  plan RECIPE --memory SIZE...  which batches fit into which memory, and in which micro-batches

COMMAND --help tells more."""


def main(argv: Sequence[str]) -> int:
    """Run a command line; returns the exit code."""
    return run_command(argv, COMMANDS, USAGE)


def _plan(argv: list[str]) -> int:
    from cluster.plan import main

    return main(argv)


COMMANDS: dict[str, Callable[[list[str]], int]] = {"plan": _plan}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
