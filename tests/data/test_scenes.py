"""Drawn scenes: what is shuffled, what is written, what is asked."""

import h5py
import numpy as np
import pytest
import torch

from tests.data.test_render import META, PaintedSimulator
from vlarft.data import scenes
from vlarft.data.scenes import APART, GOAL_APART, SHIFT, PlacedScenes, draw_scenes, sentences
from vlarft.errors import DataError

LANGUAGE = "pick up the milk and place it in the basket"
NAMES = ("milk_1", "basket_1", "tomato_sauce_1")
ENTRIES = {name: slice(1 + 7 * n, 8 + 7 * n) for n, name in enumerate(NAMES)}
STATE = 1 + 7 * len(NAMES) + 3  # time, objects, arm


class Shelf(PaintedSimulator):
    """Paints the target's x; its objects are where the state says."""

    state_size, language, task = STATE, LANGUAGE, "pick_up_the_milk"
    target, goal, objects = "milk_1", "basket_1", NAMES

    def entries(self, name):
        return ENTRIES[name]

    def draw(self, _camera):
        picture = np.zeros((self.size, self.size, 3), np.uint8)
        picture[0, 0] = round(400 * self.state[ENTRIES["milk_1"]][0]) + 64
        return picture


@pytest.fixture(autouse=True)
def shelf(monkeypatch):
    monkeypatch.setattr(scenes, "RemoteSimulator", Shelf)
    monkeypatch.setattr(scenes, "ask", lambda *_: {})
    monkeypatch.setattr(scenes, "choose_renderer", lambda _python: ("egl", "painted"))


def initial_state():
    state = np.zeros(STATE)
    for n, name in enumerate(NAMES):
        state[ENTRIES[name]] = (0.1 * n, 0.2 * n, 0.03 + n / 100, 1, 0, 0, 0)
    return state


@pytest.fixture
def recording(tmp_path):
    file = tmp_path / "milk_states.hdf5"
    with h5py.File(file, "w") as handle:
        data = handle.create_group("data")
        data.attrs.update(META | {"language": LANGUAGE})
        for number, split in enumerate(("train", "val")):
            states = np.tile(initial_state(), (5, 1))
            states[:, -1] = 10 * number + np.arange(5)  # the arm
            states[3:, 2 * number + 3] = 0.5  # something is lifted
            data[f"demo_{number}/states"] = states
            data[f"demo_{number}/actions"] = np.full((4, 7), 0.5)
            data[f"demo_{number}"].attrs.update(split=split)
    return file


def drawn(recording, tmp_path, **options):
    target = tmp_path / "milk_scenes.hdf5"
    draw_scenes([(recording, target)], count=48, size=16, **options)
    return target


def test_scenes_hold_pictures_and_places(recording, tmp_path):
    seen = []
    target = drawn(recording, tmp_path, progress=lambda *report: seen.append(report))
    assert seen[-1] == (target, 48, 48)
    with h5py.File(target) as file:
        places, pictures = file["places"][()], file["agentview_rgb"][()]
        assert places.shape == (48, 3, 3)
        assert list(file.attrs["objects"]) == list(NAMES)
    painted = pictures[:, 0, 0, 0].astype(float) - 64
    assert np.abs(painted - 400 * places[:, 0, 0]).max() <= 0.51  # the places of that picture
    assert len(np.unique(places[:, 0, 0])) > 20
    assert (places[:, 0, 2] == np.float32(0.5)).sum() > 0  # some scenes stay as recorded


def test_the_seed_decides_everything(recording, tmp_path):
    def places(seed):
        with h5py.File(drawn(recording, tmp_path, seed=seed)) as file:
            return file["places"][()]

    np.testing.assert_array_equal(places(0), places(0))
    assert (places(0) != places(1)).any()


def test_shuffled_objects_are_apart_and_the_arm_stays():
    rng, initial = np.random.default_rng(0), initial_state()
    state = initial.copy()
    state[-3:], state[ENTRIES["milk_1"]] = 7, (9, 9, 9, 0, 1, 0, 0)  # held high up
    traded = 0
    for _ in range(50):
        changed = scenes.shuffled(state, initial, ENTRIES, "basket_1", rng)
        assert (changed[-3:] == 7).all()
        at = {name: changed[ENTRIES[name]] for name in NAMES}
        for name in NAMES:
            assert (at[name][2:] == initial[ENTRIES[name]][2:]).all()  # height and turn
        assert np.linalg.norm(at["milk_1"][:2] - at["tomato_sauce_1"][:2]) > APART
        for name in ("milk_1", "tomato_sauce_1"):
            assert np.linalg.norm(at[name][:2] - at["basket_1"][:2]) > GOAL_APART
        assert np.abs(at["basket_1"][:2] - initial[ENTRIES["basket_1"]][:2]).max() <= SHIFT
        traded += np.linalg.norm(at["milk_1"][:2] - initial[ENTRIES["tomato_sauce_1"]][:2]) < 0.08
    assert 10 < traded < 40


def test_a_scene_without_room_stays_as_it_was():
    initial = initial_state()
    for name in NAMES:
        initial[ENTRIES[name]][:2] = 0
    changed = scenes.shuffled(initial, initial, ENTRIES, "basket_1", np.random.default_rng(0))
    np.testing.assert_array_equal(changed, initial)


def test_every_object_but_the_goal_is_asked_for():
    asked = sentences(LANGUAGE, NAMES, "milk_1", "basket_1")
    assert asked == {
        "milk_1": LANGUAGE,
        "tomato_sauce_1": "pick up the tomato sauce and place it in the basket",
    }
    other = "pick up the black bowl between the plate and the ramekin"
    names = ("akita_black_bowl_1", "akita_black_bowl_2", "plate_1")
    assert sentences(other, names, names[0], "plate_1") == {names[0]: other}


def test_reading_turns_pictures_and_pairs_sentences_with_places(recording, tmp_path):
    target = drawn(recording, tmp_path)
    training, validation = PlacedScenes([target], "train"), PlacedScenes([target], "val")
    assert (len(training), len(validation)) == (44, 4)
    batch = training.batch(torch.arange(44), 3, torch.Generator().manual_seed(0))
    assert batch.places.shape == (44, 3, 2, 3)
    painted = batch.image[:, -1, -1, 0].float() - 64  # rotated by 180 degrees
    for scene, sentence_row in enumerate(batch.instruction):
        assert sentence_row[0] == sentence_row[2]  # two sentences, repeated
        milk = sentence_row.index(LANGUAGE)
        assert abs(batch.places[scene, milk, 0, 0] * 400 - painted[scene]) < 0.51
    assert training.fingerprint()["windows"] == 44
    assert training.fingerprint() != validation.fingerprint()


def test_refusals(recording, tmp_path):
    with pytest.raises(DataError, match="16 to 1024"):
        draw_scenes([(recording, tmp_path / "x.hdf5")], size=8)
    with pytest.raises(DataError, match="12 or more"):
        draw_scenes([(recording, tmp_path / "x.hdf5")], count=3)
    with pytest.raises(DataError, match="not a file of `vlarft data scenes`"):
        PlacedScenes([recording], "train")
    with h5py.File(recording, "a") as handle:
        handle["data/demo_0"].attrs["split"] = "val"
    with pytest.raises(DataError, match="no training episode"):
        draw_scenes([(recording, tmp_path / "x.hdf5")])
