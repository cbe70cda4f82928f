"""Stopping and going on with the real models, at the tiny preset's size."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.train.recordings import write_recordings
from vlarft.checkpoint import latest_checkpoint
from vlarft.config import load_config
from vlarft.errors import CheckpointError
from vlarft.models.presets import build_tokenizer
from vlarft.train import commands
from vlarft.train.commands import (
    Pretraining,
    train_policy,
    train_tokenizer,
    train_world_model,
)
from vlarft.train.world_model import tokenize_windows

TIMES = {"seconds_per_step"}
SECTION = "world_model_training"
SETTINGS = [
    f"{SECTION}.{setting}"
    for setting in (
        "steps=5000", "schedule=constant", "validate_every=100000", "checkpoint_every=3",
        "dropout=0.2", "token_noise=0.1",
    )
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A recording and a tokenizer with random weights."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("stop")
    write_recordings(root / "milk_demo.hdf5")
    write_recordings(root / "soup_demo.hdf5", seed=1)
    build_tokenizer("tiny").save_pretrained(root / "tokenizer")
    build_tokenizer("tiny", seed=1).save_pretrained(root / "another")
    return root


def world(folder, run, *settings, data="milk", tokenizer="tokenizer", resume=False):
    config = load_config(Pretraining, "tiny", [*SETTINGS, *settings])
    files = [folder / f"{data}_demo.hdf5"]
    return train_world_model(config, files, run, folder / tokenizer, resume)


def records(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_stopped_at_an_unknown_moment_and_resumed_equals_uninterrupted(folder, tmp_path, stop):
    run = tmp_path / "stopped"
    command = ["train", "world-model", "--config", "tiny", "--data", str(folder / "milk_demo.hdf5")]
    command += ["--tokenizer", str(folder / "tokenizer"), "--run", str(run)]
    for setting in SETTINGS:
        command += ["--set", setting]
    code = "import torch; torch.set_num_threads(1); from vlarft.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    lines = run / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 120
        while not lines.exists() or lines.read_bytes().count(b"\n") < 7:
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(stop)
        _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if stop == signal.SIGINT else -signal.SIGKILL)

    done = len(lines.read_bytes().splitlines())
    if stop == signal.SIGINT:
        assert "--resume" in err.decode()
        assert latest_checkpoint(run).name == f"step-{done}"
    last = f"{SECTION}.steps={done + 2}"
    a = world(folder, run, last, resume=True)
    b = world(folder, tmp_path / "straight", last)
    resumed, straight = (load_file(x / "transformer" / "model.safetensors") for x in (a, b))
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())
    assert records(run) == records(tmp_path / "straight")


def snapshot(run):
    return {
        path.relative_to(run): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(run.rglob("*"))
        if path.is_file()
    }


def test_a_refused_training_leaves_the_run_as_it_was(folder, tmp_path):
    short = f"{SECTION}.steps=2"
    world(folder, tmp_path, short)
    before = snapshot(tmp_path)
    batch = f"{SECTION}.batch_size=3"
    for words, settings, others in (
        ("already holds a run", [short], {}),
        ("already holds a run", [short, batch], {"data": "soup"}),
        (rf"\({SECTION}.batch_size; .* was 2, now 3\)", [short, batch], {"resume": True}),
        ("model.transformer.hidden_size was 48, now 96", [
            short, "model.transformer.hidden_size=96", "model.transformer.num_attention_heads=6",
        ], {"resume": True}),
        (r"other data \(training.sha256, validation.sha256\)", [short],
         {"resume": True, "data": "soup"}),
        (r"other data \(tokenizer\)", [short], {"resume": True, "tokenizer": "another"}),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=words) as refusal:
            world(folder, tmp_path, *settings, **others)
        assert "\n" not in str(refusal.value)
        assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("train", "setting"),
    [
        (train_tokenizer, "model.tokenizer.latent_channels=8"),
        (train_policy, "policy_training.shift=1"),
    ],
)
def test_the_other_stages_refuse_another_configuration_too(folder, tmp_path, train, setting):
    data = [folder / "milk_demo.hdf5"]
    train(load_config(Pretraining, "tiny"), data, tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointError, match=setting.split("=")[0]):
        train(load_config(Pretraining, "tiny", [setting]), data, tmp_path, True)
    with pytest.raises(CheckpointError, match="already holds a run"):
        train(load_config(Pretraining, "tiny"), data, tmp_path)
    assert snapshot(tmp_path) == before
    # The other stages' sections are not this run's.
    train(
        load_config(Pretraining, "tiny", ["world_model_training.batch_size=7"]),
        data,
        tmp_path,
        True,
    )


def test_tokens_are_kept_as_long_as_what_they_are_made_from(folder, tmp_path, monkeypatch):
    made = []

    def counting(*args, progress=None, **kwargs):
        if progress:  # of the training windows
            made.append(args)
        return tokenize_windows(*args, progress=progress, **kwargs)

    monkeypatch.setattr(commands, "tokenize_windows", counting)

    def stopped(*_, **__):
        raise KeyboardInterrupt  # after tokenising, before the first checkpoint

    monkeypatch.setattr(commands, "train", stopped)
    for others, expected in (
        ({}, 1),
        ({}, 1),
        ({"tokenizer": "another"}, 2),
        ({"tokenizer": "another", "data": "soup"}, 3),
    ):
        with pytest.raises(KeyboardInterrupt):
            world(folder, tmp_path, **others)
        assert len(made) == expected
