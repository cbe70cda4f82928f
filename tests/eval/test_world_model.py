import json
from statistics import fmean

import pytest
import torch
from rich.console import Console

from tests.eval.moving_square import SquareEngine, T, episode
from vlarft.data.windows import Windows
from vlarft.engine import RolloutEngine, Sampling
from vlarft.errors import DataError
from vlarft.eval.image_quality import psnr
from vlarft.eval.world_model import evaluate_world_model, swapped_partners
from vlarft.models.presets import build_world


@pytest.fixture
def windows():
    speeds = ([1] * 6, [2] * 6, [3] * 6, [0] * 6, [1, 2] * 3, [2, 3] * 3)
    return Windows([episode(i, list(s)) for i, s in enumerate(speeds)], T)


def evaluate(windows, **options):
    engine = options.pop("engine", SquareEngine())
    return evaluate_world_model(
        engine, windows, range(len(windows)), Sampling(seed=3), draws=200, **options
    )


def test_a_perfect_world_model_reaches_the_ceiling_and_listens(windows):
    report = evaluate(windows)
    assert report.quality["world_model"]["all"]["psnr"] == pytest.approx([100] * T)
    assert report.quality["tokenizer"]["moving"]["ssim"] == pytest.approx([1] * T, abs=1e-5)
    assert report.quality["world_model"]["moving"]["lpips"] == pytest.approx([0] * T)
    assert report.listens_to_actions
    assert report.not_below_copying


def test_a_world_model_that_ignores_actions_does_not_pass(windows):
    report = evaluate(windows, engine=SquareEngine(listens=False))
    assert report.comparison("swapped", "moving").difference.value == 0
    assert not report.listens_to_actions


def test_still_windows_are_left_out_of_moving_rows_and_counted(windows):
    report = evaluate(windows)
    assert (report.windows, report.moving_windows, report.episodes) == (18, 15, 6)
    # copying is perfect where nothing moves, so those windows count over all pixels only
    assert (
        report.quality["copy"]["moving"]["psnr"][-1] < 6 < report.quality["copy"]["all"]["psnr"][-1]
    )


def test_copy_is_the_mean_of_window_psnr_and_the_pooled_figure_differs(windows):
    report = evaluate(windows)
    batch = windows.batch(range(len(windows)))
    pixels = batch.frames.float() / 255
    error = (pixels[:, -1] - pixels[:, 0]).square().mean((1, 2, 3))
    assert report.quality["copy"]["all"]["psnr"][-1] == pytest.approx(
        psnr(error).mean().item(), abs=1e-4
    )
    assert report.quality["copy"]["all"]["psnr_pooled"][-1] == pytest.approx(
        psnr(error.mean()).item(), abs=1e-4
    )


def test_result_does_not_depend_on_the_batch_and_uses_the_given_noise(windows):
    engine = SquareEngine()
    assert (
        evaluate(windows, batch=5, engine=engine).to_dict() == evaluate(windows, batch=18).to_dict()
    )
    assert {s.seed for s in engine.noises} == {3}


def test_without_perceptual_no_lpips_is_computed(windows):
    engine = SquareEngine()
    engine.compare = None
    report = evaluate(windows, engine=engine, perceptual=False)
    assert report.metric is None
    assert "lpips" not in report.quality["copy"]["all"]


def test_progress_and_words(windows):
    seen = []
    report = evaluate(windows, batch=8, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(8, 18), (16, 18), (18, 18)]
    json.dumps(report.to_dict())
    console = Console(width=140, record=True, file=None, quiet=True)
    console.print(report.table())
    assert any("swapped actions" in line and "95% interval" in line for line in report.lines())
    flat, quality = report.flat(), report.quality
    means = [fmean(quality["world_model"]["all"][figure]) for figure in ("psnr", "ssim")]
    assert "world model {:.2f} dB, SSIM {:.3f}; tokenizer".format(*means) in report.lines()[0]
    swapped = report.comparison("swapped", "moving").difference.value
    assert flat["psnr_moving_over_swapped"] == swapped
    assert flat["ssim_moving_copy"] == quality["copy"]["moving"]["ssim"][-1]
    assert flat["lpips_all_world_model"] == quality["world_model"]["all"]["lpips"][-1]


def test_nothing_moves():
    still = Windows([episode(i, [0] * 6) for i in range(2)], T)
    engine = SquareEngine()
    engine.encode = None  # refused before anything is imagined
    with pytest.raises(DataError, match="nothing moves"):
        evaluate(still, engine=engine)


def test_partners_are_a_permutation_between_episodes_and_far_in_time():
    counts = [5, 9, 3, 7]
    which = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    start = torch.cat([torch.arange(c) * 10 for c in counts])
    partner = swapped_partners(which, start)
    assert partner.sort().values.tolist() == list(range(24))
    assert (which[partner] != which).all()
    assert torch.equal(partner, swapped_partners(which, start))
    shuffled = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    again = swapped_partners(which[shuffled], start[shuffled])
    assert torch.equal(
        shuffled[again], partner[shuffled]
    )  # a matter of windows, not of their order
    assert (start - start[partner]).abs().double().mean() > 20


@pytest.mark.parametrize("which", [[0, 0, 0], [0, 0, 0, 1, 1]])
def test_too_few_episodes_to_swap(which):
    with pytest.raises(DataError, match="cannot be swapped"):
        swapped_partners(torch.tensor(which), torch.arange(len(which)))


def test_with_the_real_engine_and_a_random_tiny_world():
    world = build_world("tiny")
    engine = RolloutEngine(world, backend="reference", metric="lpips-alex")
    data = Windows([episode(i, [1 + i % 2] * 9) for i in range(4)], 8)
    report = evaluate_world_model(
        engine, data, range(len(data)), Sampling(), perceptual=False, draws=50
    )
    # the ceiling here is the tokenizer's own forward pass, without the engine
    batch = data.batch(range(len(data)))
    pixels = batch.frames.permute(0, 1, 4, 2, 3).float() / 255
    with torch.no_grad():
        context, tokens = world.tokenizer.tokenize(pixels)
        rebuilt = world.tokenizer.detokenize(context, tokens).clamp(0, 1)
    error = (rebuilt - pixels[:, 1:]).square().mean((2, 3, 4))
    assert report.quality["tokenizer"]["all"]["psnr"] == pytest.approx(
        psnr(error).mean(0).tolist(), abs=1e-3
    )
