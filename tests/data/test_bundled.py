from collections import Counter
from pathlib import Path

import numpy as np

import vlarft
from vlarft.data.libero import read_episodes
from vlarft.data.windows import Windows, moving_mask

BUNDLED = Path(vlarft.__file__).parent / "assets" / "demos" / "libero_object_64"


def test_bundled_demonstrations():
    episodes = read_episodes(BUNDLED)
    assert Counter(e.split for e in episodes) == {"train": 30, "val": 20}
    assert len({e.instruction for e in episodes}) == 10
    assert {e.resolution for e in episodes} == {(64, 64)}
    assert all(e.success for e in episodes)
    assert all(len(e.frames) == e.steps + 1 for e in episodes)
    # Turned by 180 degrees the robot hangs from the top of the picture, so most motion is there.
    windows = Windows(episodes)
    batch = windows.batch(np.arange(0, len(windows), 37))
    moving = moving_mask(batch.frames).float().mean(dim=(0, 2))
    assert moving[:32].sum() > 3 * moving[32:].sum()


def test_size_in_the_package():
    assert sum(f.stat().st_size for f in BUNDLED.iterdir()) <= 6_000_000
