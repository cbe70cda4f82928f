"""Tokens of start frames in C++ on the CPU: the encode stage of `backend="native"`.

Both encoders of the tokenizer, channels last, in float32. Winograd's transforms round differently
than a direct sum: a code that lies on a quantiser's border may fall to its other side.
"""

from typing import Any

import torch
from torch import Tensor

from vlarft.engine.native_layers import (
    Canvas,
    CrossAttention,
    Downsample,
    Easel,
    Layer,
    Norm,
    Resnet,
    SelfAttention,
    pack,
)
from vlarft.engine.team import Team
from vlarft.models.autoencoder import Encoder, KeyValue
from vlarft.models.tokenizer import EncoderFeatures, Tokenizer

_DTYPE = torch.float32


class _Network:
    """One encoder; weights are copied."""

    def __init__(self, encoder: Encoder, resolution: int, team: Team) -> None:
        blocks: Any = encoder.down_blocks
        middle: Any = encoder.mid_block
        self._first, self._width = pack(encoder.conv_in, _DTYPE), encoder.conv_in.out_channels
        self._levels: list[list[Layer]] = []
        elements, edge = resolution**2 * self._width, resolution
        for block in blocks:
            level: list[Layer] = [Resnet(resnet, _DTYPE) for resnet in block.resnets]
            elements = max(elements, edge**2 * block.resnets[0].conv1.out_channels)
            if block.down:
                level.append(Downsample(block.downsamplers[0].conv, _DTYPE))
                edge //= 2
            self._levels.append(level)
        attention: Any = getattr(encoder, "cross_att_blocks", [])
        self._cross = {
            level: CrossAttention(block, _DTYPE)
            for level, block in zip(encoder.attended, attention, strict=True)
        }
        self._middle: list[Layer] = [Resnet(middle.resnets[0], _DTYPE)]
        self._middle += [SelfAttention(block, _DTYPE) for block in middle.attentions]
        self._middle.append(Resnet(middle.resnets[1], _DTYPE))
        self._norm, self._last = Norm(encoder.conv_norm_out), pack(encoder.conv_out, _DTYPE)
        self._channels = encoder.conv_out.out_channels
        self.easel = Easel(elements, _DTYPE, team)
        layers = [layer for level in self._levels for layer in level] + self._middle
        self.nbytes = sum(layer.nbytes for layer in layers)
        self.nbytes += self._first.weight_bytes + self._last.weight_bytes

    def run(
        self, images: Tensor, scene: list[int], kv: tuple[KeyValue, ...], kept: set[int]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Images [B,3,H,W] -> latent [B,C,h,w] and the levels in `kept`, as views of [B,h,w,C].

        Args:
            images: in [0, 1].
            scene: the row of `kv` that belongs to each image.
            kv: of the attended levels.
            kept: levels whose output is wanted.
        """
        canvas = self.easel.canvas(len(images))
        pixels = images.permute(0, 2, 3, 1).contiguous()
        size = images.shape[2]
        self._first.run(canvas.workers, pixels, canvas.begin(len(images), size, self._width))
        levels = {}
        for number, level in enumerate(self._levels):
            for layer in level:
                layer(canvas)
            if number in self._cross:
                self._cross[number](canvas, kv[list(self._cross).index(number)], scene)
            if number in kept:
                levels[number] = canvas.x.clone().permute(0, 3, 1, 2)
        for layer in self._middle:
            layer(canvas)
        return self._latent(canvas), levels

    def _latent(self, canvas: Canvas) -> Tensor:
        scale, shift = self._norm(canvas.workers, canvas.x)
        latent = torch.empty(*canvas.x.shape[:3], self._channels)
        self._last.run(canvas.workers, canvas.x, latent, scale=scale, shift=shift, before="silu")
        return latent.permute(0, 3, 1, 2)


class NativeEncoder:
    """A tokenizer's encoders packed for the CPU; weights are copied, quantisers shared.

    Args:
        tokenizer: float32 weights.
        team: threads.

    Raises:
        BackendError: the environment variable VLARFT_CPU names kernels that are unknown or cannot
            run here.
    """

    def __init__(self, tokenizer: Tokenizer, team: Team) -> None:
        self._tokenizer = tokenizer
        size = tokenizer.config.resolution
        self._plain = _Network(tokenizer.encoder, size, team)
        self._conditional = _Network(tokenizer.cond_encoder, size, team)
        self.nbytes = self._plain.nbytes + self._conditional.nbytes

    def encode_context(self, image: Tensor) -> tuple[Tensor, EncoderFeatures]:
        """See `Tokenizer.encode_context`."""
        attended = self._tokenizer.cond_encoder.attended
        codes, features = [], []
        for part in image.split(self._plain.easel.chunk):
            latent, levels = self._plain.run(part, [], (), set(attended))
            every = [levels.get(i, latent) for i in range(max(attended) + 1)]
            own, feature = self._tokenizer.quantize_context(latent, every)
            codes.append(own)
            features.append(feature.attended)
        self._plain.easel.release()
        merged = tuple(
            KeyValue(torch.cat([kv.key for kv in one]), torch.cat([kv.value for kv in one]))
            for one in zip(*features, strict=True)
        )
        indices: Tensor = self._tokenizer.context_fsq.indices(torch.cat(codes))
        return indices.flatten(1), EncoderFeatures(merged)

    def encode_frames(self, features: EncoderFeatures, frames: Tensor) -> Tensor:
        """See `Tokenizer.encode_frames`."""
        scenes, times = frames.shape[:2]
        scene = torch.arange(scenes).repeat_interleave(times)
        chunk = self._conditional.easel.chunk
        codes = []
        for part, rows in zip(frames.flatten(0, 1).split(chunk), scene.split(chunk), strict=True):
            latent, _ = self._conditional.run(part, rows.tolist(), features.attended, set())
            codes.append(self._tokenizer.quantize_frames(latent))
        self._conditional.easel.release()
        indices: Tensor = self._tokenizer.frame_fsq.indices(torch.cat(codes))
        return indices.reshape(scenes, times, -1)
