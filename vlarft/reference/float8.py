"""Keys and values kept as float8 e4m3: a sign, 4 bits of exponent, 3 of mantissa; largest 448.

Micikevicius et al., "FP8 formats for deep learning", arXiv 2209.05433. Scales are powers of two,
one for the keys and one for the values of each layer and key/value head, and follow from the
weights: an entry is w . (g * x / rms(x)) + b with a row w of the projection and the norm's weight
g, hence at most sqrt(h) |w * g| + |b| (Cauchy and Schwarz). So no input can overflow, nothing is
calibrated, and what an entry becomes depends on its token alone.
"""

import math

import torch
from torch import Tensor, nn

FORMAT = torch.float8_e4m3fn
_LARGEST = torch.finfo(FORMAT).max
_ROUNDING = 1 + 1 / 32  # of bfloat16 weights and activations


def rounded(x: Tensor, scale: Tensor) -> Tensor:
    """What is read back of entries that were stored as float8, in their own dtype; inf as NaN.

    Args:
        x: keys or values, [..., Hkv, D].
        scale: powers of two, [Hkv, 1].
    """
    finite = x.masked_fill(x.isinf(), math.nan)  # torch's versions differ in what inf becomes
    return (finite / scale).to(FORMAT).to(x.dtype) * scale


def key_scale(projection: nn.Linear, norm: Tensor, head_dim: int, turn: float) -> Tensor:
    """Scales of the keys, float32 [Hkv, 1].

    Args:
        projection: k_proj.
        norm: weight of the RMSNorm before it, [h].
        head_dim: D; entries d and d + D/2 rotate together.
        turn: factor that the rotation's tables carry (YaRN), otherwise 1.
    """
    low, high = _bounds(projection, norm, head_dim).chunk(2, dim=-1)
    return _scale(turn * (low.square() + high.square()).sqrt())


def value_scale(projection: nn.Linear, norm: Tensor, head_dim: int) -> Tensor:
    """Scales of the values, float32 [Hkv, 1]; arguments as of `key_scale`."""
    return _scale(_bounds(projection, norm, head_dim))


def _bounds(projection: nn.Linear, norm: Tensor, head_dim: int) -> Tensor:
    """Largest entries, float64 [Hkv, D]."""
    rows: Tensor = projection.weight.detach().double() * norm.detach().double()
    bounds = math.sqrt(rows.shape[1]) * rows.square().sum(dim=1).sqrt()
    if projection.bias is not None:
        bounds = bounds + projection.bias.detach().double().abs()
    return bounds.view(-1, head_dim)


def _scale(bounds: Tensor) -> Tensor:
    """The smallest powers of two that bring a head's entries down to 448; 1 where it is NaN."""
    most = bounds.amax(dim=-1, keepdim=True)
    mantissa, exponent = torch.frexp(most * _ROUNDING / _LARGEST)
    exponent = exponent - (mantissa == 0.5).int()
    scale = torch.ldexp(torch.ones_like(most), exponent)
    return torch.where((most > 0) & most.isfinite(), scale, torch.ones_like(scale)).float()
