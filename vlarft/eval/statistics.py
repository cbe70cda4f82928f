"""Bootstrap intervals clustered by episode.

Windows of one episode look alike, so they are not independent: a draw takes whole episodes with
replacement, as often as there are episodes. Every quantity of a comparison uses the same draws, so
what a window contributes to both sides cancels (a paired comparison).
"""

from collections.abc import Callable
from dataclasses import dataclass
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
