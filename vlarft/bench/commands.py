"""`vlarft bench run|compare|report|limits|accuracy`."""

import sys
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from vlarft.bench.accuracy import measure_accuracy
from vlarft.bench.cases import Case, find_case
from vlarft.bench.dry_run import Prediction, predict, rates_of
from vlarft.bench.gpu_limits import GpuMeter
from vlarft.bench.limits import Limits, Meter
from vlarft.bench.machine import machine, near
from vlarft.bench.measure import Options
from vlarft.bench.profile import run_once
from vlarft.bench.report import engine_rows, markdown, update_readme, write_html
from vlarft.bench.results import Comparison, Result, compare, dump, load
from vlarft.bench.runner import Request, measure
from vlarft.bench.stages import STAGES
from vlarft.engine.resolve import resolve_cache_dtype, resolve_device, resolve_dtype
from vlarft.errors import ConfigError
from vlarft.models.lpips import NETS
from vlarft.terminal import JsonFile, command_line, console_for, say, write_result

app = typer.Typer(
    no_args_is_help=True, help="Measure stages beside baselines and this machine's limits."
)

Files = Annotated[list[Path], typer.Argument(help="Files that `vlarft bench run` wrote.")]
_SAMPLE = ("auto", "always", "never")
_BACKENDS = ("auto", "native", "reference")


@app.command("run")
def run_command(
    stage: Annotated[
        str, typer.Option(help=f"{', '.join(STAGES)}; several with commas; or all.")
    ] = "imagine",
    case: Annotated[
        str,
        typer.Option(help="tiny, small-PxN, paper-PxN, -tT for T frames; several with commas."),
    ] = "small-1x16",
    backend: Annotated[str, typer.Option(help="auto, native or reference.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, or both with a comma.")] = (
        "float32"
    ),
    cache_dtype: Annotated[
        str | None,
        typer.Option(help="float8_e4m3fn: of keys and values, on a GPU (default: dtype's)."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    baselines: Annotated[str, typer.Option(help="all, none, or names with commas.")] = "all",
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Quiet rounds (default: 7; 3 when one exceeds a minute)."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of everything (default: all).")] = (
        None
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of the world and its inputs.")] = 0,
    sample: Annotated[
        str, typer.Option(help="Baselines by samples: auto (when they take long), always, never.")
    ] = "auto",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Count bytes and operations, predict times, run nothing."),
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="One run for nsys or ncu, on a GPU; no baselines.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Measure a stage: time, share of the machine's limit, ratios to baselines, memory.

    No checkpoint is needed. Example: vlarft bench run --case small-1x16 --stage imagine
    """
    stages, names = _stages(stage), _baselines(baselines)
    sizes = [find_case(name) for name in _split(case)]
    dtypes, cache = (
        [resolve_dtype(name) for name in _split(dtype)],
        resolve_cache_dtype(cache_dtype),
    )
    if cache is not None and device == "cpu":
        raise ConfigError(
            f"--cache-dtype {cache_dtype}: needs --device cuda, elsewhere it saves nothing; what "
            "it costs in accuracy: vlarft eval precision"
        )
    if dry_run:
        _dry_run(sizes, stages, dtypes, cache, device, seed, json_file)
        return
    target = resolve_device(device)
    if sample not in _SAMPLE:
        raise ConfigError(f"--sample {sample}: allowed: {', '.join(_SAMPLE)}")
    if backend not in _BACKENDS:
        raise ConfigError(f"--backend {backend}: allowed: {', '.join(_BACKENDS)}")
    if json_file not in (None, "-") and not Path(str(json_file)).absolute().parent.is_dir():
        raise ConfigError(f"--json {json_file}: its folder does not exist")
    if threads is not None:
        torch.set_num_threads(threads)
    if profile:
        for size, kind, name in product(sizes, dtypes, stages):
            options = Options(backend, kind, device, cache_dtype=cache)
            run_once(Request(size, name, options, (), seed=seed), Console())
        return
    meter = Meter() if target.type == "cpu" else GpuMeter(target)
    results: list[Result] = []
    for size in sizes:
        for kind in dtypes:
            for name in stages:
                request = Request(
                    size,
                    name,
                    Options(backend, kind, device, sample, cache),
                    names,
                    rounds,
                    seed,
                    command=command_line(),
                )
                result = measure(request, meter, partial(say, Console(stderr=True)))
                results.append(result)
                _print_result(console_for(json_file), result)
                if json_file not in (None, "-"):  # what is finished is kept
                    Path(str(json_file)).write_text(dump(results), encoding="utf-8")
    if json_file == "-":
        sys.stdout.write(dump(results))


def _dry_run(
    sizes: Sequence[Case],
    stages: Sequence[str],
    dtypes: Sequence[torch.dtype],
    cache: torch.dtype | None,
    device: str,
    seed: int,
    json_file: str | None,
) -> None:
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device {device}: allowed with --dry-run: cpu, cuda")
    rates = {kind: rates_of(device, kind) for kind in dtypes}
    found = [
        predict(size, name, kind, rates[kind], seed, cache)
        for size, kind, name in product(sizes, dtypes, stages)
    ]
    console = console_for(json_file)
    table = Table(title=f"At least, by the rates of: {found[0].rates}", title_justify="left")
    for number, column in enumerate(
        (
            *("case", "stage", "dtype", "cache", "GB", "TFLOP", "seconds"),
            *("passes", "us a pass", "of kernels"),
        )
    ):
        table.add_column(column, justify="left" if number < 4 else "right")
    for p in found:
        passes = max(1, p.passes)
        a_pass = (f"{1e6 * p.seconds / passes:.1f}", f"{1e6 * p.latency_seconds / passes:.1f}")
        table.add_row(
            p.case,
            p.stage,
            p.dtype,
            p.cache_dtype,
            f"{p.bytes / 1e9:.4g}",
            f"{p.flops / 1e12:.4g}",
            f"{p.seconds:.4g}",
            *((str(p.passes), *a_pass) if p.stage == "imagine" else ("", "", "")),
        )
    console.print(table)
    if device == "cuda":
        say(
            console,
            "of kernels: a pass of a GPU has 5 kernels a layer and 3 beside (2 with one row), each "
            "2.5 us by an estimate. A pass takes at least the larger of both columns.",
        )
        for p in found:
            if p.kernels:
                console.print(_kernel_table(p))
    write_result(json_file, {"predictions": [p.to_dict() for p in found]})


def _kernel_table(p: Prediction) -> Table:
    """A pass by kernel, to set beside a profiler's times."""
    table = Table(
        title=f"A pass of {p.case} half way, {p.dtype}, {p.cache_dtype} cache", title_justify="left"
    )
    for number, column in enumerate(("kernel", "times", "MB", "GFLOP", "us")):
        table.add_column(column, justify="left" if number == 0 else "right")
    for kernel in p.kernels:
        table.add_row(
            kernel.name,
            str(kernel.times),
            f"{kernel.bytes / 1e6:.4g}",
            f"{kernel.flops / 1e9:.4g}",
            f"{1e6 * kernel.seconds:.3g}",
        )
    return table


@app.command("compare")
def compare_command(
    a: Annotated[Path, typer.Argument(help="Results before.")],
    b: Annotated[Path, typer.Argument(help="Results after.")],
    json_file: JsonFile = None,
) -> None:
    """Two result files side by side: ratio of times, faster, slower or ambiguous, and what differs.

    Example: vlarft bench compare before.json after.json
    """
    found = compare(load(a), load(b))
    console = console_for(json_file)
    _print_comparison(console, found)
    write_result(json_file, found.model_dump(mode="json"))


@app.command("report")
def report_command(
    files: Files,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Name that ends in .html or .md.")
    ] = None,
    readme: Annotated[
        Path | None,
        typer.Option(help="Also put the table between the markers bench:start and bench:end."),
    ] = None,
) -> None:
    """Tables and plots of result files, as one page without other files.

    Example: vlarft bench report benchmarks/results/epyc-2.json -o report.html
    """
    if out is None and readme is None:
        raise ConfigError("bench report: give -o FILE.html, -o FILE.md or --readme README.md")
    if out is not None and out.suffix not in (".html", ".md"):
        raise ConfigError(f"-o {out}: allowed: a name that ends in .html or .md")
    results = [result for file in files for result in load(file)]
    command = command_line()
    console = Console()
    if out is not None:
        if out.suffix == ".html":
            write_html(results, out, command)
        else:
            out.write_text(markdown(results), encoding="utf-8")
        say(console, f"report: {out.resolve()}")
    if readme is not None:
        update_readme(readme, results)
        say(console, f"table: {readme.resolve()}")


@app.command("limits")
def limits_command(
    threads: Annotated[
        int | None, typer.Option(min=1, help="Measure with 1 and with this many (default: all).")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """What this machine allows: memory reads, multiply-adds, matrix products.

    Example: vlarft bench limits --json -
    """
    meter = Meter(threads)
    counts = sorted({1, meter.threads})
    measured = [meter.limits(count) for count in counts]
    _print_limits(console_for(json_file), measured)
    write_result(json_file, {"limits": [m.to_dict() for m in measured], "machine": machine()})


@app.command("accuracy")
def accuracy_command(
    case: Annotated[str, typer.Option(help="tiny, small-PxN or paper-PxN.")] = "small-1x16",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, or both with a comma.")] = (
        "float32,bfloat16"
    ),
    backend: Annotated[str, typer.Option(help="auto, native or reference.")] = "auto",
    net: Annotated[str, typer.Option(help="LPIPS backbone: alex, vgg or squeeze.")] = "alex",
    metric_file: Annotated[
        Path | None, typer.Option(help="Its weights (default: bundled, or `vlarft weights lpips`).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the world and its tokens.")] = 0,
    json_file: JsonFile = None,
) -> None:
    """What a precision costs: frames and distances against plain float32.

    Example: vlarft bench accuracy --case paper-1x16 --net vgg
    """
    size, kinds = find_case(case), [resolve_dtype(name) for name in _split(dtype)]
    if net not in NETS:
        raise ConfigError(f"--net {net}: allowed: {', '.join(NETS)}")
    if backend not in _BACKENDS:
        raise ConfigError(f"--backend {backend}: allowed: {', '.join(_BACKENDS)}")
    found = [
        measure_accuracy(size, kind, f"lpips-{net}", metric_file, backend, seed) for kind in kinds
    ]
    console = console_for(json_file)
    for one in found:
        say(
            console,
            f"{one.case} {one.dtype}: frames {one.psnr:.1f} dB (worst {one.psnr_worst:.1f}, plain "
            f"torch {one.plain_psnr:.1f}); {one.metric} + L1 of {one.distances[0]:.4f} to "
            f"{one.distances[1]:.4f}: largest error {100 * one.distance_error:.3f}%, "
            f"rank correlation {one.rank_correlation:.4f}",
        )
    write_result(json_file, {"accuracy": [one.to_dict() for one in found], "machine": machine()})


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _stages(text: str) -> list[str]:
    return list(STAGES) if text == "all" else _names("--stage", text, STAGES, "all")


def _baselines(text: str) -> list[str]:
    known = list(dict.fromkeys(name for stage in STAGES.values() for name in stage.baselines))
    if text in ("all", "none"):
        return known if text == "all" else []
    return _names("--baselines", text, known, "all, none")


def _names(option: str, text: str, known: Iterable[str], words: str) -> list[str]:
    known = list(known)
    names = _split(text)
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{option} {name}: allowed: {words}, {', '.join(known)}{near(name, known)}"
            )
    return names


def _print_result(console: Console, result: Result) -> None:
    table = Table(title=result.name, title_justify="left")
    for number, column in enumerate(("", "seconds", "ratio", "min .. max", "notes")):
        table.add_column(column, justify="left" if number in (0, 4) else "right")
    for row in engine_rows(result):
        table.add_row(*row)
    console.print(table)
    say(
        console,
        f"{100 * result.share_of_limit:.1f}% of the limit ({result.limit_seconds:.4g} s); "
        f"{result.trajectories_per_second:.4g} trajectories/s; "
        f"peak {result.peak_bytes / 1e6:.0f} MB, planned {result.planned_bytes / 1e6:.0f} MB; "
        f"output {result.output_hash or 'not hashed'}; rounds dropped: {result.rounds_dropped}"
        + ("; THE MACHINE WAS BUSY ALL THE TIME" if result.disturbed else ""),
    )


def _print_comparison(console: Console, found: Comparison) -> None:
    table = Table()
    for number, column in enumerate(
        ("result", "A", "B", "A / B", "range", "limit A", "limit B", "B is")
    ):
        table.add_column(column, justify="right" if 0 < number < 7 else "left")
    for d in found.differences:
        table.add_row(
            d.name,
            f"{d.seconds_a:.4g} s",
            f"{d.seconds_b:.4g} s",
            f"{d.ratio:.3f}",
            f"{d.low:.3f} .. {d.high:.3f}",
            f"{100 * d.share_a:.1f}%",
            f"{100 * d.share_b:.1f}%",
            d.verdict,
        )
    console.print(table)
    for d in found.differences:
        for warning in d.warnings:
            say(console, f"{d.name}: {warning}")
    for where, names in (("A", found.only_a), ("B", found.only_b)):
        for name in names:
            say(console, f"{name}: only in {where}")
    if not found.differences:
        say(
            console,
            "nothing to compare: no case, stage, backend, device and dtype is in both files",
        )


def _print_limits(console: Console, measured: Sequence[Limits]) -> None:
    table = Table()
    table.add_column("")
    for limits in measured:
        table.add_column(f"{limits.threads} thread{'s' * (limits.threads > 1)}", justify="right")
    for key, text in (
        ("read_gbps", "memory read, GB/s"),
        ("fma_gflops", "float32 multiply-add from registers, GFLOP/s"),
        ("dot_bf16_gflops", "bfloat16 dot product from registers, GFLOP/s"),
        ("gemm_float32_gflops", "1024^3 matrix product float32, GFLOP/s"),
        ("gemm_bfloat16_gflops", "1024^3 matrix product bfloat16, GFLOP/s"),
    ):
        table.add_row(text, *(f"{limits.to_dict()[key]:.1f}" for limits in measured))
    console.print(table)
