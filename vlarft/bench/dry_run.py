"""What stages must take at least, counted: on this machine, or on a GPU that is not here."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from vlarft.bench import cases
from vlarft.bench.cases import Case
from vlarft.bench.counts import Transformer, Work, floor_seconds, pass_kernels
from vlarft.bench.limits import Meter
from vlarft.bench.stages import STAGES

# A pass on a GPU: embedding, five kernels a layer, logits, sampling (one row: with the logits).
_KERNELS_A_LAYER = 5
_KERNELS_BESIDE = 3
# Seconds from one kernel of a graph to the next, at least: an estimate, not measured by us.
_KERNEL_SECONDS = 2.5e-6


@dataclass(frozen=True)
class Rates:
    """Rates from which times are predicted.

    Attributes:
        name: whose.
        read: bytes a second.
        multiply: operations a second in the dtype.
        kernel: seconds a kernel takes at least; 0 on a CPU.
    """

    name: str
    read: float
    multiply: float
    kernel: float = 0.0


# NVIDIA's data sheet gives 4.8 TB/s and 989 (bfloat16) and 67 (float32) TFLOP/s; programs reach
# about 90% and 80% of the first two.
_H200 = {torch.bfloat16: 790e12, torch.float32: 54e12}
_H200_READ = 4.3e12


@dataclass(frozen=True)
class Kernel:
    """One of a GPU's kernels in a pass half way through a rollout.

    Attributes:
        name: as profilers show it.
        times: in a pass.
        bytes: that one launch must move.
        flops: that it must do.
        seconds: a launch cannot be faster.
    """

    name: str
    times: int
    bytes: float
    flops: float
    seconds: float


@dataclass(frozen=True)
class Prediction:
    """One stage of one case.

    Attributes:
        case: name.
        stage: name.
        dtype: of weights and activations.
        cache_dtype: of keys and values.
        rates: whose limits were taken.
        bytes: that must be moved.
        flops: that must be done.
        seconds: nothing can be faster.
        passes: that depend on each other.
        latency_seconds: of those passes' kernels; 0 on a CPU.
        kernels: of one pass on a GPU, for the stage imagine.
    """

    case: str
    stage: str
    dtype: str
    cache_dtype: str
    rates: str
    bytes: float
    flops: float
    seconds: float
    passes: int
    latency_seconds: float
    kernels: tuple[Kernel, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def rates_of(device: str, dtype: torch.dtype) -> Rates:
    """Rates of this machine's processor, measured now, or those stated for an H200."""
    if device != "cpu":
        return Rates("H200 (stated, not measured)", _H200_READ, _H200[dtype], _KERNEL_SECONDS)
    limits = Meter().limits()
    return Rates("this processor", limits.read_gbps * 1e9, limits.matmul_gflops(dtype) * 1e9)


def predict(
    case: Case,
    stage: str,
    dtype: torch.dtype,
    rates: Rates,
    seed: int = 0,
    cache: torch.dtype | None = None,
) -> Prediction:
    """Count a stage's work; nothing runs."""
    material = cases.build(case, seed)
    work: Sequence[Work] = STAGES[stage].work(material, dtype, cache)
    generates = stage in ("imagine", "rollout")
    passes = case.frames * material.world.frame_tokens if generates else 0
    layers = int(material.world.transformer.config.num_hidden_layers)
    beside = _KERNELS_BESIDE - (case.scenes * case.rollouts == 1)
    kernels: tuple[Kernel, ...] = ()
    if stage == "imagine" and rates.kernel > 0:
        t = Transformer.of(material.world, dtype, cache)
        kernels = tuple(
            Kernel(w.what, w.count, w.bytes, w.flops, _once(w, rates))
            for w in pass_kernels(t, case.scenes, case.rollouts, case.frames)
        )
    return Prediction(
        case=case.name,
        stage=stage,
        dtype=str(dtype).removeprefix("torch."),
        cache_dtype=str(cache or dtype).removeprefix("torch."),
        rates=rates.name,
        bytes=sum(w.total_bytes for w in work),
        flops=sum(w.total_flops for w in work),
        seconds=floor_seconds(work, rates.read, rates.multiply),
        passes=passes,
        latency_seconds=passes * (_KERNELS_A_LAYER * layers + beside) * rates.kernel,
        kernels=kernels,
    )


def _once(work: Work, rates: Rates) -> float:
    return max(work.bytes / rates.read, work.flops / rates.multiply)
