"""python -m cluster plan

Exit codes: 0 done, 1 failed, 2 bad usage or input, 130 interrupted.
Messages and progress go to stderr; what was asked for goes to stdout.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from trainers.recipe import nearest
from trainers.store import explain

USAGE = """usage: python -m cluster COMMAND ...

  plan RECIPE --memory SIZE...  which batches fit into which memory, and in which micro-batches

COMMAND --help tells more."""


def main(argv: Sequence[str]) -> int:
    """Run a command line; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    command, rest = argv[0], list(argv[1:])
    try:
        if command not in COMMANDS:
            raise ValueError(f"there is no command {command!r}{nearest(command, COMMANDS)}")
        return COMMANDS[command](rest)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{explain(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _plan(argv: list[str]) -> int:
    from cluster.plan import main

    return main(argv)


COMMANDS: dict[str, Callable[[list[str]], int]] = {"plan": _plan}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
