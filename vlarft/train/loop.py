"""The training loop: float32 master weights, bf16 where the machine has it, EMA, exact resume.

Every random draw of step s comes from generators seeded by (seed, s). So a resumed run needs no
generator states, and its next step equals the uninterrupted one bit for bit.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from vlarft.checkpoint import check_same_run, latest_checkpoint, load_checkpoint, save_checkpoint
from vlarft.config import Config
from vlarft.errors import BackendError, CheckpointError
from vlarft.metrics import Metrics, MetricsFile
from vlarft.progress import StepProgress
from vlarft.schedule import Schedule, rate_factor
from vlarft.stop import stop_request


class LoopConfig(Config):
    """Optimisation of one pre-training run."""

    seed: int = 0
    steps: int = 1000  # optimiser steps
    batch_size: int = 16  # windows a step
    learning_rate: float = 3e-4
    warmup_steps: int = 100  # linear, (step + 1) / warmup
    schedule: Schedule = "cosine"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_clip: float = 1.0  # global norm, 0 turns it off
    ema_decay: float = 0.998  # of the weights that are saved and validated
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of the forward pass
    validate_every: int = 500
    checkpoint_every: int = 500
    log_every: int = 25

    @property
    def may_change(self) -> set[str]:
        """Keys that may change on resume, because no step depends on them."""
        free = {"validate_every", "checkpoint_every", "log_every"}
        return free | {"steps"} if self.schedule == "constant" else free


class Task(Protocol):
    """What the loop trains."""

    model: nn.Module

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of one batch and figures to log; called under autocast."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Figures on validation data, with the averaged weights in `model`."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """What the optimiser updates."""

    def after_step(self, step: int) -> None:
        """Called after each optimiser step (a discriminator's turn, for instance)."""

    def extra_state(self) -> dict[str, Any]:
        """More to checkpoint than the model."""

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Counterpart of `extra_state`."""


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether bf16 multiplications are native here, rather than emulated."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast context for a precision name.

    Raises:
        BackendError: bfloat16 was asked for by name on a GPU without it.
    """
    if precision == "auto":
        precision = "bfloat16" if bfloat16_is_fast(device) else "float32"
    if precision == "float32":
        return nullcontext()
    if device.type == "cuda" and not bfloat16_is_fast(device):
        raise BackendError("precision bfloat16: this GPU has no bf16; allowed: float32")
    return torch.autocast(device.type, torch.bfloat16)


def step_generator(seed: int, step: int) -> torch.Generator:
    """Generator of one step, a function of (seed, step) only."""
    generator = torch.Generator()
    generator.manual_seed(_step_seed(seed, step))
    return generator


def _step_seed(seed: int, step: int) -> int:
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 1) % 2**63


@dataclass(frozen=True, slots=True)
class Origin:
    """What a run is made from; `--resume` refuses to go on with anything else.

    Attributes:
        config: plain values that its steps depend on.
        data: fingerprints of data and of frozen models.
        may_change: dotted keys of `config` on which no step depends.
    """

    config: dict[str, Any]
    data: dict[str, Any]
    may_change: frozenset[str]


@dataclass(frozen=True, slots=True)
class Trained:
    """What `train` returns.

    Attributes:
        weights: averaged (EMA), as the model's `state_dict`.
        validation: figures of the last validation.
        seconds: wall time in the loop, over all sessions of the run.
    """

    weights: dict[str, Tensor]
    validation: dict[str, float]
    seconds: float


def resumed_state(run: Path, resume: bool, origin: Origin) -> dict[str, Any] | None:
    """State of the newest checkpoint, or None for a new run. Writes nothing.

    Raises:
        CheckpointError: `run` already holds a run and `resume` is off, there is none to resume, or
            it was made from something else than `origin`.
    """
    checkpoint = latest_checkpoint(run)
    if not resume:
        if checkpoint is not None:
            raise CheckpointError(f"{run}: already holds a run; pass --resume or another folder")
        return None
    if checkpoint is None:
        raise CheckpointError(f"{run}: no checkpoint to resume from; start without --resume")
    state = load_checkpoint(checkpoint)
    check_same_run(state, checkpoint, origin.config, origin.data, origin.may_change)
    return state


def train(
    task: Task,
    config: LoopConfig,
    run: Path,
    resume: bool = False,
    *,
    origin: Origin | None = None,
    title: str = "training",
    shown: Callable[[str], bool] = lambda _: True,
) -> Trained:
    """Train `task.model`.

    Ctrl-C finishes the step, writes a checkpoint and raises KeyboardInterrupt; a second one stops
    at once.

    Args:
        task: model, loss and validation.
        config: optimisation.
        run: folder for metrics.jsonl and checkpoints.
        resume: continue from the newest checkpoint of `run`.
        origin: what the run is made from; `config` alone when not given.
        title: name in progress lines.
        shown: which figures of a validation, by name, the progress lines show; all are written.

    Raises:
        CheckpointError: `run` already holds a run and `resume` is off, there is none to resume, or
            it was made from something else.
        KeyboardInterrupt: after a clean stop.
    """
    if origin is None:
        origin = Origin(config.model_dump(mode="json"), {}, frozenset(config.may_change))
    state = resumed_state(run, resume, origin)
    loop = _Loop(task, config)
    if state is not None:
        loop.restore(state, run)
    first, earlier, started = loop.step, state["seconds"] if state else 0.0, time.perf_counter()
    run.mkdir(parents=True, exist_ok=True)
    file = MetricsFile(run / "metrics.jsonl", state["metrics_offset"] if state else 0)
    validation: dict[str, float] = {}
    note = ""

    def seconds() -> float:
        return time.perf_counter() - started

    def save() -> None:
        own = {
            "config": origin.config,
            "data": origin.data,
            "metrics_offset": file.sync(),
            "seconds": earlier + seconds(),
        }
        save_checkpoint(run, loop.step, loop.state() | own)

    def validate() -> None:
        nonlocal validation
        validation = loop.validate()
        file.write({"step": loop.step, **validation})
        progress.line(f"{title} step {loop.step}  validation: {_words(validation, shown)}")

    try:
        with (
            StepProgress(title, config.steps, first) as progress,
            stop_request() as stop,
            _own_random_numbers(loop.device),
        ):
            if state is not None and loop.due(config.validate_every):
                validate()  # checkpoints are written before validating, so that none is lost by it
            while loop.step < config.steps:
                record = loop.advance(run)
                if loop.due(config.log_every):
                    record["seconds_per_step"] = seconds() / (loop.step - first)
                    file.write({"step": loop.step, **record})
                    note = f"loss {record['loss']:.4g}"
                progress.step(loop.step, note)
                if stop.is_set() or loop.due(config.checkpoint_every):
                    save()
                if stop.is_set():
                    raise KeyboardInterrupt
                if loop.due(config.validate_every):
                    validate()
    finally:
        file.close()
    return Trained(loop.ema, validation, earlier + seconds())


class _Loop:
    """Model, optimiser and averaged weights, and what one step does to them."""

    def __init__(self, task: Task, config: LoopConfig) -> None:
        self.task, self.config, self.step = task, config, 0
        self.device = next(task.model.parameters()).device
        self.parameters = [p for p in task.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
        )
        self.ema = {k: v.detach().clone() for k, v in task.model.state_dict().items()}

    def due(self, interval: int) -> bool:
        """Whether something that is done every `interval` steps, and at the end, is done now."""
        return self.step % interval == 0 or self.step == self.config.steps

    def advance(self, run: Path) -> Metrics:
        """Do one optimiser step.

        Args:
            run: named in the error.

        Returns:
            Figures of this step.

        Raises:
            CheckpointError: the gradient is not finite.
        """
        config, step = self.config, self.step
        self.task.model.train()
        rate = config.learning_rate * rate_factor(
            config.schedule, step, config.steps, config.warmup_steps
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(2**63 - 1 - _step_seed(config.seed, step))  # dropout draws from it
        with autocast(config.precision, self.device):
            loss, figures = self.task.loss(step, step_generator(config.seed, step))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, config.gradient_clip or math.inf)
        if not torch.isfinite(norm):
            raise CheckpointError(
                f"{run}: the gradient of step {step} is not finite; "
                "lower the learning rate or use precision=float32"
            )
        self.optimizer.step()
        self.task.after_step(step)
        decay = min(config.ema_decay, (step + 1) / (step + 10))
        _update_average(self.ema, self.task.model, decay)
        self.step += 1
        return {"loss": loss.item(), **figures, "gradient_norm": norm.item(), "learning_rate": rate}

    def validate(self) -> dict[str, float]:
        """Figures on validation data with the averaged weights, names as in metrics.jsonl."""
        with averaged(self.task.model, self.ema), torch.no_grad():
            self.task.model.eval()
            figures = self.task.validate(self.task.model)
        return {f"validation_{name}": value for name, value in figures.items()}

    def state(self) -> dict[str, Any]:
        """Everything the next step depends on; generators follow from the step."""
        return {
            "step": self.step,
            "model": self.task.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema,
            "extra": self.task.extra_state(),
        }

    def restore(self, state: dict[str, Any], run: Path) -> None:
        """Continue from `state()`.

        Raises:
            CheckpointError: it belongs to another model, or is past the last step.
        """
        if state["step"] > self.config.steps:
            raise CheckpointError(
                f"{run}: already at step {state['step']}, steps = {self.config.steps}; "
                "ask for more steps"
            )
        try:
            self.task.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.task.load_extra_state(state["extra"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{run}: its checkpoint belongs to another model ({str(error).splitlines()[0]})"
            ) from error
        self.ema = {k: v.to(self.device) for k, v in state["ema"].items()}
        self.step = state["step"]


def _own_random_numbers(device: torch.device) -> AbstractContextManager[Any]:
    """Steps may seed torch's global generators; the caller's ones are put back afterwards."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _words(figures: dict[str, float], shown: Callable[[str], bool]) -> str:
    return "  ".join(
        f"{name.removeprefix('validation_')} {value:.4g}"
        for name, value in figures.items()
        if shown(name)
    )


class averaged:
    """Within the context the model holds the averaged weights."""

    def __init__(self, model: nn.Module, ema: dict[str, Tensor]) -> None:
        self.model, self.ema = model, ema
        self.kept: dict[str, Tensor] = {}

    def __enter__(self) -> nn.Module:
        self.kept = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.ema)
        return self.model

    def __exit__(self, *_: object) -> None:
        self.model.load_state_dict(self.kept)


@torch.no_grad()
def _update_average(ema: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    current = model.state_dict()
    floating = [k for k, v in ema.items() if v.is_floating_point()]
    torch._foreach_lerp_([ema[k] for k in floating], [current[k] for k in floating], 1 - decay)
    for key in ema.keys() - set(floating):
        ema[key].copy_(current[key])
