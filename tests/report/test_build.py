import json

import pytest

from tests.report.synthetic import change, world_summary, write_experiment
from vlarft.errors import DataError
from vlarft.report.build import build_report, read_metrics, write_report


def test_experiment_says_that_it_worked(tmp_path):
    report = build_report(write_experiment(tmp_path / "run"))
    assert report.tone == "good"
    assert "16.4% closer" in report.verdict
    assert all(check.passed for check in report.checks)
    assert [h.value for h in report.headlines][:3] == ["−16.4%", "−14.3 points", "−3.1%"]
    assert "−19.4 to −13.4%" in report.headlines[0].interval
    assert len(report.scenes) == 2
    assert [len(s.panels) for s in report.scenes] == [6, 6]
    names = [c.title for c in report.charts]
    assert names[0] == "Imagined distance, validation"
    assert {s.name for s in report.charts[0].series} == {"fine-tuned", "control"}
    assert len(report.charts[0].series[0].spread) == 3


def test_stage_seconds_add_up_to_the_runs_and_what_came_before(tmp_path):
    report = build_report(write_experiment(tmp_path / "run"))
    assert sum(report.seconds.values()) == pytest.approx(312.0 + 41.0)
    assert report.seconds["rollout"] == pytest.approx(6 * 50 * 0.61)


def test_no_clear_difference_to_the_control_is_not_called_success(tmp_path):
    run = write_experiment(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    summary["difference"] = change(-0.02, 0.03)
    (run / "summary.json").write_text(json.dumps(summary))
    report = build_report(run)
    assert report.tone == "neutral"
    assert "cannot be credited" in report.verdict
    assert report.headlines[0].tone == "neutral"
    assert not next(c for c in report.checks if "control" in c.text).passed


def test_a_worse_policy_is_bad_news(tmp_path):
    report = build_report(write_experiment(tmp_path / "run", effect=0.08))
    assert report.tone == "bad"
    assert report.headlines[0].tone == "bad"
    assert not report.checks[0].passed


def test_world_model_report(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(world_summary()))
    report = build_report(tmp_path)
    assert report.tone == "good"
    assert [h.value for h in report.headlines] == ["+4.3 dB", "+1.8 dB", "+1.4 dB"]
    assert len(report.charts) == 4
    bad = world_summary()
    bad["listens_to_actions"] = False
    (tmp_path / "summary.json").write_text(json.dumps(bad))
    assert "does not listen" in build_report(tmp_path).verdict


def test_a_single_run_does_not_claim_what_a_control_must_show(tmp_path):
    run = write_experiment(tmp_path / "run") / "seed-0" / "treatment"
    whole = json.loads((tmp_path / "run" / "summary.json").read_text())
    summary = whole | {"kind": "rft", "seed": 0, "control": "none"}
    (run / "summary.json").write_text(json.dumps(summary))
    report = build_report(run)
    assert report.tone == "neutral"
    assert "Without a control" in report.verdict
    assert report.charts


def interrupt(run, arm, steps):
    """Cut an arm of `write_experiment` back to an unfinished run."""
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()][: steps + 1]
    lines[0]["noise_floor"] = 0.0
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    control = "permuted" if arm == "control" else "none"
    (run / "config.yaml").write_text(f"steps: 50\ncontrol: {control}\n")


@pytest.mark.parametrize("arm", ["treatment", "control"])
def test_an_unfinished_run_is_fine_tuning_and_says_how_far_it_is(tmp_path, arm):
    run = write_experiment(tmp_path / "run") / "seed-0" / arm
    interrupt(run, arm, 20)
    report = build_report(run)
    assert report.title == "Reinforcement fine-tuning in imagination"
    assert report.subtitle == f"Not finished: 1 {arm} run at step 20 of 50."
    assert "not finished" in report.verdict
    assert not report.headlines
    assert [c.title for c in report.charts][:2] == [
        "Imagined distance, validation", "Action error, validation",
    ]  # fmt: skip
    names = {s.name for c in report.charts for s in c.series}
    assert names == {"fine-tuned" if arm == "treatment" else "control"}
    assert report.seconds["rollout"] == pytest.approx(20 * 0.61)


def test_an_unfinished_experiment_shows_the_arms_it_has(tmp_path):
    run = write_experiment(tmp_path / "run")
    (run / "summary.json").unlink()
    (run / "config.yaml").unlink()
    for seed in range(3):
        for arm in ("treatment", "control"):
            interrupt(run / f"seed-{seed}" / arm, arm, 50 if seed == 0 else 30)
    (run / "seed-2" / "treatment" / "metrics.jsonl").write_text("")  # just begun
    report = build_report(run)
    assert report.subtitle == (
        "Not finished: 2 treatment runs at step 50, 30; 3 control runs at step 50, 30, 30 of 50."
    )
    assert {s.name for s in report.charts[0].series} == {"fine-tuned", "control"}
    assert write_report(run).is_file()


def test_pretraining_report_pairs_training_and_validation(tmp_path):
    lines = [{"step": s, "loss": 1 / s, "gradient_norm": 1.0} for s in range(1, 5)] + [
        {"step": 4, "validation_loss": 0.3}
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    report = build_report(tmp_path)
    assert [s.name for s in report.charts[0].series] == ["training", "validation"]
    assert report.headlines[0].value == "0.3"


def test_pretraining_report_of_a_world_model(tmp_path):
    methods = ("world_model", "swapped", "copy", "tokenizer")
    figures = {f"psnr_{r}_{m}": 20.0 for r in ("all", "moving") for m in methods}
    figures |= {"loss": 0.5, "psnr_moving_over_swapped": -1.25}
    lines = [
        {"step": step} | {f"validation_{name}": value for name, value in figures.items()}
        for step in (1, 2)
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert build_report(tmp_path).verdict.startswith("Not finished: 2 steps")
    summary = {
        "kind": "pretraining",
        "stage": "world model",
        "steps": 2,
        "batch_size": 4,
        "seed": 0,
        "training": {"episodes": 3, "windows": 30},
        "held_out": {"episodes": 2, "windows": 20},
        "validation": figures,
        "seconds": 90.0,
        "command": "vlarft train world-model",
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    report = build_report(tmp_path)
    assert "30 training windows of 3 episodes" in report.subtitle
    assert report.command == "vlarft train world-model"
    values = {h.label: h.value for h in report.headlines}
    assert values["Loss"] == "0.500 nats"
    assert values["Over swapped actions"] == "−1.25 dB"
    assert values["Time"] == "1 min 30 s"
    charts = {chart.title: chart for chart in report.charts}
    assert len(charts["PSNR, moving pixels"].series) == 4
    assert "psnr moving copy" not in charts  # drawn once, beside the others
    assert charts["psnr moving over swapped"].series[0].points == [(1, -1.25), (2, -1.25)]


def test_report_file_is_written(tmp_path):
    path = write_report(write_experiment(tmp_path / "run"))
    text = path.read_text(encoding="utf-8")
    assert path.name == "report.html"
    assert "A &lt;processor&gt; &amp; more" in text
    assert "vlarft demo" in text


def test_a_line_cut_off_by_a_kill_is_left_out_but_damage_is_not_hidden(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]
    path.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(DataError, match="line 1 is not JSON"):
        read_metrics(path)


def test_what_is_not_a_run(tmp_path):
    with pytest.raises(DataError, match="no such run folder"):
        build_report(tmp_path / "missing")
    with pytest.raises(DataError, match="not a run folder"):
        build_report(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        build_report(tmp_path)
