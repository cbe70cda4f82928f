"""An engine's stages as things to measure."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vlarft.bench.cases import Material, build_metric
from vlarft.bench.clock import now
from vlarft.bench.measure import Options, Run, Subject, Timed
from vlarft.engine import RolloutEngine


def build_engine(material: Material, options: Options, backend: str | None = None) -> RolloutEngine:
    """An engine for a case.

    Raises:
        BackendError, UnsupportedModelError: the back end cannot run here.
    """
    return RolloutEngine(
        material.world,
        backend=backend or options.backend,
        device=options.device,
        dtype=options.dtype,
        cache_dtype=options.cache_dtype,
        metric=build_metric(material.case.preset),
    )


@dataclass(frozen=True)
class Imagine:
    """Prompts and generation: fresh scenes at every run.

    Attributes:
        engine: any back end.
        material: the case.
    """

    engine: RolloutEngine
    material: Material

    def run(self) -> Run:
        """Prefill and generate once."""
        engine, given = self.engine, self.material
        start = now()
        scenes = engine.scenes_from_tokens(given.context, given.first)
        engine.prefill(scenes)
        middle = now()
        tokens = engine.imagine(scenes, given.actions, given.sampling).tokens
        end = now()
        scenes.release()
        return Run(end - start, tokens, {"prefill": middle - start, "generate": end - middle})


@dataclass(frozen=True)
class Rollout:
    """All stages, from start frames and actions to distances, one expert a scene.

    Start frames are encoded, and the rollout goes on from the case's own tokens: a single code on a
    quantiser's border would make another rollout, and outputs could not be compared.

    Attributes:
        engine: any back end.
        material: the case.
    """

    engine: RolloutEngine
    material: Material

    def run(self) -> Run:
        """Encode, imagine, decode, compare once."""
        engine, given = self.engine, self.material
        start = now()
        engine.encode(given.images)
        middle = now()
        scenes = engine.scenes_from_tokens(given.context, given.first)
        result = engine.rollout(
            scenes, given.actions, given.expert, given.sampling, keep=("tokens",)
        )
        seconds = now() - start
        scenes.release()
        stages = {k: v for k, v in result.stats["seconds"].items() if k != "total"}
        parts = {"encode": middle - start, **stages}
        assert result.tokens is not None  # kept
        assert result.expert_tokens is not None
        tokens = torch.cat((result.tokens, result.expert_tokens[:, None]), dim=1)
        distances = torch.stack((result.l1, result.perceptual), dim=-1)
        return Run(seconds, (tokens, distances), parts)


def _prefill(engine: RolloutEngine, material: Material) -> Subject:
    def call() -> None:
        scenes = engine.scenes_from_tokens(material.context, material.first)
        engine.prefill(scenes)
        scenes.release()

    return Timed(call)


def _encode(engine: RolloutEngine, material: Material) -> Subject:
    def call() -> torch.Tensor:
        scenes = engine.encode(material.images)
        return torch.cat((scenes.context, scenes.first), dim=1)

    return Timed(call)


def _decode(engine: RolloutEngine, material: Material) -> Subject:
    """Random codes: frames are distinct, and none can be left out."""
    codes = random_tokens(material)

    def call() -> torch.Tensor:
        scenes = engine.scenes_from_tokens(material.context, material.first)
        frames = engine.decode(scenes, codes)
        scenes.release()
        return frames

    return Timed(call)


def _compare(engine: RolloutEngine, material: Material) -> Subject:
    frames, reference = random_frames(material)

    def call() -> torch.Tensor:
        found = engine.compare(frames, reference)
        return torch.stack((found.l1, found.perceptual), dim=-1)

    return Timed(call)


def _judge(engine: RolloutEngine, material: Material) -> Subject:
    """Decode and compare; the last of N + 1 members is the expert."""
    codes = random_tokens(material, material.case.rollouts + 1)

    def call() -> torch.Tensor:
        scenes = engine.scenes_from_tokens(material.context, material.first)
        frames = engine.decode(scenes, codes)
        scenes.release()
        found = engine.compare(frames[:, :-1], frames[:, -1])
        return torch.stack((found.l1, found.perceptual), dim=-1)

    return Timed(call)


def random_frames(material: Material) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames [P,N,T,3,H,W] and reference [P,T,3,H,W] in [0, 1], drawn from the seed 0."""
    case, size = material.case, material.world.tokenizer.config.resolution
    random = torch.Generator("cpu").manual_seed(0)
    shape = (case.scenes, case.rollouts, case.frames, 3, size, size)
    frames = torch.rand(shape, generator=random, device="cpu")
    reference = torch.rand((shape[0], *shape[2:]), generator=random, device="cpu")
    return frames.to(material.images.device), reference.to(material.images.device)


def random_tokens(material: Material, members: int | None = None) -> torch.Tensor:
    """Frame codes int64 [P,M,T,K], M = N by default, drawn from the seed 0."""
    case, world = material.case, material.world
    random = torch.Generator("cpu").manual_seed(0)
    shape = (case.scenes, members or case.rollouts, case.frames, world.frame_tokens)
    codes = torch.randint(world.frame_codes, shape, generator=random, device="cpu")
    return codes.to(material.images.device)


STAGE_SUBJECTS: dict[str, Callable[[RolloutEngine, Material], Subject]] = {
    "imagine": Imagine,
    "prefill": _prefill,
    "encode": _encode,
    "decode": _decode,
    "compare": _compare,
    "judge": _judge,
    "rollout": Rollout,
}
