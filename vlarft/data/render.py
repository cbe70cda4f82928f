"""`vlarft data render`: recorded simulator states -> frames in LIBERO's HDF5 layout.

Source files hold, per episode, `states` [L+1, S] (states[i] is before actions[i]) and `actions`
[L, 7]. The result holds L+1 frames an episode: the state after the last action is kept, so that a
window may reach the end. Frames keep LIBERO's raw rows; readers turn them.
"""

import contextlib
import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from queue import Empty
from typing import Any

import h5py
import numpy as np

from vlarft.data.libero import ACTION_SIZE, episode_names, open_libero, read_floats
from vlarft.data.simulator import Simulator
from vlarft.errors import DataError

CAMERA_FIELD = {"agentview": "agentview_rgb", "robot0_eye_in_hand": "eye_in_hand_rgb"}
PROPRIOCEPTION = ("ee_pos", "ee_ori", "gripper_states", "joint_states")


def render_file(
    source: Path,
    destination: Path,
    size: int = 64,
    cameras: Sequence[str] = ("agentview",),
    limit: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[int, int]:
    """Draw every recorded state of one file.

    Args:
        source: HDF5 of simulator states and actions of one task.
        destination: HDF5 to write; it appears only when complete.
        size: edge of the square frames in pixels, 16 to 1024.
        cameras: "agentview" and/or "robot0_eye_in_hand".
        limit: only the first episodes.
        progress: called with (episode, done, total) after each episode.

    Returns:
        Number of episodes and of frames written.

    Raises:
        DataError: the source is damaged or not a file of recorded states; names file and key.
        BackendError: LIBERO's simulator or OpenGL is not available.
    """
    if not 16 <= size <= 1024:
        raise DataError(f"size {size} px; allowed: 16 to 1024")
    for camera in cameras:
        if camera not in CAMERA_FIELD:
            raise DataError(f"unknown camera '{camera}'; allowed: {', '.join(CAMERA_FIELD)}")
    with open_libero(source) as recording:
        meta = _source_attributes(recording["data"], source)
        width = _check_episodes(recording["data"], source)
    simulator = Simulator(str(meta["suite"]), int(meta["task_id"]), size)
    if width != simulator.state_size:
        raise DataError(
            f"{source}: states of {width} numbers; task {meta['task_id']} of {meta['suite']} "
            f"has {simulator.state_size}; draw them with the LIBERO they were recorded with"
        )
    partial = destination.with_suffix(".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    frames = 0
    with h5py.File(source, "r") as recording, h5py.File(partial, "w") as out:
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
                        "camera_heights": size,
                        "camera_widths": size,
                        "control_freq": 20,
                    },
                }
            ),
            num_demos=len(names),
            total=frames,
        )
        simulator.close()
    partial.replace(destination)
    return len(names), frames


def render_files(
    work: Sequence[tuple[Path, Path]],
    size: int = 64,
    cameras: Sequence[str] = ("agentview",),
    limit: int | None = None,
    jobs: int = 1,
    progress: Callable[[Path, str, int, int], None] | None = None,
) -> list[tuple[int, int]]:
    """Draw several files, each in a process of its own, `jobs` at a time.

    A simulator and its OpenGL context are freed for certain only when their process ends.

    Args:
        work: pairs of source and destination.
        size: as for `render_file`, like `cameras` and `limit`.
        cameras: see `size`.
        limit: see `size`.
        jobs: processes, 1 or more.
        progress: called with (destination, episode, done, total) after each episode.

    Returns:
        Numbers of episodes and frames of each file.

    Raises:
        DataError: a source is not a file of recorded states; files being drawn are finished first.
        BackendError: LIBERO's simulator or OpenGL is not available.
    """
    if not work:
        return []
    context = multiprocessing.get_context("spawn")  # OpenGL does not survive a fork
    reports = context.Queue()
    with ProcessPoolExecutor(
        max_workers=min(jobs, len(work)),
        mp_context=context,
        initializer=_start_worker,
        initargs=(reports,),
        max_tasks_per_child=1,
    ) as pool:
        futures = [pool.submit(_draw, *pair, size, tuple(cameras), limit) for pair in work]
        while True:
            finished = all(future.done() for future in futures)
            with contextlib.suppress(Empty):
                while True:
                    report = reports.get(timeout=0.2)
                    if progress:
                        progress(*report)
            failed = next((f for f in futures if f.done() and f.exception() is not None), None)
            if failed is not None:
                pool.shutdown(cancel_futures=True)
                failed.result()
            if finished:
                return [future.result() for future in futures]


_reports: Any = None  # a worker's way to tell its parent about episodes


def _start_worker(reports: Any) -> None:
    global _reports
    _reports = reports


def _draw(
    source: Path, target: Path, size: int, cameras: Sequence[str], limit: int | None
) -> tuple[int, int]:
    def report(name: str, done: int, total: int) -> None:
        _reports.put((target, name, done, total))

    return render_file(source, target, size, cameras, limit, report)


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
    simulator: Simulator, episode: h5py.Group, out: h5py.Group, cameras: Sequence[str]
) -> int:
    states = episode["states"][()].astype(np.float64)
    fields: dict[str, list[Any]] = {CAMERA_FIELD[camera]: [] for camera in cameras} | {
        k: [] for k in PROPRIOCEPTION
    }
    for state in states:
        simulator.set_state(state)
        for camera in cameras:
            fields[CAMERA_FIELD[camera]].append(simulator.draw(camera))
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
