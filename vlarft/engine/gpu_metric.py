"""LPIPS on a GPU: Triton kernels around torch's convolutions, channels last.

Clamping, L1 and LPIPS' scaling of its input are one pass over the frames; bias and ReLU are one
pass after each convolution; a pair's distance normalises, subtracts, squares, weighs and averages
in one pass over both maps. Nothing waits for the GPU. Importing this module imports Triton.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlarft.kernels.compare.bias_relu import bias_relu
from vlarft.kernels.compare.perceptual import perceptual
from vlarft.kernels.compare.prepare import prepare
from vlarft.models.lpips import LPIPS


class _ConvolutionRelu:
    """A convolution and the ReLU after it."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        layout = torch.channels_last
        self._weight = conv.weight.detach().to(dtype, copy=True).contiguous(memory_format=layout)
        assert conv.bias is not None
        self._bias = conv.bias.detach().to(torch.float32, copy=True)
        self._stride, self._padding = conv.stride, conv.padding

    def __call__(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self._weight, stride=self._stride, padding=self._padding)
        y = y.permute(0, 2, 3, 1).contiguous()
        bias_relu(y.flatten(0, 2), self._bias)
        return y.permute(0, 3, 1, 2)


class _Plain:
    """A layer of torch."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        self._layer = copy.deepcopy(layer).to(dtype)
        self._layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = self._layer(x)
        return y


class GpuLPIPS:
    """LPIPS, channels last, on the device that holds it; weights are copied.

    Args:
        lpips: float32 weights.
        dtype: of the backbone, float32 or bfloat16; sums and distances are float32.
    """

    def __init__(self, lpips: LPIPS, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self._layers: list[tuple[_ConvolutionRelu | _Plain, bool]] = []  # and whether it is a tap
        layers = list(lpips.features_net)
        for i, layer in enumerate(layers):
            relu = i + 1 < len(layers) and isinstance(layers[i + 1], nn.ReLU)
            if isinstance(layer, nn.Conv2d) and relu:
                self._layers.append((_ConvolutionRelu(layer, dtype), i + 1 in lpips.taps))
            elif not isinstance(layer, nn.ReLU):  # a ReLU went with its convolution
                self._layers.append((_Plain(layer, dtype), i in lpips.taps))
        self._weights = [w.detach().to(torch.float32, copy=True) for w in lpips.lins]
        # (2 x - 1 - shift) / scale
        self._factor = (2 / lpips.scale).flatten()
        self._summand = (-(1 + lpips.shift) / lpips.scale).flatten()

    def features(self, images: Tensor) -> list[Tensor]:
        """Images [B,3,H,W] in [0,1] -> feature maps of every tap, [B,h w,C] in the dtype."""
        x, _ = prepare(images, self._factor, self._summand, dtype=self.dtype)
        return self._maps(x)

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
        _, near = prepare(images[0], reference=reference[0], target=target, image=image)
        return near, self._distance(images[1], reference[1], image, target, near)

    def distances(
        self,
        pixels: Tensor,
        reference: tuple[Tensor, list[Tensor]],
        image: Tensor | None,
        target: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See `vlarft.engine.accelerated.PairMetric`; frames in turn are read once."""
        if image is not None:
            return self.pairs((pixels, self.features(pixels)), reference, image, target)
        x, near = prepare(
            pixels,
            self._factor,
            self._summand,
            dtype=self.dtype,
            reference=reference[0],
            target=target,
        )
        each = torch.arange(len(pixels), device=pixels.device)
        return near, self._distance(self._maps(x), reference[1], each, target, near)

    def _maps(self, x: Tensor) -> list[Tensor]:
        out = []
        for layer, tap in self._layers:
            x = layer(x)
            if tap:
                out.append(x.permute(0, 2, 3, 1).contiguous().flatten(1, 2))
        return out

    def _distance(
        self, a: list[Tensor], b: list[Tensor], image: Tensor, target: Tensor, near: Tensor
    ) -> Tensor:
        far = torch.zeros_like(near)
        for x, y, weight in zip(a, b, self._weights, strict=True):
            perceptual(x, y, weight, image, target, far)
        return far.masked_fill_(near == 0, 0.0)
