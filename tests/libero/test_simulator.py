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


def test_a_start_does_not_depend_on_what_was_played_before(simulator):
    initial = simulator.initial_states()
    simulator.start(initial[5])
    simulator.run(np.full((4, 7), 0.3, np.float32))  # moved away, the gripper closed
    simulator.start(initial[3])
    first = simulator.state()
    simulator.start(initial[3])
    np.testing.assert_array_equal(simulator.state(), first)
