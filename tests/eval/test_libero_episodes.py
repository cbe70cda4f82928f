import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.libero.fake_scene import FakeScene
from tests.models.policy_helpers import STATISTICS
from vlarft.data.libero import PROPRIOCEPTION_SIZE
from vlarft.errors import ConfigError, DataError
from vlarft.eval import libero
from vlarft.eval.closed_loop import BLIND_GREY, PolicyContestant, ReplayContestant, play
from vlarft.eval.episodes import Arm, EpisodeStore, Protocol, run_episodes
from vlarft.eval.libero import Evaluation, LiberoConfig, build_arms
from vlarft.eval.starts import Start
from vlarft.libero.expert import play_expert
from vlarft.libero.perturb import NONE, PERTURBATIONS
from vlarft.models.flow_policy import FlowPolicyConfig, build_policy

PROTOCOL = Protocol(280, {"mujoco": "2.3.7"}, "painter")


def demonstration():
    scene = FakeScene()
    return play_expert(scene, scene.initial_states()[0], np.random.default_rng(0)).actions


class Named:
    """A contestant that replays, under a name of its own."""

    def __init__(self, name, actions=None):
        self.identity, self.played = {"name": name}, 0
        self._replay = ReplayContestant({0: demonstration() if actions is None else actions})

    def player(self, _task, instruction):
        self.played += 1
        assert instruction == "pick up the milk"
        return self._replay.player(0, instruction)


def standard(number, task=0):
    return (0, Start("suite", task, "standard", number, number, 0, 0.0))


def test_the_camera_is_used_once_a_plan():
    policy = build_policy("tiny", STATISTICS)
    scene = FakeScene(size=32)
    state = scene.initial_states()[0]
    player = PolicyContestant(policy).player(0, "pick up the milk")
    solved, steps = play(scene, state, player, 50)
    horizon = policy.config.horizon
    assert (solved, steps) == (False, 50)
    assert scene.drawn == -(-50 // horizon)
    blind = FakeScene(size=32)
    play(blind, state, PolicyContestant(policy, blind=True).player(0, "pick up the milk"), 50)
    assert blind.drawn == 0


def test_what_the_policy_sees_and_what_the_robot_gets(monkeypatch):
    policy, seen = build_policy("tiny", STATISTICS), []

    def act(observation, _generator=None):
        seen.append(observation)
        actions = torch.full((1, policy.config.horizon, 7), 1.7)
        actions[..., 6] = 0.01
        return actions

    monkeypatch.setattr(policy, "act", act)
    scene = FakeScene(size=32)
    for blind in (False, True):
        actions = PolicyContestant(policy, blind).act(scene, "pick up the milk")
        assert (actions == 1).all()  # in range, the gripper closed
    looking, blinded = seen
    assert looking.image[0, -1, -1].tolist() == [255] * 3  # turned, as recordings are
    assert looking.proprioception.shape == (1, PROPRIOCEPTION_SIZE)
    assert (blinded.image == BLIND_GREY).all()


def test_a_replay_waits_after_its_last_action_and_ends():
    actions = np.zeros((5, 7), np.float32)
    scene = FakeScene()
    player = ReplayContestant({0: actions}).player(0, "")
    assert play(scene, scene.initial_states()[0], player, 280) == (False, 25)
    assert play(scene, scene.initial_states()[0], player, 7) == (False, 7)


def test_every_arm_plays_every_start_and_nothing_twice(tmp_path):
    good, bad = Named("good"), Named("bad", np.zeros((3, 7), np.float32))
    arms, starts = [Arm("before", {0: good}), Arm("replay", {0: bad})], [standard(0), standard(1)]

    def run(arms, progress=None):
        store = EpisodeStore(tmp_path, PROTOCOL)
        return run_episodes(
            arms, starts, PROTOCOL, store, lambda _task: FakeScene(), progress=progress
        )

    seen = []
    outcomes = run(arms, lambda *done: seen.append(done))
    assert [(o.arm, o.start.init_index, o.success) for o in outcomes] == [
        ("before", 0, True), ("replay", 0, False), ("before", 1, True), ("replay", 1, False),
    ]  # fmt: skip
    assert seen[-1] == (4, 4)
    assert outcomes[0].state == outcomes[1].state != outcomes[2].state
    again = run(arms)
    assert again == outcomes
    assert (good.played, bad.played) == (2, 2)
    other = Named("other")
    assert run([*arms, Arm("after", {0: other})])[2].success
    assert (good.played, other.played) == (2, 2)


def test_another_protocol_plays_again(tmp_path):
    good = Named("good")
    for versions in ({"mujoco": "2.3.7"}, {"mujoco": "3.3.7"}):
        protocol = Protocol(280, versions, "painter")
        store = EpisodeStore(tmp_path, protocol)
        arms = [Arm("before", {0: good})]
        run_episodes(arms, [standard(0)], protocol, store, lambda _: FakeScene())
    assert good.played == 2
    heads = [json.loads(f.read_text().splitlines()[0]) for f in tmp_path.glob("*.jsonl")]
    assert {head["protocol"]["versions"]["mujoco"] for head in heads} == {"2.3.7", "3.3.7"}


def test_a_technical_failure_is_not_kept(tmp_path):
    good = Named("good")

    def run(**options):
        store = EpisodeStore(tmp_path, PROTOCOL)
        return run_episodes(
            [Arm("before", {0: good})], [standard(0), standard(1)], PROTOCOL, store,
            lambda _task: FakeScene(**options),
        )  # fmt: skip

    first, second = run(breaks=3)
    assert (first.success, first.error) == (None, "diverged")
    assert second.success is None  # its own simulator breaks as well
    assert [o.success for o in run()] == [True, True]


def test_a_store_cut_short_plays_one_episode_again(tmp_path):
    good = Named("good")
    arms, starts = [Arm("before", {0: good})], [standard(0), standard(1)]
    for cut in (0, 15, 0):
        store = EpisodeStore(tmp_path, PROTOCOL)
        run_episodes(arms, starts, PROTOCOL, store, lambda _task: FakeScene())
        (file,) = tmp_path.glob("*.jsonl")
        file.write_text(file.read_text()[: -cut or None])
    assert good.played == 3


def test_arms_that_met_different_states_are_refused(tmp_path):
    store = EpisodeStore(tmp_path, PROTOCOL)
    arms = [Arm("before", {0: Named("a")}), Arm("after", {0: Named("b")})]
    run_episodes(arms[:1], [standard(0)], PROTOCOL, store, lambda _task: FakeScene())
    other = FakeScene()
    other.initial_states = lambda: np.stack([FakeScene().initial_states()[3]] * 50)
    with pytest.raises(DataError, match=r"another simulator state.*fresh --cache"):
        run_episodes(arms, [standard(0)], PROTOCOL, store, lambda _task: other)


def test_starts_without_a_placement_are_errors(tmp_path):
    start = (0, Start("suite", 0, "moved", 0, 0, 0, 0.05))
    store = EpisodeStore(tmp_path, PROTOCOL)
    (one,) = run_episodes(
        [Arm("before", {0: Named("a")})], [start], PROTOCOL, store,
        lambda _task: FakeScene(topples=lambda _state: True),
    )  # fmt: skip
    assert (one.success, one.error) == (None, "no placement of the moved objects was found")


def test_films_are_named_by_what_they_show(tmp_path):
    scene = FakeScene()
    store = EpisodeStore(tmp_path / "cache", PROTOCOL)
    arms = [Arm("before, blind", {0: Named("a")})]
    run_episodes(arms, [standard(2)], PROTOCOL, store, lambda _task: scene, films=tmp_path)
    assert scene.films == [(tmp_path / "task0-standard-seed0-2-before-blind.mp4", "agentview")]


def test_arms_are_the_policies_blind_ones_and_a_replay():
    policies = [build_policy("tiny", STATISTICS, seed=seed) for seed in range(3)]
    arms = build_arms(policies[:1], policies[1:], (4, 5), {0: demonstration()})
    names = ["before", "after", "before, blind", "after, blind", "replay"]
    assert [arm.name for arm in arms] == names
    identities = [json.dumps(arm.contestants[seed].identity) for arm in arms for seed in (4, 5)]
    assert len(set(identities)) == 7  # before, blind before and replay are the same for both seeds
    assert len(build_arms(policies[:1], [], (0,), {0: demonstration()})) == 3
    with pytest.raises(ConfigError, match="2 times --after and 3 seeds"):
        build_arms(policies[:1], policies[1:], (0, 1, 2), {})


def test_each_seed_may_have_a_policy_to_compare_with():
    policies = [build_policy("tiny", STATISTICS, seed=seed) for seed in range(4)]
    arms = build_arms(policies[:2], policies[2:], (4, 5), {0: demonstration()})
    played = {arm.name: [arm.contestants[seed].identity for seed in (4, 5)] for arm in arms}
    single = build_arms(policies[1:2], [], (5,), {0: demonstration()})
    assert played["before"][1] == single[0].contestants[5].identity
    assert played["before, blind"][1] == single[1].contestants[5].identity
    assert len({json.dumps(identity) for two in played.values() for identity in two}) == 9
    with pytest.raises(ConfigError, match="2 times --policy and 3 seeds"):
        build_arms(policies[:2], policies[2:3], (0, 1, 2), {})


def test_controls_play_what_the_policies_play():
    before, after, other = (build_policy("tiny", STATISTICS, seed=seed) for seed in range(3))
    seeds, replayed = (0, 1), {0: demonstration()}
    controls = {"permuted": [other], "cloned": [other, after]}
    arms = build_arms([before], [after], seeds, replayed, controls, baselines=2)
    assert [(arm.name, arm.starts) for arm in arms] == [
        ("before", None), ("after", None), ("permuted", None), ("cloned", None),
        ("before, blind", 2), ("after, blind", 2), ("replay", 2),
    ]  # fmt: skip
    identities = [[arm.contestants[seed].identity for seed in seeds] for arm in arms]
    assert identities[2] == [identities[3][0]] * 2
    assert identities[3][1] == identities[1][1]
    with pytest.raises(ConfigError, match="2 times --control cloned and 3 seeds"):
        build_arms([before], [after], (0, 1, 2), replayed, controls)
    with pytest.raises(ConfigError, match=r"--control permuted: .* add --after"):
        build_arms([before], [], seeds, replayed, {"permuted": [other]})
    for taken in ("after", "replay", "after, blind"):
        with pytest.raises(ConfigError, match="this name is taken"):
            build_arms([before], [after], (0, 1, 2), replayed, {taken: [other, other]})


@pytest.fixture
def evaluation(tmp_path, monkeypatch):
    """Makes evaluations of tiny policies on two tasks, recorded in one file each."""
    from tests.eval.test_libero_starts import write

    for name in ("milk", "soup"):
        write(tmp_path / f"{name}.hdf5", [{"kind": "standard", "init_index": 0, "success": True}])
    answers = {"suite_tasks": [{"name": "milk"}, {"name": "soup"}], "versions": {"mujoco": "3.3.7"}}
    monkeypatch.setattr(libero.remote, "ask", lambda name, _python, **_: answers[name])
    monkeypatch.setattr(libero.remote, "choose_renderer", lambda _python: ("egl", "painter"))
    monkeypatch.setattr(libero.remote, "RemoteSimulator", lambda *_: FakeScene(size=32))
    policy = build_policy("tiny", STATISTICS)

    def make(after=(), before=(policy,), **config):
        before = [(tmp_path / f"before-{i}", p) for i, p in enumerate(before)]
        tuned = [(tmp_path / "after", p) for p in after]
        return Evaluation(LiberoConfig(**config), before, tuned, [tmp_path])

    return make


def test_an_evaluation_says_what_it_played(evaluation, tmp_path):
    after = build_policy("tiny", STATISTICS, seed=1)
    one = evaluation([after], episodes=2, max_steps=16)
    report, outcomes = one.play(tmp_path / "cache", jobs=2)
    assert len(outcomes) == 2 * 2 * 5
    assert report.comparisons[0].pairs == 4
    facts = one.facts()
    assert (facts["mujoco"], facts["renderer"], facts["seeds"]) == ("3.3.7", "painter", 1)
    assert len(set(facts["checkpoints"].values())) == 2
    assert all(outcome.start.init_index < 40 for outcome in outcomes)


def test_baselines_may_play_fewer_starts(evaluation, tmp_path):
    after = build_policy("tiny", STATISTICS, seed=1)
    one = evaluation([after], episodes=3, baselines=1, max_steps=16)
    report, outcomes = one.play(tmp_path / "cache")
    assert report.comparisons[0].pairs == 6
    played = Counter(outcome.arm for outcome in outcomes)
    assert played == {
        "before": 6, "after": 6, "before, blind": 2, "after, blind": 2, "replay": 2,
    }  # fmt: skip
    baselines = [o for o in outcomes if o.arm not in ("before", "after")]
    assert {outcome.start.number for outcome in baselines} == {0}


def test_mistakes_are_named(evaluation):
    with pytest.raises(ConfigError, match="no customary length; give --max-steps"):
        evaluation(suite="libero_90")
    with pytest.raises(ConfigError, match="standard starts are the same for each"):
        evaluation(starts="standard", seeds=(0, 1))
    two = evaluation(before=[build_policy("tiny", STATISTICS, seed=s) for s in (0, 1)],
                     starts="standard", seeds=(0, 1), episodes=1)  # fmt: skip
    assert sorted(seed for seed, _ in two.starts) == [0, 0, 1, 1]
    other = build_policy(_other_size(), STATISTICS)
    with pytest.raises(ConfigError, match=r"pictures of \[32, 64\] px"):
        evaluation([other])
    with pytest.raises(ConfigError, match="--starts spoilt"):
        evaluation(starts="spoilt")


def test_a_task_without_a_recording_has_no_replay(evaluation, tmp_path):
    (tmp_path / "soup.hdf5").unlink()
    with pytest.raises(DataError, match=r"task 1 \(soup\): no successful recording to replay"):
        evaluation()


def _other_size():
    tiny = FlowPolicyConfig.preset("tiny")
    return tiny.model_copy(update={"encoder": tiny.encoder.model_copy(update={"image_size": 64})})


def perturbed(name, number=0, seed=0):
    return replace(standard(number)[1], seed=seed, perturb=name)


class Watched(Named):
    """Notes how the scene looks and where the target stands when it plans."""

    def __init__(self, name):
        super().__init__(name)
        self.seen = []

    def player(self, task, instruction):
        player = super().player(task, instruction)
        plan = player.plan

        def note(scene, step):
            if step == 0:
                self.seen.append((dict(scene.look), scene.state()[5]))
            return plan(scene, step)

        return SimpleNamespace(plan=note)


def test_each_episode_has_its_own_look_and_state(tmp_path):
    names = (NONE, "camera", "object-major", NONE)
    starts = [(0, perturbed(name, number)) for number, name in enumerate(names)]
    scene, watched = FakeScene(), Watched("a")
    store = EpisodeStore(tmp_path, PROTOCOL)
    outcomes = run_episodes(
        [Arm("before", {0: watched})], starts, PROTOCOL, store, lambda _task: scene
    )
    looks, places = zip(*watched.seen, strict=True)
    assert looks == ({}, PERTURBATIONS["camera"], {}, {})
    homes = [scene.initial_states()[number][5] for number in range(4)]
    moved = [abs(place - home) > 1e-6 for place, home in zip(places, homes, strict=True)]
    assert moved == [False, False, True, False]
    assert [o.start.perturb for o in outcomes] == list(names)


def test_perturbed_episodes_are_kept_apart(tmp_path):
    good = Named("good")
    starts = [(0, perturbed(name)) for name in (NONE, "camera", "robot-minor")]
    scene = FakeScene()

    def run(starts):
        store = EpisodeStore(tmp_path, PROTOCOL)
        return run_episodes([Arm("before", {0: good})], starts, PROTOCOL, store, lambda _: scene)

    plain, camera, robot = run(starts)
    assert good.played == 3
    assert plain.state == camera.state != robot.state
    assert run(starts) == [plain, camera, robot]
    assert good.played == 3
    run([(0, perturbed("lighting"))])
    assert good.played == 4
    assert [look for look, _ in scene.looks[-1:]] == [PERTURBATIONS["lighting"]]


def test_arms_meet_the_same_perturbed_start_and_seeds_another(tmp_path):
    arms = [Arm(name, {0: Named(name), 1: Named(name)}) for name in ("before", "after")]
    starts = [(seed, perturbed("combined-minor", seed=seed)) for seed in (0, 1)]
    store = EpisodeStore(tmp_path, PROTOCOL)
    scene = FakeScene()
    outcomes = run_episodes(arms, starts, PROTOCOL, store, lambda _task: scene)
    states = [o.state for o in outcomes]
    assert states[0] == states[1] != states[2] == states[3]
    seeds = [start.look_seed() for _, start in starts]
    assert seeds[0] != seeds[1]
    assert [seed for _, seed in scene.looks] == [seeds[0], seeds[0], seeds[1], seeds[1]]


def test_a_perturbation_of_a_moved_start_is_on_top_of_it(tmp_path):
    moved = Start("suite", 0, "moved", 0, 0, 0, 0.02)
    scene, watched = FakeScene(), Watched("a")
    store = EpisodeStore(tmp_path, PROTOCOL)
    starts = [(0, moved), (0, replace(moved, perturb="object-minor"))]
    run_episodes([Arm("before", {0: watched})], starts, PROTOCOL, store, lambda _task: scene)
    (_, first), (_, second) = watched.seen
    assert 0 < abs(second - first) <= 0.025


def test_films_of_perturbed_episodes_have_names_of_their_own(tmp_path):
    scene, store = FakeScene(), EpisodeStore(tmp_path / "cache", PROTOCOL)
    starts = [(0, perturbed("camera", 2))]
    arms = [Arm("before", {0: Named("a")})]
    run_episodes(arms, starts, PROTOCOL, store, lambda _task: scene, films=tmp_path)
    assert scene.films[0][0].name == "task0-standard-camera-seed0-2-before.mp4"


def test_perturbed_starts_of_an_evaluation(evaluation):
    one = evaluation(starts="standard", episodes=3, perturb=("object-minor", "camera"))
    kinds = Counter(start.perturb for _, start in one.starts)
    assert kinds == {NONE: 6, "object-minor": 6, "camera": 6}
    plain = [replace(start, perturb=NONE) for _, start in one.starts]
    assert plain[:6] == plain[6:12] == plain[12:]  # the same initial states
    # Standard starts are the same for every seed, so they are played once; perturbed ones are not.
    three = evaluation(starts="standard", episodes=3, seeds=(0, 1, 2), perturb=("camera",))
    kinds = Counter((seed, start.perturb) for seed, start in three.starts)
    assert kinds == {(0, NONE): 6, (0, "camera"): 6, (1, "camera"): 6, (2, "camera"): 6}
    assert len({start.key() for _, start in three.starts}) == 24


def test_perturbations_that_do_not_exist_are_named(evaluation):
    with pytest.raises(ConfigError, match=r"--perturb table; allowed: object-minor, .*, texture"):
        evaluation(perturb=("camera", "table"))
    with pytest.raises(ConfigError, match="named twice"):
        evaluation(perturb=("camera", "camera"))
