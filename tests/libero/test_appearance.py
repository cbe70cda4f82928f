from types import SimpleNamespace

import numpy as np
import pytest

from vlarft.libero.appearance import Appearance, surface_materials, turned
from vlarft.libero.perturb import PERTURBATIONS

BODIES = ("world", "floor", "milk_1_main", "living_room_table")
TOUCHED = {
    "camera": {"cam_pos", "cam_quat"},
    "lighting": {"light_pos", "light_diffuse", "light_specular", "ambient", "diffuse"},
    "texture": {"mat_rgba"},
}


@pytest.fixture
def model():
    """What of a MuJoCo model is read: two cameras, two lights, four materials."""
    headlight = SimpleNamespace(ambient=np.full(3, 0.1), diffuse=np.full(3, 0.4))
    return SimpleNamespace(
        cam_pos=np.ones((2, 3)),
        cam_quat=np.array([[1.0, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]]),
        light_pos=np.full((2, 3), 4.0),
        light_diffuse=np.full((2, 3), 0.8),
        light_specular=np.full((2, 3), 0.3),
        mat_rgba=np.ones((4, 4)),
        geom_matid=np.array([3, 0, 1, 2, -1]),
        geom_bodyid=np.array([0, 1, 2, 3, 3]),
        vis=SimpleNamespace(headlight=headlight),
    )


def fields(model):
    values = {k: v for k, v in vars(model).items() if isinstance(v, np.ndarray)}
    return {k: v.copy() for k, v in (values | vars(model.vis.headlight)).items()}


def look(model):
    return Appearance(model, ("birdview", "agentview"), BODIES)


@pytest.mark.parametrize("name", TOUCHED)
def test_a_look_changes_its_own_fields_and_is_restored(model, name):
    own, appearance = fields(model), look(model)
    appearance.change(PERTURBATIONS[name], np.random.default_rng(0))
    now = fields(model)
    assert {key for key in own if not np.array_equal(own[key], now[key])} == TOUCHED[name]
    appearance.change({}, np.random.default_rng(1))
    for key, values in fields(model).items():
        np.testing.assert_array_equal(values, own[key])


@pytest.mark.parametrize("name", TOUCHED)
def test_a_look_does_not_depend_on_the_one_before(model, name):
    appearance = look(model)
    seen = []
    for seed in (0, 1, 0):
        appearance.change(PERTURBATIONS[name], np.random.default_rng(seed))
        seen.append(np.concatenate([v.ravel() for v in fields(model).values()]))
    np.testing.assert_array_equal(seen[0], seen[2])
    assert not np.array_equal(seen[0], seen[1])


def test_changes_are_no_larger_than_their_amounts(model):
    appearance, own = look(model), fields(model)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        appearance.change({k: v for one in TOUCHED for k, v in PERTURBATIONS[one].items()}, rng)
        assert np.abs(model.cam_pos[1] - 1).max() <= 0.03
        np.testing.assert_array_equal(model.cam_pos[0], 1)  # the other camera
        assert np.linalg.norm(model.cam_quat[1]) == pytest.approx(1)
        cosine = abs(model.cam_quat[1] @ own["cam_quat"][1])
        assert 2 * np.arccos(min(cosine, 1)) <= 0.05 * 3**0.5
        assert np.abs(model.light_pos - 4).max() <= 1
        assert np.abs(model.light_diffuse / 0.8 - 1).max() <= 0.5
        assert (model.mat_rgba[[0, 2, 3], :3] >= 0.4).all()
        assert (model.mat_rgba[[0, 2, 3], :3] <= 1).all()
        np.testing.assert_array_equal(model.mat_rgba[1], 1)  # the milk
        np.testing.assert_array_equal(model.mat_rgba[:, 3], 1)  # nothing turns transparent


def test_surfaces_are_floor_walls_and_table(model):
    assert surface_materials(model, BODIES) == [0, 2, 3]


def test_turns_are_about_the_own_axes():
    quarter = turned(np.array([1.0, 0, 0, 0]), np.array([0, 0, np.pi / 2]))
    np.testing.assert_allclose(quarter, [0.5**0.5, 0, 0, 0.5**0.5])
    both = turned(quarter, np.array([np.pi / 2, 0, 0]))  # about x as turned, the world's y
    np.testing.assert_allclose(both, [0.5, 0.5, 0.5, 0.5])
    np.testing.assert_array_equal(turned(both, np.zeros(3)), both)
