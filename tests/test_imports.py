"""Imports run one way, and what must be light is light."""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A package, or a module that lies beside them, may import those of the lines above its own.
LEVELS = [
    "arrays",
    "formatting limits phase ratios confusion image_tables box_table instances outlines run_facts upload values",
    "messages match_tables",
    "notices endings process time_left stored",
    "pixels",
    "decode",
    "progress listing",
    "storage",
    "own_code",
    "registry datasets models augmentations",
    "fields",
    "recipe",
    "from_data catalogue",
    "recipes cli runs data tasks report",
    "training",
    "checks resolution runtime",
    "input_data",
    "fitting inference",
    "pruning",
    "variants",
    "trainers",
    "__main__",
]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """The modules of ours that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            is_module = {name for name in inner if (ROOT / (name.replace(".", "/") + ".py")).exists()}
            found |= is_module or {node.module}
    return frozenset(name for name in found if name.split(".")[0] in ("trainers", "tune_spaces", "cluster", "tests"))


FILES = sorted((ROOT / "trainers").rglob("*.py"))
ABOVE = sorted([*(ROOT / "cluster").glob("*.py"), *(ROOT / "tune_spaces").rglob("*.py")])


def package(module: str) -> str:
    """The part of trainers that a module belongs to: "data" of trainers.data.meta."""
    return module.split(".")[1] if "." in module else module


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_packages_import_one_way(path: Path) -> None:
    own = package(module_name(path))
    level = next(number for number, names in enumerate(LEVELS) if own in names.split())
    below = {name for names in LEVELS[:level] for name in names.split()}
    assert {package(name) for name in imports(path)} <= below | {own}


def test_no_modules_import_each_other() -> None:
    left = {module_name(path): imports(path) for path in [*FILES, *ABOVE]}
    while free := {name for name, needs in left.items() if not needs & left.keys() - {name}}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert not left


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name == "models"], ids=module_name)
def test_a_model_knows_nothing_of_training(path: Path) -> None:
    shared = ("_imagenet", "_points", "_torchvision_boxes", "_weights", "timm")
    assert imports(path) <= {f"trainers.models.{name}" for name in shared}


@pytest.mark.parametrize("path", ABOVE, ids=module_name)
def test_cluster_and_sweeps_import_trainers_which_import_neither(path: Path) -> None:
    assert {name.split(".")[0] for name in imports(path)} <= {"trainers", path.relative_to(ROOT).parts[0]}
    assert not any(module_name(path) in imports(file) for file in FILES)


def test_only_one_module_knows_ray_train_and_only_one_the_process_group() -> None:
    for path in FILES:
        text = path.read_text()
        if module_name(path) not in ("trainers.runtime.ray_train", "trainers.runtime.ray_callbacks"):
            assert "ray.train" not in re.sub(r'""".*?"""|#.*', "", text, flags=re.DOTALL), path
            assert "torch.distributed" not in text or module_name(path) == "trainers.training.distributed", path


LIGHT = "trainers trainers.__main__ tune_spaces.__main__ tune_spaces.sweep cluster.__main__ cluster.plan cluster.submit"
LIGHT += " cluster.doctor"


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        (LIGHT, "torch ray numpy pyarrow matplotlib timm segmentation_models_pytorch torchvision"),
        ("trainers.report.report", "torch ray"),
        (
            "trainers.training.loop trainers.inference.predict trainers.training.peak_memory",
            "torchvision ray matplotlib",
        ),
    ],
)
def test_what_must_be_light_is_light(modules: str, unwanted: str) -> None:
    code = f"""
import importlib, sys
for module in {modules.split()!r}:
    importlib.import_module(module)
    if found := sys.modules.keys() & set({unwanted.split()!r}):
        sys.exit(f"{{module}} imports {{found}}")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


ALONE = """
import trainers
for optimizer in ("sgd", "adamw"):
    trainers.fit("digits.cnn", {"epochs": 1, "optimizer": optimizer}, trainers.Scale(workers=0))
from trainers.training import build
build.build_without_memory(trainers.resolve("shapes.unet"), {"channels": 3, "classes": ["a", "b"]})  # a check before
"""


def test_training_alone_does_without_the_compiler(tmp_path: Path) -> None:
    """Whose import takes longer than the first epochs of a small model; trainers/training/startup.py avoids it."""
    code = ALONE
    code += "import sys; print(*{'torch._dynamo', 'sympy'} & sys.modules.keys())"
    env = {**os.environ, "TRAINYARD_STORAGE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_no_function_is_longer_than_70_lines() -> None:
    for path in [*FILES, *ABOVE]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno <= 70, f"{path}: {node.name}"


def test_no_module_takes_the_name_of_what_the_package_offers() -> None:
    """Importing trainers.x sets the attribute x of trainers, in place of a function of that name."""
    import trainers

    modules = {path.stem for path in (ROOT / "trainers").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not modules & set(trainers.__all__)
