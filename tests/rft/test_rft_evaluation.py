"""Evaluation on held-out windows and the intervals of a change."""

import pytest
import torch
from rft_mocks import MockEngine, MockPolicy, make_windows

from vlarft.errors import DataError, ShapeError
from vlarft.rft.config import EvaluationConfig, RewardConfig, SamplingConfig
from vlarft.rft.evaluation import (
    evaluate_policy,
    paired_difference,
    paired_interval,
    spread_windows,
)


class FromItsMean(MockPolicy):
    def act(self, observation, generator=None):  # noqa: ARG002
        return super().act(observation)


def evaluate(policy, batch=5, samples=0, noise="shared", starts=2):
    windows = make_windows(seed=7)
    return evaluate_policy(
        MockEngine(),
        policy,
        windows,
        spread_windows(len(windows), 12),
        evaluation=EvaluationConfig(batch=batch, samples=samples, starts=starts),
        reward=RewardConfig(),
        sampling=SamplingConfig(noise=noise),
    )


def evaluate_actions(change):
    """A policy that says the expert's actions, changed."""
    policy, windows = MockPolicy(), make_windows(seed=7)
    chosen = spread_windows(len(windows), 12)
    policy.act = lambda *_: change(windows.batch(chosen).actions)
    return evaluate_policy(
        MockEngine(),
        policy,
        windows,
        chosen,
        evaluation=EvaluationConfig(batch=12),
        reward=RewardConfig(),
        sampling=SamplingConfig(),
    )


def test_expert_has_distance_zero_and_others_do_not():
    perfect = evaluate_actions(lambda actions: actions)
    assert (perfect.distance == 0).all()
    assert (perfect.action_l1 == 0).all()
    assert (evaluate(MockPolicy()).distance > 0).all()


def test_actions_beyond_the_range_of_the_robot_count_as_executed():
    far = evaluate_actions(lambda actions: actions.sign() * 5)
    at_the_end = evaluate_actions(torch.sign)
    assert torch.equal(far.action_l1, at_the_end.action_l1)
    assert 0 < far.action_l1.mean() < 2


def test_values_do_not_depend_on_the_batch_and_repeat():
    a, b, c = (evaluate(FromItsMean(), batch=n) for n in (1, 5, 12))
    assert torch.allclose(a.distance, b.distance)
    assert torch.allclose(a.distance, c.distance)
    assert a.distance.shape == a.episode.shape == (12,)
    again = evaluate(MockPolicy(), batch=5, samples=3, noise="independent")
    assert torch.equal(
        again.distance, evaluate(MockPolicy(), batch=5, samples=3, noise="independent").distance
    )
    assert again.sampled_distance.mean() > a.distance.mean()  # exploration costs distance


def test_a_policys_chunks_start_from_drawn_noise_and_are_averaged():
    one, four = (evaluate(MockPolicy(), starts=n) for n in (1, 4))
    assert torch.equal(one.distance, evaluate(MockPolicy(), starts=1).distance)
    assert not torch.equal(one.distance, evaluate(FromItsMean(), starts=1).distance)
    assert not torch.equal(one.action_l1, four.action_l1)
    assert four.distance.shape == (12,)


@pytest.mark.parametrize("samples", [0, 3])
def test_no_drawn_starts_is_one_chunk_from_their_mean(samples):
    mean = evaluate(MockPolicy(), starts=0, samples=samples)
    assert torch.equal(mean.distance, evaluate(FromItsMean(), starts=1).distance)
    assert torch.equal(mean.action_l1, evaluate(FromItsMean(), starts=1).action_l1)
    assert (mean.sampled_distance is None) == (samples == 0)
    if samples:
        assert mean.sampled_distance.mean() > mean.distance.mean()


def test_windows_are_spread_over_all_episodes():
    windows = make_windows(count=6)
    chosen = spread_windows(len(windows), 12)
    assert windows.episode[chosen].bincount().tolist() == [2] * 6
    assert spread_windows(3, 10).tolist() == [0, 1, 2]


def test_interval_covers_a_known_change_and_knows_its_clusters():
    torch.manual_seed(0)
    episodes = torch.arange(20).repeat_interleave(5)
    scale = torch.rand(20).add(0.5)[episodes]
    before = scale.expand(3, -1) + 0.01 * torch.randn(3, 100)
    after = 0.8 * before + 0.01 * torch.randn(3, 100)
    change = paired_interval(before, after, episodes)
    low, high = change.interval
    assert low < change.relative < high
    assert low < -0.2 < high
    assert high - low < 0.05
    nothing = paired_interval(before, before + 0.05 * torch.randn(3, 100), episodes)
    assert nothing.interval[0] < 0 < nothing.interval[1]
    # The change of an episode is shared by its windows: as if there were 20 values, not 100.
    shared = before * (1 + 0.3 * torch.randn(20))[episodes]
    wide = paired_interval(before, shared, episodes).interval
    naive = paired_interval(before, shared, torch.arange(100)).interval
    assert wide[1] - wide[0] > 1.5 * (naive[1] - naive[0])


def test_difference_of_two_arms_is_paired():
    torch.manual_seed(0)
    episodes = torch.arange(30)
    before = torch.rand(3, 30) + 0.5
    drift = 1 + 0.3 * torch.randn(3, 1)  # a seed moves both arms alike
    difference = paired_difference(
        (before, before * drift * 0.9), (before, before * drift), episodes
    )
    assert difference.interval[1] < 0
    assert difference.relative == pytest.approx(-0.1 * drift.mean().item(), abs=0.02)
    same = paired_difference((before, before), (before, before), episodes)
    assert same.relative == 0
    assert same.interval == (0, 0)


def test_shapes_are_checked():
    with pytest.raises(ShapeError, match="seeds, windows"):
        paired_interval(torch.rand(3, 4), torch.rand(3, 5), torch.zeros(4))


def test_one_episode_gives_no_interval():
    """However many seeds: whole episodes are what a draw takes."""
    values, episodes = torch.rand(3, 4), torch.full((4,), 7)
    with pytest.raises(DataError, match="at least 2 episodes, got 1"):
        paired_interval(values, values, episodes)
    with pytest.raises(DataError, match="at least 2 episodes, got 1"):
        paired_difference((values, values), (values, values), episodes)
