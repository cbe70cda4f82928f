"""Rewards: one number per rollout, higher is better, 0 is the expert itself (spec, section 5)."""

import torch
from torch import Tensor

from vlarft.errors import ShapeError
from vlarft.rft.config import RewardConfig


def frame_weights(frames: int, config: RewardConfig) -> Tensor:
    """Weight of each frame in a rollout's distance.

    `discount` follows the paper's code: `discount ** (T - 1 - t)`, so late frames count most.

    Returns:
        float32 [T], non-negative, sum 1.
    """
    if config.aggregation == "mean":
        weights = torch.ones(frames)
    elif config.aggregation == "last":
        weights = torch.zeros(frames)
        weights[-1] = 1.0
    else:
        weights = config.discount ** torch.arange(frames - 1, -1, -1, dtype=torch.float32)
    return weights / weights.sum()


def rollout_distance(l1: Tensor, perceptual: Tensor, config: RewardConfig) -> Tensor:
    """Weighted distance of each rollout, `sum_t w_t (l1 * L1_t + lpips * LPIPS_t)`.

    Args:
        l1: float [..., T], mean absolute pixel difference per frame.
        perceptual: float [..., T], LPIPS per frame.
        config: weights and reduction over frames.

    Returns:
        float32 [...]; the reward is its negative.

    Raises:
        ShapeError: the two distances differ in shape.
        ValueError: a distance is NaN or infinite.
    """
    if l1.shape != perceptual.shape:
        raise ShapeError(
            f"rollout_distance(): l1 {list(l1.shape)} and perceptual {list(perceptual.shape)} "
            "must be equal"
        )
    per_frame = config.l1 * l1.float() + config.lpips * perceptual.float()
    if not torch.isfinite(per_frame).all():
        raise ValueError(
            "rollout_distance(): a distance is NaN or infinite; check the decoded frames"
        )
    return (per_frame * frame_weights(l1.shape[-1], config).to(l1.device)).sum(-1)


def action_distance(actions: Tensor, expert: Tensor, scale: Tensor) -> Tensor:
    """Mean absolute difference of actions in units of `scale` (the paper's first reward).

    The official code sums over the 56 entries; the mean differs by a constant that group
    normalisation removes.

    Args:
        actions: float [..., T, A], raw LIBERO units.
        expert: float, broadcastable to `actions`, raw units.
        scale: float [A], half the range of each dimension in the training data.

    Returns:
        float32 [...].
    """
    return ((actions - expert).abs() / scale).mean((-2, -1)).float()


def mirrored(actions: Tensor, expert: Tensor) -> Tensor:
    """Action chunks as far from the expert's, to the other side.

    Not cut to the range of actions: the world model cuts what it imagines, of a chunk and of its
    mirror image alike, so their mean distance is the same on both sides of the expert.

    Args:
        actions: float [P, N, T, A], raw LIBERO units.
        expert: float [P, T, A], raw units.

    Returns:
        Float [P, N, T, A], raw units; entries may lie beyond -1 and 1.
    """
    return 2 * expert[:, None] - actions


def action_scale(actions: Tensor) -> Tensor:
    """Half the q01..q99 range of each action dimension; 1 where the data do not move.

    Args:
        actions: float [M, A], raw actions of the training episodes.

    Returns:
        float32 [A], positive.
    """
    low, high = torch.quantile(actions.double(), torch.tensor([0.01, 0.99]).double(), dim=0)
    half = ((high - low) / 2).float()
    return torch.where(half > 0, half, torch.ones_like(half))
