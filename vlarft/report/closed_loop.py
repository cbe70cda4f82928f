"""The report of `vlarft eval libero`."""

from pathlib import Path
from typing import Any

from vlarft.report.data import Headline, Interval, ReportData, TableData, Tone


def closed_loop_report(run: Path, summary: dict[str, Any]) -> ReportData:
    """What the page says, from `summary.json`; configuration and environment are added later."""
    paired, arms = summary["kind"] == "libero-paired", summary["arms"]
    intervals = []
    blocks = {"none": summary} | summary.get("perturbations", {})
    for name, block in blocks.items():
        if not paired:
            continue
        for compared in [block | {"arm": "after", "minus": "before"}, *block.get("controls", [])]:
            if compared["interval"]:
                low, high = (100 * bound for bound in compared["interval"])
                label = f"{compared['arm']} minus {compared['minus']}"
                label += "" if name == "none" else f", {name}"
                value = 100 * compared["difference"]
                intervals.append(Interval(label, value, low, high, "points"))
    verdict, tone = _verdict(summary) if paired else (_single_verdict(arms), "neutral")
    return ReportData(
        title="Success in LIBERO's simulator",
        subtitle=(
            f"{summary['suite']}, {summary['tasks']} tasks, {summary['starts']} starts, "
            f"{summary['seeds']} {'seed' if summary['seeds'] == 1 else 'seeds'}; episodes of at "
            f"most {summary['max_steps']} steps, MuJoCo {summary['mujoco']}."
        ),
        verdict=verdict,
        tone=tone,
        headlines=[_headline(arm) for arm in arms],
        intervals=intervals,
        drawn="tasks and seeds" if summary["tasks"] > 1 else "seeds and starts",
        tables=_tables(blocks),
        seconds=summary.get("stage_seconds", {}),
        command=str(summary.get("command", f"vlarft report {run}")),
        notes=_notes(summary),
    )


def _verdict(summary: dict[str, Any]) -> tuple[str, Tone]:
    if summary["interval"] is None:
        return "Too few pairs for an interval.", "neutral"
    low, high = (100 * bound for bound in summary["interval"])
    points = f"{100 * summary['difference']:+.1f} points".replace("-", "−")
    between = f"95% interval {low:+.1f} to {high:+.1f}, {summary['episodes']} pairs"
    between = between.replace("-", "−")
    beside, best = _beside_controls(summary.get("controls", []))
    if low > 0:
        return f"Success rises by {points} ({between}).{beside}", "good" if best else "neutral"
    if high < 0:
        return f"Success falls by {points} ({between}).{beside}", "bad"
    return f"No clear difference: {points} ({between}).{beside}", "neutral"


def _beside_controls(controls: list[dict[str, Any]]) -> tuple[str, bool]:
    """Which controls the tuned policy clearly beats, and whether it beats all; nothing without."""
    beaten, close, better = list[str](), list[str](), list[str]()
    for control in controls:
        if control["arm"] == "after":
            low, high = control["interval"] or (0.0, 0.0)
            (beaten if low > 0 else better if high < 0 else close).append(control["minus"])
    named = {"above": beaten, "not clearly apart from": close, "below": better}
    parts = [f"{where} {' and '.join(names)}" for where, names in named.items() if names]
    return (f" It ends {'; '.join(parts)}." if parts else ""), not close and not better


def _single_verdict(arms: list[dict[str, Any]]) -> str:
    first = arms[0]
    return f"The policy solves {first['successes']} of {first['episodes']} episodes."


def _headline(arm: dict[str, Any]) -> Headline:
    low, high = (100 * bound for bound in arm["interval"])
    other = (
        "The same policy with a grey picture instead of the camera's."
        if arm["name"].endswith(", blind")
        else "A control, on the same starts."
    )
    meaning = {
        "replay": "One recorded demonstration of the task, repeated without looking.",
        "before": "The policy.",
        "after": "The policy it is compared with, on the same starts.",
    }.get(arm["name"], other)
    return Headline(
        arm["name"],
        f"{100 * arm['rate']:.1f}%",
        f"{meaning} {arm['successes']} of {arm['episodes']} episodes.",
        f"95% interval {low:.1f}% to {high:.1f}%",
    )


def _tables(blocks: dict[str, dict[str, Any]]) -> list[TableData]:
    arms = blocks["none"]["arms"]
    if len(blocks) == 1:
        return [_task_table(arms, "Solved episodes by task")]
    title = "Solved episodes by task, unperturbed"
    return [_perturbation_table(blocks), _task_table(arms, title)]


def _perturbation_table(blocks: dict[str, dict[str, Any]]) -> TableData:
    rows = [
        [
            name,
            *(f"{100 * arm['rate']:.1f}%, {_counts(arm)}" for arm in block["arms"]),
            *([_difference(block)] if block["kind"] == "libero-paired" else []),
        ]
        for name, block in blocks.items()
    ]
    first = blocks["none"]
    paired = ["after minus before, points"] if first["kind"] == "libero-paired" else []
    names = [arm["name"] for arm in first["arms"]]
    return TableData("Success under perturbation", ["", *names, *paired], rows)


def _counts(arm: dict[str, Any]) -> str:
    return f"{arm['successes']}/{arm['episodes']}"


def _difference(block: dict[str, Any]) -> str:
    if block["interval"] is None:
        return "too few pairs"
    low, high = (100 * bound for bound in block["interval"])
    text = f"{100 * block['difference']:+.1f} ({low:+.1f} to {high:+.1f})"
    return text.replace("-", "−")


def _task_table(arms: list[dict[str, Any]], title: str) -> TableData:
    tasks = sorted({int(task) for arm in arms for task in arm["by_task"]})
    rows = [[f"task {task}", *(_solved(arm, task) for arm in arms)] for task in tasks]
    return TableData(title, ["", *(arm["name"] for arm in arms)], rows)


def _solved(arm: dict[str, Any], task: int) -> str:
    solved, played = arm["by_task"].get(str(task), (0, 0))
    return f"{solved}/{played}"


def _notes(summary: dict[str, Any]) -> list[str]:
    notes = [
        "Every policy plays every start, blind ones and the replay perhaps fewer. Rates have "
        "Wilson's interval; the difference of two policies has a bootstrap that keeps pairs "
        "together.",
        "Standard starts that were recorded are left out; moved starts are drawn anew.",
        "Policies act from the mean of their flow's start, without noise: what fine-tuning with "
        "start=mean trains.",
    ]
    perturbations = summary.get("perturbations", {})
    if perturbations:
        notes.append(
            "A perturbation is drawn from the seed, the task and the number of the episode, the "
            "same for every arm, on top of the unperturbed start; the sentence above the numbers "
            'and the table by task are of unperturbed starts ("none").'
        )
    notes += [f"{name}: {block['changes']}." for name, block in perturbations.items()]
    errors = summary["errors"] + [e for block in perturbations.values() for e in block["errors"]]
    if errors:
        notes.append(
            f"{len(errors)} episodes failed for technical reasons and are counted nowhere: "
            f"{errors[0]}"
        )
    return notes
