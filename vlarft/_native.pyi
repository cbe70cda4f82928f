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
        cache_dtype: "float8_e4m3fn": keys and values are rounded to it (and stored in dtype);
            empty: as they are.
        kernels: one of runnable_kernels(); empty: VLARFT_CPU, or the best.
    """

    def __init__(
        self,
        config: Mapping[str, float],
        tensors: Mapping[str, _SupportsDLPack],
        *,
        dtype: str = "float32",
        cache_dtype: str = "",
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
    def scenes_at_once(
        self,
        *,
        scenes: int,
        rows: int,
        prompt: int,
        frames: int,
        action_dim: int,
        frame_tokens: int,
    ) -> int:
        """Scenes imagined together: as many as a processor's cache holds beside the weights."""

    def pass_seconds(self, tokens: int, *, threads: int) -> float:
        """Seconds of one pass of `tokens` neighbouring tokens, the best of three."""

    @property
    def held_bytes(self) -> int:
        """Bytes kept for the next call of the same shape, weights and prompts apart."""

    def release(self) -> None:
        """Free what is kept."""

def range_push(name: str) -> None:
    """Open an NVTX range of the domain "vlarft"; in builds with CUDA, off without VLARFT_NVTX=1."""

def range_pop() -> None:
    """Close the range that was opened last."""

class CudaPrompt:
    """Keys and values of a scene's prompt on a GPU. Only in builds with CUDA, as CudaImaginer."""

    @property
    def length(self) -> int: ...
    @property
    def bytes(self) -> int: ...

class CudaImaginer:
    """Token generation on a GPU; arguments as of Imaginer, streams as CUDA's handles.

    Args:
        cache_dtype: "float8_e4m3fn": keys and values are stored so; empty: in dtype.
        device: index of the GPU.
        stream: on which the weights are copied.
    """

    def __init__(
        self,
        config: Mapping[str, float],
        tensors: Mapping[str, _SupportsDLPack],
        *,
        dtype: str = "float32",
        cache_dtype: str = "",
        device: int,
        stream: int,
    ) -> None: ...
    @property
    def kernels(self) -> str: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def capture_seconds(self) -> float:
        """Seconds that captures of graphs have taken."""

    def prefill(self, ids: _SupportsDLPack, *, stream: int) -> list[CudaPrompt]: ...
    def imagine(
        self,
        prompts: Sequence[CudaPrompt],
        actions: _SupportsDLPack,
        keys: _SupportsDLPack,
        members: _SupportsDLPack,
        tokens: _SupportsDLPack,
        *,
        frame_tokens: int,
        seed: int,
        temperature: float,
        top_k: int,
        top_p: float,
        width: int,
        guesses: Sequence[str],
        stream: int,
        progress: Callable[[int], None] | None = None,
    ) -> dict[str, Any]:
        """Fills `tokens`, int32 [P,M,T,K] on the GPU; the other arrays are on the CPU."""

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
    ) -> dict[str, int]: ...
    def pass_seconds(self, tokens: int, *, stream: int) -> float: ...
    @property
    def held_bytes(self) -> int: ...
    def release(self) -> None: ...

class Workers:
    """Threads of convolutions, with their scratch memory; one operation at a time."""

    def __init__(self, threads: int) -> None: ...
    @property
    def threads(self) -> int: ...

class Convolution:
    """A packed 3x3 (zero padding) or 1x1 convolution on the CPU, channels last.

    Args:
        weight: float32 [out,in,3,3] or [out,in,1,1]; copied.
        bias: float32 [out]; copied.
        upsample: the input is enlarged by 2 (nearest) first, as four folded 2x2 convolutions.
        dtype: "float32"; "bfloat16" rounds weights and activated input, sums stay float32.
        kernels: one of runnable_kernels(); empty: VLARFT_CPU, or the best.

    Raises:
        ShapeError, DtypeError, BackendError: wrong weights, dtype or kernels.
    """

    def __init__(
        self,
        weight: _SupportsDLPack,
        bias: _SupportsDLPack,
        *,
        upsample: bool = False,
        dtype: str = "float32",
        kernels: str = "",
    ) -> None: ...
    @property
    def kernels(self) -> str: ...
    @property
    def weight_bytes(self) -> int: ...
    def run(
        self,
        workers: Workers,
        x: _SupportsDLPack,
        out: _SupportsDLPack,
        *,
        scale: _SupportsDLPack | None = None,
        shift: _SupportsDLPack | None = None,
        before: str = "none",
        after: str = "none",
        residual: _SupportsDLPack | None = None,
    ) -> None:
        """out = after(conv(before(x * scale + shift)) + bias) + residual.

        Args:
            workers: threads.
            x: float32 or bfloat16 [B,H,W,in].
            out: float32 or bfloat16 [B,H,W,out], or [B,2H,2W,out] with upsample; written.
            scale: float32 [B,in], with `shift`.
            shift: float32 [B,in].
            before: activation of the input: "none", "silu" or "relu".
            after: activation of the output.
            residual: like `out`; may be `out` itself.

        Raises:
            ShapeError, DtypeError, BackendError: wrong tensors, by name.
        """

def group_norm(
    workers: Workers,
    x: _SupportsDLPack,
    weight: _SupportsDLPack,
    bias: _SupportsDLPack,
    *,
    groups: int,
    eps: float,
    scale: _SupportsDLPack,
    shift: _SupportsDLPack,
) -> None:
    """Fill `scale` and `shift`, float32 [B,C]: GroupNorm of x [B,H,W,C] is x * scale + shift.

    Raises:
        ShapeError, DtypeError, BackendError: wrong tensors, by name.
    """

def l1(
    workers: Workers,
    a: _SupportsDLPack,
    b: _SupportsDLPack,
    first: _SupportsDLPack,
    second: _SupportsDLPack,
    out: _SupportsDLPack,
) -> None:
    """out[p] = mean |a[first[p]] - b[second[p]]|, exactly 0 when the two are equal.

    Args:
        workers: threads.
        a: float32 [I,n].
        b: float32 [J,n].
        first: int64 [B], each in [0, I).
        second: int64 [B], each in [0, J).
        out: float32 [B], written.

    Raises:
        ShapeError, DtypeError, BackendError: wrong tensors, by name.
    """

def perceptual(
    workers: Workers,
    a: _SupportsDLPack,
    b: _SupportsDLPack,
    weight: _SupportsDLPack,
    first: _SupportsDLPack,
    second: _SupportsDLPack,
    out: _SupportsDLPack,
) -> None:
    """Add one level of LPIPS to `out`: mean over pixels of sum_c w_c (a / |a| - b / |b|)^2.

    Args:
        workers: threads.
        a: feature maps float32 [I,pixels,C], not normalised.
        b: feature maps float32 [J,pixels,C].
        weight: float32 [C].
        first: int64 [B], each in [0, I).
        second: int64 [B], each in [0, J).
        out: float32 [B], added to.

    Raises:
        ShapeError, DtypeError, BackendError: wrong tensors, by name.
    """
