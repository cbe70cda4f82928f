"""With LIBERO itself: in this Python, or in the one that VLARFT_LIBERO_PYTHON names."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

from vlarft.errors import DataError
from vlarft.libero.expert import play_expert
from vlarft.libero.remote import RemoteSimulator, ask, choose_renderer
from vlarft.libero.starts import SHIFT, start_state

_OTHER = os.environ.get("VLARFT_LIBERO_PYTHON")
PYTHON = Path(_OTHER) if _OTHER else None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not _OTHER and importlib.util.find_spec("libero") is None,
        reason="LIBERO is not installed; pip install 'vlarft[libero]', or name an interpreter that "
        "has it in VLARFT_LIBERO_PYTHON",
    ),
]


@pytest.fixture(scope="module")
def simulator():
    renderer, _ = choose_renderer(PYTHON)
    with RemoteSimulator("libero_object", 0, 64, PYTHON, renderer) as opened:
        yield opened


def test_versions_and_tasks():
    assert ask("versions", PYTHON)["mujoco"] < "3.4"
    tasks = ask("suite_tasks", PYTHON, suite="libero_object")
    assert len(tasks) == 10
    assert tasks[0]["language"] == "pick up the alphabet soup and place it in the basket"


def test_a_task_that_does_not_exist():
    with pytest.raises(DataError, match=r"has no task 10; allowed: 0 to 9"):
        RemoteSimulator("libero_object", 10, python=PYTHON)


def test_the_expert_solves_a_moved_start_that_replays(simulator, tmp_path):
    initial = simulator.initial_states()
    assert initial.shape == (50, simulator.state_size)
    rng = np.random.default_rng(0)
    state = start_state(simulator, initial[0], "moved", rng)
    entries = simulator.entries(simulator.target)
    moved = np.abs(state[entries][:2] - initial[0][entries][:2]).max()
    assert 0 < moved < SHIFT + 0.01
    rollout = play_expert(simulator, state, rng)
    assert rollout.success
    film = tmp_path / "film.mp4"
    simulator.start_film(film, "agentview")
    simulator.start(state)
    assert simulator.run(rollout.actions) == (True, len(rollout.actions))
    simulator.end_film()
    assert film.stat().st_size > 1000
    np.testing.assert_allclose(simulator.state(), rollout.states[-1], atol=1e-3)


def test_pictures(simulator):
    simulator.start(simulator.initial_states()[0])
    picture = simulator.draw("agentview")
    assert picture.shape == (64, 64, 3)
    assert picture.std() > 20
    with pytest.raises(DataError, match=r"no camera 'front'; allowed: .*agentview"):
        simulator.draw("front")


def test_a_branch_does_what_the_recording_did(simulator):
    """A closing gripper and a turning arm: what a state does not hold is restored."""
    rollout = play_expert(simulator, simulator.initial_states()[1], np.random.default_rng(3))
    entries = simulator.entries(simulator.target)
    closing = int(np.flatnonzero(rollout.actions[:, 6] > 0)[0])
    for at in (5, closing + 3, closing + 20):
        done, ahead = rollout.actions[:at, 6], rollout.actions[at : at + 8]
        found = simulator.branch(rollout.states[at], done, ahead, "agentview", [4, 8])
        recorded = rollout.states[at + 8][entries][:3]
        np.testing.assert_allclose(found["target"], recorded, atol=1e-4)
        for number, frame in zip((4, 8), found["frames"], strict=True):
            simulator.set_state(rollout.states[at + number])
            difference = np.abs(simulator.draw("agentview").astype(int) - frame)
            assert difference.mean() < 0.05
        again = simulator.branch(rollout.states[at], done, ahead, "agentview", [4, 8])
        assert all(np.array_equal(found[key], again[key]) for key in found)


def test_a_branch_without_what_the_gripper_was_told_drops_the_target(simulator):
    rollout = play_expert(simulator, simulator.initial_states()[1], np.random.default_rng(3))
    at = int(np.flatnonzero(rollout.actions[:, 6] > 0)[0]) + 40  # carried
    told = [rollout.actions[:at, 6], np.zeros(0, np.float32)]
    heights = [
        simulator.branch(rollout.states[at], g, rollout.actions[at : at + 8], "agentview", [])[
            "target"
        ][2]
        for g in told
    ]
    assert heights[1] < heights[0] - 0.02
