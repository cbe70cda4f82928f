"""Tiny models with random weights and a tiny LIBERO file, made once per test session."""

from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from vlarft.data.libero import read_episodes
from vlarft.data.statistics import compute_statistics
from vlarft.models.flow_policy import build_policy
from vlarft.models.presets import build_world

RFT = """
steps: 2
scenes: 2
rollouts: 3
checkpoint_interval: 1
reward: {metric: lpips-alex}
optimiser: {head_lr: 1.0e-3, sigma_lr: 1.0e-3, warmup: 0}
evaluation: {interval: 1, windows: 4, batch: 4}
"""


def write_libero(path: Path, episodes: int = 4, steps: int = 12, size: int = 32) -> Path:
    """A file as `vlarft data render` writes it: a square that follows two actions."""
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs.update(
            task="pick_up_the_milk", language="pick up the milk", observation="before action"
        )
        for number in range(episodes):
            actions = random.uniform(-0.9, 0.9, (steps, 7)).astype(np.float32)
            actions[:, 6] = np.where(np.arange(steps) > steps // 2, 1, -1)
            place = (
                np.vstack([[16, 16], 16 + np.cumsum(4 * actions[:, :2], 0)]).clip(4, 27).astype(int)
            )
            frames = np.full((steps + 1, size, size, 3), 60, np.uint8)
            for t, (x, y) in enumerate(place):
                frames[t, y - 4 : y + 5, x - 4 : x + 5] = (220, 180, 40)
            demo = data.create_group(f"demo_{number}")
            demo.attrs.update(split="val" if number % 2 else "train", success=True)
            demo["actions"] = actions
            demo["obs/agentview_rgb"] = frames
            for name, width in (("ee_pos", 3), ("ee_ori", 3), ("gripper_states", 2)):
                demo[f"obs/{name}"] = random.uniform(-1, 1, (steps + 1, width))
    return path


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders `world` and `policy`, file `data`, configuration `config`."""
    root = tmp_path_factory.mktemp("models")
    data = write_libero(root / "pick_up_the_milk.hdf5")
    build_world("tiny").save_pretrained(root / "world")
    build_policy("tiny", compute_statistics(read_episodes(data, split="train"))).save_pretrained(
        root / "policy"
    )
    (root / "rft.yaml").write_text(RFT)
    return SimpleNamespace(
        world=str(root / "world"),
        policy=str(root / "policy"),
        data=str(data),
        config=str(root / "rft.yaml"),
        root=root,
    )
