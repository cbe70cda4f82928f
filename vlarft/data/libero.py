"""Reader of LIBERO demonstrations in HDF5. The conventions of the files: `docs/data.md`.

Whatever a file's pairing of observations and actions, an `Episode` holds L actions and L+1
observations: `frames[i]` is seen before `actions[i]` and `frames[i + 1]` after it.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt

from vlarft.errors import DataError
from vlarft.files import only_writer

ACTION_NAMES = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
ACTION_SIZE = len(ACTION_NAMES)
PROPRIOCEPTION = (
    ("ee_pos", 3),
    ("ee_ori", 3),
    ("gripper_states", 2),
)  # the 8 numbers a policy sees, in this order
PROPRIOCEPTION_SIZE = sum(size for _, size in PROPRIOCEPTION)
ORIENTATION = "rotated-180"  # of every frame that leaves this module
NOOP_NORM = (
    1e-4  # OpenVLA's rule: an action that moves less and leaves the gripper alone is dropped
)

Split = Literal["train", "val", "failure"]
SPLITS: tuple[Split, ...] = ("train", "val")  # of demonstrations
FAILURE: Split = "failure"  # of none


@dataclass(frozen=True, eq=False)
class Episode:
    """One demonstration of L actions.

    Attributes:
        name: group in the file, e.g. "demo_12".
        file: the file it was read from.
        task: LIBERO's task name, words joined by underscores.
        instruction: the sentence given to a policy.
        kind: how the start was made, e.g. "standard", "moved"; "original" when not recorded.
        split: "train" or "val"; "failure" is in neither.
        success: whether the task was solved.
        init_index: index of LIBERO's initial state, -1 when not recorded.
        frames: uint8 [L+1, H, W, 3], turned by 180 degrees from the file's rows.
        actions: float32 [L, 7] in raw LIBERO units, -1 to 1; gripper -1 opens, +1 closes.
        proprioception: float32 [L+1, 8]: end-effector position in m (3), its axis-angle in rad
            (3), finger joints in m (2).
    """

    name: str
    file: Path
    task: str
    instruction: str
    kind: str
    split: Split
    success: bool
    init_index: int
    frames: npt.NDArray[np.uint8]
    actions: npt.NDArray[np.float32]
    proprioception: npt.NDArray[np.float32]

    @property
    def steps(self) -> int:
        """Number of actions, L."""
        return len(self.actions)

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of the frames in pixels."""
        return self.frames.shape[1], self.frames.shape[2]


def check_camera(camera: str) -> None:
    """Refuse what cannot be the key of a camera's pictures.

    Raises:
        DataError: it does not end in "_rgb".
    """
    if not camera.endswith("_rgb"):
        raise DataError(
            f"camera '{camera}'; allowed: names that end in _rgb, such as agentview_rgb"
        )


def split_of(number: int) -> Split:
    """Split of an episode whose file does not name one: every seventh, and the 13th, validates."""
    return "val" if number % 7 == 3 or number == 13 else "train"


def read_episodes(
    paths: str | Path | Iterable[str | Path],
    split: Split | None = None,
    limit: int | None = None,
    *,
    camera: str = "agentview_rgb",
    drop_noops: bool = False,
    progress: Callable[[Path, int, int], None] | None = None,
) -> list[Episode]:
    """Read demonstrations into memory.

    Args:
        paths: HDF5 files, or folders whose `*.hdf5` are read in the order of their names.
        split: only "train" or only "val"; None reads both.
        limit: at most this many episodes of each file (after `split`), None for all.
        camera: key of the pictures, e.g. "agentview_rgb" or "eye_in_hand_rgb".
        drop_noops: leave out actions that neither move (norm of the first six below 1e-4) nor
            change the gripper of the action kept before, with the observation before them.
        progress: called with (file, files done, files in all) after each file.

    Returns:
        Episodes in the order of files, then of episode numbers. All frames have one size.

    Raises:
        DataError: a file or key is missing, truncated, empty, of a wrong shape or type, or NaN.
    """
    if split is not None and split not in SPLITS:
        raise DataError(f"split '{split}'; allowed: {', '.join(SPLITS)}")
    if limit is not None and limit < 1:
        raise DataError(f"limit {limit}; allowed: 1 or more")
    check_camera(camera)
    files = find_files(paths)
    episodes: list[Episode] = []
    for done, file in enumerate(files, start=1):
        for episode in _read_file(file, split, limit, camera, drop_noops):
            if episodes and episode.resolution != episodes[0].resolution:
                raise DataError(
                    f"{file}: key 'data/{episode.name}/obs/{camera}' has frames of "
                    f"{_size(episode)} px, but {episodes[0].file} has {_size(episodes[0])}; "
                    "read files of one size"
                )
            episodes.append(episode)
        if progress:
            progress(file, done, len(files))
    if not episodes:
        wanted = f"of split '{split}' " if split else ""
        raise DataError(f"{', '.join(map(str, files))}: no episode {wanted}found")
    return episodes


def find_files(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """HDF5 files named by files and folders, folders in the order of their file names.

    Raises:
        DataError: a path does not exist, or a folder holds no `*.hdf5`.
    """
    files: list[Path] = []
    for path in [Path(paths)] if isinstance(paths, str | Path) else [Path(p) for p in paths]:
        if path.is_dir():
            found = sorted(path.glob("*.hdf5"))
            if not found:
                raise DataError(
                    f"{path}: no *.hdf5 in this folder; name a folder of LIBERO demonstrations"
                )
            files += found
        elif path.exists():
            files.append(path)
        else:
            raise DataError(f"{path}: no such file or folder")
    if not files:
        raise DataError("no data file given; name HDF5 files or folders of them")
    return files


@contextmanager
def whole_hdf5(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file that appears at `path` once it is complete; missing folders are made.

    Raises:
        DataError: another process is writing it; that one goes on undisturbed.
    """
    unfinished = path.with_suffix(".partial")
    with only_writer(unfinished, path):  # HDF5 would empty the file before it asks for the lock
        pass
    try:
        with h5py.File(unfinished, "w") as file:
            yield file
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def open_libero(file: Path) -> h5py.File:
    """Open a file and check that its outline is LIBERO's.

    Raises:
        DataError: the file is not readable as HDF5 (truncated, empty, other) or has no episodes.
    """
    try:
        handle = h5py.File(file, "r")
    except OSError as error:
        raise DataError(
            f"{file}: not a readable HDF5 file, perhaps truncated or empty ({_line(error)})"
        ) from error
    data = handle.get("data")
    problem = None
    if not isinstance(data, h5py.Group):
        problem = "key 'data' is missing; expected LIBERO's layout data/demo_N/{obs,actions}"
    elif not len(data):
        problem = "key 'data' holds no episodes; expected groups demo_0, demo_1, ..."
    elif odd := next((name for name in data if _number(name) is None), None):
        problem = f"key 'data/{odd}' is not an episode; expected groups demo_0, demo_1, ..."
    elif (convention := _text(data.attrs.get("macros_image_convention", "opengl"))) != "opengl":
        problem = (
            f"attribute 'data.macros_image_convention' is '{convention}'; "
            "allowed: opengl (LIBERO's raw rows)"
        )
    elif (observation := observation_time(data)) not in ("before action", "after action"):
        problem = (
            f"attribute 'data.observation' is '{observation}'; allowed: before action, after action"
        )
    if problem:
        handle.close()
        raise DataError(f"{file}: {problem}")
    return handle


def episode_names(data: h5py.Group) -> list[str]:
    """Names of a file's episodes in the order of their numbers."""
    return sorted(data, key=lambda name: _number(name) or 0)


def episode_number(data: h5py.Group, name: str) -> int:
    """Number of an episode: its attribute, or the N of demo_N."""
    return int(data[name].attrs.get("episode", _number(name)))


def episode_split(file: Path, data: h5py.Group, name: str) -> Split:
    """Split of an episode: its attribute, or `split_of` its number.

    Raises:
        DataError: the attribute is none of the splits.
    """
    split = _text(data[name].attrs.get("split", split_of(episode_number(data, name))))
    for known in (*SPLITS, FAILURE):
        if split == known:
            return known
    raise DataError(
        f"{file}: attribute 'data/{name}.split' is '{split}'; allowed: "
        f"{', '.join((*SPLITS, FAILURE))}"
    )


def task_and_instruction(file: Path, data: h5py.Group) -> tuple[str, str]:
    """Task name and the sentence LIBERO's evaluation gives for it.

    Original files carry the bddl file's wording only ("Pick the milk ..."), so the sentence is made
    from the task name, as LIBERO's benchmark does; the scene prefix of LIBERO-90 and -10 is cut.
    """
    task = _text(data.attrs.get("task", file.stem.removesuffix("_demo")))
    sentence = re.sub(r"^[A-Z_]+_SCENE\d+_", "", task).replace("_", " ")
    return task, _text(data.attrs.get("language", sentence))


def _read_file(
    file: Path, split: Split | None, limit: int | None, camera: str, drop_noops: bool
) -> Iterator[Episode]:
    with open_libero(file) as handle:
        data = handle["data"]
        task, instruction = task_and_instruction(file, data)
        names = [
            name for name in episode_names(data) if split in (None, episode_split(file, data, name))
        ]
        for name in names[:limit]:
            frames, proprioception, actions = read_arrays(file, data, name, camera, drop_noops)
            attributes = data[name].attrs
            yield Episode(
                name=name,
                file=file,
                task=task,
                instruction=instruction,
                kind=_text(attributes.get("kind", "original")),
                split=episode_split(file, data, name),
                success=bool(attributes.get("success", True)),
                init_index=int(attributes.get("init_index", -1)),
                frames=np.ascontiguousarray(frames[:, ::-1, ::-1]),
                actions=actions,
                proprioception=proprioception,
            )


def read_arrays(
    file: Path, data: h5py.Group, name: str, camera: str, drop_noops: bool = False
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Frames in the file's rows, proprioception and actions, paired as in `Episode`.

    Raises:
        DataError: as `read_episodes`.
    """
    frames, proprioception, actions = _read_paired(file, data, name, camera)
    if not drop_noops:
        return frames, proprioception, actions
    kept = np.flatnonzero(~noops(actions))
    if not len(kept):
        raise DataError(f"{file}: key 'data/{name}/actions' holds no-ops only; keep no-ops")
    seen = np.append(kept, len(actions))
    return frames[seen], proprioception[seen], actions[kept]


def _read_paired(
    file: Path, data: h5py.Group, name: str, camera: str
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    actions = read_floats(file, data, f"{name}/actions", ACTION_SIZE).astype(np.float32)
    if not len(actions):
        raise DataError(f"{file}: key 'data/{name}/actions' has no steps; remove this episode")
    frames = _read_array(file, data, f"{name}/obs/{camera}")
    key = f"data/{name}/obs/{camera}"
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise DataError(
            f"{file}: key '{key}' is {frames.dtype} {list(frames.shape)}; "
            "expected uint8 [frames, H, W, 3]"
        )
    parts = [
        read_floats(file, data, f"{name}/obs/{part}", size).astype(np.float32)
        for part, size in PROPRIOCEPTION
    ]
    for (part, _), values in zip(PROPRIOCEPTION, parts, strict=True):
        if len(values) != len(frames):
            raise DataError(
                f"{file}: key 'data/{name}/obs/{part}' has {len(values)} rows; "
                f"expected {len(frames)}, as many as frames"
            )
    after = observation_time(data) == "after action"
    surplus = len(frames) - len(actions)
    # One more frame than actions: one before every action and one after the last. As many: the
    # frame before the first action, or the one after the last, was never stored.
    if surplus not in (0, 1) or (surplus == 1 and after and "observation" in data.attrs):
        allowed = f"{len(actions)}" if after else f"{len(actions)} or {len(actions) + 1}"
        raise DataError(
            f"{file}: key '{key}' has {len(frames)} frames for {len(actions)} actions; "
            f"expected {allowed}"
        )
    if surplus == 0:
        actions = actions[1:] if after else actions[:-1]
        if not len(actions):
            raise DataError(
                f"{file}: key 'data/{name}/actions' has one step and only one frame; remove it"
            )
    return frames, np.concatenate(parts, axis=1), actions


def noops(actions: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Which of the actions [L, 7] do nothing: no motion, gripper as in the last kept action."""
    still = np.linalg.norm(actions[:, :6], axis=1) < NOOP_NORM
    result = np.zeros(len(actions), dtype=bool)
    gripper: float | None = None
    for i in range(len(actions)):
        result[i] = still[i] and (gripper is None or actions[i, 6] == gripper)
        if not result[i]:
            gripper = float(actions[i, 6])
    return result


def _read_array(file: Path, data: h5py.Group, key: str) -> npt.NDArray[Any]:
    dataset = data.get(key)
    if not isinstance(dataset, h5py.Dataset):
        episode = data[key.partition("/")[0]]
        states_only = isinstance(episode, h5py.Group) and "states" in episode
        if states_only and "obs" not in episode and "/obs/" in key:
            raise DataError(
                f"{file}: key 'data/{key}' is missing, the file holds simulator states without "
                "pictures; draw them with: vlarft data render"
            )
        raise DataError(
            f"{file}: key 'data/{key}' is missing; "
            "expected LIBERO's layout data/demo_N/{obs,actions}"
        )
    try:
        values = dataset[()]
    except OSError as error:
        raise DataError(
            f"{file}: key 'data/{key}' cannot be read, the file is damaged ({_line(error)})"
        ) from error
    return np.asarray(values)


def read_floats(
    file: Path, data: h5py.Group, key: str, size: int | None = None
) -> npt.NDArray[np.floating]:
    """An array [steps, size] of finite numbers, in the file's precision.

    Args:
        file: named in errors.
        data: group `data` of the file.
        key: of the array within `data`, e.g. "demo_0/actions".
        size: entries of a row, None for any.

    Raises:
        DataError: the array is missing, damaged, of another shape or type, NaN or infinite.
    """
    values = _read_array(file, data, key)
    if values.dtype.kind != "f" or values.ndim != 2 or values.shape[1] != (size or values.shape[1]):
        raise DataError(
            f"{file}: key 'data/{key}' is {values.dtype} {list(values.shape)}; "
            f"expected floating point [steps, {size or 'entries'}]"
        )
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise DataError(
            f"{file}: key 'data/{key}' is NaN or infinite in row {bad[0]}; remove this episode"
        )
    return values


def observation_time(data: h5py.Group) -> str:
    """When a file's observations were taken: "before action", or LIBERO's own "after action"."""
    return _text(data.attrs.get("observation", "after action"))


def _number(name: str) -> int | None:
    match = re.fullmatch(r"demo_(\d+)", name)
    return int(match[1]) if match else None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _size(episode: Episode) -> str:
    return "x".join(map(str, episode.resolution))
