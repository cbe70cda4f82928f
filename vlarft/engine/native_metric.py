"""LPIPS on the CPU: the compare stage of `backend="native"`.

3x3 convolutions run in csrc/decode with their bias and ReLU, a few images at a time; other layers
are torch's. Feature maps are kept as the backbone gives them; a pair's distance normalises,
subtracts, squares, weighs and averages in one pass over both maps (csrc/compare), so normalised
copies never exist. Activations that nobody asked for take turns in two buffers; frames that are
compared at once leave theirs in kept ones, as fresh memory costs as much as a layer.
"""

import copy
import math

import torch
from torch import Tensor, nn

from vlarft import _native
from vlarft.engine.native_layers import pack
from vlarft.engine.plan import frames_together
from vlarft.engine.team import Team
from vlarft.models.lpips import LPIPS

_CHUNK_BYTES = 16 << 20  # largest feature map of the images that pass together


class _ConvolutionRelu:
    """A 3x3 convolution and the ReLU after it, on [B,h,w,C]."""

    def __init__(self, conv: nn.Conv2d, team: Team) -> None:
        self._conv, self.width, self._team = pack(conv, torch.float32), conv.out_channels, team

    def __call__(self, x: Tensor, out: Tensor) -> None:
        self._conv.run(self._team.workers, x, out, after="relu")


class _Plain:
    """A layer of torch on [B,h,w,C]; the ReLU after a convolution overwrites its output."""

    def __init__(self, layer: nn.Module, relu: bool) -> None:
        self._layer, self._relu = copy.deepcopy(layer), relu
        self._layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = self._layer(x.permute(0, 3, 1, 2))
        return (y.relu_() if self._relu else y).permute(0, 2, 3, 1).contiguous()


class NativeLPIPS:
    """LPIPS, channels last; weights are copied.

    Args:
        lpips: float32 weights.
        team: threads.
    """

    def __init__(self, lpips: LPIPS, team: Team) -> None:
        self._team = team
        self._layers: list[tuple[_ConvolutionRelu | _Plain, bool]] = []  # and whether it is a tap
        layers = list(lpips.features_net)
        area = 1  # pixels of the image that a pixel of this layer stands for
        density: list[float] = []  # floats of every tap for a pixel of the image
        for i, layer in enumerate(layers):
            area *= _stride(layer) ** 2
            relu = i + 1 < len(layers) and isinstance(layers[i + 1], nn.ReLU)
            tap = i + int(relu) in lpips.taps
            if relu and isinstance(layer, nn.Conv2d) and _plain_3x3(layer):
                self._layers.append((_ConvolutionRelu(layer, team), tap))
            elif not isinstance(layer, nn.ReLU):  # a ReLU went with its convolution
                self._layers.append((_Plain(layer, relu), tap))
            else:
                continue
            if tap:
                density.append(lpips.lins[len(density)].numel() / area)
        self._weights = [w.detach().float().contiguous() for w in lpips.lins]
        # (2 x - 1 - shift) / scale
        self._factor = 2 / lpips.scale
        self._summand = -(1 + lpips.shift) / lpips.scale
        self._widest, self._maps_size = max(density), sum(density) + 3  # ... and with the image
        self._spare = [torch.empty(0), torch.empty(0)]  # of activations that are not kept
        self._kept: list[Tensor] = []  # feature maps of frames that are compared at once

    def features(self, images: Tensor) -> list[Tensor]:
        """Images [B,3,H,W] in [0,1] -> feature maps of every tap, float32 [B,h w,C]."""
        return [level.flatten(1, 2) for level in self._maps(images, [])]

    def _maps(self, images: Tensor, levels: list[Tensor]) -> list[Tensor]:
        """Feature maps [B,h,w,C] of every tap, in `levels` where these have the right shape."""
        chunk = max(1, _CHUNK_BYTES // _bytes(self._widest, images))
        for at in range(0, len(images), chunk):
            self._some(images[at : at + chunk], len(images), at, levels)
        return levels

    def _some(self, images: Tensor, total: int, at: int, levels: list[Tensor]) -> None:
        x = torch.addcmul(self._summand, images, self._factor).permute(0, 2, 3, 1).contiguous()
        turn = level = 0
        for layer, tap in self._layers:
            if isinstance(layer, _ConvolutionRelu):
                shape = (*x.shape[1:3], layer.width)
                if tap:
                    y = _place(levels, level, (total, *shape))[at : at + len(x)]
                else:
                    count = len(x) * shape[0] * shape[1] * shape[2]
                    if self._spare[turn].numel() < count:
                        self._spare[turn] = torch.empty(count)
                    y = self._spare[turn][:count].view(len(x), *shape)
                    turn = 1 - turn
                layer(x, y)
            else:
                y = layer(x)
                if tap:
                    whole = _place(levels, level, (total, *y.shape[1:]))
                    y = whole[at : at + len(x)].copy_(y)
            x, level = y, level + int(tap)

    def distances(
        self,
        pixels: Tensor,
        reference: tuple[Tensor, list[Tensor]],
        image: Tensor | None,
        target: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See `vlarft.engine.accelerated.PairMetric`."""
        image = torch.arange(len(pixels)) if image is None else image
        near, far = torch.empty(len(image)), torch.empty(len(image))
        together = frames_together(_bytes(self._maps_size, pixels))
        for first in range(0, len(pixels), together):
            some = pixels[first : first + together]
            levels = self._maps(some, self._kept)
            maps = [level[: len(some)].flatten(1, 2) for level in levels]
            here = ((image >= first) & (image < first + len(some))).nonzero()[:, 0]
            near[here], far[here] = self.pairs(
                (some, maps), reference, image[here] - first, target[here]
            )
        return near, far

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


def _stride(layer: nn.Module) -> int:
    stride = getattr(layer, "stride", 1)
    return int(stride[0] if isinstance(stride, tuple) else stride)


def _bytes(density: float, images: Tensor) -> int:
    """Of so many floats for every pixel of an image."""
    return math.ceil(4 * density * images.shape[2] * images.shape[3])


def _plain_3x3(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.padding == (1, 1)


def _place(levels: list[Tensor], level: int, shape: tuple[int, ...]) -> Tensor:
    """The memory of a level's maps, at least so many of exactly this size."""
    if level == len(levels):
        levels.append(torch.empty(shape))
    elif levels[level].shape[1:] != shape[1:] or len(levels[level]) < shape[0]:
        levels[level] = torch.empty(shape)
    return levels[level]
