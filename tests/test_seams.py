"""Nothing asks for the kind of task or of target but tasks, the codecs, data sets and figures: new kinds fit in."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from trainers import registry
from trainers.registry import names

ROOT = Path(__file__).parent.parent
TASKS = {*names("tasks")}
KINDS = {"labels", "masks", "label_sets", "numbers", "boxes", "instances"}
CLASSES = {"Classify", "Ordinal", "Segment", "SegmentBinary", "Multilabel", "Regress", "Detect", "DetectMasks"} | {
    *("Labels", "Masks", "LabelSets", "Numbers", "Boxes", "InstanceMasks")
}
MAY_ASK = [
    "trainers/tasks/*.py",
    "trainers/data/targets/*.py",
    "trainers/datasets/*.py",
    "trainers/runs/example_figures.py",
    "trainers/runs/figures.py",
    "trainers/runs/mask_figures.py",
    "trainers/runs/score_figures.py",
]
FILES = sorted(
    path
    for folder in ("trainers", "tune_spaces", "cluster")
    for path in (ROOT / folder).rglob("*.py")
    if not any(path.match(pattern) for pattern in MAY_ASK)
)


def constants(*nodes: ast.expr) -> set[object]:
    return {each.value for node in nodes for each in ast.walk(node) if isinstance(each, ast.Constant)}


def attributes(*nodes: ast.expr) -> set[str]:
    return {each.attr for node in nodes for each in ast.walk(node) if isinstance(each, ast.Attribute)}


def named(node: ast.expr) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)} | attributes(node)


def compares(node: ast.Compare) -> bool:
    sides = (node.left, *node.comparators)
    of = attributes(*sides)
    return bool(
        constants(*sides) & (TASKS | KINDS)
        or "task" in of
        or "TARGET" in constants(*sides)
        or ("target" in of and constants(*sides))
        or ("ndim" in of and any("target" in name for side in sides for name in named(side)))
    )


def calls(node: ast.Call) -> bool:
    function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if function in ("isinstance", "issubclass"):
        return bool(named(node.args[1]) & CLASSES)
    return function in ("get", "startswith", "endswith") and bool(constants(*node.args) & (TASKS | {"masks"}))


def asks(node: ast.AST) -> bool:
    if isinstance(node, ast.Compare):
        return compares(node)
    if isinstance(node, ast.Call):
        return calls(node)
    if isinstance(node, ast.Attribute):
        return node.attr == "masks"
    if isinstance(node, ast.Subscript):
        return isinstance(node.ctx, ast.Load) and "masks" in constants(node.slice)
    return isinstance(node, ast.MatchValue) and bool(constants(node.value) & (TASKS | KINDS))


def questions(source: str) -> list[str]:
    """Where a program asks for a kind: line and what stands there."""
    return [f"{getattr(n, 'lineno', '?')}: {ast.unparse(n)}" for n in ast.walk(ast.parse(source)) if asks(n)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_asks_for_the_kind_of_task_or_target(path: Path) -> None:
    assert questions(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "if source.masks: pass",
        "x = 1 if meta['masks'] else 2",
        "x = meta.get('masks')",
        "if recipe.task.startswith('segment'): pass",
        "if recipe.task != 'classify': pass",
        "if recipe.task == other: pass",
        "if recipe.task in ('segment', 'segment_binary'): pass",
        "masks = targets if targets.ndim == 3 else None",
        "assert isinstance(task, Segment)",
        "if target.name == 'labels': pass",
        "if constant('tasks', recipe.task, 'TARGET') == name: pass",
        "match recipe.task:\n    case 'ordinal': pass",
    ],
)
def test_a_question_is_found(line: str) -> None:
    assert questions(line)


def test_the_modules_of_tasks_that_are_no_tasks_are_not_listed() -> None:
    assert {
        "classify",
        "detect",
        "detect_masks",
        "multilabel",
        "ordinal",
        "regress",
        "segment",
        "segment_binary",
    } == TASKS
    with pytest.raises(ValueError, match=r"there is no task 'boundary_f1'.*classify"):
        registry.load("tasks", "boundary_f1")
