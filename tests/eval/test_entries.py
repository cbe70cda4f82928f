"""Which entries of an action a reward sees."""

import json

import pytest
import torch

from vlarft.data.libero import ACTION_NAMES
from vlarft.demo import DEMOS, WORLD, load_windows
from vlarft.engine import RolloutEngine, Sampling
from vlarft.eval.entries import measure_entries, shifted
from vlarft.models.world_model import WorldModel
from vlarft.rft.evaluation import spread_windows


@pytest.fixture(scope="module")
def world():
    return WorldModel.from_pretrained(WORLD)


@pytest.fixture(scope="module")
def windows(world):
    return load_windows([DEMOS], "val", world.layout)


def test_one_entry_at_a_time() -> None:
    actions = torch.rand(2, 8, 7)
    size = torch.arange(1.0, 8.0)
    chunks = shifted(actions, size)
    assert chunks.shape == (2, 14, 8, 7)
    for entry in range(6):
        change = chunks[:, 2 * entry : 2 * entry + 2] - actions[:, None]
        others = [n for n in range(7) if n != entry]
        torch.testing.assert_close(change[:, 0, :, entry], torch.full((2, 8), size[entry].item()))
        torch.testing.assert_close(change[:, 1, :, entry], torch.full((2, 8), -size[entry].item()))
        assert (change[..., others] == 0).all()
    turned = torch.cat([actions[..., :6], -actions[..., 6:]], -1)
    torch.testing.assert_close(chunks[:, 12], turned)
    torch.testing.assert_close(chunks[:, 13], turned)


def test_the_bundled_world_sees_across_better_than_in_depth(world, windows) -> None:
    """The camera looks along x: the world model hardly tells how far the hand went."""
    engine = RolloutEngine(world, metric="lpips-alex")
    seen = []
    found = measure_entries(
        engine,
        windows,
        spread_windows(len(windows), 10),
        Sampling(temperature=0.3),
        batch=5,
        progress=lambda *report: seen.append(report),
    )
    assert seen == [(5, 10), (10, 10)]
    assert tuple(found.distance) == ACTION_NAMES
    assert found.distance["dy"].value > found.distance["dx"].value > 0
    assert all(e.interval[0] <= e.value <= e.interval[1] for e in found.distance.values())
    assert "dx 0.0" in found.lines()[0]
    assert json.loads(json.dumps(found.to_dict()))["windows"] == 10
