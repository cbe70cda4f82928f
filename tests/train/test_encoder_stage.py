"""The encoder's stage: scenes to places, and a policy that stands on them."""

import json

import h5py
import numpy as np
import pytest
import torch

from tests.train.recordings import write_recordings
from vlarft.config import load_config
from vlarft.errors import CheckpointError, ConfigError, DataError
from vlarft.models.flow_policy import FlowPolicy, FlowPolicyConfig
from vlarft.models.place_encoder import PlaceEncoderConfig, PlaceNetwork
from vlarft.train.commands import Pretraining, train_policy
from vlarft.train.encoder_stage import train_encoder

SIZES = PlaceEncoderConfig(
    image_size=32, channels=(8, 8, 8), features=8, queries=2, text_width=8, width=16, max_words=12
)
STEPS = ["steps=4", "batch_size=3", "validate_every=2", "checkpoint_every=2", "log_every=1"]


@pytest.fixture
def config():
    config = load_config(Pretraining, "tiny", [f"encoder_training.{setting}" for setting in STEPS])
    policy = FlowPolicyConfig.preset("tiny").model_copy(update={"encoder": SIZES})
    return config.model_copy(update={"policy": policy})


@pytest.fixture
def scenes(tmp_path):
    rng = np.random.default_rng(0)
    file = tmp_path / "milk_scenes.hdf5"
    with h5py.File(file, "w") as handle:
        handle["agentview_rgb"] = rng.integers(0, 255, (24, 32, 32, 3), np.uint8)
        handle["places"] = rng.uniform(-0.2, 0.4, (24, 3, 3)).astype(np.float32)
        handle.attrs.update(
            task="milk",
            language="pick up the milk and place it in the basket",
            objects=["milk_1", "basket_1", "butter_1"],
            target="milk_1",
            goal="basket_1",
        )
    return [file]


def test_an_encoder_is_trained_and_a_policy_stands_on_it(config, scenes, tmp_path):
    folder = train_encoder(config, scenes, tmp_path / "encoder")
    network = PlaceNetwork.from_pretrained(folder)
    with h5py.File(scenes[0]) as file:
        learned = np.arange(24) % 12 != 11
        places = torch.from_numpy(file["places"][()][learned])
    asked = torch.stack([places[:, [0, 1]], places[:, [2, 1]]], 1).reshape(-1, 3)
    torch.testing.assert_close(network.centre, asked.mean(0))
    torch.testing.assert_close(network.spread, asked.std(0))
    summary = json.loads((tmp_path / "encoder" / "summary.json").read_text())
    assert summary["stage"] == "encoder"
    assert 0 <= summary["validation"]["target_near"] <= 1
    page = (tmp_path / "encoder" / "report.html").read_text()
    assert "Pre-training of the encoder" in page
    assert "22 training scenes of 1 tasks, judged on 2 others" in page
    recordings = [write_recordings(tmp_path / "pick_up_the_milk_demo.hdf5")]
    run = tmp_path / "policy"
    policy = FlowPolicy.from_pretrained(train_policy(config, recordings, run, places=folder))
    torch.testing.assert_close(policy.encoder.where.state_dict(), network.state_dict())
    PlaceNetwork(SIZES).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"other data .encoder."):
        train_policy(config, recordings, run, True, places=tmp_path / "other")


def test_resuming_gives_the_same_weights(config, scenes, tmp_path):
    whole = PlaceNetwork.from_pretrained(train_encoder(config, scenes, tmp_path / "a"))
    again = config.model_copy(
        update={
            "encoder_training": config.encoder_training.model_copy(update={"schedule": "constant"})
        }
    )
    half = again.model_copy(
        update={"encoder_training": again.encoder_training.model_copy(update={"steps": 2})}
    )
    train_encoder(half, scenes, tmp_path / "b")
    resumed = PlaceNetwork.from_pretrained(train_encoder(again, scenes, tmp_path / "b", True))
    straight = PlaceNetwork.from_pretrained(train_encoder(again, scenes, tmp_path / "c"))
    torch.testing.assert_close(resumed.state_dict(), straight.state_dict(), rtol=0, atol=0)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(whole.state_dict().values(), straight.state_dict().values(), strict=True)
    )


def test_refusals(config, scenes, tmp_path):
    small = load_config(Pretraining, "tiny")
    with pytest.raises(ConfigError, match="policy=places"):
        train_encoder(small, scenes, tmp_path / "x")
    with pytest.raises(ConfigError, match="--encoder FOLDER"):
        train_policy(config, scenes, tmp_path / "x")
    with h5py.File(scenes[0], "a") as handle:
        pictures = handle["agentview_rgb"][()]
        del handle["agentview_rgb"]
        handle["agentview_rgb"] = pictures[:, :16, :16]
    with pytest.raises(DataError, match="scenes of 16 px, the configured encoder sees 32 px"):
        train_encoder(config, scenes, tmp_path / "x")
    assert not (tmp_path / "x").exists()
