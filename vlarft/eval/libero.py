"""`vlarft eval libero`: success in LIBERO's simulator, beside a blind policy and a replay."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field

from vlarft.config import Config
from vlarft.errors import ConfigError, DataError
from vlarft.eval.closed_loop import PolicyContestant, ReplayContestant, policy_fingerprint
from vlarft.eval.episodes import (
    AFTER,
    BEFORE,
    BLIND,
    REPLAY,
    Arm,
    EpisodeStore,
    Outcome,
    Protocol,
    is_control,
    run_episodes,
)
from vlarft.eval.rates import LiberoReport, summarise
from vlarft.eval.starts import (
    Demonstrations,
    check_perturbations,
    choose_starts,
    perturb_starts,
    read_demonstrations,
)
from vlarft.libero import remote
from vlarft.libero.scene import Float32Array
from vlarft.libero.starts import SHIFT, STANDARD
from vlarft.models.flow_policy import FlowPolicy

# Customary lengths of an episode, in actions.
MAX_STEPS = {"libero_object": 280, "libero_spatial": 220, "libero_goal": 300, "libero_10": 520}


class LiberoConfig(Config):
    """What is evaluated."""

    suite: str = "libero_object"
    """LIBERO suite."""
    tasks: tuple[int, ...] = ()
    """Indices in it; none means all."""
    starts: str = "moved"
    """Kind of the starts: standard, moved or swapped."""
    episodes: Annotated[int, Field(ge=1)] = 20
    """Starts of each task and seed."""
    baselines: Annotated[int, Field(ge=1)] | None = None
    """How many of them the blind policies and the replay play; all when absent."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    """Each draws moved starts of its own."""
    shift: Annotated[float, Field(ge=0, le=0.1)] = SHIFT
    """Largest move of every object along x and along y, in m; not for standard starts."""
    perturb: tuple[str, ...] = ()
    """Perturbations, each beside the unperturbed starts: see `vlarft.libero.perturb`."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Longest episode in actions; the suite's customary one when absent."""
    final: bool = False
    """Take LIBERO's initial states 40 to 49, kept for a last check, instead of 0 to 39."""


class Evaluation:
    """A table of arms, ready to be played.

    Args:
        config: what is evaluated.
        before: the policy, or one a seed; by folder.
        after: none, one or one a seed to compare it with; by folder.
        data: recordings that the policies learned from.
        python: interpreter with LIBERO; None is this one.
        controls: by name, one policy or one a seed, each compared with both; by folder.

    Raises:
        ConfigError: numbers, kinds, perturbations or tasks that do not exist, policies of
            different pictures, or controls of nothing.
        DataError: too few unrecorded starts, or no demonstration of a task.
        BackendError: LIBERO or OpenGL is not available, or its MuJoCo breaks tasks.
    """

    def __init__(
        self,
        config: LiberoConfig,
        before: Sequence[tuple[Path, FlowPolicy]],
        after: Sequence[tuple[Path, FlowPolicy]],
        data: Sequence[Path],
        python: Path | None = None,
        controls: Mapping[str, Sequence[tuple[Path, FlowPolicy]]] = MappingProxyType({}),
    ) -> None:
        check_perturbations(config.perturb)
        steps = config.max_steps or MAX_STEPS.get(config.suite)
        if steps is None:
            raise ConfigError(f"--suite {config.suite}: no customary length; give --max-steps")
        every = [policy for folders in (before, after, *controls.values()) for policy in folders]
        sizes = {policy.config.encoder.image_size for _, policy in every}
        if len(sizes) > 1:
            raise ConfigError(f"policies see pictures of {sorted(sizes)} px; compare equal ones")
        names = [t["name"] for t in remote.ask("suite_tasks", python, suite=config.suite)]
        tasks = config.tasks or tuple(range(len(names)))
        known = read_demonstrations(data)
        self._config, self._python, self._size = config, python, sizes.pop()
        starts = choose_starts(
            config.suite,
            tasks,
            names,
            config.starts,
            config.episodes,
            config.seeds,
            known,
            shift=config.shift,
            final=config.final,
        )
        perturbed = perturb_starts(starts, config.perturb)
        single = max(len(policies) for policies in (before, after, *controls.values())) < 2
        if config.starts == STANDARD and len(config.seeds) > 1 and single:
            if not perturbed:
                raise ConfigError(
                    f"{len(config.seeds)} seeds: standard starts are the same for each; give one "
                    "--policy or --after a seed, or one seed, or --perturb"
                )
            starts = [(seed, start) for seed, start in starts if seed == config.seeds[0]]
        self.starts = starts + perturbed
        self.arms = build_arms(
            [policy for _, policy in before],
            [policy for _, policy in after],
            config.seeds,
            replays(tasks, names, known),
            {name: [policy for _, policy in folders] for name, folders in controls.items()},
            config.baselines,
        )
        self._renderer, opengl = remote.choose_renderer(python)
        self.protocol = Protocol(steps, remote.ask("versions", python), opengl)
        self._checkpoints = {str(folder): policy_fingerprint(model) for folder, model in every}

    def play(
        self,
        cache: Path,
        *,
        jobs: int = 1,
        films: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[LiberoReport, list[Outcome]]:
        """Play what was not played before.

        Args:
            cache: folder of played episodes.
            jobs: simulators at a time.
            films: folder of an MP4 for each episode that is played now.
            progress: called with (episodes done, in all).
        """
        outcomes = run_episodes(
            self.arms,
            self.starts,
            self.protocol,
            EpisodeStore(cache, self.protocol),
            self._open,
            jobs=jobs,
            films=films,
            progress=progress,
        )
        return summarise(outcomes), outcomes

    def facts(self) -> dict[str, Any]:
        """What was played, for `summary.json`."""
        return {
            "suite": self._config.suite,
            "starts": self._config.starts,
            "seeds": len(self._config.seeds),
            "tasks": len({start.task for _, start in self.starts}),
            "final": self._config.final,
            "max_steps": self.protocol.max_steps,
            "checkpoints": self._checkpoints,
            "mujoco": self.protocol.versions["mujoco"],
            "versions": self.protocol.versions,
            "renderer": self.protocol.renderer,
        }

    def _open(self, task: int) -> remote.RemoteSimulator:
        return remote.RemoteSimulator(
            self._config.suite, task, self._size, self._python, self._renderer
        )


def build_arms(
    before: Sequence[FlowPolicy],
    after: Sequence[FlowPolicy],
    seeds: Sequence[int],
    replayed: dict[int, Float32Array],
    controls: Mapping[str, Sequence[FlowPolicy]] = MappingProxyType({}),
    baselines: int | None = None,
) -> list[Arm]:
    """The policies, the controls, the policies blind, and the replay.

    Args:
        before: the policies to compare with, or the only ones: one for all seeds, or one a seed.
        after: none, one for all seeds, or one a seed.
        seeds: of the evaluation.
        replayed: actions of a demonstration of each task.
        controls: one for all seeds, or one a seed, by name.
        baselines: starts of each task and seed that blind policies and the replay play; None: all.

    Raises:
        ConfigError: another number of policies, or a control of nothing or of a taken name.
    """
    for name in controls:
        if not after:
            raise ConfigError(f"--control {name}: it stands beside a tuned policy; add --after")
        if not is_control(name):
            raise ConfigError(f"--control {name}: this name is taken; give another")
    named = {BEFORE: before, AFTER: after, **controls}
    options = {BEFORE: "--policy", AFTER: "--after"}
    for name, policies in named.items():
        if len(policies) not in (0, 1, len(seeds)):
            asked = options.get(name, f"--control {name}")
            raise ConfigError(
                f"{len(policies)} times {asked} and {len(seeds)} seeds; "
                "allowed: one policy, or one a seed"
            )
    arms = [
        Arm(name, _by_seed(policies, seeds, blind=False))
        for name, policies in named.items()
        if policies
    ]
    blind = [
        Arm(name + BLIND, _by_seed(named[name], seeds, blind=True), baselines)
        for name in (BEFORE, AFTER)
        if named[name]
    ]
    replay = Arm(REPLAY, dict.fromkeys(seeds, ReplayContestant(replayed)), baselines)
    return [*arms, *blind, replay]


def _by_seed(
    policies: Sequence[FlowPolicy], seeds: Sequence[int], *, blind: bool
) -> dict[int, PolicyContestant]:
    contestants = [PolicyContestant(policy, blind) for policy in policies]
    return {seed: contestants[i % len(contestants)] for i, seed in enumerate(seeds)}


def replays(
    tasks: Sequence[int], names: Sequence[str], known: dict[str, Demonstrations]
) -> dict[int, Float32Array]:
    """Actions of a demonstration of each task.

    Raises:
        DataError: the recordings hold none of a task.
    """
    found = {}
    for task in tasks:
        actions = known.get(names[task], Demonstrations()).actions
        if actions is None:
            raise DataError(
                f"task {task} ({names[task]}): no successful recording to replay as a baseline; "
                "name recordings of this task with --data"
            )
        found[task] = actions
    return found
