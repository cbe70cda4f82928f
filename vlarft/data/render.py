"""`vlarft data render`: recorded simulator states -> frames in LIBERO's HDF5 layout.

Source files hold, per episode, `states` [L+1, S] (states[i] is before actions[i]) and `actions`
[L, 7]. The result holds L+1 frames an episode: the state after the last action is kept, so that a
window may reach the end. Frames keep LIBERO's raw rows; readers turn them.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vlarft.data.libero import ACTION_SIZE, episode_names, open_libero, read_floats, whole_hdf5
from vlarft.errors import DataError, SimulatorError
from vlarft.libero.parallel import run_by_task
from vlarft.libero.remote import RemoteSimulator, ask, choose_renderer

EYE_IN_HAND = "robot0_eye_in_hand"
PROPRIOCEPTION = ("ee_pos", "ee_ori", "gripper_states", "joint_states")


Shown = Callable[[Path, str, int, int], None]
"""Called with (file, episode, episodes done, episodes in all)."""


@dataclass(frozen=True, slots=True)
class StateFile:
    """A checked source; `task` is its place in the work."""

    task: int
    source: Path
    destination: Path
    meta: dict[str, Any]
    state_size: int


def render_file(
    source: Path,
    destination: Path,
    size: int = 64,
    cameras: Sequence[str] = ("agentview",),
    limit: int | None = None,
    progress: Shown | None = None,
) -> tuple[int, int]:
    """Draw every recorded state of one file; see `render_files`."""
    return render_files([(source, destination)], size, cameras, limit, progress=progress)[0]


def render_files(
    work: Sequence[tuple[Path, Path]],
    size: int = 64,
    cameras: Sequence[str] = ("agentview",),
    limit: int | None = None,
    jobs: int = 1,
    progress: Shown | None = None,
    *,
    python: Path | None = None,
) -> list[tuple[int, int]]:
    """Draw every recorded state of some files, each with a simulator of its own.

    Args:
        work: pairs of source (HDF5 of simulator states and actions of one task) and destination
            (HDF5 to write; it appears only when complete).
        size: edge of the square frames in pixels, 16 to 1024.
        cameras: names of the simulator's cameras, e.g. "agentview", "robot0_eye_in_hand".
        limit: only the first episodes of each file.
        jobs: simulators at a time, 1 or more.
        progress: called with (destination, episode, done, total) after each episode.
        python: interpreter with LIBERO; None is this one.

    Returns:
        Numbers of episodes and of frames written of each file.

    Raises:
        DataError: a source is damaged or not a file of recorded states; names file and key. All are
            checked before the first picture.
        BackendError: LIBERO's simulator or OpenGL is not available.
        SimulatorError: a simulator failed; complete files are kept.
    """
    if not 16 <= size <= 1024:
        raise DataError(f"size {size} px; allowed: 16 to 1024")
    files = [check_source(number, *pair) for number, pair in enumerate(work)]
    if not files:
        return []
    ask("versions", python)  # refuses here when LIBERO is missing or its MuJoCo breaks tasks
    renderer, _ = choose_renderer(python)
    results: dict[int, tuple[int, int]] = {}

    def open_file(number: int) -> RemoteSimulator:
        meta = files[number].meta
        suite, task = str(meta["suite"]), int(meta["task_id"])
        return RemoteSimulator(suite, task, size, python, renderer)

    def draw(simulator: RemoteSimulator, file: StateFile) -> None:
        check_simulator(simulator, file, cameras)
        show = partial(progress, file.destination) if progress else None
        results[file.task] = _draw_file(simulator, file, cameras, limit, show)

    def failed(file: StateFile, error: SimulatorError) -> None:
        raise SimulatorError(f"{file.source}: {error}") from error

    run_by_task(files, jobs, open_file, draw, failed)
    return [results[file.task] for file in files]


def check_source(number: int, source: Path, destination: Path) -> StateFile:
    """Read a source to its end.

    Raises:
        DataError: it is damaged or not a file of recorded states; names file and key.
    """
    with open_libero(source) as recording:
        meta = _source_attributes(recording["data"], source)
        return StateFile(
            number, source, destination, meta, _check_episodes(recording["data"], source)
        )


def check_simulator(simulator: RemoteSimulator, file: StateFile, cameras: Sequence[str]) -> None:
    """Refuse a simulator with other states than a file's, or without a camera.

    Raises:
        DataError: one line.
    """
    if file.state_size != simulator.state_size:
        raise DataError(
            f"{file.source}: states of {file.state_size} numbers; task {file.meta['task_id']} of "
            f"{file.meta['suite']} has {simulator.state_size}; draw them with the LIBERO they were "
            "recorded with"
        )
    for camera in cameras:
        if camera not in simulator.cameras:
            raise DataError(f"no camera '{camera}'; allowed: {', '.join(simulator.cameras)}")


def _draw_file(
    simulator: RemoteSimulator,
    file: StateFile,
    cameras: Sequence[str],
    limit: int | None,
    progress: Callable[[str, int, int], None] | None,
) -> tuple[int, int]:
    meta, frames = file.meta, 0
    with h5py.File(file.source, "r") as recording, whole_hdf5(file.destination) as out:
        names = episode_names(recording["data"])[:limit]
        group = out.create_group("data")
        for done, name in enumerate(names, start=1):
            frames += _render_episode(
                simulator, recording["data"][name], group.create_group(name), cameras
            )
            if progress:
                progress(name, done, len(names))
        group.attrs.update(
            suite=meta["suite"],
            task_id=meta["task_id"],
            task=meta["task"],
            language=meta["language"],
            env_name=simulator.env_name,
            bddl_file_name=simulator.bddl,
            macros_image_convention="opengl",
            observation="before action",
            problem_info=json.dumps({"language_instruction": simulator.language}),
            env_args=json.dumps(
                {
                    "type": 1,
                    "env_name": simulator.env_name,
                    "bddl_file": simulator.bddl,
                    "env_kwargs": {
                        "camera_heights": simulator.size,
                        "camera_widths": simulator.size,
                        "control_freq": 20,
                    },
                }
            ),
            num_demos=len(names),
            total=frames,
        )
    return len(names), frames


def camera_field(camera: str) -> str:
    """Key of a camera's pictures under `obs`: LIBERO's name for the wrist, NAME_rgb for others."""
    return "eye_in_hand_rgb" if camera == EYE_IN_HAND else f"{camera}_rgb"


def _source_attributes(data: h5py.Group, source: Path) -> dict[str, Any]:
    meta = dict(data.attrs)
    for key in ("suite", "task_id", "task", "language"):
        if key not in meta:
            raise DataError(
                f"{source}: attribute 'data.{key}' is missing; expected recorded LIBERO states"
            )
    if not isinstance(meta["task_id"], int | np.integer) or meta["task_id"] < 0:
        raise DataError(
            f"{source}: attribute 'data.task_id' is {meta['task_id']!r}; "
            "expected a whole number, 0 or more"
        )
    return meta


def _check_episodes(data: h5py.Group, source: Path) -> int:
    """Read every array, so that nothing is drawn of a damaged file; numbers of a state."""
    widths: dict[str, int] = {}
    for name in episode_names(data):
        states = read_floats(source, data, f"{name}/states")
        actions = read_floats(source, data, f"{name}/actions", ACTION_SIZE)
        if not len(actions):
            raise DataError(
                f"{source}: key 'data/{name}/actions' has no steps; remove this episode"
            )
        if len(states) != len(actions) + 1:
            raise DataError(
                f"{source}: key 'data/{name}/states' has {len(states)} rows for "
                f"{len(actions)} actions; expected one more state than actions"
            )
        widths[name] = states.shape[1]
        first, width = next(iter(widths.items()))
        if widths[name] != width:
            raise DataError(
                f"{source}: key 'data/{name}/states' has {widths[name]} numbers a state, "
                f"'data/{first}/states' has {width}; expected states of one simulator"
            )
    return width


def _render_episode(
    simulator: RemoteSimulator, episode: h5py.Group, out: h5py.Group, cameras: Sequence[str]
) -> int:
    states = episode["states"][()].astype(np.float64)
    fields: dict[str, list[Any]] = {camera_field(camera): [] for camera in cameras} | {
        k: [] for k in PROPRIOCEPTION
    }
    for state in states:
        simulator.set_state(state)
        for camera in cameras:
            fields[camera_field(camera)].append(simulator.draw(camera))
        for key, value in simulator.proprioception().items():
            fields[key].append(value)
    for key, values in fields.items():
        array = np.stack(values)
        image = key.endswith("_rgb")
        options = (
            {"compression": "gzip", "compression_opts": 4, "chunks": (1, *array.shape[1:])}
            if image
            else {}
        )
        out.create_dataset(
            f"obs/{key}", data=array if image else array.astype(np.float32), **options
        )
    out.create_dataset("actions", data=episode["actions"][()].astype(np.float32))
    out.create_dataset("states", data=states.astype(np.float32), compression="gzip", shuffle=True)
    out.attrs.update(episode.attrs)
    return len(states)
