"""Every random number of a run is a function of (seed, step, purpose).

So resuming needs no generator state: the step number is enough.
"""

import hashlib

import torch
from torch import Tensor


def seed_for(seed: int, step: int, purpose: str, part: int = 0) -> int:
    """An independent seed for one use of randomness.

    Args:
        seed: the run's seed.
        step: finished steps, 0 for the first step.
        purpose: name of the use; different names give unrelated seeds.
        part: number of the use within the step.

    Returns:
        0 to 2**63 - 1.
    """
    text = f"{seed}/{step}/{purpose}/{part}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def generator_for(
    seed: int, step: int, purpose: str, part: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A fresh generator on `device`, seeded by `seed_for`."""
    generator = torch.Generator(device)
    generator.manual_seed(seed_for(seed, step, purpose, part))
    return generator


def step_windows(count: int, scenes: int, seed: int, step: int) -> Tensor:
    """Window numbers of one step: consecutive pieces of a new permutation per pass over the data.

    Args:
        count: training windows, >= 1.
        scenes: P.
        seed: the run's seed.
        step: finished steps.

    Returns:
        int64 [P].
    """
    positions = torch.arange(step * scenes, (step + 1) * scenes)
    orders = {
        epoch: torch.randperm(count, generator=generator_for(seed, epoch, "data order"))
        for epoch in sorted(set((positions // count).tolist()))
    }
    return torch.stack([orders[p // count][p % count] for p in positions.tolist()])
