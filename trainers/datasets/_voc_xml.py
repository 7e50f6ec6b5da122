"""What stands in an XML file of Pascal VOC's form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.parsers import expat

from trainers.datasets._objects import Corners, Intake, format_box
from trainers.formatting import composed, printable

SIDES = ("xmin", "ymin", "xmax", "ymax")
_ENCODING = re.compile(rb"""^\s*<\?xml[^>]*encoding\s*=\s*["']([\w.-]+)["']""")


@dataclass
class Node:
    """An element of an XML file."""

    tag: str
    line: int
    text: str = ""
    inner: list[Node] = field(default_factory=list)

    def find(self, tag: str) -> Node | None:
        """The first element of a name directly in this one."""
        return next((node for node in self.inner if node.tag == tag), None)

    def get(self, tag: str) -> str:
        node = self.find(tag)
        return "" if node is None else node.text.strip()


@dataclass
class Object:
    """What stands in <object>."""

    where: str
    name: str
    corners: Corners
    difficult: bool


@dataclass
class File:
    """An XML file."""

    path: str
    """Below the root."""
    filename: str
    size: tuple[int, int] | None
    objects: list[Object] = field(default_factory=list)


def parse(root: str, path: str, intake: Intake) -> File | None:
    """An annotation. None: it is none, or what is wrong is refused."""
    name = printable(path)
    try:
        top = _tree_of(f"{root}/{path}")
    except expat.ExpatError as error:
        intake.refused.append(
            f"{name}, line {error.lineno}: it is no XML: {expat.ErrorString(error.code)}; correct or remove the file"
        )
        return None
    except (OSError, UnicodeError, LookupError) as error:
        intake.refused.append(f"{name} cannot be read: {error}; save it in UTF-8")
        return None
    if top.tag != "annotation":
        return None
    size = top.find("size")
    file = File(path, top.get("filename"), None if size is None else _size(size))
    for node in top.inner:
        if node.tag == "object":
            parsed = _object(name, node)
            if isinstance(parsed, str):
                intake.refused.append(parsed)
            else:
                file.objects.append(parsed)
    return file


def _tree_of(path: str) -> Node:
    """The outermost element; expat knows the lines, which xml.etree does not tell."""
    with open(path, "rb") as stream:
        content = stream.read()
    declared = _ENCODING.match(content.removeprefix(b"\xef\xbb\xbf"))
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    encoding = "utf-16" if wide else declared[1].decode() if declared else "utf-8"
    text = content.decode("utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding)
    parser = expat.ParserCreate("utf-8")  # whatever the file declares: it knows few encodings
    parser.buffer_text = True
    outer = [Node("", 0)]

    def start(tag: str, _: Mapping[str, str]) -> None:
        node = Node(tag, parser.CurrentLineNumber)
        outer[-1].inner.append(node)
        outer.append(node)

    def end(_: str) -> None:
        outer.pop()

    def characters(text: str) -> None:
        outer[-1].text += text

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, characters
    parser.Parse(text.strip().encode(), True)
    return outer[0].inner[0]


def _size(node: Node) -> tuple[int, int] | None:
    """Width and height; None where the program did not know them, and wrote 0."""
    try:
        width, height = int(float(node.get("width"))), int(float(node.get("height")))
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def _object(file: str, node: Node) -> Object | str:
    """What <object> holds; or what is wrong."""
    where = f"{file}, line {node.line}"
    name = printable(composed(node.get("name")))
    if not name:
        return f"{where}: the object has no name; add <name>"
    box = node.find("bndbox")
    if box is None:
        if node.find("robndbox") is not None:
            return f"{where}: the object has a turned box, <robndbox>; give it an upright one, <bndbox>"
        polygon = node.find("polygon")
        points = (
            {key: [_float(each.text) for each in polygon.inner if each.tag[:1] == key] for key in "xy"}
            if polygon
            else {}
        )
        if not points or not points["x"] or not points["y"] or None in [*points["x"], *points["y"]]:
            return f"{where}: the object has no <bndbox>; add one, or remove the object"
        across, down = ([side for side in points[key] if side is not None] for key in "xy")
        corners: Corners = (min(across), min(down), max(across), max(down))
    else:
        sides = [_float(box.get(side)) for side in SIDES]
        wrong = next((side for side, value in zip(SIDES, sides, strict=True) if value is None), None)
        if wrong is not None:
            return f"{file}, line {box.line}: {wrong} is {box.get(wrong)!r}; it must be a number"
        left, top, right, bottom = (side for side in sides if side is not None)
        if right < left or bottom < top:
            return (
                f"{file}, line {box.line}: the box {format_box((left, top, right, bottom))} ends before it begins; "
                "correct its corners, or remove it"
            )
        corners = (left, top, right, bottom)
    return Object(where, name, corners, node.get("difficult").lower() in ("1", "true"))


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
