"""Files that READMEs, docstrings, comments and commands mention exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("cluster", "tests", "trainers", "tune_spaces")
READ = (".md", ".py", ".yaml", ".sh", ".service")
MENTION = re.compile(rf"(?<![\w./~}}-])(?:{'|'.join(FOLDERS)})/[\w./*<{{}}>-]*\.(?:py|md|yaml|sh|json|service)\b")
PLACEHOLDER = re.compile(r"/[A-Z]+\.(?:py|yaml)|[<{]")
"""In a path, such as trainers/models/NAME.py."""
TEST = re.compile(r"(?<![\w/.])test_\w+\.py\b")
FILES = [
    *ROOT.glob("*.md"),
    ROOT / ".ci" / "run",
    *(
        path
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in READ and path != Path(__file__)
    ),
]


def mentions(text: str) -> set[str]:
    """Paths below the root, as a text mentions them; bare names of tests as patterns."""
    paths = {path for path in MENTION.findall(text) if not PLACEHOLDER.search(path)}
    return paths | {f"tests/**/{name}" for name in TEST.findall(text)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_mentioned_exist(path: Path) -> None:
    gone = {mention for mention in mentions(path.read_text()) if not any(ROOT.glob(mention))}
    assert not gone, f"{path.relative_to(ROOT)} mentions files that do not exist: {gone}; correct their paths there"


def test_mentions_are_found_in_any_notation() -> None:
    text = "# see `trainers/gone.py`, tests/a/b.py::name, (cluster/*.yaml) or trainers/models/NAME.py; test_gone.py"
    # Neither folders elsewhere nor placeholders are mentions.
    text += " /tmp/trainers/other.py ~/cluster/x.yaml {ROOT}/tests/c.py"
    assert mentions(text) == {"trainers/gone.py", "tests/a/b.py", "cluster/*.yaml", "tests/**/test_gone.py"}


def test_no_advice_opens_tensorboard_to_the_network() -> None:
    lines = [line for path in FILES for line in path.read_text().splitlines() if "tensorboard --logdir" in line]
    assert lines
    assert not [line for line in lines if "--bind_all" in line or "--host" in line]
