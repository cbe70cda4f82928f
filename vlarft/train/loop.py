"""The training loop: float32 master weights, bf16 where the machine has it, EMA, exact resume.

Every random draw of step s comes from a generator seeded by (seed, s). So a resumed run needs no
generator states, and its next step equals the uninterrupted one bit for bit.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from vlarft.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from vlarft.config import Config
from vlarft.errors import BackendError, CheckpointError


class LoopConfig(Config):
    """Optimisation of one pre-training run."""

    seed: int = 0
    steps: int = 1000  # optimiser steps
    batch_size: int = 16  # windows a step
    learning_rate: float = 3e-4
    warmup_steps: int = 100  # linear, (step + 1) / warmup
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_clip: float = 1.0  # global norm, 0 turns it off
    ema_decay: float = 0.998  # of the weights that are saved and validated
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of the forward pass
    validate_every: int = 500
    checkpoint_every: int = 500
    log_every: int = 25


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
    generator.manual_seed((seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 1) % 2**63)
    return generator


def learning_rate(config: LoopConfig, step: int) -> float:
    """Rate of a step: linear warm-up that is never 0, then cosine to 2% or constant."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "constant":
        return config.learning_rate * warm
    progress = min(1.0, step / max(1, config.steps))
    return config.learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def train(
    task: Task,
    config: LoopConfig,
    run: Path,
    resume: bool = False,
    log: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Tensor]:
    """Train `task.model` and return its averaged weights.

    Args:
        task: model, loss and validation.
        config: optimisation.
        run: folder for metrics.jsonl and checkpoints.
        resume: continue from the newest checkpoint of `run`.
        log: called with each metrics record.

    Raises:
        CheckpointError: `run` already holds a run and `resume` is off, or none to resume.
    """
    device = next(task.model.parameters()).device
    parameters = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
    )
    ema = {k: v.detach().clone() for k, v in task.model.state_dict().items()}
    first = 0
    checkpoint = latest_checkpoint(run)
    metrics_path = run / "metrics.jsonl"
    if resume:
        if checkpoint is None:
            raise CheckpointError(f"{run}: no checkpoint to resume from; start without --resume")
        state = load_checkpoint(checkpoint)
        task.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        task.load_extra_state(state["extra"])
        ema, first = state["ema"], state["step"]
        _truncate(metrics_path, state["metrics_bytes"])
    elif checkpoint is not None:
        raise CheckpointError(f"{run}: already holds a run; pass --resume or another folder")
    run.mkdir(parents=True, exist_ok=True)
    started, since = time.perf_counter(), first
    with metrics_path.open("ab") as metrics:

        def write(record: dict[str, Any]) -> None:
            metrics.write((json.dumps(record) + "\n").encode())
            metrics.flush()
            if log:
                log(record)

        def save(step: int) -> None:
            save_checkpoint(
                run,
                step,
                {
                    "step": step,
                    "model": task.model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "ema": ema,
                    "extra": task.extra_state(),
                    "metrics_bytes": metrics.tell(),
                },
            )

        step = first
        try:
            while step < config.steps:
                task.model.train()
                rate = learning_rate(config, step)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                with autocast(config.precision, device):
                    loss, figures = task.loss(step, step_generator(config.seed, step))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                norm = nn.utils.clip_grad_norm_(parameters, config.gradient_clip or math.inf)
                if not torch.isfinite(norm):
                    raise CheckpointError(
                        f"{run}: the gradient of step {step} is not finite; "
                        "lower the learning rate or use precision=float32"
                    )
                optimizer.step()
                task.after_step(step)
                _update_average(ema, task.model, min(config.ema_decay, (step + 1) / (step + 10)))
                step += 1
                if step % config.log_every == 0 or step == config.steps:
                    elapsed = (time.perf_counter() - started) / (step - since)
                    write(
                        {"step": step, "loss": loss.item(), **figures, "gradient_norm": norm.item()}
                        | {"learning_rate": rate, "seconds_per_step": elapsed}
                    )
                if step % config.validate_every == 0 or step == config.steps:
                    with averaged(task.model, ema), torch.no_grad():
                        task.model.eval()
                        write(
                            {"step": step}
                            | {f"validation_{k}": v for k, v in task.validate(task.model).items()}
                        )
                if step % config.checkpoint_every == 0 or step == config.steps:
                    save(step)
        except KeyboardInterrupt:
            if step > first:
                save(step)
            raise
    return ema


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


def _truncate(path: Path, size: int) -> None:
    """Forget metrics of steps after the checkpoint."""
    with path.open("r+b") as file:
        file.truncate(size)
