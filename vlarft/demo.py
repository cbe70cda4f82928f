"""`vlarft demo` and the pieces of it that `vlarft rft` and `vlarft eval world-model` share."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from vlarft.checkpoint import latest_checkpoint
from vlarft.config import Config, dump_config, load_config
from vlarft.data.libero import ORIENTATION, read_episodes
from vlarft.data.windows import Windows
from vlarft.engine import RolloutEngine, Sampling
from vlarft.engine.resolve import resolve_device, resolve_dtype
from vlarft.errors import CheckpointError, DataError
from vlarft.eval.world_model import WorldModelReport, evaluate_world_model
from vlarft.files import write_json
from vlarft.models.flow_policy import FlowPolicy
from vlarft.models.layout import Layout
from vlarft.progress import phase, progress_bar
from vlarft.reference.attention import causal_attention
from vlarft.report.build import write_report
from vlarft.report.environment import write_environment
from vlarft.report.scenes import imagine_scenes, save_scenes
from vlarft.rft.config import RFTConfig
from vlarft.rft.evaluation import make_sampling, spread_windows
from vlarft.rft.experiment import run_experiment
from vlarft.rft.parallel import ALONE, Ranks
from vlarft.train.commands import Pretraining, train_policy, train_tokenizer, train_world_model

ASSETS = Path(__file__).parent / "assets"
DEMOS = ASSETS / "demos" / "libero_object_64"
WORLD = ASSETS / "checkpoints" / "world"
POLICY = ASSETS / "checkpoints" / "policy"
PRETRAINING = "pretraining"  # folder of a run that trained its own models

Say = Callable[[str], None]


class DemoConfig(Config):
    """What the demo runs; preset `demo`."""

    rft: str = "rft-small"
    """Preset or file of both arms."""
    rft_set: tuple[str, ...] = ()
    """Overrides of it, `key=value`."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    """Seeds of the experiment, each with a treatment and a control."""
    world_model_windows: Annotated[int, Field(ge=2)] = 64
    """Validation windows that judge the world model."""
    pictures: Annotated[int, Field(ge=1)] = 4
    """Scenes shown in the report."""
    pretraining: str = "small"
    """Preset or file of the models that `--from-scratch` trains."""
    pretraining_set: tuple[str, ...] = ()
    """Overrides of it, `key=value`."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the engine computes; allowed values: see `RolloutEngine`.

    Raises:
        BackendError, ConfigError: an option is unknown or cannot run here.
    """

    backend: str = "auto"
    dtype: str = "float32"
    attention: str = "sdpa"
    device: str = "cpu"
    cache_dtype: str | None = None

    def __post_init__(self) -> None:
        causal_attention(self.attention, resolve_device(self.device), resolve_dtype(self.dtype))

    def load(self, world: Path, metric: str) -> RolloutEngine:
        """The engine of a world folder.

        Raises:
            CheckpointError: the folder is missing or damaged.
            BackendError, ConfigError: back end or metric is unknown, or cannot run here.
        """
        return RolloutEngine.load(existing(world), metric=metric, **asdict(self))

    def used(self, engine: RolloutEngine) -> dict[str, str | None]:
        """What runs, with back end and device as the engine resolved them; for `summary.json`."""
        return asdict(self) | {"backend": engine.backend, "device": str(engine.device)}


@dataclass(frozen=True, slots=True)
class Bench:
    """What an experiment needs: engine, starting policy, and windows of both splits."""

    engine: RolloutEngine
    policy: FlowPolicy
    training: Windows
    validation: Windows


def load_bench(
    world: Path,
    policy: Path,
    data: Sequence[Path],
    metric: str,
    options: EngineOptions,
    settings: Sequence[str] = (),
) -> Bench:
    """Load models and demonstrations; `settings` change the policy's configuration.

    Raises:
        CheckpointError, DataError: a part is missing or damaged, or they see frames turned in
            different ways.
    """
    engine = options.load(world, metric)
    layout = engine.world.layout
    start = FlowPolicy.from_pretrained(existing(policy), settings=settings)
    layout.require_orientation(start.statistics.orientation, "the policy's statistics.json")
    return Bench(
        engine, start, load_windows(data, "train", layout), load_windows(data, "val", layout)
    )


def load_windows(data: Sequence[Path], split: str, layout: Layout) -> Windows:
    """Windows of one split ("train" or "val") for a world model.

    Raises:
        CheckpointError: the world model was trained on frames turned another way.
        DataError: the split is unknown, or the data missing or damaged.
    """
    layout.require_orientation(ORIENTATION, "the data's reader")
    if split not in ("train", "val"):
        raise DataError(f"split '{split}'; allowed: train, val")
    return Windows(read_episodes(list(data), split=split), layout.frames)  # type: ignore[arg-type]


def existing(folder: Path) -> Path:
    """The folder itself.

    Raises:
        CheckpointError: it is missing; bundled ones come with the repository.
    """
    if not folder.is_dir():
        hint = "; make it with: vlarft train --help" if ASSETS in folder.parents else ""
        raise CheckpointError(f"{folder}: no such model folder{hint}")
    return folder


class Stopwatch:
    """Seconds of named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count a `with` block towards a stage."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def judge_world_model(
    engine: RolloutEngine,
    validation: Windows,
    count: int,
    sampling: Sampling,
    *,
    batch: int = 16,
    perceptual: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> WorldModelReport:
    """Evaluate on windows spread evenly over the validation episodes."""
    return evaluate_world_model(
        engine,
        validation,
        spread_windows(len(validation), count),
        sampling,
        batch=batch,
        perceptual=perceptual,
        progress=progress,
    )


def run_demo(
    run: Path,
    config: DemoConfig,
    *,
    from_scratch: bool,
    options: EngineOptions,
    command: str,
    say: Say,
) -> dict[str, Any]:
    """Everything from checkpoints to `run/report.html`; finished parts of an earlier run are kept.

    Args:
        run: run folder.
        config: what to run.
        from_scratch: train tokenizer, world model and policy first, on the bundled demonstrations.
        options: of the engine.
        command: stored in the summary.
        say: takes progress lines.

    Returns:
        Content of `summary.json`.

    Raises:
        CheckpointError: `run` holds an experiment on the other kind of models.
    """
    check_models(run, from_scratch)
    clock = Stopwatch()
    write_environment(run)
    rft = load_config(RFTConfig, config.rft, config.rft_set)
    world, policy = WORLD, POLICY
    if from_scratch:
        world, policy = pretrain(run / PRETRAINING, config, clock, say)
    with clock("loading"):
        bench = load_bench(world, policy, [DEMOS], rft.reward.metric, options)
    say(
        f"{len(bench.training.episodes)} training and {len(bench.validation.episodes)} validation "
        "episodes, "
        f"{len(bench.validation)} validation windows"
    )
    sampling = Sampling(**bench.engine.world.layout.sampling.model_dump())
    with clock("world-model evaluation"), progress_bar("judging the world model") as progress:
        quality = judge_world_model(
            bench.engine,
            bench.validation,
            config.world_model_windows,
            sampling,
            progress=progress,
        )
    for line in quality.lines():
        say(line)
    extra = {
        "engine": options.used(bench.engine),
        "world_model": quality.to_dict(),
        "command": command,
        "from_scratch": from_scratch,
    }
    summary = experiment(bench, policy, run, rft, config.seeds, config.pictures, clock, extra)
    dump_config(config, run / "demo.yaml")
    return summary


def check_models(run: Path, from_scratch: bool) -> None:
    """Refuse a demo's folder that belongs to the other kind of models, before they are trained."""
    own = (run / PRETRAINING).is_dir()
    if own and not from_scratch:
        raise CheckpointError(
            f"{run}: holds a demo of models trained from scratch; run it with --from-scratch, or "
            "choose another --run"
        )
    if from_scratch and not own and any(run.glob("seed-*")):
        raise CheckpointError(
            f"{run}: holds a demo of the bundled models; run it without --from-scratch, or choose "
            "another --run"
        )


def experiment(
    bench: Bench,
    policy_folder: Path,
    run: Path,
    config: RFTConfig,
    seeds: Sequence[int],
    pictures: int,
    clock: Stopwatch,
    extra: dict[str, Any],
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Treatment and control for each seed, pictures, summary and report.

    Args:
        bench: models and data; the policy is changed in place.
        policy_folder: where the starting policy came from.
        run: run folder.
        config: of the treatment.
        seeds: one pair of arms each.
        pictures: scenes in the report.
        clock: seconds of what was done before; goes on counting.
        extra: more to write into `summary.json`.
        ranks: the processes that divide the work; the first one draws and writes.
    """
    summary = run_experiment(
        bench.engine,
        bench.policy,
        bench.training,
        bench.validation,
        run,
        config,
        seeds=seeds,
        ranks=ranks,
    )
    if not ranks.first:
        return summary
    with clock("pictures"):
        show_policies(
            bench,
            policy_folder,
            run / f"seed-{seeds[-1]}" / "treatment" / "policy",
            run,
            config,
            pictures,
        )
    return finish(run, summary | extra, clock)


def show_policies(
    bench: Bench, before: Path, after: Path, run: Path, config: RFTConfig, count: int
) -> None:
    """Write `run/scenes.npz`: validation windows spread evenly, not chosen by result."""
    middles = spread_windows(len(bench.validation), 2 * count)[
        1::2
    ]  # not the first window, where little moves
    with phase("imagining the pictures of the report"):
        scenes = imagine_scenes(
            bench.engine,
            FlowPolicy.from_pretrained(before),
            FlowPolicy.from_pretrained(after),
            bench.validation,
            middles,
            make_sampling(config.sampling).model_copy(update={"seed": config.evaluation.seed}),
            drawn=config.evaluation.starts > 0,
        )
    save_scenes(run, scenes)


def finish(run: Path, summary: dict[str, Any], clock: Stopwatch) -> dict[str, Any]:
    """Write the summary with its stage seconds, then the report."""
    summary["stage_seconds"] = clock.seconds
    write_json(run / "summary.json", summary)
    write_report(run)
    return summary


def pretrain(run: Path, config: DemoConfig, clock: Stopwatch, say: Say) -> tuple[Path, Path]:
    """Short pre-training of all three models on the bundled demonstrations; finished ones are kept.

    Returns:
        Folders of the world model and of the policy.
    """
    settings = load_config(Pretraining, config.pretraining, config.pretraining_set)
    tokenizer, world, policy = (run / name / name for name in ("tokenizer", "world", "policy"))
    trainings: tuple[tuple[str, Path, Callable[[bool], Path]], ...] = (
        ("tokenizer", tokenizer, partial(train_tokenizer, settings, [DEMOS], tokenizer.parent)),
        (
            "world model",
            world,
            lambda resume: train_world_model(settings, [DEMOS], world.parent, tokenizer, resume),
        ),
        ("policy", policy, partial(train_policy, settings, [DEMOS], policy.parent)),
    )
    for name, folder, train in trainings:
        if folder.is_dir():
            say(f"{name}: kept from an earlier run ({folder})")
            continue
        say(f"{name}: pre-training")
        with clock(f"{name} pre-training"):
            train(latest_checkpoint(folder.parent) is not None)
    return world, policy


def headline(summary: dict[str, Any]) -> list[str]:
    """The figures that matter, one a line."""

    def words(change: dict[str, Any]) -> str:
        low, high = change["interval"]
        return (
            f"{100 * change['relative']:+.1f}% (95% interval {100 * low:+.1f} to {100 * high:+.1f})"
        )

    lines = [
        f"imagined distance {summary['distance_before']:.4f} -> {summary['distance_after']:.4f}: "
        + words(summary["distance_change"]),
        f"action L1 {summary['action_l1_before']:.4f} -> {summary['action_l1_after']:.4f}: "
        + words(summary["action_l1_change"]),
    ]
    if "control_change" in summary:
        lines.insert(1, "control (permuted advantages): " + words(summary["control_change"]))
        lines.insert(2, "difference to the control: " + words(summary["difference"]))
    return lines
