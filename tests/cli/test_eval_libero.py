import json

import pytest
import yaml

from tests.libero.fake_scene import FakeScene
from vlarft.cli import run_command
from vlarft.eval import libero


@pytest.fixture
def simulator(monkeypatch):
    """LIBERO with one task, that of the test data."""
    answers = {
        "suite_tasks": [{"name": "pick_up_the_milk", "language": "pick up the milk"}],
        "versions": {"mujoco": "2.3.7", "robosuite": "1.4.0", "python": "3.11.7"},
    }
    monkeypatch.setattr(libero.remote, "ask", lambda name, _python, **_: answers[name])
    monkeypatch.setattr(libero.remote, "choose_renderer", lambda _python: ("egl", "painter"))
    monkeypatch.setattr(libero.remote, "RemoteSimulator", lambda *_: FakeScene(size=32))


@pytest.mark.usefixtures("simulator")
def test_eval_libero_writes_a_run(models, tmp_path, capsys):
    run = tmp_path / "success"
    command = ["eval", "libero", "--policy", models.policy, "--after", models.policy]
    command += ["--data", models.data, "--episodes", "3", "--max-steps", "16"]
    command += ["--cache", str(tmp_path / "cache"), "--run", str(run), "--json", "-"]
    assert run_command(command) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)  # standard output carries the JSON and nothing else
    assert result == json.loads((run / "summary.json").read_text())
    assert (result["kind"], result["suite"], result["starts"]) == (
        "libero-paired", "libero_object", "moved",
    )  # fmt: skip
    assert (result["episodes"], result["seeds"], result["mujoco"]) == (3, 1, "2.3.7")
    assert result["difference"] == 0  # the same policy twice, played once
    names = ["before", "after", "before, blind", "after, blind", "replay"]
    assert [arm["name"] for arm in result["arms"]] == names
    assert "after minus before: +0.0 points on 3 pairs" in err
    assert len((run / "episodes.jsonl").read_text().splitlines()) == 15
    assert yaml.safe_load((run / "config.yaml").read_text())["episodes"] == 3
    text = (run / "report.html").read_text()
    for words in ("Success in LIBERO", "No clear difference", "Solved episodes by task", "replay"):
        assert words in text
    assert len(list((tmp_path / "cache").glob("*.jsonl"))) == 3
    capsys.readouterr()
    assert run_command(command[:-2]) == 0  # nothing is played again


@pytest.mark.usefixtures("simulator")
def test_eval_libero_beside_a_control(models, tmp_path, capsys):
    run = tmp_path / "success"
    command = ["eval", "libero", "--policy", models.policy, "--after", models.policy]
    command += ["--data", models.data, "--episodes", "2", "--max-steps", "8", "--run", str(run)]
    command += ["--cache", str(tmp_path / "cache")]
    assert run_command([*command, "--control", f"permuted={models.policy}"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    names = ["before", "after", "permuted", "before, blind", "after, blind", "replay"]
    assert [arm["name"] for arm in summary["arms"]] == names
    assert [(c["arm"], c["minus"]) for c in summary["controls"]] == [
        ("permuted", "before"),
        ("after", "permuted"),
    ]
    text = (run / "report.html").read_text()
    said = "bootstrap over seeds and starts"  # one task
    for words in ("A control, on the same starts.", "after minus permuted", said):
        assert words in text
    assert "permuted minus before: +0.0 points" in capsys.readouterr().out.replace("\n", " ")
    assert run_command([*command, "--control", str(models.policy)]) == 2
    assert "wanted NAME=FOLDER" in capsys.readouterr().err


@pytest.mark.usefixtures("simulator")
def test_eval_libero_of_one_policy(models, tmp_path, capsys):
    command = ["eval", "libero", "--policy", models.policy, "--data", models.data]
    command += ["--episodes", "2", "--max-steps", "8", "--starts", "standard"]
    command += ["--cache", str(tmp_path / "cache"), "--run", str(tmp_path / "run")]
    assert run_command(command) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["kind"], summary["rate"], summary["episodes"]) == ("libero", 0.0, 2)
    assert "solves 0 of 2 episodes" in (tmp_path / "run" / "report.html").read_text()
    capsys.readouterr()
    assert run_command([*command, "--starts", "anywhere"]) == 2
    assert "allowed: standard, moved, swapped" in capsys.readouterr().err
    assert run_command([*command, "--episodes", "0"]) == 2
    assert "episodes" in capsys.readouterr().err


@pytest.mark.usefixtures("simulator")
def test_eval_libero_under_perturbation(models, tmp_path, capsys):
    run = tmp_path / "run"
    command = ["eval", "libero", "--policy", models.policy, "--after", models.policy]
    command += ["--data", models.data, "--episodes", "2", "--max-steps", "8", "--run", str(run)]
    command += ["--perturb", "object-minor,camera", "--cache", str(tmp_path / "cache")]
    assert run_command(command) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["starts"] == "standard"
    assert list(summary["perturbations"]) == ["object-minor", "camera"]
    assert summary["perturbations"]["camera"]["episodes"] == summary["episodes"] == 2
    assert yaml.safe_load((run / "config.yaml").read_text())["perturb"] == [
        "object-minor",
        "camera",
    ]
    lines = (run / "episodes.jsonl").read_text().splitlines()
    assert len(lines) == 3 * 2 * 5
    assert json.loads(lines[-1])["start"]["perturb"] == "camera"
    text = (run / "report.html").read_text()
    for words in ("Success under perturbation", "up to 0.025 m", "by task, unperturbed"):
        assert words in text
    assert "after minus before under camera" in capsys.readouterr().out.replace("\n", " ")
    assert run_command([*command, "--starts", "moved"]) == 0
    assert json.loads((run / "summary.json").read_text())["starts"] == "moved"
    capsys.readouterr()
    assert run_command([*command, "--perturb", "list"]) == 2
    assert "allowed: object-minor, object-major, goal-minor" in capsys.readouterr().err
