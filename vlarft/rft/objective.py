"""The clipped policy-gradient objective and the terms beside it, as pure functions."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlarft.errors import ConfigError
from vlarft.models.layout import Layout
from vlarft.models.policy import Proposal
from vlarft.rft.config import ObjectiveConfig


@dataclass(frozen=True, slots=True)
class PolicyTerms:
    """Policy part of the loss of one minibatch; scalars except `ratio`.

    Attributes:
        loss: differentiable, to be minimised.
        ratio: detached importance ratios, [P, N, T, A] or [P, N, 1, 1].
        clip_fraction: share of ratios whose gradient the clipping removed, in [0, 1].
        kl_old: detached estimate of KL(old | new), nats per entry.
        kl_reference: detached estimate of KL(new | reference), nats per entry; 0 when not used.
        entropy: detached mean entropy, nats per entry.
    """

    loss: Tensor
    ratio: Tensor
    clip_fraction: Tensor
    kl_old: Tensor
    kl_reference: Tensor
    entropy: Tensor


def log_ratio(new: Tensor, old: Tensor, level: Literal["entry", "chunk"]) -> Tensor:
    """Logarithm of the importance ratio.

    `entry` gives one per action entry (the official code). `chunk` gives one per action chunk, the
    geometric mean of its entries' ratios (GSPO, arXiv 2507.18071, eq. 7): its gradient at ratio 1
    equals that of `entry`, so learning rates and coefficients carry over.

    Args:
        new: float32 [P, N, T, A].
        old: float32 [P, N, T, A], of the policy that drew the samples.
        level: see above.

    Returns:
        float32 [P, N, T, A] or [P, N, 1, 1].
    """
    difference = new - old
    return difference if level == "entry" else difference.mean((-2, -1), keepdim=True)


def clipped_loss(
    ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float, dual_clip: float | None
) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate with asymmetric bounds and dual clipping.

    A >= 0:  -min(r, 1 + clip_high) A
    A <  0:  -max(r, 1 - clip_low) A, at most -dual_clip A
    arXiv 1707.06347 eq. 7; dual clip 1912.09729 eq. 5

    Args:
        ratio: float32 [..., T, A] or [..., 1, 1], positive.
        advantages: float32 [...].
        clip_low: distance of the lower bound from 1.
        clip_high: distance of the upper bound from 1.
        dual_clip: bound of the ratio for negative advantages, > 1, or None.

    Returns:
        Loss of each ratio, and a bool mask of the ratios whose gradient is removed; both of
        `ratio`'s shape.
    """
    advantages = advantages[..., None, None].expand_as(ratio)
    free = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.maximum(free, bounded)
    removed = bounded > free
    if dual_clip is not None:
        ceiling = -advantages * dual_clip
        beyond = (advantages < 0) & (loss > ceiling)
        loss = torch.where(beyond, ceiling, loss)
        removed = removed | beyond
    return loss, removed


def symmetric_entries(actions: Tensor, mean: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Entries whose noise and its mirror image both stay in the range of actions.

    Beyond the range all actions are alike, so across its end a reward sees one half of the noise:
    it seems to pay to move the mean outwards. What is kept is as likely as its mirror image, so
    what is left out biases nothing.

    Args:
        actions: float32 [P, N, T, A], raw units, drawn around `mean`.
        mean: float32 [P, T, A], raw units, what is executed.
        low: float32 [A], raw units.
        high: float32 [A], raw units.

    Returns:
        bool [P, N, T, A].
    """
    mirrored = 2 * mean[:, None] - actions
    return (torch.minimum(actions, mirrored) >= low) & (torch.maximum(actions, mirrored) <= high)


def credited_entries(proposal: Proposal, layout: Layout, config: ObjectiveConfig) -> Tensor | None:
    """Entries that advantages credit, bool [P, N, T, A]; None: all.

    Raises:
        ConfigError: the policy does not say what its noise is around.
    """
    if config.credit == "all":
        return None
    if proposal.mean is None:
        raise ConfigError(
            "objective.credit = symmetric, but this policy's sample() gives a proposal without "
            "its mean; use objective.credit=all, or let it give one"
        )
    drawn = proposal.actions
    low, high = drawn.new_tensor(layout.action_low), drawn.new_tensor(layout.action_high)
    return symmetric_entries(drawn, proposal.mean, low, high)


def low_variance_kl(new: Tensor, reference: Tensor) -> Tensor:
    """Estimate of KL(new | reference) per entry: `e^d - d - 1`, `d = reference - new`.

    Non-negative, and unbiased for samples of `new` (http://joschu.net/blog/kl-approx.html, "k3").
    The official code divides `d` by the number of action dimensions; this one does not.

    Args:
        new: float32 log-probabilities.
        reference: float32 log-probabilities of the same samples, same shape.

    Returns:
        float32, shape of `new`, nats.
    """
    d = reference - new
    return torch.expm1(d) - d


def policy_terms(
    new: Tensor,
    old: Tensor,
    entropy: Tensor,
    advantages: Tensor,
    config: ObjectiveConfig,
    reference: Tensor | None = None,
    credited: Tensor | None = None,
) -> PolicyTerms:
    """Clipped surrogate - entropy bonus + KL to the reference, each a mean over entries.

    Args:
        new: differentiable log-probabilities, float32 [P, N, T, A].
        old: log-probabilities before the first update of this batch, same shape, no gradient.
        entropy: differentiable entropies, same shape, nats.
        advantages: float32 [P, N].
        config: coefficients and clipping.
        reference: log-probabilities of the policy at step 0, same shape; None without KL term.
        credited: bool, same shape, entries that advantages credit; None: all. Means stay means
            over all entries.
    """
    ratio = log_ratio(new, old, config.ratio).exp()
    surrogate, removed = clipped_loss(
        ratio,
        advantages,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        dual_clip=config.dual_clip,
    )
    if credited is not None:
        surrogate = torch.where(credited, surrogate, torch.zeros_like(surrogate))
    mean_entropy = entropy.mean()
    loss = surrogate.mean() - config.entropy * mean_entropy
    kl_reference = torch.zeros((), device=new.device)
    if reference is not None:
        divergence = low_variance_kl(new, reference).mean()
        loss = loss + config.kl * divergence
        kl_reference = divergence.detach()
    return PolicyTerms(
        loss=loss,
        ratio=ratio.detach(),
        clip_fraction=removed.float().mean(),
        # The samples come from the old policy, so KL(old | new) is the unbiased direction here.
        kl_old=low_variance_kl(old, new.detach()).mean(),
        kl_reference=kl_reference,
        entropy=mean_entropy.detach(),
    )
