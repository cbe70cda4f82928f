"""Tables and plots of results: an HTML page, markdown, and the table of the README."""

from collections.abc import Sequence
from pathlib import Path

from vlarft.bench.cases import find_case
from vlarft.bench.results import BaselineResult, Result
from vlarft.bench.roofline import roofline
from vlarft.files import replace_block
from vlarft.report.data import Chart, Colour, Figure, Headline, ReportData, Series, TableData
from vlarft.report.html import render

_COLOURS: tuple[Colour, ...] = ("treatment", "second", "third", "fourth", "control")
_COLUMNS = ["case", "stage", "backend, dtype", "seconds", "trajectories/s", "of the limit"]


def engine_rows(result: Result) -> list[list[str]]:
    """Engine and baselines of one result: name, seconds, ratio, range, notes."""
    parts = ", ".join(f"{name} {s:.3g} s" for name, s in result.parts.items())
    rows = [["engine", f"{result.seconds.median:.4g}", "1", "", parts]]
    for name, b in result.baselines.items():
        if b.skipped:
            rows.append([name, "", "", "", f"left out: {b.skipped}"])
            continue
        known = b.ratio is not None
        rows.append(
            [
                name,
                f"{b.seconds:.4g}",
                f"{b.ratio:.2f}" if known else "",
                f"{b.ratio_min:.2f} .. {b.ratio_max:.2f}" if known else "",
                "; ".join(_notes(b)),
            ]
        )
    return rows


def _notes(b: BaselineResult) -> list[str]:
    notes = ["sampled"] if b.sampled else []
    notes += [f"{name} {ratio:.2f}" for name, ratio in b.part_ratios.items()]
    if b.compile_seconds:
        notes.append(f"compiled in {b.compile_seconds:.0f} s")
    if why := b.notes.get("not_compiled_because"):
        notes.append(f"not compiled: {why}")
    if b.ratio is None:
        notes.append(f"computed something else: {b.check}")
    return notes


def summary_table(results: Sequence[Result]) -> TableData:
    """One row a result: time, share of the limit, and how many times each baseline takes."""
    names = list(dict.fromkeys(name for r in results for name in r.baselines))
    rows = []
    for r in results:
        ratios = []
        for name in names:
            b = r.baselines.get(name)
            text = "" if b is None or b.ratio is None else f"{b.ratio:.2f}x"
            ratios.append(text + (" *" if text and b is not None and b.sampled else ""))
        rows.append(
            [
                r.case,
                r.stage,
                f"{r.backend}, {r.dtype}",
                f"{r.seconds.median:.3g}",
                f"{r.trajectories_per_second:.3g}",
                f"{100 * r.share_of_limit:.0f}%",
                *ratios,
            ]
        )
    return TableData(
        "Engine and baselines",
        [*_COLUMNS, *names],
        rows,
        "A baseline's figure is how many times longer it takes, the median over rounds measured in "
        "turns. * sampled: some passes were measured and scaled by their counts.",
    )


def details_table(results: Sequence[Result]) -> TableData:
    """One row an engine or baseline, with ranges and parts."""
    rows = [[r.name, *row] for r in results for row in engine_rows(r)]
    columns = ["result", "", "seconds", "ratio", "min .. max", "notes"]
    return TableData("Ratios with their ranges", columns, rows)


def limits_table(results: Sequence[Result]) -> TableData:
    """Rates measured in each run, and memory against the plan."""
    rows = [
        [
            r.name,
            f"{r.limits['read_gbps']:.1f}",
            f"{r.limits['matmul_gflops']:.0f}",
            f"{r.bytes / 1e9:.3g}",
            f"{r.flops / 1e9:.4g}",
            f"{r.limit_seconds:.3g}",
            f"{r.peak_bytes / 1e6:.0f}",
            f"{r.planned_bytes / 1e6:.0f}",
            f"{r.rounds_dropped}{' (busy)' if r.disturbed else ''}",
            r.output_hash or "",
        ]
        for r in results
    ]
    columns = ["result", "GB/s", "GFLOP/s", "GB", "GFLOP", "floor s", "peak MB", "planned MB"]
    return TableData(
        "Limits and memory",
        [*columns, "dropped rounds", "output"],
        rows,
        "Rates are the best of the run; the floor takes every byte and every multiplication once.",
    )


def markdown(results: Sequence[Result]) -> str:
    """All tables and what they were measured on."""
    tables = [summary_table(results), details_table(results), limits_table(results)]
    parts = ["# Benchmarks", "", *_origins(results), ""]
    for table in tables:
        parts += [f"## {table.title}", "", _markdown(table), ""]
        parts += [table.meaning, ""] if table.meaning else []
    return "\n".join(parts)


def _markdown(table: TableData) -> str:
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows
    )


def _machine(result: Result) -> str:
    m = result.machine
    versions = m.get("packages", {})
    return (
        f"{m.get('cpu', 'unknown processor')}, {result.threads} threads of {m.get('cores')} cores, "
        f"torch {versions.get('torch')}, transformers {versions.get('transformers')}"
    )


def _origins(results: Sequence[Result]) -> list[str]:
    """Each machine, and below it the commands that ran there."""
    commands: dict[str, dict[str, None]] = {}
    for r in results:
        line = f"- `{r.command}`, commit {r.machine.get('commit')}"
        commands.setdefault(_machine(r), {})[line] = None
    return [text for machine, lines in commands.items() for text in (f"{machine}:", "", *lines)]


def update_readme(path: Path, results: Sequence[Result]) -> None:
    """Replace what stands between the markers by the summary table and its origin.

    Raises:
        DataError: the file is missing, or its markers are.
    """
    table = summary_table(results)
    body = "\n".join([_markdown(table), "", table.meaning, "", *_origins(results)])
    replace_block(path, "bench", body)


def write_html(results: Sequence[Result], path: Path, command: str) -> None:
    """One page with tables and plots."""
    path.write_text(render(report_data(results, command)), encoding="utf-8")


def report_data(results: Sequence[Result], command: str) -> ReportData:
    """What the page shows."""
    best = max(results, key=lambda r: r.share_of_limit)
    ratios = [
        (b.ratio, name, r)
        for r in results
        for name, b in r.baselines.items()
        if b.ratio is not None
    ]
    headlines = [
        Headline(
            "closest to the limit",
            f"{100 * best.share_of_limit:.0f}%",
            f"{best.name}: floor {best.limit_seconds:.3g} s, measured {best.seconds.median:.3g} s.",
        )
    ]
    for name in dict.fromkeys(name for _, name, _ in ratios):
        low, high = (pick(x for x, n, _ in ratios if n == name) for pick in (min, max))
        text = f"{low:.3g}x" if low == high else f"{low:.3g} to {high:.3g}x"
        headlines.append(Headline(f"time of {name} / engine", text, "Over all cases below."))
    rollouts = [r for r in results if r.stage == "rollout"]
    return ReportData(
        title="vlarft benchmarks",
        subtitle="; ".join(dict.fromkeys(map(_machine, results))),
        verdict=f"{len(results)} results; the engine takes {_worst(ratios)}.",
        headlines=headlines[:6],
        charts=[c for axis in ("N", "P", "T") if (c := throughput_chart(results, axis))],
        figures=[
            Figure(
                "Roofline",
                roofline(results),
                "Operations a second against operations a byte, over whole stages; the roof is "
                "what the runs measured. Passes differ in intensity, so a floor lies below it.",
            )
        ],
        tables=[summary_table(results), details_table(results), limits_table(results)],
        seconds=rollouts[-1].parts if rollouts else {},
        environment=results[-1].machine,
        command=command,
        notes=[
            "Engine and baselines were measured in turns in one process; ratios are medians of "
            "per-round ratios. Rounds in which the machine's own rates fell below 85% of the run's "
            "best were repeated.",
            "Baselines drew the same tokens, or tokens that rounding explains; otherwise no ratio "
            "is given.",
        ],
    )


def _worst(ratios: Sequence[tuple[float, str, Result]]) -> str:
    if not ratios:
        return "no baseline along"
    ratio, name, r = min(ratios, key=lambda item: item[0])
    if ratio < 1:
        return f"longer than {name} in {r.name} ({ratio:.2f}x)"
    return f"at most 1/{ratio:.2f} of the time of every baseline"


def throughput_chart(results: Sequence[Result], axis: str) -> Chart | None:
    """Trajectories a second against N, P or T with the other two fixed; None for no sweep."""
    groups: dict[tuple[object, ...], list[tuple[float, float]]] = {}
    for r in results:
        case = find_case(r.case)
        sizes = {"N": case.rollouts, "P": case.scenes, "T": case.frames}
        x = float(sizes.pop(axis))
        fixed = ", ".join(f"{k} {v}" for k, v in sizes.items())
        groups.setdefault((case.preset, r.stage, r.backend, r.dtype, fixed), []).append(
            (x, r.trajectories_per_second)
        )
    sweeps = {k: sorted(points) for k, points in groups.items() if len({x for x, _ in points}) > 1}
    if not sweeps:
        return None
    words = {"N": "rollouts a scene", "P": "scenes", "T": "frames"}[axis]
    return Chart(
        title=f"Throughput against {words}",
        unit="trajectories/s",
        meaning="Higher is better. " + "; ".join(" ".join(map(str, key)) for key in sweeps),
        series=[
            Series(f"{key[1]} {key[3]}", points, colour)
            for (key, points), colour in zip(sweeps.items(), _COLOURS, strict=False)
        ],
        x_label=axis,
        zero=True,
    )
