from __future__ import annotations

import math
from pathlib import Path

import pytest

from vidsim.common.errors import UserError
from vidsim.engine.metrics_file import format_duration, format_number, read_metrics, to_line


def test_lines_round_trip_and_what_is_not_finite_becomes_null(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    line = {"step": 3, "loss": 0.1 + 0.2, "bad": math.nan, "worse": math.inf}
    file.write_text(to_line(line) + "\n")
    assert read_metrics(file) == [{"step": 3, "loss": 0.1 + 0.2, "bad": None, "worse": None}]


def test_a_last_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    for cut in ('{"st', "", '{"step": 2}'):
        file.write_text('{"step": 1}\n' + cut)
        assert read_metrics(file) == [{"step": 1}]
    file.write_text("")
    assert read_metrics(file) == []


@pytest.mark.parametrize("line", ["{", "[]", '{"loss": 1}', '{"step": "2"}', ""])
def test_any_other_line_that_is_damaged_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        read_metrics(file)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.123456, "0.1235"),
        (5e-5, "5e-05"),
        (-2.5, "-2.5"),
        (12345.6, "12,346"),
        (3e9, "3e+09"),
        (math.nan, "nan"),
        (None, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0s"), (41.6, "42s"), (59.6, "1m00s"), (185, "3m05s"), (7620, "2h07m"), (273_600, "3d04h")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
