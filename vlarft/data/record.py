"""`vlarft record`: episodes of the scripted expert as simulator states and actions.

One HDF5 file a task, and `record.json` (what was asked for) and `record.jsonl` (one line a finished
episode, failures too) beside them. An episode's number decides all of it, so a stopped recording
goes on where it ended, and more episodes can be added.
"""

import json
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from pydantic import Field

from vlarft.config import Config
from vlarft.data.libero import split_of
from vlarft.errors import ConfigError, DataError, SimulatorError
from vlarft.files import only_writer, write_json
from vlarft.libero import remote
from vlarft.libero.expert import NOISE, Rollout, play_expert
from vlarft.libero.parallel import run_by_task
from vlarft.libero.scene import CONTROL_HZ, SETTLE_STEPS, Float64Array
from vlarft.libero.starts import MOVED, SHIFT, SPOILT, STANDARD, SWAPPED, start_state

KINDS = (STANDARD, MOVED, SWAPPED, SPOILT)
INITIAL_STATES = 20  # of LIBERO's 50; the others stay for evaluation
STREAM = 1  # of random numbers; evaluation has another one, so their moved starts never meet
SPOIL = (0.04, 0.07)  # m beside the target: about one try in ten succeeds all the same
FAILURES = "failures"


class RecordConfig(Config):
    """What decides an episode, besides its task and its number."""

    suite: str = "libero_object"
    """LIBERO suite."""
    starts: tuple[str, ...] = (STANDARD,)
    """Kinds of start, in turn: episode n has the kind n modulo their number."""
    shift: float = Field(default=SHIFT, ge=0, le=0.1)
    """Largest move of every object along x and along y, in m; not for standard starts."""
    noise: float = Field(default=NOISE, ge=0, le=0.5)
    """Standard deviation of the noise on the expert's motion, action units."""
    max_steps: int = Field(default=280, ge=1)
    """Longest episode in actions."""
    seed: int = Field(default=0, ge=0)
    """Of moves and noise."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """An episode that was tried; one line of `record.jsonl`.

    Attributes:
        task: index in the suite.
        episode: its number.
        kind: of its start.
        init_index: LIBERO's initial state that it starts from, or that was moved.
        success: whether the expert solved it; None when no moved start was found.
        steps: actions.
        attempts: grasps tried.
    """

    task: int
    episode: int
    kind: str
    init_index: int
    success: bool | None
    steps: int
    attempts: int


@dataclass(frozen=True, slots=True)
class _Todo:
    task: int
    episode: int


class Recorder:
    """Records into one folder.

    Args:
        out: folder of the files; made by `record` when missing.
        config: of the episodes; must be that of the folder's earlier recordings.
        keep_failures: write failed episodes too, into `out/failures`.
        python: interpreter with LIBERO; None is this one.

    Raises:
        ConfigError: an unknown kind of start, or the folder was recorded with other settings.
        DataError: no such suite.
        BackendError: LIBERO is not installed, or its MuJoCo breaks tasks.
    """

    def __init__(
        self,
        out: Path,
        config: RecordConfig,
        *,
        keep_failures: bool = False,
        python: Path | None = None,
    ) -> None:
        for kind in config.starts or ("none",):
            if kind not in KINDS:
                raise ConfigError(f"--starts {kind}; allowed: {', '.join(KINDS)}")
        self._out, self._config = out, config
        self._keep_failures, self._python = keep_failures or SPOILT in config.starts, python
        self._versions = remote.ask("versions", python)
        self._tasks = remote.ask("suite_tasks", python, suite=config.suite)
        self._lock = threading.Lock()
        self._log = out / "record.jsonl"
        self._compare_folder()

    @property
    def tasks(self) -> int:
        """Number of tasks of the suite."""
        return len(self._tasks)

    def file(self, task: int, success: bool = True) -> Path:
        """The file of a task."""
        folder = self._out if success else self._out / FAILURES
        return folder / f"{self._tasks[task]['name']}_states.hdf5"

    def record(
        self,
        tasks: Sequence[int],
        episodes: int,
        *,
        jobs: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Recorded]:
        """Try episodes 0 to `episodes` - 1 of each task; those tried before are kept.

        Args:
            tasks: indices in the suite.
            episodes: tries of each task.
            jobs: simulators at a time.
            progress: called with (episodes tried, in all).

        Returns:
            All of these episodes in the order of tasks and numbers.

        Raises:
            ConfigError: a task does not exist.
            DataError: another process records into this folder.
            SimulatorError: some episodes failed for technical reasons; the others are kept.
        """
        for task in tasks:
            if not 0 <= task < self.tasks:
                raise ConfigError(f"--tasks {task}; allowed: 0 to {self.tasks - 1}")
        with only_writer(self._log, self._out):
            return self._record(tasks, episodes, jobs, progress)

    def _record(
        self,
        tasks: Sequence[int],
        episodes: int,
        jobs: int,
        progress: Callable[[int, int], None] | None,
    ) -> list[Recorded]:
        if not self._asked.exists():
            write_json(self._asked, {"config": self._settings(), "versions": self._versions})
        done = self._done()
        asked = [_Todo(task, number) for task in tasks for number in range(episodes)]
        todo = [item for item in asked if (item.task, item.episode) not in done]
        broken: list[str] = []

        def show() -> None:
            if progress:
                progress(sum((i.task, i.episode) in done for i in asked), len(asked))

        initial: dict[int, Float64Array] = {}

        def work(simulator: remote.RemoteSimulator, item: _Todo) -> None:
            if item.task not in initial:
                initial[item.task] = simulator.initial_states()
            recorded = self._episode(simulator, initial[item.task], item)
            with self._lock:
                done[item.task, item.episode] = recorded
                show()

        def failed(item: _Todo, error: SimulatorError) -> None:
            broken.append(f"task {item.task} episode {item.episode}: {error}")

        if todo:
            show()
            run_by_task(todo, jobs, self._open, work, failed)
        if broken:
            raise SimulatorError(
                f"{len(broken)} episodes failed for technical reasons, the others are kept; the "
                f"same command tries them again ({broken[0]})"
            )
        return [done[item.task, item.episode] for item in asked]

    def _open(self, task: int) -> remote.RemoteSimulator:
        return remote.RemoteSimulator(self._config.suite, task, python=self._python)

    @property
    def _asked(self) -> Path:
        return self._out / "record.json"

    def _settings(self) -> dict[str, Any]:
        return self._config.model_dump(mode="json")

    def _compare_folder(self) -> None:
        """Refuse other settings than those of earlier recordings."""
        if not self._asked.exists():
            return
        there = json.loads(self._asked.read_text(encoding="utf-8"))["config"]
        for key, value in self._settings().items():
            if there.get(key) != value:
                raise ConfigError(
                    f"{self._out}: recorded with {key} {there.get(key)}, now {value}; use the "
                    "same value, or another folder"
                )

    def _done(self) -> dict[tuple[int, int], Recorded]:
        """Episodes of the log whose data is still there."""
        found = {}
        text = self._log.read_text(encoding="utf-8") if self._log.exists() else ""
        if not text.endswith("\n") and text:  # cut short by a kill
            with self._log.open("a", encoding="utf-8") as log:
                log.write("\n")
        for line in text.splitlines():
            try:
                recorded = Recorded(**json.loads(line))
            except ValueError:
                continue
            found[recorded.task, recorded.episode] = recorded
        stored = {
            (task, success): _episodes(self.file(task, success))
            for task in {task for task, _ in found}
            for success in (True, False)
        }
        return {
            key: recorded
            for key, recorded in found.items()
            if not self._stores(recorded)
            or recorded.episode in stored[recorded.task, bool(recorded.success)]
        }

    def _stores(self, recorded: Recorded) -> bool:
        """Whether an episode's data is wanted: solved ones, and failures on request."""
        if recorded.success is None:
            return False
        if recorded.kind == SPOILT:
            return not recorded.success
        return recorded.success or self._keep_failures

    def _episode(
        self, simulator: remote.RemoteSimulator, initial: Float64Array, item: _Todo
    ) -> Recorded:
        config = self._config
        kind, index = kind_and_index(item.episode, config.starts)
        rng = np.random.default_rng([STREAM, config.seed, item.task, item.episode])
        state = start_state(simulator, initial[index], kind, rng, config.shift)
        rollout: Rollout | None = None
        if state is not None:
            spoil = float(rng.uniform(*SPOIL)) if kind == SPOILT else 0.0
            rollout = play_expert(
                simulator, state, rng, noise=config.noise, spoil=spoil, max_steps=config.max_steps
            )
        recorded = Recorded(
            task=item.task,
            episode=item.episode,
            kind=kind,
            init_index=index,
            success=rollout.success if rollout else None,
            steps=len(rollout.actions) if rollout else 0,
            attempts=rollout.attempts if rollout else 0,
        )
        with self._lock:
            if rollout and state is not None and self._stores(recorded):
                attributes = {
                    "suite": config.suite,
                    "task_id": item.task,
                    "task": simulator.task,
                    "language": simulator.language,
                    "bddl": simulator.bddl,
                    "control_freq": CONTROL_HZ,
                    "settle_steps": SETTLE_STEPS,
                    **{key: value for key, value in self._versions.items() if key != "python"},
                }
                path = self.file(item.task, recorded.success or False)
                add_episode(path, attributes, recorded, state, rollout)
            with self._log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(asdict(recorded)) + "\n")
        return recorded


def kind_and_index(episode: int, starts: Sequence[str]) -> tuple[str, int]:
    """Kind of an episode's start, and the initial state that it starts from.

    Kinds take turns; the episodes of one kind go through LIBERO's first 20 initial states.
    """
    rounds, place = divmod(episode, len(starts))
    kind = starts[place]
    before = rounds * starts.count(kind) + starts[:place].count(kind)
    return kind, before % INITIAL_STATES


def add_episode(
    path: Path,
    attributes: dict[str, Any],
    recorded: Recorded,
    init_state: Float64Array,
    rollout: Rollout,
) -> None:
    """Add an episode to a file, or replace it there; a kill leaves the old file or the new one.

    Args:
        path: HDF5 of the task's recordings.
        attributes: of the file's group `data`.
        recorded: what is known of the episode.
        init_state: [S] before the settling steps.
        rollout: its states and actions.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_file = path.with_suffix(".partial")
    if path.exists():
        shutil.copyfile(path, partial_file)
    with h5py.File(partial_file, "a" if path.exists() else "w") as file:
        data = file.require_group("data")
        data.attrs.update(attributes)
        name = f"demo_{recorded.episode}"
        if name in data:
            del data[name]
        demo = data.create_group(name)
        demo.create_dataset("init_state", data=init_state)
        for key, values in (("states", rollout.states), ("actions", rollout.actions)):
            array = values.astype(np.float32)
            demo.create_dataset(key, data=array, compression="gzip", shuffle=True)
        demo.attrs.update(
            episode=recorded.episode,
            kind=recorded.kind,
            init_index=recorded.init_index,
            split=split_of(recorded.episode),
            success=bool(recorded.success),
            attempts=recorded.attempts,
            num_samples=recorded.steps,
        )
        total = sum(int(demo.attrs["num_samples"]) for demo in data.values())
        data.attrs.update(num_demos=len(data), total=total)
    partial_file.replace(path)


def _episodes(path: Path) -> set[int]:
    """Numbers of the episodes in a file."""
    if not path.exists():
        return set()
    try:
        with h5py.File(path, "r") as file:
            return {int(demo.attrs["episode"]) for demo in file["data"].values()}
    except (OSError, KeyError) as error:
        raise DataError(
            f"{path}: not a readable recording ({error}); move it away to record it again"
        ) from error


def undrawn(sources: Sequence[Path], frames: Path) -> list[tuple[Path, Path]]:
    """Pairs of recording and file of frames, for recordings with episodes not drawn yet."""
    pairs = [
        (source, frames / f"{source.stem.removesuffix('_states')}_demo.hdf5") for source in sources
    ]
    return [(source, drawn) for source, drawn in pairs if _episodes(source) - _episodes(drawn)]


def outcome_rows(recorded: Sequence[Recorded]) -> list[dict[str, Any]]:
    """Successes by kind of start: `kind`, `episodes`, `successes`, `not_placed`."""
    rows = []
    for kind in dict.fromkeys(one.kind for one in recorded):
        tried = [one for one in recorded if one.kind == kind and one.success is not None]
        rows.append(
            {
                "kind": kind,
                "episodes": len(tried),
                "successes": sum(bool(one.success) for one in tried),
                "not_placed": sum(one.kind == kind for one in recorded) - len(tried),
            }
        )
    return rows
