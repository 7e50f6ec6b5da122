"""How times and names are written for people."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trainers.formatting import abbreviations, format_duration, plain


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (4.23, "4.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1:00"),
        (185, "3:05"),
        (3599.6, "1:00:00"),
        (3725, "1:02:05"),
        (360000, "100:00:00"),
    ],
)
def test_a_duration_has_the_units_it_needs(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_what_json_cannot_hold_becomes_what_it_can() -> None:
    scores = {"ap": np.float64(0.5), "ap_large": math.nan, "per_class": {"ap": np.array([0.5, math.inf])}, 3: (1, "a")}
    assert plain(scores) == {"ap": 0.5, "ap_large": None, "per_class": {"ap": [0.5, None]}, "3": [1, "a"]}


@pytest.mark.parametrize(
    ("names", "cut"),
    [
        (["sign, limit 30", "sign, limit 50", "stop"], ["sign,…it 30", "sign,…it 50", "stop"]),
        (["bent bolt, cover", "bent nut, cover"], ["bent bolt,…", "bent nut, …"]),
        (["the cover's bolt, old", "the cover's bolt, new"], ["the c…, old", "the c…, new"]),
        (["of the cover 1, bent", "of the cover 2, bent"], ["…er 1, bent", "…er 2, bent"]),
    ],
)
def test_names_are_cut_so_that_they_still_differ(names: list[str], cut: list[str]) -> None:
    assert abbreviations(names, 11) == cut
