import json
from pathlib import Path

import pytest

from vlarft.report.closed_loop import closed_loop_report

RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.fixture
def summary():
    """240 pairs: +17.9 points; above permuted, below cloning, the action-L1 reward touches 0."""
    return json.loads((RESULTS / "success-controls.json").read_text())


def test_a_rise_that_a_control_reaches_too_is_not_praised(summary):
    report = closed_loop_report(Path("run"), summary)
    assert report.verdict == (
        "Success rises by +17.9 points (95% interval +5.0 to +31.2, 240 pairs). "
        "It ends above permuted; not clearly apart from actions; below cloning."
    )
    assert report.tone == "neutral"


@pytest.mark.parametrize("names", [[], ["permuted"]])
def test_a_rise_above_every_control_is_praised(summary, names):
    summary["controls"] = [c for c in summary["controls"] if c["minus"] in names]
    report = closed_loop_report(Path("run"), summary)
    assert report.verdict.endswith("It ends above permuted." if names else "240 pairs).")
    assert report.tone == "good"


def test_a_control_of_too_few_pairs_is_not_beaten(summary):
    summary["controls"] = [c | {"interval": None} for c in summary["controls"]]
    report = closed_loop_report(Path("run"), summary)
    assert "It ends not clearly apart from permuted and actions and cloning." in report.verdict
    assert report.tone == "neutral"
