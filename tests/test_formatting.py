"""How times are written for people."""

from __future__ import annotations

import pytest

from trainers.formatting import format_duration


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
