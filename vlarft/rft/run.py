"""One run: steps, evaluations, checkpoints, a clean stop, and its summary."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from vlarft.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from vlarft.config import dump_config
from vlarft.data.windows import Windows
from vlarft.engine import RolloutEngine
from vlarft.errors import ConfigError, DataError
from vlarft.files import write_json
from vlarft.metrics import Metrics
from vlarft.progress import Shown, StepProgress, phase, progress_bar
from vlarft.rft.config import RFTConfig
from vlarft.rft.evaluation import (
    Evaluation,
    check_episodes,
    evaluate_policy,
    spread_windows,
)
from vlarft.rft.metrics import RunLog
from vlarft.rft.origin import check_origin, run_origin
from vlarft.rft.parallel import ALONE, Ranks
from vlarft.rft.policy import TrainablePolicy
from vlarft.rft.summary import before_after
from vlarft.rft.trainer import Trainer
from vlarft.stop import stop_request


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
    before: Evaluation | None = None,
    judged_by: RFTConfig | None = None,
    title: str = "rft",
    ranks: Ranks = ALONE,
) -> RunResult:
    """Fine-tune `policy` in place; continue from the newest checkpoint in `run` when there is one.

    Ctrl-C finishes the step, writes a checkpoint and raises KeyboardInterrupt; a second one stops
    at once. Of several processes the first one writes and speaks; Ctrl-C or SIGTERM at any of them
    stops all after the same step.

    Args:
        engine: the world model.
        policy: starting point, changed in place; a resumed run needs the same starting point.
        training: windows that steps draw from.
        validation: windows of other episodes, for `evaluate_policy` only.
        run: run folder, made when missing.
        config: the run; must be the checkpoint's when resuming.
        before: evaluation of this very policy on these windows, when the caller has one.
        judged_by: whose reward, sampling and evaluation settings evaluate; default `config`.
        title: name in progress lines.
        ranks: the processes that divide the scenes of each step; all call this alike.

    Raises:
        ConfigError, DataError, CheckpointError: one line each, before work starts.
        KeyboardInterrupt: after a clean stop.
    """
    _check_apart(training, validation)
    _check_metric(engine, config)
    judged = judged_by or config
    indices = spread_windows(len(validation), judged.evaluation.windows)
    check_episodes(validation.episode[indices])
    trainer = Trainer(engine, policy, training, config, ranks)
    quiet = not ranks.first

    def evaluate(progress: Shown) -> Evaluation:
        return evaluate_policy(
            engine,
            policy,
            validation,
            indices,
            evaluation=judged.evaluation,
            reward=judged.reward,
            sampling=judged.sampling,
            progress=progress,
            ranks=ranks,
        )

    def evaluate_between_steps() -> Evaluation:
        with progress_bar(f"{title}: evaluation", quiet=quiet) as shown:
            return evaluate(shown)

    run.mkdir(parents=True, exist_ok=True)
    resumed = latest_checkpoint(run)
    state = load_checkpoint(resumed) if resumed else None
    origin = run_origin(engine, trainer.module, training, validation, trainer.classifier)
    started_from = {**origin, "checkpoint": resumed.name if resumed else "none"}
    ranks.require_same(started_from | {"configuration": config.model_dump_json()})
    if state is not None and resumed is not None:
        check_origin(state.get("origin", {}), origin, resumed)
        trainer.restore(state, resumed)
    log = None
    if ranks.first:
        dump_config(config, run / "config.yaml")
        offset = state["metrics_offset"] if state else 0
        log = RunLog(run, config.model_dump(mode="json"), config.sinks, offset)
    earlier, started = (state["seconds"] if state else 0.0), time.perf_counter()

    def write(metrics: Metrics) -> None:
        if log:
            log.write(metrics)

    def save() -> None:
        held = trainer.state()  # of all processes: an encoder may be divided among them
        if not log:
            return
        seconds = earlier + time.perf_counter() - started
        save_checkpoint(
            run,
            trainer.step,
            {
                **held,
                "origin": origin,
                "metrics_offset": log.sync(),
                "before": first.to_state(),
                "after": after.to_state(),
                "after_step": after_step,
                "seconds": seconds,
            },
        )

    try:
        if state is None:
            first = before or evaluate_between_steps()
            after, after_step = first, 0
            with phase(f"{title}: noise floor", quiet=quiet):
                trainer.noise_floor = trainer.measure_noise_floor()
            write({"step": 0, "noise_floor": trainer.noise_floor, **first.means()})
            save()
        else:
            first, after = Evaluation(**state["before"]), Evaluation(**state["after"])
            after_step = state["after_step"]
        console = Console(file=sys.stderr, quiet=quiet)
        with (
            StepProgress(title, config.steps, trainer.step, console) as progress,
            stop_request(patient=ranks.count > 1) as stop,
        ):
            while trainer.step < config.steps:
                metrics = trainer.run_step()
                last = trainer.step == config.steps
                if last or _due(trainer.step, config.evaluation.interval):
                    after, after_step = evaluate(progress.within("evaluation")), trainer.step
                    metrics |= after.means()
                write(metrics)
                progress.step(trainer.step, _note(metrics))
                stopping = any(ranks.gather(stop.is_set()))
                if last or stopping or trainer.step % config.checkpoint_interval == 0:
                    save()
                if stopping:
                    ranks.gather(None)  # nobody leaves before the checkpoint is written
                    raise KeyboardInterrupt
        if after_step != trainer.step:
            after = (
                evaluate_between_steps()
            )  # the run was shortened to a step that had no evaluation
        seconds = earlier + time.perf_counter() - started
    finally:
        if log:
            log.close()
    if ranks.first:
        policy.save_pretrained(run / "policy")
    else:
        trainer.module.state_dict()  # an encoder that is divided among all is gathered by all
    summary = {
        "kind": "rft",
        "steps": config.steps,
        "seed": config.seed,
        "control": config.control,
        "metric": config.reward.metric,
        "windows": len(indices),
        "episodes": len(set(first.episode.tolist())),
        "noise_floor": trainer.noise_floor,
        **before_after([first], [after]),
        "seconds": seconds,
    }
    if ranks.first:
        write_json(run / "summary.json", summary)
    return RunResult(first, after, seconds, summary)


def stacked(results: Sequence[RunResult], name: str) -> tuple[Tensor, Tensor]:
    """A figure of runs on the same windows, before and after, [runs, windows] each."""
    before = torch.stack([getattr(result.before, name) for result in results])
    return before, torch.stack([getattr(result.after, name) for result in results])


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
