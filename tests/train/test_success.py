"""The success classifier: which frames it learns from, its threshold, and that it learns."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vlarft.config import load_config
from vlarft.data.libero import Episode
from vlarft.data.windows import Windows
from vlarft.errors import DataError
from vlarft.models.presets import build_tokenizer
from vlarft.models.success import SuccessConfig, build_success_classifier
from vlarft.train.loop import train
from vlarft.train.success import (
    SuccessTask,
    SuccessTraining,
    area,
    calibrated,
    choose_windows,
    draw_frames,
    halves,
    scores_of,
    shares_above,
    with_failures,
)

T, SIDE = 4, 32


def episode(number, steps=60, success=True):
    """A square appears in the last frame of a solved episode; before that there is noise."""
    random = np.random.default_rng(number)
    frames = random.integers(0, 80, (steps + 1, SIDE, SIDE, 3), dtype=np.uint8)
    if success:
        frames[-1, 8:20, 8:20] = 200
    return Episode(
        name=f"demo_{number}",
        file=Path("milk.hdf5"),
        task="milk",
        instruction="pick up the milk",
        kind="moved",
        split="train" if success else "failure",
        success=success,
        init_index=0,
        frames=frames,
        actions=np.zeros((steps, 7), np.float32),
        proprioception=np.zeros((steps + 1, 8), np.float32),
    )


def training(*settings):
    return load_config(SuccessTraining, None, settings)


def test_solved_frames_and_others():
    windows = Windows([episode(0), episode(1, 3), episode(2, success=False), episode(4, 70)], T)
    chosen = choose_windows(windows, training("margin=5", "unsolved=6"))
    number, start = windows.episode[chosen.windows], windows.start[chosen.windows]
    assert torch.equal(number, chosen.episode)
    assert 1 not in number  # shorter than a window
    end = start + T
    steps = torch.tensor([60, 3, 60, 70])[number]
    assert torch.equal(chosen.solved, (end == steps) & (number != 2))
    assert int(chosen.solved.sum()) == 2
    others = ~chosen.solved & (number != 2)
    assert int(end[others & (number == 0)].max()) == 60 - 5 - 1  # what looks solved is left out
    assert start.min() == 0
    near = chosen.near
    assert not near[number == 2].any()
    assert (end[near] >= steps[near] - 5 - 32).all()
    assert near[number == 0].sum() >= 3
    assert int(end[number == 2].max()) == 60  # a failure is unsolved to its end
    assert int((number == 2).sum()) == 6


def test_nothing_to_tell_apart_is_refused():
    for episodes in ([episode(0, success=False)], [episode(0, T)]):
        with pytest.raises(DataError, match="needs solved frames and others"):
            choose_windows(Windows(episodes, T), training())


def test_failures_are_split_by_their_number():
    failures = [episode(number, success=False) for number in (100, 101, 102)]
    own = {split: with_failures([episode(0)], failures, split) for split in ("train", "val")}
    assert [e.name for e in own["train"]] == ["demo_0", "demo_100", "demo_102"]
    assert [e.name for e in own["val"]] == ["demo_0", "demo_101"]
    with pytest.raises(DataError, match="'demo_5' is solved; --failures takes failed ones"):
        with_failures([], [episode(5)], "train")


def test_figures_of_known_scores():
    solved = torch.tensor([True, True, False, False, False, False])
    scores = torch.tensor([3.0, 0.0, 1.0, 0.0, -1.0, -2.0])
    assert area(scores, solved) == (4 + 2.5) / 8
    assert calibrated(scores, solved, 0.25) == 0  # one of four above
    assert calibrated(scores, solved, 0.2) == 1  # none of four
    found = shares_above(scores, solved, 0.5)
    assert found == {"recall": 0.5, "accepted": 0.25, "accuracy": 0.625}


def test_halves_share_no_episode_and_both_have_solved_ones():
    windows = Windows([episode(n, success=n != 2) for n in range(5)], T)
    chosen = choose_windows(windows, training())
    first, second = halves(chosen)
    assert torch.equal(first, ~second)
    assert not set(chosen.episode[first].tolist()) & set(chosen.episode[second].tolist())
    assert chosen.solved[first].sum() == chosen.solved[second].sum() == 2


def test_frames_as_the_tokenizer_draws_them():
    windows, tokenizer = Windows([episode(0)], T), build_tokenizer("tiny").eval()
    drawn = draw_frames(tokenizer, windows, torch.tensor([3, 40]))
    ends = torch.from_numpy(windows.episodes[0].frames[[40, 44]])[None]
    pixels = ends.permute(0, 1, 4, 2, 3).float() / 255
    with torch.no_grad():
        expected = tokenizer.detokenize(*tokenizer.tokenize(pixels))[:, 0].clamp(0, 1)
    assert (drawn.dtype, drawn.shape) == (torch.uint8, (2, 3, SIDE, SIDE))
    torch.testing.assert_close(drawn[1:].float() / 255, expected, atol=0.6 / 255, rtol=0)


def test_it_learns_and_resumes_bit_for_bit(tmp_path):
    torch.set_num_threads(1)
    windows = Windows([*(episode(n) for n in range(8)), episode(9, success=False)], T)
    recipe = training(
        "steps=60", "batch_size=16", "warmup_steps=5", "ema_decay=0.9", "channels=[8,16]",
        "validate_every=60", "checkpoint_every=30", "precision=float32",
    )  # fmt: skip
    chosen = choose_windows(windows, recipe)
    frames = torch.stack([windows.batch([n]).frames[0, -1] for n in chosen.windows])
    labelled = (frames.permute(0, 3, 1, 2), chosen)
    config = SuccessConfig(image_size=SIDE, channels=(8, 16))

    def run(folder, settings, resume=False):
        classifier = build_success_classifier(config)
        task = SuccessTask(classifier, settings, labelled, labelled)
        return classifier, train(task, settings, folder, resume)

    classifier, result = run(tmp_path / "whole", recipe)
    assert result.validation["validation_auc"] > 0.99
    classifier.load_state_dict(result.weights)
    scores = scores_of(classifier.eval(), labelled[0])
    assert area(scores, chosen.solved) == result.validation["validation_auc"]

    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        _interrupted(run, stopped, recipe)
    _, resumed = run(stopped, recipe, resume=True)
    assert all(torch.equal(v, resumed.weights[k]) for k, v in result.weights.items())


def _interrupted(run, folder, settings):
    before = SuccessTask.after_step

    def stop(self, step):
        if step == 30:
            raise KeyboardInterrupt
        return before(self, step)

    SuccessTask.after_step = stop
    try:
        run(folder, settings)
    finally:
        SuccessTask.after_step = before
