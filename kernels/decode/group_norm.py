"""GroupNorm and SiLU, channels last: moments.py, merge.py, then this pass.

    z[b,p,c] = (x[b,p,c] - center[b,c]) * scale[b,c] + bias[c]
    y        = z / (1 + exp(-z))   or z, without SiLU

Source: GroupNorm, arXiv 1803.08494; SiLU, arXiv 1702.03118. A program owns a block of pixels and
channels of one image. Float32 inside, one rounding at the store.

Bytes: e B P C read and written (e of the dtype). Operations: about 8 B P C.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlarft.errors import ShapeError
from vlarft.kernels.checks import FLOAT32, FLOATS, check
from vlarft.kernels.decode.merge import merge
from vlarft.kernels.decode.moments import Moments, blocks


@triton.jit
def _group_norm_kernel(
    x_ptr,
    center_ptr,
    scale_ptr,
    bias_ptr,
    y_ptr,
    pixels,
    width,
    tiles,
    SILU: tl.constexpr,
    TILE: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    image = (tl.program_id(0) // tiles).to(tl.int64)
    pixel = (tl.program_id(0) % tiles) * TILE + tl.arange(0, TILE)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    real = channel < width
    inside = (pixel < pixels)[:, None] & real[None, :]
    at = (image * pixels + pixel[:, None]) * width + channel[None, :]
    center = tl.load(center_ptr + image * width + channel, mask=real, other=0.0)
    scale = tl.load(scale_ptr + image * width + channel, mask=real, other=0.0)
    bias = tl.load(bias_ptr + channel, mask=real, other=0.0)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    y = (x - center[None, :]) * scale[None, :] + bias[None, :]
    if SILU:
        y = y * tl.sigmoid(y)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


def group_norm(
    x: Tensor,
    moments: Moments,
    weight: Tensor,
    bias: Tensor,
    *,
    groups: int,
    eps: float,
    silu: bool = True,
    added: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """GroupNorm of x (and SiLU of it), like x.

    Args:
        x: float32 or bfloat16 [B,P,C].
        moments: of x.
        weight: float32 [C].
        bias: float32 [C].
        groups: G, divides C.
        eps: added to the variance.
        silu: whether SiLU follows.
        added: float32 [C]: normalises x + added, a convolution's bias that x does not have yet.
        out: where the result goes, like x; may be x itself.

    Raises:
        ShapeError, DtypeError: by argument name.
    """
    check("x", x, ("B", "P", "C"), FLOATS, x.device)
    images, pixels, width = x.shape
    check("bias", bias, (width,), FLOAT32, x.device)
    if out is not None:
        check("out", out, x.shape, (x.dtype,), x.device)
    known = (moments.values.shape[0], moments.pixels, moments.values.shape[3])
    if known != (images, pixels, width):
        raise ShapeError(f"moments are those of {list(known)}, x is {list(x.shape)}")
    center, scale = merge(moments, weight, groups=groups, eps=eps, added=added)
    y = torch.empty_like(x) if out is None else out
    tile, channels = blocks(pixels, width)
    tiles = triton.cdiv(pixels, tile)
    _group_norm_kernel[(images * tiles, triton.cdiv(width, channels))](
        x,
        center,
        scale,
        bias,
        y,
        pixels,
        width,
        tiles,
        SILU=silu,
        TILE=tile,
        CHANNELS=channels,
    )
    return y
