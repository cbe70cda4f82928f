"""Every baseline draws the engine's tokens, wholly and by samples; and a wrong one is caught."""

import sys
from itertools import pairwise

import pytest
import torch

from tests.bench.conftest import context
from vlarft.bench import check
from vlarft.bench.baselines import BASELINES, static
from vlarft.bench.baselines.by_row import ByRow
from vlarft.bench.baselines.schedule import FrameSchedule, interpolate
from vlarft.bench.cases import build, find_case
from vlarft.bench.measure import Context, Options, Samples, Skip, SomeRows
from vlarft.bench.stages import STAGES
from vlarft.bench.subjects import build_engine

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


# --- rollout by rollout ---------------------------------------------------------------------


def _measured(stage, name, sample, dtype=torch.float32):
    """A baseline's verdict and run; the engine's output is computed on the same inputs."""
    material = build(find_case("tiny"))
    options = Options("native", dtype, sample=sample)
    given = Context(
        material,
        options,
        STAGES[stage].subject(build_engine(material, options), material).run().output,
    )
    run = BASELINES[stage][name].build(given).subject.run()
    return STAGES[stage].check(given, run.output), run


@pytest.mark.parametrize("sample", ["never", "always"])
@pytest.mark.parametrize(
    ("stage", "name"),
    [(s, n) for s in ("decode", "compare", "judge", "rollout") for n in BASELINES[s]],
)
def test_same_frames_and_distances_as_the_engine(stage, name, sample):
    if "diffusers" in name:
        pytest.importorskip("diffusers")
    verdict, run = _measured(stage, name, sample)
    assert verdict.same, verdict.detail
    assert run.sampled == (sample == "always" and name != "reference")


def test_autocast_of_published_is_within_bfloat16():
    verdict, _ = _measured("judge", "published", "never", torch.bfloat16)
    assert verdict.same, verdict.detail


def test_samples_of_rows_are_scaled_to_all():
    seen = []

    def row(common, p, n):
        seen.append((common, p, n))
        return torch.tensor([10.0 * p + n])

    whole = ByRow((2, 5), lambda p: p + 100, row, "never").run()
    assert whole.output.tolist() == [[[0], [1], [2], [3], [4]], [[10], [11], [12], [13], [14]]]
    some = ByRow((2, 5), lambda p: p + 100, row, "always")
    seen.clear()
    run = some.run()
    assert run.sampled
    assert seen == [(100, 0, 0), (100, 0, 3)]
    assert torch.equal(run.output.of(whole.output), run.output.values)


def test_a_wrong_sampled_frame_is_caught():
    given = Context(build(find_case("tiny")), Options(), torch.zeros(2, 3, 4))
    assert check.close(given, SomeRows(torch.tensor([1, 4]), torch.zeros(2, 4))).same
    wrong = torch.zeros(2, 4)
    wrong[1, 2] = 0.01
    assert not check.close(given, SomeRows(torch.tensor([1, 4]), wrong)).same


def test_without_diffusers_the_baseline_is_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setitem(sys.modules, "diffusers.models.unets.unet_2d_blocks", None)
    given = Context(build(find_case("tiny")), Options(), None)
    with pytest.raises(Skip, match="pip install diffusers"):
        BASELINES["decode"]["diffusers"].build(given)
