"""Checks at the engine's edge, in the caller's words."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlarft.errors import DataError, DtypeError, ShapeError


def check_shape(name: str, tensor: Tensor, shape: Sequence[int | str]) -> None:
    """Compare a shape with a pattern: integers must be equal, letters stand for any size >= 1.

    Raises:
        ShapeError: naming what was given and what is wanted.
    """
    fits = tensor.ndim == len(shape) and all(
        got >= 1 if isinstance(want, str) else got == want
        for got, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        wanted = ",".join(str(want) for want in shape)
        raise ShapeError(f"{name} must be [{wanted}], got {list(tensor.shape)}")


def check_floating(name: str, tensor: Tensor, unit: str) -> None:
    """Require a floating dtype.

    Raises:
        DtypeError: naming the dtype and the unit of the values.
    """
    if not tensor.is_floating_point():
        raise DtypeError(f"{name} must be floating, {unit}, got {tensor.dtype}")


def check_pixels(name: str, pixels: Tensor) -> None:
    """Require finite values in [0, 1].

    Raises:
        DataError: naming the first kind of bad value and how many there are.
    """
    if bool((bad := pixels.isnan()).any()):
        what = "NaN"
    elif bool((bad := pixels.isinf()).any()):
        what = "infinite"
    elif bool((bad := (pixels < 0) | (pixels > 1)).any()):
        what = f"outside [0, 1] (range {float(pixels.min()):.4g} .. {float(pixels.max()):.4g})"
    else:
        return
    raise DataError(
        f"{name}: {int(bad.sum())} of {pixels.numel()} pixels are {what}; "
        "give float pixels in [0, 1], as engine.decode returns them"
    )


def check_tokens(name: str, tokens: Tensor, codes: int) -> None:
    """Require integer codes in [0, codes).

    Raises:
        DtypeError: not integers.
        DataError: out of range.
    """
    if tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise DtypeError(f"{name} must be integers, got {tokens.dtype}")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= codes:
        raise DataError(f"{name} must lie in [0, {codes}), got {low} .. {high}")
