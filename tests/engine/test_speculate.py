"""W by measured rates, and the engine's tokens whatever it is."""

import pytest
import torch

from vlarft.engine import RolloutEngine, Sampling
from vlarft.engine.speculate import SOURCES, Rates, Shape, best_width, settled
from vlarft.errors import ConfigError, ShapeError

SHAPE = Shape(scenes=1, members=16, prompt=64, frames=8, action_dim=7, frame_tokens=16)
MEMORY_BOUND = Rates((1, 16, 64, 256), (1.0, 1.0, 1.0, 1.1), 0.0, 0.0)
COMPUTE_BOUND = Rates((1, 16, 64, 256), (0.1, 1.6, 6.4, 25.6), 0.0, 0.0)


@pytest.mark.parametrize(
    ("rates", "acceptance", "width"),
    [(MEMORY_BOUND, 0.8, 8), (MEMORY_BOUND, 0.0, 1), (COMPUTE_BOUND, 0.8, 1)],
)
def test_w_follows_the_machine_and_the_acceptance(rates, acceptance, width):
    assert best_width(rates, SHAPE, 0, acceptance) == width


def test_a_small_gain_is_not_worth_it():
    flat = Rates((1, 256), (1.0, 1.0), 0.0, 0.0)
    assert best_width(flat, SHAPE, 0, 0.04) == 1
    assert best_width(flat, SHAPE, 0, 0.06) > 1
    with pytest.raises(ShapeError, match="at least one width"):
        best_width(flat, SHAPE, 0, 0.5, [])


def test_predicted_seconds_count_passes_borders_and_caches():
    assert settled(0.5, 3) == 1.75
    rates = Rates((1, 256), (1.0, 256.0), 0.001, 0.01)
    # 128 passes of 16 tokens: dense 16, prompt 16 * 64 / 1000, caches 16 * 100 / 2 / 100;
    # 8 borders of 16 * 7 tokens more.
    expected = 128 * (16 + 1.024 + 8) + 8 * 112
    assert rates.imagine_seconds(SHAPE, 100, 1, 0.5) == pytest.approx(expected)
    assert rates.dense(512) == pytest.approx(512)


@pytest.fixture(scope="module")
def native(world):
    return RolloutEngine(world, backend="native", metric="lpips-alex", memory_limit="2GiB")


@pytest.mark.parametrize("noise", ["shared", "independent"])
@pytest.mark.parametrize("speculate", [name for name in SOURCES if name != "off"])
def test_tokens_do_not_depend_on_speculation(native, frames, actions, expert, speculate, noise):
    scenes = native.encode(frames)
    plain, guessed = (
        native.imagine(
            scenes, actions, Sampling(noise=noise, speculate=name), expert_actions=expert
        )
        for name in ("off", speculate)
    )
    assert torch.equal(plain.tokens, guessed.tokens)
    assert torch.equal(plain.expert_tokens, guessed.expert_tokens)
    assert plain.stats["width"] == 1
    assert plain.stats["wasted_tokens"] == 0
    if speculate != "auto":
        assert guessed.stats["width"] > 1
        assert guessed.stats["guesses"]
        assert guessed.stats["passes"] <= plain.stats["passes"]


def test_the_plan_says_what_it_chose(native, frames, actions, expert):
    chosen = native.plan(3, 4, speculate="logits")
    assert chosen.width > 1
    assert chosen.guesses == ("logits",)
    assert chosen.seconds["imagine"] > 0
    off = native.plan(3, 4, speculate="off")
    assert (off.width, off.guesses) == (1, ())
    assert off.bytes["work"] < chosen.bytes["work"]
    assert "native: " in off.kernel_path
    result = native.rollout(native.encode(frames), actions, expert, Sampling(speculate="logits"))
    assert result.stats["width"] == chosen.width
    assert result.stats["tokens_per_pass"] >= 1
    assert result.stats["guesses"]["logits"][1] > 0
    measured = sum(result.stats["seconds"][s] for s in ("imagine", "decode", "compare"))
    predicted = native.plan(3, 4, speculate="logits")
    if predicted.width == chosen.width:  # acceptance is known now: W may change
        assert predicted.predicted_seconds == pytest.approx(measured, rel=0.5)
    with pytest.raises(ConfigError, match="allowed: auto, off"):
        native.plan(3, 4, speculate="magic")


def test_release_gives_the_buffers_back(native, frames, actions):
    native.imagine(native.encode(frames), actions)
    plan = native.plan(3, 4, expert=False)
    assert native._parts.held_bytes > plan.bytes["suffix keys and values"]
    native.release()
    assert native._parts.held_bytes == 0
