"""Does the reward order what a policy tries? Groups as fine-tuning draws them, without a simulator.

Gains of fine-tuning come from the order within groups of the policy's own rollouts, which lie
closer together than perturbed recordings do. The order asked for is that of the hand's way: actions
are displacements, so their sum is where the hand is sent. Advantages times deviations are where
an update pushes that way, to be compared with the push of a reward that knows it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from vlarft.data.windows import Windows
from vlarft.engine import RolloutEngine
from vlarft.errors import ConfigError
from vlarft.eval.statistics import Estimate, bootstrap, mean_interval, rank_correlation
from vlarft.models.policy import Observation
from vlarft.rft.config import RFTConfig
from vlarft.rft.judge import judge
from vlarft.rft.policy import TrainablePolicy, sample_options
from vlarft.rft.rewards import action_distance, action_scale

AXES = ("x", "y", "z")  # the first entries of an action move the hand
ALONG = "along"  # the expert's way


@dataclass(frozen=True, slots=True)
class Explored:
    """Spearman correlations within groups of a policy's rollouts, means over groups.

    Attributes:
        windows: W groups.
        rollouts: N of a group.
        draws: imaginations averaged in `way_averaged`, as many as seeds were measured.
        way: of the distance of one imagination with the error of the asked way.
        way_averaged: the same for the mean over the draws.
        agreement: between the distances under two noise seeds.
        actions: of the distance of one imagination with the mean absolute action error.
        actions_way: of the action error itself with the error of the asked way.
        pushes: by axis and `along` the expert's way, the share of the right push that the averaged
            distance gives: 1 as much as a reward that knows the way, 0 nothing.
        leans: likewise, the push that it gives where the right one is 0: a policy that is right is
            pushed off by it. 0 is none.
        means: likewise, the mean push over all groups: where they go together.
        right_means: the mean of the right push.
        spread: standard deviation of the asked way within a group, raw units, mean over x, y, z.
    """

    windows: int
    rollouts: int
    draws: int
    way: Estimate
    way_averaged: Estimate
    agreement: Estimate
    actions: Estimate
    actions_way: Estimate
    pushes: dict[str, Estimate]
    leans: dict[str, Estimate]
    means: dict[str, Estimate]
    right_means: dict[str, float]
    spread: float

    def lines(self) -> list[str]:
        """Shown, not judged."""
        return [
            f"groups of {self.rollouts} rollouts of the policy, rank correlation of the distance "
            f"with the error of the way that the hand is sent: {self.way} for one "
            f"imagination, {self.way_averaged} for the mean of {self.draws}; with the "
            f"action error {self.actions} (that itself with the way's error "
            f"{self.actions_way}); between two noise seeds {self.agreement}",
            "share of the push that a reward which knows the way would give the policy: "
            + ", ".join(f"{axis} {share}" for axis, share in self.pushes.items()),
            "the push where that one is none: "
            + ", ".join(f"{axis} {lean}" for axis, lean in self.leans.items()),
            "the mean push: "
            + ", ".join(f"{axis} {mean}" for axis, mean in self.means.items())
            + "; right would be "
            + ", ".join(f"{axis} {mean:.2f}" for axis, mean in self.right_means.items()),
        ]

    def to_dict(self) -> dict[str, Any]:
        """As written to `summary.json`."""
        return {
            "windows": self.windows,
            "rollouts": self.rollouts,
            "draws": self.draws,
            "way": self.way.to_dict(),
            "way_averaged": self.way_averaged.to_dict(),
            "agreement": self.agreement.to_dict(),
            "actions": self.actions.to_dict(),
            "actions_way": self.actions_way.to_dict(),
            "pushes": {axis: share.to_dict() for axis, share in self.pushes.items()},
            "leans": {axis: lean.to_dict() for axis, lean in self.leans.items()},
            "means": {axis: mean.to_dict() for axis, mean in self.means.items()},
            "right_means": self.right_means,
            "spread": self.spread,
        }


def asked_way(actions: Tensor) -> Tensor:
    """Where a chunk sends the hand: its displacements together.

    Args:
        actions: float [..., T, A], raw LIBERO units; entries are cut to [-1, 1], as they are
            executed.

    Returns:
        Float [..., 3], raw units.
    """
    return actions.clamp(-1, 1)[..., : len(AXES)].sum(-2)


def way_error(ways: Tensor, expert: Tensor) -> Tensor:
    """Length of the difference of ways, float [..., 3] and broadcastable to it -> [...]."""
    return (ways - expert).square().sum(-1).sqrt()


@dataclass(frozen=True, slots=True)
class Pushes:
    """Where an update sends the hand, by group: x, y, z and along the expert's way.

    Attributes:
        given: float64 [W, 4], by a distance.
        right: the same by `way_error`.
        episode: int64 [W], of each group.
    """

    given: Tensor
    right: Tensor
    episode: Tensor

    def shares(self) -> dict[str, Estimate]:
        """Sum over groups of push times right push, over that of the right push squared."""

        def share(weights: Tensor, given: Tensor, right: Tensor) -> Tensor:
            return (weights @ (given * right)) / (weights @ right.square()).clamp_min(1e-12)

        return self._estimates(share)

    def leans(self) -> dict[str, Estimate]:
        """Constant of the least-squares line of push on right push: what pushes a right policy."""

        def lean(weights: Tensor, given: Tensor, right: Tensor) -> Tensor:
            total = weights.sum(-1)
            middle, height = (weights @ right) / total, (weights @ given) / total
            together = (weights @ (given * right)) / total - middle * height
            slope = together / ((weights @ right.square()) / total - middle**2).clamp_min(1e-12)
            return height - slope * middle

        return self._estimates(lean)

    def means(self) -> dict[str, Estimate]:
        """Mean over groups of the push."""

        def mean(weights: Tensor, given: Tensor, right: Tensor) -> Tensor:  # noqa: ARG001
            return (weights @ given) / weights.sum(-1)

        return self._estimates(mean)

    def right_means(self) -> dict[str, float]:
        """Mean over groups of the right push."""
        return dict(zip((*AXES, ALONG), self.right.mean(0).tolist(), strict=True))

    def _estimates(self, figure: Callable[[Tensor, Tensor, Tensor], Tensor]) -> dict[str, Estimate]:
        """`figure(weights, given, right)` of each axis, episodes drawn anew for its interval."""

        def of(axis: int) -> Estimate:
            given, right = self.given[:, axis], self.right[:, axis]
            return bootstrap(lambda weights: figure(weights, given, right), self.episode)

        return {axis: of(number) for number, axis in enumerate((*AXES, ALONG))}


def pushes(distance: Tensor, ways: Tensor, expert: Tensor, episode: Tensor) -> Pushes:
    """Where a distance pushes the hand, and where it should.

    A group's push is the mean of advantage times deviation from the group's mean, per axis in
    units of that deviation's spread; the right one has its advantages from `way_error`.

    Args:
        distance: float64 [W, N].
        ways: float64 [W, N, 3].
        expert: float64 [W, 3].
        episode: int64 [W], at least two of them.
    """
    off = ways - ways.mean(1, keepdim=True)
    length = expert.square().sum(-1, keepdim=True).sqrt().clamp_min(1e-6)
    along = (off * (expert / length)[:, None]).sum(-1, keepdim=True)
    off = torch.cat([off, along], dim=-1)
    off = off / off.square().mean((0, 1)).sqrt().clamp_min(1e-6)

    def push(worth: Tensor) -> Tensor:
        spread = worth.std(1, keepdim=True).clamp_min(1e-12)
        return ((worth - worth.mean(1, keepdim=True)) / spread)[..., None].mul(off).mean(1)

    return Pushes(push(-distance), push(-way_error(ways, expert[:, None])), episode)


@torch.no_grad()
def measure_explored(
    engine: RolloutEngine,
    policy: TrainablePolicy,
    windows: Windows,
    indices: Sequence[int] | Tensor,
    config: RFTConfig,
    *,
    seeds: Sequence[int] = range(4),
    batch: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Explored:
    """Draw groups as `config` does and compare their order with that of the asked way.

    Args:
        engine: the world model and the metric.
        policy: with the exploration of `config` already (`FlowPolicy.from_pretrained(settings=)`).
        windows: recorded windows of the layout's frames.
        indices: W window numbers, of at least two episodes.
        config: rollouts of a group, reward (kind imagined or recorded) and sampling. Each noise
            seed is one imagination, whatever `sampling.draws` says.
        seeds: S noise seeds of the world model, at least 2.
        batch: windows at once.
        progress: called with (windows done, windows).

    Raises:
        ConfigError: fewer than 2 seeds, or a reward that imagines no frames to compare.
        DataError: windows of one episode only.
    """
    if len(seeds) < 2:
        raise ConfigError(f"{len(seeds)} noise seeds; allowed: at least 2")
    if config.reward.kind not in ("imagined", "recorded"):
        raise ConfigError(
            f"reward.kind = {config.reward.kind} compares no imagined frames; allowed here: "
            "imagined, recorded"
        )
    numbers = torch.as_tensor(indices, dtype=torch.int64).cpu()
    unit = action_scale(torch.cat([torch.from_numpy(e.actions) for e in windows.episodes]))
    options = sample_options(policy, config)
    distances, sent, wanted, errors = [], [], [], []
    for some in numbers.split(batch):
        recording = windows.batch(some)
        observation = Observation(
            recording.frames[:, 0], recording.proprioception, recording.instruction
        )
        random = torch.Generator().manual_seed(int(some[0]))
        tried = policy.sample(observation, config.rollouts, random, **options).actions
        scenes = engine.encode(recording.frames[:, 0])
        by_seed = [
            judge(engine, scenes, tried, recording, config, seeds=[seed], scale=unit).distance
            for seed in seeds
        ]
        tried, expert = tried.cpu(), recording.actions
        distances.append(torch.stack(by_seed).double())
        sent.append(asked_way(tried).double())
        wanted.append(asked_way(expert).double())
        errors.append(action_distance(tried.clamp(-1, 1), expert[:, None], unit).double())
        if progress:
            progress(sum(map(len, errors)), len(numbers))
    distance, error = torch.cat(distances, dim=1), torch.cat(errors)
    ways, target = torch.cat(sent), torch.cat(wanted)
    way = way_error(ways, target[:, None])
    episode = windows.episode[numbers]

    pushed = pushes(distance.mean(0), ways, target, episode)

    def alike(pairs: list[tuple[Tensor, Tensor]]) -> Estimate:
        ranks = torch.stack([rank_correlation(a, b) for a, b in pairs])
        return mean_interval(ranks.mean(0), episode)

    return Explored(
        windows=len(numbers),
        rollouts=config.rollouts,
        draws=len(seeds),
        way=alike([(one, way) for one in distance]),
        way_averaged=alike([(distance.mean(0), way)]),
        agreement=alike(list(combinations(distance, 2))),
        actions=alike([(one, error) for one in distance]),
        actions_way=alike([(error, way)]),
        pushes=pushed.shares(),
        leans=pushed.leans(),
        means=pushed.means(),
        right_means=pushed.right_means(),
        spread=float(ways.std(1).mean()),
    )
