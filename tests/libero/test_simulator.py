"""With LIBERO itself: in this Python, or in the one that VLARFT_LIBERO_PYTHON names."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vlarft
from vlarft.errors import DataError
from vlarft.libero.expert import play_expert
from vlarft.libero.perturb import NONE, PERTURBATIONS, amounts_of, perturbed_state
from vlarft.libero.remote import _BOOT, RemoteSimulator, ask, choose_renderer
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


@pytest.mark.parametrize(
    ("task", "target", "goal"),
    [
        (0, "wooden_cabinet_1_middle_region", "wooden_cabinet_1_middle_region"),  # a drawer
        (1, "akita_black_bowl_1", "flat_stove_1_cook_region"),
        (7, "flat_stove_1", "flat_stove_1"),
    ],
)
def test_tasks_about_fixtures_can_be_played_but_not_by_the_expert(task, target, goal):
    with RemoteSimulator("libero_goal", task, 16, PYTHON) as opened:
        assert (opened.target, opened.goal) == (target, goal)
        initial = opened.initial_states()[0]
        assert not opened.start(initial)
        assert np.isfinite(opened.sense()["target"]).all()
        moved = start_state(opened, initial, "moved", np.random.default_rng(0))
        assert moved is not None
        assert not opened.start(moved)
        with pytest.raises(DataError, match=f"'{goal}' is no movable object; the scripted expert"):
            play_expert(opened, initial, np.random.default_rng(0))
        with pytest.raises(DataError, match=r"'flat_stove_1_cook_region' .* is a region"):
            opened.points("flat_stove_1_cook_region")


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


PLAIN_STEPS = """
import contextlib, sys
import numpy as np
from vlarft.libero.expert import play_expert
from vlarft.libero.simulator import Simulator

def played(simulator, rollout):
    simulator.start(rollout.states[0])
    seen = []
    for action in rollout.actions:
        simulator.step(action)
        seen.append(np.concatenate([simulator.state(), *simulator.proprioception().values()]))
    return np.stack(seen)

simulator = Simulator("libero_object", 1)
rollout = play_expert(simulator, simulator.initial_states()[0], np.random.default_rng(0))
assert rollout.success
ours = played(simulator, rollout)
del simulator._env.env._update_observables
simulator._physics = contextlib.nullcontext()
np.testing.assert_array_equal(ours, played(simulator, rollout))
print("equal", len(ours))
"""


def test_steps_are_robosuite_s_own_to_the_bit():
    """A whole episode, the object grasped and carried."""
    boot = _BOOT.split("from vlarft.libero.worker")[0]
    command = [str(PYTHON or sys.executable), "-c", boot + PLAIN_STEPS]
    command.append(str(Path(vlarft.__file__).parent))
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.startswith("equal"), done.stderr


def test_pictures(simulator):
    simulator.start(simulator.initial_states()[0])
    picture = simulator.draw("agentview")
    assert picture.shape == (64, 64, 3)
    assert picture.std() > 20
    with pytest.raises(DataError, match=r"no camera 'front'; allowed: .*agentview"):
        simulator.draw("front")


def test_pictures_of_moving_things_are_those_of_the_whole_scene(simulator):
    """The arm moves, then an object goes with it; `set_look` has everything drawn anew."""
    rollout = play_expert(simulator, simulator.initial_states()[1], np.random.default_rng(3))
    layered = []
    for state in rollout.states[::9]:
        simulator.set_state(state)
        layered.append([simulator.draw(camera) for camera in ("agentview", "frontview")])
    for state, pictures in zip(rollout.states[::9], layered, strict=True):
        simulator.set_state(state)
        simulator.set_look({}, [0])
        for camera, picture in zip(("agentview", "frontview"), pictures, strict=True):
            np.testing.assert_array_equal(picture, simulator.draw(camera))


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


def test_a_start_does_not_depend_on_what_was_played_before(simulator):
    initial = simulator.initial_states()
    simulator.start(initial[5])
    simulator.run(np.full((4, 7), 0.3, np.float32))  # moved away, the gripper closed
    simulator.start(initial[3])
    first = simulator.state()
    simulator.start(initial[3])
    np.testing.assert_array_equal(simulator.state(), first)


def perturbed(simulator, name, initial):
    rng = np.random.default_rng(0)
    return perturbed_state(simulator, initial, amounts_of(name, seen=False), rng)


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("object", {"target"}),
        ("goal", {"goal"}),
        ("robot", {"arm"}),
        ("combined", {"target", "goal", "arm"}),
    ],
)
def test_perturbed_states_change_what_they_say(simulator, kind, parts):
    initial = simulator.initial_states()[3]
    where = {name: simulator.entries(name) for name in simulator.objects}
    where |= {"arm": simulator.arm()}
    named = {simulator.target: "target", simulator.goal: "goal"}
    for level, shift, bend in (("minor", 0.025, 0.05), ("major", 0.05, 0.1)):
        state = perturbed(simulator, f"{kind}-{level}", initial)
        changes = {named.get(name, name): (state - initial)[e] for name, e in where.items()}
        assert {name for name, change in changes.items() if change.any()} == parts
        for name in parts - {"arm"}:  # from where it rests, which is within 2 mm of `initial`
            assert 0 < np.abs(changes[name][:2]).max() < shift + 0.002
        assert np.abs(changes["arm"]).max() <= bend
        simulator.start(state)
        for name in simulator.objects:  # nothing slips
            assert np.abs((simulator.state() - state)[where[name]][:2]).max() < 0.01


def test_looks_change_pictures_alone_and_leave_no_trace(simulator):
    initial, actions = simulator.initial_states()[3], np.full((4, 7), 0.3, np.float32)

    def played(name, seed=0):
        """The first picture of an episode, and its last state."""
        simulator.set_look(amounts_of(name, seen=True), [4, 0, 0, seed])
        simulator.start(initial)
        picture = simulator.draw("agentview")
        simulator.run(actions)
        return picture, simulator.state()

    own, last = played(NONE)
    for name in PERTURBATIONS:
        if amounts_of(name, seen=True):
            pictures = []
            for seed in (0, 1):
                picture, state = played(name, seed)
                np.testing.assert_array_equal(state, last)
                pictures.append(picture)
            again, _ = played(NONE)
            np.testing.assert_array_equal(again, own)
            assert min(np.abs(p.astype(int) - own).mean() for p in pictures) > 3
            assert np.abs(pictures[0].astype(int) - pictures[1]).mean() > 3
    renderer, _ = choose_renderer(PYTHON)
    with RemoteSimulator("libero_object", 0, 64, PYTHON, renderer) as fresh:
        fresh.start(initial)
        np.testing.assert_array_equal(fresh.draw("agentview"), own)
        fresh.run(actions)
        np.testing.assert_array_equal(fresh.state(), last)
