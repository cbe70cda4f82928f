import numpy as np
import pytest

from tests.libero.fake_scene import FIRST, PLACES, FakeScene, initial_state
from vlarft.errors import DataError
from vlarft.libero.perturb import (
    NONE,
    PERTURBATIONS,
    QUANTITIES,
    amounts_of,
    describe,
    perturbed_state,
)

ARM = slice(1, 5)


def made(name, seed=0, scene=None, initial=None):
    initial = initial_state() if initial is None else initial
    amounts = amounts_of(name, seen=False)
    return perturbed_state(scene or FakeScene(), initial, amounts, np.random.default_rng(seed))


def changed(state, initial=None):
    """Names of what differs from the initial state."""
    initial = initial_state() if initial is None else initial
    parts = {name: slice(first, first + 7) for name, first in FIRST.items()} | {"arm": ARM}
    return {name for name, part in parts.items() if (state[part] != initial[part]).any()}


PARTS = {
    "object": {"milk"},
    "goal": {"basket"},
    "robot": {"arm"},
    "combined": {"milk", "basket", "arm"},
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", PARTS)
def test_only_what_is_named_changes_and_no_farther_than_its_amount(kind, seed):
    for level in ("minor", "major"):
        name = f"{kind}-{level}"
        state = made(name, seed)
        assert changed(state) == PARTS[kind]
        moved = [np.abs(state[FIRST[n] :][:2] - PLACES[n]).max() for n in PARTS[kind] - {"arm"}]
        assert all(0 < move <= {"minor": 0.025, "major": 0.05}[level] for move in moved)
        bent = np.abs(state[ARM] - initial_state()[ARM]).max()
        assert bent <= PERTURBATIONS[name].get("joints", 0)


def test_levels_differ_in_size_alone_and_combined_is_all_three():
    home = initial_state(PLACES | {"milk": (-0.3, -0.3), "basket": (0.05, 0.4)})  # with room
    minor, major = (made(f"combined-{size}", initial=home) - home for size in ("minor", "major"))
    np.testing.assert_allclose(major, 2 * minor, atol=1e-12)
    each = [made(f"{kind}-minor", initial=home) - home for kind in ("object", "goal", "robot")]
    np.testing.assert_allclose(sum(each), minor, atol=1e-12)


def test_equal_seeds_give_equal_states():
    np.testing.assert_array_equal(made("combined-major", 3), made("combined-major", 3))
    assert not np.array_equal(made("object-minor", 3), made("object-minor", 4))


def test_what_stands_on_target_or_goal_moves_along():
    on_goal = initial_state(PLACES | {"soup": PLACES["basket"]})
    assert changed(made("goal-minor", initial=on_goal), on_goal) == {"basket", "soup"}
    under_target = initial_state(PLACES | {"butter": PLACES["milk"]})
    state = made("object-minor", initial=under_target)
    assert changed(state, under_target) == {"milk", "butter"}


def test_a_target_that_touches_the_goal_moves_alone():
    touching = initial_state(PLACES | {"milk": (0.05, 0.3 - 0.12)})
    state = made("object-major", initial=touching)
    assert changed(state, touching) == {"milk"}
    assert changed(made("goal-major", initial=touching), touching) == {"basket"}


def test_starts_that_slip_are_drawn_again():
    seen = []

    def topples(state):
        seen.append(state)
        return 2 <= len(seen) <= 4  # the first is the settling before any change

    scene = FakeScene()
    scene.topples = topples
    np.testing.assert_array_equal(made("robot-minor", scene=scene), seen[-1])
    assert len(seen) == 5
    assert made("robot-minor", scene=FakeScene(topples=lambda s: s[1] != -0.1)) is None


def test_objects_beside_are_only_a_matter_of_what_moves():
    close = initial_state(PLACES | {"butter": (0.12, -0.01)})  # 1 cm from the soup
    assert made("object-minor", initial=close) is not None


def test_appearance_leaves_the_state():
    for name in ("camera", "lighting", "texture", NONE):
        scene = FakeScene()
        scene.start = None  # no physics is needed
        assert made(name, scene=scene, initial=(home := initial_state())) is home


def test_a_fixed_goal_is_named():
    scene = FakeScene()
    scene.goal = "drawer"
    with pytest.raises(DataError, match="goal 'drawer' is fixed"):
        made("combined-minor", scene=scene)
    assert made("object-minor", scene=FakeScene()) is not None


def test_every_amount_has_a_quantity_with_a_unit():
    for name, amounts in PERTURBATIONS.items():
        assert amounts.keys() <= QUANTITIES.keys()
        both = amounts_of(name, seen=True) | amounts_of(name, seen=False)
        assert both == amounts
    assert describe("robot-minor") == "each joint of the arm: up to 0.05 rad"
    assert "along x and y: up to 0.025 m; the goal" in describe("combined-minor")
