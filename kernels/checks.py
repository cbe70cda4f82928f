"""Checks of what is given to a kernel: one line, in the caller's words, without reading the GPU."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlarft.errors import DtypeError, ShapeError

FLOATS = (torch.float32, torch.bfloat16)
FLOAT32 = (torch.float32,)
INDICES = (torch.int64,)


def check(
    name: str,
    x: Tensor,
    shape: Sequence[int | str],
    dtypes: tuple[torch.dtype, ...],
    device: torch.device,
    contiguous: bool = True,
) -> None:
    """Refuse a tensor that a kernel cannot take.

    Args:
        name: of the argument.
        x: the tensor.
        shape: sizes; a name stands for any size of at least 1.
        dtypes: those that the kernel takes.
        device: of the kernel's first argument.
        contiguous: whether its elements must lie in order without gaps.

    Raises:
        ShapeError, DtypeError: naming what was wanted and what was given.
    """
    fits = x.ndim == len(shape) and all(
        n >= 1 if isinstance(want, str) else n == want
        for n, want in zip(x.shape, shape, strict=True)
    )
    if not fits:
        wanted = ",".join(str(size) for size in shape)
        raise ShapeError(f"{name} must be [{wanted}] without empty sizes, got {list(x.shape)}")
    if x.dtype not in dtypes:
        allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise DtypeError(f"{name} must be {allowed}, got {str(x.dtype).removeprefix('torch.')}")
    if x.device != device:
        raise ShapeError(f"{name} must be on {device}, got {x.device}; move it there")
    if contiguous and not x.is_contiguous():
        raise ShapeError(f"{name} must be contiguous, got strides {list(x.stride())}")
