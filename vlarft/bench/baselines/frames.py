"""Baselines of decode, compare and both together (`judge`), rollout by rollout.

`diffusers`: its blocks, channels last, the context's features once a scene.
`lpips`: both images of every pair through the backbone, as the LPIPS authors' package does.
`published`: as the authors' code does: the whole context frame is decoded again for every rollout,
its keys and values are computed for every frame, the expert's frames and their features belong to
every rollout; torch's default layout; under autocast when the dtype is bfloat16.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vlarft.bench.baselines.by_row import ByRow
from vlarft.bench.baselines.diffusers_blocks import diffusers_tokenizer, diffusers_version
from vlarft.bench.cases import Material, build_metric
from vlarft.bench.measure import Context, Prepared
from vlarft.bench.subjects import random_frames, random_tokens
from vlarft.models.autoencoder import KeyValue
from vlarft.models.lpips import LPIPS
from vlarft.models.tokenizer import DecoderFeatures, Tokenizer

Render = Callable[[Tensor], Tensor]  # tokens [T,K] of a scene -> frames float32 [T,3,H,W] in [0, 1]


# --- decode ---------------------------------------------------------------------------------


def _renderer(tokenizer: Tokenizer, material: Material, scene: int) -> Render:
    """Context features now, frames later."""
    features = tokenizer.decoder_features(material.context[scene : scene + 1])

    def render(tokens: Tensor) -> Tensor:
        return tokenizer.decode_frames(features, tokens[None])[0].float().clamp(0, 1)

    return render


def _published_renderer(context: Context, scene: int) -> Render:
    """Everything later, in full, for every call."""
    material = context.material
    tokenizer = material.world.tokenizer
    tokens0 = material.context[scene : scene + 1]

    def render(tokens: Tensor) -> Tensor:
        with torch.autocast(
            tokens.device.type, torch.bfloat16, enabled=context.options.dtype != torch.float32
        ):
            tokenizer.decode_context(tokens0)
            kv = tokenizer.decoder_features(tokens0).attended
            count = len(tokens)
            features = DecoderFeatures(
                KeyValue(kv.key.repeat(count, 1, 1, 1), kv.value.repeat(count, 1, 1, 1))
            )
            return tokenizer.decode_frames(features, tokens[:, None])[:, 0].float().clamp(0, 1)

    return render


def decode_diffusers(context: Context) -> Prepared:
    """Prepare it; raises Skip without the package."""
    tokenizer, material = diffusers_tokenizer(context), context.material
    codes = random_tokens(material)
    subject = ByRow(
        _shape(material),
        partial(_renderer, tokenizer, material),
        lambda render, p, n: render(codes[p, n]),
        context.options.sample,
    )
    return Prepared(subject, notes={"diffusers": diffusers_version()})


def decode_published(context: Context) -> Prepared:
    """Prepare it."""
    material = context.material
    codes = random_tokens(material)
    subject = ByRow(
        _shape(material),
        partial(_published_renderer, context),
        lambda render, p, n: render(codes[p, n]),
        context.options.sample,
    )
    return Prepared(subject)


# --- compare --------------------------------------------------------------------------------


def _distances(metric: LPIPS, frames: Tensor, reference: Tensor) -> Tensor:
    """L1 and LPIPS of T pairs, both through the backbone, float32 [T,2]."""
    return torch.stack(((frames - reference).abs().mean((1, 2, 3)), metric(frames, reference)), -1)


def _metric(context: Context, channels_last: bool) -> LPIPS:
    def make() -> LPIPS:
        metric = build_metric(context.material.case.preset).to(context.material.images.device)
        if channels_last:
            metric.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return metric

    metric: LPIPS = context.shared(f"metric, channels last: {channels_last}", make)
    return metric


def compare_lpips(context: Context) -> Prepared:
    """Prepare it; channels last, the faster layout here."""
    frames, reference = random_frames(context.material)
    metric = _metric(context, True)
    subject = ByRow(
        _shape(context.material),
        lambda _: None,
        lambda _, p, n: _distances(metric, frames[p, n], reference[p]),
        context.options.sample,
    )
    return Prepared(subject)


# --- both -----------------------------------------------------------------------------------


def judge_diffusers_lpips(context: Context, codes: Tensor | None = None) -> Prepared:
    """Prepare it; the expert's frames once a scene. Raises Skip without diffusers.

    Args:
        context: the case.
        codes: frame tokens of the rollouts and the expert, int64 [P,N+1,T,K]; default random ones.
    """
    tokenizer, material = diffusers_tokenizer(context), context.material
    metric = _metric(context, True)
    given = random_tokens(material, material.case.rollouts + 1) if codes is None else codes

    def scene(p: int) -> tuple[Render, Tensor]:
        render = _renderer(tokenizer, material, p)
        return render, render(given[p, -1])

    def row(common: Any, p: int, n: int) -> Tensor:
        render, expert = common
        return _distances(metric, render(given[p, n]), expert)

    subject = ByRow(_shape(material), scene, row, context.options.sample)
    return Prepared(subject, notes={"diffusers": diffusers_version()})


def judge_published(context: Context, codes: Tensor | None = None) -> Prepared:
    """Prepare it; the expert's frames again for every rollout.

    Args:
        context: the case.
        codes: as in `judge_diffusers_lpips`.
    """
    material, metric = context.material, _metric(context, False)
    given = random_tokens(material, material.case.rollouts + 1) if codes is None else codes

    def row(render: Render, p: int, n: int) -> Tensor:
        frames, expert = render(given[p, n]), render(given[p, -1])
        with torch.autocast(
            frames.device.type, torch.bfloat16, enabled=context.options.dtype != torch.float32
        ):
            return _distances(metric, frames, expert).float()

    scene = partial(_published_renderer, context)
    return Prepared(ByRow(_shape(material), scene, row, context.options.sample))


def _shape(material: Material) -> tuple[int, int]:
    return material.case.scenes, material.case.rollouts
