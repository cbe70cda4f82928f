"""Native core, built from csrc/. Tensors are anything with `__dlpack__` (NumPy, torch, ...)."""

from typing import Any, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

class _SupportsDLPack(Protocol):
    # `Any`: exporters differ in their keyword arguments.
    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...

class _BuildInfo(TypedDict):
    version: str
    compiler: str
    build_type: str
    sanitizers: str
    cuda: bool
    cuda_version: str
    cuda_architectures: str
    cuda_reason: str

def cpu_features() -> list[str]:
    """Instruction sets that this processor and system run, named as in /proc/cpuinfo."""

def build_info() -> _BuildInfo:
    """How this module was built; `cuda_reason` says why CUDA code is missing, when it is."""

def philox(counters: _SupportsDLPack, key: int) -> NDArray[np.uint32]:
    """Philox4x32-10 of `counters`, uint32 [n,4] on the CPU; `key` in [0, 2^64). Returns [n,4].

    Raises:
        ShapeError, DtypeError, BackendError: counters of another shape, type or device.
    """

def gumbel(addresses: _SupportsDLPack, out: _SupportsDLPack, seed: int, *, stream: int = 0) -> None:
    """Fill `out` with the addressed Gumbel noise of token ids 0..ids-1.

    Philox4x32-10 with key = seed and counter = (id // 4, position, member, scene key), lane
    id % 4; u = ((x >> 8) + 0.5) * 2^-24 and -log(-log(u)) in float64, rounded once to float32.

    Args:
        addresses: uint32 [rows,3]: position, member, scene key.
        out: float32 [rows,ids], written in place, on the device of `addresses`.
        seed: in [0, 2^64).
        stream: CUDA stream handle; unused on the CPU.

    Raises:
        ShapeError, DtypeError: wrong shape or element type.
        BackendError: read-only output, mixed devices, or no CUDA code in this build.
    """
