"""python -m trainers list | train | evaluate | predict | export | prune | optimize | prepare | cache | report

Exit codes: 0 done, 1 failed, 2 bad usage or input, 3 out of memory, 130 interrupted.
Messages and progress go to stderr; what was asked for goes to stdout.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from trainers.cli import cli, leading, parse, run_command
from trainers.formatting import format_size, printable
from trainers.inference import commands
from trainers.own_code import is_file
from trainers.pruning.command import prune_command
from trainers.recipe import Recipe, Scale, recipe_names, resolve
from trainers.registry import load
from trainers.runtime.addresses import default_workers
from trainers.storage.store import explain
from trainers.variants.command import optimize_command

if TYPE_CHECKING:
    from trainers.data.prepared_sets import PreparedSet
    from trainers.fitting import RunResult
    from trainers.storage.store import Store

USAGE = """usage: python -m trainers COMMAND ...

  list [--models PATTERN]       the recipes, or models by name
  train RECIPE [...]            train one or several recipes; --help shows every field
  evaluate RUN|FILE [...]       scores of a run's best checkpoint, or of a file that was exported of one
  predict RUN|FILE PATH... --out DIR
                                the class of each picture, as a CSV; masks and overlays
  export RUN --out FILE         the model as a torch.export program (.pt2) or an ONNX model (.onnx)
  prune RUN [--speedup 2]       a run of the model with fewer channels, from its best weights
  optimize RUN --out DIR        the model with fused layers, as ONNX, in 8 bits, pruned: scores and times side by side
  prepare RECIPE [...]          decode the pictures, without training
  cache list | clean            prepared pictures: what lies there; remove what is of no use any more
  report [RUN...]               runs side by side

COMMAND --help says more."""
WIDE = 140
"""Columns of a table that does not go to a terminal."""


def main(argv: Sequence[str]) -> int:
    """Run a command line; returns the exit code."""
    return run_command(argv, COMMANDS, USAGE)


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
    names, flags = leading(argv)
    if not names:
        if flags[:1] in (["-h"], ["--help"]):
            _explain("usage: python -m trainers train RECIPE [RECIPE...] [--FIELD VALUE...]", "train")
            return 0
        raise ValueError(f"train needs the name of a recipe, before all flags: {', '.join(recipe_names())}")
    stages = _stages(names, flags)  # all of them, before the first starts
    _, (_, scale, options) = stages[-1]
    if options.show:
        for _, (recipe, scale, _) in stages:
            print(json.dumps({"recipe": recipe.to_json(), "scale": scale.to_json()}, indent=1))
        return 0
    from trainers.runs.files import new_run_name, now, run_name
    from trainers.storage.store import Store, default_storage

    if len(names) == 1:  # stages that it needs are called after it
        again = options.run or new_run_name(Store(scale.storage or default_storage()), names[0])
        runs = [*(f"{again}-{re.split('[.:]', stage)[-1]}" for stage, _ in stages[:-1]), again]
    else:
        again = options.run or now()
        runs = [run_name(stage, again) for stage, _ in stages]
    return _train_in_order(stages, runs, again)


Parsed = tuple[Recipe, Scale, _Options]


def _stages(names: Sequence[str], flags: Sequence[str]) -> list[tuple[str, Parsed]]:
    """The recipes to train, changed by the flags, each with the one before it whose weights it starts from."""
    stages: list[tuple[str, Parsed]] = []
    for name in names:
        parsed = _parse(name, flags)
        before = parsed[0].init_from
        is_recipe = before is not None and (before in recipe_names() or ".py:" in before)
        if is_recipe and before not in dict(stages):
            stages += _stages([str(before)], flags)
        stages.append((name, parsed))
    return stages


def _train_in_order(stages: Sequence[tuple[str, Parsed]], runs: Sequence[str], again: str) -> int:
    """One run each; a recipe whose `init_from` names one before it starts from that run's weights. `again`: what
    --run continues them."""
    from trainers.fitting import fit
    from trainers.progress import Progress

    done: dict[str, RunResult] = {}
    for (name, (recipe, scale, options)), run in zip(stages, runs, strict=True):
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
    if len(stages) > 1:
        Progress().stages(result.run for result in done.values())
    return int(result.exit_code)


def _download(recipe: Recipe, scale: Scale) -> None:
    from trainers.registry import arguments

    if "download" not in arguments("datasets", recipe.dataset, "source"):
        raise ValueError(f"the data set {recipe.dataset!r} cannot be downloaded; give --data")
    load("datasets", recipe.dataset).source(scale.data, **{**recipe.dataset_args, "download": True})


def _prepare(argv: list[str]) -> int:
    names, flags = leading(argv)
    usage = "usage: python -m trainers prepare RECIPE [--data PATH] [--FIELD VALUE...]"
    if not names and flags[:1] in (["-h"], ["--help"]):
        _explain(usage, "prepare")
        return 0
    if len(names) != 1:
        raise ValueError(usage)
    recipe, scale, options = _parse(names[0], flags, "prepare")
    from trainers.fitting import prepare

    if options.download:
        _download(recipe, scale)
    print(prepare(recipe, scale))
    return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _CacheOptions:
    all: bool = False
    """clean: remove every set that no running command uses, not those alone whose files have changed."""
    show: bool = False
    """clean: list what would be removed, and remove nothing."""
    storage: str | None = None
    """Folder that run folders lie under; the sets lie in its folder cache, or in $TRAINYARD_CACHE. None:
    $TRAINYARD_STORAGE, else ~/trainyard."""


def _cache(argv: list[str]) -> int:
    words, flags = leading(argv)
    options = cli(_CacheOptions, flags, "python -m trainers cache list|clean")
    if words not in (["list"], ["clean"]):
        raise ValueError("usage: python -m trainers cache list | clean [--all] [--show]")
    from trainers.data import prepared_sets
    from trainers.data.source import cache_folder
    from trainers.progress import Progress
    from trainers.storage.store import Store, default_storage

    storage, progress = Store(options.storage or default_storage()), Progress()
    cache = cache_folder(storage)
    with progress.waiting("listing the raw files of the prepared sets"):
        if words == ["list"]:
            found = prepared_sets.list_sets(cache)
        else:
            found = prepared_sets.clean(cache, everything=options.all, show=options.show, warn=progress.warning)
    _print_sets(found, storage)
    done = "" if words == ["list"] else "would be removed" if options.show else "removed"
    total = format_size(sum(each.bytes for each in found))
    progress.message(f"{len(found)} sets, {total}, in {cache} {done}".rstrip())
    return 0


def _print_sets(found: Sequence[PreparedSet], storage: Store) -> None:
    """Prepared sets, one a line: the largest last, above what they take in all."""
    from datetime import datetime

    from rich.console import Console
    from rich.table import Table

    from trainers.runs.files import runs_by_data

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("set", "size", "pictures", "last used", "state", "data", "runs"):
        table.add_column(column, justify="right" if column in ("size", "pictures") else "left")
    runs = runs_by_data(storage) if found else {}
    for each in sorted(found, key=lambda each: each.bytes):
        state = "in use" if each.in_use else f"unknown: {each.why}" if each.why else each.state
        names = runs.get(each.fingerprint or "", [])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        used = f"{datetime.fromtimestamp(each.used):%Y-%m-%d %H:%M}"
        words = (each.folder.name, format_size(each.bytes), f"{each.pictures:,}", used, state, each.data or "")
        table.add_row(*map(printable, words), f"{', '.join(names[:3])}{more}")
    console = Console()
    if not console.is_terminal:
        console.width = WIDE
    if found:
        console.print(table)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ReportOptions:
    format: Literal["table", "csv", "json", "html"] = "table"
    """How the report is written."""
    baseline: str | None = None
    """What to compare with, for speed-up and difference of the score: a run, or a sweep or folder of runs, each of
    which is paired with that of the same recipe and data."""
    price_per_hour: float | None = None
    """Price of one node for an hour, for the cost of each run and sweep."""
    out: str | None = None
    """File to write to, in place of the terminal."""
    storage: str | None = None
    """Folder that run folders lie under. None: $TRAINYARD_STORAGE, else ~/trainyard."""


def _report(argv: list[str]) -> int:
    names, flags = leading(argv)
    options = cli(_ReportOptions, flags, "python -m trainers report [RUN...]")
    from trainers.report.report import report
    from trainers.storage.store import default_storage

    text = report(
        names,
        storage=options.storage or default_storage(),
        format=options.format,
        baseline=options.baseline,
        price_per_hour=options.price_per_hour,
    )
    text = printable(text)  # paths need not be UTF-8
    if options.out is None:
        print(text)
    else:
        try:
            with open(options.out, "w", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise ValueError(f"--out {options.out} cannot be written: {explain(error)}") from None
        print(options.out)
    return 0


def _list(argv: list[str]) -> int:
    options = cli(_ListOptions, argv, "python -m trainers list")
    from trainers.catalogue import print_models, print_recipes

    if options.models is not None:
        print_models(options.models)
    else:
        print_recipes()
    return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ListOptions:
    """The recipes that ship with Trainyard."""

    models: str | None = None
    """The models instead whose names match, of timm, torchvision and smp too: a part of a name, or 'convnext*'."""


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "list": _list,
    "train": _train,
    "evaluate": commands.evaluate,
    "predict": commands.predict,
    "export": commands.export,
    "prune": prune_command,
    "optimize": optimize_command,
    "prepare": _prepare,
    "cache": _cache,
    "report": _report,
}


def _parse(name: str, flags: Sequence[str], command: str = "train") -> Parsed:
    """The recipe called `name`, changed by the flags. Raises ValueError, or ends the process with code 2."""
    recipe = resolve(name)
    changes, scale, options = parse(recipe, Scale(), _Options(), flags, f"python -m trainers {command} {name}")
    if command == "train" and not any(word.startswith("--workers") for word in flags):
        scale = scale.replace(workers=default_workers(scale))
    if options.run is not None:
        changes |= _find_lost(changes, scale, options.run)
    return recipe.replace(**changes), scale, options


def _find_lost(changes: Mapping[str, object], scale: Scale, run: str) -> dict[str, str]:
    """The copies that a run has kept of files which its command names, and which are no longer there."""
    from trainers.progress import Progress
    from trainers.runs.code import find_lost
    from trainers.storage.store import Store, default_storage

    if not any(is_file(str(value)) for value in changes.values()):
        return {}
    found = find_lost(changes, Store(scale.storage or default_storage()) / run)
    for field, copy in found.items():
        Progress().warning(f"{changes[field]} is no longer there; the run {run} goes on with its copy, {copy}")
    return found


def _explain(usage: str, command: str) -> None:
    """What a command without a recipe's name says to --help: the flags too, whose defaults are the recipe's."""
    shown = "digits.cnn"
    print(f"{usage}\n\nrecipes: {', '.join(recipe_names())}, or FILE.py:FUNCTION of your own")
    print(f"{command} RECIPE --help shows that recipe's defaults; these are of {shown}:\n")
    with contextlib.suppress(SystemExit):
        _parse(shown, ["--help"], command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
