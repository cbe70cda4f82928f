"""Counts against small cases worked out by hand, and against the published figures."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from vlarft.bench.cases import build, find_case
from vlarft.bench.counts import (
    Transformer,
    Work,
    floor_seconds,
    generate_work,
    module_work,
    pass_kernels,
    prefill_work,
)
from vlarft.bench.stages import STAGES

# 2 layers, width 4, 2 query heads and 1 key/value head of 3, gated MLP of 5, 7 codes, float32.
T = Transformer(
    layers=2, hidden=4, heads=2, kv_heads=1, head_dim=3, ffn=5, codes=7, prompt=10,
    frame_tokens=3, action_dim=2, element=4, cache_element=4,
)  # fmt: skip
LAYER = 4 * 6 + 6 * 4 + 2 * 4 * 3 + 3 * 4 * 5  # q, o, k and v, gate up down
PAIR = 4 * 2 * 3  # multiply and add, for scores and values, of all heads, one layer


def test_weights():
    assert T.layer_weights == LAYER == 132
    assert T.block_weights == 264
    assert T.head_weights == 28
    assert T.key_value_elements == 12


def test_prefill():
    (work,) = prefill_work(T, scenes=3)
    weights = LAYER + 24  # the last layer ends at its keys and values
    assert work.flops == 2 * 30 * weights + 3 * 55 * PAIR  # 10 + 9 + .. + 1 pairs a scene
    assert work.bytes == 4 * (weights + 30 * 4 + 30 * 12)


def test_generation_pass_by_pass():
    works = generate_work(T, scenes=2, rollouts=3, frames=2)
    assert [w.count for w in works] == [1, 2, 1, 2]
    # (tokens in the suffix before, tokens of the pass) of all six passes
    passes = [(0, 2), (2, 1), (3, 1), (4, 3), (7, 1), (8, 1)]
    flops, moved = [], []
    for before, width in passes:
        pairs = sum(10 + before + i + 1 for i in range(width))
        flops.append(6 * (2 * width * 264 + 2 * PAIR * pairs + 2 * 28))
        moved.append(4 * (264 + 28 + 6 * width * 4 + (20 + 6 * (before + width)) * 12))
    unrolled = [
        (w.flops + i * w.flops_step, w.bytes + i * w.bytes_step)
        for w in works
        for i in range(w.count)
    ]
    assert unrolled == list(zip(flops, moved, strict=True))
    assert sum(w.total_flops for w in works) == sum(flops)
    assert sum(w.total_bytes for w in works) == sum(moved)


@pytest.mark.parametrize("cache_element", [4, 1])
def test_kernels_of_a_pass_are_the_pass(cache_element):
    """Half way of 2 frames of 2 + 3 tokens: the pass after 5 tokens of a row."""
    sizes = replace(T, cache_element=cache_element)
    kernels = pass_kernels(sizes, scenes=2, rollouts=3, frames=2)
    pairs = 10 + 5 + 1
    assert sum(k.count * k.flops for k in kernels) == 6 * (2 * 264 + 2 * PAIR * pairs + 2 * 28)
    cache = (20 + 6 * 6) * 12 * cache_element
    assert sum(k.count * k.bytes for k in kernels) == 4 * (264 + 28 + 6 * 4) + cache
    assert sum(k.count for k in kernels) == 5 * sizes.layers + 2  # collecting and sampling apart


def test_a_narrow_cache_counts_its_own_bytes():
    narrow = replace(T, cache_element=1)
    (wide_prefill,), (prefill,) = prefill_work(T, 3), prefill_work(narrow, 3)
    assert wide_prefill.bytes - prefill.bytes == 3 * 30 * 12
    for before, after in zip(
        generate_work(T, 2, 3, 2), generate_work(narrow, 2, 3, 2), strict=True
    ):
        assert before.flops == after.flops
    first = generate_work(T, 2, 3, 2)[0].bytes - generate_work(narrow, 2, 3, 2)[0].bytes
    assert first == 3 * (20 + 6 * 2) * 12


def test_floor_takes_the_slower_of_both_in_every_pass():
    work = [Work("a", flops=10, bytes=100, count=3, flops_step=100, bytes_step=0)]
    # seconds of bytes 10, 10, 10; of operations 1, 11, 21
    assert floor_seconds(work, bytes_per_second=10, flops_per_second=10) == 10 + 11 + 21


def test_modules_are_counted_once_a_call_and_weights_once():
    layer = nn.Conv2d(2, 3, 3, padding=1, device="meta")
    image = torch.empty(1, 2, 8, 8, device="meta")
    (work,) = module_work("c", [layer], lambda: layer(image), times=5)
    assert work.flops == 5 * 2 * 2 * 3 * 9 * 64
    assert work.bytes == 4 * (5 * (2 + 3) * 64 + 2 * 3 * 9 + 3)


@pytest.mark.slow
def test_paper_sizes():
    material = build(find_case("paper-1x16"))
    work = {w.what: w for w in STAGES["decode"].work(material, torch.float32, None)}
    frame = work["frames"].flops / (16 * 8)
    assert frame == pytest.approx(0.459e12, rel=0.02)  # counted with limits.py's layer table
    vgg = STAGES["compare"].work(material, torch.float32, None)[0].flops / (17 * 8)
    assert vgg == pytest.approx(0.0401e12, rel=0.01)
    generate = STAGES["imagine"].work(material, torch.float32, None)
    assert sum(w.total_flops for w in generate[1:]) == pytest.approx(2.6e12, rel=0.05)


def test_an_expert_is_one_more_member():
    material = build(find_case("tiny"))
    work = {w.what: w for w in STAGES["rollout"].work(material, torch.float32, None)}
    alone = {w.what: w for w in STAGES["decode"].work(material, torch.float32, None)}
    assert work["frames"].flops / alone["frames"].flops == 4 / 3
