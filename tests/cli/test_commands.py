import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from vlarft import demo
from vlarft.cli import run_command
from vlarft.engine import RolloutEngine


def test_eval_world_model_writes_a_run(models, tmp_path, capsys):
    run = tmp_path / "quality"
    command = [
        "eval",
        "world-model",
        "--world",
        models.world,
        "--data",
        models.data,
        "--windows",
        "6",
    ]
    assert run_command([*command, "--run", str(run), "--json", "-"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)  # standard output carries the JSON and nothing else
    assert result == json.loads((run / "summary.json").read_text())
    assert (result["windows"], result["episodes"], result["frames"]) == (6, 2, 8)
    assert "swapped actions" in err
    assert "Imagination quality" in (run / "report.html").read_text()
    assert json.loads((run / "environment.json").read_text())["vlarft"]
    options = yaml.safe_load((run / "config.yaml").read_text())
    assert (options["world"], options["data"], options["windows"]) == (
        models.world,
        [models.data],
        6,
    )
    assert options["sampling"]["top_p"] == 0.8
    assert "top_p: 0.8" in (run / "report.html").read_text()


def test_eval_reward_writes_a_run(models, tmp_path, capsys):
    run = tmp_path / "reward"
    command = ["eval", "reward", "--world", models.world, "--data", models.data, "--windows", "4"]
    command += ["--rollouts", "4", "--seeds", "2", "--run", str(run), "--json", "-"]
    assert run_command(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((run / "summary.json").read_text())
    assert (result["kind"], result["windows"], result["horizon"]) == ("reward", 4, None)
    assert set(result["stage_seconds"]) >= {"loading", "uncertainty", "groups"}
    page = (run / "report.html").read_text()
    assert "Does the reward mean anything?" in page
    assert "of the reward&#x27;s variance within a group" in page
    options = yaml.safe_load((run / "config.yaml").read_text())
    assert (options["rollouts"], options["seeds"], options["failures"]) == (4, 2, [])
    assert json.loads((run / "environment.json").read_text())["vlarft"]


def test_eval_reward_judges_what_a_policy_tries(models, tmp_path, capsys):
    run = tmp_path / "reward"
    command = ["eval", "reward", "--world", models.world, "--data", models.data, "--windows", "4"]
    command += ["--rollouts", "4", "--seeds", "2", "--run", str(run), "--json", "-", "--no-horizon"]
    assert run_command([*command, "--config", models.config]) == 2
    assert "add --policy" in capsys.readouterr().err
    command += ["--policy", models.policy, "--config", models.config, "--set", "rollouts=5"]
    assert run_command([*command, "--set", "reward.kind=actions"]) == 2
    assert "compares no imagined frames" in capsys.readouterr().err
    assert run_command([*command, "--set", "reward.metric=lpips-vgg"]) == 2
    assert "--set reward.metric=lpips-vgg: name it by --metric" in capsys.readouterr().err
    assert run_command(command) == 0
    found = json.loads(capsys.readouterr().out)["explored"]
    assert (found["windows"], found["rollouts"], found["draws"]) == (4, 5, 2)
    assert -1 <= found["way"]["interval"][0] <= found["way"]["value"] <= 1
    assert found["spread"] > 0
    assert "4 groups of 5 rollouts" in (run / "report.html").read_text()
    asked = yaml.safe_load((run / "config.yaml").read_text())["policy"]
    assert (asked["folder"], asked["rft"]["rollouts"]) == (models.policy, 5)


def test_train_writes_a_whole_run_folder(models, tmp_path, capsys):
    run = tmp_path / "policy"
    command = ["train", "policy", "--data", models.data, "--config", "tiny", "--run", str(run)]
    assert run_command([*command, "--device", "cpu", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)  # standard output carries the JSON and nothing else
    assert summary == json.loads((run / "summary.json").read_text())
    assert (summary["kind"], summary["stage"], summary["steps"]) == ("pretraining", "policy", 4)
    assert summary["training"] == {"episodes": 2, "windows": 10}
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert summary["validation"]["flow_loss"] == last["validation_flow_loss"]
    for name in ("config.yaml", "environment.json", "checkpoints/step-4", "policy/config.json"):
        assert (run / name).exists()
    assert str((run / "report.html").resolve()) in err
    text = (run / "report.html").read_text()
    for words in ("Pre-training of the policy", "Trained for 4 steps", "Action error", "Curves"):
        assert words in text
    assert run_command(["report", str(run)]) == 0
    assert (run / "report.html").read_text() == text
    capsys.readouterr()
    assert run_command([*command, "--resume", "--device", "tpu"]) == 2
    assert "allowed: cpu, cuda" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["rft"], ["eval", "world-model"], ["imagine"]], ids=" ".join)
def test_a_world_model_of_other_frames_is_refused(models, tmp_path, capsys, command):
    turned = tmp_path / "turned"
    shutil.copytree(models.world, turned)
    layout = json.loads((turned / "layout.json").read_text())
    (turned / "layout.json").write_text(json.dumps(layout | {"orientation": "raw"}))
    command = [*command, "--world", str(turned), "--data", models.data]
    if command[0] == "rft":
        command += ["--policy", models.policy, "--config", models.config]
        command += ["--run", str(tmp_path / "run")]
    assert run_command(command) == 2
    whose = "the policy's statistics.json" if command[0] == "rft" else "the data's reader"
    error = capsys.readouterr().err
    assert f"layout.json has orientation 'raw', {whose} 'rotated-180'" in error


def test_sampling_not_asked_for_is_the_world_models(models, tmp_path, capsys):
    greedy = tmp_path / "greedy"
    shutil.copytree(models.world, greedy)
    layout = json.loads((greedy / "layout.json").read_text())
    layout["sampling"] |= {"temperature": 0.0, "top_p": 0.5}
    (greedy / "layout.json").write_text(json.dumps(layout))
    command = ["eval", "world-model", "--world", str(greedy), "--data", models.data]
    assert run_command([*command, "--windows", "2", "--top-p", "0.9", "--json", "-"]) == 0
    sampling = json.loads(capsys.readouterr().out)["sampling"]
    assert (sampling["temperature"], sampling["top_p"]) == (0.0, 0.9)


@pytest.mark.parametrize("actions", ["still", "1", "file"])
def test_imagine(models, tmp_path, capsys, actions):
    if actions == "file":
        actions = str(tmp_path / "actions.npy")
        np.save(actions, np.zeros((8, 7)))
    out = tmp_path / "scene.gif"
    command = [
        "imagine",
        "--world",
        models.world,
        "--data",
        models.data,
        "--start",
        "2",
        "--scale",
        "1",
    ]
    assert run_command([*command, "--actions", actions, "--out", str(out), "--json", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["l1"]) == len(result["perceptual"]) == 8
    with Image.open(out) as image:
        assert image.n_frames == 8
        assert image.size == (4 * 32 + 3 * 2, 32)


def test_imagine_with_the_experts_own_actions_has_distance_0(models, tmp_path, capsys):
    command = [
        "imagine",
        "--world",
        models.world,
        "--data",
        models.data,
        "--actions",
        "0",
        "--json",
        "-",
    ]
    assert run_command([*command, "--out", str(tmp_path / "a.gif")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["l1"] == [0.0] * 8
    assert result["perceptual"] == [0.0] * 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--episode", "99"], "has episodes 0 to 1"),
        (["--start", "5"], "start at 0 to 4"),
        (["--actions", "99"], "has episodes 0 to 1"),
        (["--actions", "nothing.npy"], "nothing.npy"),
        (["--split", "test"], "allowed: train, val"),
    ],
)
def test_imagine_mistakes(models, tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert run_command(["imagine", "--world", models.world, "--data", models.data, *arguments]) == 2
    assert words in capsys.readouterr().err


def test_rft_one_run_then_report(models, tmp_path, capsys):
    run = tmp_path / "run"
    command = ["rft", "--world", models.world, "--policy", models.policy, "--data", models.data]
    assert (
        run_command([*command, "--config", models.config, "--run", str(run), "--pictures", "1"])
        == 0
    )
    assert "imagined distance" in capsys.readouterr().out
    summary = json.loads((run / "summary.json").read_text())
    assert summary["kind"] == "rft"
    assert {"loading", "pictures"} <= set(summary["stage_seconds"])
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "scenes.npz",
        "environment.json",
        "policy/config.json",
    ):
        assert (run / name).exists()
    written = (run / "report.html").read_text()
    (run / "report.html").unlink()
    assert run_command(["report", str(run)]) == 0
    assert (run / "report.html").read_text() == written


ENGINE = ["--backend", "reference", "--dtype", "bfloat16", "--attention", "sdpa"]
USED = {
    "backend": "reference",
    "dtype": "bfloat16",
    "attention": "sdpa",
    "device": "cpu",
    "cache_dtype": None,
}


def spy_on_engines(monkeypatch):
    """Every engine that a command builds."""
    built, load = [], RolloutEngine.load.__func__

    def spy(cls, *args, **options):
        built.append(load(cls, *args, **options))
        return built[-1]

    monkeypatch.setattr(RolloutEngine, "load", classmethod(spy))
    return built


@pytest.mark.parametrize("command", ["rft", "demo", "eval world-model", "imagine"])
def test_engine_options_reach_the_engine_and_the_results(
    models, tmp_path, capsys, monkeypatch, command
):
    use_tiny_assets(models, monkeypatch)
    built, run = spy_on_engines(monkeypatch), tmp_path / "run"
    arguments = {
        "rft": ["--run", str(run), "--config", models.config, "--pictures", "1"],
        "demo": [
            "--run",
            str(run),
            "--config",
            demo_config(models, tmp_path),
            "--set",
            "seeds=[0]",
        ],
        "eval world-model": ["--run", str(run), "--windows", "4"],
        "imagine": ["--out", str(tmp_path / "a.gif")],
    }[command]
    assert run_command([*command.split(), *arguments, *ENGINE, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["engine"] == USED
    assert [(e.backend, e.dtype) for e in built] == [("reference", torch.bfloat16)]
    if command != "imagine":
        assert json.loads((run / "summary.json").read_text())["engine"] == USED


def demo_config(models, tmp_path):
    path = tmp_path / "demo.yaml"
    content = {
        "rft": models.config,
        "seeds": [0, 1],
        "world_model_windows": 4,
        "pictures": 2,
        "pretraining": "tiny",
    }
    path.write_text(yaml.safe_dump(content))
    return str(path)


def use_tiny_assets(models, monkeypatch):
    for name in ("world", "policy"):
        monkeypatch.setattr(demo, name.upper(), models.root / name)
    monkeypatch.setattr(demo, "DEMOS", models.root / "pick_up_the_milk.hdf5")


def test_demo(models, tmp_path, capsys, monkeypatch):
    use_tiny_assets(models, monkeypatch)
    run = tmp_path / "demo"
    command = ["demo", "--run", str(run), "--config", demo_config(models, tmp_path), "--json", "-"]
    assert run_command(command) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert len(summary["distance_change"]["interval"]) == 2
    for key in (
        "distance_before",
        "distance_after",
        "control_change",
        "difference",
        "seconds",
        "world_model",
    ):
        assert key in summary
    assert [entry["seed"] for entry in summary["seeds"]] == [0, 1]
    arm = run / "seed-0" / "treatment"
    lines = [json.loads(line) for line in (arm / "metrics.jsonl").read_text().splitlines()]
    figures = set().union(summary, summary["seeds"][0]["treatment"], *lines)
    metrics_page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert figures <= set(re.findall("`([a-z0-9_]+)`", metrics_page))
    assert str((run / "report.html").resolve()) in err
    for words in ("judging the world model 4/4", "seed 0: noise floor", "pictures of the report"):
        assert words in err
    text = (run / "report.html").read_text()
    for words in (
        "Against the control",
        "Policy after",
        "Curves",
        "World model at frame 8",
        "Where the time went",
    ):
        assert words in text
    before = (run / "seed-1" / "treatment" / "metrics.jsonl").read_bytes()
    assert run_command(command) == 0  # finished arms are kept
    again = json.loads(capsys.readouterr().out)
    assert again["distance_change"] == summary["distance_change"]
    assert (run / "seed-1" / "treatment" / "metrics.jsonl").read_bytes() == before


def test_demo_from_scratch_trains_the_models_it_uses(models, tmp_path, monkeypatch):
    use_tiny_assets(models, monkeypatch)
    monkeypatch.setattr(demo, "WORLD", tmp_path / "none")
    monkeypatch.setattr(demo, "POLICY", tmp_path / "none")
    run = tmp_path / "demo"
    command = [
        "demo",
        "--from-scratch",
        "--run",
        str(run),
        "--config",
        demo_config(models, tmp_path),
    ]
    assert run_command([*command, "--set", "seeds=[0]"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["from_scratch"]
    assert {"tokenizer pre-training", "world model pre-training", "policy pre-training"} <= set(
        summary["stage_seconds"]
    )
    assert (run / "pretraining" / "world" / "world" / "layout.json").exists()


def test_demo_from_scratch_does_not_report_the_bundled_models_results(
    models, tmp_path, capsys, monkeypatch
):
    """Nor the other way round: by default they lie apart, and one folder holds one of them."""
    use_tiny_assets(models, monkeypatch)
    monkeypatch.chdir(tmp_path)
    command = ["demo", "--config", demo_config(models, tmp_path), "--set", "seeds=[0]"]
    assert run_command(command) == 0
    assert run_command([*command, "--from-scratch"]) == 0
    folders = [tmp_path / "runs" / name for name in ("demo", "demo-from-scratch")]
    bundled, scratch = (json.loads((f / "summary.json").read_text()) for f in folders)
    assert (bundled["from_scratch"], scratch["from_scratch"]) == (False, True)
    assert bundled["distance_before"] != scratch["distance_before"]
    capsys.readouterr()
    for folder, extra, option in zip(
        folders, (["--from-scratch"], []), ("without", "with"), strict=True
    ):
        assert run_command([*command, *extra, "--run", str(folder)]) == 2
        assert f"run it {option} --from-scratch" in capsys.readouterr().err
    assert not (folders[0] / "pretraining").exists()


def test_missing_bundled_models_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "WORLD", demo.ASSETS / "checkpoints" / "none")
    assert run_command(["demo", "--run", str(tmp_path / "x")]) == 2
    assert "no such model folder" in capsys.readouterr().err


def test_info_keeps_square_brackets(capsys):
    assert run_command(["info"]) == 0
    text = capsys.readouterr().out
    assert "libero" in text
    assert "pip install 'vlarft'" not in text  # the extra's name must survive printing
    assert run_command(["info", "--json", "-"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)


def test_eval_precision_compares_with_float32(models, capsys):
    command = ["eval", "precision", "--world", models.world, "--data", models.data]
    assert run_command([*command, "--windows", "4", "--json", "-"]) == 0
    summary = json.loads(capsys.readouterr().out)
    world = json.loads((Path(models.world) / "layout.json").read_text())
    assert summary["windows"] == 4
    assert summary["tokens"] % (4 * world["frames"]) == 0
    assert [p["cache_dtype"] for p in summary["precisions"]] == [
        "float32",
        "float8_e4m3fn",
        "bfloat16",
        "float8_e4m3fn",
    ]


def test_eval_policy_compares_what_is_executed(models, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(models.policy, other)
    command = ["eval", "policy", "--policy", models.policy, "--data", models.data]
    both = [*command, "--policy", str(other), "--split", "train", "--json", "-"]
    assert run_command(both) == 0
    shown = capsys.readouterr()
    first, second = json.loads(shown.out)["policies"].values()
    assert first["grasps"] > 0
    assert first["changes"] is None
    assert first["figures"] == second["figures"]
    assert {one["value"] for one in second["changes"].values()} == {0.0}
    assert "of the change from it" in shown.err
    assert run_command([*command, "--policy", models.policy])
    assert "names a folder twice" in capsys.readouterr().err
    assert run_command([*command, "--split", "test"])
    assert "allowed: train, val" in capsys.readouterr().err


def test_eval_gradient_says_where_it_points(models, capsys):
    command = ["eval", "gradient", "--world", models.world, "--policy", models.policy]
    command += ["--data", models.data, "--batches", "3", "--json", "-"]
    settings = ["scenes=2", "rollouts=4", "reward.metric=lpips-alex", "start=mean"]
    command += [part for value in settings for part in ("--set", value)]
    assert run_command(command) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["batches"] == 3
    assert summary["rollouts"] == 8
    assert summary["credited"] == 1
    assert summary["verdict"].endswith(".")
    assert summary["rft"]["start"] == "mean"
    assert run_command([*command, "--set", "objective.credit=symmetric", "--set", "start=shared"])
    assert "use start=mean" in capsys.readouterr().err
