"""What a run was started from, as hashes that its checkpoints remember."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vlarft.data.windows import Windows
from vlarft.engine import RolloutEngine
from vlarft.errors import CheckpointError


def run_origin(
    engine: RolloutEngine, policy: nn.Module, training: Windows, validation: Windows
) -> dict[str, str]:
    """Everything besides the configuration that decides a run, by the name errors use.

    Device, back end and attention kernel are left out: they change rounding only.

    Args:
        engine: the world model.
        policy: as it is before the first step.
        training: windows that steps draw from.
        validation: windows that evaluations take.
    """
    layout = engine.world.layout.model_dump_json(exclude={"provenance"})
    return {
        "world model": _hash_weights(engine.world, layout),
        "world model's dtype": str(engine.dtype).removeprefix("torch."),
        "starting policy": _hash_weights(policy),
        "training windows": _hash_windows(training),
        "validation windows": _hash_windows(validation),
    }


def check_origin(stored: dict[str, str], ours: dict[str, str], where: Path) -> None:
    """Refuse to continue a run that was started from something else.

    Args:
        stored: `run_origin` of the run that wrote the checkpoint.
        ours: that of this one.
        where: checkpoint folder, named in errors.

    Raises:
        CheckpointError: names every part that differs.
    """
    different = [name for name in ours if stored.get(name) != ours[name]]
    if different:
        raise CheckpointError(
            f"{where}: this run was started from another {' and another '.join(different)}; "
            "use the same, or a new run folder"
        )


def _hash_weights(module: nn.Module, words: str = "") -> str:
    """Hash of words and of all parameters and buffers, saved ones or not."""
    digest = hashlib.sha256(words.encode())
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _hash_windows(windows: Windows) -> str:
    """Hash of what the windows show, wherever their files lie."""
    digest = hashlib.sha256(f"{windows.frames}".encode())
    for episode in windows.episodes:
        digest.update(f"{episode.instruction} {list(episode.frames.shape)}".encode())
        for values in (episode.frames, episode.actions, episode.proprioception):
            digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
