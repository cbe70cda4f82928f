"""Policy pre-training: behaviour cloning by conditional flow matching on recorded chunks."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vlarft.data.windows import WindowBatch, Windows
from vlarft.models.flow_policy import FlowPolicy
from vlarft.models.policy import Observation
from vlarft.train.loop import LoopConfig, step_generator

VALIDATION_WINDOWS = 256


class PolicyTraining(LoopConfig):
    """Behaviour cloning."""

    shift: int = 4  # largest random image translation, pixels: the target is a few pixels wide


class PolicyTask:
    """Flow-matching loss of a flow policy."""

    def __init__(
        self, policy: FlowPolicy, config: PolicyTraining, train: Windows, validation: Windows
    ) -> None:
        self.model: nn.Module = policy
        self.policy, self.config = policy, config
        self.train, self.validation = train, validation

    def parameters(self) -> Iterator[nn.Parameter]:
        """Encoder, flow head and projectors; the Sigma Net starts with RFT."""
        return iter(self.policy.pretraining_parameters())

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:  # noqa: ARG002
        """Flow-matching loss of one random batch."""
        indices = torch.randint(len(self.train), (self.config.batch_size,), generator=generator)
        batch = self.train.batch(indices)
        seen = observation(batch)
        if self.config.shift:
            seen = _shifted(seen, self.config.shift, generator)
        return self.policy.flow_loss(seen, batch.actions, generator), {}

    def validate(self, model: nn.Module) -> dict[str, float]:  # noqa: ARG002
        """Flow loss, and L1 of the deterministic chunk in normalised units."""
        count = min(VALIDATION_WINDOWS, len(self.validation))
        batch = self.validation.batch(torch.linspace(0, len(self.validation) - 1, count).long())
        seen = observation(batch)
        loss = self.policy.flow_loss(seen, batch.actions, step_generator(self.config.seed, -1))
        target = self.policy.actions.normalize(batch.actions)
        executed = self.policy.act(seen).cpu()
        error = (self.policy.actions.normalize(executed) - target).abs()
        return {
            "flow_loss": loss.item(),
            "action_l1": error.mean().item(),
            "gripper_errors": ((executed[..., -1] > 0) != (batch.actions[..., -1] > 0))
            .float()
            .mean()
            .item(),
        }

    def after_step(self, step: int) -> None:
        """Nothing to do."""

    def extra_state(self) -> dict[str, Any]:
        """No further state."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Counterpart of `extra_state`."""


def observation(batch: WindowBatch) -> Observation:
    """What the policy sees at the start of each window."""
    return Observation(batch.frames[:, 0], batch.proprioception, batch.instruction)


def _shifted(seen: Observation, limit: int, generator: torch.Generator) -> Observation:
    """Each image moved by up to `limit` pixels, edges repeated."""
    image = seen.image
    count, height, width = image.shape[:3]
    shift = torch.randint(-limit, limit + 1, (2, count, 1), generator=generator)
    rows = (torch.arange(height)[None] + shift[0]).clamp(0, height - 1)
    columns = (torch.arange(width)[None] + shift[1]).clamp(0, width - 1)
    moved = image[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return Observation(moved, seen.proprioception, seen.instruction)
