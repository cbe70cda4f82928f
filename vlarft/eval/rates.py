"""Success rates of the arms of an evaluation, and their paired difference."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rich.table import Table

from vlarft.eval.episodes import AFTER, BEFORE, Outcome
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
class LiberoReport:
    """Result of an evaluation.

    Attributes:
        arms: in the order of the table.
        difference: rate after minus before on pairs, or None with one policy or one pair.
        pairs: starts that both policies have a result for.
        errors: what went wrong, one line an episode.
        perturbed: the same under each perturbation; the rest is of unperturbed starts.
    """

    arms: list[ArmResult]
    difference: Estimate | None
    pairs: int
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
        if AFTER not in [arm.name for arm in self.arms]:
            single = {"rate": before.rate, "interval": list(before.interval)}
            return {"kind": "libero"} | single | {"episodes": before.episodes} | shared
        paired = {
            "kind": "libero-paired",
            "before": before.rate,
            "after": self.arm(AFTER).rate,
            "difference": self.difference.value if self.difference else None,
            "interval": list(self.difference.interval) if self.difference else None,
            "episodes": self.pairs,
        }
        return paired | shared

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
        """The paired difference and the errors in words."""
        lines = []
        for name, block in self.blocks.items():
            if block.difference:
                low, high = block.difference.interval
                under = "" if name == NONE else f" under {name}"
                lines.append(
                    f"after minus before{under}: {100 * block.difference.value:+.1f} points on "
                    f"{block.pairs} pairs (95% interval {100 * low:+.1f} to {100 * high:+.1f})"
                )
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
    """Rates of each arm, and the paired difference of "after" and "before", by perturbation.

    Clusters of the difference's interval are seeds and tasks; with a single task, its starts.

    Args:
        outcomes: those of unperturbed starts among them.
    """
    names = dict.fromkeys(outcome.start.perturb for outcome in outcomes)
    blocks = {name: _block([o for o in outcomes if o.start.perturb == name]) for name in names}
    return replace(blocks.pop(NONE), perturbed=blocks)


def _block(outcomes: Sequence[Outcome]) -> LiberoReport:
    names = list(dict.fromkeys(outcome.arm for outcome in outcomes))
    arms = [_arm_result(name, [o for o in outcomes if o.arm == name]) for name in names]
    table = {(o.arm, o.seed, o.start.key()): o for o in outcomes if o.success is not None}
    pairs = [
        (outcome, table[AFTER, seed, key])
        for (arm, seed, key), outcome in table.items()
        if arm == BEFORE and (AFTER, seed, key) in table
    ]
    difference = None
    if len({(before.seed, before.start) for before, _ in pairs}) > 1:
        seeds = torch.tensor([before.seed for before, _ in pairs])
        groups = torch.tensor([before.start.task for before, _ in pairs])
        if len(torch.unique(groups)) < 2:
            groups = torch.tensor([before.start.number for before, _ in pairs])
        difference = paired_difference(
            torch.tensor([before.success for before, _ in pairs]),
            torch.tensor([after.success for _, after in pairs]),
            [seeds, groups],
        )
    errors = [
        f"{o.arm}, task {o.start.task}, seed {o.seed}, start {o.start.number}{_under(o)}: {o.error}"
        for o in outcomes
        if o.error
    ]
    return LiberoReport(arms, difference, len(pairs), errors)


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
