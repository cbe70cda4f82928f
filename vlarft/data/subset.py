"""`vlarft data subset`: a small, lossless copy of a few episodes of each file."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from vlarft.data.libero import (
    PROPRIOCEPTION,
    SPLITS,
    check_camera,
    episode_names,
    episode_split,
    find_files,
    open_libero,
    read_arrays,
    read_episodes,
)
from vlarft.errors import DataError

TILE = (16, 8)  # height and width in px; a chunk is one tile over the whole episode


@dataclass(frozen=True)
class SubsetFile:
    """One file that was written.

    Attributes:
        file: the new file.
        episodes: names of the episodes copied, in the order of their numbers.
        size: bytes on disk.
    """

    file: Path
    episodes: tuple[str, ...]
    size: int


def subset_files(
    paths: str | Path | Iterable[str | Path],
    destination: Path,
    train: int = 3,
    val: int = 2,
    *,
    camera: str = "agentview_rgb",
    drop_noops: bool = False,
    limit_bytes: int | None = None,
    overwrite: bool = False,
    progress: Callable[[Path, int, int], None] | None = None,
) -> list[SubsetFile]:
    """Copy the first episodes of each split of each file.

    Kept: actions, the camera's frames, proprioception and every attribute, bit for bit. Left out:
    simulator states, joint states, other cameras. Without no-ops an episode is written as it is
    read: float32, with the observation before each action kept and the one after the last.

    Args:
        paths: LIBERO HDF5 files or folders of them.
        destination: folder of the new files, which keep their names.
        train: training episodes of each file, 0 or more.
        val: validation episodes of each file, 0 or more.
        camera: key of the pictures, e.g. "agentview_rgb" or "eye_in_hand_rgb".
        drop_noops: leave out actions that do nothing, as `read_episodes` does.
        limit_bytes: refuse a larger result, None for any size.
        overwrite: replace files that exist.
        progress: called with (file, files done, files in all) after each file.

    Returns:
        The files written. All appear together, when every one is complete.

    Raises:
        DataError: a source is damaged or has too few episodes, a file exists, or the result is
            too large.
    """
    if train < 0 or val < 0 or train + val == 0:
        raise DataError(f"{train} train and {val} val episodes; allowed: 0 or more, not both 0")
    check_camera(camera)
    sources = find_files(paths)
    targets = [destination / source.name for source in sources]
    if len(set(targets)) < len(targets):
        raise DataError(
            f"{destination}: two source files have one name; subset them into two folders"
        )
    for source, target in zip(sources, targets, strict=True):
        if target.exists() and (not overwrite or target.resolve() == source.resolve()):
            raise DataError(f"{target}: exists already; choose another folder or overwrite it")
    destination.mkdir(parents=True, exist_ok=True)
    partials = [target.with_suffix(".partial") for target in targets]
    written: list[SubsetFile] = []
    try:
        for source, target, partial in zip(sources, targets, partials, strict=True):
            names = _copy(source, partial, {"train": train, "val": val}, camera, drop_noops)
            written.append(SubsetFile(target, names, partial.stat().st_size))
            if progress:
                progress(target, len(written), len(sources))
        total = sum(item.size for item in written)
        if limit_bytes is not None and total > limit_bytes:
            raise DataError(
                f"{destination}: the subset needs {total} bytes; allowed: {limit_bytes}; "
                "choose fewer episodes"
            )
        read_episodes(
            partials, camera=camera
        )  # what was written must be readable before it appears
        for partial, target in zip(partials, targets, strict=True):
            partial.replace(target)
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)
    return written


def _copy(
    source: Path, target: Path, wanted: dict[str, int], camera: str, drop_noops: bool
) -> tuple[str, ...]:
    # "latest" is HDF5 1.10 or newer: its chunk index makes these files a tenth smaller.
    with open_libero(source) as handle, h5py.File(target, "w", libver="latest") as out:
        data, copy = handle["data"], out.create_group("data")
        copy.attrs.update(data.attrs)
        names = _choose(source, data, wanted)
        steps = 0
        for name in names:
            episode = copy.create_group(name)
            episode.attrs.update(data[name].attrs)
            if drop_noops:
                _copy_without_noops(source, data, name, camera, episode)
            else:
                for key in ("actions", *_observed(camera)):
                    _write_array(episode, key, _read_array(source, data, f"{name}/{key}"))
            steps += len(episode["actions"])
        copy.attrs.update(num_demos=len(names), total=steps)
        if drop_noops:
            copy.attrs["observation"] = "before action"
    return tuple(names)


def _observed(camera: str) -> tuple[str, ...]:
    return (*(f"obs/{part}" for part, _ in PROPRIOCEPTION), f"obs/{camera}")


def _copy_without_noops(
    source: Path, data: h5py.Group, name: str, camera: str, episode: h5py.Group
) -> None:
    frames, proprioception, actions = read_arrays(source, data, name, camera, drop_noops=True)
    ends = np.cumsum([size for _, size in PROPRIOCEPTION])[:-1]
    arrays: list[npt.NDArray[Any]] = [actions, *np.split(proprioception, ends, axis=1), frames]
    for key, values in zip(("actions", *_observed(camera)), arrays, strict=True):
        _write_array(episode, key, values)
    if "num_samples" in episode.attrs:
        episode.attrs["num_samples"] = len(actions)


def _choose(source: Path, data: h5py.Group, wanted: dict[str, int]) -> list[str]:
    chosen: set[str] = set()
    for split in SPLITS:
        found = [name for name in episode_names(data) if episode_split(source, data, name) == split]
        if len(found) < wanted[split]:
            raise DataError(
                f"{source}: {len(found)} episodes of split '{split}', {wanted[split]} wanted; "
                "ask for fewer"
            )
        chosen.update(found[: wanted[split]])
    return [name for name in episode_names(data) if name in chosen]


def _read_array(source: Path, data: h5py.Group, key: str) -> npt.NDArray[Any]:
    if key not in data:
        raise DataError(f"{source}: key 'data/{key}' is missing; expected LIBERO's layout")
    try:
        values = np.asarray(data[key][()])
    except OSError as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{source}: key 'data/{key}' cannot be read ({reason})") from error
    if not values.size:
        raise DataError(f"{source}: key 'data/{key}' is empty; remove this episode")
    return values


def _write_array(episode: h5py.Group, key: str, values: npt.NDArray[Any]) -> None:
    # A chunk spans all frames, so Deflate finds still pixels in the frame before: 97 KB an episode
    # at 64 px instead of 907 KB frame by frame; small tiles shorten the distances it must encode.
    image = values.ndim == 4
    episode.create_dataset(
        key,
        data=values,
        chunks=_tiles(values.shape) if image else values.shape,
        compression="gzip",
        compression_opts=9,
        shuffle=not image,
    )


def _tiles(shape: Sequence[int]) -> tuple[int, ...]:
    frames, height, width, channels = shape
    return frames, min(TILE[0], height), min(TILE[1], width), channels
