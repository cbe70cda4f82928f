"""Native core, built from csrc/. Tensors are anything with `__dlpack__` (NumPy, torch, ...)."""

from collections.abc import Callable, Mapping, Sequence
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

def read_seconds(data: _SupportsDLPack, threads: int) -> float:
    """Seconds that `threads` threads take to read `data`, uint8 [bytes], once.

    Raises:
        ShapeError, DtypeError, BackendError: data of another shape, type or device; threads < 1.
    """

def multiply_rate(dtype: str, threads: int, seconds: float) -> float:
    """Multiply-adds from registers, operations a second, over about `seconds` seconds.

    dtype "float32", or "bfloat16" (products of bfloat16, sums in float32): 0 where the processor
    has no such instruction. A multiply-add counts as two operations.

    Raises:
        DtypeError, ShapeError: another dtype; threads < 1.
    """

def built_kernels() -> list[str]:
    """CPU kernels of this build, best first."""

def runnable_kernels() -> list[str]:
    """CPU kernels that this machine runs, best first."""

class Prompt:
    """Keys and values of a scene's prompt."""

    @property
    def length(self) -> int: ...
    @property
    def bytes(self) -> int: ...

class Imaginer:
    """Token generation of a world model on the CPU; see vlarft/engine/native.py.

    Args:
        config: layers, hidden, heads, kv_heads, head_dim, ffn, vocabulary, frame_codes, positions,
            eps.
        tensors: float32 weights under transformers' names, "rotary.cos" and "rotary.sin"
            [positions, head_dim / 2]; copied.
        dtype: "float32" or "bfloat16" storage.
        kernels: one of runnable_kernels(); empty: VLARFT_CPU, or the best.
    """

    def __init__(
        self,
        config: Mapping[str, float],
        tensors: Mapping[str, _SupportsDLPack],
        *,
        dtype: str = "float32",
        kernels: str = "",
    ) -> None: ...
    @property
    def kernels(self) -> str: ...
    @property
    def weight_bytes(self) -> int: ...
    def prefill(self, ids: _SupportsDLPack, *, threads: int) -> list[Prompt]: ...
    def imagine(
        self,
        prompts: Sequence[Prompt],
        actions: _SupportsDLPack,
        keys: _SupportsDLPack,
        members: _SupportsDLPack,
        *,
        frame_tokens: int,
        seed: int,
        temperature: float,
        top_k: int,
        top_p: float,
        width: int,
        guesses: Sequence[str],
        threads: int,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[NDArray[np.int32], dict[str, Any]]: ...
    def score(
        self, prompts: Sequence[Prompt], ids: _SupportsDLPack, *, chunk: int, threads: int
    ) -> NDArray[np.float32]: ...
    def plan(
        self,
        *,
        scenes: int,
        rows: int,
        prompt: int,
        frames: int,
        action_dim: int,
        frame_tokens: int,
        width: int,
        keeps_logits: bool,
        threads: int,
    ) -> dict[str, int]: ...
    def pass_seconds(self, tokens: int, *, threads: int) -> float:
        """Seconds of one pass of `tokens` neighbouring tokens, the best of three."""

    @property
    def held_bytes(self) -> int:
        """Bytes kept for the next call of the same shape, weights and prompts apart."""

    def release(self) -> None:
        """Free what is kept."""
