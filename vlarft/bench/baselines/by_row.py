"""Work that is alike for every rollout: done whole, or for a few rollouts and scaled up."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vlarft.bench.clock import now
from vlarft.bench.measure import Run, SomeRows

FULL_SECONDS = 45.0  # a baseline that would take longer is sampled
_SAMPLED = 2  # rollouts, with all their frames


class ByRow:
    """A baseline that does something once a scene and then something for every rollout.

    Args:
        shape: (P, N).
        scene: scene number -> what its rollouts share; what it computes is part of the time.
        row: (that, scene, rollout) -> one rollout's output, a tensor.
        sample: "auto", "always" or "never".
    """

    def __init__(
        self,
        shape: tuple[int, int],
        scene: Callable[[int], Any],
        row: Callable[[Any, int, int], Tensor],
        sample: str,
    ) -> None:
        self.shape, self.scene, self.row = shape, scene, row
        with torch.inference_mode():
            start = now()
            row(scene(0), 0, 0)  # warm-up
            seconds = now() - start
        whole = seconds * shape[0] * shape[1]
        self.sampled = sample == "always" or (sample == "auto" and whole > FULL_SECONDS)

    def run(self) -> Run:
        """Measure once, wholly or by samples."""
        scenes, rollouts = self.shape
        chosen = range(rollouts)
        if self.sampled:
            scenes = 1
            chosen = range(0, rollouts, max(1, -(-rollouts // _SAMPLED)))
        shared = rest = 0.0
        numbers, outputs = [], []
        with torch.inference_mode():
            for p in range(scenes):
                start = now()
                common = self.scene(p)
                middle = now()
                outputs += [self.row(common, p, n) for n in chosen]
                rest += now() - middle
                shared += middle - start
                numbers += [p * rollouts + n for n in chosen]
        shared *= self.shape[0] / scenes
        rest *= self.shape[0] * rollouts / len(numbers)
        values = torch.stack(outputs)
        if not self.sampled:
            return Run(shared + rest, values.unflatten(0, self.shape))
        return Run(
            shared + rest,
            SomeRows(torch.tensor(numbers, device=values.device), values),
            sampled=True,
        )
