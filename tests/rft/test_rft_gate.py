"""Groups that count less where the world model does not know what comes next."""

import math

import pytest
import torch
from rft_mocks import MockEngine, MockPolicy, make_windows

from vlarft.config import load_config
from vlarft.errors import ConfigError
from vlarft.rft import gate
from vlarft.rft.advantages import Advantages
from vlarft.rft.config import GateConfig, RFTConfig
from vlarft.rft.gate import Gate, apply_gate, gate_weights
from vlarft.rft.trainer import Trainer

SETTINGS = ("steps=2", "scenes=4", "rollouts=6", "optimiser.warmup=0", "optimiser.head_lr=0.01")


def trainer(*overrides):
    config = load_config(RFTConfig, None, [*SETTINGS, *overrides])
    return Trainer(MockEngine(), MockPolicy(), make_windows(), config)


@pytest.fixture
def entropies(monkeypatch):
    """Entropy of a window is its first recorded action; counts the windows that were asked."""
    asked = []

    def entropy(_world, frames, actions):
        assert len(frames) == len(actions) == 1
        asked.append(float(actions[0, 0, 0]))
        return actions[:, 0, 0].double()

    monkeypatch.setattr(gate, "frame_entropy", entropy)
    return asked


def test_weights():
    entropy = torch.tensor([0.0, 0.5, 0.6, 0.7])
    assert gate_weights(entropy, GateConfig()).tolist() == [1] * 4
    soft = gate_weights(entropy, GateConfig(entropy=0.5, scale=0.1))
    assert soft.tolist() == pytest.approx([1, 1, math.exp(-1), math.exp(-2)], rel=1e-5)
    assert gate_weights(entropy, GateConfig(entropy=0.5, scale=0)).tolist() == [1, 1, 0, 0]


def test_advantages_are_weighed_and_closed_groups_left_out():
    values = torch.tensor([[1.0, -1], [1, -1], [1, -1]])
    kept = torch.tensor([True, True, False])
    entropy = torch.tensor([math.log(4), 50, -1]).double()
    found, numbers = apply_gate(
        Advantages(values, torch.ones(3), kept), entropy, GateConfig(entropy=0.0, scale=1)
    )
    torch.testing.assert_close(found.values, torch.tensor([[0.25, -0.25], [0, 0], [1, -1]]))
    assert found.kept.tolist() == [True, True, False]
    assert numbers["gate_entropy"] == pytest.approx(float(entropy.mean()))
    assert numbers["gate_weight"] == pytest.approx(1.25 / 3)
    assert numbers["gated_groups"] == 2
    shut, _ = apply_gate(
        Advantages(values, torch.ones(3), kept), entropy, GateConfig(entropy=0.0, scale=0)
    )
    assert shut.kept.tolist() == [False, False, False]


def test_a_window_is_asked_once(entropies):
    windows = make_windows()
    batch = windows.batch([2, 5])
    asker = Gate(MockEngine())
    found = asker([2, 5], batch)
    again = asker([5, 2], windows.batch([5, 2]))
    assert len(entropies) == 2
    assert torch.equal(found, again.flip(0))
    assert torch.equal(found, batch.actions[:, 0, 0].double())


@pytest.mark.usefixtures("entropies")
def test_steps_count_what_was_gated():
    """A gate that closes everything leaves nothing to learn; an open one changes nothing."""
    plain, opened = trainer("objective.anchor=0"), trainer("objective.anchor=0", "gate.entropy=9")
    closed = trainer("objective.anchor=0", "gate.entropy=0", "gate.scale=0")
    for row in range(len(closed.windows)):
        closed.gate._known[row] = torch.ones(1).double()
    before = [p.detach().clone() for p in closed.parameters]
    found = [t.run_step() for t in (plain, opened, closed)]
    assert "gated_groups" not in found[0]
    assert (found[1]["gated_groups"], found[1]["gate_weight"]) == (0, 1)
    assert (found[2]["gated_groups"], found[2]["gate_weight"]) == (4, 0)
    assert found[2]["skipped_groups"] == found[0]["skipped_groups"] == 0
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters, opened.parameters, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, closed.parameters, strict=True))
    assert "policy_loss" not in found[2]
    assert "gate" in found[1]["seconds"]


@pytest.mark.usefixtures("entropies")
def test_a_soft_gate_scales_the_gradient():
    """Of one scene without entropy bonus: weight w gives w times the gradient."""
    common = ("scenes=1", "objective.anchor=0", "objective.entropy=0")
    plain, soft = trainer(*common), trainer(*common, "gate.entropy=0", "gate.scale=1")
    for row in range(len(soft.windows)):
        soft.gate._known[row] = torch.tensor([math.log(4)]).double()  # weight 1/4
    norms = [t.run_step()["gradient_norm"] for t in (plain, soft)]
    assert norms[1] == pytest.approx(norms[0] / 4, rel=1e-4)


def test_a_gate_needs_a_reward_of_the_world_model():
    with pytest.raises(ConfigError, match=r"gate\.entropy is about the world model"):
        load_config(RFTConfig, None, ["gate.entropy=0.5", "reward.kind=actions"])
