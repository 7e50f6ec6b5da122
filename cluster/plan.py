"""Which batches of a recipe fit into which memory, known before anything is rented or started.

    python -m cluster plan erfnet.decoder --batch-size 2 3 4 6 8 --image-size 512x1024 --memory 10.76GiB 32GiB

Needs neither a GPU nor, for data sets that know their classes, the data.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict, TypeVar

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from trainers.cli import cli, cli_type, leading
from trainers.formatting import format_size, parse_size
from trainers.progress import Progress
from trainers.recipe import Recipe, Scale, recipe_names, resolve, resolve_micro_batch
from trainers.registry import arguments, constant, load
from trainers.run_facts import DatasetFacts
from trainers.values import Size, size_of

if TYPE_CHECKING:
    from trainers.training.peak_memory import Curve

USAGE = (
    "usage: python -m cluster plan RECIPE [--batch-size N...] [--image-size SIZE...] --memory SIZE... [--FIELD VALUE]"
)
DIGITS = 10
GREY = ("mnist", "texture_crops")
"""Data sets of one channel."""
WIDE = 140
"""Columns of a table that does not go to a terminal."""
Item = TypeVar("Item")


class Fit(TypedDict):
    """How a batch fits on a card."""

    fits: bool
    micro_batch_size: int | None
    """The largest that fits; None: not even 1 does."""
    predicted_bytes: int
    """Peak of a step of it, or of 1."""


class Row(TypedDict):
    """One recipe."""

    image_size: list[int]
    precision: str
    batch_size: int
    micro_batch_size: int | None
    predicted_bytes: int
    cards: dict[str, Fit]


class Largest(TypedDict):
    """The largest batch of one image size and precision on one card."""

    image_size: list[int]
    precision: str
    memory: str
    """What the card is called."""
    batch_size: int
    """0: not even one picture on each worker fits."""
    predicted_bytes: int
    """Peak of a step of one micro-batch on each worker."""


class Plan(TypedDict):
    """What fits. Bytes are those of each worker."""

    workers: int
    strategy: str
    activation_checkpointing: bool
    batch_norm: bool
    """Whether the model's statistics are those of a micro-batch."""
    rows: list[Row]
    largest: list[Largest]


def main(argv: list[str]) -> int:
    """Print the plan that a command line asks for.

    Args:
        argv: The words after `plan`.

    Returns:
        The exit code.

    Raises:
        ValueError: A flag is not allowed, or the number of classes is not known.
    """
    names, flags = leading(argv)
    if not names and flags and flags[0] in ("-h", "--help"):
        print(f"{USAGE}\n\nrecipes: {', '.join(recipe_names())}, or FILE.py:FUNCTION of your own")
        print("python -m cluster plan RECIPE --help shows every field with that recipe's defaults")
        return 0
    if len(names) != 1:
        raise ValueError(f"plan needs the name of one recipe: {', '.join(recipe_names())}")
    request = _parse(names[0], flags)
    from trainers.training.peak_memory import context_bytes

    limits = {text: parse_size(text) for text in request.memory}
    context = context_bytes()
    for text, limit in limits.items():
        if context and limit <= context:
            raise ValueError(
                f"--memory {text} is less than the {format_size(context)} of the device's context; give more"
            )
    meta = _meta(request.recipes[0], request.data, request.classes)
    progress = Progress()
    free = {text: limit - (context or 0) for text, limit in limits.items()}
    plan = make_plan(request.recipes, meta, free, request.scale, progress)
    if request.json:
        print(json.dumps({**plan, "context_bytes": context}, indent=1))
        return 0
    _show(names[0], plan, context, progress)
    return 0


def make_plan(
    recipes: Sequence[Recipe], meta: DatasetFacts, limits: Mapping[str, int], scale: Scale, progress: Progress
) -> Plan:
    """Find out what fits: a row for each recipe, and the largest batch of each size and precision on each card.

    Args:
        recipes: With a resolved precision.
        meta: Channels and classes of the data.
        limits: What a card is called -> bytes that torch may take there.
        scale: The workers, each on a card of its own, their strategy and activation checkpointing.
        progress: Shows how far the traces are.

    Returns:
        What fits.

    Raises:
        ValueError: The workers cannot share a batch evenly, or as peak_memory.predict does.
    """
    from trainers.training import peak_memory

    workers = max(1, scale.worker_range[1])
    how = {"sharded": scale.strategy == "fsdp2", "activation_checkpointing": scale.activation_checkpointing}
    rows: list[Row] = []
    largest: list[Largest] = []
    curves: dict[tuple[Size, str], Curve] = {}
    kinds: dict[tuple[Size, str], Recipe] = {}
    with progress.bar("tracing steps", len({_kind(recipe) for recipe in recipes})) as advance:
        for given in recipes:
            recipe = resolve_micro_batch(given, scale)
            if _kind(recipe) not in curves:
                kinds[_kind(recipe)] = recipe
                curves[_kind(recipe)] = peak_memory.curve(recipe, meta, workers=workers, **how)
                advance(1)
            cards: dict[str, Fit] = {}
            for name, limit in limits.items():
                micro = peak_memory.largest_micro_batch(recipe, meta, limit, workers=workers, **how)
                fits = micro == recipe.micro_batch_size
                peak = peak_memory.predict(recipe, meta, micro or 1, workers=workers, **how)
                cards[name] = {"fits": fits, "micro_batch_size": micro, "predicted_bytes": peak}
            row: Row = {
                "image_size": list(recipe.image_size),
                "precision": recipe.precision,
                "batch_size": recipe.batch_size,
                "micro_batch_size": recipe.micro_batch_size,
                "predicted_bytes": peak_memory.predict(recipe, meta, workers=workers, **how),
                "cards": cards,
            }
            rows.append(row)
    for (size, precision), curve in curves.items():
        for name, limit in limits.items():
            batch = curve.largest_batch(limit, workers)
            if batch == workers and peak_memory.why_not_alone(kinds[size, precision], meta):
                batch = 0
            peak = curve(max(1, batch // workers), 1, workers)
            line: Largest = {
                "image_size": list(size),
                "precision": precision,
                "memory": name,
                "batch_size": batch,
                "predicted_bytes": peak,
            }
            largest.append(line)
    return {
        "workers": workers,
        "strategy": scale.strategy,
        "activation_checkpointing": scale.activation_checkpointing,
        "batch_norm": any(curve.batch_norm for curve in curves.values()),
        "rows": rows,
        "largest": largest,
    }


def _kind(recipe: Recipe) -> tuple[Size, str]:
    return recipe.image_size, recipe.precision


# The request --------------------------------------------------------------------------------------------------


def _help(kind: type, field: str) -> str:
    """The text under a field of a dataclass."""
    [definition] = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    for node, below in itertools.pairwise(definition.body):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == field and isinstance(below, ast.Expr):
            return str(ast.literal_eval(below.value))
    raise LookupError(f"{kind.__name__}.{field} has no text")


@dataclass(frozen=True, kw_only=True)
class _Options:
    memory: tuple[str, ...] = ()
    """Memory of each card to plan for, such as 10.76GiB or 32GB. None: that of this machine's GPU."""
    data: str | None = None
    """Folder of the raw data, for its number of classes, where the data set does not know it."""
    classes: int | None = None
    """Number of classes, in place of what the data has."""
    workers: int = 1
    """Training processes, each on a card of its own, that share a batch."""
    strategy: Annotated[Literal["ddp", "fsdp2"], tyro.conf.arg(help=_help(Scale, "strategy"))] = "ddp"
    activation_checkpointing: Annotated[bool, tyro.conf.arg(help=_help(Scale, "activation_checkpointing"))] = False
    json: bool = False
    """Print records."""


@dataclass(frozen=True)
class _Request:
    recipes: Sequence[Recipe]
    scale: Scale
    memory: Sequence[str]
    data: str | None
    classes: int | None
    json: bool


def _parse(name: str, flags: Sequence[str]) -> _Request:
    """A recipe for each image size, batch size and precision of the flags. Raises ValueError, or ends the process
    with code 2."""
    recipe = resolve(name)
    lists = {
        "batch_size": (_BATCHES, _help(Recipe, "batch_size"), (recipe.batch_size,)),
        "image_size": (_SIZES, _help(Recipe, "image_size"), (recipe.image_size,)),
        "precision": (tuple[_Precision, ...], "Arithmetic of the model.", (_resolved(recipe.precision),)),
    }
    fields = [
        (field, Annotated[kind, tyro.conf.arg(help=text)], dataclasses.field(default=default))
        for field, (kind, text, default) in lists.items()
    ]
    base = cli_type(Recipe)
    namespace = {"__doc__": Recipe.__doc__}
    many = dataclasses.make_dataclass("Recipe", fields, bases=(base,), frozen=True, kw_only=True, namespace=namespace)
    both = dataclasses.make_dataclass("plan", [("recipe", many), ("options", _Options)], kw_only=True)
    default = both(
        recipe=many(**{**vars(recipe), **{field: default for field, (_, _, default) in lists.items()}}),
        options=_Options(),
    )
    parsed = cli(both, flags, f"python -m cluster plan {name}", default)
    values, options = vars(parsed.recipe), parsed.options
    changes = {key: value for key, value in values.items() if key not in lists and value != getattr(recipe, key)}
    for field in lists:
        if not values[field]:
            raise ValueError(f"--{field.replace('_', '-')} is an empty list; give one value or more, or leave it out")
    recipes = [
        recipe.replace(**changes, image_size=size, batch_size=batch, precision=precision)
        for size in dict.fromkeys(values["image_size"])
        for precision in dict.fromkeys(values["precision"])
        for batch in dict.fromkeys(values["batch_size"])
    ]
    scale = Scale(
        workers=options.workers,
        strategy=options.strategy,
        activation_checkpointing=options.activation_checkpointing,
        data=options.data,
    )
    return _Request(recipes, scale, options.memory or _this_card(), options.data, options.classes, options.json)


_Precision = Literal["fp32", "bf16", "fp64"]
_Spec = PrimitiveConstructorSpec[tuple[Item, ...]]


def _many(read: Callable[[str], Item], show: Callable[[Item], str], metavar: str) -> _Spec[Item]:
    """How a list is read, whose words have errors of their own."""
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"{metavar}...",
        instance_from_str=lambda words: tuple(map(read, words)),
        is_instance=lambda value: True,
        str_from_instance=lambda values: list(map(show, values)),
    )


def _batch(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise ValueError(f"{word!r} is not a whole number") from None


_BATCHES = Annotated[tuple[int, ...], _many(_batch, str, "INT")]
_SIZES = Annotated[tuple[Size | None, ...], _many(size_of, lambda size: "x".join(map(str, size or ())), "SIZE|HxW")]


def _resolved(precision: str) -> str:
    """What `auto` is on this machine. torch is loaded for it alone."""
    if precision != "auto":
        return precision
    import torch

    from trainers.training.device import resolve_precision

    return resolve_precision(precision, torch.cuda.is_available())


def _this_card() -> tuple[str, ...]:
    """The memory of this machine's GPU. Raises ValueError where it has none."""
    import torch

    if not torch.cuda.is_available():
        raise ValueError("plan needs --memory SIZE..., that of the cards to plan for, such as 10.76GiB 32GiB")
    return (format_size(torch.cuda.mem_get_info()[1]),)


def _meta(recipe: Recipe, data: str | None, classes: int | None) -> DatasetFacts:
    """Channels and classes: of the data, where it is given or none is needed, else what the data set knows without.

    Raises ValueError where neither knows how many classes there are.
    """
    from trainers.data.source import scan_files
    from trainers.training.build import target_of

    if classes is not None and classes < (fewest := target_of(recipe).fewest):
        raise ValueError(f"--classes {classes} is not allowed; give {fewest} or more")
    try:
        source = scan_files(recipe, data)
        channels, found = source.channels, len(source.classes)
    except ValueError as error:
        known = _known_classes(recipe) if data is None else None
        if known is None and (data is not None or classes is None):
            raise ValueError(f"{error}" + ("; or give --classes N" if data is None else "")) from None
        default = 1 if recipe.dataset in GREY else arguments("datasets", recipe.dataset, "source").get("channels", 3)
        channels, found = recipe.dataset_args.get("channels", default), known or 0
    return {"channels": channels, "classes": [f"class{number}" for number in range(classes or found)]}


def _known_classes(recipe: Recipe) -> int | None:
    """How many classes a data set has, whatever pictures there are."""
    if recipe.dataset_args.get("binary"):
        return 2
    if of_task := constant("tasks", recipe.task, "CLASSES", None):
        return int(of_task)
    if recipe.dataset == "mnist":
        return DIGITS
    known = getattr(load("datasets", recipe.dataset), "CLASSES", None)
    return None if known is None else len(known)


# What is shown -------------------------------------------------------------------------------------------------


def _show(name: str, plan: Plan, context: int | None, progress: Progress) -> None:
    """The table and the largest batches, on stdout; warnings on stderr."""
    from rich.console import Console
    from rich.table import Table

    cards, workers = list(plan["rows"][0]["cards"]), plan["workers"]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("image size", "precision", "batch", "predicted peak", *cards):
        table.add_column(column, justify="right" if column in ("batch", "predicted peak") else "left")
    for row in plan["rows"]:
        batch, micro = row["batch_size"], row["micro_batch_size"]
        shown = str(batch) if batch == micro else f"{batch} by {micro}"
        fits = [_report(row, card) for card in cards]
        table.add_row(_size(row), row["precision"], shown, format_size(row["predicted_bytes"]), *fits)
    console = Console()
    if not console.is_terminal:
        console.width = WIDE
    console.print(table)
    print()
    for line in plan["largest"]:
        cards_of_it = line["memory"] if workers == 1 else f"{workers} x {line['memory']}"
        where, peak = f"{cards_of_it} at {_size(line)} in {line['precision']}", format_size(line["predicted_bytes"])
        if line["batch_size"]:
            print(f"largest batch on {where}: {line['batch_size']} (predicted {peak}{' each' * (workers > 1)})")
        else:
            print(f"no batch fits on {where}: one picture{' each' * (workers > 1)} needs {peak}")
    counted = f"{format_size(context)} of it are counted" if context else "it is not counted: there is none to measure"
    print(f"the context of a GPU takes some of its memory, typically 0.3 to 0.6 GiB: {counted}")
    smaller = any(
        card["micro_batch_size"] not in (None, row["micro_batch_size"])
        for row in plan["rows"]
        for card in row["cards"].values()
    )
    if smaller and plan["batch_norm"]:
        progress.warning(
            f"{name} has BatchNorm, whose statistics are those of a micro-batch: with a smaller one it learns otherwise"
        )


def _report(row: Row, card: str) -> str:
    found = row["cards"][card]
    if found["fits"]:
        return "fits"
    if found["micro_batch_size"]:
        return f"micro-batch {found['micro_batch_size']} ({format_size(found['predicted_bytes'])})"
    return f"does not fit: needs {format_size(found['predicted_bytes'])} of {card}"


def _size(row: Row | Largest) -> str:
    return "x".join(map(str, row["image_size"]))
