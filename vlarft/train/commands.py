"""`vlarft train tokenizer|world-model|encoder|policy|success`."""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from vlarft.checkpoint import weights_fingerprint
from vlarft.config import Config, dump_config, load_config
from vlarft.data.windows import Windows, data_fingerprint
from vlarft.engine.resolve import resolve_device
from vlarft.errors import ConfigError, DataError
from vlarft.eval.world_model import check_windows, evaluate_world_model
from vlarft.files import write_json
from vlarft.models.flow_policy import FlowPolicy, FlowPolicyConfig
from vlarft.models.place_encoder import PlaceEncoderConfig, PlaceNetwork
from vlarft.models.presets import (
    WorldConfig,
    build_tokenizer,
    build_transformer,
    llama_config,
)
from vlarft.models.tokenizer import Tokenizer
from vlarft.models.vlm import VLMConfig, VLMEncoder
from vlarft.models.world_model import WorldModel
from vlarft.options import World
from vlarft.progress import progress_bar
from vlarft.report.build import write_report
from vlarft.report.environment import write_environment
from vlarft.rft.config import RFTConfig
from vlarft.terminal import JsonFile, command_line, console_for, say, write_result
from vlarft.train.loop import LoopConfig, Origin, Trained, resumed_state, train
from vlarft.train.places import EncoderTraining
from vlarft.train.policy import PolicyTraining
from vlarft.train.success import SuccessTraining
from vlarft.train.tokenizer import TokenizerTraining
from vlarft.train.world_model import (
    TokenizedWindows,
    WorldModelTask,
    WorldModelTraining,
    kept_tokens,
    tokenize_windows,
)

TRANSFORMER_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "max_position_embeddings",
    "tie_word_embeddings",
    "rope_parameters",
)
WATCHED_WINDOWS = 32  # at most, imagined at each validation of the world model

app = typer.Typer(
    no_args_is_help=True,
    help="Train the tokenizer, the world model, the encoder, the policy or a success classifier.",
)


class Pretraining(Config):
    """A preset file: model sizes and the stages of pre-training.

    A file of a whole experiment has a section `rft` too; `vlarft rft` reads that one alone.
    """

    model: WorldConfig = WorldConfig()
    policy: str | FlowPolicyConfig = "small"  # a named size, or a whole configuration
    tokenizer_training: TokenizerTraining = TokenizerTraining()
    world_model_training: WorldModelTraining = WorldModelTraining()
    encoder_training: EncoderTraining = EncoderTraining()
    policy_training: PolicyTraining = PolicyTraining()
    success_training: SuccessTraining = SuccessTraining()
    rft: RFTConfig | None = None
    drop_noops: bool = False  # leave out actions that do nothing (docs/data.md)

    def policy_config(self) -> FlowPolicyConfig:
        """The policy's configuration."""
        return FlowPolicyConfig.preset(self.policy) if isinstance(self.policy, str) else self.policy


Data = Annotated[list[Path], typer.Option("--data", help="LIBERO HDF5 files or folders of them.")]
Run = Annotated[Path, typer.Option("--run", help="Run folder: metrics, checkpoints and the model.")]
ConfigName = Annotated[str, typer.Option("--config", help="Preset name or YAML file.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="key=value, dots reach nested keys.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue from the run's newest checkpoint.")
]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]


@app.command("tokenizer")
def tokenizer_command(
    data: Data,
    run: Run,
    config: ConfigName = "small",
    settings: Settings = None,
    resume: Resume = False,
    start: Annotated[
        Path | None, typer.Option(help="Tokenizer folder to go on from, of the configured sizes.")
    ] = None,
    device: Device = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Train the FSQ tokenizer.

    Example: vlarft train tokenizer --data rendered/libero_object --run runs/tokenizer
    """
    train_tokenizer(_pretraining(config, settings), data, run, resume, device, start)
    _done(run, json_file)


@app.command("world-model")
def world_model_command(
    data: Data,
    run: Run,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of a trained tokenizer (default: that of --start).")
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(help="World folder to go on from, of the configured sizes."),
    ] = None,
    config: ConfigName = "small",
    settings: Settings = None,
    resume: Resume = False,
    device: Device = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Train the world model's transformer on a trained tokenizer's tokens.

    Example: vlarft train world-model --data rendered/libero_object
    --tokenizer runs/tokenizer/tokenizer --run runs/world
    """
    train_world_model(_pretraining(config, settings), data, run, tokenizer, resume, device, start)
    _done(run, json_file)


@app.command("encoder")
def encoder_command(
    scenes: Annotated[
        list[Path], typer.Option("--scenes", help="Files of `vlarft data scenes`, or folders.")
    ],
    run: Run,
    config: ConfigName = "libero_object_small",
    settings: Settings = None,
    resume: Resume = False,
    device: Device = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Train the encoder that says where the named things are; policies stand on it.

    Example: vlarft train encoder --scenes scenes/libero_object --run runs/encoder
    """
    from vlarft.train.encoder_stage import train_encoder

    train_encoder(_pretraining(config, settings), scenes, run, resume, device)
    _done(run, json_file)


@app.command("policy")
def policy_command(
    data: Data,
    run: Run,
    config: ConfigName = "small",
    settings: Settings = None,
    resume: Resume = False,
    vlm: Annotated[
        Path | None, typer.Option(help="Folder of a pre-trained VLM; a policy with a VLM needs it.")
    ] = None,
    encoder: Annotated[
        Path | None,
        typer.Option(help="Folder of `train encoder`; a policy with a place encoder needs it."),
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="Policy folder to go on from, of the configured sizes.")
    ] = None,
    device: Device = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Train the policy by behaviour cloning (conditional flow matching).

    Example: vlarft train policy --data rendered/libero_object --run runs/policy
    """
    train_policy(_pretraining(config, settings), data, run, resume, device, vlm, start, encoder)
    _done(run, json_file)


@app.command("success")
def success_command(
    data: Data,
    run: Run,
    failures: Annotated[
        list[Path] | None, typer.Option(help="Drawn recordings of failed episodes.")
    ] = None,
    world: World = None,
    config: ConfigName = "small",
    settings: Settings = None,
    resume: Resume = False,
    device: Device = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Train a classifier that tells solved frames from others, a reward of fine-tuning.

    Example: vlarft train success --data rendered/libero_object --failures rendered/failures
    --run runs/success
    """
    from vlarft.demo import WORLD, existing
    from vlarft.train.success_stage import train_success

    folder = existing(world or WORLD)
    recipe = _pretraining(config, settings)
    train_success(recipe, data, failures or [], run, folder, resume, device)
    _done(run, json_file)


def train_tokenizer(
    config: Pretraining,
    data: list[Path],
    run: Path,
    resume: bool = False,
    device: str = "cpu",
    start: Path | None = None,
) -> Path:
    """Train a tokenizer and write `run/tokenizer`.

    Args:
        config: sizes and recipe.
        data: recordings.
        run: run folder.
        resume: go on from the newest checkpoint.
        device: cpu or cuda.
        start: folder of a tokenizer of the same sizes to go on from.

    Raises:
        BackendError, CheckpointError, ConfigError, DataError: one line each, before anything is
            written.
    """
    from vlarft.train.tokenizer import TokenizerTask

    place, settings = resolve_device(device), config.tokenizer_training
    if settings.part == "decoder" and start is None:
        raise ConfigError(
            "tokenizer_training.part = decoder trains the decoder of a trained tokenizer; name it "
            "with --start FOLDER"
        )
    wanted = config.model.tokenizer
    if start is None:
        tokenizer = build_tokenizer(wanted, settings.seed)
    else:
        tokenizer = Tokenizer.from_pretrained(start)
        _check_started(start, tokenizer.config, wanted, "tokenizer")
    training, validation = read_windows(data, config)
    check_resolution((training, validation), wanted.resolution, "the configured tokenizer")
    model = config.model.model_dump(mode="json", include={"tokenizer", "frames"})
    origin = origin_of({"model": model}, "tokenizer_training", settings, training, validation)
    if start is not None:
        origin.data["start"] = weights_fingerprint(tokenizer)
    open_run(run, resume, origin, config)
    task = TokenizerTask(tokenizer.to(place), settings, training, validation)
    result = train(task, settings, run, resume, origin=origin, title="tokenizer")
    tokenizer.load_state_dict(result.weights)
    tokenizer.save_pretrained(run / "tokenizer")
    finish_run(run, "tokenizer", settings, result, origin)
    return run / "tokenizer"


def train_world_model(
    config: Pretraining,
    data: list[Path],
    run: Path,
    tokenizer_folder: Path | None,
    resume: bool = False,
    device: str = "cpu",
    start: Path | None = None,
) -> Path:
    """Train a world model's transformer and write `run/world`.

    Args:
        config: sizes and recipe.
        data: recordings; their actions' range becomes that of the action bins, and spans the
            earlier one with `start`.
        run: run folder.
        tokenizer_folder: a trained tokenizer; None is that of `start`.
        resume: go on from the newest checkpoint.
        device: cpu or cuda.
        start: folder of a world model to go on from.

    Raises:
        BackendError, CheckpointError, ConfigError, DataError: one line each, before anything is
            written.
    """
    from vlarft.data.statistics import compute_statistics
    from vlarft.models.layout import Layout

    place = resolve_device(device)
    folder = tokenizer_folder or (start and start / "tokenizer")
    if folder is None:
        raise ConfigError("train world-model needs --tokenizer, --start or both")
    settings = config.world_model_training
    tokenizer = Tokenizer.from_pretrained(folder)
    earlier = None if start is None else _started_world(start, config, tokenizer)
    tokenizer.to(place)
    training, validation = read_windows(data, config)
    resolution = tokenizer.config.resolution
    check_resolution((training, validation), resolution, f"the tokenizer {folder}")
    watched = watched_windows(validation)
    model = config.model.model_dump(mode="json", exclude={"tokenizer"})  # it comes from its folder
    origin = origin_of({"model": model}, "world_model_training", settings, training, validation)
    origin.data["tokenizer"] = weights_fingerprint(tokenizer)
    if earlier is not None:
        origin.data["start"] = weights_fingerprint(earlier.transformer)
    open_run(run, resume, origin, config)
    statistics = compute_statistics(training.episodes)
    low, high = (*statistics.action_min[:-1], -1.0), (*statistics.action_max[:-1], 1.0)
    if earlier is not None:  # so that bins mean what they meant where the range has not grown
        low = tuple(map(min, low, earlier.layout.action_low))
        high = tuple(map(max, high, earlier.layout.action_high))
    layout = Layout(
        frames=config.model.frames,
        bins=config.model.bins,
        action_low=low,
        action_high=high,
        orientation=statistics.orientation,
        statistics=statistics,
        provenance={"training": settings.model_dump(mode="json")},
    )
    ids = tokenizer.frame_codes + tokenizer.context_codes + config.model.bins + 2
    transformer = (
        earlier.transformer
        if earlier
        else build_transformer(config.model.transformer, ids, settings.seed)
    )
    world = WorldModel(tokenizer, transformer, layout)
    if earlier is None:
        world.structure_embeddings(settings.seed)
    world.to(place)
    tokens = kept_tokens(
        run / "tokens.safetensors",
        {**origin.data, "window_stride": settings.window_stride},
        lambda: _tokenise(tokenizer, training, settings.window_stride),
    )
    held_out = tokenize_windows(
        tokenizer,
        validation,
        torch.linspace(0, len(validation) - 1, min(256, len(validation))).long(),
    )
    task = WorldModelTask(
        world, settings, tokens, held_out, lambda w: _imagination(w, validation, watched)
    )
    result = train(
        task, settings, run, resume, origin=origin, title="world model", shown=_of_the_model
    )
    world.transformer.load_state_dict(result.weights)
    world.save_pretrained(run / "world")
    finish_run(run, "world model", settings, result, origin)
    return run / "world"


def _started_world(folder: Path, config: Pretraining, tokenizer: Tokenizer) -> WorldModel:
    """The world model to go on from; its transformer knows the ids of a tokenizer.

    Raises:
        CheckpointError: the folder is damaged.
        ConfigError: the world model or its tokenizer has other sizes than wanted.
    """
    world = WorldModel.from_pretrained(folder)
    if world.tokenizer.config != tokenizer.config:
        raise ConfigError(
            f"{folder}: its tokenizer has other sizes than the one given with --tokenizer; give "
            "one that was trained with --start from it, or none"
        )
    ids = tokenizer.frame_codes + tokenizer.context_codes + config.model.bins + 2
    wanted, found = llama_config(config.model.transformer, ids), world.transformer.config
    differs = any(getattr(wanted, size) != getattr(found, size) for size in TRANSFORMER_SIZES)
    if differs or world.layout.frames != config.model.frames:
        raise ConfigError(
            f"{folder}: its sizes differ from the configured world model; choose the --config that "
            "it was trained with"
        )
    return world


def _tokenise(tokenizer: Tokenizer, training: Windows, stride: int) -> TokenizedWindows:
    """Tokens of every n-th window; a window of a file that was given twice is tokenised once."""
    files = [(episode.file.resolve(), episode.name) for episode in training.episodes]
    first: dict[tuple[Path, str, int], int] = {}
    chosen: list[int] = []
    places: list[int] = []
    for number in every(training, stride).tolist():
        key = (*files[int(training.episode[number])], int(training.start[number]))
        if key not in first:
            first[key] = len(chosen)
            chosen.append(number)
        places.append(first[key])
    with progress_bar("tokenising") as progress:
        return tokenize_windows(tokenizer, training, chosen, progress=progress).select(places)


def every(windows: Windows, stride: int) -> Tensor:
    """Numbers of the windows at every n-th start of each episode, its first one always.

    An episode as long as a window, as `vlarft data branch` makes them, is never left out.
    """
    return (windows.start % stride == 0).nonzero().flatten()


def watched_windows(validation: Windows) -> Tensor:
    """Numbers of the windows that are imagined at each validation of a world model.

    They are spread evenly; where one episode would hold more than half of them, it gets half.

    Raises:
        DataError: all are of one episode, or nothing moves in any of them.
    """
    chosen = torch.linspace(0, len(validation) - 1, min(WATCHED_WINDOWS, len(validation))).long()
    largest = validation.episode[chosen] == validation.episode[chosen].mode().values
    own, others = chosen[largest], chosen[~largest]
    if 0 < len(others) < len(own):
        own = own[torch.linspace(0, len(own) - 1, len(others)).long()]
        chosen = torch.cat([own, others]).sort().values
    try:
        check_windows(validation, chosen)
    except DataError as error:
        raise DataError(f"validation episodes: {error}") from error
    return chosen


def _imagination(world: WorldModel, validation: Windows, watched: Tensor) -> dict[str, float]:
    """Does it listen to actions? A quick look at free-running imagination, at the last frame."""
    from vlarft.engine import RolloutEngine

    device = next(world.transformer.parameters()).device
    engine = RolloutEngine(world, backend="reference", device=device, metric="lpips-alex")
    return evaluate_world_model(engine, validation, watched, draws=10).flat()


def _of_the_model(figure: str) -> bool:
    """Whether a figure is of the world model, or a difference, rather than of another method."""
    return "_over_" in figure or not figure.endswith(("_swapped", "_copy", "_tokenizer"))


def check_resolution(parts: tuple[Windows, Windows], resolution: int, where: str) -> None:
    """Refuse frames of another size than a tokenizer's.

    Args:
        parts: windows to train and to validate on.
        resolution: of the tokenizer, px.
        where: what says so, named in the error.

    Raises:
        DataError: one line.
    """
    for windows in parts:
        height, width = windows.resolution
        if (height, width) != (resolution, resolution):
            raise DataError(
                f"{windows.episodes[0].file}: frames of {height} x {width} px, but {where} is for "
                f"{resolution} x {resolution} px; render the recordings at that size "
                f"(vlarft data render --size {resolution}), or choose another --config"
            )


def train_policy(
    config: Pretraining,
    data: list[Path],
    run: Path,
    resume: bool = False,
    device: str = "cpu",
    vlm: Path | None = None,
    start: Path | None = None,
    places: Path | None = None,
) -> Path:
    """Train a policy by behaviour cloning and write `run/policy`.

    Args:
        config: sizes and recipe.
        data: recordings.
        run: run folder.
        resume: go on from the newest checkpoint.
        device: cpu or cuda.
        vlm: folder of a pre-trained VLM.
        start: folder of a policy of the same sizes to go on from, instead; it keeps its statistics.
        places: folder of a pre-trained place network.

    Raises:
        BackendError, CheckpointError, ConfigError, DataError: one line each, before anything is
            written.
    """
    from vlarft.data.statistics import compute_statistics
    from vlarft.models.flow_policy import build_policy
    from vlarft.train.policy import PolicyTask

    place = resolve_device(device)
    settings, sizes = config.policy_training, config.policy_config()
    encoder = None if start else _pretrained_vlm(sizes, vlm)
    network = None if start else _pretrained_places(sizes, places)
    training, validation = read_windows(data, config)
    if not isinstance(sizes.encoder, VLMConfig):  # a VLM resizes its pictures
        check_resolution((training, validation), sizes.encoder.image_size, "the configured policy")
    model = {"policy": sizes.model_dump(mode="json"), "model": {"frames": config.model.frames}}
    origin = origin_of(model, "policy_training", settings, training, validation)
    if encoder is not None:
        origin.data["vlm"] = weights_fingerprint(encoder)
    if network is not None:
        origin.data["encoder"] = weights_fingerprint(network)
    if start is None:
        statistics = compute_statistics(training.episodes)
        policy = build_policy(sizes, statistics, settings.seed, encoder, network).to(place)
    else:
        policy = FlowPolicy.from_pretrained(start).to(place)
        _check_started(start, policy.config, sizes, "policy")
        origin.data["start"] = weights_fingerprint(policy)
    open_run(run, resume, origin, config)
    task = PolicyTask(policy, settings, training, validation)
    result = train(task, settings, run, resume, origin=origin, title="policy")
    policy.load_state_dict(result.weights)
    policy.save_pretrained(run / "policy")
    finish_run(run, "policy", settings, result, origin)
    return run / "policy"


def _check_started(folder: Path, found: Config, wanted: Config, what: str) -> None:
    """Refuse a model to go on from that has other sizes than wanted.

    Raises:
        ConfigError: they differ.
    """
    if found != wanted:
        raise ConfigError(
            f"{folder}: its config.json differs from the configured {what}; choose the --config "
            "that it was trained with"
        )


def _pretrained_vlm(wanted: FlowPolicyConfig, folder: Path | None) -> VLMEncoder | None:
    if folder is not None:
        attention = wanted.encoder.attention if isinstance(wanted.encoder, VLMConfig) else None
        return VLMEncoder.from_pretrained(folder, attention)
    if isinstance(wanted.encoder, VLMConfig):
        raise ConfigError(
            "this policy has a VLM, which is not trained from scratch; pass --vlm FOLDER"
        )
    return None


def _pretrained_places(wanted: FlowPolicyConfig, folder: Path | None) -> PlaceNetwork | None:
    if folder is not None:
        return PlaceNetwork.from_pretrained(folder)
    if isinstance(wanted.encoder, PlaceEncoderConfig):
        raise ConfigError(
            "this policy's place encoder is not trained by cloning; pass --encoder FOLDER of "
            "vlarft train encoder"
        )
    return None


def _pretraining(name: str, settings: list[str] | None) -> Pretraining:
    return load_config(Pretraining, name, settings or [])


def read_windows(data: list[Path], config: Pretraining) -> tuple[Windows, Windows]:
    """Windows of both splits, train and val.

    Raises:
        DataError: data are missing or damaged, or a split has no episode.
    """
    from vlarft.data.libero import read_episodes

    splits = []
    for split in ("train", "val"):
        episodes = read_episodes(data, split=split, drop_noops=config.drop_noops)
        if not episodes:
            where = ", ".join(map(str, data))
            raise DataError(f"{where}: no episode of split '{split}'; both splits are needed")
        splits.append(Windows(episodes, config.model.frames))
    return splits[0], splits[1]


def origin_of(
    model: dict[str, Any],
    section: str,
    settings: LoopConfig,
    training: Windows,
    validation: Windows,
) -> Origin:
    """What a run is made from: the sections of the configuration that it uses, and its data."""
    return Origin(
        {**model, section: settings.model_dump(mode="json")},
        {"training": data_fingerprint(training), "validation": data_fingerprint(validation)},
        frozenset(f"{section}.{key}" for key in settings.may_change),
    )


def open_run(run: Path, resume: bool, origin: Origin, config: Pretraining) -> None:
    """Check that the run may go on, then begin to write."""
    resumed_state(run, resume, origin)
    run.mkdir(parents=True, exist_ok=True)
    dump_config(config, run / "config.yaml")
    write_environment(run)


def finish_run(
    run: Path, stage: str, settings: LoopConfig, result: Trained, origin: Origin
) -> None:
    """Write `summary.json` and `report.html`."""
    write_json(
        run / "summary.json",
        {
            "kind": "pretraining",
            "stage": stage,
            "steps": settings.steps,
            "batch_size": settings.batch_size,
            "seed": settings.seed,
            "training": _counts(origin.data["training"]),
            "held_out": _counts(origin.data["validation"]),
            "validation": {
                name.removeprefix("validation_"): value for name, value in result.validation.items()
            },
            "seconds": result.seconds,
            "command": command_line(),
        },
    )
    write_report(run)


def _counts(data: dict[str, Any]) -> dict[str, Any]:
    return {name: data[name] for name in ("episodes", "windows")}


def _done(run: Path, json_file: str | None) -> None:
    """Say where the report is, and give the summary to a program."""
    say(console_for(json_file), f"report: {(run / 'report.html').resolve()}")
    write_result(json_file, json.loads((run / "summary.json").read_text(encoding="utf-8")))
