"""Success rates of the arms of an evaluation, and their paired difference."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rich.table import Table

from vlarft.eval.episodes import AFTER, BEFORE, Outcome, is_control
from vlarft.eval.statistics import Estimate, paired_difference, wilson
from vlarft.libero.perturb import NONE, describe


@dataclass(frozen=True, slots=True)
class ArmResult:
    """Successes of one arm.

    Attributes:
        name: of the arm.
        successes: solved episodes.
        episodes: episodes with a result.
        errors: episodes without one.
        by_task: successes and episodes of each task.
    """

    name: str
    successes: int
    episodes: int
    errors: int
    by_task: dict[int, tuple[int, int]]

    @property
    def rate(self) -> float:
        """Success rate in [0, 1]; 0 without episodes."""
        return self.successes / self.episodes if self.episodes else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the rate."""
        return wilson(self.successes, self.episodes)

    def to_dict(self) -> dict[str, Any]:
        """As written to `summary.json`."""
        return {
            "name": self.name,
            "successes": self.successes,
            "episodes": self.episodes,
            "errors": self.errors,
            "rate": self.rate,
            "interval": list(self.interval),
            "by_task": {str(task): list(counts) for task, counts in self.by_task.items()},
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two arms on the starts that both have a result for.

    Attributes:
        arm: name of one.
        minus: name of the other.
        difference: the one's rate minus the other's; None with fewer than two pairs.
        pairs: those starts.
    """

    arm: str
    minus: str
    difference: Estimate | None
    pairs: int

    def to_dict(self) -> dict[str, Any]:
        """As written to `summary.json`; a rate is in [0, 1]."""
        return {
            "arm": self.arm,
            "minus": self.minus,
            "difference": self.difference.value if self.difference else None,
            "interval": list(self.difference.interval) if self.difference else None,
            "episodes": self.pairs,
        }

    def line(self, under: str = "") -> str:
        """In words; empty without an interval."""
        if not self.difference:
            return ""
        low, high = self.difference.interval
        return (
            f"{self.arm} minus {self.minus}{under}: {100 * self.difference.value:+.1f} points on "
            f"{self.pairs} pairs (95% interval {100 * low:+.1f} to {100 * high:+.1f})"
        )


@dataclass(frozen=True, slots=True)
class LiberoReport:
    """Result of an evaluation.

    Attributes:
        arms: in the order of the table.
        comparisons: after minus before; of each control, it minus before and after minus it. Empty
            with one policy.
        errors: what went wrong, one line an episode.
        perturbed: the same under each perturbation; the rest is of unperturbed starts.
    """

    arms: list[ArmResult]
    comparisons: list[Comparison]
    errors: list[str]
    perturbed: dict[str, "LiberoReport"] = field(default_factory=dict)

    @property
    def blocks(self) -> dict[str, "LiberoReport"]:
        """Unperturbed ("none"), then each perturbation."""
        return {NONE: self} | self.perturbed

    def arm(self, name: str) -> ArmResult:
        """The arm of a name."""
        return next(arm for arm in self.arms if arm.name == name)

    def to_dict(self) -> dict[str, Any]:
        """As written to `summary.json`; rates in [0, 1]."""
        shared: dict[str, Any] = {
            "arms": [arm.to_dict() for arm in self.arms],
            "errors": self.errors,
        }
        if self.perturbed:
            shared["perturbations"] = {
                name: {"changes": describe(name)} | block.to_dict()
                for name, block in self.perturbed.items()
            }
        before = self.arm(BEFORE)
        if not self.comparisons:
            single = {"rate": before.rate, "interval": list(before.interval)}
            return {"kind": "libero"} | single | {"episodes": before.episodes} | shared
        main, *others = (comparison.to_dict() for comparison in self.comparisons)
        paired = {
            "kind": "libero-paired",
            "before": before.rate,
            "after": self.arm(AFTER).rate,
            "difference": main["difference"],
            "interval": main["interval"],
            "episodes": main["episodes"],
        }
        return paired | ({"controls": others} if others else {}) | shared

    def table(self) -> Table:
        """Arms by success rate, a section a perturbation."""
        table = Table(title="Success in LIBERO's simulator")
        if self.perturbed:
            table.add_column("perturbation")
        for heading in ("arm", "solved", "rate", "95% interval", "errors"):
            table.add_column(heading, justify="left" if heading == "arm" else "right")
        for name, block in self.blocks.items():
            for number, row in enumerate(map(_row, block.arms)):
                first = [name if number == 0 else ""] if self.perturbed else []
                table.add_row(*first, *row)
            table.add_section()
        return table

    def lines(self) -> list[str]:
        """The paired differences and the errors in words."""
        lines = []
        for name, block in self.blocks.items():
            under = "" if name == NONE else f" under {name}"
            said = (comparison.line(under) for comparison in block.comparisons)
            lines += [line for line in said if line]
        errors = [error for block in self.blocks.values() for error in block.errors]
        if errors:
            lines.append(
                f"{len(errors)} episodes without a result, counted nowhere; the same command "
                f"plays them again: {errors[0]}"
            )
        return lines


def _row(arm: ArmResult) -> list[str]:
    low, high = arm.interval
    return [
        arm.name,
        f"{arm.successes}/{arm.episodes}",
        f"{100 * arm.rate:.1f}%",
        f"{100 * low:.1f} to {100 * high:.1f}",
        str(arm.errors),
    ]


def summarise(outcomes: Sequence[Outcome]) -> LiberoReport:
    """Rates of each arm and paired differences, by perturbation.

    Clusters of a difference's interval are seeds and tasks; with a single task, its starts.

    Args:
        outcomes: those of unperturbed starts among them.
    """
    names = dict.fromkeys(outcome.start.perturb for outcome in outcomes)
    blocks = {name: _block([o for o in outcomes if o.start.perturb == name]) for name in names}
    return replace(blocks.pop(NONE), perturbed=blocks)


def _block(outcomes: Sequence[Outcome]) -> LiberoReport:
    names = list(dict.fromkeys(outcome.arm for outcome in outcomes))
    arms = [_arm_result(name, [o for o in outcomes if o.arm == name]) for name in names]
    compared = []
    if AFTER in names:
        controls = [name for name in names if is_control(name)]
        asked = [(AFTER, BEFORE), *((name, BEFORE) for name in controls)]
        asked += [(AFTER, name) for name in controls]
        compared = [_compare(outcomes, arm, minus) for arm, minus in asked]
    errors = [
        f"{o.arm}, task {o.start.task}, seed {o.seed}, start {o.start.number}{_under(o)}: {o.error}"
        for o in outcomes
        if o.error
    ]
    return LiberoReport(arms, compared, errors)


def _compare(outcomes: Sequence[Outcome], arm: str, minus: str) -> Comparison:
    table = {(o.arm, o.seed, o.start.key()): o for o in outcomes if o.success is not None}
    pairs = [
        (outcome, table[arm, seed, key])
        for (name, seed, key), outcome in table.items()
        if name == minus and (arm, seed, key) in table
    ]
    difference = None
    if len({(one.seed, one.start) for one, _ in pairs}) > 1:
        seeds = torch.tensor([one.seed for one, _ in pairs])
        groups = torch.tensor([one.start.task for one, _ in pairs])
        if len(torch.unique(groups)) < 2:
            groups = torch.tensor([one.start.number for one, _ in pairs])
        difference = paired_difference(
            torch.tensor([one.success for one, _ in pairs]),
            torch.tensor([other.success for _, other in pairs]),
            [seeds, groups],
        )
    return Comparison(arm, minus, difference, len(pairs))


def _under(outcome: Outcome) -> str:
    return "" if outcome.start.perturb == NONE else f" under {outcome.start.perturb}"


def _arm_result(name: str, outcomes: Sequence[Outcome]) -> ArmResult:
    by_task: dict[int, tuple[int, int]] = {}
    for outcome in outcomes:
        solved, played = by_task.get(outcome.start.task, (0, 0))
        if outcome.success is not None:
            by_task[outcome.start.task] = solved + outcome.success, played + 1
    valid = [outcome for outcome in outcomes if outcome.success is not None]
    return ArmResult(
        name,
        sum(bool(outcome.success) for outcome in valid),
        len(valid),
        len(outcomes) - len(valid),
        by_task,
    )
