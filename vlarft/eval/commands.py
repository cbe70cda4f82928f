"""`vlarft eval libero|policy|world-model|reward|gradient|precision`; heavy imports are inside."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from vlarft.errors import ConfigError
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
from vlarft.terminal import Jobs, JsonFile, Python, command_line, console_for, say, write_result

if TYPE_CHECKING:
    from vlarft.demo import Stopwatch

app = typer.Typer(no_args_is_help=True, help="Measure: imaginations, and success in LIBERO.")


@app.callback()
def _group() -> None:
    """Keep a group a group, even with one command."""


@app.command("libero")
def eval_libero(
    policy: Annotated[
        list[Path] | None,
        typer.Option(help="Policy folder (default: bundled); repeat for one a seed."),
    ] = None,
    after: Annotated[
        list[Path] | None,
        typer.Option(help="A fine-tuned policy to compare it with; repeat for one a seed."),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            help="Another to compare with both, NAME=FOLDER; repeat for more, or for one a seed."
        ),
    ] = None,
    data: Data = None,
    suite: Annotated[str, typer.Option(help="LIBERO suite.")] = "libero_object",
    tasks: Annotated[str | None, typer.Option(help="Such as 0-4,7 (default: all).")] = None,
    starts: Annotated[
        str | None,
        typer.Option(
            help="moved, swapped or standard: docs/eval.md (default: moved; under --perturb "
            "standard)."
        ),
    ] = None,
    perturb: Annotated[
        str | None,
        typer.Option(help="Such as object-minor,camera: each beside 'none'; docs/eval.md."),
    ] = None,
    episodes: Annotated[int, typer.Option(help="Starts of each task and seed.")] = 20,
    baselines: Annotated[
        int | None,
        typer.Option(help="Of these, those that baselines play: blind, replay (default: all)."),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Such as 0,1,2: each moves objects anew.")] = "0",
    shift: Annotated[float, typer.Option(help="Largest move in x and y, m.")] = 0.05,
    max_steps: Annotated[
        int | None, typer.Option(help="Longest episode (default: customary for the suite).")
    ] = None,
    final: Annotated[
        bool, typer.Option("--final", help="Initial states 40-49, kept for a last check.")
    ] = False,
    cache: Annotated[Path, typer.Option(help="Folder of episodes already played.")] = Path(
        "runs/libero-episodes"
    ),
    films: Annotated[
        Path | None, typer.Option(help="Folder of an MP4 for each episode played now.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Also write summary.json and report.html here.")
    ] = None,
    jobs: Jobs = 1,
    python: Python = None,
    device: Device = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Success rates in LIBERO's simulator, beside the policy made blind and a replay.

    --data names the recordings that the policies learned from: their standard starts are left out,
    and one episode of each task is replayed. Played episodes are kept and not repeated.

    Example: vlarft eval libero --after runs/rft/policy --starts moved --episodes 20 --jobs 2
    """
    from vlarft.config import dump_config, load_config
    from vlarft.demo import DEMOS, POLICY, Stopwatch, existing, finish
    from vlarft.engine.resolve import resolve_device
    from vlarft.eval.libero import Evaluation, LiberoConfig
    from vlarft.models.flow_policy import FlowPolicy
    from vlarft.progress import phase, progress_bar
    from vlarft.report.environment import environment, write_environment

    console, clock = console_for(json_file), Stopwatch()
    asked = {
        "suite": suite,
        "tasks": ranges("--tasks", tasks),
        "starts": starts or ("standard" if perturb else "moved"),
        "perturb": perturb.split(",") if perturb else [],
        "episodes": episodes,
        "baselines": baselines,
        "seeds": ranges("--seeds", seeds),
        "shift": shift,
        "max_steps": max_steps,
        "final": final,
    }
    config, place = load_config(LiberoConfig, asked), resolve_device(device)
    controls = _named_folders(control or [])
    with clock("loading"), phase("asking LIBERO"):

        def opened(folders: list[Path]) -> list[tuple[Path, FlowPolicy]]:
            return [(f, FlowPolicy.from_pretrained(existing(f)).to(place)) for f in folders]

        evaluation = Evaluation(
            config,
            opened(policy or [POLICY]),
            opened(after or []),
            data or [DEMOS],
            python,
            {name: opened(folders) for name, folders in controls.items()},
        )
    with clock("episodes"), progress_bar("playing") as progress:
        result, outcomes = evaluation.play(cache, jobs=jobs, films=films, progress=progress)
    console.print(result.table())
    for line in result.lines():
        say(console, line)
    facts = evaluation.facts() | {"machine": environment(), "command": command_line()}
    summary = result.to_dict() | facts
    if run:
        write_environment(run)
        dump_config(config, run / "config.yaml")
        rows = "".join(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes)
        (run / "episodes.jsonl").write_text(rows, encoding="utf-8")
        summary = finish(run, summary, clock)
        done(console, [], run / "report.html")
    write_result(json_file, summary)


@app.command("world-model")
def eval_world_model(
    world: World = None,
    data: Data = None,
    run: Annotated[
        Path | None, typer.Option(help="Also write summary.json and report.html here.")
    ] = None,
    split: Annotated[str, typer.Option(help="train or val.")] = "val",
    windows: Annotated[
        int, typer.Option(min=2, help="Windows, spread evenly over the episodes.")
    ] = 128,
    batch: Annotated[int, typer.Option(min=1, help="Windows imagined at once.")] = 16,
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
    """PSNR, SSIM and LPIPS of imaginations, against copying, swapped actions and the ceiling.

    Example: vlarft eval world-model --run runs/quality --windows 128
    """
    from vlarft.demo import (
        DEMOS,
        WORLD,
        EngineOptions,
        Stopwatch,
        judge_world_model,
        load_windows,
    )
    from vlarft.progress import progress_bar

    console, clock = console_for(json_file), Stopwatch()
    options = EngineOptions(backend, dtype, attention, device, cache_dtype)
    with clock("loading"):
        engine = options.load(world or WORLD, metric)
        sampling = sampling_of(engine, seed=seed, temperature=temperature, top_p=top_p, noise=noise)
        chosen = load_windows(data or [DEMOS], split, engine.world.layout)
    with clock("evaluation"), progress_bar("imagining") as progress:
        quality = judge_world_model(
            engine, chosen, windows, sampling, batch=batch, progress=progress
        )
    summary = quality.to_dict() | {"engine": options.used(engine), "command": command_line()}
    console.print(quality.table())
    for line in quality.lines():
        say(console, line)
    if run:
        asked = {
            "world": str(world or WORLD),
            "data": [str(path) for path in data or [DEMOS]],
            "split": split,
            "windows": windows,
            "batch": batch,
            "metric": metric,
            "engine": asdict(options),
            "sampling": sampling.model_dump(mode="json"),
        }
        summary = _write_run(run, asked, summary, clock, console)
    write_result(json_file, summary)


@app.command("reward")
def eval_reward(
    world: World = None,
    data: Data = None,
    run: Annotated[
        Path | None, typer.Option(help="Also write summary.json and report.html here.")
    ] = None,
    split: Annotated[str, typer.Option(help="train or val.")] = "val",
    windows: Annotated[
        int, typer.Option(min=2, help="Windows, spread evenly over the episodes.")
    ] = 48,
    at_grasp: Annotated[
        bool, typer.Option("--at-grasp", help="Only windows in which the gripper closes.")
    ] = False,
    rollouts: Annotated[int, typer.Option(min=4, help="Perturbed actions of a window.")] = 8,
    seeds: Annotated[int, typer.Option(min=2, help="Noise seeds of each.")] = 4,
    horizon: Annotated[
        bool,
        typer.Option(help="Also imagine four chunks in a row, where episodes are long enough."),
    ] = True,
    simulator: Annotated[
        bool, typer.Option("--simulator", help="Also execute the same actions in LIBERO.")
    ] = False,
    states: Annotated[
        Path | None,
        typer.Option(help="Recorded states to execute from (default: those in the data)."),
    ] = None,
    python: Python = None,
    jobs: Jobs = 1,
    policy: Annotated[
        Path | None,
        typer.Option(help="Also judge groups as fine-tuning this policy would draw them."),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="Fine-tuning's settings for --policy, its sampling too (default: the paper's)."
        ),
    ] = None,
    settings: Settings = None,
    failures: Annotated[
        list[Path] | None,
        typer.Option(help="Drawn recordings of failed episodes, to tell from the data's."),
    ] = None,
    metric: Metric = "lpips-alex",
    seed: Seed = 0,
    temperature: Temperature = None,
    top_p: TopP = None,
    backend: Backend = "auto",
    dtype: Dtype = "float32",
    cache_dtype: CacheDtype = None,
    attention: Attention = "sdpa",
    device: Device = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Does the reward mean anything? Conventions, noise, order, horizon, simulator; a verdict.

    Example: vlarft eval reward --world my/world --data my/demonstrations --run runs/reward
    """
    from vlarft.config import load_config
    from vlarft.data.libero import read_episodes
    from vlarft.data.windows import Windows
    from vlarft.demo import DEMOS, WORLD, EngineOptions, Stopwatch, existing, load_windows
    from vlarft.errors import DataError
    from vlarft.eval.entries import measure_entries
    from vlarft.eval.explored import measure_explored
    from vlarft.eval.horizon import CHUNKS, measure_horizon
    from vlarft.eval.outcomes import measure_outcomes
    from vlarft.eval.reward import evaluate_reward
    from vlarft.eval.simulated import Simulations
    from vlarft.eval.uncertainty import measure_uncertainty
    from vlarft.models.flow_policy import FlowPolicy
    from vlarft.progress import progress_bar
    from vlarft.rft.config import RFTConfig
    from vlarft.rft.evaluation import spread_windows

    if not simulator and (states or python):
        raise ConfigError("--states and --python are about the simulator; add --simulator")
    if (config or settings) and not policy:
        raise ConfigError("--config and --set are about a policy's groups; add --policy")
    wanted = load_config(RFTConfig, config, [f"reward.metric={metric}", *(settings or [])])
    if wanted.reward.metric != metric:
        raise ConfigError(f"--set reward.metric={wanted.reward.metric}: name it by --metric")
    console, clock = console_for(json_file), Stopwatch()
    options = EngineOptions(backend, dtype, attention, device, cache_dtype)
    with clock("loading"):
        engine = options.load(world or WORLD, metric)
        sampling = sampling_of(engine, seed=seed, temperature=temperature, top_p=top_p, noise=None)
        chosen = load_windows(data or [DEMOS], split, engine.world.layout)
        picked = spread_windows(len(chosen), windows)
        if at_grasp:
            grasps = chosen.grasps()
            if len(grasps) < 2:
                raise DataError(
                    f"--at-grasp: the gripper closes in {len(grasps)} windows of this data; give "
                    "more of it, or leave the option out"
                )
            picked = grasps[spread_windows(len(grasps), windows)]
        tried = None
        if policy:
            explored_with = wanted.exploration.settings()
            tried = FlowPolicy.from_pretrained(existing(policy), settings=explored_with)
            orientation = tried.statistics.orientation
            engine.world.layout.require_orientation(orientation, "the policy's statistics.json")
            tried.to(engine.device)
        failed = read_episodes(failures) if failures else None
    tries = None
    if tried:
        with clock("explored"), progress_bar("judging the policy's groups") as progress:
            tries = measure_explored(
                engine,
                tried,
                chosen,
                picked,
                wanted,
                seeds=range(seed, seed + seeds),
                progress=progress,
            )
    simulations = None
    if simulator:
        simulations = Simulations(chosen, picked, states=states, python=python, jobs=jobs)
    ends = far = None
    if failed:
        with clock("failures"), progress_bar("comparing ends") as progress:
            ends = measure_outcomes(engine, chosen.episodes, failed, sampling, progress=progress)
    if horizon:
        try:
            long = Windows(chosen.episodes, CHUNKS * chosen.frames)
        except DataError as error:
            say(console, f"horizon left out: {error}")
        else:
            with clock("horizon"), progress_bar("imagining chunk after chunk") as progress:
                numbers = spread_windows(len(long), windows)
                far = measure_horizon(engine, long, numbers, sampling, progress=progress)
    with clock("uncertainty"), progress_bar("asking what is not known") as progress:
        doubt = measure_uncertainty(engine, chosen, picked, sampling, progress=progress)
    with clock("entries"), progress_bar("shifting entries") as progress:
        directions = measure_entries(engine, chosen, picked, sampling, progress=progress)
    with clock("groups"), progress_bar("judging groups") as progress:
        report = evaluate_reward(
            engine,
            chosen,
            picked,
            sampling,
            rollouts=rollouts,
            seeds=seeds,
            horizon=far,
            uncertainty=doubt,
            outcomes=ends,
            entries=directions,
            explored=tries,
            simulations=simulations,
            progress=progress,
        )
    console.print(report.table())
    for line in report.lines():
        say(console, line)
    summary = report.to_dict() | {"engine": options.used(engine), "command": command_line()}
    if run:
        asked = {
            "world": str(world or WORLD),
            "data": [str(path) for path in data or [DEMOS]],
            "split": split,
            "windows": windows,
            "at_grasp": at_grasp,
            "rollouts": rollouts,
            "seeds": seeds,
            "simulator": simulator,
            "policy": policy and {"folder": str(policy), "rft": wanted.model_dump(mode="json")},
            "failures": [str(path) for path in failures or []],
            "metric": metric,
            "engine": asdict(options),
            "sampling": sampling.model_dump(mode="json"),
        }
        summary = _write_run(run, asked, summary, clock, console)
    write_result(json_file, summary)


@app.command("policy")
def eval_policy(
    policy: Annotated[
        list[Path] | None,
        typer.Option(help="Policy folder (default: bundled); repeat to compare with the first."),
    ] = None,
    data: Data = None,
    split: Annotated[str, typer.Option(help="train or val.")] = "val",
    windows: Annotated[
        int | None,
        typer.Option(min=2, help="Windows, spread evenly over the episodes (default: all)."),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """What a policy would execute where the expert has been, at grasps too; no world model.

    Example: vlarft eval policy --policy runs/start/policy --policy runs/rft/policy --data my/data
    """
    from torch import Tensor

    from vlarft.data.libero import read_episodes
    from vlarft.data.windows import Windows
    from vlarft.demo import DEMOS, POLICY, existing
    from vlarft.eval.executed import Executed, executed_chunks, measure_executed, table
    from vlarft.models.flow_policy import FlowPolicy
    from vlarft.progress import progress_bar
    from vlarft.rft.evaluation import spread_windows

    if split not in ("train", "val"):
        raise ConfigError(f"--split {split}; allowed: train, val")
    console, folders = console_for(json_file), policy or [POLICY]
    if len(set(folders)) < len(folders):
        raise ConfigError("--policy names a folder twice; compare it with another one")
    episodes = read_episodes(list(data or [DEMOS]), split=split)  # type: ignore[arg-type]
    chunks: list[Tensor] = []
    found: dict[str, Executed] = {}
    for folder in folders:
        loaded = FlowPolicy.from_pretrained(existing(folder)).eval()
        recorded = Windows(episodes, loaded.config.horizon)
        numbers = spread_windows(len(recorded), min(windows or len(recorded), len(recorded)))
        if chunks and chunks[0].shape[1] != recorded.frames:
            raise ConfigError(
                f"--policy {folder} plans {recorded.frames} actions, the first "
                f"{chunks[0].shape[1]}; compare policies of one horizon"
            )
        with progress_bar(f"asking {folder}") as progress:
            chunks.append(executed_chunks(loaded, recorded, numbers, progress=progress))
        expert = recorded.batch(numbers).actions
        before = chunks[0] if len(chunks) > 1 else None
        found[str(folder)] = measure_executed(chunks[-1], expert, recorded.episode[numbers], before)
    console.print(table(found))
    if len(found) > 1:
        say(console, "brackets: 95% interval; after the first column, of the change from it")
    summary = {"split": split, "policies": {name: one.to_dict() for name, one in found.items()}}
    write_result(json_file, summary | {"command": command_line()})


@app.command("precision")
def eval_precision(
    world: World = None,
    data: Data = None,
    split: Annotated[str, typer.Option(help="train or val.")] = "val",
    windows: Annotated[
        int, typer.Option(min=2, help="Windows, spread evenly over the episodes.")
    ] = 128,
    batch: Annotated[int, typer.Option(min=1, help="Windows at once.")] = 16,
    json_file: JsonFile = None,
) -> None:
    """What bfloat16 and a float8 cache cost: logits and cross-entropy against float32, on the CPU.

    Example: vlarft eval precision --windows 128
    """
    from vlarft.demo import DEMOS, WORLD, existing, load_windows
    from vlarft.eval.precision import measure_precision, table
    from vlarft.models.world_model import WorldModel
    from vlarft.progress import progress_bar
    from vlarft.rft.evaluation import spread_windows

    console = console_for(json_file)
    model = WorldModel.from_pretrained(existing(world or WORLD))
    chosen = load_windows(data or [DEMOS], split, model.layout)
    numbers = spread_windows(len(chosen), windows)
    with progress_bar("scoring") as progress:
        costs = measure_precision(model, chosen, numbers, batch=batch, progress=progress)
    console.print(table(costs))
    summary = {
        "windows": len(numbers),
        "tokens": len(numbers) * model.layout.frames * model.frame_tokens,
        "precisions": [cost.to_dict() for cost in costs],
        "command": command_line(),
    }
    write_result(json_file, summary)


@app.command("gradient")
def eval_gradient(
    world: World = None,
    policy: PolicyFolder = None,
    data: Data = None,
    config: Annotated[
        str | None, typer.Option(help="Fine-tuning's settings (default: the paper's).")
    ] = None,
    settings: Settings = None,
    batches: Annotated[int, typer.Option(min=3, help="Independent batches of rollouts.")] = 24,
    backend: Backend = "auto",
    dtype: Dtype = "float32",
    cache_dtype: CacheDtype = None,
    attention: Attention = "sdpa",
    device: Device = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Would fine-tuning push the policy where executed actions get better? Nothing is trained.

    Example: vlarft eval gradient --policy my/policy --config libero_object_small
    """
    from vlarft.config import load_config
    from vlarft.demo import DEMOS, POLICY, WORLD, EngineOptions, load_bench
    from vlarft.eval.gradient import measure_gradient
    from vlarft.progress import progress_bar
    from vlarft.rft.config import RFTConfig

    console = console_for(json_file)
    wanted = load_config(RFTConfig, config, settings or [])
    options = EngineOptions(backend, dtype, attention, device, cache_dtype)
    bench = load_bench(
        world or WORLD,
        policy or POLICY,
        data or [DEMOS],
        wanted.reward.metric,
        options,
        wanted.exploration.settings(),
    )
    bench.policy.to(bench.engine.device)
    with progress_bar("drawing batches") as progress:
        report = measure_gradient(
            bench.engine, bench.policy, bench.training, wanted, batches=batches, progress=progress
        )
    console.print(report.table())
    say(console, report.verdict)
    asked = {"rft": wanted.model_dump(mode="json"), "engine": options.used(bench.engine)}
    write_result(json_file, report.to_dict() | asked | {"command": command_line()})


def _named_folders(values: list[str]) -> dict[str, list[Path]]:
    """Folders of each --control by its name, in the order of the command line."""
    found: dict[str, list[Path]] = {}
    for value in values:
        name, equals, folder = value.partition("=")
        if not (name and equals and folder):
            raise ConfigError(
                f"--control {value}: wanted NAME=FOLDER, such as "
                "permuted=runs/rft/seed-0/control/policy"
            )
        found.setdefault(name, []).append(Path(folder))
    return found


def _write_run(
    run: Path, asked: dict[str, Any], summary: dict[str, Any], clock: "Stopwatch", console: Console
) -> dict[str, Any]:
    """What was asked for, on which machine, what came out, and its page; the summary as written."""
    from vlarft.config import dump_values
    from vlarft.demo import finish
    from vlarft.report.environment import write_environment

    write_environment(run)
    dump_values(asked, run / "config.yaml")
    summary = finish(run, summary, clock)
    done(console, [], run / "report.html")
    return summary
