"""Small LIBERO files made on the fly."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np


def write_libero(
    path: Path,
    lengths: dict[int, int],
    *,
    extra_frame: bool = True,
    size: int = 16,
    group_attributes: dict[str, Any] | None = None,
    episode_attributes: dict[int, dict[str, Any]] | None = None,
) -> Path:
    """Write episodes {number: actions}; frame i holds the value i and one marked pixel.

    `ee_pos` x holds i / 100, action i holds i / 1000 in its first entry.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs.update(
            {"observation": "before action"} if group_attributes is None else group_attributes
        )
        for number, length in lengths.items():
            rows = length + extra_frame
            episode = data.create_group(f"demo_{number}")
            episode.attrs.update((episode_attributes or {}).get(number, {}))
            frames = np.zeros((rows, size, size, 3), np.uint8)
            frames += np.arange(rows, dtype=np.uint8)[:, None, None, None]
            frames[:, 0, 1] = 255
            actions = np.zeros((length, 7))
            actions[:, 0] = np.arange(1, length + 1) / 1000
            actions[:, 6] = np.where(np.arange(length) < length // 2, -1, 1)
            position = np.zeros((rows, 3))
            position[:, 0] = np.arange(rows) / 100
            episode["actions"] = actions
            episode["obs/agentview_rgb"] = frames
            episode["obs/ee_pos"] = position
            episode["obs/ee_ori"] = np.full((rows, 3), 0.5)
            episode["obs/gripper_states"] = np.tile([0.04, -0.04], (rows, 1))
    return path
