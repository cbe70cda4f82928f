import numpy as np
import pytest

from tests.libero.fake_scene import FIRST, FakeScene, initial_state
from vlarft.errors import DataError
from vlarft.libero.expert import OPENING, Expert, Phase, plan_grasp, play_expert

FAR = np.array([[9.0, 9.0]])


def box(x, y, z):
    grid = np.array(np.meshgrid(*[np.linspace(-1, 1, 9)] * 3)).reshape(3, -1).T
    return grid * (x / 2, y / 2, z / 2) + (0, 0, z / 2)


def ring(radius, height, n=72):
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    circle = radius * np.stack([np.cos(angle), np.sin(angle)], 1)
    return np.concatenate([np.c_[circle, np.full(n, z)] for z in np.linspace(0, height, 9)])


@pytest.mark.parametrize("noise", [0.0, 0.06])
@pytest.mark.parametrize("seed", range(5))
def test_the_target_ends_in_the_goal(noise, seed):
    scene = FakeScene()
    rollout = play_expert(scene, initial_state(), np.random.default_rng(seed), noise=noise)
    assert rollout.success
    assert rollout.attempts == 1
    assert len(rollout.states) == len(rollout.actions) + 1
    assert rollout.actions.dtype == np.float32
    assert np.abs(rollout.actions).max() <= 1
    assert set(np.sign(rollout.actions[:, 6])) == {-1, 1}


def test_replayed_actions_give_the_recorded_states():
    rollout = play_expert(FakeScene(), initial_state(), np.random.default_rng(1))
    scene = FakeScene()
    scene.start(initial_state())
    for action, state in zip(rollout.actions, rollout.states, strict=False):
        np.testing.assert_array_equal(scene.state(), state)
        scene.step(action)


def test_a_missed_grasp_is_tried_again_three_times_at_most():
    again = play_expert(FakeScene(misses=1), initial_state(), np.random.default_rng(0))
    assert (again.success, again.attempts) == (True, 2)
    never = play_expert(FakeScene(misses=99), initial_state(), np.random.default_rng(0))
    assert (never.success, never.attempts, len(never.actions)) == (False, 3, 280)


def test_a_lost_object_is_taken_again():
    scene = FakeScene()
    scene.start(initial_state())
    expert = Expert(scene, np.random.default_rng(0), noise=0)
    lost = False
    for _ in range(280):
        if expert.phase is Phase.CARRY and not lost:
            scene.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))  # as if it had slipped
            lost = True
        if scene.step(expert.act()):
            break
    else:
        raise AssertionError("the lost object was left where it fell")
    assert expert.attempts == 2


def test_a_spoilt_grasp_fails():
    rollout = play_expert(FakeScene(), initial_state(), np.random.default_rng(0), spoil=0.06)
    assert not rollout.success


@pytest.mark.parametrize(("size", "turn"), [((0.03, 0.09, 0.1), -90), ((0.09, 0.03, 0.1), 0)])
def test_the_narrow_side_is_spanned(size, turn):
    grasp = plan_grasp(box(*size), FAR, closing=np.pi / 2)  # the fingers close along y
    assert np.rad2deg(grasp.turn) == pytest.approx(turn)
    np.testing.assert_allclose(grasp.point, (0, 0, 0.065), atol=1e-9)


def test_a_neighbour_turns_the_grasp():
    free = plan_grasp(box(0.05, 0.05, 0.1), FAR, closing=0.0)
    beside = plan_grasp(box(0.05, 0.05, 0.1), np.array([[0.045, 0.0]]), closing=0.0)
    assert free.turn == pytest.approx(0, abs=1e-9)
    assert abs(np.rad2deg(beside.turn)) > 20


def test_what_is_too_wide_is_taken_by_its_rim():
    radius = 0.07
    assert 2 * radius > OPENING
    grasp = plan_grasp(ring(radius, 0.05), np.array([[radius + 0.045, 0.0]]), closing=0.0)
    assert np.linalg.norm(grasp.point[:2]) == pytest.approx(radius - 0.006)
    assert grasp.point[0] < 0  # away from the neighbour
    assert grasp.point[2] == pytest.approx(0.03)


@pytest.mark.parametrize("seed", range(5))
def test_a_flat_goal_is_reached_in_one_attempt(seed):
    """The lift over a plate is small, and must not be taken for a missed grasp."""
    scene, state = FakeScene(goal_height=0.02), initial_state()
    state[FIRST["basket"] + 2] = 0.01  # it lies on the floor
    rollout = play_expert(scene, state, np.random.default_rng(seed))
    assert (rollout.success, rollout.attempts) == (True, 1)


@pytest.mark.parametrize("seed", range(5))
def test_an_object_from_high_up_is_not_dropped(seed):
    scene, state = FakeScene(goal_height=0.02), initial_state()
    state[FIRST["basket"] + 2] = 0.01
    state[FIRST["milk"] + 2] += 0.3  # on a cabinet
    rollout = play_expert(scene, state, np.random.default_rng(seed))
    assert rollout.success
    released = rollout.states[np.flatnonzero(rollout.actions[:, 6] > 0)[-1] + 1]
    assert released[FIRST["milk"] + 2] < 0.1  # its middle, when it stands: 0.06


@pytest.mark.parametrize("thing", ["target", "goal"])
def test_a_task_about_a_fixture_is_refused(thing):
    scene = FakeScene()
    setattr(scene, thing, "drawer")
    with pytest.raises(DataError, match=r"'drawer' is no movable object; the scripted expert"):
        play_expert(scene, initial_state(), np.random.default_rng(0))
