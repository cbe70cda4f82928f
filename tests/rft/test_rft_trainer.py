"""The loop: what a step learns, what it writes, how it stops and continues."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from rft_mocks import A, MockEngine, MockPolicy, T, make_windows

from vlarft.checkpoint import latest_checkpoint
from vlarft.config import load_config
from vlarft.data.windows import Windows
from vlarft.engine.compare import METRICS
from vlarft.errors import CheckpointError, ConfigError, DataError
from vlarft.metrics import MetricsFile, read_metrics
from vlarft.models.layout import Layout
from vlarft.rft.config import RFTConfig
from vlarft.rft.experiment import run_experiment
from vlarft.rft.metrics import flat_numbers, open_sinks
from vlarft.rft.run import run_rft
from vlarft.rft.trainer import Trainer
from vlarft.schedule import rate_factor

SETTINGS = (
    "steps=6", "scenes=4", "rollouts=6", "checkpoint_interval=2", "reward.metric=lpips-alex",
    "evaluation.interval=3", "evaluation.windows=8",
    "optimiser.head_lr=0.003", "optimiser.sigma_lr=0.003", "optimiser.warmup=2",
)  # fmt: skip


def configure(*overrides: str) -> RFTConfig:
    return load_config(RFTConfig, None, [*SETTINGS, *overrides])


def run(folder: Path, *overrides: str, policy=None, engine=None):
    policy = policy or MockPolicy()
    return policy, run_rft(
        engine or MockEngine(),
        policy,
        make_windows(),
        make_windows(seed=1),
        folder,
        configure(*overrides),
    )


def without_times(metrics: list[dict]) -> list[dict]:
    return [
        {k: v for k, v in m.items() if k not in ("seconds", "trajectories_per_second")}
        for m in metrics
    ]


def weights(policy) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in policy.state_dict().items()}


def assert_same_weights(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


# ---- learning -----------------------------------------------------------------------------------


def test_rewards_alone_lower_the_distance_and_permuted_rewards_do_not(tmp_path):
    common = (
        "steps=60",
        "objective.anchor=0",
        "rollouts=16",
        "evaluation.interval=0",
        "evaluation.windows=28",
    )
    _, treatment = run(tmp_path / "a", *common)
    _, control = run(tmp_path / "b", *common, "control=permuted")
    change = treatment.summary["distance_change"]
    assert change["relative"] < -0.1
    assert change["interval"][1] < 0
    assert treatment.summary["distance_after"] < 0.9 * control.summary["distance_after"]


@pytest.mark.parametrize("kind", ["actions", "recorded"])
def test_other_rewards_run(tmp_path, kind):
    _, result = run(tmp_path, f"reward.kind={kind}")
    metrics = read_metrics(tmp_path / "metrics.jsonl")[1]
    assert (metrics["l1"] is None) == (kind == "actions")
    assert result.summary["distance_before"] > 0


def test_first_ratio_is_exactly_one_and_later_ones_are_not():
    trainer = Trainer(MockEngine(), MockPolicy(), make_windows(), configure())
    first = trainer.run_step()
    assert first["ratio_min"] == first["ratio_max"] == 1
    assert first["clip_fraction"] == first["kl_old"] == 0
    assert first["log_prob_gap"] < 1e-6
    several = configure("objective.epochs=3", "objective.minibatches=2", "optimiser.head_lr=0.05")
    metrics = Trainer(MockEngine(), MockPolicy(), make_windows(), several).run_step()
    assert metrics["updates"] == 6
    assert metrics["ratio_min"] < 1 < metrics["ratio_max"]
    assert metrics["kl_old"] > 0


@pytest.mark.parametrize("minibatches", [1, 2])
def test_first_update_of_several_has_ratio_exactly_one(minibatches, monkeypatch):
    ratios = []

    def spy(*args, **kwargs):
        terms = policy_terms(*args, **kwargs)
        ratios.append(terms.ratio)
        return terms

    from vlarft.rft import trainer as module

    policy_terms = module.policy_terms
    monkeypatch.setattr(module, "policy_terms", spy)
    config = configure("objective.epochs=2", f"objective.minibatches={minibatches}")
    Trainer(MockEngine(), MockPolicy(), make_windows(), config).run_step()
    assert (ratios[0] == 1).all()
    assert not (ratios[-1] == 1).all()
    assert sum(len(r) for r in ratios[:minibatches]) == config.scenes


def test_step_zero_is_the_reference_of_kl():
    trainer = Trainer(MockEngine(), MockPolicy(), make_windows(), configure("objective.kl=0.1"))
    first, second = trainer.run_step(), trainer.run_step()
    assert first["kl_reference"] == 0
    assert second["kl_reference"] > 0


def test_a_group_without_spread_is_skipped_and_counted():
    trainer = Trainer(MockEngine(), MockPolicy(), make_windows(), configure("objective.anchor=0"))
    trainer.noise_floor = 100.0
    before = weights(trainer.policy)
    metrics = trainer.run_step()
    assert metrics["skipped_groups"] == 4
    assert metrics["updates"] == 0
    assert_same_weights(before, weights(trainer.policy))


def test_noise_floor_is_zero_under_shared_noise_only():
    shared, independent = (
        Trainer(MockEngine(), MockPolicy(), make_windows(), configure(f"sampling.noise={noise}"))
        for noise in ("shared", "independent")
    )
    assert shared.measure_noise_floor() == 0
    assert independent.measure_noise_floor() > 0


def test_warmup_rates_clipping_and_what_is_frozen():
    policy = MockPolicy()
    before = weights(policy)
    trainer = Trainer(
        MockEngine(), policy, make_windows(), configure("optimiser.gradient_clip=0.001")
    )
    first, second, third = (trainer.run_step() for _ in range(3))
    assert first["lr"] == {"head": 0.0015, "sigma": 0.0015}
    assert second["lr"] == third["lr"] == {"head": 0.003, "sigma": 0.003}
    after = weights(policy)
    assert torch.equal(before["encoder.weight"], after["encoder.weight"])
    assert (before["head.weight"] != after["head.weight"]).all()
    assert (before["log_sigma"] != after["log_sigma"]).any()


def test_small_rates_move_float32_weights_and_other_dtypes_are_refused():
    policy = MockPolicy()
    before = weights(policy)
    config = configure("optimiser.head_lr=1e-6", "optimiser.warmup=0", "optimiser.weight_decay=0")
    Trainer(MockEngine(), policy, make_windows(), config).run_step()
    moved = (weights(policy)["head.weight"] != before["head.weight"]).float().mean()
    assert moved > 0.99
    with pytest.raises(ConfigError, match="bfloat16"):
        Trainer(MockEngine(), MockPolicy().bfloat16(), make_windows(), configure())


def test_a_scene_is_encoded_once_in_the_whole_run():
    engine, windows = MockEngine(), make_windows(count=1)
    trainer = Trainer(engine, MockPolicy(), windows, configure())
    for _ in range(6):
        trainer.run_step()
    assert engine.encoded == len(windows)


# ---- files --------------------------------------------------------------------------------------


def test_metrics_and_summary(tmp_path):
    _, result = run(tmp_path)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [m["step"] for m in lines] == list(range(7))
    assert lines[0]["noise_floor"] == 0
    assert [m["step"] for m in lines if "validation_distance" in m] == [0, 3, 6]
    expected = {
        "reward_mean", "reward_std", "group_spread", "skipped_groups", "distance", "action_l1",
        "action_spread", "policy_loss", "anchor_loss", "ratio_mean", "ratio_min", "ratio_max",
        "clip_fraction", "kl_old", "entropy", "sigma_mean", "gradient_norm", "lr", "seconds",
        "trajectories_per_second",
    }  # fmt: skip
    assert expected <= lines[1].keys()
    assert lines[1]["sigma_mean"] == pytest.approx(torch.tensor(-1.0).exp().item(), rel=1e-4)
    assert lines[1]["reward_mean"] == -lines[1]["distance"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == json.loads(json.dumps(result.summary))
    assert summary["distance_before"] == pytest.approx(lines[0]["validation_distance"])
    assert summary["distance_after"] == pytest.approx(lines[-1]["validation_distance"])
    assert {"relative", "interval"} == summary["distance_change"].keys()
    assert (tmp_path / "policy" / "policy.pt").is_file()
    assert configure() == load_config(RFTConfig, tmp_path / "config.yaml")


def test_sinks_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(
        ConfigError, match="'wandb' needs the package wandb, which is not installed"
    ):
        open_sinks(["wandb"], tmp_path, {})


class FakeWandb(ModuleType):
    """Keeps what `wandb.init` was given and what was logged."""

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.runs, self.logged, self.finished = [], [], 0

    def init(self, **options):
        self.runs.append(options)
        return SimpleNamespace(log=self.log, finish=self.finish)

    def log(self, values, step):
        self.logged.append((self.runs[-1]["id"], step, values))

    def finish(self):
        self.finished += 1


def test_each_arm_is_a_wandb_run_of_its_own_and_a_resumed_one_goes_on(tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)

    def experiment(folder, steps):
        windows = make_windows(), make_windows(seed=1)
        config = configure("sinks=[wandb]", f"steps={steps}")
        run_experiment(
            MockEngine(), MockPolicy(), *windows, tmp_path / folder, config, seeds=(0, 1)
        )
        return wandb.runs[-4:]

    first = experiment("claim", 2)
    arms = [f"claim/seed-{seed}/{arm}" for seed in (0, 1) for arm in ("control", "treatment")]
    assert [options["name"] for options in first] == arms
    assert len({options["id"] for options in first}) == 4
    assert [step for name, step, _ in wandb.logged if name == first[0]["id"]] == [0, 1, 2]
    again, other = experiment("claim", 3), experiment("other", 2)
    assert [options["id"] for options in again] == [options["id"] for options in first]
    assert [step for name, step, _ in wandb.logged if name == first[0]["id"]] == [0, 1, 2, 3]
    assert not {options["id"] for options in other} & {options["id"] for options in first}
    assert wandb.finished == 12


def test_tensorboard_takes_one_scalar_a_name(tmp_path, monkeypatch):
    """With the package when it is there, with a stand-in otherwise."""
    scalars = []
    if find_spec("tensorboard") is None:
        module = ModuleType("torch.utils.tensorboard")
        module.SummaryWriter = lambda folder: SimpleNamespace(
            add_scalar=lambda *values: scalars.append((Path(folder), *values)), close=lambda: None
        )
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
        monkeypatch.setattr("importlib.util.find_spec", lambda _: module)
    run(tmp_path, "sinks=[tensorboard]", "steps=2")
    if scalars:
        assert {folder for folder, *_ in scalars} == {tmp_path / "tensorboard"}
        assert [step for _, name, _, step in scalars if name == "lr.head"] == [1, 2]
    else:
        assert any((tmp_path / "tensorboard").iterdir())


def test_sinks_take_flat_numbers():
    assert flat_numbers({"step": 3, "a": 1, "lr": {"head": 0.5}, "l1": None}) == {
        "a": 1.0,
        "lr.head": 0.5,
    }


def test_a_metrics_file_shorter_than_the_checkpoint_says_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("{}\n")
    with pytest.raises(CheckpointError, match="3 bytes"):
        MetricsFile(path, offset=10)


def test_validation_must_be_unseen(tmp_path):
    with pytest.raises(DataError, match="demo_0 is in training and validation"):
        run_rft(MockEngine(), MockPolicy(), make_windows(), make_windows(), tmp_path, configure())
    with pytest.raises(ConfigError, match="metric='lpips-vgg'"):
        run(tmp_path, "reward.metric=lpips-vgg")


@pytest.mark.parametrize(("episodes", "windows"), [(1, 8), (4, 1)])
def test_too_few_validation_episodes_are_refused_before_any_work(tmp_path, episodes, windows):
    engine = MockEngine()
    with pytest.raises(DataError, match="at least 2 episodes, got 1"):
        run_experiment(
            engine,
            MockPolicy(),
            make_windows(),
            make_windows(episodes, seed=1),
            tmp_path / "run",
            configure(f"evaluation.windows={windows}"),
            seeds=(0,),
        )
    assert engine.rollouts == 0
    assert not (tmp_path / "run").exists()


def test_what_runs_before_the_first_step_is_shown(tmp_path, capsys):
    run(tmp_path, "evaluation.batch=4")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:4] == [
        "rft: evaluation", "rft: evaluation 4/8", "rft: evaluation 8/8", "rft: noise floor",
    ]  # fmt: skip
    assert lines[4].startswith("rft step 1/6")


# ---- stop and continue --------------------------------------------------------------------------


def test_a_cosine_falls_from_the_warm_up_to_the_end_of_the_run(tmp_path):
    config = configure("optimiser.schedule=cosine", "steps=10", "optimiser.warmup=2")
    factors = [rate_factor("cosine", step, 10, 2) for step in range(10)]
    assert factors[0] == pytest.approx(0.5)
    assert factors[5] == pytest.approx(0.51)
    assert factors[9] == pytest.approx(0.02 + 0.49 * (1 + math.cos(0.9 * math.pi)))
    assert factors[1:] == sorted(factors[1:], reverse=True)
    trainer = Trainer(MockEngine(), MockPolicy(), make_windows(), config)
    rates = [trainer.run_step()["lr"]["head"] for _ in range(3)]
    assert rates == pytest.approx([0.003 * factor for factor in factors[:3]])
    run(tmp_path, "optimiser.schedule=cosine", "steps=4")
    with pytest.raises(CheckpointError, match="steps was 4, now 6"):
        run(tmp_path, "optimiser.schedule=cosine", "steps=6")


def test_resume_refuses_another_configuration_or_a_shorter_run(tmp_path):
    run(tmp_path)
    with pytest.raises(CheckpointError, match="rollouts was 6, now 5"):
        run(tmp_path, "rollouts=5")
    with pytest.raises(CheckpointError, match="already at step 6"):
        run(tmp_path, "steps=5")


def with_first_episode(windows, **changes):
    first, *others = windows.episodes
    return Windows([replace(first, **changes), *others], frames=windows.frames)


@pytest.mark.parametrize("finished", [False, True])
def test_resume_refuses_another_start(tmp_path, finished):
    """A finished run too: its figures would be reported as those of other models or data."""
    run(tmp_path, "steps=6" if finished else "steps=2")
    engine, policy, training, validation = (
        MockEngine(), MockPolicy(), make_windows(), make_windows(seed=1),
    )  # fmt: skip
    half = MockEngine()
    half.dtype = torch.bfloat16
    pixel = validation.episodes[0].frames.copy()
    pixel[0, 0, 0, 0] ^= 1
    starts = {
        "world model": (MockEngine(world=1.5), policy, training, validation),
        "world model's dtype": (half, policy, training, validation),
        "starting policy": (engine, MockPolicy(seed=5), training, validation),
        "training windows": (engine, policy, make_windows(seed=5), validation),
        "validation windows": (engine, policy, training, make_windows(seed=5)),
        "validation windows;": (
            engine,
            policy,
            training,
            with_first_episode(validation, frames=pixel),
        ),
        "training windows;": (
            engine,
            policy,
            with_first_episode(training, instruction="x"),
            validation,
        ),
    }
    before = (tmp_path / "metrics.jsonl").read_bytes()
    for name, start in starts.items():
        with pytest.raises(CheckpointError, match=f"started from another {name}"):
            run_rft(*start, tmp_path, configure())
    with pytest.raises(CheckpointError, match="another world model and another starting policy"):
        run(tmp_path, engine=MockEngine(world=2.0), policy=MockPolicy(seed=5))
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    run(tmp_path)


def test_a_finished_run_gives_the_same_summary_without_work(tmp_path):
    policy, first = run(tmp_path)
    engine = MockEngine()
    again, second = run(tmp_path, engine=engine)
    assert engine.rollouts == 0
    assert_same_weights(weights(policy), weights(again))
    assert first.summary["distance_after"] == second.summary["distance_after"]


def test_ctrl_c_finishes_the_step_saves_and_raises(tmp_path):
    class Interrupting(MockEngine):
        def rollout(self, *args, **kwargs):
            if self.rollouts == 5:
                signal.raise_signal(signal.SIGINT)
            return super().rollout(*args, **kwargs)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "checkpoint_interval=100", engine=Interrupting())
    assert signal.getsignal(signal.SIGINT) is handler
    stopped = read_metrics(tmp_path / "metrics.jsonl")[-1]["step"]
    assert 0 < stopped < 6
    assert latest_checkpoint(tmp_path).name == f"step-{stopped}"
    policy, _ = run(tmp_path, "checkpoint_interval=100")
    straight, _ = run(tmp_path / "straight", "checkpoint_interval=100")
    assert_same_weights(weights(policy), weights(straight))


def test_runs_outside_the_main_thread(tmp_path):
    thread = threading.Thread(target=run, args=(tmp_path,))
    thread.start()
    thread.join()
    assert (tmp_path / "summary.json").is_file()


KILL_OVERRIDES = (
    "objective.epochs=2", "objective.minibatches=2", "objective.kl=0.1",
    "sampling.noise=independent",
)  # fmt: skip
SURVIVES = {
    "rollout": "step-2",
    "checkpoint": "step-2",
    "metrics": "step-4",
}  # last whole checkpoint

# One interpreter starts, then forks a run for each moment; the run kills itself right there.
KILLER = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
import test_rft_trainer as t
from rft_mocks import MockEngine
from vlarft.metrics import MetricsFile

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class DiesInStepFour(MockEngine):
    def rollout(self, *args, **kwargs):
        result = super().rollout(*args, **kwargs)
        if self.rollouts == 7:
            die()
        return result

def die_in_third_checkpoint():
    whole, saved = torch.save, []
    def save(state, file):
        whole(state, file)
        saved.append(file)
        if len(saved) == 3:
            file.truncate(1000)
            die()
    torch.save = save

def die_in_a_line_after_step_five():
    write = MetricsFile.write
    def last_words(self, metrics):
        write(self, metrics)
        if metrics["step"] == 5:
            self._file.write('{"step": 6, "rew')
            self._file.flush()
            die()
    MetricsFile.write = last_words

for moment in t.SURVIVES:
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        if moment == "checkpoint":
            die_in_third_checkpoint()
        if moment == "metrics":
            die_in_a_line_after_step_five()
        engine = DiesInStepFour() if moment == "rollout" else MockEngine()
        t.run(Path(sys.argv[2]) / moment, *t.KILL_OVERRIDES, engine=engine)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, (moment, status)
"""


@pytest.fixture(scope="module")
def killed_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    tests, root = Path(__file__).parent, Path(__file__).parents[2]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    finished = subprocess.run(
        [sys.executable, "-c", KILLER, str(tests), str(folder)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return folder


@pytest.mark.parametrize("moment", SURVIVES)
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(killed_runs, tmp_path, moment):
    killed = killed_runs / moment
    assert not (killed / "summary.json").exists()
    assert latest_checkpoint(killed).name == SURVIVES[moment]
    assert "step-6" not in {folder.name for folder in (killed / "checkpoints").iterdir()}

    resumed, a = run(killed, *KILL_OVERRIDES)
    straight, b = run(tmp_path, *KILL_OVERRIDES)
    assert_same_weights(weights(resumed), weights(straight))
    lines = [without_times(read_metrics(folder / "metrics.jsonl")) for folder in (killed, tmp_path)]
    assert lines[0] == lines[1]
    assert {**a.summary, "seconds": 0} == {**b.summary, "seconds": 0}


# ---- both arms ----------------------------------------------------------------------------------


def test_experiment_runs_both_arms_from_the_same_start(tmp_path):
    policy = MockPolicy()
    config = configure("steps=40", "rollouts=16", "evaluation.interval=0", "evaluation.windows=28")
    started = time.perf_counter()
    summary = run_experiment(
        MockEngine(), policy, make_windows(), make_windows(seed=1), tmp_path, config, seeds=(0, 1)
    )
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert summary["difference"]["interval"][1] < 0
    assert summary["difference"]["relative"] == pytest.approx(
        summary["distance_change"]["relative"] - summary["control_change"]["relative"]
    )
    assert {
        "distance_before",
        "distance_after",
        "action_l1_before",
        "action_l1_after",
    } <= summary.keys()
    assert 0 < summary["seconds"] <= time.perf_counter() - started
    assert [entry["seed"] for entry in summary["seeds"]] == [0, 1]
    starts = {
        entry[arm]["distance_before"]
        for entry in summary["seeds"]
        for arm in ("treatment", "control")
    }
    assert len(starts) == 1
    ends = {
        entry[arm]["distance_after"]
        for entry in summary["seeds"]
        for arm in ("treatment", "control")
    }
    assert len(ends) == 4
    first = [
        read_metrics(tmp_path / "seed-0" / arm / "metrics.jsonl")[1]
        for arm in ("treatment", "control")
    ]
    assert first[0]["reward_mean"] == first[1]["reward_mean"]  # same data, seeds and noise
    assert first[0]["gradient_norm"] != first[1]["gradient_norm"]


def test_experiment_needs_different_seeds(tmp_path):
    with pytest.raises(ConfigError, match="different"):
        run_experiment(
            MockEngine(),
            MockPolicy(),
            make_windows(),
            make_windows(seed=1),
            tmp_path,
            configure(),
            seeds=(1, 1),
        )


def test_chosen_reward_frames_reach_the_engine_and_evaluations_take_all(tmp_path):
    engine = MockEngine()
    Trainer(engine, MockPolicy(), make_windows(), configure("reward.frames=[2,4]")).run_step()
    assert engine.times == [1, 3]
    run(tmp_path, "reward.frames=[2,4]", engine=engine)
    assert engine.times is None  # the last thing a run does is to evaluate


@pytest.mark.parametrize("frames", ["[]", "[3,2]", "[2,2]", "[0,3]"])
def test_wrong_reward_frames_are_refused(frames):
    with pytest.raises(ConfigError, match="frames"):
        configure(f"reward.frames={frames}")


def test_reward_frames_beyond_the_windows_are_refused():
    with pytest.raises(ConfigError, match="names frame 99; windows have 4"):
        Trainer(MockEngine(), MockPolicy(), make_windows(), configure("reward.frames=[2,99]"))


@pytest.mark.parametrize("start", ["shared", "independent", "mean"])
def test_the_start_of_a_group_is_the_configured_one(start):
    policy = MockPolicy()
    Trainer(MockEngine(), policy, make_windows(), configure(f"start={start}")).run_step()
    assert policy.start == start


def test_symmetric_credit_leaves_out_what_reaches_across_the_range():
    config = configure("start=mean", "objective.credit=symmetric")
    engine = MockEngine()
    shares = []
    for bound in (1.0, 0.05):
        engine.world.layout = Layout(frames=T, action_low=(-bound,) * A, action_high=(bound,) * A)
        metrics = Trainer(engine, MockPolicy(), make_windows(), config).run_step()
        shares.append(metrics["credited"])
    assert 1 > shares[0] > shares[1] > 0
    plain = Trainer(MockEngine(), MockPolicy(), make_windows(), configure("start=mean")).run_step()
    assert "credited" not in plain


def test_symmetric_credit_needs_a_proposal_with_its_mean():
    class Silent(MockPolicy):
        def sample(self, *args, **kwargs):
            return replace(super().sample(*args, **kwargs), mean=None)

    config = configure("start=mean", "objective.credit=symmetric")
    with pytest.raises(ConfigError, match=r"use objective\.credit=all"):
        Trainer(MockEngine(), Silent(), make_windows(), config).run_step()


def test_a_policy_without_shared_starts_runs_with_independent_ones():
    class Plain(MockPolicy):
        def sample(self, observation, n, generator):
            return super().sample(observation, n, generator)

    Trainer(MockEngine(), Plain(), make_windows(), configure("start=independent")).run_step()
    with pytest.raises(ConfigError, match="takes no start; use start=independent"):
        Trainer(MockEngine(), Plain(), make_windows(), configure())


def test_every_metric_of_the_engine_may_be_a_reward():
    assert {configure(f"reward.metric={name}").reward.metric for name in METRICS} == set(METRICS)
