"""Intervals: bootstraps clustered by episode, and of success rates.

Windows of one episode look alike, so they are not independent: a draw takes whole episodes with
replacement, as often as there are episodes. Every quantity of a comparison uses the same draws, so
what a window contributes to both sides cancels (a paired comparison).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from vlarft.errors import DataError, ShapeError

DRAWS = 2000  # the ends of a 95% interval then move by about 1% of its width from seed to seed
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its bootstrap interval, both in the figure's unit.

    Attributes:
        value: the figure on all windows.
        interval: lower and upper bound.
    """

    value: float
    interval: tuple[float, float]

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.interval[0] > 0 or self.interval[1] < 0

    def __str__(self) -> str:
        """As lines and verdicts say it, 0.53 (0.44 to 0.62)."""
        low, high = self.interval
        return f"{self.value:.2f} ({low:.2f} to {high:.2f})"

    def to_dict(self) -> dict[str, Any]:
        """As written to `summary.json`."""
        return {"value": self.value, "interval": list(self.interval)}


def episode_weights(episode: Tensor, draws: int = DRAWS, seed: int = 0) -> Tensor:
    """How often each window counts in each bootstrap draw of episodes.

    Args:
        episode: int [W], episode of each window.
        draws: D, number of draws.
        seed: of the draws.

    Returns:
        float64 [D, W]; all windows of an episode share their weight.

    Raises:
        ShapeError: `episode` is not one-dimensional or empty.
    """
    if episode.dim() != 1 or not len(episode):
        raise ShapeError(f"episode must be [W] with W >= 1, got {list(episode.shape)}")
    names, cluster = torch.unique(episode, return_inverse=True)
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(names), (draws, len(names)), generator=generator)
    counts = torch.zeros(draws, len(names), dtype=torch.float64)
    counts.scatter_add_(1, picks, torch.ones_like(picks, dtype=torch.float64))
    return counts[:, cluster]


def bootstrap(
    statistic: Callable[[Tensor], Tensor],
    episode: Tensor,
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> Estimate:
    """Estimate of a statistic of weighted windows.

    Args:
        statistic: float64 weights [D, W] -> values [D]; weights of 1 give the estimate itself.
        episode: int [W], episode of each window.
        draws: bootstrap draws.
        level: coverage, in (0, 1).
        seed: of the draws.

    Raises:
        DataError: fewer than two episodes, so no interval exists.
    """
    if len(torch.unique(episode)) < 2:
        raise DataError(
            "an interval needs windows of at least 2 episodes, got 1; give more validation episodes"
        )
    value = statistic(torch.ones(1, len(episode), dtype=torch.float64))
    drawn = statistic(episode_weights(episode, draws, seed))
    tail = (1 - level) / 2
    low, high = torch.quantile(drawn, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Estimate(float(value), (low, high))


def mean_interval(
    values: Tensor, episode: Tensor, *, draws: int = DRAWS, seed: int = 0
) -> Estimate:
    """Mean over windows with its interval; of a paired comparison when `values` are differences.

    Args:
        values: float [W].
        episode: int [W].
        draws: bootstrap draws.
        seed: of the draws.

    Raises:
        ShapeError: shapes differ.
        DataError: fewer than two episodes.
    """
    if values.shape != episode.shape:
        raise ShapeError(
            f"values {list(values.shape)} and episode {list(episode.shape)} must be equal [W]"
        )
    column = values.double()
    return bootstrap(lambda w: (w * column).sum(1) / w.sum(1), episode, draws=draws, seed=seed)


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's correlation of two float [P,N], for each P; 0 where one of them is constant."""
    x, y = (_order(values).sum(2) for values in (a, b))
    return _correlation(x, y, torch.ones_like(x))


def rank_interval(a: Tensor, b: Tensor, episode: Tensor) -> Estimate:
    """Spearman's correlation of two figures of windows [W], ranked anew in each draw.

    Raises:
        ShapeError: shapes differ.
        DataError: fewer than two episodes.
    """
    if a.shape != episode.shape or b.shape != episode.shape:
        raise ShapeError(
            f"figures {list(a.shape)} and {list(b.shape)} and episode {list(episode.shape)} must "
            "be equal [W]"
        )
    x, y = (_order(values[None])[0] for values in (a, b))
    return bootstrap(lambda w: _correlation(w @ x.T, w @ y.T, w), episode)


def _order(values: Tensor) -> Tensor:
    """Members [P,N,N] below each member of a row [P,N], equal ones by half: their sum is a rank."""
    below = values[:, None, :] < values[:, :, None]
    equal = values[:, None, :] == values[:, :, None]
    return below.double() + equal.double() / 2


def _correlation(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Pearson's correlation of each row [P,N] of members with weights; 0 where one is constant."""
    total = weights.sum(1, keepdim=True)
    x, y = (v - (weights * v).sum(1, keepdim=True) / total for v in (x, y))
    size = ((weights * x.square()).sum(1) * (weights * y.square()).sum(1)).sqrt()
    product = (weights * x * y).sum(1)
    return torch.where(size > 1e-9, product / size.clamp_min(1e-9), torch.zeros_like(size))


def wilson(successes: int, trials: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a success rate, in [0, 1]; (0, 1) without trials.

    Source: E. B. Wilson, JASA 22 (1927). It stays sensible at 0% and 100%, and for few trials.
    """
    if not trials:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2)
    rate, shrink = successes / trials, 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / shrink
    half = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials)) / shrink
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_difference(
    before: Tensor,
    after: Tensor,
    clusters: Sequence[Tensor],
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Estimate:
    """Mean of `after - before` over pairs, with an interval clustered in several ways.

    A draw takes, of each clustering, as many clusters as there are, with replacement; a pair counts
    as often as the product says (tasks and seeds, say). A clustering of one cluster is no change.

    Args:
        before: float or bool [E].
        after: the same pairs' other values.
        clusters: int [E] each.
        draws: bootstrap draws.
        level: coverage, in (0, 1).

    Raises:
        ShapeError: shapes differ.
        DataError: no clustering has two clusters, so no interval exists.
    """
    if any(values.shape != before.shape for values in (after, *clusters)):
        raise ShapeError(
            f"paired values {list(before.shape)} and {list(after.shape)} and their clusters must "
            "be equal [E]"
        )
    if all(len(torch.unique(labels)) < 2 for labels in clusters):
        raise DataError("an interval needs at least 2 clusters of pairs, got 1; evaluate more")
    difference = after.double() - before.double()
    weights = torch.ones(draws, len(difference), dtype=torch.float64)
    for seed, labels in enumerate(clusters):
        weights *= episode_weights(labels, draws, seed)
    total = weights.sum(1)
    drawn = (weights @ difference)[total > 0] / total[total > 0]
    tail = (1 - level) / 2
    low, high = torch.quantile(drawn, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Estimate(float(difference.mean()), (low, high))
