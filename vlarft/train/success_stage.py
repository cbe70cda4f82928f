"""The stage `vlarft train success`: recordings and a world model to a calibrated classifier."""

from dataclasses import replace
from pathlib import Path

import torch

from vlarft.checkpoint import weights_fingerprint
from vlarft.config import load_config
from vlarft.data.libero import read_episodes
from vlarft.data.windows import Windows
from vlarft.engine import RolloutEngine, Sampling
from vlarft.engine.resolve import resolve_device
from vlarft.errors import DataError
from vlarft.models.success import SuccessClassifier, SuccessConfig, build_success_classifier
from vlarft.models.world_model import WorldModel
from vlarft.progress import progress_bar
from vlarft.train.commands import (
    Pretraining,
    check_resolution,
    finish_run,
    open_run,
    origin_of,
    read_windows,
)
from vlarft.train.loop import train
from vlarft.train.success import (
    Chosen,
    SuccessTask,
    SuccessTraining,
    area,
    calibrated,
    choose_windows,
    draw_frames,
    halves,
    imagine_frames,
    scores_of,
    shares_above,
    with_failures,
)


def train_success(
    config: Pretraining,
    data: list[Path],
    failures: list[Path],
    run: Path,
    world_folder: Path,
    resume: bool = False,
    device: str = "cpu",
) -> Path:
    """Train a success classifier and write `run/success`.

    Args:
        config: recipe, `success_training`.
        data: recordings that end with success.
        failures: recordings that do not; may be empty.
        run: run folder.
        world_folder: the world model whose imaginations will be judged.
        resume: go on from the newest checkpoint.
        device: cpu or cuda.

    Raises:
        BackendError, CheckpointError, ConfigError, DataError: one line each, before anything is
            written.
    """
    place, settings = resolve_device(device), config.success_training
    world = WorldModel.from_pretrained(world_folder)
    size = world.tokenizer.config.resolution
    failed = read_episodes(failures) if failures else []
    training, validation = (
        Windows(with_failures(part.episodes, failed, split), world.layout.frames)
        for part, split in zip(read_windows(data, config), ("train", "val"), strict=True)
    )
    check_resolution((training, validation), size, f"the world model {world_folder}")
    sizes = {"image_size": size, "channels": settings.channels, "dropout": settings.dropout}
    model = load_config(SuccessConfig, sizes)
    world.layout.require_orientation(model.orientation, "the data's reader")
    learned, judged = (choose_windows(part, settings) for part in (training, validation))
    if int(judged.solved.sum()) < 2:
        raise DataError(
            "validation needs two solved episodes: one sets the threshold, one judges it"
        )
    origin = origin_of({}, "success_training", settings, training, validation)
    origin.data["world model"] = weights_fingerprint(world)
    open_run(run, resume, origin, config)
    world.to(place)
    with progress_bar("drawing frames") as progress:
        drawn = draw_frames(world.tokenizer, training, learned.windows, progress)
    with progress_bar("drawing validation frames") as progress:
        held_out = draw_frames(world.tokenizer, validation, judged.windows, progress)
    classifier = build_success_classifier(model, settings.seed).to(place)
    task = SuccessTask(classifier, settings, (drawn, learned), (held_out, judged))
    result = train(task, settings, run, resume, origin=origin, title="success classifier")
    classifier.load_state_dict(result.weights)
    classifier.eval()
    engine = RolloutEngine(world, device=place, metric="lpips-alex")
    sampling = Sampling(
        **world.layout.sampling.model_dump() | {"temperature": settings.temperature}
    )
    with progress_bar("imagining validation frames") as progress:
        imagined = imagine_frames(engine, validation, judged.windows, sampling, progress)
    seen = {"drawn": (held_out, judged), "imagined": (imagined, judged)}
    figures = _calibrate(classifier, settings, seen, (drawn, learned))
    classifier.save_pretrained(run / "success")
    result = replace(result, validation=result.validation | figures)
    finish_run(run, "success classifier", settings, result, origin)
    return run / "success"


def _calibrate(
    classifier: SuccessClassifier,
    settings: SuccessTraining,
    validation: dict[str, tuple[torch.Tensor, Chosen]],
    training: tuple[torch.Tensor, Chosen],
) -> dict[str, float]:
    """Set the threshold on half of the imagined validation episodes and judge it on the others."""
    figures: dict[str, float] = {}
    threshold = 0.0
    for name in ("imagined", "drawn"):  # the threshold is of the imagined ones
        frames, chosen = validation[name]
        scores = scores_of(classifier, frames)
        first, second = halves(chosen)
        if name == "imagined":
            threshold = calibrated(scores[first], chosen.solved[first], settings.accepted)
            figures["threshold"] = threshold
        near = chosen.solved | chosen.near
        figures |= {
            f"{name}_auc": area(scores, chosen.solved),
            f"{name}_auc_near": area(scores[near], chosen.solved[near]),
        }
        shares = shares_above(scores[second], chosen.solved[second], threshold)
        figures |= {f"{name}_{share}": value for share, value in shares.items()}
    scores = scores_of(classifier, training[0])
    shares = shares_above(scores, training[1].solved, threshold)
    figures |= {f"training_{share}": value for share, value in shares.items()}
    classifier.config = classifier.config.model_copy(update={"threshold": threshold})
    return figures
