"""The stage `vlarft train encoder`: drawn scenes to a network that says where things are."""

from pathlib import Path

import torch

from vlarft.data.scenes import PlacedScenes
from vlarft.engine.resolve import resolve_device
from vlarft.errors import ConfigError, DataError
from vlarft.models.place_encoder import PlaceEncoderConfig, PlaceNetwork
from vlarft.train.commands import Pretraining, finish_run, open_run
from vlarft.train.loop import Origin, train
from vlarft.train.places import EncoderTask


def train_encoder(
    config: Pretraining, scenes: list[Path], run: Path, resume: bool = False, device: str = "cpu"
) -> Path:
    """Train a place network and write `run/encoder`.

    Raises:
        BackendError, CheckpointError, ConfigError, DataError: one line each, before anything is
            written.
    """
    place, settings = resolve_device(device), config.encoder_training
    sizes = config.policy_config().encoder
    if not isinstance(sizes, PlaceEncoderConfig):
        raise ConfigError(
            f"the configured policy's encoder is '{sizes.kind}'; choose one with places: "
            "--set policy=places"
        )
    training, validation = PlacedScenes(scenes, "train"), PlacedScenes(scenes, "val")
    if training.size != sizes.image_size:
        raise DataError(
            f"{scenes[0]}: scenes of {training.size} px, the configured encoder sees "
            f"{sizes.image_size} px; draw them at that size"
        )
    origin = Origin(
        {
            "encoder": sizes.model_dump(mode="json"),
            "encoder_training": settings.model_dump(mode="json"),
        },
        {"training": training.fingerprint(), "validation": validation.fingerprint()},
        frozenset(f"encoder_training.{key}" for key in settings.may_change),
    )
    open_run(run, resume, origin, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = PlaceNetwork(sizes)
    network.centre.copy_(training.all_places().mean(0))
    network.spread.copy_(training.all_places().std(0))
    network.to(place)
    task = EncoderTask(network, settings, training, validation)
    result = train(task, settings, run, resume, origin=origin, title="encoder")
    network.load_state_dict(result.weights)
    network.save_pretrained(run / "encoder")
    finish_run(run, "encoder", settings, result, origin)
    return run / "encoder"
