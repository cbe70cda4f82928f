"""The experiment's one file of settings, and its script's first lines."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from vlarft.config import load_config, preset_path
from vlarft.errors import ConfigError
from vlarft.rft.config import RFTConfig
from vlarft.train.commands import Pretraining

ROOT = Path(__file__).parents[2]
NAME = "libero_object_small"


def test_one_file_for_training_and_fine_tuning():
    training, small = (load_config(Pretraining, name) for name in (NAME, "small"))
    assert training.model == small.model
    assert training.policy_config().encoder.kind == "places"
    assert training.policy_config().head == small.policy_config().head
    tuning = load_config(RFTConfig, NAME)
    assert tuning == training.rft
    assert tuning.steps == yaml.safe_load(preset_path(NAME).read_text())["rft"]["steps"]


def test_overrides_are_of_the_part_that_is_read():
    assert load_config(RFTConfig, NAME, ["steps=7", "reward.l1=2"]).reward.l1 == 2
    assert (
        load_config(Pretraining, NAME, ["policy_training.steps=500"]).policy_training.steps == 500
    )


def test_mistakes_name_the_section(tmp_path):
    file = tmp_path / "experiment.yaml"
    for text, words in (
        ("rft: {stepz: 3}", r"experiment\.yaml: rft: unknown key 'stepz' \(did you mean 'steps'"),
        ("rft: 3", r"experiment\.yaml: rft: expected a mapping of keys, found int"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=words):
            load_config(RFTConfig, file)
        with pytest.raises(ConfigError):
            load_config(Pretraining, file)
    file.write_text("rft:\n")
    assert load_config(RFTConfig, file) == RFTConfig()
    with pytest.raises(ConfigError, match="unknown key 'model'"):
        load_config(RFTConfig, "small")  # no section: a file of something else


@pytest.mark.parametrize("given", [False, True])
def test_a_given_world_model_is_not_trained(tmp_path, given):
    (tmp_path / "scripts").mkdir()
    script = shutil.copy(ROOT / "scripts" / f"{NAME}.sh", tmp_path / "scripts")
    stub = tmp_path / ".venv/bin/vlarft"
    stub.parent.mkdir(parents=True)
    stub.write_text('#!/bin/bash\necho "vlarft $*"\n')
    stub.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "RUNS": "runs"}
    if given:
        environment["WORLD"] = "mine"
        done = subprocess.run(
            [script, "pretrain"], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert "WORLD=mine: no world model is there" in done.stderr
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "layout.json").touch()
    done = subprocess.run(
        [script, "record", "pretrain", "rft"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    trained = re.findall(r"vlarft train ([a-z-]+)", done.stdout)
    of_worlds = ["tokenizer"] * 3 + ["world-model"] * 2
    assert trained == ([] if given else of_worlds) + ["encoder", "policy"]
    assert ("data branch" in done.stdout) != given
    world = "mine" if given else "runs/world-varied/world"
    assert f"vlarft rft --world {world} " in done.stdout


def test_the_script_refuses_unknown_stages():
    script = ROOT / "scripts" / f"{NAME}.sh"
    done = subprocess.run([script, "record", "rtf"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unknown stage 'rtf'; allowed: record pretrain" in done.stderr
    assert not done.stdout  # nothing was begun
