"""Interleaved rounds: everything that is compared is measured side by side, disturbed rounds not.

A round measures every subject once, with a probe of the machine before each and after the last.
The order of the baselines turns from round to round, so that none always stands next to the engine.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

ROUNDS = 7
FEW_ROUNDS = 3  # when a round takes longer than LONG_ROUND
LONG_ROUND = 60.0  # seconds
QUIET = 0.85  # of the run's good probes, at least
_GOOD = 0.8  # share of the probes that are below a good one: a rare one is too good to be true
_TRIES = 2  # times the wanted rounds, at most, so that a busy machine ends too

Probe = Mapping[str, float]
"""Rates of the machine by name; larger is better."""


@dataclass(frozen=True)
class Round:
    """One round: its number, seconds of each subject, and the worst of each rate around them."""

    number: int
    seconds: Mapping[str, float]
    probe: Probe


@dataclass
class Rounds:
    """What was measured.

    Attributes:
        kept: rounds that count.
        dropped: how many were repeated because the machine was disturbed.
        disturbed: whether disturbed rounds count, because the machine never was quiet long enough.
        good: 80th percentile of all probes of the run, by rate.
        typical: median of all probes of the run, by rate.
        wanted: how many rounds were asked for.
    """

    kept: list[Round]
    dropped: int
    disturbed: bool
    wanted: int
    good: dict[str, float] = field(default_factory=dict)
    typical: dict[str, float] = field(default_factory=dict)

    def seconds(self, subject: str) -> list[float]:
        """Seconds of a subject in every round that counts."""
        return [r.seconds[subject] for r in self.kept]

    def ratios(self, subject: str, to: str) -> list[float]:
        """Seconds of `subject` / seconds of `to`, round by round."""
        return [r.seconds[subject] / r.seconds[to] for r in self.kept]


def interleave(
    first: str,
    subjects: Mapping[str, Callable[[], float]],
    probe: Callable[[], Probe],
    clock: Callable[[], float],
    rounds: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Rounds:
    """Measure until enough rounds were quiet.

    Args:
        first: the subject that opens every round.
        subjects: each measures itself once and returns its seconds.
        probe: measures the machine.
        clock: seconds.
        rounds: how many must count; default 7, or 3 when a round exceeds a minute.
        progress: called with (rounds done, rounds wanted).
    """
    done: list[Round] = []
    looks: dict[str, list[float]] = {}
    others = [name for name in subjects if name != first]
    wanted = rounds or ROUNDS
    while True:
        start = clock()
        turn = len(done) % len(others) if others else 0
        seconds: dict[str, float] = {}
        worst: dict[str, float] = {}

        def look(worst: dict[str, float] = worst) -> None:
            for name, rate in probe().items():
                worst[name] = min(rate, worst.get(name, rate))
                looks.setdefault(name, []).append(rate)

        for name in (first, *others[turn:], *others[:turn]):
            look()
            seconds[name] = subjects[name]()
        look()
        done.append(Round(len(done), seconds, worst))
        if rounds is None and clock() - start > LONG_ROUND:
            wanted = min(wanted, FEW_ROUNDS)
        good = {name: quantile(rates, _GOOD) for name, rates in looks.items()}
        quiet = [r for r in done if is_quiet(r.probe, good)]
        if progress is not None:
            progress(min(len(quiet), wanted), wanted)
        if len(quiet) >= wanted or len(done) >= _TRIES * wanted:
            break
    typical = {name: statistics.median(rates) for name, rates in looks.items()}
    if len(quiet) >= wanted:
        return Rounds(quiet, len(done) - len(quiet), False, wanted, good, typical)
    # Never quiet long enough: the quietest rounds count, and the result says so.
    ranked = sorted(done, key=lambda r: -quietness(r.probe, good))[:wanted]
    kept = [r for r in done if r in ranked]
    return Rounds(kept, len(done) - len(ranked), True, wanted, good, typical)


def quietness(probe: Probe, good: Probe) -> float:
    """Worst rate of a round as a share of the run's good ones."""
    return min((rate / good[name] for name, rate in probe.items()), default=1.0)


def is_quiet(probe: Probe, good: Probe) -> bool:
    """Whether no rate fell below 85% of the run's good ones."""
    return quietness(probe, good) >= QUIET


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile (linear interpolation) and number of values."""
    return {
        "median": statistics.median(values),
        "p20": quantile(values, 0.2),
        "p80": quantile(values, 0.8),
        "runs": len(values),
    }


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which a share of them lies, linear in between."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
