"""Where fine-tuning's gradient points."""

import io
import math

import pytest
import torch
from rich.console import Console

from vlarft.config import load_config
from vlarft.demo import DEMOS, POLICY, WORLD, load_windows
from vlarft.engine import RolloutEngine
from vlarft.errors import ConfigError
from vlarft.eval.gradient import Direction, GradientReport, direction, jackknife, measure_gradient
from vlarft.eval.statistics import Estimate
from vlarft.models.flow_policy import FlowPolicy
from vlarft.models.world_model import WorldModel
from vlarft.rft.config import RFTConfig


def batches(mean: torch.Tensor, noise: float, count: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return mean + noise * torch.randn(count, len(mean), generator=random)


def test_direction_finds_angle_and_share_of_signal() -> None:
    towards = torch.zeros(400)
    towards[0] = 1.0
    aside = torch.zeros(400)
    aside[1] = 1.0
    executed = batches(towards, 0.02, 60, 0)
    # A squared length of 1 beside noise of 400 * 0.1^2 = 4: a fifth is signal.
    found = direction(batches(0.6 * towards + 0.8 * aside, 0.1, 60, 1), executed)
    assert found.signal.value == pytest.approx(0.2, abs=0.03)
    assert found.executed.value == pytest.approx(0.6, abs=0.1)
    assert found.executed.interval[0] < 0.6 < found.executed.interval[1]
    assert found.progress.value == pytest.approx(0.6 * math.sqrt(0.2), abs=0.03)
    assert direction(batches(-towards, 0.1, 60, 2), executed).executed.interval[1] < -0.8
    nothing = direction(batches(0 * towards, 0.1, 60, 3), executed)
    assert nothing.signal.interval[0] < 0.02
    assert not nothing.executed.interval[0] > 0.5  # NaN or wide
    assert nothing.progress.interval[0] < 0.02


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = jackknife(lambda weights: (weights @ values) / weights.sum(1), 50)
    assert found.value == pytest.approx(float(values.mean()))
    half = 1.96 * float(values.std()) / math.sqrt(50)
    assert found.interval[1] - found.value == pytest.approx(half)


def test_verdicts() -> None:
    signal = Estimate(0.1, (0.0, 0.2))

    def verdict(low: float, high: float) -> str:
        found = Direction(signal, signal, Estimate((low + high) / 2, (low, high)))
        return GradientReport(3, 8, found, found, 1.0).verdict

    assert "points where" in verdict(0.1, 0.9)
    assert "points away" in verdict(-0.9, -0.1)
    assert "do not tell" in verdict(-0.1, 0.9)
    assert "do not tell" in verdict(math.nan, math.nan)


@pytest.fixture(scope="module")
def engine() -> RolloutEngine:
    return RolloutEngine(WorldModel.from_pretrained(WORLD), metric="lpips-alex")


def measure(engine: RolloutEngine, *settings: str, count: int = 6) -> GradientReport:
    config = load_config(RFTConfig, "libero_object_small", ["scenes=8", *settings])
    policy = FlowPolicy.from_pretrained(POLICY, settings=config.exploration.settings())
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    windows = load_windows([DEMOS], "train", engine.world.layout)
    report = measure_gradient(engine, policy, windows, config, batches=count)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    return report


def test_a_reward_that_knows_the_way_points_the_way_when_noise_is_narrow(engine) -> None:
    narrow = ("exploration.sigma_min=0.02", "exploration.sigma_max=0.05", "reward.kind=actions")
    all_of_them = ("rollouts=64", "objective.credit=all")
    report = measure(engine, *narrow, *all_of_them, count=10)
    assert report.knowing.signal.value > 0.02
    assert report.knowing.executed.interval[0] > 0.2
    assert report.rollouts == 512
    assert report.credited == 1
    part = measure(engine, *narrow, "objective.credit=symmetric", count=3)
    assert 0.3 < part.credited < 1


def test_imagined_rewards_have_a_gradient(engine) -> None:
    report = measure(engine, count=3)
    assert math.isfinite(report.reward.signal.value)
    assert report.reward.signal != report.knowing.signal
    assert report.to_dict()["verdict"] == report.verdict
    shown = io.StringIO()
    Console(file=shown, width=80).print(report.table())
    lines = shown.getvalue().splitlines()
    assert len(lines) == 9  # title, borders, names, three figures and the caption: none is broken
    assert any(str(report.reward.progress) in line for line in lines)


def test_too_few_batches_are_refused(engine) -> None:
    with pytest.raises(ConfigError, match="batches = 2; allowed: at least 3"):
        measure(engine, count=2)
