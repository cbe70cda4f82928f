"""The page of `vlarft eval reward`, from a summary written by hand."""

import json

import pytest

from vlarft.report.build import build_report, write_report


def figure(value, low=None, high=None):
    return {"value": value, "interval": [value - 0.1 if low is None else low, high or value + 0.1]}


@pytest.fixture
def summary():
    def agreement(name, reward):
        others = {"actions": figure(0.8), "frames": figure(0.7), "tokenizer": figure(0.6)}
        return {"name": name, "reward": reward, "groups": 4, **others}

    return {
        "kind": "reward",
        "trustworthy": False,
        "checks": [
            {"holds": True, "text": "conventions: 0.391 nats a token as recorded"},
            {"holds": False, "text": "tokenizer's ceiling: 20.2 dB <asked: 22>"},
        ],
        "windows": 48,
        "rollouts": 8,
        "seeds": 4,
        "conventions": [
            {"name": "as recorded", "cross_entropy": 0.391, "difference": None},
            {"name": "gripper flipped", "cross_entropy": 0.6, "difference": figure(0.226)},
        ],
        "groups": [
            {"noise": "shared", "reliability": figure(0.54), "rank": figure(0.48)},
            {"noise": "independent", "reliability": figure(0.5), "rank": figure(-0.36)},
        ],
        "sensitivity": {"0.05": 0.0046, "0.4": 0.0094},
        "ceiling": 20.24,
        "horizon": {
            "frames": [8, 16], "free": [19.0, 17.8], "restarted": [19.0, 19.8],
            "copy": [14.8, 13.9], "windows": 40,
        },
        "uncertainty": {
            "windows": 48, "quantiles": {"0.1": 0.33, "0.9": 0.53}, "moving": None,
            "whole": figure(0.51), "order": figure(-0.22),
        },
        "simulated": {
            "agreements": [
                agreement("frames after 8 actions", figure(0.49, 0.39, 0.58)),
                agreement("success", None),
            ],
            "windows": 48, "replayed": 0.00012,
        },
        "explored": {
            "windows": 48, "rollouts": 16, "draws": 4, "way": figure(0.53),
            "way_averaged": figure(0.57), "agreement": figure(0.8), "actions": figure(0.4),
            "actions_way": figure(0.57), "spread": 0.61,
            "pushes": {"x": figure(0.2), "along": figure(1.0)}, "leans": {"x": figure(-0.04)},
            "means": {"x": figure(0.02)}, "right_means": {"x": 0.28},
        },
        "entries": {"windows": 48, "distance": {"dx": figure(0.0028), "dy": figure(0.0064)}},
        "outcomes": {
            "solved": 78, "failed": 18, "pairs": 140,
            "areas": {"imagined last frame": figure(0.97), "first frame": figure(0.26)},
        },
        "stage_seconds": {"groups": 60.0},
        "command": "vlarft eval reward --run runs/reward",
    }  # fmt: skip


def test_verdict_checks_and_a_table_for_each(summary, tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    report = build_report(tmp_path)
    assert report.verdict == "1 of 2 checks failed: this reward needs care."
    assert report.tone == "bad"
    assert [check.passed for check in report.checks] == [True, False]
    assert [h.value for h in report.headlines] == ["54%", "0.48", "0.49", "0.97 AUC", "20.2 dB"]
    assert report.headlines[2].interval == "95% interval 0.39 to 0.58"
    assert [i.label for i in report.intervals] == [
        "order by action error, shared noise", "order by action error, independent noise",
        "order by frames after 8 actions",
    ]  # fmt: skip
    tables = {table.title: table for table in report.tables}
    assert list(tables) == [
        "Conventions", "Signal against noise", "What the policy tries", "What it sees",
        "Against the simulator", "Failures against successes", "Horizon", "Token entropy",
    ]  # fmt: skip
    assert tables["Conventions"].rows[1][2] == "+0.226 (+0.126 to +0.326)"
    assert [row[1][:4] for row in tables["What the policy tries"].rows] == [
        "0.53", "0.57", "0.40", "0.57", "0.80", "0.20", "1.00", "−0.0", "0.02",
    ]  # fmt: skip
    assert tables["Against the simulator"].rows[1][1:] == [
        "–", "0.80 (0.70 to 0.90)", "0.70 (0.60 to 0.80)", "0.60 (0.50 to 0.70)", "4",
    ]  # fmt: skip
    assert tables["Horizon"].rows[1] == ["16", "17.80", "19.80", "13.90"]
    assert tables["Token entropy"].rows[0][1] == "–"
    assert [series.name for series in report.charts[1].series] == [
        "free-running", "restarted", "copy",
    ]  # fmt: skip
    page = write_report(tmp_path).read_text()
    assert "ceiling: 20.2 dB &lt;asked: 22&gt;" in page
    assert "src=" not in page
    assert "http" not in page


def test_parts_that_were_not_measured_are_left_out(summary, tmp_path):
    del summary["explored"]  # as earlier versions wrote it
    summary |= dict.fromkeys(("horizon", "uncertainty", "entries", "simulated", "outcomes"))
    summary["checks"] = summary["checks"][:1]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    report = build_report(tmp_path)
    assert report.verdict == "Every check holds: the reward can be trusted."
    assert report.tone == "good"
    assert [table.title for table in report.tables] == ["Conventions", "Signal against noise"]
    assert len(report.charts) == 1
    assert len(report.headlines) == 3
