"""Result files: what stands in them, reading, writing, and comparing two."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from vlarft.errors import DataError

Verdict = Literal["faster", "slower", "ambiguous"]


class Seconds(BaseModel):
    """Wall times of the engine over the rounds that count."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    median: float
    p20: float
    p80: float
    runs: int


class BaselineResult(BaseModel):
    """A baseline beside the engine; `ratio` is baseline / engine, above 1: the engine is faster.

    Without `ratio`, `skipped` says why it did not run, or `check` what it computed differently.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float | None = None
    ratio: float | None = None  # median over rounds
    ratio_min: float | None = None
    ratio_max: float | None = None
    part_ratios: dict[str, float] = {}  # medians, of prefill and generation
    parts: dict[str, float] = {}  # median seconds
    rounds: int = 0
    sampled: bool = False
    verdict: Verdict | None = None  # of the engine, where minimum and maximum agree
    compile_seconds: float = 0.0
    check: dict[str, Any] = {}
    notes: dict[str, Any] = {}
    skipped: str = ""


class Result(BaseModel):
    """One measured (case, stage, backend, dtype)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    case: str
    stage: str
    backend: str
    device: str
    dtype: str
    cache_dtype: str = ""  # empty: dtype
    threads: int
    seed: int
    seconds: Seconds
    parts: dict[str, float]  # median seconds of the engine
    limit_seconds: float
    share_of_limit: float  # limit_seconds / seconds.median
    bytes: float
    flops: float
    work: list[dict[str, float | int | str]]  # passes from which limit_seconds follows
    limits: dict[str, float]  # medians of this run's probes; matmul_gflops is the one that was used
    # 80th percentile of the probes: rounds below 85% of it are disturbed
    limits_good: dict[str, float] = {}
    limits_one_thread: dict[str, float]
    baselines: dict[str, BaselineResult]
    output_hash: str | None
    trajectories_per_second: float
    peak_bytes: int
    planned_bytes: int
    planned: dict[str, int]
    rounds_dropped: int
    disturbed: bool  # the machine never was quiet long enough
    stats: dict[str, Any]
    machine: dict[str, Any]
    command: str

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What makes two results comparable."""
        precision = f"{self.dtype}/{self.cache_dtype}" if self.cache_dtype else self.dtype
        return self.case, self.stage, self.backend, self.device, precision

    @property
    def name(self) -> str:
        """The key, for people."""
        return " ".join(self.key)


def dump(results: Sequence[Result]) -> str:
    """JSON text of several results."""
    return json.dumps([r.model_dump(mode="json") for r in results], indent=1) + "\n"


def load(path: Path) -> list[Result]:
    """Results of a file.

    Raises:
        DataError: missing, not JSON, or not what `vlarft bench run` writes.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such result file; make one with: vlarft bench run") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, list) or not content:
        raise DataError(f"{path}: expected an array of results, as vlarft bench run writes it")
    try:
        return [Result.model_validate(entry) for entry in content]
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: not a benchmark result: {key}: {first['msg']}") from error


def verdict(low: float, high: float) -> Verdict:
    """What a range of ratios (old / new seconds) says: only a range beside 1 decides."""
    if low > 1:
        return "faster"
    return "slower" if high < 1 else "ambiguous"


class Difference(BaseModel):
    """Two results of one key: `ratio` is seconds of A / seconds of B, above 1: B is faster.

    The range divides the 20th and 80th percentiles of both crosswise.
    """

    name: str
    seconds_a: float
    seconds_b: float
    share_a: float
    share_b: float
    ratio: float
    low: float
    high: float
    verdict: Verdict
    warnings: list[str]


class Comparison(BaseModel):
    """Results of two files side by side."""

    differences: list[Difference]
    only_a: list[str]
    only_b: list[str]


def compare(a: Sequence[Result], b: Sequence[Result]) -> Comparison:
    """Compare what both files hold; the last of equal keys counts."""
    old, new = ({r.key: r for r in results} for results in (a, b))
    differences = []
    for key, x in old.items():
        y = new.get(key)
        if y is None:
            continue
        low, high = x.seconds.p20 / y.seconds.p80, x.seconds.p80 / y.seconds.p20
        differences.append(
            Difference(
                name=x.name,
                seconds_a=x.seconds.median,
                seconds_b=y.seconds.median,
                share_a=x.share_of_limit,
                share_b=y.share_of_limit,
                ratio=x.seconds.median / y.seconds.median,
                low=low,
                high=high,
                verdict=verdict(low, high),
                warnings=_warnings(x, y),
            )
        )
    return Comparison(
        differences=differences,
        only_a=[r.name for key, r in old.items() if key not in new],
        only_b=[r.name for key, r in new.items() if key not in old],
    )


_SAME = ("cpu", "gpus", "cores")


def _warnings(x: Result, y: Result) -> list[str]:
    found = []
    if any(x.machine.get(k) != y.machine.get(k) for k in _SAME):
        found.append(
            f"other machine ({_machine(x)}; {_machine(y)}): compare shares of the limit, not times"
        )
    if x.threads != y.threads:
        found.append(f"{x.threads} against {y.threads} threads")
    if x.seed != y.seed:
        found.append(f"other seed ({x.seed}, {y.seed})")
    if x.output_hash != y.output_hash:
        found.append(f"other output ({x.output_hash}, {y.output_hash})")
    old, new = x.machine.get("packages", {}), y.machine.get("packages", {})
    if old.get("torch") != new.get("torch"):
        found.append(f"other torch ({old.get('torch')}, {new.get('torch')})")
    found += [
        f"{name} was measured on a busy machine" for name, r in (("A", x), ("B", y)) if r.disturbed
    ]
    return found


def _machine(result: Result) -> str:
    gpus = ", ".join(result.machine.get("gpus") or [])
    cpu = f"{result.machine.get('cpu', 'unknown')}, {result.machine.get('cores', '?')} cores"
    return f"{cpu}, {gpus}" if gpus else cpu
