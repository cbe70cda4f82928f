"""The report of `vlarft eval reward`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlarft.report.data import Chart, Check, Headline, Interval, ReportData, Series, TableData

Found = dict[str, Any]


def reward_report(run: Path, summary: Found) -> ReportData:
    """What the page says, from `summary.json`; configuration and environment are added later."""
    failed = sum(not check["holds"] for check in summary["checks"])
    return ReportData(
        title="Does the reward mean anything?",
        subtitle=(
            f"{summary['windows']} windows of recorded episodes, {summary['rollouts']} perturbed "
            f"action chunks around each, {summary['seeds']} noise seeds."
        ),
        verdict=(
            f"{failed} of {len(summary['checks'])} checks failed: this reward needs care."
            if failed
            else "Every check holds: the reward can be trusted."
        ),
        tone="bad" if failed else "good",
        headlines=_headlines(summary),
        intervals=_intervals(summary),
        checks=[Check(check["text"], check["holds"], "") for check in summary["checks"]],
        charts=_charts(summary),
        tables=list(_tables(summary)),
        seconds=summary.get("stage_seconds", {}),
        command=str(summary.get("command", f"vlarft report {run}")),
        notes=[
            "Around an expert the plain action error is a hard opponent: groups are made of four "
            "sizes of noise, which it sees without an error of its own.",
            "A rank correlation is Spearman's within a group, mean over groups: 1 orders every "
            "group rightly, 0 is chance.",
            "Horizon and uncertainty are shown and not judged. Every figure is defined in "
            "docs/metrics.md.",
        ],
    )


def _shared(summary: Found) -> Found:
    return next(group for group in summary["groups"] if group["noise"] == "shared")


def _headlines(summary: Found) -> list[Headline]:
    shared, simulated, outcomes = _shared(summary), summary["simulated"], summary["outcomes"]
    found = [
        Headline(
            "Due to the actions",
            f"{100 * shared['reliability']['value']:.0f}%",
            "Share of the reward's variance within a group that comes from the actions; the rest "
            "is the world model's noise.",
            _between(shared["reliability"]),
        ),
        Headline(
            "Order by action error",
            f"{shared['rank']['value']:.2f}",
            "Rank correlation of the imagined distance with the actions' own error.",
            _between(shared["rank"]),
        ),
    ]
    if simulated and (agreement := simulated["agreements"][0])["reward"]:
        found.append(
            Headline(
                "Order in the simulator",
                f"{agreement['reward']['value']:.2f}",
                f"Rank correlation with what the simulator does: {agreement['name']}.",
                _between(agreement["reward"]),
            )
        )
    if outcomes:
        area = next(iter(outcomes["areas"].values()))
        found.append(
            Headline(
                "Failures told apart",
                f"{area['value']:.2f} AUC",
                "Share of pairs in which the solved episode ends nearer to solved ones.",
                _between(area),
            )
        )
    ceiling = "PSNR of what its tokenizer can draw at best, over moving pixels."
    return [*found, Headline("Ceiling", f"{summary['ceiling']:.1f} dB", ceiling)]


def _intervals(summary: Found) -> list[Interval]:
    """Rank correlations of the imagined reward beside each other."""
    named = [
        (f"action error, {group['noise']} noise", group["rank"]) for group in summary["groups"]
    ]
    simulated = summary["simulated"]
    named += [(a["name"], a["reward"]) for a in (simulated["agreements"] if simulated else [])]
    return [
        Interval(f"order by {name}", found["value"], found["interval"][0], found["interval"][1], "")
        for name, found in named
        if found
    ]


def _charts(summary: Found) -> list[Chart]:
    sizes = [(float(size), value) for size, value in summary["sensitivity"].items()]
    charts = [
        Chart(
            "Distance by size of the perturbation",
            "",
            "Imagined distance to the expert; it should grow.",
            [Series("imagined", sizes)],
            x_label="noise, of half an action's range",
            zero=True,
        )
    ]
    if horizon := summary["horizon"]:
        lines = (
            ("free-running", horizon["free"], "treatment"),
            ("restarted", horizon["restarted"], "second"),
            ("copy", horizon["copy"], "control"),
        )
        charts.append(
            Chart(
                "Chunk after chunk, moving pixels",
                "dB",
                "PSNR at the end of each chunk; free-running chunks start from the last imagined "
                "frame, restarted ones from the recorded frame. Up is good.",
                [
                    Series(name, list(zip(horizon["frames"], values, strict=True)), colour)  # type: ignore[arg-type]
                    for name, values, colour in lines
                ],
                x_label="imagined frame",
            )
        )
    return charts


def _tables(summary: Found) -> Iterator[TableData]:
    yield TableData(
        "Conventions",
        ["the data read", "nats a token", "to as recorded"],
        [
            [c["name"], f"{c['cross_entropy']:.3f}", _figure(c["difference"], "+.3f")]
            for c in summary["conventions"]
        ],
        "Surprise of the world model along the recorded frames. What fits has the least.",
    )
    yield TableData(
        "Signal against noise",
        ["noise", "variance due to actions", "order by action error"],
        [[g["noise"], _figure(g["reliability"]), _figure(g["rank"])] for g in summary["groups"]],
        "Shared: one noise for a whole group. Variance of one seed's rewards; order of their mean.",
    )
    if explored := summary.get("explored"):  # runs of earlier versions have none
        draws = f"mean of {explored['draws']} imaginations"
        yield TableData(
            "What the policy tries",
            ["rank correlation within groups, or share", "value"],
            [
                ["distance of one imagination, error of the way", _figure(explored["way"])],
                [f"distance, {draws}, error of the way", _figure(explored["way_averaged"])],
                ["distance of one imagination, action error", _figure(explored["actions"])],
                ["action error, error of the way", _figure(explored["actions_way"])],
                ["distances under two noise seeds", _figure(explored["agreement"])],
                *(
                    [f"share of the right push, {axis}", _figure(share)]
                    for axis, share in explored["pushes"].items()
                ),
                *(  # runs of earlier versions have none
                    [f"push where the right one is 0, {axis}", _figure(lean)]
                    for axis, lean in explored.get("leans", {}).items()
                ),
                *(
                    [
                        f"mean push, {axis}; right would be {explored['right_means'][axis]:.2f}",
                        _figure(mean),
                    ]
                    for axis, mean in explored.get("means", {}).items()
                ),
            ],
            f"{explored['windows']} groups of {explored['rollouts']} rollouts, drawn as "
            "fine-tuning draws them. The way is where a chunk sends the hand: the sum of its "
            f"displacements as executed, which differs by {explored['spread']:.2f} (standard "
            "deviation, raw units) within a group. The right push is that of a reward which knows "
            "the way; `along` is the expert's own direction, faster or slower. A push where the "
            "right one is 0 sends even a policy that is right astray.",
        )
    if entries := summary["entries"]:
        yield TableData(
            "What it sees",
            ["entry of an action", "distance when shifted"],
            [[name, _figure(found, ".4f")] for name, found in entries["distance"].items()],
            f"The expert's chunk with one entry of all actions shifted by a fifth of half its "
            f"range, the gripper turned; {entries['windows']} windows. What it does not see, "
            "fine-tuning does not hold.",
        )
    if simulated := summary["simulated"]:
        yield TableData(
            "Against the simulator",
            [
                "difference to the expert",
                "imagined reward",
                "action error",
                "simulator's frames",
                "as the tokenizer shows them",
                "groups",
            ],
            [
                [
                    a["name"],
                    *(_figure(a[k]) for k in ("reward", "actions", "frames", "tokenizer")),
                    str(a["groups"]),
                ]
                for a in simulated["agreements"]
            ],
            f"Rank correlations within groups, {simulated['windows']} windows. The simulator's "
            "frames are a perfect world model, as the tokenizer shows them a perfect transformer: "
            f"where the order is lost. Replayed experts differ by {simulated['replayed']:.5f} from "
            "their recordings.",
        )
    if outcomes := summary["outcomes"]:
        yield TableData(
            "Failures against successes",
            ["frame that is compared", "AUC"],
            [[name, _figure(area)] for name, area in outcomes["areas"].items()],
            f"{outcomes['failed']} failed and {outcomes['solved']} solved episodes, "
            f"{outcomes['pairs']} pairs of one task. The first frame is a control.",
        )
    if horizon := summary["horizon"]:
        columns = (horizon["frames"], horizon["free"], horizon["restarted"], horizon["copy"])
        yield TableData(
            "Horizon",
            ["frame", "free-running dB", "restarted dB", "copy dB"],
            [[str(at), *(f"{v:.2f}" for v in row)] for at, *row in zip(*columns, strict=True)],
            f"PSNR over moving pixels, {horizon['windows']} windows.",
        )
    if uncertainty := summary["uncertainty"]:
        names = {
            "moving": "error over moving pixels",
            "whole": "error over all pixels",
            "order": "order of the window's group",
        }
        quantiles = ", ".join(
            f"{value:.3f} at {100 * float(q):.0f}%" for q, value in uncertainty["quantiles"].items()
        )
        yield TableData(
            "Token entropy",
            ["rank correlation with", ""],
            [[words, _figure(uncertainty[name])] for name, words in names.items()],
            f"Quantiles over {uncertainty['windows']} windows, nats: {quantiles}.",
        )


def _figure(found: Found | None, form: str = ".2f") -> str:
    if found is None:
        return "–"
    low, high = found["interval"]
    text = f"{found['value']:{form}} ({low:{form}} to {high:{form}})"
    return text.replace("-", "\N{MINUS SIGN}")


def _between(found: Found) -> str:
    low, high = found["interval"]
    return f"95% interval {low:.2f} to {high:.2f}".replace("-", "\N{MINUS SIGN}")
