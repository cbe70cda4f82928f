"""The report of `vlarft ablate`."""

from pathlib import Path
from typing import Any

from vlarft.report.data import Headline, Interval, ReportData, TableData


def ablation_report(run: Path, summary: dict[str, Any]) -> ReportData:
    """What the page says, from `summary.json`; configuration and environment are added later."""
    rows = summary["rows"]
    base = next((row for row in rows if row["to_base"] is None), rows[0])
    clear = [row for row in rows if row["to_base"] and _excludes_zero(row["to_base"])]
    return ReportData(
        title="Ablations of reinforcement fine-tuning",
        subtitle=(
            f"{len(rows)} variations, {len(summary['seeds'])} seed(s) each, judged by the base's "
            "evaluation on the same validation windows."
        ),
        verdict=(
            f"{len(clear)} variations differ clearly from the base: "
            + ", ".join(f"{row['group']} {row['name']}" for row in clear)
            if clear
            else "No variation differs clearly from the base."
        ),
        tone="neutral",
        headlines=[
            Headline(
                "Base",
                _percent(base["distance"]["relative"]),
                "Change of the imagined distance to the expert; less is better.",
            )
        ],
        intervals=[
            Interval(
                f"{row['group']}: {row['name']}",
                row["distance"]["relative"],
                row["distance"]["interval"][0],
                row["distance"]["interval"][1],
                "%",
            )
            for row in rows
        ],
        tables=[_table(rows)],
        seconds=summary.get("stage_seconds", {}),
        command=str(summary.get("command", f"vlarft report {run}")),
    )


def _table(rows: list[dict[str, Any]]) -> TableData:
    return TableData(
        "Change from before to after",
        ["what varies", "variation", "distance", "minus the base's", "action L1", "minutes"],
        [
            [
                row["group"],
                row["name"],
                _words(row["distance"]),
                _words(row["to_base"], " points") if row["to_base"] else "the base",
                _words(row["action_l1"]),
                f"{row['seconds'] / 60:.1f}",
            ]
            for row in rows
        ],
        "95% intervals over episodes and seeds; pairs of windows with the same noise.",
    )


def _excludes_zero(change: dict[str, Any]) -> bool:
    low, high = change["interval"]
    return bool(low > 0 or high < 0)


def _words(change: dict[str, Any], unit: str = "%") -> str:
    low, high = (_percent(bound, "") for bound in change["interval"])
    return f"{_percent(change['relative'], unit)} ({low} to {high})"


def _percent(value: float, unit: str = "%") -> str:
    return f"{100 * value:+.1f}{unit}".replace("-", "\N{MINUS SIGN}")
