"""What each of two processes does; started by torchrun in test_rft_parallel.py."""

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.distributed as dist
from rft_mocks import MockEngine, MockPolicy, make_windows
from test_rft_tiny import configure as configure_tiny
from test_rft_tiny import make_engine, make_policy, windows

from tests.models.policy_helpers import tiny_config, word_tokenizer
from vlarft.config import load_config
from vlarft.data.statistics import compute_statistics
from vlarft.errors import ConfigError, VlarftError
from vlarft.models.flow_policy import FlowPolicy, FlowPolicyConfig
from vlarft.models.vlm import VLMEncoder
from vlarft.rft.config import RFTConfig
from vlarft.rft.parallel import ALONE, Ranks, join_ranks
from vlarft.rft.run import run_rft
from vlarft.rft.shard import shard_vlm
from vlarft.rft.trainer import Trainer

MOCK = (
    "steps=4", "scenes=6", "rollouts=5", "checkpoint_interval=2", "reward.metric=lpips-alex",
    "evaluation.interval=2", "evaluation.windows=7", "evaluation.batch=2", "evaluation.samples=2",
    "optimiser.head_lr=0.003", "optimiser.sigma_lr=0.003", "optimiser.warmup=2",
)  # fmt: skip
RUNS = {
    "plain": (),
    "several updates": (
        "objective.epochs=2", "objective.minibatches=4", "objective.kl=0.1",
        "sampling.noise=independent", "start=independent",
    ),
    "control": ("control=permuted", "objective.minibatches=2"),
    "recorded": ("reward.kind=recorded", "objective.ratio=chunk"),
    # One scene an update: a process has none of it, and Sigma gets no gradient in skipped ones.
    "skips": ("objective.minibatches=6", "advantage.std_floor=0.09"),
    "skips without anchor": (
        "objective.minibatches=3", "advantage.std_floor=0.09", "objective.anchor=0",
    ),
}  # fmt: skip
TINY = ("scenes=4", "steps=2", "evaluation.batch=2", "evaluation.starts=1", "objective.epochs=1")


def mock_run(folder, *overrides, ranks=ALONE, engine=None, policy=None):
    """A run in the mock world, and its policy."""
    policy = policy or MockPolicy()
    config = load_config(RFTConfig, None, [*MOCK, *overrides])
    engine = engine or MockEngine()
    result = run_rft(
        engine, policy, make_windows(), make_windows(seed=1), folder, config, ranks=ranks
    )
    return policy, result


def tiny_run(folder, *overrides, ranks=ALONE, policy=None):
    """A run with real models; also the tokens of all imaginations, [P (of this process), ...]."""
    engine, tokens = make_engine(), []
    real = engine._imagine

    def spy(*args):
        tokens.append(real(*args))
        return tokens[-1]

    engine._imagine = spy
    policy = policy or make_policy()
    config = configure_tiny(*TINY, *overrides)
    run_rft(engine, policy, windows(0), windows(1), folder, config, ranks=ranks)
    return policy, [imagined.tokens for imagined in tokens]


def vlm_policy():
    """A tiny policy with a VLM, which the whole test suite builds alike."""
    torch.manual_seed(3)
    encoder = VLMEncoder(tiny_config(lora_rank=2), word_tokenizer())
    config = FlowPolicyConfig.preset("tiny").model_copy(update={"encoder": encoder.config})
    return FlowPolicy(config, compute_statistics(windows(0).episodes), encoder)


class Stopping(MockEngine):
    """Raises a signal in the rollout of a step."""

    def rollout(self, *args, **kwargs):
        if self.rollouts == 6:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
        return super().rollout(*args, **kwargs)


class Failing(MockEngine):
    """Fails in the third rollout of a process."""

    def rollout(self, *args, **kwargs):
        if self.rollouts == 2:
            raise VlarftError("this process fails")
        return super().rollout(*args, **kwargs)


def check_collectives(ranks: Ranks, sums: list) -> None:
    """One sum of gradients an update, of one flat buffer; nothing else is reduced."""
    config = load_config(RFTConfig, None, [*MOCK, "objective.epochs=2", "objective.minibatches=3"])
    trainer = Trainer(MockEngine(), MockPolicy(), make_windows(), config, ranks)
    real = dist.all_reduce
    dist.all_reduce = lambda tensor, *args: sums.append(tensor.shape) or real(tensor, *args)
    metrics = trainer.run_step()
    dist.all_reduce = real
    assert len(sums) == metrics["updates"] == 6, sums
    parameters = trainer.parameters
    assert set(sums) == {(sum(p.numel() for p in parameters) + len(parameters),)}


def everything(folder: Path, ranks: Ranks) -> None:
    """All scenarios, one after the other; results under `folder`."""

    def keep(name: str, policy, extra=None) -> None:
        torch.save((policy.state_dict(), extra), folder / f"{name}-{ranks.index}.pt")

    for name, overrides in RUNS.items():
        policy, result = mock_run(folder / name, *overrides, ranks=ranks)
        keep(name, policy, result.summary)
    policy, tokens = tiny_run(folder / "tiny", ranks=ranks)
    keep("tiny", policy, tokens)
    policy, tokens = tiny_run(folder / "resumed", ranks=ranks)  # begun by one process
    keep("resumed", policy, tokens)

    policy = vlm_policy()
    whole = sum(p.numel() for p in policy.encoder.parameters())
    shard_vlm(policy, ranks, torch.device("cpu"))
    own = sum(p.to_local().numel() for p in policy.encoder.parameters())
    policy, tokens = tiny_run(folder / "vlm", "steps=1", ranks=ranks, policy=policy)
    keep("vlm", policy, (tokens, whole, own))
    policy = vlm_policy()
    shard_vlm(policy, ranks, torch.device("cpu"))
    policy, _ = tiny_run(folder / "vlm", ranks=ranks, policy=policy)
    keep("vlm-resumed", policy)

    try:
        mock_run(folder / "other", ranks=ranks, engine=MockEngine(world=1.0 + ranks.index))
    except ConfigError as error:
        (folder / f"other-{ranks.index}.txt").write_text(str(error))
    check_collectives(ranks, [])
    engine = Stopping() if ranks.index == 1 else MockEngine()
    try:
        mock_run(folder / "stopped", "checkpoint_interval=100", ranks=ranks, engine=engine)
    except KeyboardInterrupt:
        (folder / f"stopped-{ranks.index}.txt").touch()


def main() -> None:
    """`everything FOLDER`, or `failing FOLDER`."""
    torch.set_num_threads(1)
    what, folder = sys.argv[1], Path(sys.argv[2])
    try:
        with join_ranks("cpu") as (ranks, _):
            if what == "failing":
                engine = Failing() if ranks.index == 1 else MockEngine()
                mock_run(folder, ranks=ranks, engine=engine)
            else:
                everything(folder, ranks)
    except VlarftError as error:
        sys.exit(f"rank {ranks.index}: {error}")


if __name__ == "__main__":
    main()
