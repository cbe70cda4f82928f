import json

import h5py
import pytest

from tests.cli.conftest import write_libero
from vlarft.cli import run_command
from vlarft.models.success import SuccessClassifier


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """Recordings of failures: numbers 0 and 3, the second validates."""
    path = write_libero(tmp_path_factory.mktemp("failures") / "pick_up_the_milk.hdf5", 4)
    with h5py.File(path, "a") as file:
        for name in ("demo_1", "demo_2"):
            del file["data"][name]
        for demo in file["data"].values():
            demo.attrs.update(split="failure", success=False)
    return str(path)


def test_a_classifier_is_trained_calibrated_and_tunes_a_policy(models, failures, tmp_path, capsys):
    run = tmp_path / "success"
    command = ["train", "success", "--config", "tiny", "--data", models.data, "--run", str(run)]
    command += ["--world", models.world]
    assert run_command([*command, "--failures", failures, "--json", "-"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["kind"], summary["stage"], summary["steps"]) == (
        "pretraining", "success classifier", 4,
    )  # fmt: skip
    assert summary["training"]["episodes"] == summary["held_out"]["episodes"] == 3
    figures = summary["validation"]
    for frames in ("imagined", "drawn"):
        assert 0 <= figures[f"{frames}_auc"] <= 1
        shares = (figures[f"{frames}_recall"], 1 - figures[f"{frames}_accepted"])
        assert figures[f"{frames}_accuracy"] == pytest.approx(sum(shares) / 2)
    classifier = SuccessClassifier.from_pretrained(run / "success")
    assert classifier.config.threshold == figures["threshold"]
    assert classifier.config.image_size == 32
    assert "Pre-training of the success classifier" in (run / "report.html").read_text()

    assert run_command([*command, "--failures", failures]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert run_command([*command, "--resume"]) == 2  # without the failures
    assert "other data" in capsys.readouterr().err
    assert run_command([*command, "--failures", failures, "--resume"]) == 0
    again = json.loads((run / "summary.json").read_text())
    assert again["validation"] == figures

    tuned = tmp_path / "rft"
    command = ["rft", "--world", models.world, "--policy", models.policy, "--data", models.data]
    command += ["--config", models.config, "--run", str(tuned), "--set", "reward.kind=success"]
    assert run_command(command) == 2
    assert "is for 64 px, the world model draws 32 px" in capsys.readouterr().err
    command += ["--set", f"reward.classifier={run / 'success'}"]
    assert run_command(command) == 0
    lines = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    assert lines[1]["distance"] in {n / 6 for n in range(7)}
    assert lines[1]["l1"] is None


def test_what_cannot_be_learned_from_is_refused(models, tmp_path, capsys):
    run = tmp_path / "success"
    command = ["train", "success", "--config", "tiny", "--data", models.data, "--run", str(run)]
    assert run_command([*command, "--failures", models.data, "--world", models.world]) == 2
    assert "'demo_0' is solved; --failures takes failed ones" in capsys.readouterr().err
    assert run_command(command) == 2  # the bundled world model is of 64 px
    assert "frames of 32 x 32 px, but the world model" in capsys.readouterr().err
    long = ["--world", models.world, "--set", "success_training.margin=9"]
    assert run_command([*command, *long]) == 2
    assert "longer than 17 actions" in capsys.readouterr().err
    assert not run.exists()
