"""The reward against a simulator: a stand-in that is known exactly."""

from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from vlarft.data.libero import read_episodes
from vlarft.data.windows import Windows
from vlarft.errors import DataError, SimulatorError
from vlarft.eval import simulated
from vlarft.eval.simulated import Executed, Simulations, agree

SIZE, T = 16, 4
STATE = 3  # time, number of the episode, step


class FakeSimulator:
    """What was asked of it; an object goes where the first entries of the actions lead."""

    asked: list = []  # noqa: RUF012
    opened: list = []  # noqa: RUF012
    breaks = False

    def __init__(self, suite, task, size, python, renderer):
        self.opened.append((suite, task, size, python, renderer))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def interrupt(self):
        pass

    def branch(self, state, gripper, actions, camera, after):
        if self.breaks:
            raise SimulatorError("diverged")
        self.asked.append((state, gripper, actions, camera))
        frames = np.zeros((len(after), SIZE, SIZE, 3), np.uint8)
        frames[:, 0, 1] = 200  # one pixel of LIBERO's first row
        frames[-1, 2] = state[2]
        place = np.array([state[1], state[2], actions[:, 0].sum()])
        solved = bool(actions[0, 0] > 0)
        return {"frames": frames, "position": place, "target": -place, "solved": solved}


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(simulated, "RemoteSimulator", FakeSimulator)
    monkeypatch.setattr(simulated, "ask", lambda *_: {})
    monkeypatch.setattr(simulated, "choose_renderer", lambda _python: ("egl", "fake"))
    monkeypatch.setattr(FakeSimulator, "asked", [])
    monkeypatch.setattr(FakeSimulator, "opened", [])


def write(file, task, *, states=True, frames=True, shift=0.0):
    """Episodes 0 and 3 of 6 actions of a task."""
    with h5py.File(file, "w") as handle:
        data = handle.create_group("data")
        data.attrs.update(
            suite="libero_object", task_id=task, task=f"task_{task}", observation="before action"
        )
        for number in (0, 3):
            group = data.create_group(f"demo_{number}")
            actions = np.zeros((6, 7), np.float32)
            actions[:, 6] = [-1, -1, 1, 1, 1, -1]
            actions[:, 0] = number + shift
            group["actions"] = actions
            if states:
                group["states"] = np.stack([[0.0, number, step] for step in range(7)])
            if frames:
                group["obs/agentview_rgb"] = np.zeros((7, SIZE, SIZE, 3), np.uint8)
                for key, size in (("ee_pos", 3), ("ee_ori", 3), ("gripper_states", 2)):
                    group[f"obs/{key}"] = np.zeros((7, size))


@pytest.fixture
def windows(tmp_path):
    for task in (4, 2):
        write(tmp_path / f"task_{task}_demo.hdf5", task)
    return Windows(read_episodes(tmp_path), T)  # 4 episodes of 3 windows


def chunks(windows, numbers, members=3):
    expert = windows.batch(numbers).actions
    return expert[:, None].repeat(1, members, 1, 1) - torch.arange(members)[:, None, None]


def test_every_chunk_starts_from_its_windows_state(windows, tmp_path):
    numbers = [1, 5, 8]  # steps 1, 2, 2 of task 2 / demo_0, task 2 / demo_3, task 4 / demo_0
    actions = chunks(windows, numbers)
    seen = []
    run = Simulations(windows, numbers, python=tmp_path, jobs=2)
    assert run.after == (2, 4)
    found = run.run(actions, lambda *report: seen.append(report))
    # Who has nothing left helps with the other task, in a simulator of its own.
    assert set(FakeSimulator.opened) == {
        ("libero_object", task, SIZE, tmp_path, "egl") for task in (2, 4)
    }
    assert sorted(seen) == [(1, 3), (2, 3), (3, 3)]
    assert found.position[..., 0].tolist() == [[0] * 3, [3] * 3, [0] * 3]
    assert found.position[..., 1].tolist() == [[1] * 3, [2] * 3, [2] * 3]
    assert found.position[..., 2].tolist() == actions[..., 0].sum(2).tolist()  # expert first
    assert found.solved.tolist() == [[False] * 3, [True, True, True], [False] * 3]
    assert found.frames.shape == (3, 3, 2, SIZE, SIZE, 3)
    assert found.frames[0, 0, 0, -1, -2].tolist() == [200] * 3  # turned by 180 degrees
    assert found.frames[1, 0, 1, -3, 0].tolist() == [2] * 3
    told = {(s[1], s[2]): gripper.tolist() for s, gripper, _, _ in FakeSimulator.asked}
    assert told == {(0, 1): [-1], (3, 2): [-1, -1], (0, 2): [-1, -1]}
    assert {camera for *_, camera in FakeSimulator.asked} == {"agentview"}


def test_states_may_lie_elsewhere(tmp_path):
    drawn, recorded = tmp_path / "drawn", tmp_path / "recorded"
    drawn.mkdir(), recorded.mkdir()
    write(drawn / "a.hdf5", 2, states=False)
    windows = Windows(read_episodes(drawn), T)
    with pytest.raises(DataError, match=r"a\.hdf5: key 'data/demo_0/states'.*--states"):
        Simulations(windows, [0])
    write(recorded / "b.hdf5", 7, frames=False)
    with pytest.raises(DataError, match="--states: no file of task task_2"):
        Simulations(windows, [0], states=recorded)
    write(recorded / "c.hdf5", 2, frames=False)
    run = Simulations(windows, [4], states=recorded)
    assert run.run(chunks(windows, [4])).position[0, 0, :2].tolist() == [3, 1]
    write(recorded / "c.hdf5", 2, frames=False, shift=0.1)
    with pytest.raises(DataError, match="'data/demo_0' is another recording than that of"):
        Simulations(windows, [0], states=recorded)


def test_a_simulator_that_fails_names_the_window(windows, monkeypatch):
    monkeypatch.setattr(FakeSimulator, "breaks", True)
    with pytest.raises(SimulatorError, match="window 0 of those executed: diverged"):
        Simulations(windows, [2]).run(chunks(windows, [2]))


class PixelEngine:
    """Compares by mean absolute difference only."""

    device = torch.device("cpu")

    def __init__(self, shows=lambda pixels: pixels):
        tokenizer = SimpleNamespace(
            tokenize=lambda pixels: (pixels[:, 0], pixels[:, 1:]),
            detokenize=lambda _context, frames: shows(frames),
        )
        self.world = SimpleNamespace(tokenizer=tokenizer)

    def compare(self, frames, reference):
        l1 = (frames - reference[:, None]).abs().mean((-3, -2, -1))
        return SimpleNamespace(l1=l1, perceptual=torch.zeros_like(l1))


def executed(size, target, solved):
    """Frames are as bright as `size` [W,1+N] says; objects have moved by `target`, in m."""
    frames = torch.zeros(*size.shape, 2, 4, 4, 3, dtype=torch.uint8)
    frames[:, :, 1] = size[..., None, None, None]
    place = torch.zeros(*size.shape, 3, dtype=torch.float64)
    place[..., 0] = target
    return Executed(frames, torch.zeros_like(place), place, solved)


def test_order_within_groups():
    size = torch.tensor([[0, 1, 2, 3], [9, 8, 7, 6], [0, 3, 2, 1]], dtype=torch.uint8)
    target = torch.tensor([[0, 0.01, 0.02, 0.03], [0, 1e-4, 2e-4, 3e-4], [0, 0.3, 0.2, 0.1]])
    solved = torch.tensor([[True, True, True, True], [True, True, False, True], [False] * 4])
    recorded = torch.full((3, 4, 4, 3), 51, dtype=torch.uint8)
    recorded[1] += 9
    distance = torch.tensor([[1.0, 2, 3]] * 3).double()
    error = -distance
    found = agree(
        PixelEngine(),
        executed(size, target.double(), solved),
        (torch.zeros_like(recorded), recorded),
        distance,
        error,
        torch.tensor([0, 1, 2]),
        (2, 4),
    )
    by_name = {a.name: a for a in found.agreements}
    assert list(by_name) == [
        "frames after 4 actions", "frames after 2 actions", "end effector",
        "displacement of the target", "success",
    ]  # fmt: skip
    last = by_name["frames after 4 actions"]
    assert (last.groups, last.reward.value) == (3, pytest.approx(1 / 3))  # 1, 1, -1
    assert last.actions.value == pytest.approx(-1 / 3)
    assert last.frames.value == last.tokenizer.value == pytest.approx(1)
    moved = by_name["displacement of the target"]
    assert (moved.groups, moved.reward.value) == (2, pytest.approx(0))  # below 1 mm left out
    assert by_name["end effector"].groups == 0
    assert by_name["end effector"].reward is None
    assert (by_name["success"].groups, by_name["success"].reward) == (1, None)  # of one episode
    assert found.replayed == pytest.approx(51 / 255)
    assert "frames after 4 actions: 0.33" in found.checks()[0][1]
    assert not found.checks()[0][0]
    assert any("success: differs in 1 groups, too few" in line for line in found.lines())


def test_a_tokenizer_that_shows_less_loses_the_order():
    size = torch.tensor([[0, 1, 2, 3], [0, 3, 1, 2]], dtype=torch.uint8)
    state = executed(size, size.double() / 100, torch.zeros(2, 4, dtype=torch.bool))
    distance, given = torch.ones(2, 3).double(), state.frames[:, 0, -1]
    blind_to_3 = PixelEngine(lambda frames: frames * (frames < 2.5 / 255))
    found = agree(
        blind_to_3, state, (given, given), distance, distance, torch.tensor([0, 1]), (2, 4)
    )
    moved = next(a for a in found.agreements if a.name == "displacement of the target")
    assert moved.frames.value == pytest.approx(1)
    assert moved.tokenizer.value == pytest.approx(-0.5)


def test_the_verdict_asks_for_a_clear_correlation():
    generator = torch.Generator().manual_seed(0)
    size = torch.randint(0, 255, (20, 9), generator=generator, dtype=torch.uint8)
    size[:, 0] = 0
    state = executed(size, torch.zeros(20, 9).double(), torch.zeros(20, 9, dtype=torch.bool))
    recorded, episode = state.frames[:, 0, -1], torch.arange(20)
    for noise, holds in ((50, True), (2000, False)):
        distance = size[:, 1:] + noise * torch.randn(20, 8, generator=generator).double()
        found = agree(
            PixelEngine(), state, (recorded, recorded), distance, distance, episode, (2, 4)
        )
        assert found.checks()[0][0] == holds
