import numpy as np
import pytest

from tests.libero.fake_scene import FIRST, PLACES, SIZES, FakeScene, initial_state
from vlarft.libero.starts import GAP, SHIFT, TURN, footprint_gap, start_state


def place(state, name):
    return state[FIRST[name] : FIRST[name] + 2]


def made(kind, seed=0, scene=None, **options):
    scene = scene or FakeScene()
    return start_state(scene, initial_state(), kind, np.random.default_rng(seed), **options)


def test_a_standard_start_is_the_initial_state():
    np.testing.assert_array_equal(made("standard"), initial_state())


@pytest.mark.parametrize("seed", range(10))
def test_moved_objects_stay_within_the_shift_and_apart(seed):
    state = made("moved", seed)
    np.testing.assert_array_equal(state[:5], initial_state()[:5])  # time and robot
    for name, home in PLACES.items():
        assert 0 < np.abs(place(state, name) - home).max() <= SHIFT
        w, _, _, z = state[FIRST[name] + 3 : FIRST[name] + 7]
        assert abs(2 * np.arctan2(z, w)) <= (0 if name == "basket" else TURN)
    scene = FakeScene()
    scene.start(state)
    names = list(SIZES)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert footprint_gap(scene.points(a)[:, :2], scene.points(b)[:, :2]) >= GAP - 1e-9


def test_equal_seeds_give_equal_starts():
    np.testing.assert_array_equal(made("moved", 3), made("moved", 3))
    assert not np.array_equal(made("moved", 3), made("moved", 4))


def test_a_swapped_target_stands_where_another_object_stood():
    state = made("swapped", 1)
    home = place(state, "milk")
    other = min(("soup", "butter"), key=lambda name: np.abs(home - PLACES[name]).max())
    assert np.abs(home - PLACES[other]).max() <= SHIFT
    assert np.abs(place(state, other) - PLACES["milk"]).max() <= SHIFT


def test_a_smaller_shift():
    state = made("moved", 0, shift=0.01)
    assert all(np.abs(place(state, name) - home).max() <= 0.01 for name, home in PLACES.items())


def test_placements_that_slip_are_drawn_again():
    seen = []

    def topples(state):
        seen.append(state)
        return 2 <= len(seen) <= 4  # the first is the settling before any move

    scene = FakeScene()
    scene.topples = topples
    state = made("moved", 0, scene)
    np.testing.assert_array_equal(state, seen[-1])
    assert len(seen) == 5


def test_no_start_where_nothing_holds():
    assert made("moved", scene=FakeScene(topples=lambda _state: True)) is None


def test_objects_on_one_another_move_together():
    scene = FakeScene()
    stacked = initial_state(PLACES | {"butter": PLACES["soup"]})
    state = start_state(scene, stacked, "moved", np.random.default_rng(0))
    np.testing.assert_allclose(place(state, "butter"), place(state, "soup"))


def test_the_gap_of_two_squares():
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1.0]])
    assert footprint_gap(square, square + np.array([1.5, 0])) == pytest.approx(0.5)
    assert footprint_gap(square, square + np.array([0.5, 0.5])) < 0
