"""Does the reward order what a policy tries? Groups as fine-tuning draws them, without a simulator.

Gains of fine-tuning come from the order within groups of the policy's own rollouts, which lie
closer together than perturbed recordings do. The order asked for is that of the hand's way: actions
are displacements, so their sum is where the hand is sent.
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
from vlarft.eval.statistics import Estimate, mean_interval, rank_correlation
from vlarft.models.policy import Observation
from vlarft.rft.config import RFTConfig
from vlarft.rft.judge import judge
from vlarft.rft.policy import TrainablePolicy, sample_options
from vlarft.rft.rewards import action_distance, action_scale

WAY = 3  # the first entries of an action move the hand: dx, dy, dz


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
    spread: float

    def lines(self) -> list[str]:
        """Shown, not judged."""
        return [
            f"groups of {self.rollouts} rollouts of the policy, rank correlation of the distance "
            f"with the error of the way that the hand is sent: {self.way} for one "
            f"imagination, {self.way_averaged} for the mean of {self.draws}; with the "
            f"action error {self.actions} (that itself with the way's error "
            f"{self.actions_way}); between two noise seeds {self.agreement}"
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
            "spread": self.spread,
        }


def way_error(actions: Tensor, expert: Tensor) -> Tensor:
    """How far the hand is sent from where the expert sends it.

    Args:
        actions: float [..., T, A], raw LIBERO units; entries are cut to [-1, 1], as they are
            executed.
        expert: float, broadcastable to `actions`.

    Returns:
        Float [...], length of the difference of the summed dx, dy, dz, raw units.
    """
    off = (actions.clamp(-1, 1) - expert.clamp(-1, 1))[..., :WAY].sum(-2)
    return off.square().sum(-1).sqrt()


@torch.no_grad()
def measure_explored(
    engine: RolloutEngine,
    policy: TrainablePolicy,
    windows: Windows,
    indices: Sequence[int] | Tensor,
    config: RFTConfig,
    *,
    seeds: int = 4,
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
        seeds: S noise seeds, at least 2.
        batch: windows at once.
        progress: called with (windows done, windows).

    Raises:
        ConfigError: fewer than 2 seeds, or a reward that imagines no frames to compare.
        DataError: windows of one episode only.
    """
    if seeds < 2:
        raise ConfigError(f"seeds = {seeds}; allowed: at least 2")
    if config.reward.kind not in ("imagined", "recorded"):
        raise ConfigError(
            f"reward.kind = {config.reward.kind} compares no imagined frames; allowed here: "
            "imagined, recorded"
        )
    numbers = torch.as_tensor(indices, dtype=torch.int64).cpu()
    unit = action_scale(torch.cat([torch.from_numpy(e.actions) for e in windows.episodes]))
    options = sample_options(policy, config)
    distances, ways, errors, spreads = [], [], [], []
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
            for seed in range(seeds)
        ]
        tried, expert = tried.cpu(), recording.actions[:, None]
        distances.append(torch.stack(by_seed).double())
        ways.append(way_error(tried, expert).double())
        errors.append(action_distance(tried.clamp(-1, 1), expert, unit).double())
        spreads.append(tried.clamp(-1, 1)[..., :WAY].sum(-2).std(1))
        if progress:
            progress(sum(map(len, ways)), len(numbers))
    distance, way, error = torch.cat(distances, dim=1), torch.cat(ways), torch.cat(errors)
    episode = windows.episode[numbers]

    def alike(pairs: list[tuple[Tensor, Tensor]]) -> Estimate:
        ranks = torch.stack([rank_correlation(a, b) for a, b in pairs])
        return mean_interval(ranks.mean(0), episode)

    return Explored(
        windows=len(numbers),
        rollouts=config.rollouts,
        draws=seeds,
        way=alike([(one, way) for one in distance]),
        way_averaged=alike([(distance.mean(0), way)]),
        agreement=alike(list(combinations(distance, 2))),
        actions=alike([(one, error) for one in distance]),
        actions_way=alike([(error, way)]),
        spread=float(torch.cat(spreads).mean()),
    )
