"""Every baseline draws the engine's tokens, wholly and by samples; and a wrong one is caught."""

from itertools import pairwise

import pytest
import torch

from tests.bench.conftest import context
from vlarft.bench import check
from vlarft.bench.baselines import BASELINES, static
from vlarft.bench.baselines.schedule import FrameSchedule, interpolate
from vlarft.bench.measure import Samples, Skip

LOOPS = ("hf", "published", "static")


@pytest.fixture(autouse=True)
def _not_compiled(monkeypatch):
    """Compilation takes tens of seconds and is tested once, below."""
    monkeypatch.setattr(static.StaticLoop, "compile", lambda _: (0.0, "a test"))


@pytest.mark.parametrize("name", [*LOOPS, "torch2"])
@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"top_p": 0.8}], ids=["greedy", "p"])
def test_same_tokens_as_the_engine(name, sampling):
    given = context(**sampling)
    run = BASELINES["imagine"][name].build(given).subject.run()
    assert not run.sampled
    assert torch.equal(run.output, given.output)
    assert run.parts["prefill"] + run.parts["generate"] == pytest.approx(run.seconds)
    assert check.same_tokens(given, run.output).same


@pytest.mark.parametrize("name", LOOPS)
def test_samples_are_the_engines_tokens_too(name):
    given = context(sample="always", temperature=0.0)
    run = BASELINES["imagine"][name].build(given).subject.run()
    assert run.sampled
    assert isinstance(run.output, Samples)
    frames = {frame for frame, _ in run.output.tokens}
    assert {0, 4, 7} <= frames
    for (frame, position), tokens in run.output.tokens.items():
        assert torch.equal(tokens, given.output[:, :, frame, position])
    assert check.same_tokens(given, run.output).same


def test_bfloat16_is_judged_by_its_rounding():
    given = context(dtype=torch.bfloat16)
    run = BASELINES["imagine"]["hf"].build(given).subject.run()
    verdict = check.same_tokens(given, run.output)
    assert verdict.detail["tokens_compared"] == given.output.numel()


def test_wrong_tokens_are_caught():
    given = context(temperature=0.0)
    wrong = given.output.clone()
    wrong[0, 1, 3, 2] = (wrong[0, 1, 3, 2] + 1) % given.material.world.frame_codes
    verdict = check.same_tokens(given, wrong)
    assert not verdict.same
    assert verdict.detail["differences"] == 1
    drawn = Samples({(3, 2): wrong[:, :, 3, 2]})
    assert not check.same_tokens(given, drawn).same


def test_a_cache_that_does_not_fit_is_left_out(monkeypatch):
    monkeypatch.setattr("vlarft.bench.baselines.memory.free_memory", lambda _: 1000)
    given = context(temperature=0.0)
    with pytest.raises(Skip, match="are free"):
        BASELINES["imagine"]["hf"].build(given)


def test_schedule():
    s = FrameSchedule(prompt=10, frames=3, frame_tokens=4, action_dim=2)
    assert s.suffix == 17
    # [2 actions][4 tokens] three times: before a frame's first pass its last token is not yet fed
    assert [s.length_before(f, 0) for f in range(3)] == [10, 15, 21]
    assert [s.length_before(1, p) for p in (1, 2, 3)] == [18, 19, 20]
    assert s.sampled_positions() == [1, 2, 3]
    long = FrameSchedule(prompt=1, frames=8, frame_tokens=64, action_dim=7).sampled_positions()
    assert (len(long), long[0], long[-1]) == (12, 1, 63)
    assert {b - a for a, b in pairwise(long)} <= {5, 6}


def test_interpolation():
    known = {0: 1.0, 4: 3.0, 7: 6.0}
    assert [interpolate(known, x) for x in (0, 2, 4, 5, 7, 9)] == [1, 2, 3, 4, 6, 6]
