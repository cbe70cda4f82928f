"""LPIPS on the CPU: the compare stage of `backend="native"`.

Feature maps are kept as the backbone gives them; a pair's distance normalises, subtracts, squares,
weighs and averages in one pass over both maps (csrc/compare), so normalised copies never exist.
"""

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn

from vlarft import _native
from vlarft.engine.team import Team
from vlarft.models.lpips import LPIPS


class NativeLPIPS:
    """LPIPS, channels last; weights are copied.

    Args:
        lpips: float32 weights.
        team: threads.
    """

    def __init__(self, lpips: LPIPS, team: Team) -> None:
        self._team, self._taps = team, set(lpips.taps)
        layers = copy.deepcopy(lpips.features_net)
        layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for one, next_one in pairwise(layers):
            if isinstance(next_one, nn.ReLU):
                assert isinstance(one, nn.Conv2d)
                next_one.inplace = True  # a convolution's output has no other reader
        self._layers = layers
        self._weights = [w.detach().float().contiguous() for w in lpips.lins]
        # (2 x - 1 - shift) / scale
        self._factor = 2 / lpips.scale
        self._summand = -(1 + lpips.shift) / lpips.scale

    def features(self, images: Tensor) -> list[Tensor]:
        """Images [B,3,H,W] in [0,1] -> feature maps of every tap, float32 [B,h w,C]."""
        x = torch.addcmul(self._summand, images, self._factor)
        x = x.contiguous(memory_format=torch.channels_last)
        out = []
        for i, layer in enumerate(self._layers):
            x = layer(x)
            if i in self._taps:
                out.append(x.permute(0, 2, 3, 1).contiguous().flatten(1, 2))
        return out

    def pairs(
        self,
        images: tuple[Tensor, list[Tensor]],
        reference: tuple[Tensor, list[Tensor]],
        image: Tensor,
        target: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """L1 and LPIPS, float32 [B]; see `vlarft.engine.compare.pair_distances`.

        Both are exactly 0 for equal pixels: equal images may have features that differ in the last
        bit, when they were embedded in batches of different size.
        """
        workers = self._team.workers
        near, far = torch.empty(len(image)), torch.zeros(len(image))
        a, b = images[0].flatten(1).contiguous(), reference[0].flatten(1).contiguous()
        _native.l1(workers, a, b, image, target, near)
        for x, y, weight in zip(images[1], reference[1], self._weights, strict=True):
            _native.perceptual(workers, x, y, weight, image, target, far)
        return near, far.masked_fill_(near == 0, 0.0)
