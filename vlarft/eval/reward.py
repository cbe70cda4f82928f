"""Does the reward mean anything? Checks of one world model on one data set, with a verdict.

Around recorded actions, groups of perturbed action chunks get their imagined distance to the
expert, under several noise seeds. A reward that means something differs between actions more than
between seeds, orders a group as the actions' own error does, and grows with the size of the
perturbation; the world model reads data and actions as they were recorded; and it can draw what
was recorded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from vlarft.data.windows import Windows, moving_mask
from vlarft.engine import RolloutEngine, Sampling
from vlarft.errors import ConfigError
from vlarft.eval.conventions import AS_RECORDED, Convention, compare_conventions
from vlarft.eval.entries import Entries
from vlarft.eval.explored import Explored
from vlarft.eval.horizon import Horizon
from vlarft.eval.image_quality import psnr, squared_error
from vlarft.eval.outcomes import Outcomes
from vlarft.eval.simulated import Simulated, Simulations, agree
from vlarft.eval.statistics import (
    Estimate,
    bootstrap,
    mean_interval,
    rank_correlation,
    rank_interval,
)
from vlarft.eval.uncertainty import Uncertainty
from vlarft.rft.config import RewardConfig
from vlarft.rft.rewards import action_distance, action_scale, rollout_distance

SCALES = (0.05, 0.1, 0.2, 0.4)  # of half the range of each action entry
NOISES = ("shared", "independent")
RELIABILITY, RANK = 0.5, 0.3  # what the verdict asks for, of shared noise
CEILING_DB = (
    22.0  # of the tokenizer, over moving pixels at the last frame: below, motion is blurred
)


@dataclass(frozen=True, slots=True)
class Groups:
    """What the reward does within groups of perturbed action chunks.

    Attributes:
        noise: "shared" or "independent".
        reliability: share of the variance within a group that comes from the actions, of one seed's
            rewards: var_actions / (var_actions + var_seeds), pooled over groups.
        rank: Spearman correlation of the reward with the negative action error within a group, mean
            over groups; rewards are means over seeds.
    """

    noise: str
    reliability: Estimate
    rank: Estimate

    def to_dict(self) -> dict[str, Any]:
        """As written to `summary.json`."""
        return {
            "noise": self.noise,
            "reliability": self.reliability.to_dict(),
            "rank": self.rank.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class RewardReport:
    """Result of `evaluate_reward`.

    Attributes:
        windows: W.
        rollouts: N, of a group.
        seeds: S, noise seeds of a group.
        conventions: readings of the data, the recorded one first.
        groups: by kind of noise.
        sensitivity: mean distance to the expert by scale of the perturbation, shared noise.
        ceiling: PSNR of the tokenizer's reconstruction over moving pixels, last frame, dB.
        horizon: several chunks in a row, when the episodes are long enough.
        uncertainty: entropy against error, when measured.
        simulated: groups executed in the simulator, when asked for.
        outcomes: recorded failures against successes, when failures are given.
        entries: which entries of an action it sees, when measured.
        explored: groups as a policy draws them, when a policy is given.
    """

    windows: int
    rollouts: int
    seeds: int
    conventions: list[Convention]
    groups: list[Groups]
    sensitivity: dict[float, float]
    ceiling: float
    horizon: Horizon | None = None
    uncertainty: Uncertainty | None = None
    simulated: Simulated | None = None
    outcomes: Outcomes | None = None
    entries: Entries | None = None
    explored: Explored | None = None

    def checks(self) -> list[tuple[bool, str]]:
        """Whether each check holds, and its figures in words."""
        recorded, others = self.conventions[0], self.conventions[1:]
        best = min(self.conventions, key=lambda c: c.cross_entropy)
        close = [c.name for c in others if c.difference and c.difference.interval[0] <= 0]
        shared = next(g for g in self.groups if g.noise == "shared")
        distances = list(self.sensitivity.values())
        fits = f"{recorded.cross_entropy:.3f} nats a token as recorded"
        if close:
            fits += f"; not worse: {', '.join(close)}"
        grows = ", ".join(f"{d:.4f} at {scale:g}" for scale, d in self.sensitivity.items())
        return [
            (best is recorded and not close, f"conventions: {fits}"),
            (
                shared.reliability.interval[0] > RELIABILITY,
                f"actions make {shared.reliability} of the reward's variance within a "
                f"group (one seed, shared noise; asked: above {RELIABILITY:g})",
            ),
            (
                shared.rank.interval[0] > RANK,
                f"rank correlation with the action error: {shared.rank} (shared noise; "
                f"asked: above {RANK:g})",
            ),
            (
                all(a < b for a, b in pairwise(distances)),
                f"distance by size of the perturbation: {grows} (asked: growing)",
            ),
            (
                self.ceiling >= CEILING_DB,
                f"tokenizer's ceiling over moving pixels: {self.ceiling:.2f} dB (asked: "
                f"{CEILING_DB:g})",
            ),
            *(self.simulated.checks() if self.simulated else []),
            *(self.outcomes.checks() if self.outcomes else []),
        ]

    @property
    def trustworthy(self) -> bool:
        """Whether every check holds."""
        return all(holds for holds, _ in self.checks())

    def lines(self) -> list[str]:
        """The verdict, then every check."""
        failed = sum(not holds for holds, _ in self.checks())
        verdict = "the reward can be trusted" if not failed else f"{failed} checks failed"
        words = [f"Verdict: {verdict}."]
        words += [f"[{'ok' if holds else 'FAILED'}] {text}" for holds, text in self.checks()]
        shown = (
            self.explored,
            self.entries,
            self.simulated,
            self.outcomes,
            self.horizon,
            self.uncertainty,
        )
        return words + [line for part in shown if part for line in part.lines()]

    def table(self) -> Table:
        """Readings of the data."""
        table = Table(title="Surprise of the recordings, nats a token", title_justify="left")
        for number, column in enumerate(("read", "cross-entropy", "to as recorded", "95%")):
            table.add_column(column, justify="right" if number else "left")
        for c in self.conventions:
            d = c.difference
            cells = (
                (f"{d.value:+.3f}", f"{d.interval[0]:+.3f} .. {d.interval[1]:+.3f}")
                if d
                else ("", "")
            )
            table.add_row(c.name, f"{c.cross_entropy:.3f}", *cells)
        return table

    def to_dict(self) -> dict[str, Any]:
        """As written to `summary.json`."""
        return {
            "kind": "reward",
            "trustworthy": self.trustworthy,
            "checks": [{"holds": holds, "text": text} for holds, text in self.checks()],
            "windows": self.windows,
            "rollouts": self.rollouts,
            "seeds": self.seeds,
            "conventions": [c.to_dict() for c in self.conventions],
            "groups": [g.to_dict() for g in self.groups],
            "sensitivity": {f"{scale:g}": value for scale, value in self.sensitivity.items()},
            "ceiling": self.ceiling,
            "horizon": self.horizon and self.horizon.to_dict(),
            "uncertainty": self.uncertainty and self.uncertainty.to_dict(),
            "simulated": self.simulated and self.simulated.to_dict(),
            "outcomes": self.outcomes and self.outcomes.to_dict(),
            "entries": self.entries and self.entries.to_dict(),
            "explored": self.explored and self.explored.to_dict(),
        }


def variance_parts(distance: Tensor) -> tuple[Tensor, Tensor]:
    """Variance between actions and between seeds within each group, unbiased.

    Two-way layout without replication: seeds shift a whole group alike under shared noise, which
    says nothing about its actions and is taken out; what is left is noise.

    Args:
        distance: float64 [S,P,N], S and N at least 2.

    Returns:
        float64 [P] each; the first is 0 where noise alone explains the differences.
    """
    seeds, _, rollouts = distance.shape
    by_action = distance.mean(0, keepdim=True)
    by_seed = distance.mean(2, keepdim=True)
    rest = distance - by_action - by_seed + distance.mean((0, 2), keepdim=True)
    noise = rest.square().sum((0, 2)) / ((seeds - 1) * (rollouts - 1))
    between = by_action[0].var(1, unbiased=True)
    return (between - noise / seeds).clamp_min(0), noise


@torch.no_grad()
def evaluate_reward(
    engine: RolloutEngine,
    windows: Windows,
    indices: Sequence[int] | Tensor,
    sampling: Sampling | None = None,
    *,
    rollouts: int = 8,
    seeds: int = 4,
    batch: int = 8,
    horizon: Horizon | None = None,
    uncertainty: Uncertainty | None = None,
    outcomes: Outcomes | None = None,
    entries: Entries | None = None,
    explored: Explored | None = None,
    simulations: Simulations | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RewardReport:
    """Check the reward of a world model on recorded windows.

    Args:
        engine: the world model and the metric.
        windows: recorded windows of the layout's frames.
        indices: W window numbers, of at least two episodes.
        sampling: options of the imagination; default `Sampling()`.
        rollouts: N, perturbed action chunks of a group, a quarter at each of `SCALES`.
        seeds: S, noise seeds.
        batch: windows at once.
        horizon: as measured by `measure_horizon`; None: left out.
        uncertainty: as measured by `measure_uncertainty` on the same windows; likewise.
        outcomes: as measured by `measure_outcomes`; likewise.
        entries: as measured by `measure_entries`; likewise.
        explored: as measured by `measure_explored`; likewise.
        simulations: executes the groups of the same windows; likewise.
        progress: called with (windows done, windows) of the groups; executing them counts too.

    Raises:
        ConfigError: fewer than 4 rollouts or 2 seeds.
        DataError: windows of one episode only.
    """
    if rollouts < len(SCALES) or seeds < 2:
        raise ConfigError(
            f"rollouts = {rollouts}, seeds = {seeds}; allowed: at least {len(SCALES)} and 2"
        )
    sampling = sampling or Sampling()
    numbers = torch.as_tensor(indices, dtype=torch.int64).cpu()
    episode = windows.episode[numbers]
    conventions = compare_conventions(engine.world, windows, numbers)
    assert conventions[0].name == AS_RECORDED
    unit = action_scale(torch.cat([torch.from_numpy(e.actions) for e in windows.episodes]))
    perturbed = _Perturbed(unit, rollouts)
    found: dict[str, list[Tensor]] = {noise: [] for noise in NOISES}
    total = len(numbers) * (1 if simulations is None else 2)
    errors, ceilings, chunks, ends = [], [], [], []
    for some in numbers.split(batch):
        recording = windows.batch(some)
        actions = perturbed(recording.actions, some)
        errors.append(action_distance(actions, recording.actions[:, None], unit).double())
        scenes = engine.encode(recording.frames[:, 0])
        for noise in NOISES:
            found[noise].append(
                _distances(engine, scenes, actions, recording.actions, sampling, noise, seeds)
            )
        ceilings.append(_ceiling(engine, recording.frames))
        chunks.append(torch.cat([recording.actions[:, None], actions], dim=1))
        ends.append(recording.frames[:, [0, -1]])
        if progress:
            progress(sum(len(part) for part in errors), total)
    error = torch.cat(errors)
    distance = {noise: torch.cat(parts, dim=1) for noise, parts in found.items()}
    scale = perturbed.scales
    mean = distance["shared"].mean((0, 1))
    ceiling = torch.cat(ceilings)
    if uncertainty is not None:
        order = rank_correlation(distance["shared"].mean(0), error)
        uncertainty = replace(uncertainty, order=rank_interval(uncertainty.entropy, order, episode))
    simulated = None
    if simulations is not None:
        simulated = agree(
            engine,
            simulations.run(
                torch.cat(chunks),
                progress and (lambda done, count: progress(len(numbers) + done, 2 * count)),
            ),
            (torch.cat(ends)[:, 0], torch.cat(ends)[:, 1]),
            distance["shared"].mean(0),
            error,
            episode,
            simulations.after,
        )
    return RewardReport(
        windows=len(numbers),
        rollouts=rollouts,
        seeds=seeds,
        conventions=conventions,
        groups=[_group(noise, values, error, episode) for noise, values in distance.items()],
        sensitivity={size: float(mean[scale == size].mean()) for size in SCALES},
        ceiling=float(ceiling[ceiling.isfinite()].mean()),
        horizon=horizon,
        uncertainty=uncertainty,
        outcomes=outcomes,
        entries=entries,
        explored=explored,
        simulated=simulated,
    )


def _group(noise: str, distance: Tensor, error: Tensor, episode: Tensor) -> Groups:
    actions, seeds = variance_parts(distance)

    def share(weights: Tensor) -> Tensor:
        return (weights @ actions) / (weights @ (actions + seeds)).clamp_min(1e-30)

    return Groups(
        noise,
        bootstrap(share, episode),
        mean_interval(rank_correlation(distance.mean(0), error), episode),
    )


class _Perturbed:
    """Groups around the expert: normal noise on every entry but the gripper, at every scale."""

    def __init__(self, unit: Tensor, rollouts: int) -> None:
        self.scales = torch.tensor([SCALES[n % len(SCALES)] for n in range(rollouts)])
        moving = torch.arange(len(unit)) < len(unit) - 1
        self._size = self.scales[:, None, None] * unit * moving

    def __call__(self, expert: Tensor, windows: Tensor) -> Tensor:
        """Expert actions [B,T,A] of windows int64 [B] -> [B,N,T,A], the same on every call."""
        noise = []
        for window in windows.tolist():
            random = torch.Generator().manual_seed(window)
            noise.append(torch.randn(len(self.scales), *expert.shape[1:], generator=random))
        return expert[:, None] + torch.stack(noise) * self._size


def _distances(
    engine: RolloutEngine,
    scenes: Any,
    actions: Tensor,
    expert: Tensor,
    sampling: Sampling,
    noise: str,
    seeds: int,
) -> Tensor:
    """Distances float64 [S,B,N] to the expert's imagination."""
    drawn = sampling.model_copy(update={"noise": noise})
    numbers = [sampling.seed + number for number in range(seeds)]
    result = engine.rollout(scenes, actions, expert, drawn, seeds=numbers)
    reward = RewardConfig()
    return rollout_distance(result.l1_by_seed, result.perceptual_by_seed, reward).double().cpu()


def _ceiling(engine: RolloutEngine, frames: Tensor) -> Tensor:
    """PSNR [B] of the tokenizer's last frame over moving pixels; infinite where nothing moves."""
    moving = moving_mask(frames)
    pixels = frames.permute(0, 1, 4, 2, 3).float() / 255
    context, tokens = engine.world.tokenizer.tokenize(pixels.to(engine.device))
    drawn = engine.world.tokenizer.detokenize(context, tokens[:, -1:])[:, 0].clamp(0, 1).cpu()
    count = moving.sum((-2, -1))
    quality = psnr(squared_error(drawn, pixels[:, -1], moving) / (3 * count.clamp_min(1)))
    return torch.where(count > 0, quality, torch.full_like(quality, torch.inf))
