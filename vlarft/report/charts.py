"""Inline SVG: curves and interval plots. Colours are CSS classes of `page.css`."""

import math
from collections.abc import Callable, Sequence
from html import escape

from vlarft.report.data import Chart, Interval, Series

WIDTH, HEIGHT = 520, 250  # of a chart, in SVG units; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 58, 92, 14, 34
SMOOTH_FROM = 30  # points; longer noisy lines get a running mean, the raw line stays behind it

Points = Sequence[tuple[float, float]]
Scale = Callable[[float], float]


def curve(chart: Chart) -> str:
    """A chart as SVG with axes, direct labels and a tooltip per point."""
    lines = [
        p
        for s in chart.series
        for line in (s.points, *s.spread)
        for p in line
        if math.isfinite(p[1])
    ]
    if not lines:
        return '<p class="quiet">No values yet.</p>'
    x_low, x_high = min(x for x, _ in lines), max(x for x, _ in lines)
    if x_high == x_low:
        x_low, x_high = x_low - 1, x_high + 1
    ticks = nice_ticks(*_range([y for _, y in lines], chart.zero))
    y_low, y_high = ticks[0], ticks[-1]

    def px(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in ticks:
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(tick):.1f}" '
            f'y2="{py(tick):.1f}"/>'
        )
        parts.append(
            f'<text class="tick" x="{LEFT - 8}" y="{py(tick) + 4:.1f}" '
            f'text-anchor="end">{label(tick, ticks)}</text>'
        )
    for tick in [t for t in nice_ticks(x_low, x_high, 5) if x_low <= t <= x_high]:
        parts.append(
            f'<text class="tick" x="{px(tick):.1f}" y="{HEIGHT - 14}" '
            f'text-anchor="middle">{tick:g}</text>'
        )
    parts.append(
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 1}" '
        'text-anchor="middle">'
        f"{escape(chart.x_label)}</text>"
    )
    ends: list[tuple[float, Series]] = []
    for series in chart.series:
        points = [p for p in series.points if math.isfinite(p[1])]
        if not points:
            continue
        for thin in series.spread:
            parts.append(_path(thin, px, py, f"line thin {series.colour}"))
        shown: Points = points
        if len(points) >= SMOOTH_FROM:
            if not series.spread:
                parts.append(_path(points, px, py, f"line thin {series.colour}"))
            shown = running_mean(points, max(3, len(points) // 12))
        parts.append(_path(shown, px, py, f"line {series.colour}"))
        if len(points) < SMOOTH_FROM:
            parts += [
                f'<circle class="dot {series.colour}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="3"/>'
                for x, y in points
            ]
        parts += [
            f'<circle class="hit" cx="{px(x):.1f}" cy="{py(y):.1f}" '
            f'r="7"><title>{escape(series.name)}, '
            f"{escape(chart.x_label)} {x:g}: {y:.4g} {escape(chart.unit)}</title></circle>"
            for x, y in points[:: max(1, len(points) // 60)]
        ]
        ends.append((py(shown[-1][1]), series))
    for y, series in spread_labels(ends):
        parts.append(
            f'<text class="name {series.colour}" x="{WIDTH - RIGHT + 8}" '
            f'y="{y + 4:.1f}">{escape(series.name)}</text>'
        )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">'
        + "".join(parts)
        + "</svg>"
    )


def _range(values: Sequence[float], zero: bool) -> tuple[float, float]:
    """Ends of an axis; at least 2% of the values' size apart, so that trifles look like trifles."""
    low, high = min(values), max(values)
    margin = max(0.0, 0.02 * max(abs(low), abs(high)) - (high - low)) / 2
    return (0.0 if zero else low - margin), high + margin


def interval_plot(intervals: Sequence[Interval]) -> str:
    """Effects with their intervals on one axis through 0."""
    row, width, left = 46, 860, 290
    height = row * len(intervals) + 34
    ticks = nice_ticks(
        min(0.0, *(i.low for i in intervals)), max(0.0, *(i.high for i in intervals)), 6
    )
    unit = intervals[0].unit

    def px(x: float) -> float:
        return left + (x - ticks[0]) / (ticks[-1] - ticks[0]) * (width - left - 120)

    parts = []
    for tick in ticks:
        kind = "zero" if abs(tick) < 1e-12 else "grid"
        parts.append(
            f'<line class="{kind}" x1="{px(tick):.1f}" x2="{px(tick):.1f}" y1="4" '
            f'y2="{height - 26}"/>'
        )
        shown = f"{100 * tick:+.3g}%" if unit == "%" else f"{tick:+.3g}"
        shown = "0" if abs(tick) < 1e-12 else shown.replace("-", "−")
        parts.append(
            f'<text class="tick" x="{px(tick):.1f}" y="{height - 8}" '
            f'text-anchor="middle">{shown}</text>'
        )
    for number, item in enumerate(intervals):
        y = 4 + row * (number + 0.5)
        parts.append(
            f'<text class="row" x="{left - 20}" y="{y + 5:.1f}" '
            f'text-anchor="end">{escape(item.label)}</text>'
        )
        parts.append(
            f'<line class="whisker {item.colour}" x1="{px(item.low):.1f}" x2="{px(item.high):.1f}" '
            f'y1="{y:.1f}" y2="{y:.1f}"><title>{escape(item.label)}: {amount(item.low, unit)} to '
            f"{amount(item.high, unit)}</title></line>"
        )
        parts.append(
            f'<circle class="mark {item.colour}" cx="{px(item.value):.1f}" cy="{y:.1f}" r="7"/>'
        )
        parts.append(
            f'<text class="row strong" x="{width - 100}" '
            f'y="{y + 5:.1f}">{amount(item.value, unit)}</text>'
        )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Effects with intervals">'
        + "".join(parts)
        + "</svg>"
    )


def amount(value: float, unit: str) -> str:
    """A signed figure with its unit and a real minus sign; shares are printed as percent."""
    text = f"{100 * value:+.1f}%" if unit == "%" else f"{value:+.3g} {unit}".rstrip()
    return text.replace("-", "−")


def nice_ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers that enclose [low, high], about `wanted` steps."""
    if high <= low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / wanted
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(m * base for m in (1, 2, 2.5, 5, 10) if m * base >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, last + 1)]


def label(tick: float, ticks: Sequence[float]) -> str:
    """A tick with just the decimals its axis needs."""
    step = ticks[1] - ticks[0]
    decimals = next(
        d
        for d in range(10)
        if abs(step * 10**d - round(step * 10**d)) < 1e-6 * step * 10**d or d == 9
    )
    return f"{tick:.{decimals}f}".replace("-", "−")


def running_mean(points: Points, width: int) -> list[tuple[float, float]]:
    """Mean over a centred window that shrinks at the ends, so that no end is invented."""
    half = width // 2
    values = [y for _, y in points]
    result = []
    for i, (x, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        window = values[i - reach : i + reach + 1]
        result.append((x, sum(window) / len(window)))
    return result


def spread_labels(ends: list[tuple[float, Series]], gap: float = 15) -> list[tuple[float, Series]]:
    """Move labels apart so that none covers another, inside the chart."""
    placed: list[tuple[float, Series]] = []
    for y, series in sorted(ends, key=lambda end: end[0]):
        placed.append((max(y, placed[-1][0] + gap) if placed else y, series))
    limit = float(HEIGHT - BOTTOM)
    for i in range(len(placed) - 1, -1, -1):
        y, series = placed[i]
        placed[i] = (min(y, limit), series)
        limit = placed[i][0] - gap
    return placed


def _path(points: Points, px: Scale, py: Scale, css: str) -> str:
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    text = " ".join(
        f"{'L' if i else 'M'}{px(x):.1f} {py(y):.1f}" for i, (x, y) in enumerate(finite)
    )
    return f'<path class="{css}" d="{text}"/>'
