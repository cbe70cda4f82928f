from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.data.libero_files import write_libero
from vlarft.data.libero import read_episodes
from vlarft.data.windows import Windows, data_fingerprint, grasp_starts, moving_mask
from vlarft.errors import DataError, ShapeError


@pytest.fixture
def episodes(tmp_path):
    write_libero(tmp_path / "b_demo.hdf5", {0: 8, 1: 3})
    write_libero(tmp_path / "a_demo.hdf5", {0: 10})
    return read_episodes([tmp_path / "b_demo.hdf5", tmp_path / "a_demo.hdf5"])


def test_windows_reach_the_end_of_every_episode(episodes):
    windows = Windows(episodes, frames=8)
    assert len(windows) == (8 - 8 + 1) + 0 + (10 - 8 + 1)
    assert windows.too_short == [1]
    assert windows.episode.tolist() == [0, 2, 2, 2]
    assert windows.start.tolist() == [0, 0, 1, 2]
    assert windows.instructions == ["a", "b"]
    batch = windows.batch([3, 0])
    assert batch.frames.shape == (2, 9, 16, 16, 3)
    assert batch.frames[0, :, 3, 3, 0].tolist() == list(
        range(2, 11)
    )  # the frame after the last action
    np.testing.assert_allclose(batch.actions[0, :, 0], np.arange(3, 11) / 1000, rtol=1e-6)
    np.testing.assert_allclose(batch.proprioception[:, 0], [0.02, 0.0], atol=1e-7)
    assert batch.instruction == ["a", "b"]
    assert batch.episode.tolist() == [2, 0]
    assert batch.start.tolist() == [2, 0]
    assert batch.frames.dtype == torch.uint8
    assert batch.actions.dtype == batch.proprioception.dtype == torch.float32


def test_batch_takes_lists_arrays_and_tensors(episodes):
    windows = Windows(episodes)
    for indices in ([1, 2], np.array([1, 2]), torch.tensor([1, 2]), range(1, 3)):
        assert windows.batch(indices).start.tolist() == [0, 1]
    assert windows.batch([0]).to("cpu").frames.device.type == "cpu"
    for bad in (-1, 4):
        with pytest.raises(IndexError, match="0 to 3"):
            windows.batch([bad])
    with pytest.raises(ShapeError):
        windows.batch([])


def test_no_window_at_all(episodes):
    with pytest.raises(DataError, match="11 actions"):
        Windows(episodes, frames=11)
    with pytest.raises(DataError, match="1 or more"):
        Windows(episodes, frames=0)


def test_moving_mask_follows_its_definition():
    frames = torch.full((1, 4, 2, 3, 3), 100, dtype=torch.uint8)
    frames[0, 2, 0, 0, 1] = 126  # 26 / 255 > 0.1, one channel of one middle frame
    frames[0, 3, 0, 1, 2] = 125  # 25 / 255 < 0.1
    frames[0, 1, 1, 2, 0] = 74  # darker counts too
    frames[0, 1, 1, 1] = 80
    frames[0, 2, 1, 1] = 120  # 40 between two frames, but 20 to the first
    expected = torch.zeros(1, 2, 3, dtype=torch.bool)
    expected[0, 0, 0] = expected[0, 1, 2] = True
    assert torch.equal(moving_mask(frames), expected)
    with pytest.raises(ShapeError, match="uint8"):
        moving_mask(frames.float())


def test_a_fingerprint_is_of_the_content_and_of_the_order(episodes):
    def changed(**values):
        other = [replace(episodes[0], **values), *episodes[1:]]
        return data_fingerprint(Windows(other))

    same = data_fingerprint(Windows(list(episodes)))
    assert same == data_fingerprint(Windows(episodes)) == changed()
    assert same["episodes"] == 3
    assert same["windows"] == 4
    assert same["resolution"] == [16, 16]
    for other in (
        changed(actions=episodes[0].actions + 1e-6),
        changed(frames=episodes[0].frames + 1),
        changed(instruction="another"),
        data_fingerprint(Windows(episodes[::-1])),
        data_fingerprint(Windows(episodes[:1])),
        data_fingerprint(Windows(episodes, 7)),
    ):
        assert other != same


def test_grasps_are_windows_in_which_the_gripper_closes(episodes):
    for number, gripper in enumerate(
        ([-1] * 6 + [1] * 2, [-1] * 3, [1, -1, -1, -1, 1, 1, -1, 1, 1, 1])
    ):
        episodes[number].actions[:, -1] = gripper
    windows = Windows(episodes, frames=3)
    found = windows.grasps()
    assert windows.episode[found].tolist() == [0, 0, 2, 2, 2, 2]
    assert windows.start[found].tolist() == [4, 5, 2, 3, 5, 6]
    assert not len(grasp_starts(episodes[0].actions[:2], 3))
