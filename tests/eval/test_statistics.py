import pytest
import torch

from vlarft.errors import DataError, ShapeError
from vlarft.eval.statistics import (
    bootstrap,
    episode_weights,
    mean_interval,
    rank_correlation,
    rank_interval,
)


def test_windows_of_an_episode_share_their_weight_and_draws_have_the_same_size():
    episode = torch.tensor([7, 7, 3, 3, 3, 9])
    weights = episode_weights(episode, draws=200)
    assert torch.equal(weights[:, 0], weights[:, 1])
    assert torch.equal(weights[:, 2], weights[:, 4])
    assert torch.equal(weights[:, [0, 2, 5]].sum(1), torch.full((200,), 3.0, dtype=torch.float64))


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    episode = torch.arange(40).repeat_interleave(5)
    covered = 0
    for trial in range(100):
        shared = torch.randn(40, generator=generator)[episode]  # windows of an episode go together
        estimate = mean_interval(
            shared + 0.1 * torch.randn(200, generator=generator), episode, draws=400, seed=trial
        )
        covered += estimate.interval[0] <= 0 <= estimate.interval[1]
    assert 87 <= covered <= 100  # ignoring episodes would cover about 60


def test_constant_difference_has_an_interval_of_no_width():
    estimate = mean_interval(torch.full((6,), 2.5), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert estimate.value == 2.5
    assert estimate.interval == (2.5, 2.5)
    assert estimate.excludes_zero


def test_same_seed_same_interval():
    values, episode = torch.arange(90.0).sin(), torch.arange(90) // 3
    assert mean_interval(values, episode, seed=4) == mean_interval(values, episode, seed=4)
    assert mean_interval(values, episode, seed=4) != mean_interval(values, episode, seed=5)


def test_one_episode_has_no_interval():
    with pytest.raises(DataError, match="at least 2 episodes"):
        bootstrap(lambda w: w.sum(1), torch.zeros(5, dtype=torch.int64))


def test_shapes_are_checked():
    with pytest.raises(ShapeError, match=r"values \[3\] and episode \[4\]"):
        mean_interval(torch.zeros(3), torch.zeros(4))


def test_rank_correlation():
    a = torch.tensor([[1.0, 2, 3, 4], [1, 2, 3, 4], [1, 1, 2, 2], [5, 5, 5, 5]])
    b = torch.tensor([[10.0, 20, 30, 99], [4, 3, 2, 1], [1, 2, 3, 4], [1, 2, 3, 4]])
    assert rank_correlation(a, b).tolist() == pytest.approx([1, -1, 0.8944, 0], abs=1e-4)


def test_rank_interval_ranks_every_draw_anew():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(12, generator=generator).double()
    b = a.round() + 0.5 * torch.randn(12, generator=generator).double()
    episode = torch.arange(12) // 2
    drawn = []
    for weights in episode_weights(episode):
        rows = torch.arange(12).repeat_interleave(weights.long())
        drawn.append(float(rank_correlation(a[None, rows], b[None, rows])))
    found = rank_interval(a, b, episode)
    assert found.value == pytest.approx(float(rank_correlation(a[None], b[None])))
    low, high = torch.tensor(drawn).quantile(torch.tensor([0.025, 0.975])).tolist()
    assert found.interval == pytest.approx((low, high), abs=1e-5)
    with pytest.raises(ShapeError, match=r"figures \[12\] and \[11\] and episode \[12\]"):
        rank_interval(a, b[1:], episode)
