"""A perceptual distance that needs no other network: features of the tokenizer's own encoder."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlarft.models.tokenizer import Tokenizer

_EPS = 1e-10


class TokenizerFeatures:
    """LPIPS' formula on the levels of the tokenizer's plain encoder, without learned weights.

    Every level's features are scaled to unit length over their channels; the distance is the
    squared difference, summed over channels, averaged over pixels and over levels: 0 for equal
    features, at most 4. What the tokenizer cannot see, this distance cannot see either.

    Args:
        tokenizer: in evaluation mode; shared, not copied.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def features(self, images: Tensor) -> list[Tensor]:
        """Images [B,3,H,W] in [0,1] -> unit-normalised features of every level, [B,C,h,w]."""
        with torch.no_grad():
            _, levels = self._tokenizer.encoder(images.to(self._tokenizer.dtype))
        return [y / (y.square().sum(1, keepdim=True).sqrt() + _EPS) for y in map(_float, levels)]

    def distance(self, features_a: Sequence[Tensor], features_b: Sequence[Tensor]) -> Tensor:
        """Distance of two feature lists -> float32 [B]."""
        levels = [
            (a - b).square().sum(1).mean((1, 2))
            for a, b in zip(features_a, features_b, strict=True)
        ]
        return torch.stack(levels).mean(0)


def _float(x: Tensor) -> Tensor:
    return x.float()
