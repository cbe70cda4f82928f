"""Roofline: operations a second against operations a byte, both axes logarithmic, as SVG."""

import math
from collections.abc import Sequence
from html import escape

from vlarft.bench.results import Result

_WIDTH, _HEIGHT = 860, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 290, 16, 44
_COLOURS = ("treatment", "second", "third", "fourth", "control")


def roofline(results: Sequence[Result]) -> str:
    """One dot a result under the highest roof of all runs.

    Williams, Waterman, Patterson, "Roofline: an insightful visual performance model", CACM 2009.
    """
    read = max(r.limits["read_gbps"] for r in results)
    multiply = max(r.limits["matmul_gflops"] for r in results)
    dots = [(r, r.flops / r.bytes, r.flops / r.seconds.median / 1e9) for r in results]
    ridge = multiply / read
    x_low, x_high = _decades([x for _, x, _ in dots] + [ridge])
    y_low, y_high = _decades([y for _, _, y in dots] + [multiply])

    def px(x: float) -> float:
        share = (math.log10(x) - x_low) / (x_high - x_low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def py(y: float) -> float:
        share = (math.log10(max(y, 10.0**y_low)) - y_low) / (y_high - y_low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for power in range(y_low, y_high + 1):
        y = py(10.0**power)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{10.0**power:g}</text>"
        )
    for power in range(x_low, x_high + 1):
        parts.append(
            f'<text class="tick" x="{px(10.0**power):.1f}" y="{_HEIGHT - 24}" '
            f'text-anchor="middle">{10.0**power:g}</text>'
        )
    parts.append(
        f'<text class="axis" x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 6}" '
        'text-anchor="middle">operations a byte (GFLOP/s upwards)</text>'
    )
    start = max(10.0**x_low, 10.0**y_low / read)  # where the slope enters the picture
    parts.append(
        f'<path class="line control" d="M{px(start):.1f} {py(start * read):.1f} '
        f'L{px(ridge):.1f} {py(multiply):.1f} L{px(10.0**x_high):.1f} {py(multiply):.1f}"/>'
    )
    for number, (r, x, y) in enumerate(dots):
        colour = _COLOURS[number % len(_COLOURS)]
        label = f"{number + 1}  {r.case} {r.stage} {r.dtype}"
        parts.append(
            f'<circle class="dot {colour}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="5">'
            f"<title>{escape(r.name)}: {y:.3g} GFLOP/s at {x:.3g} operations a byte, "
            f"{100 * r.share_of_limit:.0f}% of its limit</title></circle>"
            f'<text class="tick" x="{px(x) + 8:.1f}" y="{py(y) + 4:.1f}">{number + 1}</text>'
        )
        if number * 15 < _HEIGHT - _BOTTOM - _TOP:  # a legend of what fits; dots have tooltips
            parts.append(
                f'<text class="name {colour}" x="{_WIDTH - _RIGHT + 10}" '
                f'y="{_TOP + 12 + number * 15}">{escape(label)}</text>'
            )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Roofline">'
        + "".join(parts)
        + "</svg>"
    )


def _decades(values: Sequence[float]) -> tuple[int, int]:
    positive = [v for v in values if v > 0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    return low, max(high, low + 1)
