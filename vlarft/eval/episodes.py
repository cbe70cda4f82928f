"""Episodes of several arms on equal starts, kept on disk.

An arm is a policy, the same policy blind, or the replay of a demonstration. Every arm plays every
start. Finished episodes are stored under what decides them (policy, start with its perturbation,
protocol), so nothing is played twice. An episode that fails for a technical reason is reported
apart: it is no failure of the task, and the next call plays it again.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vlarft.errors import DataError, SimulatorError
from vlarft.eval.closed_loop import Contestant, play
from vlarft.eval.starts import Start
from vlarft.libero.parallel import run_by_task
from vlarft.libero.perturb import NONE, amounts_of, perturbed_state
from vlarft.libero.remote import RemoteSimulator
from vlarft.libero.scene import Float64Array
from vlarft.libero.starts import start_state

BEFORE, AFTER, REPLAY = "before", "after", "replay"
BLIND = ", blind"  # after the name of a policy that sees grey


def is_control(arm: str) -> bool:
    """Whether an arm is neither a compared policy nor a baseline."""
    return arm not in (BEFORE, AFTER, REPLAY) and not arm.endswith(BLIND)


@dataclass(frozen=True, slots=True)
class Arm:
    """One row of the table.

    Attributes:
        name: "before", "after", that of a control, "before, blind", "after, blind" or "replay".
        contestants: who plays the starts of each seed.
        starts: it plays the starts of each task and seed whose number is below; None: all.
    """

    name: str
    contestants: Mapping[int, Contestant]
    starts: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """One episode.

    Attributes:
        arm: its name.
        seed: of the evaluation.
        start: where it began.
        state: hash of the simulator's state there; equal for all arms.
        success: whether the task was solved; None after an error.
        steps: steps taken.
        error: why there is no result, else "".
    """

    arm: str
    seed: int
    start: Start
    state: str
    success: bool | None
    steps: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Protocol:
    """What decides an episode besides start and contestant.

    Attributes:
        max_steps: steps after which an episode has failed.
        versions: of MuJoCo, robosuite and Python.
        renderer: name of the OpenGL device.
    """

    max_steps: int
    versions: dict[str, str]
    renderer: str


class EpisodeStore:
    """Finished episodes on disk: one JSONL file for each contestant under a protocol.

    Args:
        folder: of the files.
        protocol: of the episodes.
    """

    def __init__(self, folder: Path, protocol: Protocol) -> None:
        self._folder, self._protocol = folder, asdict(protocol)
        self._known: dict[Path, dict[str, dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def find(self, contestant: Contestant, start: Start) -> dict[str, Any] | None:
        """`state`, `success` and `steps` of an episode, or None."""
        with self._lock:
            return self._read(self._path(contestant)).get(start.key())

    def add(self, contestant: Contestant, start: Start, result: dict[str, Any]) -> None:
        """Keep an episode."""
        path = self._path(contestant)
        with self._lock:
            self._read(path)[start.key()] = result
            path.parent.mkdir(parents=True, exist_ok=True)
            new = not path.exists()
            with path.open("a", encoding="utf-8") as file:
                if new:
                    head = {"contestant": contestant.identity, "protocol": self._protocol}
                    file.write(json.dumps(head) + "\n")
                file.write(json.dumps({"start": asdict(start)} | result) + "\n")

    def _path(self, contestant: Contestant) -> Path:
        content = json.dumps([contestant.identity, self._protocol], sort_keys=True)
        return self._folder / f"{hashlib.sha256(content.encode()).hexdigest()[:24]}.jsonl"

    def _read(self, path: Path) -> dict[str, dict[str, Any]]:
        if path not in self._known:
            found: dict[str, dict[str, Any]] = {}
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            for line in text.splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:  # cut short by a kill: played again
                    continue
                if "start" in entry:
                    found[Start(**entry.pop("start")).key()] = entry
            if text and not text.endswith("\n"):
                with path.open("a", encoding="utf-8") as file:
                    file.write("\n")
            self._known[path] = found
        return self._known[path]


@dataclass(frozen=True, slots=True)
class _Todo:
    task: int
    seed: int
    start: Start
    arm: Arm

    @property
    def contestant(self) -> Contestant:
        return self.arm.contestants[self.seed]


def run_episodes(
    arms: Sequence[Arm],
    starts: Sequence[tuple[int, Start]],
    protocol: Protocol,
    store: EpisodeStore,
    open_task: Callable[[int], RemoteSimulator],
    *,
    jobs: int = 1,
    films: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """Every arm on all of its starts, by the order of starts and then of arms.

    Args:
        arms: who plays.
        starts: seed and start.
        protocol: of the episodes.
        store: of episodes already played; new ones are added.
        open_task: starts the simulator of a task.
        jobs: simulators at a time.
        films: folder of an MP4 for each episode that is played now.
        progress: called with (episodes done, in all).

    Raises:
        DataError: arms met different states under one start.
    """
    wanted = [
        _Todo(start.task, seed, start, arm)
        for seed, start in starts
        for arm in arms
        if arm.starts is None or start.number < arm.starts
    ]
    results: dict[tuple[str, int, str], dict[str, Any]] = {}
    lock = threading.Lock()
    states: dict[str, Float64Array | None] = {}

    def finish(item: _Todo, result: dict[str, Any]) -> None:
        with lock:
            results[item.arm.name, item.seed, item.start.key()] = result
            if progress:
                progress(len(results), len(wanted))

    def state_of(simulator: RemoteSimulator, start: Start) -> Float64Array | None:
        key = start.key()
        if key not in states:
            states[key] = make_state(simulator, start)
        return states[key]

    def make_state(simulator: RemoteSimulator, start: Start) -> Float64Array | None:
        if start.perturb == NONE:
            initial = simulator.initial_states()[start.init_index]
            rng = start.generator()
            return start_state(simulator, initial, start.kind, rng, start.shift)
        state = state_of(simulator, replace(start, perturb=NONE))
        if state is None:
            return None
        amounts = amounts_of(start.perturb, seen=False)
        return perturbed_state(simulator, state, amounts, start.perturbation_generator())

    def work(simulator: RemoteSimulator, item: _Todo) -> None:
        if (stored := store.find(item.contestant, item.start)) is not None:
            finish(item, stored)  # another arm is the same policy
            return
        state = state_of(simulator, item.start)
        if state is None:
            finish(item, _error("no placement of the moved objects was found"))
            return
        look = amounts_of(item.start.perturb, seen=True)
        simulator.set_look(look, item.start.look_seed())
        if films:
            simulator.start_film(films / _film_name(item), "agentview")
        player = item.contestant.player(item.task, simulator.language)
        begun = time.perf_counter()
        success, steps = play(simulator, state, player, protocol.max_steps)
        seconds = round(time.perf_counter() - begun, 2)
        simulator.end_film()
        result = {"state": _digest(state), "success": success, "steps": steps, "seconds": seconds}
        store.add(item.contestant, item.start, result)
        finish(item, result)

    def failed(item: _Todo, error: SimulatorError) -> None:
        finish(item, _error(str(error)))

    todo = []
    for item in wanted:
        if (stored := store.find(item.contestant, item.start)) is not None:
            finish(item, stored)
        else:
            todo.append(item)
    run_by_task(todo, jobs, open_task, work, failed)
    outcomes = [
        _outcome(item, results[item.arm.name, item.seed, item.start.key()]) for item in wanted
    ]
    _check_paired(outcomes)
    return outcomes


def _error(words: str) -> dict[str, Any]:
    return {"state": "", "success": None, "steps": 0, "error": words}


def _digest(state: Float64Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(state).tobytes()).hexdigest()[:16]


def _film_name(item: _Todo) -> str:
    start, arm = item.start, item.arm.name.replace(", ", "-")
    kind = start.kind if start.perturb == NONE else f"{start.kind}-{start.perturb}"
    return f"task{start.task}-{kind}-seed{item.seed}-{start.number}-{arm}.mp4"


def _outcome(item: _Todo, result: dict[str, Any]) -> Outcome:
    return Outcome(
        item.arm.name,
        item.seed,
        item.start,
        result["state"],
        result["success"],
        result["steps"],
        result.get("error", ""),
    )


def _check_paired(outcomes: Sequence[Outcome]) -> None:
    seen: dict[str, str] = {}
    for outcome in outcomes:
        if outcome.error:
            continue
        if seen.setdefault(outcome.start.key(), outcome.state) != outcome.state:
            raise DataError(
                f"{outcome.start}: stored episodes began in another simulator state than today's; "
                "give a fresh --cache folder"
            )
