"""What the report of a pre-training run says: figures in words, and grouped curves."""

from dataclasses import dataclass
from typing import Any

from vlarft.eval.world_model import METHODS, REGIONS
from vlarft.report.data import Chart, Colour, Headline, ReportData, Series, is_number, points_of
from vlarft.report.html import duration

Records = list[dict[str, Any]]
METHOD_NAMES = ("imagined", "swapped", "copy", "tokenizer")
METHOD_COLOURS: tuple[Colour, ...] = ("treatment", "second", "control", "third")


@dataclass(frozen=True, slots=True)
class Figure:
    """A validation figure worth a headline.

    Attributes:
        name: in `summary.json` under `validation`.
        label: a few words.
        form: how the value is printed.
        meaning: one sentence for a person who does not know the method.
    """

    name: str
    label: str
    form: str
    meaning: str


HEADLINES: dict[str, tuple[Figure, ...]] = {
    "tokenizer": (
        Figure("psnr", "Reconstruction", "{:.2f} dB", "PSNR of later frames. More is better."),
        Figure(
            "psnr_moving",
            "Where something moves",
            "{:.2f} dB",
            "The same over pixels that differ from the given frame; blur shows here first.",
        ),
        Figure("lpips", "LPIPS", "{:.4f}", "Perceptual distance. Less is better."),
        Figure("codes_used", "Codes used", "{:.0%}", "Share of the frame codebook in use."),
    ),
    "world model": (
        Figure("loss", "Loss", "{:.3f} nats", "For each token of a recorded frame."),
        Figure(
            "loss_swapped_actions",
            "Loss, other actions",
            "{:.3f} nats",
            "With another window's actions. No more than the loss: actions are ignored.",
        ),
        Figure(
            "psnr_moving_over_swapped",
            "Over swapped actions",
            "{:+.2f} dB",
            "Free-running, last frame, moving pixels: gain of the right actions over others.",
        ),
        Figure(
            "psnr_moving_over_copy",
            "Over copying",
            "{:+.2f} dB",
            "Free-running, last frame, moving pixels: gain over the unchanged given frame.",
        ),
    ),
    "encoder": (
        Figure("target_median_m", "Target", "{:.4f} m", "Median distance from the true place."),
        Figure(
            "target_near", "Found", "{:.1%}", "Targets within 2 cm, about what a grasp forgives."
        ),
        Figure("goal_median_m", "Goal", "{:.4f} m", "Median distance from the true place."),
    ),
    "policy": (
        Figure("flow_loss", "Flow-matching loss", "{:.3f}", "What training minimises."),
        Figure(
            "action_l1",
            "Action error",
            "{:.3f}",
            "Mean difference of executed actions to the expert's, normalised units.",
        ),
        Figure("gripper_errors", "Wrong gripper", "{:.1%}", "Share of wrong gripper signs."),
    ),
    "success classifier": (
        Figure(
            "imagined_auc",
            "Imagined frames",
            "{:.3f} AUC",
            "Share of pairs of a solved and another frame that are ordered rightly.",
        ),
        Figure(
            "imagined_auc_near",
            "Just before success",
            "{:.3f} AUC",
            "The same, against frames of the last seconds before success only.",
        ),
        Figure(
            "imagined_recall",
            "Solved frames found",
            "{:.0%}",
            "Of imagined ones, in episodes that did not set the threshold.",
        ),
        Figure(
            "imagined_accepted",
            "False alarms",
            "{:.1%}",
            "Share of the other imagined frames of these episodes that count as solved.",
        ),
    ),
}


def pretraining_report(name: str, summary: dict[str, Any], metrics: Records) -> ReportData:
    """Report of a finished run, or with an empty `summary` of one that is going on.

    Args:
        name: of the run folder.
        summary: content of `summary.json`.
        metrics: of `metrics.jsonl`.
    """
    stage = summary.get("stage", "")
    last = metrics[-1]["step"] if metrics else summary.get("steps", 0)
    hint = (
        " Whether it is good enough, vlarft eval world-model tells."
        if stage == "world model"
        else ""
    )
    return ReportData(
        title=f"Pre-training of the {stage}" if stage else f"Pre-training: {name}",
        subtitle=_data(summary) if stage else f"{last} steps recorded.",
        verdict=(
            f"Trained for {last} steps.{hint}"
            if stage
            else f"Not finished: {last} steps recorded. The command with --resume goes on."
        ),
        headlines=_headlines(stage, summary, metrics),
        charts=_charts(metrics),
        notes=[
            "Figures in large type and curves named validation are of the averaged weights, on "
            "validation episodes.",
            "Every figure is defined in docs/metrics.md.",
        ],
    )


def _data(summary: dict[str, Any]) -> str:
    training, validation = summary["training"], summary["held_out"]
    if summary["stage"] == "encoder":
        return (
            f"{summary['steps']} steps of {summary['batch_size']} scenes, seed {summary['seed']}; "
            f"{training['windows']} training scenes of {training['episodes']} tasks, judged on "
            f"{validation['windows']} others."
        )
    return (
        f"{summary['steps']} steps of {summary['batch_size']} windows, seed {summary['seed']}; "
        f"{training['windows']} training windows of {training['episodes']} episodes, judged on "
        f"windows of {validation['episodes']} other episodes."
    )


def _headlines(stage: str, summary: dict[str, Any], metrics: Records) -> list[Headline]:
    if stage:
        found = summary["validation"]
        headlines = [
            Headline(f.label, _printed(f.form, found[f.name]), f.meaning)
            for f in HEADLINES[stage]
            if f.name in found
        ]
        time = duration(summary["seconds"])
        return [*headlines, Headline("Time", time, "In the training loop, validation included.")]
    validated = [r for r in metrics if any(k.startswith("validation_") for k in r)]
    if not validated:
        return []
    return [
        Headline(
            k.replace("_", " "),
            _printed("{:.4g}", v),
            f"At step {validated[-1]['step']}, averaged weights.",
        )
        for k, v in validated[-1].items()
        if is_number(v) and k != "step"
    ][:4]


def _printed(form: str, value: float) -> str:
    return form.format(value).replace("-", "−")


def _charts(metrics: Records) -> list[Chart]:
    """Training beside validation, methods beside each other, then everything else."""
    names = list(
        dict.fromkeys(k for r in metrics for k, v in r.items() if is_number(v) and k != "step")
    )
    charts, shown = [], set[str]()
    for name in names:
        other = f"validation_{name}"
        if other in names:
            series = [
                Series("training", points_of(metrics, name), "control"),
                Series("validation", points_of(metrics, other), "treatment"),
            ]
            meaning = "Training, and validation with averaged weights."
            charts.append(Chart(name.replace("_", " "), "", meaning, series))
            shown |= {name, other}
    for figure, title, unit in (
        ("psnr", "PSNR", "dB"),
        ("ssim", "SSIM", ""),
        ("lpips", "LPIPS", ""),
    ):
        for region in reversed(REGIONS):
            methods = [f"validation_{figure}_{region}_{method}" for method in METHODS]
            if not set(methods) <= set(names):
                continue
            series = [
                Series(label, points_of(metrics, name), colour)
                for name, label, colour in zip(methods, METHOD_NAMES, METHOD_COLOURS, strict=True)
            ]
            meaning = "Validation, last frame, free-running. " + (
                "Down is good." if figure == "lpips" else "Up is good."
            )
            charts.append(Chart(f"{title}, {region} pixels", unit, meaning, series))
            shown |= set(methods)
    for name in names:
        points = points_of(metrics, name)
        if name not in shown and len(points) > 1:
            part, _, rest = name.partition("validation_")
            title = (rest or part).replace("_", " ")
            meaning = "Validation, averaged weights." if rest else "Training."
            series = [Series("validation" if rest else "training", points)]
            charts.append(Chart(title, "", meaning, series))
    return charts
