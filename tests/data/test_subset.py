import h5py
import numpy as np
import pytest

from tests.data.libero_files import write_libero
from vlarft.data.libero import read_episodes
from vlarft.data.subset import subset_files
from vlarft.errors import DataError


@pytest.fixture
def folder(tmp_path):
    for name in "ab":
        write_libero(
            tmp_path / "full" / f"{name}.hdf5",
            dict.fromkeys(range(12), 5),
            episode_attributes={0: {"kind": "moved", "split": "val"}},
            group_attributes={"observation": "before action", "language": "pick it"},
        )
    return tmp_path / "full"


def test_subset_is_a_lossless_choice(folder, tmp_path):
    written = subset_files(folder, tmp_path / "small", train=2, val=2)
    assert [item.file.name for item in written] == ["a.hdf5", "b.hdf5"]
    assert written[0].episodes == ("demo_0", "demo_1", "demo_2", "demo_3")
    assert written[0].size == written[0].file.stat().st_size
    full = {(e.file.name, e.name): e for e in read_episodes(folder)}
    small = read_episodes(tmp_path / "small")
    assert len(small) == 8
    for episode in small:
        source = full[episode.file.name, episode.name]
        for field in ("frames", "actions", "proprioception"):
            np.testing.assert_array_equal(getattr(episode, field), getattr(source, field))
        for field in ("split", "kind", "instruction", "success"):
            assert getattr(episode, field) == getattr(source, field)
    assert sorted(p.name for p in (tmp_path / "small").iterdir()) == ["a.hdf5", "b.hdf5"]


@pytest.mark.parametrize(
    ("observation", "extra_frame"),
    [("before action", True), ("before action", False), ("after action", False)],
)
def test_without_noops_a_subset_reads_as_its_source_does(tmp_path, observation, extra_frame):
    source = write_libero(
        tmp_path / "a.hdf5",
        {0: 6},
        extra_frame=extra_frame,
        group_attributes={"observation": observation},
        episode_attributes={0: {"num_samples": 6}},
    )
    with h5py.File(source, "r+") as handle:
        handle["data/demo_0/actions"][2, :6] = 0
        handle["data/demo_0/actions"][4, :6] = 0
    (item,) = subset_files(source, tmp_path / "small", train=1, val=0, drop_noops=True)
    (expected,) = read_episodes(source, drop_noops=True)
    (episode,) = read_episodes(item.file)
    assert episode.steps == (4 if extra_frame else 3)
    for field in ("frames", "actions", "proprioception"):
        np.testing.assert_array_equal(getattr(episode, field), getattr(expected, field))
    with h5py.File(item.file) as handle:
        assert handle["data/demo_0"].attrs["num_samples"] == episode.steps
        assert handle["data"].attrs["total"] == episode.steps


def test_still_pixels_cost_nothing(tmp_path):
    write_libero(tmp_path / "noise.hdf5", {0: 60}, size=64)
    still = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with h5py.File(tmp_path / "noise.hdf5", "r+") as handle:
        handle["data/demo_0/obs/agentview_rgb"][...] = still
    (item,) = subset_files(tmp_path / "noise.hdf5", tmp_path / "small", train=1, val=0)
    assert item.size < 4 * still.nbytes  # 61 frames


def test_refusals_leave_nothing_behind(folder, tmp_path):
    small = tmp_path / "small"
    with pytest.raises(DataError, match=r"a\.hdf5: 3 episodes of split 'val', 4 wanted"):
        subset_files(folder, small, train=1, val=4)
    with pytest.raises(DataError, match="allowed: 100"):
        subset_files(folder, small, limit_bytes=100)
    with pytest.raises(DataError, match="not both 0"):
        subset_files(folder, small, train=0, val=0)
    assert not list(small.iterdir())


def test_existing_files_are_kept_unless_told(folder, tmp_path):
    subset_files(folder, tmp_path / "small", train=1, val=0)
    with pytest.raises(DataError, match="exists already"):
        subset_files(folder, tmp_path / "small", train=2, val=0)
    subset_files(folder, tmp_path / "small", train=2, val=0, overwrite=True)
    assert len(read_episodes(tmp_path / "small")) == 4
    with pytest.raises(DataError, match="exists already"):  # never over its own source
        subset_files(folder, folder, train=2, val=0, overwrite=True)
    assert len(read_episodes(folder)) == 24
