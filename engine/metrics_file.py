"""Lines of `metrics.jsonl`, and how their numbers are shown."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidsim.common.errors import UserError

# Fields that depend on the clock; all others are the same in a resumed run as in a straight one.
CLOCK_FIELDS = ("seconds", "examples_per_second")


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """Lines of a `metrics.jsonl`; a last line that was cut short by a kill is left out.

    Raises:
        UserError: Any other line is not a JSON object with a `step`; names the line.
    """
    text = file.read_text(encoding="utf-8", errors="replace")
    whole, _, _cut_short = text.rpartition("\n")
    lines = []
    for number, content in enumerate(whole.split("\n") if whole else [], start=1):
        try:
            line = json.loads(content)
        except json.JSONDecodeError as error:
            raise UserError(f"is not JSON ({error})", file=file, record=number) from error
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise UserError("is not an object with a whole number", file=file, record=number, field="step")
        lines.append(line)
    return lines


def format_number(value: float | None) -> str:
    """Four significant digits, short: 0.1234, 5e-05, 12,345."""
    if value is None or math.isnan(value):
        return "nan"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 10_000:
        return f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.3g}"
    return f"{value:.4g}"


def format_duration(seconds: float) -> str:
    """`42s`, `3m05s`, `2h07m`, `3d04h`."""
    total = max(0, round(seconds))
    for size, unit, part, part_unit in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m"), (60, "m", 1, "s")):
        if total >= size:
            return f"{total // size}{unit}{total % size // part:02d}{part_unit}"
    return f"{total}s"


def to_line(line: Mapping[str, Any]) -> str:
    """One line of strict JSON, without its end; what is not finite becomes null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in line.items()
    }
    return json.dumps(finite, ensure_ascii=False, allow_nan=False)
