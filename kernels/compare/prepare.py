"""Frames before the perceptual metric: clamp, L1 and LPIPS' scaling in one pass.

    y          = min(max(x, 0), 1),  NaN stays NaN
    input[r,p,c] = y[image_r,p,c] * factor[c] + summand[c]                (when asked for)
    l1[r]      = mean over p and c of |y[image_r,p,c] - z[target_r,p,c]|,  z the clamped reference

A program owns a tile of pixels of one row r, all channels. Float32 inside; sums of tiles are merged
in order (average.py), and equal pixels give exactly 0.

Bytes of a row: e P C read, e' P C written for the input, e P C of the reference read for L1 (e, e'
of the dtypes). Operations: about 8 P C.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlarft.errors import DtypeError, ShapeError
from vlarft.kernels.checks import FLOAT32, FLOATS, INDICES, check
from vlarft.kernels.compare.average import average

_ELEMENTS = 2048  # of a program's block: 16 numbers a thread at 4 warps


@triton.jit
def _prepare_kernel(
    images_ptr,
    reference_ptr,
    image_ptr,
    target_ptr,
    factor_ptr,
    summand_ptr,
    input_ptr,
    sums_ptr,
    image_stride,
    image_channel,
    image_pixel,
    reference_stride,
    reference_channel,
    reference_pixel,
    pixels,
    width,
    tiles,
    INDEXED: tl.constexpr,
    SCALED: tl.constexpr,
    COMPARED: tl.constexpr,
    TILE: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    row = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    pixel = (tile * TILE + tl.arange(0, TILE)).to(tl.int64)[:, None]
    channel = tl.arange(0, CHANNELS)[None, :]
    inside = (pixel < pixels) & (channel < width)
    image = row
    if INDEXED:
        image = tl.load(image_ptr + row)
    at = image * image_stride + pixel * image_pixel + channel * image_channel
    x = tl.load(images_ptr + at, mask=inside, other=0.0).to(tl.float32)
    x = tl.clamp(x, 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
    if SCALED:
        factor = tl.load(factor_ptr + channel, mask=channel < width, other=0.0)
        summand = tl.load(summand_ptr + channel, mask=channel < width, other=0.0)
        y = (x * factor + summand).to(input_ptr.dtype.element_ty)
        tl.store(input_ptr + (row * pixels + pixel) * width + channel, y, mask=inside)
    if COMPARED:
        target = tl.load(target_ptr + row)
        at = target * reference_stride + pixel * reference_pixel + channel * reference_channel
        z = tl.load(reference_ptr + at, mask=inside, other=0.0).to(tl.float32)
        z = tl.clamp(z, 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
        away = tl.where(inside, tl.abs(x - z), 0.0)
        tl.store(sums_ptr + row * tiles + tile, tl.sum(tl.sum(away, axis=1), axis=0))


def prepare(
    images: Tensor,
    factor: Tensor | None = None,
    summand: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    reference: Tensor | None = None,
    target: Tensor | None = None,
    image: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Input of the backbone [R,C,H,W], channels last, and L1 float32 [R]; None if not asked for.

    The input is asked for by `factor` and `summand`, L1 by `reference` and `target`. Indices are
    not checked against the number of images: that would wait for the GPU.

    Args:
        images: float32 or bfloat16 [I,C,H,W], each of its planes without gaps, clamped to [0,1].
        factor: float32 [C].
        summand: float32 [C].
        dtype: of the input, float32 or bfloat16.
        reference: float32 or bfloat16 [J,C,H,W] as `images`.
        target: row of the reference, int64 [R].
        image: row of the images, int64 [R]; None: R = I, every image in turn.

    Raises:
        ShapeError, DtypeError: by argument name.
    """
    scaled, compared = factor is not None, reference is not None
    _check(images, factor, summand, reference, target, image)
    if dtype not in FLOATS:
        raise DtypeError(f"dtype must be float32 or bfloat16, got {dtype}")
    rows = images.shape[0] if image is None else image.shape[0]
    width, height, columns = images.shape[1:]
    pixels = height * columns
    channels = triton.next_power_of_2(width)
    tile = min(max(1, _ELEMENTS // channels), triton.next_power_of_2(pixels))
    tiles = triton.cdiv(pixels, tile)
    inputs = images.new_empty((rows, height, columns, width) if scaled else 0, dtype=dtype)
    sums = images.new_empty((rows, tiles) if compared else 0, dtype=torch.float32)
    other = images if reference is None else reference
    _prepare_kernel[(rows * tiles,)](
        images,
        other,
        images if image is None else image,
        images if target is None else target,
        images if factor is None else factor,
        images if summand is None else summand,
        inputs,
        sums,
        *_strides(images),
        *_strides(other),
        pixels,
        width,
        tiles,
        INDEXED=image is not None,
        SCALED=scaled,
        COMPARED=compared,
        TILE=tile,
        CHANNELS=channels,
    )
    l1 = None
    if compared:
        l1 = sums.new_empty(rows)
        average(sums, pixels * width, l1)
    return (inputs.permute(0, 3, 1, 2) if scaled else None), l1


def _check(
    images: Tensor,
    factor: Tensor | None,
    summand: Tensor | None,
    reference: Tensor | None,
    target: Tensor | None,
    image: Tensor | None,
) -> None:
    device = images.device
    _check_planes("images", images, ("I", "C", "H", "W"), device)
    if (factor is None) != (summand is None) or (reference is None) != (target is None):
        raise ShapeError("prepare: give factor and summand together, reference and target together")
    if factor is None and reference is None:
        raise ShapeError("prepare: give factor and summand, or reference and target, or all four")
    for name, x in (("factor", factor), ("summand", summand)):
        if x is not None:
            check(name, x, (images.shape[1],), FLOAT32, device)
    if image is not None:
        check("image", image, ("R",), INDICES, device)
    if reference is not None and target is not None:
        _check_planes("reference", reference, ("J", *images.shape[1:]), device)
        rows = images.shape[0] if image is None else image.shape[0]
        check("target", target, (rows,), INDICES, device)


def _strides(x: Tensor) -> tuple[int, int, int]:
    """From image to image, channel to channel, pixel to pixel."""
    return x.stride(0), x.stride(1), x.stride(3 if x.shape[3] > 1 else 2)


def _check_planes(name: str, x: Tensor, shape: tuple[int | str, ...], device: torch.device) -> None:
    check(name, x, shape, FLOATS, device, contiguous=False)
    if x.shape[2] > 1 and x.shape[3] > 1 and x.stride(2) != x.shape[3] * x.stride(3):
        raise ShapeError(f"{name} must have rows without gaps, got strides {list(x.stride())}")
