"""Letters that matplotlib's own font lacks: from other fonts, as boxes, or a class by its number; never a warning."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.ft2font import FT2Font

from trainers.confusion import Drawn
from trainers.runs import figures, lettering, mask_figures

pytestmark = pytest.mark.figures

NAMES = ["Katze", "猫", "犬 dog", "고양이", "कुत्ता", "собака", "قطة"]
SHIPPED = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No fonts but those of matplotlib, which know nothing of East Asia."""
    entries = [entry for entry in fontManager.ttflist if Path(entry.fname).parent == SHIPPED]
    monkeypatch.setattr(fontManager, "ttflist", entries)
    lettering._fonts.cache_clear()
    yield
    lettering._fonts.cache_clear()


@pytest.mark.usefixtures("shipped")
def test_a_class_whose_name_no_font_here_writes_is_called_by_its_number() -> None:
    assert lettering.legible(NAMES) == ["Katze", "class 1", "class 2", "class 3", "class 4", "собака", "قطة"]
    assert lettering.written("写真 1.png") == (f"{2 * lettering.BOX} 1.png", [lettering.OWN])


@pytest.mark.usefixtures("shipped")
def test_figures_of_any_script_are_drawn_without_a_warning() -> None:
    matrix = np.eye(len(NAMES), dtype=int)
    confusion = figures.draw_confusion_of({"classes": NAMES}, Drawn(matrix, None), "名前")
    assert figures.to_png(confusion, dpi=40)
    assert {label.get_text() for label in confusion.axes[0].get_xticklabels()} >= {"class 1", "собака"}
    mask = np.zeros((8, 8), np.uint8)
    row = {"name": "写真.png", "image": np.zeros((8, 8, 3), np.uint8), "target": mask, "labels": mask}
    examples = mask_figures.draw_predictions([row], NAMES, mask_figures.palette(len(NAMES)), "名前\n1")
    assert figures.to_png(examples, dpi=40)
    assert mask_figures.legend_png(NAMES, mask_figures.palette(len(NAMES)))


@pytest.mark.usefixtures("shipped")
def test_letters_come_from_another_font_where_one_has_them() -> None:
    own, other = (FT2Font(str(SHIPPED / f"{name}.ttf")).get_charmap() for name in ("DejaVuSans", "STIXGeneral"))
    letter = chr(min(code for code in other if code not in own))
    text, families = lettering.written(f"a{letter}b")
    assert text == f"a{letter}b"
    assert families[0] == lettering.OWN
    assert len(families) == 2
    assert figures.to_png(drawn(letter), dpi=50) == unchanged(drawn(letter, families[1]))
    assert figures.to_png(drawn(letter), dpi=50) != unchanged(drawn(lettering.BOX))


def drawn(text: str, family: str = lettering.OWN) -> Figure:
    figure = Figure(figsize=(1, 1))
    figure.text(0.2, 0.2, text, fontsize=40, fontfamily=family)
    return figure


def unchanged(figure: Figure) -> bytes:
    """A PNG file, as `figures.to_png` makes it, with the fonts that the texts were given."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=50, bbox_inches="tight", pad_inches=0.2)
    return stream.getvalue()
