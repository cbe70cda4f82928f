"""Frames from tokens on a GPU: Triton kernels around torch's convolutions, channels last.

The same exact algebra as the native decoder's, at load: codes and first convolution are one matrix,
an upsampling and the convolution after it four 2x2 convolutions. These are one convolution with
four times the outputs: the small image is read once, the products are one large problem. Its
parities are put in place by the pass that adds the bias and takes the next GroupNorm's statistics.
cuDNN's transposed convolution would need no such pass, but it may sum with atomics.

Convolutions have no bias of their own: GroupNorm takes it into its statistics, or the residual
addition adds it. Shapes are static, and nothing waits for the GPU. Importing this module imports
Triton.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlarft.engine.attention_weights import CrossAttentionWeights, SelfAttentionWeights
from vlarft.engine.first_layer import FirstLayer
from vlarft.kernels.decode.codes import codes
from vlarft.kernels.decode.group_norm import group_norm
from vlarft.kernels.decode.interleave import folded, interleave
from vlarft.kernels.decode.moments import Moments, moments
from vlarft.models import autoencoder as models
from vlarft.models.tokenizer import DecoderFeatures, Tokenizer

Activation = tuple[Tensor, Moments]  # [B,H,W,C] and the moments of its channels


class _Convolution:
    """Weights of a convolution of stride 1, without its bias."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        layout = torch.channels_last
        self.weight = weight.detach().to(dtype, copy=True).contiguous(memory_format=layout)
        self.padding = weight.shape[2] // 2
        self.nbytes: int = self.weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """[B,H,W,C] -> [B,H',W',D]; a 2x2 kernel gives one row and column more."""
        y = F.conv2d(x.permute(0, 3, 1, 2), self.weight, padding=self.padding)
        return y.permute(0, 2, 3, 1).contiguous()


class _Norm:
    """GroupNorm, with SiLU or without."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = _float(norm.weight), _float(norm.bias)

    def __call__(
        self,
        x: Tensor,
        known: Moments,
        *,
        silu: bool = True,
        added: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Norm of x + added, [B,H,W,C]; `out` may be x."""
        y: Tensor = group_norm(
            x.flatten(1, 2),
            known,
            self.weight,
            self.bias,
            groups=self.groups,
            eps=self.eps,
            silu=silu,
            added=added,
            out=None if out is None else out.flatten(1, 2),
        )
        return y.view(x.shape)


class _Layer(Protocol):
    nbytes: int  # of its weights

    def __call__(self, x: Tensor, known: Moments, /) -> Activation: ...


class _Resnet:
    """Residual block."""

    def __init__(self, block: models.ResnetBlock, dtype: torch.dtype) -> None:
        self.norm1, self.norm2 = _Norm(block.norm1), _Norm(block.norm2)
        self.conv1 = _Convolution(block.conv1.weight, dtype)
        self.conv2 = _Convolution(block.conv2.weight, dtype)
        self.bias1, self.bias2 = _bias(block.conv1), _bias(block.conv2)
        self.nbytes = self.conv1.nbytes + self.conv2.nbytes
        self.shortcut = None
        if block.conv_shortcut is not None:
            self.shortcut = _Convolution(block.conv_shortcut.weight, dtype)
            self.bias2 += _bias(block.conv_shortcut)
            self.nbytes += self.shortcut.nbytes

    def __call__(self, x: Tensor, known: Moments) -> Activation:
        h = self.conv1(self.norm1(x, known))
        h = self.conv2(self.norm2(h, _moments(h), added=self.bias1, out=h))
        skip = x if self.shortcut is None else self.shortcut(x)
        return h, _moments(h, skip, self.bias2)


class _Upsample:
    """Nearest x2 and a convolution."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        self.conv = _Convolution(folded(conv.weight.detach().double()), dtype)
        self.conv.padding = 1
        self.bias, self.nbytes = _bias(conv), self.conv.nbytes

    def __call__(self, x: Tensor, _: Moments) -> Activation:
        out: Activation = interleave(self.conv(x), self.bias)
        return out


class _SelfAttention(SelfAttentionWeights):
    """One head over all pixels, residual."""

    def __init__(self, block: models.SelfAttention, dtype: torch.dtype) -> None:
        super().__init__(block, dtype)
        self.norm = _Norm(block.group_norm)
        out: Any = block.to_out[0]
        self.out_bias = _float(out.bias)

    def __call__(self, x: Tensor, known: Moments) -> Activation:
        tokens = self.norm(x, known, silu=False).flatten(1, 2)
        q, k, v = F.linear(tokens, self.weight, self.bias).unsqueeze(1).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        y = F.linear(attended, self.out_weight).view(x.shape)
        return y, _moments(y, x, self.out_bias)


class _CrossAttention(CrossAttentionWeights):
    """Pixels attend to those of their scene's context frame."""

    def __init__(self, block: models.CrossAttentionBlock, dtype: torch.dtype) -> None:
        super().__init__(block, dtype)
        self.norm = _Norm(block.q_norm)

    def __call__(self, x: Tensor, known: Moments, kv: models.KeyValue) -> Activation:
        tokens = self.norm(x, known, silu=False).flatten(1, 2)
        q = F.linear(tokens, self.weight).add_(self.bias)
        q = q.unflatten(2, (kv.key.shape[1], -1)).transpose(1, 2)
        attended = F.scaled_dot_product_attention(q, kv.key, kv.value).transpose(1, 2).flatten(2)
        y = F.linear(attended, self.out_weight, self.out_bias).view(x.shape)
        y = F.silu(y.add_(x), inplace=True)
        return y, _moments(y)


class GpuDecoder:
    """A tokenizer's decoder on the device that holds it; weights are copied.

    Args:
        tokenizer: float32 weights.
        dtype: float32, or bfloat16 activations and weights with float32 sums and statistics.
        features: computes what depends on the scene only, in `dtype`.
        batch: frames that are rendered together. A smaller rest is filled up, so that convolutions
            meet one shape only, and with it one order of summation.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        dtype: torch.dtype,
        features: Callable[[Tensor], DecoderFeatures],
        batch: int = 16,
    ) -> None:
        self.dtype, self.batch, self.decoder_features = dtype, batch, features
        decoder: Any = tokenizer.cond_decoder  # entries of its ModuleLists are untyped
        self._levels = tokenizer.frame_fsq.levels
        self._latent, self._size = tokenizer.config.latent_size, tokenizer.config.resolution
        self._first, self._first_width = FirstLayer.of(tokenizer), decoder.conv_in.out_channels
        mid = decoder.mid_block
        self._middle: list[_Layer] = [_Resnet(mid.resnets[0], dtype)]
        self._middle += [_SelfAttention(block, dtype) for block in mid.attentions]
        self._middle.append(_Resnet(mid.resnets[1], dtype))
        self._cross = _CrossAttention(decoder.cross_att_blocks[0], dtype)
        self._upward: list[_Layer] = []
        for block in decoder.up_blocks:
            self._upward += [_Resnet(resnet, dtype) for resnet in block.resnets]
            if block.up:
                self._upward.append(_Upsample(block.upsamplers[0].conv, dtype))
        self._norm = _Norm(decoder.conv_norm_out)
        self._last = _Convolution(decoder.conv_out.weight, dtype)
        self._last_bias = _bias(decoder.conv_out)

    @property
    def kernels(self) -> str:
        """Kernels that run."""
        return "triton"

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        own = self._first.matrix.nbytes + self._cross.nbytes + self._last.nbytes
        return own + sum(layer.nbytes for layer in (*self._middle, *self._upward))

    @property
    def work_bytes(self) -> int:
        """0: torch's allocator holds the activations, as many as there are frames."""
        return 0

    def release(self) -> None:
        """Nothing is kept between calls."""

    def decode(self, features: DecoderFeatures, scene: Tensor, tokens: Tensor) -> Tensor:
        """Render frames; see `vlarft.reference.decode.decode`. NaN stays for the caller to find."""
        out = torch.empty(len(tokens), 3, self._size, self._size, device=tokens.device)
        for first in range(0, len(tokens), self.batch):
            some = slice(first, first + self.batch)
            missing = self.batch - len(tokens[some])
            rows = F.pad(scene[some], (0, missing))
            pixels = self._pixels(
                features.attended.select(rows), F.pad(tokens[some], (0, 0, 0, missing))
            )
            out[some] = pixels[: self.batch - missing].permute(0, 3, 1, 2)
        return out.clamp_(0, 1)

    def _pixels(self, kv: models.KeyValue, tokens: Tensor) -> Tensor:
        size = (len(tokens), self._latent, self._latent, self._first_width)
        x = torch.empty(size, dtype=self.dtype, device=tokens.device)
        self._first(codes(tokens, self._levels), x)
        known = _moments(x)
        for layer in self._middle:
            x, known = layer(x, known)
        x, known = self._cross(x, known, kv)
        for layer in self._upward:
            x, known = layer(x, known)
        return self._last(self._norm(x, known, out=x)).float().add_(self._last_bias)


def _moments(x: Tensor, residual: Tensor | None = None, bias: Tensor | None = None) -> Moments:
    """Moments of x [B,H,W,C], to which residual and bias are added first, in place."""
    known: Moments = moments(
        x.flatten(1, 2), None if residual is None else residual.flatten(1, 2), bias
    )
    return known


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return _float(conv.bias)


def _float(weights: Tensor) -> Tensor:
    return weights.detach().to(torch.float32, copy=True)
