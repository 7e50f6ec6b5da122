"""python -m trainers list | train | evaluate | predict | export | prepare | report

Exit codes: 0 done, 1 failed, 2 bad usage or input, 3 out of memory, 130 interrupted.
Messages and progress go to stderr; what was asked for goes to stdout.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

from trainers.recipe import Recipe, Scale, describe, load, nearest, recipe_names, resolve
from trainers.store import explain

USAGE = """usage: python -m trainers COMMAND ...

  list                          the recipes
  train RECIPE [...]            train one or several recipes; --help shows every field
  evaluate RUN [...]            scores of a run's best checkpoint
  predict RUN PATH... --out DIR the class of each picture, as a CSV; masks and overlays
  export RUN --out FILE         the model as a torch.export program
  prepare RECIPE [...]          decode the pictures, without training
  report [RUN...]               runs side by side

COMMAND --help tells more."""
WIDE = 140
"""Columns of a table that does not go to a terminal."""


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


# Commands ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Options:
    """How the command behaves."""

    run: str | None = None
    """Name of the run. None: <recipe>-<date>-<time>. A name that exists is continued. Of several recipes the runs
    are called <recipe>-<run>."""
    show: bool = False
    """Print the recipe and the scale as they would be, and do not start."""
    json: bool = False
    """Print run.json at the end, in place of the run folder."""
    download: bool = False
    """Fetch the data to --data first, where the data set can and the network allows."""


def _train(argv: list[str]) -> int:
    names, flags = _leading(argv)
    if not names:
        if flags and flags[0] in ("-h", "--help"):
            print("usage: python -m trainers train RECIPE [RECIPE...] [--FIELD VALUE...]\n")
            print(f"recipes: {', '.join(recipe_names())}, or FILE.py:FUNCTION of your own")
            print("python -m trainers train RECIPE --help shows every field with that recipe's defaults")
            return 0
        raise ValueError(f"train needs the name of a recipe: {', '.join(recipe_names())}")
    stages = _stages(names, flags)
    parsed = [_parse(name, flags) for name in stages]  # all of them, before the first starts
    if parsed[0][2].show:
        for recipe, scale, _ in parsed:
            print(json.dumps({"recipe": recipe.to_json(), "scale": scale.to_json()}, indent=1))
        return 0
    from trainers.launch import new_run_name, now, run_name
    from trainers.store import Store, default_storage

    _, scale, options = parsed[-1]
    if len(names) == 1:  # stages that it needs are called after it
        again = options.run or new_run_name(Store(scale.storage or default_storage()), names[0])
        runs = [*(f"{again}-{re.split('[.:]', stage)[-1]}" for stage in stages[:-1]), again]
    else:
        again = options.run or now()
        runs = [run_name(stage, again) for stage in stages]
    return _train_in_order(stages, parsed, runs, again)


def _stages(names: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The recipes to train, each with the one before it whose weights it starts from."""
    stages: list[str] = []
    for name in names:
        before = _parse(name, flags)[0].init_from
        if before is not None and before not in stages and (before in recipe_names() or ".py:" in before):
            stages += _stages([before], flags)
        stages.append(name)
    return stages


def _train_in_order(
    names: Sequence[str], parsed: Sequence[tuple[Recipe, Scale, _Options]], runs: Sequence[str], again: str
) -> int:
    """One run each; a recipe whose `init_from` names one before it starts from that run's weights. `again`: what
    --run continues them."""
    from trainers.launch import fit
    from trainers.progress import Progress

    done: dict[str, Any] = {}
    for name, run, (recipe, scale, options) in zip(names, runs, parsed, strict=True):
        if options.download:
            _download(recipe, scale)
        if recipe.init_from in done:
            recipe = recipe.replace(init_from=done[recipe.init_from].run["name"])
        done[name] = result = fit(recipe, scale=scale, run=run, name=name)
        print(json.dumps(result.run, indent=1) if options.json else result.folder)
        if result.status == "interrupted":
            Progress().message(f"to continue, repeat the command with --run {again}")
        if result.exit_code:
            break
    if len(names) > 1:
        Progress().stages(result.run for result in done.values())
    return int(result.exit_code)


def _download(recipe: Recipe, scale: Scale) -> None:
    from trainers.recipe import arguments

    if "download" not in arguments("datasets", recipe.dataset, "source"):
        raise ValueError(f"the data set {recipe.dataset!r} cannot be downloaded; give --data")
    load("datasets", recipe.dataset).source(scale.data, **{**recipe.dataset_args, "download": True})


def _prepare(argv: list[str]) -> int:
    names, flags = _leading(argv)
    if len(names) != 1:
        raise ValueError("usage: python -m trainers prepare RECIPE [--data PATH] [--FIELD VALUE...]")
    recipe, scale, options = _parse(names[0], flags)
    from trainers.launch import prepare

    if options.download:
        _download(recipe, scale)
    print(prepare(recipe, scale))
    return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _EvaluateOptions:
    split: str | None = None
    """Which pictures. None: test, where the data has such a split, else val."""
    native: bool = False
    """Score masks at their own size: what the model says is resized to it."""
    sliding: bool = False
    """Move a window of image_size over pictures of their own size: for pictures larger than memory. Scores as
    --native does."""
    overlap: float = 0.25
    """Share of a window that the next one covers too."""
    data: str | None = None
    """Where the raw data lies. None: where it lay in training."""
    storage: str | None = None
    """Folder that run folders lie under. None: $TRAINYARD_STORAGE, else ~/trainyard."""
    json: bool = False
    """Print split, rows and every score as JSON."""


def _evaluate(argv: list[str]) -> int:
    names, flags = _leading(argv)
    options = _cli(_EvaluateOptions, flags, "evaluate RUN")
    if len(names) != 1:
        raise ValueError("usage: python -m trainers evaluate RUN [--split test] [--native] [--data PATH] [--json]")
    from trainers.inference import evaluate
    from trainers.progress import Progress

    with Progress().bar("evaluating", None) as advance:
        scores = evaluate(
            names[0],
            options.split,
            data=options.data,
            storage=options.storage,
            native=options.native,
            sliding=options.sliding,
            overlap=options.overlap,
            advance=advance,
        )
    if options.json:
        print(json.dumps(scores))
        return 0
    _print_scores(scores)
    return 0


def _print_scores(scores: Mapping[str, Any]) -> None:
    """Scores, one a line, and those of each class as a table."""
    from rich.console import Console
    from rich.table import Table

    for name, value in scores.items():
        if name not in ("per_class", "classes"):
            print(f"{name:20} {value:.4f}" if isinstance(value, float) else f"{name:20} {value}")
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("class")
    lists: dict[str, list[Any]] = {}
    for name, values in scores["per_class"].items():
        if values not in lists.values():  # accuracy and recall of a class are one number, and so are Dice and F1
            lists[name] = values
            table.add_column(name.replace("_", " "), justify="right")
    for index, label in enumerate(scores["classes"]):
        found = [values[index] for values in lists.values()]
        table.add_row(label, *("-" if value is None else f"{value:.4f}" for value in found))
    print()
    Console().print(table)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _PredictOptions:
    out: str
    """Folder that predictions.csv is written to; and masks/ and overlays/, where the model segments."""
    workers: int = 0
    """Processes of Ray Data; 0: this process."""
    sliding: bool = False
    """Move a window of image_size over pictures of their own size, in place of shrinking them."""
    overlap: float = 0.25
    """Share of a window that the next one covers too."""
    storage: str | None = None
    """Folder that run folders lie under. None: $TRAINYARD_STORAGE, else ~/trainyard."""


def _predict(argv: list[str]) -> int:
    names, flags = _leading(argv)
    options = _cli(_PredictOptions, flags, "predict RUN PATH...")
    if len(names) < 2:
        raise ValueError("usage: python -m trainers predict RUN PATH... --out DIR")
    from trainers.inference import predict
    from trainers.progress import Progress

    progress = Progress()
    with progress.bar("predicting", None) as advance:
        path, bad = predict(
            names[0],
            names[1:],
            options.out,
            workers=options.workers,
            storage=options.storage,
            sliding=options.sliding,
            overlap=options.overlap,
            advance=advance,
        )
    if bad:
        progress.warning(f"{len(bad)} pictures cannot be decoded and have no class: {', '.join(bad[:10])}")
    print(path)
    return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ExportOptions:
    out: str
    """File to write, such as model.pt2; FILE.json beside it tells the classes and how pictures are prepared."""
    storage: str | None = None
    """Folder that run folders lie under. None: $TRAINYARD_STORAGE, else ~/trainyard."""


def _export(argv: list[str]) -> int:
    names, flags = _leading(argv)
    options = _cli(_ExportOptions, flags, "export RUN")
    if len(names) != 1:
        raise ValueError("usage: python -m trainers export RUN --out FILE")
    from trainers.inference import export

    print(export(names[0], options.out, storage=options.storage))
    return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ReportOptions:
    format: Literal["table", "csv", "json", "html"] = "table"
    """How the report is written."""
    baseline: str | None = None
    """A run that the others are compared with: speed-up and difference of the score."""
    price_per_hour: float | None = None
    """Price of the machine, for a column of costs."""
    out: str | None = None
    """File to write to, in place of the terminal."""
    storage: str | None = None
    """Folder that run folders lie under. None: $TRAINYARD_STORAGE, else ~/trainyard."""


def _report(argv: list[str]) -> int:
    names, flags = _leading(argv)
    options = _cli(_ReportOptions, flags, "report [RUN...]")
    from trainers.report import report
    from trainers.store import default_storage

    text = report(
        names,
        storage=options.storage or default_storage(),
        format=options.format,
        baseline=options.baseline,
        price_per_hour=options.price_per_hour,
    )
    if options.out is None:
        print(text)
    else:
        try:
            with open(options.out, "w") as file:
                file.write(text)
        except OSError as error:
            raise ValueError(f"--out {options.out} cannot be written: {explain(error)}") from None
        print(options.out)
    return 0


def _list(argv: list[str]) -> int:
    _cli(_ListOptions, argv, "list")
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("recipe", "dataset", "model", "parameters", "expected"):
        table.add_column(column, justify="right" if column == "parameters" else "left", no_wrap=column == "recipe")
    for name in recipe_names():
        recipe, text = resolve(name), describe(name)
        table.add_row(name, recipe.dataset, recipe.model, _said(text, "Parameters"), _said(text, "Expected"))
    console = Console()
    if not console.is_terminal:
        console.width = WIDE
    console.print(table)
    return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ListOptions:
    """The recipes that ship with Trainyard."""


def _said(text: str, what: str) -> str:
    """The line `what: ...` of a recipe's docstring."""
    found = re.search(rf"^\s*{what}: (.+)$", text, re.MULTILINE)
    return found[1] if found else ""


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "list": _list,
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "export": _export,
    "prepare": _prepare,
    "report": _report,
}


# From words to values ----------------------------------------------------------------------------------------


def _leading(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words before the first flag, and the rest."""
    count = next((index for index, word in enumerate(argv) if word.startswith("-")), len(argv))
    return list(argv[:count]), list(argv[count:])


def _parse(name: str, flags: Sequence[str]) -> tuple[Recipe, Scale, _Options]:
    """The recipe called `name`, changed by the flags. Raises ValueError, or ends the process with code 2."""
    recipe = resolve(name)
    recipe_type, scale_type = _cli_type(Recipe), _cli_type(Scale)
    both = dataclasses.make_dataclass(
        "train", [("recipe", recipe_type), ("scale", scale_type), ("options", _Options)], kw_only=True
    )
    default = both(recipe=recipe_type(**_values(recipe)), scale=scale_type(**_values(Scale())), options=_Options())
    parsed = _cli(both, flags, f"train {name}", default)
    changes = {field: value for field, value in _values(parsed.recipe).items() if value != getattr(recipe, field)}
    return recipe.replace(**changes), Scale(**_values(parsed.scale)), parsed.options


def _cli(kind: Any, flags: Sequence[str], command: str, default: Any = tyro.MISSING_NONPROP) -> Any:
    with _registry():
        return tyro.cli(
            kind,
            args=list(flags),
            default=default,
            prog=f"python -m trainers {command}",
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff),
        )


def _values(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _cli_type(kind: type) -> Any:
    """Recipe or Scale, with its tuples spelled as people do: 28x28, 1:3, layer1,layer2."""
    spelled = {"image_size": _SIZE, "stored_size": _SIZE, "workers": _WORKERS, "frozen": _NAMES}
    hints = typing.get_type_hints(kind)
    fields = [
        (field.name, Annotated[hints[field.name], spelled[field.name]], dataclasses.field(default=None))
        for field in dataclasses.fields(kind)
        if field.name in spelled
    ]
    # Values are checked when the flags are put into a Recipe, whose ValueError has no box around it.
    namespace = {"__post_init__": lambda self: None, "__doc__": kind.__doc__}
    return dataclasses.make_dataclass(
        kind.__name__, fields, bases=(kind,), frozen=True, kw_only=True, namespace=namespace
    )


def _size(word: str) -> tuple[int, int] | None:
    if word.lower() == "none":
        return None
    if not re.fullmatch(r"\d+(x\d+)?", word):
        raise ValueError(f"{word!r} is not a size; give 28, or height x width as in 512x1024")
    sides = [int(side) for side in word.split("x")]
    return sides[0], sides[-1]


def _workers(word: str) -> int | tuple[int, int]:
    if not re.fullmatch(r"\d+(:\d+)?", word):
        raise ValueError(f"{word!r} is not a number of workers; give 0, 1, 2, ... or MIN:MAX as in 1:3")
    bounds = [int(bound) for bound in word.split(":")]
    return bounds[0] if len(bounds) == 1 else (bounds[0], bounds[1])


def _number(word: str, kind: type[int | float], optional: bool) -> int | float | None:
    if optional and word.lower() == "none":
        return None
    try:
        return kind(word)
    except ValueError:
        what = "whole number" if kind is int else "number"
        raise ValueError(f"{word!r} is not a {what}{', nor none' if optional else ''}") from None


def _flag(words: list[str]) -> bool:
    known = {"true": True, "false": False}
    if words and words[0].lower() not in known:
        raise ValueError(f"{words[0]!r} is neither true nor false")
    return known[words[0].lower()] if words else True


def _mapping(words: list[str]) -> dict[str, Any]:
    for word in words:
        if "=" not in word:
            raise ValueError(f"{word!r} is not of the form name=value")
    return {name: _value(value) for name, _, value in (word.partition("=") for word in words)}


def _value(word: str) -> Any:
    """A number, true, false, none, a list as in 0.8,1.2, or text."""
    if "," in word:
        return [_value(part) for part in word.split(",")]
    if word.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[word.lower()]
    try:
        number = ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word
    return number if isinstance(number, int | float) else word


def _spell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_spell, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _one_word(read: Callable[[str], Any], metavar: str, separator: str) -> PrimitiveConstructorSpec[Any]:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [
            separator.join(map(str, value)) if isinstance(value, tuple) else _spell(value)
        ],
    )


_SIZE = _one_word(_size, "SIZE|HxW", "x")
_WORKERS = _one_word(_workers, "N|MIN:MAX", ":")
_NAMES = _one_word(lambda word: tuple(part for part in word.split(",") if part), "NAME,NAME", ",")


def _registry() -> ConstructorRegistry:
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def mapping(info: Any) -> PrimitiveConstructorSpec[Any] | None:
        if typing.get_origin(info.type) is not typing.get_origin(Mapping[str, Any]):
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="NAME=VALUE...",
            instance_from_str=_mapping,
            is_instance=lambda value: isinstance(value, Mapping),
            str_from_instance=lambda value: [f"{name}={_spell(item)}" for name, item in value.items()],
        )

    @registry.primitive_rule
    def number(info: Any) -> PrimitiveConstructorSpec[Any] | None:
        kinds = set(typing.get_args(info.type) or [info.type])
        kind = int if int in kinds else float
        if kind not in kinds or not kinds <= {kind, type(None)}:
            return None
        optional = type(None) in kinds
        metavar = kind.__name__.upper() + "|none" * optional
        return _one_word(lambda word: _number(word, kind, optional), metavar, "")

    @registry.primitive_rule
    def flag(info: Any) -> PrimitiveConstructorSpec[Any] | None:
        if info.type is not bool:
            return None
        return PrimitiveConstructorSpec(
            nargs=(0, 1),
            metavar="",
            instance_from_str=_flag,
            is_instance=lambda value: isinstance(value, bool),
            str_from_instance=lambda value: [_spell(value)],
        )

    return registry


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
