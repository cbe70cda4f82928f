"""What a run was started from, as hashes that its checkpoints remember."""

import json
from pathlib import Path

from torch import nn

from vlarft.checkpoint import weights_fingerprint
from vlarft.data.windows import Windows, data_fingerprint
from vlarft.engine import RolloutEngine
from vlarft.errors import CheckpointError
from vlarft.models.success import SuccessClassifier


def run_origin(
    engine: RolloutEngine,
    policy: nn.Module,
    training: Windows,
    validation: Windows,
    classifier: SuccessClassifier | None = None,
) -> dict[str, str]:
    """Everything besides the configuration that decides a run, by the name errors use.

    Device, back end and attention kernel are left out: they change rounding only.

    Args:
        engine: the world model.
        policy: as it is before the first step.
        training: windows that steps draw from.
        validation: windows that evaluations take.
        classifier: judge of success, when the reward is one.
    """
    layout = engine.world.layout.model_dump_json(exclude={"provenance"})
    judge = {}
    if classifier is not None:
        threshold = classifier.config.threshold
        judge["success classifier"] = f"{weights_fingerprint(classifier)} {threshold}"
    return {
        "world model": f"{weights_fingerprint(engine.world)} {layout}",
        "world model's dtype": " cache ".join(
            str(dtype).removeprefix("torch.")
            for dtype in (engine.dtype, engine.cache_dtype)
            if dtype is not None
        ),
        "starting policy": weights_fingerprint(policy),
        "training windows": json.dumps(data_fingerprint(training)),
        "validation windows": json.dumps(data_fingerprint(validation)),
        **judge,
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
