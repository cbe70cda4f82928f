"""Compare: frames against reference frames, the reference embedded once per scene."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlarft.engine.accelerated import PairMetric
from vlarft.engine.checks import check_floating, check_pixels, check_shape
from vlarft.errors import ConfigError
from vlarft.models.lpips import LPIPS
from vlarft.models.tokenizer import Tokenizer
from vlarft.models.tokenizer_features import TokenizerFeatures
from vlarft.reference.compare import Metric, l1, perceptual

_NETS = {"lpips-vgg": "vgg", "lpips-alex": "alex", "lpips-squeeze": "squeeze"}
METRICS = (*_NETS, "tokenizer-features")


@dataclass(frozen=True)
class Distances:
    """Distances of frames to the reference frame of the same time, float32 [P,N,T]."""

    l1: Tensor
    perceptual: Tensor


def check_metric(metric: str | Metric) -> None:
    """Refuse unknown metric names.

    Raises:
        ConfigError: naming what is known.
    """
    if isinstance(metric, str) and metric not in METRICS:
        raise ConfigError(f"metric = '{metric}'; allowed: {', '.join(METRICS)}")


def runs_natively(metric: str | Metric) -> bool:
    """Whether the native back end has code of its own for a metric."""
    return metric in _NETS if isinstance(metric, str) else isinstance(metric, LPIPS)


Embedder = Metric | PairMetric  # what the back end compares with


def load_metric(
    metric: str | Metric,
    file: str | None,
    device: torch.device,
    tokenizer: Tokenizer,
    accelerate: Callable[[LPIPS], PairMetric] | None = None,
) -> Embedder:
    """The metric in float32 on the device; weights are read here and nowhere earlier.

    Args:
        metric: its name, or an object that is taken as it is (LPIPS is packed like a named one).
        file: its weights; None: where `LPIPS.load` looks.
        device: where it runs.
        tokenizer: of the world model, in float32 on the device.
        accelerate: packs LPIPS for the native back end; None: plain PyTorch.

    Raises:
        CheckpointError: the weights are missing or damaged; the message says how to get them.
    """
    if metric == "tokenizer-features":
        return TokenizerFeatures(tokenizer)
    if isinstance(metric, str):
        metric = LPIPS.load(_NETS[metric], file).float()  # type: ignore[arg-type]
    if isinstance(metric, nn.Module):
        metric = metric.to(device)
    if isinstance(metric, LPIPS) and accelerate is not None:
        return accelerate(metric)
    return metric


def check_comparable(frames: Tensor, reference: Tensor) -> None:
    """Refuse frames that cannot be compared.

    Raises:
        ShapeError, DtypeError, DataError: wrong shape, dtype or values, by argument name.
    """
    check_shape("frames", frames, ("P", "N", "T", 3, "H", "W"))
    check_floating("frames", frames, "pixels in [0, 1]")
    check_pixels("frames", frames)
    check_reference(reference, frames.shape[0], frames.shape[2], tuple(frames.shape[-2:]))


def check_reference(reference: Tensor, scenes: int, frames: int, size: tuple[int, ...]) -> None:
    """Refuse reference frames that are not float [P,T,3,H,W] in [0, 1]."""
    check_shape("reference", reference, (scenes, frames, 3, *size))
    check_floating("reference", reference, "pixels in [0, 1]")
    check_pixels("reference", reference)


def embed(metric: Embedder, images: Tensor, batch: int) -> list[Tensor]:
    """Feature maps of [B,3,H,W] images, `batch` at a time."""
    parts = [metric.features(part) for part in images.split(batch)]
    return [torch.cat(level) for level in zip(*parts, strict=True)] if len(parts) > 1 else parts[0]


def pair_distances(
    metric: Embedder,
    images: tuple[Tensor, list[Tensor]],
    reference: tuple[Tensor, list[Tensor]],
    image: Tensor,
    target: Tensor,
    batch: int,
) -> tuple[Tensor, Tensor]:
    """L1 and perceptual distance, float32 [B], of pairs given by two index vectors int64 [B].

    Args:
        metric: perceptual metric.
        images: pixels [I,3,H,W] and their feature maps.
        reference: pixels [J,3,H,W] and their feature maps.
        image: indices into `images`.
        target: indices into `reference`.
        batch: pairs at a time.
    """
    if isinstance(metric, PairMetric):
        return metric.pairs(images, reference, image, target)
    near, far = [], []
    for i, j in zip(image.split(batch), target.split(batch), strict=True):
        a, b = images[0][i], reference[0][j]
        same = (a == b).flatten(1).all(1)
        near.append(l1(a, b))
        levels_a, levels_b = [f[i] for f in images[1]], [f[j] for f in reference[1]]
        far.append(perceptual(metric, levels_a, levels_b, same))
    return torch.cat(near), torch.cat(far)


def frame_distances(
    metric: Embedder,
    pixels: Tensor,
    reference: tuple[Tensor, list[Tensor]],
    image: Tensor | None,
    target: Tensor,
    batch: int,
) -> tuple[Tensor, Tensor]:
    """As `pair_distances`, of pixels [I,3,H,W] whose feature maps nobody needs afterwards.

    Without `image`, of every frame in turn.
    """
    if isinstance(metric, PairMetric):
        return metric.distances(pixels, reference, image, target)
    image = torch.arange(len(pixels), device=pixels.device) if image is None else image
    own = (pixels, metric.features(pixels))
    return pair_distances(metric, own, reference, image, target, batch)


def compare_frames(
    metric: Embedder, frames: Tensor, reference: Tensor, scenes_at_once: int, batch: int
) -> tuple[Tensor, Tensor]:
    """Distances float32 [P,N,T] of frames [P,N,T,3,H,W] to reference [P,T,3,H,W]."""
    scenes, rollouts, times = frames.shape[:3]
    near, far = [], []
    for first in range(0, scenes, scenes_at_once):
        some = slice(first, first + scenes_at_once)
        targets = reference[some].flatten(0, 1)
        embedded = (targets, embed(metric, targets, batch))
        target = torch.arange(len(targets), device=frames.device).view(-1, 1, times)
        target = target.repeat(1, rollouts, 1).flatten()
        images = frames[some].flatten(0, 2)
        for pixels, j in zip(images.split(batch), target.split(batch), strict=True):
            d1, d2 = frame_distances(metric, pixels, embedded, None, j, batch)
            near.append(d1)
            far.append(d2)
    shape = (scenes, rollouts, times)
    return torch.cat(near).view(shape), torch.cat(far).view(shape)
