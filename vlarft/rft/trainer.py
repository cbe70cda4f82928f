"""Reinforcement fine-tuning of a policy inside a world model: one loop over pure functions.

What differs from the paper's official code, and why (numbers: the code's defects, docs/method.md):

 1. The expert is imagined from its own actions, once per scene, as a member of its group  (1)
 2. LPIPS weights are checked, never random  (2)
 3. Actions stay in raw units at every boundary; normalised and binned once, inside  (3)
 4. Trained weights, gradients and Adam moments are float32; other dtypes are refused  (5, 6)
 5. No dropout; old and new log-probabilities come from the same function on the same shapes,
    so the first ratio of a batch is exactly 1; with one update per batch the old ones are the
    new ones, detached  (7)
 6. Log-probabilities, rewards and advantages are float32, means over flow steps  (8, 9, 11)
 7. One noise for a whole group and its expert, so a reward difference is due to actions; the
    noise floor is measured once and groups below it are skipped and counted  (10, 21)
 8. The behaviour-cloning anchor has a constant coefficient, its own noise, no gate  (17, 49)
 9. Warm-up starts at 1/warmup, not at 0, for both learning rates  (18)
10. One global gradient norm over everything trained  (20)
11. Checkpoints hold everything; a resumed run continues bit for bit  (24, 25)
12. Validation works, and its episodes are refused when training has them too  (26)
13. The reference policy of the KL term is this policy at step 0; KL is not divided by 7  (27)
14. Per-scene work is done once: one observation per scene, one expert, cached tokens
    (31, 34-36)
15. Every random number is a function of (seed, step, purpose)  (50)
16. A control arm with advantages permuted within groups, for every claim  (new)
17. One start of the flow for a whole group, drawn or its mean: the log-probability leaves it out,
    so differences it makes cannot be credited (5 times the squared signal-to-noise ratio of the
    gradient)  (new)
18. Optionally, entries whose noise reaches across the range of actions are not credited: cut
    there, it pulls the mean outwards, the more the less the policy errs  (new)
19. Optionally, a rollout is judged together with its mirror image at the expert: distances of
    pictures grow faster to one side, which pushes even a policy that is right  (new)

One step: P windows -> N action chunks each -> imagine and compare with the expert ->
rewards [P, N] -> advantages within each scene -> clipped policy gradient + anchor -> AdamW.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlarft.checkpoint import check_same_run
from vlarft.data.windows import WindowBatch, Windows
from vlarft.engine import RolloutEngine, Scenes
from vlarft.errors import CheckpointError, ConfigError, VlarftError
from vlarft.metrics import Metrics
from vlarft.models.policy import Observation, Proposal, Share
from vlarft.rft.advantages import group_advantages, group_spread, permute_within_groups
from vlarft.rft.config import RFTConfig
from vlarft.rft.evaluation import noise_seeds
from vlarft.rft.gate import Gate, apply_gate
from vlarft.rft.judge import SceneCache, judge, load_classifier
from vlarft.rft.metrics import StageTimer, combine_updates, mean_update
from vlarft.rft.objective import credited_entries, policy_terms
from vlarft.rft.parallel import ALONE, Ranks, own_rows
from vlarft.rft.policy import TrainablePolicy, as_module, require_share, sample_options
from vlarft.rft.randomness import generator_for, step_windows
from vlarft.rft.rewards import action_scale
from vlarft.schedule import rate_factor

HALF_LOG_TWO_PI_E = 0.5 * math.log(2 * math.pi * math.e)  # entropy of a Gaussian of sigma 1, nats
MAY_CHANGE = {"steps", "checkpoint_interval", "sinks"}  # on resume: none of them changes a step
WITHOUT_STEPS = MAY_CHANGE - {"steps"}  # where the rate depends on them


class Trainer:
    """State of a run and one method per stage of a step.

    Args:
        engine: the world model, with the metric of `config.reward.metric`.
        policy: an `nn.Module` that fulfils the `Policy` protocol; changed in place.
        windows: training windows.
        config: the run.
        ranks: the processes that divide the scenes of a step.

    Raises:
        ConfigError: a trained weight is not float32, the policy has nothing to train, it cannot
            share the start of a group or the scenes of a step, or these cannot be divided; the
            success classifier is for frames of another size.
        CheckpointError: the success classifier cannot be loaded.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        policy: TrainablePolicy,
        windows: Windows,
        config: RFTConfig,
        ranks: Ranks = ALONE,
    ) -> None:
        self.engine, self.policy, self.windows, self.config = engine, policy, windows, config
        self.ranks, self.own = ranks, ranks.share(config.scenes)
        if config.reward.frames is not None and config.reward.frames[-1] > windows.frames:
            raise ConfigError(
                f"reward.frames names frame {config.reward.frames[-1]}; "
                f"windows have {windows.frames}: use 1..{windows.frames}"
            )
        self.sample_options = sample_options(policy, config)
        if ranks.count > 1:
            require_share(policy)
        self.module = as_module(policy)
        self.module.eval()  # no dropout: old and new log-probabilities must agree
        self.step = 0
        self.noise_floor = 0.0
        groups = {name: list(parameters) for name, parameters in policy.parameter_groups().items()}
        self.rates = {"head": config.optimiser.head_lr, "sigma": config.optimiser.sigma_lr}
        if set(groups) - set(self.rates) or not any(groups.values()):
            raise ConfigError(
                f"policy.parameter_groups() gave {sorted(groups)}; expected 'head' and 'sigma', "
                "not all empty"
            )
        self.parameters = [p for group in groups.values() for p in group]
        wrong = {str(p.dtype) for p in self.parameters} - {"torch.float32"}
        if wrong:
            raise ConfigError(
                f"trained weights are {', '.join(wrong)}; updates of this size vanish below "
                "float32: call policy.float() on the heads"
            )
        trained = {id(p) for p in self.parameters}
        for p in self.module.parameters():
            p.requires_grad_(id(p) in trained)  # no gradient is computed for what stays frozen
        self.device = self.parameters[0].device
        self.optimiser = torch.optim.AdamW(
            [{"params": group, "name": name} for name, group in groups.items() if group],
            lr=0.0,
            betas=config.optimiser.betas,
            weight_decay=config.optimiser.weight_decay,
        )
        self.reference = (
            [p.detach().clone() for p in self.parameters] if config.objective.kl else None
        )
        self.scale = action_scale(
            torch.cat([torch.from_numpy(episode.actions) for episode in windows.episodes])
        )
        self.cache = SceneCache(engine)
        self.classifier = load_classifier(engine, config.reward)
        self.gate = None if config.gate.entropy is None else Gate(engine)

    # ---- one step ---------------------------------------------------------------------------

    def run_step(self) -> Metrics:
        """Do the next step; afterwards `self.step` is one higher."""
        config, timer = self.config, StageTimer()
        with timer("data"):
            chosen, batch = self._batch(self.step)
            observation = Observation(batch.frames[:, 0], batch.proprioception, batch.instruction)
        with timer("encode"):
            scenes = self._scenes(chosen, batch)
        with timer("sample"), torch.no_grad():
            generator = self._generator("policy noise")
            proposal = self.policy.sample(
                observation,
                config.rollouts,
                generator,
                **self.sample_options,
                **self._share(torch.arange(config.scenes)),
            )
        with timer("rollout"), torch.no_grad():
            outcome = judge(
                self.engine,
                scenes,
                proposal.actions,
                batch,
                config,
                seeds=self._noise_seeds("world noise"),
                scale=self.scale,
                classifier=self.classifier,
            )
        rewards = -torch.cat(self.ranks.gather(outcome.distance))  # of all processes, [P, N]
        advantages = group_advantages(rewards, config.advantage, self.noise_floor)
        skipped, gated = int((~advantages.kept).sum()), Metrics()
        if self.gate is not None:
            with timer("gate"):
                entropy = torch.cat(self.ranks.gather(self.gate(chosen, batch)))
            advantages, gated = apply_gate(advantages, entropy, config.gate)
        values = advantages.values
        if config.control == "permuted":
            values = permute_within_groups(
                values, generator_for(config.seed, self.step, "permutation")
            )
        with timer("update"):
            own = values[self.own].to(self.device)
            credited = credited_entries(proposal, self.engine.world.layout, config.objective)
            updates = self._update(batch, observation, proposal, own, advantages.kept, credited)
        errors = proposal.actions - batch.actions[:, None].to(self.device)
        means = {
            **({} if credited is None else {"credited": float(credited.float().mean())}),
            "distance": float(outcome.distance.mean()),
            "l1": outcome.l1,
            "perceptual": outcome.perceptual,
            "frames_deduplicated": outcome.deduplicated,
            "action_spread": float(proposal.actions.std(1).mean()),
            "action_l1": float(errors.abs().mean()),
        }
        metrics = {
            "step": self.step + 1,
            "reward_mean": float(rewards.mean()),
            "reward_std": float(rewards.std()),
            "group_spread": float(advantages.spread.mean()),
            "skipped_groups": skipped,
            **gated,
            **self.ranks.mean(means),
            **updates,
            "seconds": {**timer.seconds, "total": timer.total},
            "trajectories_per_second": rewards.numel() / timer.total,
        }
        self.step += 1
        return metrics

    def _update(
        self,
        batch: WindowBatch,
        observation: Observation,
        proposal: Proposal,
        values: Tensor,
        kept: Tensor,
        credited: Tensor | None = None,
    ) -> Metrics:
        """All optimiser updates of one batch of rollouts; returns means over updates.

        `values`, advantages float32 [P / processes, N], are of this process's scenes like all
        before them, and `credited`; `kept`, bool [P], says which of all scenes have a signal.
        """
        objective = self.config.objective
        order = torch.randperm(
            len(kept), generator=generator_for(self.config.seed, self.step, "minibatches")
        )
        parts = order.tensor_split(objective.minibatches)
        signals = [part[kept[part]] for part in parts]
        mine = [own_rows(scenes, self.own) for scenes in signals]
        old: list[Tensor | None] = [None] * len(parts)
        reference: list[Tensor | None] = [None] * len(parts)
        if objective.epochs * objective.minibatches > 1:
            old = [self._frozen_log_prob(observation, proposal, rows) for rows in mine]
        if self.reference is not None:
            with _swapped(self.parameters, self.reference):
                reference = [self._frozen_log_prob(observation, proposal, rows) for rows in mine]

        settings = self.config.optimiser
        factor = rate_factor(settings.schedule, self.step, self.config.steps, settings.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rates[group["name"]] * factor
        records: list[dict[str, float]] = []
        for number in range(objective.epochs * len(parts)):
            part = number % len(parts)
            if not len(signals[part]) and not objective.anchor:
                continue  # every group of this minibatch is degenerate
            rows, record = mine[part], dict[str, float]()
            loss = torch.zeros((), device=self.device)
            if len(rows):
                weight = len(rows) / len(signals[part])  # losses are means over all processes
                new = self.policy.log_prob(observation.select(rows), proposal.select(rows))
                before = old[part]
                terms = policy_terms(
                    new.log_prob,
                    new.log_prob.detach() if before is None else before,
                    new.entropy,
                    values[rows.to(values.device)],
                    objective,
                    reference[part],
                    None if credited is None else credited[rows.to(credited.device)],
                )
                loss = loss + weight * terms.loss
                sigma = (new.entropy.detach() - HALF_LOG_TWO_PI_E).exp()
                record |= {
                    "policy_loss": weight * float(terms.loss.detach()),
                    "ratio_mean": weight * float(terms.ratio.mean()),
                    "ratio_min": float(terms.ratio.min()),
                    "ratio_max": float(terms.ratio.max()),
                    "clip_fraction": weight * float(terms.clip_fraction),
                    "kl_old": weight * float(terms.kl_old),
                    "kl_reference": weight * float(terms.kl_reference),
                    "entropy": weight * float(terms.entropy),
                    "sigma_mean": weight * float(sigma.mean()),
                }
                if not records:  # sampling and re-computation must describe the same density
                    drawn = proposal.select(rows).log_prob
                    record["log_prob_gap"] = float((new.log_prob.detach() - drawn).abs().max())
            cloned = own_rows(parts[part], self.own)
            if objective.anchor and len(cloned):
                anchor = self.policy.flow_loss(
                    observation.select(cloned),
                    batch.actions[cloned].to(self.device),
                    self._generator("anchor noise", number),
                    getattr(proposal.trace.select(cloned), "context", None),
                    **self._share(parts[part]),
                )
                weight = len(cloned) / len(parts[part])
                loss = loss + weight * objective.anchor * anchor
                record["anchor_loss"] = weight * float(anchor.detach())
            self.optimiser.zero_grad(set_to_none=True)
            if loss.requires_grad:  # not where this process has no scene of the minibatch
                torch.autograd.backward(loss)
            self.ranks.sum_gradients(self.parameters)
            norm = nn.utils.clip_grad_norm_(self.parameters, self.config.optimiser.gradient_clip)
            if not torch.isfinite(norm):
                raise VlarftError(
                    f"step {self.step + 1}: gradient norm is {float(norm)}; start again with "
                    "lower optimiser.head_lr and optimiser.sigma_lr"
                )
            self.optimiser.step()
            records.append({**record, "gradient_norm": float(norm)})
        self.optimiser.zero_grad(set_to_none=True)
        records = combine_updates(self.ranks.gather(records))
        return {**mean_update(records), "updates": len(records), "lr": self._rates_now()}

    @torch.no_grad()
    def _frozen_log_prob(
        self, observation: Observation, proposal: Proposal, rows: Tensor
    ) -> Tensor | None:
        if not len(rows):
            return None
        return self.policy.log_prob(observation.select(rows), proposal.select(rows)).log_prob

    # ---- small parts ------------------------------------------------------------------------

    def measure_noise_floor(self) -> float:
        """Mean reward std of groups in which every member does what the expert did.

        Exactly 0 under shared noise; above it, groups are only noise (`advantage.noise_factor`).
        """
        chosen, batch = self._batch(0)
        actions = batch.actions[:, None].expand(-1, self.config.rollouts, -1, -1).contiguous()
        with torch.no_grad():
            outcome = judge(
                self.engine,
                self._scenes(chosen, batch),
                actions.to(self.device),
                batch,
                self.config,
                seeds=self._noise_seeds("noise floor"),
                scale=self.scale,
                classifier=self.classifier,
            )
        return float(group_spread(torch.cat(self.ranks.gather(outcome.distance))).mean())

    def _batch(self, step: int) -> tuple[list[int], WindowBatch]:
        """This process's windows of a step."""
        scenes = step_windows(len(self.windows), self.config.scenes, self.config.seed, step)
        chosen = scenes[self.own]
        return chosen.tolist(), self.windows.batch(chosen)

    def _scenes(self, chosen: list[int], batch: WindowBatch) -> Scenes | None:
        return (
            None
            if self.config.reward.kind == "actions"
            else self.cache.scenes(chosen, batch.frames[:, 0], first=self.own.start)
        )

    def _share(self, scenes: Tensor) -> dict[str, Any]:
        """What a policy is told when it gets this process's part of `scenes`; alone, nothing."""
        if self.ranks.count == 1:
            return {}
        rows = ((scenes >= self.own.start) & (scenes < self.own.stop)).nonzero().flatten()
        return {"share": Share(rows, len(scenes))}

    def _noise_seeds(self, purpose: str) -> list[int]:
        return noise_seeds(self.config.sampling, self.config.seed, self.step, purpose)

    def _generator(self, purpose: str, part: int = 0) -> torch.Generator:
        return generator_for(self.config.seed, self.step, purpose, part, self.device)

    def _rates_now(self) -> dict[str, float]:
        return {group["name"]: group["lr"] for group in self.optimiser.param_groups}

    # ---- state ------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything the next step depends on; generators and data order follow from the step."""
        return {
            "step": self.step,
            "policy": self.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "reference": self.reference,
            "noise_floor": self.noise_floor,
            "config": self.config.model_dump(mode="json"),
        }

    def restore(self, state: dict[str, Any], where: Path) -> None:
        """Continue from `state()`.

        Args:
            state: as loaded.
            where: checkpoint folder, named in errors.

        Raises:
            CheckpointError: the checkpoint belongs to another configuration or policy.
        """
        may_change = MAY_CHANGE if self.config.optimiser.schedule == "constant" else WITHOUT_STEPS
        check_same_run(state, where, self.config.model_dump(mode="json"), {}, may_change)
        if state["step"] > self.config.steps:
            raise CheckpointError(
                f"{where}: already at step {state['step']}, steps = {self.config.steps}; "
                "ask for more steps"
            )
        try:
            self.module.load_state_dict(state["policy"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{where}: belongs to another policy ({str(error).splitlines()[0]})"
            ) from error
        self.reference = state["reference"]
        if self.reference is not None:
            self.reference = [weight.to(self.device) for weight in self.reference]
        self.noise_floor, self.step = state["noise_floor"], state["step"]


@contextmanager
def _swapped(parameters: list[nn.Parameter], values: list[Tensor]) -> Iterator[None]:
    """Parameters hold `values` inside the block, without copying."""
    own = [p.data for p in parameters]
    for p, value in zip(parameters, values, strict=True):
        p.data = value
    try:
        yield
    finally:
        for p, value in zip(parameters, own, strict=True):
            p.data = value
