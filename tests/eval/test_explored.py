"""The order of a policy's own groups."""

from types import SimpleNamespace

import pytest
import torch

from vlarft.config import load_config
from vlarft.demo import DEMOS, POLICY, WORLD, load_windows
from vlarft.engine import RolloutEngine
from vlarft.errors import ConfigError
from vlarft.eval import explored
from vlarft.eval.explored import asked_way, measure_explored, pushes, way_error
from vlarft.models.flow_policy import FlowPolicy
from vlarft.models.world_model import WorldModel
from vlarft.rft.config import RFTConfig
from vlarft.rft.evaluation import spread_windows

CONFIG = load_config(
    RFTConfig,
    "rft-small",
    ["rollouts=16", "exploration.sigma_min=0.3", "exploration.sigma_max=0.6",
     "exploration.noise_correlation=1", "exploration.noisy_steps=1"],
)  # fmt: skip


@pytest.fixture(scope="module")
def engine():
    return RolloutEngine(WorldModel.from_pretrained(WORLD), metric="lpips-alex")


@pytest.fixture(scope="module")
def policy():
    return FlowPolicy.from_pretrained(POLICY, settings=CONFIG.exploration.settings())


@pytest.fixture(scope="module")
def windows(engine):
    return load_windows([DEMOS], "val", engine.world.layout)


def test_the_way_is_the_sum_of_what_is_executed() -> None:
    expert = torch.zeros(1, 8, 7)
    actions = torch.zeros(3, 8, 7)
    actions[0, :, 0] = 0.25  # 2 in x
    actions[1, 0, 1], actions[1, 1, 1] = 0.5, -0.5  # there and back
    actions[2, 0, 2], actions[2, :, 3:] = 7.0, 1.0  # cut to 1; turns and gripper do not move it
    ways = asked_way(actions)
    torch.testing.assert_close(ways, torch.tensor([[2.0, 0, 0], [0, 0, 0], [0, 0, 1]]))
    torch.testing.assert_close(way_error(ways, asked_way(expert)), torch.tensor([2.0, 0, 1]))


def test_shares_of_the_right_push() -> None:
    """A reward that knows y and z and takes the hand's speed for free says so."""
    random = torch.Generator().manual_seed(0)
    ways = torch.randn(200, 16, 3, generator=random, dtype=torch.float64)
    expert = torch.randn(200, 3, generator=random, dtype=torch.float64)
    episode = torch.arange(200) % 20
    full = pushes(way_error(ways, expert[:, None]), ways, expert, episode).shares()
    assert list(full) == ["x", "y", "z", "along"]
    assert all(share.value == pytest.approx(1) for share in full.values())
    blind = ways - expert[:, None]
    blind[..., 0] = 0  # no depth
    shares = pushes(blind.square().sum(-1).sqrt(), ways, expert, episode).shares()
    assert shares["x"].interval[1] < 0.2
    assert shares["y"].interval[0] > 0.9
    noise = torch.randn(200, 16, generator=random, dtype=torch.float64)
    for share in pushes(noise, ways, expert, episode).shares().values():
        assert share.interval[0] < 0 < share.interval[1]
    against = pushes(-way_error(ways, expert[:, None]), ways, expert, episode).shares()
    assert against["along"].value == pytest.approx(-1)


def test_a_lean_is_the_push_without_an_error() -> None:
    """A distance that likes one side of z leans there and nowhere else; one that knows does not."""
    random = torch.Generator().manual_seed(4)
    ways = torch.randn(400, 16, 3, generator=random, dtype=torch.float64)
    expert = torch.randn(400, 3, generator=random, dtype=torch.float64)
    episode = torch.arange(400) // 4
    error = way_error(ways, expert[:, None])
    for lean in pushes(error, ways, expert, episode).leans().values():
        assert lean.value == pytest.approx(0, abs=1e-9)
    high = pushes(error - 0.3 * ways[..., 2], ways, expert, episode).leans()
    assert high["z"].interval[0] > 0.1
    assert all(abs(high[axis].value) < 0.05 for axis in ("x", "y"))
    low = pushes(error + 0.3 * ways[..., 2], ways, expert, episode).leans()
    assert low["z"].interval[1] < -0.1


def test_mean_pushes_point_where_all_groups_are_off() -> None:
    random = torch.Generator().manual_seed(5)
    ways = torch.randn(400, 16, 3, generator=random, dtype=torch.float64)
    expert = torch.tensor([0.5, 0, -0.5], dtype=torch.float64).expand(400, 3)  # of a mean of 0
    found = pushes(way_error(ways, expert[:, None]), ways, expert, torch.arange(400) // 4)
    means, right = found.means(), found.right_means()
    assert list(means) == list(right) == ["x", "y", "z", "along"]
    assert all(mean.value == pytest.approx(right[axis]) for axis, mean in means.items())
    assert means["x"].interval[0] > 0.1
    assert means["z"].interval[1] < -0.1
    assert abs(means["y"].value) < 0.05


def test_imagined_distance_follows_the_way(engine, policy, windows) -> None:
    """The bundled world model orders a wide exploration far better than chance."""
    seen = []
    found = measure_explored(
        engine, policy, windows, spread_windows(len(windows), 10), CONFIG, seeds=(0, 1), batch=5,
        progress=lambda *report: seen.append(report),
    )  # fmt: skip
    assert seen == [(5, 10), (10, 10)]
    assert (found.windows, found.rollouts, found.draws) == (10, 16, 2)
    assert found.way.interval[0] > 0.1
    assert found.actions.value > 0.1
    assert found.actions_way.value > 0.3
    assert found.agreement.value > 0.3
    assert str(found.way) in found.lines()[0]
    assert f"z {found.means['z']}" in found.lines()[-1]
    assert f"z {found.right_means['z']:.2f}" in found.lines()[-1]


def test_a_judge_that_knows_the_way_correlates_fully(engine, policy, windows, monkeypatch) -> None:
    """The judge is asked about what was drawn, seed by seed, and its order is taken as it is."""
    asked: list[int] = []

    def judge(engine, scenes, actions, batch, config, *, seeds, scale):  # noqa: ARG001
        asked.extend(seeds)
        return SimpleNamespace(
            distance=way_error(asked_way(actions), asked_way(batch.actions)[:, None])
        )

    monkeypatch.setattr(explored, "judge", judge)
    numbers = spread_windows(len(windows), 4)
    found = measure_explored(engine, policy, windows, numbers, CONFIG, seeds=(5, 1, 7), batch=4)
    assert asked == [5, 1, 7]
    for estimate in (found.way, found.way_averaged, found.agreement):
        assert estimate.value == pytest.approx(1)
    assert found.actions.value == pytest.approx(found.actions_way.value)
    assert all(share.value == pytest.approx(1, abs=1e-4) for share in found.pushes.values())
    again = measure_explored(engine, policy, windows, numbers, CONFIG, seeds=(5, 1, 7), batch=4)
    assert again.spread == found.spread


def test_what_is_refused(engine, policy, windows) -> None:
    with pytest.raises(ConfigError, match="1 noise seeds; allowed: at least 2"):
        measure_explored(engine, policy, windows, [0, 1], CONFIG, seeds=[3])
    wanted = load_config(RFTConfig, "rft-small", ["reward.kind=success"])
    with pytest.raises(ConfigError, match="allowed here: imagined, recorded"):
        measure_explored(engine, policy, windows, [0, 1], wanted)
