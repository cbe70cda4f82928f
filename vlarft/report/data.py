"""What a report says, as plain values: built from a run folder, or by hand in tests."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Tone = Literal["good", "bad", "neutral"]
Colour = Literal["treatment", "control", "second", "third", "fourth"]
Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and its interval on a small axis that shows 0.

    Attributes:
        label: what it is.
        value: the figure.
        low: lower bound.
        high: upper bound.
        unit: "%" (values are shares, 0.1 = 10%) or a unit that is printed behind.
        colour: of the mark.
    """

    label: str
    value: float
    low: float
    high: float
    unit: str
    colour: Colour = "treatment"


@dataclass(frozen=True, slots=True)
class Headline:
    """One number that matters.

    Attributes:
        label: what it is, a few words.
        value: the number as printed, with its sign and unit.
        interval: its interval in words, empty when there is none.
        meaning: one or two sentences for a person who does not know the method.
        tone: whether it is good news.
    """

    label: str
    value: str
    meaning: str
    interval: str = ""
    tone: Tone = "neutral"


@dataclass(frozen=True, slots=True)
class Check:
    """A statement that holds or does not, with its evidence."""

    text: str
    passed: bool
    evidence: str


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart.

    Attributes:
        name: printed at its end.
        points: (x, y), x increasing.
        colour: role of the line.
        spread: lines of single seeds, drawn thin behind.
    """

    name: str
    points: list[tuple[float, float]]
    colour: Colour = "treatment"
    spread: list[list[tuple[float, float]]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Chart:
    """A curve with its explanation.

    Attributes:
        title: what is drawn.
        unit: of the y axis.
        meaning: one sentence: what it is and which way is good.
        series: one to four lines.
        x_label: what the x axis counts.
        zero: whether the y axis starts at 0.
    """

    title: str
    unit: str
    meaning: str
    series: list[Series]
    x_label: str = "step"
    zero: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture that is drawn already.

    Attributes:
        title: what is drawn.
        svg: self-contained SVG.
        meaning: one sentence: what it is and which way is good.
    """

    title: str
    svg: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One moving picture.

    Attributes:
        caption: what it is.
        frames: uint8 [T, H, W, 3].
        note: below the caption.
    """

    caption: str
    frames: Frames
    note: str = ""


@dataclass(frozen=True, slots=True)
class Scene:
    """Pictures of one start state that play in step.

    Attributes:
        title: e.g. the instruction.
        note: where it comes from.
        panels: all with the same T, H and W.
    """

    title: str
    panels: list[Panel]
    note: str = ""


@dataclass(frozen=True, slots=True)
class TableData:
    """A table; the first column holds names, the others numbers as printed."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything a report shows, in the order it shows it.

    Attributes:
        title: of the page.
        subtitle: what was done, one sentence.
        verdict: the result in one sentence.
        tone: of the verdict.
        headlines: three to six numbers.
        intervals: effects beside each other on one axis; units must be equal.
        drawn: what their bootstrap draws.
        checks: statements with evidence.
        scenes: pictures.
        charts: curves.
        figures: other drawings.
        tables: figures in detail.
        seconds: wall time by stage.
        configuration: YAML text.
        environment: as in `environment.json`.
        command: what makes this report again.
        notes: how to read it: limits and definitions.
    """

    title: str
    subtitle: str
    verdict: str
    tone: Tone = "neutral"
    headlines: list[Headline] = field(default_factory=list)
    intervals: list[Interval] = field(default_factory=list)
    drawn: str = "episodes"
    checks: list[Check] = field(default_factory=list)
    scenes: list[Scene] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[TableData] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    configuration: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    notes: list[str] = field(default_factory=list)


def is_number(value: Any) -> bool:
    """Whether a logged value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def points_of(records: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    """(step, value) of the lines of a metrics.jsonl that have this number."""
    return [(float(r["step"]), float(r[name])) for r in records if is_number(r.get(name))]
