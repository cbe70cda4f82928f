"""Checks of the reward against cases whose answer is known."""

import json

import pytest
import torch

from vlarft.cli import run_command
from vlarft.data.windows import Windows
from vlarft.demo import DEMOS, WORLD, load_windows
from vlarft.engine import RolloutEngine, Sampling
from vlarft.errors import ConfigError, DataError
from vlarft.eval.conventions import AS_RECORDED, compare_conventions, readings, teacher_forced
from vlarft.eval.entries import measure_entries
from vlarft.eval.horizon import measure_horizon
from vlarft.eval.reward import evaluate_reward, variance_parts
from vlarft.eval.simulated import Executed
from vlarft.eval.uncertainty import measure_uncertainty
from vlarft.models.world_model import WorldModel
from vlarft.rft.evaluation import spread_windows


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_variance_is_told_apart():
    actions, noise = 3.0, 0.5
    distance = actions * random(1, 400, 8) + noise * random(6, 400, 8, seed=1)
    distance += 10 * random(6, 400, 1, seed=2)  # a seed moves a whole group: no matter
    between, within = variance_parts(distance)
    assert float(between.mean()) == pytest.approx(actions**2, rel=0.1)
    assert float(within.mean()) == pytest.approx(noise**2, rel=0.1)


def test_noise_alone_is_no_signal():
    between, within = variance_parts(random(4, 500, 8))
    assert float(between.mean()) < 0.15
    assert float(within.mean()) == pytest.approx(1, rel=0.1)


@pytest.fixture(scope="module")
def world():
    return WorldModel.from_pretrained(WORLD)


@pytest.fixture(scope="module")
def windows(world):
    return load_windows([DEMOS], "val", world.layout)


def test_surprise_is_that_of_the_transformer(world, windows):
    """One window, token by token from a plain forward."""
    batch = windows.batch([5])
    found = float(teacher_forced(world, batch.frames, batch.actions)[0])
    pixels = batch.frames.permute(0, 1, 4, 2, 3).float() / 255
    with torch.no_grad():
        context, features = world.tokenizer.encode_context(pixels[:, 0])
        tokens = world.tokenizer.encode_frames(features, pixels)
        ids = world.sequence_ids(context, tokens, batch.actions)
        logits = world.transformer(input_ids=ids).logits[0, :, : world.frame_codes].double()
    length = world.layout.action_dim + world.frame_tokens
    surprise = []
    for frame in range(world.layout.frames):
        for k in range(world.frame_tokens):
            at = world.prompt_length + frame * length + world.layout.action_dim + k
            surprise.append(-float(torch.log_softmax(logits[at - 1], -1)[ids[0, at]]))
    assert found == pytest.approx(sum(surprise) / len(surprise), rel=1e-5)


def test_the_bundled_world_model_reads_its_own_data_best(world, windows):
    found = compare_conventions(world, windows, spread_windows(len(windows), 12), batch=6)
    assert found[0].name == AS_RECORDED
    by_name = {c.name: c for c in found}
    for name in ("frames rotated by 180 degrees", "deltas' signs flipped"):
        assert by_name[name].difference.interval[0] > 0
    assert by_name["actions are normalised"].cross_entropy > found[0].cross_entropy
    assert set(by_name) == set(readings(world))


class StandInSimulations:
    """Shows white squares as large as the largest difference to the expert's actions."""

    after = (4, 8)

    def run(self, actions, progress):
        self.actions = actions
        progress(len(actions), len(actions))
        count, members = actions.shape[:2]
        error = (actions - actions[:, :1]).abs().amax((2, 3))
        frames = torch.zeros(count, members, 2, 64, 64, 3, dtype=torch.uint8)
        for row in range(count):
            for member in range(members):
                frames[row, member, :, : 1 + int(error[row, member] * 30)] = 255
        still = torch.zeros(count, members, 3, dtype=torch.float64)
        return Executed(frames, still, still, torch.zeros(count, members, dtype=torch.bool))


def test_evaluation_end_to_end(world, windows):
    engine = RolloutEngine(world, metric="lpips-alex")
    numbers = spread_windows(len(windows), 6)
    sampling = Sampling(temperature=0.3)
    simulations, seen = StandInSimulations(), []
    report = evaluate_reward(
        engine,
        windows,
        numbers,
        sampling,
        rollouts=4,
        seeds=2,
        uncertainty=measure_uncertainty(engine, windows, numbers, sampling),
        entries=measure_entries(engine, windows, numbers, sampling),
        simulations=simulations,
        progress=lambda *report: seen.append(report),
    )
    assert seen[-1] == (12, 12)
    assert simulations.actions.shape == (6, 5, 8, 7)
    assert torch.equal(simulations.actions[:, 0], windows.batch(numbers).actions)
    assert report.simulated.agreements[0].groups == 6
    assert report.simulated.agreements[0].actions.value > 0.7
    assert "rank correlation with the simulator's frames after 8" in report.checks()[-1][1]
    assert -1 <= report.uncertainty.order.value <= 1
    assert any(line.startswith("distance when one entry") for line in report.lines())
    assert list(report.sensitivity) == [0.05, 0.1, 0.2, 0.4]
    assert report.sensitivity[0.4] > report.sensitivity[0.05] > 0
    assert {g.noise for g in report.groups} == {"shared", "independent"}
    assert all(0 <= g.reliability.value <= 1 for g in report.groups)
    assert report.trustworthy == all(holds for holds, _ in report.checks())
    assert report.lines()[0].startswith("Verdict: ")
    assert json.loads(json.dumps(report.to_dict()))["kind"] == "reward"
    with pytest.raises(ConfigError, match="rollouts = 3, seeds = 4"):
        evaluate_reward(engine, windows, [0, 1], rollouts=3)


def test_horizon(world, windows):
    engine = RolloutEngine(world, metric="lpips-alex")
    long = Windows(windows.episodes, 2 * windows.frames)
    found = measure_horizon(engine, long, spread_windows(len(long), 4), Sampling(), chunks=2)
    assert found.frames == (8, 16)
    assert found.free[0] == found.restarted[0]  # the first chunk starts from a recording
    assert len(found.copy) == 2
    with pytest.raises(DataError, match="windows of 8 frames; 2 chunks need 16"):
        measure_horizon(engine, windows, [0, 1], Sampling(), chunks=2)


def test_command(capsys):
    arguments = [
        "eval",
        "reward",
        "--windows",
        "4",
        "--rollouts",
        "4",
        "--seeds",
        "2",
        "--no-horizon",
    ]
    assert run_command([*arguments, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "reward"
    assert found["horizon"] is None
    assert len(found["checks"]) == 5


def test_only_grasps(capsys):
    asked = ["eval", "reward", "--windows", "4", "--rollouts", "4", "--seeds", "2", "--no-horizon"]
    assert run_command([*asked, "--at-grasp", "--json", "-"]) == 0
    grasps = json.loads(capsys.readouterr().out)
    assert run_command([*asked, "--json", "-"]) == 0
    assert grasps["checks"] != json.loads(capsys.readouterr().out)["checks"]


def test_data_without_grasps_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(Windows, "grasps", lambda _: torch.arange(1))
    assert run_command(["eval", "reward", "--at-grasp"]) == 2
    assert "--at-grasp: the gripper closes in 1 windows of this data" in capsys.readouterr().err


def test_options_of_the_simulator_need_it(tmp_path, capsys):
    assert run_command(["eval", "reward", "--states", str(tmp_path)]) == 2
    assert "--states and --python are about the simulator; add --simulator" in (
        capsys.readouterr().err
    )
