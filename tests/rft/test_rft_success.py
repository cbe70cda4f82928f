"""Fine-tuning by a success classifier, in a world whose frames are numbers."""

from types import SimpleNamespace

import pytest
import torch
from rft_mocks import MockEngine, MockPolicy, make_windows
from torch import nn

from vlarft.config import load_config
from vlarft.engine import Sampling
from vlarft.errors import CheckpointError, ConfigError
from vlarft.models.success import SuccessClassifier, SuccessConfig, build_success_classifier
from vlarft.rft import trainer as trainer_module
from vlarft.rft.config import RFTConfig
from vlarft.rft.judge import BUNDLED, judge, load_classifier, solved_share
from vlarft.rft.origin import run_origin
from vlarft.rft.trainer import Trainer

SETTINGS = ("reward.kind=success", "reward.metric=lpips-alex", "steps=2", "scenes=4", "rollouts=6")
SIDE = 32


class FrameEngine(MockEngine):
    """The last frame is as bright as the mean action; noise of a seed adds to it."""

    def __init__(self):
        super().__init__()
        self.seeds = []
        self.world.tokenizer = SimpleNamespace(config=SimpleNamespace(resolution=SIDE))

    def imagine(self, _scenes, actions, sampling):
        self.seeds.append(sampling.seed)
        return SimpleNamespace(tokens=actions.mean((2, 3))[:, :, None, None] + sampling.seed % 2)

    def decode(self, _scenes, tokens):
        assert tokens.shape[2] == 1  # only the last frame is drawn
        return tokens[..., None, None].expand(-1, -1, 1, 3, SIDE, SIDE)


class Bright(nn.Module):
    """Calls a frame solved when it is brighter than 0."""

    config = SuccessConfig(image_size=SIDE)

    def solved(self, frames):
        return frames.mean((1, 2, 3)) > 0


def settings(*overrides):
    return load_config(RFTConfig, None, [*SETTINGS, *overrides])


def test_a_rollout_is_worth_its_share_of_solved_imaginations():
    engine, actions = FrameEngine(), torch.tensor([[-1.5, -0.5], [0.5, 1]])[..., None, None]
    found = solved_share(engine, None, actions, Bright(), Sampling(), seeds=[0, 1])
    assert found.tolist() == [[0, 0.5], [1, 1]]
    assert engine.seeds == [0, 1]
    scenes = SimpleNamespace()
    outcome = judge(
        engine, scenes, actions, make_windows().batch([0, 1]), settings(), seeds=[0, 1],
        scale=torch.ones(7), classifier=Bright(),
    )  # fmt: skip
    assert outcome.distance.tolist() == [[1, 0.5], [0, 0]]
    assert outcome.l1 is None


@pytest.fixture
def bright(monkeypatch):
    monkeypatch.setattr(trainer_module, "load_classifier", lambda *_: Bright())


@pytest.mark.usefixtures("bright")
def test_groups_that_agree_are_skipped_and_others_teach():
    overrides = ("optimiser.warmup=0", "optimiser.head_lr=0.01", "objective.anchor=0")
    trainer = Trainer(FrameEngine(), MockPolicy(), make_windows(), settings(*overrides))
    trainer._noise_seeds = lambda _purpose: [0]
    metrics = trainer.run_step()
    assert 0 < metrics["skipped_groups"] < 4
    assert metrics["reward_mean"] == -metrics["distance"]
    assert metrics["l1"] is None
    assert metrics["updates"] == 1

    dark = MockPolicy()
    with torch.no_grad():
        dark.head.bias -= 99
    before = dark.head.bias.clone()
    trainer = Trainer(FrameEngine(), dark, make_windows(), settings(*overrides))
    metrics = trainer.run_step()
    assert metrics["skipped_groups"] == 4  # nothing is solved: no group says anything
    assert metrics["updates"] == 0
    assert torch.equal(dark.head.bias, before)


def stored(folder, **config):
    sizes = {"image_size": SIDE, "channels": (8,)} | config
    build_success_classifier(SuccessConfig(**sizes)).save_pretrained(folder)
    return f"reward.classifier={folder}"


def test_the_classifier_is_checked_before_anything_runs(tmp_path):
    engine = FrameEngine()
    assert load_classifier(engine, RFTConfig().reward) is None
    found = load_classifier(engine, settings(stored(tmp_path / "a", threshold=0.3)).reward)
    assert found.config.threshold == 0.3
    with pytest.raises(ConfigError, match="is for 64 px, the world model draws 32 px; train one"):
        load_classifier(engine, settings(stored(tmp_path / "b", image_size=64)).reward)
    with pytest.raises(CheckpointError, match="orientation 'rotated-180', the success classifier"):
        load_classifier(engine, settings(stored(tmp_path / "c", orientation="raw")).reward)
    with pytest.raises(CheckpointError, match="no such file"):
        load_classifier(engine, settings(f"reward.classifier={tmp_path / 'd'}").reward)


def test_a_classifier_belongs_to_its_reward():
    with pytest.raises(ConfigError, match=r"reward\.classifier is for reward\.kind = success"):
        load_config(RFTConfig, None, ["reward.classifier=x"])


def test_a_run_remembers_its_classifier(tmp_path):
    windows, parts = make_windows(), []
    for threshold in (0.0, 0.5):
        stored(tmp_path, threshold=threshold)
        classifier = SuccessClassifier.from_pretrained(tmp_path)
        parts.append(run_origin(FrameEngine(), MockPolicy(), windows, windows, classifier))
    assert parts[0]["success classifier"] != parts[1]["success classifier"]
    assert "success classifier" not in run_origin(FrameEngine(), MockPolicy(), windows, windows)


def test_the_bundled_one_is_for_the_bundled_world():
    assert SuccessClassifier.from_pretrained(BUNDLED).config.image_size == 64
