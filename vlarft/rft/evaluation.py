"""Imagined distance to the expert on held-out windows, and what a change of it is worth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlarft.data.windows import Windows
from vlarft.engine import RolloutEngine, Sampling
from vlarft.errors import DataError, ShapeError
from vlarft.models.policy import Observation, Policy
from vlarft.rft.config import EvaluationConfig, RewardConfig, SamplingConfig
from vlarft.rft.parallel import ALONE, Ranks
from vlarft.rft.randomness import generator_for, seed_for
from vlarft.rft.rewards import rollout_distance


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Per-window results of a policy on W windows.

    Attributes:
        distance: float32 [W], imagined distance to the expert of what a robot would execute.
        l1: float32 [W], its mean absolute pixel difference, averaged over frames.
        perceptual: float32 [W], its LPIPS, averaged over frames.
        action_l1: float32 [W], mean absolute difference to the expert's actions, raw LIBERO units,
            after entries beyond -1 and 1 are cut, as LIBERO cuts them.
        sampled_distance: float32 [W], mean distance of rollouts as in training, or None.
        episode: int64 [W], episode of each window.
        window: int64 [W], number of each window.
    """

    distance: Tensor
    l1: Tensor
    perceptual: Tensor
    action_l1: Tensor
    sampled_distance: Tensor | None
    episode: Tensor
    window: Tensor

    def means(self) -> dict[str, float]:
        """Means over windows, named as in `metrics.jsonl`."""
        means = {
            "validation_distance": float(self.distance.mean()),
            "validation_l1": float(self.l1.mean()),
            "validation_perceptual": float(self.perceptual.mean()),
            "validation_action_l1": float(self.action_l1.mean()),
        }
        if self.sampled_distance is not None:
            means["validation_sampled_distance"] = float(self.sampled_distance.mean())
        return means

    def to_state(self) -> dict[str, Any]:
        """Plain tensors, for a checkpoint."""
        return {name: getattr(self, name) for name in self.__slots__}


def spread_windows(count: int, wanted: int) -> Tensor:
    """At most `wanted` window numbers, evenly spaced, so that every episode has its share.

    Returns:
        int64 [min(count, wanted)], increasing, without repeats.
    """
    if wanted >= count:
        return torch.arange(count)
    return (torch.arange(wanted) * count) // wanted


def make_sampling(config: SamplingConfig) -> Sampling:
    """The engine's sampling options; seeds come from `noise_seeds`."""
    return Sampling(
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        noise=config.noise,
    )


def noise_seeds(config: SamplingConfig, seed: int, step: int, purpose: str) -> list[int]:
    """One seed of the world model's noise for each of `config.draws`."""
    return [seed_for(seed, step, purpose, draw) for draw in range(config.draws)]


@torch.no_grad()
def evaluate_policy(
    engine: RolloutEngine,
    policy: Policy,
    windows: Windows,
    indices: Sequence[int] | Tensor,
    *,
    evaluation: EvaluationConfig,
    reward: RewardConfig,
    sampling: SamplingConfig,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Imagine the policy's actions and the expert's from the same frame and compare.

    What a robot would execute counts: `policy.act` without the Sigma Net, from drawn starts, as the
    paper evaluates, averaged over `evaluation.starts`, or from their mean. All noise depends on
    `evaluation.seed` and `evaluation.batch` only, so two policies on the same windows are a paired
    comparison.

    Args:
        engine: the world model.
        policy: not changed.
        windows: validation windows.
        indices: W window numbers.
        evaluation: batch size, seed, numbers of chunks.
        reward: weights and reduction; `kind` and `frames` do not matter here.
        sampling: how the world model draws tokens.
        progress: called with (windows done, W) after each batch.
        ranks: processes that take turns with the batches; all get the whole result.
    """
    numbers = torch.as_tensor(indices, dtype=torch.int64)
    batches = torch.split(numbers, evaluation.batch)
    own: list[tuple[Tensor, ...]] = []
    for first in range(0, len(batches), ranks.count):
        # With no batch left, the last one again, for nothing: processes that hold parts of a policy
        # must compute together.
        chosen = batches[min(first + ranks.index, len(batches) - 1)]
        own.append(_evaluate_batch(engine, policy, windows, chosen, evaluation, reward, sampling))
        if progress:
            progress(sum(len(b) for b in batches[: first + ranks.count]), len(numbers))
    turns = zip(*ranks.gather(own), strict=True)
    results = [batch for turn in turns for batch in turn][: len(batches)]
    distance, l1, perceptual, action_l1, sampled = (
        torch.cat(column) for column in zip(*results, strict=True)
    )
    return Evaluation(
        distance=distance,
        l1=l1,
        perceptual=perceptual,
        action_l1=action_l1,
        sampled_distance=sampled if evaluation.samples else None,
        episode=windows.episode[numbers],
        window=numbers,
    )


def _evaluate_batch(
    engine: RolloutEngine,
    policy: Policy,
    windows: Windows,
    chosen: Tensor,
    evaluation: EvaluationConfig,
    reward: RewardConfig,
    sampling: SamplingConfig,
) -> tuple[Tensor, ...]:
    """Distance, l1, perceptual, action_l1 and sampled distance of some windows, each [W]."""
    batch = windows.batch(chosen)
    observation = Observation(batch.frames[:, 0], batch.proprioception, batch.instruction)
    starts = generator_for(evaluation.seed, int(chosen[0]), "starts")
    drawn = [policy.act(observation, starts) for _ in range(evaluation.starts)]
    actions = torch.stack(drawn or [policy.act(observation)], 1)
    expert = batch.actions.to(actions.device)
    action_l1 = (actions.clamp(-1, 1) - expert[:, None]).abs().mean((1, 2, 3)).float().cpu()
    if evaluation.samples:
        generator = generator_for(evaluation.seed, int(chosen[0]), "samples")
        proposal = policy.sample(observation, evaluation.samples, generator)
        actions = torch.cat([actions, proposal.actions], 1)
    result = engine.rollout(
        engine.encode(batch.frames[:, 0], keys=chosen),  # noise of a window, whatever the batch
        actions,
        expert,
        make_sampling(sampling),
        seeds=noise_seeds(sampling, evaluation.seed, 0, "evaluation noise"),
    )
    l1, perceptual = result.l1.float().cpu(), result.perceptual.float().cpu()
    distance = rollout_distance(l1, perceptual, reward)
    frames = slice(max(1, evaluation.starts))
    own, sampled = distance[:, frames], distance[:, frames.stop :]
    return (
        own.mean(1),
        l1[:, frames].mean((1, 2)),
        perceptual[:, frames].mean((1, 2)),
        action_l1,
        sampled.mean(-1),
    )


@dataclass(frozen=True, slots=True)
class Change:
    """An estimate with its interval; all in the same unit.

    Attributes:
        relative: the estimate, e.g. -0.12 for 12% less.
        interval: lower and upper bound.
    """

    relative: float
    interval: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """As written to `summary.json`."""
        return {"relative": self.relative, "interval": list(self.interval)}


def _resampled_means(
    values: Sequence[Tensor], episodes: Tensor, draws: int, seed: int
) -> list[Tensor]:
    """Means of each [S, W] tensor under the same draws of episodes and seeds, [draws] each."""
    generator = torch.Generator().manual_seed(seed)
    seeds = values[0].shape[0]
    names, cluster = torch.unique(episodes, return_inverse=True)

    def counts(size: int) -> Tensor:
        picks = torch.randint(size, (draws, size), generator=generator)
        ones = torch.ones(draws, size, dtype=torch.float64)
        return torch.zeros(draws, size, dtype=torch.float64).scatter_add_(1, picks, ones)

    episode_weights = counts(len(names))[:, cluster]  # [draws, W]
    seed_weights = counts(seeds) / seeds  # [draws, S]
    total = episode_weights.sum(1)
    return [
        torch.einsum("ds,sw,dw->d", seed_weights, value.double(), episode_weights) / total
        for value in values
    ]


def _interval(draws: Tensor, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = torch.quantile(draws, torch.tensor([tail, 1 - tail], dtype=draws.dtype)).tolist()
    return low, high


def check_episodes(episodes: Tensor) -> None:
    """Refuse windows that no interval can be drawn from.

    Args:
        episodes: int [W], episode of each window.

    Raises:
        DataError: fewer than two episodes.
    """
    if len(torch.unique(episodes)) < 2:
        raise DataError(
            "an interval needs validation windows of at least 2 episodes, got 1; give more "
            "validation episodes, or raise evaluation.windows"
        )


def _check(before: Tensor, after: Tensor, episodes: Tensor) -> None:
    if before.dim() != 2 or before.shape != after.shape or episodes.shape != before.shape[1:]:
        raise ShapeError(
            f"paired interval: before {list(before.shape)} and after {list(after.shape)} must be "
            f"equal [seeds, windows], episodes [windows], got {list(episodes.shape)}"
        )
    check_episodes(episodes)


def paired_interval(
    before: Tensor,
    after: Tensor,
    episodes: Tensor,
    *,
    draws: int = 4000,
    level: float = 0.95,
    seed: int = 0,
) -> Change:
    """Relative change of the mean, `mean(after) / mean(before) - 1`, with a bootstrap interval.

    Each draw takes episodes with replacement (windows of an episode are not independent) and run
    seeds with replacement; before and after use the same draw, so what a window contributes to both
    cancels.

    Args:
        before: float [S, W], per run seed and window; a single run is S = 1.
        after: float [S, W].
        episodes: int64 [W], episode of each window.
        draws: bootstrap draws.
        level: coverage, in (0, 1).
        seed: of the draws.

    Raises:
        ShapeError: shapes do not fit together.
        DataError: fewer than two episodes.
    """
    _check(before, after, episodes)
    b, a = _resampled_means([before, after], episodes, draws, seed)
    estimate = float(after.double().mean() / before.double().mean() - 1)
    return Change(estimate, _interval(a / b - 1, level))


def paired_difference(
    treatment: tuple[Tensor, Tensor],
    control: tuple[Tensor, Tensor],
    episodes: Tensor,
    *,
    draws: int = 4000,
    level: float = 0.95,
    seed: int = 0,
) -> Change:
    """Relative change of the treatment minus that of the control, with a bootstrap interval.

    Both arms share each draw of episodes and seeds.

    Args:
        treatment: (before, after), each float [S, W].
        control: the same of the control arm, same run seeds.
        episodes: int64 [W].
        draws: bootstrap draws.
        level: coverage, in (0, 1).
        seed: of the draws.

    Raises:
        ShapeError: shapes do not fit together.
        DataError: fewer than two episodes.
    """
    values = [*treatment, *control]
    for before, after in (treatment, control, (treatment[0], control[0])):
        _check(before, after, episodes)

    def difference(b: Tensor, a: Tensor, control_b: Tensor, control_a: Tensor) -> Tensor:
        return a / b - control_a / control_b

    estimate = difference(*(value.double().mean() for value in values))
    draws_ = difference(*_resampled_means(values, episodes, draws, seed))
    return Change(float(estimate), _interval(draws_, level))
