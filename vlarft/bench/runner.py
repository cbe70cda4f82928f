"""One result: build the case, measure engine and baselines in turns, judge against the limits."""

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vlarft.bench import cases, counts
from vlarft.bench.cases import Case
from vlarft.bench.clock import now
from vlarft.bench.gpu_limits import GpuMeter
from vlarft.bench.interleave import Rounds, interleave, spread
from vlarft.bench.limits import Limits, Meter
from vlarft.bench.machine import machine
from vlarft.bench.measure import Context, Options, Prepared, Run, Skip, Subject
from vlarft.bench.memory import held_bytes, module_bytes, peak_bytes, reset_peak
from vlarft.bench.results import BaselineResult, Result, Seconds, verdict
from vlarft.bench.stages import STAGES, Stage
from vlarft.bench.subjects import build_engine
from vlarft.engine.resolve import resolve_device
from vlarft.errors import BackendError

Say = Callable[[str], None]
_ENGINE = "engine"
_SHORT = 0.5  # seconds; what takes less is run again in its turn ...
_AGAIN = 5  # ... so many times in all


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        case: size.
        stage: of the engine.
        options: backend, dtype, device.
        baselines: names; those that the stage does not have are left out.
        rounds: how many must count; None: 7, or 3 when a round exceeds a minute.
        seed: of the world and its inputs.
        command: what makes the result again.
    """

    case: Case
    stage: str
    options: Options
    baselines: Sequence[str]
    rounds: int | None = None
    seed: int = 0
    command: str = ""


def measure(request: Request, meter: Meter | GpuMeter, say: Say) -> Result:
    """Measure one (case, stage, backend, dtype).

    Raises:
        BackendError: the back end cannot run here, or its output changed between rounds.
        PlanError: the case does not fit in memory.
    """
    stage, options = STAGES[request.stage], request.options
    device = resolve_device(options.device)
    limits, single = meter.limits(), meter.limits(threads=1)
    material = cases.build(request.case, request.seed).on(device)
    # The case's own copies stay for the baselines; the engine shares the transformer's alone.
    before = held_bytes(device) - module_bytes(material.world.transformer, device)
    engine = build_engine(material, options)
    plan = engine.plan(
        request.case.scenes,
        request.case.rollouts,
        frames=request.case.frames,
        expert=request.stage == "rollout",
    )
    subject = stage.subject(engine, material)
    gc.collect()
    reset_peak(device)
    warm = subject.run()
    peak = peak_bytes(device) - before
    say(f"{request.case.name} {stage.name}: engine ready, first run {warm.seconds:.3g} s")

    context = Context(material, options, warm.output)
    prepared, skipped = _prepare(stage, request.baselines, context, say)
    runs: dict[str, list[Run]] = {}
    subjects = {_ENGINE: subject, **{name: p.subject for name, p in prepared.items()}}
    rounds = interleave(
        _ENGINE,
        {name: _recorded(name, s, runs) for name, s in subjects.items()},
        meter.probe,
        now,
        request.rounds,
        lambda done, wanted: say(f"{request.case.name} {stage.name}: round {done}/{wanted}"),
    )
    _same_every_time(runs[_ENGINE], warm)
    work = stage.work(material, options.dtype, options.cache_dtype)
    # Rates and times are medians of the same run: a machine that slows down slows both.
    during = limits.during(rounds.typical)
    rate = during.matmul_gflops(options.dtype)
    floor = counts.floor_seconds(work, during.read_gbps * 1e9, rate * 1e9)
    seconds = spread(rounds.seconds(_ENGINE))
    result = Result(
        case=request.case.name,
        stage=stage.name,
        backend=engine.backend,
        device=str(engine.device),
        dtype=str(options.dtype).removeprefix("torch."),
        cache_dtype=str(options.cache_dtype or "").removeprefix("torch."),
        threads=torch.get_num_threads(),
        seed=request.seed,
        seconds=Seconds(**seconds),
        parts=_parts(runs[_ENGINE], rounds),
        limit_seconds=floor,
        share_of_limit=floor / seconds["median"],
        bytes=sum(w.total_bytes for w in work),
        flops=sum(w.total_flops for w in work),
        work=[w.to_dict() for w in work],
        limits=_rates(during, options.dtype),
        limits_good=dict(rounds.good),
        limits_one_thread=_rates(single, options.dtype),
        baselines={
            **{
                name: _baseline(name, stage, context, p, runs, rounds)
                for name, p in prepared.items()
            },
            **skipped,
        },
        output_hash=_hash(warm.output),
        trajectories_per_second=request.case.trajectories / seconds["median"],
        peak_bytes=peak,
        planned_bytes=plan.imagine_bytes if request.stage == "imagine" else plan.total,
        planned=dict(plan.bytes),
        rounds_dropped=rounds.dropped,
        disturbed=rounds.disturbed,
        stats={"kernel_path": plan.kernel_path, "capture_seconds": engine.capture_seconds},
        machine=machine(),
        command=request.command,
    )
    engine.release()
    return result


def _prepare(
    stage: Stage, names: Sequence[str], context: Context, say: Say
) -> tuple[dict[str, Prepared], dict[str, BaselineResult]]:
    prepared, skipped = {}, {}
    for name, baseline in stage.baselines.items():
        if name not in names:
            continue
        start = now()
        try:
            prepared[name] = baseline.build(context)
        except Skip as reason:
            skipped[name] = BaselineResult(skipped=str(reason))
            say(f"  {name}: left out, {reason}")
            continue
        say(f"  {name}: ready after {now() - start:.3g} s")
    return prepared, skipped


def _recorded(name: str, subject: Subject, runs: dict[str, list[Run]]) -> Callable[[], float]:
    def call() -> float:
        run = _turn(subject)
        done = runs.setdefault(name, [])
        if done:  # outputs of older rounds are not kept, only their times
            done[-1] = Run(done[-1].seconds, None, done[-1].parts, done[-1].sampled)
        done.append(run)
        return run.seconds

    return call


def _turn(subject: Subject) -> Run:
    """Its run of median time, of some when they are short."""
    turns = [subject.run()]
    while turns[0].seconds < _SHORT and len(turns) < _AGAIN:
        turns.append(subject.run())
    return sorted(turns, key=lambda run: run.seconds)[len(turns) // 2]


def _same_every_time(runs: Sequence[Run], warm: Run) -> None:
    """The engine's output is a function of its input; a time of anything else means nothing."""
    if _hash(runs[-1].output) != _hash(warm.output):
        raise BackendError("bench: the engine's output differs between two runs of one input")


def _baseline(
    name: str,
    stage: Stage,
    context: Context,
    prepared: Prepared,
    runs: Mapping[str, Sequence[Run]],
    rounds: Rounds,
) -> BaselineResult:
    own = runs[name]
    checked = stage.check(context, own[-1].output)
    values: dict[str, Any] = {
        "seconds": statistics.median(rounds.seconds(name)),
        "parts": _parts(own, rounds),
        "rounds": len(rounds.kept),
        "sampled": own[-1].sampled,
        "compile_seconds": prepared.compile_seconds,
        "check": {"same": checked.same, **checked.detail},
        "notes": prepared.notes,
    }
    if checked.same:
        ratios = rounds.ratios(name, _ENGINE)
        values |= {
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "part_ratios": _part_ratios(own, runs[_ENGINE], rounds),
            "verdict": verdict(min(ratios), max(ratios)),
        }
    return BaselineResult(**values)


def _parts(runs: Sequence[Run], rounds: Rounds) -> dict[str, float]:
    kept = [runs[r.number].parts for r in rounds.kept]
    return {name: statistics.median(parts[name] for parts in kept) for name in kept[0]}


def _part_ratios(own: Sequence[Run], engine: Sequence[Run], rounds: Rounds) -> dict[str, float]:
    numbers = [r.number for r in rounds.kept]
    names = own[numbers[0]].parts.keys() & engine[numbers[0]].parts.keys()
    return {
        name: statistics.median(own[i].parts[name] / engine[i].parts[name] for i in numbers)
        for name in sorted(names)
    }


def _rates(limits: Limits, dtype: torch.dtype) -> dict[str, float]:
    return {**limits.to_dict(), "matmul_gflops": limits.matmul_gflops(dtype)}


def _hash(output: Any) -> str | None:
    """Hash of integer output; floats differ between machines in their last bits."""
    first = output[0] if isinstance(output, tuple) else output
    if not isinstance(first, torch.Tensor) or first.is_floating_point():
        return None
    return cases.output_hash(first)
