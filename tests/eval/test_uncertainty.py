"""Entropy of the world model's tokens, against plain arithmetic."""

import copy
import math

import pytest
import torch

from vlarft.demo import DEMOS, WORLD, load_windows
from vlarft.engine import RolloutEngine, Sampling
from vlarft.eval.uncertainty import measure_uncertainty
from vlarft.models.world_model import WorldModel
from vlarft.rft.evaluation import spread_windows
from vlarft.rft.gate import frame_entropy


@pytest.fixture(scope="module")
def world():
    return WorldModel.from_pretrained(WORLD)


@pytest.fixture(scope="module")
def windows(world):
    return load_windows([DEMOS], "val", world.layout)


def test_entropy_is_that_of_the_transformers_distribution(world, windows):
    batch = windows.batch([5, 40])
    found = frame_entropy(world, batch.frames, batch.actions)
    context, tokens = world.window_tokens(batch.frames)
    with torch.no_grad():
        ids = world.sequence_ids(context, tokens, batch.actions)
        logits = world.transformer(input_ids=ids).logits[..., : world.frame_codes].double()
    length = world.layout.action_dim + world.frame_tokens
    for row in range(2):
        entropies = []
        for frame in range(world.layout.frames):
            for k in range(world.frame_tokens):
                at = world.prompt_length + frame * length + world.layout.action_dim + k
                entropies.append(
                    torch.distributions.Categorical(logits=logits[row, at - 1]).entropy()
                )
        assert float(found[row]) == pytest.approx(float(torch.stack(entropies).mean()), rel=1e-5)


def test_a_model_that_knows_nothing_has_the_entropy_of_all_codes(world, windows):
    ignorant = copy.deepcopy(world)
    ignorant.transformer.lm_head.weight.data.zero_()
    batch = windows.batch([3])
    found = frame_entropy(ignorant, batch.frames, batch.actions)
    assert float(found) == pytest.approx(math.log(world.frame_codes), rel=1e-6)


def test_across_windows(world, windows):
    engine = RolloutEngine(world, metric="lpips-alex")
    numbers = spread_windows(len(windows), 6)
    found = measure_uncertainty(engine, windows, numbers, Sampling(temperature=0.3), batch=4)
    batch = windows.batch(numbers)
    torch.testing.assert_close(found.entropy, frame_entropy(world, batch.frames, batch.actions))
    levels = list(found.quantiles.values())
    assert levels == sorted(levels)
    assert min(found.entropy) <= levels[0] < levels[-1] <= max(found.entropy)
    assert -1 <= found.moving.value <= 1
    assert found.order is None
    assert "token entropy of a window" in found.lines()[0]


def test_windows_without_motion_have_no_moving_error(world, windows):
    still = copy.copy(windows)
    still._frames = [frames[:1].expand_as(frames) for frames in windows._frames]
    engine = RolloutEngine(world, metric="lpips-alex")
    found = measure_uncertainty(engine, still, spread_windows(len(still), 4), Sampling())
    assert found.moving is None
    assert math.isfinite(found.whole.value)
    assert "nothing moves" in found.lines()[0]
