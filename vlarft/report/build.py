"""Run folder -> `ReportData` -> `report.html`. What is not in the folder is not in the report."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlarft.config import read_yaml
from vlarft.errors import DataError
from vlarft.eval.world_model import LABELS, METHODS, OVER_COPY_DB, OVER_SWAPPED_DB, all_frames
from vlarft.report.ablations import ablation_report
from vlarft.report.charts import amount
from vlarft.report.closed_loop import closed_loop_report
from vlarft.report.data import (
    Chart,
    Check,
    Colour,
    Headline,
    Interval,
    ReportData,
    Series,
    TableData,
    Tone,
    points_of,
)
from vlarft.report.html import duration, render
from vlarft.report.pretraining import pretraining_report
from vlarft.report.reward import reward_report
from vlarft.report.scenes import load_scenes

Summary = dict[str, Any]
Record = dict[str, Any]
REQUIRED_CHANGE = -0.10  # what a run of 50 steps is asked for: 10% less imagined distance


def write_report(run: Path) -> Path:
    """Write `run/report.html` from the files of a run.

    Raises:
        DataError: the folder is missing or holds neither summary.json nor metrics.jsonl.
    """
    path = run / "report.html"
    path.write_text(render(build_report(run)), encoding="utf-8")
    return path


def build_report(run: Path) -> ReportData:
    """Everything the report of a run shows.

    Args:
        run: folder of `vlarft demo`, `rft`, `train ...` or `eval ...`.

    Raises:
        DataError: the folder is missing or holds neither summary.json nor metrics.jsonl.
    """
    if not run.is_dir():
        raise DataError(f"{run}: no such run folder")
    summary = _json(run / "summary.json")
    metrics = read_metrics(run / "metrics.jsonl")
    if not summary and (arms := _unfinished_arms(run, metrics)):
        return _unfinished(run, arms)
    if not summary and not metrics:
        raise DataError(f"{run}: no summary.json and no metrics.jsonl, so this is not a run folder")
    builders: dict[str, Callable[[Path, Summary, list[Record]], ReportData]] = {
        "rft-experiment": _experiment,
        "rft": _single,
        "world-model": _world_model,
        "ablations": _ablations,
        "reward": _reward,
        "libero": _closed_loop,
        "libero-paired": _closed_loop,
    }
    return builders.get(str(summary.get("kind")), _pretraining)(run, summary, metrics)


def read_metrics(path: Path) -> list[Record]:
    """Objects of a metrics.jsonl; empty when there is none. A line cut off by a kill is left out.

    Raises:
        DataError: a line before the last is not JSON.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise DataError(f"{path}: line {number} is not JSON ({error.msg})") from error
    return records


# ---- reinforcement fine-tuning --------------------------------------------------------------


def _experiment(run: Path, summary: Summary, _metrics: list[Record]) -> ReportData:
    arms = _arms(run)
    seeds, steps = len(summary["seeds"]), summary["steps"]
    change, control, gap = (
        summary[key] for key in ("distance_change", "control_change", "difference")
    )
    action = summary["action_l1_change"]
    lowered = change["relative"] < 0 and change["interval"][1] < 0
    beats = gap["interval"][1] < 0
    world = summary.get("world_model")
    headlines = _distance_headlines(summary, credited=beats)
    headlines.insert(
        1,
        Headline(
            "Against the control",
            _points(gap["relative"]),
            "The control had the same anchor, data, steps and seeds, but its advantages were "
            "shuffled within each "
            "group. What is left is due to the reward alone.",
            _between(gap["interval"], "points"),
            "good" if beats else "neutral",
        ),
    )
    checks = [
        Check(
            f"Imagined distance falls by at least 10% in {steps} steps",
            change["relative"] <= REQUIRED_CHANGE and lowered,
            f"{amount(change['relative'], '%')}, {_between(change['interval'])}",
        ),
        Check(
            "It falls more than in the control",
            beats,
            f"{_points(gap['relative'])}, {_between(gap['interval'], 'points')}",
        ),
        Check(
            "Actions do not move away from the expert's",
            action["relative"] <= 0 or action["interval"][0] <= 0,
            f"action L1 {amount(action['relative'], '%')}, {_between(action['interval'])}",
        ),
    ]
    if world:
        checks += _world_checks(world)
    intervals = [
        _effect("Fine-tuned by the reward", change["relative"], change["interval"]),
        _effect("Control (shuffled)", control["relative"], control["interval"], colour="control"),
        _effect("Difference of the two", gap["relative"], gap["interval"], colour="second"),
    ]
    if beats and lowered:
        verdict = (
            f"Fine-tuning inside the world model works here: the policy's imagined futures moved "
            f"{-100 * change['relative']:.1f}% closer to the expert's on scenes it never trained "
            "on, "
            f"{-100 * gap['relative']:.1f} points more than without a meaningful reward."
        )
    elif lowered:
        verdict = (
            f"The imagined distance fell by {-100 * change['relative']:.1f}%, but not clearly more "
            "than in the control: "
            "the reward cannot be credited with it."
        )
    else:
        verdict = "Fine-tuning did not clearly bring imagined futures closer to the expert's."
    tone: Tone = "good" if beats and lowered else ("neutral" if lowered else "bad")
    timed = [r for runs in arms.values() for records in runs for r in records]
    return ReportData(
        title="Reinforcement fine-tuning in imagination",
        subtitle=(
            f"{steps} steps with {seeds} {'seed' if seeds == 1 else 'seeds'}, treatment and "
            "control; judged on "
            f"{summary['windows']} windows of {summary['episodes']} validation episodes that "
            "training never saw."
        ),
        verdict=verdict,
        tone=tone,
        headlines=headlines,
        intervals=intervals,
        checks=checks,
        scenes=[s.scene() for s in load_scenes(run)],
        charts=_rft_charts(arms),
        tables=[_seed_table(summary), *([_quality_table(world)] if world else [])],
        seconds=_stage_seconds(timed, summary),
        configuration=_text(run / "config.yaml"),
        environment=_json(run / "environment.json"),
        command=str(summary.get("command", f"vlarft report {run}")),
        notes=_rft_notes(summary),
    )


def _unfinished_arms(run: Path, metrics: list[Record]) -> dict[str, list[list[Record]]]:
    """Metrics of the arms of a fine-tuning without a summary; empty for other runs."""
    arms = _arms(run)
    if metrics and "noise_floor" in metrics[0]:  # step 0 of one fine-tuning run
        permuted = _settings(run).get("control") == "permuted"
        arms["control" if permuted else "treatment"].append(metrics)
    return arms if any(arms.values()) else {}


def _unfinished(run: Path, arms: dict[str, list[list[Record]]]) -> ReportData:
    folder = next(iter(sorted(run.glob("seed-*/*"))), run)
    wanted = _settings(folder).get("steps")
    done = [
        f"{len(runs)} {arm} {'run' if len(runs) == 1 else 'runs'} at step "
        + ", ".join(str(records[-1]["step"]) for records in runs)
        for arm, runs in arms.items()
        if runs
    ]
    timed = [r for runs in arms.values() for records in runs for r in records]
    return ReportData(
        title="Reinforcement fine-tuning in imagination",
        subtitle=f"Not finished: {'; '.join(done)} of {wanted}.",
        verdict="This run is not finished, so there are no figures with intervals yet. The command "
        "that started it goes on from its last checkpoint.",
        charts=_rft_charts(arms),
        seconds=_stage_seconds(timed, {}),
        configuration=_text(folder / "config.yaml"),
        environment=_json(run / "environment.json"),
        command=f"vlarft report {run}",
    )


def _arms(run: Path) -> dict[str, list[list[Record]]]:
    """Metrics of an experiment's runs, by arm; runs that have not begun are left out."""
    return {
        arm: [
            records
            for path in sorted(run.glob(f"seed-*/{arm}/metrics.jsonl"))
            if (records := read_metrics(path))
        ]
        for arm in ("treatment", "control")
    }


def _single(run: Path, summary: Summary, metrics: list[Record]) -> ReportData:
    change = summary["distance_change"]
    lowered = change["interval"][1] < 0
    arm = "control" if summary["control"] == "permuted" else "treatment"
    return ReportData(
        title="Reinforcement fine-tuning in imagination",
        subtitle=(
            f"One {arm} run of {summary['steps']} steps, seed {summary['seed']}; judged on "
            f"{summary['windows']} windows of "
            f"{summary['episodes']} validation episodes that training never saw."
        ),
        verdict=(
            f"The imagined distance to the expert changed by {amount(change['relative'], '%')}. "
            "Without a control this does "
            "not yet show that the reward did it: the behaviour-cloning anchor alone lowers the "
            "distance."
        ),
        tone="neutral",
        headlines=_distance_headlines(summary),
        intervals=[_effect("Imagined distance", change["relative"], change["interval"])],
        checks=[Check("The imagined distance falls", lowered, _between(change["interval"]))],
        scenes=[s.scene() for s in load_scenes(run)],
        charts=_rft_charts({arm: [metrics], "control" if arm == "treatment" else "treatment": []}),
        seconds=_stage_seconds(metrics, summary),
        configuration=_text(run / "config.yaml"),
        environment=_json(run / "environment.json"),
        command=str(summary.get("command", f"vlarft report {run}")),
        notes=_rft_notes(summary),
    )


def _distance_headlines(summary: Summary, credited: bool = False) -> list[Headline]:
    """Headlines of a run; less distance is good news only when the control shows why."""
    change, action = summary["distance_change"], summary["action_l1_change"]
    lowered, raised = change["interval"][1] < 0, change["interval"][0] > 0
    tone: Tone = "bad" if raised else ("good" if lowered and credited else "neutral")
    return [
        Headline(
            "Imagined distance",
            amount(change["relative"], "%"),
            f"From {summary['distance_before']:.4f} to {summary['distance_after']:.4f}: how far "
            "the imagined pictures of the "
            "policy's actions are from those of the expert's. Less is better.",
            _between(change["interval"]),
            tone,
        ),
        Headline(
            "Action error",
            amount(action["relative"], "%"),
            f"Mean difference to the expert's actions, {summary['action_l1_before']:.4f} before "
            "and "
            f"{summary['action_l1_after']:.4f} after, in raw LIBERO units. It must not rise while "
            "pictures get closer.",
            _between(action["interval"]),
            "good"
            if action["interval"][1] < 0
            else ("bad" if action["interval"][0] > 0 else "neutral"),
        ),
        Headline(
            "Time",
            duration(summary["seconds"]),
            "Steps and evaluations of all runs in this report, on the machine described below.",
        ),
    ]


_CURVES = (
    (
        "validation_distance",
        "Imagined distance, validation",
        "",
        "L1 + LPIPS to the expert's imagination on episodes that training never saw. Down is good.",
    ),
    (
        "validation_action_l1",
        "Action error, validation",
        "raw units",
        "Mean difference to the expert's actions. It must not rise.",
    ),
    (
        "reward_mean",
        "Reward in training",
        "",
        "Minus the distance of sampled rollouts. Start states differ from step to step, so it is "
        "noisy. Up is good.",
    ),
    (
        "group_spread",
        "Spread within a group",
        "",
        "Standard deviation of the reward among rollouts of one start state: the signal that "
        "advantages are made of.",
    ),
    (
        "sigma_mean",
        "Exploration noise",
        "sigma",
        "Mean standard deviation of the policy's flow steps.",
    ),
    (
        "ratio_max",
        "Largest importance ratio",
        "",
        "1 at the first update of a batch by construction; far from 1, updates are too large.",
    ),
    (
        "anchor_loss",
        "Behaviour-cloning anchor",
        "loss",
        "Flow-matching loss on expert actions; keeps the policy near demonstrations.",
    ),
    ("gradient_norm", "Gradient norm", "", "Global norm before clipping."),
)


def _rft_charts(arms: dict[str, list[list[Record]]]) -> list[Chart]:
    charts = []
    for name, title, unit, meaning in _CURVES:
        series = []
        for arm in ("control", "treatment"):  # the treatment is drawn last, on top
            runs = [line for records in arms[arm] if (line := points_of(records, name))]
            if runs:
                series.append(
                    Series(
                        "fine-tuned" if arm == "treatment" else "control",
                        _mean_line(runs),
                        "treatment" if arm == "treatment" else "control",
                        runs if len(runs) > 1 else [],
                    )
                )
        if series and any(len(s.points) > 1 for s in series):
            charts.append(Chart(title, unit, meaning, series))
    return charts


def _seed_table(summary: Summary) -> TableData:
    rows = []
    for entry in summary["seeds"]:
        for arm, name in (("treatment", "fine-tuned"), ("control", "control")):
            one = entry[arm]
            rows.append(
                [
                    f"seed {entry['seed']}, {name}",
                    f"{one['distance_before']:.4f}",
                    f"{one['distance_after']:.4f}",
                    amount(one["distance_change"]["relative"], "%"),
                    amount(one["action_l1_change"]["relative"], "%"),
                    duration(one["seconds"]),
                ]
            )
    return TableData(
        "Each seed and arm",
        ["run", "distance before", "after", "change", "action L1", "time"],
        rows,
        "Validation figures. Seeds share the starting policy and differ in data order and noise.",
    )


def _rft_notes(summary: Summary) -> list[str]:
    net = {
        "lpips-alex": "AlexNet, which is bundled (the paper's is VGG-16)",
        "lpips-vgg": "VGG-16, as in the paper",
        "lpips-squeeze": "SqueezeNet (the paper's is VGG-16)",
        "tokenizer-features": "the tokenizer's own encoder (the paper's is VGG-16)",
    }
    return [
        "Distance = mean absolute pixel difference + LPIPS, averaged over frames; the LPIPS "
        "network is "
        f"{net.get(summary['metric'], summary['metric'])}.",
        "Policy and expert are imagined with the same noise, so the expert's distance to itself "
        "is exactly 0.",
        "Intervals are 95%, from a bootstrap that draws whole episodes and seeds with "
        "replacement, paired before and after.",
        "Scenes are spread evenly over validation windows, not chosen by result.",
        "An imagined distance is not a success rate: only execution in the simulator measures "
        "that.",
    ]


def _stage_seconds(records: list[Record], summary: Summary) -> dict[str, float]:
    stages: dict[str, float] = {}
    for record in records:
        for stage, seconds in record.get("seconds", {}).items():
            if stage != "total":
                stages[stage] = stages.get(stage, 0.0) + seconds
    stages |= summary.get("stage_seconds", {})
    rest = float(summary.get("seconds", 0.0)) - sum(
        s for stage, s in stages.items() if stage not in summary.get("stage_seconds", {})
    )
    if stages and rest > 0:
        stages["evaluation and checkpoints"] = rest
    return stages


# ---- world model ----------------------------------------------------------------------------


def _world_model(run: Path, summary: Summary, _metrics: list[Record]) -> ReportData:
    listens, frames = summary["listens_to_actions"], summary["frames"]
    headlines, intervals = [], []
    meanings = {
        (
            "copy",
            "moving",
        ): "Where something moves, how much better than not predicting motion at all.",
        (
            "swapped",
            "moving",
        ): "The same model with another scene's actions is this much worse: it uses its actions.",
        ("copy", "all"): "Over the whole picture, most of which never moves.",
    }
    for c in summary["comparisons"]:
        d, key = c["difference"], (c["against"], c["region"])
        name = {"copy": "over copying", "swapped": "over swapped actions"}[c["against"]]
        headlines.append(
            Headline(
                f"{c['region'].capitalize()} pixels, {name}",
                amount(d["value"], "dB"),
                meanings[key],
                f"95% interval {d['interval'][0]:+.2f} to {d['interval'][1]:+.2f} dB".replace(
                    "-", "−"
                ),
                "good" if d["interval"][0] > 0 else ("bad" if d["interval"][1] < 0 else "neutral"),
            )
        )
        intervals.append(
            _effect(
                f"{c['region'].capitalize()} pixels {name}",
                d["value"],
                d["interval"],
                "dB",
                "treatment" if c["region"] == "moving" else "control",
            )
        )
    charts = []
    for region in ("moving", "all"):
        for figure, title, unit in (("psnr", "PSNR", "dB"), ("lpips", "LPIPS", "")):
            if figure in summary["quality"]["copy"][region]:
                colours = dict(
                    zip(METHODS, ("treatment", "second", "control", "third"), strict=True)
                )
                short = dict(
                    zip(METHODS, ("imagined", "swapped", "copy", "tokenizer"), strict=True)
                )
                charts.append(
                    Chart(
                        f"{title}, {region} pixels",
                        unit,
                        "Against the recorded frame. "
                        + ("Up" if figure == "psnr" else "Down")
                        + " is good.",
                        [
                            Series(
                                short[m],
                                [
                                    (float(t), v)
                                    for t, v in enumerate(
                                        summary["quality"][m][region][figure], start=1
                                    )
                                ],
                                colours[m],  # type: ignore[arg-type]
                            )
                            for m in METHODS
                        ],
                        "imagined frame",
                    )
                )
    return ReportData(
        title="Imagination quality",
        subtitle=(
            f"{summary['windows']} windows of {summary['episodes']} validation episodes, {frames} "
            "frames imagined from one; "
            f"something moves in {summary['moving_windows']} of them."
        ),
        verdict=(
            f"The world model listens to its actions: at frame {frames} it is clearly better with "
            "the right ones."
            if listens
            else "The world model does not listen to its actions enough; rewards in it mean little."
        ),
        tone="good" if listens else "bad",
        headlines=headlines,
        intervals=intervals,
        checks=_world_checks(summary),
        charts=charts,
        tables=[_quality_table(summary)],
        seconds=summary.get("stage_seconds", {}),
        configuration=_text(run / "config.yaml"),
        environment=_json(run / "environment.json"),
        command=str(summary.get("command", f"vlarft report {run}")),
        notes=[
            f"Means over frames 1 to {frames}, all pixels: {all_frames(summary['quality'])}.",
            "Moving pixels: largest channel difference to the given frame above 0.1 in any "
            "recorded frame of the window.",
            "Swapped actions: the same frame and noise, with the actions of a window of another "
            "episode.",
            "PSNR is computed per window and averaged; the pooled variant, in summary.json, uses "
            "the mean error of all windows.",
        ],
    )


def _world_checks(summary: Summary) -> list[Check]:
    found = {(c["against"], c["region"]): c["difference"] for c in summary["comparisons"]}

    def evidence(d: dict[str, Any]) -> str:
        text = f"{d['value']:+.2f} dB, {d['interval'][0]:+.2f} to {d['interval'][1]:+.2f}"
        return text.replace("-", "−")

    copy, swapped, everything = (
        found[("copy", "moving")],
        found[("swapped", "moving")],
        found[("copy", "all")],
    )
    return [
        Check(
            f"World model: at least {OVER_COPY_DB:g} dB above copying where something moves",
            copy["value"] >= OVER_COPY_DB and copy["interval"][0] > 0,
            evidence(copy),
        ),
        Check(
            f"World model: at least {OVER_SWAPPED_DB:g} dB above itself with another scene's "
            "actions",
            swapped["value"] >= OVER_SWAPPED_DB and swapped["interval"][0] > 0,
            evidence(swapped),
        ),
        Check(
            "World model: not below copying over all pixels",
            everything["value"] >= 0,
            evidence(everything),
        ),
    ]


def _quality_table(summary: Summary) -> TableData:
    figures = [("psnr", "PSNR dB", 2), ("ssim", "SSIM", 3)] + (
        [("lpips", "LPIPS", 4)] if summary["metric"] else []
    )
    columns = ["method"] + [
        f"{region}: {name}" for region in ("all", "moving") for _, name, _ in figures
    ]
    rows = [
        [LABELS[m]]
        + [
            f"{summary['quality'][m][r][key][-1]:.{n}f}"
            for r in ("all", "moving")
            for key, _, n in figures
        ]
        for m in METHODS
    ]
    return TableData(
        f"World model at frame {summary['frames']}",
        columns,
        rows,
        f"{summary['windows']} validation windows, free-running. The tokenizer's reconstruction "
        "is the ceiling.",
    )


def _closed_loop(run: Path, summary: Summary, _metrics: list[Record]) -> ReportData:
    return _with_origin(run, closed_loop_report(run, summary))


def _ablations(run: Path, summary: Summary, _metrics: list[Record]) -> ReportData:
    return _with_origin(run, ablation_report(run, summary))


def _reward(run: Path, summary: Summary, _metrics: list[Record]) -> ReportData:
    return _with_origin(run, reward_report(run, summary))


def _with_origin(run: Path, data: ReportData) -> ReportData:
    return replace(
        data,
        configuration=_text(run / "config.yaml"),
        environment=_json(run / "environment.json"),
    )


def _pretraining(run: Path, summary: Summary, metrics: list[Record]) -> ReportData:
    return replace(
        pretraining_report(run.name, summary, metrics),
        configuration=_text(run / "config.yaml"),
        environment=_json(run / "environment.json"),
        command=str(summary.get("command", f"vlarft report {run}")),
    )


# ---- helpers --------------------------------------------------------------------------------


def _mean_line(runs: list[list[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Mean over runs at the steps that all of them have."""
    tables = [dict(run) for run in runs]
    steps = sorted(set.intersection(*(set(t) for t in tables)))
    return [(x, sum(t[x] for t in tables) / len(tables)) for x in steps]


def _effect(
    label: str, value: float, interval: list[float], unit: str = "%", colour: Colour = "treatment"
) -> Interval:
    low, high = interval
    return Interval(label, value, low, high, unit, colour)


def _points(share: float) -> str:
    return f"{100 * share:+.1f} points".replace("-", "−")


def _between(interval: list[float], unit: str = "%") -> str:
    low, high = (f"{100 * bound:+.1f}" for bound in interval)
    return f"95% interval {low} to {high}{'%' if unit == '%' else ' ' + unit}".replace("-", "−")


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not valid JSON ({error.msg}, line {error.lineno})") from error
    return content


def _settings(run: Path) -> dict[str, Any]:
    """Content of the run's config.yaml; empty when it has none."""
    path = run / "config.yaml"
    return read_yaml(path) if path.exists() else {}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""
