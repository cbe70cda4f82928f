"""Does fine-tuning's gradient point where executed actions get better?

A reward may order rollouts well and still pull the policy elsewhere: noise is wide beside what is
left to learn, actions end at their range, and what an update moves is the mean. So the gradient of
the configured reward is compared with the exact gradient of the executed chunks' error, over
independent batches at the same weights; beside it the gradient of a reward that knows the way,
drawn by the same noise, which tells a bad reward from a bad exploration.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from vlarft.data.windows import Windows
from vlarft.engine import RolloutEngine
from vlarft.errors import ConfigError
from vlarft.eval.explored import asked_way, way_error
from vlarft.eval.statistics import Estimate
from vlarft.models.flow_policy import FlowPolicy
from vlarft.models.policy import Observation
from vlarft.rft.advantages import group_advantages
from vlarft.rft.config import RFTConfig
from vlarft.rft.evaluation import noise_seeds
from vlarft.rft.judge import judge, load_classifier
from vlarft.rft.objective import credited_entries, policy_terms
from vlarft.rft.policy import sample_options
from vlarft.rft.randomness import generator_for, step_windows
from vlarft.rft.rewards import action_scale

Z95 = 1.96


@dataclass(frozen=True, slots=True)
class Direction:
    """Gradients of the flow head, of one reward, over B batches.

    Attributes:
        signal: share of a batch's squared gradient that batches have in common, 0 to 1: the mean
            cosine between gradients of independent batches, weighted by their lengths.
        executed: cosine of the expected gradient with that of the executed chunks' error: 1 as
            good as can be, 0 aside, below 0 away from it. Unbiased, so it may pass 1; NaN
            where no signal was found.
        progress: mean cosine of a single batch's gradient with that of the executed chunks'
            error, weighted by its length: `executed` times the root of `signal`, known better than
            either. What to compare settings by, at equal cost.
    """

    signal: Estimate
    executed: Estimate
    progress: Estimate

    def to_dict(self) -> dict[str, Any]:
        """As written to the JSON file."""
        return {
            "signal": self.signal.to_dict(),
            "executed": self.executed.to_dict(),
            "progress": self.progress.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class GradientReport:
    """Directions of the configured reward and of one that knows the way.

    Attributes:
        batches: B, independent batches.
        rollouts: P * N, rollouts of each.
        reward: of the configured reward.
        knowing: of minus the executed way's error (`vlarft.eval.explored.way_error`), for the same
            rollouts.
        credited: mean share of entries that advantages credit.
    """

    batches: int
    rollouts: int
    reward: Direction
    knowing: Direction
    credited: float

    @property
    def verdict(self) -> str:
        """What the interval of the reward's progress says."""
        low, high = self.reward.progress.interval
        if low > 0:
            return "The gradient points where executed actions get better."
        if high < 0:
            return "The gradient points away from where executed actions get better."
        return "These batches do not tell where the gradient points: more --batches, or no signal."

    def table(self) -> Table:
        """Both rewards, for a terminal."""
        table = Table(title=f"Gradients of {self.batches} batches of {self.rollouts} rollouts")
        found = (self.reward, self.knowing)
        table.add_column("advantages from")
        for name in ("the reward", "the way's error"):
            table.add_column(name, justify="right")
        signals = [(one.signal.value, *one.signal.interval) for one in found]
        table.add_row("signal", *(f"{v:.3f} ({low:.3f} to {high:.3f})" for v, low, high in signals))
        table.add_row("towards better execution", *(str(one.executed) for one in found))
        table.add_row("progress of a batch", *(str(one.progress) for one in found))
        table.caption = f"{self.credited:.0%} of the entries are credited"
        return table

    def to_dict(self) -> dict[str, Any]:
        """As written to the JSON file."""
        return {
            "batches": self.batches,
            "rollouts": self.rollouts,
            "reward": self.reward.to_dict(),
            "knowing": self.knowing.to_dict(),
            "credited": self.credited,
            "verdict": self.verdict,
        }


def jackknife(statistic: Callable[[Tensor], Tensor], count: int) -> Estimate:
    """Estimate of a statistic of B batches, interval from leaving out one at a time.

    Args:
        statistic: float64 weights [D, B] of batches, 0 or 1 -> values [D].
        count: B.
    """
    value = float(statistic(torch.ones(1, count, dtype=torch.float64)))
    left_out = statistic(1 - torch.eye(count, dtype=torch.float64))
    error = float(((count - 1) / count * (left_out - left_out.mean()).square().sum()).sqrt())
    return Estimate(value, (value - Z95 * error, value + Z95 * error))


def _between(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Mean inner product of gradients of different batches, [D]; unbiased for the expectations'."""
    inner = (a @ b.T).double()
    inner.fill_diagonal_(0)  # the same batch's noise is in both
    count = weights.sum(1)
    return ((weights @ inner) * weights).sum(1) / (count * (count - 1))


def direction(gradients: Tensor, executed: Tensor) -> Direction:
    """Signal, direction and progress of gradients.

    Args:
        gradients: float32 [B, D], B >= 3.
        executed: float32 [B, D], of the executed chunks' error, of the same batches.
    """
    squared = gradients.square().sum(1).double()

    def signal(weights: Tensor) -> Tensor:
        mean = (weights @ squared) / weights.sum(1)
        return _between(gradients, gradients, weights) / mean.clamp_min(1e-30)

    def cosine(weights: Tensor) -> Tensor:
        own = _between(gradients, gradients, weights)
        other = _between(executed, executed, weights)
        return _between(gradients, executed, weights) / (own * other).sqrt()  # NaN: no signal

    def progress(weights: Tensor) -> Tensor:
        mean = (weights @ squared) / weights.sum(1)
        other = _between(executed, executed, weights)
        return _between(gradients, executed, weights) / (mean * other).sqrt()

    count = len(gradients)
    return Direction(jackknife(signal, count), jackknife(cosine, count), jackknife(progress, count))


def measure_gradient(
    engine: RolloutEngine,
    policy: FlowPolicy,
    windows: Windows,
    config: RFTConfig,
    *,
    batches: int = 24,
    progress: Callable[[int, int], None] | None = None,
) -> GradientReport:
    """Gradients of `batches` steps at the same weights; nothing is trained.

    Anchor, entropy bonus, KL and the noise floor are left out: what is asked is where advantages
    push.

    Args:
        engine: the world model and the metric.
        policy: with the exploration of `config` already (`FlowPolicy.from_pretrained(settings=)`).
        windows: training windows; batches are those of the first steps of a run.
        config: as for fine-tuning.
        batches: B, at least 3.
        progress: called with (batches done, batches).

    Raises:
        ConfigError: fewer than 3 batches, or the policy has no head to train.
    """
    if batches < 3:
        raise ConfigError(f"batches = {batches}; allowed: at least 3")
    head = list(policy.parameter_groups()["head"])
    if not head:
        raise ConfigError("the policy has no flow head to train; give one that has")
    objective = config.objective.model_copy(update={"entropy": 0.0, "kl": 0.0})
    scale = action_scale(torch.cat([torch.from_numpy(e.actions) for e in windows.episodes]))
    classifier = load_classifier(engine, config.reward)
    options = sample_options(policy, config)
    layout = engine.world.layout
    found: dict[str, list[Tensor]] = {"reward": [], "knowing": [], "executed": []}
    credit = []

    def descent(loss: Tensor) -> Tensor:
        parts = torch.autograd.grad(
            loss, head, allow_unused=True, materialize_grads=True, retain_graph=True
        )
        return -torch.cat([part.flatten() for part in parts]).cpu()

    for step in range(batches):
        batch = windows.batch(step_windows(len(windows), config.scenes, config.seed, step))
        observation = Observation(batch.frames[:, 0], batch.proprioception, batch.instruction)
        random = generator_for(config.seed, step, "policy noise", 0, head[0].device)
        proposal = policy.sample(observation, config.rollouts, random, **options)
        with torch.no_grad():
            scenes = None if config.reward.kind == "actions" else engine.encode(batch.frames[:, 0])
            seeds = noise_seeds(config.sampling, config.seed, step, "world noise")
            distance = judge(
                engine, scenes, proposal.actions, batch, config,
                seeds=seeds, scale=scale, classifier=classifier,
            ).distance  # fmt: skip
        expert = asked_way(batch.actions)
        error = way_error(asked_way(proposal.actions.cpu()), expert[:, None])
        credited = credited_entries(proposal, layout, objective)
        credit.append(1.0 if credited is None else float(credited.float().mean()))
        new = policy.log_prob(observation, proposal)
        for name, worse in (("reward", distance), ("knowing", error)):
            values = group_advantages(-worse, config.advantage).values.to(head[0].device)
            terms = policy_terms(
                new.log_prob, new.log_prob.detach(), new.entropy, values, objective, None, credited
            )
            found[name].append(descent(terms.loss))
        way = asked_way(policy.executed(observation))
        found["executed"].append(descent(way_error(way, expert.to(way.device)).mean()))
        if progress:
            progress(step + 1, batches)
    stacked = {name: torch.stack(rows) for name, rows in found.items()}
    return GradientReport(
        batches=batches,
        rollouts=config.scenes * config.rollouts,
        reward=direction(stacked["reward"], stacked["executed"]),
        knowing=direction(stacked["knowing"], stacked["executed"]),
        credited=sum(credit) / len(credit),
    )
