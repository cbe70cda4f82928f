import re
from dataclasses import replace

import pytest
import torch

from vlarft.engine import RolloutEngine, Sampling
from vlarft.engine.plan import parse_bytes
from vlarft.errors import ConfigError, PlanError, ShapeError


@pytest.mark.parametrize(
    ("text", "size"), [("8GiB", 8 << 30), ("500MB", 500 * 10**6), ("1.5 kib", 1536), (123, 123)]
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["8", "GiB", "8 bananas", "-1GiB", 0, -5, "0GiB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="memory_limit"):
        parse_bytes(text)


def test_bytes_grow_with_what_is_asked(engine):
    base = engine.plan(2, 4)
    assert base.total == sum(base.bytes.values())
    assert (
        engine.plan(4, 4).bytes["prompt keys and values"]
        == 2 * base.bytes["prompt keys and values"]
    )
    size = engine._planner.size
    row = 2 * size.layers * size.kv_heads * size.head_dim * (8 * (7 + size.frame_tokens) - 1) * 4
    assert base.bytes["suffix keys and values"] == 2 * 5 * row
    assert engine.plan(2, 4, expert=False).bytes["suffix keys and values"] == 2 * 4 * row
    assert engine.plan(2, 4, keep=("frames",)).bytes["kept frames"] == 2 * 5 * 8 * 3 * 32 * 32 * 4


def test_the_planned_caches_are_the_allocated_ones(engine, scenes, actions):
    engine.imagine(scenes, actions)
    plan = engine.plan(3, 4, expert=False)
    assert engine._parts.held_bytes == plan.bytes["suffix keys and values"]
    held = scenes.prefix.keys.nbytes + scenes.prefix.values.nbytes
    assert held == plan.bytes["prompt keys and values"]


def test_a_narrow_cache_is_planned_where_it_is_stored(engine):
    size = engine._planner.size
    narrow = replace(size, cache_element=1)
    assert 4 * narrow.prefix_scene == size.prefix_scene
    assert 4 * narrow.suffix_row(8) == size.suffix_row(8)
    assert narrow.imagine_work(3, 8) == size.imagine_work(3, 8)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_off_a_gpu_a_cache_is_rounded_and_not_smaller(world, scenes, actions, backend):
    options = {"backend": backend, "metric": "lpips-alex", "memory_limit": "2GiB"}
    plain = RolloutEngine(world, **options)
    rounded = RolloutEngine(world, cache_dtype="float8_e4m3fn", **options)
    plan = rounded.plan(3, 4)
    assert "cache rounded to float8_e4m3fn, float32 on cpu" in plan.kernel_path
    assert plan.bytes["suffix keys and values"] == plain.plan(3, 4).bytes["suffix keys and values"]
    tokens = [engine.imagine(scenes, actions).tokens for engine in (plain, rounded)]
    assert not torch.equal(*tokens)


def test_an_unknown_cache_is_refused(world):
    with pytest.raises(ConfigError, match=r"cache_dtype = 'int8'; allowed: float8_e4m3fn, or none"):
        RolloutEngine(world, cache_dtype="int8")


def test_a_refusal_names_exactly_what_fits(world):
    engine = RolloutEngine(world, metric="lpips-alex", memory_limit="200MiB")
    with pytest.raises(PlanError) as refused:
        engine.plan(200, 300)
    found = re.search(r"N <= (\d+) rollouts with P = 200 or P <= (\d+) scenes", str(refused.value))
    most_n, most_p = int(found[1]), int(found[2])
    assert engine.plan(200, most_n).total <= 200 << 20
    assert engine.plan(most_p, 300).total <= 200 << 20
    for p, n in ((200, most_n + 1), (most_p + 1, 300)):
        with pytest.raises(PlanError):
            engine.plan(p, n)


def test_a_limit_below_the_weights_says_so(world):
    engine = RolloutEngine(world, metric="lpips-alex", memory_limit="1MiB")
    with pytest.raises(PlanError, match=r"not even one .* P = 1, N = 1 takes"):
        engine.plan(1, 1)


def test_impossible_counts_are_refused(engine):
    with pytest.raises(ShapeError, match="frames at most 8"):
        engine.plan(1, 1, frames=9)
    with pytest.raises(ShapeError, match="at least 1"):
        engine.plan(0, 1)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_seconds_are_predicted_from_measured_rates(world, frames, actions, expert, backend):
    # W stays 1: with "auto" the engine may choose another W once it knows its acceptance.
    engine = RolloutEngine(world, backend=backend, metric="lpips-alex", memory_limit="1GiB")
    assert engine.plan(3, 4, speculate="off").predicted_seconds is None
    scenes = engine.encode(frames)
    result = engine.rollout(scenes, actions, expert, Sampling(speculate="off"))
    measured = {s: result.stats["seconds"][s] for s in ("imagine", "decode", "compare")}
    again = engine.plan(3, 4, speculate="off")
    assert again.predicted_seconds == pytest.approx(sum(measured.values()))
    doubled = engine.plan(6, 4, speculate="off").seconds
    assert doubled["decode"] == pytest.approx(2 * measured["decode"])
    assert doubled["compare"] == pytest.approx(2 * measured["compare"])
    if backend == "reference":  # the native back end's share follows its own measured passes
        assert doubled["imagine"] == pytest.approx(2 * measured["imagine"])
    else:
        assert doubled["imagine"] > 0


def test_without_a_limit_most_of_the_free_memory_is_used(world):
    engine = RolloutEngine(world, metric="lpips-alex")
    assert engine.plan(1, 1).limit > 64 << 20
