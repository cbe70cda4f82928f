"""Imagine: scenes and actions -> frame tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlarft.engine.checks import check_floating, check_shape
from vlarft.engine.native import Generator, Prompts
from vlarft.engine.sampling import Sampling
from vlarft.engine.scenes import Scenes
from vlarft.errors import BackendError, DataError, ShapeError
from vlarft.models.world_model import WorldModel
from vlarft.reference.attention import Attention
from vlarft.reference.imagine import Draw, Prefix, Suffix, Weights, imagine, prefill
from vlarft.reference.noise import member_words

_PREFILL_TOKENS = 16384  # prompt tokens prefilled at once: enough to fill a GPU, small in memory


@dataclass(frozen=True)
class Imagined:
    """Imagined tokens.

    Attributes:
        tokens: frame codes int64 [P,N,T,K].
        expert_tokens: the expert's, int64 [P,T,K]; None when no expert was imagined.
        stats: what generating them took (docs/imagine.md): width, passes, accepted_per_pass,
            computed_tokens, wasted_tokens, guesses.
    """

    tokens: Tensor
    expert_tokens: Tensor | None = None
    stats: dict[str, Any] = field(default_factory=dict)

    def at(self, times: Sequence[int]) -> "Imagined":
        """The frames at `times`, 0 .. T-1, in that order."""
        chosen = list(times)
        expert = self.expert_tokens
        return Imagined(self.tokens[:, :, chosen], None if expert is None else expert[:, chosen])


def check_actions(
    name: str, actions: Tensor, shape: tuple[int | str, ...], frames: int, device: torch.device
) -> Tensor:
    """Actions in raw units as float32 on the device.

    Raises:
        ShapeError, DtypeError, DataError: wrong shape, dtype, number of frames, or not finite.
    """
    check_shape(name, actions, shape)
    check_floating(name, actions, "in raw units")
    if actions.shape[-2] > frames:
        raise ShapeError(
            f"{name}: {actions.shape[-2]} actions a rollout; the world model imagines at most "
            f"T = {frames} frames, one an action"
        )
    actions = actions.detach().to(device, torch.float32)
    if not bool(actions.isfinite().all()):
        raise DataError(f"{name}: NaN or infinite values; give finite actions in raw units")
    return actions


def prefill_scenes(
    world: WorldModel, weights: Weights | Generator, scenes: Scenes, attention: Attention
) -> Prefix | Prompts:
    """Keys and values of all prompts, some scenes at a time."""
    ids = world.prompt_ids(scenes.context, scenes.first)
    if isinstance(weights, Generator):
        return weights.prefill(ids)
    at_once = max(1, _PREFILL_TOKENS // ids.shape[1])
    parts = [prefill(weights, part, attention) for part in ids.split(at_once)]
    if len(parts) == 1:
        return parts[0]
    keys, values = [p.keys for p in parts], [p.values for p in parts]
    return Prefix(torch.cat(keys, dim=1), torch.cat(values, dim=1))


def imagine_group(
    world: WorldModel,
    weights: Weights | Generator,
    prefix: Prefix | Prompts,
    suffix: Suffix | None,
    keys: Tensor,
    actions: Tensor,
    expert_actions: Tensor | None,
    sampling: Sampling,
    progress: Callable[[int], None] | None = None,
    *,
    width: int = 1,
    guesses: Sequence[str] = (),
) -> Imagined:
    """Imagine all rollouts; the expert, when given, is the last member of each group.

    Args:
        world: the world model, for ids.
        weights: its transformer, laid out for generation.
        prefix: the scenes' prompts.
        suffix: workspace of N (+1) members; None with a native generator, which has its own.
        keys: scene keys int64 [P].
        actions: raw, float32 [P,N,T,A].
        expert_actions: raw, float32 [P,T,A], or None.
        sampling: settings.
        progress: called with the number of finished frames.
        width: W of a native generator.
        guesses: its guess sources.

    Raises:
        BackendError: the transformer's logits were not finite.
    """
    rollouts = actions.shape[1]
    expert = expert_actions is not None
    if expert_actions is not None:
        actions = torch.cat((actions, expert_actions[:, None]), dim=1)
    draw = Draw(
        seed=sampling.seed,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        keys=keys,
        members=member_words(rollouts, expert, sampling.noise == "shared", keys.device),
    )
    ids = world.action_ids(actions)
    if isinstance(weights, Generator):
        assert isinstance(prefix, Prompts)
        tokens, stats = weights.imagine(
            prefix, ids, world.frame_tokens, draw, progress, width=width, guesses=guesses
        )
    else:
        assert isinstance(prefix, Prefix)
        assert suffix is not None
        suffix.length = 0
        tokens = imagine(weights, prefix, suffix, ids, world.frame_tokens, draw, progress)
        frames, rows = ids.shape[2], ids.shape[0] * ids.shape[1]
        computed = rows * (frames * (ids.shape[3] + world.frame_tokens) - 1)
        stats = {"width": 1, "passes": frames * world.frame_tokens, "accepted_per_pass": 1.0}
        stats |= {"computed_tokens": computed, "wasted_tokens": 0, "guesses": {}}
    broken = (tokens < 0).any(-1).any(-1)
    if bool(broken.any()):
        where = broken.nonzero()[0].tolist()
        raise BackendError(
            f"imagine: logits of {int(broken.sum())} rows are NaN or infinite (first: scene "
            f"{where[0]}, member {where[1]}); check the checkpoint's weights, or use float32"
        )
    return Imagined(tokens[:, :rollouts], tokens[:, -1] if expert else None, stats)
