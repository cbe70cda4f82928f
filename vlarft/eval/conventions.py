"""Do data and world model mean the same by a frame and an action?

The recorded frames' tokens get a probability from the world model, given the actions. Read the same
recordings under other conventions, and the right one must be the least surprising.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlarft.data.actions import ActionNormalizer
from vlarft.data.windows import Windows
from vlarft.eval.statistics import Estimate, mean_interval
from vlarft.models.world_model import WorldModel

AS_RECORDED = "as recorded"


@dataclass(frozen=True, slots=True)
class Convention:
    """How surprising the recordings are when they are read one way.

    Attributes:
        name: of the reading.
        cross_entropy: nats a frame token, mean over windows; lower fits better.
        difference: to reading them as recorded; above 0: fits worse.
    """

    name: str
    cross_entropy: float
    difference: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """As written to `summary.json`."""
        difference = None if self.difference is None else self.difference.to_dict()
        return {
            "name": self.name,
            "cross_entropy": self.cross_entropy,
            "difference": difference,
        }


Reading = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Frames uint8 [B,T+1,H,W,3] and actions [B,T,A] to the same, read another way."""


def readings(world: WorldModel) -> dict[str, Reading]:
    """Ways to read a recording, the recorded one first."""

    def flipped_gripper(frames: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        return frames, torch.cat([actions[..., :-1], -actions[..., -1:]], dim=-1)

    def one_step_late(frames: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        return frames, torch.cat([actions[:, :1], actions[:, :-1]], dim=1)

    found: dict[str, Reading] = {
        AS_RECORDED: lambda frames, actions: (frames, actions),
        "frames rotated by 180 degrees": lambda frames, actions: (frames.flip(2, 3), actions),
        "frames upside down": lambda frames, actions: (frames.flip(2), actions),
        "gripper's sign flipped": flipped_gripper,
        "actions one step late": one_step_late,
        "deltas' signs flipped": lambda frames, actions: (
            frames,
            torch.cat([-actions[..., :-1], actions[..., -1:]], dim=-1),
        ),
    }
    statistics = world.layout.statistics
    if statistics is not None:
        normalizer = ActionNormalizer(statistics.action_q01, statistics.action_q99)
        found["actions are normalised"] = lambda frames, actions: (
            frames,
            normalizer.denormalize(actions),
        )
        found["actions must be normalised"] = lambda frames, actions: (
            frames,
            normalizer.normalize(actions),
        )
    return found


@torch.no_grad()
def teacher_forced(world: WorldModel, frames: Tensor, actions: Tensor) -> Tensor:
    """Cross-entropy of recorded frames, each token given the recorded ones before it.

    Args:
        world: the world model.
        frames: uint8 [B,T+1,H,W,3].
        actions: raw [B,T,A].

    Returns:
        float64 [B], nats a frame token, among frame codes.
    """
    context, tokens = world.window_tokens(frames)
    logits = world.frame_logits(context, tokens, actions).double()
    labels = tokens[:, 1:].to(logits.device)
    surprise = F.cross_entropy(logits.flatten(0, 2), labels.flatten(), reduction="none")
    return surprise.view(len(frames), -1).mean(1).cpu()


def compare_conventions(
    world: WorldModel,
    windows: Windows,
    indices: Sequence[int] | Tensor,
    *,
    batch: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> list[Convention]:
    """Every reading of the same windows, the recorded one first.

    Args:
        world: the world model, in float32.
        windows: recorded windows.
        indices: W window numbers, of at least two episodes.
        batch: windows at once.
        progress: called with (readings done, readings).
    """
    numbers = torch.as_tensor(indices, dtype=torch.int64).cpu()
    episode = windows.episode[numbers]
    ways = readings(world)
    surprise: dict[str, Tensor] = {}
    for name, read in ways.items():
        parts = []
        for some in numbers.split(batch):
            recording = windows.batch(some)
            parts.append(teacher_forced(world, *read(recording.frames, recording.actions)))
        surprise[name] = torch.cat(parts)
        if progress:
            progress(len(surprise), len(ways))
    recorded = surprise[AS_RECORDED]
    return [
        Convention(
            name,
            float(value.mean()),
            None if name == AS_RECORDED else mean_interval(value - recorded, episode),
        )
        for name, value in surprise.items()
    ]
