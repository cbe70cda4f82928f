import json

import h5py
import numpy as np
import pytest

from tests.libero.fake_scene import STATE, FakeScene, initial_state
from vlarft.cli import run_command
from vlarft.data import record, render
from vlarft.data.libero import read_episodes
from vlarft.data.record import RecordConfig, Recorder, kind_and_index, outcome_rows, undrawn
from vlarft.errors import ConfigError, DataError, SimulatorError
from vlarft.files import only_writer
from vlarft.libero.starts import SHIFT

TASKS = [{"name": name, "language": name} for name in ("pick_up_the_milk", "second")]
VERSIONS = {"mujoco": "2.3.7", "robosuite": "1.4.0", "python": "3.11.7"}


@pytest.fixture
def scenes(monkeypatch):
    """Simulators opened so far; `options` is what the next ones are made with."""

    class Scenes(list):
        pass

    opened = Scenes()
    opened.options = {}

    def open_scene(suite, task, **_):
        assert suite == "libero_object"
        opened.append(FakeScene(**opened.options))
        opened[-1].task = TASKS[task]["name"]
        return opened[-1]

    def ask(function, _python=None, **_arguments):
        return {"versions": VERSIONS, "suite_tasks": TASKS}[function]

    monkeypatch.setattr(record.remote, "ask", ask)
    monkeypatch.setattr(record.remote, "RemoteSimulator", open_scene)
    return opened


def recorder(out, *, keep_failures=False, **config):
    return Recorder(out, RecordConfig(**config), keep_failures=keep_failures)


def test_the_layout_of_a_recording(scenes, tmp_path):
    assert scenes == []
    one = recorder(tmp_path, starts=("standard", "moved"))
    recorded = one.record([0], 4)
    assert [r.success for r in recorded] == [True] * 4
    with h5py.File(one.file(0)) as file:
        data = file["data"]
        assert data.attrs["task"] == "pick_up_the_milk"
        assert (data.attrs["suite"], data.attrs["task_id"]) == ("libero_object", 0)
        assert data.attrs["mujoco"] == "2.3.7"
        assert (data.attrs["num_demos"], list(data)) == (4, [f"demo_{n}" for n in range(4)])
        for number, name in enumerate(data):
            demo = data[name]
            length = demo.attrs["num_samples"]
            assert demo["actions"].shape == (length, 7)
            assert demo["states"].shape == (length + 1, STATE)
            assert demo.attrs["kind"] == ("standard", "moved")[number % 2]
            assert demo.attrs["split"] == ("val" if number == 3 else "train")
            assert demo.attrs["success"]
        assert [data[f"demo_{n}"].attrs["init_index"] for n in (0, 2)] == [0, 1]
        standard, moved = data["demo_2"]["init_state"][()], data["demo_3"]["init_state"][()]
    np.testing.assert_array_equal(standard, FakeScene().initial_states()[1])
    assert 0 < np.abs((moved - initial_state())[5:7]).max() <= SHIFT + 1e-3  # the target


@pytest.mark.usefixtures("scenes")
def test_recorded_actions_solve_the_recorded_start(tmp_path):
    one = recorder(tmp_path, starts=("moved",), seed=3)
    one.record([0], 1)
    scene = FakeScene()
    with h5py.File(one.file(0)) as file:
        demo = file["data/demo_0"]
        scene.start(demo["init_state"][()])
        assert scene.run(demo["actions"][()]) == (True, demo.attrs["num_samples"])


@pytest.mark.usefixtures("scenes")
def test_episodes_do_not_depend_on_what_else_was_recorded(tmp_path):
    recorder(tmp_path / "a", starts=("moved",)).record([0, 1], 3, jobs=2)
    recorder(tmp_path / "b", starts=("moved",)).record([1], 3)
    with (
        h5py.File(tmp_path / "a/second_states.hdf5") as a,
        h5py.File(tmp_path / "b/second_states.hdf5") as b,
    ):
        for name in a["data"]:
            for key in ("init_state", "states", "actions"):
                np.testing.assert_array_equal(a[f"data/{name}/{key}"], b[f"data/{name}/{key}"])


def test_a_stopped_recording_goes_on(scenes, tmp_path):
    seen = []
    lengths = [r.steps for r in recorder(tmp_path / "whole").record([0], 2)]
    scenes.options = {"breaks": sum(lengths) + 5}  # in the third episode
    with pytest.raises(SimulatorError, match=r"1 episodes failed .*task 0 episode 2: diverged"):
        recorder(tmp_path).record([0], 3)
    scenes.clear()
    scenes.options = {}
    recorded = recorder(tmp_path).record([0], 4, progress=lambda *done: seen.append(done))
    assert [r.episode for r in recorded] == [0, 1, 2, 3]
    assert seen == [(2, 4), (3, 4), (4, 4)]
    assert len(scenes) == 1
    scenes.clear()
    assert recorder(tmp_path).record([0], 4) == recorded
    assert not scenes  # nothing was left to do


def test_a_log_cut_short_and_a_file_removed(scenes, tmp_path):
    recorded = recorder(tmp_path).record([0, 1], 2)
    log = tmp_path / "record.jsonl"
    log.write_text(log.read_text()[:-20])
    (tmp_path / "pick_up_the_milk_states.hdf5").unlink()
    scenes.clear()
    assert recorder(tmp_path).record([0, 1], 2) == recorded
    assert len(scenes) == 2
    lines = log.read_text().splitlines()
    assert json.loads(lines[-1])["task"] in (0, 1)
    scenes.clear()
    recorder(tmp_path).record([0, 1], 2)
    assert not scenes


def test_failures_are_kept_apart_when_asked(scenes, tmp_path):
    scenes.options = {"misses": 3}  # the first episode fails
    for keep in (False, True):
        out = tmp_path / str(keep)
        one = recorder(out, keep_failures=keep)
        assert [r.success for r in one.record([0], 2)] == [False, True]
        with h5py.File(one.file(0)) as file:
            assert list(file["data"]) == ["demo_1"]
        assert one.file(0, success=False).exists() == keep
    with h5py.File(one.file(0, success=False)) as file:
        assert not file["data/demo_0"].attrs["success"]
    assert one.file(0, success=False).parent == one.file(0).parent / "failures"
    late = recorder(tmp_path / "False", keep_failures=True)
    late.record([0], 2)  # failures that were not kept are tried again when they are wanted
    assert late.file(0, success=False).exists()


@pytest.mark.usefixtures("scenes")
def test_spoilt_episodes_are_failures(tmp_path):
    one = recorder(tmp_path, starts=("spoilt",))
    assert [r.success for r in one.record([0], 1)] == [False]
    assert not one.file(0).exists()
    with h5py.File(one.file(0, success=False)) as file:
        assert file["data/demo_0"].attrs["kind"] == "spoilt"


def test_a_start_that_cannot_be_placed_is_counted_apart(scenes, tmp_path):
    scenes.options = {"topples": lambda _state: True}
    recorded = recorder(tmp_path, starts=("standard", "moved")).record([0], 2)
    assert [r.success for r in recorded] == [True, None]
    standard, moved = outcome_rows(recorded)
    assert (standard["successes"], standard["episodes"], standard["not_placed"]) == (1, 1, 0)
    assert (moved["successes"], moved["episodes"], moved["not_placed"]) == (0, 0, 1)


@pytest.mark.usefixtures("scenes")
def test_other_settings_need_another_folder(tmp_path):
    recorder(tmp_path).record([0], 1)
    with pytest.raises(ConfigError, match=r"recorded with noise 0\.06, now 0\.0"):
        recorder(tmp_path, noise=0.0)


@pytest.mark.usefixtures("scenes")
def test_mistakes_are_named(tmp_path):
    with pytest.raises(ConfigError, match="--starts shifted; allowed: standard, moved"):
        recorder(tmp_path, starts=("shifted",))
    with pytest.raises(ConfigError, match="--tasks 2; allowed: 0 to 1"):
        recorder(tmp_path / "new").record([2], 1)
    assert not (tmp_path / "new").exists()
    (tmp_path / "pick_up_the_milk_states.hdf5").write_bytes(b"no")
    (tmp_path / "record.jsonl").write_text(
        '{"task": 0, "episode": 0, "kind": "standard", "init_index": 0, "success": true, '
        '"steps": 9, "attempts": 1}\n'
    )
    with pytest.raises(DataError, match="not a readable recording"):
        recorder(tmp_path).record([0], 1)


def test_one_process_at_a_time_records_into_a_folder(scenes, tmp_path):
    with only_writer(tmp_path / "record.jsonl", tmp_path):
        with pytest.raises(DataError, match="another process is writing it"):
            recorder(tmp_path).record([0], 1)
        assert not scenes
    assert recorder(tmp_path).record([0], 1)


def test_kinds_take_turns_through_the_first_initial_states():
    starts = ("standard", "moved", "moved")
    got = [kind_and_index(n, starts) for n in range(6)]
    assert got == [
        ("standard", 0), ("moved", 0), ("moved", 1), ("standard", 1), ("moved", 2), ("moved", 3),
    ]  # fmt: skip
    assert kind_and_index(20, ("standard",)) == ("standard", 0)


@pytest.mark.usefixtures("scenes")
def test_only_new_episodes_are_drawn(tmp_path):
    one = recorder(tmp_path / "states")
    one.record([0], 2)
    sources, drawn = [one.file(0), one.file(1)], tmp_path / "frames"
    target = drawn / "pick_up_the_milk_demo.hdf5"
    assert undrawn(sources, drawn) == [(sources[0], target)]
    drawn.mkdir()
    target.write_bytes(sources[0].read_bytes())
    assert undrawn(sources, drawn) == []
    one.record([0], 3)
    assert undrawn(sources, drawn) == [(sources[0], target)]


@pytest.mark.usefixtures("scenes")
def test_the_command_records_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(render, "ask", lambda *_: {})
    monkeypatch.setattr(render, "choose_renderer", lambda _python: ("egl", "painter"))
    monkeypatch.setattr(render, "RemoteSimulator", lambda *_: FakeScene(size=32))
    command = ["record", "--out", str(tmp_path / "states"), "--frames", str(tmp_path / "frames")]
    command += ["--tasks", "0-1", "--episodes", "2", "--starts", "standard,moved", "--size", "32"]
    assert run_command([*command, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["outcomes"][0]["successes"] == 2
    assert [e["task"] for e in result["episodes"]] == [0, 0, 1, 1]
    assert "standard: 2 of 2 solved" in err
    files = sorted(path.name for path in (tmp_path / "frames").glob("*.hdf5"))
    assert files == ["pick_up_the_milk_demo.hdf5", "second_demo.hdf5"]
    (episode,) = read_episodes(tmp_path / "frames" / files[0], limit=1)
    assert episode.frames.shape == (episode.steps + 1, 32, 32, 3)
    assert run_command(command) == 0
    assert "drawn" not in capsys.readouterr().err  # nothing new to draw
    assert run_command([*command, "--noise", "0.1"]) == 2
    assert "recorded with noise 0.06, now 0.1" in capsys.readouterr().err
    assert run_command([*command, "--tasks", "one"]) == 2
    assert "--tasks one: expected whole numbers such as 0-4,7" in capsys.readouterr().err
