"""Layers of the tokenizer's convolutional networks in C++, channels last, on a shared canvas.

GroupNorm, SiLU, bias and residual are applied inside the convolutions (csrc/decode). Attention, at
the latent's size only, is torch's.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlarft import _native
from vlarft.engine.attention_weights import CrossAttentionWeights, SelfAttentionWeights
from vlarft.engine.team import Team
from vlarft.models import autoencoder as models

_CHUNK_BYTES = 8 << 20  # largest activation of the images that pass together: three fit in a cache


class Norm:
    """GroupNorm as a factor and a summand a channel.

    Args:
        norm: its weights are copied.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = copied(norm.weight), copied(norm.bias)

    def __call__(self, workers: _native.Workers, x: Tensor) -> tuple[Tensor, Tensor]:
        """Statistics of x [B,H,W,C] -> scale and shift, float32 [B,C]."""
        scale = torch.empty(x.shape[0], x.shape[3])
        shift = torch.empty_like(scale)
        _native.group_norm(
            workers, x, self.weight, self.bias,
            groups=self.groups, eps=self.eps, scale=scale, shift=shift,
        )  # fmt: skip
        return scale, shift


def pack(conv: nn.Conv2d, dtype: torch.dtype, upsample: bool = False) -> _native.Convolution:
    """Pack a 3x3 convolution of stride 1 and padding 1, or a 1x1 one; weights are copied."""
    bias = conv.bias if conv.bias is not None else torch.zeros(conv.out_channels)
    return _native.Convolution(
        copied(conv.weight),
        copied(bias),
        upsample=upsample,
        dtype=str(dtype).removeprefix("torch."),
    )


class Canvas:
    """Three buffers that the activations of a chunk of frames take turns in.

    Attributes:
        workers: threads, set before use.
        x: the current activation, [B,H,W,C].
    """

    workers: _native.Workers

    def __init__(self, elements: int, dtype: torch.dtype) -> None:
        self.elements = elements
        self._free = [torch.empty(elements, dtype=dtype) for _ in range(3)]
        self.x = torch.empty(0)
        self._at = self._free.pop()

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return 3 * self.elements * self._at.itemsize

    def begin(self, batch: int, size: int, width: int) -> Tensor:
        """Forget everything; the new current activation [B,size,size,width], to be filled."""
        self.x = self._shape(self._at, batch, size, width)
        return self.x

    def other(self, size: int, width: int) -> tuple[Tensor, Tensor]:
        """A free buffer, taken, and its view [B,size,size,width]."""
        buffer = self._free.pop()
        return buffer, self._shape(buffer, self.x.shape[0], size, width)

    def give(self, buffer: Tensor) -> None:
        """Give a buffer of `other` back."""
        self._free.append(buffer)

    def move(self, buffer: Tensor, x: Tensor) -> None:
        """Make a buffer of `other` the current activation; the one before is free."""
        self._free.append(self._at)
        self._at, self.x = buffer, x

    @staticmethod
    def _shape(buffer: Tensor, batch: int, size: int, width: int) -> Tensor:
        return buffer[: batch * size * size * width].view(batch, size, size, width)


class Easel:
    """Keeps a network's canvas between calls.

    Args:
        elements: of the largest activation of one image.
        dtype: of the activations.
        team: threads.
    """

    def __init__(self, elements: int, dtype: torch.dtype, team: Team) -> None:
        self._elements, self._dtype, self._team = elements, dtype, team
        self._canvas: Canvas | None = None

    @property
    def chunk(self) -> int:
        """Images that pass together."""
        return max(1, _CHUNK_BYTES // (self._elements * self._dtype.itemsize))

    @property
    def work_bytes(self) -> int:
        """Bytes of the buffers of a full chunk."""
        return 3 * self.chunk * self._elements * self._dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers that are kept now."""
        return 0 if self._canvas is None else self._canvas.nbytes

    def canvas(self, images: int) -> Canvas:
        """A canvas for so many images, with the team's threads."""
        canvas, elements = self._canvas, images * self._elements
        if canvas is None or canvas.elements < elements:
            self._canvas = None  # freed before the next one is allocated
            self._canvas = canvas = Canvas(elements, self._dtype)
        canvas.workers = self._team.workers
        return canvas

    def release(self) -> None:
        """Drop the buffers; they are made again when needed."""
        self._canvas = None


class Layer(Protocol):
    """Anything that replaces the current activation."""

    nbytes: int  # of its packed weights

    def __call__(self, canvas: Canvas) -> None:
        """Replace the current activation."""
        ...


class Resnet:
    """Residual block; weights are copied."""

    def __init__(self, block: models.ResnetBlock, dtype: torch.dtype) -> None:
        self.norm1, self.norm2 = Norm(block.norm1), Norm(block.norm2)
        self.conv1, self.conv2 = pack(block.conv1, dtype), pack(block.conv2, dtype)
        self.width = block.conv1.out_channels
        shortcut = block.conv_shortcut
        self.shortcut = None if shortcut is None else pack(shortcut, dtype)
        packed = [c for c in (self.conv1, self.conv2, self.shortcut) if c is not None]
        self.nbytes = sum(conv.weight_bytes for conv in packed)

    def __call__(self, canvas: Canvas) -> None:
        """Replace the current activation."""
        workers, size = canvas.workers, canvas.x.shape[1]
        buffer, h = canvas.other(size, self.width)
        scale, shift = self.norm1(workers, canvas.x)
        self.conv1.run(workers, canvas.x, h, scale=scale, shift=shift, before="silu")
        if self.shortcut is not None:
            skip_buffer, skip = canvas.other(size, self.width)
            self.shortcut.run(workers, canvas.x, skip)
            canvas.move(skip_buffer, skip)
        scale, shift = self.norm2(workers, h)
        self.conv2.run(
            workers, h, canvas.x, scale=scale, shift=shift, before="silu", residual=canvas.x
        )
        canvas.give(buffer)


class Upsample:
    """Nearest x2 and a convolution, as four 2x2 convolutions."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        self.conv, self.width = pack(conv, dtype, upsample=True), conv.out_channels
        self.nbytes = self.conv.weight_bytes

    def __call__(self, canvas: Canvas) -> None:
        """Replace the current activation."""
        buffer, out = canvas.other(2 * canvas.x.shape[1], self.width)
        self.conv.run(canvas.workers, canvas.x, out)
        canvas.move(buffer, out)


class Downsample:
    """Zero padding right and below, then torch's convolution of stride 2."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        layout = torch.channels_last
        self.weight = conv.weight.detach().to(dtype, copy=True).contiguous(memory_format=layout)
        assert conv.bias is not None
        self.bias = conv.bias.detach().to(dtype, copy=True)
        self.nbytes: int = self.weight.nbytes

    def __call__(self, canvas: Canvas) -> None:
        """Replace the current activation."""
        x = F.pad(canvas.x.permute(0, 3, 1, 2), (0, 1, 0, 1))
        y = F.conv2d(x, self.weight, self.bias, stride=2).permute(0, 2, 3, 1)
        buffer, out = canvas.other(y.shape[1], y.shape[3])
        canvas.move(buffer, out.copy_(y))


class SelfAttention(SelfAttentionWeights):
    """One head over all pixels, residual."""

    def __init__(self, block: models.SelfAttention, dtype: torch.dtype) -> None:
        super().__init__(block, dtype)
        self.norm = Norm(block.group_norm)

    def __call__(self, canvas: Canvas) -> None:
        """Replace the current activation."""
        x = canvas.x.flatten(1, 2)
        qkv = F.linear(normed(self.norm, canvas), self.weight, self.bias).unsqueeze(1)
        q, k, v = qkv.chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        x.add_(F.linear(attended, self.out_weight, self.out_bias))


class CrossAttention(CrossAttentionWeights):
    """Pixels attend to those of their scene's context frame."""

    def __init__(self, block: models.CrossAttentionBlock, dtype: torch.dtype) -> None:
        super().__init__(block, dtype)
        self.norm = Norm(block.q_norm)

    def __call__(self, canvas: Canvas, features: models.KeyValue, scene: list[int]) -> None:
        """Replace the current activation; `scene` names the row of `features` of each image."""
        x = canvas.x.flatten(1, 2)
        q = F.linear(normed(self.norm, canvas), self.weight).add_(self.bias)
        for first, last in _runs(scene):  # frames of a scene share its keys: one long query
            kv = features.select(slice(scene[first], scene[first] + 1))
            heads = q[first:last].reshape(1, -1, kv.key.shape[1], kv.key.shape[3]).transpose(1, 2)
            out = F.scaled_dot_product_attention(heads, kv.key, kv.value)
            merged = out.transpose(1, 2).reshape(last - first, *x.shape[1:])
            x[first:last] += F.linear(merged, self.out_weight, self.out_bias)
        F.silu(x, inplace=True)


def normed(norm: Norm, canvas: Canvas) -> Tensor:
    """GroupNorm of the current activation as tokens [B,HW,C]."""
    scale, shift = norm(canvas.workers, canvas.x)
    tokens = canvas.x.flatten(1, 2).float()
    return torch.addcmul(shift[:, None], tokens, scale[:, None]).to(canvas.x.dtype)


def _runs(values: list[int]) -> Iterator[tuple[int, int]]:
    """Half-open ranges of neighbours that are equal."""
    first = 0
    for i in range(1, len(values) + 1):
        if i == len(values) or values[i] != values[first]:
            yield first, i
            first = i


def copied(weights: Tensor) -> Tensor:
    """A float32 copy on the CPU."""
    return weights.detach().to("cpu", torch.float32, copy=True).contiguous()
