from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from vidsim.engine.charts import line_chart, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 50, 100]),
        (0, 8, [0, 2, 4, 6, 8]),
        (0.13, 0.61, [0, 0.2, 0.4, 0.6, 0.8]),
        (-3, 5, [-4, -2, 0, 2, 4, 6]),
        (5e-5, 2e-4, [5e-5, 1e-4, 1.5e-4, 2e-4]),
    ],
)
def test_ticks_are_round_and_enclose(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 4) == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, 3.0, -2e-7, 1e12])
def test_a_constant_has_ticks_around_it(value: float) -> None:
    found = ticks(value, value, 4)
    assert found[0] < value < found[-1]
    assert 3 <= len(found) <= 8


def numbers(svg: str) -> tuple[list[str], list[list[tuple[float, float]]]]:
    """Tick labels and curves of a chart."""
    root = ElementTree.fromstring(svg)
    labels = [element.text or "" for element in root.iter("text")]
    curves = [
        [(float(x), float(y)) for x, y in (pair.split(",") for pair in element.attrib["points"].split())]
        for element in root.iter("polyline")
    ]
    return labels, curves


def test_a_curve_by_hand() -> None:
    labels, ((first, middle, last),) = numbers(line_chart([(0, 0.0), (50, 4.0), (100, 8.0)], label="loss"))
    assert labels == ["0", "2", "4", "6", "8", "0", "20", "40", "60", "80", "100", "step"]
    # The plot reaches from x 58 to 346 and, upwards, from y 172 to 12.
    assert (first, middle, last) == ((58.0, 172.0), (202.0, 92.0), (346.0, 12.0))


def test_values_that_are_not_finite_leave_a_gap() -> None:
    points = [(1, 1.0), (2, 2.0), (3, math.nan), (4, math.inf), (5, 1.0), (6, 2.0)]
    _, curves = numbers(line_chart(points, label="loss"))
    assert [len(curve) for curve in curves] == [2, 2]
    assert "no finite value among 2" in line_chart([(1, math.nan), (2, math.nan)], label="loss")


def test_one_point_is_a_dot_with_a_tip() -> None:
    svg = line_chart([(20, 0.5)], label="a <b> & c")
    root = ElementTree.fromstring(svg)
    assert [element.text for element in root.iter("title")] == ["step 20: 0.5"]
    assert root.attrib["aria-label"] == "a <b> & c"


def test_many_points_are_thinned_and_the_last_stays() -> None:
    svg = line_chart([(step, float(step)) for step in range(100_001)], label="loss")
    _, (curve,) = numbers(svg)
    assert 700 <= len(curve) <= 1501
    assert curve[-1] == (346.0, 12.0)
    assert len(svg) < 40_000
    assert len(re.findall("<circle", svg)) == 1


def test_small_and_large_ticks_are_short() -> None:
    labels, _ = numbers(line_chart([(0, 0.0), (1, 4e-5)], label="lr"))
    assert labels[:3] == ["0", "1e-5", "2e-5"]
    labels, _ = numbers(line_chart([(0, 0.0), (1, 8e6)], label="x"))
    assert labels[:2] == ["0", "2e6"]
