"""Figures of executed chunks, at grasps too."""

import math

import pytest
import torch

from vlarft.demo import DEMOS, POLICY, WORLD, load_windows
from vlarft.errors import DataError, ShapeError
from vlarft.eval.executed import executed_chunks, measure_executed
from vlarft.models.flow_policy import FlowPolicy
from vlarft.models.policy import Observation
from vlarft.models.world_model import WorldModel

EPISODE = torch.tensor([0, 0, 1, 1])


def expert() -> torch.Tensor:
    """Four windows of four actions; the gripper closes at the third action of windows 1 and 2."""
    chunk = torch.zeros(4, 4, 7)
    chunk[..., -1] = -1
    chunk[1:3, 2:, -1] = 1
    return chunk


def values(found) -> dict[str, float]:
    return {name: one.value for name, one in found.figures.items()}


def test_the_expert_itself_is_right_everywhere() -> None:
    found = measure_executed(expert(), expert(), EPISODE)
    assert (found.windows, found.grasps, found.changes) == (4, 2, None)
    assert set(values(found).values()) == {0.0}


def test_grasps_count_what_comes_before_the_gripper_closes() -> None:
    actions = expert()
    actions[1, :2, 0] = 0.25  # 0.5 off in x when the expert closes
    actions[1, 2:, 1] = 1.0  # afterwards: no matter at the grasp
    actions[2, 0, 0] = -0.1
    actions[2, :, -1] = -1  # stays open
    actions[0, :, 2] = 0.3  # no grasp: part of the means over all windows alone
    found = values(measure_executed(actions, expert(), EPISODE))
    assert found["grasp_x"] == pytest.approx(math.sqrt((0.5**2 + 0.1**2) / 2))
    assert found["grasp_mean_x"] == pytest.approx((0.5 - 0.1) / 2)
    assert found["grasp_y"] == found["grasp_mean_y"] == found["grasp_z"] == 0
    assert found["open"] == 0.5
    assert found["gripper"] == pytest.approx(2 / 16)  # two actions of window 2
    assert found["way"] == pytest.approx((1.2 + math.hypot(0.5, 2.0) + 0.1) / 4)
    assert found["action_l1"] == pytest.approx((1.2 + 0.5 + 2 + 0.1 + 2 * 2) / (4 * 28))


def test_changes_are_paired() -> None:
    """Both are off by noise that they share; the change is known far better than either."""
    random = torch.Generator().manual_seed(0)
    recorded = expert().repeat(20, 1, 1)
    episode = torch.arange(80) // 4
    before = recorded.clone()
    before[..., 0] += 0.3 * torch.randn(80, 1, generator=random)
    after = before.clone()
    after[..., 1] += 0.1
    found = measure_executed(after, recorded, episode, before)
    change = found.changes
    assert change is not None
    assert change["grasp_mean_y"].value == pytest.approx(0.2)
    assert change["grasp_mean_y"].interval == pytest.approx((0.2, 0.2))
    assert not change["grasp_x"].excludes_zero
    assert change["way"].interval[0] > 0
    width = found.figures["way"].interval[1] - found.figures["way"].interval[0]
    assert change["way"].interval[1] - change["way"].interval[0] < width / 2
    assert found.to_dict()["changes"]["open"]["value"] == 0


def test_what_cannot_be_compared_is_refused() -> None:
    still = expert()
    still[..., -1] = -1
    with pytest.raises(DataError, match=r"closes in 0 of 4 windows"):
        measure_executed(expert(), still, EPISODE)
    with pytest.raises(DataError, match=r"fewer than 2 episodes"):
        measure_executed(expert(), expert(), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"before \[4, 3, 7\]; expected \[4, 4, 7\]"):
        measure_executed(expert(), expert(), EPISODE, expert()[:, :3])


def test_chunks_are_those_that_the_policy_executes() -> None:
    windows = load_windows([DEMOS], "val", WorldModel.from_pretrained(WORLD).layout)
    policy = FlowPolicy.from_pretrained(POLICY).eval()
    numbers = windows.grasps()[::20]
    found = executed_chunks(policy, windows, numbers, batch=3)
    batch = windows.batch(numbers)
    seen = Observation(batch.frames[:, 0], batch.proprioception, batch.instruction)
    with torch.no_grad():
        torch.testing.assert_close(found, policy.act(seen).clamp(-1, 1))
    assert measure_executed(found, batch.actions, windows.episode[numbers]).grasps == len(numbers)
