"""Fine-tuning with the real engine, policy and metric, at the tiny presets' size."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rft_mocks import make_episodes

from vlarft.config import load_config
from vlarft.data.statistics import compute_statistics
from vlarft.data.windows import Windows
from vlarft.engine import RolloutEngine
from vlarft.errors import ConfigError
from vlarft.metrics import read_metrics
from vlarft.models.flow_policy import FlowPolicy, build_policy
from vlarft.models.presets import build_world
from vlarft.rft.config import RFTConfig
from vlarft.rft.judge import judge
from vlarft.rft.run import RunResult, run_rft
from vlarft.rft.trainer import Trainer

T = 8
SETTINGS = (
    "steps=3", "scenes=2", "rollouts=3", "checkpoint_interval=1", "evaluation.interval=0",
    "evaluation.windows=4", "reward.metric=lpips-alex", "optimiser.head_lr=0.01",
    "optimiser.sigma_lr=0.01", "objective.epochs=2", "objective.minibatches=2",
)  # fmt: skip


def windows(seed: int) -> Windows:
    return Windows(make_episodes(2, seed, side=32, steps=10), frames=T)


def make_engine() -> RolloutEngine:
    world = build_world("tiny")
    with torch.no_grad():  # as drawn, the logits are so flat that actions never change a token
        for parameter in world.transformer.parameters():
            if parameter.dim() == 2:
                parameter *= 15
    return RolloutEngine(world, backend="reference", metric="lpips-alex")


def make_policy() -> FlowPolicy:
    return build_policy("tiny", compute_statistics(windows(0).episodes))


def configure(*overrides: str) -> RFTConfig:
    return load_config(RFTConfig, None, [*SETTINGS, *overrides])


def run(folder: Path, *overrides: str) -> tuple[FlowPolicy, RunResult]:
    policy = make_policy()
    return policy, run_rft(
        make_engine(), policy, windows(0), windows(1), folder, configure(*overrides)
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny")
    return folder, *run(folder)


def test_the_expert_is_at_distance_zero_and_the_policy_is_not(finished):
    folder, _, result = finished
    lines = read_metrics(folder / "metrics.jsonl")
    assert lines[0]["noise_floor"] == 0
    assert (result.before.distance > 0).all()
    assert all(line["group_spread"] > 0 for line in lines[1:])
    assert [line["skipped_groups"] for line in lines[1:]] == [0, 0, 0]


def test_sampling_and_scoring_describe_the_same_density(finished):
    folder, _, _ = finished
    lines = read_metrics(folder / "metrics.jsonl")[1:]
    assert all(line["log_prob_gap"] < 1e-4 for line in lines)
    assert 0.08 <= lines[0]["sigma_mean"] <= 0.2  # the Sigma Net's bounds


def test_first_ratio_of_the_flow_policy_is_exactly_one():
    torch.set_num_threads(1)
    for overrides in (("objective.minibatches=1", "objective.epochs=1"), ("objective.epochs=1",)):
        trainer = Trainer(make_engine(), make_policy(), windows(0), configure(*overrides))
        ratios = []
        policy_log_prob = trainer.policy.log_prob

        def spy(observation, proposal, real=policy_log_prob, seen=ratios):
            result = real(observation, proposal)
            seen.append(result.log_prob.detach())
            return result

        trainer.policy.log_prob = spy
        metrics = trainer.run_step()
        if len(ratios) == 1:
            assert metrics["ratio_min"] == metrics["ratio_max"] == 1
        else:  # two frozen passes, then the first update of minibatch 0
            assert torch.equal(ratios[0], ratios[2])


def test_the_encoder_stays_and_everything_trained_moves(finished):
    _, policy, _ = finished
    fresh = dict(make_policy().named_parameters())
    trained = {id(p) for group in policy.parameter_groups().values() for p in group}
    for name, parameter in policy.named_parameters():
        moved = not torch.equal(parameter, fresh[name])
        assert moved == (id(parameter) in trained), name


def test_the_saved_policy_is_the_trained_one(finished):
    folder, policy, _ = finished
    loaded = FlowPolicy.from_pretrained(folder / "policy").state_dict()
    for name, value in policy.state_dict().items():
        assert torch.equal(value, loaded[name]), name


def test_killed_at_an_unknown_moment_and_resumed_equals_uninterrupted(tmp_path):
    root, tests = Path(__file__).parents[2], Path(__file__).parent
    code = (
        "import sys, torch; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "torch.set_num_threads(1); import test_rft_tiny as t;"
        "t.run(Path(sys.argv[2]), 'steps=5000')"
    )
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tests), str(tmp_path / "killed")],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        lines = tmp_path / "killed" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not lines.exists() or lines.read_bytes().count(b"\n") < 4:
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL

    torch.set_num_threads(1)
    last = len(lines.read_bytes().splitlines())  # at least one step more than any checkpoint
    resumed, a = run(tmp_path / "killed", f"steps={last}")
    straight, b = run(tmp_path / "straight", f"steps={last}")
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert torch.equal(a.after.distance, b.after.distance)
    times = ("seconds", "trajectories_per_second")
    metrics = [
        [{k: v for k, v in line.items() if k not in times} for line in read_metrics(folder)]
        for folder in (lines, tmp_path / "straight" / "metrics.jsonl")
    ]
    assert metrics[0] == metrics[1]


def test_equal_frames_are_counted(tmp_path):
    """Rollouts of equal actions are one imagination: of 4 members a scene, 3 need no rendering."""
    config = configure("steps=1", "rollouts=3")
    engine = make_engine()
    batch = windows(0).batch(torch.arange(2))
    scenes = engine.encode(batch.frames[:, 0])
    actions = batch.actions[:, None].expand(-1, 3, -1, -1)
    found = judge(engine, scenes, actions, batch, config, seeds=[0], scale=torch.ones(7))
    assert found.deduplicated == pytest.approx(3 / 4)
    run(tmp_path, "steps=1")
    (step,) = (m for m in read_metrics(tmp_path / "metrics.jsonl") if "reward_mean" in m)
    assert 0 <= step["frames_deduplicated"] < 1


def test_a_mirrored_reward_is_the_same_on_both_sides_of_the_expert():
    """Whatever the world model, and beyond the range of actions too, where they are cut."""
    plain, mirrored = configure("rollouts=4"), configure("rollouts=4", "reward.mirrored=true")
    engine = make_engine()
    batch = windows(0).batch(torch.arange(2))
    scenes = engine.encode(batch.frames[:, 0])
    expert = batch.actions[:, None]
    off = torch.randn(2, 2, *batch.actions.shape[1:], generator=torch.Generator().manual_seed(0))
    actions = torch.cat([expert + off, expert - off], dim=1)

    def distance(config):
        return judge(
            engine, scenes, actions, batch, config, seeds=[0], scale=torch.ones(7)
        ).distance

    found, alone = distance(mirrored), distance(plain)
    assert found.shape == (2, 4)
    assert torch.allclose(found[:, :2], found[:, 2:], atol=1e-5)
    assert torch.allclose(found[:, :2], (alone[:, :2] + alone[:, 2:]) / 2, atol=1e-5)
    assert (alone[:, :2] - alone[:, 2:]).abs().max() > 1e-3, (
        "nothing to cancel: the test says nothing"
    )


@pytest.mark.parametrize("kind", ["actions", "success"])
def test_a_mirrored_reward_compares_frames(kind):
    with pytest.raises(ConfigError, match=r"reward\.mirrored.*allowed with: imagined, recorded"):
        configure(f"reward.kind={kind}", "reward.mirrored=true")
