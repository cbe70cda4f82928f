"""What a precision costs: frames and distances of the engine against plain float32.

The truth is the reference back end's decoder and LPIPS in float32. Rollout n of N differs from the
expert in about (n + 1) / N of its tokens, so that distances spread as those of a group do.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlarft.bench import cases
from vlarft.bench.cases import Case, Material
from vlarft.engine import RolloutEngine


@dataclass(frozen=True)
class Accuracy:
    """Errors of one engine.

    Attributes:
        case: size.
        metric: perceptual metric, with trained weights.
        backend: of the engine.
        dtype: of the engine.
        psnr: of all frames together, dB against float32.
        psnr_worst: of the worst frame, dB.
        plain_psnr: as `psnr`, of plain torch in the same dtype; infinite in float32.
        distance_error: largest relative error of L1 + LPIPS over the rollouts.
        rank_correlation: Spearman's, of the rollouts' L1 + LPIPS, the lowest of the scenes.
        distances: lowest and highest L1 + LPIPS.
    """

    case: str
    metric: str
    backend: str
    dtype: str
    psnr: float
    psnr_worst: float
    plain_psnr: float
    distance_error: float
    rank_correlation: float
    distances: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def measure_accuracy(
    case: Case,
    dtype: torch.dtype,
    metric: str,
    metric_file: Path | None = None,
    backend: str = "auto",
    seed: int = 0,
) -> Accuracy:
    """Render and compare the case's last frame, in the dtype and in plain float32.

    Args:
        case: size; its number of frames plays no part.
        dtype: of the engine.
        metric: "lpips-vgg", "lpips-alex" or "lpips-squeeze", with trained weights.
        metric_file: its weights, when not where `LPIPS.load` looks.
        backend: of the engine.
        seed: of the world and the tokens.

    Raises:
        CheckpointError: the metric's weights are missing; the message says how to get them.
    """

    def judged(backend: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        engine = RolloutEngine(
            material.world, backend=backend, dtype=dtype, metric=metric, metric_file=metric_file
        )
        scenes = engine.scenes_from_tokens(material.context, material.first)
        frames = engine.decode(scenes, codes)
        found = engine.compare(frames[:, :-1], frames[:, -1])
        engine.release()
        return frames, (found.l1 + found.perceptual)[..., 0]

    material = cases.build(replace(case, frames=1), seed)
    codes = near_expert(material, seed)
    truth, true_distances = judged("reference", torch.float32)
    plain = truth
    if dtype != torch.float32:
        plain, _ = judged("reference", dtype)
    frames, distances = judged(backend, dtype)
    return Accuracy(
        case=case.name,
        metric=metric,
        backend=backend,
        dtype=str(dtype).removeprefix("torch."),
        psnr=_psnr((frames - truth).square().mean()),
        psnr_worst=_psnr((frames - truth).square().flatten(3).mean(-1).max()),
        plain_psnr=_psnr((plain - truth).square().mean()),
        distance_error=float(((distances - true_distances).abs() / true_distances).max()),
        rank_correlation=min(
            spearman(a, b) for a, b in zip(distances, true_distances, strict=True)
        ),
        distances=(float(true_distances.min()), float(true_distances.max())),
    )


def near_expert(material: Material, seed: int) -> Tensor:
    """Tokens int64 [P,N+1,1,K]: rollouts ever further from the expert, who is the last."""
    case, world = material.case, material.world
    random = torch.Generator().manual_seed(seed)
    shape = (case.scenes, case.rollouts + 1, 1, world.frame_tokens)
    codes = torch.randint(world.frame_codes, shape, generator=random)
    share = (torch.arange(case.rollouts) + 1.0) / case.rollouts
    changed = torch.rand(shape, generator=random)[:, :-1] < share.view(-1, 1, 1)
    changed[..., 0] = True  # nobody is the expert
    codes[:, :-1] = torch.where(changed, codes[:, :-1], codes[:, -1:])
    return codes


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of two vectors without ties."""
    ranks = torch.stack([x.argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def _psnr(error: Tensor) -> float:
    return float(-10 * error.double().log10())
