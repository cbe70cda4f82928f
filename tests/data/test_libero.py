import h5py
import numpy as np
import pytest

from tests.data.libero_files import write_libero
from vlarft.data.libero import find_files, noops, read_episodes, split_of, whole_hdf5
from vlarft.errors import DataError

AFTER = {"observation": "after action"}


def steps(episode):
    """Numbers that write_libero put into actions, frames and proprioception."""
    return (
        np.rint(episode.actions[:, 0] * 1000).astype(int).tolist(),
        episode.frames[:, 3, 3, 0].tolist(),
        np.rint(episode.proprioception[:, 0] * 100).astype(int).tolist(),
    )


def test_one_more_frame_than_actions_is_kept_whole(tmp_path):
    file = write_libero(tmp_path / "pick_up_the_milk_demo.hdf5", {0: 5})
    (episode,) = read_episodes(file)
    assert steps(episode) == ([1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])
    assert episode.frames.dtype == np.uint8
    assert episode.actions.dtype == episode.proprioception.dtype == np.float32
    assert episode.proprioception.shape == (6, 8)
    np.testing.assert_allclose(episode.proprioception[0], [0, 0, 0, 0.5, 0.5, 0.5, 0.04, -0.04])


@pytest.mark.parametrize("attributes", [{}, AFTER])
def test_libero_original_drops_the_first_action(tmp_path, attributes):
    # obs[i] was taken after actions[i]: the frame before the first action does not exist.
    file = write_libero(tmp_path / "a.hdf5", {0: 5}, extra_frame=False, group_attributes=attributes)
    (episode,) = read_episodes(file)
    assert steps(episode) == ([2, 3, 4, 5], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4])


def test_observation_before_without_last_frame_drops_the_last_action(tmp_path):
    file = write_libero(tmp_path / "a.hdf5", {0: 5}, extra_frame=False)
    (episode,) = read_episodes(file)
    assert steps(episode) == ([1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4])


def test_frames_are_turned_by_180_degrees(tmp_path):
    (episode,) = read_episodes(write_libero(tmp_path / "a.hdf5", {0: 2}, size=16))
    marked = np.argwhere(episode.frames[0, ..., 0] == 255)
    assert marked.tolist() == [[15, 14]]
    assert episode.frames.flags.c_contiguous


def test_episodes_come_in_numeric_order_with_their_attributes(tmp_path):
    file = write_libero(
        tmp_path / "a.hdf5",
        {10: 2, 2: 3},
        group_attributes={"task": "pick_it", "language": "pick it up"},
        episode_attributes={
            2: {"split": "val", "kind": "moved", "success": False, "init_index": 5},
        },
    )
    first, second = read_episodes(file)
    assert (first.name, second.name) == ("demo_2", "demo_10")
    assert (first.task, first.instruction) == ("pick_it", "pick it up")
    assert (first.split, first.kind, first.success, first.init_index) == ("val", "moved", False, 5)
    assert (second.split, second.kind, second.success, second.init_index) == (
        "val",  # 10 % 7 == 3
        "original",
        True,
        -1,
    )


@pytest.mark.parametrize(
    ("name", "instruction"),
    [
        ("pick_up_the_milk_demo.hdf5", "pick up the milk"),
        ("LIVING_ROOM_SCENE2_put_both_cans_in_the_basket_demo.hdf5", "put both cans in the basket"),
    ],
)
def test_instruction_of_an_original_file_comes_from_its_name(tmp_path, name, instruction):
    (episode,) = read_episodes(write_libero(tmp_path / name, {0: 2}))
    assert episode.instruction == instruction


def test_split_by_number_and_limit(tmp_path):
    assert [n for n in range(20) if split_of(n) == "val"] == [3, 10, 13, 17]
    write_libero(tmp_path / "a.hdf5", dict.fromkeys(range(12), 2))
    write_libero(tmp_path / "b.hdf5", dict.fromkeys(range(12), 2))
    val = read_episodes(tmp_path, "val")
    assert [(e.file.stem, e.name) for e in val] == [
        (file, name) for file in "ab" for name in ("demo_3", "demo_10")
    ]
    assert [e.name for e in read_episodes(tmp_path, "train", limit=1)] == ["demo_0", "demo_0"]
    train = {(e.file, e.name) for e in read_episodes(tmp_path, "train")}
    assert len(train) == 20
    assert not train & {(e.file, e.name) for e in val}


def test_failures_belong_to_no_split_of_demonstrations(tmp_path):
    file = write_libero(
        tmp_path / "a.hdf5",
        dict.fromkeys((0, 3, 100), 2),
        episode_attributes={100: {"split": "failure", "success": False}},
    )
    assert [(e.name, e.split) for e in read_episodes(file)][2] == ("demo_100", "failure")
    for split in ("train", "val"):
        assert "demo_100" not in [e.name for e in read_episodes(file, split)]


def test_noops_compare_the_gripper_with_the_last_kept_action():
    actions = np.zeros((6, 7), np.float32)
    actions[:, 6] = [-1, -1, 1, 1, -1, -1]
    actions[1, 0] = 0.1
    # 0: still, nothing before it; 2 and 4: still but the gripper changes; 3 and 5: repeat it.
    assert noops(actions).tolist() == [True, False, False, True, False, True]


def test_dropping_noops_keeps_the_frame_before_each_kept_action_and_the_last(tmp_path):
    file = write_libero(tmp_path / "a.hdf5", {0: 6})
    with h5py.File(file, "r+") as handle:
        handle["data/demo_0/actions"][1, :6] = 0
        handle["data/demo_0/actions"][5, :6] = 0
    (episode,) = read_episodes(file, drop_noops=True)
    assert steps(episode) == ([1, 3, 4, 5], [0, 2, 3, 4, 6], [0, 2, 3, 4, 6])


def _delete(key):
    def change(handle):
        del handle[key]

    return change


def _replace(key, array):
    def change(handle):
        del handle[key]
        handle[key] = array

    return change


def _nan(handle):
    handle["data/demo_0/actions"][2, 1] = np.nan


def _states_only(handle):
    del handle["data/demo_0/obs"]
    handle["data/demo_0/states"] = np.zeros((6, 4))


EPISODE = "data/demo_0"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_delete("data"), ["key 'data' is missing"]),
        (_delete(EPISODE), ["key 'data' holds no episodes"]),
        (_replace(EPISODE, 0.0), [f"key '{EPISODE}/actions'"]),
        (_delete(f"{EPISODE}/actions"), [f"key '{EPISODE}/actions' is missing"]),
        (_delete(f"{EPISODE}/obs/ee_ori"), [f"key '{EPISODE}/obs/ee_ori' is missing"]),
        (_states_only, ["vlarft data render"]),
        (_replace(f"{EPISODE}/actions", np.zeros((0, 7))), [f"'{EPISODE}/actions' has no steps"]),
        (_replace(f"{EPISODE}/actions", np.zeros((5, 6))), [f"'{EPISODE}/actions'", "[5, 6]"]),
        (_replace(f"{EPISODE}/actions", np.zeros((5, 7), int)), ["int64", "floating point"]),
        (_nan, [f"'{EPISODE}/actions' is NaN or infinite in row 2"]),
        (
            _replace(f"{EPISODE}/obs/agentview_rgb", np.zeros((6, 16, 16, 3))),
            [f"'{EPISODE}/obs/agentview_rgb' is float64", "expected uint8"],
        ),
        (
            _replace(f"{EPISODE}/obs/agentview_rgb", np.zeros((6, 16, 16), np.uint8)),
            ["[6, 16, 16]", "expected uint8 [frames, H, W, 3]"],
        ),
        (
            _replace(f"{EPISODE}/obs/agentview_rgb", np.zeros((9, 16, 16, 3), np.uint8)),
            ["rows"],
        ),
        (_replace(f"{EPISODE}/obs/ee_pos", np.zeros((4, 3))), ["obs/ee_pos' has 4 rows", "6"]),
        (lambda h: h["data"].attrs.update(AFTER), ["6 frames for 5 actions; expected 5"]),
        (lambda h: h["data"].attrs.update(observation="?"), ["data.observation", "before action"]),
        (
            lambda h: h["data"].attrs.update(macros_image_convention="opencv"),
            ["macros_image_convention", "opengl"],
        ),
        (lambda h: h[EPISODE].attrs.update(split="test"), ["demo_0.split", "train, val, failure"]),
        (lambda h: h["data"].create_group("mask"), ["key 'data/mask' is not an episode"]),
    ],
)
def test_a_bad_file_gets_one_line_with_file_and_key(tmp_path, change, words):
    file = write_libero(tmp_path / "bad.hdf5", {0: 5})
    with h5py.File(file, "r+") as handle:
        change(handle)
    with pytest.raises(DataError) as error:
        read_episodes(file)
    message = str(error.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("keep", [0, 100, 4000])
def test_truncated_and_empty_files(tmp_path, keep):
    file = write_libero(tmp_path / "bad.hdf5", {0: 5})
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"bad\.hdf5: not a readable HDF5 file"):
        read_episodes(file)


def test_damaged_frames(tmp_path):
    file = write_libero(tmp_path / "bad.hdf5", {0: 5})
    with h5py.File(file, "r+") as handle:
        frames = handle["data/demo_0/obs/agentview_rgb"][()]
        del handle["data/demo_0/obs/agentview_rgb"]
        dataset = handle.create_dataset(
            "data/demo_0/obs/agentview_rgb", data=frames, chunks=frames.shape, compression="gzip"
        )
        offset = dataset.id.get_chunk_info(0).byte_offset
    content = bytearray(file.read_bytes())
    content[offset : offset + 20] = bytes(20)
    file.write_bytes(content)
    with pytest.raises(DataError, match="agentview_rgb' cannot be read, the file is damaged"):
        read_episodes(file)


def test_differing_image_sizes(tmp_path):
    write_libero(tmp_path / "a.hdf5", {0: 3}, size=16)
    write_libero(tmp_path / "b.hdf5", {0: 3}, size=32)
    with pytest.raises(
        DataError, match=r"b\.hdf5: key 'data/demo_0/obs/agentview_rgb'.*32x32.*16x16"
    ):
        read_episodes(tmp_path)


def test_paths_and_arguments(tmp_path):
    file = write_libero(tmp_path / "a.hdf5", {0: 3})
    assert find_files([tmp_path, file]) == [file, file]
    (tmp_path / "empty").mkdir()
    for call, words in [
        (lambda: read_episodes(tmp_path / "empty"), r"no \*\.hdf5"),
        (lambda: read_episodes(tmp_path / "absent"), "no such file"),
        (lambda: read_episodes([]), "no data file"),
        (lambda: read_episodes(file, "val"), "no episode of split 'val'"),
        (lambda: read_episodes(file, "test"), "allowed: train, val"),
        (lambda: read_episodes(file, limit=0), "allowed: 1 or more"),
        (lambda: read_episodes(file, camera="front"), "such as agentview_rgb"),
    ]:
        with pytest.raises(DataError, match=words):
            call()


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "file.hdf5"
    with whole_hdf5(path) as file:
        file["x"] = 1
        assert not path.exists()
    with h5py.File(path) as file:
        assert file["x"][()] == 1
    with pytest.raises(KeyError), whole_hdf5(path) as file:
        raise KeyError
    assert [found.name for found in path.parent.iterdir()] == ["file.hdf5"]


def test_a_file_that_another_writes_is_left_alone(tmp_path):
    path = tmp_path / "file.hdf5"
    with whole_hdf5(path) as file:
        file["x"] = np.arange(1000)
        file.flush()
        written = path.with_suffix(".partial").stat().st_size
        busy = pytest.raises(DataError, match=r"file\.hdf5: another process is writing it")
        with busy, whole_hdf5(path):
            pass
        assert path.with_suffix(".partial").stat().st_size == written
    with h5py.File(path) as file:
        assert file["x"][999] == 999
