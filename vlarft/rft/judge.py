"""What a batch of action chunks is worth: distances to the expert, scenes encoded once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vlarft.data.windows import WindowBatch
from vlarft.engine import RolloutEngine, Sampling, Scenes
from vlarft.errors import ConfigError
from vlarft.models.success import SuccessClassifier
from vlarft.rft.config import RewardConfig, RFTConfig
from vlarft.rft.evaluation import make_sampling
from vlarft.rft.rewards import action_distance, mirrored, rollout_distance

BUNDLED = Path(__file__).parents[1] / "assets" / "checkpoints" / "success"


class SceneCache:
    """Tokens of the windows' first frames, encoded once per window.

    Frames are encoded one at a time, so that a window's tokens do not depend on which windows it
    shares a step with, and a resumed run, whose cache is empty, sees the same tokens.
    """

    def __init__(self, engine: RolloutEngine) -> None:
        self._engine = engine
        self._tokens: dict[int, tuple[Tensor, Tensor]] = {}

    def scenes(self, windows: Sequence[int], frames: Tensor, first: int = 0) -> Scenes:
        """Scenes whose noise keys count from `first`.

        Args:
            windows: P window numbers.
            frames: uint8 [P, H, W, 3], their first frames.
            first: place of the first one in its step, which another process may have begun.
        """
        for row, window in enumerate(windows):
            if window not in self._tokens:
                scene = self._engine.encode(frames[row : row + 1])
                self._tokens[window] = (scene.context.cpu(), scene.first.cpu())
        context, tokens = (
            torch.cat(part) for part in zip(*(self._tokens[w] for w in windows), strict=True)
        )
        keys = range(first, first + len(windows))
        return self._engine.scenes_from_tokens(context, tokens, keys)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Distances of one batch of rollouts.

    Attributes:
        distance: float32 [P, N] on the CPU; the reward is its negative. With kind "success", the
            share of a rollout's imaginations that are not solved.
        l1, perceptual: means over everything imagined, mirror images too, or None when nothing was.
        deduplicated: share of frames that equal another one of their scene and were rendered with
            it, or None.
    """

    distance: Tensor
    l1: float | None
    perceptual: float | None
    deduplicated: float | None


def judge(
    engine: RolloutEngine,
    scenes: Scenes | None,
    actions: Tensor,
    batch: WindowBatch,
    config: RFTConfig,
    *,
    seeds: list[int],
    scale: Tensor,
    classifier: SuccessClassifier | None = None,
) -> Outcome:
    """Distances of action chunks to the expert, as `config.reward.kind` means it.

    Args:
        engine: the world model.
        scenes: the P start states; None with kind "actions".
        actions: float32 [P, N, T, A], raw units.
        batch: the P windows, for the expert's actions or recorded frames.
        config: reward and sampling.
        seeds: of the world model's noise, one a draw.
        scale: float32 [A] for kind "actions".
        classifier: for kind "success".
    """
    expert = batch.actions.to(actions.device)
    if config.reward.kind == "actions" or scenes is None:
        distance = action_distance(actions, expert[:, None], scale.to(actions.device))
        return Outcome(distance.cpu(), None, None, None)
    sampling = make_sampling(config.sampling)
    if classifier is not None:
        solved = solved_share(engine, scenes, actions, classifier, sampling, seeds)
        return Outcome(1 - solved, None, None, None)
    chosen = config.reward.frames
    times = None if chosen is None else [number - 1 for number in chosen]
    members = actions.shape[1]
    if config.reward.mirrored:
        actions = torch.cat([actions, mirrored(actions, expert)], dim=1)
    if config.reward.kind == "imagined":
        result = engine.rollout(scenes, actions, expert, sampling, seeds=seeds, times=times)
    else:
        recorded = batch.frames[:, 1:].permute(0, 1, 4, 2, 3).float() / 255
        result = engine.rollout(
            scenes, actions, None, sampling, reference=recorded, seeds=seeds, times=times
        )
    l1, perceptual = result.l1.float().cpu(), result.perceptual.float().cpu()
    distance = rollout_distance(l1, perceptual, config.reward)
    if config.reward.mirrored:
        distance = (distance[:, :members] + distance[:, members:]) / 2
    deduplicated = result.stats["frames_deduplicated"] / result.stats["frames"]
    return Outcome(distance, float(l1.mean()), float(perceptual.mean()), deduplicated)


def solved_share(
    engine: RolloutEngine,
    scenes: Scenes,
    actions: Tensor,
    classifier: SuccessClassifier,
    sampling: Sampling,
    seeds: Sequence[int],
) -> Tensor:
    """Share of a rollout's imaginations whose last frame counts as solved.

    Args:
        engine: the world model.
        scenes: P start states.
        actions: float32 [P, N, T, A], raw units.
        classifier: judges single frames.
        sampling: options of the imagination.
        seeds: of its noise, one an imagination.

    Returns:
        float32 [P, N] on the CPU, in [0, 1].
    """
    found = []
    for seed in seeds:
        drawn = sampling.model_copy(update={"seed": seed})
        tokens = engine.imagine(scenes, actions, drawn).tokens
        frames = engine.decode(scenes, tokens[:, :, -1:])
        found.append(classifier.solved(frames.flatten(0, 2)).view(actions.shape[:2]))
    return torch.stack(found).float().mean(0).cpu()


def load_classifier(engine: RolloutEngine, reward: RewardConfig) -> SuccessClassifier | None:
    """The success classifier that a reward asks for, on the engine's device; None for others.

    Raises:
        CheckpointError: its folder is missing or damaged, or it sees frames turned another way.
        ConfigError: it is for frames of another size than the world model's.
    """
    if reward.kind != "success":
        return None
    folder = BUNDLED if reward.classifier is None else Path(reward.classifier)
    classifier = SuccessClassifier.from_pretrained(folder)
    whose = f"the success classifier {folder}"
    engine.world.layout.require_orientation(classifier.config.orientation, whose)
    wanted, own = engine.world.tokenizer.config.resolution, classifier.config.image_size
    if own != wanted:
        raise ConfigError(
            f"{whose} is for {own} px, the world model draws {wanted} px; train one with "
            "vlarft train success --world, and name it by reward.classifier"
        )
    return classifier.to(engine.device)
