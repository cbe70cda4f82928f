"""Failed against solved episodes, in a world where a square shows how far an episode has come."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.eval.moving_square import SquareEngine, T, episode
from vlarft.engine import Sampling
from vlarft.errors import DataError
from vlarft.eval.outcomes import IMAGINED, area_under_curve, measure_outcomes


def test_area_of_known_pairs():
    def area(*tasks):
        return area_under_curve([tuple(map(torch.tensor, task)) for task in tasks]).value

    assert area(([1.0, 2], [3.0, 4])) == 1
    assert area(([5.0, 6], [3.0, 4])) == 0
    assert area(([3.0, 3], [3.0])) == 0.5
    assert area(([1.0, 4], [3.0])) == 0.5
    # Pairs of two tasks do not count: 10 and 11 are far only in their own task's terms.
    assert area(([1.0, 2], [3.0, 4]), ([10.0], [11.0])) == 1
    assert area(([1.0], [3.0, 4, 5]), ([9.0], [2.0])) == 0.75


def test_the_interval_draws_both_kinds():
    solved, failed = torch.tensor([1.0, 2, 5]), torch.tensor([3.0, 4, 6])
    found = area_under_curve([(solved, failed)])
    assert found.value == pytest.approx(7 / 9)
    low, high = found.interval
    assert low < 0.5 < high == 1
    certain = area_under_curve([(solved - 9, failed)])
    assert certain.interval == (1, 1)


class DistanceEngine(SquareEngine):
    """Compares pictures by their mean absolute difference."""

    def __init__(self, listens=True):
        super().__init__(listens)
        self.world.layout = SimpleNamespace(frames=T)

    def compare(self, frames, reference):
        l1 = (frames - reference[:, None]).abs().mean((-3, -2, -1))
        return SimpleNamespace(l1=l1, perceptual=torch.zeros_like(l1))


def ends_at(number, position, success=True):
    """Six actions from 2; the last step reaches `position`."""
    speeds = [1, 1, 1, 1, 1, position - 7]
    return replace(episode(number, speeds), success=success)


SOLVED = [ends_at(0, 20), ends_at(1, 20), ends_at(2, 19)]
FAILED = [ends_at(8, 9, False), ends_at(9, 10, False)]


def test_failures_end_elsewhere():
    found = measure_outcomes(DistanceEngine(), SOLVED, FAILED, Sampling())
    assert (found.solved, found.failed, found.pairs) == (3, 2, 6)
    assert found.areas[IMAGINED].value == found.areas["recorded last frame"].value == 1
    assert found.areas["first frame"].value == 0.5  # all alike
    assert found.checks()[0][0]
    assert "first frame" in found.lines()[0]


def test_an_imagination_that_ignores_actions_tells_nothing():
    found = measure_outcomes(DistanceEngine(listens=False), SOLVED, FAILED, Sampling())
    assert found.areas[IMAGINED].value == 0.5
    assert found.areas["recorded last frame"].value == 1
    assert not found.checks()[0][0]


def test_an_episode_is_not_its_own_goal():
    """A solved episode that ends like no other is as far from the others as a failure."""
    lonely = [ends_at(0, 20), ends_at(1, 9)]
    found = measure_outcomes(DistanceEngine(), lonely, FAILED[:1], Sampling())
    assert found.areas["recorded last frame"].value == 0  # the failure is at 9 too


def test_refusals():
    with pytest.raises(DataError, match="'demo_0' is solved; --failures takes failed ones"):
        measure_outcomes(DistanceEngine(), SOLVED, SOLVED, Sampling())
    others = [replace(e, task="another") for e in FAILED]
    with pytest.raises(DataError, match="no task has a failure and two solved episodes"):
        measure_outcomes(DistanceEngine(), SOLVED, others, Sampling())
