"""Frames from tokens in C++ on the CPU: the decode stage of `backend="native"`.

The network is the tokenizer's conditional decoder, channels last. Exact algebra at load: nearest
upsampling and the 3x3 convolution after it are four 2x2 convolutions; the map from codes to the
latent and the first convolution are one matrix over 3x3 patches. GroupNorm, SiLU, bias and residual
are applied inside the convolutions (csrc/decode). Attention, at the latent's size only, is torch's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlarft import _native
from vlarft.engine.team import Team
from vlarft.models.autoencoder import (
    CrossAttentionBlock,
    KeyValue,
    ResnetBlock,
    SelfAttention,
)
from vlarft.models.tokenizer import DecoderFeatures, Tokenizer

_CHUNK_BYTES = 8 << 20  # largest activation of the frames rendered together: three fit in a cache


class Norm:
    """GroupNorm as a factor and a summand a channel.

    Args:
        norm: its weights are copied.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = _copy(norm.weight), _copy(norm.bias)

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
        _copy(conv.weight), _copy(bias), upsample=upsample, dtype=str(dtype).removeprefix("torch.")
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


class _Layer(Protocol):
    nbytes: int  # of its packed weights

    def __call__(self, canvas: Canvas) -> None:
        """Replace the current activation."""
        ...


class _Resnet:
    def __init__(self, block: ResnetBlock, dtype: torch.dtype) -> None:
        self.norm1, self.norm2 = Norm(block.norm1), Norm(block.norm2)
        self.conv1, self.conv2 = pack(block.conv1, dtype), pack(block.conv2, dtype)
        self.width = block.conv1.out_channels
        shortcut = block.conv_shortcut
        self.shortcut = None if shortcut is None else pack(shortcut, dtype)
        packed = [c for c in (self.conv1, self.conv2, self.shortcut) if c is not None]
        self.nbytes = sum(conv.weight_bytes for conv in packed)

    def __call__(self, canvas: Canvas) -> None:
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


class _Upsample:
    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        self.conv, self.width = pack(conv, dtype, upsample=True), conv.out_channels
        self.nbytes = self.conv.weight_bytes

    def __call__(self, canvas: Canvas) -> None:
        buffer, out = canvas.other(2 * canvas.x.shape[1], self.width)
        self.conv.run(canvas.workers, canvas.x, out)
        canvas.move(buffer, out)


class _SelfAttention:
    def __init__(self, block: SelfAttention, dtype: torch.dtype) -> None:
        self.norm = Norm(block.group_norm)
        layers = (block.to_q, block.to_k, block.to_v)
        self.weight = torch.cat([layer.weight for layer in layers]).detach().to(dtype)
        self.bias = torch.cat([layer.bias for layer in layers]).detach().to(dtype)
        out: Any = block.to_out[0]
        self.out_weight = out.weight.detach().to(dtype, copy=True)
        self.out_bias = out.bias.detach().to(dtype, copy=True)
        self.nbytes: int = self.weight.nbytes + self.out_weight.nbytes

    def __call__(self, canvas: Canvas) -> None:
        x = canvas.x.flatten(1, 2)
        qkv = F.linear(_normed(self.norm, canvas), self.weight, self.bias).unsqueeze(1)
        q, k, v = qkv.chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        x.add_(F.linear(attended, self.out_weight, self.out_bias))


class _CrossAttention:
    def __init__(self, block: CrossAttentionBlock, dtype: torch.dtype) -> None:
        self.norm = Norm(block.q_norm)
        width = block.att.out_proj.in_features
        weight, bias = block.att.in_proj_weight[:width], block.att.in_proj_bias[:width]
        self.weight = weight.detach().to(dtype, copy=True)
        # Position enters the query through the same matrix: one summand a pixel.
        self.bias = F.linear(block.q_pos_emb, weight, bias).detach().to(dtype)
        self.out_weight = block.att.out_proj.weight.detach().to(dtype, copy=True)
        self.out_bias = block.att.out_proj.bias.detach().to(dtype, copy=True)

    def __call__(self, canvas: Canvas, features: KeyValue, scene: list[int]) -> None:
        x = canvas.x.flatten(1, 2)
        q = F.linear(_normed(self.norm, canvas), self.weight).add_(self.bias)
        for first, last in _runs(scene):  # frames of a scene share its keys: one long query
            kv = features.select(slice(scene[first], scene[first] + 1))
            heads = q[first:last].reshape(1, -1, kv.key.shape[1], kv.key.shape[3]).transpose(1, 2)
            out = F.scaled_dot_product_attention(heads, kv.key, kv.value)
            merged = out.transpose(1, 2).reshape(last - first, *x.shape[1:])
            x[first:last] += F.linear(merged, self.out_weight, self.out_bias)
        F.silu(x, inplace=True)


@dataclass(frozen=True)
class _FirstLayer:
    """Codes -> output of the first convolution: one matrix over 3x3 patches of codes.

    Each patch of codes carries a one, which the bias of the linear map multiplies; patches outside
    the image have zeros, as the convolution's padding has.
    """

    matrix: Tensor  # [9 (D+1), p p C]
    bias: Tensor  # [p p C]
    patch: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "_FirstLayer":
        p, linear = tokenizer.config.patch_size, tokenizer.post_quant_linear
        conv = tokenizer.cond_decoder.conv_in
        # What one code makes of the patches around it: the convolution of its patch alone.
        columns = torch.cat((linear.weight.T, linear.bias[None])).double()
        alone = columns.unflatten(1, (p, p, -1)).permute(0, 3, 1, 2)
        seen = F.conv2d(F.pad(alone, (p, p, p, p)), conv.weight.double(), padding=1)
        seen = seen.unflatten(2, (3, p)).unflatten(4, (3, p))  # D+1, C, 3, p, 3, p
        # The patch above a code's finds that code below itself: flip.
        matrix = seen.flip(2, 4).permute(2, 4, 0, 3, 5, 1).flatten(0, 2).flatten(1)
        assert conv.bias is not None
        bias = conv.bias.expand(p * p, -1).flatten()
        return cls(matrix.float().contiguous(), _copy(bias), p)

    def __call__(self, codes: Tensor, out: Tensor) -> None:
        """Codes [B,K,D] -> `out` [B,h,w,C], filled."""
        p, edge = self.patch, out.shape[1] // self.patch
        grid = F.pad(codes, (0, 1), value=1.0).unflatten(1, (edge, edge))
        grid = F.pad(grid, (0, 0, 1, 1, 1, 1))
        around = grid.unfold(1, 3, 1).unfold(2, 3, 1).permute(0, 1, 2, 4, 5, 3)  # B e e 3 3 D+1
        patches = torch.addmm(self.bias, around.flatten(3).flatten(0, 2), self.matrix)
        blocks = out.unflatten(1, (edge, p)).unflatten(3, (edge, p))  # B e p e p C
        blocks.copy_(patches.view(-1, edge, edge, p, p, out.shape[3]).transpose(2, 3))


class NativeDecoder:
    """A tokenizer's decoder packed for the CPU; weights are copied.

    Args:
        tokenizer: float32 weights.
        dtype: float32, or bfloat16 activations and weights with float32 sums and statistics.
        features: computes what depends on the scene only, in `dtype`.
        team: threads.

    Raises:
        BackendError: the environment variable VLARFT_CPU names kernels that are unknown or cannot
            run here.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        dtype: torch.dtype,
        features: Callable[[Tensor], DecoderFeatures],
        team: Team,
    ) -> None:
        self.dtype, self.decoder_features = dtype, features
        decoder: Any = tokenizer.cond_decoder  # entries of its ModuleLists are untyped
        self._codes = tokenizer.frame_fsq.codes
        self._latent, self._size = tokenizer.config.latent_size, tokenizer.config.resolution
        self._first, self._first_width = _FirstLayer.of(tokenizer), decoder.conv_in.out_channels
        mid = decoder.mid_block
        self._middle: list[_Layer] = [_Resnet(mid.resnets[0], dtype)]
        self._middle += [_SelfAttention(block, dtype) for block in mid.attentions]
        self._middle.append(_Resnet(mid.resnets[1], dtype))
        self._cross = _CrossAttention(decoder.cross_att_blocks[0], dtype)
        self._upward: list[_Layer] = []
        edge, width, self._elements = self._latent, self._first_width, 0
        for block in decoder.up_blocks:
            self._elements = max(self._elements, edge * edge * width)
            self._upward += [_Resnet(resnet, dtype) for resnet in block.resnets]
            width = block.resnets[0].conv1.out_channels
            if block.up:
                conv = block.upsamplers[0].conv
                self._upward.append(_Upsample(conv, dtype))
                edge *= 2
            self._elements = max(self._elements, edge * edge * width)
        self._norm, self._last = Norm(decoder.conv_norm_out), pack(decoder.conv_out, dtype)
        self._weight_bytes = self._last.weight_bytes + self._first.matrix.nbytes
        self._weight_bytes += sum(layer.nbytes for layer in (*self._middle, *self._upward))
        self._canvas: Canvas | None = None
        self._team = team

    @property
    def kernels(self) -> str:
        """Kernels that run: avx512_bf16, avx512, avx2 or portable."""
        return self._last.kernels

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights and of the buffers that are kept between calls."""
        held = 0 if self._canvas is None else self._canvas.nbytes
        return self._weight_bytes + held

    @property
    def work_bytes(self) -> int:
        """Bytes of the buffers of a full chunk."""
        return 3 * self.chunk * self._elements * self.dtype.itemsize

    def release(self) -> None:
        """Drop the buffers; they are made again when needed."""
        self._canvas = None

    def decode(self, features: DecoderFeatures, scene: Tensor, tokens: Tensor) -> Tensor:
        """Render frames; see `vlarft.reference.decode.decode`."""
        chunk = min(self.chunk, len(tokens))
        out = torch.empty(len(tokens), 3, self._size, self._size)
        scenes = scene.tolist()
        for first in range(0, len(tokens), chunk):
            some = slice(first, first + chunk)
            out[some] = self._pixels(features.attended, scenes[some], tokens[some])
        return out.clamp_(0, 1)

    @property
    def chunk(self) -> int:
        """Frames rendered together."""
        return max(1, _CHUNK_BYTES // (self._elements * self.dtype.itemsize))

    def _pixels(self, attended: KeyValue, scene: list[int], tokens: Tensor) -> Tensor:
        canvas = self._ready(len(tokens))
        start = canvas.begin(len(tokens), self._latent, self._first_width)
        self._first(self._codes(tokens), start)
        for layer in self._middle:
            layer(canvas)
        self._cross(canvas, attended, scene)
        for layer in self._upward:
            layer(canvas)
        scale, shift = self._norm(canvas.workers, canvas.x)
        pixels = torch.empty(len(tokens), self._size, self._size, 3)
        self._last.run(canvas.workers, canvas.x, pixels, scale=scale, shift=shift, before="silu")
        return pixels.permute(0, 3, 1, 2)

    def _ready(self, frames: int) -> Canvas:
        canvas, elements = self._canvas, frames * self._elements
        if canvas is None or canvas.elements < elements:
            self._canvas = None  # freed before the next one is allocated
            self._canvas = canvas = Canvas(elements, self.dtype)
        canvas.workers = self._team.workers
        return canvas


def _normed(norm: Norm, canvas: Canvas) -> Tensor:
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


def _copy(weights: Tensor) -> Tensor:
    return weights.detach().to("cpu", torch.float32, copy=True).contiguous()
