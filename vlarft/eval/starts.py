"""Where evaluation episodes start: never where a demonstration did."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from vlarft.data.libero import (
    ACTION_SIZE,
    episode_names,
    find_files,
    open_libero,
    read_floats,
    task_and_instruction,
)
from vlarft.errors import ConfigError, DataError
from vlarft.libero.perturb import NONE, PERTURBATIONS
from vlarft.libero.scene import Float32Array
from vlarft.libero.starts import MOVED, STANDARD, SWAPPED

KINDS = (STANDARD, MOVED, SWAPPED)
DEVELOPMENT = range(40)  # LIBERO's initial states that every evaluation may use ...
FINAL = range(40, 50)  # ... and those that wait for a final check
STREAM = 2  # of random numbers; recordings use another one
PERTURBED, LOOK = 3, 4  # streams of what perturbations change, of the state and of pictures


@dataclass(frozen=True, slots=True)
class Start:
    """A start that these values alone make again.

    Attributes:
        suite: LIBERO suite.
        task: index in it.
        kind: "standard", "moved" or "swapped".
        init_index: LIBERO's initial state.
        number: of the episode among those of its task and seed.
        seed: of the evaluation; 0 for unperturbed standard starts, which no seed changes.
        shift: largest move in m; 0 for standard starts.
        perturb: what is perturbed on top, or "none".
    """

    suite: str
    task: int
    kind: str
    init_index: int
    number: int
    seed: int
    shift: float
    perturb: str = NONE

    def key(self) -> str:
        """One text for each start."""
        return json.dumps(asdict(self), sort_keys=True)

    def generator(self) -> np.random.Generator:
        """Draws this start's moves."""
        return np.random.default_rng([STREAM, self.seed, self.task, self.number])

    def perturbation_generator(self) -> np.random.Generator:
        """Draws what is perturbed of the state; the same numbers for each perturbation."""
        return np.random.default_rng([PERTURBED, self.seed, self.task, self.number])

    def look_seed(self) -> list[int]:
        """Draws what is perturbed of the pictures."""
        return [LOOK, self.seed, self.task, self.number]


@dataclass(slots=True)
class Demonstrations:
    """What recordings say about one task.

    Attributes:
        standard: initial states that were recorded unchanged.
        actions: float32 [L, 7] of the demonstration that is replayed, or None.
    """

    standard: set[int] = field(default_factory=set)
    actions: Float32Array | None = None


def read_demonstrations(paths: Sequence[Path]) -> dict[str, Demonstrations]:
    """Recorded starts of each task, and one successful episode to replay, by task name.

    Replayed is the first success from a standard start, or else the first success.

    Args:
        paths: recordings with or without frames, or folders of them.

    Raises:
        DataError: a file is damaged, or calls a start standard without saying which.
    """
    found: dict[str, Demonstrations] = {}
    for file in find_files(paths):
        with open_libero(file) as handle:
            data = handle["data"]
            one = found.setdefault(task_and_instruction(file, data)[0], Demonstrations())
            replayed_kind = None
            for name in episode_names(data):
                attributes = data[name].attrs
                kind = str(attributes.get("kind", "original"))
                if kind == STANDARD:
                    if "init_index" not in attributes:
                        raise DataError(
                            f"{file}: attribute 'data/{name}.init_index' is missing; expected the "
                            "initial state of this standard start"
                        )
                    one.standard.add(int(attributes["init_index"]))
                better = one.actions is None or (kind == STANDARD != replayed_kind)
                if better and bool(attributes.get("success", True)):
                    actions = read_floats(file, data, f"{name}/actions", ACTION_SIZE)
                    one.actions, replayed_kind = actions.astype(np.float32), kind
    return found


def choose_starts(
    suite: str,
    tasks: Sequence[int],
    names: Sequence[str],
    kind: str,
    episodes: int,
    seeds: Sequence[int],
    recorded: dict[str, Demonstrations],
    *,
    shift: float,
    final: bool = False,
) -> list[tuple[int, Start]]:
    """The starts of an evaluation, each with its seed; the same for every policy.

    Standard starts are drawn without repetition from the allowed initial states that no recording
    started from, and are the same for every seed. Moved ones differ from seed to seed.

    Args:
        suite: LIBERO suite.
        tasks: indices in it.
        names: names of all tasks of the suite.
        kind: of the starts.
        episodes: of each task and seed.
        seeds: of the evaluation.
        recorded: what the recordings say.
        shift: largest move in m.
        final: use the initial states 40 to 49 instead of 0 to 39.

    Raises:
        ConfigError: an unknown kind or task.
        DataError: fewer standard starts are left than were asked for.
    """
    if kind not in KINDS:
        raise ConfigError(f"--starts {kind}; allowed: {', '.join(KINDS)}")
    chosen = []
    for task in tasks:
        if not 0 <= task < len(names):
            raise ConfigError(f"--tasks {task}; allowed: 0 to {len(names) - 1}")
        allowed = list(FINAL if final else DEVELOPMENT)
        if kind == STANDARD:
            taken = recorded[names[task]].standard if names[task] in recorded else set()
            allowed = [index for index in allowed if index not in taken]
            if len(allowed) < episodes:
                raise DataError(
                    f"task {task} ({names[task]}): {episodes} standard starts asked for, but only "
                    f"{len(allowed)} of {'40-49' if final else '0-39'} were not recorded; ask for "
                    "fewer, or for moved ones"
                )
        for seed in seeds:
            still = kind == STANDARD
            order = np.random.default_rng([STREAM, 0 if still else seed, task]).permutation(allowed)
            for number in range(episodes):
                index = int(order[number % len(order)])
                start = (
                    Start(suite, task, kind, index, number, 0, 0.0)
                    if still
                    else Start(suite, task, kind, index, number, seed, shift)
                )
                chosen.append((seed, start))
    return chosen


def check_perturbations(names: Sequence[str]) -> None:
    """Refuse perturbations that do not exist, and repeated ones.

    Raises:
        ConfigError: lists those that exist.
    """
    for name in names:
        if name not in PERTURBATIONS:
            raise ConfigError(f"--perturb {name}; allowed: {', '.join(PERTURBATIONS)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"--perturb {','.join(names)}: a perturbation is named twice")


def perturb_starts(
    starts: Sequence[tuple[int, Start]], names: Sequence[str]
) -> list[tuple[int, Start]]:
    """Each start under each perturbation, drawn from its seed also where the start is standard."""
    return [
        (seed, replace(start, seed=seed, perturb=name)) for name in names for seed, start in starts
    ]
