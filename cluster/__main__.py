"""python -m cluster doctor | plan | submit | status | logs | stop

Exit codes: 0 done, 1 failed, 2 bad usage or input, 130 interrupted.
Messages and progress go to stderr, results to stdout.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from trainers.cli import run_command

USAGE = """usage: python -m cluster COMMAND ...

  doctor                        what would stop a run on the cluster, or slow it: checked on every host beforehand
  plan RECIPE --memory SIZE...  which batches fit into which memory, and in which micro-batches
  submit [...] -- COMMAND       run a command on a cluster, as if it ran here
  status [JOB]                  the jobs of a cluster, or one of them
  logs JOB                      what a job has written; follows it while it runs
  stop JOB                      end a job, with time to write its checkpoint

COMMAND --help says more."""


def main(argv: Sequence[str]) -> int:
    """Run a command line, without the program's name; returns the exit code."""
    return run_command(argv, COMMANDS, USAGE)


def _plan(argv: list[str]) -> int:
    from cluster.plan import main

    return main(argv)


def _submit(argv: list[str]) -> int:
    from cluster.submit import submit

    return submit(argv)


def _status(argv: list[str]) -> int:
    from cluster.submit import status

    return status(argv)


def _logs(argv: list[str]) -> int:
    from cluster.submit import logs

    return logs(argv)


def _stop(argv: list[str]) -> int:
    from cluster.submit import stop

    return stop(argv)


def _doctor(argv: list[str]) -> int:
    from cluster.doctor import main

    return main(argv)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "doctor": _doctor,
    "plan": _plan,
    "submit": _submit,
    "status": _status,
    "logs": _logs,
    "stop": _stop,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
