"""The templates of the page, in the folder beside this module: whatever is put into them is escaped."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("trainers.report"),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt name is an error
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(template: str, **values: object) -> Markup:
    """A template with these values, as text that other templates do not escape again."""
    return Markup(_environment().get_template(template).render(values))


def source(name: str) -> Markup:
    """The text of a stylesheet or script, to stand in a page as it is."""
    loader = _environment().loader
    assert loader is not None
    return Markup(loader.get_source(_environment(), name)[0])
