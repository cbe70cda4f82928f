import pytest
import torch
from torch.nn import functional as F

from tests.eval.moving_square import T, episode
from vlarft.data.windows import Windows
from vlarft.eval.precision import PRECISIONS, measure_precision, table
from vlarft.models.presets import build_world


@pytest.fixture(scope="module")
def world():
    world = build_world("tiny", seed=3)
    with torch.no_grad():
        for name, weight in world.transformer.named_parameters():
            if "norm" not in name:
                weight.mul_(6)  # so that logits depend on what came before
    return world


@pytest.fixture(scope="module")
def windows():
    return Windows([episode(i, speeds) for i, speeds in enumerate(([1] * 6, [2] * 6))], T)


@pytest.fixture(scope="module")
def costs(world, windows):
    return measure_precision(world, windows, range(len(windows)), batch=4, draws=100)


@torch.inference_mode()
def test_cross_entropy_is_that_of_training(world, windows, costs):
    batch = windows.batch(range(len(windows)))
    context, frames = world.window_tokens(batch.frames)
    logits = world.frame_logits(context, frames, batch.actions)
    expected = F.cross_entropy(logits.flatten(0, 2), frames[:, 1:].flatten())
    assert costs[0].cross_entropy == pytest.approx(float(expected), rel=1e-4)
    spread = (logits - logits.mean(-1, keepdim=True)).square().mean().sqrt()
    assert costs[0].logit_spread == pytest.approx(float(spread), rel=1e-3)


def test_float32_is_the_measure_and_narrower_is_worse(costs):
    plain, cache, weights, both = costs
    assert (plain.mean_error, plain.largest_error, plain.divergence, plain.top1) == (0, 0, 0, 1)
    assert plain.change.value == 0
    assert [(c.dtype, c.cache_dtype) for c in costs] == [
        tuple(str(d or weight).removeprefix("torch.") for d in (weight, kind))
        for weight, kind in PRECISIONS
    ]
    for cost in (cache, weights, both):
        assert 0 < cost.mean_error < cost.largest_error
        assert cost.divergence > 0
        assert cost.change.value == pytest.approx(cost.cross_entropy - plain.cross_entropy)
    assert cache.mean_error > weights.mean_error  # 3 bits of mantissa against 7


def test_the_table_has_a_row_a_precision(costs):
    assert table(costs).row_count == len(PRECISIONS)
