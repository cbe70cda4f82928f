"""Result files, comparisons and reports."""

import json

import pytest

from vlarft.bench import report
from vlarft.bench.results import compare, dump, load, verdict
from vlarft.errors import DataError


def test_written_and_read(result, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(dump([result()]))
    assert load(path) == [result()]
    entry = json.loads(path.read_text())[0]
    wanted = (
        "case stage backend device dtype seconds share_of_limit limit_seconds baselines limits "
        "bytes flops output_hash trajectories_per_second peak_bytes planned_bytes stats machine "
        "command"
    )
    assert set(wanted.split()) <= entry.keys()
    assert {"median", "p20", "p80", "runs"} == entry["seconds"].keys()
    assert {"seconds", "ratio", "ratio_min", "ratio_max", "rounds", "sampled"} <= entry[
        "baselines"
    ]["hf"].keys()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "expected an array"),
        ('{"a": 1}', "expected an array"),
        ('[{"case": "tiny"}]', "stage: Field required"),
    ],
)
def test_damaged_files(text, words, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        load(path)


def test_compare(result):
    found = compare([result(2.0), result(case="tiny")], [result(1.0), result(stage="decode")])
    (difference,) = found.differences
    assert difference.ratio == 2.0
    assert difference.verdict == "faster"
    assert difference.low < 2 < difference.high
    assert not difference.warnings
    assert found.only_a == ["tiny imagine native cpu float32"]
    assert found.only_b == ["small-1x16 decode native cpu float32"]


def test_compare_says_what_differs(result):
    other = result(
        machine={"cpu": "another", "cores": 4}, output_hash="f", threads=4, seed=1, disturbed=True
    )
    text = " ".join(compare([result()], [other]).differences[0].warnings)
    for words in ("other machine", "other output", "2 against 4", "other seed", "busy"):
        assert words in text


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [(1.01, 2, "faster"), (0.5, 0.99, "slower"), (0.9, 1.1, "ambiguous"), (1, 2, "ambiguous")],
)
def test_verdict(low, high, says):
    assert verdict(low, high) == says


def test_reports(result, tmp_path):
    results = [result(case=f"small-1x{n}", median=n / 8) for n in (4, 16)] + [
        result(case="small-4x16", stage="rollout")
    ]
    text = report.markdown(results)
    assert "| small-1x4 | imagine | native, float32 | 0.5 |" in text
    assert "2.00x *" in text
    assert "left out: its caches take 9 GiB" in text
    report.write_html(results, tmp_path / "r.html", "vlarft bench report")
    page = (tmp_path / "r.html").read_text()
    for words in ("Throughput against rollouts", "Roofline", "<svg", "Ratios with their ranges"):
        assert words in page
    assert "http" not in page.replace("http://www.w3.org", "")  # needs no network


def test_a_sweep_is_drawn_only_where_there_is_one(result):
    results = [result(case=f"small-1x{n}") for n in (4, 16)]
    chart = report.throughput_chart(results, "N")
    assert [x for x, _ in chart.series[0].points] == [4.0, 16.0]
    assert report.throughput_chart(results, "P") is None


def test_readme(result, tmp_path):
    path = tmp_path / "README.md"
    path.write_text("before\n<!-- bench:start -->\nold\n<!-- bench:end -->\nafter\n")
    report.update_readme(path, [result()])
    text = path.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    report.update_readme(path, [result()])
    assert path.read_text() == text
    path.write_text("nothing")
    with pytest.raises(DataError, match="bench:start"):
        report.update_readme(path, [result()])
