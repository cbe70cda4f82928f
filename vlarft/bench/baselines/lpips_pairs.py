"""`lpips`: both images of every pair through the backbone, as the LPIPS authors' package does.

Each rollout's frames are compared with its scene's reference frames, T pairs a call; L1 beside it.
Channels last, the faster layout here.
"""

import torch
from torch import Tensor

from vlarft.bench.cases import build_metric
from vlarft.bench.measure import Context, Prepared, Timed
from vlarft.bench.subjects import random_frames


def build(context: Context) -> Prepared:
    """Prepare it."""
    frames, reference = random_frames(context.material)
    metric = build_metric(context.material.case.preset)
    metric.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def call() -> Tensor:
        pairs = [
            [((x - y).abs().mean((1, 2, 3)), metric(x, y)) for x in rollouts]
            for rollouts, y in zip(frames, reference, strict=True)
        ]
        near, far = (
            torch.stack([torch.stack([pair[i] for pair in scene]) for scene in pairs])
            for i in (0, 1)
        )
        return torch.stack((near, far))

    return Prepared(Timed(call))
