"""`ReportData` -> one HTML page that needs no other file and no network."""

import base64
import io
import re
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlarft.errors import ShapeError
from vlarft.report.charts import curve, interval_plot
from vlarft.report.data import Frames, ReportData, Scene, TableData

_HERE = Path(__file__).parent


def render(report: ReportData) -> str:
    """The whole page.

    Raises:
        ShapeError: pictures of a scene differ in size, or are not uint8 [T, H, W, 3].
    """
    body = "\n".join(
        section
        for section in (
            _header(report),
            _effects(report),
            _checks(report),
            _scenes(report),
            _charts(report),
            _figures(report),
            _tables(report),
            _seconds(report),
            _details(report),
        )
        if section
    )
    css = (_HERE / "page.css").read_text(encoding="utf-8")
    script = (_HERE / "page.js").read_text(encoding="utf-8") if report.scenes else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title>\n<style>\n{css}</style></head>\n"
        f"<body><main>\n{body}\n</main>\n<script>\n{script}</script></body></html>\n"
    )


def sprite(scene: Scene) -> tuple[str, int, int, int]:
    """Panels side by side, frames from top to bottom, as a PNG data address.

    Returns:
        (address, frames T, height H, width W).

    Raises:
        ShapeError: sizes differ, or frames are not uint8 [T, H, W, 3].
    """
    shapes = {panel.frames.shape for panel in scene.panels}
    shape = next(iter(shapes), ())
    if len(shapes) != 1 or len(shape) != 4 or any(p.frames.dtype != np.uint8 for p in scene.panels):
        raise ShapeError(
            f"scene '{scene.title}': panels must all be uint8 [T, H, W, 3] of one size, got "
            f"{[(str(p.frames.dtype), list(p.frames.shape)) for p in scene.panels]}"
        )
    frames, height, width, _ = shape
    sheet: Frames = np.concatenate(
        [panel.frames.reshape(frames * height, width, 3) for panel in scene.panels], axis=1
    )
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "PNG", optimize=True)
    address = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return address, frames, height, width


def _header(report: ReportData) -> str:
    cards = "".join(
        f'<div class="card headline"><div class="label">{escape(h.label)}</div>'
        f'<div class="value {h.tone}-ink">{_number(h.value)}</div>'
        f'<div class="interval">{escape(h.interval)}</div><div '
        f'class="meaning">{escape(h.meaning)}</div></div>'
        for h in report.headlines
    )
    return (
        f"<header><h1>{escape(report.title)}</h1><p>{escape(report.subtitle)}</p></header>\n"
        f'<div class="verdict {report.tone}">{escape(report.verdict)}</div>\n'
        + (f'<section class="headlines">{cards}</section>' if cards else "")
    )


def _number(value: str) -> str:
    """Digits large, units small."""
    return re.sub(r" ?([A-Za-z]+)", r" <small>\1</small>", escape(value))


def _effects(report: ReportData) -> str:
    if not report.intervals:
        return ""
    return (
        '<h2>How sure is that?</h2><p class="lead">Dots are estimates, bars their 95% intervals '
        f"(bootstrap over {escape(report.drawn)}). "
        "A bar that crosses the line at 0 means: could be nothing.</p>"
        f'<div class="card wide">{interval_plot(report.intervals)}</div>'
    )


def _checks(report: ReportData) -> str:
    if not report.checks:
        return ""
    rows = "".join(
        f'<li><span class="{"good" if c.passed else "bad"}-ink" '
        f'aria-label="{"holds" if c.passed else "does not hold"}">'
        f"{'✓' if c.passed else '✗'}</span><span>{escape(c.text)}</span>"
        f'<span class="evidence">{escape(c.evidence)}</span></li>'
        for c in report.checks
    )
    return f'<h2>What holds, what does not</h2><ul class="card checks">{rows}</ul>'


def _scenes(report: ReportData) -> str:
    if not report.scenes:
        return ""
    parts, longest = [], 1
    for scene in report.scenes:
        address, frames, height, width = sprite(scene)
        longest = max(longest, frames)
        figures = "".join(
            f'<figure><canvas width="{width}" height="{height}" role="img" '
            f'aria-label="{escape(p.caption)}"></canvas>'
            f"<figcaption>{escape(p.caption)}<span>{escape(p.note)}</span></figcaption></figure>"
            for p in scene.panels
        )
        parts.append(
            f'<div class="card scene" data-frames="{frames}" data-height="{height}" '
            f'data-width="{width}">'
            f'<div class="head"><h3>{escape(scene.title)}</h3><span class="quiet '
            f'small">{escape(scene.note)}</span></div>'
            f'<div class="panels" style="grid-template-columns:repeat({len(scene.panels)},1fr)">'
            f"{figures}</div>"
            f'<img hidden alt="" src="{address}"></div>'
        )
    return (
        '<h2>What the policy makes happen</h2><p class="lead">Each row starts from one recorded '
        "picture that training never saw, chosen by its place, not by the result, and shows one "
        "draw: single ones may well get worse where the mean improves. All panels play in step. "
        "Brighter differences are larger; they are enlarged four times.</p>"
        '<div class="player"><button id="play">Play</button>'
        f'<input id="frame" type="range" min="0" max="{longest - 1}" value="0" aria-label="frame">'
        '<span id="count" class="quiet small"></span></div>' + "".join(parts)
    )


def _charts(report: ReportData) -> str:
    if not report.charts:
        return ""
    cards = "".join(
        f'<div class="card chart"><h3>{escape(c.title)} <span '
        f'class="unit">{escape(c.unit)}</span></h3>{curve(c)}'
        f'<p class="quiet small">{escape(c.meaning)}</p></div>'
        for c in report.charts
    )
    return (
        '<h2>Curves</h2><p class="lead">Thick lines are means (running means where values are '
        "noisy), thin lines single seeds or raw values.</p>"
        f'<div class="charts">{cards}</div>'
    )


def _figures(report: ReportData) -> str:
    return "".join(
        f'<div class="card wide"><h3>{escape(f.title)}</h3>{f.svg}'
        f'<p class="quiet small">{escape(f.meaning)}</p></div>'
        for f in report.figures
    )


def _tables(report: ReportData) -> str:
    if not report.tables:
        return ""
    return (
        '<h2>Figures in detail</h2><div class="tables">'
        + "".join(_table(t) for t in report.tables)
        + "</div>"
    )


def _table(table: TableData) -> str:
    head = "".join(f"<th>{escape(c)}</th>" for c in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    meaning = f'<p class="quiet small">{escape(table.meaning)}</p>' if table.meaning else ""
    return (
        f'<div class="card"><h3>{escape(table.title)}</h3>{meaning}<div '
        f'class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></div>"
    )


def _seconds(report: ReportData) -> str:
    total = sum(report.seconds.values())
    if not total:
        return ""
    ranked = sorted(report.seconds.items(), key=lambda item: -item[1])
    shown = ranked[:4] + ([("other", sum(s for _, s in ranked[4:]))] if len(ranked) > 4 else [])
    bar = "".join(
        f'<i class="b{n}" style="flex:{s / total:.4f}"></i>' for n, (_, s) in enumerate(shown)
    )
    legend = "".join(
        f'<span><i class="b{n}"></i>{escape(name)} {duration(s)} ({100 * s / total:.0f}%)</span>'
        for n, (name, s) in enumerate(shown)
    )
    return (
        f'<h2>Where the time went</h2><p class="lead">{duration(total)} in all.</p>'
        f'<div class="card"><div class="seconds">{bar}</div><div '
        f'class="legend">{legend}</div></div>'
    )


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 05 s` or `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02d} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


def _details(report: ReportData) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    parts = (
        [f'<h2>How to read this</h2><ul class="notes">{notes}</ul>']
        if notes
        else ["<h2>Details</h2>"]
    )
    if report.command:
        parts.append(
            f"<details open><summary>Command</summary><pre>{escape(report.command)}</pre></details>"
        )
    if report.configuration:
        parts.append(
            f"<details><summary>Configuration</summary><pre>{escape(report.configuration)}</pre></details>"
        )
    if report.environment:
        parts.append(
            f"<details><summary>Environment</summary><pre>{escape(_plain(report.environment))}</pre></details>"
        )
    return "".join(parts)


def _plain(values: dict[str, Any], indent: str = "") -> str:
    lines = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", _plain(value, indent + "  ")]
        else:
            shown = " ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"{indent}{key}: {shown}")
    return "\n".join(lines)
