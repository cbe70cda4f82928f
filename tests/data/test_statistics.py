import json

import numpy as np
import pytest

from tests.data.libero_files import write_libero
from vlarft.data.libero import read_episodes
from vlarft.data.statistics import Statistics, compute_statistics
from vlarft.errors import DataError


def test_statistics_of_known_values(tmp_path):
    episodes = read_episodes(write_libero(tmp_path / "a.hdf5", {0: 60, 1: 41}))
    statistics = compute_statistics(episodes)
    first = np.r_[np.arange(1, 61), np.arange(1, 42)] / 1000
    assert statistics.episodes == 2
    assert statistics.steps == 101
    assert statistics.orientation == "rotated-180"
    assert statistics.action_q01[0] == pytest.approx(np.quantile(first, 0.01))
    assert statistics.action_q99[0] == pytest.approx(np.quantile(first, 0.99))
    assert statistics.action_min == pytest.approx((0.001, 0, 0, 0, 0, 0, -1))
    assert statistics.action_max == pytest.approx((0.06, 0, 0, 0, 0, 0, 1))
    assert len(statistics.proprioception_q01) == len(statistics.proprioception_q99) == 8
    assert statistics.proprioception_q01[6:] == pytest.approx((0.04, -0.04))


def test_gripper_range_is_full_even_when_it_never_closes(tmp_path):
    episodes = read_episodes(write_libero(tmp_path / "a.hdf5", {0: 1}))
    statistics = compute_statistics(episodes)
    assert (statistics.action_min[6], statistics.action_max[6]) == (-1.0, 1.0)


def test_round_trip_through_json(tmp_path):
    statistics = compute_statistics(read_episodes(write_libero(tmp_path / "a.hdf5", {0: 9})))
    values = json.loads(json.dumps(statistics.to_dict()))
    assert Statistics.from_dict(values) == statistics
    with pytest.raises(DataError, match="extra"):
        Statistics.from_dict(values | {"extra": 1})
    del values["steps"]
    with pytest.raises(DataError, match="steps"):
        Statistics.from_dict(values)
    with pytest.raises(DataError, match="no episodes"):
        compute_statistics([])
