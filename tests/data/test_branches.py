"""Branches: which actions are executed, from which states, and what is written."""

from typing import ClassVar

import h5py
import numpy as np
import pytest

from tests.data.test_render import META, STATE, PaintedSimulator
from vlarft.data import branches
from vlarft.data.branches import branch_files, changed, spread_of
from vlarft.data.libero import read_floats
from vlarft.errors import ConfigError, DataError, SimulatorError

LENGTH = 4


class Adder(PaintedSimulator):
    """A state's first number grows by the first entry of each action."""

    requests: ClassVar[list] = []

    def __init__(self, suite, task_id, python):
        super().__init__(suite, task_id, 64, python, None)

    def branch(self, state, gripper, actions, camera, after):  # noqa: ARG002
        assert not after
        self.requests.append((state, gripper, actions))
        states = np.tile(state, (len(actions) + 1, 1))
        states[1:, 0] += np.cumsum(actions[:, 0])
        return {"states": states, "solved": False}


@pytest.fixture(autouse=True)
def adder(monkeypatch):
    monkeypatch.setattr(branches, "RemoteSimulator", Adder)
    monkeypatch.setattr(branches, "ask", lambda *_: {})
    monkeypatch.setattr(Adder, "requests", [])


def recorded_actions(number):
    actions = np.random.default_rng(number).uniform(-0.9, 0.9, (12, 7)).astype(np.float32)
    actions[:, 6] = np.where(np.arange(12) < 6, -1, 1)
    return actions


@pytest.fixture
def recording(tmp_path):
    """A training and a validation episode of 12 actions, and one too short to branch from."""
    file = tmp_path / "a_states.hdf5"
    with h5py.File(file, "w") as handle:
        data = handle.create_group("data")
        data.attrs.update(META)
        for number, split, steps in ((0, "train", 12), (3, "val", 12), (4, "train", 2)):
            states = np.zeros((steps + 1, STATE))
            states[:, 1], states[:, 2] = number, np.arange(steps + 1)
            data[f"demo_{number}/states"] = states
            data[f"demo_{number}/actions"] = recorded_actions(number)[:steps]
            data[f"demo_{number}"].attrs.update(split=split)
    return file


def branched(recording, tmp_path, **options):
    out = tmp_path / "out" / "a_states.hdf5"
    branch_files([(recording, out)], 30, 3, LENGTH, **options)
    return out


def test_branches_start_at_recorded_states_in_groups(recording, tmp_path):
    seen = []
    out = branched(recording, tmp_path, progress=lambda *report: seen.append(report))
    assert seen == [(out, 30, 30)]
    with h5py.File(out) as file:
        data, origins = file["data"], []
        assert data.attrs["num_demos"] == 30
        assert data.attrs["total"] == 30 * LENGTH
        for number, (state, gripper, actions) in enumerate(Adder.requests):
            demo = data[f"demo_{number}"]
            episode, start = int(state[1]), int(state[2])
            origins.append((episode, start))
            assert demo.attrs["split"] == {0: "train", 3: "val"}[episode]
            assert demo.attrs["kind"] == "branch"
            assert 0 <= start <= 12 - LENGTH
            np.testing.assert_array_equal(gripper, recorded_actions(episode)[:start, 6])
            states = read_floats(out, data, f"demo_{number}/states")
            written = read_floats(out, data, f"demo_{number}/actions")
            np.testing.assert_array_equal(written, actions)
            np.testing.assert_allclose(states[0], state)
            np.testing.assert_allclose(np.diff(states[:, 0]), actions[:, 0], atol=1e-5)
    assert {origins[n] == origins[n + 1] for n in range(29) if n % 3 < 2} == {True}
    assert len(set(origins)) > 4
    assert {episode for episode, _ in origins} == {0, 3}


def test_branches_where_the_gripper_closes(recording, tmp_path):
    branched(recording, tmp_path, at_grasp=1.0)
    starts = {int(state[2]) for state, _, _ in Adder.requests}
    assert starts == {3, 4, 5}  # of 0 to 8: action 5 is the last open one, and 6 is a branch's too
    Adder.requests.clear()
    branched(recording, tmp_path, at_grasp=0.5)
    share = np.mean([int(state[2]) in starts for state, _, _ in Adder.requests])
    assert 0.5 < share < 1
    Adder.requests.clear()
    branched(recording, tmp_path, at_grasp=0.0)
    assert {int(state[2]) for state, _, _ in Adder.requests} - starts


def test_changed_actions_stay_in_range_and_differ():
    recorded, rng = recorded_actions(0)[2:10], np.random.default_rng(0)
    spread = spread_of(recorded_actions(0))
    many = np.stack([changed(recorded, spread, rng) for _ in range(400)])
    assert (many <= spread.high + 1e-6).all()
    assert (many >= spread.low - 1e-6).all()
    flipped = (many[:, :, 6] != recorded[:, 6]).any(1).mean()
    assert 0.1 < flipped < 0.2
    off = (many - recorded).mean(1)[:, :6] / spread.half[:6]
    assert (off.std(0) > 0.15).all()
    assert (np.abs(off.mean(0)) < 0.15).all()


def test_the_seed_decides_everything(recording, tmp_path):
    def actions(seed):
        Adder.requests.clear()
        branched(recording, tmp_path, seed=seed)
        return np.stack([request[2] for request in Adder.requests])

    first = actions(0)
    np.testing.assert_array_equal(first, actions(0))
    assert (first != actions(1)).any()


def test_nothing_is_left_of_a_failure(recording, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise SimulatorError("fell over")

    monkeypatch.setattr(Adder, "branch", broken)
    with pytest.raises(SimulatorError, match=r"a_states.hdf5: fell over"):
        branched(recording, tmp_path)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("name", "given"), [("count", 0), ("each", 0), ("length", 0)])
def test_numbers_are_checked(recording, tmp_path, name, given):
    with pytest.raises(ConfigError, match=rf"--{name} {given}; allowed: 1 or more"):
        branch_files([(recording, tmp_path / "b.hdf5")], **{name: given})


def test_branches_longer_than_any_episode_are_refused(recording, tmp_path):
    with pytest.raises(DataError, match=r"--length 13, but the longest episode has 12 actions$"):
        branch_files([(recording, tmp_path / "b.hdf5")], length=13)


@pytest.mark.parametrize("given", [-0.1, 1.5, float("nan")])
def test_a_share_of_grasps_is_a_share(recording, tmp_path, given):
    with pytest.raises(ConfigError, match=rf"--at-grasp {given}; allowed: 0 to 1"):
        branched(recording, tmp_path, at_grasp=given)


def test_recordings_without_a_grasp_are_refused(recording, tmp_path):
    with h5py.File(recording, "a") as handle:
        for demo in handle["data"].values():
            demo["actions"][:, -1] = -1
    with pytest.raises(DataError, match=r"a_states.hdf5: --at-grasp 1.0, but in no 4 actions"):
        branched(recording, tmp_path, at_grasp=1.0)
