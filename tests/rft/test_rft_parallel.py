"""Two processes over gloo do what one does: same rollouts, same updates, same files."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import parallel_worker as worker
import pytest
import torch
from rft_mocks import MockEngine, MockPolicy, make_windows

from vlarft.checkpoint import latest_checkpoint, load_checkpoint
from vlarft.errors import ConfigError
from vlarft.metrics import read_metrics
from vlarft.models.flow_policy import FlowPolicy, build_policy
from vlarft.rft.parallel import ALONE, Ranks
from vlarft.rft.shard import shard_vlm
from vlarft.rft.trainer import Trainer
from vlarft.stop import stop_request

# Sums of the same float32 numbers in another order; Adam divides by their magnitude.
CLOSE = {"rtol": 1e-4, "atol": 1e-6}
TIMES = ("seconds", "trajectories_per_second")


def torchrun(*arguments: str) -> subprocess.CompletedProcess:
    """Two processes of the worker; far less patient than they are with each other."""
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         worker.__file__, *arguments],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Folder of everything that two processes did."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("two")
    worker.tiny_run(folder / "resumed", "steps=1")
    finished = torchrun("everything", str(folder))
    assert finished.returncode == 0, finished.stderr
    return folder


def results(folder: Path, name: str) -> list:
    return [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in (0, 1)]


def assert_one_policy(found: list, expected: dict) -> None:
    """Both processes hold the same bits, and what one process would hold to rounding."""
    for name, value in expected.items():
        assert torch.equal(found[0][0][name], found[1][0][name]), name
        torch.testing.assert_close(found[0][0][name], value, **CLOSE, msg=name)


def assert_same_lines(folder: Path, other: Path) -> None:
    ours, theirs = (read_metrics(run / "metrics.jsonl") for run in (folder, other))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for mine, reference in zip(ours, theirs, strict=True):
        assert mine.keys() >= reference.keys()  # a shorter run evaluated its last step
        for name in reference.keys() - set(TIMES):
            assert mine[name] == pytest.approx(reference[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("name", worker.RUNS)
def test_two_processes_update_as_one_does(two, tmp_path, name):
    policy, result = worker.mock_run(tmp_path, *worker.RUNS[name])
    found = results(two, name)
    assert_one_policy(found, policy.state_dict())
    assert_same_lines(two / name, tmp_path)
    for _, summary in found:
        assert summary["distance_after"] == pytest.approx(result.summary["distance_after"])
    skipped = [line["skipped_groups"] for line in read_metrics(tmp_path / "metrics.jsonl")[1:]]
    assert any(skipped) == name.startswith("skips")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one process does with real models: folder, policy, tokens."""
    folder = tmp_path_factory.mktemp("one")
    return folder, *worker.tiny_run(folder)


def tokens_of_both(found: list) -> list:
    """What two processes imagined, joined: each took its half of every step."""
    return [torch.cat(pair) for pair in zip(found[0][1], found[1][1], strict=True)]


@pytest.mark.parametrize("name", ["tiny", "resumed"])
def test_two_processes_imagine_the_same_tokens(two, one, name):
    """With real models, from the start and continued from what one process began."""
    folder, policy, single = one
    found = results(two, name)
    assert_one_policy(found, policy.state_dict())
    assert_same_lines(two / name, folder)
    # One process: two batches of the first evaluation, noise floor, two steps, two batches of the
    # last evaluation. Two processes take a batch each.
    expected = [torch.cat(single[:2]), *single[2:5], torch.cat(single[5:])]
    both = tokens_of_both(found)
    assert len(both) == (5 if name == "tiny" else 2)
    for ours, theirs in zip(both, expected[-len(both) :], strict=True):
        assert torch.equal(ours, theirs)


def test_a_divided_vlm_gives_the_same_run_and_whole_files(two, tmp_path):
    one_step, _ = worker.tiny_run(tmp_path, "steps=1", policy=worker.vlm_policy())
    found = results(two, "vlm")
    assert_one_policy(found, one_step.state_dict())
    for _, (_, whole, own) in found:
        assert 0.45 < own / whole < 0.55
    further, _ = worker.tiny_run(tmp_path, policy=worker.vlm_policy())
    assert_one_policy(results(two, "vlm-resumed"), further.state_dict())
    assert_same_lines(two / "vlm", tmp_path)
    stored = FlowPolicy.from_pretrained(two / "vlm" / "policy").state_dict()
    checkpoint = load_checkpoint(latest_checkpoint(two / "vlm"))["policy"]
    for name, value in further.state_dict().items():
        torch.testing.assert_close(stored[name], value, **CLOSE)
        torch.testing.assert_close(checkpoint[name], value, **CLOSE)


def test_a_signal_at_one_process_stops_all_after_the_same_step(two, tmp_path):
    """One process continues what the two left, and ends as if it had done all."""
    assert (two / "stopped-0.txt").exists()
    assert (two / "stopped-1.txt").exists()
    stopped = read_metrics(two / "stopped" / "metrics.jsonl")[-1]["step"]
    assert 0 < stopped < 4
    assert latest_checkpoint(two / "stopped").name == f"step-{stopped}"
    policy, _ = worker.mock_run(two / "stopped", "checkpoint_interval=100")
    straight, _ = worker.mock_run(tmp_path, "checkpoint_interval=100")
    for name, value in straight.state_dict().items():
        torch.testing.assert_close(policy.state_dict()[name], value, **CLOSE)


def test_processes_that_were_given_different_models_are_refused(two):
    texts = [(two / f"other-{rank}.txt").read_text() for rank in (0, 1)]
    assert texts[0].startswith("process 1 has another world model than process 0")
    assert texts[1].startswith("process 0 has another world model than process 1")
    assert not (two / "other" / "metrics.jsonl").exists()


def test_when_one_process_fails_the_other_says_so_and_nothing_hangs(tmp_path):
    finished = torchrun("failing", str(tmp_path))
    assert finished.returncode != 0
    assert "rank 1: this process fails" in finished.stderr
    assert "rank 0: process 0 of 2 waited for another one, which ended" in finished.stderr


def test_scenes_are_divided_evenly_or_refused():
    assert [Ranks(index, 3).share(12) for index in range(3)] == [
        slice(0, 4), slice(4, 8), slice(8, 12),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="scenes = 6 cannot be divided evenly among 4 processes"):
        Ranks(0, 4).share(6)


def test_a_policy_that_cannot_share_is_refused_for_several_processes():
    class Plain(MockPolicy):
        def flow_loss(self, observation, actions, generator, context=None):
            return super().flow_loss(observation, actions, generator, context)

    config = worker.load_config(worker.RFTConfig, None, [*worker.MOCK])
    Trainer(MockEngine(), Plain(), make_windows(), config)
    with pytest.raises(ConfigError, match=r"Plain.flow_loss\(\) takes no share"):
        Trainer(MockEngine(), Plain(), make_windows(), config, Ranks(0, 2))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_of_several_processes_only_ever_notes_a_signal(number):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with stop_request(patient=True) as stop:
        assert not stop.is_set()
        for _ in range(3):
            signal.raise_signal(number)
        assert stop.is_set()
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_dividing_a_vlm_needs_processes_and_a_vlm():
    policy = build_policy("tiny", worker.compute_statistics(worker.windows(0).episodes))
    with pytest.raises(ConfigError, match="needs several processes"):
        shard_vlm(worker.vlm_policy(), ALONE, torch.device("cpu"))
    with pytest.raises(ConfigError, match="encoder is 'small'"):
        shard_vlm(policy, Ranks(0, 2), torch.device("cpu"))
