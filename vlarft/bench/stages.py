"""Stages that can be measured. To add one: its subject, its work, its check, and one line here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlarft.bench.baselines import BASELINES
from vlarft.bench.cases import Material, build_metric
from vlarft.bench.check import Verdict, close, nearly_equal, nothing, same_rollout, same_tokens
from vlarft.bench.counts import Transformer, Work, imagine_work, module_work, prefill_work
from vlarft.bench.measure import Baseline, Context, Subject
from vlarft.bench.subjects import STAGE_SUBJECTS
from vlarft.engine import RolloutEngine
from vlarft.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: as users write it.
        subject: an engine and a case to something that runs.
        work: what cannot be avoided, for a case in a dtype and with a cache in another, or None.
        check: whether a baseline computed the same as the engine.
        baselines: by name.
    """

    name: str
    subject: Callable[[RolloutEngine, Material], Subject]
    work: Callable[[Material, torch.dtype, torch.dtype | None], list[Work]]
    check: Callable[[Context, Any], Verdict]
    baselines: dict[str, Baseline]


def _imagine(material: Material, dtype: torch.dtype, cache: torch.dtype | None) -> list[Work]:
    return imagine_work(material.world, dtype, material.case, cache)


def _prefill(material: Material, dtype: torch.dtype, cache: torch.dtype | None) -> list[Work]:
    return prefill_work(Transformer.of(material.world, dtype, cache), material.case.scenes)


def _encode(material: Material) -> list[Work]:
    tokenizer = _meta(material.world.tokenizer, torch.float32)
    size = tokenizer.config.resolution
    pixels = torch.empty(1, 2, 3, size, size, device="meta")
    return module_work(
        "encode", [tokenizer], lambda: _codes(tokenizer, pixels), material.case.scenes
    )


def _codes(tokenizer: Tokenizer, pixels: Tensor) -> None:
    _, features = tokenizer.encode_context(pixels[:, 0])
    tokenizer.encode_frames(features, pixels[:, 1:])


def _decode(material: Material, dtype: torch.dtype, members: int | None = None) -> list[Work]:
    case, world = material.case, material.world
    tokenizer = _meta(world.tokenizer, dtype)
    frames = case.scenes * (members or case.rollouts) * case.frames
    context = torch.zeros(1, world.context_tokens, dtype=torch.int64, device="meta")
    codes = torch.zeros(1, 1, world.frame_tokens, dtype=torch.int64, device="meta")
    with torch.no_grad():
        features = tokenizer.decoder_features(context)
    return [
        *module_work(
            "scene features",
            [tokenizer],
            lambda: tokenizer.decoder_features(context),
            case.scenes,
        ),
        *module_work(
            "frames", [tokenizer], lambda: tokenizer.decode_frames(features, codes), frames
        ),
    ]


def _compare(material: Material) -> list[Work]:
    case, size = material.case, material.world.tokenizer.config.resolution
    metric = build_metric(case.preset).to("meta")
    image = torch.empty(1, 3, size, size, device="meta")
    images = case.scenes * (case.rollouts + 1) * case.frames  # reference features once a scene
    return module_work("features", [metric], lambda: metric.features(image), images)


def _judge(material: Material, dtype: torch.dtype) -> list[Work]:
    return [
        *_decode(material, dtype, material.case.rollouts + 1),
        *_compare(material),
    ]


def _rollout(material: Material, dtype: torch.dtype, cache: torch.dtype | None) -> list[Work]:
    """The expert is one more member that is imagined and decoded."""
    case, world = material.case, material.world
    members = case.rollouts + 1
    grown = type(case)(case.name, case.preset, case.scenes, members, case.frames)
    return [
        *_encode(material),
        *imagine_work(world, dtype, grown, cache),
        *_judge(material, dtype),
    ]


def _meta(tokenizer: Tokenizer, dtype: torch.dtype) -> Tokenizer:
    """The same layers without memory: counting computes nothing."""
    with torch.device("meta"):
        own = Tokenizer(tokenizer.config)
    return own.eval().to(dtype)


_WORK_AND_CHECK: dict[str, tuple[Any, Any]] = {
    "encode": (lambda material, _dtype, _cache: _encode(material), nearly_equal),  # in float32
    "prefill": (_prefill, nothing),
    "imagine": (_imagine, same_tokens),
    "decode": (lambda material, dtype, _cache: _decode(material, dtype), close),
    "compare": (lambda material, _dtype, _cache: _compare(material), close),  # in float32
    "judge": (lambda material, dtype, _cache: _judge(material, dtype), close),
    "rollout": (_rollout, same_rollout),
}

STAGES: dict[str, Stage] = {
    name: Stage(name, STAGE_SUBJECTS[name], work, check, BASELINES[name])
    for name, (work, check) in _WORK_AND_CHECK.items()
}
"""Stages by name, in the order of a rollout."""
