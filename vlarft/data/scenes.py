"""`vlarft data scenes`: pictures of many scenes with the places of all objects.

Each is drawn from a recorded state: the arm and everything else stay, and in most of them the
objects trade places and move. Half a minute of drawing shows a task's objects in more places than
an hour of demonstrations, which each show one. One file a task, NAME_scenes.hdf5.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from vlarft.data.libero import episode_names, find_files, open_libero, read_floats, whole_hdf5
from vlarft.data.render import StateFile, check_simulator, check_source
from vlarft.errors import DataError, SimulatorError
from vlarft.libero.parallel import run_by_task
from vlarft.libero.remote import RemoteSimulator, ask, choose_renderer
from vlarft.libero.scene import Float64Array
from vlarft.models.words import split_words

CAMERA = "agentview"
AS_RECORDED = 0.25  # share of scenes whose objects stay: the held ones, too
SHIFT = 0.05  # m, largest move along x and along y after trading places
APART, GOAL_APART = 0.06, 0.12  # m between centres of objects, and to the goal's
TRIES = 200  # placements drawn before a scene is left as it was recorded
HELD_OUT = 12  # of so many scenes of a file, the last one validates


def draw_scenes(
    work: Sequence[tuple[Path, Path]],
    count: int = 1200,
    size: int = 64,
    *,
    seed: int = 0,
    jobs: int = 1,
    python: Path | None = None,
    progress: Callable[[Path, int, int], None] | None = None,
) -> None:
    """Draw scenes of some recorded tasks, each with a simulator of its own.

    Only training episodes are taken, so that validation episodes stay unseen.

    Args:
        work: pairs of source (HDF5 with simulator states of one task) and destination.
        count: scenes of each.
        size: edge of the pictures, 16 to 1024 px.
        seed: of what is drawn.
        jobs: simulators at a time.
        python: interpreter with LIBERO; None is this one.
        progress: called with (destination, scenes drawn, count).

    Raises:
        DataError: a source is damaged, or has no training episode. All are checked first.
        BackendError: LIBERO's simulator or OpenGL is not available.
        SimulatorError: a simulator failed; complete files are kept.
    """
    if not 16 <= size <= 1024:
        raise DataError(f"size {size} px; allowed: 16 to 1024")
    if count < HELD_OUT:
        raise DataError(f"{count} scenes of a task; allowed: {HELD_OUT} or more")
    files = [check_source(number, *pair) for number, pair in enumerate(work)]
    states = [_training_states(file.source) for file in files]
    if not files:
        return
    ask("versions", python)
    renderer, _ = choose_renderer(python)

    def open_file(number: int) -> RemoteSimulator:
        meta = files[number].meta
        return RemoteSimulator(str(meta["suite"]), int(meta["task_id"]), size, python, renderer)

    def draw(simulator: RemoteSimulator, file: StateFile) -> None:
        check_simulator(simulator, file, [CAMERA])
        rng = np.random.default_rng([seed, int(file.meta["task_id"])])
        show = partial(progress, file.destination) if progress else None
        _draw_task(simulator, states[file.task], count, rng, file.destination, show)

    def failed(file: StateFile, error: SimulatorError) -> None:
        raise SimulatorError(f"{file.source}: {error}") from error

    run_by_task(files, jobs, open_file, draw, failed)


def _training_states(source: Path) -> list[Float64Array]:
    with open_libero(source) as recording:
        data = recording["data"]
        found = [
            read_floats(source, data, f"{name}/states").astype(np.float64)
            for name in episode_names(data)
            if data[name].attrs.get("split", "train") == "train"
        ]
    if not found:
        raise DataError(f"{source}: no training episode to draw scenes from")
    return found


def _draw_task(
    simulator: RemoteSimulator,
    states: list[Float64Array],
    count: int,
    rng: np.random.Generator,
    destination: Path,
    progress: Callable[[int, int], None] | None,
) -> None:
    entries = {name: simulator.entries(name) for name in simulator.objects}
    pictures, places = [], []
    for done in range(1, count + 1):
        episode = states[rng.integers(len(states))]
        state = episode[rng.integers(len(episode))].copy()
        if rng.random() >= AS_RECORDED:
            state = shuffled(state, episode[0], entries, simulator.goal, rng)
        simulator.set_state(state)
        pictures.append(simulator.draw(CAMERA))
        places.append([state[entries[name]][:3] for name in simulator.objects])
        if progress and (done % 50 == 0 or done == count):
            progress(done, count)
    with whole_hdf5(destination) as file:
        file.create_dataset(
            "agentview_rgb",
            data=np.stack(pictures),
            compression="gzip",
            chunks=(1, *pictures[0].shape),
        )
        file["places"] = np.asarray(places, np.float32)
        file.attrs.update(
            task=simulator.task,
            language=simulator.language,
            objects=list(simulator.objects),
            target=simulator.target,
            goal=simulator.goal,
        )


def shuffled(
    state: Float64Array,
    initial: Float64Array,
    entries: dict[str, slice],
    goal: str,
    rng: np.random.Generator,
) -> Float64Array:
    """A state whose objects stand where others stood, moved by up to `SHIFT`; the arm stays.

    Heights and turns are the initial ones of each object, so none floats. What the hand holds is
    put back, too. A placement with objects in each other is drawn again, `TRIES` times at most.

    Args:
        state: [S], of any moment of an episode.
        initial: [S], its first one.
        entries: where a state holds each object.
        goal: the object that trades with none.
        rng: draws.
    """
    others = [name for name in entries if name != goal]
    slots = np.array([initial[entries[name]][:2] for name in others])
    centre = initial[entries[goal]][:2]
    for _ in range(TRIES):
        placed = rng.permutation(slots) + rng.uniform(-SHIFT, SHIFT, slots.shape)
        goal_placed = centre + rng.uniform(-SHIFT, SHIFT, 2)
        gaps = np.linalg.norm(placed[:, None] - placed[None], axis=-1)
        gaps += np.diag(np.full(len(others), np.inf))
        if gaps.min() > APART and np.linalg.norm(placed - goal_placed, axis=1).min() > GOAL_APART:
            break
    else:
        return state
    changed = state.copy()
    for name, place in (*zip(others, placed, strict=True), (goal, goal_placed)):
        changed[entries[name]] = initial[entries[name]]
        start = entries[name].start
        changed[start : start + 2] = place
    return changed


@dataclass(frozen=True, eq=False)
class SceneBatch:
    """B scenes, each with Q instructions.

    Attributes:
        image: uint8 [B, H, W, 3], turned as recordings are.
        instruction: B lists of Q sentences.
        places: float32 [B, Q, 2, 3], of each sentence's target and goal, m.
    """

    image: Tensor
    instruction: list[list[str]]
    places: Tensor


class PlacedScenes:
    """Drawn scenes in memory, with every instruction that their objects allow.

    Where the task's instruction names its target word for word ("pick up the tomato sauce ..."),
    the same sentence with another object's name asks for that one; else only the target is asked.

    Args:
        paths: files of `draw_scenes`, or folders of them.
        split: "train", or "val": every twelfth scene.

    Raises:
        DataError: no file, a damaged one, or pictures of two sizes.
    """

    def __init__(self, paths: Sequence[Path], split: str) -> None:
        files = [_read(path, split) for path in find_files(list(paths))]
        sizes = {file.image.shape[1] for file in files}
        if len(sizes) > 1:
            raise DataError(f"scenes of {sorted(sizes)} px; draw them in one size")
        self.size: int = sizes.pop()
        self._files = files
        self._file = torch.cat([torch.full((len(f.image),), n) for n, f in enumerate(files)])
        self._row = torch.cat([torch.arange(len(f.image)) for f in files])

    def __len__(self) -> int:
        return len(self._row)

    def fingerprint(self) -> dict[str, Any]:
        """What a checkpoint remembers of its data: numbers of files and scenes, and a hash."""
        content = hashlib.sha256()
        for file in self._files:
            content.update("\n".join(file.instruction).encode())
            for part in (file.places, file.image[-1]):
                content.update(np.ascontiguousarray(part.numpy()).data)
        return {
            "episodes": len(self._files),
            "windows": len(self),
            "sha256": content.hexdigest(),
        }

    def all_places(self) -> Tensor:
        """Every place that is asked for, float32 [M, 3], m."""
        return torch.cat([file.places.reshape(-1, 3) for file in self._files])

    def batch(self, indices: Tensor, questions: int, generator: torch.Generator) -> SceneBatch:
        """Scenes, each with some of its instructions in a random order, repeated if too few.

        Args:
            indices: B scenes.
            questions: Q, instructions of each.
            generator: draws them.
        """
        images, sentences, places = [], [], []
        for index in indices.tolist():
            file, row = self._files[int(self._file[index])], int(self._row[index])
            order = torch.randperm(len(file.instruction), generator=generator)
            chosen = order[torch.arange(questions) % len(order)]
            images.append(file.image[row])
            sentences.append([file.instruction[n] for n in chosen.tolist()])
            places.append(file.places[row, chosen])
        return SceneBatch(torch.stack(images), sentences, torch.stack(places))


@dataclass(frozen=True, eq=False)
class _SceneFile:
    """One file: images [M, H, W, 3], its Q instructions, places [M, Q, 2, 3]."""

    image: Tensor
    instruction: list[str]
    places: Tensor


def _read(path: Path, split: str) -> _SceneFile:
    try:
        with h5py.File(path, "r") as file:
            images, places = file["agentview_rgb"][()], file["places"][()]
            names = [str(name) for name in file.attrs["objects"]]
            target, goal = str(file.attrs["target"]), str(file.attrs["goal"])
            language = str(file.attrs["language"])
    except (OSError, KeyError) as error:
        raise DataError(f"{path}: not a file of `vlarft data scenes` ({error})") from error
    held_out = np.arange(len(images)) % HELD_OUT == HELD_OUT - 1
    rows = held_out if split == "val" else ~held_out
    asked = sentences(language, names, target, goal)
    chosen = np.stack(
        [places[rows][:, [names.index(name), names.index(goal)]] for name in asked], axis=1
    )
    turned = np.ascontiguousarray(images[rows][:, ::-1, ::-1])
    return _SceneFile(torch.from_numpy(turned), list(asked.values()), torch.from_numpy(chosen))


def sentences(language: str, names: Sequence[str], target: str, goal: str) -> dict[str, str]:
    """Objects that can be asked for, and the sentence that asks: LIBERO names end in a number."""
    said = {name: " ".join(split_words(name.replace("_", " "))[:-1]) for name in names}
    if said[target] not in language:
        return {target: language}
    return {name: language.replace(said[target], said[name]) for name in names if name != goal}
