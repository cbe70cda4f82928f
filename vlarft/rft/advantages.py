"""Group advantages: each rollout is judged against the other rollouts of its own scene."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlarft.errors import ShapeError
from vlarft.rft.config import AdvantageConfig

EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class Advantages:
    """Advantages of one batch of groups.

    Attributes:
        values: float32 [P, N]; 0 in groups that are not kept.
        spread: float32 [P], unbiased reward std of each group, in reward units.
        kept: bool [P], False where the spread is too small to be a signal.
    """

    values: Tensor
    spread: Tensor
    kept: Tensor


def group_spread(rewards: Tensor) -> Tensor:
    """Unbiased std of each group, exactly 0 when all its rewards are equal.

    Rewards are shifted by the group's first one before the mean is taken: the mean of equal numbers
    may otherwise round, and a constant group would show a spread.

    Args:
        rewards: float [P, N], N >= 2.

    Returns:
        float32 [P].
    """
    return (rewards - rewards[:, :1]).float().std(1)


def group_advantages(
    rewards: Tensor, config: AdvantageConfig, noise_floor: float = 0.0
) -> Advantages:
    """Compare each reward with its own group.

    grpo:     (r - mean) / (std + 1e-6), unbiased std     arXiv 2402.03300, section 4.1
    dr_grpo:  r - mean                                    arXiv 2503.20783
    rloo:     r - mean of the other members               arXiv 2402.14740

    A group whose std is below `max(std_floor, noise_factor * noise_floor)` is not kept: dividing by
    such a std would turn rounding or sampling noise into advantages of unit size.

    Args:
        rewards: float [P, N], N >= 2.
        config: kind and floors.
        noise_floor: reward std among identical expert actions, in reward units, >= 0.

    Raises:
        ShapeError: `rewards` is not [P, N] with N >= 2.
    """
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise ShapeError(
            f"group_advantages(): rewards must be [P, N] with N >= 2, got {list(rewards.shape)}"
        )
    rewards = rewards.float()
    members = rewards.shape[1]
    centred = rewards - rewards.mean(1, keepdim=True)
    spread = group_spread(rewards)
    if config.kind == "grpo":
        values = centred / (spread[:, None] + EPSILON)
    elif config.kind == "dr_grpo":
        values = centred
    else:
        values = centred * (members / (members - 1))
    kept = spread >= max(config.std_floor, config.noise_factor * noise_floor)
    return Advantages(torch.where(kept[:, None], values, torch.zeros_like(values)), spread, kept)


def permute_within_groups(values: Tensor, generator: torch.Generator) -> Tensor:
    """Shuffle the advantages of each group among its members: the control arm (spec 11.13).

    Means, stds and the set of values stay; only the link between a rollout and its advantage is
    cut.

    Args:
        values: float [P, N].
        generator: CPU generator used for nothing else.

    Returns:
        float [P, N].
    """
    keys = torch.rand(values.shape, generator=generator).to(values.device)
    return values.gather(1, keys.argsort(1))
