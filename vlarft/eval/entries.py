"""Which entries of an action does the reward see? A camera does not see every direction alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlarft.data.libero import ACTION_NAMES
from vlarft.data.windows import Windows
from vlarft.engine import RolloutEngine, Sampling
from vlarft.eval.statistics import Estimate, mean_interval
from vlarft.rft.config import RewardConfig
from vlarft.rft.rewards import action_scale, rollout_distance

SHIFT = 0.2  # of an entry's half q01..q99 range, on all actions of a chunk


@dataclass(frozen=True, slots=True)
class Entries:
    """Distance between the expert's imagination and that of its chunk with one entry shifted.

    Attributes:
        windows: W.
        distance: by entry, mean of a shift up and one down; the gripper's sign is turned instead.
    """

    windows: int
    distance: dict[str, Estimate]

    def lines(self) -> list[str]:
        """Shown, not judged."""
        best = max(e.value for e in self.distance.values()) or 1.0
        parts = ", ".join(
            f"{name} {e.value:.4f} ({e.value / best:.0%})" for name, e in self.distance.items()
        )
        return [
            f"distance when one entry of all actions is shifted by {SHIFT:g} of its half range "
            f"(gripper: turned), and its share of the largest: {parts}"
        ]

    def to_dict(self) -> dict[str, Any]:
        """As written to `summary.json`."""
        return {
            "windows": self.windows,
            "distance": {name: e.to_dict() for name, e in self.distance.items()},
        }


@torch.no_grad()
def measure_entries(
    engine: RolloutEngine,
    windows: Windows,
    indices: Sequence[int] | Tensor,
    sampling: Sampling,
    *,
    batch: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Entries:
    """Shift one entry of the expert's chunk at a time, under shared noise.

    Args:
        engine: the world model and the metric.
        windows: recorded windows of the layout's frames.
        indices: W window numbers.
        sampling: options of the imagination; its noise is shared in any case.
        batch: windows at once.
        progress: called with (windows done, windows).
    """
    numbers = torch.as_tensor(indices, dtype=torch.int64).cpu()
    unit = action_scale(torch.cat([torch.from_numpy(e.actions) for e in windows.episodes]))
    shared = sampling.model_copy(update={"noise": "shared"})
    found: list[Tensor] = []
    for some in numbers.split(batch):
        recording = windows.batch(some)
        scenes = engine.encode(recording.frames[:, 0])
        chunks = shifted(recording.actions, SHIFT * unit)
        result = engine.rollout(scenes, chunks, recording.actions, shared)
        distance = rollout_distance(result.l1, result.perceptual, RewardConfig()).double().cpu()
        found.append(distance.view(len(some), len(ACTION_NAMES), 2).mean(2))
        if progress:
            progress(sum(map(len, found)), len(numbers))
    by_window, episode = torch.cat(found), windows.episode[numbers]
    return Entries(
        len(numbers),
        {name: mean_interval(by_window[:, n], episode) for n, name in enumerate(ACTION_NAMES)},
    )


def shifted(actions: Tensor, size: Tensor) -> Tensor:
    """Chunks [B,T,A] with one entry shifted up and down, [B, 2 A, T, A]; the gripper twice turned.

    Args:
        actions: raw units.
        size: of each entry's shift, [A].
    """
    count = actions.shape[-1]
    moves = torch.stack([torch.diag(size), -torch.diag(size)], 1).view(2 * count, 1, count)
    chunks = actions[:, None] + moves
    chunks[:, -2:] = actions[:, None]
    chunks[:, -2:, :, -1] *= -1
    return chunks
