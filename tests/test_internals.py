"""Private names of Ray and torch stand in one file each, and are still there in the version that is installed."""

from __future__ import annotations

import ast
import contextlib
import re
from pathlib import Path

import pytest

from trainers.training import torch_internals

ROOT = Path(__file__).parent.parent
ALLOWED = [
    "trainers/runtime/ray_internals.py",
    "trainers/training/torch_internals.py",
    "tests/runtime/test_ray_internals.py",
    "tests/test_internals.py",
    "tests/helpers/ray_launcher.py",
    "tests/test_imports.py",  # that one of them is not imported
]
PRIVATE = re.compile(r"^(ray|torch)\.(\w+\.)*_(?!_)\w*")
"""A dotted name of Ray or torch with a part that begins with one underscore."""
FILES = sorted(
    path
    for folder in ("trainers", "tune_spaces", "cluster", "tests")
    for path in (ROOT / folder).rglob("*.py")
    if str(path.relative_to(ROOT)) not in ALLOWED
)


def private_names(code: str) -> set[str]:
    """Names that a file imports, reaches by attributes, or names in a string, as a patch does; code in strings, too."""
    tree = ast.parse(code)
    known = {"ray": "ray", "torch": "torch"}  # name in this file -> what it stands for
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            known |= {each.asname: full for each, full in imported(node) if each.asname}
            known |= {each.name: full for each, full in imported(node) if isinstance(node, ast.ImportFrom)}
    return {name for node in ast.walk(tree) for name in named(node, known) if PRIVATE.match(name)}


def imported(node: ast.Import | ast.ImportFrom) -> list[tuple[ast.alias, str]]:
    """Each part of an import statement, with its full name."""
    start = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
    return [(each, start + each.name) for each in node.names]


def named(node: ast.AST, known: dict[str, str]) -> set[str]:
    """The full names that one node stands for."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {full for _, full in imported(node)}
    if isinstance(node, ast.Attribute):
        return {dotted(node, known)}
    if isinstance(node, ast.Call) and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
        return {f"{dotted(node.args[0], known)}.{node.args[1].value}"}  # setattr, patch.object: an object and a name
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        if "import " not in node.value:
            return set() if " " in node.value else {node.value}
        with contextlib.suppress(SyntaxError):
            return private_names(node.value)
    return set()


def dotted(node: ast.expr, known: dict[str, str]) -> str:
    """The full name that attributes of a module stand for; "" for those of anything else."""
    if isinstance(node, ast.Name):
        return known.get(node.id, "")
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value, known)
        return f"{inner}.{node.attr}" if inner else ""
    return ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_private_name_of_ray_or_torch_is_used(path: Path) -> None:
    assert private_names(path.read_text()) == set()


@pytest.mark.parametrize(
    "code",
    [
        "import ray._private.worker",
        "from torch.utils._pytree import tree_leaves",
        "from torch.nn.modules.batchnorm import _BatchNorm",
        "import ray\nray._private.worker.global_worker.node",
        "import torch\ntorch._dynamo = None",
        "from ray.tune import schedulers as s\ns.Scheduler._get()",
        "mock.patch('ray._private.state.state')",
        "import torch\nmonkeypatch.setattr(torch, '_dynamo', None)",
        "from ray.tune import Tuner\nmock.patch.object(Tuner, '_fit')",
        "CODE = 'import torch\\nfrom ray._private import state'",
    ],
)
def test_private_names_are_found(code: str) -> None:
    assert private_names(code)


@pytest.mark.parametrize(
    "code", ["import torch\ntorch.__version__", "from ray import cloudpickle", "self._state.ray", "'torch is _not_ it'"]
)
def test_public_names_are_let_through(code: str) -> None:
    assert not private_names(code)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch._subclasses.fake_tensor", "FakeTensorMode"),
        ("torch._subclasses.fake_tensor", "DataDependentOutputException"),
        ("torch._subclasses.fake_tensor", "DynamicOutputShapeException"),
        ("torch._subclasses.fake_tensor", "UnsupportedFakeTensorException"),
        ("torch._subclasses.fake_tensor", "UnsupportedOperatorException"),
        ("torch.nn.modules.batchnorm", "_BatchNorm"),
        ("torch.nn.modules.batchnorm", "_NormBase"),
        ("torch.utils._python_dispatch", "TorchDispatchMode"),
        ("torch.utils._pytree", "tree_leaves"),
    ],
)
def test_torch_still_has_what_we_use(module: str, name: str) -> None:
    import importlib

    assert hasattr(importlib.import_module(module), name)


def test_a_storage_keeps_its_key_and_views_share_it() -> None:
    import torch

    with torch_internals.fake_tensors():
        one, other = torch.empty(3), torch.empty(3)
    keys = [torch_internals.storage_key(each.untyped_storage()) for each in (one, one.view(1, 3), other)]
    assert keys[0] == keys[1] != keys[2]


def test_limits_of_fake_tensors_are_distinguished_from_errors_of_the_model() -> None:
    import torch

    with torch_internals.fake_tensors():
        tensor = torch.empty(3)
        with pytest.raises(Exception, match="_local_scalar_dense") as numbers:
            tensor[0].item()
        with pytest.raises(RuntimeError) as shapes:
            tensor + torch.empty(4)
    assert torch_internals.needs_numbers(numbers.value)
    assert not torch_internals.needs_numbers(shapes.value)


@pytest.mark.parametrize("file", ALLOWED[:2])
def test_each_test_that_is_named_there_exists(file: str) -> None:
    text = (ROOT / file).read_text()
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"\btest_\w+(?!\w*\.py)\b", re.sub(r"[\w/]*/test_\w+\.py", "", text)))
    assert named
    assert [name for name in sorted(named) if f"def {name}(" not in tests] == []
    for path in re.findall(r"tests/[\w/]+\.py", text):
        assert (ROOT / path).exists(), path
