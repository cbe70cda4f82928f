import itertools
import math
import xml.etree.ElementTree as ET

import pytest

from vlarft.report.charts import (
    HEIGHT,
    amount,
    curve,
    interval_plot,
    label,
    nice_ticks,
    running_mean,
    spread_labels,
)
from vlarft.report.data import Chart, Interval, Series


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-0.2, 0.013), (1e-6, 3e-6), (5, 5), (0, 0), (-3, 700)]
)
def test_ticks_enclose_the_values_and_are_evenly_spaced(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 12
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    assert steps == pytest.approx([steps[0]] * len(steps))


def test_tick_labels_have_the_decimals_they_need():
    assert [label(t, [0, 0.025]) for t in (0, 0.025, -0.05)] == ["0.000", "0.025", "−0.050"]
    assert label(20, [0, 20]) == "20"


def test_amounts():
    assert amount(-0.1234, "%") == "−12.3%"
    assert amount(1.8, "dB") == "+1.8 dB"


def test_running_mean_keeps_the_ends():
    points = [(float(i), float(i % 2)) for i in range(11)]
    smooth = running_mean(points, 5)
    assert smooth[0] == points[0]
    assert smooth[-1] == points[-1]
    assert smooth[5][1] == pytest.approx((1 + 0 + 1 + 0 + 1) / 5)


def test_labels_do_not_overlap_and_stay_inside():
    series = Series("a", [])
    placed = spread_labels([(200.0, series), (201.0, series), (214.0, series), (60.0, series)])
    heights = [y for y, _ in placed]
    assert all(b - a >= 15 - 1e-9 for a, b in itertools.pairwise(heights))
    assert max(heights) < HEIGHT


def test_curve_is_wellformed_draws_every_series_and_skips_nan():
    points = [(float(i), math.nan if i == 3 else i * 0.1) for i in range(40)]
    chart = Chart(
        "a < b",
        "dB",
        "",
        [Series("one & two", points), Series("seeds", points[:5], "control", [points[:5]])],
    )
    svg = curve(chart)
    root = ET.fromstring(svg)
    paths = [p for p in root.iter("path")]
    assert len(paths) == 4  # raw and smoothed, seed and mean
    assert all("nan" not in p.get("d", "") for p in paths)
    assert any(t.text == "one & two" for t in root.iter("text"))


def test_curve_places_higher_values_higher():
    root = ET.fromstring(curve(Chart("x", "", "", [Series("s", [(0, 1.0), (1, 2.0)])])))
    ys = [float(c.get("cy", 0)) for c in root.iter("circle") if "dot" in c.get("class", "")]
    assert ys[0] > ys[1]


def test_a_drift_of_a_thousandth_does_not_fill_the_chart():
    root = ET.fromstring(curve(Chart("x", "", "", [Series("s", [(0, 0.1265), (1, 0.1266)])])))
    ys = [float(c.get("cy", 0)) for c in root.iter("circle") if "dot" in c.get("class", "")]
    assert abs(ys[0] - ys[1]) < 0.1 * HEIGHT


def test_a_chart_without_values_says_so():
    assert "No values yet" in curve(Chart("x", "", "", [Series("s", [])]))


def test_interval_plot_shows_zero_between_signs():
    svg = interval_plot(
        [Interval("a", -0.1, -0.2, 0.05, "%"), Interval("b", 0.02, 0.01, 0.03, "%", "control")]
    )
    root = ET.fromstring(svg)
    zero = next(float(n.get("x1", 0)) for n in root.iter("line") if n.get("class") == "zero")
    marks = [float(n.get("cx", 0)) for n in root.iter("circle")]
    assert marks[0] < zero < marks[1]
