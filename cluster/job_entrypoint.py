"""The start of a submitted job, on the head: check that the cluster has the packages, then become the command.

    TRAINYARD_NEEDS='["torch>=2.14"]' python -m cluster.job_entrypoint python -m trainers train digits.cnn

Imports nothing that a cluster with Ray may lack.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Iterator, Sequence

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HAS, LACKS = "trainyard: the cluster has the packages", "trainyard: the cluster lacks "
"""Lines of the job's log that report the outcome; `LACKS` is followed by a JSON list."""


def lacking(needs: Sequence[str]) -> list[str]:
    """Find out which packages are not installed here.

    Args:
        needs: Requirements as in pyproject.toml.

    Returns:
        Those that are not met; of one with extras, the requirements of its extras that are not.
    """
    return list(dict.fromkeys(text for need in needs for text in _lacking(Requirement(need), {""})))


def _lacking(need: Requirement, extras: set[str]) -> Iterator[str]:
    if need.marker and not any(need.marker.evaluate({"extra": extra}) for extra in extras):
        return
    try:
        version = importlib.metadata.version(need.name)
    except importlib.metadata.PackageNotFoundError:
        version = ""
    need.marker = None
    if not version or not need.specifier.contains(version, prereleases=True):
        yield str(need)
        return
    for text in importlib.metadata.requires(need.name) or () if need.extras else ():
        below = Requirement(text)
        if canonicalize_name(below.name) == canonicalize_name(need.name):  # all = name[one,two]
            below.extras -= need.extras
        if "extra" in str(below.marker):
            yield from _lacking(below, need.extras)


def main(words: Sequence[str]) -> None:
    """Become the command `words`; where packages are missing, print which and end with code 1."""
    missing = lacking(json.loads(os.environ.pop("TRAINYARD_NEEDS", "[]")))
    print(f"{LACKS}{json.dumps(missing)}" if missing else HAS, flush=True)
    if missing:
        sys.exit(1)
    try:
        os.execvp(words[0], list(words))
    except OSError as error:
        print(f"error: {words[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(127)


if __name__ == "__main__":
    main(sys.argv[1:])
