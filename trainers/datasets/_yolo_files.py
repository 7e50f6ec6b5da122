"""The files that say what a YOLO data set is: data.yaml, obj.data, lists of pictures, names of classes, labels."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from trainers.datasets._objects import Corners, check_names, format_box
from trainers.datasets._splits import PLAIN
from trainers.formatting import printable, shortened
from trainers.listing import is_picture

YAMLS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
"""Those that go before others."""
NAMES = ("classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt")
"""Files with a name of a class in each line."""
LISTS = frozenset(["train.txt", "val.txt", "valid.txt", "test.txt", "trainval.txt"])
"""Files with a picture of a split in each line."""
NO_LABELS = LISTS | {*NAMES, "labels.txt"}
"""Text files, in lower case, that are no labels of a picture."""
NOTHING = ("", "null", "~")
"""What YAML writes where there is no value."""
BOX, CONFIDENT = 5, 6
"""Words of a line: class, x, y, width, height; with a confidence."""


@dataclass
class Yaml:
    """What data.yaml, or obj.data, says."""

    name: str
    folder: str
    """In which the file lies."""
    path: str = ""
    """What its entries are below, as it is written."""
    splits: dict[str, list[str]] = field(default_factory=dict)
    """As they are written."""
    names: dict[int, str] | None = None
    count: int | None = None
    """nc."""
    names_file: str | None = None
    keypoints: int | None = None
    """Numbers of a line's keypoints."""


def text_of(path: str) -> str:
    """Raises ValueError for a file that is no text in UTF-8."""
    try:
        with open(path, encoding="utf-8-sig") as stream:
            return stream.read()
    except UnicodeDecodeError:
        raise ValueError(f"{printable(path)} is no text in UTF-8; save it so") from None
    except OSError as error:
        raise ValueError(f"{printable(path)} cannot be read: {error.strerror}") from None


def lines_of(path: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not empty."""
    for number, line in enumerate(text_of(path).split("\n"), 1):
        if stripped := line.strip().strip("\x00\x1a"):
            yield number, stripped


def names_in(path: str) -> list[str]:
    """The names of classes in a file with one in each line."""
    return check_names([line for _, line in lines_of(path)], printable(path))


# ---- data.yaml ----


def read_yaml(path: str) -> Yaml | None:
    """None: it is about something else. Raises ValueError for what cannot be read."""
    import yaml

    name = os.path.basename(path)
    try:
        node = yaml.compose(text_of(path), Loader=yaml.BaseLoader)  # texts alone: `no` is a name, and not false
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ValueError(f"{name}{line}: it is no YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(node, yaml.MappingNode):
        return None
    found = {key.value: value for key, value in node.value}
    if not found.keys() & {"names", "nc", "train", "val"}:
        return None
    said = Yaml(name, os.path.dirname(path))
    for key, value in found.items():
        _take(said, f"{name}, line {value.start_mark.line + 1}", key, value.value)
    if "names" in found:
        said.names = _names(f"{name}, line {found['names'].start_mark.line + 1}", name, found["names"])
    if said.names and said.count is not None and said.count != len(said.names):
        raise ValueError(
            f"{name}: nc is {said.count}, and names lists {len(said.names)}, {shortened([*said.names.values()])}; "
            "correct one of them"
        )
    return said


def _take(said: Yaml, where: str, key: str, value: Any) -> None:
    """What a key says, but for names; `value`: a text, or nodes."""
    several = not isinstance(value, str)
    texts: list[Any] = [each.value for each in value if hasattr(each, "value")] if several else [value]
    if key in PLAIN:
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{where}: {key} must be a folder or a list of pictures, or several of them")
        said.splits |= {PLAIN[key]: texts} if texts and texts[0] not in NOTHING else {}
    elif key == "path" and not several:
        said.path = "" if value in NOTHING else value
    elif key == "nc":
        said.count = int(_number(where, key, value))
    elif key == "kpt_shape" and several:
        said.keypoints = math.prod(int(_number(where, key, text)) for text in texts)


def _names(where: str, name: str, node: object) -> dict[int, str]:
    """Number -> name of each class."""
    import yaml

    if isinstance(node, yaml.SequenceNode):
        numbered = [(str(number), each) for number, each in enumerate(node.value)]
    elif isinstance(node, yaml.MappingNode):
        numbered = [(str(key.value), each) for key, each in node.value]
    else:
        raise ValueError(f"{where}: names must be a list of names, or numbers with names, as in 0: cat")
    found: dict[int, str] = {}
    for key, each in numbered:
        line = f"{name}, line {each.start_mark.line + 1}"
        number = int(_number(line, "the number of a class", key))
        if number in found or not isinstance(each.value, str):
            raise ValueError(
                f"{line}: the class {number} has {'two names' if number in found else 'no name'}; correct it"
            )
        found[number] = each.value
    lacking = sorted(set(range(len(found))) - found.keys())
    if lacking:
        raise ValueError(
            f"{where}: names has {len(found)} classes, and none of the number {lacking[0]}; number them from 0 on, or "
            f"name those that no label uses too, as in {lacking[0]}: unused"
        )
    names = check_names([found[number] for number in sorted(found)], where)
    return dict(enumerate(names))


def _number(where: str, what: str, text: object) -> float:
    try:
        return float(str(text))
    except ValueError:
        raise ValueError(f"{where}: {what} is {printable(str(text))!r}; it must be a number") from None


def read_darknet(path: str) -> Yaml:
    """obj.data: names = data/obj.names, train = data/train.txt."""
    said = Yaml(os.path.basename(path), os.path.dirname(path))
    for _, line in lines_of(path):
        key, equals, value = (part.strip() for part in line.partition("="))
        if equals and key in PLAIN and value:
            said.splits[PLAIN[key]] = [value]
        elif equals and key == "names":
            said.names_file = value
    return said


# ---- labels ----


class Line(NamedTuple):
    """An object as a line has it."""

    number: int
    """Of its class."""
    corners: Corners
    """As shares of the picture."""
    polygon: list[float] | None = None
    """x, y, x, y, ..., likewise; None: it is a box."""


def parse_line(text: str, names: Mapping[int, str] | None, keypoints: int | None) -> Line | str:
    """A line of a file of labels; or what is wrong, and what to do.

    Args:
        text: Class, x and y of the middle, width and height; or class and the points of a polygon.
        names: Number -> name of the classes; None: there may be any.
        keypoints: Numbers that follow a box, where data.yaml says that there are keypoints.
    """
    parts = text.split()
    try:
        values = [float(part) for part in parts]
    except ValueError:
        odd = next(part for part in parts if not _is_number(part))
        hint = " (separate numbers by spaces)" if "," in text or ";" in text else ""
        return f"{printable(odd)!r} is no number{hint}; a line is: class x y width height"
    if not all(map(math.isfinite, values)):
        return f"{printable(text[:60])!r} holds a number that is none; correct or remove the line"
    problem = _check_words(values, keypoints) or _check_class(values[0], names)
    if problem:
        return problem
    if len(values) == BOX:
        _, x, y, width, height = values
        if width < 0 or height < 0:
            return f"the box {format_box(values[1:])} has a negative width or height; correct or remove it"
        return Line(int(values[0]), (x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    across, down = values[1::2], values[2::2]
    return Line(int(values[0]), (min(across), min(down), max(across), max(down)), values[1:])


def _check_words(values: Sequence[float], keypoints: int | None) -> str | None:
    count = len(values)
    if keypoints is not None and count == BOX + keypoints:
        return (
            f"it has {count} numbers, a box and keypoints as kpt_shape says; keypoints are not trained: keep the first "
            "five numbers of each line"
        )
    if count == CONFIDENT:
        return "it has 6 numbers; is the last a confidence? Labels have five: class x y width height"
    if count < BOX or count % 2 == 0:
        also = ", or keypoints, which are not trained: keep the first five numbers" if count > CONFIDENT else ""
        what = "a box has five, class x y width height, a polygon class x1 y1 x2 y2 x3 y3 ..."
        return f"it has {count} numbers; {what}{also}"
    return None


def _check_class(value: float, names: Mapping[int, str] | None) -> str | None:
    if value != int(value) or value < 0:
        return f"the class is {value:g}; it must be a whole number from 0 on"
    if names is not None and int(value) not in names:
        return (
            f"the class {int(value)} has no name, as there are {len(names)}, 0 to {len(names) - 1} "
            f"({shortened([*names.values()], 3)}); correct the line, or add its name"
        )
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# ---- lists of pictures ----


def resolve(said: Yaml, entry: str) -> str | None:
    """Where an entry of data.yaml leads on this machine; None: nowhere.

    As it is written, below `path` or beside data.yaml, whether it starts with ../ or not; else the last parts of it,
    as of a path of another machine, as far as they lie beside data.yaml.
    """
    entry = entry.replace("\\", "/").strip()
    base = said.path.replace("\\", "/").strip()
    written = [os.path.join(said.folder, base, entry), os.path.join(said.folder, entry)]
    parts = [part for part in f"{base}/{entry}".split("/") if part not in ("", ".", "..")]
    tails = [os.path.join(said.folder, *parts[start:]) for start in range(len(parts))]
    found = next((path for path in (*written, *tails) if os.path.exists(path)), None)
    return None if found is None else os.path.normpath(found)


def list_of(path: str, said: Yaml) -> Iterator[tuple[str, str, str]]:
    """The pictures in a list such as train.txt: place in the list, what is written there, its path if it is there."""
    folder, name = os.path.split(path)
    for number, line in lines_of(path):
        if not is_picture(line):
            yield f"{name}, line {number}", line, ""
            continue
        beside = os.path.normpath(os.path.join(folder, line.replace("\\", "/")))
        yield f"{name}, line {number}", line, beside if os.path.isfile(beside) else resolve(said, line) or ""
