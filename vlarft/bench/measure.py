"""What one measurement gives, and what it is made of."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from vlarft.bench.cases import Material
from vlarft.bench.clock import now


@dataclass(frozen=True)
class Options:
    """How a stage is measured.

    Attributes:
        backend: of the engine.
        dtype: of the engine and of every baseline.
        device: where.
        sample: "auto" samples baselines that would take minutes, "always" and "never" are for
            checks.
        cache_dtype: of the engine's keys and values; None: `dtype`.
    """

    backend: str = "native"
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    sample: str = "auto"
    cache_dtype: torch.dtype | None = None


@dataclass
class Samples:
    """Tokens that a sampled baseline drew, each given the engine's tokens before it.

    Attributes:
        tokens: (frame, position) -> int64 [P,N].
    """

    tokens: dict[tuple[int, int], Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class SomeRows:
    """Output of some rollouts of a sampled baseline.

    Attributes:
        numbers: which of the P N rollouts, int64 [R].
        values: their outputs, [R,...].
    """

    numbers: Tensor
    values: Tensor

    def of(self, whole: Tensor) -> Tensor:
        """The same rollouts of [P,N,...]."""
        return whole.flatten(0, 1)[self.numbers]


@dataclass(frozen=True)
class Run:
    """One measurement.

    Attributes:
        seconds: wall time, or its estimate when only some passes ran.
        output: what was computed, to be checked: a tensor, several, `Samples` or `SomeRows`.
        parts: seconds by part.
        sampled: whether `seconds` is scaled up from some passes.
    """

    seconds: float
    output: Any
    parts: dict[str, float] = field(default_factory=dict)
    sampled: bool = False


class Subject(Protocol):
    """Something that is measured: the engine or a baseline, ready to run."""

    def run(self) -> Run:
        """Measure once."""


@dataclass(frozen=True)
class Context:
    """What a baseline is built from.

    Attributes:
        material: world and inputs.
        options: how the stage is measured.
        output: what the engine computed.
        memo: what several baselines share (weights in a dtype, noise, caches), by name.
    """

    material: Material
    options: Options
    output: Any
    memo: dict[str, Any] = field(default_factory=dict)

    def shared(self, name: str, make: Callable[[], Any]) -> Any:
        """Make something once."""
        if name not in self.memo:
            self.memo[name] = make()
        return self.memo[name]


@dataclass(frozen=True)
class Prepared:
    """A subject and what preparing it cost.

    Attributes:
        subject: ready to run.
        compile_seconds: time of compilation, which no ratio counts.
        notes: facts that belong to the result, e.g. versions or why something is off.
    """

    subject: Subject
    compile_seconds: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Baseline:
    """A baseline that can be built.

    Attributes:
        build: prepares it (weights, compilation, warm-up); may raise `Skip`.
        meaning: one line for people.
    """

    build: Callable[[Context], Prepared]
    meaning: str


class Skip(Exception):
    """A baseline cannot run here; the message says why and stands in the result."""


@dataclass(frozen=True)
class Timed:
    """A subject that is one function."""

    call: Callable[[], Any]

    def run(self) -> Run:
        """Wall time of one call."""
        start = now()
        output = self.call()
        return Run(now() - start, output)
