"""Learning rates over a run: linear warm-up, then constant or a cosine."""

import math
from typing import Literal

Schedule = Literal["constant", "cosine"]
LOWEST = 0.02  # what a cosine ends at


def rate_factor(schedule: Schedule, step: int, steps: int, warmup: int) -> float:
    """What the learning rate of a step is of the configured one.

    Args:
        schedule: "cosine" falls from 1 at step 0 to `LOWEST` at `steps`.
        step: number of the step, from 0.
        steps: of the run.
        warmup: steps in which the rate rises linearly; it is never 0.
    """
    warm = min(1.0, (step + 1) / max(1, warmup))
    if schedule == "constant":
        return warm
    progress = min(1.0, step / max(1, steps))
    return warm * (LOWEST + (1 - LOWEST) * 0.5 * (1 + math.cos(math.pi * progress)))
