"""Charts: they are XML, and hold every point that can be drawn, inside their frame."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from fewstep.compare.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line, chart

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*args, **more):
    return ElementTree.fromstring(chart(*args, "x & y", "<fd>", **more))


def circles(root):
    return [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter(f"{SVG}circle")]


def texts(root):
    return [t.text for t in root.iter(f"{SVG}text")]


def test_every_line_and_level_is_drawn():
    lines = [Line(f"m<{k}>", [(1, 0.3 + k), (2, 0.2 + k)]) for k in range(16)]
    root = drawn(lines, {"floor & all": 0.1})
    assert len(circles(root)) == 32
    assert {f"m<{k}>" for k in range(16)} | {"floor & all", "x & y", "<fd>"} <= set(texts(root))
    looks = {
        (p.get("stroke"), p.get("stroke-dasharray"))
        for p in root.iter(f"{SVG}path")
        if p.get("stroke-width")
    }
    assert len(looks) == 16


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0, -1.0])
def test_what_cannot_be_drawn_is_left_out(bad):
    points = [(1, 0.5), (2, bad), (3, 0.25)]
    root = drawn([Line("m", points), Line("n", [(1, bad)])], {"good": 0.1, "bad": bad})
    left, right = sorted(circles(root))
    assert left[1] < right[1]
    assert "bad" not in texts(root)
    assert {"good", "m", "n"} <= set(texts(root))
    whole = ElementTree.tostring(root, encoding="unicode")
    assert "nan" not in whole
    assert "inf" not in whole


@pytest.mark.parametrize("levels", [{}, {"bad": math.nan}, {"good": 1.0}])
def test_nothing_to_draw(levels):
    root = drawn([Line("m", [(1, math.nan)]), Line("n", [])], levels)
    assert circles(root) == []
    assert {"m", "n"} <= set(texts(root))


def test_points_lie_on_a_logarithmic_scale_within_the_frame():
    (a, b, c) = circles(drawn([Line("m", [(0, 1.0), (1, 0.1), (2, 0.01)])], {}))
    assert b[1] - a[1] == pytest.approx(c[1] - b[1], abs=0.2)
    assert b[0] - a[0] == pytest.approx(c[0] - b[0], abs=0.2)
    assert a[0] == LEFT
    assert c[0] == WIDTH - RIGHT
    assert TOP < a[1] < c[1] < HEIGHT - BOTTOM


def test_ticks_span_the_axis_whichever_points_there_are():
    root = drawn([Line("pcm", [(2, 0.3)])], {}, ticks={0.0: "1", 1.0: "2", 2.0: "4"})
    assert circles(root)[0][0] == WIDTH - RIGHT
    labels = {
        t.text: float(t.get("x")) for t in root.iter(f"{SVG}text") if t.text in {"1", "2", "4"}
    }
    assert labels["1"] == LEFT
    assert labels["4"] == WIDTH - RIGHT


def test_one_tick():
    root = drawn([Line("m", [(0, 0.3)])], {}, ticks={0.0: "1"})
    assert circles(root)[0][0] == LEFT
