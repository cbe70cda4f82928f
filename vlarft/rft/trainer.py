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

One step: P windows -> N action chunks each -> imagine and compare with the expert ->
rewards [P, N] -> advantages within each scene -> clipped policy gradient + anchor -> AdamW.
"""

import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlarft.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from vlarft.config import dump_config
from vlarft.data.windows import WindowBatch, Windows
from vlarft.engine import RolloutEngine, Scenes
from vlarft.errors import CheckpointError, ConfigError, DataError, VlarftError
from vlarft.models.policy import Observation, Proposal
from vlarft.rft.advantages import Advantages, group_advantages, group_spread, permute_within_groups
from vlarft.rft.config import RFTConfig
from vlarft.rft.evaluation import (
    Change,
    Evaluation,
    evaluate_policy,
    make_sampling,
    noise_seeds,
    paired_difference,
    paired_interval,
    spread_windows,
)
from vlarft.rft.metrics import (
    Metrics,
    MetricsFile,
    StageTimer,
    StepProgress,
    flat_numbers,
    open_sinks,
)
from vlarft.rft.objective import policy_terms
from vlarft.rft.policy import TrainablePolicy
from vlarft.rft.randomness import generator_for, step_windows
from vlarft.rft.rewards import action_distance, action_scale, rollout_distance

HALF_LOG_TWO_PI_E = 0.5 * math.log(2 * math.pi * math.e)  # entropy of a Gaussian of sigma 1, nats
MAY_CHANGE = {"steps", "checkpoint_interval", "sinks"}  # on resume: none of them changes a step


class SceneCache:
    """Tokens of the windows' first frames, encoded once per window.

    Frames are encoded one at a time, so that a window's tokens do not depend on which windows it
    shares a step with, and a resumed run, whose cache is empty, sees the same tokens.
    """

    def __init__(self, engine: RolloutEngine) -> None:
        self._engine = engine
        self._tokens: dict[int, tuple[Tensor, Tensor]] = {}

    def scenes(self, windows: Sequence[int], frames: Tensor) -> Scenes:
        """Scenes with keys 0..P-1.

        Args:
            windows: P window numbers.
            frames: uint8 [P, H, W, 3], their first frames.
        """
        for row, window in enumerate(windows):
            if window not in self._tokens:
                scene = self._engine.encode(frames[row : row + 1])
                self._tokens[window] = (scene.context.cpu(), scene.first.cpu())
        context, first = (
            torch.cat(part) for part in zip(*(self._tokens[w] for w in windows), strict=True)
        )
        return self._engine.scenes_from_tokens(context, first)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Distances of one batch of rollouts.

    Attributes:
        distance: float32 [P, N] on the CPU; the reward is its negative.
        l1, perceptual: means over everything, or None when nothing was imagined.
    """

    distance: Tensor
    l1: float | None
    perceptual: float | None


def judge(
    engine: RolloutEngine,
    scenes: Scenes | None,
    actions: Tensor,
    batch: WindowBatch,
    config: RFTConfig,
    *,
    seeds: list[int],
    scale: Tensor,
) -> Outcome:
    """Distances of action chunks to the expert, as `config.reward.kind` means it.

    Args:
        engine: the world model.
        scenes: the P start states; None with kind "actions".
        actions: float32 [P, N, T, A], raw units.
        batch: the P windows, for the expert's actions or recorded frames.
        config: reward and sampling.
        seeds: of the world model's noise, one a draw.
        scale: float32 [A] for kind "actions".
    """
    expert = batch.actions.to(actions.device)
    if config.reward.kind == "actions" or scenes is None:
        distance = action_distance(actions, expert[:, None], scale.to(actions.device))
        return Outcome(distance.cpu(), None, None)
    sampling = make_sampling(config.sampling)
    chosen = config.reward.frames
    times = None if chosen is None else [number - 1 for number in chosen]
    if config.reward.kind == "imagined":
        result = engine.rollout(scenes, actions, expert, sampling, seeds=seeds, times=times)
    else:
        recorded = batch.frames[:, 1:].permute(0, 1, 4, 2, 3).float() / 255
        result = engine.rollout(
            scenes, actions, None, sampling, reference=recorded, seeds=seeds, times=times
        )
    l1, perceptual = result.l1.float().cpu(), result.perceptual.float().cpu()
    distance = rollout_distance(l1, perceptual, config.reward)
    return Outcome(distance, float(l1.mean()), float(perceptual.mean()))


class Trainer:
    """State of a run and one method per stage of a step.

    Args:
        engine: the world model, with the metric of `config.reward.metric`.
        policy: an `nn.Module` that fulfils the `Policy` protocol; changed in place.
        windows: training windows.
        config: the run.

    Raises:
        ConfigError: a trained weight is not float32, or the policy has nothing to train.
    """

    def __init__(
        self, engine: RolloutEngine, policy: TrainablePolicy, windows: Windows, config: RFTConfig
    ) -> None:
        self.engine, self.policy, self.windows, self.config = engine, policy, windows, config
        if config.reward.frames is not None and config.reward.frames[-1] > windows.frames:
            raise ConfigError(
                f"reward.frames names frame {config.reward.frames[-1]}; "
                f"windows have {windows.frames}: use 1..{windows.frames}"
            )
        self.module = _as_module(policy)
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
            proposal = self.policy.sample(
                observation, config.rollouts, self._generator("policy noise")
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
            )
        rewards = -outcome.distance
        advantages = group_advantages(rewards, config.advantage, self.noise_floor)
        values = advantages.values
        if config.control == "permuted":
            values = permute_within_groups(
                values, generator_for(config.seed, self.step, "permutation")
            )
        with timer("update"):
            updates = self._update(batch, observation, proposal, values.to(self.device), advantages)
        metrics = {
            "step": self.step + 1,
            "reward_mean": float(rewards.mean()),
            "reward_std": float(rewards.std()),
            "group_spread": float(advantages.spread.mean()),
            "skipped_groups": int((~advantages.kept).sum()),
            "distance": float(outcome.distance.mean()),
            "l1": outcome.l1,
            "perceptual": outcome.perceptual,
            "action_spread": float(proposal.actions.std(1).mean()),
            "action_l1": float(
                (proposal.actions - batch.actions[:, None].to(self.device)).abs().mean()
            ),
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
        advantages: Advantages,
    ) -> Metrics:
        """All optimiser updates of one batch of rollouts; returns means over updates."""
        objective = self.config.objective
        order = torch.randperm(
            len(values), generator=generator_for(self.config.seed, self.step, "minibatches")
        )
        parts = order.tensor_split(objective.minibatches)
        kept = [part[advantages.kept[part]] for part in parts]
        old: list[Tensor | None] = [None] * len(parts)
        reference: list[Tensor | None] = [None] * len(parts)
        if objective.epochs * objective.minibatches > 1:
            old = [self._frozen_log_prob(observation, proposal, rows) for rows in kept]
        if self.reference is not None:
            with _swapped(self.parameters, self.reference):
                reference = [self._frozen_log_prob(observation, proposal, rows) for rows in kept]

        for group in self.optimiser.param_groups:
            group["lr"] = self.rates[group["name"]] * self._warmup()
        records: list[dict[str, float]] = []
        for number in range(objective.epochs * len(parts)):
            part = number % len(parts)
            rows, record = kept[part], dict[str, float]()
            loss = torch.zeros((), device=self.device)
            if len(rows):
                new = self.policy.log_prob(observation.select(rows), proposal.select(rows))
                before = old[part]
                terms = policy_terms(
                    new.log_prob,
                    new.log_prob.detach() if before is None else before,
                    new.entropy,
                    values[rows.to(values.device)],
                    objective,
                    reference[part],
                )
                loss = loss + terms.loss
                record |= {
                    "policy_loss": float(terms.loss.detach()),
                    "ratio_mean": float(terms.ratio.mean()),
                    "ratio_min": float(terms.ratio.min()),
                    "ratio_max": float(terms.ratio.max()),
                    "clip_fraction": float(terms.clip_fraction),
                    "kl_old": float(terms.kl_old),
                    "kl_reference": float(terms.kl_reference),
                    "entropy": float(terms.entropy),
                    "sigma_mean": float((new.entropy.detach() - HALF_LOG_TWO_PI_E).exp().mean()),
                }
                if not records:  # sampling and re-computation must describe the same density
                    drawn = proposal.select(rows).log_prob
                    record["log_prob_gap"] = float((new.log_prob.detach() - drawn).abs().max())
            if objective.anchor:
                cloned = parts[part]
                anchor = self.policy.flow_loss(
                    observation.select(cloned),
                    batch.actions[cloned].to(self.device),
                    self._generator("anchor noise", number),
                    getattr(proposal.trace.select(cloned), "context", None),
                )
                loss = loss + objective.anchor * anchor
                record["anchor_loss"] = float(anchor.detach())
            if not loss.requires_grad:
                continue  # every group of this minibatch is degenerate and there is no anchor
            self.optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            norm = nn.utils.clip_grad_norm_(self.parameters, self.config.optimiser.gradient_clip)
            if not torch.isfinite(norm):
                raise VlarftError(
                    f"step {self.step + 1}: gradient norm is {float(norm)}; start again with "
                    "lower optimiser.head_lr and optimiser.sigma_lr"
                )
            self.optimiser.step()
            records.append({**record, "gradient_norm": float(norm)})
        self.optimiser.zero_grad(set_to_none=True)
        return {**_summarise(records), "updates": len(records), "lr": self._rates_now()}

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
            )
        return float(group_spread(outcome.distance).mean())

    def _batch(self, step: int) -> tuple[list[int], WindowBatch]:
        chosen = step_windows(len(self.windows), self.config.scenes, self.config.seed, step)
        return chosen.tolist(), self.windows.batch(chosen)

    def _scenes(self, chosen: list[int], batch: WindowBatch) -> Scenes | None:
        return (
            None
            if self.config.reward.kind == "actions"
            else self.cache.scenes(chosen, batch.frames[:, 0])
        )

    def _noise_seeds(self, purpose: str) -> list[int]:
        return noise_seeds(self.config.sampling, self.config.seed, self.step, purpose)

    def _generator(self, purpose: str, part: int = 0) -> torch.Generator:
        return generator_for(self.config.seed, self.step, purpose, part, self.device)

    def _warmup(self) -> float:
        return min(1.0, (self.step + 1) / max(1, self.config.optimiser.warmup))

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
            "data": data_fingerprint(self.windows),
        }

    def restore(self, state: dict[str, Any], where: Path) -> None:
        """Continue from `state()`.

        Args:
            state: as loaded.
            where: checkpoint folder, named in errors.

        Raises:
            CheckpointError: the checkpoint belongs to another configuration, data set or policy.
        """
        ours = self.config.model_dump(mode="json")
        different = sorted(
            key
            for key in {*ours, *state["config"]} - MAY_CHANGE
            if ours.get(key) != state["config"].get(key)
        )
        if different:
            key = different[0]
            raise CheckpointError(
                f"{where}: written with another configuration ({', '.join(different)}; {key} was "
                f"{state['config'].get(key)}, now {ours.get(key)}); use the same one, or a new "
                "run folder"
            )
        if state["step"] > self.config.steps:
            raise CheckpointError(
                f"{where}: already at step {state['step']}, steps = {self.config.steps}; "
                "ask for more steps"
            )
        if state["data"] != data_fingerprint(self.windows):
            raise CheckpointError(
                f"{where}: written with other training windows; use the same data files"
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


@dataclass(frozen=True, slots=True)
class RunResult:
    """What `run_rft` leaves in memory; the files are in the run folder.

    Attributes:
        before: evaluation of the policy at step 0.
        after: evaluation after the last step.
        seconds: time spent in steps and evaluations, over all sessions of the run.
        summary: content of `summary.json`.
    """

    before: Evaluation
    after: Evaluation
    seconds: float
    summary: dict[str, Any]


def run_rft(
    engine: RolloutEngine,
    policy: TrainablePolicy,
    training: Windows,
    validation: Windows,
    run: Path,
    config: RFTConfig,
    *,
    title: str = "rft",
) -> RunResult:
    """Fine-tune `policy` in place; continue from the newest checkpoint in `run` when there is one.

    Ctrl-C finishes the step, writes a checkpoint and raises KeyboardInterrupt; a second one stops
    at once.

    Args:
        engine: the world model.
        policy: starting point, changed in place.
        training: windows that steps draw from.
        validation: windows of other episodes, for `evaluate_policy` only.
        run: run folder, made when missing.
        config: the run; must be the checkpoint's when resuming.
        title: name in progress lines.

    Raises:
        ConfigError, DataError, CheckpointError: one line each, before work starts.
        KeyboardInterrupt: after a clean stop.
    """
    _check_apart(training, validation)
    _check_metric(engine, config)
    trainer = Trainer(engine, policy, training, config)
    indices = spread_windows(len(validation), config.evaluation.windows)

    def evaluate() -> Evaluation:
        return evaluate_policy(
            engine,
            policy,
            validation,
            indices,
            evaluation=config.evaluation,
            reward=config.reward,
            sampling=config.sampling,
        )

    run.mkdir(parents=True, exist_ok=True)
    resumed = latest_checkpoint(run)
    state = load_checkpoint(resumed) if resumed else None
    if state is not None and resumed is not None:
        trainer.restore(state, resumed)
    dump_config(config, run / "config.yaml")
    sinks = open_sinks(config.sinks, run, config.model_dump(mode="json"))
    file = MetricsFile(run / "metrics.jsonl", state["metrics_offset"] if state else 0)
    earlier, started = (state["seconds"] if state else 0.0), time.perf_counter()

    def write(metrics: Metrics) -> None:
        file.write(metrics)
        for sink in sinks:
            sink.write(metrics["step"], flat_numbers(metrics))

    def save() -> None:
        seconds = earlier + time.perf_counter() - started
        save_checkpoint(
            run,
            trainer.step,
            {
                **trainer.state(),
                "metrics_offset": file.sync(),
                "before": before.to_state(),
                "after": after.to_state(),
                "after_step": after_step,
                "seconds": seconds,
            },
        )

    try:
        if state is None:
            before = after = evaluate()
            after_step = 0
            trainer.noise_floor = trainer.measure_noise_floor()
            write({"step": 0, "noise_floor": trainer.noise_floor, **before.means()})
            save()
        else:
            before, after = Evaluation(**state["before"]), Evaluation(**state["after"])
            after_step = state["after_step"]
        with StepProgress(title, config.steps, trainer.step) as progress, _stop_request() as stop:
            while trainer.step < config.steps:
                metrics = trainer.run_step()
                last = trainer.step == config.steps
                if last or _due(trainer.step, config.evaluation.interval):
                    after, after_step = evaluate(), trainer.step
                    metrics |= after.means()
                write(metrics)
                progress.step(trainer.step, _note(metrics))
                if last or stop.is_set() or trainer.step % config.checkpoint_interval == 0:
                    save()
                if stop.is_set():
                    raise KeyboardInterrupt
        if after_step != trainer.step:
            after = evaluate()  # the run was shortened to a step that had no evaluation
        seconds = earlier + time.perf_counter() - started
    finally:
        file.close()
        for sink in sinks:
            sink.close()
    policy.save_pretrained(run / "policy")
    summary = {
        "kind": "rft",
        "steps": config.steps,
        "seed": config.seed,
        "control": config.control,
        "metric": config.reward.metric,
        "windows": len(indices),
        "episodes": len(set(before.episode.tolist())),
        "noise_floor": trainer.noise_floor,
        **_before_after([before], [after]),
        "seconds": seconds,
    }
    write_json(run / "summary.json", summary)
    return RunResult(before, after, seconds, summary)


def run_experiment(
    engine: RolloutEngine,
    policy: TrainablePolicy,
    training: Windows,
    validation: Windows,
    run: Path,
    config: RFTConfig,
    *,
    seeds: Sequence[int] = (0, 1, 2),
) -> dict[str, Any]:
    """Several seeds, each with a treatment and a control arm from the same starting policy.

    The arms of a seed differ in one thing: the control's advantages are permuted within each group
    (spec 11.13). Each arm is a run folder `run/seed-S/{treatment,control}` and resumes by itself.

    Args:
        engine: the world model.
        policy: starting point; holds the last seed's treatment afterwards.
        training: windows that steps draw from.
        validation: windows of other episodes.
        run: folder of the experiment, gets `summary.json`.
        config: of the treatment; `seed` and `control` are set here.
        seeds: one or more, all different.

    Returns:
        The summary: distances before and after (means over seeds and windows), `distance_change`,
        `control_change` and their `difference` (relative, 95% interval over episodes and seeds).

    Raises:
        ConfigError: no seeds, or repeated ones.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds {list(seeds)}: expected one or more different numbers")
    module = _as_module(policy)
    base = {name: value.clone() for name, value in module.state_dict().items()}
    arms: dict[str, list[RunResult]] = {"control": [], "treatment": []}
    for seed in seeds:
        for arm, results in arms.items():
            module.load_state_dict(base)
            arm_config = config.model_copy(
                update={"seed": seed, "control": "permuted" if arm == "control" else "none"}
            )
            folder = run / f"seed-{seed}" / arm
            results.append(
                run_rft(
                    engine,
                    policy,
                    training,
                    validation,
                    folder,
                    arm_config,
                    title=f"{arm} seed {seed}",
                )
            )
    dump_config(config, run / "config.yaml")
    treatment, control = (_stacked(arms[arm], "distance") for arm in ("treatment", "control"))
    episodes = arms["treatment"][0].before.episode
    results = arms["treatment"]
    summary = {
        "kind": "rft-experiment",
        "steps": config.steps,
        "metric": config.reward.metric,
        "windows": len(episodes),
        "episodes": len(set(episodes.tolist())),
        **_before_after([r.before for r in results], [r.after for r in results]),
        "control_distance_after": float(control[1].mean()),
        "control_change": paired_interval(*control, episodes).to_dict(),
        "difference": paired_difference(treatment, control, episodes).to_dict(),
        "control_action_l1_after": float(_stacked(arms["control"], "action_l1")[1].mean()),
        "seconds": sum(result.seconds for pair in arms.values() for result in pair),
        "seeds": [
            {"seed": seed, **{arm: arms[arm][number].summary for arm in arms}}
            for number, seed in enumerate(seeds)
        ],
    }
    write_json(run / "summary.json", summary)
    return summary


# ---- helpers --------------------------------------------------------------------------------


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file so that it is either the old or the new one."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def data_fingerprint(windows: Windows) -> dict[str, Any]:
    """What a checkpoint remembers of its data: number and length of windows, sum of actions."""
    total = sum(
        float(torch.from_numpy(episode.actions).double().sum()) for episode in windows.episodes
    )
    return {"windows": len(windows), "frames": windows.frames, "actions": total}


def _as_module(policy: TrainablePolicy) -> nn.Module:
    if not isinstance(policy, nn.Module):
        raise ConfigError(f"policy is {type(policy).__name__}; training needs a torch nn.Module")
    return policy


def _check_apart(training: Windows, validation: Windows) -> None:
    common = {(str(e.file), e.name) for e in training.episodes} & {
        (str(e.file), e.name) for e in validation.episodes
    }
    if common:
        file, name = sorted(common)[0]
        raise DataError(f"{file}: episode {name} is in training and validation; split by episode")
    if training.frames != validation.frames:
        raise DataError(
            f"training windows have {training.frames} frames, validation windows "
            f"{validation.frames}; use one length"
        )


def _check_metric(engine: RolloutEngine, config: RFTConfig) -> None:
    if engine.metric != config.reward.metric:
        raise ConfigError(
            f"reward.metric = {config.reward.metric}, but the engine compares with "
            f"{engine.metric}; load the engine with metric='{config.reward.metric}'"
        )


def _before_after(before: list[Evaluation], after: list[Evaluation]) -> dict[str, Any]:
    episodes = before[0].episode

    def both(name: str) -> tuple[Tensor, Tensor, Change]:
        b, a = (torch.stack([getattr(e, name) for e in part]) for part in (before, after))
        return b, a, paired_interval(b, a, episodes)

    distance, action = both("distance"), both("action_l1")
    return {
        "distance_before": float(distance[0].mean()),
        "distance_after": float(distance[1].mean()),
        "distance_change": distance[2].to_dict(),
        "action_l1_before": float(action[0].mean()),
        "action_l1_after": float(action[1].mean()),
        "action_l1_change": action[2].to_dict(),
    }


def _stacked(results: list[RunResult], name: str) -> tuple[Tensor, Tensor]:
    before, after = (
        torch.stack([getattr(getattr(r, when), name) for r in results])
        for when in ("before", "after")
    )
    return before, after


def _summarise(records: list[dict[str, float]]) -> Metrics:
    """Mean over updates of each number; extremes keep their extreme."""
    names = dict.fromkeys(name for record in records for name in record)
    reduce = {"ratio_min": min, "ratio_max": max}
    columns = {name: [r[name] for r in records if name in r] for name in names}
    return {
        name: reduce[name](column) if name in reduce else sum(column) / len(column)
        for name, column in columns.items()
    }


def _due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0


def _note(metrics: Metrics) -> str:
    parts = [f"distance {metrics['distance']:.4f}"]
    if "ratio_max" in metrics:
        parts.append(f"sigma {metrics['sigma_mean']:.3f}")
    if metrics["skipped_groups"]:
        parts.append(f"skipped {metrics['skipped_groups']}")
    if "validation_distance" in metrics:
        parts.append(f"validation {metrics['validation_distance']:.4f}")
    return "  ".join([*parts, f"{metrics['trajectories_per_second']:.1f} trajectories/s"])


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


@contextmanager
def _stop_request() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one raises KeyboardInterrupt at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may install handlers; the caller's one stays
        return

    def on_interrupt(number: int, _frame: object) -> None:
        stop.set()
        signal.signal(number, previous)

    previous = signal.getsignal(signal.SIGINT) or signal.SIG_DFL
    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)
