import h5py
import numpy as np
import pytest

from vlarft.data import render
from vlarft.data.libero import read_episodes
from vlarft.data.render import render_file
from vlarft.errors import DataError

META = {"suite": "libero_object", "task_id": 0, "task": "pick_it", "language": "pick it up"}
STATE = 9


class PaintedSimulator:
    """Draws frames whose brightness is the state's first number."""

    env_name, bddl, language, state_size = "painted", "painted.bddl", "pick it up", STATE

    cameras = ("agentview", "robot0_eye_in_hand", "birdview")

    def __init__(self, _suite, _task_id, size, _python, _renderer):
        self.size, self.state = size, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def interrupt(self):
        pass

    def set_state(self, state):
        self.state = state

    def draw(self, _camera):
        return np.full((self.size, self.size, 3), int(self.state[0]), np.uint8)

    def proprioception(self):
        sizes = {"ee_pos": 3, "ee_ori": 3, "gripper_states": 2, "joint_states": 7}
        return {key: np.full(size, self.state[1]) for key, size in sizes.items()}


@pytest.fixture(autouse=True)
def painted(monkeypatch):
    monkeypatch.setattr(render, "RemoteSimulator", PaintedSimulator)
    monkeypatch.setattr(render, "ask", lambda *_: {})
    monkeypatch.setattr(render, "choose_renderer", lambda _python: ("egl", "painted"))


@pytest.fixture
def recording(tmp_path):
    """Episodes 2 and 10 of four actions; state i of both starts with i."""
    file = tmp_path / "a_states.hdf5"
    with h5py.File(file, "w") as handle:
        data = handle.create_group("data")
        data.attrs.update(META)
        for number in (2, 10):
            states = np.zeros((5, STATE))
            states[:, 0] = np.arange(5)
            data[f"demo_{number}/states"] = states
            data[f"demo_{number}/actions"] = np.full((4, 7), 0.5)
            data[f"demo_{number}"].attrs.update(split="val")
    return file


def test_every_state_is_drawn_in_the_order_of_episode_numbers(recording, tmp_path):
    drawn, seen = tmp_path / "a_demo.hdf5", []
    result = render_file(recording, drawn, size=16, progress=lambda *report: seen.append(report))
    assert result == (2, 10)
    assert seen == [(drawn, "demo_2", 1, 2), (drawn, "demo_10", 2, 2)]
    (episode,) = read_episodes(drawn, "val", limit=1)
    assert episode.frames[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert len(episode.actions) == 4


def replaced(key, array):
    def change(handle):
        del handle[key]
        handle[key] = array

    return change


def broken(key, row, value):
    def change(handle):
        handle[key][row, 1] = value

    return change


EPISODE = "data/demo_10"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (replaced("data", 0.0), ["key 'data' is missing"]),
        (lambda h: h.pop("data/demo_2") and h.pop(EPISODE), ["key 'data' holds no episodes"]),
        (lambda h: h.move(EPISODE, "data/ten"), ["key 'data/ten' is not an episode", "demo_0"]),
        (lambda h: h.move(EPISODE, "data/demo_x"), ["key 'data/demo_x' is not an episode"]),
        (replaced(EPISODE, 0.0), [f"key '{EPISODE}/states' is missing"]),
        (lambda h: h.pop(f"{EPISODE}/states"), [f"key '{EPISODE}/states' is missing"]),
        (lambda h: h.pop(f"{EPISODE}/actions"), [f"key '{EPISODE}/actions' is missing"]),
        (replaced(f"{EPISODE}/states", np.zeros(5)), [f"'{EPISODE}/states' is float64 [5]"]),
        (replaced(f"{EPISODE}/states", np.zeros((5, 9), int)), ["int64", "floating point"]),
        (replaced(f"{EPISODE}/states", np.zeros((4, 9))), ["4 rows for 4 actions"]),
        (replaced(f"{EPISODE}/states", np.zeros((5, 8))), ["8 numbers a state", "has 9"]),
        (replaced(f"{EPISODE}/actions", np.zeros((4, 6))), ["[4, 6]", "[steps, 7]"]),
        (replaced(f"{EPISODE}/actions", np.zeros((0, 7))), [f"'{EPISODE}/actions' has no steps"]),
        (broken(f"{EPISODE}/states", 3, np.nan), [f"'{EPISODE}/states' is NaN", "row 3"]),
        (broken(f"{EPISODE}/actions", 2, np.inf), [f"'{EPISODE}/actions' is NaN", "row 2"]),
        (lambda h: h["data"].attrs.pop("suite"), ["attribute 'data.suite' is missing"]),
        (lambda h: h["data"].attrs.update(task_id="one"), ["attribute 'data.task_id' is 'one'"]),
    ],
)
def test_a_bad_file_gets_one_line_with_file_and_key(recording, tmp_path, change, words):
    with h5py.File(recording, "r+") as handle:
        change(handle)
    refused(recording, tmp_path, words)


def test_a_damaged_array_is_found_before_anything_is_drawn(recording, tmp_path):
    with h5py.File(recording, "r+") as handle:
        del handle[f"{EPISODE}/states"]
        handle.create_dataset(f"{EPISODE}/states", data=np.ones((5, STATE)), compression="gzip")
        chunk = handle[f"{EPISODE}/states"].id.get_chunk_info(0)
    content = bytearray(recording.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    recording.write_bytes(content)
    refused(recording, tmp_path, [f"key '{EPISODE}/states' cannot be read, the file is damaged"])


@pytest.mark.parametrize("keep", [0, 100, 3000])
def test_a_truncated_file(recording, tmp_path, keep):
    recording.write_bytes(recording.read_bytes()[:keep])
    refused(recording, tmp_path, ["not a readable HDF5 file"])


def test_states_of_another_simulator_are_refused(recording, tmp_path, monkeypatch):
    monkeypatch.setattr(PaintedSimulator, "state_size", 110)
    refused(recording, tmp_path, ["states of 9 numbers", "task 0 of libero_object has 110"])


def refused(recording, tmp_path, words):
    with pytest.raises(DataError) as error:
        render_file(recording, tmp_path / "out" / "a_demo.hdf5", size=16)
    message = str(error.value)
    assert message.startswith(f"{recording}: ")
    assert "\n" not in message
    for word in words:
        assert word in message
    assert not list(tmp_path.rglob("*.partial"))


def test_any_camera_of_the_simulator_is_drawn(recording, tmp_path):
    drawn = tmp_path / "a_demo.hdf5"
    render_file(recording, drawn, size=16, cameras=["birdview", "robot0_eye_in_hand"])
    with h5py.File(drawn) as file:
        pictures = {key for key in file["data/demo_2/obs"] if key.endswith("_rgb")}
    assert pictures == {"birdview_rgb", "eye_in_hand_rgb"}
    assert read_episodes(drawn, camera="birdview_rgb")[0].frames.shape == (5, 16, 16, 3)


def test_a_camera_that_does_not_exist(recording, tmp_path):
    with pytest.raises(DataError, match="no camera 'front'; allowed: agentview, robot"):
        render_file(recording, tmp_path / "a_demo.hdf5", size=16, cameras=["front"])
    assert not list(tmp_path.glob("a_demo*"))


def test_a_stopped_drawing_leaves_nothing(recording, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_file(recording, tmp_path / "a_demo.hdf5", size=16, progress=stop)
    assert not list(tmp_path.glob("a_demo*"))
