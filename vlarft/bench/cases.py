"""Named cases: a world of random weights and its inputs, all drawn from one seed."""

import hashlib
import re
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from vlarft.bench.machine import near
from vlarft.engine import Sampling
from vlarft.errors import ConfigError
from vlarft.models.lpips import LPIPS, Net
from vlarft.models.presets import build_world
from vlarft.models.world_model import WorldModel

TINY_SCENES, TINY_ROLLOUTS = 2, 3  # of the case `tiny`
MOST_SCENES, MOST_ROLLOUTS = 64, 64
FRAMES = 8  # T unless the name says otherwise
_PATTERN = re.compile(r"(tiny|small|paper)-([1-9]\d*)x([1-9]\d*)(?:-t([1-8]))?")
_METRIC_NETS: dict[str, Net] = {"tiny": "alex", "small": "alex", "paper": "vgg"}

# The sizes that are measured as a rule; every other P x N x T of the pattern runs as well.
NAMED = (
    "tiny",
    *(f"small-1x{n}" for n in (4, 8, 16, 32, 64)),  # N sweep
    *(f"small-{p}x16" for p in (2, 4, 8)),  # P sweep
    *(f"small-1x16-t{t}" for t in (1, 2, 4)),  # T sweep
    "paper-1x16",
    "paper-4x16",
)


@dataclass(frozen=True)
class Case:
    """One size of the problem.

    Attributes:
        name: as users write it.
        preset: model size, a file of configs/.
        scenes: P.
        rollouts: N.
        frames: T.
    """

    name: str
    preset: str
    scenes: int
    rollouts: int
    frames: int = FRAMES

    @property
    def trajectories(self) -> int:
        """P N, without experts."""
        return self.scenes * self.rollouts


@dataclass(frozen=True)
class Material:
    """A case's world and inputs.

    Attributes:
        case: the case.
        world: random weights.
        images: start frames, uint8 [P,H,W,3].
        context: context tokens, int64 [P,K0].
        first: tokens of the start frames, int64 [P,K].
        actions: raw, float32 [P,N,T,A].
        expert: the expert's, raw, float32 [P,T,A].
        sampling: how tokens are drawn.
    """

    case: Case
    world: WorldModel
    images: Tensor
    context: Tensor
    first: Tensor
    actions: Tensor
    expert: Tensor
    sampling: Sampling

    def on(self, device: torch.device) -> "Material":
        """The same on a device."""
        if device.type == "cpu":
            return self
        own: dict[str, Any] = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, world=self.world.to(device), **own)


def find_case(name: str) -> Case:
    """The case of a name: `tiny`, `small-PxN`, `paper-PxN`, with `-tT` for fewer frames.

    Raises:
        ConfigError: unknown name, or a size out of range.
    """
    if name == "tiny":
        return Case(name, "tiny", TINY_SCENES, TINY_ROLLOUTS)
    match = _PATTERN.fullmatch(name)
    if match is None:
        raise ConfigError(
            f"unknown case '{name}'{near(name, NAMED)}; allowed: tiny, or small-PxN, paper-PxN "
            "with P scenes and N rollouts, such as small-4x16, and -tT for T of 1 to 8 frames"
        )
    preset, scenes, rollouts = match[1], int(match[2]), int(match[3])
    if scenes > MOST_SCENES or rollouts > MOST_ROLLOUTS:
        raise ConfigError(
            f"case '{name}': at most {MOST_SCENES} scenes and {MOST_ROLLOUTS} rollouts"
        )
    return Case(name, preset, scenes, rollouts, int(match[4] or FRAMES))


def build(case: Case, seed: int = 0, sampling: Sampling | None = None) -> Material:
    """World and inputs of a case; no checkpoint is needed.

    Args:
        case: the case.
        seed: of weights, tokens, pixels and actions.
        sampling: default temperature 1, top_p 0.8, shared noise.
    """
    world = build_world(case.preset, seed)
    random = torch.Generator().manual_seed(seed)
    size, layout = world.tokenizer.config.resolution, world.layout
    low, high = torch.tensor(layout.action_low), torch.tensor(layout.action_high)

    def actions(*shape: int) -> Tensor:
        share = torch.rand(*shape, layout.action_dim, generator=random)
        return low + share * (high - low)

    def integers(most: int, *shape: int) -> Tensor:
        return torch.randint(most, shape, generator=random)

    return Material(
        case=case,
        world=world,
        images=integers(256, case.scenes, size, size, 3).to(torch.uint8),
        context=integers(world.tokenizer.context_codes, case.scenes, world.context_tokens),
        first=integers(world.frame_codes, case.scenes, world.frame_tokens),
        actions=actions(case.scenes, case.rollouts, case.frames),
        expert=actions(case.scenes, case.frames),
        sampling=sampling or Sampling(),
    )


def with_expert(material: Material) -> Material:
    """The case with the expert as one more rollout of every scene, the last."""
    actions = torch.cat((material.actions, material.expert[:, None]), dim=1)
    case = replace(material.case, rollouts=material.case.rollouts + 1)
    return replace(material, case=case, actions=actions)


def build_metric(preset: str, seed: int = 0) -> LPIPS:
    """LPIPS with random weights, VGG at paper size and AlexNet below: weights change no time."""
    return LPIPS.random(_METRIC_NETS[preset], seed)


def output_hash(output: Tensor) -> str:
    """First 16 hexadecimal digits of SHA-256 over shape and values, as little-endian int32."""
    digest = hashlib.sha256(str(list(output.shape)).encode())
    digest.update(output.detach().cpu().numpy().astype("<i4").tobytes())
    return digest.hexdigest()[:16]
