"""The `vlarft` command: one function a command, heavy imports inside, so that `--help` is quick.

Exit codes: 0 done, 2 a user's mistake (one line on standard error), 130 stopped by Ctrl-C.
"""

import difflib
import importlib
import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from typer.core import TyperGroup

from vlarft.errors import ConfigError, VlarftError
from vlarft.options import (
    Attention,
    Backend,
    CacheDtype,
    Data,
    Device,
    Dtype,
    Metric,
    Noise,
    PolicyFolder,
    Seed,
    Settings,
    Temperature,
    TopP,
    World,
    done,
    ranges,
    sampling_of,
)
from vlarft.terminal import (
    Jobs,
    JsonFile,
    Python,
    command_line,
    console_for,
    say,
    torchrun_rank,
    write_result,
)

_UsageError: Any = typer.BadParameter.__mro__[1]  # typer may carry its own copy of click
_SUBCOMMANDS = {
    "bench": "vlarft.bench.commands",
    "data": "vlarft.data.commands",
    "eval": "vlarft.eval.commands",
    "train": "vlarft.train.commands",
}


class LazyGroup(TyperGroup):
    """Imports the modules of `bench`, `data`, `eval` and `train` only when called for."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Replace a placeholder by the real group."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in _SUBCOMMANDS:
            module = importlib.import_module(_SUBCOMMANDS[name])
            command = typer.main.get_command(module.app)
            command.name = name
        return name, command, rest


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fine-tune robot policies inside a learned world model. Start with: vlarft demo",
)
bench_app = typer.Typer(help="Measure stages beside baselines and this machine's limits.")
data_app = typer.Typer(help="LIBERO demonstrations: look, cut, draw, measure.")
train_app = typer.Typer(
    help="Train the tokenizer, the world model, the policy or a success classifier."
)
eval_app = typer.Typer(no_args_is_help=True, help="Measure: imaginations, and success in LIBERO.")
weights_app = typer.Typer(no_args_is_help=True, help="Get pre-trained weights, checked by hash.")
app.add_typer(bench_app, name="bench")
app.add_typer(data_app, name="data")
app.add_typer(train_app, name="train")
app.add_typer(eval_app, name="eval")
app.add_typer(weights_app, name="weights")


@bench_app.callback()
@data_app.callback()
@train_app.callback()
@eval_app.callback()
@weights_app.callback()
def _group() -> None:
    """Keep a group a group, even with one command."""


@app.command()
def demo(
    run: Annotated[
        Path | None,
        typer.Option(help="Run folder (default: runs/demo, or runs/demo-from-scratch)."),
    ] = None,
    config: Annotated[str, typer.Option(help="Preset name or YAML file.")] = "demo",
    settings: Settings = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train all models first, shortly.")
    ] = False,
    backend: Backend = "auto",
    dtype: Dtype = "float32",
    attention: Attention = "sdpa",
    json_file: JsonFile = None,
) -> None:
    """Fine-tune the bundled policy inside the bundled world model and write one HTML report.

    A second call continues where a stopped one ended. Example: vlarft demo --run runs/demo
    """
    from vlarft.config import load_config
    from vlarft.demo import DemoConfig, EngineOptions, headline, run_demo

    console = console_for(json_file)
    run = run or Path("runs/demo-from-scratch" if from_scratch else "runs/demo")
    with redirect_stdout(sys.stderr) if json_file == "-" else nullcontext():
        summary = run_demo(
            run,
            load_config(DemoConfig, config, settings or []),
            from_scratch=from_scratch,
            options=EngineOptions(backend, dtype, attention),
            command=command_line(),
            say=partial(say, console),
        )
    done(console, headline(summary), run / "report.html")
    write_result(json_file, summary)


@app.command()
def rft(
    run: Annotated[Path, typer.Option(help="Run folder; an unfinished run there is continued.")],
    world: World = None,
    policy: PolicyFolder = None,
    data: Data = None,
    config: Annotated[
        str | None, typer.Option(help="Preset name or YAML file (default: the paper's values).")
    ] = None,
    settings: Settings = None,
    seeds: Annotated[
        str | None, typer.Option(help="Such as 0,1,2: treatment and control for each seed.")
    ] = None,
    pictures: Annotated[int, typer.Option(min=1, help="Scenes in the report.")] = 4,
    divide_vlm: Annotated[
        bool, typer.Option("--shard-vlm", help="Divide a VLM's weights among the processes.")
    ] = False,
    backend: Backend = "auto",
    dtype: Dtype = "float32",
    cache_dtype: CacheDtype = None,
    attention: Attention = "sdpa",
    device: Device = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Reinforcement fine-tuning: one run, or with --seeds an experiment with its control.

    Several processes: torchrun --nproc-per-node 2 -m -- vlarft rft ... (docs/rft.md)

    Example: vlarft rft --run runs/rft --config rft-small --seeds 0,1,2 --set steps=50
    """
    from vlarft.config import load_config
    from vlarft.demo import (
        DEMOS,
        POLICY,
        WORLD,
        EngineOptions,
        Stopwatch,
        experiment,
        finish,
        headline,
        load_bench,
        show_policies,
    )
    from vlarft.report.environment import write_environment
    from vlarft.rft.config import RFTConfig
    from vlarft.rft.parallel import join_ranks
    from vlarft.rft.run import run_rft
    from vlarft.rft.shard import shard_vlm

    console, clock = console_for(json_file), Stopwatch()
    wanted = load_config(RFTConfig, config, settings or [])
    numbers = ranges("--seeds", seeds)
    start = policy or POLICY
    with join_ranks(device) as (ranks, place):
        ranks.share(wanted.scenes)  # refused before anything is loaded
        options = EngineOptions(backend, dtype, attention, place, cache_dtype)
        metric = wanted.reward.metric
        with clock("loading"):
            bench = load_bench(
                world or WORLD,
                start,
                data or [DEMOS],
                metric,
                options,
                wanted.exploration.settings(),
            )
            if divide_vlm:
                shard_vlm(bench.policy, ranks, bench.engine.device)
            bench.policy.to(bench.engine.device)
        if ranks.first:
            write_environment(run)
        extra = {
            "engine": options.used(bench.engine),
            "processes": ranks.count,
            "command": command_line(),
        }
        if numbers:
            summary = experiment(bench, start, run, wanted, numbers, pictures, clock, extra, ranks)
        else:
            summary = run_rft(
                bench.engine,
                bench.policy,
                bench.training,
                bench.validation,
                run,
                wanted,
                ranks=ranks,
            ).summary
            if ranks.first:
                with clock("pictures"):
                    show_policies(bench, start, run / "policy", run, wanted, pictures)
                summary = finish(run, summary | extra, clock)
    if not ranks.first:
        return
    done(console, headline(summary), run / "report.html")
    write_result(json_file, summary)


@app.command()
def ablate(
    run: Annotated[
        Path | None, typer.Option(help="Run folder; unfinished variations there are continued.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Show this summary.json instead of running.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Run this variation, GROUP-NAME, and the base; repeat."),
    ] = None,
    merge: Annotated[
        Path | None, typer.Option(help="Put the rows into this summary.json of an earlier run.")
    ] = None,
    into: Annotated[
        Path | None, typer.Option(help="Also write the table between this file's markers.")
    ] = None,
    world: World = None,
    policy: PolicyFolder = None,
    data: Data = None,
    config: Annotated[str, typer.Option(help="Preset name or YAML file.")] = "ablations",
    settings: Settings = None,
    backend: Backend = "auto",
    dtype: Dtype = "float32",
    cache_dtype: CacheDtype = None,
    attention: Attention = "sdpa",
    device: Device = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Fine-tune with one thing changed at a time and compare, judged alike; one table.

    Example: vlarft ablate --run runs/ablations
    """
    from vlarft.config import dump_config, load_config
    from vlarft.demo import DEMOS, POLICY, WORLD, EngineOptions, Stopwatch, finish, load_bench
    from vlarft.files import replace_block, write_json
    from vlarft.report.environment import environment, write_environment
    from vlarft.rft import ablation
    from vlarft.rft.config import RFTConfig

    console, clock = console_for(json_file), Stopwatch()
    if (run is None) == (results is None):
        raise ConfigError("ablate: give either --run DIR, or --results FILE to show")
    if results is not None and (only or merge):
        raise ConfigError("--only and --merge are about a run; leave --results out")
    if results is not None:
        rows, summary = ablation.read_rows(results), json.loads(results.read_text())
    else:
        assert run is not None
        everything = load_config(ablation.AblationConfig, config, settings or [])
        wanted = ablation.only(everything, only) if only else everything
        if merge is not None:
            ablation.read_rows(merge)  # refused before anything runs
        base = load_config(RFTConfig, wanted.rft, wanted.rft_set)
        options = EngineOptions(backend, dtype, attention, device, cache_dtype)
        start = policy or POLICY
        with clock("loading"):
            bench = load_bench(world or WORLD, start, data or [DEMOS], base.reward.metric, options)
        write_environment(run)
        dump_config(wanted, run / "config.yaml")
        with clock("variations"):
            rows = ablation.run_ablations(
                bench.engine, start, bench.training, bench.validation, run, wanted,
                partial(say, console),
            )  # fmt: skip
        summary = {
            "kind": "ablations",
            "rows": ablation.to_dict(rows),
            "seeds": list(wanted.seeds),
            "base": base.model_dump(mode="json"),
            "engine": options.used(bench.engine),
            "machine": environment(),
            "command": command_line(),
        }
        summary = finish(run, summary, clock)
        done(console, [], run / "report.html")
        if merge is not None:
            summary = ablation.merged(merge, summary, everything)
            rows = [ablation.Row.from_dict(values) for values in summary["rows"]]
            write_json(merge, summary)
    if into is not None:
        replace_block(into, "ablations", ablation.table(rows))
    elif json_file != "-":
        console.print(ablation.table(rows), highlight=False, markup=False, soft_wrap=True)
    write_result(json_file, summary)


@app.command()
def record(
    out: Annotated[Path, typer.Option(help="Folder of the recordings; continued when it exists.")],
    suite: Annotated[str, typer.Option(help="LIBERO suite.")] = "libero_object",
    tasks: Annotated[str | None, typer.Option(help="Such as 0-4,7 (default: all).")] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Tries of each task.")] = 10,
    starts: Annotated[
        str, typer.Option(help="Kinds in turn: standard, moved, swapped, spoilt (docs/data.md).")
    ] = "standard",
    shift: Annotated[
        float, typer.Option(help="Largest move of objects and goal in x and y, m.")
    ] = 0.05,
    noise: Annotated[float, typer.Option(help="On the expert's motion, action units.")] = 0.06,
    max_steps: Annotated[int, typer.Option(help="Longest episode.")] = 280,
    seed: Annotated[int, typer.Option(help="Of moves and noise.")] = 0,
    failures: Annotated[
        bool, typer.Option("--failures", help="Keep failed episodes too, in OUT/failures.")
    ] = False,
    frames: Annotated[
        Path | None, typer.Option(help="Also draw the episodes into files in this folder.")
    ] = None,
    size: Annotated[int, typer.Option(help="Edge of the pictures in px, 16 to 1024.")] = 64,
    camera: Annotated[
        list[str] | None, typer.Option(help="agentview (default) or another one; repeat.")
    ] = None,
    jobs: Jobs = 1,
    python: Python = None,
    json_file: JsonFile = None,
) -> None:
    """Record a scripted expert in LIBERO's simulator; finished episodes are kept and not repeated.

    Example: vlarft record --out recordings --episodes 14 --starts standard,moved --jobs 2
    """
    from vlarft.config import load_config
    from vlarft.data.commands import episodes_progress
    from vlarft.data.record import FAILURES, RecordConfig, Recorder, outcome_rows, undrawn
    from vlarft.data.render import render_files
    from vlarft.progress import progress_bar

    console = console_for(json_file)
    asked = {
        "suite": suite,
        "starts": starts.split(","),
        "shift": shift,
        "noise": noise,
        "max_steps": max_steps,
        "seed": seed,
    }
    recorder = Recorder(
        out, load_config(RecordConfig, asked), keep_failures=failures, python=python
    )
    numbers = ranges("--tasks", tasks) or list(range(recorder.tasks))
    with progress_bar("recording") as progress:
        recorded = recorder.record(numbers, episodes, jobs=jobs, progress=progress)
    rows = outcome_rows(recorded)
    for row in rows:
        lost = f", {row['not_placed']} without a start" if row["not_placed"] else ""
        say(console, f"{row['kind']}: {row['successes']} of {row['episodes']} solved{lost}")
    if frames:
        work = [
            pair
            for success, folder in ((True, frames), (False, frames / FAILURES))
            for pair in undrawn([recorder.file(task, success) for task in numbers], folder)
        ]
        with episodes_progress() as shown:
            render_files(work, size, camera or ["agentview"], None, jobs, shown, python=python)
    say(console, f"recordings: {out.resolve()}")
    result = {"config": asked, "outcomes": rows, "episodes": [asdict(one) for one in recorded]}
    write_result(json_file, result)


@app.command()
def imagine(
    out: Annotated[Path, typer.Option(help=".gif or .webp to write.")] = Path("imagined.gif"),
    world: World = None,
    data: Data = None,
    episode: Annotated[int, typer.Option(min=0, help="Number of the episode in the data.")] = 0,
    start: Annotated[int, typer.Option(min=0, help="Step of the given frame.")] = 0,
    actions: Annotated[
        str,
        typer.Option(
            help="still, a .npy file of raw actions [T,7], or the number of another episode."
        ),
    ] = "still",
    split: Annotated[str, typer.Option(help="train or val.")] = "val",
    scale: Annotated[int, typer.Option(min=1, max=16, help="Enlargement of the picture.")] = 3,
    metric: Metric = "lpips-alex",
    seed: Seed = 0,
    temperature: Temperature = None,
    top_p: TopP = None,
    noise: Noise = None,
    backend: Backend = "auto",
    dtype: Dtype = "float32",
    cache_dtype: CacheDtype = None,
    attention: Attention = "sdpa",
    device: Device = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Imagine one scene with given actions beside the expert's, as an animation with distances.

    Example: vlarft imagine --episode 2 --start 40 --actions 5 --out imagined.gif
    """
    from vlarft.demo import DEMOS, WORLD, EngineOptions, load_windows
    from vlarft.report.imagination import imagine_actions, write_animation

    console = console_for(json_file)
    if out.suffix not in (".gif", ".webp"):
        raise ConfigError(
            f"--out {out}: allowed: a name that ends in .gif or .webp; a film of a GIF: "
            "ffmpeg -i imagined.gif -pix_fmt yuv420p imagined.mp4"
        )
    options = EngineOptions(backend, dtype, attention, device, cache_dtype)
    engine = options.load(world or WORLD, metric)
    sampling = sampling_of(engine, seed=seed, temperature=temperature, top_p=top_p, noise=noise)
    windows = load_windows(data or [DEMOS], split, engine.world.layout)
    result = imagine_actions(engine, windows, episode, start, actions, sampling)
    write_animation(out, result.panels, scale)
    say(console, f"{result.instruction} (episode {episode}, step {start}; actions: {actions})")
    for frame, (l1, perceptual) in enumerate(
        zip(result.l1, result.perceptual, strict=True), start=1
    ):
        numbers = f"L1 {l1:.4f}  {metric} {perceptual:.4f}"
        say(console, f"frame {frame}: {numbers}  to the expert's imagination")
    say(console, f"{out}: recorded | expert imagined | these actions imagined | difference x4")
    used = {"engine": options.used(engine), "file": str(out)}
    write_result(json_file, result.to_dict() | used)


@weights_app.command("lpips")
def weights_lpips(
    net: Annotated[Literal["alex", "vgg", "squeeze"], typer.Option(help="Backbone.")] = "vgg",
    file: Annotated[
        Path | None,
        typer.Option(
            help="torchvision's .pth or an LPIPS safetensors file, instead of a download."
        ),
    ] = None,
) -> None:
    """Fetch LPIPS weights (torchvision's address) or import a file; the hash is checked.

    Example: vlarft weights lpips --net vgg --file vgg16-397923af.pth
    """
    from vlarft.models.lpips import install_weights, weights_path

    present = weights_path(net)
    if file is None and present.is_file():
        say(Console(), f"{present}: already here")
        return
    say(Console(), f"{install_weights(net, file)}: LPIPS weights, checked")


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
    """Write the HTML report of a run again.

    Example: vlarft report runs/demo
    """
    from vlarft.report.build import write_report

    done(Console(), [], write_report(run))


@app.command()
def info(json_file: JsonFile = None) -> None:
    """What was built, what this machine can run, and why the rest cannot.

    Example: vlarft info --json -
    """
    from vlarft.info import info as collect
    from vlarft.info import render_info

    if json_file != "-":
        console_for(json_file).print(render_info(), highlight=False, markup=False)
    write_result(json_file, collect())


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `vlarft` command; always ends in SystemExit."""
    _limit_spinning()
    sys.exit(run_command(sys.argv[1:] if arguments is None else list(arguments)))


def _limit_spinning() -> None:
    """Before torch is loaded: its idle threads sleep after 10,000 turns of waiting, not 300,000.

    That is libgomp's default, milliseconds in which a thread without work keeps a core from who has
    some. Nothing is lost on an idle machine; what a user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def run_command(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    if torchrun_rank()[1] > 1 and arguments[:1] != ["rft"]:
        return _mistake("only `vlarft rft` divides its work among the processes of torchrun")
    try:
        result = typer.main.get_command(app).main(
            args=arguments, prog_name="vlarft", standalone_mode=False
        )
    except VlarftError as error:
        return _mistake(str(error))
    except _UsageError as error:
        return _mistake(_usage(error))
    except (KeyboardInterrupt, typer.Abort):
        return _stopped(arguments)
    except OSError as error:
        if error.filename is None:
            raise
        return _mistake(f"{error.filename}: {error.strerror}")
    if result == 130:  # typer turns Ctrl-C into this
        return _stopped(arguments)
    return result if isinstance(result, int) else 0


def _stopped(arguments: list[str]) -> int:
    """Exit code of Ctrl-C, after a line that says how to go on."""
    hints = {
        "demo": "; what was finished is kept, the same command goes on from there",
        "rft": "; what was finished is kept, the same command goes on from there",
        "ablate": "; what was finished is kept, the same command goes on from there",
        "eval libero": "; played episodes are kept, the same command goes on from there",
        "record": "; finished episodes are kept, the same command goes on from there",
        "train": "; finished steps are kept, the same command with --resume goes on after them",
    }
    name = " ".join(arguments[: 2 if arguments[:1] == ["eval"] else 1])
    if torchrun_rank()[0] == 0:
        sys.stderr.write(f"stopped{hints.get(name, '')}\n")
    return 130


def _mistake(message: str) -> int:
    rank, processes = torchrun_rank()
    whose = f" (process {rank})" if processes > 1 else ""
    sys.stderr.write(f"error{whose}: " + " ".join(message.split()) + "\n")
    return 2


def _usage(error: Any) -> str:
    """One line for a wrong command line, with the nearest known option."""
    if type(error).__name__ == "NoArgsIsHelpError":
        with redirect_stdout(sys.stderr):
            typer.echo(error.ctx.get_help())
        return "name a command"
    if type(error).__name__ != "NoSuchOption":
        return str(error.format_message())
    known = sorted(
        {
            name
            for parameter in error.ctx.command.params
            for name in parameter.opts
            if name.startswith("--")
        }
    )
    near = difflib.get_close_matches(error.option_name, known, n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    return f"unknown option '{error.option_name}'{hint}; known: {', '.join([*known, '--help'])}"
