"""Groups count less where the world model does not know what comes next."""

import copy

import torch
from torch import Tensor

from vlarft.data.windows import WindowBatch
from vlarft.engine import RolloutEngine
from vlarft.metrics import Metrics
from vlarft.models.world_model import WorldModel
from vlarft.rft.advantages import Advantages
from vlarft.rft.config import GateConfig


@torch.no_grad()
def frame_entropy(world: WorldModel, frames: Tensor, actions: Tensor) -> Tensor:
    """Mean entropy of the next token along recorded frames, each given the recorded ones before it.

    Of the model's own distribution over frame codes, at temperature 1 and without top-k or top-p.

    Args:
        world: the world model.
        frames: uint8 [B,T+1,H,W,3].
        actions: raw [B,T,A].

    Returns:
        float64 [B] on the CPU, nats a frame token, 0 to log(frame codes).
    """
    context, tokens = world.window_tokens(frames)
    log_p = world.frame_logits(context, tokens, actions).double().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1).mean((1, 2)).cpu()


def gate_weights(entropy: Tensor, config: GateConfig) -> Tensor:
    """Weight of each group, exp(-max(0, H - threshold) / scale); with scale 0, 1 or 0.

    Args:
        entropy: H, float [P], nats a token.
        config: `entropy` is the threshold.

    Returns:
        float32 [P] in [0, 1]; 1 everywhere when the gate is off.
    """
    if config.entropy is None:
        return torch.ones(len(entropy))
    above = (entropy - config.entropy).clamp_min(0)
    if config.scale == 0:
        return (above == 0).float()
    return (-above / config.scale).exp().float()


def apply_gate(
    advantages: Advantages, entropy: Tensor, config: GateConfig
) -> tuple[Advantages, Metrics]:
    """Advantages times their group's weight, and a step's metrics; weight 0 is not kept.

    Args:
        advantages: of P groups.
        entropy: float [P], nats a token.
        config: threshold and scale.
    """
    weights = gate_weights(entropy, config)
    gated = Advantages(
        advantages.values * weights[:, None], advantages.spread, advantages.kept & (weights > 0)
    )
    return gated, {
        "gate_entropy": float(entropy.mean()),
        "gate_weight": float(weights.mean()),
        "gated_groups": int((weights < 1).sum()),
    }


class Gate:
    """Entropies of windows; the world model is frozen, so each window is asked once.

    Windows go through one at a time, so that a figure does not depend on the others of a step.

    Args:
        engine: the world model; where its transformer is kept on another device than the engine's,
            a copy goes there.
    """

    def __init__(self, engine: RolloutEngine) -> None:
        world = engine.world
        if world.transformer.device.type != engine.device.type:
            world = WorldModel(world.tokenizer, copy.deepcopy(world.transformer), world.layout).to(
                engine.device
            )
        self._world = world
        self._known: dict[int, Tensor] = {}

    def __call__(self, windows: list[int], batch: WindowBatch) -> Tensor:
        """`frame_entropy` [B] of some windows, by their numbers."""
        for row, window in enumerate(windows):
            if window not in self._known:
                one = slice(row, row + 1)
                self._known[window] = frame_entropy(
                    self._world, batch.frames[one], batch.actions[one]
                )
        return torch.cat([self._known[window] for window in windows])
