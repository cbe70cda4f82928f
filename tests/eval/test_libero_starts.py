import itertools

import h5py
import numpy as np
import pytest

from vlarft.errors import ConfigError, DataError
from vlarft.eval.starts import Demonstrations, choose_starts, read_demonstrations

NAMES = ("milk", "soup")


def chosen(kind="standard", episodes=5, seeds=(0,), recorded=None, tasks=(0, 1), **options):
    starts = choose_starts(
        "suite", tasks, NAMES, kind, episodes, seeds, recorded or {}, shift=0.05, **options
    )
    return [start for _, start in starts]


def test_recorded_standard_starts_and_the_last_ten_are_left_out():
    taken = set(range(0, 40, 2))
    starts = chosen(episodes=20, recorded={"milk": Demonstrations(taken)})
    of_milk = [start.init_index for start in starts if start.task == 0]
    assert sorted(of_milk) == list(range(1, 40, 2))
    of_soup = [start.init_index for start in starts if start.task == 1]
    assert len(set(of_soup)) == 20
    assert max(of_soup) < 40


def test_more_standard_starts_than_are_left():
    recorded = {"soup": Demonstrations(set(range(10, 50)))}
    with pytest.raises(DataError, match=r"task 1 \(soup\): 11 standard .* only 10 of 0-39"):
        chosen(episodes=11, recorded=recorded)


def test_the_last_ten_need_a_word():
    assert {start.init_index for start in chosen(episodes=10, final=True)} == set(range(40, 50))
    indices = {start.init_index for start in chosen("moved", 30, final=True)}
    assert indices == set(range(40, 50))


def test_moved_starts_differ_from_seed_to_seed_and_repeat_themselves():
    a, b = chosen("moved", seeds=(0, 1)), chosen("moved", seeds=(0, 1))
    assert a == b
    draws = [start.generator().random(4).tolist() for start in a]
    assert all(x != y for x, y in itertools.combinations(draws, 2))
    assert [s for s in a if s.seed == 1] == chosen("moved", seeds=(1,))
    assert chosen("moved", episodes=3)[:3] == chosen("moved", episodes=5)[:3]


def test_standard_starts_are_the_same_for_every_seed():
    starts = choose_starts("suite", (0,), NAMES, "standard", 3, (0, 7), {}, shift=0.05)
    assert [seed for seed, _ in starts] == [0, 0, 0, 7, 7, 7]
    assert [s for seed, s in starts if seed == 0] == [s for seed, s in starts if seed == 7]


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="--starts spoilt; allowed: standard, moved, swapped"):
        chosen("spoilt")
    with pytest.raises(ConfigError, match="--tasks 2; allowed: 0 to 1"):
        chosen(tasks=(2,))


def write(path, episodes):
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["task"] = path.stem
        for number, attributes in enumerate(episodes):
            data[f"demo_{number}/actions"] = np.full((4, 7), number, np.float32)
            data[f"demo_{number}"].attrs.update(attributes)
    return path


def test_recordings_say_which_starts_were_used(tmp_path):
    write(
        tmp_path / "milk.hdf5",
        [
            {"kind": "moved", "init_index": 3, "success": True},
            {"kind": "standard", "init_index": 7, "success": False},
            {"kind": "standard", "init_index": 9, "success": True},
            {"kind": "standard", "init_index": 11, "success": True},
        ],
    )
    write(tmp_path / "soup.hdf5", [{"kind": "moved", "success": True}, {"success": True}])
    found = read_demonstrations([tmp_path])
    assert found["milk"].standard == {7, 9, 11}
    assert found["milk"].actions[0, 0] == 2  # the first success from a standard start
    assert found["soup"].standard == set()
    assert found["soup"].actions[0, 0] == 0


def test_a_standard_start_without_its_index_is_refused(tmp_path):
    write(tmp_path / "milk.hdf5", [{"kind": "standard"}])
    with pytest.raises(DataError, match=r"milk\.hdf5: attribute 'data/demo_0\.init_index'"):
        read_demonstrations([tmp_path])
