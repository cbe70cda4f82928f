"""Convolutional encoder and decoder of the tokenizer, plain and conditional.

Building blocks follow diffusers' semantics and names, so that official state dicts load as they
are. The conditional pair attends to features of the context frame ("cross_att_blocks").
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CROSS_ATTENTION_HEADS = 4
CROSS_ATTENTION_GROUPS = 32  # fixed in the official code, whatever norm_num_groups is
_EPS = 1e-6
_PEAK = 12.0  # initial score of a pixel with its own place in the context frame


@dataclass(frozen=True)
class KeyValue:
    """Keys and values of one cross-attention, [B, heads, tokens, C / heads]: once per scene."""

    key: Tensor
    value: Tensor

    def select(self, indices: Tensor | slice) -> "KeyValue":
        """Rows of the batch."""
        return KeyValue(self.key[indices], self.value[indices])


class ResnetBlock(nn.Module):
    """GN, SiLU, conv3x3, GN, SiLU, conv3x3, plus a skip (1x1 convolution when widths differ)."""

    def __init__(self, width_in: int, width_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width_in, eps=_EPS)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width_out, eps=_EPS)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else None

    def forward(self, x: Tensor) -> Tensor:
        """[B,Cin,H,W] -> [B,Cout,H,W]."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        skip = x if self.conv_shortcut is None else self.conv_shortcut(x)
        out: Tensor = skip + h
        return out


class Downsample(nn.Module):
    """Zero padding right and below, then a convolution of stride 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,C,H/2,W/2]."""
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Nearest x2, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,C,2H,2W]."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class SelfAttention(nn.Module):
    """One head over all pixels, residual, as in diffusers' mid block."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, eps=_EPS)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,C,H,W]."""
        tokens = _to_tokens(self.group_norm(x))
        q, k, v = (f(tokens).unsqueeze(1) for f in (self.to_q, self.to_k, self.to_v))
        out = self.to_out[0](F.scaled_dot_product_attention(q, k, v).squeeze(1))
        return x + _to_pixels(out, x)


class PackedAttention(nn.Module):
    """torch's nn.MultiheadAttention under its parameter names, without its weights output."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def key_value(self, tokens: Tensor) -> KeyValue:
        """[B,S,C] -> keys and values [B,heads,S,C/heads]."""
        width = tokens.shape[-1]
        projected = F.linear(tokens, self.in_proj_weight[width:], self.in_proj_bias[width:])
        key, value = projected.chunk(2, dim=-1)
        return KeyValue(_split_heads(key), _split_heads(value))

    def forward(self, tokens: Tensor, kv: KeyValue) -> Tensor:
        """[B,S,C] attends to `kv` -> [B,S,C]."""
        width = tokens.shape[-1]
        q = _split_heads(F.linear(tokens, self.in_proj_weight[:width], self.in_proj_bias[:width]))
        p = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(
            q, kv.key.to(q.dtype), kv.value.to(q.dtype), dropout_p=p
        )
        return F.dropout(self.out_proj(out.transpose(1, 2).flatten(2)), p, self.training)


class CrossAttentionBlock(nn.Module):
    """z = SiLU(z + attention(GN(z) + q_pos, GN(context) + kv_pos)).

    Position tables are learned. The official code starts them at zero, and then short trainings
    never find that a pixel should look at its own place in the context frame (its share of the
    attention stayed at 1 / tokens); here both start as sine tables, and queries like keys.
    """

    def __init__(self, width: int, tokens: int, dropout: float) -> None:
        super().__init__()
        table = _position_table(math.isqrt(tokens), width)
        self.kv_pos_emb = nn.Parameter(table.clone())
        self.q_pos_emb = nn.Parameter(table)
        self.att = PackedAttention(width, dropout)
        with torch.no_grad():
            # q . k of the same place has mean _PEAK: (1/8) gain^2 |table|^2 / sqrt(width / heads)
            gain = math.sqrt(8 * _PEAK * math.sqrt(width / CROSS_ATTENTION_HEADS) / (2 * width))
            self.att.in_proj_weight[width : 2 * width] = self.att.in_proj_weight[:width]
            self.att.in_proj_weight[: 2 * width] *= gain
        self.kv_norm = nn.GroupNorm(CROSS_ATTENTION_GROUPS, width, eps=1e-5)
        self.q_norm = nn.GroupNorm(CROSS_ATTENTION_GROUPS, width, eps=1e-5)

    def key_value(self, context: Tensor) -> KeyValue:
        """Context feature [B,C,h,w] -> its keys and values."""
        return self.att.key_value(_to_tokens(self.kv_norm(context)) + self.kv_pos_emb)

    def forward(self, z: Tensor, kv: KeyValue) -> Tensor:
        """`z` [B*T,C,h,w] holds T frames for each of the B rows of `kv`."""
        tokens = _to_tokens(self.q_norm(z)) + self.q_pos_emb
        batch, length, width = kv.key.shape[0], tokens.shape[1], tokens.shape[2]
        grouped = tokens.reshape(
            batch, -1, width
        )  # frames of a scene share its keys: one long query
        attended = self.att(grouped, kv).reshape(-1, length, width)
        return F.silu(z + _to_pixels(attended, z))


class MidBlock(nn.Module):
    """Residual block, optional self-attention, residual block."""

    def __init__(self, width: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([SelfAttention(width, groups)] if attention else [])
        self.resnets = nn.ModuleList([ResnetBlock(width, width, groups) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,C,H,W]."""
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        out: Tensor = self.resnets[1](x)
        return out


class DownBlock(nn.Module):
    """Residual blocks, then a downsampler unless it is the last level."""

    def __init__(self, width_in: int, width_out: int, layers: int, groups: int, down: bool) -> None:
        super().__init__()
        widths = [width_in] + [width_out] * (layers - 1)
        self.resnets = nn.ModuleList([ResnetBlock(w, width_out, groups) for w in widths])
        if down:
            self.downsamplers = nn.ModuleList([Downsample(width_out)])
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        """[B,Cin,H,W] -> [B,Cout,H',W']."""
        for resnet in self.resnets:
            x = resnet(x)
        return self.downsamplers[0](x) if self.down else x


class UpBlock(nn.Module):
    """Residual blocks, then an upsampler unless it is the last level."""

    def __init__(self, width_in: int, width_out: int, layers: int, groups: int, up: bool) -> None:
        super().__init__()
        widths = [width_in] + [width_out] * (layers - 1)
        self.resnets = nn.ModuleList([ResnetBlock(w, width_out, groups) for w in widths])
        if up:
            self.upsamplers = nn.ModuleList([Upsample(width_out)])
        self.up = up

    def forward(self, x: Tensor) -> Tensor:
        """[B,Cin,H,W] -> [B,Cout,H',W']."""
        for resnet in self.resnets:
            x = resnet(x)
        return self.upsamplers[0](x) if self.up else x


class Encoder(nn.Module):
    """Pixels -> latent; conditional when `attended` names resolutions of cross-attention.

    Args:
        widths: channels of each level.
        layers: residual blocks a level.
        groups: groups of GroupNorm.
        latent_channels: channels of the latent.
        attended: per level, tokens of its cross-attention, 0 for none; None for the plain encoder.
        mid_attention: self-attention in the mid block.
        dropout: of the cross-attention, in training.
    """

    def __init__(
        self,
        widths: Sequence[int],
        layers: int,
        groups: int,
        latent_channels: int,
        mid_attention: bool,
        attended: Sequence[int] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        last = len(widths) - 1
        self.attended = [i for i, tokens in enumerate(attended or ()) if tokens]
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            [
                DownBlock(widths[max(i - 1, 0)], w, layers, groups, i < last)
                for i, w in enumerate(widths)
            ]
        )
        self.mid_block = MidBlock(widths[-1], groups, mid_attention)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[-1], latent_channels, 3, padding=1)
        if attended is not None:
            self.cross_att_blocks = nn.ModuleList(
                [CrossAttentionBlock(widths[i], attended[i], dropout) for i in self.attended]
            )

    def forward(self, x: Tensor, kv: Sequence[KeyValue] = ()) -> tuple[Tensor, list[Tensor]]:
        """Pixels [B,3,H,W] -> latent [B,C,h,w] and the output of every level."""
        x = self.conv_in(x)
        levels = []
        for i, block in enumerate(self.down_blocks):
            x = block(x)
            if i in self.attended:
                n = self.attended.index(i)
                x = self.cross_att_blocks[n](x, kv[n])
            levels.append(x)
        x = self.mid_block(x)
        latent: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return latent, levels


class Decoder(nn.Module):
    """Latent -> pixels; conditional when `attended`, tokens of its cross-attention, is given."""

    def __init__(
        self,
        widths: Sequence[int],
        layers: int,
        groups: int,
        latent_channels: int,
        mid_attention: bool,
        attended: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        up = list(reversed(widths))
        last = len(up) - 1
        self.conv_in = nn.Conv2d(latent_channels, up[0], 3, padding=1)
        self.mid_block = MidBlock(up[0], groups, mid_attention)
        self.up_blocks = nn.ModuleList(
            [UpBlock(up[max(i - 1, 0)], w, layers + 1, groups, i < last) for i, w in enumerate(up)]
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[0], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)
        if attended:
            self.cross_att_blocks = nn.ModuleList([CrossAttentionBlock(up[0], attended, dropout)])

    def middle(self, latent: Tensor) -> Tensor:
        """Latent -> output of the mid block: all that conditioning needs of the context frame."""
        out: Tensor = self.mid_block(self.conv_in(latent))
        return out

    def pixels(self, x: Tensor) -> Tensor:
        """Output of the mid block -> pixels [B,3,H,W], unbounded."""
        for block in self.up_blocks:
            x = block(x)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return out

    def forward(self, latent: Tensor, kv: KeyValue | None = None) -> Tensor:
        """Latent [B,C,h,w] -> pixels [B,3,H,W]."""
        x = self.middle(latent)
        if kv is not None:
            x = self.cross_att_blocks[0](x, kv)
        return self.pixels(x)


def _position_table(size: int, width: int) -> Tensor:
    """Two-dimensional sines and cosines of amplitude 2, [size * size, width], row-major."""
    count = width // 4
    frequency = math.pi * (1.0 / size) ** (
        torch.arange(count) / max(1, count - 1)
    )  # pi .. pi / size
    angle = torch.arange(size)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows = axis[:, None].expand(-1, size, -1)
    columns = axis[None].expand(size, -1, -1)
    return 2 * torch.cat([rows, columns], dim=2).reshape(size * size, 4 * count)


def _to_tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def _to_pixels(tokens: Tensor, like: Tensor) -> Tensor:
    return tokens.transpose(1, 2).reshape(like.shape)


def _split_heads(x: Tensor) -> Tensor:
    batch, length, width = x.shape
    heads = CROSS_ATTENTION_HEADS
    return x.reshape(batch, length, heads, width // heads).transpose(1, 2)
