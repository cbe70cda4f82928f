import json

import pytest
import torch

from vlarft.cli import run_command
from vlarft.config import load_config
from vlarft.errors import ConfigError, DataError
from vlarft.models.flow_policy import FlowPolicy
from vlarft.rft import ablation
from vlarft.rft.ablation import AblationConfig

GROUPS = """
rft: {rft}
seeds: [0, 1]
groups:
  reward:
    imagined: []
    actions: [reward.kind=actions]
  sigma:
    wide: [exploration.sigma_max=0.4]
"""
RFT = """
steps: 2
scenes: 2
rollouts: 4
checkpoint_interval: 1
reward: {metric: lpips-alex, frames: [8]}
evaluation: {interval: 0, windows: 6, starts: 1, batch: 6}
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "rft.yaml").write_text(RFT)
    path = tmp_path / "ablations.yaml"
    path.write_text(GROUPS.format(rft=tmp_path / "rft.yaml"))
    return path


def test_one_table_from_runs_that_resume(config, tmp_path, capsys):
    run, page = tmp_path / "run", tmp_path / "page.md"
    page.write_text("above\n<!-- ablations:start -->\nold\n<!-- ablations:end -->\nbelow\n")
    command = ["ablate", "--run", str(run), "--config", str(config)]
    assert run_command(command) == 0
    summary = json.loads((run / "summary.json").read_text())
    rows = {(row["group"], row["name"]): row for row in summary["rows"]}
    assert list(rows) == [("reward", "imagined"), ("reward", "actions"), ("sigma", "wide")]
    assert rows["reward", "imagined"]["to_base"] is None
    assert rows["reward", "actions"]["to_base"]["relative"] != 0
    folders = {path.name for path in run.iterdir() if path.is_dir()}
    assert folders == {"base", "reward-actions", "sigma-wide"}
    assert (run / "report.html").stat().st_size > 1000
    seconds = summary["rows"][0]["seconds"]

    assert run_command(command) == 0  # nothing is run again
    again = json.loads((run / "summary.json").read_text())
    assert again["rows"][0]["distance"] == summary["rows"][0]["distance"]
    assert again["rows"][0]["seconds"] < seconds + 5

    capsys.readouterr()
    shown = ["ablate", "--results", str(run / "summary.json"), "--into", str(page)]
    assert run_command(shown) == 0
    text = page.read_text()
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "old" not in text
    assert "| sigma | wide: `exploration.sigma_max=0.4` |" in text
    assert " points (" in text


def test_all_are_judged_by_the_base(config, tmp_path, monkeypatch):
    judged = []

    def remember(*_, judged_by, **_options):
        judged.append((judged_by.reward.kind, judged_by.reward.frames))
        raise KeyboardInterrupt

    monkeypatch.setattr(ablation, "run_rft", remember)
    assert run_command(["ablate", "--run", str(tmp_path / "r"), "--config", str(config)]) == 130
    assert judged == [("imagined", (8,))]


@pytest.mark.parametrize("key", ["reward.kind", "exploration.sigma_max"])
def test_an_unknown_setting_is_refused_before_anything_runs(config, tmp_path, capsys, key):
    config.write_text(config.read_text().replace(key, f"{key}_wrong"))
    assert run_command(["ablate", "--run", str(tmp_path / "run"), "--config", str(config)]) == 2
    assert "_wrong" in capsys.readouterr().err
    assert not (tmp_path / "run" / "base").exists()


@pytest.mark.parametrize("name", ["a b", "../x", "", ".hidden"])
def test_names_that_make_no_folder_are_refused(name):
    with pytest.raises(ConfigError, match="folder"):
        load_config(AblationConfig, {"groups": {"group": {name: []}}})


@pytest.mark.parametrize("options", [[], ["--run", "a", "--results", "b"]])
def test_either_run_or_show(options, capsys):
    assert run_command(["ablate", *options]) == 2
    assert "either --run" in capsys.readouterr().err


def test_what_is_no_summary_is_refused(tmp_path):
    file = tmp_path / "x.json"
    with pytest.raises(DataError, match="no such file"):
        ablation.read_rows(file)
    file.write_text("{}")
    with pytest.raises(DataError, match="vlarft ablate"):
        ablation.read_rows(file)


def test_the_bundled_variations_are_valid():
    config = load_config(AblationConfig, "ablations")
    plans = [ablation._plan(config, settings) for _, _, settings in ablation.variations(config)]
    assert len(plans) > 10
    for wanted in plans[1:]:
        assert wanted.scenes * wanted.rollouts == plans[0].scenes * plans[0].rollouts


def test_settings_of_a_stored_policy():
    from vlarft.demo import POLICY

    policy = FlowPolicy.from_pretrained(POLICY, settings=["sigma_max=0.4"])
    assert policy.config.sigma_max == 0.4
    torch.testing.assert_close(policy.sigma_net.log_std_max.exp(), torch.tensor(0.4))


def test_one_variation_alone_goes_into_a_stored_table(config, tmp_path, capsys):
    run, stored, page = tmp_path / "run", tmp_path / "ablations.json", tmp_path / "page.md"
    page.write_text("<!-- ablations:start -->\n<!-- ablations:end -->\n")
    command = ["ablate", "--run", str(run), "--config", str(config)]

    def names():
        summary = json.loads(stored.read_text())
        return [f"{row['group']}-{row['name']}" for row in summary["rows"]]

    assert run_command([*command, "--only", "sigma-wide", "--json", str(stored)]) == 0
    assert names() == ["reward-imagined", "sigma-wide"]
    assert not (run / "reward-actions").exists()
    before = json.loads(stored.read_text())

    one = [*command, "--only", "reward-actions", "--merge", str(stored)]
    assert run_command([*one, "--into", str(page)]) == 0
    assert names() == ["reward-imagined", "reward-actions", "sigma-wide"]
    after = json.loads(stored.read_text())
    assert after["rows"][0] == before["rows"][0]
    assert after["rows"][2] == before["rows"][1]
    assert len(after["merged"]) == 1
    assert page.read_text().count("\n| ") == 5

    capsys.readouterr()
    assert run_command([*command, "--only", "sigma-narrow"]) == 2
    assert "--only sigma-narrow; allowed: reward-actions, sigma-wide" in capsys.readouterr().err
    for change in ({"seeds": [0]}, {"base": after["base"] | {"steps": 3}}):
        stored.write_text(json.dumps(after | change))
        assert run_command(one) == 2
        assert "is another than that of this run" in capsys.readouterr().err
        assert json.loads(stored.read_text()) == after | change
    rows = [dict(row) for row in after["rows"]]
    rows[0]["distance"] = {"relative": 0.5, "interval": [0.4, 0.6]}
    stored.write_text(json.dumps(after | {"rows": rows}))
    assert run_command(one) == 2
    assert "its base (+50.0%" in capsys.readouterr().err
    stored.write_text("{}")
    assert run_command(one) == 2
    assert "no summary.json of vlarft ablate" in capsys.readouterr().err
    assert run_command(["ablate", "--results", str(stored), "--only", "sigma-wide"]) == 2
    assert "--only and --merge are about a run" in capsys.readouterr().err
