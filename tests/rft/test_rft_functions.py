"""Rewards, advantages, objective, randomness: formulas, signs, limits."""

import math

import pytest
import torch

from vlarft.config import load_config
from vlarft.errors import ConfigError, ShapeError
from vlarft.rft.advantages import group_advantages, group_spread, permute_within_groups
from vlarft.rft.config import AdvantageConfig, ObjectiveConfig, RewardConfig, RFTConfig
from vlarft.rft.objective import (
    clipped_loss,
    log_ratio,
    low_variance_kl,
    policy_terms,
    symmetric_entries,
)
from vlarft.rft.randomness import generator_for, seed_for, step_windows
from vlarft.rft.rewards import action_distance, action_scale, frame_weights, rollout_distance

CLIP = {"clip_low": 0.2, "clip_high": 0.3, "dual_clip": 3.0}


def test_config_refuses_unknown_and_impossible_values():
    with pytest.raises(ConfigError, match="did you mean 'discount'"):
        load_config(RFTConfig, None, ["reward.discont=0.9"])
    with pytest.raises(ConfigError, match="rollouts"):
        load_config(RFTConfig, None, ["rollouts=1"])
    with pytest.raises(ConfigError, match="groups stay whole"):
        load_config(RFTConfig, None, ["scenes=2", "objective.minibatches=3"])
    with pytest.raises(ConfigError, match=r"^configuration: reward\.l1 and .* is worth 0$"):
        load_config(RFTConfig, None, ["reward.l1=0", "reward.lpips=0"])
    with pytest.raises(ConfigError, match="use start=mean"):
        load_config(RFTConfig, None, ["objective.credit=symmetric"])
    with pytest.raises(ConfigError, match="use start=mean or start=shared"):
        load_config(RFTConfig, None, ["exploration.antithetic=true", "start=independent"])
    settings = ["objective.credit=symmetric", "start=mean", "objective.ratio=chunk"]
    with pytest.raises(ConfigError, match=r"use objective\.ratio=entry"):
        load_config(RFTConfig, None, settings)


def test_frame_weights():
    assert frame_weights(4, RewardConfig(aggregation="mean")).tolist() == [0.25] * 4
    assert frame_weights(4, RewardConfig(aggregation="last")).tolist() == [0, 0, 0, 1]
    late = frame_weights(3, RewardConfig(aggregation="discount", discount=0.5))
    assert torch.allclose(late, torch.tensor([1.0, 2.0, 4.0]) / 7)


def test_rollout_distance_weights_and_refusals():
    l1, perceptual = torch.full((2, 3, 4), 0.1), torch.full((2, 3, 4), 0.4)
    distance = rollout_distance(l1, perceptual, RewardConfig(l1=2, lpips=0.5))
    assert distance.shape == (2, 3)
    assert torch.allclose(distance, torch.tensor(0.4))
    assert (
        float(rollout_distance(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4), RewardConfig()).item())
        == 0
    )
    with pytest.raises(ShapeError):
        rollout_distance(l1, perceptual[:1], RewardConfig())
    with pytest.raises(ValueError, match="NaN or infinite"):
        rollout_distance(l1 * math.nan, perceptual, RewardConfig())


def test_action_distance_in_units_of_the_range():
    data = torch.stack(
        [torch.linspace(-1, 1, 1001), torch.linspace(0, 0.2, 1001), torch.zeros(1001)], 1
    )
    scale = action_scale(data)
    assert torch.allclose(scale, torch.tensor([0.98, 0.098, 1.0]), atol=1e-5)
    expert = torch.zeros(1, 1, 2, 3)
    moved = expert + torch.tensor([0.98, 0.098, 0.0])
    assert torch.allclose(action_distance(moved, expert, scale), torch.tensor(2 / 3))


def test_grpo_advantages_against_the_formula():
    rewards = torch.tensor([[1.0, 2.0, 3.0, 6.0], [0.0, 0.0, 0.0, 1.0]])
    result = group_advantages(rewards, AdvantageConfig(kind="grpo"))
    row = rewards[0]
    assert torch.allclose(result.values[0], (row - 3) / (row.std() + 1e-6))
    assert torch.allclose(result.values.sum(1), torch.zeros(2), atol=1e-5)
    assert result.kept.all()
    assert torch.allclose(
        group_advantages(rewards, AdvantageConfig(kind="dr_grpo")).values[0], row - 3
    )
    others = torch.stack([row[i] - (row.sum() - row[i]) / 3 for i in range(4)])
    assert torch.allclose(group_advantages(rewards, AdvantageConfig(kind="rloo")).values[0], others)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
def test_groups_without_signal_are_skipped(kind):
    rewards = torch.tensor([[0.1] * 5, [0.1, 0.11, 0.12, 0.1, 0.1]])
    plain = group_advantages(rewards, AdvantageConfig(kind=kind))
    assert plain.kept.tolist() == [False, True]
    assert plain.spread[0] == 0
    assert (plain.values[0] == 0).all()
    noisy = group_advantages(rewards, AdvantageConfig(kind=kind), noise_floor=0.01)
    assert noisy.kept.tolist() == [False, False]
    below = group_advantages(rewards, AdvantageConfig(kind=kind), noise_floor=0.004)
    assert below.kept.tolist() == [False, True]


def test_spread_of_equal_rewards_is_exactly_zero():
    for value in torch.rand(200, generator=torch.Generator().manual_seed(0)):
        assert group_spread(value.repeat(1, 7)).item() == 0


def test_advantages_need_groups():
    with pytest.raises(ShapeError, match="N >= 2"):
        group_advantages(torch.zeros(3, 1), AdvantageConfig())


def test_permutation_keeps_each_groups_values_and_nothing_else():
    values = torch.arange(40.0).reshape(4, 10)
    shuffled = permute_within_groups(values, torch.Generator().manual_seed(1))
    assert torch.equal(shuffled.sort(1).values, values)
    assert not torch.equal(shuffled, values)
    assert (
        len({tuple((row - row.min()).tolist()) for row in shuffled}) == 4
    )  # a permutation a group


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "removed"),
    [
        (1.0, 1.0, -1.0, False),
        (1.5, 1.0, -1.3, True),  # upper bound
        (0.5, 1.0, -0.5, False),  # a good action that became rare is pulled back
        (0.5, -1.0, 0.8, True),  # lower bound
        (2.0, -1.0, 2.0, False),
        (9.0, -1.0, 3.0, True),  # dual clip
        (9.0, 1.0, -1.3, True),
    ],
)
def test_clipped_loss(ratio, advantage, loss, removed):
    r = torch.full((1, 1, 1, 1), ratio, requires_grad=True)
    value, mask = clipped_loss(r, torch.full((1, 1), advantage), **CLIP)
    assert math.isclose(value.item(), loss, rel_tol=1e-6)
    assert bool(mask) is removed
    value.sum().backward()
    assert (r.grad.item() == 0) is removed


def test_without_dual_clip_the_loss_is_unbounded():
    r = torch.full((1, 1, 1, 1), 9.0)
    value, _ = clipped_loss(r, -torch.ones(1, 1), clip_low=0.2, clip_high=0.2, dual_clip=None)
    assert value.item() == 9


def test_chunk_and_entry_ratios_have_equal_gradients_at_one():
    old = torch.randn(2, 3, 4, 7, generator=torch.Generator().manual_seed(0))
    advantages = torch.tensor([[1.0, -1.0, 0.5], [0.2, 0.3, -2.0]])
    gradients = []
    for level in ("entry", "chunk"):
        new = old.clone().requires_grad_()
        config = ObjectiveConfig(ratio=level, entropy=0)
        terms = policy_terms(new, old, torch.zeros_like(new), advantages, config)
        assert (terms.ratio == 1).all()
        terms.loss.backward()
        gradients.append(new.grad)
    assert torch.allclose(gradients[0], gradients[1])
    assert torch.allclose(gradients[0], -(advantages / 168)[..., None, None].expand_as(old))
    assert log_ratio(old, old, "chunk").shape == (2, 3, 1, 1)


def test_symmetric_entries_are_those_whose_mirror_image_is_inside_too():
    mean = torch.tensor([[[0.0, 0.8, 1.2, -0.5]]])
    actions = torch.tensor([[[[0.9, 0.9, 0.9, -0.9]], [[-1.1, 0.5, 1.2, 0.4]]]])
    low, high = -torch.ones(4), torch.tensor([1.0, 1.0, 1.0, 0.3])
    kept = symmetric_entries(actions, mean, low, high)
    assert kept.tolist() == [[[[True, True, False, True]], [[False, False, False, False]]]]


def test_what_is_not_credited_moves_nothing_and_the_rest_as_before():
    old = torch.zeros(1, 2, 2, 3)
    advantages = torch.tensor([[1.0, -1.0]])
    credited = torch.rand(old.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    gradients = []
    for mask in (None, credited):
        new = old.clone().requires_grad_()
        config = ObjectiveConfig(entropy=0)
        policy_terms(
            new, old, torch.zeros_like(new), advantages, config, credited=mask
        ).loss.backward()
        gradients.append(new.grad)
    assert torch.equal(gradients[1], torch.where(credited, gradients[0], 0))


def gradient_of_the_mean(mean: float, best: float, credit: str) -> float:
    """How far an advantage moves a mean whose action is cut at 1 and best at `best`."""
    noise = 0.3 * torch.randn(1, 20_000, 1, 1, generator=torch.Generator().manual_seed(1))
    centre = torch.full((1, 1, 1), mean, requires_grad=True)
    actions = centre.detach()[:, None] + noise
    reward = -(actions.clamp(-1, 1) - best).abs()[..., 0, 0]
    advantages = group_advantages(reward, AdvantageConfig()).values
    new = torch.distributions.Normal(centre[:, None], 0.3).log_prob(actions)
    one = torch.ones(1)
    kept = symmetric_entries(actions, centre.detach(), -one, one) if credit == "symmetric" else None
    terms = policy_terms(
        new, new.detach(), torch.zeros_like(new), advantages, ObjectiveConfig(entropy=0), None, kept
    )
    terms.loss.backward()
    return -float(centre.grad)


def test_symmetric_credit_does_not_push_a_right_mean_outwards():
    # Source of the bias: what lies beyond the end of the range is executed like the end itself.
    assert gradient_of_the_mean(0.8, 0.8, "all") > 0.3
    assert abs(gradient_of_the_mean(0.8, 0.8, "symmetric")) < 0.05
    assert gradient_of_the_mean(0.8, 0.75, "all") > 0.1  # the wrong way
    assert gradient_of_the_mean(0.8, 0.75, "symmetric") < -0.02
    assert gradient_of_the_mean(0.8, 0.85, "symmetric") > 0.02


def test_entropy_raises_sigma_and_kl_pulls_to_the_reference():
    old = torch.zeros(1, 2, 1, 1)
    entropy = torch.ones(1, 2, 1, 1, requires_grad=True)
    policy_terms(old, old, entropy, torch.zeros(1, 2), ObjectiveConfig(entropy=0.5)).loss.backward()
    assert torch.allclose(entropy.grad, torch.tensor(-0.25))
    new = torch.full((1, 2, 1, 1), 0.3, requires_grad=True)
    config = ObjectiveConfig(entropy=0, kl=2.0)
    terms = policy_terms(
        new, new.detach(), torch.zeros_like(new), torch.zeros(1, 2), config, reference=old
    )
    terms.loss.backward()
    assert (new.grad > 0).all()
    assert terms.kl_reference > 0


def test_kl_estimate_is_unbiased_and_zero_for_equal_policies():
    a, b = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(0.3, 1.2)
    torch.manual_seed(0)
    x = a.sample((200_000,))
    estimate = low_variance_kl(a.log_prob(x), b.log_prob(x))
    assert (estimate >= 0).all()
    assert abs(estimate.mean() - torch.distributions.kl_divergence(a, b)) < 2e-3
    assert (low_variance_kl(a.log_prob(x), a.log_prob(x)) == 0).all()


def test_seeds_differ_by_every_part_of_the_address():
    seeds = {
        seed_for(s, t, p, q)
        for s in range(3)
        for t in range(5)
        for p in ("a", "b")
        for q in range(2)
    }
    assert len(seeds) == 60
    assert all(0 <= seed < 2**63 for seed in seeds)
    a, b = (torch.rand(4, generator=generator_for(1, 2, "x")) for _ in range(2))
    assert torch.equal(a, b)


def test_every_window_is_used_once_a_pass():
    drawn = torch.cat([step_windows(10, 4, seed=3, step=s) for s in range(5)])
    assert sorted(drawn[:10].tolist()) == list(range(10))
    assert sorted(drawn[10:].tolist()) == list(range(10))
    assert drawn[:10].tolist() != drawn[10:].tolist()
    assert (
        drawn.tolist()
        != torch.cat([step_windows(10, 4, seed=4, step=s) for s in range(5)]).tolist()
    )
    assert step_windows(3, 8, seed=0, step=0).shape == (
        8,
    )  # more scenes than windows: several passes
