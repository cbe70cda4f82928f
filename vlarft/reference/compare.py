"""Compare: distances between imagined and reference frames, in float32."""

from typing import Protocol

from torch import Tensor


class Metric(Protocol):
    """A perceptual distance that works on features, so that a reference is embedded once."""

    def features(self, images: Tensor) -> list[Tensor]:
        """Images [B,3,H,W] in [0,1] -> feature maps, batch first."""
        ...

    def distance(self, features_a: list[Tensor], features_b: list[Tensor]) -> Tensor:
        """Two lists of feature maps -> [B]."""
        ...


def l1(frames: Tensor, reference: Tensor) -> Tensor:
    """Mean absolute difference over 3 H W: [...,3,H,W] twice -> [...]."""
    return (frames - reference).abs().mean(dim=(-3, -2, -1))


def perceptual(
    metric: Metric,
    features: list[Tensor],
    reference_features: list[Tensor],
    identical: Tensor,
) -> Tensor:
    """Metric between feature maps of equal batch -> float32 [B].

    `identical` (bool [B]) marks pairs whose images are equal: their distance is 0 by definition,
    while features from batches of different size may differ in the last bit.
    """
    distance = metric.distance(features, reference_features)
    return distance.float().masked_fill(identical, 0.0)
