"""Charts: they are XML, and hold every point that can be drawn, inside their frame."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from fewstep.compare.charts import BOTTOM, LEFT, NARROW, RIGHT, TOP, WIDE, Line, chart

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*args, **more):
    return ElementTree.fromstring(chart(*args, "x & y", "<fd>", **more))


def marks(root):
    """Where the points of the lines lie; the legend is not within a group."""
    paths = [p.get("d") for p in root.iterfind(f"{SVG}g/{SVG}path[@class='mark']")]
    return [tuple(map(float, re.match(r"M(\S+) ([\d.]+)", d).groups())) for d in paths]


def legend(root):
    """The look of every line beside its name."""
    parts = [*root]
    at = [i for i, part in enumerate(parts) if part.get("class") == "mark"]
    return {
        parts[i + 1].text: (parts[i].get("fill"), re.sub(r"^M\S+ [\d.]+", "", parts[i].get("d")))
        for i in at
    }


def texts(root):
    return [t.text for t in root.iter(f"{SVG}text")]


def test_every_line_and_level_is_drawn():
    lines = [Line(f"m<{k}>", [(1, 0.3 + k), (2, 0.2 + k)]) for k in range(16)]
    root = drawn(lines, {"floor & all": 0.1})
    assert len(marks(root)) == 32
    assert {f"m<{k}>" for k in range(16)} | {"floor & all", "x & y", "<fd>"} <= set(texts(root))
    looks = {
        (p.get("stroke"), p.get("stroke-dasharray"))
        for p in root.iter(f"{SVG}path")
        if p.get("stroke-width")
    }
    assert len(looks) == 16
    # A line of one point is told apart by its mark.
    assert len({*legend(root).values()}) == 16


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0, -1.0])
def test_what_cannot_be_drawn_is_left_out(bad):
    points = [(1, 0.5), (2, bad), (3, 0.25)]
    root = drawn([Line("m", points), Line("n", [(1, bad)])], {"good": 0.1, "bad": bad})
    left, right = sorted(marks(root))
    assert left[1] < right[1]
    assert "bad" not in texts(root)
    assert {"good", "m", "n"} <= set(texts(root))
    whole = ElementTree.tostring(root, encoding="unicode")
    assert "nan" not in whole
    assert "inf" not in whole


@pytest.mark.parametrize("levels", [{}, {"bad": math.nan}, {"good": 1.0}])
def test_nothing_to_draw(levels):
    root = drawn([Line("m", [(1, math.nan)]), Line("n", [])], levels)
    assert marks(root) == []
    assert {"m", "n"} <= set(texts(root))


def test_points_lie_on_a_logarithmic_scale_within_the_frame():
    (a, b, c) = marks(drawn([Line("m", [(0, 1.0), (1, 0.1), (2, 0.01)])], {}))
    assert b[1] - a[1] == pytest.approx(c[1] - b[1], abs=0.2)
    assert b[0] - a[0] == pytest.approx(c[0] - b[0], abs=0.2)
    assert a[0] == LEFT
    assert c[0] == WIDE - RIGHT
    assert TOP < a[1] < c[1] < 230 + 0.3 * WIDE - BOTTOM


def test_ticks_span_the_axis_whichever_points_there_are():
    root = drawn([Line("pcm", [(2, 0.3)])], {}, ticks={0.0: "1", 1.0: "2", 2.0: "4"})
    assert marks(root)[0][0] == WIDE - RIGHT
    labels = {
        t.text: float(t.get("x")) for t in root.iter(f"{SVG}text") if t.text in {"1", "2", "4"}
    }
    assert labels["1"] == LEFT
    assert labels["4"] == WIDE - RIGHT


def test_one_tick():
    root = drawn([Line("m", [(0, 0.3)])], {}, ticks={0.0: "1"})
    assert marks(root)[0][0] == LEFT


@pytest.mark.parametrize("width", [NARROW, WIDE])
@pytest.mark.parametrize("name", ["CD", "progressive distillation", "DMD2, " * 20])
def test_nothing_is_cut(width, name):
    """Every text ends within the drawing, with letters of 12 units in a phone's 360."""
    lines = [Line(f"{name} {k}", [(0, 0.3), (2000, 1.5)]) for k in range(26)]
    root = drawn(lines, {"teacher": 0.31, "floor": 0.3}, width=width)
    assert root.get("font-size") == "12"
    _, _, across, down = map(float, root.get("viewBox").split())
    assert (across, down) == (width, float(root.get("height")))
    for text in root.iter(f"{SVG}text"):
        x, y, anchor = float(text.get("x")), float(text.get("y")), text.get("text-anchor", "start")
        length = float(text.get("textLength", 6 * len(text.text)))
        first = x - length * {"start": 0, "middle": 0.5, "end": 1}[anchor]
        assert first >= 0
        assert first + length <= width, text.text
        assert 12 <= y <= down - 4


def test_the_names_of_near_levels_lie_apart():
    root = drawn([Line("m", [(0, 10.0)])], {"teacher": 0.301, "floor": 0.3})
    at = {t.text: float(t.get("y")) for t in root.iter(f"{SVG}text")}
    assert abs(at["teacher"] - at["floor"]) >= 12


@pytest.mark.parametrize(("low", "high"), [(0.21, 0.49), (0.31, 0.34), (1.0, 900.0), (0.3, 2.0)])
def test_the_vertical_axis_has_values(low, high):
    root = drawn([Line("m", [(0, low), (1, high)])], {})
    values = [t for t in root.iter(f"{SVG}text") if t.get("text-anchor") == "end"]
    assert 3 <= len(values) <= 12


def test_a_line_tells_its_name():
    root = drawn([Line("a & b", [(0, 0.3)]), Line("none", [])], {})
    assert [t.text for t in root.iter(f"{SVG}title")] == ["a & b"]
