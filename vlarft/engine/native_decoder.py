"""Frames from tokens in C++ on the CPU: the decode stage of `backend="native"`.

The network is the tokenizer's conditional decoder, channels last. Exact algebra at load: nearest
upsampling and the 3x3 convolution after it are four 2x2 convolutions; the map from codes to the
latent and the first convolution are one matrix over 3x3 patches.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vlarft.engine.first_layer import FirstLayer
from vlarft.engine.native_layers import (
    CrossAttention,
    Easel,
    Layer,
    Norm,
    Resnet,
    SelfAttention,
    Upsample,
    pack,
)
from vlarft.engine.team import Team
from vlarft.models.autoencoder import KeyValue
from vlarft.models.tokenizer import DecoderFeatures, Tokenizer


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
        self._first, self._first_width = FirstLayer.of(tokenizer), decoder.conv_in.out_channels
        mid = decoder.mid_block
        self._middle: list[Layer] = [Resnet(mid.resnets[0], dtype)]
        self._middle += [SelfAttention(block, dtype) for block in mid.attentions]
        self._middle.append(Resnet(mid.resnets[1], dtype))
        self._cross = CrossAttention(decoder.cross_att_blocks[0], dtype)
        self._upward: list[Layer] = []
        edge, width, elements = self._latent, self._first_width, 0
        for block in decoder.up_blocks:
            elements = max(elements, edge * edge * width)
            self._upward += [Resnet(resnet, dtype) for resnet in block.resnets]
            width = block.resnets[0].conv1.out_channels
            if block.up:
                conv = block.upsamplers[0].conv
                self._upward.append(Upsample(conv, dtype))
                edge *= 2
            elements = max(elements, edge * edge * width)
        self._norm, self._last = Norm(decoder.conv_norm_out), pack(decoder.conv_out, dtype)
        self._weight_bytes = self._last.weight_bytes + self._first.matrix.nbytes
        self._weight_bytes += sum(layer.nbytes for layer in (*self._middle, *self._upward))
        self._easel = Easel(elements, dtype, team)

    @property
    def kernels(self) -> str:
        """Kernels that run: avx512_bf16, avx512, avx2 or portable."""
        return self._last.kernels

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights and of the buffers that are kept between calls."""
        return self._weight_bytes + self._easel.nbytes

    @property
    def work_bytes(self) -> int:
        """Bytes of the buffers of a full chunk."""
        return self._easel.work_bytes

    def release(self) -> None:
        """Drop the buffers; they are made again when needed."""
        self._easel.release()

    def decode(self, features: DecoderFeatures, scene: Tensor, tokens: Tensor) -> Tensor:
        """Render frames; see `vlarft.reference.decode.decode`."""
        chunk = min(self._easel.chunk, len(tokens))
        out = torch.empty(len(tokens), 3, self._size, self._size)
        scenes = scene.tolist()
        for first in range(0, len(tokens), chunk):
            some = slice(first, first + chunk)
            out[some] = self._pixels(features.attended, scenes[some], tokens[some])
        return out.clamp_(0, 1)

    def _pixels(self, attended: KeyValue, scene: list[int], tokens: Tensor) -> Tensor:
        canvas = self._easel.canvas(len(tokens))
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
