"""Frames and distances of the engine are close to plain float32; a wrong engine is noticed."""

import json

import pytest
import torch

from vlarft.bench.accuracy import measure_accuracy, near_expert, spearman
from vlarft.bench.cases import build, find_case
from vlarft.cli import run_command
from vlarft.engine import RolloutEngine


@pytest.mark.parametrize(
    ("dtype", "least", "most"),
    # Plain torch in bfloat16: 0.064; ours 0.0098 by AVX-512 products, 0.0103 by AMX tiles.
    [(torch.float32, 60.0, 0.001), (torch.bfloat16, 40.0, 0.015)],
    ids=["f32", "bf16"],
)
def test_native_frames_and_distances_keep_their_precision(dtype, least, most):
    found = measure_accuracy(find_case("small-1x16"), dtype, "lpips-alex", backend="native")
    assert found.psnr_worst >= least
    assert found.distance_error < most
    assert found.rank_correlation > 0.99
    # Mean squared error at most twice that of plain torch in the same dtype.
    assert found.psnr >= min(found.plain_psnr, 100.0) - 3.0


def test_a_wrong_decoder_is_noticed(monkeypatch):
    decode = RolloutEngine.decode

    def darker(self, scenes, tokens):
        frames = decode(self, scenes, tokens)
        return frames if self.backend == "reference" else frames * 0.98

    monkeypatch.setattr(RolloutEngine, "decode", darker)
    found = measure_accuracy(find_case("tiny"), torch.float32, "lpips-alex", backend="native")
    assert found.psnr_worst < 60


def test_rollouts_move_away_from_the_expert():
    codes = near_expert(build(find_case("small-1x16")), seed=0)
    differ = (codes[:, :-1] != codes[:, -1:]).float().mean((0, 2, 3))
    assert differ[0] < 0.3
    assert differ[-1] > 0.99
    assert bool((differ > 0).all())


def test_spearman():
    a = torch.tensor([0.1, 5.0, 2.0, 3.0])
    assert spearman(a, a.exp()) == pytest.approx(1)
    assert spearman(a, -a) == pytest.approx(-1)
    assert spearman(torch.arange(3.0), torch.tensor([1.0, 0.0, 2.0])) == pytest.approx(0.5)


def test_command(capsys):
    command = ["bench", "accuracy", "--case", "tiny", "--dtype", "float32", "--json", "-"]
    assert run_command(command) == 0
    found = json.loads(capsys.readouterr().out)["accuracy"]
    assert [one["dtype"] for one in found] == ["float32"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--net", "resnet"], "alex, vgg, squeeze"),
        (["--backend", "numpy"], "auto, native, reference"),
        (["--metric-file", "nowhere.safetensors"], "nowhere.safetensors"),
    ],
)
def test_wrong_options_get_one_line(options, words, capsys):
    assert run_command(["bench", "accuracy", "--case", "tiny", *options]) == 2
    assert words in capsys.readouterr().err
