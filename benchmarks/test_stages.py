"""Seconds of each engine stage on the reference back end, with random weights. `make bench`.

The sizes are those of a preset; a world's weights change neither the work nor the shapes. Distances
use the bundled AlexNet LPIPS. Times are of warm calls; `extra_info` gives trajectories a second.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from vlarft.engine import RolloutEngine, Sampling, Scenes
from vlarft.models.presets import build_world

SCENES, ROLLOUTS = 1, 8


@dataclass(frozen=True)
class Case:
    engine: RolloutEngine
    images: torch.Tensor  # uint8 [P,H,W,3]
    actions: torch.Tensor  # [P,N,T,A]
    scenes: Scenes
    tokens: torch.Tensor  # [P,N,T,K]
    frames: torch.Tensor  # [P,N,T,3,H,W]


@pytest.fixture(scope="module", params=["tiny", "small"])
def case(request: pytest.FixtureRequest) -> Case:
    world = build_world(request.param)
    engine = RolloutEngine(world, backend="reference", metric="lpips-alex")
    generator = torch.Generator().manual_seed(0)
    size = world.tokenizer.config.resolution
    images = torch.randint(256, (SCENES, size, size, 3), dtype=torch.uint8, generator=generator)
    actions = torch.rand(SCENES, ROLLOUTS, world.layout.frames, 7, generator=generator) * 2 - 1
    scenes = engine.encode(images)
    tokens = engine.imagine(scenes, actions, Sampling()).tokens
    return Case(engine, images, actions, scenes, tokens, engine.decode(scenes, tokens))


def run(benchmark: BenchmarkFixture, stage: Callable[[], Any]) -> None:
    benchmark.pedantic(stage, rounds=5, warmup_rounds=1)
    median = benchmark.stats.stats.median
    benchmark.extra_info["trajectories_per_second"] = SCENES * ROLLOUTS / median


def test_encode(benchmark, case):
    run(benchmark, lambda: case.engine.encode(case.images))


def test_imagine(benchmark, case):
    run(benchmark, lambda: case.engine.imagine(case.scenes, case.actions, Sampling()))


def test_decode(benchmark, case):
    run(benchmark, lambda: case.engine.decode(case.scenes, case.tokens))


def test_compare(benchmark, case):
    reference = case.frames[:, 0].contiguous()
    run(benchmark, lambda: case.engine.compare(case.frames, reference))


def test_rollout(benchmark, case):
    expert = case.actions[:, 0].contiguous()
    run(benchmark, lambda: case.engine.rollout(case.scenes, case.actions, expert, Sampling()))
