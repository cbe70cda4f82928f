"""`vlarft data branch`: what other actions would have done.

A world model that has seen experts only imagines experts, whatever it is told. So from recorded
states the recorded actions are executed changed, several times each: slower or faster, all of them
off to one side, each of them a little off, the gripper told otherwise. One file a task of episodes
as long as a window, NAME_states.hdf5, for `vlarft data render`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import h5py
import numpy as np

from vlarft.data.libero import (
    Split,
    episode_names,
    episode_split,
    open_libero,
    read_floats,
    whole_hdf5,
)
from vlarft.data.render import StateFile, check_source
from vlarft.data.windows import grasp_starts
from vlarft.errors import ConfigError, DataError, SimulatorError
from vlarft.libero.parallel import run_by_task
from vlarft.libero.remote import RemoteSimulator, ask
from vlarft.libero.scene import Float32Array, Float64Array

BRANCH = "branch"  # kind of these episodes
OFFSET = 0.35  # standard deviation of what all actions of a branch are off, half a range is 1
NOISE = 0.1  # of what each action is off besides
SPEED = (0.0, 1.6)  # of the recorded motion, in every second branch
FLIPPED = 0.15  # share of branches whose gripper is told otherwise from some action on

Shown: TypeAlias = Callable[[Path, int, int], None]
"""Called with (destination, branches done, branches in all)."""


@dataclass(frozen=True, slots=True)
class _Recording:
    """An episode: `states` [L+1, S], `actions` [L, 7]."""

    states: Float64Array
    actions: Float32Array
    split: Split


@dataclass(frozen=True, slots=True)
class Spread:
    """How recorded actions are spread, raw units, [7] each.

    Attributes:
        low: the least recorded; no branch goes beyond.
        high: the greatest.
        half: half of what lies between 1% and 99%.
    """

    low: Float32Array
    high: Float32Array
    half: Float32Array


def branch_files(
    work: Sequence[tuple[Path, Path]],
    count: int = 400,
    each: int = 4,
    length: int = 8,
    *,
    at_grasp: float | None = None,
    seed: int = 0,
    jobs: int = 1,
    python: Path | None = None,
    progress: Shown | None = None,
) -> None:
    """Execute changed actions from states of some recorded tasks.

    Branches of an episode have its split, and training episodes get as many as their share.

    Args:
        work: pairs of source (HDF5 with simulator states of one task) and destination (HDF5 to
            write; it appears only when complete).
        count: branches of each task.
        each: branches from one state.
        length: actions of a branch.
        at_grasp: share of states, 0 to 1, in whose next `length` recorded actions the gripper
            closes, which are few of all; None takes all states as they come.
        seed: of what is drawn.
        jobs: simulators at a time.
        python: interpreter with LIBERO; None is this one.
        progress: called now and then.

    Raises:
        ConfigError: `count`, `each` or `length` is less than 1, or `at_grasp` no share.
        DataError: a source is damaged, all its episodes are shorter than `length`, or the gripper
            closes in none of them. All are checked first.
        BackendError: LIBERO is not available.
        SimulatorError: a simulator failed; complete files are kept.
    """
    for name, value in (("count", count), ("each", each), ("length", length)):
        if value < 1:
            raise ConfigError(f"--{name} {value}; allowed: 1 or more")
    if at_grasp is not None and not 0 <= at_grasp <= 1:
        raise ConfigError(f"--at-grasp {at_grasp}; allowed: 0 to 1")
    files = [check_source(number, *pair) for number, pair in enumerate(work)]
    if not files:
        return
    recorded = [_read(file.source) for file in files]
    for file, episodes in zip(files, recorded, strict=True):
        longest = max(len(e.actions) for e in episodes)
        if longest < length:
            raise DataError(
                f"{file.source}: --length {length}, but the longest episode has {longest} actions"
            )
        if at_grasp and not _grasps(episodes, length):
            raise DataError(
                f"{file.source}: --at-grasp {at_grasp}, but in no {length} actions of a recorded "
                "episode the gripper closes"
            )
    spread = spread_of(np.concatenate([e.actions for task in recorded for e in task]))
    ask("versions", python)

    def open_file(number: int) -> RemoteSimulator:
        meta = files[number].meta
        return RemoteSimulator(str(meta["suite"]), int(meta["task_id"]), python=python)

    def branch(simulator: RemoteSimulator, file: StateFile) -> None:
        rng = np.random.default_rng([seed, int(file.meta["task_id"])])
        episodes = [e for e in recorded[file.task] if len(e.actions) >= length]
        grasps = _grasps(episodes, length)
        with whole_hdf5(file.destination) as out:
            data = out.create_group("data")
            data.attrs.update(file.meta | {"num_demos": count, "total": count * length})
            for number in range(count):
                if number % each == 0 and at_grasp is not None and rng.random() < at_grasp:
                    episode, start = grasps[rng.integers(len(grasps))]
                elif number % each == 0:
                    episode = episodes[rng.integers(len(episodes))]
                    start = int(rng.integers(len(episode.actions) - length + 1))
                _add(simulator, data, number, episode, start, length, spread, rng)
                if progress and (number % 50 == 49 or number == count - 1):
                    progress(file.destination, number + 1, count)

    def failed(file: StateFile, error: SimulatorError) -> None:
        raise SimulatorError(f"{file.source}: {error}") from error

    run_by_task(files, jobs, open_file, branch, failed)


def _grasps(episodes: Sequence[_Recording], length: int) -> list[tuple[_Recording, int]]:
    """Episodes and starts, in whose next `length` actions the gripper closes."""
    return [(e, int(start)) for e in episodes for start in grasp_starts(e.actions, length)]


def spread_of(actions: Float32Array) -> Spread:
    """Spread of recorded actions [n, 7]."""
    low, high = np.quantile(actions, (0.01, 0.99), axis=0)
    return Spread(actions.min(0), actions.max(0), ((high - low) / 2).astype(np.float32))


def changed(actions: Float32Array, spread: Spread, rng: np.random.Generator) -> Float32Array:
    """Other actions than the recorded ones [T, 7], within the recorded ranges."""
    moved = actions.copy()
    if rng.random() < 0.5:
        moved[:, :3] *= rng.uniform(*SPEED)
    off = rng.normal(0, OFFSET, 6) + rng.normal(0, NOISE, (len(actions), 6))
    moved[:, :6] += (off * spread.half[:6]).astype(np.float32)
    moved = moved.clip(spread.low, spread.high)
    if rng.random() < FLIPPED:
        moved[int(rng.integers(len(actions))) :, -1] *= -1
    return moved


def _add(
    simulator: RemoteSimulator,
    data: h5py.Group,
    number: int,
    episode: _Recording,
    start: int,
    length: int,
    spread: Spread,
    rng: np.random.Generator,
) -> None:
    actions = changed(episode.actions[start : start + length], spread, rng)
    done = simulator.branch(
        episode.states[start], episode.actions[:start, -1], actions, camera="", after=[]
    )
    demo = data.create_group(f"demo_{number}")
    demo["states"] = done["states"].astype(np.float32)
    demo["actions"] = actions
    demo.attrs.update(
        episode=number, kind=BRANCH, split=episode.split, success=bool(done["solved"])
    )


def _read(source: Path) -> list[_Recording]:
    with open_libero(source) as recording:
        data = recording["data"]
        return [
            _Recording(
                read_floats(source, data, f"{name}/states").astype(np.float64),
                read_floats(source, data, f"{name}/actions").astype(np.float32),
                episode_split(source, data, name),
            )
            for name in episode_names(data)
        ]
