"""`vlarft data inspect`: what is in demonstration files, every array read and checked."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from vlarft.data.libero import (
    Episode,
    find_files,
    noops,
    observation_time,
    open_libero,
    read_episodes,
)


def inspect_files(
    paths: str | Path | Iterable[str | Path],
    *,
    camera: str = "agentview_rgb",
    progress: Callable[[Path, int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Read files one at a time and describe each.

    Args:
        paths: LIBERO HDF5 files or folders of them.
        camera: "agentview_rgb" or "eye_in_hand_rgb".
        progress: called with (file, files done, files in all) after each file.

    Returns:
        One dictionary of plain values a file: file, bytes, task, instruction, observation (as the
        file pairs it), height, width, episodes, train, val, successes, kinds, steps, shortest and
        longest episode in steps, noops, action_min and action_max over all steps.

    Raises:
        DataError: a file is damaged or not LIBERO's; the message names the file and the key.
    """
    files = find_files(paths)
    rows = []
    for done, file in enumerate(files, start=1):
        rows.append(_describe(file, read_episodes(file, camera=camera)))
        if progress:
            progress(file, done, len(files))
    return rows


def _describe(file: Path, episodes: Sequence[Episode]) -> dict[str, Any]:
    with open_libero(file) as handle:
        observation = observation_time(handle["data"])
    actions = np.concatenate([episode.actions for episode in episodes])
    lengths = [episode.steps for episode in episodes]
    height, width = episodes[0].resolution
    return {
        "file": str(file),
        "bytes": file.stat().st_size,
        "task": episodes[0].task,
        "instruction": episodes[0].instruction,
        "observation": observation,
        "height": height,
        "width": width,
        "episodes": len(episodes),
        "train": sum(episode.split == "train" for episode in episodes),
        "val": sum(episode.split == "val" for episode in episodes),
        "successes": sum(episode.success for episode in episodes),
        "kinds": dict(sorted(Counter(episode.kind for episode in episodes).items())),
        "steps": sum(lengths),
        "shortest": min(lengths),
        "longest": max(lengths),
        "noops": sum(int(noops(episode.actions).sum()) for episode in episodes),
        "action_min": actions.min(axis=0).tolist(),
        "action_max": actions.max(axis=0).tolist(),
    }


def inspection_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The result of `inspect_files` for people, one line a file and a sum."""
    table = Table(title="LIBERO demonstrations", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("task", overflow="fold")
    for heading in ("px", "train", "val", "solved", "steps", "length", "no-ops", "MB"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row["task"].replace("_", " "),
            f"{row['height']}x{row['width']}",
            str(row["train"]),
            str(row["val"]),
            f"{row['successes']}/{row['episodes']}",
            str(row["steps"]),
            f"{row['shortest']}-{row['longest']}",
            str(row["noops"]),
            f"{row['bytes'] / 1e6:.1f}",
        )
    if len(rows) > 1:
        total = {
            key: sum(row[key] for row in rows)
            for key in ("train", "val", "successes", "episodes", "steps", "noops", "bytes")
        }
        lengths = min(row["shortest"] for row in rows), max(row["longest"] for row in rows)
        table.add_section()
        table.add_row(
            f"{len(rows)} files",
            "",
            str(total["train"]),
            str(total["val"]),
            f"{total['successes']}/{total['episodes']}",
            str(total["steps"]),
            f"{lengths[0]}-{lengths[1]}",
            str(total["noops"]),
            f"{total['bytes'] / 1e6:.1f}",
        )
    return table
